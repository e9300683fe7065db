"""The runs that the claims need, in the shape of a recipe's `stages`: one world, SFT policy and rankings per seed, and
every reward model, policy and measurement in a run folder of its own, shared by all claims that read it.

`{run}` is the folder of a seed's runs, `{base}` the shipped base model, and `{large}` the folder of the large base,
which all seeds share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tutelage.data.strict_json import dumps
from tutelage.settings.claims import BETA, GAMMA, Scale

Stages = dict[str, dict[str, Any]]

SAMPLER = {"max_new_tokens": 40}
TRAINING, HELDOUT = "training_labelers", "heldout_labelers"
SETS = {name: f"{{run}}/rankings/rankings_{name}.jsonl" for name in (TRAINING, HELDOUT)}
BATCH = 16  # rankings of an update


def written(number: float) -> str:
    """A number as a part of a run's name: 0.06 as `0.06`, 2.0 as `2`."""
    return f"{number:g}"


def world(scale: Scale) -> Stages:
    """The world, the SFT policy, and rankings by training labelers, held-out ones by both arms."""
    writers = {
        "policies": {"base": "{base}", "prompted": "{base}", "sft": "{run}/sft/model"}, "few_shot": ["prompted"],
        "examples": "{run}/world/demonstrations.jsonl", "weights": {"base": 0.1, "prompted": 0.3, "sft": 1.0},
        "off_prompt": 0.1, "sampler": SAMPLER,
    }  # fmt: skip
    return {
        "world": {
            "documents": scale.documents, "valid_documents": scale.valid_documents,
            "sft_prompts": scale.demonstrations, "reward_prompts": scale.rankings,
            "reward_valid_prompts": scale.valid_prompts, "ppo_prompts": scale.prompts,
            "test_prompts": scale.test_prompts,
        },
        "sft": {
            "model": "{base}", "demonstrations": "{run}/world/demonstrations.jsonl",
            "valid_demonstrations": "{run}/world/demonstrations_valid.jsonl", "epochs": scale.sft_epochs,
            "optimizer": {"learning_rate": 1e-3},
        },
        "candidates": {"stage": "collect", "prompts": "{run}/world/prompts_reward.jsonl", **writers},
        "candidates_valid": {"stage": "collect", "prompts": "{run}/world/prompts_reward_valid.jsonl", **writers},
        "rankings": {
            "stage": "rank", "candidates": "{run}/candidates/candidates.jsonl",
            "valid_candidates": "{run}/candidates_valid/candidates.jsonl",
        },
        "subsets": {
            "rankings": "{run}/rankings/rankings.jsonl", "sizes": list(scale.sizes), "pairs_of": scale.overfit,
            "folds": scale.folds, "fold_rankings": scale.fold_rankings,
        },
    }  # fmt: skip


def reward_models(scale: Scale) -> Stages:
    """Reward models by size of the data, by epochs, of shuffled pairs, and of all labelers but a fold's; and how each
    marks the held-out rankings."""
    stages: Stages = {}

    def fit(name: str, file: str, **changes: Any) -> None:
        stages[name] = {
            "stage": "reward", "model": "{run}/sft/model", "rankings": f"{{run}}/subsets/{file}.jsonl", "held_out": 0.0,
            "demonstrations": "{run}/world/demonstrations.jsonl", "batch_size": BATCH,
            "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3}, **changes,
        }  # fmt: skip
        stages[f"marks_{name}"] = {"stage": "marks", "reward_model": f"{{run}}/{name}/model", "rankings": SETS}

    for size in scale.sizes:
        fit(reward_name(size), f"first_{size}")
    for number in scale.epochs[1:]:
        fit(f"epochs_{number}", f"first_{scale.overfit}", epochs=number)
    fit("shuffled_pairs", "pairs", batch_size=BATCH * scale.pairs_per_ranking)
    for fold in range(scale.folds):
        fit(f"fold_{fold}", f"fold_{fold}")
    return stages


def reward_name(size: int) -> str:
    """The reward model that learned from so many rankings."""
    return f"reward_{size}"


def main_reward(scale: Scale) -> str:
    """The reward model of all rankings."""
    return reward_name(scale.sizes[-1])


def beta_name(beta: float) -> str:
    """The PPO run with that KL coefficient; the main run is one of them."""
    return "ppo" if beta == BETA else f"beta_{written(beta)}"


def gamma_name(gamma: float) -> str:
    """The PPO-ptx run with that weight of the pretraining loss; the main run is one of them."""
    return "ppo_ptx" if gamma == GAMMA else f"gamma_{written(gamma)}"


def stop_name(scale: Scale, size: int, episodes: int) -> str:
    """PPO without a KL penalty against the reward model of so many rankings, stopped after so many episodes."""
    if size == scale.sizes[-1]:
        return beta_name(0.0) if episodes == scale.episodes else f"stop_{episodes}"
    return f"stop_{episodes}_{reward_name(size)}"


