"""The paper's claims: each one's arithmetic by hand on made-up run folders, and a few of them from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tutelage.cli import main
from tutelage.data.datasets import read_prompts, read_rankings, write_jsonl
from tutelage.data.records import Completion, Prompt, Ranking
from tutelage.evaluation import answer
from tutelage.lab.claims import bandit, experiments, overoptimization, preference, reading, reward_models, subsets, tax
from tutelage.lab.claims.bandit import Bandit
from tutelage.lab.claims.evidence import Column, Part, above, average, below, resampled, within
from tutelage.lab.claims.optimum import optimal_policy
from tutelage.lab.claims.page import number, page
from tutelage.lab.claims.registry import BY_NAME, CLAIMS, stages_for
from tutelage.lab.claims.verdict import measured
from tutelage.lab.world import gold
from tutelage.recipe import steps_of
from tutelage.settings import claims as settings
from tutelage.settings.claims import FAST, FULL, NAMES, BanditConfig, ClaimsConfig, Scale, SubsetsConfig
from tutelage.settings.evaluation import AnswerConfig
from tutelage.settings.reward import MeasureConfig
from tutelage.stages import measure

SMALL = FULL.model_copy(
    update={
        "sizes": (10, 20), "overfit": 20, "epochs": (1, 4), "folds": 3, "betas": (0.0, 0.06, 2.0), "gammas": (0.5,),
        "stops": (100, 200), "episodes": 200, "proxies": (10, 20), "best_of": 4,
    }
)  # fmt: skip


def write_marks(
    seed: Path, name: str, rows: Sequence[tuple[str, str, float, float, int]], sets: str = "training"
) -> None:
    """Rows of prompt, labeler, loss, right, pairs."""
    folder = seed / f"marks_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("prompt", "labeler", "loss", "right", "pairs")
    made = [{"set": f"{sets}_labelers", **dict(zip(keys, row, strict=True))} for row in rows]
    kept = (folder / "marks.jsonl").read_text().splitlines() if (folder / "marks.jsonl").exists() else []
    write_jsonl(folder / "marks.jsonl", [*map(json.loads, kept), *made])


def write_gauge(seed: Path, name: str, documents: Sequence[tuple[float, int]] = (), **columns: Sequence[float]) -> None:
    """Documents as (nats, tokens), and columns by prompt."""
    folder = seed / f"gauge_{name}"
    folder.mkdir(parents=True)
    number_of = len(next(iter(columns.values()), ()))
    rows = [{"prompt": f"p{i}", **{k: v[i] for k, v in columns.items()}} for i in range(number_of)]
    write_jsonl(folder / "answers.jsonl", rows)
    write_jsonl(
        folder / "documents.jsonl", [{"document": i, "nats": n, "tokens": t} for i, (n, t) in enumerate(documents)]
    )


def write_judgments(seed: Path, run: str, baseline: str, wins: Mapping[str, Sequence[float]]) -> None:
    """Labelers' shares by prompt and model; gold says the opposite."""
    (seed / run).mkdir(parents=True)
    rows = [
        {
            "id": f"p{i}", "baseline": baseline,
            "models": {name: {"wins": {"labelers": of[i], "gold": 1 - of[i]}} for name, of in wins.items()},
        }
        for i in range(len(next(iter(wins.values()))))
    ]  # fmt: skip
    write_jsonl(seed / run / "judgments.jsonl", rows)


def part(outcome: Any, start: str) -> Part:
    """The one part whose name starts so."""
    (only,) = [p for p in outcome.parts if p.name.startswith(start)]
    return only


# What a claim rests on


def test_a_part_is_shown_only_inside_its_region_at_every_seed() -> None:
    assert Part("", above(), 0.2, 0.1, 0.3, 9, {0: 0.2, 1: 0.1}).shown
    assert not Part("", above(), 0.2, -0.01, 0.3, 9, {0: 0.2}).shown  # the interval holds 0
    assert not Part("", above(), 0.2, 0.1, 0.3, 9, {0: 0.5, 1: -0.1}).shown  # a seed says otherwise
    assert not Part("", above(), 0.2, 0.1, 0.3, 9, {0: 0.5, 1: None}).shown  # a seed says nothing
    assert Part("", below(-0.1), -0.2, -0.3, -0.15, 9, {0: -0.2}).shown
    assert not Part("", below(-0.1), -0.2, -0.3, -0.05, 9, {0: -0.2}).shown
    assert Part("", within(0.05), 0.0, -0.04, 0.04, 9, {0: 0.01}).shown
    assert not Part("", within(0.05), 0.0, -0.06, 0.04, 9, {0: 0.01}).shown
    assert not Part("", above(), None, None, None, 0, {}).shown


