"""Broken files, one by one: what is wrong, in which file and row, and what to do, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.data import sources
from tutelage.data.datasets import read_demonstrations, read_prompts, read_rankings, read_texts
from tutelage.data.sources import DataError

ROW = {"prompt": "q", "completion": "x"}
pytestmark = pytest.mark.usefixtures("bounded")


def parquet(columns: dict[str, Any] | pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), file, **options)
    return file.getvalue()


def damaged_footer() -> bytes:
    content = bytearray(parquet({"prompt": ["a"] * 50, "completion": ["b"] * 50}))
    content[-60:-20] = bytes(byte ^ 0xFF for byte in content[-60:-20])
    return bytes(content)


def one_value_in_many_rows() -> bytes:
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 5_000_000]))
    return parquet({"prompt": rows, "completion": rows}, compression="zstd", store_schema=False)


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


LINE = json.dumps(ROW)
BROKEN: dict[str, tuple[str, bytes | Callable[[], bytes], str]] = {
    "deep": ("r.jsonl", f'{LINE}\n{{"prompt": {deep(10**5)}}}'.encode(), r":2: not valid JSON: nested too deeply"),
    "deeper than needed": (
        "r.jsonl", f'{{"prompt": "q", "completion": "x", "meta": {{"a": {deep(70)}}}}}'.encode(),
        ":1: meta is nested more than 64 deep; flatten it",
    ),
    "deep list": ("r.json", f'[{LINE}, {{"meta": {deep(70)}}}]'.encode(), ", row 2: meta is nested more than 64"),
    "deep cell": ("r.csv", f"prompt,meta\nq,{{\"a\":{deep(70)}}}".encode(), ":2: "),
    "name twice": (
        "r.jsonl", f'{LINE}\n{{"prompt": "q", "completion": "x", "prompt": "r"}}'.encode(),
        ":2: not valid JSON: an object has the name 'prompt' twice, .*; keep one",
    ),
    "name twice inside": ("r.jsonl", b'{"prompt": "q", "meta": {"a": 1, "a": 2}}', ":1: .* the name 'a' twice"),
    "name twice in a list": ("r.json", b'[{"prompt": "q", "prompt": "r"}]', ": .* the name 'prompt' twice"),
    "column twice": ("r.csv", b"prompt,completion,prompt\nq,x,r", ":1: the column 'prompt' comes twice; rename"),
    "column twice in Parquet": (
        "r.parquet", lambda: parquet(pa.Table.from_arrays([pa.array(["q"])] * 2, ["prompt", "prompt"])),
        ": the column 'prompt' comes twice",
    ),
    "not UTF-8": ("r.jsonl", f"{LINE}\n{LINE}\n".encode() + b'{"prompt": "\xff"}', ":3: not UTF-8 text: .*; convert"),
    "not UTF-8, csv": ("r.csv.gz", gzip.compress(b"prompt,completion\n" + b"a,b\n" * 900 + b"\xe9\n"), ":902: not"),
    "UTF-16": ("r.csv", "prompt,completion\nq,x".encode("utf-16"), ":1: not UTF-8 text"),
    "UTF-16 without its mark": ("r.csv", "prompt\nq".encode("utf-16-le"), ":1: holds a null byte, .*; if it is UTF-16"),
    "null byte": ("r.csv", b"prompt,completion\nq,x\nq,\0\n", ":3: holds a null byte"),
    "not text": ("r.txt", b"\0" * 100, ": holds a null byte"),
    "half a character in a cell": ("r.csv", rb'prompt,meta' + b'\nq,"{""a"": ""\\ud800""}"', ":2: meta.a holds half"),
    "half a character in a name": ("r.jsonl", rb'{"prompt": "q", "\ud800": 1}', ":1: a name holds half of a surrogate"),
    "whole number past 64 bits": ("r.jsonl", b'{"prompt": "q", "completion": "x", "id": 1%s}' % (b"0" * 5000), ":1: "),
    "no gzip": ("r.jsonl.gz", LINE.encode(), ": not a whole gzip file: Not a gzipped file"),
    "half a gzip": ("r.jsonl.gz", gzip.compress(LINE.encode() * 100)[:-20], ": not a whole gzip file"),
    "gzip of nothing": ("r.jsonl.gz", b"", ": is empty"),
    "bomb": ("r.jsonl.gz", lambda: gzip.compress(f"{LINE}\n".encode() * 3_000_000, 9), ": expands to more than 100"),
    "bomb of one line": ("r.txt.gz", lambda: gzip.compress(b"x" * 10**8), ": expands to .* its size; if"),
    "bomb of one value": ("r.parquet", one_value_in_many_rows, ", row 1: expands to more than 100 times its size"),
    "footer": ("r.parquet", damaged_footer, ": not valid Parquet: .*; write it anew"),
    "no Parquet": ("r.parquet.gz", gzip.compress(b"PAR1" * 100), ": not valid Parquet"),
    "a date": (
        "r.parquet", lambda: parquet(pa.Table.from_pylist([ROW | {"meta": {"a": b"\xff"}}])), ", row 1: meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files(what: str, tmp_path: Path) -> None:
    name, content, message = BROKEN[what]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(DataError, match=f"^{tmp_path / name}{message}") as caught:
        (read_texts if ".txt" in name else read_demonstrations)(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [2**63, 10**400, 0, -1, float("inf"), float("nan"), 1.5, "x", None, [1]])
def test_broken_ranks(rank: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completions": ["a", "b"], "ranks": [1, rank]}))
    with pytest.raises(DataError, match=rf"^{path}:1: ranks"):
        read_rankings(path)


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    for name, content in (("r.jsonl", LINE), ("r.csv", "prompt,completion\nq,x"), ("r.json", f"[{LINE}]")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert read_demonstrations(tmp_path / name).records[0].completion == "x"


def test_sources_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.jsonl")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for source in (tmp_path / "r.jsonl", tmp_path / "zero.txt", Path("/dev/zero")):
        with pytest.raises(DataError, match=f"^{source}: is a pipe or device, .*; write it to a file and give that"):
            read_texts(source)


def test_texts_of_absurd_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_LINE", 1000)
    monkeypatch.setattr(sources, "LONGEST_TEXT", 1000)
    long = "x" * 2000
    for name, content, place in (
        ("r.jsonl", f"{LINE}\n{long}\n{LINE}", ":2: longer than 1,000 characters; cut it into several rows"),
        ("r.csv", f"prompt\nq\n{long}", ":3: longer than 1,000 characters"),
        ("r.csv", 'prompt\n"' + "x\n" * 1000, ":2: not valid CSV: field larger than field limit"),
        ("r.json", f"[{long}", ": longer than 1,000 characters; write it as .jsonl"),
        ("r.txt", long, ": longer than 1,000 characters; write it as .jsonl"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=f"^{tmp_path / name}{place}"):
            read_prompts(tmp_path / name)
