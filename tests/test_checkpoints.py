"""Checkpoints: whole at any moment, checked by their sums, and never of broken weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from tutelage.runs import Run
from tutelage.training import checkpoints
from tutelage.training.checkpoints import Checkpoint


def fresh(folder: Path, fill: float | None = None) -> tuple[nn.Module, Checkpoint]:
    """A model after one update, all weights `fill` if given, and its checkpoint."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if fill is not None:
        model.weight.data.fill_(fill)
    (folder / "inputs.json").touch()
    return model, Checkpoint(Run("x", folder), {"m": model}, {"m": optimizer}, 0)


def saved(folder: Path, *steps: int) -> None:
    """Checkpoints after these steps, the weights of each the number of its step."""
    for step in steps:
        fresh(folder, float(step))[1].save(step)


def resumed(folder: Path) -> tuple[int, float]:
    """(step, weight) of a new process."""
    model, checkpoint = fresh(folder)
    step = checkpoint.resume()["step"]
    return step, float(model.weight.detach()[0, 0])


def test_an_interrupted_checkpoint_leaves_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any system call of a save, a resume finds the step before or the new one, never neither."""
    real = {"replace": os.replace, "rmtree": shutil.rmtree}
    seen = set()
    for victim in range(12):
        real["rmtree"](tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        saved(tmp_path, 1)
        checkpoint = fresh(tmp_path, 2.0)[1]
        calls = iter(range(100))

        def killed(name: str, calls: Any = calls, victim: int = victim) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(calls) == victim:
                    if name == "rmtree":  # killed half-way
                        for file in Path(args[0]).glob("*.safetensors"):
                            file.unlink()
                    raise KeyboardInterrupt
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.os, "replace", killed("replace"))
            patch.setattr(checkpoints.shutil, "rmtree", killed("rmtree"))
            with contextlib.suppress(KeyboardInterrupt):
                checkpoint.save(2)
        step, weight = resumed(tmp_path)
        assert step in (1, 2)
        assert weight == step
        seen.add(step)
    assert seen == {1, 2}


def test_the_sums_are_those_of_a_common_tool(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "state", check=True)
    named = {line.split()[1] for line in (tmp_path / "state" / "SHA256SUMS").read_text().splitlines()}
    assert named == {p.name for p in (tmp_path / "state").iterdir()} - {"SHA256SUMS"}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "flip":
            content[len(content) * 7 // 10] ^= 1
        case "cut":
            del content[len(content) // 2 :]
        case "empty":
            content.clear()
        case "gone":
            path.unlink()
            return
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
@pytest.mark.parametrize(
    "name", ["m.safetensors", "m.optimizer.safetensors", "rng.safetensors", "counters.json", "SHA256SUMS"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    name: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2)
    assert resumed(tmp_path) == (2, 2.0)
    damage(tmp_path / "state" / name, how)
    assert resumed(tmp_path) == (1, 1.0)
    said = capsys.readouterr().err
    assert said.startswith(f"x: {tmp_path / 'state'}")
    assert said.endswith("; the run goes on from the checkpoint before it\n")
    if name != "SHA256SUMS":
        assert f"{name}: is damaged" in said
    saved(tmp_path, 3)
    assert resumed(tmp_path) == (3, 3.0)
    damage(tmp_path / "state" / name, how)
    assert resumed(tmp_path) == (1, 1.0)


def test_with_nothing_whole_left_the_run_begins_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 1, 2)
    for name in ("state", "state.old"):
        damage(tmp_path / name / "m.safetensors", "flip")
    assert resumed(tmp_path)[0] == 0
    before, again = capsys.readouterr().err.splitlines()
    assert before.endswith("the run goes on from the checkpoint before it")
    assert again.endswith("the run begins again")


def test_broken_weights_are_not_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match=r"not written after step 2: the weight weight is not finite.*learning_rate"):
        fresh(tmp_path, float("inf"))[1].save(2)
    assert resumed(tmp_path) == (1, 1.0)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
def test_a_full_disk_costs_no_checkpoint(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors' error is no OSError, and leaves as one."""
    saved(tmp_path, 1)
    written = iter(range(9))
    real = checkpoints.save_file

    def full(tensors: Any, path: Path) -> None:
        real(tensors, path)
        if next(written) == 1:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(OSError, match=r"state\.tmp: cannot be written: .*No space left"):
            fresh(tmp_path, 2.0)[1].save(2)
    assert not (tmp_path / "state.tmp").exists()
    assert resumed(tmp_path) == (1, 1.0)


def test_counters_come_back(tmp_path: Path) -> None:
    fresh(tmp_path)[1].save(5, kl_coef=0.25)
    assert fresh(tmp_path)[1].resume() == {"step": 5, "kl_coef": 0.25}
    assert json.loads((tmp_path / "state" / "counters.json").read_text())["step"] == 5
