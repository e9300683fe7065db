"""The shipped base model is what its provenance says, and small enough to ship."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.models.tokens import PLAIN_TEMPLATE, load_tokenizer
from tutelage.shipped import BASE, resolve_model


def test_the_shipped_base_is_the_recorded_one() -> None:
    weights = BASE / "model.safetensors"
    recorded = re.search(r"`([0-9a-f]{64})`", (BASE / "PROVENANCE.md").read_text(encoding="utf-8"))
    assert recorded is not None
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == recorded[1]
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 4_000_000


def test_its_prompts_look_like_its_corpus() -> None:
    tokenizer = load_tokenizer(BASE)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    messages = [{"role": "user", "content": "I am sad."}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "User: I am sad.\nAssistant:"


def test_base_names_the_shipped_model_but_for_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [resolve_model(source) for source in ("base", "./base", "org/base")] == [str(BASE), "./base", "org/base"]
    (tmp_path / "base").write_text("a file is no model")
    assert resolve_model("base") == str(BASE)
    (tmp_path / "base").unlink()
    (tmp_path / "base").mkdir()
    assert resolve_model("base") == "base"


def test_compare_knows_it_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "Tom sees"}\n')
    assert main(["compare", "base", "--prompts", "p.jsonl", "--max-new-tokens", "4"]) == 0
    header = capsys.readouterr().out.splitlines()[1]
    assert header.split() == ["┃", "prompt", "┃", "base", "┃"]
