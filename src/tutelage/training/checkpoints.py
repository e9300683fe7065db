"""Checkpoints: all that a resume needs, as safetensors and JSON, with checksums; the newest, and the one before it.

    state/      model and optimizer tensors, rng.safetensors, counters.json, and SHA256SUMS (`sha256sum -c` reads it)
    state.old/  the checkpoint before it, for the day that a disk damages the newest

SHA256SUMS is written last, so a folder that has it and agrees with it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tutelage.files import read_json, write_json
from tutelage.models.adapters import own_parameters
from tutelage.models.loading import require_finite, scratch_folder
from tutelage.runs import Run

SUMS = "SHA256SUMS"


class Checkpoint:
    """Named models, optimizers, random states and counters of a run."""

    def __init__(
        self, run: Run, models: dict[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], seconds: float
    ) -> None:
        self.run, self.models, self.optimizers, self.every = run, models, optimizers, seconds
        self.old, self.scratch = (run.state.with_name(name) for name in ("state.old", "state.tmp"))
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last > self.every

    def save(self, step: int, **counters: Any) -> None:
        """Make the checkpoint after `step` steps the newest. Killed at any moment, a whole one is left.

        Raises:
            ValueError: if a weight is not finite; the checkpoints before stay.
            OSError: if it cannot be written; likewise.
        """
        for model in self.models.values():
            require_finite(model, f"{self.run.state}: not written after step {step}")
        self.run.require_folder()
        with scratch_folder(self.scratch):
            for name, model in self.models.items():
                _save(dict(own_parameters(model)), self.scratch / f"{name}.safetensors")
            for name, optimizer in self.optimizers.items():
                state = optimizer.state_dict()["state"]
                flat = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
                _save(flat, self.scratch / f"{name}.optimizer.safetensors")
            rng = {"cpu": torch.get_rng_state()}
            rng |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
            _save(rng, self.scratch / "rng.safetensors")
            write_json(self.scratch / "counters.json", {"step": step, **counters})
            (self.scratch / SUMS).write_text(_sums(self.scratch), encoding="utf-8")
        if self.run.state.exists():
            shutil.rmtree(self.old, ignore_errors=True)
            os.replace(self.run.state, self.old)
        os.replace(self.scratch, self.run.state)  # killed before this, `resume` finds the whole scratch
        self._last = time.monotonic()

    def resume(self) -> dict[str, Any]:
        """Load the newest checkpoint that is whole; its counters, or `{"step": 0}` if there is none."""
        if not self._newest():
            self.run.forget_after(-1)
            return {"step": 0}
        state = self.run.state
        for name, model in self.models.items():
            saved = load_file(state / f"{name}.safetensors")
            with torch.no_grad():
                for key, parameter in own_parameters(model).items():
                    parameter.copy_(saved[key])
        for name, optimizer in self.optimizers.items():
            flat = load_file(state / f"{name}.optimizer.safetensors")
            entries: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in flat.items():
                index, field = key.split(".", 1)
                entries.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        rng = load_file(state / "rng.safetensors")
        torch.set_rng_state(rng.pop("cpu"))
        for name, rng_state in rng.items():
            torch.cuda.set_rng_state(rng_state, int(name.removeprefix("cuda")))
        counters = read_json(state / "counters.json")
        self.run.forget_after(counters["step"] - 1)
        return counters

    def _newest(self) -> bool:
        """Whether there is a whole checkpoint: the newest such is put into `state`, and damaged ones are named."""
        state = self.run.state
        if not state.exists() and _damage(self.scratch) is None:
            os.replace(self.scratch, state)
        for folder in (state, self.old):
            if not folder.exists():
                continue
            damage = _damage(folder)
            if damage is None:
                if folder != state:
                    shutil.rmtree(state, ignore_errors=True)
                    os.replace(folder, state)
                return True
            last = folder == self.old or not self.old.exists()
            then = "the run begins again" if last else "the run goes on from the checkpoint before it"
            self.run.say(f"{damage}; {then}")
        return False


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole."""
    try:
        written = (folder / SUMS).read_text(encoding="utf-8")
        if written == _sums(folder):
            return None
        names = dict(line.split("  ", 1)[::-1] for line in written.splitlines() if "  " in line)
    except (OSError, UnicodeDecodeError):
        return f"{folder}: this checkpoint is not whole"
    found = dict(line.split("  ", 1)[::-1] for line in _sums(folder).splitlines())
    name = next((n for n in sorted({*names, *found}) if names.get(n) != found.get(n)), SUMS)
    return f"{folder / name}: is damaged, its checksum is not the one that was written"


def _sums(folder: Path) -> str:
    """The checkpoint's files with their sha256, a line each."""
    lines = []
    for path in sorted(p for p in folder.iterdir() if p.name != SUMS):
        with path.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
