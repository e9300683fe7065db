"""The one reinforcement-learning loop (paper, section 3.5, equation 2); an episode is one prompt with one completion.

With pretraining text it is PPO-ptx. Differs from the paper in what the paper leaves open: both losses are means per
token of an update, so `ptx_coef` weighs two numbers of the same unit.

    tutelage online --model runs/sft/model --reward-model runs/reward/model --prompts prompts.jsonl --output runs/ppo
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.algorithms import Algorithm, make_algorithm
from tutelage.algorithms.learner import Learner
from tutelage.data.datasets import read_prompts, read_texts
from tutelage.data.records import Prompt, Request
from tutelage.data.strict_json import dumps
from tutelage.models.adapters import own_parameters
from tutelage.models.architecture import context_length, stop_ids
from tutelage.models.forward import completion_logprobs, completion_values
from tutelage.models.loading import save_model
from tutelage.models.precision import full_precision
from tutelage.models.texts import text_rows
from tutelage.models.tokens import encode_prompt
from tutelage.objectives.advantages import explained_variance, flat_groups, in_flat_group, kl_shaped_rewards
from tutelage.objectives.kl import AdaptiveKL, FixedKL, KLController, k1
from tutelage.objectives.masked import keep, masked_mean
from tutelage.rewards.function import sources_of
from tutelage.rewards.reward import Answers, Scores, joined_scores
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import Run, dropped, inputs_of, open_run
from tutelage.sampling.completions import number_copies
from tutelage.sampling.engines import open_sampler
from tutelage.sampling.protocol import Sampler
from tutelage.sampling.rollout import Episodes, Rollout, episodes_of, joined_episodes
from tutelage.sampling.seeds import request_seed
from tutelage.settings.online import OnlineConfig
from tutelage.stages.online_models import Models, load_models
from tutelage.training.checkpoints import Checkpoint
from tutelage.training.guards import Watch
from tutelage.training.updates import begin, constant_after_warmup, require_finite_measure, shuffled

PAPER_DECAY, PAPER_ITERATIONS = 0.992, 500  # section C.4; 256,000 episodes, 512 at a time
FINAL_PROMPTS = 128  # the same for the averaged and for the last weights
STILL = 0.5  # warn where the average has moved less than this share of the last weights' distance from the start
UNMOVED, FAR = 0.01, 10.0  # nats of KL a completion; the demo's policies end at 1 to 3
TRIED = 4  # completions on which rewards are tried before the first step

Asked = tuple[Prompt, tuple[int, ...]]  # a prompt with its ids


def run(config: OnlineConfig) -> None:
    """Optimise the policy, then write `model/`, the averaged weights, and `last/`, the last ones, into the run folder.

    Raises:
        ValueError: if tokenizers differ, no prompt fits, a reward fails, or the gradient is not finite.
    """
    opened = open_run("online", config, inputs_of(config, *config.INPUTS) | sources_of(config.rewards))
    if opened is None:
        return
    algorithm = make_algorithm(config.algorithm, config.batch_size)
    models = load_models(config, algorithm)
    prompts, lost = usable_prompts(config, models)
    texts, lost_texts = pretraining_rows(config, models)
    unused = dropped(lost, pretraining_texts=lost_texts)
    iterations = math.ceil(config.total_episodes / config.batch_size)
    learner = Learner(config, algorithm, models.policy, models.value_model, texts)
    lines = [*plan(config, prompts, iterations, texts), *try_rewards(models, prompts, config)]
    along = [models.policy] * (iterations // config.policy_every if config.policy_every else 0)
    begin(opened, *lines, trained=[*learner.models.values()], kept=[models.average], saved=along, lost=unused)
    torch.manual_seed(config.seed)
    kept = {**learner.models, "average": models.average}
    checkpoint = Checkpoint(opened, kept, learner.optimizers, config.checkpoint_seconds)
    resumed = checkpoint.resume()
    kl, watch = kl_controller(config, resumed), Watch(opened, models.tokenizer)
    decay = average_decay(config, iterations)
    for iteration in opened.track(range(resumed["step"], iterations)):
        # 1 to 5. Sample, score, compare with the reference, shape rewards, assign credit.
        episodes, scores, sampled = sample_and_score(models, algorithm, prompts, iteration, config)
        rollout = roll_out(models, algorithm, episodes, scores, config, kl.value)

        # 6. Update policy and value model; policy and pretraining gradients share a buffer.
        warmth = constant_after_warmup(iteration, config.optimizer.warmup_steps)
        watch.reads(iteration, rollout.sequences)
        metrics = learner.improve(rollout, iteration, warmth, kl.value, watch)

        # 7. Average the weights, in fp32.
        move(models.average, models.policy, 1 - decay)

        # 8. Log, steer the KL coefficient, checkpoint.
        metrics |= measures(rollout, config, kl.value) | sampled | models.covered
        metrics["learning_rate"] = warmth * config.optimizer.learning_rate
        metrics["episodes"] = float((iteration + 1) * config.batch_size)
        watch.look(opened.log(iteration, metrics, show=("objective/scores", "objective/kl", "objective/length")))
        kl.update(metrics["objective/kl"], config.batch_size)
        if iteration % config.sample_every == 0 or iteration + 1 == iterations:
            keep_samples(opened, iteration, rollout, models.tokenizer)
        keep_policy(opened, iteration, models, config)
        if checkpoint.due():
            checkpoint.save(iteration + 1, kl_coef=kl.value)

    # 9. Both sets of weights, measured on the same prompts.
    fixed = shuffled(prompts, config.seed, -1)[:FINAL_PROMPTS]
    weights = {"model": models.average, "last": models.policy}
    final = {name: save_and_measure(opened, name, weights[name], models, fixed, iterations, config) for name in weights}
    way = moved(models.average, models.policy, models.reference)
    for warning in warnings_of(way, config, decay, iterations, final["last"]["kl"]):
        opened.warn(warning)
    opened.finish(
        prompts=len(prompts), dropped=unused, kl_coef=kl.value, ema_decay=decay, average_moved=way, final=final
    )


def kl_controller(config: OnlineConfig, resumed: Mapping[str, Any]) -> KLController:
    """What sets the weight of the KL penalty, as it was when the run was interrupted."""
    if config.kl_target is None:
        return FixedKL(config.kl_coef)
    return AdaptiveKL(resumed.get("kl_coef", config.kl_coef), config.kl_target, config.kl_horizon)


def sample_and_score(
    models: Models, algorithm: Algorithm, prompts: Sequence[Asked], iteration: int, config: OnlineConfig
) -> tuple[Episodes, torch.Tensor, dict[str, float]]:
    """An iteration's episodes with their scores (n,), and what is logged of all that was sampled for them.

    Completions that no reward scores are left out. With `algorithm.refill` so are those of prompts whose completions
    all have one score, and other prompts are asked in their place, so many times at the most (DAPO, Yu 2025, §3.2).

    Raises:
        ValueError: if no completion is scored.
    """
    copies = algorithm.samples_per_prompt
    asked = iteration_prompts(prompts, iteration, config, copies)
    others = spare_prompts(prompts, asked, iteration, config)
    rounds: list[tuple[Episodes, Scores]] = []
    learned: list[tuple[Episodes, Scores]] = []
    while asked:
        # 1. Sample the completions.
        models.policy.eval()
        episodes = sample(models.sampler, stop_ids(models.policy), asked, iteration, config, copies)

        # 2. Score whole completions.
        scores = scores_of(models, episodes)

        rounds.append((episodes, scores))
        rows = scores.known
        if algorithm.refill:
            flat = in_flat_group(docked(scores.total, episodes, config)[rows], episodes.group[rows])
            rows = rows.masked_scatter(rows, ~flat)
        learned.append((episodes.take(rows.nonzero().flatten().tolist()), scores.take(rows)))
        short = config.batch_size // copies - sum(len(part.group.unique()) for part, _ in learned)
        again = len(rounds) <= algorithm.refill
        asked = [p for p in islice(others, short) for _ in range(copies)] if again else []
    episodes, scores = join(rounds)
    logged = sampling_metrics(episodes, scores, config)
    if models.heldout:
        logged["objective/heldout_scores"] = heldout_score(models, models.heldout, episodes)
    if not scores.known.any():
        raise ValueError(
            f"rewards: none scores any of the {len(episodes.prompts)} completions of iteration {iteration}, so there "
            "is nothing to learn from; look what they return None for"
        )
    if not any(len(part.prompts) for part, _ in learned):  # all flat: they teach nothing but what the KL penalty says
        first, of = next(each for each in rounds if each[1].known.any())
        learned = [(first.take(of.known.nonzero().flatten().tolist()), of.take(of.known))]
    episodes, scores = join(learned)
    return episodes, scores.total, logged


def join(rounds: Sequence[tuple[Episodes, Scores]]) -> tuple[Episodes, Scores]:
    """Rounds of sampling as one."""
    return joined_episodes([episodes for episodes, _ in rounds]), joined_scores([scores for _, scores in rounds])


def sampling_metrics(episodes: Episodes, scores: Scores, config: OnlineConfig) -> dict[str, float]:
    """What is logged of all completions of an iteration, whether or not they are learned from."""
    known = scores.known
    metrics = {"objective/sampled": float(len(known)), **scores.metrics()}
    if known.any():
        metrics["objective/scores"] = scores.total[known].mean().item()
        if len(episodes.group.unique()) < len(known):
            flat = docked(scores.total, episodes, config)[known]
            metrics["objective/flat_groups"] = flat_groups(flat, episodes.group[known])
    return metrics


def roll_out(
    models: Models, algorithm: Algorithm, episodes: Episodes, scores: torch.Tensor, config: OnlineConfig, kl_coef: float
) -> Rollout:
    """Episodes with their scores (n,), with the credit that each token gets."""
    # 3. Log-probabilities under the reference, values under the value model.
    spans = (episodes.sequences, episodes.prompt_lengths)
    ref_logprobs = completion_logprobs(models.reference, *spans, config.sampler.temperature)
    values = completion_values(models.value_model, *spans) if models.value_model is not None else None

    # 4. Rewards: the KL penalty per token; the score, docked where there is no end, at the last token.
    rewards = kl_shaped_rewards(
        docked(scores, episodes, config),
        episodes.logprobs,
        ref_logprobs,
        episodes.mask,
        kl_coef if algorithm.settings.kl == "reward" else 0.0,
    )

    # 5. Advantages.
    advantages, returns = algorithm.credit(episodes, rewards, values)
    return Rollout(
        **vars(episodes), scores=scores, ref_logprobs=ref_logprobs, values=values, rewards=rewards,
        advantages=advantages, returns=returns,
    )  # fmt: skip


def sample(
    sampler: Sampler, ends: tuple[int, ...], asked: Sequence[Asked], iteration: int, config: OnlineConfig,
    samples_per_prompt: int = 1,
) -> Episodes:  # fmt: skip
    """A completion of each prompt asked. Each copy of a prompt has a seed of its own."""
    prompts, most, temperature = [p for p, _ in asked], config.sampler.max_new_tokens, config.sampler.temperature
    requests = [
        Request(ids, request_seed(config.seed, iteration, prompt.id, k), most, ends, temperature)
        for (prompt, ids), k in zip(asked, number_copies(prompts), strict=True)
    ]
    return episodes_of(prompts, requests, sampler.sample(requests), samples_per_prompt)


def scores_of(models: Models, episodes: Episodes) -> Scores:
    """What the rewards say of n completions."""
    return models.rewards.scores(answers_of(models, episodes))


def answers_of(models: Models, episodes: Episodes) -> Answers:
    """n completions as rewards take them."""
    return Answers(episodes.prompts, episodes.texts(models.tokenizer), episodes.ended.tolist(), episodes.sequences)


def heldout_score(models: Models, judge: RewardModel, episodes: Episodes) -> float:
    """The mean score of n completions by a judge that nothing is learned from."""
    scores = judge.score_answers(answers_of(models, episodes), models.tokenizer)
    return fmean(score for score in scores if score is not None)


def docked(scores: torch.Tensor, episodes: Episodes, config: OnlineConfig) -> torch.Tensor:
    """The scores, less a penalty for completions that were cut off."""
    return scores - config.missing_eos_penalty * (~episodes.ended).float()


def measures(rollout: Rollout, config: OnlineConfig, kl_coef: float) -> dict[str, float]:
    """What is logged of the episodes that are learned from."""
    mask = rollout.mask
    drift = keep(k1(rollout.logprobs, rollout.ref_logprobs), mask).sum(1)
    metrics = {
        "objective/kl": drift.mean().item(),
        "objective/rlhf_reward": (docked(rollout.scores, rollout, config) - kl_coef * drift).mean().item(),
        "objective/kl_coef": kl_coef,
        "objective/length": mask.sum(1).float().mean().item(),
        "objective/ended": rollout.ended.float().mean().item(),
    }
    if rollout.values is not None and rollout.returns is not None:
        metrics["objective/value_error"] = masked_mean((rollout.values - rollout.returns) ** 2, mask).item()
        metrics["val/explained_variance"] = explained_variance(rollout.values, rollout.returns, mask)
    return metrics


def save_and_measure(
    opened: Run, name: str, weights: PreTrainedModel, models: Models, asked: Sequence[Asked], iterations: int,
    config: OnlineConfig,
) -> dict[str, float]:  # fmt: skip
    """Save weights under a name; their KL from the reference, length and, if any is scored, score on these prompts.

    Raises:
        ValueError: if one of the measures is not finite.
    """
    save_model(weights.eval(), models.tokenizer, opened.folder / name)
    episodes = sample(open_sampler(config.sampler, weights), stop_ids(weights), asked, iterations, config)
    with full_precision():  # as other tools will read the folders
        scores = scores_of(models, episodes)
        ref_logprobs = completion_logprobs(
            models.reference, episodes.sequences, episodes.prompt_lengths, config.sampler.temperature
        )
        judged = {"heldout_score": heldout_score(models, models.heldout, episodes)} if models.heldout else {}
    final = judged | ({"score": float(scores.total[scores.known].mean())} if scores.known.any() else {})
    final |= {
        "kl": float(keep(k1(episodes.logprobs, ref_logprobs), episodes.mask).sum(1).mean()),
        "length": float(episodes.mask.sum(1).float().mean()),
    }
    for key, value in final.items():
        require_finite_measure(opened, f"mean {key} of {name}/", value)
    means = "  ".join(f"{key} {value:.3f}" for key, value in final.items())
    opened.say(f"{name}/: {means}  (mean over {len(asked)} prompts)")
    return final


def plan(config: OnlineConfig, prompts: Sequence[Asked], iterations: int, texts: torch.Tensor | None) -> list[str]:
    """What will be done, in words."""
    lines = [
        f"{len(prompts):,} prompts, {iterations * config.batch_size / len(prompts):.1f} episodes of each",
        f"{iterations:,} iterations of {config.batch_size} episodes, in each {config.inner_epochs} passes of updates "
        f"of {config.mini_batch_size}",
    ]
    return lines if texts is None else [*lines, f"pretraining mixture: {len(texts):,} rows of {texts.shape[1]} tokens"]


def average_decay(config: OnlineConfig, iterations: int) -> float:
    """The decay of the average per iteration: as set, or so that the start ends with the same weight as in the paper.

    There it weighs 0.992^500 = 0.018; so here the decay is 0.992^(500 / iterations), whatever the run's length.
    """
    return config.ema_decay if config.ema_decay is not None else PAPER_DECAY ** (PAPER_ITERATIONS / iterations)


@torch.no_grad()
def move(average: PreTrainedModel, policy: PreTrainedModel, share: float) -> None:
    """Move the averaged weights by this share of their distance to the policy's."""
    for averaged, parameter in zip(*(own_parameters(m).values() for m in (average, policy)), strict=True):
        averaged.lerp_(parameter, share)


