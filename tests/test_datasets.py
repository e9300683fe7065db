"""Every format in every kind of file, every error with its words, and what is written is read back."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tutelage.data.datasets import (
    FORMATS,
    accepted,
    read_demonstrations,
    read_prompts,
    read_rankings,
    read_texts,
    write_jsonl,
)
from tutelage.data.records import Completion, Demonstration, Message, Prompt, Ranking, newest
from tutelage.data.sources import DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
READERS = {
    "texts": read_texts,
    "demonstrations": read_demonstrations,
    "rankings": read_rankings,
    "prompts": read_prompts,
}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ASKED, ASKED_CHAT, MARKED = "Q?", (Message(role="user", content="Q?"),), "\n\nHuman: Q?\n\nAssistant:"

# One row of each accepted shape, with the prompt, the demonstration and the ranked answers a reader should find.
ROWS: dict[str, tuple[dict[str, Any], Any, str | None, list[tuple[str, int]] | None]] = {
    "prompt": ({"prompt": ASKED}, ASKED, None, None),
    "prompt, messages": ({"prompt": [user("Q?")]}, ASKED_CHAT, None, None),
    "prompt like a list": ({"prompt": "[1, 2]"}, "[1, 2]", None, None),
    "instruction": ({"instruction": "Q?"}, ASKED_CHAT, None, None),
    "completion": ({"prompt": ASKED, "completion": "A"}, ASKED, "A", None),
    "completion, messages": ({"prompt": [user("Q?")], "completion": [assistant("A")]}, ASKED_CHAT, "A", None),
    "conversation": ({"messages": [user("Q?"), assistant("A")]}, ASKED_CHAT, "A", None),
    "Alpaca": ({"instruction": "Q?", "input": "", "output": "A"}, ASKED_CHAT, "A", None),
    "Alpaca, input": (
        {"instruction": "Do", "input": "this", "output": "A"},
        (Message(role="user", content="Do\n\nthis"),),
        "A",
        None,
    ),
    "ranking": (
        {"prompt": ASKED, "completions": ["A", "B", "C"], "ranks": [2, 1, 2]},
        ASKED,
        None,
        [("A", 2), ("B", 1), ("C", 2)],
    ),
    "ranking, dicts": (
        {"prompt": [user("Q?")], "completions": [{"text": "A", "policy": "sft"}, {"text": "B"}], "ranks": [1, 2]},
        ASKED_CHAT,
        None,
        [("A", 1), ("B", 2)],
    ),
    "preference": ({"prompt": ASKED, "chosen": "A", "rejected": "B"}, ASKED, None, [("A", 1), ("B", 2)]),
    "preference, messages": (
        {"prompt": [user("Q?")], "chosen": [assistant("A")], "rejected": [assistant("B")]},
        ASKED_CHAT,
        None,
        [("A", 1), ("B", 2)],
    ),
    "preference, prompt repeated": (
        {"prompt": ASKED, "chosen": [user("Q?"), assistant("A")], "rejected": [user("Q?"), assistant("B")]},
        ASKED_CHAT,
        None,
        [("A", 1), ("B", 2)],
    ),
    "Alpaca preference": (
        {"instruction": "Q?", "input": "", "output": "A", "chosen": "B", "rejected": "C"},
        ASKED_CHAT,
        "A",
        [("B", 1), ("C", 2)],
    ),
    "implicit, strings": (
        {"chosen": MARKED + " A", "rejected": MARKED + " B"},
        MARKED,
        None,
        [(" A", 1), (" B", 2)],
    ),
    "implicit, messages": (
        {"chosen": [user("Q?"), assistant("A")], "rejected": [user("Q?"), assistant("B")]},
        ASKED_CHAT,
        None,
        [("A", 1), ("B", 2)],
    ),
}


def save(path: Path, rows: list[Any]) -> str:
    """Write rows as another program would, in the kind of file that the name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    plain = path.with_name("plain." + kind)
    if kind == "jsonl":
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        plain.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "csv":
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {name: cell if isinstance(cell, str) else json.dumps(cell) for name, cell in row.items()}
                for row in rows
            )
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    path.write_bytes(gzip.compress(plain.read_bytes()) if path.suffix == ".gz" else plain.read_bytes())
    return str(path)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    return lambda *rows: save(tmp_path / "rows.jsonl", list(rows))


