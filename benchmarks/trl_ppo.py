"""Runs in the peer's environment: TRL's PPOTrainer, an iteration at a time, as turns.py says. SETTINGS: PPOConfig's.

An answer is a step's seconds, mean tokens of a completion (its end token included), mean score and value loss, MiB held
once the models were loaded, and at the peak since. With `cache` in the settings, `generate` uses such a cache.
"""

from __future__ import annotations

import json
import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from resident import resident
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from turns import begin, take_turns


def main() -> None:
    """Load the four models and train."""
    folder, settings, turns = begin()
    cache = settings.pop("cache", None)
    tokens = float(settings["response_length"])
    truncate = ppo_trainer.truncate_response

    def counted(stop: int, pad: int, responses: torch.Tensor) -> torch.Tensor:
        """As TRL's, which only runs where there is a stop token."""
        nonlocal tokens
        cut: torch.Tensor = truncate(stop, pad, responses)
        tokens = float((cut != pad).sum() / len(cut))
        return cut

    ppo_trainer.truncate_response = counted

    class Trainer(PPOTrainer):
        """Tells what it logs."""

        def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
            turns.more = (tokens, logs["objective/scores"], logs["loss/value_avg"], turns.loaded, resident(peak=True))

    prompts = Dataset.from_dict({"input_ids": json.loads((folder / "prompts.json").read_text())})
    policies = [AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32) for _ in range(2)]
    policies[0].generation_config.cache_implementation = cache
    scalars = [
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype=torch.float32)
        for _ in range(2)
    ]
    trainer = Trainer(
        args=PPOConfig(output_dir=str(folder / "trl"), **settings),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy", padding_side="left"),
        model=policies[0],
        ref_model=policies[1],
        reward_model=scalars[0],
        value_model=scalars[1],
        train_dataset=prompts,
        eval_dataset=prompts,
        callbacks=[turns],
    )
    take_turns(trainer)


if __name__ == "__main__":
    main()
