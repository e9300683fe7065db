"""Any accepted file or hub id -> validated records; says file:line and field when it can't.

Each text is a string or a list of {role, content} messages. A row's format is recognised by its columns, from the table
below. `id`, `user`, `split`, `use_case`, `meta` and `labeler` are carried into the records; of rankings also `order`,
in which the completions were shown, and `subset`, which goes into the prompt's `meta`. `system` (or `system_prompt`)
opens the conversation, `history`, pairs of question and answer, goes on with it. Further columns are ignored, but for
those that would change what a row says, which are refused. The layouts of other tools are read as `layouts.py` says.

A string prompt stays a string, to be continued as it is, unless an answer to it is a list of messages or there are
earlier turns: then the prompt is a conversation, for the model's chat template. In such a list the last turn is the
answer, by the assistant; the turns before it are the prompt, whether the row's own prompt is all of them or one. So it
is of `messages` that open with the row's prompt, as UltraChat's do.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from tutelage.data.layouts import Drop, refuse, translate
from tutelage.data.records import Demonstration, Message, Prompt, Ranking, by_text, newest
from tutelage.data.sources import ANSWERS, DataError, rows_of
from tutelage.data.strict_json import dumps
from tutelage.terminal import listed, plain, short

Kind = Literal["texts", "demonstrations", "rankings", "prompts"]
Row = dict[str, Any]
Turns = tuple[Message, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Format:
    """A row's required columns, and the kinds of records it gives. More columns than these never hurt."""

    name: str
    columns: tuple[str, ...]
    gives: tuple[Kind, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(self.columns) + "".join(f" (+ {c})" for c in self.optional)


FORMATS = (  # the first that fits a row and gives the wanted kind is taken
    Format("text", ("text",), ("texts",)),
    Format("prompt", ("prompt",), ("prompts",)),
    Format("instruction", ("instruction",), ("prompts",), optional=("input",)),
    Format("completion", ("prompt", "completion"), ("demonstrations",)),
    Format("Alpaca", ("instruction", "output"), ("demonstrations",), optional=("input",)),
    Format("conversation", ("messages",), ("demonstrations", "prompts")),
    Format("ranking", ("prompt", "completions", "ranks"), ("rankings",)),
    Format("preference", ("prompt", "chosen", "rejected"), ("rankings",)),
    Format("Alpaca preference", ("instruction", "chosen", "rejected"), ("rankings",), optional=("input",)),
    Format("preference, implicit prompt", ("chosen", "rejected"), ("rankings", "prompts")),
)
__doc__ = f"{__doc__}\n" + "\n".join(f"{f.name + ':':30}{f!s:45} -> {', '.join(f.gives)}" for f in FORMATS)

ASSISTANT = "\n\nAssistant:"  # the mark of hh-rlhf's transcripts


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What a source gave. `dropped` counts by reason the rows left out, and under "duplicate completions merged" the
    rankings that were kept with fewer completions."""

    records: list[T]
    dropped: dict[str, int]
    source: str


def accepted(kind: Kind) -> str:
    """The columns from which records of this kind are read, as one line."""
    return " | ".join(str(f) for f in FORMATS if kind in f.gives)


def read_texts(source: str | os.PathLike[str]) -> Loaded[str]:
    """Plain documents, from a `text` column; a .txt file is one document.

    Raises:
        DataError: if the source is missing, malformed, empty or has no such column.
    """

    def text(row: Row, format: Format, counts: Counter[str]) -> str:
        if not isinstance(row["text"], str):
            raise ValueError(f"text is {short(row['text'])}; expected a string")
        if not row["text"].strip():
            raise Drop("empty text")
        return row["text"]

    return _read(source, "texts", text)


def read_demonstrations(source: str | os.PathLike[str]) -> Loaded[Demonstration]:
    """Prompts with the answers labelers wrote; of a conversation, the last assistant turn is the completion.

    Raises:
        DataError: if the source is missing, malformed, empty or in no format that gives demonstrations.
    """

    def demonstration(row: Row, format: Format, counts: Counter[str]) -> Demonstration:
        if format.name == "conversation":
            turns = _turns(row["messages"], "messages")
            last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
            if last is None:
                raise Drop("no assistant turn")
            prompt, completion = _prompt(row, turns[:last]), turns[last].content
        else:
            text, (completion,) = _prompt_and_answers(row, format)
            prompt = _prompt(row, text)
        if not completion.strip():
            raise Drop("empty completion")
        return Demonstration(prompt=prompt, completion=completion, labeler=_name(row.get("labeler")))

    return _read(source, "demonstrations", demonstration)


def read_rankings(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], ties: bool = False
) -> Loaded[Ranking]:
    """Labelers' orders of K completions; a chosen/rejected pair is a ranking of two. Several sources are read as one.

    Equal completions are merged under their best rank. Of a labeler's rankings of the same completions the last counts,
    as rows are in the order in which they were given; the others are dropped and counted. So are rankings with an empty
    completion, with fewer than two distinct completions, with all completions tied, or whose chosen and rejected share
    no prompt. With `ties`, those with all completions tied are kept: they teach nothing, but they are answers.

    Raises:
        DataError: if the source is missing, malformed, empty or in no format that gives rankings.
    """

    def ranking(row: Row, format: Format, counts: Counter[str]) -> Ranking:
        text, answers = _prompt_and_answers(row, format)
        prompt = _prompt(row, text)
        if isinstance(row.get("subset"), str):
            prompt = prompt.model_copy(update={"meta": {**prompt.meta, "subset": row["subset"]}})
        found = Ranking.model_validate(
            {
                "prompt": prompt,
                "completions": [{"text": a} if isinstance(a, str) else a for a in answers],
                "ranks": row["ranks"] if format.name == "ranking" else [1, 2],
                "labeler": _name(row.get("labeler")),
                "order": _order(row.get("order"), len(answers)),
            }
        )
        if not all(c.text.strip() for c in found.completions):
            raise Drop("empty completion")
        texts = [c.text for c in found.completions]
        kept = sorted(min(equal, key=lambda i: found.ranks[i]) for equal in by_text(texts).values())
        if len(kept) < 2:
            raise Drop("fewer than two distinct completions")
        if len(kept) == len(found.completions):
            return found
        counts["duplicate completions merged"] += len({found.ranks[i] for i in kept}) > 1
        completions, ranks = (tuple(column[i] for i in kept) for column in (found.completions, found.ranks))
        return found.model_copy(update={"completions": completions, "ranks": ranks, "order": None})

    sources = [source] if isinstance(source, str | os.PathLike) else source
    read = [_read(each, "rankings", ranking) for each in sources]
    answers = [r for loaded in read for r in loaded.records]
    counting = newest(answers)
    records = [r for r in counting if ties or len(set(r.ranks)) > 1]  # only now: the newest may be that all are tied
    dropped = {
        "older answer of the same labeler": len(answers) - len(counting),
        "all completions tied": len(counting) - len(records),
    }
    lost = sum((Counter(loaded.dropped) for loaded in read), Counter(dropped))
    return Loaded(records, dict(lost), ", ".join(loaded.source for loaded in read))


def read_prompts(source: str | os.PathLike[str], columns: bool = False) -> Loaded[Prompt]:
    """The prompts of any format that has one; of a conversation, all but a last assistant turn.

    With `columns`, those that are nothing to us go into a prompt's `meta`, for whoever knows what they are.

    Raises:
        DataError: if the source is missing, malformed, empty or in no format that gives prompts.
    """

    def with_columns(row: Row, format: Format, counts: Counter[str]) -> Prompt:
        prompt = _prompt_of(row, format, counts)
        own = {*Prompt.model_fields, *format.columns, *format.optional}
        further = {name: value for name, value in row.items() if name not in own}
        return prompt.model_copy(update={"meta": {**further, **prompt.meta}})

    return _read(source, "prompts", with_columns if columns else _prompt_of)


def read_asked(source: str | os.PathLike[str], *required: str) -> list[tuple[Prompt, Row]]:
    """Rows with these fields, each beside its prompt.

    Raises:
        DataError: if the file is missing or malformed, or a row lacks a field.
        ValueError: if a prompt is empty.
    """

    def asked(row: Row, format: Format, counts: Counter[str]) -> tuple[Prompt, Row]:
        if missing := [name for name in required if name not in row]:
            raise ValueError(f"no field {missing[0]!r}; expected {', '.join(('prompt', *required))}")
        return _prompt_of(row, format, counts), row

    loaded = _read(source, "prompts", asked)
    if loaded.dropped:
        raise ValueError(f"{source}: {sum(loaded.dropped.values())} rows have an empty prompt; leave them out")
    return loaded.records


def _prompt_of(row: Row, format: Format, counts: Counter[str]) -> Prompt:
    if format.name == "conversation" or _goes_on(row):
        turns = _turns(row["messages"], "messages")
        return _prompt(row, turns[:-1] if turns and turns[-1].role == "assistant" else turns)
    return _prompt(row, _prompt_and_answers(row, format)[0])


def write_jsonl(
    path: str | os.PathLike[str],
    records: Iterable[str] | Iterable[Demonstration] | Iterable[Ranking] | Iterable[Prompt] | Iterable[Row],
) -> None:
    """Write records, or rows as they are, as the rows that the readers read; gzipped if the name ends in .gz.

    The file appears whole or not at all, and the same records give the same bytes.

    Raises:
        OSError: if it cannot be written, or its folder is not there.
    """
    path = Path(path)
    data = "".join(dumps(_row(record), ensure_ascii=False) + "\n" for record in records).encode()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _row(record: str | Demonstration | Ranking | Prompt | Row) -> Row:
    if isinstance(record, dict):
        return record
    if isinstance(record, str):
        return {"text": record}
    row = record.model_dump(mode="json", exclude_none=True)
    prompt = row if isinstance(record, Prompt) else row.pop("prompt")
    flat = {"prompt": prompt.pop("text"), **prompt}
    if not flat["meta"]:
        del flat["meta"]
    return flat if isinstance(record, Prompt) else flat | row


# From a row to a record


def _read(source: str | os.PathLike[str], kind: Kind, record: Callable[[Row, Format, Counter[str]], T]) -> Loaded[T]:
    source = os.fspath(source)
    records: list[T] = []
    dropped: Counter[str] = Counter()
    place = None
    for place, found in rows_of(source):
        if not isinstance(found, dict):
            raise DataError(f"{place}: a row is {short(found)}; expected an object with columns {accepted(kind)}")
        try:
            rows = [found] if kind == "texts" else translate(found, kind == "rankings", dropped)
        except Drop as reason:
            dropped[str(reason)] += 1
            continue
        except ValueError as error:
            raise DataError(f"{place}: {one_line(error)}") from None
        for row in rows:
            columns = {name for name, value in row.items() if value is not None}
            format = next((f for f in FORMATS if kind in f.gives and columns.issuperset(f.columns)), None)
            if format is None:
                names = listed(name if name in columns else f"{name} (null)" for name in row)
                raise DataError(f"{place}: found columns {names}; {kind} are read from {accepted(kind)}{_aside(row)}")
            try:
                if kind != "texts":
                    refuse(row, kind == "demonstrations")
                records.append(record(row, format, dropped))
            except Drop as reason:
                dropped[str(reason)] += 1
            except ValueError as error:
                raise DataError(f"{place}: {one_line(error)}") from None
    if place is None:
        raise DataError(f"{source}: is empty; {kind} are read from {accepted(kind)}")
    return Loaded(records, dict(dropped), source)


def _aside(row: Row) -> str:
    if "completions" in row and "labels" in row:
        return "; labels judge single steps (TRL's stepwise supervision), which no stage learns from"
    return ""


def _prompt_and_answers(row: Row, format: Format) -> tuple[str | Turns, list[Any]]:
    """The prompt, and the answers in the format's columns: strings, or what else a ranking's completions hold."""
    if format.columns == ("chosen", "rejected"):
        return _shared_prompt(row["chosen"], row["rejected"])
    text: str | Turns
    if "instruction" in format.columns:
        parts = [row["instruction"], row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"instruction and input are {short(parts)}; expected strings")
        text = (Message(role="user", content="\n\n".join(part for part in parts if part)),)
    else:
        text = row["prompt"] if isinstance(row["prompt"], str) else _turns(row["prompt"], "prompt")
    answers = {column: row[column] for column in ANSWERS if column in format.columns}
    if format.name == "ranking" and not isinstance(row["completions"], list):
        raise ValueError(
            f"completions is {short(row['completions'])}; expected a list of strings, of {{text, policy, finish}} or "
            "of lists of messages"
        )
    if format.name == "ranking":
        answers = {f"completions[{i}]": answer for i, answer in enumerate(row["completions"])}
    if format.name == "prompt":  # the same prompt that the row's answers are read with
        listed = row["completions"] if isinstance(row.get("completions"), list) else []
        answers = {f"completions[{i}]": answer for i, answer in enumerate(listed)}
        answers |= {column: row[column] for column in ANSWERS if column in row}
        answers = {column: answer for column, answer in answers.items() if isinstance(answer, list)}
    return _conversation(text, answers)


def _goes_on(row: Row) -> bool:
    """Whether the row's `messages`, a system turn aside, open with its prompt, and no other column answers it."""
    both = row.get("messages") is not None and row.get("prompt") is not None
    if not both or any(row.get(column) is not None for column in ("completions", *ANSWERS)):
        return False
    given = row["prompt"]
    asked = (Message(role="user", content=given),) if isinstance(given, str) else _turns(given, "prompt")
    plain, wanted = (
        [(turn.role, turn.content.strip()) for turn in turns if turn.role != "system"]
        for turns in (_turns(row["messages"], "messages"), asked)
    )
    return bool(wanted) and plain[: len(wanted)] == wanted


def _conversation(prompt: str | Turns, answers: Mapping[str, Any]) -> tuple[str | Turns, list[Any]]:
    """Prompt and answers where an answer may be a list of messages, which then holds the prompt's turns, or some."""
    asked = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    contexts: list[str | Turns] = []
    texts: list[Any] = []
    for column, answer in answers.items():
        if isinstance(answer, list):
            turns = _turns(answer, column)
            if not turns or turns[-1].role != "assistant":
                raise ValueError(
                    f"{column} is {short(answer)}; expected a string, or messages of which the last is the assistant's"
                )
            contexts.append(_context(asked, turns[:-1], column))
            texts.append(turns[-1].content)
        elif isinstance(answer, str) or column.startswith("completions["):
            contexts.append(prompt)
            texts.append(answer)
        else:
            raise ValueError(f"{column} is {short(answer)}; expected a string or a list of {{role, content}} messages")
    chat = [context for context in contexts if not isinstance(context, str)]
    if not chat:
        return prompt, texts
    if any((asked if isinstance(context, str) else context) != chat[0] for context in contexts):
        raise Drop(f"{' and '.join(answers) if 'chosen' in answers else 'completions'} share no prompt")
    return chat[0], texts


def _context(asked: Turns, before: Turns, column: str) -> Turns:
    """The turns that an answer was given to: the prompt's, which those before the answer may hold or go on from."""
    plain = [(turn.role, turn.content.strip()) for turn in before]
    wanted = [(turn.role, turn.content.strip()) for turn in asked]
    if any(plain[i : i + len(wanted)] == wanted for i in range(len(plain))):
        return before
    if plain == wanted[len(wanted) - len(plain) :]:  # nothing, or the prompt without what opens it
        return asked
    if before[0].role == "assistant":
        return asked + before
    raise ValueError(f"{column} is a conversation without the prompt, {short(asked[-1].content)}")


def _shared_prompt(chosen: Any, rejected: Any) -> tuple[str | Turns, list[Any]]:
    """Split two transcripts that differ in their last assistant turn only."""
    no_prompt = Drop("chosen and rejected share no prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        (head, mark, answer), (head2, mark2, answer2) = (text.rpartition(ASSISTANT) for text in (chosen, rejected))
        if not mark or not mark2 or head != head2:
            raise no_prompt
        return head + mark, [answer, answer2]
    prompt, prompt2 = (_turns(turns, name)[:-1] for turns, name in ((chosen, "chosen"), (rejected, "rejected")))
    if not prompt or prompt != prompt2:
        raise no_prompt
    return _conversation(prompt, {"chosen": chosen, "rejected": rejected})


def _turns(value: Any, column: str) -> Turns:
    if not isinstance(value, list):
        raise ValueError(f"{column} is {short(value)}; expected a string or a list of {{role, content}} messages")
    for i, turn in enumerate(value):
        if not (isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))):
            raise ValueError(f"{column}[{i}] is {short(turn)}; expected {{role, content}}, both strings")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in value)