def test_a_part_may_be_clearly_otherwise() -> None:
    assert Part("", above(), -0.2, -0.3, -0.1, 9, {0: -0.2, 1: None}).otherwise
    assert not Part("", above(), -0.2, -0.3, 0.1, 9, {0: -0.2}).otherwise
    assert not Part("", above(), -0.2, -0.3, -0.1, 9, {0: -0.5, 1: 0.1}).otherwise
    assert Part("", within(0.05), 0.2, 0.1, 0.3, 9, {0: 0.2}).otherwise
    assert not Part("", within(0.05), 0.0, -0.1, 0.1, 9, {0: 0.1, 1: -0.1}).otherwise
    assert not Part("", above(), 0.2, 0.1, 0.3, 9, {0: 0.2}).otherwise
    assert not Part("", above(), None, None, None, 0, {}).otherwise


def test_an_average_pools_a_prompt_that_two_seeds_share() -> None:
    columns = {
        0: Column(["a", "b"], np.array([1.0, 0.0]), np.array([2.0, 1.0])),
        1: Column(["a", "c"], np.array([3.0, 1.0]), np.array([2.0, 1.0])),
    }
    made = average("rate", columns, above())
    assert made.mean == pytest.approx(5 / 6)
    assert made.units == 3
    assert made.by_seed == {0: pytest.approx(1 / 3), 1: pytest.approx(4 / 3)}


def test_a_statistic_is_averaged_over_seeds_and_resampled_within() -> None:
    tables = {0: [np.array([[1.0], [3.0]]), np.array([[4.0]])], 1: [np.array([[6.0]]), np.array([[3.0], [3.0]])]}
    made = resampled("ratio", tables, lambda means: float(means[0][0] / means[1][0]), above())
    assert made.by_seed == {0: 0.5, 1: 2.0}
    assert made.mean == 1.25
    assert (made.low, made.high) == (pytest.approx(1.125), pytest.approx(1.375))  # seed 0 draws 1/4, 1/2 or 3/4
    undefined = resampled("ratio", tables, lambda means: float("nan") if means[0][0] > 5 else 1.0, above())
    assert undefined.by_seed == {0: 1.0, 1: None}
    assert not undefined.shown
    often = resampled("ratio", tables, lambda means: float("nan") if means[0][0] == 3 else 1.0, above())
    assert (often.mean, often.low, often.shown) == (1.0, None, False)  # a quarter of seed 0's draws


# Reward models


def test_shuffled_pairs_against_whole_rankings(tmp_path: Path) -> None:
    write_marks(tmp_path, "shuffled_pairs", [("a", "x", 3.0, 1, 4), ("b", "y", 2.0, 1, 1)])
    write_marks(tmp_path, "reward_20", [("a", "x", 2.0, 2, 4), ("b", "y", 0.5, 1, 1)])
    outcome = reward_models.one_element({0: tmp_path}, SMALL)
    assert part(outcome, "loss").mean == pytest.approx(2.5 / 5)
    assert part(outcome, "accuracy").mean == pytest.approx(-1 / 5)
    assert [(p["x"], p["y"]) for p in outcome.points] == [(0, 1.0), (1, 0.5)]


def test_epochs_against_one(tmp_path: Path) -> None:
    write_marks(tmp_path, "reward_20", [("a", "x", 1.0, 2, 2)])
    write_marks(tmp_path, "epochs_4", [("a", "x", 1.5, 2, 2)])
    outcome = reward_models.epochs({0: tmp_path}, SMALL)
    assert part(outcome, "loss after 4").mean == pytest.approx(0.25)
    assert part(outcome, "loss after 4").counts
    assert [(p["x"], p["y"]) for p in outcome.points] == [(1, 0.5), (4, 0.75)]


