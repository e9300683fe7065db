"""The reward model: Bradley–Terry over K-way rankings (paper, section 3.5 and equation 1).

A ranking is one element: its K sequences are packed into one tree, in which the prompt is read once, and all its
ordered pairs enter one loss. The model starts from the SFT policy; after training its scores are shifted so that
demonstrations average 0. At the end it says in words whether it learned, by rankings of prompts that it never saw.

    tutelage reward --model runs/sft/model --rankings rankings.jsonl --output runs/reward
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.datasets import read_demonstrations, read_rankings, write_jsonl
from tutelage.data.records import Ranking, Text
from tutelage.models.architecture import context_length
from tutelage.models.centring import centre
from tutelage.models.forward import all_scores, scores_by_group
from tutelage.models.loading import new_scalar, save_model
from tutelage.models.precision import full_precision
from tutelage.models.tokens import encode_pairs, encode_rankings, load_tokenizer
from tutelage.objectives.reward import ranking_accuracy, ranking_loss
from tutelage.runs import Run, done, dropped, inputs_of, open_run
from tutelage.settings.reward import RewardConfig
from tutelage.stats.intervals import estimate
from tutelage.stats.reward_model import calibration
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
    return measures((pair for group in micro_scores(model, elements, max_tokens) for pair in group), seed)


def measures(scored: Iterable[tuple[Element, torch.Tensor]], seed: int = 0) -> dict[str, Any]:
    """The same of elements whose scores (k,) are there."""
    correct, total, prompts, losses, margins = [], [], [], [], []
    for element, s in scored:
        ranks = element.ranks.to(s.device)
        right, pairs = ranking_accuracy(s, ranks)
        correct.append(float(right))
        total.append(int(pairs))
        prompts.append(element.prompt)
        losses.append(float(ranking_loss(s, ranks)))
        better = ranks[:, None] < ranks[None, :]
        margins.append((s[:, None] - s[None, :])[better].cpu())
    rate = estimate(correct, total, prompts=prompts, seed=seed)
    return {
        "accuracy": rate["mean"], "low": rate["low"], "high": rate["high"], "pairs": sum(total),
        "rankings": len(losses), "prompts": rate["prompts"], "loss": sum(losses) / len(losses),
        "calibration": calibration(torch.cat(margins).double()),
    }  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Rankings to train on, as records and as ids; those that the stage itself holds out, as records; all held-out ones
    as ids, by the name of their set; demonstrations as ids; and what is not used."""

    records: list[Ranking]
    kept_back: list[Ranking]
    train: list[Element]
    pairs: int
    held_out: dict[str, list[Element]]
    demonstrations: list[list[int]]
    unused: dict[str, int]


