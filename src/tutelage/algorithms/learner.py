"""The update that all algorithms share: inner epochs of minibatches over one rollout (paper, section 3.5, equation 2).

All losses are sums over tokens divided by the update's count, so how passes are cut never changes a result. Policy loss
and pretraining loss share a gradient; the value model has an optimizer of its own.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from transformers import PreTrainedModel

from tutelage.algorithms.algorithm import Algorithm
from tutelage.algorithms.clipped import divisor
from tutelage.models.forward import spread
from tutelage.models.packing import micro_batches
from tutelage.models.texts import draw_rows, text_backward
from tutelage.objectives.policy import importance_ratios
from tutelage.sampling.rollout import Rollout
from tutelage.settings.online import OnlineConfig
from tutelage.training.guards import Watch
from tutelage.training.updates import adamw, shuffled, update


def even_cuts(number: int, size: int) -> list[tuple[int, int]]:
    """Where to cut so many episodes into minibatches of nearly this size: where some are missing, as no reward scored
    them, no step is left to a handful."""
    parts = max(1, round(number / size))
    bounds = [number * k // parts for k in range(parts + 1)]
    return list(pairwise(bounds))


class Learner:
    """The models that are trained, with their optimizers.

    `value_model` is None where the algorithm has none; `texts` (rows, length) is the pretraining mixture, None without
    one.
    """

    def __init__(
        self,
        config: OnlineConfig,
        algorithm: Algorithm,
        policy: PreTrainedModel,
        value_model: PreTrainedModel | None,
        texts: torch.Tensor | None,
    ) -> None:
        self.config, self.algorithm, self.texts = config, algorithm, texts
        self.policy, self.value_model = policy, value_model
        self.optimizers = {name: adamw(model, config.optimizer) for name, model in self.models.items()}

    @property
    def models(self) -> dict[str, PreTrainedModel]:
        """The models by name."""
        return {"policy": self.policy} | ({"value_model": self.value_model} if self.value_model is not None else {})

    def improve(
        self, rollout: Rollout, iteration: int, warmth: float, kl_coef: float, watch: Watch
    ) -> dict[str, float]:
        """Learn from a rollout, with learning rates times `warmth`; returns metrics, means per token or per update."""
        config = self.config
        for model in self.models.values():
            model.eval()  # no dropout in RL: the ratio compares one policy with itself (Stiennon 2020)
        per_token: Counter[str] = Counter()
        per_update: Counter[str] = Counter()
        off_sampler: dict[str, float] = {}
        tokens = updates = 0
        for epoch in range(config.inner_epochs):
            order = shuffled(range(len(rollout.sequences)), config.seed, iteration * config.inner_epochs + epoch)
            for start, end in even_cuts(len(order), config.mini_batch_size):
                minibatch = rollout.take(order[start:end])
                count = int(minibatch.mask.sum())
                ratios = self._backward(minibatch, kl_coef, per_token)
                off_sampler = off_sampler or importance_ratios(*ratios)  # before the first update: the sampler's own
                if self.texts is not None:
                    number = max(1, round(config.ptx_per_episode * config.mini_batch_size))
                    drawn = draw_rows(self.texts, number, config.seed, iteration * 10_007 + epoch * 1_009 + start)
                    loss = text_backward(self.policy, drawn, config.micro_batch_tokens, config.ptx_coef)
                    per_update.update({"loss/ptx": loss})
                per_update.update({"grad_norm": self._step(warmth, watch)})
                tokens, updates = tokens + count, updates + 1
        means = {k: v / tokens for k, v in per_token.items()} | {k: v / updates for k, v in per_update.items()}
        return means | off_sampler

    def _backward(self, minibatch: Rollout, kl_coef: float, sums: Counter[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of a minibatch's losses; the losses' sums over tokens, and the metrics', go into `sums`.

        Returns (tokens,) log-probabilities of its tokens under the policy, and under what sampled them.
        """
        pairs = []
        pad, temperature = self.policy.config.pad_token_id, self.config.sampler.temperature
        settings, tokens = self.algorithm.settings, int(minibatch.mask.sum())
        divided_by = divisor(settings, minibatch.mask, self.config.sampler.max_new_tokens)
        for batch in micro_batches(minibatch.sequences, self.config.micro_batch_tokens, pad):
            ids = batch.to(self.policy.device)
            part = minibatch.take(batch.rows).to(self.policy.device)
            predicts = ids.completion_mask(minibatch.prompt_lengths)
            flat, entropy = self.policy.token_logprobs(ids, predicts, temperature, with_entropy=True)
            logprobs = spread(batch.rows, predicts, flat, part.mask.shape[1])
            loss, stats = self.algorithm.policy_loss(settings, logprobs, part, kl_coef)
            (loss / divided_by).backward()
            pairs.append((logprobs.detach()[part.mask], part.logprobs[part.mask]))
            stats |= {"loss/policy": loss, "objective/entropy": entropy.sum()}
            if self.value_model is not None and self.algorithm.value_loss is not None:
                flat = self.value_model.token_scores(ids, *predicts.nonzero(as_tuple=True))
                values = spread(batch.rows, predicts, flat, part.mask.shape[1])
                loss, value_stats = self.algorithm.value_loss(values, part)
                (loss / tokens).backward()
                stats |= value_stats
            sums.update({name: float(value.detach()) for name, value in stats.items()})
        ours, samplers = zip(*pairs, strict=True)
        return torch.cat(ours), torch.cat(samplers)

    def _step(self, warmth: float, watch: Watch) -> float:
        """Step every model; returns the norm of the policy's gradient."""
        rates = {"policy": self.config.optimizer.learning_rate}
        if self.value_model is not None:
            rates["value_model"] = self.algorithm.value_learning_rate
        norms = {
            name: update(optimizer, self.models[name], self.config.optimizer.max_grad_norm, warmth * rates[name], watch)
            for name, optimizer in self.optimizers.items()
        }
        return norms["policy"]
