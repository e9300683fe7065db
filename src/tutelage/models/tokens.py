"""Between text and ids. Ids sampled are ids scored and trained on; text is encoded once.

A plain string is used as it is; chat messages go through the tokenizer's template, or through `PLAIN_TEMPLATE` where a
base model has none. A completion ends with the end-of-text token, always.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tutelage.cache import cache_folder
from tutelage.config import is_hub_id
from tutelage.records import Ranking, Text

KEPT_CHARACTERS = 8_000_000  # three seconds' work

# The words of a bare conversation, for base models without a template of their own. Line breaks are expressions, as a
# bare one after a block tag is trimmed.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id, with a chat template and a padding token of its own.

    Raises:
        ValueError: if there is none, or it has no end-of-text token.
    """
    path = Path(folder)
    if not path.exists() and not is_hub_id(str(folder)):
        raise ValueError(f"{folder}: no such model folder")
    if (path / "model" / "config.json").exists() and not (path / "config.json").exists():
        raise ValueError(f"{folder}: is a run folder; its model is {path / 'model'}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no tokenizer found here: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{folder}: the tokenizer has no end-of-text token (eos_token); set one in tokenizer_config.json"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # Padding must differ from end-of-text, or Hugging Face's classifiers read the token before the end.
        if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer


def render(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: str | None = None) -> str:
    """The string that a prompt (and its completion, without the end token) makes."""
    if isinstance(prompt, str):
        opened = prompt
    else:
        messages = [{"role": m.role, "content": m.content} for m in prompt]
        opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return opened if completion is None else _joined(prompt, opened, completion)


def _joined(prompt: Text, opened: str, completion: str) -> str:
    # "Assistant:" wants a space before the words; templates end as they like
    spaced = " " if not isinstance(prompt, str) and opened[-1:] == ":" else ""
    return opened + spaced + completion


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Ids of a prompt, ready for a completion; templates bring their special tokens, plain strings get the usual."""
    return tokenizer.encode(render(tokenizer, prompt), add_special_tokens=_wants_specials(tokenizer, prompt))


def _wants_specials(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> bool:
    return isinstance(prompt, str) or tokenizer.chat_template == PLAIN_TEMPLATE


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: str, ended: bool = True
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) such that the prompt's ids are those that sampling starts from.

    The completion ends with end-of-text unless it is known to have been cut off, so that a reward model reads the same
    final token here as in reinforcement learning.
    """
    return encode_pairs(tokenizer, [(prompt, completion, ended)])[0]


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Text, str, bool]]
) -> list[tuple[list[int], list[int]]]:
    """`encode_pair` of many (prompt, completion, ended) at once, each distinct text read once: four times as fast."""
    plain: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}  # ids of texts, with special tokens and without
    heads = {id(prompt): render(tokenizer, prompt) for prompt, _, _ in pairs}
    read = []
    for prompt, completion, _ in pairs:
        head, known = heads[id(prompt)], plain[_wants_specials(tokenizer, prompt)]
        whole = _joined(prompt, head, completion)
        known[head] = known[whole] = []
        read.append((head, whole, known))
    for specials, known in plain.items():
        known.update(zip(known, encode_all(tokenizer, list(known), specials), strict=True))
    found = []
    for (_, completion, ended), (head, whole, known) in zip(pairs, read, strict=True):
        prompt_ids, ids = known[head], known[whole]
        if ids[: len(prompt_ids)] == prompt_ids:
            ids = ids[len(prompt_ids) :]
        else:  # the seam fell inside a token: encode the completion alone, as sampling would have to produce it
            ids = tokenizer.encode(completion, add_special_tokens=False)
        if ended and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        found.append((prompt_ids, ids))
    return found


def encode_rankings(
    tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking]
) -> list[list[tuple[list[int], list[int]]]]:
    """(prompt ids, completion ids) of each completion of each ranking."""
    pairs = [(r.prompt.text, c.text, c.finish != "length") for r in rankings for c in r.completions]
    encoded = iter(encode_pairs(tokenizer, pairs))
    return [list(islice(encoded, len(r.completions))) for r in rankings]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], specials: bool, keep: bool = False
) -> list[list[int]]:
    """Ids of many texts. With `keep`, those of `KEPT_CHARACTERS` or more lie in the user's cache, by what tokenizer and
    texts are, so that a run that is started again need not make them again (not for what people wrote: they may want it
    erased).
    """
    if not keep or not tokenizer.is_fast or sum(map(len, texts)) < KEPT_CHARACTERS:
        return tokenizer(list(texts), add_special_tokens=specials)["input_ids"] if texts else []
    digest = hashlib.blake2b(f"{specials}{tokenizer.backend_tokenizer.to_str()}".encode(), digest_size=16)
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
    with contextlib.suppress(OSError, SafetensorError):  # none, or a broken one, which is then replaced
        kept = load_file(cache_folder("tokens") / f"{digest.hexdigest()}.safetensors")
        return [each.tolist() for each in kept["ids"].split(kept["lengths"].tolist())]
    ids = tokenizer(list(texts), add_special_tokens=specials)["input_ids"]
    flat = torch.tensor([i for each in ids for i in each], dtype=torch.int32)
    with contextlib.suppress(OSError, SafetensorError):  # a cache that cannot be written is no reason to stop
        scratch = cache_folder("tokens") / f"{digest.hexdigest()}.{os.getpid()}"
        save_file({"ids": flat, "lengths": torch.tensor([len(each) for each in ids])}, scratch)
        os.replace(scratch, scratch.with_suffix(".safetensors"))
    return ids


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: list[int] | tuple[int, ...]) -> str:
    """The text that people see: special tokens and outer white space removed."""
    return tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def decode_continuation(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> str:
    """The text that goes on a plain string, the space at the seam included, so that prompt + text is the whole."""
    head = tokenizer.decode(list(prompt_ids), skip_special_tokens=True)
    return tokenizer.decode([*prompt_ids, *completion_ids], skip_special_tokens=True)[len(head) :]


def same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids to the same text, so that ids may pass between their models."""
    return a.get_vocab() == b.get_vocab() and a.eos_token_id == b.eos_token_id


def require_same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, what: str) -> None:
    """Raises ValueError if ids cannot pass between two models."""
    if not same_tokens(a, b):
        raise ValueError(
            f"{what}: its tokenizer differs from the policy's ({len(b)} against {len(a)} tokens); "
            "train it from a model with the policy's tokenizer"
        )