def test_accuracy_per_doubling(tmp_path: Path) -> None:
    scale = SMALL.model_copy(update={"sizes": (10, 20, 40)})
    for size, right in ((10, 5.0), (20, 6.0), (40, 8.0)):
        write_marks(tmp_path, f"reward_{size}", [("a", "x", 1.0, right, 10)])
    outcome = reward_models.data({0: tmp_path}, scale)
    assert part(outcome, "accuracy gained").mean == pytest.approx(0.15)  # through .5, .6 and .8
    assert part(outcome, "accuracy of 10 rankings").mean == pytest.approx(0.0)
    assert part(outcome, "accuracy of 40 rankings").mean == pytest.approx(0.2)


def test_a_labeler_is_met_by_all_folds_but_one(tmp_path: Path) -> None:
    """Of groups {x}, {y} and {}, fold 0 left out x: it is a stranger to the first ranking, fold 1 to the second.

    z ranked nothing for training, so every fold is a stranger to the third, which does not count.
    """
    (tmp_path / "subsets").mkdir()
    (tmp_path / "subsets" / "done.json").write_text('{"group": {"x": 0, "y": 1}}')
    write_marks(tmp_path, "fold_0", [("a", "x", 0, 2.0, 4), ("b", "y", 0, 3.0, 4), ("c", "z", 0, 0.0, 4)])
    write_marks(tmp_path, "fold_1", [("a", "x", 0, 4.0, 4), ("b", "y", 0, 2.0, 4), ("c", "z", 0, 4.0, 4)])
    write_marks(tmp_path, "fold_2", [("a", "x", 0, 3.0, 4), ("b", "y", 0, 1.0, 4), ("c", "z", 0, 4.0, 4)])
    write_marks(tmp_path, "reward_20", [("a", "x", 0, 3.0, 4), ("b", "x", 0, 3.0, 4)])
    write_marks(tmp_path, "reward_20", [("a", "z", 0, 2.0, 4), ("a", "w", 0, 2.0, 4)], "heldout")
    outcome = reward_models.heldout_labelers({0: tmp_path}, SMALL)
    assert part(outcome, "accuracy on labelers").mean == pytest.approx((3.5 + 2) / 8 - (2 + 2) / 8)
    assert part(outcome, "main reward model").mean == pytest.approx(0.75 - 0.5)


# Preference


def test_the_order_of_win_rates(tmp_path: Path) -> None:
    wins = {"base": [0.0, 0.2], "prompted": [0.2, 0.4], "ppo": [0.6, 0.8], "ppo_ptx": [0.8, 0.6], "sft": [0.9, 0.9]}
    write_judgments(tmp_path, "judgments", "sft", wins)
    outcome = preference.ordering({0: tmp_path}, SMALL)
    names = ("win rate of prompted, less that of base", "win rate of sft", "win rate of ppo,", "win rate of ppo_ptx")
    own = [[p.mean for p in outcome.parts if p.name.startswith(name)] for name in names]  # labelers, gold
    assert np.allclose(own, [[0.2, -0.2], [0.2, -0.2], [0.2, -0.2], [0.0, 0.0]])
    assert [p.counts for p in outcome.parts] == [True] * 4 + [False] * 4


def test_the_small_model_against_the_large_base(tmp_path: Path) -> None:
    write_judgments(tmp_path, "judgments_large", "large", {"ppo": [1.0, 0.8], "large": [0.5, 0.5]})
    write_judgments(tmp_path, "judgments_large_prompted", "large_prompted", {"ppo": [0.4, 0.8]})
    write_gauge(tmp_path, "large", [(30.0, 9), (50.0, 9)])
    write_gauge(tmp_path, "base", [(50.0, 10), (50.0, 10)])
    outcome = preference.small_beats_large({0: tmp_path}, SMALL)
    means = [p.mean for p in outcome.parts]
    assert np.allclose(means, [0.4, 0.1, -0.4, -0.1, -0.2])


# Tax


