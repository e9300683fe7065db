"""TRL's trainers as processes in environments of their own, one iteration or optimizer step at a time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from results import Row

HERE = Path(__file__).parent
Peer = Callable[[], list[float]]  # goes on by one step and tells the step's seconds, and what else its script tells


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


def precisions(**ways: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by name, each in fp32 and in bf16."""
    kinds = ("fp32", "bf16")
    return {f"{kind}, {name}": {**way, "bf16": kind == "bf16"} for name, way in ways.items() for kind in kinds}


def fastest(
    stack: contextlib.ExitStack,
    row: Row,
    script: tuple[str, str],
    folder: Path,
    ways: dict[str, dict[str, Any]],
    pieces: Callable[[list[float]], float],
) -> tuple[Peer | None, dict[str, list[list[float]]]]:
    """The fastest of some ways to set a peer, left running as long as the stack is open, and what all answered.

    Each takes a step to warm up and then two more, in turn, but one that is behind by a tenth after the first of them;
    `pieces` says how much work an answer is for. What was tried, and what failed, is noted.
    """
    version, name = script
    open_peers: dict[str, tuple[Peer, contextlib.ExitStack]] = {}
    answers: dict[str, list[list[float]]] = defaultdict(list)
    speeds: dict[str, float] = {}
    for _ in range(3):
        for way, values in ways.items():
            try:
                if not answers[way]:
                    own = contextlib.ExitStack()
                    open_peers[way] = own.enter_context(trl(version, name, folder, values)), own
                answers[way].append(open_peers[way][0]())
            except PeerError as error:
                if way in open_peers:
                    open_peers.pop(way)[1].close()
                row.notes.append(f"peer not available ({way}): {error}")
        speeds = {way: max(pieces(a) / a[0] for a in answers[way][1:] or answers[way]) for way in open_peers}
        hopeful = [way for way in speeds if len(answers[way]) == 1 or speeds[way] > 0.9 * max(speeds.values())]
        ways = {way: ways[way] for way in hopeful}
    if not speeds:
        return None, answers
    best = max(speeds, key=speeds.__getitem__)
    for way in set(open_peers) - {best}:
        open_peers[way][1].close()
    stack.push(open_peers[best][1])
    tried = ", ".join(f"{way} {speed:,.4g}" for way, speed in speeds.items())
    row.notes.append(f"peer is TRL {version}, {best} (in the warm-up, {row.unit}: {tried})")
    return open_peers[best][0], answers
