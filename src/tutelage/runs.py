"""A run folder: effective config, fingerprints of inputs, metrics, samples, checkpoints, and `done.json` last.

    config.yaml     the effective settings                inputs.json   sha256 of every input file or model folder
    metrics.jsonl   one line per logged step              state/        the newest checkpoint; state.old/ the one before
    done.json       results, files with their sizes, seconds, peak memory; its presence means that the run is whole

A folder made with other settings or inputs is refused unless `overwrite` is set; the same settings resume from the
checkpoint or, if done, are skipped. What `overwrite` replaces waits as `.NAME.before` beside the folder until the new
run is done. A process may be killed at any moment: the same command goes on, and ends with the same files. Progress
goes to a rich display on a terminal, and to plain lines elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.data.strict_json import dumps
from tutelage.files import CHECKPOINTS, fingerprint, lock, read_json, remove, sync, unlock, write_json
from tutelage.settings.common import NO_RESULT, StageConfig, flat, is_hub_id, named, to_plain
from tutelage.terminal import tell

LINE_SECONDS = 10.0  # how often a plain progress line is printed
OURS = ("inputs.json", "config.yaml")  # what a folder holds of a run that has not begun its work


class DryRun(Exception):
    """Raised where a dry run ends: everything is checked, and the first step would be next."""


def peak_memory_gib() -> float:
    """The most memory this process has held so far, in GiB."""
    scale = 1024 if sys.platform != "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


class Run:
    """One stage's run folder, opened for work. Use `open_run`."""

    def __init__(self, stage: str, folder: Path, dry: bool = False) -> None:
        self.stage = stage
        self.folder = folder
        self.state = folder / "state"
        self.dry = dry
        self.warnings: list[str] = []
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        self._metrics = folder / "metrics.jsonl"
        self._last_line = 0.0
        self._lost: list[str] = []
        self._inode = None if dry else folder.stat().st_ino  # its lock keeps it from being used again

    def begin(self, *plan: str, lost: Mapping[str, int] | None = None, disk: int = 0) -> None:
        """Say what will be done, line by line; a dry run ends here.

        Args:
            lost: rows that are not used, by reason.
            disk: bytes that the run will write.

        Raises:
            ValueError: if the disk has less than that free.
            DryRun: in a dry run.
        """
        place = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        kept = (p for name in CHECKPOINTS for p in (self.folder / name).rglob("*") if p.is_file())  # if it resumes
        free = shutil.disk_usage(place).free + sum(p.stat().st_size for p in kept)
        if not os.access(place, os.W_OK):
            raise ValueError(f"output: {place} cannot be written to; choose another folder")
        if disk > free:
            raise ValueError(
                f"output: {self.folder}: this run writes about {disk / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB "
                "are free there; free some space, or choose another folder"
            )
        for line in plan:
            self.say(line)
        self._say_lost(lost or {})
        if self.dry:
            raise DryRun

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives, as JSON has it; kept until the run is done, so that a resume need not do it again."""
        self.require_folder()
        path = self.state / f"{name}.json"
        if path.exists():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept["sha256"] == _sum(kept["made"]):
                    return kept["made"]
            self.say(f"{path}: is damaged, its checksum is not the one that was written; this part is done again")
        made = json.loads(dumps(work()))
        self.require_folder()
        self.state.mkdir(exist_ok=True)
        write_json(path, {"made": made, "sha256": _sum(made)})
        return made

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

    def log(self, step: int, metrics: Mapping[str, float], show: Sequence[str] = ()) -> dict[str, float]:
        """Append a line to metrics.jsonl, and return it; `show` names the numbers for the progress display."""
        self.require_folder()
        row = {"step": step, "seconds": round(self.seconds, 3), **metrics}
        with self._metrics.open("a", encoding="utf-8") as stream:
            stream.write(dumps(row) + "\n")
        if show:
            self._shown = {name: metrics[name] for name in show}
        return row

    def logged(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        return _rows(self._metrics, "step")

    @property
    def seconds(self) -> float:
        """Seconds of work on this run, those before an interruption included."""
        return self.seconds_before + time.perf_counter() - self.started

    def forget_after(self, step: int) -> None:
        """Drop metrics and samples of steps that a resume will repeat, and a line that an interruption cut short."""
        for path, key in ((self._metrics, "step"), (self.folder / "samples.jsonl", "iteration")):
            if path.exists():
                kept = [row for row in _rows(path, key) if row[key] <= step]
                scratch = path.with_name(path.name + ".tmp")
                scratch.write_text("".join(dumps(row) + "\n" for row in kept), encoding="utf-8")
                os.replace(scratch, path)
                if kept and path == self._metrics:
                    self.seconds_before = kept[-1]["seconds"]

    def finish(self, **results: Any) -> dict[str, Any]:
        """Write done.json, which makes the run whole; then drop checkpoints, and say which rows were not used, if any.

        Killed before it is written, the run resumes from its checkpoint; after, there is nothing left to do.
        """
        self.require_folder()
        made = _made(self.folder)
        for path in (*made, *sorted({p.parent for p in made}), self.folder):
            sync(path)
        # The log is no result: without it a run is still whole.
        files = {p.relative_to(self.folder).as_posix(): p.stat().st_size for p in made if p != self._metrics}
        done = {
            "stage": self.stage, "seconds": round(self.seconds, 3), "peak_memory_gib": peak_memory_gib(),
            "files": files, "warnings": self.warnings, **results,
        }  # fmt: skip
        write_json(self.folder / "done.json", done)
        _tidy(self.folder)
        unlock(self.folder)
        self._say_lost(results.get("dropped", {}))
        return done

    def _say_lost(self, rows: Mapping[str, int]) -> None:
        """Which rows are not used, once."""
        if (lost := [f"{number:,} {why}" for why, number in rows.items() if number]) and lost != self._lost:
            self.say(f"rows dropped or changed: {'; '.join(lost)}")
            self._lost = lost

    def require_folder(self) -> None:
        """Write nothing more into a folder that is another one by now.

        Raises:
            ValueError: if the folder was moved, deleted or emptied since the run was opened.
        """
        if not (self.folder / "inputs.json").exists() or self.folder.stat().st_ino != self._inode:
            raise ValueError(
                f"output: {self.folder} was moved, deleted or emptied while the run was at work; nothing more is "
                "written there. Delete what is left of it, if anything, and run the stage again"
            )

    def warn(self, line: str) -> None:
        """Say a warning, and keep it for done.json."""
        self.warnings.append(line)
        self.say(f"warning: {line}")

    def say(self, line: str) -> None:
        """A line for whoever watches, under the stage's name."""
        tell(f"{self.stage}: {line}")