def test_rankings_of_several_sources_are_one_set(tmp_path: Path) -> None:
    """Of a labeler's several answers the last counts, over all sources; the source at fault is named."""
    ranked = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "ann"}
    first = save(tmp_path / "first.jsonl", [ranked, {"prompt": "q", "chosen": "x", "rejected": "y"}])
    tied = {"prompt": "r", "completions": ["a", "b"], "ranks": [1, 1]}
    second = save(tmp_path / "second.jsonl", [{**ranked, "ranks": [2, 1]}, tied])
    loaded = read_rankings([first, second])
    assert [(r.prompt.text, r.ranks) for r in loaded.records] == [("q", (1, 2)), ("p", (2, 1))]
    assert loaded.dropped == {"older answer of the same labeler": 1, "all completions tied": 1}
    assert loaded.source == f"{first}, {second}"
    broken = save(tmp_path / "broken.jsonl", [ranked, {"prompt": "p"}])
    with pytest.raises(DataError, match=r"broken.jsonl:2: found columns prompt"):
        read_rankings([first, broken])


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.jsonl.gz", "r.csv.gz", "r.parquet.gz"])
@pytest.mark.parametrize("shape", ROWS)
def test_every_format_in_every_file_for_every_kind(tmp_path, name, shape):
    row, prompt, completion, ranked = ROWS[shape]
    source = save(tmp_path / name, [row, row])

    found = read_prompts(source)
    assert [p.text for p in found.records] == [prompt] * 2
    assert (found.dropped, found.source) == ({}, source)

    if completion is None:
        with pytest.raises(DataError, match="demonstrations are read from"):
            read_demonstrations(source)
    else:
        assert [(d.prompt.text, d.completion) for d in read_demonstrations(source).records] == [
            (prompt, completion)
        ] * 2

    if ranked is None:
        with pytest.raises(DataError, match="rankings are read from"):
            read_rankings(source)
    else:
        for found in read_rankings(source).records:
            assert found.prompt.text == prompt
            assert list(zip([c.text for c in found.completions], found.ranks, strict=True)) == ranked


def test_all_formats_are_exercised():
    columns = [set(row) for row, *_ in ROWS.values()] + [{"text"}]
    assert all(any(c.issuperset(f.columns) for c in columns) for f in FORMATS)


def test_the_module_and_the_errors_describe_the_same_table():
    import tutelage.data.datasets

    assert all(str(f) in tutelage.data.datasets.__doc__ for f in FORMATS)
    assert accepted("rankings") == (
        "prompt + completions + ranks | prompt + chosen + rejected | instruction + chosen + rejected (+ input) | "
        "chosen + rejected"
    )


# Texts


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz"])
def test_a_txt_file_is_one_document(tmp_path, name):
    document = "One.\n\nTwo — après.\n"
    data = document.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_texts(tmp_path / name).records == [document]


def test_texts_come_from_a_text_column(jsonl):
    found = read_texts(jsonl({"text": "a\u2028b", "source": 1}, {"text": " "}, {"text": "c"}))
    assert (found.records, found.dropped) == (["a\u2028b", "c"], {"empty text": 1})


# Columns carried and identity


def test_optional_columns_are_carried_and_others_ignored(jsonl):
    row = {"id": 7, "user": "u", "split": "valid", "use_case": "qa", "meta": {"k": [1]}, "labeler": "ann", "stars": 5}
    prompt = Prompt(id="7", text="Q?", user="u", split="valid", use_case="qa", meta={"k": [1]})
    source = jsonl(row | {"prompt": "Q?", "completion": "A", "chosen": "A", "rejected": "B"})
    assert read_prompts(source).records == [prompt]
    assert read_demonstrations(source).records == [Demonstration(prompt=prompt, completion="A", labeler="ann")]
    completions = (Completion(text="A"), Completion(text="B"))
    assert read_rankings(source).records == [
        Ranking(prompt=prompt, completions=completions, ranks=(1, 2), labeler="ann")
    ]


def test_empty_csv_cells_of_optional_columns_are_absent(tmp_path):
    row = {"prompt": "Q?", "completion": "A", "id": "", "user": "", "split": "", "meta": "", "labeler": ""}
    (found,) = read_demonstrations(save(tmp_path / "r.csv", [row])).records
    assert (found.labeler, found.prompt.user, found.prompt.split, found.prompt.meta) == (None, None, None, {})
    assert found.prompt.id == "bd2e2614803f2b08"


