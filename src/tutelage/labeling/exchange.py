"""Files in and out of a workspace: rankings and demonstrations as the stages read them, raw, one line a labeler.

Two things are decided here and nowhere else: what blinded labelers saw is joined with the policies that wrote it, and a
held-out labeler's answers go to files of their own, never to one that trains.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from tutelage.datasets import read_prompts, read_rows, write_jsonl
from tutelage.labeling import accounts, queue
from tutelage.labeling.answers import read_answer
from tutelage.labeling.database import Workspace, record
from tutelage.labeling.schema import answers, assignments, completions, instructions, people, prompts, tasks
from tutelage.records import Completion, Prompt, Ranking


@dataclass(frozen=True)
class Answered:
    """The newest answer to an assignment, with all that it belongs to."""

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
    order: list[int]
    body: dict[str, Any]
    instruction: str
    seconds: float
    active_seconds: float | None
    created: float


def newest_answers(connection: Connection, *, purpose: str = "work") -> list[Answered]:
    """Answers that count, oldest first: the newest of each assignment, unless its prompt is erased or quarantined."""
    later = answers.alias()
    newer = select(later.c.id).where(later.c.assignment == answers.c.assignment, later.c.number > answers.c.number)
    rows = connection.execute(
        select(
            answers.c.id.label("answer"), answers.c.body, answers.c.seconds, answers.c.active_seconds,
            answers.c.created, assignments.c.order, assignments.c.task, assignments.c.person, tasks.c.kind,
            tasks.c.completions, tasks.c.reference, tasks.c.prompt, prompts.c.text.label("prompt_text"), prompts.c.user,
            prompts.c.split, prompts.c.use_case, people.c.name, people.c.pseudonym, people.c.arm,
            instructions.c.version,
        )
        .select_from(
            answers.join(assignments)
            .join(tasks)
            .join(prompts, prompts.c.id == tasks.c.prompt)
            .join(people, people.c.id == assignments.c.person)
            .join(instructions, instructions.c.id == answers.c.instruction)
        )
        .where(tasks.c.purpose == purpose, ~newer.exists(), answers.c.body.is_not(None))
        .where(prompts.c.text.is_not(None), prompts.c.quarantine.is_(None))
        .order_by(answers.c.id)
    ).all()  # fmt: skip
    written = {c.id: c for c in connection.execute(select(completions))}
    found = []
    for row in rows:
        values = dict(row._mapping)
        mine = [written[i] for i in values.pop("completions")]
        values["instruction"] = f"{row.kind} v{values.pop('version')}"
        found.append(
            Answered(
                **values, texts=tuple(c.text for c in mine), policies=tuple(", ".join(c.policies) for c in mine),
                finishes=tuple(c.finish for c in mine),
            )
        )  # fmt: skip
    return found


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


def export(workspace: Workspace, folder: Path, *, pairs: bool = False, table: bool = False) -> dict[str, int]:
    """Write what labelers have answered; returns the number of rows by file.

    Files: `rankings.jsonl` and `demonstrations.jsonl` train (training arm, prompts of no held-out split);
    `rankings_training_labelers.jsonl`, `rankings_heldout_labelers.jsonl` and `demonstrations_valid.jsonl` measure;
    `labels.jsonl`, `judgments.jsonl` (comparisons, for `tutelage evaluate`).

    Args:
        pairs: also `pairs.jsonl`, `prompt` + `chosen` + `rejected` from `rankings.jsonl`.
        table: also `answers.csv`, one line per answer and completion, for spreadsheets.
    """
    with workspace.write() as connection:
        rows = newest_answers(connection)
        files: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for r in rows:
            if r.kind != "comparison":
                files[_file_of(r)].append(_row(workspace, r))
        files["judgments.jsonl"] = _judgments(connection, rows)
        if pairs:
            files["pairs.jsonl"] = _pairs(files["rankings.jsonl"])
        counts = {name: len(content) for name, content in sorted(files.items()) if content}
        record(connection, "exported", **counts)
    folder.mkdir(parents=True, exist_ok=True)
    for name in counts:
        write_jsonl(folder / name, files[name])
    if table:
        counts["answers.csv"] = _write_table(folder / "answers.csv", rows)
    return counts


def _file_of(r: Answered) -> str:
    trains = r.arm == "training" and r.split not in queue.HELD_OUT_SPLITS
    if r.kind == "ranking":
        return "rankings.jsonl" if trains else f"rankings_{r.arm}_labelers.jsonl"
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
        "labeler": r.pseudonym, "arm": r.arm, "instruction": r.instruction, "seconds": round(r.seconds, 1),
        "active_seconds": r.active_seconds, "at": round(r.created),
    }  # fmt: skip
    labeled = {} if r.kind != "labels" else {"use_case": r.body.get("use_case") or r.use_case}
    return {k: v for k, v in (about | answer | by | labeled).items() if v is not None}


def _judgments(connection: Connection, rows: Sequence[Answered]) -> list[dict[str, Any]]:
    """By prompt, the share of votes that each model won from the baseline; equal answers are a tie without a vote."""
    found: dict[str, dict[str, Any]] = {}
    for r in rows:
        if r.kind == "comparison":
            (baseline, model), (a, b) = r.policies, r.body["ranks"]
            row = found.setdefault(
                r.prompt, {"id": r.prompt, "use_case": r.use_case, "baseline": baseline, "models": {}}
            )
            row["models"].setdefault(model, []).append(0.5 if a == b else float(b < a))
    ties = select(tasks.c.prompt, tasks.c.completions).where(tasks.c.kind == "comparison", tasks.c.capacity == 0)
    for prompt, (_, second) in connection.execute(ties):
        if prompt in found:
            (model,) = connection.execute(select(completions.c.policies).where(completions.c.id == second)).scalar_one()
            found[prompt]["models"][model] = [0.5]
    for row in found.values():
        wins = {m: {"wins": sum(votes) / len(votes), "votes": len(votes)} for m, votes in row["models"].items()}
        row["models"] = {row["baseline"]: {"wins": 0.5}} | wins
    return list(found.values())


def _pairs(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for row in rows:
        texts, ranks = [c["text"] for c in row["completions"]], row["ranks"]
        better = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        shared = {"prompt": row["prompt"], "labeler": row["labeler"]}
        out += [shared | {"chosen": texts[i], "rejected": texts[j]} for i, j in better]
    return out


def _write_table(path: Path, rows: Sequence[Answered]) -> int:
    header = ["task", "kind", "labeler", "arm", "prompt", "completion", "policy", "rank", "quality", "flags", "seconds"]
    lines = []
    for r in rows:
        ratings = r.body.get("ratings") or [{}] * len(r.texts)
        texts = r.texts or (r.body.get("completion", ""),)
        for i, text in enumerate(texts):
            rating = ratings[i] if i < len(ratings) else {}
            ranks = r.body.get("ranks")
            lines.append([
                r.task, r.kind, r.pseudonym, r.arm, _as_line(r.prompt_text), text, r.policies[i] if r.policies else "",
                ranks[i] if ranks else "", rating.get("quality", ""), " ".join(rating.get("flags", ())),
                round(r.seconds),
            ])  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([_no_formula(cell) for cell in line] for line in lines)
    return len(lines)


def _no_formula(cell: Any) -> Any:
    """A cell that no spreadsheet runs: what begins like a formula gets an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in tuple("=+-@\t\r") else cell


