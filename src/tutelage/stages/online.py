"""The one reinforcement-learning loop (paper, section 3.5, equation 2): episodes of one prompt and completion.

With pretraining text it is PPO-ptx. Differs from the paper in what the paper leaves open: both losses are means per
token of an update, so `ptx_coef` weighs two numbers of the same unit.

    tutelage online --model runs/sft/model --reward-model runs/reward/model --prompts prompts.jsonl --output runs/ppo
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.algorithms import ppo
from tutelage.data.datasets import read_prompts, read_texts
from tutelage.data.records import Prompt, Request, Rollout
from tutelage.data.strict_json import dumps
from tutelage.models.forward import (
    all_scores,
    completion_logprobs,
    completion_values,
    selected_logprobs,
    selected_values,
    spread,
)
from tutelage.models.loading import context_length, full_precision, load_policy, load_scalar, save_model, stop_ids
from tutelage.models.packing import micro_batches
from tutelage.models.texts import text_nll, text_rows
from tutelage.models.tokens import (
    decode_answer,
    encode_pairs,
    encode_prompt,
    load_tokenizer,
    require_same_tokens,
    same_reading,
)
from tutelage.objectives.advantages import explained_variance, kl_shaped_rewards
from tutelage.objectives.kl import AdaptiveKL, FixedKL, k1
from tutelage.objectives.masked import keep, masked_mean, whiten
from tutelage.runs import Run, dropped, inputs_of, open_run
from tutelage.sampling import Sampler
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.seeds import request_seed
from tutelage.settings.stages import OnlineConfig
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, begin, constant_after_warmup, require_finite_measure, shuffled, update

ALGORITHMS = {"ppo": ppo}
PAPER_DECAY, PAPER_ITERATIONS = 0.992, 500  # section C.4; 256,000 episodes, 512 at a time
FINAL_PROMPTS = 128  # the same for the averaged and for the last weights
STILL = 0.5  # warn where the average has moved less than this share of the last weights' distance from the start


def run(config: OnlineConfig) -> None:
    """Optimise the policy, then write `model/`, the averaged weights, and `last/`, the last ones, into the run folder.

    Raises:
        ValueError: if tokenizers differ, no prompt fits, or the gradient is not finite.
    """
    run = open_run("online", config, inputs_of(config, *config.INPUTS))
    if run is None:
        return
    algorithm = ALGORITHMS[config.algorithm]

    # The four models.
    tokenizer = load_tokenizer(config.model)
    reward_tokenizer = load_tokenizer(config.reward_model)
    require_same_tokens(reward_tokenizer, tokenizer, f"reward_model {config.reward_model}")
    policy = load_policy(config.model, tokenizer)
    reference = load_policy(config.model, tokenizer)
    reward_model = load_scalar(config.reward_model, reward_tokenizer)
    value_model = copy.deepcopy(reward_model)
    average = copy.deepcopy(policy).requires_grad_(False)
    ends = set(stop_ids(policy))
    sampler = LocalSampler(policy, bf16=True)  # the ratio accounts for it: it divides by what was sampled with

    whole = min(context_length(policy), context_length(reward_model))
    prompts, lost = usable_prompts(config, whole, tokenizer)
    reads = context_length(reward_model)
    if not same_reading(tokenizer, reward_tokenizer):  # its template may be longer
        frames = encode_pairs(reward_tokenizer, [(p.text, "", True) for p, _ in prompts])
        fit = [len(a) + len(b) + config.max_completion_length <= reads for a, b in frames]
        if not any(fit):
            raise ValueError(
                f"{config.prompts}: none of {len(prompts)} prompts leaves room for a completion in the reward model's "
                f"template: lower max_completion_length={config.max_completion_length} (its context is {reads} tokens)"
            )
        lost["too long for the reward model"] = len(fit) - sum(fit)
        prompts = [p for p, ok in zip(prompts, fit, strict=True) if ok]
    rows, lost_texts = pretraining_rows(config, whole, tokenizer)
    iterations = math.ceil(config.total_episodes / config.batch_size)
    begin(
        run,
        f"{len(prompts):,} prompts, {iterations * config.batch_size / len(prompts):.1f} episodes of each",
        f"{iterations:,} iterations of {config.batch_size} episodes, in each {config.num_ppo_epochs} passes of updates "
        f"of {config.mini_batch_size}",
        *([] if rows is None else [f"pretraining mixture: {len(rows):,} rows of {rows.shape[1]} tokens"]),
        trained=[policy, value_model],
        lost=(unused := dropped(lost, pretraining_texts=lost_texts)),
    )
    kl = (
        AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon) if config.kl_target else FixedKL(config.kl_coef)
    )
    torch.manual_seed(config.seed)
    optimizers = {
        "policy": adamw(policy, config),
        "value_model": adamw(value_model, config, config.value_learning_rate),
    }
    models = {"policy": policy, "value_model": value_model, "average": average}
    checkpoint = Checkpoint(run, models, optimizers, config.checkpoint_seconds)
    resumed = checkpoint.resume()
    if isinstance(kl, AdaptiveKL) and "kl_coef" in resumed:
        kl.kl_coef = resumed["kl_coef"]

    watch = Watch(run, tokenizer)
    decay = average_decay(config, iterations)
    for iteration in run.track(range(resumed["step"], iterations)):
        # 1. Sample one completion for each prompt of the iteration.
        chosen = iteration_prompts(prompts, iteration, config)
        rollout = sample(policy, sampler, chosen, iteration, config)
        mask = rollout.mask

        # 2. Score whole completions; those without an end are docked.
        ended = torch.tensor([s[-1] in ends for s in rollout.sequences])
        rollout.scores = all_scores(reward_model, readings(rollout, ended, chosen, tokenizer, reward_tokenizer, reads))
        scores = rollout.scores - config.missing_eos_penalty * (~ended).float()

        # 3. Log-probabilities under the reference, values under the value model.
        rollout.ref_logprobs = completion_logprobs(
            reference, rollout.sequences, rollout.prompt_lengths, config.temperature
        )
        rollout.values = completion_values(value_model, rollout.sequences, rollout.prompt_lengths)

        # 4. Rewards: the KL penalty per token, the score at the last token.
        rewards = kl_shaped_rewards(scores, rollout.logprobs, rollout.ref_logprobs, mask, kl.value)
        if config.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)

        # 5. Advantages.
        advantages, returns = algorithm.advantages(rewards, rollout.values, mask, config)

        # 6. Update policy and value model; PPO and pretraining gradients share a buffer.
        rate = constant_after_warmup(iteration, config.warmup_iterations)
        watch.reads(iteration, rollout.sequences)
        metrics = improve(watch, config, models, optimizers, rollout, advantages, returns, rows, rate)

        # 7. Average the weights, in fp32.
        with torch.no_grad():
            for averaged, parameter in zip(average.parameters(), policy.parameters(), strict=True):
                averaged.lerp_(parameter, 1 - decay)

        # 8. Log, steer the KL coefficient, checkpoint.
        drift = keep(k1(rollout.logprobs, rollout.ref_logprobs), mask).sum(1)
        row = run.log(
            iteration,
            show=("objective__scores", "objective__kl", "objective__length"),
            objective__kl=drift.mean().item(),
            objective__scores=rollout.scores.mean().item(),
            objective__rlhf_reward=(scores - kl.value * drift).mean().item(),
            objective__kl_coef=kl.value,
            objective__length=mask.sum(1).float().mean().item(),
            objective__ended=ended.float().mean().item(),
            objective__value_error=masked_mean((rollout.values - returns) ** 2, mask).item(),
            val__explained_variance=explained_variance(rollout.values, returns, mask),
            learning_rate=rate * config.learning_rate,
            episodes=float((iteration + 1) * config.batch_size),
            **metrics,
        )
        watch.look(row)
        kl.update(drift.mean().item(), config.batch_size)
        if iteration % config.sample_every == 0 or iteration + 1 == iterations:
            keep_samples(run, iteration, chosen, rollout, tokenizer)
        if checkpoint.due():
            checkpoint.save(iteration + 1, kl_coef=kl.value)

    # 9. Both sets of weights, measured on the same prompts.
    fixed = shuffled(prompts, config.seed, -1)[:FINAL_PROMPTS]
    final: dict[str, dict[str, float]] = {}
    for name, weights in (("model", average if decay else policy), ("last", policy)):
        save_model(weights.eval(), tokenizer, run.folder / name)
        rollout = sample(weights, LocalSampler(weights), fixed, iterations, config)
        ended = torch.tensor([s[-1] in ends for s in rollout.sequences])
        with full_precision():  # as other tools will read the folders
            read = readings(rollout, ended, fixed, tokenizer, reward_tokenizer, reads)
            rollout.scores = all_scores(reward_model, read)
            rollout.ref_logprobs = completion_logprobs(
                reference, rollout.sequences, rollout.prompt_lengths, config.temperature
            )
        final[name] = {
            "score": float(rollout.scores.mean()),
            "kl": float(keep(k1(rollout.logprobs, rollout.ref_logprobs), rollout.mask).sum(1).mean()),
            "length": float(rollout.mask.sum(1).float().mean()),
        }
        for key, value in final[name].items():
            require_finite_measure(run, f"mean {key} of {name}/", value)
        means = "  ".join(f"{key} {value:.3f}" for key, value in final[name].items())
        run.say(f"{name}/: {means}  (mean over {len(fixed)} prompts)")
    way = moved(average, policy, reference) if decay else 1.0
    if way < STILL:
        run.warn(
            f"the averaged weights in model/ have moved only {way:.0%} as far from the start as the last weights: with "
            f"ema_decay={decay:.4g} over {iterations} iterations they are mostly the policy that the run began with. "
            "last/ holds the last weights; a lower ema_decay, or leaving it out, gives an average of this run"
        )
    run.finish(
        prompts=len(prompts), dropped=unused, kl_coef=kl.value, ema_decay=decay,
        average_moved=way, final=final,
    )  # fmt: skip


def average_decay(config: OnlineConfig, iterations: int) -> float:
    """The decay of the average per iteration: as set, or such that the start weighs as much at the end as in the paper.

    There it weighs 0.992^500 = 0.018; so here the decay is 0.992^(500 / iterations), whatever the run's length.
    """
    return config.ema_decay if config.ema_decay is not None else PAPER_DECAY ** (PAPER_ITERATIONS / iterations)


@torch.no_grad()
def moved(average: PreTrainedModel, last: PreTrainedModel, start: PreTrainedModel) -> float:
    """How far the averaged weights are from the start's, as a share of the last weights' distance from them."""
    squares = [0.0, 0.0]
    for a, b, origin in zip(average.parameters(), last.parameters(), start.parameters(), strict=True):
        squares[0] += float((a - origin).square().sum())
        squares[1] += float((b - origin).square().sum())
    return (squares[0] / squares[1]) ** 0.5 if squares[1] else 1.0


def usable_prompts(
    config: OnlineConfig, context: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[Prompt, tuple[int, ...]]], dict[str, int]]:
    """Prompts with their ids, and by reason how many were dropped.

    Raises:
        ValueError: if none is left.
    """
    limit = min(config.max_prompt_tokens, context - config.max_completion_length)
    loaded = read_prompts(config.prompts)
    encoded = [(p, tuple(encode_prompt(tokenizer, p.text))) for p in loaded.records]
    kept = [(p, ids) for p, ids in encoded if len(ids) <= limit]
    if not kept:
        raise ValueError(
            f"{config.prompts}: none of {len(encoded)} prompts leaves room for a completion: "
            f"lower max_completion_length={config.max_completion_length} (the models' context is {context} tokens)"
        )
    return kept, {**loaded.dropped, "too long": len(encoded) - len(kept)}


def pretraining_rows(
    config: OnlineConfig, context: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor | None, dict[str, int]]:
    """(rows, length) of pretraining text for the mixture, and what was dropped of it; None for plain PPO."""
    if config.pretraining_texts is None:
        return None, {}
    texts = read_texts(config.pretraining_texts)
    return text_rows(tokenizer, texts.records, min(config.ptx_length, context)), texts.dropped


def iteration_prompts(
    prompts: Sequence[tuple[Prompt, tuple[int, ...]]], iteration: int, config: OnlineConfig
) -> list[tuple[Prompt, tuple[int, ...]]]:
    """The prompts of an iteration: a window on shuffled passes over all, a function of the seed alone."""
    first = iteration * config.batch_size
    passes = range(first // len(prompts), (first + config.batch_size - 1) // len(prompts) + 1)
    order = [p for epoch in passes for p in shuffled(prompts, config.seed, epoch)]
    start = first - passes.start * len(prompts)
    return order[start : start + config.batch_size]


def sample(
    policy: PreTrainedModel,
    sampler: Sampler,
    prompts: Sequence[tuple[Prompt, tuple[int, ...]]],
    iteration: int,
    config: OnlineConfig,
) -> Rollout:
    """One completion per prompt, as sequences of ids with their log-probabilities under the sampling policy."""
    policy.eval()
    seen: Counter[str] = Counter()  # which copy of its prompt an episode is
    requests = []
    for prompt, ids in prompts:
        seed = request_seed(config.seed, iteration, prompt.id, seen[prompt.id])
        seen[prompt.id] += 1
        requests.append(Request(ids, seed, config.max_completion_length, stop_ids(policy), config.temperature))
    samples = sampler.sample(requests)
    sequences = [[*r.prompt_ids, *s.completion_ids] for r, s in zip(requests, samples, strict=True)]
    prompt_lengths = [len(r.prompt_ids) for r in requests]
    lengths = torch.tensor([len(s.completion_ids) for s in samples])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    logprobs = torch.zeros(mask.shape).masked_scatter(mask, torch.tensor([lp for s in samples for lp in s.logprobs]))
    empty = torch.empty(0)
    return Rollout(sequences, prompt_lengths, mask, logprobs, ref_logprobs=empty, scores=empty)


def readings(
    rollout: Rollout,
    ended: torch.Tensor,
    prompts: Sequence[tuple[Prompt, tuple[int, ...]]],
    tokenizer: PreTrainedTokenizerBase,
    reader: PreTrainedTokenizerBase,
    context: int,
) -> list[list[int]]:
    """What the reward model reads: the sampled ids or, where its chat template is another, the texts in its own.

    A text that comes out longer than it was sampled, as bytes that are no characters do, is cut off at its context.
    """
    if same_reading(tokenizer, reader):
        return rollout.sequences
    texts = (
        decode_answer(tokenizer, prompt.text, ids[:n], ids[n:])
        for (prompt, _), ids, n in zip(prompts, rollout.sequences, rollout.prompt_lengths, strict=True)
    )
    pairs = [(prompt.text, text, end) for (prompt, _), text, end in zip(prompts, texts, ended.tolist(), strict=True)]
    return [(a + b)[:context] for a, b in encode_pairs(reader, pairs)]


def improve(
    watch: Watch,
    config: OnlineConfig,
    models: dict[str, PreTrainedModel],
    optimizers: dict[str, torch.optim.AdamW],
    rollout: Rollout,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    rows: torch.Tensor | None,
    rate: float,
) -> dict[str, float]:
    """Inner epochs of minibatches over one rollout. All losses are sums over tokens divided by the update's count."""
    algorithm, iteration = ALGORITHMS[config.algorithm], watch.step
    policy, value_model = models["policy"], models["value_model"]
    policy.eval(), value_model.eval()  # no dropout in RL: the ratio compares one policy with itself (Stiennon 2020)
    device = policy.device
    assert rollout.values is not None
    mask, old, values = rollout.mask.to(device), rollout.logprobs.to(device), rollout.values.to(device)
    advantages, returns = advantages.to(device), returns.to(device)
    totals: dict[str, float] = {}
    tokens = updates = 0
    for epoch in range(config.num_ppo_epochs):
        order = shuffled(range(len(rollout.sequences)), config.seed, iteration * config.num_ppo_epochs + epoch)
        for start in range(0, len(order), config.mini_batch_size):
            members = order[start : start + config.mini_batch_size]
            count = int(mask[members].sum())
            for batch in micro_batches(
                [rollout.sequences[m] for m in members], config.micro_batch_tokens, policy.config.pad_token_id
            ):
                episodes = [members[r] for r in batch.rows]
                moved = batch.to(device)
                prompt_lengths = [rollout.prompt_lengths[m] for m in members]
                predicts = moved.completion_mask(prompt_lengths)
                inside = mask[episodes]
                flat, entropy = selected_logprobs(policy, moved, predicts, config.temperature, with_entropy=True)
                logprobs = spread(batch.rows, predicts, flat, mask.shape[1])
                loss, stats = algorithm.policy_loss(
                    logprobs, old[episodes], advantages[episodes], inside, config.cliprange
                )
                (loss / count).backward()
                flat_values = selected_values(value_model, moved, predicts)
                new_values = spread(batch.rows, predicts, flat_values, mask.shape[1])
                loss_v, stats_v = algorithm.value_loss(
                    new_values, values[episodes], returns[episodes], inside, config.cliprange_value
                )
                (config.vf_coef * loss_v / count).backward()
                sums = {
                    "loss__policy": loss, "loss__value": loss_v, "objective__entropy": entropy.sum(),
                    "policy__approxkl": stats["approxkl"], "policy__clipfrac": stats["clipfrac"],
                    "val__ratio": stats["ratio"], "val__clipfrac": stats_v["clipfrac"],
                }  # fmt: skip
                for name, value in sums.items():
                    totals[name] = totals.get(name, 0.0) + float(value.detach())
            tokens += count
            if rows is not None:
                loss_ptx = ptx_backward(policy, rows, config, iteration * 10_007 + epoch * 1_009 + start)
                totals["loss__ptx"] = totals.get("loss__ptx", 0.0) + loss_ptx
            updates += 1
            norm = update(optimizers["policy"], policy, config.max_grad_norm, rate * config.learning_rate, watch)
            value_rate = rate * config.value_learning_rate
            update(optimizers["value_model"], value_model, config.max_grad_norm, value_rate, watch)
            totals["grad_norm"] = totals.get("grad_norm", 0.0) + norm
    per_update = ("loss__ptx", "grad_norm")
    return {name: value / (updates if name in per_update else tokens) for name, value in totals.items()}