def test_the_tax_and_what_is_taken_back(tmp_path: Path) -> None:
    for name, nats in (("base", 8.0), ("sft", 10.0), ("ppo", 14.0), ("ppo_ptx", 11.0)):
        write_gauge(tmp_path, name, [(nats, 10), (nats + 10, 10)])
    outcome = tax.tax({3: tmp_path}, SMALL)
    assert part(outcome, "loss of PPO,").mean == pytest.approx(0.4)
    assert part(outcome, "share").mean == pytest.approx(0.75 - 0.5)
    assert part(outcome, "loss of PPO-ptx").mean == pytest.approx(0.1)
    assert part(outcome, "loss of the base").mean == pytest.approx(-0.2)


def test_no_tax_cannot_be_taken_back(tmp_path: Path) -> None:
    for name, nats in (("base", 8.0), ("sft", 10.0), ("ppo", 9.0), ("ppo_ptx", 8.0)):
        write_gauge(tmp_path, name, [(nats, 10)])
    outcome = tax.tax({0: tmp_path}, SMALL)
    assert part(outcome, "share").mean is None
    assert not outcome.shown


def test_plain_ppo_at_the_score_of_ptx(tmp_path: Path) -> None:
    """Between betas .06 (score 2, loss 1.4) and 2 (score 0, loss 1.0) plain PPO at score 1.5 has loss 1.3."""
    for name, score, nats in (("sft", 0.0, 10.0), ("ppo", 2.0, 14.0), ("beta_2", 0.0, 10.0), ("ppo_ptx", 1.5, 9.0)):
        write_gauge(tmp_path, name, [(nats, 10)], score=[score - 1, score + 1])
    outcome = tax.ptx_not_kl({0: tmp_path}, SMALL)
    assert part(outcome, "loss of plain PPO").by_seed == {0: pytest.approx(1.3 - 0.9)}
    assert part(outcome, "score at beta 2").mean == pytest.approx(-2.0)


# Overoptimisation


def test_the_halves_share_no_prompt_and_stay() -> None:
    prompts = [f"p{i}" for i in range(1000)]
    chosen = overoptimization.halves(prompts)
    assert 450 < chosen.sum() < 550
    assert (overoptimization.halves(prompts[::-1])[::-1] == chosen).all()


def test_the_best_beta_is_measured_on_the_other_half(tmp_path: Path) -> None:
    choosing = overoptimization.halves([f"p{i}" for i in range(40)])
    scale = SMALL.model_copy(update={"betas": (0.0, 0.06, 0.2, 2.0)})
    # 0.06 looks better on the half that chooses, and is worth 3 on the other; 0.2 would be worth 9 there. An end, as 2,
    # is not chosen.
    for name, here, there, score in (
        ("beta_0", 0.0, 1.0, 4.0), ("ppo", 5.0, 3.0, 3.0), ("beta_0.2", 4.0, 9.0, 2.0), ("beta_2", 9.0, 2.0, 1.0),
    ):  # fmt: skip
        write_gauge(tmp_path, name, gold=np.where(choosing, here, there).tolist(), score=[score] * 40)
    outcome = overoptimization.interior_beta({0: tmp_path}, scale)
    assert [p.name for p in outcome.parts[:2]] == [
        "gold at beta 0.06, less that at 0", "gold at beta 0.06, less that at 2",
    ]  # fmt: skip
    assert [p.mean for p in outcome.parts] == [2.0, 1.0, -3.0]


def test_a_curve_that_peaks_at_its_end_does_not_fall() -> None:
    units = {0: [f"{i}" for i in range(40)]}
    choosing = overoptimization.halves([f"0/{u}" for u in units[0]])
    rising = {n: np.full(40, float(n)) for n in (1, 2, 4)}
    assert overoptimization.fall("x", {0: rising}, units, True).mean == 0.0
    hump = {1: np.zeros(40), 2: np.where(choosing, 3.0, 2.0), 4: np.ones(40)}
    falls = overoptimization.fall("x", {0: hump}, units, True)
    assert falls.mean == 1.0
    assert falls.units == (~choosing).sum()


