"""Memory of PPO with adapters beside one frozen base, and without: the peak of a run over what Python and torch hold.

python benchmarks/adapters.py           adapters on a base of 163M parameters (about three minutes)
python benchmarks/adapters.py --whole   whole models of the same shape
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import accelerate  # what it and PEFT hold is no part of the models
import peft
import torch
from resident import reset_peak, resident
from transformers import AutoModelForCausalLM, LlamaConfig

from tutelage.data.datasets import write_jsonl
from tutelage.models.adapters import own_parameters
from tutelage.models.loading import load_policy, new_scalar, save_model
from tutelage.models.tokens import load_tokenizer
from tutelage.settings.online import OnlineConfig
from tutelage.settings.training import Lora
from tutelage.shipped import BASE
from tutelage.stages import online

ADAPTER = Lora(rank=8, alpha=16)
WIDTH, LAYERS, INNER = 1536, 6, 4096
assert accelerate
assert peft


def make_files(folder: Path, whole: bool) -> None:
    """A base with random weights, a reward model on it and prompts."""
    tokenizer = load_tokenizer(BASE)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=WIDTH // 64,
        intermediate_size=INNER, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    save_model(new_scalar(folder / "base", tokenizer, 0, None if whole else ADAPTER), tokenizer, folder / "reward")
    prompts = [{"prompt": f"Write a list of things, number {i}, and say why."} for i in range(64)]
    write_jsonl(folder / "prompts.jsonl", prompts)


def main() -> None:
    """Make the files in a process of their own, then run two iterations and say what they held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true")
    whole = parser.parse_args().whole
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if (child := os.fork()) == 0:
            make_files(folder, whole)
            os._exit(0)
        os.waitpid(child, 0)
        base = (folder / "base" / "model.safetensors").stat().st_size / 2**20
        before, marks = resident(), list[tuple[str, float]]()

        def marked(name: str, function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                result = function(*args, **kwargs)
                marks.append((name, resident(peak=True) - before))
                reset_peak()
                return result

            return call

        config = OnlineConfig(
            model=str(folder / "base"), reward_model=str(folder / "reward"), prompts=str(folder / "prompts.jsonl"),
            total_episodes=32, batch_size=16, mini_batch_size=16, micro_batch_tokens=128, output=folder / "run",
            sampler={"max_new_tokens": 32, "batch_tokens": 1024}, adapter=None if whole else ADAPTER,
        )  # fmt: skip
        reset_peak()
        with (
            mock.patch.object(online, "load_models", marked("loading", online.load_models)),
            mock.patch.object(online, "sample", marked("sampling", online.sample)),
            mock.patch.object(online.Learner, "improve", marked("learning", online.Learner.improve)),
            mock.patch.object(online, "save_and_measure", marked("final measures", online.save_and_measure)),
        ):
            online.run(config)
        own = sum(
            p.numel()
            for p in own_parameters(
                load_policy(folder / "run" / "model", load_tokenizer(BASE), config.adapter)
            ).values()
        )
        state = 0.0 if whole else own * 4 * (5 + 2 * 3) / 2**20  # of five models; two with gradients and moments
    for name in dict(marks):
        print(f"{name}: {max(peak for mark, peak in marks if mark == name):,.0f} MiB")
    peak = max(peak for _, peak in marks)
    print(f"base {base:,.0f} MiB; adapters' state {state:,.0f} MiB; peak less that: {(peak - state) / base:.2f} bases")


if __name__ == "__main__":
    main()