def _sum(content: Any) -> str:
    return hashlib.sha256(dumps(content, sort_keys=True).encode()).hexdigest()


def _rows(path: Path, key: str) -> list[dict[str, Any]]:
    """The rows of a file that is written line by line. The last line may be cut short; it is left out.

    Raises:
        ValueError: if another line is damaged, or lacks the `key`.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row[key] + 0
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise ValueError(
                f"{path}:{number}: is damaged; mend the line, or delete {path.parent} to run the stage from its start"
            ) from None
        rows.append(row)
    return rows


def _numbers(shown: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def done(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run, or None.

    Raises:
        ValueError: if done.json is damaged.
    """
    path = folder / "done.json"
    if not path.exists():
        return None
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("files", {}), dict):
        raise ValueError(f"{path}: is damaged, it holds no results; delete it, and run the stage again")
    return results


def _made(folder: Path) -> list[Path]:
    """The files that a run has made: those at its top, and its model folders'."""
    own = [p for p in folder.iterdir() if p.is_file() and p.name not in ("done.json", *OURS) and p.suffix != ".tmp"]
    models = {p.parent for p in folder.glob("*/*.safetensors") if p.parent.name not in CHECKPOINTS}
    return sorted([*own, *(p for model in models for p in model.iterdir() if p.is_file())])


