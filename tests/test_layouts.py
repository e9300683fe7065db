"""Rows of other tools, as they write them, give the records that a reader would expect; what is not read is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tutelage.data.datasets import read_demonstrations, read_prompts, read_rankings, read_texts
from tutelage.data.records import Ranking
from tutelage.data.sources import DataError


def turn(letter: str) -> dict[str, str]:
    """`s:x` is a system turn, `u:x` the user's, `a:x` the assistant's."""
    role, _, content = letter.partition(":")
    return {"role": {"s": "system", "u": "user", "a": "assistant"}[role], "content": content}


def turns(*letters: str) -> list[dict[str, str]]:
    return [turn(letter) for letter in letters]


def shown(text: Any) -> Any:
    """A prompt as `turn` takes it."""
    return text if isinstance(text, str) else " ".join(f"{m.role[0]}:{m.content}" for m in text)


def order(ranking: Ranking) -> dict[str, int]:
    return dict(zip((c.text for c in ranking.completions), ranking.ranks, strict=True))


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: dict[str, Any]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("prompt", "messages", "read"),
    [
        ("q", turns("u:q", "a:x"), "u:q"),
        ("q", turns("u:q", "a:1", "u:r", "a:x"), "u:q a:1 u:r"),
        ("q", turns("s:be", "u:q", "a:x"), "s:be u:q"),
        ("q", turns("u:other", "a:x"), "q"),
        (turns("s:be", "u:q"), turns("s:be", "u:q", "a:x"), "s:be u:q"),
    ],
)
def test_messages_beside_their_first_turn_are_the_prompt(
    jsonl: Callable[..., str], prompt: Any, messages: Any, read: str
) -> None:
    """UltraChat and no_robots: prompts are those that the same row's demonstration has."""
    row = {"prompt": prompt, "messages": messages}
    (found,) = read_prompts(jsonl(row)).records
    assert shown(found.text) == read
    if read != prompt:
        assert read_demonstrations(jsonl(row)).records[0].prompt == found
    (answered,) = read_prompts(jsonl({"prompt": "q", "messages": messages, "completion": "x"})).records
    assert answered.text == "q"  # as demonstrations have it


def test_dolly(jsonl: Callable[..., str]) -> None:
    row = {"instruction": "q", "context": "c", "response": "x", "category": "qa"}
    (found,) = read_demonstrations(jsonl(row)).records
    assert (shown(found.prompt.text), found.completion) == ("u:q\n\nc", "x")
    assert read_prompts(jsonl(row)).records == [found.prompt]
    assert shown(read_prompts(jsonl(row | {"context": ""})).records[0].text) == "u:q"
    both = {"instruction": "q", "input": "i", "output": "y", "context": "c", "response": "x"}
    assert read_demonstrations(jsonl(both)).records[0].completion == "y"