def _as_line(text: Any) -> str:
    return text if isinstance(text, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)


def _completions(r: Answered) -> tuple[Completion, ...]:
    return tuple(
        Completion(text=text, policy=policy or None, finish=finish)
        for text, policy, finish in zip(r.texts, r.policies, r.finishes, strict=True)
    )


def import_rankings(workspace: Workspace, path: str) -> dict[str, int]:
    """Take in rankings made elsewhere, or exported from another workspace; the same row twice is taken once.

    Labelers keep the name that the file gives them and cannot sign in; `arm` is `training` unless a row says otherwise.

    Raises:
        DataError: if the file is malformed; nothing is imported then.
        ValueError: if a row's ranks do not fit, or a labeler changes arms, naming the row.
    """
    rows = read_rows(path, "prompt", "completions", "ranks", "labeler")
    asked = read_prompts(path).records
    if len(asked) != len(rows):
        raise ValueError(f"{path}: {len(rows) - len(asked)} rows have an empty prompt; leave them out")
    counts: dict[str, int] = defaultdict(int)
    with workspace.write() as connection:
        queue.ensure_instructions(connection)
        page = queue.current_instruction(connection, "ranking").id
        there = {p.pseudonym: p for p in connection.execute(select(people))}
        for number, (prompt, row) in enumerate(zip(asked, rows, strict=True), start=1):
            try:
                key = f"import-{hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()}"
                if connection.execute(select(answers.c.id).where(answers.c.key == key)).first():
                    counts["there already"] += 1
                    continue
                ranking = _imported(prompt, row)
                arm = row.get("arm", "training")
                name = str(ranking.labeler)
                if name not in there:
                    person = accounts.add_person(connection, workspace, name, arm=arm, status="paused", pseudonym=name)
                    there[name] = connection.execute(select(people).where(people.c.id == person)).one()
                    counts["labelers"] += 1
                if there[name].arm != arm:
                    raise ValueError(f"labeler {name!r} is of the {there[name].arm} arm, not of {arm!r}")
                counts["prompts"] += queue.add_prompts(connection, [prompt])
                _store(connection, ranking, there[name].id, page, key, row)
                counts["rankings"] += 1
            except ValueError as error:
                raise ValueError(f"{path}: row {number}: {error}") from None
        record(connection, "imported", **counts)
    return dict(counts)


