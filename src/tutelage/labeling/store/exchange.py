"""Files in and out of a workspace: rankings and demonstrations as the stages read them, raw, one line a labeler.

Two things are decided here and nowhere else: what blinded labelers saw is joined with the policies that wrote it, and a
held-out labeler's answers go to files of their own, never to one that trains.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, StrictInt
from sqlalchemy import Connection, and_, insert, select, update

from tutelage.data.candidates import read_completions
from tutelage.data.datasets import read_asked, write_jsonl
from tutelage.data.records import Arm, Completion, Prompt, Ranking
from tutelage.files import write_json
from tutelage.labeling.store import accounts
from tutelage.labeling.store.answers import FLAGS, one_line, read_answer
from tutelage.labeling.store.database import Workspace, record
from tutelage.labeling.store.instructions import current_instruction, ensure_instructions
from tutelage.labeling.store.prompts import ANSWERED, VISIBLE, add_prompts
from tutelage.labeling.store.schema import answers, assignments, completions, instructions, people, prompts, tasks
from tutelage.labeling.store.tasks import HELD_OUT_SPLITS, Terms, add_task

LATEST = 4_102_444_800.0  # 2100: no answer was given later
Seconds = Annotated[FiniteFloat, Field(ge=0, le=1e9)]
LIST = "export.json"  # names what an export wrote, and so what the next one may replace


@dataclass(frozen=True)
class Answered:
    """An answer that counts, with all that it belongs to."""

    answer: int
    task: int
    kind: str
    prompt: str
    prompt_text: Any
    user: str | None
    split: str | None
    use_case: str | None
    texts: tuple[str, ...]
    policies: tuple[str, ...]
    finishes: tuple[str | None, ...]
    reference: dict[str, Any] | None
    person: int
    name: str
    pseudonym: str
    arm: str
    paused: bool
    order: list[int]
    body: dict[str, Any]
    instruction: str
    seconds: float
    active_seconds: float | None
    created: float


def newest_answers(connection: Connection, *, purpose: str = "work") -> list[Answered]:
    """Answers that count, oldest first: each labeler's newest to the same question, unless its prompt is erased or
    quarantined. The same completions of a prompt may have come to a labeler in two tasks, or in two imported files.
    """
    later, first = answers.alias(), answers.alias()
    newer = select(later.c.id).where(later.c.assignment == answers.c.assignment, later.c.number > answers.c.number)
    rows = connection.execute(
        select(
            answers.c.id.label("answer"), answers.c.body, first.c.seconds, first.c.active_seconds,
            answers.c.created, assignments.c.order, assignments.c.task, assignments.c.person, tasks.c.kind,
            tasks.c.completions, tasks.c.reference, tasks.c.prompt, prompts.c.text.label("prompt_text"), prompts.c.user,
            prompts.c.split, prompts.c.use_case, people.c.name, people.c.pseudonym, people.c.arm,
            accounts.PAUSED.label("paused"),
            instructions.c.version,
        )
        .select_from(
            ANSWERED.join(first, and_(first.c.assignment == assignments.c.id, first.c.number == 1))  # whose time it is
            .join(people, people.c.id == assignments.c.person)
            .join(instructions, instructions.c.id == answers.c.instruction)
        )
        .where(tasks.c.purpose == purpose, ~newer.exists(), answers.c.body.is_not(None), VISIBLE)
        .order_by(answers.c.created, answers.c.id)
    ).all()  # fmt: skip
    theirs = select(tasks.c.prompt).where(tasks.c.purpose == purpose)
    written = {c.id: c for c in connection.execute(select(completions).where(completions.c.prompt.in_(theirs)))}
    newest: dict[Hashable, Answered] = {}
    for row in rows:
        values = dict(row._mapping)
        mine = [written[i] for i in values.pop("completions")]
        values["instruction"] = f"{row.kind} v{values.pop('version')}"
        answered = Answered(
            **values, texts=tuple(c.text for c in mine), policies=tuple(", ".join(c.policies) for c in mine),
            finishes=tuple(c.finish for c in mine),
        )  # fmt: skip
        # A comparison is of two models, whose answers may be those of two others.
        seen = answered.policies if row.kind == "comparison" else frozenset(answered.texts)
        question = (row.person, row.kind, row.prompt, seen)
        newest.pop(question, None)
        newest[question] = answered
    return list(newest.values())


def stored_rankings(
    connection: Connection, *, purpose: str = "work", arm: str | None = None, names: bool = False
) -> list[Ranking]:
    """The rankings that count. `prompt.meta` names the task; labelers go by pseudonym unless `names` are asked for."""
    return [
        Ranking(
            prompt=Prompt.model_validate(
                {"id": r.prompt, "text": r.prompt_text, "split": r.split, "meta": {"task": r.task}}
            ),
            completions=_completions(r), ranks=tuple(r.body["ranks"]), labeler=r.name if names else r.pseudonym,
        )
        for r in newest_answers(connection, purpose=purpose)
        if r.kind == "ranking" and arm in (None, r.arm)
    ]  # fmt: skip


def flag_votes(rows: Sequence[Answered]) -> list[list[list[int]]]:
    """For each prompt, of every flag of every completion that was rated, how many labelers said no and yes.

    A labeler who rated a completion among others a second time has one vote, the newer.
    """
    flags_of: dict[str, dict[tuple[str, int], Container[str]]] = defaultdict(dict)
    for r in rows:
        for text, rating in zip(r.texts, r.body.get("ratings") or (), strict=False):
            flags_of[r.prompt][text, r.person] = rating["flags"]
    votes: dict[str, dict[tuple[str, str], list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for prompt, ratings in flags_of.items():
        for (text, _), flags in ratings.items():
            for flag in FLAGS:
                votes[prompt][text, flag][flag in flags] += 1
    return [list(of_prompt.values()) for of_prompt in votes.values()]


def export(workspace: Workspace, folder: Path, *, pairs: bool = False, table: bool = False) -> dict[str, int]:
    """Write what labelers have answered; returns the number of rows by file.

    Files: `rankings.jsonl` and `demonstrations.jsonl` train (training arm, prompts of no held-out split);
    `rankings_training_labelers.jsonl`, `rankings_heldout_labelers.jsonl`, `demonstrations_valid.jsonl` and
    `demonstrations_heldout_labelers.jsonl` measure; `labels.jsonl`, `judgments.jsonl` (comparisons, for
    `tutelage evaluate`). What held-out labelers ranked of prompts that also train goes to a file of its own, as a model
    that trained on a prompt is not measured by it. Files of an earlier export to the same folder are replaced.

    Args:
        pairs: also `pairs.jsonl`, `prompt` + `chosen` + `rejected` from `rankings.jsonl`.
        table: also `answers.csv`, one line per answer and completion, for spreadsheets.

    Raises:
        ValueError: if the folder holds a file of one of these names that no export wrote.
    """
    with workspace.read() as connection:
        rows = newest_answers(connection)
        judgments = _judgments(connection, rows)
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    trained = {r.prompt for r in rows if _file_of(r) == "rankings.jsonl"}
    for r in rows:
        if r.kind != "comparison":
            files[_file_of(r, trained)].append(_row(workspace, r))
    files["judgments.jsonl"] = judgments
    if pairs:
        files["pairs.jsonl"] = _pairs(files["rankings.jsonl"])
    counts = {name: len(content) for name, content in sorted(files.items()) if content}
    _make_room(folder, [*counts, *(["answers.csv"] if table else [])])
    for name in counts:
        write_jsonl(folder / name, files[name])
    if table:
        counts["answers.csv"] = _write_table(folder / "answers.csv", rows)
    with workspace.write() as connection:  # only now: the audit tells of files that are there
        record(connection, "exported", **counts)
    return counts


def _make_room(folder: Path, names: list[str]) -> None:
    """Remove what an earlier export wrote, and note what this one will write."""
    if not folder.exists():  # a run's is there, or was deleted: then it is not made anew
        folder.mkdir(parents=True)
    listed = folder / LIST
    before = json.loads(listed.read_text()) if listed.exists() else []
    for name in names:
        if name not in before and (folder / name).exists():
            raise ValueError(f"output: {folder / name} is there and no export wrote it; choose another folder")
    for name in before:
        (folder / name).unlink(missing_ok=True)
    write_json(listed, names)


def _file_of(r: Answered, trained: Container[str] = ()) -> str:
    trains = r.arm == "training" and r.split not in HELD_OUT_SPLITS
    if r.kind == "ranking":
        seen = "_on_training_prompts" if r.prompt in trained else ""
        return "rankings.jsonl" if trains else f"rankings_{r.arm}_labelers{seen}.jsonl"
    if r.kind == "demonstration":
        measures = "demonstrations_valid.jsonl" if r.arm == "training" else "demonstrations_heldout_labelers.jsonl"
        return "demonstrations.jsonl" if trains else measures
    return "labels.jsonl"


def _row(workspace: Workspace, r: Answered) -> dict[str, Any]:
    about = {
        "prompt": r.prompt_text, "id": r.prompt, "split": r.split, "use_case": r.use_case,
        "user": r.user and workspace.pseudonym("user", r.user),
    }  # fmt: skip
    answer = {k: v for k, v in r.body.items() if v or k == "ranks"}
    if r.kind == "ranking":
        answer["completions"] = [c.model_dump(exclude_none=True) for c in _completions(r)]
        answer["order"] = r.order
    by = {
        "labeler": r.pseudonym, "arm": r.arm, "paused": r.paused or None, "instruction": r.instruction,
        "seconds": round(r.seconds, 1), "active_seconds": r.active_seconds, "at": round(r.created),
    }  # fmt: skip
    labeled = {} if r.kind != "labels" else {"use_case": r.body.get("use_case") or r.use_case}
    return {k: v for k, v in (about | answer | by | labeled).items() if v is not None}


def _judgments(connection: Connection, rows: Sequence[Answered]) -> list[dict[str, Any]]:
    """By prompt, the share of votes that each model won from the baseline, who gave which vote, and how many characters
    each answer has; equal answers are a tie without a vote."""
    rows_of: dict[tuple[str, str], dict[str, Any]] = {}

    def judged(prompt: str, use_case: str | None, policies: Sequence[str], lengths: Sequence[int]) -> dict[str, Any]:
        baseline, model = policies
        about = {"id": prompt, "use_case": use_case, "baseline": baseline}
        row = rows_of.setdefault((prompt, baseline), {**about, "models": {}})
        row["models"].setdefault(baseline, {"wins": 0.5, "length": lengths[0]})
        return row["models"].setdefault(model, {"wins": [], "votes": [], "length": lengths[1]})

    for r in rows:
        if r.kind == "comparison":
            a, b = r.body["ranks"]
            share = 0.5 if a == b else float(b < a)
            verdict = judged(r.prompt, r.use_case, r.policies, [len(text) for text in r.texts])
            verdict["wins"].append(share)
            verdict["votes"].append({"labeler": r.pseudonym, "arm": r.arm, "share": share})
    ties = (
        select(prompts.c.id, prompts.c.use_case, tasks.c.completions)
        .select_from(tasks.join(prompts))
        .where(tasks.c.kind == "comparison", tasks.c.capacity == 0, VISIBLE)
        .order_by(tasks.c.id)
    )
    tied = connection.execute(ties).all()
    theirs = select(tasks.c.prompt).where(tasks.c.kind == "comparison", tasks.c.capacity == 0)
    written = {c.id: c for c in connection.execute(select(completions).where(completions.c.prompt.in_(theirs)))}
    for prompt, use_case, two in tied:
        both = [written[i] for i in two]
        verdict = judged(prompt, use_case, [c.policies[0] for c in both], [len(c.text) for c in both])
        verdict["wins"].append(0.5)
    for row in rows_of.values():
        for verdict in row["models"].values():
            if isinstance(verdict["wins"], list):
                verdict["wins"] = sum(verdict["wins"]) / len(verdict["wins"])
    return list(rows_of.values())


def _pairs(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for row in rows:
        texts, ranks = [c["text"] for c in row["completions"]], row["ranks"]
        better = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        shared = {"prompt": row["prompt"], "labeler": row["labeler"]}
        out += [shared | {"chosen": texts[i], "rejected": texts[j]} for i, j in better]
    return out


def _write_table(path: Path, rows: Sequence[Answered]) -> int:
    header = [
        "task", "kind", "labeler", "arm", "instruction", "seconds", "prompt", "completion", "policy", "shown", "rank",
        "quality", "flags", "paused",
    ]  # fmt: skip
    lines = []
    for r in rows:
        ratings = r.body.get("ratings") or [{}] * len(r.texts)
        texts = r.texts or (r.body.get("completion", ""),)
        for i, text in enumerate(texts):
            rating = ratings[i] if i < len(ratings) else {}
            ranks = r.body.get("ranks")
            lines.append([
                r.task, r.kind, r.pseudonym, r.arm, r.instruction, round(r.seconds), _as_line(r.prompt_text), text,
                r.policies[i] if r.policies else "", r.order.index(i) + 1 if r.order else "",
                ranks[i] if ranks else "", rating.get("quality", ""), " ".join(rating.get("flags", ())),
                "yes" if r.paused else "",
            ])  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([_no_formula(cell) for cell in line] for line in lines)
    return len(lines)


def _no_formula(cell: Any) -> Any:
    """A cell that no spreadsheet runs: what begins like a formula gets an apostrophe in front."""
    runs = isinstance(cell, str) and (cell.startswith(("\t", "\r", "\n")) or cell.lstrip().startswith(tuple("=+-@")))
    return f"'{cell}" if runs else cell


def _as_line(text: Any) -> str:
    return text if isinstance(text, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def _completions(r: Answered) -> tuple[Completion, ...]:
    return tuple(
        Completion(text=text, policy=policy or None, finish=finish)
        for text, policy, finish in zip(r.texts, r.policies, r.finishes, strict=True)
    )


class _ImportedRow(BaseModel):
    """What an imported row may say beside its ranking."""

    labeler: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
    completions: Any
    ranks: list[StrictInt]
    arm: Arm = "training"
    order: list[int] = []
    ratings: list[Any] = []
    at: Annotated[FiniteFloat, Field(ge=0, lt=LATEST)] = 0.0
    seconds: Seconds = 0.0
    active_seconds: Seconds | None = None


def import_rankings(workspace: Workspace, path: str) -> dict[str, int]:
    """Take in rankings made elsewhere, or exported from another workspace; the same row twice is taken once.

    Labelers keep the name that the file gives them and cannot sign in; `arm` is `training` unless a row says otherwise.

    Raises:
        DataError: if the file is malformed; nothing is imported then.
        ValueError: if a row's ranks do not fit, or a labeler changes arms or works here, naming the row.
    """
    rows = read_asked(path, "completions", "ranks", "labeler")
    counts: dict[str, int] = defaultdict(int)
    with workspace.write() as connection:
        ensure_instructions(connection)
        page = current_instruction(connection, "ranking").id
        there = {p.pseudonym: p for p in accounts.everybody(connection)}
        for number, (prompt, row) in enumerate(rows, start=1):
            try:
                item = _ImportedRow.model_validate({k: v for k, v in row.items() if v is not None})
                ranking = _imported(prompt, item)
                counts["prompts"] += add_prompts(connection, [prompt])
                key = _key(ranking)
                if connection.execute(select(answers.c.id).where(answers.c.key == key)).first():
                    counts["there already"] += 1
                    continue
                arm, name = item.arm, item.labeler
                if name not in there:
                    new = accounts.NewPerson(name, arm=arm, status="paused", pseudonym=name)
                    person = accounts.add_person(connection, workspace, new)
                    there[name] = accounts.person_of(connection, person)
                    counts["labelers"] += 1
                if there[name].password is not None:
                    raise ValueError(f"labeler {name!r} works in this workspace, so the answer is here already")
                if there[name].arm != arm:
                    raise ValueError(f"labeler {name!r} is of the {there[name].arm} arm, not of {arm!r}")
                _store(connection, ranking, there[name].id, page, key, item, row)
                counts["rankings"] += 1
            except ValueError as error:
                raise ValueError(f"{path}: row {number}: {one_line(error)}") from None
        record(connection, "imported", **counts)
    return dict(counts)


def _key(ranking: Ranking) -> str:
    """What tells that an answer was imported before, whatever else its row says: its prompt, labeler and ranks."""
    order = sorted(zip((c.text for c in ranking.completions), ranking.ranks, strict=True))
    whole = json.dumps([ranking.prompt.id, ranking.labeler, order])
    return f"import-{hashlib.sha256(whole.encode()).hexdigest()}"


def _imported(prompt: Prompt, item: _ImportedRow) -> Ranking:
    written = read_completions(item.completions)
    ranking = Ranking(prompt=prompt, completions=tuple(written), ranks=tuple(item.ranks), labeler=item.labeler)
    best = ranking.best_ranks
    kept = {c.text: c for c in reversed(written)}
    places = sorted(set(best.values()))  # 1, 3, 7 means 1, 2, 3
    closed = tuple(places.index(rank) + 1 for rank in best.values())
    return ranking.model_copy(update={"completions": tuple(kept[text] for text in best), "ranks": closed})


def _store(
    connection: Connection, ranking: Ranking, person: int, page: int, key: str, item: _ImportedRow, row: dict[str, Any]
) -> None:
    """One imported ranking as a task that is done."""
    k = len(ranking.completions)
    body = {"ranks": list(ranking.ranks), "ratings": item.ratings if len(item.ratings) == k else []}
    body |= {name: row[name] for name in ("annotations", "note") if row.get(name)}
    rated = bool(body["ratings"])
    answer = read_answer("ranking", k, rated, body)
    task = add_task(connection, "ranking", ranking.prompt, ranking.completions, Terms(rate=rated))
    connection.execute(update(tasks).where(tasks.c.id == task).values(open=False))
    order = item.order if sorted(item.order) == list(range(k)) else list(range(k))
    assignment = connection.execute(
        insert(assignments)
        .values(
            task=task, person=person, state="submitted", order=order, instruction=page, leased=item.at, expires=item.at
        )
        .returning(assignments.c.id)
    ).scalar_one()  # fmt: skip
    connection.execute(
        insert(answers).values(
            assignment=assignment, number=1, body=answer.model_dump(mode="json"), instruction=page,
            seconds=item.seconds, active_seconds=item.active_seconds, key=key, created=item.at,
        )
    )  # fmt: skip