# A string prompt with answers that are lists of messages


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "context"),
    [
        ("q", turns("u:q", "a:x"), turns("u:q", "a:y"), "u:q"),  # UltraFeedback
        ("q", turns("u:q ", "a:x"), turns("u:q ", "a:y"), "u:q "),
        ("q", turns("a:x"), turns("a:y"), "u:q"),
        ("q", turns("s:be", "u:q", "a:x"), turns("s:be", "u:q", "a:y"), "s:be u:q"),
        ("q", turns("u:q", "a:1", "u:r", "a:x"), turns("u:q", "a:1", "u:r", "a:y"), "u:q a:1 u:r"),  # the first turn
        ("r", turns("u:q", "a:1", "u:r", "a:x"), turns("u:q", "a:1", "u:r", "a:y"), "u:q a:1 u:r"),  # the last
        ("q", turns("a:1", "u:r", "a:x"), turns("a:1", "u:r", "a:y"), "u:q a:1 u:r"),
        ("q", turns("u:q", "a:x"), "y", "u:q"),
        (turns("u:q"), turns("u:q", "a:x"), turns("a:y"), "u:q"),
        (turns("s:be", "u:q"), turns("u:q", "a:x"), turns("a:y"), "s:be u:q"),
        (turns("u:q", "a:1", "u:r"), turns("u:q", "a:1", "u:r", "a:x"), "y", "u:q a:1 u:r"),
        ("q", "x", "y", "q"),  # strings alone stay strings
    ],
)
def test_answers_in_messages_make_the_prompt_a_conversation(jsonl, prompt, chosen, rejected, context):
    source = jsonl({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    (found,) = read_rankings(source).records
    assert (shown(found.prompt.text), order(found)) == (context, {"x": 1, "y": 2})
    (asked,) = read_prompts(source).records
    assert asked == found.prompt
    source = jsonl({"prompt": prompt, "completions": [rejected, chosen], "ranks": [3, 1]})
    (found,) = read_rankings(source).records
    assert (shown(found.prompt.text), order(found)) == (context, {"y": 3, "x": 1})
    assert [asked] == read_prompts(source).records
    (found,) = read_demonstrations(jsonl({"prompt": prompt, "completion": chosen})).records
    assert (shown(found.prompt.text), found.completion) == (context, "x")


def test_answers_to_different_turns_are_dropped_and_an_answer_without_the_prompt_is_refused(jsonl):
    parted = {"prompt": "q", "chosen": turns("u:q", "a:1", "u:r", "a:x"), "rejected": turns("u:q", "a:2", "u:r", "a:y")}
    found = read_rankings(jsonl(parted, parted | {"chosen": "x"}, {"prompt": "q", "chosen": "x", "rejected": "y"}))
    assert (len(found.records), found.dropped) == (1, {"chosen and rejected share no prompt": 2})
    with pytest.raises(DataError, match=r"rows.jsonl:1: chosen is a conversation without the prompt, 'q'"):
        read_rankings(jsonl({"prompt": "q", "chosen": turns("u:other", "a:x"), "rejected": "y"}))
    with pytest.raises(DataError, match=r"rows.jsonl:1: completion is \[.*of which the last is the assistant's"):
        read_demonstrations(jsonl({"prompt": "q", "completion": turns("u:q")}))


words = st.text("abc", min_size=1, max_size=3)


@given(st.lists(words, min_size=1, max_size=5, unique=True).filter(lambda w: len(w) % 2 == 1), words, words, st.data())
def test_every_way_to_write_a_pair_gives_the_same_record(tmp_path_factory, said, x, y, data):
    """The prompt said once more as a string, as messages, or not at all."""
    if x == y:
        return
    context = turns(*(f"{'ua'[i % 2]}:{text}" for i, text in enumerate(said)))
    full = {name: [*context, turn(f"a:{text}")] for name, text in (("chosen", x), ("rejected", y))}
    asked = data.draw(st.sampled_from(said[::2]))
    rows = [full, full | {"prompt": context}, full | {"prompt": asked}, {"prompt": context, "chosen": x, "rejected": y}]
    path = tmp_path_factory.getbasetemp() / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_rankings(path).records
    assert len(found) == 4
    assert {(shown(r.prompt.text), *order(r).items()) for r in found} == {
        (" ".join(f"{m['role'][0]}:{m['content']}" for m in context), (x, 1), (y, 2))
    }


# Earlier turns beside the prompt


def test_system_and_history_open_the_conversation(jsonl):
    alpaca = {"instruction": "q", "input": "", "output": "x", "system": "be", "history": [["1", "2"], ["3", "4"]]}
    (found,) = read_demonstrations(jsonl(alpaca)).records
    assert (shown(found.prompt.text), found.completion) == ("s:be u:1 a:2 u:3 a:4 u:q", "x")
    assert [found.prompt] == read_prompts(jsonl(alpaca)).records
    empty = {"system": "", "history": []}
    for row, prompt in (
        ({"prompt": "q", "completion": "x"}, "q"),
        ({"prompt": "q", "completion": "x", "system_prompt": "be"}, "s:be u:q"),
        ({"messages": turns("u:q", "a:x"), "system": "be"}, "s:be u:q"),
        ({"messages": turns("s:be", "u:q", "a:x"), "system": "be"}, "s:be u:q"),
    ):
        (found,) = read_demonstrations(jsonl(empty | row)).records
        assert shown(found.prompt.text) == prompt
    for row, message in (
        ({"messages": turns("s:is", "u:q", "a:x"), "system": "be"}, "open with a system turn, 'is', other than"),
        ({"prompt": "q", "completion": "x", "system": 3}, "system is 3; expected a string"),
        ({"prompt": "q", "completion": "x", "history": [["1"]]}, r"history\[0\] is \['1'\]; expected a pair"),
    ):
        with pytest.raises(DataError, match=message):
            read_demonstrations(jsonl(row))
    transcript = {name: f"\n\nHuman: q\n\nAssistant: {name}" for name in ("chosen", "rejected")}
    with pytest.raises(DataError, match="a transcript with earlier turns beside it"):
        read_rankings(jsonl(transcript | {"system": "be"}))


# What would be misread is refused by name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "completion": "x", "label": True}, r"label is True: it says whether .* \(KTO\)"),
        ({"prompt": "q", "completion": "x", "label": 0}, r"label is 0: it says whether .* \(KTO\)"),
        ({"prompt": "q", "completion": "x", "label": "False"}, r"label is 'False': it says whether .* \(KTO\)"),
        ({"messages": turns("u:q", "a:x"), "kto_tag": False}, "kto_tag is False: it says whether the answer is wanted"),
        ({"prompt": "q", "completion": "x", "desirable": True}, "desirable is True: it says whether"),
        ({"prompt": "q", "completion": "x", "tools": [{"name": "f"}]}, r"tools is \[.*; only text is read"),
        ({"conversations": [{"from": "function_call", "value": "f"}]}, r"conversations\[0\] is .*, from human"),
    ],
)
def test_columns_that_change_what_a_demonstration_says_are_refused(jsonl, row, message):
    with pytest.raises(DataError, match=f"rows.jsonl:1: {message}"):
        read_demonstrations(jsonl(row))


