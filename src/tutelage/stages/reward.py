"""The reward model: Bradley–Terry over K-way rankings (paper, section 3.5 and equation 1).

A ranking is one element: its K sequences are packed into one tree, in which the prompt is read once, and all its
ordered pairs enter one loss. The model starts from the SFT policy; after training its scores are shifted so that
demonstrations average 0. At the end it says in words whether it learned, by rankings of prompts that it never saw.

    tutelage reward --model runs/sft/model --rankings rankings.jsonl --output runs/reward
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.datasets import read_demonstrations, read_rankings
from tutelage.data.records import Ranking, Text
from tutelage.models.forward import all_scores, final_hidden, scores_by_group
from tutelage.models.loading import context_length, full_precision, new_scalar, save_model
from tutelage.models.packing import micro_batches
from tutelage.models.tokens import encode_pairs, encode_rankings, load_tokenizer
from tutelage.objectives.reward import ranking_accuracy, ranking_loss
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.settings.stages import RewardConfig
from tutelage.stats.intervals import estimate
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, batches, begin, cosine, hold_out, require_finite_measure, update


@dataclass(frozen=True)
class Element:
    """A ranking as ids: K sequences of prompt and completion, their ranks, and which prompt it is."""

    sequences: list[list[int]]
    ranks: torch.Tensor
    prompt: Text = ""


def encode(
    rankings: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, context: int
) -> tuple[list[Element], int]:
    """Rankings as ids, and how many were too long and dropped."""
    elements, dropped = [], 0
    for r, pairs in zip(rankings, encode_rankings(tokenizer, rankings), strict=True):
        if len(pairs[0][0]) > max_prompt_tokens or max(len(p) + len(c) for p, c in pairs) > context:
            dropped += 1
            continue
        elements.append(Element([p + c for p, c in pairs], torch.tensor(r.ranks), r.prompt.identity))
    return elements, dropped


def micro_scores(
    model: PreTrainedModel, elements: Sequence[Element], max_tokens: int
) -> Iterator[list[tuple[Element, torch.Tensor]]]:
    """Elements with their scores (k,), a micro-batch at a time: each ranking one tree, its prompt read once."""
    for scored in scores_by_group(model, [e.sequences for e in elements], max_tokens):
        yield [(elements[g], s) for g, s in scored]


@torch.inference_mode()
def evaluate(model: PreTrainedModel, elements: Sequence[Element], max_tokens: int, seed: int = 0) -> dict[str, Any]:
    """Accuracy on ordered pairs with its 95 % interval over prompts, mean loss of a ranking, and calibration.

    Calibration lists, by bins of the predicted probability that the higher-scored completion wins, the mean prediction,
    the share that did win, and the number of pairs.
    """
    model.eval()
    correct, total, prompts, losses, margins = [], [], [], [], []
    for group in micro_scores(model, elements, max_tokens):
        for element, s in group:
            ranks = element.ranks.to(s.device)
            right, pairs = ranking_accuracy(s, ranks)
            correct.append(float(right))
            total.append(int(pairs))
            prompts.append(element.prompt)
            losses.append(float(ranking_loss(s, ranks)))
            better = ranks[:, None] < ranks[None, :]
            margins.append((s[:, None] - s[None, :])[better].cpu())
    rate = estimate(correct, total, prompts=prompts, seed=seed)
    margin = torch.cat(margins)
    confidence, won = margin.abs().sigmoid(), (margin.sign() + 1) / 2  # equal scores are half right
    bins = []
    for k in range(10):
        inside = (confidence >= 0.5 + k * 0.05) & (confidence < 0.55 + k * 0.05 + (k == 9))
        if inside.any():
            shares = [round(float(v[inside].mean()), 4) for v in (confidence, won)]
            bins.append([*shares, int(inside.sum())])
    return {
        "accuracy": rate["mean"], "low": rate["low"], "high": rate["high"], "pairs": sum(total),
        "rankings": len(elements), "prompts": rate["prompts"], "loss": sum(losses) / len(losses), "calibration": bins,
    }  # fmt: skip


@torch.inference_mode()
def centre(
    model: PreTrainedModel, demonstrations: Sequence[Sequence[int]], others: Sequence[Sequence[int]], max_tokens: int
) -> dict[str, float]:
    """Shift scores so that demonstrations average 0, inside the head's weights.

    Classification heads of the ecosystem have no bias, so the offset is folded into the weight: find u with h·u ≈ 1 on
    the final hidden states h of demonstrations and other completions (ridge regression), scale it so that it is 1 on
    average over demonstrations, and take mean(score)·u off the head. The average is then 0 exactly, differences move by
    the fit's residual only (reported), and any tool that opens the folder reads the shifted scores.
    """
    h = torch.cat(
        [
            final_hidden(model, b.to(model.device))
            for b in micro_batches(demonstrations, max_tokens, model.config.pad_token_id)
        ]
    ).double()
    rest = torch.cat(
        [final_hidden(model, b.to(model.device)) for b in micro_batches(others, max_tokens, model.config.pad_token_id)]
    ).double()
    every = torch.cat([h, rest])
    gram = every.T @ every
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    u = torch.linalg.solve(gram + ridge, every.sum(0))
    u = u / (h @ u).mean()
    weight = model.score.weight[0]
    offset = float((h @ weight.double()).mean())
    weight.sub_((offset * u).to(weight.dtype))
    return {"offset": offset, "offset_residual": abs(offset) * float((every @ u - 1).std())}


def run(config: RewardConfig) -> None:
    """Fit, centre and evaluate, then write `model/` into the run folder."""
    run = open_run("reward", config, inputs_of(config, *config.INPUTS))
    if run is None:
        return
    # 1. Rankings as ids.
    tokenizer = load_tokenizer(config.model)
    model = new_scalar(config.model, tokenizer, config.seed)
    context = context_length(model)
    loaded = read_rankings(config.rankings)
    lost: dict[str, dict[str, int]] = {}
    records, valid = loaded.records, {}
    for name, source in config.valid.items():
        loaded_valid = read_rankings(source)
        valid[name], lost[f"valid.{name}"] = loaded_valid.records, loaded_valid.dropped
    if not valid and config.held_out:
        records, kept_back = hold_out(records, [r.prompt.identity for r in records], config.held_out, config.seed)
        valid = {"held_out": kept_back} if kept_back else {}
    train, too_long = encode(records, tokenizer, config.max_prompt_tokens, context)
    if not train:
        raise ValueError(
            f"{config.rankings}: no ranking left to train on (dropped: {loaded.dropped}, too long: {too_long})"
        )
    held_out = {}
    for name, rankings in valid.items():
        held_out[name], long = encode(rankings, tokenizer, config.max_prompt_tokens, context)
        if not held_out[name] and name in config.valid:
            raise ValueError(
                f"valid.{name}: {config.valid[name]}: none of its rankings fits; leave it out or shorten it"
            )
        if name in config.valid:
            lost[f"valid.{name}"] = {**lost[f"valid.{name}"], "too long": long}
        else:
            too_long += long
    demonstrations: list[list[int]] = []
    if config.demonstrations:
        read = read_demonstrations(config.demonstrations)
        pairs_of = encode_pairs(tokenizer, [(d.prompt.text, d.completion, True) for d in read.records])
        demonstrations = [p + c for p, c in pairs_of if len(p) + len(c) <= context]
        if not demonstrations:
            raise ValueError(
                f"{config.demonstrations}: none of {len(pairs_of)} demonstrations fits the context of {context} tokens"
            )
        lost["demonstrations"] = {**read.dropped, "too long": len(pairs_of) - len(demonstrations)}
    plan = list(batches(train, config.batch_size, config.seed, config.epochs))
    pairs_to_learn = sum(len(r.pairs) for r in records)
    begin(
        run,
        f"{len(train):,} rankings to train on, {pairs_to_learn:,} ordered pairs; held out: "
        + (", ".join(f"{len(elements):,} ({name})" for name, elements in held_out.items()) or "none"),
        f"{len(plan):,} updates of {config.batch_size} rankings, {config.epochs} passes",
        trained=[model],
        lost=(unused := dropped({**loaded.dropped, "too long": too_long}, **lost)),
    )
    # 2. One pass of Bradley–Terry, each ranking one element.
    torch.manual_seed(config.seed)
    optimizer = adamw(model, config)
    checkpoint = Checkpoint(run, {"model": model}, {"model": optimizer}, config.checkpoint_seconds)
    start = checkpoint.resume()["step"]
    watch = Watch(run, tokenizer)
    for step in run.track(range(start, len(plan))):
        model.train()
        batch = plan[step]
        watch.reads(step, [ids for e in batch for ids in e.sequences])
        loss = correct = pairs = 0.0
        for group in micro_scores(model, batch, config.micro_batch_tokens):
            scored = [(s, e.ranks.to(s.device)) for e, s in group]
            part = torch.stack([ranking_loss(s, ranks) for s, ranks in scored]).sum() / len(batch)
            part.backward()
            loss += part.item()
            counts = [ranking_accuracy(s.detach(), ranks) for s, ranks in scored]
            correct, pairs = correct + sum(float(c) for c, _ in counts), pairs + sum(int(n) for _, n in counts)
        rate = config.learning_rate * cosine(step, len(plan), config.warmup_steps)
        norm = update(optimizer, model, config.max_grad_norm, rate, watch)
        accuracy = correct / max(1.0, pairs)
        row = run.log(
            step,
            show=("loss__train", "accuracy__train"),
            loss__train=loss,
            accuracy__train=accuracy,
            grad_norm=norm,
            learning_rate=rate,
        )
        watch.look(row)
        if checkpoint.due():
            checkpoint.save(step + 1)
    # 3. Demonstrations average 0.
    model.eval()
    shift: dict[str, float] = {}
    others = [s for e in Random(config.seed).sample(train, min(len(train), 300)) for s in e.sequences]
    with full_precision():  # as other tools will read the folder
        if demonstrations:
            shift = centre(model, demonstrations, others, config.micro_batch_tokens)
            shift["demonstration_score"] = float(all_scores(model, demonstrations).mean())
        # 4. What it has learned.
        results = {
            name: evaluate(model, elements, config.micro_batch_tokens)
            for name, elements in held_out.items()
            if elements
        }
    for name, measured in results.items():
        require_finite_measure(run, f"loss on {name}", measured["loss"])
    words = {name: verdict(measured) for name, measured in results.items()}
    seen = {e.prompt for e in train}
    known = {name: len(seen & {e.prompt for e in held_out[name]}) for name in results}
    for name, number in known.items():
        if number:
            words[name] += (
                f"; but {number:,} of its {results[name]['prompts']:,} prompts are among those trained on, so this is "
                "no measure of new ones: leave them out of one of the two files"
            )
    save_model(model, tokenizer, run.folder / "model")
    for name, text in words.items():
        run.say(f"{name}: {text}")
    if not words:
        run.say("nothing was held out, so nothing says whether it learned")
    run.finish(
        rankings=len(train), dropped=unused, valid=results,
        prompts_trained_on=known, verdict=words, **shift,
    )  # fmt: skip


def verdict(measures: Mapping[str, Any]) -> str:
    """Whether a reward model has learned, in words, from what `evaluate` measures on rankings that it did not see."""
    share = f"{measures['accuracy']:.2f} [{measures['low']:.2f}, {measures['high']:.2f}] of "
    share += f"{measures['pairs']:,} pairs in order ({measures['prompts']:,} prompts)"
    if measures["low"] > 0.5:
        return f"learned: {share}, where chance gives 0.50"
    if measures["high"] < 0.5:
        return f"worse than chance: {share}; look whether the ranks mean 1 for the best"
    return f"not shown to be better than chance: {share}; it needs more rankings, or another learning rate"
