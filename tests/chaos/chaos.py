"""Kill runs at any moment, break or delete their files, fill their disk: does the same command end with the same bytes?

    make chaos                     everything: some thousand runs, half an hour
    make chaos ONLY=sft KILLS=5    one stage, five kills of either kind

Each kill is SIGKILL of a real process, at a random moment or right before a chosen change of the disk. Processes are
forked from one that has torch loaded, so a small run takes about a second. A run must then end with models, optimizer
states, metrics, samples and results that are byte for byte those of a run that nobody killed (times left out), and
leave nothing else behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from scenarios import NAMES, RESUMED, prepare, scenario
from tutelage import runs

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")
TIMES = ("seconds", "peak_memory_gib")
CLOCK = re.compile(r"\b1\.\d+e\+09\b|\b1\d{9}\.\d+\b")  # seconds since 1970, as SQLite dumps them
ERROR = "error: "  # begins the line of a user's error
DAMAGES = ("bit flip", "truncation", "deleted file", "deleted folder")


def fork(work: Callable[[], None], log: Path, kill_after: float | None = None) -> int:
    """A process that does the work: its exit code, 2 for a user's error, or −9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 0
        try:
            work()
        except (ValueError, OSError) as error:  # what the command line says in one line
            print(f"{ERROR}{error}", file=sys.stderr)
            code = 2
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Case:
    """One scenario in a folder of its own, and the run that nobody killed."""

    def __init__(self, name: str, data: Path, root: Path) -> None:
        self.name, self.data, self.root = name, data, root
        self.log = root / f"{name}.log"
        self.changes = self.count_changes()
        took = []
        for _ in range(2):  # the first has more to load
            began = time.perf_counter()
            assert self.go() == 0, self.log.read_text()
            took.append(time.perf_counter() - began)
        self.seconds = min(took)
        self.reference = self.outcome()

    @property
    def output(self) -> Path:
        return self.root / self.name / "run"

    def work(self, hook: Callable[[str, tuple], None] | None = None) -> None:
        """The stage, in a process of its own; the last checkpoint is kept for comparison."""
        run, config = scenario(self.name, self.data, self.output)
        tidy = runs._tidy

        def keep(folder: Path) -> None:
            if (folder / "state").exists() and not (folder.parent / "kept").exists():
                shutil.copytree(folder / "state", folder.parent / "kept.part", dirs_exist_ok=True)
                os.rename(folder.parent / "kept.part", folder.parent / "kept")
            tidy(folder)

        runs._tidy = keep
        torch.manual_seed(Random().randrange(1 << 30))  # a new process has another generator
        if hook is not None:
            sys.addaudithook(hook)
        run(config)

    def clear(self) -> None:
        shutil.rmtree(self.root / self.name, ignore_errors=True)
        self.output.parent.mkdir(parents=True)

    def go(self, kill_after: float | None = None, kill_before: int | None = None) -> int:
        """Run from nothing, killed after so many seconds or before that change of the disk."""
        self.clear()
        return self.resume(kill_after, kill_before)

    def resume(
        self, kill_after: float | None = None, kill_before: int | None = None, delete_before: int | None = None
    ) -> int:
        seen = [0]

        def hook(event: str, arguments: tuple) -> None:
            if event in CHANGES and str(self.output) in str(arguments[0]):
                if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                    return
                if seen[0] == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen[0] += 1
                if seen[0] - 1 == delete_before:
                    shutil.rmtree(self.output)  # somebody else does

        return fork(lambda: self.work(hook), self.log, kill_after)

    def count_changes(self) -> int:
        """How often an undisturbed run changes the disk."""
        self.clear()
        counted = self.root / f"{self.name}.count"
        seen = [0]

        def hook(event: str, arguments: tuple) -> None:
            if event in CHANGES and str(self.output) in str(arguments[0]):
                seen[0] += event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))

        def work() -> None:
            self.work(hook)
            counted.write_text(str(seen[0]))

        assert fork(work, self.log) == 0, self.log.read_text()
        return int(counted.read_text())

    def outcome(self) -> dict[str, bytes]:
        """All files, by name, without the times in JSON and in a labeling workspace's database."""
        contents = {}
        for path in sorted(p for p in (self.root / self.name).rglob("*") if p.is_file()):
            content = path.read_bytes()
            if path.name in ("metrics.jsonl", "done.json"):
                lines = content.decode().splitlines() if path.name == "metrics.jsonl" else [content.decode()]
                rows = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
                content = json.dumps(rows).encode()
            elif path.suffix == ".db":
                with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as database:
                    content = CLOCK.sub("", "\n".join(database.iterdump())).encode()
            contents[path.relative_to(self.root / self.name).as_posix()] = content
        return contents

    def difference(self) -> str | None:
        """The first file that is not as in the undisturbed run, or None."""
        contents = self.outcome()
        names = sorted({*contents, *self.reference})
        wrong = [name for name in names if contents.get(name) != self.reference.get(name)]
        return f"{self.name}: {', '.join(wrong[:4])} differ" if wrong else None


def check(case: Case, code: int, what: str, failures: list[str]) -> None:
    """After a kill or a fault the same command must end with the same bytes."""
    printed = case.log.read_text(errors="replace")
    if code not in (0, 2, -signal.SIGKILL) or "Traceback" in printed:
        failures.append(f"{case.name}, {what}: exit code {code}: {printed[-300:]}")
    code = case.resume()
    if code != 0:
        failures.append(f"{case.name}, {what}: the same command ends with {code}: {case.log.read_text()[-300:]}")
    elif wrong := case.difference():
        failures.append(f"{what}: {wrong}")


