"""Rows of DPO, from pairs and from rankings of many, beside TRL's DPOTrainer in a process of its own.

The reference's log-probabilities are computed before the first step on both sides, and not in the figures.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path

import roof
from peers import Ways, fastest, precisions
from results import Row
from training_rows import (
    SLOW,
    TRL_SETTINGS,
    agreement,
    in_fp32,
    make_rankings,
    metrics,
    precision_note,
    seconds_of,
)
from work import TURN, Work, make_models

from tutelage.settings.dpo import DpoConfig
from tutelage.stages import dpo

RATE = 1e-4  # moves the loss of the second step well away from ln 2


def dpo_ours(folder: Path, batch: int) -> list[dict[str, float]]:
    """Train on all rankings once."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        config = DpoConfig(
            output=Path(output) / "run",
            model=str(folder / "policy"),
            rankings=str(folder / "rankings.jsonl"),
            held_out=0,
            batch_size=batch,
            optimizer={"learning_rate": RATE, "warmup_steps": 0},
            **SLOW,
        )
        return metrics(dpo.run, config)


def dpo_ways(pairs: int, parts: int) -> Ways:
    """TRL's settings to choose from: a step's pairs at once, or in parts of like length.

    It has no way without padding ("temporarily unavailable").
    """
    plain = {
        "max_steps": 10**6, "per_device_train_batch_size": pairs, "train_sampling_strategy": "sequential",
        "learning_rate": RATE, "adam_beta2": 0.95, "lr_scheduler_type": "constant", "logging_strategy": "no",
        "precompute_ref_log_probs": True, "sorted_within": 1, **TRL_SETTINGS,
    }  # fmt: skip
    cut = {"per_device_train_batch_size": pairs // parts, "gradient_accumulation_steps": parts, "sorted_within": pairs}
    return precisions(whole=plain, parts_of_like_length={**plain, **cut})


def dpo_row(folder: Path, work: Work, k: int, batch: int, least: int, rounds: int) -> Row:
    """`dpo.run` on `batch` rankings a step against TRL's DPOTrainer on all their pairs.

    Completions have from `least` to the work's most tokens.
    """
    make_models(folder, work, samples=False)
    tokens = make_rankings(folder, work, k, least)
    pairs = batch * k * (k - 1) // 2
    what = f"{batch} pairs a step" if k == 2 else f"a ranking of {k}, {pairs} pairs a step"
    row = Row(f"DPO, {work.shape}, {what}, {span(work.prompts)} + {span((least, work.most))} tokens", "pairs/s")
    steps = [tokens[start : start + batch] for start in range(0, len(tokens), batch)]
    counts = [sum(roof.preference(work.shape, *each) for each in step) for step in steps[1:]]
    row.flops = statistics.mean(counts) / pairs
    row.notes.append(precision_note(folder))
    with contextlib.ExitStack() as stack:
        ways = dpo_ways(pairs, 8 if k == 2 else 6)
        peer, answers = fastest(stack, row, ("1.16", "trl_dpo.py"), folder, ways, lambda answer: pairs)
        if plain := answers["fp32, whole"][:2]:  # later our rate is a lower one
            with in_fp32():
                ours = [line["loss/train"] for line in dpo_ours(folder, batch)]
            row.notes.append(agreement(ours[:2], [answer[1] for answer in plain]))
        for _ in range(rounds):
            row.ours.append(pairs / statistics.mean(seconds_of(dpo_ours(folder, batch))))
            if peer:
                row.peer.append(TURN * pairs / sum(peer()[0] for _ in range(TURN)))
    return row


def span(lengths: tuple[int, int]) -> str:
    """The shortest and the longest."""
    low, high = lengths
    return str(high) if low == high else f"{low}–{high}"
