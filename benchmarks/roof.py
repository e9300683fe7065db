"""The machine's roof, and how many floating-point operations a piece of work needs at the least.

Only useful operations count: real tokens, each prompt once however many completions it has, logits only where they are
wanted. A forward pass takes 2 for every parameter in a matrix and token, and 4 for every channel, layer, and pair of
tokens of which one sees the other; a backward pass twice as many.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from work import Shape, Work

from tutelage.models.precision import has_bf16_units

SHAPES = ((2048, 2048, 2048), (8192, 256, 704), (4096, 1024, 1024))


def measure(roof: dict[str, float], seconds: float) -> None:
    """Raise the roof to the operations per second of the best of some matrix products, in fp32 and in bf16.

    Without units for bf16 there is no roof of it.
    """
    kinds = {"fp32": torch.float32, **({"bf16": torch.bfloat16} if has_bf16_units() else {})}
    for name, dtype in kinds.items():
        best = roof.get(name, 0.0)
        for m, k, n in SHAPES:
            a, b, out = (torch.ones(s, dtype=dtype) for s in ((m, k), (k, n), (m, n)))
            torch.mm(a, b, out=out)
            until = time.perf_counter() + seconds
            while (began := time.perf_counter()) < until:
                torch.mm(a, b, out=out)
                best = max(best, 2 * m * k * n / (time.perf_counter() - began))
        roof[name] = best


def forward(shape: Shape, lengths: Sequence[float], read: float = 0) -> float:
    """Of reading sequences of these lengths, with logits at `read` positions in all."""
    attention = 4 * shape.width * shape.layers * sum(n * n / 2 for n in lengths)
    return 2 * shape.backbone * sum(lengths) + attention + 2 * shape.head * read


def sampling(work: Work, copies: int = 1) -> float:
    """Of `copies` completions of each prompt."""
    new, shape = work.tokens, work.shape
    attention = 4 * shape.width * shape.layers * sum(n * new + new * new / 2 for n in work.lengths) * copies
    completions = 2 * (shape.backbone + shape.head) * new * copies * work.number + attention
    return forward(shape, work.lengths) + completions


def ppo(work: Work, epochs: int) -> float:
    """Of an iteration: sample, score, reference, values, and the update of policy and value model."""
    shape, whole = work.shape, [n + work.tokens for n in work.lengths]
    read = work.number * work.tokens
    before = [n - 1 for n in whole]  # the last token predicts nothing, and no value is wanted after it
    valued, told = forward(shape, before), forward(shape, before, read)
    return sampling(work) + forward(shape, whole) + valued + told + epochs * 3 * (told + valued)


def group(work: Work, copies: int) -> float:
    """Of an iteration without a value model, `copies` completions of each prompt: sample, score, reference, update."""
    branches = [work.tokens] * copies
    scored = sum(tree(work.shape, n, branches) for n in work.lengths)
    return sampling(work, copies) + scored + 4 * sum(logprobs(work.shape, n, branches) for n in work.lengths)


def tree(shape: Shape, prompt: int, completions: Sequence[float]) -> float:
    """Of reading a prompt once and its completions after it."""
    pairs = prompt**2 / 2 + sum(n**2 / 2 + prompt * n for n in completions)
    return 2 * shape.backbone * (prompt + sum(completions)) + 4 * shape.width * shape.layers * pairs


def ranking(shape: Shape, prompt: int, completion: int, k: int) -> float:
    """Of a reward model's step on a ranking, the prompt read once."""
    return 3 * tree(shape, prompt, [completion] * k)


def logprobs(shape: Shape, prompt: int, completions: Sequence[float]) -> float:
    """Of the log-probabilities of completions after a prompt that is read once; the last tokens predict nothing."""
    return tree(shape, prompt, [n - 1 for n in completions]) + 2 * shape.head * sum(completions)


def preference(shape: Shape, prompt: int, completions: Sequence[float]) -> float:
    """Of a DPO step on a ranking, whose reference is known."""
    return 3 * logprobs(shape, prompt, completions)