def policies(scale: Scale) -> Stages:
    """PPO over beta, PPO-ptx over gamma, and PPO without a KL penalty stopped early or late."""
    stages: Stages = {}

    def optimise(name: str, size: int = scale.sizes[-1], **changes: Any) -> None:
        stages[name] = {
            "stage": "online", "model": "{run}/sft/model", "reward_model": f"{{run}}/{reward_name(size)}/model",
            "prompts": "{run}/world/prompts_ppo.jsonl", "total_episodes": scale.episodes, "batch_size": 128,
            "mini_batch_size": 32, "kl_coef": BETA, "ema_decay": 0.8, "sampler": SAMPLER,
            "optimizer": {"learning_rate": 2e-4, "warmup_steps": 3}, "algorithm": {"value_learning_rate": 5e-4},
            **changes,
        }  # fmt: skip
        stages[f"gauge_{name}"] = gauge(f"{{run}}/{name}/model", size)

    for beta in scale.betas:
        optimise(beta_name(beta), kl_coef=beta)
    for gamma in scale.gammas:
        texts = "{run}/world/corpus.jsonl"
        optimise(gamma_name(gamma), ptx_coef=gamma, pretraining_texts=texts, ptx_per_episode=0.25)
    for size in (scale.proxies[0], scale.sizes[-1]):
        for episodes in scale.stops:
            name = stop_name(scale, size, episodes)
            if name not in stages:
                optimise(name, size, kl_coef=0.0, total_episodes=episodes)
    stages["gauge_sft"] = gauge("{run}/sft/model", scale.sizes[-1])
    stages["gauge_base"] = {"stage": "gauge", "policy": "{base}", "texts": "{run}/world/corpus_valid.jsonl"}
    return stages


def gauge(policy: str, size: int) -> dict[str, Any]:
    """Its gold score, KL and loss on text, and its score by the reward model of so many rankings."""
    return {
        "stage": "gauge", "policy": policy, "reference": "{run}/sft/model",
        "reward_model": f"{{run}}/{reward_name(size)}/model", "prompts": "{run}/world/prompts_test.jsonl",
        "texts": "{run}/world/corpus_valid.jsonl", "sampler": SAMPLER,
    }  # fmt: skip


def judgments(scale: Scale) -> Stages:
    """Answers judged by held-out labelers: against SFT, and against the large base, plain and after worked examples."""
    answers = {
        "stage": "answer", "prompts": "{run}/world/prompts_test.jsonl", "sampler": SAMPLER,
        "examples": "{run}/world/demonstrations.jsonl",
    }  # fmt: skip
    ours = {"sft": "{run}/sft/model", "ppo": "{run}/ppo/model", "ppo_ptx": "{run}/ppo_ptx/model"}
    stages: Stages = {
        "answers": {**answers, "models": {"base": "{base}", **ours}, "prompted": {"prompted": "base"}},
        "judgments": {"stage": "judge", "answers": "{run}/answers/answers.jsonl"},
    }
    if scale.large_tokens:
        large = {"ppo": "{run}/ppo/model", "large": "{large}/base/model"}
        stages["large_answers"] = {**answers, "models": large, "prompted": {"large_prompted": "large"}}
        for baseline in ("large", "large_prompted"):
            judged = {"stage": "judge", "answers": "{run}/large_answers/answers.jsonl", "baseline": baseline}
            stages[f"judgments_{baseline}"] = judged
        texts = "{run}/world/corpus_valid.jsonl"
        stages["gauge_large"] = {"stage": "gauge", "policy": "{large}/base/model", "texts": texts}
    return stages


def of_a_seed(scale: Scale) -> Stages:
    """All runs of a seed, each after those that it reads."""
    samples = {
        "policy": "{run}/sft/model", "prompts": "{run}/world/prompts_test.jsonl", "first": scale.best_of_prompts,
        "n": scale.best_of, "reward_models": {str(n): f"{{run}}/{reward_name(n)}/model" for n in scale.proxies},
        "sampler": SAMPLER,
    }  # fmt: skip
    return {
        **world(scale), **reward_models(scale), **policies(scale), **judgments(scale), "samples": samples,
        "bandit": {"bandits": scale.bandits},
    }  # fmt: skip


def large_base(scale: Scale) -> Stages:
    """A base of 9.24M parameters, ten times the shipped one's, that all seeds share: pretrained on the world's text at
    seed 0, on fewer tokens than the shipped one, as two cores allow."""
    return {
        "corpus": {"stage": "world", "documents": max(100, scale.large_tokens // 90), "valid_documents": 400},
        "base": {
            "stage": "pretrain", "texts": "{run}/corpus/corpus.jsonl",
            "valid_texts": "{run}/corpus/corpus_valid.jsonl", "sequence_length": 256, "hidden_size": 384, "layers": 5,
            "heads": 6, "intermediate_size": 1024, "total_tokens": scale.large_tokens,
        },
    }  # fmt: skip


def needed(stages: Mapping[str, dict[str, Any]], wanted: Iterable[str]) -> Stages:
    """The stages that are wanted and all that they read, in the order of `stages`."""
    kept, waiting = set[str](), list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept.add(name)
            waiting += re.findall(r"\{run\}/([\w.-]+)/", dumps(stages[name]))
    return {name: settings for name, settings in stages.items() if name in kept}
