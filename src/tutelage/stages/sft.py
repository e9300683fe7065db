"""Supervised fine-tuning: the base model imitates demonstrations; only completion tokens are trained on.

Differs from the paper in scale only. The checkpoint is chosen after each epoch by the reward model's mean score if one
is given (section 3.5), else by validation loss.

    tutelage sft --model runs/base/model --demonstrations demonstrations.jsonl --output runs/sft
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.data.datasets import read_demonstrations, read_texts
from tutelage.data.records import Demonstration, Request
from tutelage.models.architecture import context_length, set_dropout, stop_ids
from tutelage.models.loading import load_policy, save_model
from tutelage.models.packing import micro_batches
from tutelage.models.texts import draw_rows, text_backward, text_rows
from tutelage.models.tokens import encode_pairs, load_tokenizer
from tutelage.objectives.sft import nll_sum
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import Run, dropped, inputs_of, open_run
from tutelage.sampling.engines import open_sampler
from tutelage.sampling.protocol import Sampler
from tutelage.sampling.seeds import request_seed
from tutelage.settings.sft import SftConfig
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, batches, begin, cosine, hold_out, require_finite_measure, update

TEXT_ROWS = 8  # of plain text in an update, where it is mixed in


@dataclass(frozen=True)
class Example:
    """A demonstration as ids: the prompt, and the completion with its end token."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def ids(self) -> list[int]:
        """The whole."""
        return self.prompt_ids + self.completion_ids


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
    prompt_lengths = [len(e.prompt_ids) for e in examples]
    total, count = 0.0, 0
    for batch in micro_batches([e.ids for e in examples], max_tokens, policy.config.pad_token_id):
        moved = batch.to(policy.device)
        logprobs, _ = policy.token_logprobs(moved, moved.completion_mask(prompt_lengths))
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
    sampler: Sampler, policy: PreTrainedModel, reward: RewardModel, examples: Sequence[Example], seed: int,
    max_new_tokens: int,
) -> float:  # fmt: skip
    """Mean score of sampled completions to the examples' prompts."""
    room = min(context_length(policy), reward.context)
    requests = []
    for i, e in enumerate(examples):
        most = min(max_new_tokens, room - len(e.prompt_ids))
        requests.append(Request(tuple(e.prompt_ids), request_seed(seed, 0, str(i), 0), most, stop_ids(policy)))
    samples = sampler.sample(requests)
    sequences = [[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)]
    return float(reward.scores(sequences).mean())


@dataclass(frozen=True)
class Data:
    """Examples to train on and to measure by, rows (n, length) of plain text to mix in, and what is not used."""

    train: list[Example]
    valid: list[Example]
    texts: torch.Tensor | None
    unused: dict[str, int]


