"""Load on the labeling server: many labelers at once, each in a loop of page, sometimes draft, submit.

    python benchmarks/labeling_load.py [--database URL] [--labelers 40] [--seconds 60] [--think 1]

The server is `tutelage label serve` in a process of its own, on a temporary workspace of ranking tasks with 4 to 9
completions of 50 to 150 words. The labelers are coroutines of this process that speak HTTP/1.1 over a kept connection
each, written out on asyncio's streams, so that the client takes a few percent of a core. As browsers do, they follow
the redirect to the next task after submitting. After the last round the database is compared with what the server
acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from urllib.parse import urlencode

from sqlalchemy import select

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import accounts
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.answers import FLAGS
from tutelage.labeling.store.database import Workspace, open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import answers, assignments, tasks
from tutelage.labeling.store.tasks import Terms, add_task

WORDS = "the a of and to in that it was for on with as his they at be this from have or by one had not but what".split()
DRAFTS = 0.3  # share of rounds in which an unfinished answer is saved
CAPACITY = 2


class Labeler:
    """A person with a session and one connection; `seconds` holds the time of each request by its name."""

    def __init__(self, port: int, token: str, seed: int) -> None:
        self.port = port
        self.head = f"Host: 127.0.0.1:{port}\r\nCookie: tutelage_session={token}\r\n"
        self.rng = Random(seed)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.errors: Counter[str] = Counter()
        self.acknowledged: list[int] = []

    async def work(self, until: float, think: float) -> None:
        """Answer tasks until the time is over or none is left."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.sleep(self.rng.uniform(0, max(think, 0.2)))
        _, place, _ = await self.ask("next", "POST", "/next", {})
        while time.perf_counter() < until:
            if place == "/":
                self.errors["no task left"] += 1
                break
            status, _, page = await self.ask("page", "GET", place)
            key, k = re.search(rb'name="key" value="([^"]+)"', page), page.count(b'class="card"')
            if status != 200 or key is None or not 4 <= k <= 9:
                self.errors[f"page {status}"] += 1
                continue
            form = self.answer(k) | {"key": key[1].decode(), "active_seconds": "12.5"}
            if self.rng.random() < DRAFTS:
                status, _, _ = await self.ask("draft", "POST", f"{place}/draft", form)
                self.errors[f"draft {status}"] += status != 204
            await asyncio.sleep(think * self.rng.uniform(0.5, 1.5))
            status, after, _ = await self.ask("submit", "POST", f"{place}/submit", form)
            if status == 303:
                self.acknowledged.append(int(place.rsplit("/", 1)[1]))
                place = after
            self.errors[f"submit {status}"] += status != 303
        self.writer.close()

    def answer(self, k: int) -> dict[str, str]:
        """A whole form: a permutation or a tie, ratings, a flag, a note."""
        form = {f"rank_{i}": str(self.rng.randint(1, k)) for i in range(1, k + 1)}
        form |= {f"quality_{i}": str(self.rng.randint(1, 7)) for i in range(1, k + 1)}
        return form | {
            "flags_1": self.rng.choice(list(FLAGS)),
            "annotations": "ambiguous",
            "note": "The last is short.",
        }

    async def ask(
        self, name: str, method: str, place: str, form: dict[str, str] | None = None
    ) -> tuple[int, str, bytes]:
        """One request: status, where it redirects to, body."""
        body = "" if form is None else urlencode(form)
        kind = (
            ""
            if form is None
            else f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
        )
        began = time.perf_counter()
        self.writer.write(f"{method} {place} HTTP/1.1\r\n{self.head}{kind}\r\n{body}".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        content = await self.reader.readexactly(int(length[1])) if length else b""
        self.seconds[name].append(time.perf_counter() - began)
        location = re.search(rb"(?i)\r\nlocation: ([^\r]+)", head)
        return int(head[9:12]), location[1].decode() if location else "", content


def text(rng: Random) -> str:
    """50 to 150 words in a few paragraphs."""
    return " ".join(rng.choice(WORDS) + (".\n\n" if rng.random() < 0.02 else "") for _ in range(rng.randint(50, 150)))


def fill(workspace: Workspace, labelers: int, number: int) -> list[str]:
    """Tasks for 2 labelers each, and a session of each labeler: their tokens."""
    rng = Random(0)
    with workspace.write() as connection:
        ensure_instructions(connection)
        for i in range(number):
            prompt = Prompt(id=f"p{i}", text=text(rng))
            add_prompts(connection, [prompt])
            written = [Completion(text=f"{j} {text(rng)}", policy="ppo") for j in range(4 + i % 6)]
            add_task(connection, "ranking", prompt, written, Terms(capacity=CAPACITY))
        people = [accounts.add_person(connection, workspace, NewPerson(f"Labeler {i}")) for i in range(labelers)]
        return [accounts.start_session(connection, person) for person in people]


def check(workspace: Workspace, acknowledged: list[int]) -> list[str]:
    """What is wrong in the database; nothing, it is hoped."""
    with workspace.read() as connection:
        stored = list(connection.execute(select(answers.c.assignment)).scalars())
        held = connection.execute(select(assignments.c.task, assignments.c.person)).all()
        wanted = dict(connection.execute(select(tasks.c.id, tasks.c.capacity)).all())
    of_task = Counter(task for task, _ in held)
    wrong = {
        "acknowledged but not stored": set(acknowledged) - set(stored),
        "stored but not acknowledged": set(stored) - set(acknowledged),
        "stored twice": [a for a, n in Counter(stored).items() if n > 1],
        "acknowledged twice": [a for a, n in Counter(acknowledged).items() if n > 1],
        "tasks over their capacity": [t for t, n in of_task.items() if n > wanted[t]],
        "met twice": [pair for pair, n in Counter(map(tuple, held)).items() if n > 1],
    }
    return [f"{what}: {len(which)}" for what, which in wrong.items() if which]


def processor_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run(labelers: list[Labeler], seconds: float, think: float) -> None:
    until = time.perf_counter() + seconds
    await asyncio.gather(*(labeler.work(until, think) for labeler in labelers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--database", help="an empty PostgreSQL database's URL (default: SQLite)")
    parser.add_argument("--labelers", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--think", type=float, default=1, help="mean seconds between page and answer")
    parser.add_argument("--tasks", type=int, help="default: 100 for each second")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        folder = Path(scratch) / "workspace"
        workspace = open_workspace(folder, a.database)
        tokens = fill(workspace, a.labelers, a.tasks or int(100 * a.seconds))
        workspace.close()
        command = [sys.executable, "-m", "tutelage", "label", "serve", str(folder), "--port", str(port)]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if server.poll() is not None:
                    print(f"the server ended with {server.returncode}", file=sys.stderr)
                    return 1
                time.sleep(0.1)
            labelers = [Labeler(port, token, i) for i, token in enumerate(tokens)]
            load, before, began = os.getloadavg()[0], processor_seconds(server.pid), time.perf_counter()
            own = time.process_time()
            asyncio.run(run(labelers, a.seconds, a.think))
            took = time.perf_counter() - began
            used, own = processor_seconds(server.pid) - before, time.process_time() - own
            loads = f"{load:.1f} before, {os.getloadavg()[0]:.1f} after"
        finally:
            server.terminate()
            server.wait(30)
        workspace = open_workspace(folder)
        acknowledged = [number for labeler in labelers for number in labeler.acknowledged]
        wrong = check(workspace, acknowledged)
        kind = workspace.engine.dialect.name
        workspace.close()
    print(f"{a.labelers} labelers, {took:.0f} s, think {a.think:g} s, {kind}; load average {loads}")
    print(f"{'':8}{'requests':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}")
    for name in ("next", "page", "draft", "submit"):
        times = sorted(1000 * s for labeler in labelers for s in labeler.seconds[name])
        p50, p95, p99 = (times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.95, 0.99))
        print(f"{name:8}{len(times):>10}{p50:>10.0f}{p95:>10.0f}{p99:>10.0f}")
    errors = sum((labeler.errors for labeler in labelers), Counter())
    print(f"{60 * len(acknowledged) / took:.0f} submissions a minute; errors: {dict(+errors) or 'none'}")
    print(f"processor: server {used / took:.0%} of a core, labelers {own / took:.0%}")
    print(
        f"database: {len(acknowledged)} acknowledged, " + ("; ".join(wrong) or "each stored once, none over capacity")
    )
    return 1 if wrong or +errors else 0


if __name__ == "__main__":
    sys.exit(main())