def test_best_of_n_by_a_weak_and_by_a_strong_reward_model(tmp_path: Path) -> None:
    """Four samples a prompt, gold 0 to 3: the strong one picks the best, the weak one the worst."""
    rows = [
        {"prompt": f"p{i}", "gold": [0, 1, 2, 3], "scores": {"10": [3, 2, 1, 0], "20": [0, 1, 2, 3]}} for i in range(40)
    ]
    (tmp_path / "samples").mkdir()
    write_jsonl(tmp_path / "samples" / "samples.jsonl", rows)
    for name, value in (("stop_100_reward_10", 2.0), ("stop_200_reward_10", 1.0), ("stop_100", 1.0), ("beta_0", 2.0)):
        write_gauge(tmp_path, name, gold=[value] * 40, kl=[4.0] * 40)
    outcome = overoptimization.overoptimization({0: tmp_path}, SMALL)
    assert part(outcome, "best of n by 10").mean == pytest.approx(1.5)  # from 1.5 alone to 0
    assert part(outcome, "best of n by 20").mean == pytest.approx(0.0)
    assert part(outcome, "gold that best of 4").mean == pytest.approx(1.5 - -1.5)
    assert part(outcome, "PPO without a penalty by 10").mean == pytest.approx(1.0)
    assert part(outcome, "PPO without a penalty by 20").mean == pytest.approx(0.0)
    assert {(p["series"], p["x"]) for p in outcome.points if p["series"] == "PPO, 20 rankings"} == {
        ("PPO, 20 rankings", 2.0)
    }


def test_gold_at_equal_kl(tmp_path: Path) -> None:
    """Stopped: gold 0, 2, 3 at d = 0, 1, 2. Penalised: 2 at d = 1.5, where the curve is at 2.5; another is off it."""
    gold = [-1.0, 1.0] * 20  # of SFT, a standard deviation of 1
    for name, more, kl in (
        ("sft", 0.0, 0.0), ("stop_100", 2.0, 1.0), ("beta_0", 3.0, 4.0), ("ppo", 2.0, 2.25), ("beta_2", 9.0, 25.0),
    ):  # fmt: skip
        write_gauge(tmp_path, name, gold=[g + more for g in gold], kl=[kl] * 40)
    outcome = overoptimization.penalty_is_stopping({0: tmp_path}, SMALL)
    assert outcome.parts[0].mean == pytest.approx(-0.5)


def test_the_kl_of_ppo_over_that_of_best_of_n() -> None:
    """A gain that the best of two has, at KL log 2 − ½; policies below or above what n can match do not count."""
    ratio = overoptimization.ratio_of([1, 2, 4])
    best, policies = np.array([0.0, 1.0, 2.0]), np.array([1.0, 5.0, 0.9, 1.158883, 9.0, 7.0])
    assert ratio([best, policies]) == pytest.approx(1.158883 / (math.log(2) - 0.5) - 1)
    assert math.isnan(ratio([best, np.array([5.0, 9.0])]))


def test_gains_are_over_one_sample_of_sft(tmp_path: Path) -> None:
    """By the main reward model the best of two of (0, 2) gains 1; PPO gains that at three times its KL."""
    scale = SMALL.model_copy(update={"betas": (0.06,), "stops": (200,), "best_of": 2})
    (tmp_path / "samples").mkdir()
    rows = [{"prompt": f"p{i}", "gold": [0, 0], "scores": {"10": [7, 7], "20": [i, i + 2]}} for i in range(4)]
    write_jsonl(tmp_path / "samples" / "samples.jsonl", rows)
    bound = math.log(2) - 0.5
    for name, gain, kl in (("sft", 0.0, 0.0), ("ppo", 1.0, 3 * bound), ("beta_0", 4.0, 9.0)):
        write_gauge(tmp_path, name, score=[5.0 + i + gain for i in range(6)], kl=[kl] * 6)
    outcome = overoptimization.kl_spent({0: tmp_path}, scale)
    assert outcome.parts[0].mean == pytest.approx(2.0)
    assert {(p["series"], p["y"]) for p in outcome.points} == {
        ("PPO", 1.0), ("PPO", 4.0), ("best of n", 0.0), ("best of n", 1.0),
    }  # fmt: skip


