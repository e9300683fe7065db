"""Rows as other tools lay them out -> rows of ours, for `datasets`. Exactly this is read:

ShareGPT                 `conversations`: [{from, value}] or [{role, content}], from human, gpt or system. With `chosen`
                         and `rejected`, each {from, value} (LLaMA-Factory's), it is the prompt of the pair.
RewardBench              `prompt`, `chosen`, `rejected` and `subset`; a prompt that is a string is what a user asks.
NeMo-RL                  `context` (messages) and `completions`: [{completion: [messages], rank}]; rank 0 is the best.
Dolly                    `instruction`, `context` and `response`, as Alpaca's `instruction`, `input` and `output`.
Label Studio, JSON       `data` with `prompt`, and `annotations`: [{result, completed_by, was_cancelled}], of which each
                         is one labeler's ranking. A result of type `ranker`, value {ranker: {list: [ids]}}, orders
                         the {id, body} items of a list in `data`, the best first, if all of them lie in one list;
                         one of type `pairwise`, value {selected: left or right}, compares `answer1` with `answer2`.
Label Studio, JSON_MIN   the same, one annotation a row: `prompt`, the items or answers, a column with the control's
                         values ([{ranker: …}] or [{selected: …}]), `annotator`, `annotation_id`.
Argilla, records         `fields` with `prompt` (or `instruction`) and the completions, `responses`: {question: [{value,
                         user_id}]}, one of the questions a ranking: its value lists names of fields, the best first,
                         or {value: field, rank}, equal ranks being ties. Suggestions are models', and not read.
Argilla, flat            the same, as it writes to the hub: the fields as columns, `question.responses`,
                         `question.responses.users` and `question.responses.status`, of which `submitted` counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel, TypeAdapter

from tutelage.terminal import listed, short

Row = dict[str, Any]
PAIR = ("chosen", "rejected")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
REFUSED = {  # what a row must not hold for these kinds of records, as leaving it out would change what the row says
    "tools": "only text is read: keep the rows without tools",
    "images": "only text is read",
    "videos": "only text is read",
    "audios": "only text is read",
}
VERDICTS = {
    "label": "says whether the completion is wanted (KTO)",
    **dict.fromkeys(("kto_tag", "desirable"), "says whether the answer is wanted (KTO)"),
}


class Drop(Exception):
    """This row is left out and counted."""


def refuse(row: Row, demonstrations: bool) -> None:
    """Raise for columns that cannot be left unread: verdicts on a demonstration, and what is no text."""
    for name, why in REFUSED.items():
        if row.get(name) not in (None, "", "[]", []):
            raise ValueError(f"{name} is {short(row[name])}; {why}")
    for name, says in VERDICTS.items():
        if demonstrations and str(row.get(name)).lower() in ("true", "false", "1", "0", "1.0", "0.0"):
            raise ValueError(
                f"{name} is {short(row[name])}: it {says}, which a demonstration cannot; "
                "keep the rows that are wanted, without this column"
            )


class Result(BaseModel):
    """What one control of Label Studio's page holds."""

    value: dict[str, Any] = {}


class Annotation(BaseModel):
    """One labeler's answer to a task of Label Studio."""

    result: list[Result] = []
    completed_by: Any = None
    was_cancelled: bool | None = None


class Task(BaseModel):
    """A row of Label Studio's JSON."""

    id: Any = None
    data: dict[str, Any]
    annotations: list[Annotation]


class Response(BaseModel):
    """One labeler's answer to a question of Argilla."""

    value: Any = None
    user_id: Any = None
    status: str | None = None


class ArgillaRecord(BaseModel):
    """A record of Argilla, nested."""

    id: Any = None
    fields: dict[str, Any]
    responses: dict[str, list[Response] | None] | None = None


Lists = TypeAdapter(dict[str, list[str | int]])


