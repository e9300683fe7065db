"""Between text and ids. Ids sampled are ids scored and trained on; text is encoded once.

A plain string is used as it is; chat messages go through the tokenizer's template, or through `PLAIN_TEMPLATE` where a
base model has none. Every stage gets its ids here: a text begins as the tokenizer begins one, an assistant's turn is
what the template writes, and a completion ends with the token that ends its turn.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tutelage.cache import cache_folder
from tutelage.data.records import Ranking, Text
from tutelage.models.templates import TooMuch, bounded
from tutelage.settings.common import ENDLESS, is_endless, is_hub_id
from tutelage.terminal import reason

KEPT_CHARACTERS = 8_000_000  # three seconds' work

# The words of a bare conversation, for base models without a template of their own. Line breaks are expressions, as a
# bare one after a block tag is trimmed.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PADDING = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")  # names under which vocabularies have one
OPENED_THOUGHT = re.compile(r"<(\w+)>\s*$")  # at the end of a generation prompt, as DeepSeek-R1's has it
MARK = "tutelage"  # what a template writes after it is how it ends a turn


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a loaded tokenizer's chat template is one that its folder brought, not the plain one."""
    return not str(tokenizer.chat_template).endswith(PLAIN_TEMPLATE)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id, with a chat template and a padding token of its own.

    Raises:
        ValueError: if there is none, or it has no end-of-text token.
    """
    path = Path(folder)
    if not path.exists() and not is_hub_id(str(folder)):
        raise ValueError(f"{folder}: no such model folder")
    kinds = ("config.json", "adapter_config.json")
    if any((path / "model" / kind).exists() for kind in kinds) and not any((path / kind).exists() for kind in kinds):
        raise ValueError(f"{folder}: is a run folder; its model is {path / 'model'}")
    if endless := [file for file in path.glob("*") if is_endless(file)]:
        raise ValueError(f"{endless[0]}: {ENDLESS}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of any kind: a broken file reaches parsers in three libraries
        raise ValueError(f"{folder}: no tokenizer found here: {reason(error)}") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{folder}: the tokenizer has no end-of-text token (eos_token); set one in tokenizer_config.json"
        )
    if tokenizer.chat_template in (None, PLAIN_TEMPLATE):
        begins = tokenizer.bos_token_id is not None and _affixes(tokenizer)[0] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, tokenizer.unk_token_id):
        tokenizer.pad_token = _padding(tokenizer)
    return tokenizer


def _padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token that no text holds. It must differ from end-of-text, or classifiers read the token before the end, and
    from an unknown-token that texts can hold, or they skip a text's last word."""
    known = tokenizer.get_vocab()
    for token in PADDING:
        if token in known and known[token] != tokenizer.eos_token_id:
            return token
    unknown = tokenizer.unk_token
    if unknown not in (None, tokenizer.eos_token):
        strange = tokenizer.encode("\u0378\U000e0fff", add_special_tokens=False)  # characters that nobody has assigned
        if tokenizer.unk_token_id not in strange:
            return unknown
    tokenizer.add_special_tokens({"pad_token": PADDING[0]})
    return PADDING[0]


# Texts


def _affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before a text and after it, as <s> or [CLS] and [SEP]."""
    try:
        bare, whole = (tokenizer.encode(MARK, add_special_tokens=specials) for specials in (False, True))
    except Exception:  # tokenizers' own kind: a vocabulary of words may have no token for what it does not know
        bare, whole = (tokenizer.encode(tokenizer.eos_token, add_special_tokens=specials) for specials in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _opened(beginning: list[int], ids: list[int]) -> list[int]:
    """Ids with the text's beginning, unless they bring it."""
    return ids if ids[: len(beginning)] == beginning else beginning + ids


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], keep: bool = False) -> list[list[int]]:
    """Ids of documents, begun as the tokenizer begins a text and ended by end-of-text. `keep`: see `encode_all`."""
    beginning, end = _affixes(tokenizer)[0], tokenizer.eos_token_id
    documents = (_opened(beginning, ids) for ids in encode_all(tokenizer, texts, keep))
    return [ids if ids[-1:] == [end] else [*ids, end] for ids in documents]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text to go on from: begun as the tokenizer begins one, and not ended."""
    return _opened(_affixes(tokenizer)[0], tokenizer.encode(text, add_special_tokens=False))


# Conversations


def render(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> str:
    """The string that a prompt makes, up to where its completion begins."""
    return prompt if isinstance(prompt, str) else _templated(tokenizer, prompt)


@dataclass(frozen=True)
class Turn:
    """What a template writes around an assistant's words: before them, where it opens no turn for them, and after them;
    and the token that ends the turn, which is end-of-text where the template has none."""

    head: str
    tail: str
    end: str


def turn_of(tokenizer: PreTrainedTokenizerBase) -> Turn:
    """How the tokenizer's template writes a turn: found by writing one, and kept for as long as the template stays."""
    key = (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer))
    kept = tokenizer.__dict__.get("_tutelage_turn")
    if kept is None or kept[0] != key:
        question = {"role": "user", "content": "question"}
        try:
            opened = _apply(tokenizer, [question], True)
            answer = {"role": "assistant", "content": MARK}
            whole, _, tail = _apply(tokenizer, [question, answer], False).rpartition(MARK)
        except Refusal:
            opened = whole = tail = ""
        ends = (i for i in tokenizer.encode(tail, add_special_tokens=False) if i in tokenizer.added_tokens_decoder)
        end = tokenizer.convert_ids_to_tokens(next(ends, tokenizer.eos_token_id))
        kept = (key, Turn(whole.removeprefix(opened) if whole.startswith(opened) else "", tail, end))
        tokenizer.__dict__["_tutelage_turn"] = kept
    return kept[1]


