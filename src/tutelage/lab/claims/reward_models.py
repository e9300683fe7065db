"""Claims about reward models, measured on rankings of prompts that none of them saw: by training labelers, unless it is
held-out labelers that the claim is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tutelage.lab.claims import experiments as runs
from tutelage.lab.claims.evidence import Column, Outcome, above, average, point, resampled, within
from tutelage.lab.claims.reading import Marks, read_marks
from tutelage.runs import done
from tutelage.settings.claims import Scale

Seeds = Mapping[int, Path]
CHANCE_MARGIN = 0.05  # "near chance", of accuracy


def one_element(seeds: Seeds, scale: Scale) -> Outcome:
    """The validation loss of shuffled pairs less that of whole rankings, in nats per pair."""
    marks = {
        s: [read_marks(f, name, runs.TRAINING) for name in ("shuffled_pairs", runs.reward_name(scale.overfit))]
        for s, f in seeds.items()
    }
    loss = {s: pairs.less(whole, "loss") for s, (pairs, whole) in marks.items()}
    right = {s: pairs.less(whole, "right") for s, (pairs, whole) in marks.items()}
    return Outcome(
        [
            average("loss of shuffled pairs, less that of whole rankings (nats per pair)", loss, above()),
            average("accuracy of shuffled pairs, less that of whole rankings", right, above(), counts=False),
        ],
        [point("loss", s, x, m.rate("loss")) for s, of in marks.items() for x, m in enumerate(of)],
    )


def epochs(seeds: Seeds, scale: Scale) -> Outcome:
    """The validation loss after several passes less that after one, in nats per pair."""
    names = {1: runs.reward_name(scale.overfit), **{k: f"epochs_{k}" for k in scale.epochs[1:]}}
    marks = {s: {k: read_marks(f, name, runs.TRAINING) for k, name in names.items()} for s, f in seeds.items()}
    last = scale.epochs[-1]
    parts = [
        average(
            f"loss after {k} epochs, less after 1 (nats per pair)",
            {s: of[k].less(of[1], "loss") for s, of in marks.items()}, above(), counts=k == last,
        )
        for k in scale.epochs[1:]
    ]  # fmt: skip
    return Outcome(parts, [point("loss", s, k, m.rate("loss")) for s, of in marks.items() for k, m in of.items()])


def data(seeds: Seeds, scale: Scale) -> Outcome:
    """Accuracy by the number of rankings: the smallest against chance, the slope, and what the last doubling brings."""
    marks = {s: {n: read_marks(f, runs.reward_name(n), runs.TRAINING) for n in scale.sizes} for s, f in seeds.items()}
    doublings = np.log2(scale.sizes)
    centred = doublings - doublings.mean()
    weights = centred / (centred**2).sum()  # of the least-squares slope

    def slope(of: Mapping[int, Marks]) -> Column:
        first = of[scale.sizes[0]]
        right = sum(w * of[n].column("right") for w, n in zip(weights, scale.sizes, strict=True))
        return Column(first.prompts, np.asarray(right), first.column("pairs"))

    smallest, last, before = scale.sizes[0], scale.sizes[-1], scale.sizes[-2]
    chance = {}
    for s, of in marks.items():
        m = of[smallest]
        chance[s] = Column(m.prompts, m.column("right") - m.column("pairs") / 2, m.column("pairs"))
    parts = [
        average("accuracy gained per doubling (least squares)", {s: slope(of) for s, of in marks.items()}, above()),
        average(f"accuracy of {smallest} rankings, less chance", chance, within(CHANCE_MARGIN)),
        average(
            f"accuracy of {last:,} rankings, less that of {before:,}",
            {s: of[last].less(of[before], "right") for s, of in marks.items()}, above(), counts=False,
        ),
    ]  # fmt: skip
    return Outcome(parts, [point("accuracy", s, n, m.rate("right")) for s, of in marks.items() for n, m in of.items()])


def heldout_labelers(seeds: Seeds, scale: Scale) -> Outcome:
    """Accuracy on labelers whose group was trained on, less that on the labelers whose group was left out.

    Each held-out ranking is marked by the models of all folds: one of them never met its labeler.
    """
    columns, arms, points = {}, {}, []
    for s, folder in seeds.items():
        folds = [read_marks(folder, f"fold_{k}", runs.TRAINING) for k in range(scale.folds)]
        group = (done(folder / "subsets") or {})["group"]  # of those who ranked for training; others count in no fold
        folds = [Marks([row for row in m.rows if row["labeler"] in group]) for m in folds]
        right, pairs = np.stack([m.column("right") for m in folds]), folds[0].column("pairs")
        strange = np.array([[group[name] == k for name in folds[0].labelers] for k in range(scale.folds)])
        own = (right * ~strange).sum(0) / (~strange).sum(0)
        columns[s] = Column(folds[0].prompts, own - (right * strange).sum(0), pairs)
        points += [
            point("accuracy", s, 0, own.sum() / pairs.sum()),
            point("accuracy", s, 1, (right * strange).sum() / pairs.sum()),
        ]
        main = [read_marks(folder, runs.main_reward(scale), name) for name in (runs.TRAINING, runs.HELDOUT)]
        arms[s] = [np.array([_sums(m, prompt) for prompt in sorted(set(m.prompts))]) for m in main]
    by_arm = resampled(
        "main reward model: accuracy on training labelers, less on other people", arms,
        lambda means: means[0][0] / means[0][1] - means[1][0] / means[1][1], above(), counts=False,
    )  # fmt: skip
    return Outcome(
        [average("accuracy on labelers trained on, less on the fold left out", columns, above()), by_arm], points
    )


def _sums(marks: Marks, prompt: str) -> tuple[float, float]:
    rows = [row for row in marks.rows if row["prompt"] == prompt]
    return sum(row["right"] for row in rows), sum(row["pairs"] for row in rows)