@torch.no_grad()
def moved(average: PreTrainedModel, last: PreTrainedModel, start: PreTrainedModel) -> float:
    """How far the averaged weights are from the start's, as a share of the last weights' distance from them. Of an
    adapter that the start lacks, B counts, which was 0; not A, which was drawn at random."""
    squares, begin = [0.0, 0.0], dict(start.named_parameters())
    for (name, a), b in zip(own_parameters(average).items(), own_parameters(last).values(), strict=True):
        if name in begin or ".lora_A." not in name:
            origin = begin.get(name, 0.0)
            squares[0] += float((a - origin).square().sum())
            squares[1] += float((b - origin).square().sum())
    return (squares[0] / squares[1]) ** 0.5 if squares[1] else 1.0


def warnings_of(way: float, config: OnlineConfig, decay: float, iterations: int, kl: float) -> Iterator[str]:
    """What to know of the weights before they are used: the average has moved this share of the last weights' way, and
    the last weights are this KL from the start."""
    if way < STILL:
        yield (
            f"the averaged weights in model/ have moved only {way:.0%} as far from the start as the last weights: with "
            f"ema_decay={decay:.4g} over {iterations} iterations they are mostly the policy that the run began with. "
            "last/ holds the last weights; a lower ema_decay, or leaving it out, gives an average of this run"
        )
    if abs(kl) < UNMOVED:
        yield (
            f"the policy has hardly moved: its KL from the start is {kl:.3f} nats a completion. Try a higher "
            "optimizer.learning_rate, more total_episodes, or a lower kl_coef"
        )
    if not config.kl_coef and kl > FAR:
        yield (
            f"kl_coef=0 holds the policy to nothing, and its KL from the start is {kl:.1f} nats a completion: look "
            "whether its answers still read as language, or set kl_coef"
        )


