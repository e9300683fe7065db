"""How time and memory grow with the work: one measure of it at a time, all others as in `Point`. Ours alone.

A curve's exponent is the slope of a line through its points on logarithmic axes: 1 where twice the work takes twice.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from memory import ours as memory_ours
from sampling_rows import Batch
from training_rows import make_rankings, metrics, ppo_config, reward_ours, seconds_of
from work import SMALL, TINY, Shape, Work, make_models, prompt_ids

from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer
from tutelage.sampling.local import LocalSampler
from tutelage.stages import online

COLOURS = {"sampling": "#2E86D1", "PPO iteration": "#D9701A", "reward model step": "#16A085", "memory": "#B565A7"}


@dataclass(frozen=True)
class Point:
    """What is measured: so many prompts, as long as their completions, of which a ranking has `k`."""

    shape: Shape = SMALL
    number: int = 16
    length: int = 32
    k: int = 4

    @property
    def work(self) -> Work:
        """The same for the rows' functions."""
        return Work(self.shape, self.number, (self.length, self.length), self.length)


@dataclass
class Curve:
    """One measure against another."""

    work: str
    axis: str
    unit: str
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def exponent(self) -> float:
        """Slope on logarithmic axes."""
        x, y = np.log(np.array(self.points)).T
        return float(np.polyfit(x, y, 1)[0])


def sampling(folder: Path, point: Point) -> float:
    """Seconds for a completion of each prompt."""
    make_models(folder, point.work)
    sampler = LocalSampler(load_policy(folder / "policy", load_tokenizer(folder / "policy")))
    batch = Batch(prompt_ids(folder), point.length, None)

    def seconds(seed: int) -> float:
        began = time.perf_counter()
        batch.ours(sampler, seed)
        return time.perf_counter() - began

    return min(seconds(seed) for seed in range(3))


def ppo(folder: Path, point: Point) -> float:
    """Seconds of an iteration."""
    make_models(folder, point.work)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        return min(seconds_of(metrics(online.run, ppo_config(folder, Path(output), point.number, point.length))))


def reward(folder: Path, point: Point) -> float:
    """Seconds of a step on one ranking."""
    work = replace(point.work, number=6)
    make_models(folder, work, samples=False)
    make_rankings(folder, work, point.k)
    return min(seconds_of(reward_ours(folder)))


def memory(folder: Path, point: Point) -> float:
    """MiB that a PPO iteration takes at its peak beyond the loaded models."""
    make_models(folder, point.work)
    loaded, peak = memory_ours(folder, point.work)
    return peak - loaded


KINDS: dict[str, Callable[[Path, Point], float]] = {
    "sampling": sampling, "PPO iteration": ppo, "reward model step": reward, "memory": memory,
}  # fmt: skip
WIDTHS = (64, 128, 256, 384)
AXES: dict[str, tuple[tuple[str, ...], dict[float, Point]]] = {
    "completions of a ranking": (("reward model step",), {k: Point(k=k) for k in (2, 3, 5, 7, 9)}),
    "tokens of prompt, of completion": (
        ("sampling", "PPO iteration", "reward model step", "memory"),
        {n: Point(length=n) for n in (16, 32, 64, 128, 256)},
    ),
    "prompts of a batch": (("sampling", "PPO iteration"), {n: Point(number=n) for n in (4, 16, 64, 256)}),
    "vocabulary": (
        ("sampling", "PPO iteration"), {v: Point(replace(SMALL, vocabulary=v)) for v in (1024, 4096, 16384, 50257)},
    ),
    "parameters": (
        ("sampling", "PPO iteration", "reward model step"),
        {s.backbone + s.head: Point(s) for s in (Shape(width, 4, 4) for width in WIDTHS)},
    ),
}  # fmt: skip
TRIAL: dict[str, tuple[tuple[str, ...], dict[float, Point]]] = {
    "tokens": (tuple(KINDS), {n: Point(TINY, 2, n, 2) for n in (8, 16)}),
}  # to try the script out


def curves(scratch: Path, tiny: bool) -> Iterator[Curve]:
    """Measure all, one curve after the other."""
    for axis, (kinds, points) in (TRIAL if tiny else AXES).items():
        for kind in kinds:
            curve = Curve(kind, axis, "MiB" if kind == "memory" else "s")
            for x, point in points.items():
                folder = scratch / f"growth {point} {kind == 'reward model step'}".replace(" ", "-")
                curve.points.append((x, KINDS[kind](folder, point)))
            yield curve


def table(found: Sequence[Curve]) -> str:
    """All points in Markdown, with a curve's exponent."""
    head = [
        "## Growth",
        "",
        "Ours alone: 16 prompts of 32 tokens, completions of 32, rankings of 4, 0.9M, where the axis",
    ]
    head += ["says no other; the least of two or three turns. The exponent is the slope on logarithmic axes.", ""]
    head += ["![Time and memory against the work](../docs/images/growth.png)", ""]
    lines = ["| against | of | points | exponent |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *lines, *map(line, found)])


def line(curve: Curve) -> str:
    """A line of the table."""
    points = ", ".join(f"{x:,.0f}: {y:.3g}" for x, y in curve.points)
    return f"| {curve.axis} | {curve.work}, {curve.unit} | {points} | {curve.exponent:.2f} |"


def plot(found: Sequence[Curve], path: Path) -> None:
    """A small picture for each axis, and one for memory, with a line of slope 1."""
    groups: dict[str, list[Curve]] = {}
    for curve in found:
        groups.setdefault(f"memory: {curve.axis}" if curve.unit == "MiB" else curve.axis, []).append(curve)
    figure = Figure(figsize=(10, 3 * math.ceil(len(groups) / 3)), layout="constrained")
    for k, (title, group) in enumerate(groups.items()):
        axes = figure.add_subplot(math.ceil(len(groups) / 3), 3, k + 1)
        for curve in group:
            x, y = zip(*curve.points, strict=True)
            axes.loglog(x, y, "o-", ms=3, color=COLOURS[curve.work], label=f"{curve.work}: {curve.exponent:.2f}")
        x, y = zip(*group[0].points, strict=True)
        axes.loglog(x, [y[0] * each / x[0] for each in x], "--", color="#999999", lw=0.8, label="slope 1")
        axes.set_xticks(x, [f"{each / 1e6:.1f}M" if each > 1e5 else f"{each:,.0f}" for each in x])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("MiB" if group[0].unit == "MiB" else "seconds", fontsize=8)
        axes.tick_params(labelsize=7, which="both")
        axes.legend(fontsize=7, frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
