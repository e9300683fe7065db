"""What `tutelage label …` does to a workspace: each command a function that prints what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage.data.candidates import read_candidates, read_completions
from tutelage.data.datasets import one_line, read_asked, read_prompts, write_jsonl
from tutelage.data.records import Arm, Completion, Prompt
from tutelage.data.strict_json import dumps
from tutelage.files import fingerprint
from tutelage.labeling.store import accounts, backup, exchange, overview
from tutelage.labeling.store.answers import TaskKind
from tutelage.labeling.store.database import Connection, Workspace, existing_workspace, open_workspace, record
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.intake import Rules, intake
from tutelage.labeling.store.prompts import add_prompts, erase_user, stored_prompts
from tutelage.labeling.store.tasks import (
    queue_comparisons,
    queue_known,
    queue_prompts,
    queue_rankings,
    queued_already,
)
from tutelage.terminal import message

Purpose = Literal["work", "screening", "gold"]
READERS = (
    "somebody is reading the database (a backup, say), and until they are done its files still hold the texts; "
    "waiting for that"
)


def serve(folder: Path, host: str, port: int, database: str | None) -> None:
    """Make the workspace if it is not there, and serve it until interrupted."""
    from tutelage.labeling.web.app import serve as serve_pages

    with closing(open_workspace(folder, database)) as workspace:
        serve_pages(workspace, host, port)


def invite(
    folder: Path, role: accounts.Role | None, arm: Arm | None, screening: bool, name: str | None, url: str
) -> None:
    """Print a one-time link: for a new person, or a new password for the person of that name.

    Raises:
        ValueError: if nobody has that name, or what a new person would be is said of somebody who is there.
    """
    if name is not None and (role or arm or screening):
        raise ValueError(
            f"--role, --arm and --screening are for a new person; {name!r} keeps their own: leave them out"
        )
    with closing(existing_workspace(folder)) as workspace, workspace.write() as connection:
        if name is not None:
            who = accounts.person_named(connection, name)
            if who is None:
                raise ValueError(f"nobody here is called {name!r}")
            token = accounts.invite(connection, who.role, who.arm, who.status, person=who.id)
        else:
            status: accounts.Status = "screening" if screening else "working"
            token = accounts.invite(connection, role or "labeler", arm or "training", status)
    print(f"{url.rstrip('/')}/join/{token}")


def _prompts(path: str) -> list[Prompt]:
    """The prompts of a file; says which rows hold none."""
    loaded = read_prompts(path)
    for reason, number in loaded.dropped.items():
        print(message(f"{reason}: {number} rows of {path} left out"))
    return loaded.records


@contextmanager
def _opened(folder: Path, dry_run: bool) -> Iterator[Workspace]:
    """A workspace to write into; a dry run says that nothing was kept."""
    with closing(existing_workspace(folder)) as workspace:
        if dry_run:
            workspace.rehearse()
        yield workspace
    if dry_run:
        print("dry run: nothing of this was written")


def take_prompts(
    folder: Path, path: str, rules: Rules, kinds: Sequence[TaskKind], output: Path | None, dry_run: bool = False
) -> None:
    """Take prompts in by the rules, and queue tasks of these kinds on those taken.

    What `output` names gets the prompts taken, with their splits: what `tutelage collect --prompts` reads.

    Raises:
        ValueError: if that file is there already.
    """
    if output and output.exists():
        raise ValueError(f"output: {output} is there already, with prompts taken before; choose another name")
    new = _prompts(path)
    with _opened(folder, dry_run) as workspace:
        with workspace.read() as connection:
            known, asked = stored_prompts(connection, new)
        taken = intake(asked, rules, known)  # which takes a while: nobody should wait to write
        entities = {f.id: f.entities for f in taken.report.findings["personal data"]}
        with workspace.write() as connection:
            ensure_instructions(connection)
            add_prompts(connection, taken.kept)
            add_prompts(connection, taken.quarantined, quarantine=entities)
            record(connection, "prompts taken", **taken.report.model_dump(mode="json"))
            queued = {kind: queue_prompts(connection, kind, taken.kept) for kind in kinds}
        if output and not dry_run:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(output, taken.kept)
        for line in taken.report.lines():
            print(message(line))
        if len(asked) < len(new):
            print(f"erased: {len(new) - len(asked)} left out, as their author asked")
        for kind, number in queued.items():
            print(f"{kind}: {number} tasks queued")


@dataclass(frozen=True)
class QueueRequest:
    """A file to queue: as tasks of which kind, for what, and by whom. None is an option that was not given.

    Raises:
        ValueError: if an option makes no sense for this kind and purpose, or is out of its range.
    """

    path: str
    kind: TaskKind = "ranking"
    purpose: Purpose = "work"
    baseline: str | None = None
    labelers: int | None = None
    overlap: float | None = None
    rate: bool | None = None
    arm: Arm | None = None

    def __post_init__(self) -> None:
        kind, work = self.kind, self.purpose == "work"
        for option, value, fits, whose in (
            ("--baseline", self.baseline, work and kind == "comparison", "comparisons"),
            ("--arm", self.arm, work and kind != "ranking",
             "other work than rankings, which go by their prompts' split"),
            ("--labelers", self.labelers, work, "work; every labeler meets screening and gold items"),
            ("--overlap", self.overlap, work and kind == "ranking", "rankings that are work"),
            ("--no-rate", self.rate, kind == "ranking", "rankings"),
        ):  # fmt: skip
            if value is not None and not fits:
                raise ValueError(f"{option} is for {whose}; this is {kind!r} for {self.purpose!r}: leave it out")
        if self.purpose == "gold" and kind != "ranking":
            raise ValueError(
                f"gold items are rankings, as nothing else is scored against a known answer; kind is {kind!r}"
            )
        labelers, overlap = self.shares
        if labelers < 1 or not 0 <= overlap <= 1:
            raise ValueError(f"labelers={labelers}, overlap={overlap}: expected 1 or more, and a share from 0 to 1")

    @property
    def shares(self) -> tuple[int, float]:
        """How many labelers a task gets, and the share of rankings that one more gets."""
        return 1 if self.labelers is None else self.labelers, 0.1 if self.overlap is None else self.overlap


def queue_file(folder: Path, request: QueueRequest, dry_run: bool = False) -> None:
    """Queue a file: candidates to rank, answers to compare, prompts to answer or label; or the same with known answers.

    Screening and gold items have their reference in the row: `ranks`, or `annotations` for labels.

    Raises:
        ValueError: if the file is malformed, a comparison has no baseline, or a known item no reference.
    """
    content, source = _content(request), fingerprint(Path(request.path))  # read before it keeps others waiting
    with _opened(folder, dry_run) as workspace:
        with workspace.write() as connection:
            ensure_instructions(connection)
            number, why_none = _queue(connection, request, content, source)
        print(f"{request.kind}: {number} tasks queued" + ("" if number else f"; {why_none}"))


def _content(request: QueueRequest) -> Any:
    """What the file of a request holds."""
    path, kind = request.path, request.kind
    if request.purpose != "work":
        return _known_items(path, kind)
    if kind == "ranking":
        return read_candidates(path)
    if kind != "comparison":
        return _prompts(path)
    if request.baseline is None:
        raise ValueError("a comparison needs --baseline, the model that the others are compared with")
    return [(prompt, _answers(path, row)) for prompt, row in read_asked(path, "answers")]


def _queue(connection: Connection, request: QueueRequest, content: Any, source: str) -> tuple[int, str]:
    """Queue what the file of a request holds; returns how many tasks, and why if there are none."""
    kind, purpose, rate = request.kind, request.purpose, request.rate is not False
    labelers, overlap = request.shares
    before = "this file was queued before, and its tasks stay as they were"
    if queued_already(connection, source if (purpose, kind) == ("work", "ranking") else f"{purpose} {source}", kind):
        return 0, before
    if purpose != "work":
        return queue_known(connection, kind, content, purpose, rate), before
    if kind == "ranking":
        return queue_rankings(connection, content, rate=rate, labelers=labelers, overlap=overlap), before
    if kind == "comparison":
        arm = request.arm or "heldout"
        number = queue_comparisons(connection, content, request.baseline or "", arm=arm, labelers=labelers)
        return number, "every answer equals the baseline's"
    number = queue_prompts(connection, kind, content, arm=request.arm or "training", labelers=labelers)
    return number, "every prompt has such a task already"


def _known_items(path: str, kind: TaskKind) -> list[tuple[Prompt, tuple[Completion, ...], dict[str, Any] | None]]:
    if kind == "demonstration":  # rated by a reviewer: no reference
        return [(prompt, (), None) for prompt in read_prompts(path).records]
    if kind == "labels":
        return [(p, (), {"annotations": row["annotations"]}) for p, row in read_asked(path, "annotations")]
    items: list[tuple[Prompt, tuple[Completion, ...], dict[str, Any] | None]] = []
    for number, (prompt, row) in enumerate(read_asked(path, "completions", "ranks"), start=1):
        try:
            items.append((prompt, read_completions(row["completions"]), {"ranks": row["ranks"]}))
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {one_line(error)}") from None
    return items


def _answers(path: str, row: dict[str, Any]) -> dict[str, str]:
    answers = row["answers"]
    if not isinstance(answers, dict) or not all(isinstance(text, str) for text in answers.values()):
        raise ValueError(f"{path}: answers is {answers!r}; expected an object with one text for each model")
    return answers


def import_file(folder: Path, path: str, dry_run: bool = False) -> None:
    """Take in rankings with their labelers, as `export` writes them."""
    with _opened(folder, dry_run) as workspace:
        print(dumps(exchange.import_rankings(workspace, path)))


def export(folder: Path, output: Path, pairs: bool, table: bool) -> None:
    """Write what labelers have answered."""
    with closing(existing_workspace(folder)) as workspace:
        counts = exchange.export(workspace, output, pairs=pairs, table=table)
    for name, number in counts.items():
        print(f"{output / name}: {number} rows")
    if not counts:
        print("nothing is answered yet")


def erase(folder: Path, user: str, dry_run: bool = False) -> None:
    """Remove everything that a prompts' author wrote, and all that was written about it.

    Raises:
        ValueError: if no prompt is theirs.
    """
    with _opened(folder, dry_run) as workspace:
        with workspace.erase() as connection:
            try:
                number = erase_user(connection, user)
            except LookupError as error:
                raise ValueError(str(error)) from None
        print(f"{number} prompts erased; files exported before still hold them: delete those, and export again")
        if workspace.keeps_erased and not dry_run:
            print(READERS, flush=True)
            while workspace.keeps_erased:
                time.sleep(1)
                workspace.empty_log()


def status(folder: Path) -> None:
    """Print how many tasks of each kind there are, and how many were answered."""
    with closing(existing_workspace(folder)) as workspace, workspace.read() as connection:
        for row in overview.task_counts(connection):
            print(f"{row.kind} ({row.purpose}): {row.all} tasks, {row.answers} answers")
        for role, number in sorted(Counter(person.role for person in accounts.everybody(connection)).items()):
            print(f"{role}: {number}")


def back_up(folder: Path, file: Path) -> None:
    """Write the whole workspace into one file, while people work."""
    with closing(existing_workspace(folder)) as workspace:
        counts = backup.backup(workspace, file)
    print(f"{file}: {_counted(counts)}; it holds the workspace's key, so keep it as secret as the workspace")


def restore(file: Path, folder: Path, database: str | None) -> None:
    """Make a workspace of a backup, in a new folder."""
    counts = backup.restore(file, folder, database)
    existing_workspace(folder).close()
    print(f"{folder}: {_counted(counts)}; everybody signs in again, and links that were not used are gone")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("people", "prompts", "tasks", "answers"))