def test_an_id_depends_on_the_prompt_text_alone(jsonl):
    a, b, c, d = read_prompts(
        jsonl({"prompt": "Q?"}, {"prompt": "Q?", "user": "u"}, {"prompt": [user("Q?")]}, {"instruction": "Q?"})
    ).records
    assert a.id == b.id == "bd2e2614803f2b08"  # printf '"Q?"' | sha256sum | cut -c-16
    assert c.id == d.id != a.id


# Conversations


def test_a_conversation_is_cut_at_its_last_assistant_turn(jsonl):
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
    (found,) = read_demonstrations(jsonl({"messages": turns})).records
    assert (found.completion, [m.content for m in found.prompt.text]) == ("d", ["a", "b", "c"])
    assert [[m.content for m in p.text] for p in read_prompts(jsonl({"messages": turns})).records] == [list("abcde")]
    assert [[m.content for m in p.text] for p in read_prompts(jsonl({"messages": turns[:4]})).records] == [list("abc")]


def test_further_keys_of_a_message_are_ignored(jsonl):
    turns = [user("a") | {"name": "x"}, assistant("b") | {"tool_calls": None}]
    assert read_demonstrations(jsonl({"messages": turns})).records[0].completion == "b"


# Rows dropped and counted


def test_demonstrations_dropped(jsonl):
    found = read_demonstrations(
        jsonl(
            {"prompt": "Q?", "completion": " \n"},
            {"prompt": "", "completion": "A"},
            {"messages": [user("a")]},
            {"messages": [assistant("a")]},
            {"messages": []},
            {"prompt": "Q?", "completion": "A"},
        )
    )
    assert len(found.records) == 1
    assert found.dropped == {"empty completion": 1, "empty prompt": 2, "no assistant turn": 2}


def test_the_newest_answer_of_a_labeler_counts(jsonl):
    told = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "ann"}
    newer = told | {"completions": ["b", "a"]}
    others = [told | {"labeler": "ben"}, told | {"prompt": "q"}, told | {"completions": ["a", "c"]}]
    nobody = [{k: v for k, v in told.items() if k != "labeler"}] * 2
    loaded = read_rankings(jsonl(told, *others, newer, *nobody))
    assert [(r.labeler, r.prompt.text, r.completions[0].text) for r in loaded.records] == [
        ("ben", "p", "a"), ("ann", "q", "a"), ("ann", "p", "a"), ("ann", "p", "b"), (None, "p", "a"), (None, "p", "a"),
    ]  # fmt: skip
    assert loaded.dropped == {"older answer of the same labeler": 1}
    tied = read_rankings(jsonl(told, told | {"ranks": [1, 1]}))  # she has changed her mind: there is nothing to learn
    assert (tied.records, tied.dropped) == ([], {"older answer of the same labeler": 1, "all completions tied": 1})


def test_rankings_dropped_and_merged(jsonl):
    found = read_rankings(
        jsonl(
            {"prompt": "Q?", "completions": ["a", "b"], "ranks": [1, 1]},
            {"prompt": "Q?", "completions": ["a", "b", "a"], "ranks": [2, 1, 1]},
            {"prompt": "Q?", "completions": ["a", "a"], "ranks": [1, 2]},
            {"prompt": "Q?", "completions": ["a", "  "], "ranks": [1, 2]},
            {"prompt": "Q?", "chosen": "", "rejected": "b"},
            {"chosen": "a", "rejected": "b"},
            {"chosen": MARKED + " a", "rejected": "\n\nHuman: other\n\nAssistant: b"},
            {"chosen": [assistant("a")], "rejected": [assistant("b")]},
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]},
            {"prompt": "Q?", "completions": ["a", "b", {"text": "a", "policy": "best"}, "c"], "ranks": [3, 2, 1, 4]},
        )
    )
    assert found.dropped == {
        "all completions tied": 2,
        "fewer than two distinct completions": 1,
        "empty completion": 2,
        "chosen and rejected share no prompt": 4,
        "duplicate completions merged": 1,
    }
    (merged,) = found.records
    assert merged.ranks == (2, 1, 4)
    assert merged.completions == (Completion(text="b"), Completion(text="a", policy="best"), Completion(text="c"))


def test_transcripts_that_part_before_the_last_turn_share_no_prompt(jsonl):
    longer = MARKED + " yes\n\nHuman: more\n\nAssistant: A"
    assert read_rankings(jsonl({"chosen": longer, "rejected": MARKED + " B"})).dropped == {
        "chosen and rejected share no prompt": 1
    }


# Errors