def usable_prompts(config: OnlineConfig, models: Models) -> tuple[list[Asked], dict[str, int]]:
    """Prompts with their ids, and by reason how many were dropped.

    Raises:
        ValueError: if none is left.
    """
    new = config.sampler.max_new_tokens
    reading = [model for model in models.readers if model.reads(models.tokenizer)]
    context = min([context_length(models.policy), *(model.context for model in reading)])
    loaded = read_prompts(config.prompts, columns=True)
    encoded = [(p, tuple(encode_prompt(models.tokenizer, p.text))) for p in loaded.records]
    prompts = [(p, ids) for p, ids in encoded if len(ids) <= min(config.max_prompt_tokens, context - new)]
    if not prompts:
        most = config.max_prompt_tokens
        remedy = f"raise max_prompt_tokens={most}" if most < context - new else f"lower sampler.max_new_tokens={new}"
        raise ValueError(
            f"{config.prompts}: none of {len(encoded)} prompts leaves room for a completion: {remedy} (the models' "
            f"context is {context} tokens)"
        )
    lost = {**loaded.dropped, "too long": len(encoded) - len(prompts)}
    for model in (model for model in models.readers if model not in reading):
        fits = model.leaves_room([p for p, _ in prompts], new)  # its template may be longer
        if not any(fits):
            raise ValueError(
                f"{config.prompts}: none of {len(prompts)} prompts leaves room for a completion in the reward model's "
                f"template: lower sampler.max_new_tokens={new} (its context is {model.context} tokens)"
            )
        why = "too long for the reward model"
        lost[why] = lost.get(why, 0) + len(fits) - sum(fits)
        prompts = [asked for asked, ok in zip(prompts, fits, strict=True) if ok]
    return prompts, lost


