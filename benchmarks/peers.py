"""TRL's trainers as processes in environments of their own, one iteration or optimizer step at a time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

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


def precisions(
    stack: contextlib.ExitStack, version: str, script: str, folder: Path, settings: dict[str, Any]
) -> dict[str, Peer]:
    """The same peer in fp32 and in bf16, as long as the stack is open."""
    return {
        name: stack.enter_context(trl(version, script, folder, {**settings, "bf16": name == "bf16"}))
        for name in ("fp32", "bf16")
    }


def fastest(steps: Sequence[dict[str, list[float]]], work: int) -> tuple[str, str]:
    """Of peers that took their first steps in turn: the fastest one's name, and all speeds in `work` per second."""
    seconds = {name: min(step[name][0] for step in steps[1:]) for name in steps[0]}
    return min(seconds, key=seconds.__getitem__), ", ".join(f"{n} {work / s:.1f}" for n, s in seconds.items())