@pytest.mark.parametrize("source", ["no/such.jsonl", "no/such.csv.gz", "such", "/no/such/folder", "a/b/c", "such.bin"])
def test_missing_file(source):
    with pytest.raises(DataError) as error:
        read_texts(source)
    assert str(error.value) == (
        f"{source}: no such file; give a path to .jsonl, .json, .csv, .parquet, .txt (each also with .gz) or a hub id "
        "(org/name or org/name:split)"
    )


@pytest.mark.parametrize(
    ("name", "content", "start"),
    [
        ("r.jsonl", "", ": is empty; rankings are read from prompt + completions + ranks | "),
        ("r.json", "", ": is empty; "),
        ("r.json", "[]", ": is empty; "),
        ("r.csv", "", ": is empty; "),
        ("r.csv", "prompt,chosen,rejected\n", ": is empty; "),
        ("r.txt", " \n", ": is empty; "),
        ("r.tsv", "a\tb", ": unknown kind of file; give a path to .jsonl, .json, .csv, .parquet, .txt"),
        ("r.jsonl", '\n{"prompt": }', ":2: not valid JSON: Expecting value: line 1 column 12 (char 11)"),
        (
            "r.json",
            '[\n{"prompt": }]',
            ":2: not valid JSON: Expecting value: line 2 column 12 (char 13); if it has one",
        ),
        ("r.json", '{"a": 1}', ": holds {'a': 1}; expected a list of rows; if one row a line, name it .jsonl"),
        ("r.json", "[3]", ", row 1: a row is 3; expected an object with columns prompt + completions + ranks | "),
        ("r.jsonl", "[1, 2]", ":1: a row is [1, 2]; expected an object with columns prompt + completions + ranks | "),
        ("r.csv", 'chosen,rejected\n"1\n2",3\n4\n', ":4: 1 cells under 2 column names; quote commas"),
        ("r.csv", 'a,b\n1,"2\n', ":2: not valid CSV: unexpected end of data"),
        ("r.parquet", "PAR2", ": not valid Parquet: "),
        ("r.jsonl.gz", "plain", ": not a whole gzip file: "),
        ("r.txt", "words", ": found columns text; rankings are read from prompt + completions + ranks | "),
    ],
)
def test_malformed_file(tmp_path, name, content, start):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_rankings(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}{start}")
    assert "\n" not in str(error.value)


def test_text_in_another_encoding(tmp_path):
    (tmp_path / "t.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.txt:1: not UTF-8 text: .*; convert it$"):
        read_texts(tmp_path / "t.txt")


def test_truncated_gzip(tmp_path):
    path = save(tmp_path / "r.jsonl.gz", [{"text": str(i)} for i in range(1000)])
    Path(path).write_bytes(Path(path).read_bytes()[:-50])
    with pytest.raises(DataError, match=r"r\.jsonl\.gz: not a whole gzip file: "):
        read_texts(path)


LONG = "x" * 200
GOOD = {"prompt": "Q?", "completions": ["a", "b"], "ranks": [1, 2]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q?", "completions": list("abcd"), "ranks": [1, 2, 3]}, "ranks has 3 entries for 4 completions"),
        (GOOD | {"ranks": [0, 1]}, "ranks start at 1 (best), found 0"),
        (
            GOOD | {"ranks": [1, "best"]},
            "ranks.1: Input should be a valid integer, unable to parse string as an integer, found 'best'",
        ),
        (GOOD | {"ranks": "1,2"}, "ranks: Input should be a valid list, found '1,2'"),
        (
            GOOD | {"completions": "ab"},
            "completions is 'ab'; expected a list of strings, of {text, policy, finish} or of lists of messages",
        ),
        (
            GOOD | {"completions": ["a", {"text": "b", "score": 2}]},
            "completions.1.score: Extra inputs are not permitted, found 2",
        ),
        (GOOD | {"split": "dev"}, "split: Input should be 'train', 'valid' or 'test', found 'dev'"),
        (
            {"prompt": "Q?", "chosen": "a", "rejected": None, "stars": 5},
            "found columns prompt, chosen, rejected (null), stars; rankings are read from " + accepted("rankings"),
        ),
        ({}, "found columns none; rankings are read from " + accepted("rankings")),
        (GOOD | {"prompt": 3}, "prompt is 3; expected a string or a list of {role, content} messages"),
        (
            GOOD | {"prompt": [user("a"), {"from": "gpt", "value": LONG}]},
            f"prompt[1] is {{'from': 'gpt', 'value': '{'x' * 51}...; expected {{role, content}}, both strings",
        ),
        (
            {"prompt": "Q?", "chosen": [assistant("a"), user("b")], "rejected": "c"},
            "chosen is [{'role': 'assistant', 'content': 'a'}, {'role': 'user', 'content': 'b'}]; "
            "expected a string, or messages of which the last is the assistant's",
        ),
        (
            {"instruction": ["a"], "chosen": "b", "rejected": "c"},
            "instruction and input are [['a'], '']; expected strings",
        ),
    ],
)
def test_a_bad_row_is_named_by_line_field_value_and_remedy(jsonl, row, message):
    source = jsonl(GOOD, row)
    with pytest.raises(DataError) as error:
        read_rankings(source)
    assert str(error.value) == f"{source}:2: {message}"