def translate(row: Row, ranked: bool, dropped: Counter[str]) -> list[Row]:
    """The rows that a row of another tool stands for, or the row itself; one for each labeler if rankings are wanted.

    Raises:
        ValueError: if the row is laid out as one of these, but holds something that is not read.
        Drop: if rankings are wanted and nobody has ranked it.
    """
    columns = {name for name, value in row.items() if value is not None}
    if "conversations" in columns:
        return [_sharegpt(row)]
    if {"context", "completions"} <= columns and "prompt" not in columns:
        return [_nemo(row)]
    if {"prompt", *PAIR, "subset"} <= columns and isinstance(row["prompt"], str):
        return [row | {"prompt": [{"role": "user", "content": row["prompt"]}]}]
    if {"data", "annotations"} <= columns:
        found = _label_studio(Task.model_validate(row), ranked, dropped)
    elif {"annotator", "annotation_id"} <= columns and ranked:
        controls = [v for cell in row.values() if isinstance(cell, list) for v in cell if isinstance(v, dict)]
        found = _chosen(row, controls, row["annotator"])
    elif {"fields", "responses"} <= columns:
        found = _argilla(ArgillaRecord.model_validate(row), ranked, dropped)
    elif any(name.endswith(".responses") for name in columns):
        found = _argilla(ArgillaRecord.model_validate(_nested(row)), ranked, dropped)
    elif "instruction" in columns and columns & {"context", "response"}:
        return [_dolly(row)]
    else:
        return [row]
    if not found:
        raise Drop("not ranked by anybody")
    return found


def _sharegpt(row: Row) -> Row:
    rest = {name: value for name, value in row.items() if name != "conversations"}
    turns = _messages(row["conversations"], "conversations")
    if row.get("chosen") is None or row.get("rejected") is None:
        return rest | {"messages": turns}
    pair = {name: _messages([row[name]], name) if isinstance(row[name], dict) else row[name] for name in PAIR}
    return rest | {"prompt": turns} | pair


def _messages(turns: Any, column: str) -> list[Row]:
    if not isinstance(turns, list):
        raise ValueError(f"{column} is {short(turns)}; expected a list of {{from, value}}")
    messages = []
    for i, turn in enumerate(turns):
        turn = turn if isinstance(turn, dict) else {"value": turn}
        speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(text, str) or not isinstance(speaker, str) or speaker not in ROLES:
            raise ValueError(f"{column}[{i}] is {short(turn)}; expected {{from, value}}, from {', '.join(ROLES)}")
        messages.append({"role": ROLES[speaker], "content": text})
    return messages


def _nemo(row: Row) -> Row:
    ranks = []
    for i, completion in enumerate(row["completions"] if isinstance(row["completions"], list) else [None]):
        rank = completion.get("rank") if isinstance(completion, dict) and "completion" in completion else None
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            raise ValueError(
                f"completions[{i}] is {short(completion)}; expected {{completion, rank}}, rank 0 for the best"
            )
        ranks.append(rank + 1)
    rest = {name: value for name, value in row.items() if name != "context"}
    return rest | {
        "prompt": row["context"], "completions": [c["completion"] for c in row["completions"]], "ranks": ranks
    }  # fmt: skip


def _dolly(row: Row) -> Row:
    given = {"input": row.get("context"), "output": row.get("response")}
    return row | {name: value for name, value in given.items() if value is not None and row.get(name) in (None, "")}


def _label_studio(task: Task, ranked: bool, dropped: Counter[str]) -> list[Row]:
    data = task.data | {"id": task.id}
    if not ranked:
        return [data]
    found = []
    for annotation in task.annotations:
        if annotation.was_cancelled:
            dropped["annotation cancelled"] += 1
        else:
            found += _chosen(data, [result.value for result in annotation.result], annotation.completed_by)
    return found


