"""lm-eval over our folders: a local task, offline, with numbers that transformers agrees with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tutelage.evaluation import harness
from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer
from tutelage.settings.benchmarks import LmEvalConfig

TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["blue", "green", "glad"]
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
"""
ROWS = [
    {"question": "the sky is", "answer": 0},
    {"question": "the hill was", "answer": 1},
    {"question": "the dog was", "answer": 2},
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "colours.yaml").write_text(TASK.format(file=folder / "data.jsonl"))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_local_task_over_two_models(
    task: Path, folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    models = {"a": str(folders("llama")), "b": str(folders("gpt2"))}
    config = LmEvalConfig(models=models, tasks=["colours"], include_path=str(task), output=tmp_path / "run")
    harness.run(config)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert done["chat_template"] == {"a": False, "b": False}
    for name, folder in models.items():
        tokenizer = load_tokenizer(folder)
        policy = load_policy(folder, tokenizer)
        right = 0
        for row in ROWS:
            sums = []
            for choice in ("blue", "green", "glad"):
                head, whole = (tokenizer(t)["input_ids"] for t in (row["question"], f"{row['question']} {choice}"))
                with torch.inference_mode():
                    logs = policy(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
                sums.append(sum(float(logs[t - 1, whole[t]]) for t in range(len(head), len(whole))))
            right += sums.index(max(sums)) == row["answer"]
        acc = done["results"]["colours"]["acc"][name]
        assert acc["mean"] == pytest.approx(right / 3)
        assert acc["low"] <= acc["mean"] <= acc["high"]


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_named(task: Path, folders: Callable[[str], Path], tmp_path: Path) -> None:
    config = LmEvalConfig(
        models={"a": str(folders("llama"))}, tasks=["colors_"], include_path=str(task), output=tmp_path / "run"
    )
    with pytest.raises(ValueError, match="lm-eval has no task colors_"):
        harness.run(config)


def test_the_template_is_used_where_there_is_one(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders("llama")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    ways = [(str(f), choice) for f in (folder, tmp_path / "chat") for choice in ("auto", "always", "never")]
    assert [harness.wants_template(*way) for way in ways] == [False, True, False, True, True, False]
