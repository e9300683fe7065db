"""Runs in the peer's environment: TRL's RewardTrainer, a step at a time, as turns.py says. SETTINGS: RewardConfig's.

An answer is a step's seconds and its loss. The pairs come as ids: TRL tokenizes nothing, and adds no end token, where a
data set has columns `chosen_ids` and `rejected_ids`.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from turns import begin, take_turns


def main() -> None:
    """Load the model and train."""
    folder, settings, turns = begin()

    class Trainer(RewardTrainer):
        """Tells its loss."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().compute_loss(*args, **kwargs)
            turns.more = (loss.item(),)
            return loss

    pairs = json.loads((folder / "pairs.json").read_text())
    chosen, rejected = ([p[0] + p[which] for p in pairs] for which in (1, 2))
    trainer = Trainer(
        args=RewardConfig(output_dir=str(folder / "trl"), **settings),
        processing_class=AutoTokenizer.from_pretrained(folder / "reward"),
        model=AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype=torch.float32),
        train_dataset=Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected}),
        callbacks=[turns],
    )
    take_turns(trainer)


if __name__ == "__main__":
    main()
