"""Runs in the peer's environment: TRL's RLOOTrainer or GRPOTrainer, an iteration at a time, as turns.py says.

SETTINGS: RLOOConfig's or GRPOConfig's, and `algorithm`, which of them. An answer is a step's seconds, mean tokens of a
completion (its end token included) and mean score. The reward model reads the ids that were sampled, in batches of like
length: TRL itself would make texts of them, encode these again, and read all at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from turns import begin, take_turns

TRAINERS = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}
BATCH = 16  # completions that the reward model reads at once


def main() -> None:
    """Load policy and reward model and train."""
    folder, settings, turns = begin()
    config, trainer = TRAINERS[settings.pop("algorithm")]
    texts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    ids = dict(zip(texts, json.loads((folder / "prompts.json").read_text()), strict=True))
    scalar = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype=torch.float32)
    scalar.eval()

    @torch.inference_mode()
    def score(prompts: Sequence[str], completion_ids: Sequence[list[int]], **_: Any) -> list[float]:
        """Of each completion, at its last token."""
        rows = [torch.tensor(ids[p] + c) for p, c in zip(prompts, completion_ids, strict=True)]
        order, scores = sorted(range(len(rows)), key=lambda i: len(rows[i])), [0.0] * len(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            for start in range(0, len(order), BATCH):
                some = order[start : start + BATCH]
                padded = torch.nn.utils.rnn.pad_sequence([rows[i] for i in some], batch_first=True)
                mask = torch.arange(padded.shape[1]) < torch.tensor([[len(rows[i])] for i in some])
                logits = scalar(input_ids=padded, attention_mask=mask.long()).logits
                for i, value in zip(some, logits[:, 0].tolist(), strict=True):
                    scores[i] = value
        turns.more = tuple(sum(numbers) / len(scores) for numbers in (map(len, completion_ids), scores))
        return scores

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    assert [tokenizer(text)["input_ids"] for text in texts] == [ids[text] for text in texts]
    take_turns(
        trainer(
            args=config(output_dir=str(folder / "trl"), **settings),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
            reward_funcs=[score],
            train_dataset=Dataset.from_dict({"prompt": texts}),
            callbacks=[turns],
        )
    )


if __name__ == "__main__":
    main()
