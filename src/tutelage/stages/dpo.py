"""Direct preference optimisation: rankings or pairs straight into the policy, without a reward model or samples.

A ranking is one element with all its ordered pairs, packed into one tree, in which the prompt is read once. The
reference's log-probabilities are computed once, before the first step, and kept with its checkpoints.

    tutelage dpo --model runs/sft/model --rankings rankings.jsonl --output runs/dpo
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.datasets import read_rankings
from tutelage.data.records import Ranking, Text
from tutelage.models.architecture import context_length
from tutelage.models.forward import logprob_sums_by_group
from tutelage.models.loading import load_policy, save_model
from tutelage.models.precision import full_precision
from tutelage.models.tokens import encode_rankings, load_tokenizer
from tutelage.objectives.dpo import preference_loss
from tutelage.objectives.reward import ranking_accuracy
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.settings.dpo import DpoConfig
from tutelage.stages.reward import but_trained_on, in_order
from tutelage.stats.intervals import estimate
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, batches, begin, cosine, hold_out, require_finite_measure, update


@dataclass(frozen=True)
class Preference:
    """A ranking as ids: K sequences, of which the first `prompt_length` are the prompt's, their ranks, which prompt it
    is, and (k,) the summed log-probabilities of the completions under the reference."""

    sequences: list[list[int]]
    prompt_length: int
    ranks: torch.Tensor
    prompt: Text
    reference: torch.Tensor


def encode(
    rankings: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, context: int
) -> tuple[list[Preference], int]:
    """Rankings as ids, without a reference yet; and how many were too long and dropped."""
    preferences, too_long = [], 0
    for r, pairs in zip(rankings, encode_rankings(tokenizer, rankings), strict=True):
        length = len(pairs[0][0])
        if length > max_prompt_tokens or max(len(p) + len(c) for p, c in pairs) > context:
            too_long += 1
            continue
        sequences, ranks = [p + c for p, c in pairs], torch.tensor(r.ranks)
        preferences.append(Preference(sequences, length, ranks, r.prompt.identity, torch.empty(0)))
    return preferences, too_long


@torch.inference_mode()
def reference_sums(policy: PreTrainedModel, preferences: Sequence[Preference], max_tokens: int) -> list[list[float]]:
    """The summed log-probabilities of each ranking's completions."""
    sums: list[list[float]] = [[] for _ in preferences]
    for group in completion_sums(policy, preferences, max_tokens):
        for i, s in group:
            sums[i] = s.tolist()
    return sums


def references(
    policy: PreTrainedModel, train: Sequence[Preference], held_out: Sequence[Preference], max_tokens: int
) -> dict[str, list[list[float]]]:
    """`reference_sums` in the precision in which the policy is trained, and of held-out rankings in that of measures:
    so a policy that has not moved has log-ratios of 0, whatever is rounded."""
    policy.eval()
    sums = {"train": reference_sums(policy, train, max_tokens)}
    with full_precision():
        sums["held_out"] = reference_sums(policy, held_out, max_tokens)
    return sums


def completion_sums(
    policy: PreTrainedModel, preferences: Sequence[Preference], max_tokens: int
) -> Iterator[list[tuple[int, torch.Tensor]]]:
    """Rankings by number with the summed log-probabilities (k,) of their completions, a micro-batch at a time: each
    ranking one tree, its prompt read once."""
    groups, lengths = [p.sequences for p in preferences], [p.prompt_length for p in preferences]
    return logprob_sums_by_group(policy, groups, lengths, max_tokens)


def log_ratios(
    policy: PreTrainedModel, preferences: Sequence[Preference], max_tokens: int
) -> Iterator[list[tuple[Preference, torch.Tensor]]]:
    """Rankings with the log-ratios (k,) of their completions to the reference, a micro-batch at a time."""
    for group in completion_sums(policy, preferences, max_tokens):
        yield [(preferences[i], s - preferences[i].reference.to(s.device)) for i, s in group]


def loss_of(preference: Preference, log_ratios: torch.Tensor, config: DpoConfig) -> torch.Tensor:
    """The loss of one ranking."""
    ranks = preference.ranks.to(log_ratios.device)
    return preference_loss(log_ratios, ranks, config.beta, config.loss, config.label_smoothing)


def backward(policy: PreTrainedModel, batch: Sequence[Preference], config: DpoConfig) -> dict[str, float]:
    """Add the gradient of the mean loss of a batch's rankings; returns that loss, the share of pairs that the policy
    prefers as the labeler did, and by how much it does, times beta."""
    loss = correct = pairs = margin = 0.0
    for group in log_ratios(policy, batch, config.micro_batch_tokens):
        part = torch.stack([loss_of(p, h, config) for p, h in group]).sum() / len(batch)
        part.backward()
        loss += part.item()
        for p, h in group:
            right, number = ranking_accuracy(h, p.ranks.to(h.device))
            above = p.ranks[:, None] < p.ranks
            margin += config.beta * float((h.detach()[:, None] - h.detach()).cpu()[above].sum())
            correct, pairs = correct + float(right), pairs + int(number)
    total = max(1.0, pairs)
    return {"loss/train": loss, "accuracy/train": correct / total, "preference/margin": margin / total}


