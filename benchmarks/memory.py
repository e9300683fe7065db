"""Rows of memory: how much a PPO iteration holds at its peak, at a vocabulary of 50,257, each side in its own process.

As a script, our side: MiB once all models are loaded, and at the peak of the iterations after that.

    python memory.py FOLDER THREADS EPISODES COMPLETION_TOKENS MICRO_BATCH_TOKENS
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peers import PeerError, trl
from resident import reset_peak, resident
from results import Row
from training_rows import metrics, ppo_config, ppo_settings
from work import Work, make_models

from tutelage.models.precision import has_bf16_units
from tutelage.settings.online import OnlineConfig
from tutelage.stages import online

DEFAULT = OnlineConfig.model_fields["micro_batch_tokens"].default


def memory_rows(folder: Path, work: Work, rounds: int) -> list[Row]:
    """Peak of an iteration over what the loaded models hold, and the whole peak."""
    make_models(folder, work)
    what = f"memory of a PPO iteration, {work.shape}, vocabulary {work.shape.vocabulary:,}, {work.number} × {work}"
    over = Row(f"{what}: peak less the loaded models (smaller is better)", "MiB")
    whole = Row(f"{what}: whole peak (smaller is better)", "MiB")
    measures: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    try:
        few = work.number // 8
        settings = [(work.number, "fp32"), (few, "fp32"), *([(few, "bf16")] if has_bf16_units() else [])]
        ways = {f"{n} episodes, {kind}": (n, kind) for n, kind in settings}
        tried = {name: peer(folder, work, *way) for name, way in ways.items()}
        best = min(tried, key=lambda name: tried[name][1])
        told = ", ".join(f"{name}: {peak - loaded:,.0f} of {peak:,.0f} MiB" for name, (loaded, peak) in tried.items())
        over.notes.append(f"peer is TRL 1.12, in batches of {best} (tried {told})")
        measures["peer"] = [tried[best], *(peer(folder, work, *ways[best]) for _ in range(rounds - 1))]
    except PeerError as error:
        over.notes.append(f"peer not available: {error}")
    measures["ours"] = [ours(folder, work) for _ in range(rounds)]
    for side, figures in measures.items():
        getattr(over, side).extend(peak - loaded for loaded, peak in figures)
        getattr(whole, side).extend(peak for _, peak in figures)
        if figures:
            held = statistics.median(loaded for loaded, _ in figures)
            over.notes.append(f"{side}: {held:,.0f} MiB once the models are loaded")
    tokens = work.number * (work.prompts[1] + work.most) // 8
    loaded, peak = ours(folder, work, tokens)
    over.notes.append(f"ours with micro_batch_tokens={DEFAULT}; with {tokens}: {peak - loaded:,.0f} of {peak:,.0f} MiB")
    return [over, whole]


def ours(folder: Path, work: Work, tokens: int = DEFAULT) -> tuple[float, float]:
    """MiB once the models are loaded, and at the peak, of a fresh process."""
    command = [sys.executable, __file__, folder, torch.get_num_threads(), work.number, work.most, tokens]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    loaded, peak = json.loads(done.stdout)
    return loaded, peak


def peer(folder: Path, work: Work, size: int, kind: str) -> tuple[float, float]:
    """The same of TRL's PPOTrainer after two iterations, in batches of `size` episodes."""
    small = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": work.number // size,
        "local_rollout_forward_batch_size": size, "bf16": kind == "bf16",
    }  # fmt: skip
    with trl("1.12", "trl_ppo.py", folder, {**ppo_settings(work), **small}) as step:
        answers = [step(), step()]
    loaded, peak = answers[-1][-2:]
    return loaded, peak


def main() -> None:
    """Our side."""
    folder, threads, number, most, tokens = Path(sys.argv[1]), *map(int, sys.argv[2:6])
    torch.set_num_threads(threads)
    prompts, loaded = online.usable_prompts, 0.0

    def first_after_loading(*args: Any) -> Any:
        nonlocal loaded
        loaded = resident()
        reset_peak()
        return prompts(*args)

    with tempfile.TemporaryDirectory() as output, mock.patch.object(online, "usable_prompts", first_after_loading):
        more = {"total_episodes": 2 * number, "micro_batch_tokens": tokens}
        config = ppo_config(folder, Path(output), number, most, **more)
        metrics(online.run, config)
    print(json.dumps((loaded, resident(peak=True))))


if __name__ == "__main__":
    main()
