"""Shared by the scripts that run in a peer's environment: a TRL trainer that waits for its turn before each step.

    python SCRIPT FOLDER THREADS SETTINGS     SETTINGS: the trainer's, as JSON

The script says its version when it is ready, then, for each line "go" on standard input, the seconds of one step and
what else it has to tell, as a line of numbers on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trl
from resident import reset_peak, resident
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback


class Turns(TrainerCallback):
    """Waits for its turn between steps and tells how long each took, all of the loop's own work included."""

    def __init__(self, answers: Any) -> None:
        self.answers, self.began = answers, 0.0
        self.more: tuple[float, ...] = ()  # what a step's answer says after the seconds
        self.loaded = 0.0  # MiB before the first step

    def tell(self, line: str) -> None:
        """Answer, then wait to be told to go on."""
        print(line, file=self.answers, flush=True)
        if sys.stdin.readline().strip() != "go":
            sys.exit()
        self.began = time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Ready."""
        self.loaded = resident()
        reset_peak()
        self.tell(trl.__version__)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """One step done."""
        self.tell(" ".join(map(str, (time.perf_counter() - self.began, *self.more))))


def begin() -> tuple[Path, dict[str, Any], Turns]:
    """Folder, settings and turns by the command line; from here on only answers go to standard output."""
    folder, threads, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)
    return folder, settings, Turns(answers)


def take_turns(trainer: Trainer) -> None:
    """Train until nobody says "go"."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
