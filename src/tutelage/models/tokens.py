"""Between text and ids. Ids sampled are ids scored and trained on; text is encoded once.

A plain string is used as it is; chat messages go through the tokenizer's template, or through `PLAIN_TEMPLATE` where a
base model has none. A completion ends with the end-of-text token, always.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tutelage.config import is_hub_id
from tutelage.records import Text

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
        return prompt + (completion or "")
    messages = [{"role": m.role, "content": m.content} for m in prompt]
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if completion is None:
        return opened
    spaced = (
        " " if opened[-1:] == ":" else ""
    )  # "Assistant:" wants a space before the words; templates end as they like
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
    prompt_ids = encode_prompt(tokenizer, prompt)
    specials = _wants_specials(tokenizer, prompt)
    whole = tokenizer.encode(render(tokenizer, prompt, completion), add_special_tokens=specials)
    if whole[: len(prompt_ids)] == prompt_ids:
        ids = whole[len(prompt_ids) :]
    else:  # the seam fell inside a token: encode the completion alone, as sampling would have to produce it
        ids = tokenizer.encode(completion, add_special_tokens=False)
    if ended and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return prompt_ids, ids


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
