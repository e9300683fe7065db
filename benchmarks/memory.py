"""Rows of memory: how much a PPO iteration holds at its peak, at a vocabulary of 50,257, each side in its own process.

As a script, our side: MiB once all models are loaded, and at the peak of the iterations after that.

    python memory.py FOLDER THREADS EPISODES TOKENS
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

from tutelage.stages import online


def memory_rows(folder: Path, work: Work, rounds: int) -> list[Row]:
    """Peak of an iteration over what the loaded models hold, and the whole peak."""
    make_models(folder, work)
    what = f"memory of a PPO iteration, {work.shape}, vocabulary {work.shape.vocabulary:,}, {work.number} × {work}"
    over = Row(f"{what}: peak less the loaded models (smaller is better)", "MiB")
    whole = Row(f"{what}: whole peak (smaller is better)", "MiB")
    try:
        tried = {size: peer(folder, work, size) for size in (work.number, max(1, work.number // 8))}
        best = min(tried, key=lambda size: tried[size][1])
        told = ", ".join(f"{size}: {peak - loaded:,.0f} of {peak:,.0f} MiB" for size, (loaded, peak) in tried.items())
        over.notes.append(f"peer is TRL 1.12, fp32, in batches of {best} episodes (in the warm-up, batches of {told})")
    except PeerError as error:
        best = 0
        over.notes.append(f"peer not available: {error}")
    for _ in range(rounds):
        for side, measured in (("ours", ours(folder, work)), ("peer", peer(folder, work, best) if best else None)):
            if measured:
                loaded, peak = measured
                getattr(over, side).append(peak - loaded)
                getattr(whole, side).append(peak)
    models = [statistics.median(a - b for a, b in zip(getattr(whole, s), getattr(over, s), strict=True))
              for s in ("ours", "peer") if getattr(whole, s)]  # fmt: skip
    over.notes.append(
        "held once the models are loaded, ours and peer: " + " and ".join(f"{m:,.0f} MiB" for m in models)
    )
    return [over, whole]


def ours(folder: Path, work: Work) -> tuple[float, float]:
    """MiB once the models are loaded, and at the peak, of a fresh process."""
    command = [sys.executable, __file__, folder, torch.get_num_threads(), work.number, work.most]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    loaded, peak = json.loads(done.stdout)
    return loaded, peak


def peer(folder: Path, work: Work, size: int) -> tuple[float, float]:
    """The same of TRL's PPOTrainer after two iterations, in batches of `size` episodes."""
    small = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": work.number // size,
        "local_rollout_forward_batch_size": size,
    }  # fmt: skip
    with trl("1.12", "trl_ppo.py", folder, {**ppo_settings(work), **small}) as step:
        answers = [step(), step()]
    loaded, peak = answers[-1][-2:]
    return loaded, peak


def main() -> None:
    """Our side."""
    folder, threads, number, most = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    prompts, loaded = online.usable_prompts, 0.0

    def first_after_loading(*args: Any) -> Any:
        nonlocal loaded
        loaded = resident()
        reset_peak()
        return prompts(*args)

    with tempfile.TemporaryDirectory() as output, mock.patch.object(online, "usable_prompts", first_after_loading):
        config = ppo_config(folder, Path(output), number, most, total_episodes=2 * number)
        metrics(online.run, config)
    print(json.dumps((loaded, resident(peak=True))))


if __name__ == "__main__":
    main()
