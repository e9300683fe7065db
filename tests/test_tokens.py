"""Prompts are the beginning of what training reads, completions end once, and sampled ids survive being text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from conftest import SENTENCES, STORIES
from tutelage.models import tokens
from tutelage.models.tokens import (
    PLAIN_TEMPLATE,
    decode_completion,
    decode_continuation,
    encode_pair,
    encode_prompt,
    load_tokenizer,
    require_same_tokens,
    same_tokens,
)
from tutelage.records import Message, Text
from tutelage.stages.pretrain import train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = ("stories260k", "bytes", "chatml")


def chat(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(role=("user", "assistant")[i % 2], content=c) for i, c in enumerate(contents))


PROMPTS: list[Text] = [
    "Once upon a time,",
    "Once upon a ",
    "Human: Hi\n\nAssistant:",
    chat("What is two and two?"),
    chat("What is two and two?", "Four.", "And three?"),
]


def make(kind: str, folder: Path | None = None) -> PreTrainedTokenizerBase:
    if kind == "stories260k":
        if not STORIES.is_dir():
            pytest.skip(f"{STORIES} is absent")
        return load_tokenizer(STORIES)
    tokenizer = train_tokenizer(SENTENCES, 320)
    if kind == "chatml":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    return tokenizer


@pytest.fixture(params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return make(request.param)


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
@pytest.mark.parametrize("completion", ["The sky is blue.", " The sky", "\nblue", "zzz", "é…"])
def test_training_reads_the_prompt_that_sampling_starts_from(
    prompt: Text, completion: str, any_tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt_ids, ids = encode_pair(any_tokenizer, prompt, completion)
    assert prompt_ids == encode_prompt(any_tokenizer, prompt)
    assert any_tokenizer.eos_token_id not in prompt_ids[-1:]
    assert ids.count(any_tokenizer.eos_token_id) == 1
    assert ids[-1] == any_tokenizer.eos_token_id
    assert encode_pair(any_tokenizer, prompt, completion, ended=False)[1] == ids[:-1]
    assert completion.strip() in any_tokenizer.decode(ids)


def test_a_completion_that_brings_its_end_gets_no_second(any_tokenizer: PreTrainedTokenizerBase) -> None:
    eos = any_tokenizer.eos_token
    assert encode_pair(any_tokenizer, PROMPTS[3], "blue" + eos)[1] == encode_pair(any_tokenizer, PROMPTS[3], "blue")[1]
    assert encode_pair(any_tokenizer, PROMPTS[3], "")[1][-1:] == [any_tokenizer.eos_token_id]


def test_a_template_brings_its_own_special_tokens(any_tokenizer: PreTrainedTokenizerBase) -> None:
    """Start tokens come once: from the tokenizer for strings and the plain template, from other templates by itself."""
    bos = any_tokenizer.bos_token_id
    for prompt in PROMPTS:
        ids = encode_prompt(any_tokenizer, prompt)
        assert ids.count(bos) == (0 if bos is None else 1)
    if bos is not None:
        any_tokenizer.chat_template = "{{ bos_token }}" + CHATML
        assert encode_prompt(any_tokenizer, PROMPTS[3]).count(bos) == 1


def test_plain_conversation() -> None:
    tokenizer = make("bytes")
    text = tokenizer.decode(encode_prompt(tokenizer, PROMPTS[4]))
    assert text == ("User: What is two and two?\nAssistant: Four.<|endoftext|>\nUser: And three?\nAssistant:")
    assert tokenizer.decode(encode_pair(tokenizer, PROMPTS[3], "Four.")[1]) == " Four.<|endoftext|>"


WORDS = st.lists(st.sampled_from("the sky is blue Two and two, four. ça 你好 x1! (a)".split()), min_size=1, max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@given(words=WORDS, ended=st.booleans())
@settings(max_examples=30, deadline=None)
def test_sampled_ids_survive_being_text(kind: str, words: list[str], ended: bool) -> None:
    """What RL scored as ids, the reward model's training reads as the same ids, end-of-text included."""
    tokenizer = make(kind)
    prompt = chat("What is two and two?")
    prompt_ids, sampled = encode_pair(tokenizer, prompt, " ".join(words), ended)
    text = decode_completion(tokenizer, sampled)
    assert text == " ".join(words)
    assert encode_pair(tokenizer, prompt, text, ended) == (prompt_ids, sampled)