def read(config: SftConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> Data:
    """The stage's files as ids.

    Raises:
        ValueError: if no prompt is left to train on, or none to hold out.
    """
    limits = (config.max_prompt_tokens, config.max_completion_tokens, context)
    loaded = read_demonstrations(config.demonstrations)
    train, too_long = encode(loaded.records, tokenizer, limits)
    lost, texts = {}, None
    if config.valid_demonstrations:
        loaded_valid = read_demonstrations(config.valid_demonstrations)
        valid, too_long_valid = encode(loaded_valid.records, tokenizer, limits)
        lost["valid_demonstrations"] = {**loaded_valid.dropped, **too_long_valid}
    else:
        train, valid = hold_out(train, [tuple(e.prompt_ids) for e in train], 0.1, config.seed)
    if not train or not valid:
        number, fit = len(loaded.records), len(train) + len(valid)
        raise ValueError(
            f"{config.demonstrations}: {number} demonstrations, {fit} within {limits[0]} prompt, {limits[1]} completion"
            f" and {limits[2]} whole tokens; at least one prompt to train on and one to hold out are needed"
        )
    if config.pretraining_texts:
        loaded_texts = read_texts(config.pretraining_texts)
        lost["pretraining_texts"] = loaded_texts.dropped
        texts = text_rows(tokenizer, loaded_texts.records, min(128, context))
    return Data(train, valid, texts, dropped({**loaded.dropped, **too_long}, **lost))


def open_reward(
    config: SftConfig, folder: str, tokenizer: PreTrainedTokenizerBase, valid: Sequence[Example]
) -> tuple[RewardModel, list[Example]]:
    """The reward model that chooses the checkpoint, and the held-out examples whose prompts leave it room.

    Raises:
        ValueError: if it reads other tokens or another template, or there is no such example.
    """
    reward = RewardModel(folder, tokenizer)
    if not reward.reads(tokenizer):
        raise ValueError(
            f"reward_model {folder}: its chat template differs from {config.model}'s; choose by validation loss (leave "
            "out reward_model), or train the reward model from this base's SFT model"
        )
    scored = [e for e in valid if len(e.prompt_ids) < reward.context]
    if not scored:
        raise ValueError(
            f"reward_model {folder}: none of {len(valid)} prompts held out leaves room for an answer in its context of "
            f"{reward.context} tokens; leave reward_model out, or shorten the prompts"
        )
    return reward, scored


def run(config: SftConfig) -> None:
    """Fine-tune, then write the chosen `model/` into the run folder."""
    opened = open_run("sft", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    # 1. The base model, and the demonstrations as ids.
    tokenizer = load_tokenizer(config.model)
    policy = load_policy(config.model, tokenizer, config.adapter, config.seed)
    _set_dropout(policy, config)
    data = read(config, tokenizer, context_length(policy))
    unused, reward, scored = data.unused, None, data.valid
    if config.reward_model:
        reward, scored = open_reward(config, config.reward_model, tokenizer, data.valid)
        unused = dropped(unused, reward_model={"too long": len(data.valid) - len(scored)})
    per_epoch = -(-len(data.train) // config.batch_size)
    total = per_epoch * config.epochs
    begin(
        opened,
        f"{len(data.train):,} demonstrations of up to {max(len(e.ids) for e in data.train)} tokens to train on, "
        f"{len(data.valid):,} of other prompts to measure by",
        f"{total:,} updates of {config.batch_size}: {config.epochs} epochs of {per_epoch:,}",
        trained=[policy], lost=unused,
    )  # fmt: skip
    # 2. The optimizer, and where it was.
    torch.manual_seed(config.seed)
    optimizer = adamw(policy, config.optimizer)
    checkpoint = Checkpoint(opened, {"policy": policy}, {"policy": optimizer}, config.checkpoint_seconds)
    resumed = checkpoint.resume()
    history, model = resumed.get("history", []), opened.folder / "model"
    if history and not model.exists():
        raise ValueError(f"{model}: is gone, and was the best epoch so far; set overwrite to train from the start")
    watch = Watch(opened, tokenizer)
    plan = list(batches(data.train, config.batch_size, config.seed, config.epochs))
    # 3. Epochs of cross-entropy on completions.
    for step in opened.track(range(resumed["step"], total)):
        policy.train()
        watch.reads(step, [e.ids for e in plan[step]])
        loss = backward(policy, plan[step], data.texts, step, config)
        rate = config.optimizer.learning_rate * cosine(step, total, config.optimizer.warmup_steps)
        norm = update(optimizer, policy, config.optimizer.max_grad_norm, rate, watch)
        metrics = {"loss/train": loss, "grad_norm": norm, "learning_rate": rate}
        # 4. After each epoch: is this the best checkpoint so far?
        epoch_ends = (step + 1) % per_epoch == 0
        if epoch_ends:
            entry = {"epoch": (step + 1) // per_epoch, **measure(opened, policy, reward, data.valid, scored, config)}
            metrics["valid/loss"] = entry["valid_loss"]
            if reward is not None:
                metrics["valid/score"] = entry["score"]
            if all(quality(entry) > quality(e) for e in history):
                save_model(policy, tokenizer, model)
            history.append(entry)
        watch.look(opened.log(step, metrics, show=("loss/train",)))
        if epoch_ends or checkpoint.due():
            checkpoint.save(step + 1, history=history)
    best = max(history, key=quality)
    opened.say(f"model/: epoch {best['epoch']}, {best['valid_loss']:.3f} nats a token on held-out demonstrations")
    opened.finish(
        demonstrations=len(data.train), valid_demonstrations=len(data.valid), history=history, chosen=best,
        dropped=unused, chosen_by="validation loss" if reward is None else "reward model score",
    )  # fmt: skip


def backward(
    policy: PreTrainedModel, batch: Sequence[Example], texts: torch.Tensor | None, step: int, config: SftConfig
) -> float:
    """Add the gradient of a batch, and of some rows of text if there are any; returns the batch's loss per token."""
    share = 0.0 if texts is None else config.pretraining_share
    count = sum(len(e.completion_ids) for e in batch)
    total, _ = examples_nll(policy, batch, config.micro_batch_tokens, (1 - share) / count)
    if texts is not None:
        text_backward(policy, draw_rows(texts, TEXT_ROWS, config.seed, step), config.micro_batch_tokens, share)
    return total / count


def measure(
    opened: Run, policy: PreTrainedModel, reward: RewardModel | None, valid: Sequence[Example],
    scored: Sequence[Example], config: SftConfig,
) -> dict[str, float]:  # fmt: skip
    """Loss on held-out demonstrations and, by a reward model, the mean score of answers to their prompts.

    Raises:
        ValueError: if one of them is not finite.
    """
    measures = {"valid_loss": validation_loss(policy, valid, config.micro_batch_tokens)}
    require_finite_measure(opened, "loss on held-out demonstrations", measures["valid_loss"])
    if reward is not None:
        some = scored[: config.score_samples]
        sampler = open_sampler(config.sampler, policy.eval())
        most = min(config.sampler.max_new_tokens, config.max_completion_tokens)
        measures["score"] = mean_score(sampler, policy, reward, some, config.seed, most)
        require_finite_measure(opened, "mean score on held-out prompts", measures["score"])
    return measures


def quality(entry: Mapping[str, float]) -> float:
    """By what an epoch is chosen: its score if it has one, else its loss."""
    return entry.get("score", -entry["valid_loss"])


def _set_dropout(policy: PreTrainedModel, config: SftConfig) -> None:
    """Residual dropout where the architecture has it; an error where it was asked for and there is none.

    Raises:
        ValueError: if `residual_dropout` is set and the model has no dropout layer.
    """
    if not set_dropout(policy, config.residual_dropout) and config.residual_dropout:
        raise ValueError(
            f"residual_dropout={config.residual_dropout}: {type(policy).__name__} has no dropout; set it to 0"
        )