def test_the_optimal_policy(tmp_path: Path) -> None:
    (tmp_path / "bandit").mkdir()
    row = {"start": 0.5, "ppo": 0.001, "rloo": 0.0, "dpo": 0.0, "grpo": 0.4}
    write_jsonl(tmp_path / "bandit" / "bandits.jsonl", [row, {**row, "ppo": 0.003}])
    outcome = optimal_policy({0: tmp_path}, SMALL)
    assert outcome.parts[0].mean == pytest.approx(0.002)
    assert outcome.shown
    write_jsonl(tmp_path / "bandit" / "bandits.jsonl", [{**row, "grpo": 0.01}])
    assert not optimal_policy({0: tmp_path}, SMALL).shown


# The experiments


def ranking(number: int, labeler: str | None) -> Ranking:
    completions = tuple(Completion(text=f"{number}{letter}") for letter in "abc")
    return Ranking(
        prompt=Prompt(id=f"{number}", text=f"{number}?"), completions=completions, ranks=(1, 2, 2), labeler=labeler
    )


def test_subsets_are_nested_and_folds_leave_labelers_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rankings.jsonl", [ranking(i, f"labeler-{i % 4}") for i in range(12)])
    subsets.run(
        SubsetsConfig(
            output=tmp_path / "out", rankings=str(tmp_path / "rankings.jsonl"), sizes=(3, 6), pairs_of=6, folds=2,
            fold_rankings=12,
        )
    )  # fmt: skip
    read = {p.stem: read_rankings(p).records for p in (tmp_path / "out").glob("*.jsonl")}
    assert read["first_6"][:3] == read["first_3"]
    assert [r.prompt.id for r in read["first_6"]] != [str(i) for i in range(6)]
    pairs = {(r.prompt.id, tuple(c.text for c in r.completions)) for r in read["pairs"]}
    assert pairs == {(r.prompt.id, (r.completions[0].text, c.text)) for r in read["first_6"] for c in r.completions[1:]}
    assert [r.prompt.id for r in read["pairs"]] != sorted(r.prompt.id for r in read["pairs"])
    assert {r.labeler for r in read["fold_0"]} == {"labeler-1", "labeler-3"}
    assert {r.labeler for r in read["fold_1"]} == {"labeler-0", "labeler-2"}


def test_rankings_without_a_labeler_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rankings.jsonl", [ranking(0, None)])
    config = SubsetsConfig(
        output=tmp_path / "out", rankings=str(tmp_path / "rankings.jsonl"), sizes=(1,), pairs_of=1, folds=2,
        fold_rankings=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="a ranking names no labeler"):
        subsets.run(config)


def test_shuffling_pairs_keeps_every_one() -> None:
    pairs = subsets.shuffled_pairs([ranking(i, "x") for i in range(5)], Random(0))
    assert len(pairs) == 10
    assert [r.prompt.id for r in pairs] != sorted(r.prompt.id for r in pairs)
    assert all(r.ranks == (1, 2) for r in pairs)