@given(ids=st.lists(st.integers(2, 319), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_sampled_ids_give_text_with_the_same_final_token(ids: list[int]) -> None:
    tokenizer = make("bytes")
    text = decode_completion(tokenizer, [*ids, tokenizer.eos_token_id])
    assert encode_pair(tokenizer, chat("Hi"), text)[1][-1] == tokenizer.eos_token_id


def test_padding_differs_from_the_end(tmp_path: Path) -> None:
    for kind in ("stories260k", "bytes"):
        tokenizer = make(kind)
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    tokenizer = make("bytes")
    tokenizer.pad_token = tokenizer.eos_token  # as many published folders have it
    tokenizer.save_pretrained(tmp_path / "shared")
    loaded = load_tokenizer(tmp_path / "shared")
    assert loaded.pad_token_id not in (None, loaded.eos_token_id)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=make("bytes").backend_tokenizer)
    endless.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer has no end-of-text token"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_template_gets_the_plain_one(tmp_path: Path) -> None:
    tokenizer = make("bytes")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat_template == PLAIN_TEMPLATE
    loaded.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == PLAIN_TEMPLATE


def test_same_tokens() -> None:
    a, b = make("bytes"), train_tokenizer(SENTENCES[:2], 300)
    assert same_tokens(a, make("bytes"))
    assert not same_tokens(a, b)
    with pytest.raises(ValueError, match=rf"reward_model x: .* \({len(b)} against {len(a)} tokens\)"):
        require_same_tokens(a, b, "reward_model x")
    other_end = make("bytes")
    other_end.eos_token = "!"
    assert not same_tokens(a, other_end)


def test_a_continuation_of_a_string_keeps_the_space_at_the_seam(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt_ids, ids = encode_pair(tokenizer, "Tom has", " a ball.")
    assert decode_continuation(tokenizer, prompt_ids, ids) == " a ball."


def test_many_pairs_are_encoded_as_each_alone(any_tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = [(prompt, text, ended) for prompt in PROMPTS for text in ("blue", " is", "") for ended in (True, False)]
    assert tokens.encode_pairs(any_tokenizer, pairs) == [encode_pair(any_tokenizer, *pair) for pair in pairs]
    assert tokens.encode_pairs(any_tokenizer, []) == []


def test_ids_of_many_texts_are_kept(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once, for these texts and this tokenizer; few are not kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = ["The cat sat.", "", "two\0three", "The cat sat."]
    expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    monkeypatch.setattr(tokens, "KEPT_CHARACTERS", 1000)
    assert tokens.encode_all(tokenizer, texts, specials=False, keep=True) == expected
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tokens, "KEPT_CHARACTERS", 10)
    assert tokens.encode_all(tokenizer, texts, specials=False, keep=True) == expected
    (kept,) = (tmp_path / "tutelage" / "tokens").iterdir()
    before = kept.stat().st_mtime_ns
    assert tokens.encode_all(tokenizer, texts, specials=False, keep=True) == expected
    assert [p.stat().st_mtime_ns for p in kept.parent.iterdir()] == [before]
    kept.write_bytes(b"broken")  # is made again
    assert tokens.encode_all(tokenizer, texts, specials=False, keep=True) == expected
    assert kept.stat().st_size > 100
    changed = [*texts[:2], "twothree", "\0The cat sat."]  # the same characters, cut elsewhere
    assert tokens.encode_all(tokenizer, changed, specials=False, keep=True) != expected
    assert len(list(kept.parent.iterdir())) == 2
    monkeypatch.setattr(tokens, "KEPT_CHARACTERS", 0)
    kept.parent.chmod(0o777)  # where others may write nothing is read, nor written
    before_folder = sorted(kept.parent.iterdir())
    assert tokens.encode_all(tokenizer, ["A new text."], specials=False, keep=True)
    assert sorted(kept.parent.iterdir()) == before_folder