def lost_file(folder: Path) -> str | None:
    """The first file of a finished run that is gone or has another size now, and what is the matter with it."""
    for name, size in ((done(folder) or {}).get("files") or {}).items():
        path = folder / name
        if not path.exists():
            return f"{path} is gone"
        beside_weights = path.parent != folder and path.suffix != ".safetensors"  # people edit these texts
        if path.stat().st_size != size and not beside_weights:
            return f"{path} is cut short or changed"
    return None


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished run needs, and what a kill has left behind."""
    for path in (*(folder / name for name in CHECKPOINTS), *_left(folder)):
        remove(path)
    remove(_aside(folder))


def _left(folder: Path) -> list[Path]:
    """Half-written files and folders of a run, and what was being deleted of the one before it."""
    inside = [p for p in folder.glob("*.tmp") if p.name not in CHECKPOINTS]
    return [*inside, folder.with_name(f".{folder.name}.tmp")]


def _aside(folder: Path) -> Path:
    """Where the run waits that another one replaces."""
    return folder.with_name(f".{folder.name}.before")


def _discard(folder: Path) -> None:
    """Delete a run folder so that a kill leaves all of it under its name, or nothing."""
    scratch = folder.with_name(f".{folder.name}.tmp")
    remove(scratch)
    os.replace(folder, scratch)
    remove(scratch)


def dropped(rows: Mapping[str, int], **others: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason of the rows that a stage did not use; those of its other inputs have the setting's name."""
    named = {f"{why} in {name}": number for name, counts in others.items() for why, number in counts.items()}
    return {why: number for why, number in {**rows, **named}.items() if number}


def inputs_of(config: StageConfig, *names: str) -> dict[str, Path]:
    """The named settings that are set and lie on this machine, as paths; hub ids are named by themselves."""
    values = {key: value for name in names for key, value in named(name, getattr(config, name)).items()}
    return {name: Path(value) for name, value in values.items() if value is not None and not is_hub_id(str(value))}


