"""Supervised fine-tuning: the base model imitates demonstrations; only completion tokens are trained on.

Differs from the paper in scale only. The checkpoint is chosen after each epoch by the reward model's mean score if one
is given (section 3.5), else by validation loss.

    tutelage sft --model runs/base/model --demonstrations demonstrations.jsonl --output runs/sft
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.datasets import read_demonstrations, read_texts
from tutelage.data.records import Demonstration, Request
from tutelage.models.forward import all_scores, selected_logprobs
from tutelage.models.loading import context_length, load_policy, load_scalar, save_model, set_dropout, stop_ids
from tutelage.models.packing import micro_batches
from tutelage.models.texts import text_nll, text_rows
from tutelage.models.tokens import encode_pairs, load_tokenizer, require_same_tokens, same_reading
from tutelage.objectives.sft import nll_sum
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.seeds import request_seed
from tutelage.settings.stages import SftConfig
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, batches, begin, cosine, hold_out, require_finite_measure, update


@dataclass(frozen=True)
class Example:
    """A demonstration as ids: the prompt, and the completion with its end token."""

    prompt_ids: list[int]
    completion_ids: list[int]


def encode(
    demonstrations: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, limits: tuple[int, int, int]
) -> tuple[list[Example], dict[str, int]]:
    """Demonstrations as ids within (prompt, completion, whole) limits, and how many were too long and dropped."""
    kept, dropped = [], 0
    for prompt_ids, completion_ids in encode_pairs(
        tokenizer, [(d.prompt.text, d.completion, True) for d in demonstrations]
    ):
        long = len(prompt_ids) > limits[0] or len(completion_ids) > limits[1]
        if long or len(prompt_ids) + len(completion_ids) > limits[2]:
            dropped += 1
        else:
            kept.append(Example(prompt_ids, completion_ids))
    return kept, {"too long": dropped} if dropped else {}


def examples_nll(
    policy: PreTrainedModel, examples: Sequence[Example], max_tokens: int, backward_scale: float | None = None
) -> tuple[float, int]:
    """(summed loss, completion tokens); with a scale, each micro-batch's loss times it is also differentiated."""
    sequences = [e.prompt_ids + e.completion_ids for e in examples]
    prompt_lengths = [len(e.prompt_ids) for e in examples]
    total, count = 0.0, 0
    for batch in micro_batches(sequences, max_tokens, policy.config.pad_token_id):
        moved = batch.to(policy.device)
        mask = moved.completion_mask(prompt_lengths)
        logprobs, _ = selected_logprobs(policy, moved, mask)
        nll = nll_sum(logprobs, torch.ones_like(logprobs, dtype=torch.bool))
        if backward_scale is not None:
            (nll * backward_scale).backward()
        total, count = total + nll.item(), count + len(logprobs)
    return total, count


@torch.inference_mode()
def validation_loss(policy: PreTrainedModel, examples: Sequence[Example], max_tokens: int) -> float:
    """Mean loss in nats per completion token."""
    total, count = examples_nll(policy.eval(), examples, max_tokens)
    return total / count


def mean_score(
    policy: PreTrainedModel, reward_model: PreTrainedModel, examples: Sequence[Example], seed: int, max_new_tokens: int
) -> float:
    """Mean score of sampled completions to the examples' prompts."""
    ends = stop_ids(policy)
    room = min(context_length(policy), context_length(reward_model))
    requests = [
        Request(
            tuple(e.prompt_ids), request_seed(seed, 0, str(i), 0), min(max_new_tokens, room - len(e.prompt_ids)), ends
        )
        for i, e in enumerate(examples)
    ]
    samples = LocalSampler(policy.eval()).sample(requests)
    sequences = [[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)]
    return float(all_scores(reward_model, sequences).mean())


