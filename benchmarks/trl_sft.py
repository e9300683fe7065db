"""Runs in the peer's environment: TRL's SFTTrainer, a step at a time, as turns.py says. SETTINGS: SFTConfig's.

An answer is a step's seconds, its loss, and how many real tokens it read.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from turns import begin, take_turns


def main() -> None:
    """Load the model and train on completions."""
    folder, settings, turns = begin()

    class Trainer(SFTTrainer):
        """Tells its loss and its tokens, summed over a step's parts."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            mask = inputs.get("attention_mask")
            tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
            if self.state.global_step != self.told:
                self.told, turns.more = self.state.global_step, (0.0, 0.0)
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            turns.more = (turns.more[0] + loss.item(), turns.more[1] + tokens)
            return loss

        told = -1

    sequences = json.loads((folder / "sequences.json").read_text())
    rows = {
        "input_ids": [prompt + completion for prompt, completion in sequences],
        "labels": [[-100] * len(prompt) + completion for prompt, completion in sequences],
    }
    trainer = Trainer(
        args=SFTConfig(output_dir=str(folder / "trl"), **settings),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        train_dataset=Dataset.from_dict(rows),
        callbacks=[turns],
    )
    take_turns(trainer)


if __name__ == "__main__":
    main()
