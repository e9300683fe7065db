"""A line of the table, what is said about it, and the page that keeps them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

HEADER = ("work", "ours", "peer", "ratio (min–max)", "rounds", "of the bf16 roof", "of the fp32 roof")


@dataclass
class Row:
    """The work, each round's figures on both sides, and remarks."""

    work: str
    unit: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    flops: float | None = None  # useful operations of one piece of the work, if the figures are pieces per second

    def cells(self, roof: dict[str, float]) -> list[str]:
        """Medians over rounds, the median ratio of a round with its extremes, shares of the roof of both sides."""
        sides = [side for side in (self.ours, self.peer) if side]
        told = [f"{statistics.median(side):,.4g} {self.unit}" for side in sides]
        ratio, shares = "–", ["–", "–"]
        if self.peer:
            ratios = [a / b for a, b in zip(self.ours, self.peer, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        if self.flops is not None:
            rates = [self.flops * statistics.median(side) for side in sides]
            kinds = ("bf16", "fp32")
            shares = [" / ".join(f"{r / roof[kind]:.1%}" for r in rates) if kind in roof else "–" for kind in kinds]
        return [self.work, *told, *["not available"] * (2 - len(told)), ratio, str(len(self.ours)), *shares]


def machine() -> str:
    """Processor, cores, versions and date on one line."""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(": ")[1] for line in info if line.startswith("model name")), platform.processor())
    cores = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {cores}; {versions}; {time.strftime('%Y-%m-%d')}"


def how(roof: dict[str, float]) -> str:
    """What the table's figures are."""
    measured = f"{roof['fp32'] / 1e9:.0f} GFLOP/s in fp32 (no bf16 units on this machine: both sides in fp32)"
    if "bf16" in roof:
        measured = f"{roof['bf16'] / 1e9:.0f} GFLOP/s in bf16 and {roof['fp32'] / 1e9:.0f} in fp32"
    return (
        f"Medians over rounds, ours and peer in turn (the ratio is the median of the rounds' ratios, not that of the "
        f"medians). {machine()}. Roof: the best matrix product of this run, "
        f"{measured}; the shares of it, ours / peer, count useful operations only (no padding, nothing twice, logits "
        "only where they are wanted)."
    )


def page(rows: Sequence[Row], roof: dict[str, float], more: str = "") -> str:
    """Table and remarks in Markdown."""
    cells = [HEADER, ["---"] * len(HEADER), *(row.cells(roof) for row in rows)]
    table = ["| " + " | ".join(line) + " |" for line in cells]
    notes = [f"- {row.work}: {note}" for row in rows for note in row.notes]
    head = ["# Measured side by side", "", f"{how(roof)} Made by `benchmarks/bench.py --write`.", ""]
    return "\n".join([*head, *table, "", *notes, *(["", more] if more else [])]) + "\n"
