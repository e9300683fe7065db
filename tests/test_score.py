"""`tutelage score`: anybody's samples by hand-worked numbers, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage.cli import main
from tutelage.data.sources import DataError
from tutelage.evaluation.score import read

CSV = """model,setting,context,sample,reference
gpt,zero,c1,the cat sat,a cat sat down
gpt,zero,c2,,
gpt,few,c1,Paris,London|the Paris
ppo,zero,c1,dog,a cat sat down
"""


def scores(path: Path, task: str, output: Path) -> Any:
    assert main(["score", str(path), "--task", task, "--output", str(output), "--overwrite"]) == 0
    return json.loads((output / "done.json").read_text())


def test_a_table_of_samples_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.csv"
    path.write_text(CSV)
    done = scores(path, "squad_v2", tmp_path / "out")
    assert done["scores"]["gpt"]["zero"]["f1"]["mean"] == pytest.approx(0.9)
    assert done["scores"]["gpt"]["zero"]["exact_match"]["mean"] == 0.5
    assert done["scores"]["gpt"]["few"]["exact_match"]["mean"] == 1
    assert done["scores"]["ppo"]["zero"]["f1"]["mean"] == 0
    assert (done["samples"], done["empty"]) == (4, {"gpt": 1, "ppo": 0})
    assert "0.900" in capsys.readouterr().out
    assert set(scores(path, "f1", tmp_path / "out")["scores"]["gpt"]["zero"]) == {"f1"}


def test_a_context_with_several_samples_is_one(tmp_path: Path) -> None:
    rows = [{"context": f"c{i % 40}", "sample": "x" if i % 40 < 20 else "y", "reference": "x"} for i in range(200)]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = scores(path, "exact_match", tmp_path / "out")["scores"][""][""]["exact_match"]
    assert (own["mean"], own["n"], own["prompts"]) == (0.5, 200, 40)
    assert own["high"] - own["low"] > 0.25  # of 40 contexts; of 200 rows it would be 0.14


def test_drop_takes_lists_of_spans(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    rows = [
        {"sample": ["blue bird", "red"], "reference": [["red fox", "blue bird"], "7"]},
        {"sample": "7.0", "reference": "6|7"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = scores(path, "drop", tmp_path / "out")["scores"][""][""]
    assert own["f1"]["mean"] == pytest.approx((5 / 6 + 1) / 2)
    assert own["exact_match"]["mean"] == 0.5


def test_bleu_is_sacrebleus(tmp_path: Path) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    samples = ["the cat sat on the mat today", "a dog ran over the green hill", "rain"]
    references = [
        ["the cat sat on a mat today", "the cat is on the mat"],
        ["a dog ran up the green hill"],
        ["snow fell"],
    ]
    path = tmp_path / "s.jsonl"
    rows = [{"sample": s, "reference": r} for s, r in zip(samples, references, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = scores(path, "bleu", tmp_path / "out")["scores"][""][""]["bleu"]
    padded = [[r[0] for r in references], [r[1] if len(r) > 1 else None for r in references]]
    assert own["mean"] == pytest.approx(sacrebleu.corpus_bleu(samples, padded).score)
    assert 0 <= own["low"] <= own["mean"] <= own["high"] <= 100


def test_rouge_l_by_hand(tmp_path: Path) -> None:
    """ "the cat sat" and "the big cat sat": the longest common subsequence has 3 words, so 2·3/(3 + 4)."""
    pytest.importorskip("rouge_score")
    path = tmp_path / "s.csv"
    path.write_text("sample,reference\nthe cat sat,the big cat sat|dogs\n")
    assert scores(path, "rouge_l", tmp_path / "out")["scores"][""][""]["rouge_l"]["mean"] == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("name", "text", "task", "message"),
    [
        ("s.csv", "sample,answer\na,b\n", "f1", r"s\.csv:2: has sample, answer; expected the columns model, setting"),
        ("s.csv", "sample,reference\na,b\nc,\n", "drop", r"s\.csv:3: reference is empty, and drop knows no question"),
        ("s.csv", "sample,reference\na,b\nc\n", "f1", r"s\.csv:3: 1 cells under 2 column names"),
        (
            "s.jsonl",
            '{"sample": "a", "reference": "b"}\n{"sample": 1, "reference": "b"}\n',
            "f1",
            r"s\.jsonl:2: sample is 1",
        ),
        ("s.jsonl", '{"sample": "a", "reference": "b"}\n{"sample": "a", "ref', "f1", r"s\.jsonl:2: not valid JSON"),
        ("s.jsonl", '{"sample": "a", "reference": 3}\n', "f1", r"s\.jsonl:1: reference is 3; expected a text"),
        ("s.jsonl", '{"sample": "a", "reference": "b", "model": 3}\n', "f1", r"s\.jsonl:1: model is 3"),
        ("s.jsonl", '{"sample": ["a"], "reference": "b"}\n', "f1", r"s\.jsonl:1: sample is \['a'\]"),
        ("s.csv", "sample,reference\n", "f1", r"s\.csv: empty file"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, name: str, text: str, task: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(str(tmp_path / name), task)


def test_no_model_library_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(CSV)
    code = (
        "import sys; from tutelage.cli import main; code = main(sys.argv[1:]); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules], code)"
    )
    argv = ["score", str(path), "--task", "squad_v2", "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