def _imported(prompt: Prompt, row: dict[str, Any]) -> Ranking:
    given = [Completion(text=c) if isinstance(c, str) else Completion.model_validate(c) for c in row["completions"]]
    ranks = row["ranks"]
    if not isinstance(ranks, list) or not all(isinstance(r, int) for r in ranks):
        raise ValueError(f"ranks is {ranks!r}; expected a list of whole numbers, 1 for the best")
    ranking = Ranking(prompt=prompt, completions=tuple(given), ranks=tuple(ranks), labeler=str(row["labeler"]))
    best: dict[str, int] = {}  # identical completions are one, under its better rank
    for completion, rank in zip(given, ranks, strict=True):
        best[completion.text] = min(rank, best.get(completion.text, rank))
    kept = {c.text: c for c in reversed(given)}
    places = sorted(set(best.values()))  # 1, 3, 7 means 1, 2, 3
    closed = tuple(places.index(rank) + 1 for rank in best.values())
    return ranking.model_copy(update={"completions": tuple(kept[text] for text in best), "ranks": closed})


def _store(connection: Connection, ranking: Ranking, person: int, page: int, key: str, row: dict[str, Any]) -> None:
    """One imported ranking as a task that is done."""
    rated = row.get("ratings") or []
    k = len(ranking.completions)
    body = {"ranks": list(ranking.ranks), "ratings": rated if len(rated) == k else []}
    body |= {name: row[name] for name in ("annotations", "note") if row.get(name)}
    answer = read_answer("ranking", k, bool(body["ratings"]), body)
    task = queue.add_task(
        connection, "ranking", ranking.prompt, ranking.completions, rate=bool(body["ratings"]), capacity=1
    )
    connection.execute(update(tasks).where(tasks.c.id == task).values(open=False))
    at = float(row.get("at", 0))
    order = row.get("order") if sorted(row.get("order") or []) == list(range(k)) else list(range(k))
    assignment = connection.execute(
        insert(assignments)
        .values(
            task=task, person=person, state="submitted", order=order, instruction=page, leased=at, expires=at
        )
        .returning(assignments.c.id)
    ).scalar_one()  # fmt: skip
    connection.execute(
        insert(answers).values(
            assignment=assignment, number=1, body=answer.model_dump(mode="json"), instruction=page,
            seconds=float(row.get("seconds", 0)), active_seconds=row.get("active_seconds"), key=key, created=at,
        )
    )  # fmt: skip


def erase_prompt(connection: Connection, prompt: str, by: int | None = None) -> None:
    """Remove a prompt's text, its completions and all answers to it; a tombstone with its id stays.

    Raises:
        LookupError: if there is no such prompt.
    """
    if connection.execute(select(prompts.c.id).where(prompts.c.id == prompt)).first() is None:
        raise LookupError(f"no prompt {prompt!r}")
    its = select(assignments.c.id).join(tasks).where(tasks.c.prompt == prompt)
    connection.execute(update(answers).where(answers.c.assignment.in_(its)).values(body=None))
    connection.execute(update(assignments).where(assignments.c.id.in_(its)).values(draft=None, skipped=None))
    connection.execute(update(completions).where(completions.c.prompt == prompt).values(text=None))
    connection.execute(update(tasks).where(tasks.c.prompt == prompt).values(open=False, reference=None))
    now = record(connection, "erased", person=by, subject=prompt)
    connection.execute(
        update(prompts)
        .where(prompts.c.id == prompt)
        .values(text=None, user=None, meta={}, use_case=None, quarantine=None, erased=now)
    )


def erase_user(connection: Connection, user: str, by: int | None = None) -> int:
    """Remove everything that a prompts' author has written, as `erase_prompt`; returns how many prompts.

    Raises:
        LookupError: if no prompt is of this user.
    """
    theirs = list(connection.execute(select(prompts.c.id).where(prompts.c.user == user)).scalars())
    if not theirs:
        raise LookupError(f"no prompt here is by user {user!r}")
    for prompt in theirs:
        erase_prompt(connection, prompt, by)
    return len(theirs)