def render_turn(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: str, ended: bool = True) -> str:
    """What follows `render` of the prompt: the completion as the template writes an assistant's turn, up to the token
    that ends it, or without its end where it was cut off."""
    turn = turn_of(tokenizer)
    for end in {tokenizer.eos_token, turn.end}:  # the end comes once, even if the completion brings one
        completion = completion.removesuffix(end)
    if isinstance(prompt, str):
        return completion + (tokenizer.eos_token if ended else "")
    opened, whole = _templated(tokenizer, prompt), _templated(tokenizer, prompt, completion)
    if whole.startswith(opened) and whole.endswith(turn.tail) and completion.strip() in whole:
        words = whole[len(opened) : len(whole) - len(turn.tail)]
    elif thought := OPENED_THOUGHT.search(opened):  # the words go on inside it
        opening, close = f"<{thought[1]}>\n", f"</{thought[1]}>"
        # An answer without a thought gets an empty one, or the thought would never end.
        words = completion.removeprefix(opening) if close in completion else f"{close}\n\n{completion}"
    else:  # the template writes something else than these words: it leaves out a thought, say
        words = turn.head + completion
    before, found, _ = turn.tail.partition(turn.end)
    return words + ((before if found else "") + turn.end if ended else "")


def _templated(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: str | None = None) -> str:
    """The template's text of a conversation: with a completion as its last turn, else ready for one.

    Raises:
        ValueError: if the template refuses the conversation, as some do for a system turn or two turns of one role.
    """
    assert not isinstance(prompt, str)
    turns = [{"role": m.role, "content": m.content} for m in prompt]
    if completion is not None:
        turns.append({"role": "assistant", "content": completion})
    return _apply(tokenizer, turns, completion is None)


class Refusal(ValueError):
    """A chat template does not write a conversation, or is broken."""


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], ready: bool) -> str:
    """What the template makes of turns, `ready` for a completion or not."""
    folder = tokenizer.name_or_path
    try:
        with bounded(tokenizer.get_chat_template()):
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ready)
    except TooMuch as error:
        raise ValueError(f"the chat template of {folder} {error}") from None
    except Exception as error:  # a template is a program: it may divide by zero
        roles = ", ".join(turn["role"] for turn in turns)
        raise Refusal(f"the chat template of {folder} refuses turns of {roles}: {reason(error)}") from None


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Ids of a prompt, ready for a completion; templates bring their special tokens, plain strings get the usual."""
    if isinstance(prompt, str):
        return encode_text(tokenizer, prompt)
    return tokenizer.encode(_templated(tokenizer, prompt), add_special_tokens=False)


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: str, ended: bool = True
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) such that the prompt's ids are those that sampling starts from.

    The completion ends with the token that ends its turn unless it is known to have been cut off, so that a reward
    model reads the same final token here as in reinforcement learning.
    """
    return encode_pairs(tokenizer, [(prompt, completion, ended)])[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Text, str, bool]]
) -> list[tuple[list[int], list[int]]]:
    """`encode_pair` of many (prompt, completion, ended) at once, each distinct text read once: four times as fast."""
    heads = {id(prompt): render(tokenizer, prompt) for prompt, _, _ in pairs}
    turns = [render_turn(tokenizer, *pair) for pair in pairs]
    known: dict[str, list[int]] = {}
    for (prompt, _, _), turn in zip(pairs, turns, strict=True):
        known[heads[id(prompt)]] = known[heads[id(prompt)] + turn] = []
    known.update(zip(known, encode_all(tokenizer, list(known)), strict=True))
    beginning = _affixes(tokenizer)[0]
    chat_end = tokenizer.convert_tokens_to_ids(turn_of(tokenizer).end)
    found = []
    for (prompt, _, ended), turn in zip(pairs, turns, strict=True):
        prompt_ids, whole = known[heads[id(prompt)]], known[heads[id(prompt)] + turn]
        if isinstance(prompt, str):
            prompt_ids, whole = _opened(beginning, prompt_ids), _opened(beginning, whole)
        ids = whole[len(prompt_ids) :] if whole[: len(prompt_ids)] == prompt_ids else None
        if ids is None:  # the seam fell inside a token
            ids = _alone(tokenizer, prompt_ids, turn, whole)
        end = tokenizer.eos_token_id if isinstance(prompt, str) else chat_end
        if ended and ids[-1:] != [end]:
            ids = [*ids, end]
        found.append((prompt_ids, ids))
    return found