@torch.inference_mode()
def evaluate(policy: PreTrainedModel, preferences: Sequence[Preference], config: DpoConfig) -> dict[str, Any]:
    """The mean loss of held-out rankings, and the share of their pairs that the policy prefers as the labeler did, with
    its 95 % interval over prompts."""
    policy.eval()
    losses, correct, pairs, prompts = [], [], [], []
    with full_precision():
        for group in log_ratios(policy, preferences, config.micro_batch_tokens):
            for p, h in group:
                losses.append(float(loss_of(p, h, config)))
                right, number = ranking_accuracy(h, p.ranks.to(h.device))
                correct.append(float(right))
                pairs.append(int(number))
                prompts.append(p.prompt)
    rate = estimate(correct, pairs, prompts=prompts, seed=config.seed)
    accuracy = {"accuracy": rate["mean"], "low": rate["low"], "high": rate["high"], "prompts": rate["prompts"]}
    return {**accuracy, "pairs": sum(pairs), "rankings": len(preferences), "loss": sum(losses) / len(losses)}


def read(
    config: DpoConfig, tokenizer: PreTrainedTokenizerBase, context: int
) -> tuple[list[Preference], list[Preference], dict[str, int]]:
    """Rankings to train on, held-out ones, and what is not used.

    Raises:
        ValueError: if nothing is left to train on, or of `valid_rankings`.
    """
    loaded = read_rankings(config.rankings)
    records, valid, lost = loaded.records, [], {}
    if config.valid_rankings:
        loaded_valid = read_rankings(config.valid_rankings)
        valid, lost["valid_rankings"] = loaded_valid.records, loaded_valid.dropped
    elif config.held_out:
        records, valid = hold_out(records, [r.prompt.identity for r in records], config.held_out, config.seed)
    train, too_long = encode(records, tokenizer, config.max_prompt_tokens, context)
    held_out, too_long_valid = encode(valid, tokenizer, config.max_prompt_tokens, context)
    if config.valid_rankings:
        lost["valid_rankings"] = {**lost["valid_rankings"], "too long": too_long_valid}
    else:
        too_long += too_long_valid
    if not train or (config.valid_rankings and not held_out):
        name, source = ("valid_rankings", config.valid_rankings) if train else ("rankings", loaded.source)
        counts = lost["valid_rankings"] if train else {**loaded.dropped, "too long": too_long}
        why = ", ".join(f"{number:,} {reason}" for reason, number in counts.items() if number)
        raise ValueError(
            f"{name}: {source}: no ranking is left ({why}); see that ranks differ and texts are short enough"
        )
    return train, held_out, dropped({**loaded.dropped, "too long": too_long}, **lost)


def run(config: DpoConfig) -> None:
    """Fit the policy, measure it on held-out rankings, then write `model/` into the run folder."""
    opened = open_run("dpo", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. Rankings as ids.
    tokenizer = load_tokenizer(config.model)
    policy = load_policy(config.model, tokenizer, config.adapter, config.seed)
    train, held_out, unused = read(config, tokenizer, context_length(policy))
    steps = -(-len(train) // config.batch_size) * config.epochs
    begin(
        opened,
        f"{len(train):,} rankings to train on, {len(held_out):,} held out",
        f"{steps:,} updates of {config.batch_size} rankings, {config.epochs} passes",
        trained=[policy],
        lost=unused,
    )
    # 2. What the reference says of them. It is the policy at the start; later, the checkpoint knows.
    torch.manual_seed(config.seed)
    optimizer = adamw(policy, config.optimizer)
    checkpoint = Checkpoint(opened, {"policy": policy}, {"policy": optimizer}, config.checkpoint_seconds)
    start = checkpoint.resume()
    sums = start.get("reference") or references(policy, train, held_out, config.micro_batch_tokens)
    train = [replace(p, reference=torch.tensor(s)) for p, s in zip(train, sums["train"], strict=True)]
    held_out = [replace(p, reference=torch.tensor(s)) for p, s in zip(held_out, sums["held_out"], strict=True)]
    # 3. Passes over the rankings.
    plan = list(batches(train, config.batch_size, config.seed, config.epochs))
    watch = Watch(opened, tokenizer)
    for step in opened.track(range(start["step"], len(plan))):
        policy.eval()  # no dropout: the reference has none
        watch.reads(step, [ids for p in plan[step] for ids in p.sequences])
        metrics = backward(policy, plan[step], config)
        rate = config.optimizer.learning_rate * cosine(step, len(plan), config.optimizer.warmup_steps)
        metrics["grad_norm"] = update(optimizer, policy, config.optimizer.max_grad_norm, rate, watch)
        metrics["learning_rate"] = rate
        watch.look(opened.log(step, metrics, show=("loss/train", "accuracy/train")))
        if checkpoint.due():
            checkpoint.save(step + 1, reference=sums)
    # 4. What it has learned.
    valid = evaluate(policy, held_out, config) if held_out else {}
    if valid:
        require_finite_measure(opened, "loss on held-out rankings", valid["loss"])
    save_model(policy, tokenizer, opened.folder / "model")
    known = len({p.prompt for p in train} & {p.prompt for p in held_out})
    found = f"held out: {in_order(valid)}, where a policy that has not moved has 0.50" if valid else ""
    opened.say(
        found + but_trained_on(known, valid) if valid else "nothing was held out, so nothing says what it learned"
    )
    opened.finish(rankings=len(train), dropped=unused, valid=valid, prompts_trained_on=known)