def test_a_resume_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two bandits fails at first; what was made of the first is kept."""
    monkeypatch.setattr(bandit, "ITERATIONS", 2)
    monkeypatch.setattr(bandit, "DPO_STEPS", 2)
    monkeypatch.setattr(bandit, "SHAPES", ((4, 1), (3, 1)))
    once, again = (BanditConfig(output=tmp_path / name, bandits=1) for name in ("once", "again"))
    bandit.run(once)
    learn = Bandit.learn
    with monkeypatch.context() as broken:
        broken.setattr(Bandit, "learn", lambda self, own: learn(self, own) if len(self.every) == 4 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bandit.run(again)
    bandit.run(again)
    assert (tmp_path / "once" / "bandits.jsonl").read_bytes() == (tmp_path / "again" / "bandits.jsonl").read_bytes()


@pytest.mark.parametrize("scale", [FULL, FAST], ids=["full", "fast"])
def test_every_run_that_a_claim_needs_is_planned_after_what_it_reads(scale: Scale, tmp_path: Path) -> None:
    stages = stages_for(NAMES, scale)
    names = {"run": "RUN", "base": "base", "large": "LARGE"}
    steps = steps_of("claims", stages, tmp_path, names, {"seed": 1})
    before: set[str] = set()
    for name, _, config in steps:
        read = experiments.needed(stages, [name])
        assert set(read) <= before | {name}
        assert config.seed == 1
        before.add(name)
    for claim in CLAIMS:
        assert claim.left_out(scale) or set(claim.needs(scale)) <= before
    assert ("large_answers" in before) == (scale is FULL)
    assert {scale.overfit, *scale.proxies} <= set(scale.sizes)
    assert {settings.BETA} < set(scale.betas)
    assert {settings.GAMMA} <= set(scale.gammas)


def test_the_registry_has_each_claim_once() -> None:
    assert tuple(claim.name for claim in CLAIMS) == NAMES
    assert len(BY_NAME) == 13


def test_only_what_a_claim_reads_is_made() -> None:
    assert set(stages_for(("optimal_policy",), FAST)) == {"bandit"}
    own = set(stages_for(("one_element",), FAST))
    assert {"world", "sft", "rankings", "subsets", "shuffled_pairs", "marks_shuffled_pairs"} <= own
    assert not own & {"ppo", "samples", "answers", "reward_75"}


def test_claims_that_are_not_known_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--output", str(tmp_path / "out")]
    assert main(["claims", *out, "--claims", "taxes"]) == 2
    assert "no claim 'taxes'; did you mean 'tax'?" in capsys.readouterr().err
    assert main(["claims", *out, "--seeds", "1,1"]) == 2
    assert "a seed is named twice" in capsys.readouterr().err
    assert main(["claims", *out, "--seed", "4"]) == 2
    assert "give `seeds`" in capsys.readouterr().err
    assert ClaimsConfig(output=tmp_path, fast=True, seeds=(3, 4)).used_seeds == (3,)


TINY = Scale(
    demonstrations=64, rankings=40, valid_prompts=16, prompts=32, test_prompts=16, documents=100, valid_documents=8,
    sft_epochs=1, sizes=(10, 20, 40), overfit=20, epochs=(1, 2), folds=2, fold_rankings=20, episodes=128,
    betas=(0.06,), gammas=(0.5,), stops=(128,), proxies=(10, 40), best_of_prompts=4, best_of=8, bandits=1,
    large_tokens=1024,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of two claims, to which others were added later."""
    folder = tmp_path_factory.mktemp("claims")
    command = ["claims", "--output", str(folder), "--fast", "--claims"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "FAST", TINY)
        assert main([*command, "one_element", "--dry-run"]) == 0
        assert not list(folder.iterdir())
        assert main([*command, "one_element"]) == 0
        first = {p: p.stat().st_mtime_ns for p in (folder / "seed-0").rglob("*") if p.is_file()}
        assert main([*command, "one_element,kl_spent,tax,small_beats_large"]) == 0
        assert {p: p.stat().st_mtime_ns for p in first} == first  # nothing is made twice
        yield folder


def test_from_end_to_end(tiny: Path) -> None:
    content = json.loads((tiny / "verdict" / "claims.json").read_text())
    assert [c["name"] for c in content["claims"]] == ["one_element", "small_beats_large", "tax", "kl_spent"]
    assert (content["fast"], content["seeds"], content["scale"]["best_of"]) == (True, [0], 8)
    by_name = {claim["name"]: claim for claim in content["claims"]}
    base = json.loads((tiny / "large" / "base" / "done.json").read_text())
    assert (base["parameters"], base["tokens"]) == (pytest.approx(9.24e6, rel=0.05), 1024)
    assert [len(claim["parts"]) for claim in content["claims"]] == [2, 5, 4, 1]
    assert content["run_seconds"] > 0
    for each in by_name["one_element"]["parts"]:
        assert each["low"] <= each["mean"] <= each["high"]
        assert each["by_seed"] == {"0": pytest.approx(each["mean"])}
    lines = (tiny / "verdict" / "points.csv").read_text().splitlines()
    assert lines[0] == "claim,series,seed,x,y"
    assert len(lines) == 1 + sum(len(claim["points"]) for claim in content["claims"])
    text = (tiny / "verdict" / "claims.md").read_text()
    assert text == page(content)
    assert "`--fast` subset: one seed" in text
    done = json.loads((tiny / "verdict" / "done.json").read_text())
    assert done["shown"] == {name: claim["shown"] for name, claim in by_name.items()}


