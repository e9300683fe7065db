"""The reward-model report: against numbers worked by hand, and models that lean as they were made to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tutelage.data.datasets import read_rankings
from tutelage.data.records import Completion, Prompt, Ranking
from tutelage.models.forward import all_scores
from tutelage.models.loading import new_scalar, save_model
from tutelage.models.tokens import encode_pairs
from tutelage.rewards.reward_model import RewardModel
from tutelage.settings.reward import MeasureConfig
from tutelage.stages import measure
from tutelage.stats.reward_model import (
    Scored,
    beside_labelers,
    calibration,
    calibration_error,
    faults,
    leaning,
    pairs_of,
    report,
    sigmoid,
)

ODDS = math.log(3)  # nats: predicted to win with 3/4


def ranking(ranks: list[int], name: str = "p", labeler: str | None = None, order: list[int] | None = None) -> Ranking:
    return Ranking(
        prompt=Prompt(id=name, text=name), completions=tuple(Completion(text=f"{name} {i}") for i in range(len(ranks))),
        ranks=tuple(ranks), labeler=labeler, order=None if order is None else tuple(order),
    )  # fmt: skip


def scored(r: Ranking, scores: list[float], lengths: list[int] | None = None, **rest: Any) -> Scored:
    repeated = rest.get("repeated", [None] * len(scores))
    return Scored(r, scores, lengths or [1] * len(scores), repeated, rest.get("groups", {}))


def test_pairs_by_hand() -> None:
    """Ranks 2, 1, 4, 1: levels 1, 0, 2, 0. Shown in the order c, a, d, b, so at places 1, 3, 0, 2."""
    p = pairs_of([scored(ranking([2, 1, 4, 1], order=[2, 0, 3, 1]), [0.5, 0.5, -1.0, 2.0], [3, 5, 9, 3])])
    rows = sorted(zip(p.margin, p.longer, p.apart, p.earlier, p.right, strict=True))
    assert rows == sorted(
        [  # b over a, d over a, a over c, b over c, d over c
            (0.0, 2, 1, 1 - 3, 0.5), (1.5, 0, 1, 1 - 2, 1.0), (1.5, -6, 1, 0 - 1, 1.0), (1.5, -4, 2, 0 - 3, 1.0),
            (3.0, -6, 2, 0 - 2, 1.0),
        ]
    )  # fmt: skip
    assert np.isnan(pairs_of([scored(ranking([1, 2]), [0, 1])]).earlier).all()


def test_calibration_by_hand() -> None:
    """Of four choices made with 3/4 three are right, of two made with 1/2 each is half right: no error at all."""
    rows = [scored(ranking([1, 2], str(i)), [ODDS if i else -ODDS, 0.0]) for i in range(4)]
    rows += [scored(ranking([1, 2], f"even {i}"), [1.0, 1.0]) for i in range(2)]
    p = pairs_of(rows)
    assert calibration(p.margin) == [[0.5, 0.5, 2], [0.75, 0.75, 4]]
    assert calibration_error(p, draws=10)["mean"] == pytest.approx(0, abs=1e-12)
    # Sure with 3/4 and never right: off by 3/4 on four pairs of six.
    p = pairs_of([scored(row.ranking, [-abs(row.scores[0] - row.scores[1]), 0.0]) for row in rows])
    assert calibration_error(p, draws=10)["mean"] == pytest.approx(0.75 * 4 / 6)
    assert calibration([0.0, 40.0]) == [[0.5, 0.5, 1], [1.0, 1.0, 1]]  # both ends of the scale are in a bin


def test_accuracy_in_parts() -> None:
    right = scored(ranking([1, 2, 3], "a"), [3.0, 2.0, 0.0], [4, 4, 9], groups={"arm": "x", "use_case": "chat"})
    wrong = scored(ranking([1, 2], "b"), [0.0, 0.3], [5, 2], groups={"arm": "y"})
    by = report([right, wrong], draws=10)["by"]
    means = {
        kind: {name: (r["mean"], r["pairs"], r["prompts"]) for name, r in part.items()} for kind, part in by.items()
    }
    assert means == {
        "arm": {"x": (1, 3, 1), "y": (0, 1, 1)},
        "use_case": {"chat": (1, 3, 1)},
        "apart": {"1": (2 / 3, 3, 2), "2": (1, 1, 1)},
        "score_margin": {"0 to 0.5": (0, 1, 1), "1 to 2": (1, 1, 1), "2 or more": (1, 2, 1)},
        "length": {"longer": (0, 1, 1), "shorter": (1, 2, 1), "same": (1, 1, 1)},
    }


def test_a_column_of_many_values_is_no_grouping() -> None:
    rows = [scored(ranking([1, 2], str(i)), [1.0, 0.0], groups={"use_case": str(i % 101)}) for i in range(202)]
    outcome = report(rows, draws=10)
    assert "use_case" not in outcome["by"]
    assert outcome["not_measured"]["use_case"] == "more than 100 different values are no groups"
    assert len(report([row for row in rows if row.groups["use_case"] != "7"], draws=10)["by"]["use_case"]) == 100


def people(number: int, taste: Callable[[int], float], seed: int = 0) -> list[tuple[Ranking, list[float], list[int]]]:
    """Pairs of completions of random lengths, chosen by the odds of their true value; with those values."""
    rng = Random(seed)
    out = []
    for i in range(number):
        lengths = [rng.randint(1, 9), rng.randint(1, 9)]
        values = [taste(n) + rng.gauss(0, 1) for n in lengths]
        first = rng.random() < 1 / (1 + math.exp(values[1] - values[0]))
        order = [0, 1] if rng.random() < 0.5 else [1, 0]
        out.append((ranking([1, 2] if first else [2, 1], str(i), order=order), values, lengths))
    return out


def test_a_model_of_the_very_truth_has_no_fault() -> None:
    """Though labelers are noisy, and like what is short."""
    rows = [scored(r, values, lengths) for r, values, lengths in people(1500, lambda n: -0.3 * n)]
    outcome = report(rows, draws=200)
    assert faults(outcome) == {}
    assert outcome["length"]["chosen"]["mean"] < 0.35
    assert outcome["by"]["length"]["shorter"]["low"] > outcome["by"]["length"]["longer"]["high"]  # which is no fault
    assert outcome["position"]["difference"]["low"] < 0 < outcome["position"]["difference"]["high"]
    assert set(outcome["not_measured"]) == {"agreement", "repetition"}


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        (lambda values, lengths: [3 * v for v in values], {"over-confident"}),
        (lambda values, lengths: [v / 3 for v in values], {"under-confident"}),
        (lambda values, lengths: [v + 0.2 * n for v, n in zip(values, lengths, strict=True)], {"prefers length"}),
        (lambda values, lengths: [v - 0.2 * n for v, n in zip(values, lengths, strict=True)], {"prefers brevity"}),
    ],
)
def test_models_that_lean_are_found_out(broken: Callable[..., list[float]], names: set[str]) -> None:
    rows = [scored(r, broken(values, lengths), lengths) for r, values, lengths in people(1500, lambda n: 0.0)]
    outcome = report(rows, draws=200)
    assert names <= set(faults(outcome))
    assert set(faults(outcome)) - names <= {"over-confident"}  # which a lean to anything is as well


def test_what_was_shown_first() -> None:
    rows = []
    for r, values, lengths in people(1500, lambda n: 0.0):
        assert r.order is not None
        rows.append(scored(r, [v + (0.8 if r.order[0] == i else 0) for i, v in enumerate(values)], lengths))
    assert "prefers what was shown first" in faults(report(rows, draws=200))


def test_leaning_by_hand() -> None:
    """The longer one wins one of two pairs; it was expected to win both with 3/4."""
    rows = [scored(ranking([1, 2], "a"), [ODDS, 0.0], [2, 1]), scored(ranking([1, 2], "b"), [0.0, ODDS], [1, 2])]
    p = pairs_of(rows)
    outcome = leaning(p, p.longer, draws=10)
    means = {name: rate["mean"] for name, rate in outcome.items()}
    assert means == pytest.approx({"expected": 0.75, "chosen": 0.5, "difference": 0.25})
    assert leaning(p, p.earlier) == {}
    assert leaning(p, 0 * p.longer) == {}


def test_correlations_and_repetition_by_hand() -> None:
    """tau-b of scores 3, 2, 1 with lengths 1, 2, 3 is -1; of ranks 1, 3, 2 it is (1 - 2)/3."""
    row = scored(ranking([1, 3, 2], "a"), [3.0, 2.0, 1.0], [1, 2, 3], repeated=[3.5, None, 0.0])
    outcome = report([row], draws=10)
    assert outcome["length"]["score_correlation"]["mean"] == pytest.approx(-1)
    assert outcome["length"]["labeler_correlation"]["mean"] == pytest.approx(-1 / 3)
    assert outcome["repetition"]["change"]["mean"] == pytest.approx((0.5 - 1.0) / 2)
    assert outcome["repetition"]["raised"] == outcome["repetition"]["raised"] | {"mean": 0.5, "pairs": 2, "prompts": 1}
    flat = scored(ranking([1, 2], "b"), [1.0, 0.0], [4, 4])
    assert report([flat], draws=10)["not_measured"].keys() == {"agreement", "length", "position", "repetition"}


def test_a_model_that_pays_for_repetition_is_named() -> None:
    rows = [scored(r, values, lengths, repeated=[v + 0.5 for v in values]) for r, values, lengths in people(60, float)]
    assert faults(report(rows, draws=50))["rewards repetition"].startswith(
        "a repeated last sentence raises the score by 0.50"
    )


def test_beside_another_labeler() -> None:
    """Two labelers who order 40 pairs alike in three cases of four; the model says what the first of them says."""
    rows = []
    for i in range(40):
        for name, ranks in (("a", [1, 2]), ("b", [1, 2] if i % 4 else [2, 1])):
            rows.append(scored(ranking(ranks, str(i), labeler=name), [1.0, 0.0]))
    outcome = report(rows, draws=200)["agreement"]
    assert (outcome["labelers_shared"]["mean"], outcome["model_shared"]["mean"]) == (0.75, 0.875)
    assert beside_labelers(outcome) == (
        "on pairs that two labelers ordered, it agrees with one of them (0.88) more often than the other does (0.75)"
    )
    assert beside_labelers({}) is None


def test_the_sigmoid_has_no_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0.0, ODDS, 1e4])) == pytest.approx([0, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("text", "longer"),
    [
        ("One. Two three.", "One. Two three. Two three."), ("No end", "No end No end"), ("Why? ", "Why? Why?"),
        ("好。再见。", "好。再见。 再见。"), ("...", "... ..."), ("1.5 is it.\n", "1.5 is it. 5 is it."), ("", " "),
    ],
)  # fmt: skip
def test_the_last_sentence_again(text: str, longer: str) -> None:
    assert measure.again(text) == longer


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, folder)
    return str(folder)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Name a colour of the sky, {i}."}]


def rows_by(labeler: str, number: int = 8) -> list[dict[str, Any]]:
    rng = Random(labeler)
    return [
        {
            "prompt": asked(i), "completions": ["Red.", "It is green. And it is glad.", "blue"], "use_case": "chat",
            "ranks": rng.sample([1, 2, 3], 3), "labeler": labeler, "order": rng.sample([0, 1, 2], 3), "id": str(i),
        }
        for i in range(number)
    ]  # fmt: skip


def test_the_report_of_two_arms(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores are those of each completion read alone; each file is an arm; rows can be read as rankings again."""
    files = [write(tmp_path / f"{name}.jsonl", rows_by(name)) for name in ("training", "heldout")]
    config = MeasureConfig(output=tmp_path / "out", reward_model=model, rankings=files)
    measure.run(config)
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    assert set(done["by"]) == {"arm", "use_case", "apart", "score_margin", "length", "shown"}
    assert {name: rate["pairs"] for name, rate in done["by"]["arm"].items()} == {"training": 24, "heldout": 24}
    assert (done["rankings"], done["pairs"], done["prompts"], done["not_measured"]) == (16, 48, 8, {})
    assert done["by"]["use_case"]["chat"]["mean"] == pytest.approx(done["accuracy"])
    assert done["agreement"]["model"]["mean"] == pytest.approx(done["accuracy"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["arm"] for row in rows] == ["training"] * 8 + ["heldout"] * 8
    reward = RewardModel(model)
    right = 0.0
    for row, r in zip(rows, read_rankings(tmp_path / "out" / "scores.jsonl").records, strict=True):
        texts = [c.text for c in r.completions]
        longer = ["Red. Red.", "It is green. And it is glad. And it is glad.", "blue blue"]
        for key, written in (("scores", texts), ("repeated", longer)):
            ids = encode_pairs(reward.tokenizer, [(r.prompt.text, text, True) for text in written])
            alone = all_scores(reward.model, [p + c for p, c in ids]).tolist()
            assert row[key] == pytest.approx(alone, abs=1e-5)
            if key == "scores":
                assert row["tokens"] == [len(c) for _, c in ids]
                own = sum(alone[w] > alone[x] for w, x in r.pairs)
                assert (row["right"], row["pairs"]) == (own, 3)
                right += own
    assert done["accuracy"] == pytest.approx(right / 48)
    out = capsys.readouterr().out
    assert done["verdict"] in out
    assert "arm: heldout" in out


def test_pairs_by_subset(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RewardBench's columns: a prompt that is a string is what a user asks. No name of a subset is obeyed."""
    rows = [
        {"prompt": f"Name a colour, {i}.", "chosen": "red", "rejected": "green", "subset": name, "id": i}
        for i, name in enumerate(["hep-rust", "hep-rust", "[bold]\x1b[1mdo"])
    ]
    config = MeasureConfig(output=tmp_path / "out", reward_model=model, rankings=write(tmp_path / "b.jsonl", rows))
    measure.run(config)
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    assert {name: rate["pairs"] for name, rate in done["by"]["subset"].items()} == {
        "hep-rust": 2, "[bold]\x1b[1mdo": 1,
    }  # fmt: skip
    assert "subset: [bold]\\x1b[1mdo" in capsys.readouterr().out
    assert set(done["not_measured"]) == {"agreement", "length", "position"}
    first = json.loads((tmp_path / "out" / "scores.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == [{"role": "user", "content": "Name a colour, 0."}]


def test_an_interrupted_report_scores_nothing_twice(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PART", 3)
    rankings = write(tmp_path / "r.jsonl", rows_by("a"))
    whole, parts = (MeasureConfig(output=tmp_path / n, reward_model=model, rankings=rankings) for n in ("w", "p"))
    measure.run(whole)
    real, calls = measure.group_scores, []

    def counted(*arguments: Any) -> list[torch.Tensor]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measure, "group_scores", counted)
    with pytest.raises(KeyboardInterrupt):
        measure.run(parts)
    measure.run(parts)
    assert len(calls) == 4  # three parts, of which the second was interrupted
    results = [json.loads((c.output / "done.json").read_text()) for c in (whole, parts)]
    for outcome in results:
        del outcome["seconds"], outcome["peak_memory_gib"]
    assert results[0] == results[1]
    assert (whole.output / "scores.jsonl").read_bytes() == (parts.output / "scores.jsonl").read_bytes()


def test_a_repetition_that_is_too_long_is_left_out_and_a_score_that_is_none_is_named(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = RewardModel(model).context
    text = "red " * 300
    reward = RewardModel(model)
    while len(reward.encode([Prompt.model_validate({"id": "x", "text": asked(0)})], [text], [True])[0]) > context:
        text = text[:-4]
    rankings = write(tmp_path / "r.jsonl", [{"prompt": asked(0), "chosen": text, "rejected": "green"}])
    config = MeasureConfig(output=tmp_path / "out", reward_model=model, rankings=rankings)
    measure.run(config)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert row["repeated"][0] is None
    assert row["repeated"][1] is not None
    monkeypatch.setattr(measure, "group_scores", lambda *_: [torch.tensor([0.0, math.nan, 0.0])])
    with pytest.raises(ValueError, match=r"reward_model .*: a completion of prompt '\w+' scores nan; train"):
        measure.run(config.model_copy(update={"output": tmp_path / "nan"}))


def test_files_of_one_name_are_told_apart() -> None:
    assert measure.arms_of(["a/x.jsonl", "b/x.jsonl", "y.jsonl.gz"]) == ["a/x.jsonl", "b/x.jsonl", "y"]
