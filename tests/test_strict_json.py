"""No file of ours holds NaN or Infinity, which are no JSON."""

from __future__ import annotations

import ast
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tutelage.cli import main
from tutelage.data.datasets import write_jsonl
from tutelage.data.records import Completion, Prompt, Ranking, Request, Sample
from tutelage.data.strict_json import dumps
from tutelage.files import write_json
from tutelage.runs import Run
from tutelage.sampling.rollout import Rollout, episodes_of
from tutelage.stages import online

PACKAGE = Path(__file__).parents[1] / "src" / "tutelage"
# Modules that write JSON by themselves, and why they may: what they write has no numbers with a fraction.
BY_THEMSELVES = {
    "data/strict_json.py": "is where it is done",
    "data/datasets.py": "the text of a prompt, to make an id of it",
    "labeling/store/backup.py": "rows, to make a digest of them",
    "labeling/store/exchange.py": "texts and ranks, to recognise an answer",
    "labeling/web/manage.py": "an id, and an event's detail as the database holds it",
    "rewards/endpoint.py": "what a server is sent: a NaN is refused, so that no reward is made of null",
}


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_not_finite_is_null_at_any_depth() -> None:
    content = {"a": math.nan, "b": [1.0, -math.inf, (math.inf, {"c": math.nan})], "d": "NaN", "e": True, "f": 3}
    assert strict(dumps(content)) == {"a": None, "b": [1.0, None, [None, {"c": None}]], "d": "NaN", "e": True, "f": 3}


def test_json_is_written_in_one_place() -> None:
    writers = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            written = isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps", "JSONEncoder")
            if written and isinstance(node.value, ast.Name) and node.value.id == "json":  # type: ignore[union-attr]
                writers.add(file.relative_to(PACKAGE).as_posix())
            if isinstance(node, ast.ImportFrom) and node.module == "json":
                writers.add(file.relative_to(PACKAGE).as_posix())
    assert writers == set(BY_THEMSELVES)


def test_every_writer_of_numbers_writes_null(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_json(tmp_path / "result.json", {"loss": math.nan})
    ranking = Ranking(
        prompt=Prompt(id="p", text="?", meta={"x": math.inf}), completions=(Completion(text="a"), Completion(text="b")),
        ranks=(1, 2),
    )  # fmt: skip
    write_jsonl(tmp_path / "rows.jsonl", [ranking, {"score": math.nan}])  # type: ignore[list-item]
    write_jsonl(tmp_path / "rows.jsonl.gz", [{"score": math.nan}])
    write_json(tmp_path / "inputs.json", {"rate": math.nan})
    run = Run("sft", tmp_path)
    run.log(0, {"loss/train": math.nan})
    run.forget_after(0)
    episodes = episodes_of([ranking.prompt], [Request((2,), 0, 2, ())], [Sample((3, 4), (0.0, 0.0), "length")])
    nothing, scores = torch.zeros(1, 2), torch.tensor([math.nan])
    rollout = Rollout(
        **vars(episodes), scores=scores, ref_logprobs=nothing, values=None, rewards=nothing, advantages=nothing,
        returns=None,
    )  # fmt: skip
    online.keep_samples(run, 0, rollout, tokenizer)
    run.finish(kl=math.nan)
    files = {path.name: path for path in tmp_path.iterdir()}
    written = ("rows.jsonl", "rows.jsonl.gz", "metrics.jsonl", "samples.jsonl")
    assert set(files) == {"result.json", "inputs.json", "done.json", *written}
    for name, path in files.items():
        text = gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text()
        rows = [strict(line) for line in text.splitlines()] if ".jsonl" in name else [strict(text)]
        assert "null" in text
        assert rows


@pytest.mark.filterwarnings("error")
def test_answers_to_one_prompt_have_no_standard_error(
    folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the cat"}])
    models = f"{{a: {folders('llama')}, b: {folders('gpt2')}}}"
    argv = ["answer", "--models", models, "--reference", "a", "--prompts", str(tmp_path / "p.jsonl")]
    assert main([*argv, "--sampler.max-new-tokens", "4", "--output", str(tmp_path / "run")]) == 0
    done = strict((tmp_path / "run" / "done.json").read_text())
    assert set(done["kl"]) == {"b"}
    assert done["kl_standard_error"] == {}
    assert "Warning" not in capsys.readouterr().err