def try_rewards(models: Models, prompts: Sequence[Asked], config: OnlineConfig) -> list[str]:
    """Score a few short completions, as somebody else's code had better fail now; what came out, in words.

    Raises:
        ValueError: naming the reward that fails.
    """
    if not config.rewards:
        return []
    short = config.model_copy(update={"sampler": config.sampler.model_copy(update={"max_new_tokens": 16})})
    episodes = sample(models.sampler, stop_ids(models.policy), prompts[:TRIED], 0, short)
    scores = scores_of(models, episodes)
    return [
        f"reward {name}: on {len(counts)} completions "
        + ", ".join(f"{score:.3g}" if known else "None" for score, known in zip(values, counts, strict=True))
        for name, values, counts in zip(scores.names, scores.each.tolist(), scores.counts.tolist(), strict=True)
    ]


def pretraining_rows(config: OnlineConfig, models: Models) -> tuple[torch.Tensor | None, dict[str, int]]:
    """(rows, length) of pretraining text for the mixture, and what was dropped of it; None for plain PPO."""
    if config.pretraining_texts is None:
        return None, {}
    texts = read_texts(config.pretraining_texts)
    length = min(config.ptx_length, context_length(models.policy))
    return text_rows(models.tokenizer, texts.records, length), texts.dropped


