"""A sweep: one stage at several values of its settings, each in a run folder of its own, several at a time.

Each run is the stage's own command in a process of its own, so that it resumes, and is skipped once done, by itself.

    tutelage sweep --config beta.yaml --output runs/beta      (beta.yaml: `command`, `settings`, `over`)

    points/NAME/      the run folder of each           settings/NAME.yaml, logs/NAME.log     what it was told, and said
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from tutelage.runs import Run, open_run
from tutelage.settings.common import flat
from tutelage.settings.sweep import SweepConfig
from tutelage.terminal import short

LONGEST = 1000  # characters of a log's line that an error shows


def run(config: SweepConfig) -> None:
    """Make the runs, those that are done already skipped.

    Raises:
        ValueError: naming the first run that failed and its log, once those under way have ended. What is done stays.
    """
    if not re.fullmatch("[a-z]+", config.command):
        raise ValueError(f"command={short(config.command)} is no command of a stage, as `online` is")
    opened = open_run("sweep", config, inputs(config))
    if opened is None:
        return
    jobs, threads = shares(config)
    if config.dry_run:
        make_all(config, opened, jobs, threads)
    opened.begin(
        f"{len(config.points)} runs of {config.command}, {jobs} at a time, with {threads} threads each: "
        f"{', '.join(config.points)}"
    )
    make_all(config, opened, jobs, threads)
    points = {name: {"settings": values, "folder": f"points/{name}"} for name, values in config.points.items()}
    opened.finish(command=config.command, over=list(config.over), points=points)


def inputs(config: SweepConfig) -> dict[str, Path]:
    """Whatever the settings name that lies on this machine: if its content changes, this is another sweep."""
    named: Mapping[str, Any] = flat({"settings": config.settings, "over": config.over})
    return {name: Path(value) for name, value in named.items() if isinstance(value, str) and _is_there(value)}


def _is_there(value: str) -> bool:
    try:
        return os.sep in value and Path(value).exists()
    except (OSError, ValueError):
        return False


def shares(config: SweepConfig) -> tuple[int, int]:
    """How many runs at a time, and the threads of each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(config.jobs or (1 if torch.cuda.is_available() else cores), len(config.points))
    return jobs, max(1, cores // jobs)


def make_all(config: SweepConfig, opened: Run, jobs: int, threads: int) -> None:
    """Make the runs, so many at a time. After one has failed no other is begun.

    Raises:
        ValueError: naming the run.
    """
    began = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        futures: dict[Future[None], str] = {
            pool.submit(make, config, name, opened.folder, threads): name for name in config.points
        }
        ended = as_completed(futures)
        for _ in opened.track(range(len(futures))):
            future = next(ended)
            if future.exception() is not None:
                pool.shutdown(wait=True, cancel_futures=True)
                future.result()
            act = "checked" if config.dry_run else "done"
            opened.say(f"{futures[future]}: {act} after {time.perf_counter() - began:.0f} s")


def make(config: SweepConfig, name: str, folder: Path, threads: int) -> None:
    """One run, in a process of its own; in a dry run it only checks.

    Raises:
        ValueError: naming the run, with the last line that it said.
    """
    settings = yaml.safe_dump({"seed": config.seed} | config.settings | config.points[name], sort_keys=False)
    with TemporaryDirectory() as scratch:
        place = Path(scratch) if config.dry_run else folder
        file, log = place / "settings" / f"{name}.yaml", place / "logs" / f"{name}.log"
        for path in (file, log):
            path.parent.mkdir(exist_ok=True)
        file.write_text(settings, encoding="utf-8")
        command = [sys.executable, "-m", "tutelage", config.command, "--config", str(file)]
        command += ["--output", str(folder / "points" / name), *(["--dry-run"] if config.dry_run else [])]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with log.open("wb") as stream:
            code = subprocess.run(command, stdout=stream, stderr=stream, env=environment, check=False).returncode
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
            where = "" if config.dry_run else f"; {log} has all of it"
            raise ValueError(f"{name}: `tutelage {config.command}` ended with {code}: {lines[-1][:LONGEST]}{where}")
