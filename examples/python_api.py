"""The three stages from Python: each is a function of a config, reads files, and writes a folder for the next one.

    python examples/python_api.py MODEL demonstrations.jsonl rankings.jsonl runs/python

Configs are checked when they are made; their fields are the commands' settings (`tutelage sft --help`). Run it again,
and what is done is skipped; what was interrupted goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tutelage.data.records import Message, Prompt
from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer
from tutelage.runs import done
from tutelage.sampling.completions import Writer, complete
from tutelage.settings.online import OnlineConfig
from tutelage.settings.reward import RewardConfig
from tutelage.settings.sampler import LocalSampling
from tutelage.settings.sft import SftConfig
from tutelage.stages import online, reward, sft


def train(
    model: str, demonstrations: str, rankings: str, folder: Path, learning_rate: float = 1e-5, episodes: int = 12_800
) -> Path:
    """SFT, a reward model, PPO; returns the folder of the policy that came out."""
    sft.run(
        SftConfig(
            model=model,
            demonstrations=demonstrations,
            epochs=3,
            optimizer={"learning_rate": learning_rate},
            output=folder / "sft",
        )
    )
    reward.run(
        RewardConfig(
            model=str(folder / "sft" / "model"),
            rankings=rankings,
            demonstrations=demonstrations,
            optimizer={"learning_rate": learning_rate},
            output=folder / "reward",
        )
    )
    for name, verdict in done(folder / "reward")["verdict"].items():  # type: ignore[index]
        print(f"{name}: {verdict}")
    online.run(
        OnlineConfig(
            model=str(folder / "sft" / "model"),
            reward_model=str(folder / "reward" / "model"),
            prompts=rankings,  # of any file that has prompts, the prompts are read
            total_episodes=episodes,
            batch_size=128,
            mini_batch_size=32,
            optimizer={"learning_rate": learning_rate / 5},
            algorithm={"value_learning_rate": learning_rate},
            sampler={"max_new_tokens": 64},
            output=folder / "ppo",
        )
    )
    return folder / "ppo" / "model"


def ask(model: Path, *questions: str) -> list[str]:
    """One sampled answer to each question."""
    tokenizer = load_tokenizer(model)
    writer = Writer("ppo", load_policy(model, tokenizer), tokenizer)
    prompts = [Prompt(id=q, text=(Message(role="user", content=q),)) for q in questions]
    answers = complete(writer, prompts, seed=0, sampling=LocalSampling(max_new_tokens=64))
    return [answer.completion.text for answer in answers]


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    *files, output = sys.argv[1:]
    print(*ask(train(*files, Path(output)), "What can you do?"))
