"""The work: models small enough to measure here, prompts of given lengths, and completions that end as often as asked.

Both sides open the same folder: `policy/`, `reward/`, `prompts.jsonl` (texts) and `prompts.json` (their ids).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tutelage.models.loading import new_scalar, save_model
from tutelage.models.tokens import load_tokenizer
from tutelage.stages.pretrain import train_tokenizer

CONTEXT = 2048
TURN = 2  # batches, iterations or optimizer steps in a turn


@dataclass(frozen=True)
class Shape:
    """A Llama model's."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 1024

    @property
    def inner(self) -> int:
        """Width inside the feed-forward blocks."""
        return 344 * self.width // 128

    @property
    def backbone(self) -> int:
        """Parameters in the matrices of the layers."""
        return self.layers * self.width * (4 * self.width + 3 * self.inner)

    @property
    def head(self) -> int:
        """Parameters in the output matrix."""
        return self.width * self.vocabulary

    def __str__(self) -> str:
        norms = (2 * self.layers + 1) * self.width
        return f"{(self.backbone + self.head + norms) / 1e6:.1f}M"


SMALL, MEDIUM = Shape(128, 4, 4), Shape(256, 6, 8)
WIDE = Shape(256, 6, 8, 50_257)
TINY = Shape(32, 1, 4)


@dataclass(frozen=True)
class Work:
    """How many prompts of which lengths, and how long their completions get."""

    shape: Shape
    number: int  # of prompts
    prompts: tuple[int, int]  # tokens of the shortest and the longest, the others evenly between
    most: int  # tokens of a completion
    mean: float | None = None  # tokens of a completion with its natural end; without, all have `most`

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, in no order."""
        low, high = self.prompts
        spread = [low + round((high - low) * i / max(1, self.number - 1)) for i in range(self.number)]
        return random.Random(3).sample(spread, len(spread))

    @property
    def tokens(self) -> float:
        """Tokens of a completion, on average."""
        return self.mean or self.most

    def __str__(self) -> str:
        low, high = self.prompts
        if self.mean:
            return f"prompts {low}–{high}, ends at a mean of {self.mean:g} of {self.most}"
        return f"{high} + {self.most} tokens"


def fixed(shape: Shape, number: int = 64, tokens: int = 64) -> Work:
    """Prompts and completions of one length."""
    return Work(shape, number, (tokens, tokens), tokens)


def mixed(shape: Shape, number: int) -> Work:
    """Prompts of 16 to 128 tokens, completions that end by themselves."""
    return Work(shape, number, (16, 128), 96, 24) if shape != TINY else Work(shape, number, (4, 16), 24, 6)


def words_of(rng: random.Random, number: int) -> list[str]:
    """Random words, enough of them for as many tokens."""
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(number)]


def first_tokens(
    rng: random.Random, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], lengths: Sequence[int]
) -> list[list[int]]:
    """Ids of a text of drawn words, as many as asked: those that its own text has too. No two are alike."""
    found: dict[tuple[int, ...], None] = {}
    for n in lengths:
        while True:
            ids = tokenizer.encode(" ".join(rng.choices(words, k=n)))[:n]
            if tuple(ids) not in found and tokenizer.encode(tokenizer.decode(ids)) == ids:
                found[tuple(ids)] = None
                break
    return [list(ids) for ids in found]


def make_models(folder: Path, work: Work, samples: bool = True) -> Path:
    """Write the folder, once.

    A policy that samples draws padding never, and end-of-text never or as often as the work says: channel 0 tells those
    two from all other tokens, whose probabilities are nearly uniform. One that does not sample has wider weights, so
    that the scores of a model made of it depend visibly on every token.
    """
    if (folder / "prompts.json").exists():
        return folder
    rng, shape = random.Random(0), work.shape
    words = words_of(rng, shape.vocabulary)
    rare = [" ".join(words)] if shape.vocabulary > 1024 else []  # so many tokens want every word to be seen
    texts = [*rare, *(" ".join(rng.choices(words, k=128)) for _ in range(500))]
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    assert len(tokenizer) == shape.vocabulary, len(tokenizer)
    prompts = first_tokens(rng, tokenizer, words, work.lengths)
    policy = new_policy(shape, tokenizer, 0.02 if samples else 0.05)
    if samples:
        with torch.no_grad():
            embeddings = policy.get_input_embeddings().weight
            embeddings[:, 0] = 1.0
            embeddings[[tokenizer.pad_token_id, tokenizer.eos_token_id], 0] = -8.0
            if work.mean:
                embeddings[tokenizer.eos_token_id, 0] = end_channel(policy, prompts, work.mean, work.most)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(policy, tokenizer, folder / "policy")
    save_model(new_scalar(folder / "policy", tokenizer, seed=0), tokenizer, folder / "reward")
    lines = [json.dumps({"id": str(i), "prompt": tokenizer.decode(ids)}) for i, ids in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return folder


def new_policy(shape: Shape, tokenizer: PreTrainedTokenizerBase, scale: float) -> LlamaForCausalLM:
    """A Llama model with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, tie_word_embeddings=True,
            max_position_embeddings=CONTEXT, initializer_range=scale, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )
    ).eval()  # fmt: skip


def bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function passes 0."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low


@torch.inference_mode()
def end_channel(policy: PreTrainedModel, prompts: Sequence[Sequence[int]], mean: float, most: int) -> float:
    """Channel 0 of end-of-text's embedding such that completions have so many tokens on average.

    With a probability p of ending at each step they have (1 − (1 − p)^most) / p. The probability that the model gives
    is measured at the ends of the prompts.
    """
    wanted = bisect(lambda p: mean - (1 - (1 - p) ** most) / p, 1e-6, 1.0)
    hidden = torch.stack([policy.base_model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in prompts])
    eos = policy.config.eos_token_id
    logits, own = policy.lm_head(hidden), policy.get_output_embeddings().weight[eos]
    logits[:, eos] = -torch.inf
    others, noise = logits.logsumexp(1), hidden[:, 1:] @ own[1:]
    return bisect(lambda c: float((noise + c * hidden[:, 0] - others).sigmoid().mean()) - wanted, -2.0, 4.0)


def prompt_ids(folder: Path) -> list[list[int]]:
    """The ids of the folder's prompts."""
    prompts: list[list[int]] = json.loads((folder / "prompts.json").read_text())
    return prompts


def end_token(folder: Path) -> int:
    """The id of end-of-text."""
    return int(load_tokenizer(folder / "policy").eos_token_id)