def test_a_file_that_was_lost_is_made_again(tiny: Path) -> None:
    lost = tiny / "seed-0" / "gauge_ppo" / "answers.jsonl"
    before = lost.read_text()
    lost.unlink()
    assert main(["claims", "--output", str(tiny), "--fast", "--claims", "tax"]) == 0
    assert lost.read_text() == before


def test_marks_are_what_the_reward_stage_measures(tiny: Path, tmp_path: Path) -> None:
    seed = tiny / "seed-0"
    rankings = seed / "rankings" / "rankings_training_labelers.jsonl"
    measure.run(
        MeasureConfig(output=tmp_path / "m", reward_model=str(seed / "reward_20" / "model"), rankings=str(rankings))
    )
    measured = json.loads((tmp_path / "m" / "done.json").read_text())
    marks = reading.read_marks(seed, "reward_20", "training_labelers")
    assert marks.rate("right") == pytest.approx(measured["accuracy"])
    assert np.mean(marks.column("loss") / marks.column("pairs")) == pytest.approx(measured["loss"], abs=1e-6)
    assert marks.column("pairs").sum() == measured["pairs"]


def test_a_policy_is_gauged_as_answers_are_measured(tiny: Path, tmp_path: Path) -> None:
    """The same samples, so the same score, KL, and loss on text; and sample 0 of many is the one that is gauged."""
    seed = tiny / "seed-0"
    models = {name: str(seed / name / "model") for name in ("sft", "ppo")}
    answer.run(
        AnswerConfig(
            output=tmp_path / "a", prompts=str(seed / "world" / "prompts_test.jsonl"), models=models, reference="sft",
            reward_model=str(seed / "reward_40" / "model"), texts=str(seed / "world" / "corpus_valid.jsonl"),
            sampler={"max_new_tokens": 40},
        )
    )  # fmt: skip
    answered = json.loads((tmp_path / "a" / "done.json").read_text())
    gauged = {name: reading.read_gauge(seed, name) for name in models}
    for name, own in gauged.items():
        assert own.mean("score") == pytest.approx(answered["scores"][name], abs=1e-4)
        assert own.loss == pytest.approx(answered["pretraining_loss"][name], abs=1e-5)
    assert gauged["ppo"].mean("kl") == pytest.approx(answered["kl"]["ppo"], abs=1e-4)
    assert not gauged["sft"].column("kl").any()
    rows = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    prompts = read_prompts(tmp_path / "a" / "answers.jsonl").records
    for name, own in gauged.items():
        golden = [gold.value(gold.parts(p, row["answers"][name])) for p, row in zip(prompts, rows, strict=True)]
        assert own.column("gold").tolist() == pytest.approx(golden)
    samples = reading.read_samples(seed)
    assert samples.gold.shape == (4, 8)
    assert samples.gold[:, 0].tolist() == gauged["sft"].column("gold")[:4].tolist()
    assert samples.scores["40"][:, 0] == pytest.approx(gauged["sft"].column("score")[:4], abs=1e-4)
    assert samples.scores["10"][:, 0] != pytest.approx(samples.scores["40"][:, 0])


def test_what_was_left_out_is_said_and_not_shown() -> None:
    claim = BY_NAME["small_beats_large"]
    assert claim.left_out(FULL) is None
    row = measured(claim, {}, FAST)
    assert (row["shown"], row["parts"]) == (None, [])
    text = page({"claims": [row], "seeds": [0], "fast": True, "run_seconds": 61}, figure="claims.svg")
    assert "| a large base takes too long to pretrain for `--fast` | left out |" in text
    assert "Seed 0; the runs took 1.0 minutes in all." in text
    assert "](claims.svg)" in text
    assert "`--fast` subset: one seed, and everything smaller" in text


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0.1234, -0.00001, -2.5, 12.345, 1234.5, None)] == [
        "+0.123", "0", "−2.500", "+12.35", "+1234", "not defined",
    ]  # fmt: skip
