"""How fast the main loops run here, beside the strongest peer on the same work, alternating in one run.

Ours and the peer load one random model from one folder, get the same data, and take turns: ours, peer, ours, peer.
Peers are transformers' sampling, in this process, and TRL in virtual environments of its own, made by the first run:
1.12 for PPO (the last that has it), 1.16 for the rest. A row is printed as soon as it is done.

    .venv/bin/python benchmarks/bench.py [--write] [--rounds 7] [--rows sampling ppo reward]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import growth
import roof
import torch
from dpo_rows import dpo_row
from group_rows import group_row
from memory import memory_rows
from results import HEADER, Row, how, page
from rich.console import Console
from rich.table import Table
from sampling_rows import sampling_row
from training_rows import STEPS, ppo_row, reward_row, sft_rows
from work import MEDIUM, SMALL, TINY, WIDE, Shape, Work, fixed, mixed

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the command line chose."""

    scratch: Path
    tiny: bool
    epochs: int
    updates: int

    def shape(self, shape: Shape) -> Shape:
        """That of a row, or a very small one."""
        return TINY if self.tiny else shape

    def fixed(self, shape: Shape) -> Work:
        """64 prompts, 64 + 64 tokens."""
        return fixed(TINY, 8, 16) if self.tiny else fixed(shape)

    def mixed(self, shape: Shape, number: int) -> Work:
        """Prompts of mixed lengths with natural ends."""
        return mixed(self.shape(shape), 8 if self.tiny else number)

    def folder(self, work: Work) -> Path:
        """Where the models of a work are: rows of the same work share them."""
        return self.scratch / f"{work.shape} {work.number} {work}".replace(" ", "-")


def sampling(b: Bench, work: Work, rounds: int, copies: int = 1) -> list[Row]:
    """Completions."""
    return [sampling_row(b.folder(work), work, rounds, copies)]


def ppo(b: Bench, work: Work, rounds: int) -> list[Row]:
    """Iterations of the online loop."""
    return [ppo_row(b.folder(work), work, rounds, b.epochs, b.updates)]


def reward(b: Bench, rounds: int) -> list[Row]:
    """Rankings of nine completions."""
    work, k = (Work(TINY, 4, (16, 16), 8), 4) if b.tiny else (Work(MEDIUM, 13, (128, 128), 64), 9)
    return [reward_row(b.scratch / "reward", work, k, rounds)]


def group(b: Bench, name: str, rounds: int) -> list[Row]:
    """Iterations of RLOO or GRPO, four samples of each prompt."""
    work = b.mixed(SMALL, 16)
    return [group_row(b.folder(work), name, work, 4, rounds)]


def dpo_pairs(b: Bench, rounds: int) -> list[Row]:
    """Pairs of mixed lengths."""
    batch, prompts, most = (8, (4, 16), 8) if b.tiny else (64, (16, 128), 64)
    work = Work(b.shape(SMALL), STEPS * batch, prompts, most)
    return [dpo_row(b.scratch / "dpo-pairs", work, 2, batch, work.most // 4, rounds)]


def dpo_rankings(b: Bench, rounds: int) -> list[Row]:
    """Rankings of nine completions."""
    work, k = (Work(TINY, 4, (16, 16), 8), 4) if b.tiny else (Work(SMALL, 13, (128, 128), 64), 9)
    return [dpo_row(b.scratch / "dpo-rankings", work, k, 1, work.most, rounds)]


def sft(b: Bench, shape: Shape, rounds: int) -> list[Row]:
    """Demonstrations of mixed lengths."""
    batch, lengths = (8, (8, 32)) if b.tiny else (64, (30, 128))
    return sft_rows(b.scratch / f"sft-{shape}", b.shape(shape), batch, lengths, rounds)


def memory(b: Bench, rounds: int) -> list[Row]:
    """A PPO iteration at a wide vocabulary."""
    work = b.fixed(WIDE)
    return memory_rows(b.folder(work), work, rounds)


ROWS: dict[str, tuple[int, Callable[[Bench, int], list[Row]]]] = {
    "sampling": (5, lambda b, n: sampling(b, b.fixed(SMALL), n)),
    "sampling-5M": (3, lambda b, n: sampling(b, b.fixed(MEDIUM), n)),
    "mixed": (4, lambda b, n: sampling(b, b.mixed(SMALL, 256), n)),
    "mixed-5M": (2, lambda b, n: sampling(b, b.mixed(MEDIUM, 256), n)),
    "copies": (3, lambda b, n: sampling(b, b.mixed(SMALL, 64), n, 4)),
    "copies-5M": (2, lambda b, n: sampling(b, b.mixed(MEDIUM, 64), n, 4)),
    "ppo": (5, lambda b, n: ppo(b, b.fixed(SMALL), n)),
    "ppo-5M": (3, lambda b, n: ppo(b, b.fixed(MEDIUM), n)),
    "ppo-mixed": (5, lambda b, n: ppo(b, b.mixed(SMALL, 64), n)),
    "rloo": (3, lambda b, n: group(b, "rloo", n)),
    "grpo": (3, lambda b, n: group(b, "grpo", n)),
    "reward": (5, reward),
    "dpo": (3, dpo_pairs),
    "dpo-rankings": (3, dpo_rankings),
    "sft": (5, lambda b, n: sft(b, SMALL, n)),
    "sft-5M": (3, lambda b, n: sft(b, MEDIUM, n)),
    "memory": (1, memory),
}  # rounds, and how to measure


def main() -> None:
    """Measure the chosen rows, print each, and with --write keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "growth"], default=[*ROWS, "growth"])
    parser.add_argument("--rounds", type=int, help="of every row (default: as many as each is worth)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1, help="PPO epochs of an iteration, on both sides")
    parser.add_argument("--updates", type=int, default=1, help="minibatches of an epoch, on both sides")
    parser.add_argument("--tiny", action="store_true", help="very small work, to try the script out")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    args = parser.parse_args()
    if args.tiny and args.write:
        parser.error("--tiny measures nothing worth writing down")
    if (8 if args.tiny else 64) % args.updates:
        parser.error(f"--updates {args.updates} does not divide the batch")
    torch.set_num_threads(args.threads)
    measured: dict[str, float] = {}
    roof.measure(measured, 0.05)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), args.tiny, args.epochs, args.updates)
        for name in (name for name in args.rows if name in ROWS):
            rounds, measure = ROWS[name]
            roof.measure(measured, 0.05 if args.tiny else 0.5)  # before each row, as other work may lower it
            began = time.perf_counter()
            new = measure(bench, args.rounds or rounds)
            rows += new
            for row in new:
                work, *cells = row.cells(measured)
                line = "; ".join(f"{head} {cell}" for head, cell in zip(HEADER[1:], cells, strict=True))
                print("\n    ".join([f"{work}: {line}", *row.notes]), flush=True)
            print(f"    {name}: measured in {time.perf_counter() - began:.0f} s", flush=True)
            if args.write:
                (HERE / "RESULTS.md").write_text(page(rows, measured), encoding="utf-8")
        curves = []
        for curve in growth.curves(bench.scratch, args.tiny) if "growth" in args.rows else ():
            curves.append(curve)
            print(growth.line(curve), flush=True)
        if args.write and curves:
            growth.plot(curves, HERE.parent / "docs" / "images" / "growth.png")
            (HERE / "RESULTS.md").write_text(page(rows, measured, growth.table(curves)), encoding="utf-8")
    table = Table(*HEADER)
    for row in rows:
        table.add_row(*row.cells(measured))
    Console().print(table)
    print(how(measured))


if __name__ == "__main__":
    main()
