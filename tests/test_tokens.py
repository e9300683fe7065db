"""Prompts are the beginning of what training reads, completions end once, and sampled ids survive being text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from conftest import SENTENCES, STORIES
from tutelage.data.records import Message, Text
from tutelage.models import tokens
from tutelage.models.texts import text_rows
from tutelage.models.tokens import (
    PLAIN_TEMPLATE,
    Turn,
    decode_completion,
    decode_continuation,
    encode_documents,
    encode_pair,
    encode_prompt,
    line_breaks,
    load_tokenizer,
    render_turn,
    require_same_tokens,
    same_reading,
    same_tokens,
    turn_of,
)
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


# --- beginnings and ends ----------------------------------------------------------------------------------------------


def llama2() -> PreTrainedTokenizerFast:
    """Like Llama 2's: a space before every text, bytes for what it does not know, <s> before a text."""
    special = ["<unk>", "<s>", "</s>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)], show_progress=False
    )
    bpe.train_from_iterator([s.replace("\n", " ") for s in SENTENCES], trainer)
    parts = json.loads(bpe.to_str())
    parts["added_tokens"] = [a for a in parts["added_tokens"] if a["content"] in special]
    bpe = Tokenizer.from_str(json.dumps(parts))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def with_affixes(single: str, **special: str) -> PreTrainedTokenizerFast:
    """The byte-level one with something before or after every text, as T5's and BERT's have."""
    tokenizer = train_tokenizer(SENTENCES, 320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<begin>"]})
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<begin>", "<|endoftext|>")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|endoftext|>", **special)


def reloaded(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THOUGHT = (
    "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}\n{% else %}A:{{ m.content }}{{ eos_token }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}A:<think>\n{% endif %}"
)
THOUGHTLESS = (  # opens a thought, and writes none, as DeepSeek-R1's does
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:<think>\n{% endif %}"
)
UNOPENED = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
FORGETFUL = (  # thoughts are left out of what was said, as Qwen's and DeepSeek's templates do
    "{% for m in messages %}{{ m.role }}:{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize(
    ("kind", "template", "answer", "turn"),
    [
        ("llama2", SPACED, "Four.", " Four. </s>"),
        ("bytes", THOUGHT, "<think>\nTwo and two.\n</think>\nFour.", "Two and two.\n</think>\nFour.<|endoftext|>"),
        ("bytes", THOUGHT, "Four.", "</think>\n\nFour.<|endoftext|>"),
        ("bytes", THOUGHTLESS, "<think>\nHm.\n</think>\nFour.", "Hm.\n</think>\nFour.<|endoftext|>"),
        ("bytes", THOUGHTLESS, "Hm.\n</think>\nFour.", "Hm.\n</think>\nFour.<|endoftext|>"),  # as it was sampled
        ("bytes", THOUGHTLESS, "Four.", "</think>\n\nFour.<|endoftext|>"),
        ("turn", CHATML, "Four.", "Four.<|im_end|>"),
        ("bytes", FORGETFUL, "Hm.</think>Four.", "Hm.</think>Four.<|endoftext|>"),
        ("bytes", UNOPENED, "Four.", "assistant: Four.<|endoftext|>"),
    ],
)
def test_a_turn_is_what_the_template_writes(kind: str, template: str, answer: str, turn: str, tmp_path: Path) -> None:
    """Worked out by hand from the template; where it writes the words it was given, it is also the template's own."""
    tokenizer = llama2() if kind == "llama2" else train_tokenizer(SENTENCES, 320)
    if kind == "turn":  # ends its turns with another token than its texts
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer = reloaded(tokenizer, tmp_path)
    question = chat("What is two and two?")
    prompt_ids, ids = encode_pair(tokenizer, question, answer)
    assert render_turn(tokenizer, question, answer) == turn
    assert ids[-1] == tokenizer.convert_tokens_to_ids(turn_of(tokenizer).end)
    assert encode_pair(tokenizer, question, answer, ended=False)[1] == ids[: len(ids) - (2 if kind == "llama2" else 1)]
    if template in (SPACED, THOUGHT, CHATML) and not turn.startswith("</think>"):
        messages = [{"role": m.role, "content": m.content} for m in chat("What is two and two?", answer)]
        whole = tokenizer.apply_chat_template(messages)["input_ids"]
        assert whole[: len(prompt_ids + ids)] == prompt_ids + ids
        assert tokenizer.decode(whole[len(prompt_ids + ids) :]).strip() == ""
    if template in (SPACED, CHATML, UNOPENED, THOUGHTLESS):  # what was sampled, as text, is read as the same ids again
        assert encode_pair(tokenizer, question, decode_completion(tokenizer, ids)) == (prompt_ids, ids)


def test_a_turn_ends_with_a_token_that_is_not_called_special() -> None:
    tokenizer = train_tokenizer(SENTENCES, 320)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    assert turn_of(tokenizer) == Turn("", "<|im_end|>\n", "<|im_end|>")
    assert decode_completion(tokenizer, encode_pair(tokenizer, chat("Hi"), "Four.")[1]) == "Four."
    tokenizer.chat_template = THOUGHT
    assert turn_of(tokenizer).end == "<|endoftext|>"  # asked anew


@pytest.mark.parametrize("make_one", [llama2, lambda: with_affixes("<begin> $A", bos_token="<begin>")])
def test_the_saved_plain_template_writes_the_start(
    make_one: Callable[[], PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    """Any other tool's `apply_chat_template` gives the ids that were trained on."""
    tokenizer = reloaded(make_one(), tmp_path / "a")
    again = reloaded(tokenizer, tmp_path / "b")
    messages = [{"role": "user", "content": "What is two?"}]
    theirs = again.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert encode_prompt(tokenizer, chat("What is two?")) == encode_prompt(again, chat("What is two?")) == theirs
    assert theirs.count(tokenizer.bos_token_id) == 1
    assert theirs[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("single", ["<begin> $A", "$A <|endoftext|>", "<begin> $A <|endoftext|>"])
def test_what_a_tokenizer_puts_around_a_text(single: str) -> None:
    """Before a prompt once, even if it brings it; an end of its own never ends a prompt, and a document once."""
    tokenizer = with_affixes(single)
    begin = tokenizer.convert_tokens_to_ids("<begin>")
    start = [begin] if single.startswith("<begin>") else []
    plain = tokenizer.encode("The cat sat", add_special_tokens=False)
    assert encode_prompt(tokenizer, "The cat sat") == start + plain
    assert encode_prompt(tokenizer, "<begin>The cat sat") == [begin, *plain]
    assert encode_pair(tokenizer, "The cat sat", " on") == (
        start + plain, [*tokenizer.encode(" on", add_special_tokens=False), 1],
    )  # fmt: skip
    assert encode_documents(tokenizer, ["The cat sat", "The cat sat<|endoftext|>"]) == [[*start, *plain, 1]] * 2
    document = [*start, *plain, 1]
    assert text_rows(tokenizer, ["The cat sat"] * 2, len(document)).tolist() == [document] * 2


def test_the_padding_token_is_in_no_text(tmp_path: Path) -> None:
    """The unknown-token only where every character has bytes; a token of the vocabulary by its name; else a new one."""
    assert reloaded(llama2(), tmp_path / "bytes").pad_token == "<unk>"
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "[PAD]": 3}, unk_token="<unk>"))
    named = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert reloaded(named, tmp_path / "named").pad_token_id == 3
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2}, unk_token="<unk>"))
    plain = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert reloaded(plain, tmp_path / "plain").pad_token_id == 3
    plain.pad_token = "<unk>"  # said so, and texts hold it
    assert reloaded(plain, tmp_path / "said").pad_token_id == 3


