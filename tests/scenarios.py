"""Small runs of every stage that works for long, each a function of a folder: what `chaos.py` kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from conftest import SENTENCES, tiny_model
from tutelage import recipe
from tutelage.data.candidates import write_candidates
from tutelage.data.datasets import read_demonstrations, read_prompts
from tutelage.data.records import Completion
from tutelage.evaluation import answer
from tutelage.lab.world import build, rank
from tutelage.models.loading import load_policy, new_scalar, save_model
from tutelage.settings.collect import CollectConfig
from tutelage.settings.common import StageConfig
from tutelage.settings.dpo import DpoConfig
from tutelage.settings.evaluation import AnswerConfig
from tutelage.settings.judging import JudgeConfig
from tutelage.settings.online import OnlineConfig
from tutelage.settings.pretrain import PretrainConfig
from tutelage.settings.prioritize import PrioritizeConfig
from tutelage.settings.reward import MeasureConfig, RewardConfig
from tutelage.settings.select import SelectConfig
from tutelage.settings.sft import SftConfig
from tutelage.settings.training import Lora
from tutelage.settings.world import RankConfig, WorldConfig
from tutelage.stages import collect, dpo, measure, online, pretrain, prioritize, reward, select, sft
from tutelage.stages.pretrain import train_tokenizer

Scenario = tuple[Callable[[Any], None], StageConfig]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(data: Path) -> None:
    """Models and files that the runs read."""
    rng = Random(0)
    tokenizer = train_tokenizer(SENTENCES, 320)
    save_model(tiny_model("llama", len(tokenizer)), tokenizer, data / "policy")
    save_model(tiny_model("llama", len(tokenizer), seed=1), tokenizer, data / "other")
    save_model(new_scalar(data / "policy", tokenizer, seed=1), tokenizer, data / "reward_model")
    save_model(new_scalar(data / "policy", tokenizer, seed=2), tokenizer, data / "other_reward_model")
    save_model(load_policy(data / "policy", tokenizer, Lora(rank=2)), tokenizer, data / "adapter")
    prompts = [[{"role": "user", "content": f"Name a colour of the sky, {i}."}] for i in range(16)]
    colours = ("red", "green", "blue", "grey", "white")
    write(data / "prompts.jsonl", [{"prompt": p, "id": str(i)} for i, p in enumerate(prompts)])
    write(data / "demos.jsonl", [{"prompt": p, "completion": rng.choice(colours)} for p in prompts])
    ranked = [{"prompt": p, "completions": rng.sample(colours, 3), "ranks": [1, 2, 3]} for p in prompts]
    write(data / "rankings.jsonl", ranked)
    write(data / "texts.jsonl", [{"text": " ".join(rng.sample(SENTENCES, 3))} for _ in range(20)])
    run, config = scenario("world", data, data / "world")
    run(config)
    texts = [row.completion for row in read_demonstrations(data / "world" / "demonstrations.jsonl").records]
    for name in ("reward", "reward_valid"):
        asked = read_prompts(data / "world" / f"prompts_{name}.jsonl").records
        written = [(p, tuple(Completion(text=text) for text in dict.fromkeys(rng.sample(texts, 4)))) for p in asked]
        write_candidates(data / f"candidates_{name}.jsonl", [pair for pair in written if len(pair[1]) > 1])
    asked = read_prompts(data / "world" / "prompts_test.jsonl").records
    answers = [{"sft": rng.choice(texts), "ppo": rng.choice(texts)} for _ in asked]
    rows = [p.model_dump(mode="json", exclude_none=True) for p in asked]
    rows = [row | {"prompt": row.pop("text"), "answers": own} for row, own in zip(rows, answers, strict=True)]
    write(data / "answers.jsonl", rows)


def even(prompts: list[Any], completions: list[Any]) -> list[float | None]:
    """A reward that gives many groups one score, and some completions none."""
    sums = [sum(str(c).encode()) for c in completions]
    return [None if number % 5 == 1 else float(number % 3 == 0) for number in sums]


def scenario(name: str, data: Path, output: Path) -> Scenario:
    """The stage's function and its settings. A checkpoint is written after every step."""
    policy, rewards = str(data / "policy"), str(data / "reward_model")
    prompts, texts, demos = (str(data / f"{name}.jsonl") for name in ("prompts", "texts", "demos"))
    often = {"checkpoint_seconds": 1e-9, "seed": 3, "output": output}
    rl = often | {
        "model": policy, "reward_model": rewards, "prompts": prompts, "total_episodes": 32, "batch_size": 8,
        "mini_batch_size": 4, "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "algorithm": {"value_learning_rate": 1e-3}, "sampler": {"max_new_tokens": 8}, "sample_every": 1,
        "ema_decay": 0.0,
    }  # fmt: skip
    mixture = {"pretraining_texts": texts, "ptx_length": 16}
    match name:
        case "pretrain":
            small = {"vocab_size": 300, "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24}
            rows = {"sequence_length": 24, "batch_tokens": 96, "total_tokens": 96 * 8}
            return pretrain.run, PretrainConfig(**often, **small, **rows, texts=texts, valid_texts=texts)
        case "sft":
            return sft.run, SftConfig(
                **often, model=policy, demonstrations=demos, epochs=3, batch_size=4, optimizer={"learning_rate": 1e-3},
                pretraining_texts=texts, reward_model=rewards, max_completion_tokens=8,
            )  # fmt: skip
        case "reward":
            return reward.run, RewardConfig(
                **often, model=policy, rankings=str(data / "rankings.jsonl"), demonstrations=demos, epochs=3,
                batch_size=4, optimizer={"learning_rate": 1e-3},
            )  # fmt: skip
        case "dpo":
            return dpo.run, DpoConfig(
                **often, model=policy, rankings=str(data / "rankings.jsonl"), held_out=0.25, epochs=2, batch_size=4,
                optimizer={"learning_rate": 1e-3},
            )  # fmt: skip
        case "ppo":
            return online.run, OnlineConfig(**rl)
        case "rloo" | "grpo" | "reinforce_pp":
            return online.run, OnlineConfig(**(rl | {"algorithm": {"name": name, "kl": "k3"}}))
        case "function":
            how = {"name": "grpo", "num_generations": 4, "refill": 2, "kl": "reward"}
            rewards = {"rewards": {"even": f"{__name__}:even"}, "reward_model": None}
            return online.run, OnlineConfig(**(rl | rewards | {"algorithm": how}))
        case "lora":
            return online.run, OnlineConfig(**rl, adapter={"rank": 2})
        case "ptx":
            return online.run, OnlineConfig(**rl, **mixture)
        case "adaptive":
            return online.run, OnlineConfig(**rl, kl_target=1.0, kl_horizon=40)
        case "ema":
            return online.run, OnlineConfig(**(rl | {"ema_decay": 0.7}))
        case "collect":
            policies = {"a": policy, "b": str(data / "other")}
            return collect.run, CollectConfig(
                output=output, prompts=prompts, policies=policies, k="2..4", sampler={"max_new_tokens": 8},
                off_prompt=0.1,
            )  # fmt: skip
        case "answer":
            return answer.run, AnswerConfig(
                output=output, models={"a": policy, "b": str(data / "other")}, prompts=prompts, texts=texts,
                reward_model=rewards, reference="a", greedy=["b"], best_of="b", best_of_n=2,
                sampler={"max_new_tokens": 8},
            )  # fmt: skip
        case "select":
            return select.run, SelectConfig(
                output=output, candidates=str(data / "candidates_reward.jsonl"), reward_model=rewards
            )
        case "measure":
            return measure.run, MeasureConfig(
                output=output, reward_model=rewards, rankings=str(data / "rankings.jsonl")
            )  # fmt: skip
        case "prioritize":
            return prioritize.run, PrioritizeConfig(
                output=output, candidates=str(data / "candidates_reward.jsonl"), number=10, seed=3,
                reward_models=[rewards, str(data / "other_reward_model")],
            )  # fmt: skip
        case "world":
            sizes = {"documents": 200, "valid_documents": 20, "sft_prompts": 60, "reward_prompts": 30}
            sizes |= {"reward_valid_prompts": 10, "ppo_prompts": 20, "valid_prompts": 10, "test_prompts": 20}
            return build.run, WorldConfig(output=output, **sizes)
        case "rank":
            candidates = {"candidates": str(data / "candidates_reward.jsonl")}
            valid = {"valid_candidates": str(data / "candidates_reward_valid.jsonl")}
            return rank.run_rank, RankConfig(output=output, **candidates, **valid)
        case "judge":
            return recipe.judge, JudgeConfig(output=output, answers=str(data / "answers.jsonl"))
    raise KeyError(name)


ONLINE = ("ppo", "rloo", "grpo", "reinforce_pp", "ptx", "adaptive", "ema", "function", "lora")
RESUMED = ("pretrain", "sft", "reward", "dpo", *ONLINE, "collect", "select", "prioritize", "measure", "answer", "judge")
NAMES = (*RESUMED, "world", "rank")  # the last begin again