def test_other_uses_of_those_columns_are_read(jsonl):
    row = {"prompt": "q", "completion": "x", "label": "cooking", "tools": "[]", "images": None}
    assert read_demonstrations(jsonl(row)).records[0].completion == "x"
    kto = {"prompt": "q", "completion": "x", "label": False}
    assert read_prompts(jsonl(kto)).records[0].text == "q"
    assert read_texts(jsonl({"text": "t", "label": 1})).records == ["t"]


def test_stepwise_labels_are_no_ranks(jsonl):
    row = {"prompt": "q", "completions": ["x", "y"], "labels": [True, False]}
    with pytest.raises(DataError, match=r"rankings are read from .*; labels judge single steps \(TRL's stepwise"):
        read_rankings(jsonl(row))


# ShareGPT, NeMo-RL


def test_sharegpt(jsonl):
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}]
    source = jsonl({"conversations": said, "system": "be"}, {"conversations": turns("u:q", "a:x")})
    assert [(shown(d.prompt.text), d.completion) for d in read_demonstrations(source).records] == [
        ("s:be u:q", "x"),
        ("u:q", "x"),
    ]
    assert [shown(p.text) for p in read_prompts(source).records] == ["s:be u:q", "u:q"]
    pair = {"conversations": said[:1], "chosen": said[1], "rejected": {"from": "gpt", "value": "y"}}
    (found,) = read_rankings(jsonl(pair)).records
    assert (shown(found.prompt.text), order(found)) == ("u:q", {"x": 1, "y": 2})


def test_nemo_rl(jsonl):
    completions = [{"rank": r, "completion": turns(f"a:{x}")} for r, x in ((1, "y"), (0, "x"), (2, "z"), (2, "w"))]
    (found,) = read_rankings(jsonl({"context": turns("u:q"), "completions": completions, "task_name": "t"})).records
    assert (shown(found.prompt.text), order(found)) == ("u:q", {"y": 2, "x": 1, "z": 3, "w": 3})
    completions = [{"rank": "best", "completion": turns("a:x")}]
    with pytest.raises(DataError, match=r"completions\[0\] is .*; expected \{completion, rank\}, rank 0 for the best"):
        read_rankings(jsonl({"context": turns("u:q"), "completions": completions}))


# Label Studio, Argilla

ITEMS = [{"id": f"llm_{x}", "title": f"LLM {x}", "body": x} for x in "xyz"]


def ranker(*ids: str, **lists: list[str]) -> dict[str, Any]:
    value = {"ranker": {"rank": [f"llm_{i}" for i in ids], **lists}}
    return {"from_name": "rank", "to_name": "prompt", "type": "ranker", "value": value}


