"""How many rankings it saves to choose what is ranked next by the disagreement of reward models, beside choosing at
random, in the miniature world.

Both ways begin with the same rankings, drawn at random. Then `prioritize` adds those on which the reward models of an
ensemble disagree most, in rounds; after each a new ensemble is trained on all so far. The other way adds random ones.
What counts is the accuracy of the reward model on rankings by held-out labelers, of prompts that no training file has.
The unit of the intervals is the seed: it draws the pool, the first rankings, and the reward models' training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any

import numpy as np

from tutelage.data.candidates import read_candidates, write_candidates
from tutelage.data.datasets import read_prompts, read_rankings, write_jsonl
from tutelage.data.records import Ranking, Text
from tutelage.files import write_json

RunStage = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]  # a verb and its settings -> what done.json holds
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 % points by degrees of freedom


@dataclass(frozen=True)
class Inputs:
    """What a run of the world's first stages has made: the SFT policy, candidates, the rankings that training labelers
    gave them, and held-out labelers' rankings of other prompts."""

    model: str
    candidates: str
    rankings: str
    valid: str


@dataclass(frozen=True)
class Design:
    """The experiment's size: prompts to choose from; rankings at the start and after each round; further numbers of
    random ones, to read savings off; reward models of an ensemble; and the settings of a reward model's training."""

    pool: int = 1200
    sizes: tuple[int, ...] = (250, 500)
    further: tuple[int, ...] = (1000,)
    members: int = 3
    reward: Mapping[str, Any] | None = None


REWARD = {"batch_size": 8, "optimizer": {"learning_rate": 1e-3, "warmup_steps": 10}}  # the demo's, but for the batch


def active_learning(
    folder: Path,
    run_stage: RunStage,
    inputs: Inputs,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    design: Design | None = None,
) -> dict[str, Any]:
    """Run the experiment in a folder and write `active_learning.json`; what is done of it is not done again.

    Returns:
        by number of rankings: `random` and `disagreement`, the held-out accuracy; `difference` of the two; `saved`, how
        many more random rankings reach the accuracy that disagreement reaches with this number. Each has `mean`, `low`
        and `high`, a 95 % interval over seeds, and all but `saved` the values `by_seed`.
    """
    design = design or Design()
    curves = [one_seed(folder / str(seed), run_stage, inputs, seed, design) for seed in seeds]
    results = summary(curves, design.sizes)
    write_json(folder / "active_learning.json", results)
    return results


def one_seed(
    folder: Path, run_stage: RunStage, inputs: Inputs, seed: int, design: Design
) -> dict[str, dict[int, float]]:
    """Held-out accuracy by way of choosing and number of rankings."""
    folder.mkdir(parents=True, exist_ok=True)
    ranked: dict[Text, Ranking] = {r.prompt.identity: r for r in read_rankings(inputs.rankings).records}
    candidates = [each for each in read_candidates(inputs.candidates) if each[0].identity in ranked]
    Random(f"active learning/{seed}").shuffle(candidates)
    pool = candidates[: design.pool]
    write_candidates(folder / "pool.jsonl", pool)
    order = [prompt.identity for prompt, _ in pool]

    def train(name: str, prompts: Sequence[Text], member: int = 0) -> Mapping[str, Any]:
        """A reward model on these prompts' rankings; of an ensemble the first is measured."""
        rankings = folder / f"{name}.jsonl"
        write_jsonl(rankings, [ranked[prompt] for prompt in prompts])
        measured = {"held_out": 0} if member else {"valid": {"heldout": inputs.valid}}
        settings = {
            "output": str(folder / f"{name}-{member}"), "model": inputs.model, "rankings": str(rankings), **measured,
            "seed": seed * design.members + member, **(design.reward or REWARD),
        }  # fmt: skip
        return run_stage("reward", settings)

    def accuracy(name: str, prompts: Sequence[Text]) -> float:
        return float(train(name, prompts)["valid"]["heldout"]["accuracy"])

    random = {size: accuracy(f"random-{size}", order[:size]) for size in (*design.sizes, *design.further)}
    first, *later = design.sizes
    chosen, name = order[:first], f"random-{first}"
    disagreement = {first: random[first]}
    for size in later:
        for member in range(1, design.members):
            train(name, chosen, member)
        following = folder / f"next-{size}"
        run_stage("prioritize", {
            "output": str(following), "candidates": str(folder / "pool.jsonl"),
            "reward_models": [str(folder / f"{name}-{member}" / "model") for member in range(design.members)],
            "ranked": str(folder / f"{name}.jsonl"), "number": size - len(chosen), "seed": seed,
        })  # fmt: skip
        chosen = [*chosen, *(p.identity for p in read_prompts(following / "candidates.jsonl").records)]
        name = f"disagreement-{size}"
        disagreement[size] = accuracy(name, chosen)
    return {"random": random, "disagreement": disagreement}


def summary(curves: Sequence[Mapping[str, Mapping[int, float]]], sizes: Sequence[int]) -> dict[str, Any]:
    """The curves of all seeds as one; see `active_learning`."""
    out: dict[str, Any] = {
        way: {size: over_seeds([curve[way][size] for curve in curves]) for size in curves[0][way]}
        for way in ("random", "disagreement")
    }
    out["difference"], out["saved"] = {}, {}
    accuracy = {size: each["mean"] for size, each in out["random"].items()}
    for size in sizes[1:]:
        gap = over_seeds([curve["disagreement"][size] - curve["random"][size] for curve in curves])
        out["difference"][size] = gap
        out["saved"][size] = {
            end: equal_size(accuracy, accuracy[size] + gap[end]) - size for end in ("mean", "low", "high")
        }
    return out


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval by Student's t, the seed being the unit; from two seeds on."""
    mean = fmean(values)
    degrees = min(len(values) - 1, len(STUDENT))
    reach = STUDENT[degrees - 1] * stdev(values) / len(values) ** 0.5 if degrees else float("nan")
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "by_seed": list(values)}


def equal_size(accuracy: Mapping[int, float], wanted: float) -> float:
    """How many random rankings reach an accuracy: the curve is taken as straight between points over log n, and as
    rising; beyond its ends the end counts, so what is saved is at least that."""
    sizes = sorted(accuracy)
    rising = np.maximum.accumulate([accuracy[size] for size in sizes])
    return float(np.exp(np.interp(wanted, rising, np.log(sizes))))