def _prompt(row: Row, text: str | Turns) -> Prompt:
    text = _opened(row, text)
    if not (text.strip() if isinstance(text, str) else any(turn.content.strip() for turn in text)):
        raise Drop("empty prompt")
    carried = {name: row[name] for name in ("split", "use_case", "meta") if row.get(name) not in (None, "")}
    id = _name(row.get("id")) or _text_id(text)
    return Prompt.model_validate({"id": id, "text": text, "user": _name(row.get("user")), **carried})


def _opened(row: Row, text: str | Turns) -> str | Turns:
    """A prompt after the row's `system` and `history`, the earlier turns, if it has any."""
    before: Turns = ()
    for name in ("system", "system_prompt"):
        if row.get(name) not in (None, ""):
            if not isinstance(row[name], str):
                raise ValueError(f"{name} is {short(row[name])}; expected a string")
            before = (Message(role="system", content=row[name]),)
            break
    history = row.get("history") or []
    if not isinstance(history, list):
        raise ValueError(f"history is {short(history)}; expected a list of pairs of strings, question and answer")
    for i, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ValueError(f"history[{i}] is {short(pair)}; expected a pair of strings, question and answer")
        before += (Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1]))
    if not before:
        return text
    if isinstance(text, str):
        if text.endswith(ASSISTANT):
            raise ValueError("a transcript with earlier turns beside it (system, history) is not read; give messages")
        text = (Message(role="user", content=text),)
    if text and text[0].role == "system" and before[0].role == "system":
        if text[0] != before[0]:
            raise ValueError(f"the messages open with a system turn, {short(text[0].content)}, other than the row's")
        text = text[1:]
    return before + text


