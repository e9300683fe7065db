"""What every gradient stage shares: optimizer, schedules, held-out groups, batches, and one update."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TypeVar

import torch
from torch import nn

from tutelage.models.adapters import own_parameters
from tutelage.runs import Run
from tutelage.settings.training import AdamW
from tutelage.training.guards import Watch

T = TypeVar("T")


def adamw(model: nn.Module, settings: AdamW) -> torch.optim.AdamW:
    """AdamW with these settings; the rate is set at each `update`."""
    return torch.optim.AdamW(
        own_parameters(model).values(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def cosine(step: int, total: int, warmup: int = 0, floor: float = 0.1) -> float:
    """Factor of the peak rate: linear warm-up, then a cosine to a tenth (paper, section C.1)."""
    progress = min(1.0, step / max(1, total))
    decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return decay * min(1.0, (step + 1) / warmup if warmup else 1.0)


def constant_after_warmup(step: int, warmup: int) -> float:
    """Factor of the rate: from a tenth to one over `warmup` steps, then constant (paper, section C.4)."""
    return 1.0 if step >= warmup else 0.1 + 0.9 * step / warmup


def update(optimizer: torch.optim.Optimizer, model: nn.Module, max_norm: float, rate: float, watch: Watch) -> float:
    """Clip, step and clear; returns the gradient's norm before clipping.

    Raises:
        ValueError: if the gradient is not finite; nothing is stepped, the last checkpoint stays, and the batch is kept.
    """
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    if not math.isfinite(norm):
        optimizer.zero_grad()
        raise ValueError(broken(watch, f"the gradient is {norm}"))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return norm


def broken(watch: Watch, what: str) -> str:
    """The message of a run that ends because a number is not finite; the batch it happened on is kept."""
    run = watch.run
    kept = f"the checkpoint before it is in {run.state}" if run.state.exists() else "no checkpoint had been written yet"
    return (
        f"{run.stage}: {what} at step {watch.step}; {kept}. Try a lower optimizer.learning_rate, a longer warm-up, or "
        f"look at the batch for broken rows: {run.folder / watch.keep()}"
    )


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that this process can still take, None where the system does not say."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        group = cgroups / (proc / "self" / "cgroup").read_text().partition("0::/")[2].strip()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for folder in (group, *group.parents):  # a container's limit, or a scheduler's; files it has read can be let go
        with suppress(OSError, ValueError, StopIteration):
            limit, taken = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            stat = (folder / "memory.stat").read_text().splitlines()
            free.append(limit - taken + next(int(line.split()[1]) for line in stat if line.startswith("file ")))
    return min(free, default=None)


def require_finite_measure(run: Run, measure: str, value: float) -> None:
    """End the run if a measure of the trained model is not finite; no single batch is to blame for it.

    Raises:
        ValueError: naming the measure.
    """
    if not math.isfinite(value):
        raise ValueError(
            f"{run.stage}: the {measure} is {value}, so training has diverged; try a lower optimizer.learning_rate or "
            "a longer warm-up"
        )


def begin(
    run: Run, *plan: str, trained: Sequence[nn.Module], lost: Mapping[str, int], kept: Sequence[nn.Module] = (),
    saved: Sequence[nn.Module] = (),
) -> None:  # fmt: skip
    """Say what will be done, and see that memory and disk suffice for gradients, Adam's moments and checkpoints.

    Checkpoints hold the models that are `trained`, with their moments, and others that are `kept`; models that are
    `saved` on the way are written once.

    Raises:
        ValueError: if they do not.
        DryRun: in a dry run.
    """
    weights, others, once = (
        sum(p.numel() * p.element_size() for model in models for p in own_parameters(model).values())
        for models in (trained, kept, saved)
    )
    device = next(trained[0].parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    more = 3 * weights  # gradients, and two moments
    if free is not None and more > free:
        raise ValueError(
            f"{run.stage}: gradients and optimizer take {more / 2**20:,.0f} MiB beside the models, and only "
            f"{free / 2**20:,.0f} MiB of memory are free; use a smaller model, or a machine with more memory"
        )
    # Three checkpoints of weights and two moments, as the next is written beside two; and the models.
    run.begin(
        *plan, f"memory: {more / 2**30:.2f} GiB for gradients and optimizer, beside the models and one pass",
        lost=lost, disk=10 * weights + 4 * others + once,
    )  # fmt: skip


def shuffled(items: Sequence[T], seed: int, epoch: int) -> list[T]:
    """The items in an order that is a function of seed and epoch, so that a resume finds the same order."""
    order = list(items)
    Random(f"{seed}/{epoch}").shuffle(order)
    return order


def hold_out(items: Sequence[T], groups: Sequence[Hashable], share: float, seed: int) -> tuple[list[T], list[T]]:
    """(rest, held out): this share of the groups, at random, at least one and never all; a group stays whole."""
    names = list(dict.fromkeys(groups))
    count = min(max(1, round(share * len(names))), len(names) - 1) if share and names else 0
    drawn = set(shuffled(names, seed, -1)[:count])
    pairs = list(zip(items, groups, strict=True))
    return [item for item, group in pairs if group not in drawn], [item for item, group in pairs if group in drawn]


def batches(items: Sequence[T], size: int, seed: int, epochs: int) -> Iterator[list[T]]:
    """Batches over several shuffled epochs; the last one of an epoch may be smaller."""
    for epoch in range(epochs):
        order = shuffled(items, seed, epoch)
        for start in range(0, len(order), size):
            yield order[start : start + size]
