"""The experiment on what to label next: its arithmetic by hand, and its course with stages that are told to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tutelage.data.candidates import read_candidates, write_candidates
from tutelage.data.datasets import read_rankings, write_jsonl
from tutelage.data.records import Completion, Prompt, Ranking
from tutelage.lab.active_learning import Design, Inputs, active_learning, equal_size, over_seeds, summary


def test_as_many_random_rankings_as_reach_an_accuracy() -> None:
    """Straight over log n: half way from 100 to 400 is 200."""
    curve = {100: 0.6, 400: 0.7}
    assert equal_size(curve, 0.65) == pytest.approx(200)
    assert equal_size(curve, 0.9) == pytest.approx(400)  # at least
    assert equal_size(curve, 0.1) == pytest.approx(100)
    assert equal_size({100: 0.6, 200: 0.55, 400: 0.7}, 0.6) == pytest.approx(200)  # no accuracy is lost by more


def test_students_interval_over_seeds() -> None:
    """1, 2, 3: mean 2, s = 1, t(2) = 4.303, so ± 4.303/√3."""
    outcome = over_seeds([1.0, 2.0, 3.0])
    assert (outcome["mean"], outcome["by_seed"]) == (2.0, [1.0, 2.0, 3.0])
    assert outcome["high"] - 2 == pytest.approx(2 - outcome["low"]) == pytest.approx(2.4843, abs=1e-4)


def test_summary_by_hand() -> None:
    random = [{100: 0.60, 200: 0.65, 400: 0.70}, {100: 0.60, 200: 0.65, 400: 0.70}]
    chosen = [{100: 0.60, 200: 0.70}, {100: 0.60, 200: 0.70}]
    outcome = summary([{"random": r, "disagreement": d} for r, d in zip(random, chosen, strict=True)], (100, 200))
    assert outcome["difference"][200]["mean"] == pytest.approx(0.05)
    assert outcome["saved"][200] == pytest.approx({"mean": 200, "low": 200, "high": 200})


def test_the_course_of_the_experiment(tmp_path: Path) -> None:
    """Rounds add what `prioritize` gives to what is ranked; both ways begin alike."""
    prompts = [Prompt(id=str(i), text=f"prompt {i}") for i in range(40)]
    two = (Completion(text="a"), Completion(text="b"))
    write_candidates(tmp_path / "c.jsonl", [(p, two) for p in prompts])
    write_jsonl(tmp_path / "r.jsonl", [Ranking(prompt=p, completions=two, ranks=(1, 2)) for p in prompts[:30]])
    calls: list[tuple[str, Mapping[str, Any]]] = []

    def stage(verb: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        calls.append((verb, settings))
        if verb == "reward":
            return {"valid": {"heldout": {"accuracy": len(read_rankings(settings["rankings"]).records) / 100}}}
        taken = {r.prompt.id for r in read_rankings(settings["ranked"]).records}
        left = [each for each in read_candidates(settings["candidates"]) if each[0].id not in taken]
        Path(settings["output"]).mkdir()
        write_candidates(Path(settings["output"]) / "candidates.jsonl", left[-settings["number"] :])
        return {}

    inputs = Inputs("sft", str(tmp_path / "c.jsonl"), str(tmp_path / "r.jsonl"), "valid.jsonl")
    design = Design(pool=20, sizes=(4, 8, 12), further=(16,), members=2)
    outcome = active_learning(tmp_path / "work", stage, inputs, (0, 1), design)
    assert json.loads((tmp_path / "work" / "active_learning.json").read_text())["random"]["16"]["mean"] == 0.16
    assert {size: each["mean"] for size, each in outcome["disagreement"].items()} == {4: 0.04, 8: 0.08, 12: 0.12}
    assert outcome["saved"][12]["mean"] == pytest.approx(0, abs=1e-9)
    pool = [p.id for p, _ in read_candidates(tmp_path / "work" / "0" / "pool.jsonl")]
    chosen = [r.prompt.id for r in read_rankings(tmp_path / "work" / "0" / "disagreement-12.jsonl").records]
    assert len(set(pool)) == 20
    assert set(pool) <= {str(i) for i in range(30)}  # those that were ranked
    assert chosen[:4] == pool[:4]
    assert chosen[4:] == pool[16:20] + pool[12:16]
    trained = [Path(s["output"]) for verb, s in calls if verb == "reward"]
    assert [path.name for path in trained if path.parent.name == "1"] == [
        "random-4-0", "random-8-0", "random-12-0", "random-16-0", "random-4-1", "disagreement-8-0",
        "disagreement-8-1", "disagreement-12-0",
    ]  # fmt: skip
    assert {s["seed"] for verb, s in calls if verb == "reward" and s["output"].endswith("-1")} == {1, 3}
    models = [s["reward_models"] for verb, s in calls if verb == "prioritize"][1]
    assert models == [str(tmp_path / "work" / "0" / f"disagreement-8-{m}" / "model") for m in (0, 1)]
