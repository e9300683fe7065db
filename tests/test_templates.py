"""Chat templates come with a model's folder and are programs: those without an end are ended."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from tutelage.cli import main
from tutelage.data.records import Message
from tutelage.models import templates
from tutelage.models.tokens import encode_prompt, load_tokenizer

ASKED = (Message(role="user", content="Hi"),)
LONG = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDLESS = {
    "loops": f"{LONG}{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "loops that write": f"{LONG}x{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "a filter that loops": "{{ lipsum(n=9999999) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a large string": "{{ 'x' * 99999999999 }}",
    "a wide field": "{{ '%99999999999d' % 1 }}",
    "a large list": "{{ [0] * 99999999999 }}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "squaring": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1.0)
    templates._watcher.cache_clear()


@pytest.fixture
def own(folders: Callable[[str], Path], tmp_path: Path) -> PreTrainedTokenizerBase:
    shutil.copytree(folders("llama"), tmp_path / "model")
    return load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize("what", ENDLESS)
def test_templates_without_end(own: PreTrainedTokenizerBase, what: str) -> None:
    own.chat_template = ENDLESS[what]
    before, began = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    with pytest.raises(
        ValueError, match=r"^the chat template of .*/model has no end: it takes more than .* another model"
    ):
        encode_prompt(own, ASKED)
    assert time.process_time() - began < 20
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_they_end_in_other_threads_too(own: PreTrainedTokenizerBase) -> None:
    own.chat_template = ENDLESS["loops"]
    errors = []

    def work() -> None:
        try:
            encode_prompt(own, ASKED)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert len(errors) == 1


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages[7].role }}", "{% if %}", "{{ [] | first | int + {} }}"]
)
def test_broken_templates_name_their_folder(own: PreTrainedTokenizerBase, template: str) -> None:
    own.chat_template = template
    with pytest.raises(ValueError, match=r"^the chat template of .*/model refuses turns of user: ") as caught:
        encode_prompt(own, ASKED)
    assert "\n" not in str(caught.value)


def test_two_threads_leave_no_limit_behind() -> None:
    """Whatever their order: here the first would leave before the second, if both could be within at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    first, second, left = threading.Event(), threading.Event(), threading.Event()

    def render() -> None:
        with templates.bounded(""):
            first.set()
            second.wait(0.5)
        left.set()

    thread = threading.Thread(target=render)
    thread.start()
    assert first.wait(10)
    with templates.bounded(""):
        second.set()
        assert left.wait(10)
        assert resource.getrlimit(resource.RLIMIT_AS) != before
    thread.join(10)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 }}", "{{ 2**3 }}", "{{ (messages|length)\n** 2 }}"])
def test_powers_are_refused(own: PreTrainedTokenizerBase, template: str) -> None:
    own.chat_template = template
    with pytest.raises(ValueError, match=r"^the chat template of .*/model raises to a power .* another model$"):
        encode_prompt(own, ASKED)


@pytest.mark.parametrize(
    "template",
    [
        "**{{ messages[0].content }}**",
        "**{% set m = dict(**messages[0]) %}{{ m.content }}**",
        "**{{ dict(messages[0], ** messages[0]).content }}**{# 2 ** 3 #}",
    ],
)
def test_other_stars_are_no_power(own: PreTrainedTokenizerBase, template: str) -> None:
    own.chat_template = template
    assert own.decode(encode_prompt(own, ASKED)) == "**Hi**"


def test_the_command_line_ends(
    own: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model" / "chat_template.jinja").write_text(ENDLESS["loops"])
    assert main(["chat", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tutelage: the chat template of {tmp_path / 'model'} has no end")
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "BPE"}}', '{"added_tokens": [[]]}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_tokenizers_name_their_folder(
    own: PreTrainedTokenizerBase, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "model" / name).write_text(content)
    try:
        load_tokenizer(tmp_path / "model")
    except ValueError as error:
        told = str(error)
    else:
        told = str(tmp_path / "model")  # what is left is a tokenizer too
    assert told.startswith(str(tmp_path / "model"))


def test_a_model_folder_with_a_pipe_is_refused(own: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").unlink()
    os.mkfifo(tmp_path / "model" / "config.json")
    with pytest.raises(ValueError, match=r"model/config.json: is a pipe or device"):
        load_tokenizer(tmp_path / "model")