def _alone(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], turn: str, whole: list[int]) -> list[int]:
    """Ids of a turn by itself, as sampling would have to produce it; without the space that some tokenizers put before
    every text, if that is how the whole reads."""
    ids, text = tokenizer.encode(turn, add_special_tokens=False), tokenizer.decode(whole)
    return next((cut for cut in (ids, ids[1:]) if tokenizer.decode([*prompt_ids, *cut]) == text), ids)


def encode_rankings(
    tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking]
) -> list[list[tuple[list[int], list[int]]]]:
    """(prompt ids, completion ids) of each completion of each ranking."""
    pairs = [(r.prompt.text, c.text, c.finish != "length") for r in rankings for c in r.completions]
    encoded = iter(encode_pairs(tokenizer, pairs))
    return [list(islice(encoded, len(r.completions))) for r in rankings]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], keep: bool = False) -> list[list[int]]:
    """Ids of many texts, nothing put before or after them. With `keep`, those of `KEPT_CHARACTERS` or more lie in the
    user's cache, by what tokenizer and texts are, so that a run that is started again need not make them again (not for
    what people wrote: they may want it erased).
    """
    if not keep or not tokenizer.is_fast or sum(map(len, texts)) < KEPT_CHARACTERS:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    digest = hashlib.blake2b(f"False{tokenizer.backend_tokenizer.to_str()}".encode(), digest_size=16)
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
    with contextlib.suppress(OSError, SafetensorError, KeyError):  # none, or a broken one, which is then replaced
        kept = load_file(cache_folder("tokens") / f"{digest.hexdigest()}.safetensors")
        if torch.equal(kept["checksum"], _checksum(kept["ids"], kept["lengths"])):
            return [each.tolist() for each in kept["ids"].split(kept["lengths"].tolist())]
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    flat = torch.tensor([i for each in ids for i in each], dtype=torch.int32)
    with contextlib.suppress(OSError, SafetensorError):  # a cache that cannot be written is no reason to stop
        scratch = cache_folder("tokens") / f"{digest.hexdigest()}.{os.getpid()}"
        lengths = torch.tensor([len(each) for each in ids])
        save_file({"ids": flat, "lengths": lengths, "checksum": _checksum(flat, lengths)}, scratch)
        os.replace(scratch, scratch.with_suffix(".safetensors"))
    return ids


def _checksum(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(16,) bytes that show damage to kept ids."""
    digest = hashlib.blake2b(ids.numpy().tobytes() + lengths.numpy().tobytes(), digest_size=16).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)


# Back to text


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text that people see: special tokens, the end of the turn and outer white space removed."""
    turn = turn_of(tokenizer)
    end = tokenizer.convert_tokens_to_ids(turn.end)
    kept = ids[:-1] if ids and ids[-1] == end else ids  # some vocabularies do not call it special
    return tokenizer.decode(list(kept), skip_special_tokens=True).strip().removeprefix(turn.head.strip()).strip()


def decode_continuation(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> str:
    """The text that goes on a plain string, the space at the seam included, so that prompt + text is the whole."""
    head = tokenizer.decode(list(prompt_ids), skip_special_tokens=True)
    return tokenizer.decode([*prompt_ids, *completion_ids], skip_special_tokens=True)[len(head) :]


def decode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> str:
    """The text of a completion: of a string what goes on it, of a conversation the words of the turn."""
    if isinstance(prompt, str):
        return decode_continuation(tokenizer, prompt_ids, completion_ids)
    return decode_completion(tokenizer, completion_ids)


def line_breaks(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of all tokens with a line break in them, alone or after other characters."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return tuple(i for i, text in enumerate(texts) if "\n" in text)


# Two tokenizers


def same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids to the same text, so that ids may pass between their models."""
    return a.get_vocab() == b.get_vocab() and a.eos_token_id == b.eos_token_id


def same_reading(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two models read the same ids of the same conversation: the same tokens, in the same template."""
    return same_tokens(a, b) and a.chat_template == b.chat_template


def require_same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, what: str) -> None:
    """Raises ValueError if ids cannot pass between two models."""
    if not same_tokens(a, b):
        raise ValueError(
            f"{what}: its tokenizer differs from the policy's ({len(b)} against {len(a)} tokens); "
            "train it from a model with the policy's tokenizer"
        )