def ptx_backward(policy: PreTrainedModel, rows: torch.Tensor, config: OnlineConfig, draw: int) -> float:
    """Add the gradient of ptx_coef times the mean pretraining loss per token; returns that loss."""
    number = max(1, round(config.ptx_per_episode * config.mini_batch_size))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + draw)
    drawn = rows[torch.randint(len(rows), (number,), generator=generator)]
    targets = number * (rows.shape[1] - 1)
    total = 0.0
    for group in drawn.split(max(1, config.micro_batch_tokens // rows.shape[1])):
        nll = text_nll(policy, group) / targets
        (config.ptx_coef * nll).backward()
        total += nll.item()
    return total


def keep_samples(
    run: Run,
    iteration: int,
    prompts: Sequence[tuple[Prompt, tuple[int, ...]]],
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Append a few completions with their scores to samples.jsonl, for the report and for whoever watches."""
    with (run.folder / "samples.jsonl").open("a", encoding="utf-8") as stream:
        for k in range(min(8, len(prompts))):
            ids, n = rollout.sequences[k], rollout.prompt_lengths[k]
            row = {
                "iteration": iteration,
                "prompt": prompts[k][0].id,
                "completion": decode_answer(tokenizer, prompts[k][0].text, ids[:n], ids[n:]),
                "score": float(rollout.scores[k]),
            }
            stream.write(dumps(row) + "\n")