def open_run(stage: str, config: StageConfig, inputs: Mapping[str, Path]) -> Run | None:
    """Open a run folder for work; None if it holds the finished run of these very settings and inputs.

    Raises:
        ValueError: if an input is missing, the folder holds another run and `overwrite` is off, or no run at all, or
            another process is at work in it.
    """
    identity = _identity(stage, config, inputs)
    for name, path in inputs.items():
        if (path.parent / "inputs.json").exists() and done(path.parent) is None:
            note = f"{stage}: {name}: {path} belongs to a run that is not finished"
            tell(note)
    place = config.output.resolve()  # a link stays where it is; what it points to is moved and made
    folder = config.output if config.output.name and config.output.absolute() == place else place
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is a file; choose a folder")
    if (folder / "inputs.json").exists():
        lock(folder)
    try:
        held = _make_room(folder, identity, config)
        if held and done(folder) is not None and not _is_lost(stage, folder, config.dry_run):
            if not config.dry_run:
                _tidy(folder)
            unlock(folder)
            return None
    except ValueError:
        unlock(folder)
        raise
    if config.dry_run:
        unlock(folder)
        return Run(stage, folder, dry=True)
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder)
    write_json(  # marks it ours
        folder / "inputs.json", {"identity": identity, "paths": {name: str(path) for name, path in inputs.items()}}
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    for path in _left(folder):
        remove(path)
    for old in (p for p in folder.glob("*.old") if p.name not in CHECKPOINTS):  # killed while it was being replaced
        if old.with_suffix("").exists():
            remove(old)
        else:
            os.replace(old, old.with_suffix(""))
    run = Run(stage, folder)
    if not any((folder / name).exists() for name in CHECKPOINTS):
        run.forget_after(-1)  # without a checkpoint the work begins anew
    return run


def _identity(stage: str, config: StageConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What a run belongs to: its stage, its settings and its inputs' contents. Where an input lies does not matter."""
    for name, path in inputs.items():
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{name}: {path}: no such file or folder")
    values: dict[str, Any] = {}
    for name, value in flat(to_plain(config)).items():
        values |= named(name, value) if name in config.INPUTS else {name: value}
    settings = {name: value for name, value in values.items() if name not in inputs}
    return {"stage": stage, "settings": settings, "inputs": {name: fingerprint(path) for name, path in inputs.items()}}


def identity_of(folder: Path) -> dict[str, Any]:
    """The `stage`, `settings` and `inputs` that a run folder belongs to.

    Raises:
        ValueError: if inputs.json is damaged.
    """
    path = folder / "inputs.json"
    content = read_json(path)
    identity = content.get("identity") if isinstance(content, dict) else None
    kinds = {"stage": str, "settings": dict, "inputs": dict}
    if not isinstance(identity, dict) or not all(isinstance(identity.get(k), kind) for k, kind in kinds.items()):
        raise ValueError(f"{path}: is damaged, it does not say what the run is; delete the folder, and run it again")
    return identity | {"settings": {k: v for k, v in identity["settings"].items() if k not in NO_RESULT}}


def _known(folder: Path) -> dict[str, Any] | None:
    """The identity of the run that a folder holds; None of a folder that is missing or as good as empty.

    Raises:
        ValueError: if it holds something else. What is not ours is never deleted.
    """
    if (folder / "inputs.json").exists():
        return identity_of(folder)
    if folder.exists() and any(p.name != "inputs.json.tmp" for p in folder.iterdir()):
        raise ValueError(f"output: {folder} holds files that are not a run of this project; choose another")
    return None


def _make_room(folder: Path, identity: dict[str, Any], config: StageConfig) -> bool:
    """Whether a folder holds the run that is wanted.

    Another run is moved aside or, if it has not begun its work, deleted; the wanted one is brought back if it waits
    aside. A dry run changes nothing.

    Raises:
        ValueError: if another run has begun its work, or waits for one that was never finished, and `overwrite` is off.
    """
    here, aside = _known(folder), _aside(folder)
    if here == identity:
        return True
    begun = here is not None and any(p.name not in OURS and p.suffix != ".tmp" for p in folder.iterdir())
    finished = here is not None and done(folder) is not None
    waiting = None if finished else _known(aside)  # else what is there was being deleted when the process was killed
    lost, where = (here, folder) if begun else (waiting, aside)
    if lost not in (None, identity) and not config.overwrite:
        back = f", which brings back the run that waits in {aside}" if waiting == identity else ""
        raise ValueError(f"output: {where} holds {_difference(lost, identity)}; choose another, or set overwrite{back}")
    if config.dry_run:
        return False
    if finished:
        remove(aside)
    if begun and waiting is None:
        _move_aside(folder, aside)
    elif here or (waiting and folder.exists()):  # it never began, or is itself an unfinished replacement
        _discard(folder)
    if waiting != identity:
        return False
    os.replace(aside, folder)
    lock(folder)
    tell(f"{folder}: the run that waited in {aside} is back")
    return True


def _move_aside(folder: Path, aside: Path) -> None:
    try:
        os.replace(folder, aside)
    except OSError as error:  # a disk of its own is mounted there
        reason = error.strerror
        raise ValueError(f"output: {folder} cannot be moved to {aside}: {reason}; choose another folder") from None
    moved = f"{folder}: the run that was here waits in {aside} until the new one is done"
    tell(moved)


def _is_lost(stage: str, folder: Path, dry: bool) -> bool:
    """Whether a finished run has lost a file; it is then no longer done, and says so."""
    if lost := lost_file(folder):
        tell(f"{stage}: {lost}, so this run is done again")
        if not dry:
            (folder / "done.json").unlink()
    return lost is not None


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before["stage"] != now["stage"]:
        return f"a run of stage {before['stage']!r}"
    for part in ("settings", "inputs"):
        for key in sorted({*before[part], *now[part]}, key=lambda key: (not key.endswith(".name"), key)):  # kinds first
            old, new = before[part].get(key), now[part].get(key)
            if old != new:
                return f"a run with other {part}: {key} " + (
                    "differs" if part == "inputs" else f"was {old!r}, is now {new!r}"
                )
    return "another run"