def read(config: RewardConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> Data:
    """The stage's files as ids.

    Raises:
        ValueError: if nothing of rankings, of a named valid set or of demonstrations is left.
    """
    loaded = read_rankings(config.rankings)
    records, valid = loaded.records, {name: read_rankings(source) for name, source in config.valid.items()}
    kept_back: list[Ranking] = []
    if not valid and config.held_out:
        records, kept_back = hold_out(records, [r.prompt.identity for r in records], config.held_out, config.seed)
    train, too_long = encode(records, tokenizer, config.max_prompt_tokens, context)
    if not train:
        raise ValueError(
            f"{loaded.source}: no ranking left to train on (dropped: {loaded.dropped}, too long: {too_long})"
        )
    held_out, lost = {}, {}
    for name, given in valid.items():
        held_out[name], long = encode(given.records, tokenizer, config.max_prompt_tokens, context)
        lost[f"valid.{name}"] = {**given.dropped, "too long": long}
        if not held_out[name]:
            raise ValueError(
                f"valid.{name}: {config.valid[name]}: none of its rankings fits; leave it out or shorten it"
            )
    if kept_back:
        held_out["held_out"], long = encode(kept_back, tokenizer, config.max_prompt_tokens, context)
        too_long += long
    demonstrations: list[list[int]] = []
    if config.demonstrations:
        written = read_demonstrations(config.demonstrations)
        texts = encode_pairs(tokenizer, [(d.prompt.text, d.completion, True) for d in written.records])
        demonstrations = [p + c for p, c in texts if len(p) + len(c) <= context]
        if not demonstrations:
            raise ValueError(
                f"{config.demonstrations}: none of {len(texts)} demonstrations fits the context of {context} tokens"
            )
        lost["demonstrations"] = {**written.dropped, "too long": len(texts) - len(demonstrations)}
    unused = dropped({**loaded.dropped, "too long": too_long}, **lost)
    pairs = sum(int((e.ranks[:, None] < e.ranks).sum()) for e in train)
    return Data(records, kept_back, train, pairs, held_out, demonstrations, unused)


def run(config: RewardConfig) -> None:
    """Fit, centre and evaluate, then write `model/` into the run folder."""
    opened = open_run("reward", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. Rankings as ids.
    tokenizer = load_tokenizer(config.model)
    model = new_scalar(config.model, tokenizer, config.seed, config.adapter)
    data = read(config, tokenizer, context_length(model))
    plan = list(batches(data.train, config.batch_size, config.seed, config.epochs))
    sets = ", ".join(f"{len(elements):,} ({name})" for name, elements in data.held_out.items())
    begin(
        opened,
        f"{len(data.train):,} rankings to train on, {data.pairs:,} ordered pairs; held out: {sets or 'none'}",
        f"{len(plan):,} updates of {config.batch_size} rankings, {config.epochs} passes",
        trained=[model],
        lost=data.unused,
    )
    # 2. One pass of Bradley–Terry, each ranking one element.
    torch.manual_seed(config.seed)
    optimizer = adamw(model, config.optimizer)
    checkpoint = Checkpoint(opened, {"model": model}, {"model": optimizer}, config.checkpoint_seconds)
    start = checkpoint.resume()["step"]
    watch = Watch(opened, tokenizer)
    for step in opened.track(range(start, len(plan))):
        model.train()
        watch.reads(step, [ids for e in plan[step] for ids in e.sequences])
        loss, accuracy = backward(model, plan[step], config.micro_batch_tokens)
        rate = config.optimizer.learning_rate * cosine(step, len(plan), config.optimizer.warmup_steps)
        norm = update(optimizer, model, config.optimizer.max_grad_norm, rate, watch)
        metrics = {"loss/train": loss, "accuracy/train": accuracy, "grad_norm": norm, "learning_rate": rate}
        watch.look(opened.log(step, metrics, show=("loss/train", "accuracy/train")))
        if checkpoint.due():
            checkpoint.save(step + 1)
    # 3. Demonstrations average 0. 4. What it has learned.
    shift = centred(model.eval(), data, config)
    valid = measured(opened, model, data, config)
    save_model(model, tokenizer, opened.folder / "model")
    trained_on = {e.prompt for e in data.train}
    known = {name: len(trained_on & {e.prompt for e in data.held_out[name]}) for name in valid}
    words = {name: verdict(each, known[name]) for name, each in valid.items()}
    lines = [f"{name}: {text}" for name, text in words.items()]
    for line in lines or ["nothing was held out, so nothing says whether it learned"]:
        opened.say(line)
    whole = {"share": 1.0, "rankings": len(data.train), "prompts": len(trained_on), "valid": valid}
    curve = {"learning_curve": [*learning_curve(config, data, opened.folder), whole]} if config.learning_curve else {}
    opened.finish(
        rankings=len(data.train), completions=sum(len(e.sequences) for e in data.train), dropped=data.unused,
        valid=valid, prompts_trained_on=known, verdict=words, **shift, **curve,
    )  # fmt: skip


def centred(model: PreTrainedModel, data: Data, config: RewardConfig) -> dict[str, float]:
    """Shift the scores so that demonstrations average 0, if there are any; what that did."""
    if not data.demonstrations:
        return {}
    some = Random(config.seed).sample(data.train, min(len(data.train), 300))
    others = [s for e in some for s in e.sequences]
    with full_precision():  # as other tools will read the folder
        shift = centre(model, data.demonstrations, others, config.micro_batch_tokens)
        shift["demonstration_score"] = float(all_scores(model, data.demonstrations).mean())
    return shift


def measured(opened: Run, model: PreTrainedModel, data: Data, config: RewardConfig) -> dict[str, dict[str, Any]]:
    """What `evaluate` measures on each held-out set.

    Raises:
        ValueError: if a loss is not finite.
    """
    with full_precision():
        valid = {
            name: evaluate(model, elements, config.micro_batch_tokens)
            for name, elements in data.held_out.items()
            if elements
        }
    for name, own in valid.items():
        require_finite_measure(opened, f"loss on {name}", own["loss"])
    return valid


def learning_curve(config: RewardConfig, data: Data, folder: Path) -> list[dict[str, Any]]:
    """A point for each share of the prompts below 1: a run of its own in `curve/`, measured as the whole is, on the
    rankings of the first prompts in an order that the seed draws."""
    (folder / "curve").mkdir(exist_ok=True)
    order = list(dict.fromkeys(r.prompt.identity for r in data.records))
    Random(f"curve/{config.seed}").shuffle(order)
    valid = config.valid
    if not valid:
        valid = {"held_out": str(folder / "curve" / "held_out.jsonl")}
        write_jsonl(valid["held_out"], data.kept_back)
    points = []
    for share in sorted({each for each in config.learning_curve if each < 1}):
        own, taken = folder / "curve" / f"{share:g}", set(order[: math.ceil(share * len(order))])
        rankings = own.with_name(f"{share:g}.jsonl")
        write_jsonl(rankings, [r for r in data.records if r.prompt.identity in taken])
        changed = {"output": own, "rankings": (str(rankings),), "valid": valid, "learning_curve": []}
        run(config.model_copy(update=changed))
        results = done(own) or {}
        points.append(
            {"share": share, "rankings": results["rankings"], "prompts": len(taken), "valid": results["valid"]}
        )
    return points


def backward(model: PreTrainedModel, batch: Sequence[Element], max_tokens: int) -> tuple[float, float]:
    """Add the gradient of the mean loss of a batch's rankings; returns that loss, and the share of pairs in order."""
    loss = correct = pairs = 0.0
    for group in micro_scores(model, batch, max_tokens):
        scored = [(s, e.ranks.to(s.device)) for e, s in group]
        part = torch.stack([ranking_loss(s, ranks) for s, ranks in scored]).sum() / len(batch)
        part.backward()
        loss += part.item()
        counts = [ranking_accuracy(s.detach(), ranks) for s, ranks in scored]
        correct, pairs = correct + sum(float(c) for c, _ in counts), pairs + sum(int(n) for _, n in counts)
    return loss, correct / max(1.0, pairs)


def verdict(measures: Mapping[str, Any], trained_on: int = 0) -> str:
    """Whether a reward model has learned, in words, from what `evaluate` measures on rankings that it did not see.

    `trained_on` is how many of their prompts it was trained on after all.
    """
    share = in_order(measures)
    if measures["low"] > 0.5:
        text = f"learned: {share}, where chance gives 0.50"
    elif measures["high"] < 0.5:
        text = f"worse than chance: {share}; look whether the ranks mean 1 for the best"
    else:
        text = f"not shown to be better than chance: {share}; it needs more rankings, or another learning rate"
    return text + but_trained_on(trained_on, measures)


def in_order(measures: Mapping[str, Any]) -> str:
    """How many held-out pairs stand in the labelers' order, in words."""
    share = f"{measures['accuracy']:.2f} [{measures['low']:.2f}, {measures['high']:.2f}] of "
    return f"{share}{measures['pairs']:,} pairs in order ({measures['prompts']:,} prompts)"


def but_trained_on(prompts: int, measures: Mapping[str, Any]) -> str:
    """What to add if that many of the prompts that were measured on were trained on."""
    if not prompts:
        return ""
    return (
        f"; but {prompts:,} of its {measures['prompts']:,} prompts are among those trained on, so this is no "
        "measure of new ones: leave them out of one of the two files"
    )
