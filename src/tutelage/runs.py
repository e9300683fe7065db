"""A run folder: effective config, fingerprints of inputs, metrics, samples, checkpoints, and `done.json` last.

    config.yaml     the effective settings                inputs.json   sha256 of every input file or model folder
    metrics.jsonl   one line per logged step              state/        the newest checkpoint, replaced atomically
    done.json       results, seconds, peak memory; its presence means that the run is whole

A folder made with other settings or inputs is refused unless `overwrite` is set; the same settings resume from the
checkpoint or, if done, are skipped. Progress goes to a rich display on a terminal, and to plain lines elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.config import StageConfig, is_hub_id, to_plain
from tutelage.strict_json import dumps
from tutelage.terminal import message

LINE_SECONDS = 10.0  # how often a plain progress line is printed


def fingerprint(path: Path) -> str:
    """sha256 over the bytes of a file, or over names and bytes of the files of a folder (checkpoints left out)."""
    digest = hashlib.sha256()
    files = {path.name: path}
    if path.is_dir():
        within = {p.relative_to(path): p for p in sorted(path.rglob("*")) if p.is_file()}
        files = {inner.as_posix(): p for inner, p in within.items() if "state" not in inner.parts}
    for name, file in files.items():
        digest.update(name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of it."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def peak_memory_gib() -> float:
    """The most memory this process has held so far, in GiB."""
    scale = 1024 if sys.platform != "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


class Run:
    """One stage's run folder, opened for work. Use `open_run`."""

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.state = folder / "state"
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        self._metrics = folder / "metrics.jsonl"
        self._last_line = 0.0

    def track(self, steps: range) -> Iterator[int]:
        """Iterate over steps with progress: stage, step, rate, time left, and the numbers last logged."""
        if not len(steps):
            return
        console = Console(stderr=True)
        began = time.perf_counter()
        self._shown: dict[str, float] = {}
        if console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
            with Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console) as progress:
                task = progress.add_task(self.stage, total=steps.stop, completed=steps.start, numbers="")
                for step in steps:
                    yield step
                    progress.update(task, advance=1, numbers=_numbers(self._shown))
            return
        for step in steps:
            yield step
            now = time.perf_counter()
            if now - self._last_line > LINE_SECONDS or step == steps.stop - 1:
                self._last_line = now
                rate = (step + 1 - steps.start) / (now - began)
                left = (steps.stop - 1 - step) / rate
                line = f"{self.stage} {step + 1}/{steps.stop} {rate:.1f}/s {left:.0f}s left"
                print(f"{line}  {_numbers(self._shown)}", file=sys.stderr, flush=True)

    def log(self, step: int, *, show: Sequence[str] = (), **metrics: float) -> None:
        """Append a line to metrics.jsonl; `show` names the numbers for the progress display."""
        row = {"step": step, "seconds": round(self.seconds, 3), **{k.replace("__", "/"): v for k, v in metrics.items()}}
        with self._metrics.open("a", encoding="utf-8") as stream:
            stream.write(dumps(row) + "\n")
        if show:
            self._shown = {name.replace("__", "/"): metrics[name] for name in show}

    @property
    def seconds(self) -> float:
        """Seconds of work on this run, those before an interruption included."""
        return self.seconds_before + time.perf_counter() - self.started

    def forget_after(self, step: int) -> None:
        """Drop metrics and samples of steps that a resume will repeat, and a line that an interruption cut short."""
        for path, key in ((self._metrics, "step"), (self.folder / "samples.jsonl", "iteration")):
            if path.exists():
                rows = [row for line in path.read_text(encoding="utf-8").splitlines() if (row := _whole(line))]
                kept = [row for row in rows if row[key] <= step]
                scratch = path.with_name(path.name + ".tmp")
                scratch.write_text("".join(dumps(row) + "\n" for row in kept), encoding="utf-8")
                os.replace(scratch, path)
                if kept and path == self._metrics:
                    self.seconds_before = kept[-1]["seconds"]

    def finish(self, **results: Any) -> dict[str, Any]:
        """Write done.json, the last act of a run, drop the checkpoint, and say which rows were not used, if any."""
        for name in ("state", "state.tmp", "state.old"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        done = {"stage": self.stage, "seconds": round(self.seconds, 3), "peak_memory_gib": peak_memory_gib(), **results}
        write_json(self.folder / "done.json", done)
        _unlock(self.folder)
        if lost := [f"{number:,} {why}" for why, number in results.get("dropped", {}).items() if number]:
            self.say(f"rows dropped or changed: {'; '.join(lost)}")
        return done

    def say(self, line: str) -> None:
        """A line for whoever watches, under the stage's name."""
        print(message(f"{self.stage}: {line}"), file=sys.stderr, flush=True)


def _whole(line: str) -> dict[str, Any] | None:
    """A line's row, or None if the line was cut short."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _numbers(shown: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


_locked: dict[Path, int] = {}  # run folders that this process works in, and the descriptors that hold their locks


def _lock(folder: Path) -> None:
    """Keep other processes out of a run folder until this one ends or has finished the run.

    Raises:
        ValueError: if another process is at work there.
    """
    place = folder.resolve()
    if place in _locked and os.fstat(_locked[place]).st_ino == place.stat().st_ino:
        return
    _unlock(folder)  # of a folder that was deleted since
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(
                f"output: another process is at work in {folder}; wait until it ends, or choose another folder"
            ) from None
        return  # a file system without locks
    _locked[place] = descriptor


def _unlock(folder: Path) -> None:
    descriptor = _locked.pop(folder.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def done(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run, or None."""
    path = folder / "done.json"
    return json.loads(path.read_text()) if path.exists() else None


def dropped(rows: Mapping[str, int], **others: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason of the rows that a stage did not use; those of its other inputs have the setting's name."""
    named = {f"{why} in {name}": number for name, counts in others.items() for why, number in counts.items()}
    return {why: number for why, number in {**rows, **named}.items() if number}


def inputs_of(config: StageConfig, *names: str) -> dict[str, Path]:
    """The named settings that are set and lie on this machine, as paths; hub ids are named by themselves."""
    values: dict[str, Any] = {}
    for name in names:
        value = getattr(config, name)
        values |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: Path(value) for name, value in values.items() if value is not None and not is_hub_id(str(value))}


def open_run(stage: str, config: StageConfig, inputs: Mapping[str, Path]) -> Run | None:
    """Open a run folder for work; None if it holds the finished run of these very settings and inputs.

    Raises:
        ValueError: if an input is missing, the folder holds another run and `overwrite` is off, or no run at all, or
            another process is at work in it.
    """
    for name, path in inputs.items():
        if not path.exists():
            raise ValueError(f"{name}: {path}: no such file or folder")
    folder = config.output
    # A run belongs to its settings and its inputs' contents; where an input lies does not matter.
    settings = {
        key: {name: v for name, v in value.items() if f"{key}.{name}" not in inputs}
        if isinstance(value, dict)
        else value
        for key, value in to_plain(config).items()
        if key not in inputs
    }
    prints = {name: fingerprint(path) for name, path in inputs.items()}
    identity = {"stage": stage, "settings": settings, "inputs": prints}
    known = folder / "inputs.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is a file; choose a folder")
    if known.exists():
        _lock(folder)
    if folder.exists() and any(folder.iterdir()):
        before = json.loads(known.read_text())["identity"] if known.exists() else None
        if before == identity and done(folder) is not None:
            _unlock(folder)
            return None
        begun = any(p.name not in (known.name, "config.yaml") for p in folder.iterdir())  # else refused before its work
        if before != identity:
            if before is None or (begun and not config.overwrite):  # what is not ours is never deleted
                _unlock(folder)
                remedy = "choose another" + ("" if before is None else ", or set overwrite")
                raise ValueError(f"output: {folder} holds {_difference(before, identity)}; {remedy}")
            _unlock(folder)
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    write_json(
        known, {"identity": identity, "paths": {name: str(path) for name, path in inputs.items()}}
    )  # marks it ours
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    run = Run(stage, folder)
    if not any((folder / name).exists() for name in ("state", "state.tmp", "state.old")):
        run.forget_after(-1)  # without a checkpoint the work begins anew
    return run


def _difference(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    if before is None:
        return "files that are not a run of this project"
    if before["stage"] != now["stage"]:
        return f"a run of stage {before['stage']!r}"
    for part in ("settings", "inputs"):
        for key in sorted({*before[part], *now[part]}):
            old, new = before[part].get(key), now[part].get(key)
            if old != new:
                return f"a run with other {part}: {key} " + (
                    "differs" if part == "inputs" else f"was {old!r}, is now {new!r}"
                )
    return "another run"