def test_rows_without_lines_are_named_by_number(tmp_path):
    for name in ("r.json", "r.parquet"):
        source = save(tmp_path / name, [GOOD, GOOD, GOOD | {"ranks": [1]}])
        with pytest.raises(DataError) as error:
            read_rankings(source)
        assert str(error.value) == f"{source}, row 3: ranks has 1 entries for 2 completions"


def test_csv_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text('prompt,completions,ranks\n"two\nlines","[""a"", ""b""]","[1, 2]"\n\nQ?,"[""a"", ""b""]",[1]\n')
    with pytest.raises(DataError, match=r"r\.csv:5: ranks has 1 entries for 2 completions$"):
        read_rankings(path)


def test_a_csv_list_must_be_json(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("messages\n\"[{'role': 'user', 'content': 'hi'}]\"\n")
    with pytest.raises(DataError, match=r"r\.csv:2: messages is \"\[\{'role': .*; expected a string or a list of"):
        read_demonstrations(path)


def test_long_csv_cells_are_read(tmp_path):
    assert len(read_texts(save(tmp_path / "r.csv", [{"text": "x" * 200_000}])).records[0]) == 200_000


# The hub


def test_a_hub_id_is_loaded_by_the_datasets_library(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        asked.append((name, split))
        return [{"prompt": "Q?", "completion": "A", "chosen": None}, {"prompt": 3, "completion": "A"}][: len(asked)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_demonstrations("org/name").records[0].completion == "A"
    with pytest.raises(DataError, match=r"^org/name:test, row 2: prompt is 3; "):
        read_demonstrations("org/name:test")
    assert asked == [("org/name", "train"), ("org/name", "test")]


def test_hub_failures_are_one_clear_line(monkeypatch):
    import datasets

    def load_dataset(name: str, split: str) -> None:
        raise ConnectionError("offline mode\nis enabled")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as error:
        read_texts("org/name")
    assert str(error.value) == (
        "org/name: the datasets library cannot load it: offline mode is enabled; check the id, the split, the network "
        "and HF_HUB_OFFLINE, or give a path to .jsonl, .json, .csv, .parquet, .txt (each also with .gz)"
    )


def test_a_dataset_folder_is_loaded_as_the_hub_would(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "test.jsonl", [{"prompt": "Q?", "completions": ["a", "b"], "ranks": [2, 1]}])
    (folder / "plain.jsonl").unlink()
    assert read_rankings(f"{folder}:test").records[0].ranks == (2, 1)
    with pytest.raises(DataError, match="Unknown split"):
        read_rankings(folder)


# Round trips

strings = st.text(min_size=1).filter(str.strip)
names = st.none() | st.text("abc1", min_size=1)
turns = st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=strings)
prompts = st.builds(
    Prompt,
    id=st.text("abc1", min_size=1),
    text=strings | st.lists(turns, min_size=1, max_size=3).map(tuple),
    user=names,
    split=st.sampled_from([None, "train", "valid", "test"]),
    use_case=names,
    meta=st.dictionaries(st.text(), st.none() | st.integers() | st.lists(st.text(), max_size=2), max_size=2),
)
completions = st.builds(Completion, text=strings, policy=names, finish=st.sampled_from([None, "stop", "length"]))


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    ranked = draw(st.lists(completions, min_size=2, max_size=5, unique_by=lambda c: c.text))
    ranks = st.lists(st.integers(1, 9), min_size=len(ranked), max_size=len(ranked)).filter(lambda r: len(set(r)) > 1)
    return Ranking(prompt=draw(prompts), completions=tuple(ranked), ranks=tuple(draw(ranks)), labeler=draw(names))


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
@given(data=st.data())
@settings(deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, name, data):
    path = tmp_path_factory.getbasetemp() / name
    demonstrations = st.builds(Demonstration, prompt=prompts, completion=strings, labeler=names)
    for kind, records in (
        ("texts", strings),
        ("demonstrations", demonstrations),
        ("rankings", rankings()),
        ("prompts", prompts),
    ):
        written = data.draw(st.lists(records, min_size=1, max_size=2))
        assume(kind != "rankings" or newest(written) == written)  # of a labeler's answers only the last is read
        write_jsonl(path, written)
        found = READERS[kind](path)
        assert found.records == written
        assert found.dropped == {}


def test_a_written_row_is_flat_and_its_bytes_are_stable(tmp_path):
    prompt = Prompt(id="p", text="Q?", user="u")
    record = Ranking(prompt=prompt, completions=(Completion(text="é"), Completion(text="b")), ranks=(1, 2))
    with pytest.raises(OSError, match="No such file or directory"):  # of a run that was deleted, say
        write_jsonl(tmp_path / "new" / "a.jsonl", [record])
    (tmp_path / "new").mkdir()
    for name in ("new/a.jsonl", "new/b.jsonl", "new/a.jsonl.gz", "new/b.jsonl.gz"):
        write_jsonl(tmp_path / name, [record])
    assert (tmp_path / "new/a.jsonl").read_text(encoding="utf-8") == (
        '{"prompt": "Q?", "id": "p", "user": "u", "completions": [{"text": "é"}, {"text": "b"}], "ranks": [1, 2]}\n'
    )
    assert (tmp_path / "new/a.jsonl.gz").read_bytes() == (tmp_path / "new/b.jsonl.gz").read_bytes()
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", ["old"])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tutelage.data.datasets.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_jsonl(tmp_path / "a.jsonl", ["new"])
    assert read_texts(tmp_path / "a.jsonl").records == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


# Real files


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs {name} in the folder shared/data beside the repository")
    return SHARED / name


def test_hh_rlhf():
    source = shared("hh_rlhf/harmless-base-test.jsonl.gz")
    found = read_rankings(source)
    assert found.dropped == {"chosen and rejected share no prompt": 5, "empty completion": 4}
    assert len(found.records) == 2312 - 5 - 4
    assert all(r.prompt.text.endswith("\n\nAssistant:") and r.ranks == (1, 2) for r in found.records)
    first = json.loads(gzip.decompress(source.read_bytes()).splitlines()[0])
    assert [found.records[0].prompt.text + c.text for c in found.records[0].completions] == [
        first["chosen"],
        first["rejected"],
    ]
    assert len(read_prompts(source).records) == 2312 - 5


def test_alpaca_files():
    plain, preference = shared("raschka/instruction-data.json"), shared("raschka/instruction-data-with-preference.json")
    for source in (plain, preference):
        found = read_demonstrations(source)
        assert (len(found.records), found.dropped) == (1100, {})
        assert len(read_prompts(source).records) == 1100
    ranked = read_rankings(preference)
    assert len(ranked.records) == 1094
    assert ranked.dropped == {"fewer than two distinct completions": 6}  # chosen equals rejected
    with pytest.raises(DataError, match=r"instruction-data\.json, row 1: found columns instruction, input, output; "):
        read_rankings(plain)


# The command line must start fast


def test_importing_the_module_imports_no_heavy_library():
    import subprocess
    import sys

    heavy = {"torch", "transformers", "datasets", "pyarrow"}
    code = f"import sys, tutelage.data.datasets; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_rankings_carry_the_order_shown_and_the_subset(tmp_path):
    base = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
    rows = [
        base | {"order": [2, 0, 1], "subset": "x", "meta": {"k": 1}},
        base | {"order": [1, 2, 3]},  # of another meaning
        base | {"order": "random", "subset": 3},
        base | {"order": [True, 0, 2]},
        base | {"completions": ["a", "b", "a"], "order": [2, 0, 1]},  # equal ones were merged
    ]
    path = tmp_path / "r.jsonl"
    write_jsonl(path, rows)
    records = read_rankings(path).records
    assert [r.order for r in records] == [(2, 0, 1), None, None, None, None]
    assert [r.prompt.meta for r in records] == [{"k": 1, "subset": "x"}, {}, {}, {}, {}]
    write_jsonl(tmp_path / "again.jsonl", records)
    assert read_rankings(tmp_path / "again.jsonl").records == records
    with pytest.raises(ValueError, match=r"order is \(0, 0\); expected the places 0 to 1"):
        Ranking(prompt=records[0].prompt, completions=records[0].completions[:2], ranks=(1, 2), order=(0, 0))
