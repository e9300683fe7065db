"""Runs in the peer's environment: TRL's DPOTrainer, a step at a time, as turns.py says.

SETTINGS: DPOConfig's, and `sorted_within`: so many pairs after each other are put in order of length, so that the parts
of a step hold pairs of like length. An answer is a step's seconds and its loss. The pairs come as ids.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from turns import begin, take_turns


def main() -> None:
    """Load the policy and train."""
    folder, settings, turns = begin()
    size = settings.pop("sorted_within")

    class Trainer(DPOTrainer):
        """Tells its loss, the mean over a step's parts."""

        def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
            return dataset  # it is of ids already

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            if self.state.global_step != self.told:
                self.told, turns.more = self.state.global_step, (0.0,)
            turns.more = (turns.more[0] + loss.item() / self.args.gradient_accumulation_steps,)
            return loss

        told = -1

    pairs = json.loads((folder / "pairs.json").read_text())
    order: list[int] = []
    for start in range(0, len(pairs), size):
        order += sorted(
            range(start, min(len(pairs), start + size)),
            key=lambda i: len(pairs[i][0]) + max(map(len, pairs[i][1:])),
        )
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer = Trainer(
        args=DPOConfig(output_dir=str(folder / "trl"), **settings),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        train_dataset=Dataset.from_dict({name: [pairs[i][n] for i in order] for n, name in enumerate(columns)}),
        callbacks=[turns],
    )
    take_turns(trainer)


if __name__ == "__main__":
    main()
