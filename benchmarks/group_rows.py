"""Rows of reinforcement learning from groups of samples: RLOO and GRPO beside TRL's trainers, in their own process."""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import roof
from peers import Ways, fastest, precisions, trl
from results import Row
from training_rows import TOLERANCE, TRL_SETTINGS, in_fp32, metrics, ppo_config, take_iterations
from work import Work, make_models

from tutelage.settings.online import OnlineConfig
from tutelage.stages import online

KL = 0.02  # weight of the penalty, without which TRL would not read the reference
OF_TRL: dict[str, dict[str, Any]] = {"rloo": {}, "grpo": {"loss_type": "grpo"}}


def group_ways(name: str, work: Work, copies: int) -> Ways:
    """TRL's settings to choose from: the update whole or in quarters, with either cache, and continuous batching.

    The last two are in fp32 alone: under bf16 autocast a static cache fails, and for continuous batching TRL would
    round the weights themselves, for good.
    """
    number, page = work.number * copies, 32
    blocks = (-(-(work.prompts[1] + work.most) // page) + 1) * number
    plain = {
        "max_steps": 10**6, "per_device_train_batch_size": number, "num_generations": copies, "beta": KL,
        "max_completion_length": work.most, "temperature": 1.0, "learning_rate": 1e-6, "lr_scheduler_type": "constant",
        "logging_strategy": "no", "algorithm": name, **OF_TRL[name], **TRL_SETTINGS,
    }  # fmt: skip
    quarters = {**plain, "per_device_train_batch_size": number // 4, "gradient_accumulation_steps": 4}
    static = {"cache_implementation": "static"}
    cache = {"page_size": page, "num_blocks": blocks, "max_batch_tokens": 512}
    continuous = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": cache}
    return {
        **precisions(whole=plain, quarters=quarters),
        "fp32, quarters_static_cache": {**quarters, **static, "bf16": False},
        "fp32, quarters_continuous_batching": {**quarters, **continuous, "bf16": False},
    }


def same_scores(row: Row, folder: Path, settings: dict[str, Any], config: OnlineConfig) -> None:
    """Note the mean score of a first iteration that draws the likeliest tokens, which are the same for both.

    Raises:
        AssertionError: if they differ: it would not be the same work.
        PeerError: if there is no peer.
    """
    with trl("1.16", "trl_group.py", folder, {**settings, "temperature": config.sampler.temperature}) as step:
        peer = step()[1:]
    with in_fp32():
        line = metrics(online.run, config)[0]
    ours = [line["objective/length"], line["objective/scores"]]
    assert all(abs(a - b) < TOLERANCE for a, b in zip(ours, peer, strict=True)), (ours, peer)
    row.notes.append(
        f"a first iteration on the likeliest tokens, in fp32, ours and peer: mean score {ours[1]:.6f} and {peer[1]:.6f}"
    )


def group_row(folder: Path, name: str, work: Work, copies: int, rounds: int) -> Row:
    """`online.run` against TRL's RLOOTrainer or GRPOTrainer: as many episodes, one update of them, a reward model."""
    make_models(folder, work)
    number = work.number * copies
    row = Row(f"{name.upper()} iteration, {work.shape}, {work.number} prompts × {copies} samples, {work}", "episodes/s")
    row.flops = roof.group(work, copies) / number
    algorithm = {"name": name, "num_generations": copies}
    configure = partial(ppo_config, folder, number=number, most=work.most, algorithm=algorithm, kl_coef=KL)
    with contextlib.ExitStack() as stack:
        ways = group_ways(name, work, copies)
        peer, _ = fastest(stack, row, ("1.16", "trl_group.py"), folder, ways, lambda answer: number)
        if peer:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            cold = configure(output=output, temperature=1e-5, total_episodes=number, missing_eos_penalty=0)
            same_scores(row, folder, ways["fp32, whole"], cold)
        take_iterations(row, folder, configure, peer, rounds)
    return row