def test_label_studio_json(jsonl):
    task = {
        "id": 7,
        "data": {"prompt": "q", "items": ITEMS},
        "annotations": [
            {"result": [ranker("z", "x", "y")], "completed_by": 1, "was_cancelled": False},
            {"result": [{"type": "choices", "value": {"choices": ["ok"]}}, ranker("x", "z", "y")], "completed_by": 2},
            {"result": [], "completed_by": 3, "was_cancelled": True},
        ],
        "predictions": [],
    }
    found = read_rankings(jsonl(task, task | {"annotations": []}))
    assert [(r.prompt.id, r.prompt.text, r.labeler, order(r)) for r in found.records] == [
        ("7", "q", "1", {"z": 1, "x": 2, "y": 3}),
        ("7", "q", "2", {"x": 1, "z": 2, "y": 3}),
    ]
    assert found.dropped == {"annotation cancelled": 1, "not ranked by anybody": 1}
    assert [p.text for p in read_prompts(jsonl(task, task)).records] == ["q", "q"]


def test_label_studio_pairwise(jsonl):
    data = {"prompt": "q", "answer1": "x", "answer2": "y"}
    sides = {f"{side}@b": [{"type": "pairwise", "value": {"selected": side}}] for side in ("left", "right")}
    task = {"data": data, "annotations": [{"result": r, "completed_by": {"email": who}} for who, r in sides.items()]}
    found = read_rankings(jsonl(task)).records
    assert [(order(r), r.labeler) for r in found] == [({"x": 1, "y": 2}, "left@b"), ({"x": 2, "y": 1}, "right@b")]


def test_label_studio_json_min(jsonl):
    common = {"id": 7, "prompt": "q", "annotator": 4, "annotation_id": 9, "created_at": "2023", "lead_time": 2.5}
    found = read_rankings(
        jsonl(
            common | {"items": ITEMS, "rank": [ranker("y", "z")["value"]]},
            common | {"answer1": "x", "answer2": "y", "comparison": [{"selected": "right"}]},
            common | {"items": ITEMS},
        )
    )
    assert [(order(r), r.labeler) for r in found.records] == [({"y": 1, "z": 2}, "4"), ({"x": 2, "y": 1}, "4")]
    assert found.dropped == {"not ranked by anybody": 1}


@pytest.mark.parametrize(
    ("data", "result", "message"),
    [
        ({"items": ITEMS}, [ranker("x", _=["llm_y"])], "the lists rank, _; which is better is not known"),
        ({"items": ITEMS}, [ranker("x", "w")], "no list of {id, body} items in the task holds the ranked ids"),
        ({"items": ITEMS}, [ranker("x", "y"), ranker("y", "x")], "holds 2 rankings of one task"),
        ({"prompt": None, "items": ITEMS}, [ranker("x", "y")], "the prompt is read from `prompt`"),
        ({"text1": "x", "text2": "y"}, [{"value": {"selected": "left"}}], "for answer1 and answer2"),
    ],
)
def test_label_studio_refused(jsonl, data, result, message):
    task = {"data": {"prompt": "q", **data}, "annotations": [{"result": result, "completed_by": 1}]}
    with pytest.raises(DataError, match=message.replace("{", r"\{")):
        read_rankings(jsonl(task))


FIELDS = {"prompt": "q", "response-1": "x", "response-2": "y", "response-3": "z"}


def test_argilla_records(jsonl):
    ranks = [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}, {"value": "response-3", "rank": 2}]
    record = {
        "id": "r7", "fields": FIELDS, "metadata": {}, "vectors": {}, "_server_id": "s",
        "suggestions": {"ranking": {"value": ["response-3", "response-2", "response-1"], "agent": "a model"}},
        "responses": {
            "ranking": [
                {"value": ranks, "user_id": "ann"},
                {"value": ["response-3", "response-1", "response-2"], "user_id": "bob"},
            ],
            "rating": [{"value": 5, "user_id": "ann"}], "why": [{"value": "because", "user_id": "ann"}],
            "labels": [{"value": ["good", "short"], "user_id": "ann"}],
        },
    }  # fmt: skip
    found = read_rankings(jsonl(record, record | {"responses": {}}))
    assert [(r.prompt.id, r.prompt.text, r.labeler, order(r)) for r in found.records] == [
        ("r7", "q", "ann", {"x": 2, "y": 1, "z": 2}),
        ("r7", "q", "bob", {"z": 1, "x": 2, "y": 3}),
    ]
    assert found.dropped == {"not ranked by anybody": 1}
    assert [p.text for p in read_prompts(jsonl(record)).records] == ["q"]


