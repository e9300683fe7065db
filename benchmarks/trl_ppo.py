"""Runs in the peer's environment: TRL's PPOTrainer, one iteration for each line "go" on standard input.

    python trl_ppo.py FOLDER THREADS SETTINGS     SETTINGS: PPOConfig's, as JSON

Says its version when it is ready, then the seconds of every iteration, each a line on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Turns(TrainerCallback):
    """Waits for its turn between iterations and tells how long each took, all of the loop's own work included."""

    def __init__(self, answers: Any) -> None:
        self.answers, self.began = answers, 0.0

    def tell(self, line: str) -> None:
        """Answer, then wait to be told to go on."""
        print(line, file=self.answers, flush=True)
        if sys.stdin.readline().strip() != "go":
            sys.exit()
        self.began = time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Ready."""
        self.tell(trl.__version__)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """One iteration done."""
        self.tell(str(time.perf_counter() - self.began))


def main() -> None:
    """Load the four models and train until nobody says "go"."""
    folder, threads, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)
    prompts = Dataset.from_dict({"input_ids": json.loads((folder / "prompts.json").read_text())})
    policies = [AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32) for _ in range(2)]
    scalars = [
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype=torch.float32)
        for _ in range(2)
    ]
    trainer = PPOTrainer(
        args=PPOConfig(output_dir=str(folder / "trl"), **settings),
        processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
        model=policies[0],
        ref_model=policies[1],
        reward_model=scalars[0],
        value_model=scalars[1],
        train_dataset=prompts,
        eval_dataset=prompts,
        callbacks=[Turns(answers)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


if __name__ == "__main__":
    main()