def _chosen(task: Row, values: Sequence[Row], labeler: Any) -> list[Row]:
    """The one ranking that an annotation of a task holds, or nothing."""
    orders = [value for value in values if "ranker" in value or "selected" in value]
    if not orders:
        return []
    if len(orders) > 1:
        raise ValueError(f"an annotation holds {len(orders)} rankings of one task; export a project that asks for one")
    if isinstance(labeler, dict):
        labeler = labeler.get("email") or labeler.get("id")
    asked = {name: task.get(name) for name in ("id", "prompt", "system", "user", "split", "use_case", "meta")}
    if asked["prompt"] is None:
        raise ValueError(f"the task has {listed(task)}; the prompt is read from `prompt`")
    if "selected" in orders[0]:
        side = orders[0]["selected"]
        if side not in ("left", "right") or not {"answer1", "answer2"} <= set(task):
            raise ValueError(f"selected is {short(side)}; expected left or right, for answer1 and answer2")
        completions, ranks = [task["answer1"], task["answer2"]], [1, 2] if side == "left" else [2, 1]
        return [asked | {"completions": completions, "ranks": ranks, "labeler": labeler}]
    lists = {name: ids for name, ids in Lists.validate_python(orders[0]["ranker"]).items() if ids}
    if len(lists) != 1:
        raise ValueError(
            f"ranker holds the lists {listed(lists)}; which is better is not known of several lists, "
            "so rank all items in one"
        )
    (ids,) = lists.values()
    for items in (value for value in task.values() if isinstance(value, list)):
        bodies = {
            str(item["id"]): item["body"] for item in items if isinstance(item, dict) and {"id", "body"} <= set(item)
        }
        if bodies.keys() >= set(map(str, ids)):
            ranked = {"completions": [bodies[str(i)] for i in ids], "ranks": [*range(1, len(ids) + 1)]}
            return [asked | ranked | {"labeler": labeler}]
    raise ValueError(f"no list of {{id, body}} items in the task holds the ranked ids {short(ids)}")


def _nested(row: Row) -> Row:
    """A flat record of Argilla as a nested one."""
    responses = {}
    for name in (name for name in row if name.endswith(".responses")):
        parts = [row[name], row.get(f"{name}.users"), row.get(f"{name}.status")]
        values, users, statuses = (part if isinstance(part, list) else [] for part in parts)
        responses[name.removesuffix(".responses")] = [
            {"value": value, "user_id": user, "status": status}
            for value, user, status in zip_longest(values, users[: len(values)], statuses[: len(values)])
        ]
    return {"id": row.get("id"), "fields": row, "responses": responses}


def _argilla(record: ArgillaRecord, ranked: bool, dropped: Counter[str]) -> list[Row]:
    fields = record.fields
    asked = fields.get("prompt") if fields.get("prompt") is not None else fields.get("instruction")
    if asked is None:
        raise ValueError(f"the record has {listed(fields)}; the prompt is read from prompt or instruction")
    if not ranked:
        return [{"id": record.id, "prompt": asked}]
    found: dict[str, list[Row]] = {}
    for question, answers in (record.responses or {}).items():
        for answer in answers or []:
            order = _order(answer.value, fields)
            if order is None:
                continue
            if answer.status not in (None, "submitted"):
                dropped["response not submitted"] += 1
                continue
            ranks = {"completions": [fields[name] for name in order], "ranks": list(order.values())}
            row = {"id": record.id, "prompt": asked, "labeler": answer.user_id} | ranks
            found.setdefault(question, []).append(row)
    if len(found) > 1:
        raise ValueError(f"the questions {listed(found)} all rank; which one to learn from is not known: keep one")
    return next(iter(found.values()), [])


def _order(value: Any, fields: Mapping[str, Any]) -> dict[str, int] | None:
    """Field -> rank, or None if the response is no ranking of fields."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    if all(isinstance(item, dict) and {"value", "rank"} <= set(item) for item in value):
        order = {str(item["value"]): item["rank"] for item in value}
    elif all(isinstance(item, str) for item in value):
        order = {name: rank for rank, name in enumerate(value, start=1)}
    else:
        return None
    missing = [name for name in order if name not in fields]
    if not missing:
        return order
    if isinstance(value[0], str) and len(missing) == len(order):
        return None  # labels
    raise ValueError(f"the ranking names {short(missing[0])}, which is no field of the record: {listed(fields)}")
