"""TRL's trainers as processes in environments of their own, one iteration or optimizer step at a time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from results import Row

from tutelage.models.precision import has_bf16_units

HERE = Path(__file__).parent
Peer = Callable[[], list[float]]  # goes on by one step and tells the step's seconds, and what else its script tells
Ways = dict[str, dict[str, Any]]  # settings of a peer by name


class PeerError(Exception):
    """Why a peer cannot be measured."""


def peer_python(version: str) -> Path:
    """The interpreter of the environment with this TRL, made if it is not there. Raises PeerError if it cannot be."""
    environment = HERE / ".peers" / f"trl-{version}"
    python, ready = environment / "bin" / "python", environment / "ready"
    if not ready.exists():
        print(f"making {environment} (1.5 GB)", file=sys.stderr)
        make = [sys.executable, "-m", "venv", "--clear", str(environment)]
        pins, pinned = str(HERE.parent / "constraints.txt"), f"torch=={torch.__version__.split('+')[0]}"
        install = [str(python), "-m", "pip", "install", pinned, f"trl=={version}.*", "--constraint", pins]
        for command in (make, install):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise PeerError(([done.stdout, *done.stderr.split("ERROR: ")][-1]).strip())
        ready.touch()
    return python


@contextlib.contextmanager
def trl(version: str, script: str, folder: Path, settings: dict[str, Any]) -> Iterator[Peer]:
    """A script beside this one, which trains with `settings` on what is in `folder`, waiting to be called."""
    command = [peer_python(version), HERE / script, folder, torch.get_num_threads(), json.dumps(settings)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(list(map(str, command)), text=True, stderr=log,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

        def say(line: str) -> str:
            assert process.stdin is not None and process.stdout is not None  # noqa: PT018
            with contextlib.suppress(BrokenPipeError):
                print(line, end="", file=process.stdin, flush=True)
            if answer := process.stdout.readline().strip():
                return answer
            log.seek(0)
            raise PeerError((log.read().strip() or "it said nothing").splitlines()[-1])

        try:
            say("")
            yield lambda: [float(number) for number in say("go\n").split()]
        finally:
            process.kill()
            process.communicate()


def precisions(**ways: dict[str, Any]) -> Ways:
    """Settings by name, each in fp32 and, where there are units for it, in bf16."""
    kinds = ("fp32", "bf16") if has_bf16_units() else ("fp32",)
    return {f"{kind}, {name}": {**way, "bf16": kind == "bf16"} for name, way in ways.items() for kind in kinds}


def fastest(
    stack: contextlib.ExitStack,
    row: Row,
    script: tuple[str, str],
    folder: Path,
    ways: Ways,
    pieces: Callable[[list[float]], float],
) -> tuple[Peer | None, dict[str, list[list[float]]]]:
    """The fastest of some ways to set a peer, as `fastest_of_each` finds it, and what all answered."""
    (peer,), answers = fastest_of_each(stack, [(row, ways)], script, folder, pieces)
    return peer, answers


def fastest_of_each(
    stack: contextlib.ExitStack,
    choices: Sequence[tuple[Row, Ways]],
    script: tuple[str, str],
    folder: Path,
    pieces: Callable[[list[float]], float],
) -> tuple[list[Peer | None], dict[str, list[list[float]]]]:
    """For each row the fastest of its ways to set a peer, left running as long as the stack is open, and what all
    answered. A way that several rows name runs once, and may be the fastest of several.

    Each takes a step to warm up and then two more, in turn, but one that is behind by a tenth after the first of them
    in every row; `pieces` says how much work an answer is for. What was tried, and what failed, is noted.
    """
    version, name = script
    open_peers: dict[str, tuple[Peer, contextlib.ExitStack]] = {}
    answers: dict[str, list[list[float]]] = defaultdict(list)
    speeds: dict[str, float] = {}
    ways = {way: values for _, own in choices for way, values in own.items()}
    for _ in range(3):
        for way, values in ways.items():
            try:
                if not answers[way]:
                    process = contextlib.ExitStack()
                    open_peers[way] = process.enter_context(trl(version, name, folder, values)), process
                answers[way].append(open_peers[way][0]())
            except PeerError as error:
                if way in open_peers:
                    open_peers.pop(way)[1].close()
                for row, own in choices:
                    if way in own:
                        row.notes.append(f"peer not available ({way}): {error}")
        speeds = {way: max(pieces(a) / a[0] for a in answers[way][1:] or answers[way]) for way in open_peers}
        hopeful: set[str] = set()
        for _, own in choices:
            most = max((speeds[way] for way in own if way in speeds), default=0.0)
            hopeful |= {way for way in own if way in speeds and (len(answers[way]) == 1 or speeds[way] > 0.9 * most)}
        ways = {way: values for way, values in ways.items() if way in hopeful}
    chosen: list[Peer | None] = []
    kept: set[str] = set()
    for row, own in choices:
        reached = {way: speeds[way] for way in own if way in speeds}
        if not reached:
            chosen.append(None)
            continue
        best = max(reached, key=reached.__getitem__)
        kept.add(best)
        chosen.append(open_peers[best][0])
        tried = ", ".join(f"{way} {speed:,.4g}" for way, speed in reached.items())
        row.notes.append(f"peer is TRL {version}, {best} (in the warm-up, {row.unit}: {tried})")
    for way, (_, process) in open_peers.items():
        if way in kept:
            stack.push(process)
        else:
            process.close()
    return chosen, answers