def test_argilla_flat(jsonl):
    row = FIELDS | {
        "id": "r7", "status": "completed", "_server_id": "s", "rating.responses": [3],
        "ranking.responses": [["response-2", "response-1", "response-3"], ["response-1", "response-2", "response-3"]],
        "ranking.responses.users": ["ann", "bob"], "ranking.responses.status": ["submitted", "draft"],
        "ranking.suggestion": None,
    }  # fmt: skip
    found = read_rankings(jsonl(row))
    assert [(r.prompt.id, r.labeler, order(r)) for r in found.records] == [("r7", "ann", {"y": 1, "x": 2, "z": 3})]
    assert found.dropped == {"response not submitted": 1}


@pytest.mark.parametrize(
    ("fields", "responses", "message"),
    [
        (FIELDS, {"a": [["response-1", "response-9"]]}, "the ranking names 'response-9', which is no field"),
        (FIELDS, {q: [["response-1", "response-2"]] for q in "ab"}, "the questions a, b all rank"),
        ({"text": "q", "x": "1", "y": "2"}, {"a": [["x", "y"]]}, "the prompt is read from prompt or instruction"),
    ],
)
def test_argilla_refused(jsonl, fields, responses, message):
    answered = {question: [{"value": value, "user_id": "ann"} for value in of] for question, of in responses.items()}
    with pytest.raises(DataError, match=f"rows.jsonl:1: {message}|{message}"):
        read_rankings(jsonl({"fields": fields, "responses": answered}))


# Half a character

HALF = "Hi \ud83d!"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    ("reader", "good", "bad", "field"),
    [
        (read_texts, {"text": "t"}, {"text": HALF}, "text"),
        (read_demonstrations, {"prompt": "q", "completion": "x"}, {"prompt": "q", "completion": HALF}, "completion"),
        (read_prompts, {"prompt": "q"}, {"prompt": turns("s:be", f"u:{HALF}")}, r"prompt\[1\].content"),
        (
            read_rankings,
            {"prompt": "q", "chosen": "x", "rejected": "y"},
            {"prompt": "q", "completions": ["x", HALF], "ranks": [1, 2]},
            r"completions\[1\]",
        ),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_its_place(tmp_path, name, reader, good, bad, field):
    path = tmp_path / name
    rows = [json.dumps(row) for row in (good | {"note": "\U0001f600"}, bad)]  # two halves in a row are a character
    path.write_text("\n".join(rows) if name == "rows.jsonl" else f"[{', '.join(rows)}]")
    place = "rows.jsonl:2" if name == "rows.jsonl" else "rows.json, row 2"
    with pytest.raises(DataError, match=rf"{place}: {field} holds half of a surrogate pair, .*; correct it or take it"):
        reader(path)
    path.write_text(rows[0] if name == "rows.jsonl" else f"[{rows[0]}]")
    assert reader(path).records


# Whatever a row holds

leaves = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["", "q", "x", "left", "human", "gpt", "user"])
)
keys = st.sampled_from(
    "role content from value rank completion text id body ranker selected result completed_by user_id status".split()
)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=8)
columns = st.sampled_from(
    "prompt completion completions ranks chosen rejected messages conversations instruction input output context data "
    "annotations annotator annotation_id fields responses a.responses a.responses.users system history label labels "
    "tools id text meta".split()
)


@example(row={"messages": [], "instruction": []})
@given(row=st.dictionaries(columns, values, max_size=6))
def test_any_row_is_read_or_refused(tmp_path_factory, row):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for reader in (read_texts, read_demonstrations, read_rankings, read_prompts):
        with contextlib.suppress(DataError):
            reader(path)


def test_rewardbench(jsonl):
    """A prompt that is a string is what a user asks; without a subset it is text to go on from."""
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "subset": "hep-rust", "chosen_model": "m", "id": 7}
    plain = {name: value for name, value in row.items() if name != "subset"}
    asked = row | {"prompt": turns("s:be kind", "u:q")}
    first, second, third = read_rankings(jsonl(row, plain, asked)).records
    assert [shown(r.prompt.text) for r in (first, second, third)] == ["u:q", "q", "s:be kind u:q"]
    assert order(first) == {"good": 1, "bad": 2}
    assert [r.prompt.meta for r in (first, second, third)] == [{"subset": "hep-rust"}, {}, {"subset": "hep-rust"}]
    assert shown(read_prompts(jsonl(row)).records[0].text) == "u:q"