def _text_id(text: str | Turns) -> str:
    plain = text if isinstance(text, str) else [turn.model_dump() for turn in text]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _name(value: Any) -> Any:
    """Numbers become strings (public ids are often integers), an empty CSV cell nobody."""
    return str(value) if isinstance(value, int) else value or None


def _order(value: Any, number: int) -> tuple[int, ...] | None:
    """The order in which a ranking's completions were shown, if that is what the column holds."""
    if not isinstance(value, list) or not all(type(place) is int for place in value):
        return None
    return tuple(value) if sorted(value) == list(range(number)) else None


def one_line(error: ValueError) -> str:
    """What is wrong with a row, and where in it; of pydantic's errors the first."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    field = plain(".".join(str(part) for part in first["loc"]))
    return f"{field}: {message}, found {short(first['input'])}" if field else message


def read_rows(source: str | os.PathLike[str], *required: str) -> list[dict[str, Any]]:
    """Rows of a file of our own making, such as candidates, answers or judgments.

    Raises:
        DataError: if the file is missing or empty, a row is no object, or a required field is not there.
    """
    rows = []
    for place, row in rows_of(str(source)):
        missing = [name for name in required if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(f"{place}: no field {missing[0]!r}; expected {', '.join(required)}")
        rows.append(row)
    if not rows:
        raise DataError(f"{source}: empty file")
    return rows
