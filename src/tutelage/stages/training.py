"""What every gradient stage shares: optimizer, schedules, clipping, a guard against NaN, and checkpoints."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tutelage.runs import Run, write_json
from tutelage.stages.config import Training

T = TypeVar("T")


def adamw(model: nn.Module, config: Training, learning_rate: float | None = None) -> torch.optim.AdamW:
    """AdamW with the config's settings; the rate is set at each `update`."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate or config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
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


def update(
    optimizer: torch.optim.Optimizer, model: nn.Module, max_norm: float, rate: float, run: Run, step: int
) -> float:
    """Clip, step and clear; returns the gradient's norm before clipping.

    Raises:
        ValueError: if the gradient is not finite; nothing is stepped, and the last checkpoint stays as it is.
    """
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    if not math.isfinite(norm):
        optimizer.zero_grad()
        kept = (
            f"the checkpoint before it is in {run.state}"
            if run.state.exists()
            else "no checkpoint had been written yet"
        )
        raise ValueError(
            f"{run.stage}: the gradient is {norm} at step {step}; {kept}. "
            "Try a lower learning_rate, a longer warm-up, or look at the batch for broken rows"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return norm


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


class Checkpoint:
    """All that a resume needs: named models, optimizers, and counters, as safetensors and JSON, written atomically."""

    def __init__(
        self, run: Run, models: dict[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], seconds: float
    ) -> None:
        self.run, self.models, self.optimizers, self.every = run, models, optimizers, seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last > self.every

    def save(self, step: int, **counters: Any) -> None:
        """Replace the checkpoint by one taken after `step` steps."""
        scratch = self.run.state.with_name("state.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name, model in self.models.items():
            _save(dict(model.named_parameters()), scratch / f"{name}.safetensors")
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()["state"]
            flat = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
            _save(flat, scratch / f"{name}.optimizer.safetensors")
        rng = {"cpu": torch.get_rng_state()}
        rng |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        _save(rng, scratch / "rng.safetensors")
        write_json(scratch / "counters.json", {"step": step, **counters})
        old = self.run.state.with_name("state.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.run.state.exists():
            os.replace(self.run.state, old)
        os.replace(scratch, self.run.state)  # interrupted before this, `resume` finds the whole scratch
        shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()

    def resume(self) -> dict[str, Any]:
        """Load the checkpoint if there is one; its counters, or `{"step": 0}`."""
        scratch = self.run.state.with_name("state.tmp")
        if not self.run.state.exists() and (scratch / "counters.json").exists():  # written last, so it is whole
            os.replace(scratch, self.run.state)
        if not (self.run.state / "counters.json").exists():
            self.run.forget_after(-1)
            return {"step": 0}
        for name, model in self.models.items():
            saved = load_file(self.run.state / f"{name}.safetensors")
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    parameter.copy_(saved[key])
        for name, optimizer in self.optimizers.items():
            flat = load_file(self.run.state / f"{name}.optimizer.safetensors")
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in flat.items():
                index, field = key.split(".", 1)
                state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        rng = load_file(self.run.state / "rng.safetensors")
        torch.set_rng_state(rng.pop("cpu"))
        for name, rng_state in rng.items():
            torch.cuda.set_rng_state(rng_state, int(name.removeprefix("cuda")))
        counters = json.loads((self.run.state / "counters.json").read_text())
        self.run.forget_after(counters["step"] - 1)
        return counters


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
