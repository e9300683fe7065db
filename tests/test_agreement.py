"""Agreement: numbers to check by hand, published tables, an independent package, identities, then properties."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from transformers import PreTrainedTokenizerBase

from tutelage.cli import main
from tutelage.data.datasets import read_rankings
from tutelage.data.records import Completion, Prompt, Ranking, newest
from tutelage.evaluation.agreement import score
from tutelage.models.forward import all_scores
from tutelage.models.loading import load_scalar, new_scalar, save_model
from tutelage.models.tokens import encode_pair
from tutelage.stats.agreement import (
    by_labeler,
    cohen_kappa,
    flags_kappa,
    fleiss_kappa,
    kendall_tau_b,
    krippendorff_alpha,
    pairwise_agreement,
    panels,
    scores_agreement,
    summary,
)
from tutelage.stats.intervals import tail, wilson

ROOT = Path(__file__).parents[1]
HUMAN = ROOT.parent / "shared" / "data" / "e2e_nlg_rankings"


def ranking(labeler: str | None, ranks: Sequence[int], texts: str = "abcdef", prompt: str = "p") -> Ranking:
    """A ranking of one-letter completions."""
    completions = tuple(Completion(text=t) for t in texts[: len(ranks)])
    return Ranking(prompt=Prompt(id=prompt, text=prompt), completions=completions, ranks=tuple(ranks), labeler=labeler)


def means(measures: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """All but the intervals, which depend on the order of prompts, and the number of these."""
    return {name: {k: v for k, v in m.items() if k not in ("low", "high", "prompts")} for name, m in measures.items()}


# Numbers to check by hand


def test_pairs_counted_three_ways() -> None:
    # ab and ac: both say <. bc: the second says =, so it counts for nothing, for disagreement, or for a half.
    found = means(summary([ranking("one", (1, 2, 3)), ranking("two", (1, 2, 2))], draws=10))
    assert found["strict"] == {"mean": 1.0, "pairs": 2}
    assert found["three_way"] == {"mean": pytest.approx(2 / 3), "pairs": 3}
    assert found["half_credit"] == {"mean": pytest.approx(5 / 6), "pairs": 3}
    assert found["tie_rate"] == {"mean": pytest.approx(1 / 6), "pairs": 6}
    # 2 pairs ordered alike, of 3 that one orders and 2 that the other does
    assert found["kendall_tau_b"] == {"mean": pytest.approx(2 / math.sqrt(3 * 2)), "labeler_pairs": 1, "left_out": 0}
    # Tied on both sides is agreement too, but nothing that was ordered.
    found = means(summary([ranking("one", (1, 1, 2)), ranking("two", (2, 2, 1))], draws=10))
    assert found["strict"] == {"mean": 0.0, "pairs": 2}
    assert found["three_way"] == found["half_credit"] == {"mean": pytest.approx(1 / 3), "pairs": 3}


def test_three_labelers_make_three_pairs_of_labelers() -> None:
    rankings = [ranking("x", (1, 2)), ranking("y", (1, 2)), ranking("z", (2, 1))]
    low, high = wilson(1 / 3, 1)  # of one prompt, however many labelers it had
    assert pairwise_agreement(rankings, draws=10) == {
        "mean": pytest.approx(1 / 3), "low": low, "high": high, "prompts": 1, "pairs": 3,
    }  # fmt: skip
    assert summary(rankings, draws=10)["kendall_tau_b"]["mean"] == pytest.approx((1 - 1 - 1) / 3)


def test_prompts_weigh_by_their_pairs_in_pairwise_and_alike_in_tau() -> None:
    # p: 3 pairs, all alike; q: 1 pair, opposed
    rankings = [
        *(ranking(name, (1, 2, 3)) for name in ("x", "y")),
        ranking("x", (1, 2), prompt="q"),
        ranking("y", (2, 1), prompt="q"),
    ]
    found = summary(rankings, draws=200)
    assert found["strict"]["mean"] == pytest.approx(3 / 4)
    assert found["kendall_tau_b"]["mean"] == 0.0
    # Two prompts: Wilson's intervals, with Kish's number of prompts where one weighs more.
    assert (found["strict"]["low"], found["strict"]["high"]) == wilson(3 / 4, 16 / 10)
    assert (found["kendall_tau_b"]["low"], found["kendall_tau_b"]["high"]) == wilson(0.0, 2, (-1, 1))
    assert -1 <= found["alpha_ordinal"]["low"] < found["alpha_ordinal"]["mean"] < found["alpha_ordinal"]["high"] < 1


def test_completions_are_matched_by_text() -> None:
    first, second = ranking("x", (1, 2, 3), "abc"), ranking("y", (1, 2, 3), "cbd")  # only b and c are shared
    found = means(summary([first, second], draws=10))
    assert found["strict"] == {"mean": 0.0, "pairs": 1}
    assert found["kendall_tau_b"]["mean"] == -1.0
    assert "alpha_ordinal" not in found  # nobody ranked the same completions as another
    # Equal texts are one, under their best rank: here b is first.
    merged = ranking("z", (3, 2, 1), "bab")
    assert means(summary([merged, ranking("y", (2, 1), "ab")], draws=10))["strict"] == {"mean": 1.0, "pairs": 1}


def test_a_completion_alone_is_no_agreement() -> None:
    """Where all completions of a prompt are identical nobody can order anything: such prompts change no measure."""
    told = [
        ranking("x", (1, 2)),
        ranking("y", (1, 2)),
        ranking("x", (1, 2), prompt="q"),
        ranking("y", (2, 1), prompt="q"),
    ]
    same = [ranking(name, (1, 1), "aa", f"same {i}") for i in range(5) for name in ("x", "y")]
    found = means(summary([*told, *same], draws=10))
    # Units a and b of p and of q: coincidences o_11 = o_22 = 2 of p, o_12 = o_21 = 2 of q, so n_1 = n_2 = 4.
    assert found["alpha_ordinal"] == {"mean": pytest.approx(1 - 7 * 4 / (2 * 4 * 4)), "units": 4}
    assert found == means(summary(told, draws=10))
    scores = [[1.0, 0.0]] * len(told) + [[0.0, 0.0]] * len(same)
    with_same = scores_agreement([*told, *same], scores, draws=10)
    assert means(with_same) == means(scores_agreement(told, scores[: len(told)], draws=10))


def test_nobody_is_compared_with_themselves() -> None:
    same_set = [ranking("x", (3, 2, 1)), ranking("x", (1, 2, 3)), ranking("y", (1, 2, 3))]
    assert pairwise_agreement(same_set, draws=10)["mean"] == 1.0  # the newest of x counts
    assert summary(same_set, draws=10)["alpha_ordinal"]["mean"] == 1.0
    assert by_labeler(same_set, draws=10)["x"]["strict"]["mean"] == 1.0
    assert scores_agreement(same_set, [(3, 2, 1)] * 3, draws=10)["model"]["mean"] == 1.0
    other_set = [ranking("x", (1, 2), "ab"), ranking("x", (2, 1, 3), "abc")]
    assert pairwise_agreement(other_set) == {}
    assert set(summary(other_set)) == {"tie_rate"}
    nameless = [ranking(None, (1, 2)), ranking(None, (2, 1))]
    assert means({"": pairwise_agreement(nameless)})[""] == {"mean": 0.0, "pairs": 1}


def test_nothing_to_measure_is_left_out() -> None:
    assert summary([]) == {}
    ties = summary([ranking("x", (1, 1)), ranking("y", (1, 1))])
    assert set(ties) == {"three_way", "half_credit", "tie_rate"}
    low, high = wilson(1.0, 1)
    certain = {"mean": 1.0, "low": low, "high": high, "prompts": 1}
    assert ties["three_way"] == ties["half_credit"] == certain | {"pairs": 1}
    mixed = summary([ranking("x", (1, 1)), ranking("y", (1, 2)), ranking("z", (1, 2))], draws=10)
    low, high = wilson(1.0, 1, (-1, 1))
    assert mixed["kendall_tau_b"] == certain | {"low": low, "high": high, "labeler_pairs": 1, "left_out": 2}


def test_tau_is_of_rank_vectors() -> None:
    def ranks(order: str) -> list[int]:
        return [order.index(item) + 1 for item in "abcde"]

    assert kendall_tau_b(ranks("acedb"), ranks("bdeca")) == -1.0  # reversed; on the items themselves it would be 0.6
    assert kendall_tau_b(ranks("acedb"), ranks("acedb")) == 1.0
    assert kendall_tau_b([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx((5 - 1) / 6)
    # Of 6 pairs the first orders 5 and the second 4, and both 3 alike.
    assert kendall_tau_b([1, 2, 2, 3], [1, 1, 2, 2]) == pytest.approx(3 / math.sqrt(5 * 4))
    assert math.isnan(kendall_tau_b([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ValueError, match="ranks of 2 items against ranks of 3"):
        kendall_tau_b([1, 2], [1, 2, 3])


def test_each_labeler_against_the_others() -> None:
    rankings = [
        ranking("x", (1, 2)),
        ranking("y", (1, 2)),
        ranking(None, (2, 1)),
        ranking("x", (1, 1), prompt="q"),
        ranking("z", (1, 2), prompt="q"),
        ranking("alone", (1, 2), prompt="r"),
    ]
    found = {name: means(measures) for name, measures in by_labeler(rankings, draws=10).items()}
    assert found == {
        "alone": {"tie_rate": {"mean": 0.0, "pairs": 1}},
        "x": {"strict": {"mean": 0.5, "pairs": 2}, "tie_rate": {"mean": 0.5, "pairs": 2}},
        "y": {"strict": {"mean": 0.5, "pairs": 2}, "tie_rate": {"mean": 0.0, "pairs": 1}},
        "z": {"tie_rate": {"mean": 0.0, "pairs": 1}},
    }


def test_a_model_beside_the_labelers_on_the_same_pairs() -> None:
    # ab: x and y say a, z says b. Only x orders c, so its pairs count for `model` alone. The model: b < a < c.
    rankings = [ranking("x", (1, 2, 3)), ranking("y", (1, 2)), ranking("z", (2, 1))]
    found = means(scores_agreement(rankings, [(1.0, 0.0, 2.0), (1.0, 0.0), (1.0, 0.0)], draws=10))
    assert found == {
        "model": {
            "mean": pytest.approx(2 / 5),
            "pairs": 5,
        },  # right on x's and y's ab; wrong on z's, and on x's ac and bc
        "labelers_shared": {"mean": pytest.approx(1 / 3), "pairs": 3},
        "model_shared": {"mean": pytest.approx(2 / 3), "pairs": 3},  # x and y are right twice each, z never
        "difference": {"mean": pytest.approx(1 / 3), "pairs": 3},
        "majority_shared": {"mean": pytest.approx(2 / 3), "pairs": 3},
    }
    undecided = scores_agreement(rankings[1:], [(0.5, 0.5), (0.5, 0.5)], draws=10)
    assert undecided["model"]["mean"] == undecided["model_shared"]["mean"] == 0.5
    # One labeler ties: nothing is shared, but the model can be right.
    alone = scores_agreement([ranking("x", (1, 2)), ranking("y", (1, 1))], [(1.0, 0.0), (1.0, 0.0)], draws=10)
    assert means(alone) == {"model": {"mean": 1.0, "pairs": 1}}


def test_scores_must_match() -> None:
    with pytest.raises(ValueError, match="scores of 1 rankings do not match 1 rankings' completions"):
        scores_agreement([ranking("x", (1, 2))], [(1.0,)])
    with pytest.raises(ValueError, match="not a finite number"):
        scores_agreement([ranking("x", (1, 2))], [(1.0, math.nan)])


# Published tables


def test_krippendorffs_table() -> None:
    # Krippendorff 2011, section C: 4 observers, 12 units
    rows = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
    table = [[math.nan if value == "." else float(value) for value in row.split()] for row in rows]
    assert krippendorff_alpha(table, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(table, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_alpha_by_hand() -> None:
    # Units 12 and 11: o_12 = o_21 = 1, o_11 = 2, so n = (3, 1); 1 - 3 (1 + 1) / (3 * 1 * 2), the same at both levels
    assert krippendorff_alpha([[1, 1], [2, 1]], "nominal") == krippendorff_alpha([[1, 1], [2, 1]], "ordinal") == 0.0
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))  # nothing varies
    assert math.isnan(krippendorff_alpha([[1, math.nan], [math.nan, 2]]))  # nobody shares a unit
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(raters, units\)"):
        krippendorff_alpha([1, 2])
    with pytest.raises(ValueError, match="level='interval'"):
        krippendorff_alpha([[1, 2]], "interval")  # type: ignore[arg-type]


def test_alpha_as_an_independent_package_has_it() -> None:
    oracle = pytest.importorskip("krippendorff")  # GPL: for tests alone
    rng = np.random.default_rng(0)
    for _ in range(40):
        raters, units, values = rng.integers(2, 6), rng.integers(3, 12), rng.integers(2, 6)
        table = rng.integers(1, values + 1, (raters, units)).astype(float)
        table[:, 0], table[0, 0] = 1, 2  # so that there is always something to compare
        table[2:, 1:][rng.random((raters - 2, units - 1)) < 0.4] = np.nan
        for level in ("nominal", "ordinal"):
            theirs = oracle.alpha(reliability_data=table, level_of_measurement=level)
            assert_allclose(krippendorff_alpha(table, level), theirs, atol=1e-12)


def test_cohens_kappa() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: 0.7 observed, 0.5 by chance
    first, second = [True] * 25 + [False] * 25, [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa("aabb", "bbaa") == -1.0
    assert cohen_kappa("abc", "abc") == 1.0
    assert cohen_kappa("aaaa", "aabb") == 0.0  # one rater who says always the same is no better than chance
    assert math.isnan(cohen_kappa("aaa", "aaa"))
    with pytest.raises(ValueError, match="categories of 2 units against categories of 3"):
        cohen_kappa("ab", "abc")
    with pytest.raises(ValueError, match="and some"):
        cohen_kappa([], [])


def test_fleiss_kappa() -> None:
    # The textbooks' example: 14 raters put 10 subjects into 5 categories
    rows = "0 0 0 0 14|0 2 6 4 2|0 0 3 5 6|0 3 9 2 0|2 2 8 1 1|7 7 0 0 0|3 2 6 3 0|2 5 3 2 2|6 5 2 1 0|0 2 2 3 7"
    assert fleiss_kappa([[int(n) for n in row.split()] for row in rows.split("|")]) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([[2, 0], [0, 2]]) == 1.0
    assert fleiss_kappa([[1, 1], [1, 1]]) == -1.0  # 0 observed, 1/2 by chance
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    for wrong in ([[2, 0], [1, 0]], [[1, 0], [0, 1]], [[3, -1]], [1, 2], []):
        with pytest.raises(ValueError, match="all sum to the same number of raters"):
            fleiss_kappa(wrong)


# Identities


def test_labelers_who_are_the_same_or_opposite() -> None:
    orders = [(1, 2, 3, 4), (2, 1, 4, 3), (3, 1, 2, 4)]
    same = [ranking(name, ranks, prompt=str(i)) for i, ranks in enumerate(orders) for name in ("x", "y")]
    found = summary(same, draws=20)
    for name in ("strict", "three_way", "half_credit", "kendall_tau_b", "alpha_ordinal", "alpha_nominal"):
        assert (found[name]["mean"], found[name]["high"]) == (1.0, 1.0)
        assert found[name]["low"] < 0.5  # three prompts are few
    assert found["tie_rate"]["mean"] == 0.0
    turned = [r if r.labeler == "x" else r.model_copy(update={"ranks": tuple(5 - n for n in r.ranks)}) for r in same]
    found = summary(turned, draws=20)
    assert found["strict"]["mean"] == found["three_way"]["mean"] == found["half_credit"]["mean"] == 0.0
    assert found["kendall_tau_b"]["mean"] == -1.0
    assert found["alpha_ordinal"]["mean"] < -0.5
    assert found["alpha_nominal"]["mean"] < 0


def test_alpha_of_rankings_is_alpha_of_the_table_of_ranks() -> None:
    tables = [[(1, 2, 3), (3, 1, 2), (1, 3, 2)], [(2, 1), (1, 2)], [(1, 2, 3, 4), (2, 1, 3, 4)]] * 10
    rankings = [ranking(str(j), r, prompt=str(i)) for i, rows in enumerate(tables) for j, r in enumerate(rows)]
    blocks = [np.full((3, len(rows[0])), np.nan) for rows in tables]
    for block, rows in zip(blocks, tables, strict=True):
        block[: len(rows)] = rows
    found = summary(rankings, seed=7, draws=50)
    picks = np.random.default_rng(7).integers(30, size=(50, 30))
    for level in ("nominal", "ordinal"):
        alpha = found[f"alpha_{level}"]
        assert alpha["mean"] == pytest.approx(krippendorff_alpha(np.hstack(blocks), level))
        drawn = [krippendorff_alpha(np.hstack([blocks[i] for i in pick]), level) for pick in picks]
        assert [alpha["low"], alpha["high"]] == pytest.approx(np.quantile(drawn, [tail(30), 1 - tail(30)]))
        assert (alpha["units"], alpha["prompts"]) == (90, 30)


def test_ties_take_the_mean_of_their_ranks_in_alpha() -> None:
    found = summary([ranking("x", (1, 1, 2)), ranking("y", (1, 2, 3))], draws=10)
    assert found["alpha_ordinal"]["mean"] == pytest.approx(krippendorff_alpha([[1.5, 1.5, 3], [1, 2, 3]]))


def test_the_interval_covers_chance() -> None:
    rng = Random(0)
    random = [ranking(n, rng.sample(range(1, 6), 5), prompt=str(i)) for i in range(200) for n in ("x", "y")]
    found = summary(random, draws=500)
    for name, chance in {"strict": 0.5, "kendall_tau_b": 0.0, "alpha_ordinal": 0.0, "alpha_nominal": 0.0}.items():
        assert found[name]["low"] < chance < found[name]["high"]
        assert found[name]["high"] - found[name]["low"] < 0.2
    assert found == summary(random, draws=500)
    assert found != summary(random, draws=500, seed=1)


# Properties


@st.composite
def rankings_of_few(draw: st.DrawFn) -> list[Ranking]:
    """Rankings of one to three prompts by some of four labelers, of two to four completions each."""
    out = []
    for prompt in "pqr"[: draw(st.integers(1, 3))]:
        for labeler in draw(st.lists(st.sampled_from(["w", "x", "y", "z", None]), min_size=1, max_size=5)):
            texts = "".join(draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=4, unique=True)))
            ranks = draw(st.lists(st.integers(1, 4), min_size=len(texts), max_size=len(texts)))
            if not any(r.labeler == labeler is not None and r.prompt.id == prompt for r in out):
                out.append(ranking(labeler, ranks, texts, prompt))
    return out


def same(first: dict[str, dict[str, float]], second: dict[str, dict[str, float]]) -> None:
    assert means(first) == {name: pytest.approx(m, abs=1e-9) for name, m in means(second).items()}


@settings(max_examples=40, deadline=None)
@given(rankings_of_few(), st.randoms(use_true_random=False))
def test_order_and_wording_of_the_input_do_not_matter(rankings: list[Ranking], rng: Random) -> None:
    found, each = summary(rankings, draws=5), by_labeler(rankings, draws=5)
    shuffled = rng.sample(rankings, len(rankings))
    turned = []
    for r in rankings:
        order = rng.sample(range(len(r.ranks)), len(r.ranks))
        columns = {"completions": [r.completions[i] for i in order], "ranks": [r.ranks[i] for i in order]}
        turned.append(r.model_copy(update={k: tuple(v) for k, v in columns.items()}))
    relabelled = []
    for r in rankings:
        new = dict(zip(range(1, 5), sorted(rng.sample(range(1, 100), 4)), strict=True))
        relabelled.append(r.model_copy(update={"ranks": tuple(new[n] for n in r.ranks)}))
    for other in (shuffled, turned, relabelled):
        same(found, summary(other, draws=5))
        assert set(each) == set(by_labeler(other, draws=5))
        for name, measures in by_labeler(other, draws=5).items():
            same(each[name], measures)


@settings(max_examples=40, deadline=None)
@given(rankings_of_few())
def test_measures_hang_together(rankings: list[Ranking]) -> None:
    found = summary(rankings, draws=5)
    by_text = {text: float(i) for i, text in enumerate("dbca")}
    model = scores_agreement(rankings, [[by_text[c.text] for c in r.completions] for r in rankings], draws=5)
    if "three_way" in found:
        assert found["three_way"]["mean"] <= found["half_credit"]["mean"] + 1e-12
    for measure in found.values():
        assert all(math.isfinite(v) for v in measure.values())
    if "strict" in found:
        assert model["labelers_shared"] == found["strict"] == pairwise_agreement(rankings, draws=5)
        shared, majority = model["model_shared"]["mean"], model["majority_shared"]["mean"]
        assert shared <= majority + 1e-12
        assert model["labelers_shared"]["mean"] <= majority + 1e-12
        assert majority >= 0.5 - 1e-12
        assert model["difference"]["mean"] == pytest.approx(shared - found["strict"]["mean"])
        # A labeler's pairs are those of two labelers, seen from both sides.
        nameless = sum(r.labeler is None for r in rankings)
        if not nameless:
            seen = sum(m["strict"]["pairs"] for m in by_labeler(rankings, draws=5).values() if "strict" in m)
            assert seen == 2 * found["strict"]["pairs"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=7))
def test_tau_is_symmetric_and_turns_its_sign(pairs: list[tuple[int, int]]) -> None:
    first, second = (list(column) for column in zip(*pairs, strict=True))
    tau = kendall_tau_b(first, second)
    assert kendall_tau_b(second, first) == pytest.approx(tau, nan_ok=True)
    assert kendall_tau_b([-n for n in first], second) == pytest.approx(-tau, nan_ok=True)
    assert kendall_tau_b([n**3 for n in first], second) == pytest.approx(tau, nan_ok=True)
    assert math.isnan(tau) == (len(set(first)) == 1 or len(set(second)) == 1)


# The stage


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(labeler: Any, ranks: Sequence[int], prompt: str = "Name a colour.") -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completions": ["red", {"text": "blue", "finish": "length"}],
        "ranks": ranks,
        "labeler": labeler,
    }


def test_the_stage_reads_ties_and_writes_results(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    folders: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row(1, [1, 2]), row(2, [1, 2]), row("", [1, 1]), row(1, [2, 1], "A dog?"), row(2, [1, 2], "A dog?")]
    file = write(tmp_path / "rankings.jsonl", rows)
    rankings = read_rankings(file, ties=True).records
    assert [r.labeler for r in rankings] == ["1", "2", None, "1", "2"]
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, tmp_path / "model")
    argv = ["agreement", "--rankings", str(file), "--reward-model", str(tmp_path / "model")]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    done = json.loads((tmp_path / "run" / "done.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert (done["rankings"], done["shared_prompts"], done["too_long"]) == (5, 2, 0)
    assert done["labelers"] == summary(rankings)
    assert done["labelers"]["tie_rate"]["mean"] == pytest.approx(1 / 5)
    assert done["by_labeler"] == by_labeler(rankings)
    reward_model = load_scalar(tmp_path / "model", tokenizer)
    kept, scores = score(reward_model, tokenizer, rankings)
    assert kept == rankings
    assert scores[0] == scores[1] == scores[2] != scores[3] == scores[4]
    assert len(set(scores[0] + scores[3])) == 4
    prompt, cut_off = encode_pair(tokenizer, "A dog?", "blue", ended=False)  # as in training: no end-of-text is read
    alone = all_scores(reward_model, [prompt + cut_off])
    assert scores[3][1] == pytest.approx(float(alone[0]), abs=1e-4)
    assert done["reward_model"] == scores_agreement(rankings, scores)
    for words in ("strict", "0.500", "2 pairs", "model shared"):
        assert words in printed


def plain(labeler: str, ranks: Sequence[int], id: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"q {id}"}]
    return {"id": id, "labeler": labeler, "prompt": prompt, "completions": ["a", "b"], "ranks": ranks}


def messages(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"completions": [[{"role": "assistant", "content": text}] for text in row["completions"]]}


def nemo(row: dict[str, Any]) -> dict[str, Any]:
    completions = zip(messages(row)["completions"], row["ranks"], strict=True)
    listed = [{"completion": turns, "rank": rank - 1} for turns, rank in completions]
    return {"id": row["id"], "labeler": row["labeler"], "context": row["prompt"], "completions": listed}


@pytest.mark.parametrize("layout", [messages, nemo])
def test_the_stage_counts_ties_in_every_layout(tmp_path: Path, layout: Callable[[dict[str, Any]], Any]) -> None:
    rows = [
        plain(name, ranks, str(i))
        for i, both in enumerate([((1, 1), (1, 2)), ((1, 1), (1, 1)), ((1, 2), (1, 2)), ((2, 1), (1, 2))] * 2)
        for name, ranks in zip("xy", both, strict=True)
    ]
    rows += [plain("x", (1, 2), "again"), plain("y", (1, 2), "again"), plain("x", (1, 1), "again")]  # x's newest counts
    done = []
    for name, shown in (("plain", rows), ("other", [layout(row) for row in rows])):
        file = write(tmp_path / f"{name}.jsonl", shown)
        assert main(["agreement", "--rankings", str(file), "--output", str(tmp_path / name)]) == 0
        done.append(json.loads((tmp_path / name / "done.json").read_text()))
    assert done[0]["labelers"] == done[1]["labelers"]
    assert done[0]["labelers"]["tie_rate"]["mean"] == pytest.approx(7 / 18)
    assert done[0]["labelers"]["three_way"]["mean"] == pytest.approx(4 / 9)
    assert done[1]["rankings"] == 18
    assert done[1]["dropped"] == {"older answer of the same labeler": 1}


def test_a_prompt_is_its_text_whatever_the_ids_of_its_rows() -> None:
    own = [ranking(n, ranks, prompt=p) for p in "pq" for n, ranks in (("x", (1, 2, 3)), ("y", (1, 3, 2)))]

    def renamed(ids: str) -> list[Ranking]:
        return [
            r.model_copy(update={"prompt": r.prompt.model_copy(update={"id": i})})
            for r, i in zip(own, ids, strict=True)
        ]

    for ids in ("abcd", "aaaa"):
        assert len(panels(renamed(ids))) == 2
        assert summary(renamed(ids)) == summary(own)
    assert newest([*own, *renamed("abcd")]) == renamed("abcd")


def test_the_stage_says_which_rankings_the_reward_model_cannot_read(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    folders: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, tmp_path / "model")
    file = write(tmp_path / "r.jsonl", [row(n, [1, 2], p) for n in "xy" for p in ("A dog?", "word " * 200)])
    argv = ["agreement", "--rankings", str(file), "--reward-model", str(tmp_path / "model")]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 0
    assert "rows dropped or changed: 2 too long in reward_model" in capsys.readouterr().err


def test_the_stage_takes_chosen_and_rejected(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "chosen": c, "rejected": r, "labeler": n} for n, (c, r) in enumerate(["ab", "ab", "ba"])]
    assert (
        main(["agreement", "--rankings", str(write(tmp_path / "r.jsonl", rows)), "--output", str(tmp_path / "o")]) == 0
    )
    done = json.loads((tmp_path / "o" / "done.json").read_text())
    assert done["labelers"]["strict"]["mean"] == pytest.approx(1 / 3)
    assert done["reward_model"] == {}


def test_the_stage_says_what_is_wrong(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    folders: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def mistake(rows: list[dict[str, Any]], *more: str) -> str:
        file = str(write(tmp_path / "r.jsonl", rows))
        assert main(["agreement", "--rankings", file, "--output", str(tmp_path / "o"), "--overwrite", *more]) == 2
        return capsys.readouterr().err

    assert "no prompt was ranked by two labelers" in mistake([row("x", [1, 2]), row("x", [2, 1])])
    assert "r.jsonl:2: ranks has 1 entries for 2 completions" in mistake([row("x", [1, 2]), row("y", [1])])
    fine = [row("x", [1, 2]), row("y", [1, 2])]
    assert f"{tmp_path}: no tokenizer found here" in mistake(fine, "--reward-model", str(tmp_path), "--dry-run")
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, tmp_path / "model")
    long = [row(name, [1, 2], "word " * 200) for name in "xy"]
    assert "none of 2 rankings fits its context of 128 tokens" in mistake(
        long, "--reward-model", str(tmp_path / "model")
    )


def test_people_who_judged_restaurant_descriptions() -> None:
    """The E2E NLG challenge's judgements, as the example reads them: people agree, but not much."""
    if not HUMAN.is_dir():
        pytest.skip(f"{HUMAN} is absent")
    spec = importlib.util.spec_from_file_location("real_input", ROOT / "examples" / "real_input.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = {
        name: summary(example.human_rankings(HUMAN / f"{name}.jsonl.gz"), draws=100)
        for name in ("quality", "naturalness")
    }
    for name, strict, ties in (("quality", 0.672, 0.494), ("naturalness", 0.624, 0.534)):
        assert found[name]["strict"]["mean"] == pytest.approx(strict, abs=5e-4)
        assert found[name]["tie_rate"]["mean"] == pytest.approx(ties, abs=5e-4)
        assert found[name]["alpha_ordinal"]["low"] > 0.1
    assert len(panels(example.human_rankings(HUMAN / "quality.jsonl.gz"))) == 630


def test_kappa_of_flags_is_fleiss_and_bears_missing_raters() -> None:
    rng = np.random.default_rng(0)
    yes = rng.integers(0, 4, size=(40, 5))
    prompts = [np.stack([3 - row, row], axis=1) for row in yes]  # three raters of five flags of forty prompts
    found = flags_kappa(prompts)
    assert found["mean"] == pytest.approx(fleiss_kappa(np.concatenate(prompts)))
    assert found["low"] < found["mean"] < found["high"]
    assert found["units"] == 200
    alone = [np.array([[1, 0], [0, 1]])]  # one rater: no pair to agree
    assert flags_kappa(prompts + alone)["mean"] == pytest.approx(found["mean"])
    assert flags_kappa([np.array([[2, 0], [0, 2]])])["mean"] == 1.0
    assert flags_kappa([np.array([[2, 0], [2, 0]])]) == {}  # nobody ever said yes: agreement is whole by chance
    assert flags_kappa(alone) == {}