def kills(case: Case, number: int, rng: Random) -> tuple[Counter[str], list[str]]:
    """`number` kills at random moments, one in three twice, and as many before changes of the disk."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    print(f"{case.name}: {case.seconds:.1f} s, {case.changes} changes of the disk", flush=True)
    for _ in range(number):
        moment, code = rng.uniform(0.01, case.seconds), 0
        while code == 0:  # done before its kill, as no two runs take the same time
            code = case.go(kill_after=moment)
            moment *= 0.7
        if code == -signal.SIGKILL and rng.random() < 1 / 3:
            code = case.resume(kill_after=rng.uniform(0.01, case.seconds))
        counts["killed at a random moment"] += 1
        check(case, code, "killed at a random moment", failures)
    places = rng.sample(range(case.changes), min(number, case.changes))
    for place in places:
        code = case.go(kill_before=place)
        counts["killed before a change of the disk"] += 1
        check(case, code, f"killed before change {place} of {case.changes}", failures)
    return counts, failures


def damage(case: Case, number: int, rng: Random) -> tuple[Counter[str], list[str]]:
    """Bit flips and truncations of one file of the newest checkpoint, files and folders deleted, after a kill."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    first = rng.randrange(len(DAMAGES))
    for k in range(first, first + number):
        how, files, code = DAMAGES[k % len(DAMAGES)], [], 0
        while not files:  # killed where there was nothing to break yet, or no longer
            code = case.go(kill_before=rng.randrange(case.changes // 2, case.changes))
            files = [p for p in case.output.glob("state/*") if p.stat().st_size]
        if how == "deleted folder":
            shutil.rmtree(case.output)
        else:
            break_file(rng.choice(files), how, rng)
        counts[how] += 1
        check(case, code, how, failures)
    return counts, failures


def deletions(case: Case, number: int, rng: Random) -> tuple[Counter[str], list[str]]:
    """The run folder deleted while the run works there: it ends in a line, and the same command begins anew."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for _ in range(number):
        place = rng.randrange(case.changes // 4, case.changes * 3 // 4)  # when the folder is there, and not yet done
        case.clear()
        code = case.resume(delete_before=place)
        what = f"folder deleted before change {place} of {case.changes}"
        lines = case.log.read_text(errors="replace").partition(ERROR)[2].splitlines()
        if code != 2 or len(lines) != 1:
            failures.append(f"{case.name}, {what}: exit code {code}, {lines}")
        counts["folder deleted at work"] += 1
        check(case, code, what, failures)
    return counts, failures


def break_file(path: Path, how: str, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "bit flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif how == "truncation":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        path.unlink()


def full_disks(case: Case, number: int, rng: Random) -> tuple[Counter[str], list[str]]:
    """The run on a disk of its own that is too small, or becomes read-only; then the disk is mended. Needs root."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    place = case.root / case.name
    size = sum(p.stat().st_size for p in case.root.glob(f"{case.name}/**/*") if p.is_file()) // 1024
    first = rng.randrange(3)
    for k in range(first, first + number):
        case.clear()
        small = f"size={rng.randint(8, max(16, 3 * size))}k"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", small, "tmpfs", place], capture_output=True).returncode:
            counts["no disk of its own (needs root)"] += 1
            continue
        try:
            if k % 3 == 2:
                how = "read-only disk"
                subprocess.run(["mount", "-o", "remount,size=100m", place], check=True)
                case.output.parent.mkdir(exist_ok=True)
                code = case.resume(kill_before=rng.randrange(case.changes))
                subprocess.run(["mount", "-o", "remount,ro", place], check=True)
                code = case.resume()
                subprocess.run(["mount", "-o", "remount,rw", place], check=True)
            else:
                how = "full disk"
                code = case.resume()
                subprocess.run(["mount", "-o", "remount,size=100m", place], check=True)
            counts[how if code == 2 else f"{how} that did not matter"] += 1
            shutil.rmtree(place / "kept.part", ignore_errors=True)
            check(case, code, how, failures)
        finally:
            subprocess.run(["umount", place], check=True)
    return counts, failures


def main() -> int:
    torch.set_num_threads(1)
    only, number = os.environ.get("ONLY") or "", int(os.environ.get("KILLS") or 50)
    seed = int(os.environ.get("SEED") or 0)
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    (root / "data").mkdir()
    prepare(root / "data")
    total: Counter[str] = Counter()
    failures: list[str] = []
    for name in [name for name in NAMES if only in name]:
        case, rng = Case(name, root / "data", root), Random(f"{name}/{seed}")
        fewer = max(1, number // 5)
        broken = fewer if name in RESUMED else 0
        for part, times in ((kills, number), (damage, broken), (deletions, fewer), (full_disks, fewer)):
            counts, wrong = part(case, times, rng)
            total.update(counts)
            failures += wrong
            print(f"{name}: {', '.join(f'{n} {what}' for what, n in counts.items())}; {len(wrong)} failed", flush=True)
            for line in wrong:
                print(f"    {line}", flush=True)
    print(f"all: {', '.join(f'{n} {what}' for what, n in total.items())}; {len(failures)} failed")
    shutil.rmtree(root)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
