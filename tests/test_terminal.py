"""What files, models and libraries say reaches the terminal as text, without control characters and secrets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.cli import main
from tutelage.evaluation import chat as chats
from tutelage.evaluation.compare import compare
from tutelage.runs import Run
from tutelage.settings.sampler import LocalSampling
from tutelage.terminal import masked, message, plain, printable, reason, short

TITLE = "\x1b]0;OWNED\x07"  # sets a terminal's title


def test_control_characters_are_shown_and_not_sent() -> None:
    assert printable(TITLE) == "\\x1b]0;OWNED\\x07"
    assert printable("a\tb\r\nc\rd\x9bm\u202eabc\u2066\ud800\x7f") == "a\tb\nc\\rd\\x9bm\\u202eabc\\u2066\\ud800\\x7f"
    assert printable("naïve 日本語 👩\u200d🚀 نص") == "naïve 日本語 👩\u200d🚀 نص"


@given(st.text())
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    once = printable(text)
    assert printable(once) == once
    assert all(c.isprintable() or c in "\n\t" or not c.isascii() for c in once)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://labels:hunter2@db/work: refused", "postgresql://labels:***@db/work: refused"),
        ("postgresql+psycopg://u:p@ss/w0rd@db:5432/x", "postgresql+psycopg://u:***@db:5432/x"),
        ("postgresql://labels@db/work", "postgresql://labels@db/work"),
        ("https://user:pass@host/x and https://t0ken@host", "https://user:***@host/x and https://***@host"),
        ("https://host:8080/a is down, ask me@home.org", "https://host:8080/a is down, ask me@home.org"),
        ("GET /models?token=abc&rev=1", "GET /models?token=***&rev=1"),
        ("host=db password=hunter2 user=u", "host=db password=*** user=u"),
        ("max_prompt_tokens=0: too few", "max_prompt_tokens=0: too few"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        (f"401 for hf_{'aB3' * 11}x", "401 for ***"),
        (f"401 for sk-{'aB3' * 16}", "401 for ***"),
        (f"sk-proj-{'aB3_-' * 20}, sk-ant-api03-{'aB3-_' * 18}.", "***, ***."),
        (f"ghp_{'aB3' * 12} github_pat_{'aB3' * 7}x_{'aB3' * 19}", "*** ***"),
        ("glpat-aB3xaB3xaB3-aB3xaB_x AKIAIOSFODNN7EXAMPLE", "*** ***"),
        ("runs/hf_instructgpt_reward_v2/model", "runs/hf_instructgpt_reward_v2/model"),
        ("sk-experiment-2024-06-01.jsonl", "sk-experiment-2024-06-01.jsonl"),
        ("runs/ghs_of_the_old_experiment/glpat-labels.jsonl", "runs/ghs_of_the_old_experiment/glpat-labels.jsonl"),
        ("akiakakorpusvonheute.jsonl", "akiakakorpusvonheute.jsonl"),
        ("401 for of-the-environment", "401 for ***"),
    ],
)
def test_secrets_are_masked(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "of-the-environment")
    assert masked(text) == shown


def test_reasons_and_values_are_one_line() -> None:
    assert reason(OSError("a\n\n b ")) == "a b"
    assert reason(KeyError()) == "KeyError"
    assert short("a\n" * 100) == short("a\n" * 10**6) == repr("a\n" * 100)[:77] + "..."
    assert plain("a\n" * 100) == plain("a\n" * 10**6) == repr("a\n" * 100)[1:78] + "..."
    assert plain("a'\n") == "a'\\n"


def test_messages_are_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(f"stages: {{sft: {{stage: '{TITLE.encode('unicode_escape').decode()}'}}}}")
    argv = ["run", str(tmp_path / f"{TITLE}.yaml"), "--output", str(tmp_path / "o"), "--set", "a=b"]
    assert main(argv) == 2
    assert main(["sft", f"--{TITLE}"]) == 2
    assert main(["label", "serve", str(tmp_path / "w"), "--database", "mysql://u:hunter2@db/x"]) == 2
    Run("sft", tmp_path).say(f"read {TITLE} from https://u:hunter2@host")
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown
    assert "hunter2" not in shown
    assert "u:***@host" in shown


def test_compare_prints_text_only(
    folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": f"hi {TITLE} there"}))
    compare([str(folders("llama"))], str(tmp_path / "p.jsonl"), None, 1, LocalSampling(max_new_tokens=2), 0)
    shown = capsys.readouterr().out
    assert "\\x1b]0;OWNED\\x07" in shown
    assert "\x1b" not in shown


def test_chat_prints_text_only(
    folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["hello", "/quit"])
    answer: Any = SimpleNamespace(completion=SimpleNamespace(text=TITLE))
    monkeypatch.setattr(chats, "complete", lambda *a, **b: [answer])
    monkeypatch.setattr("builtins.input", lambda *a: next(lines))
    chats.chat(str(folders("llama")), LocalSampling(max_new_tokens=4), 0)
    shown = capsys.readouterr().out
    assert "\\x1b]0;OWNED\\x07" in shown
    assert "\x1b" not in shown


def test_a_message_of_anything() -> None:
    assert message(OSError(2, "No such file", "a\x1bb")) == "[Errno 2] No such file: 'a\\x1bb'"