def run(config: SftConfig) -> None:
    """Fine-tune, then write the chosen `model/` into the run folder."""
    run = open_run(
        "sft",
        config,
        inputs_of(config, *config.INPUTS),
    )
    if run is None:
        return
    # 1. The base model and the demonstrations as ids.
    tokenizer = load_tokenizer(config.model)
    policy = load_policy(config.model, tokenizer)
    _set_dropout(policy, config)
    whole = context_length(policy)
    limits = (config.max_prompt_tokens, config.max_completion_tokens, whole)
    loaded = read_demonstrations(config.demonstrations)
    train, too_long = encode(loaded.records, tokenizer, limits)
    lost = {}
    if config.valid_demonstrations:
        loaded_valid = read_demonstrations(config.valid_demonstrations)
        valid, dropped_valid = encode(loaded_valid.records, tokenizer, limits)
        lost["valid_demonstrations"] = {**loaded_valid.dropped, **dropped_valid}
    else:
        train, valid = hold_out(train, [tuple(e.prompt_ids) for e in train], 0.1, config.seed)
    if not train or not valid:
        read, fit = len(loaded.records), len(train) + len(valid)
        raise ValueError(
            f"{config.demonstrations}: {read} demonstrations, {fit} within {limits[0]} prompt, {limits[1]} completion"
            f" and {limits[2]} whole tokens; at least one prompt to train on and one to hold out are needed"
        )
    reward_model = None
    if config.reward_model:
        reward_tokenizer = load_tokenizer(config.reward_model)
        require_same_tokens(reward_tokenizer, tokenizer, f"reward_model {config.reward_model}")
        if not same_reading(reward_tokenizer, tokenizer):
            raise ValueError(
                f"reward_model {config.reward_model}: its chat template differs from {config.model}'s; choose by "
                "validation loss (leave out reward_model), or train the reward model from this base's SFT model"
            )
        reward_model = load_scalar(config.reward_model, reward_tokenizer)
        context = context_length(reward_model)
        scored = [e for e in valid if len(e.prompt_ids) < context]
        if not scored:
            raise ValueError(
                f"reward_model {config.reward_model}: none of {len(valid)} prompts held out leaves room for an answer "
                f"in its context of {context} tokens; leave reward_model out, or shorten the prompts"
            )
        lost["reward_model"] = {"too long": len(valid) - len(scored)}
    rows = None
    if config.pretraining_texts:
        texts = read_texts(config.pretraining_texts)
        lost["pretraining_texts"] = texts.dropped
        rows = text_rows(tokenizer, texts.records, min(128, whole))
    per_epoch = -(-len(train) // config.batch_size)
    total = per_epoch * config.epochs
    begin(
        run,
        f"{len(train):,} demonstrations of up to {max(len(e.prompt_ids + e.completion_ids) for e in train)} tokens to "
        f"train on, {len(valid):,} of other prompts to measure by",
        f"{total:,} updates of {config.batch_size}: {config.epochs} epochs of {per_epoch:,}",
        trained=[policy],
        lost=(unused := dropped({**loaded.dropped, **too_long}, **lost)),
    )
    # 2. The optimizer, and where we were.
    torch.manual_seed(config.seed)
    optimizer = adamw(policy, config)
    checkpoint = Checkpoint(run, {"policy": policy}, {"policy": optimizer}, config.checkpoint_seconds)
    resumed = checkpoint.resume()
    if resumed.get("best") is not None and not (model := run.folder / "model").exists():
        raise ValueError(
            f"{model}: the best epoch so far was there, and it is gone; set overwrite to train from the start"
        )
    watch = Watch(run, tokenizer)
    best, history = resumed.get("best"), resumed.get("history", [])
    plan = list(batches(train, config.batch_size, config.seed, config.epochs))
    # 3. Epochs of cross-entropy on completions.
    for step in run.track(range(resumed["step"], total)):
        policy.train()
        batch = plan[step]
        watch.reads(step, [e.prompt_ids + e.completion_ids for e in batch])
        count = sum(len(e.completion_ids) for e in batch)
        share = config.pretraining_share if rows is not None else 0.0
        loss, _ = examples_nll(policy, batch, config.micro_batch_tokens, (1 - share) / count)
        if rows is not None:
            drawn = torch.randint(
                len(rows), (8,), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            )
            (text_nll(policy, rows[drawn]) * share / (8 * (rows.shape[1] - 1))).backward()
        rate = config.learning_rate * cosine(step, total)
        norm = update(optimizer, policy, config.max_grad_norm, rate, watch)
        metrics = {"loss__train": loss / count, "grad_norm": norm, "learning_rate": rate}
        # 4. After each epoch: is this the best checkpoint so far?
        epoch_ends = (step + 1) % per_epoch == 0
        if epoch_ends:
            entry = {
                "epoch": (step + 1) // per_epoch,
                "valid_loss": validation_loss(policy, valid, config.micro_batch_tokens),
            }
            metrics["valid__loss"] = entry["valid_loss"]
            require_finite_measure(run, "loss on held-out demonstrations", entry["valid_loss"])
            if reward_model is not None:
                entry["score"] = metrics["valid__score"] = mean_score(
                    policy, reward_model, scored[: config.score_samples], config.seed, config.max_completion_tokens
                )
                require_finite_measure(run, "mean score on held-out prompts", entry["score"])
            history.append(entry)
            quality = entry.get("score", -entry["valid_loss"])
            if best is None or quality > best:
                best = quality
                save_model(policy, tokenizer, run.folder / "model")
        watch.look(run.log(step, show=("loss__train",), **metrics))
        if epoch_ends or checkpoint.due():
            checkpoint.save(step + 1, best=best, history=history)
    chosen = max(history, key=lambda e: e.get("score", -e["valid_loss"]))
    run.finish(
        demonstrations=len(train), valid_demonstrations=len(valid), history=history, chosen=chosen,
        dropped=unused,
        chosen_by="reward model score" if reward_model is not None else "validation loss",
    )  # fmt: skip


def _set_dropout(policy: PreTrainedModel, config: SftConfig) -> None:
    """Residual dropout where the architecture has it; an error where it was asked for and there is none.

    Raises:
        ValueError: if `residual_dropout` is set and the model has no dropout layer.
    """
    if not set_dropout(policy, config.residual_dropout) and config.residual_dropout:
        raise ValueError(
            f"residual_dropout={config.residual_dropout}: {type(policy).__name__} has no dropout; set it to 0"
        )