def test_line_breaks_hide_in_larger_tokens() -> None:
    breaks = line_breaks(llama2())
    assert llama2().convert_tokens_to_ids("<0x0A>") in breaks
    tokenizer = make("bytes")
    tokenizer.add_tokens([".\n"])
    assert tokenizer.convert_tokens_to_ids(".\n") in line_breaks(tokenizer)
    assert all("\n" in tokenizer.decode([i]) for i in line_breaks(tokenizer))


def test_a_template_that_refuses_is_quoted() -> None:
    tokenizer = make("bytes")
    tokenizer.chat_template = "{{ raise_exception('no system turn') if messages[0].role == 'system' else 'x' }}"
    with pytest.raises(ValueError, match=r"chat template of .* refuses turns of system, user: no system turn"):
        encode_prompt(tokenizer, (Message(role="system", content="Be brief."), Message(role="user", content="Hi")))


def test_same_reading() -> None:
    """Ids may pass between two models if the templates are the same, too."""
    a, b = make("bytes"), make("bytes")
    assert same_reading(a, b)
    b.chat_template = THOUGHT
    assert same_tokens(a, b)
    assert not same_reading(a, b)


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
    assert tokens.encode_all(tokenizer, texts, keep=True) == expected
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tokens, "KEPT_CHARACTERS", 10)
    assert tokens.encode_all(tokenizer, texts, keep=True) == expected
    (kept,) = (tmp_path / "tutelage" / "tokens").iterdir()
    before = kept.stat().st_mtime_ns
    assert tokens.encode_all(tokenizer, texts, keep=True) == expected
    assert [p.stat().st_mtime_ns for p in kept.parent.iterdir()] == [before]
    kept.write_bytes(b"broken")  # is made again
    assert tokens.encode_all(tokenizer, texts, keep=True) == expected
    whole = kept.read_bytes()
    assert len(whole) > 100
    for place in range(len(whole)):  # a disk that loses a bit gives no other ids
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert tokens.encode_all(tokenizer, texts, keep=True) == expected
    assert kept.read_bytes() == whole
    changed = [*texts[:2], "twothree", "\0The cat sat."]  # the same characters, cut elsewhere
    assert tokens.encode_all(tokenizer, changed, keep=True) != expected
    assert len(list(kept.parent.iterdir())) == 2
    monkeypatch.setattr(tokens, "KEPT_CHARACTERS", 0)
    kept.parent.chmod(0o777)  # where others may write nothing is read, nor written
    before_folder = sorted(kept.parent.iterdir())
    assert tokens.encode_all(tokenizer, ["A new text."], keep=True)
    assert sorted(kept.parent.iterdir()) == before_folder