def iteration_prompts(
    prompts: Sequence[Asked], iteration: int, config: OnlineConfig, samples_per_prompt: int = 1
) -> list[Asked]:
    """The prompts of an iteration, each as often as it is sampled: slices of prompts that are shuffled again and again,
    a function of the seed alone."""
    number = config.batch_size // samples_per_prompt
    first = iteration * number
    passes = range(first // len(prompts), (first + number - 1) // len(prompts) + 1)
    order = [p for epoch in passes for p in shuffled(prompts, config.seed, epoch)]
    start = first - passes.start * len(prompts)
    return [p for p in order[start : start + number] for _ in range(samples_per_prompt)]


def spare_prompts(
    prompts: Sequence[Asked], asked: Sequence[Asked], iteration: int, config: OnlineConfig
) -> Iterator[Asked]:
    """The other prompts, in an order that is a function of seed and iteration."""
    taken = {prompt.id for prompt, _ in asked}
    return (p for p in shuffled(prompts, config.seed, -2 - iteration) if p[0].id not in taken)


def keep_policy(opened: Run, iteration: int, models: Models, config: OnlineConfig) -> None:
    """Save the policy as it is after an iteration, if it is one of those whose policies are kept: a curve along the
    run wants its weights, not the average, which lags behind."""
    if config.policy_every and (iteration + 1) % config.policy_every == 0:
        save_model(models.policy.eval(), models.tokenizer, opened.folder / f"policy-{iteration + 1:05}")


def keep_samples(opened: Run, iteration: int, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> None:
    """Append a few completions with their scores to samples.jsonl, for the report and for whoever watches."""
    some = rollout.take(range(min(8, len(rollout.prompts))))
    with (opened.folder / "samples.jsonl").open("a", encoding="utf-8") as stream:
        for prompt, text, score in zip(some.prompts, some.texts(tokenizer), some.scores.tolist(), strict=True):
            row = {"iteration": iteration, "prompt": prompt.id, "completion": text, "score": score}
            stream.write(dumps(row) + "\n")
