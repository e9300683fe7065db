"""People's rankings (the E2E NLG challenge) through a workspace: imported, exported by arm, training a reward model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tutelage.data.datasets import read_rankings
from tutelage.labeling.store import exchange
from tutelage.labeling.store.database import Workspace
from tutelage.settings.reward import RewardConfig
from tutelage.stages import reward

SHARED = Path(__file__).parents[3] / "shared"
RANKINGS = SHARED / "data" / "e2e_nlg_rankings" / "quality.jsonl.gz"
STORIES = SHARED / "models" / "stories260k"


@pytest.mark.skipif(not (RANKINGS.exists() and STORIES.exists()), reason="people's rankings are absent")
def test_peoples_rankings_reach_a_reward_model(workspace: Workspace, tmp_path: Path) -> None:
    with gzip.open(RANKINGS, "rt", encoding="utf-8") as stream:
        rows = [json.loads(next(stream)) for _ in range(60)]
    workers = sorted({row["worker"] for row in rows})
    with (tmp_path / "rankings.jsonl").open("w", encoding="utf-8") as stream:
        for row in rows:
            scores = [c["score"] for c in row["candidates"]]
            told = {
                "id": f"unit-{row['unit']}", "prompt": row["mr"], "split": "train", "labeler": row["worker"],
                "completions": [c["text"] for c in row["candidates"]],
                "ranks": [1 + sum(other > score for other in scores) for score in scores],
                "arm": "heldout" if workers.index(row["worker"]) % 4 == 0 else "training",
            }  # fmt: skip
            stream.write(json.dumps(told) + "\n")
    counts = exchange.import_rankings(workspace, str(tmp_path / "rankings.jsonl"))
    assert (counts["rankings"], counts["labelers"]) == (60, len(workers))
    exchange.export(workspace, tmp_path / "out")
    trained = read_rankings(tmp_path / "out" / "rankings.jsonl").records
    assert trained
    assert all(workers.index(str(r.labeler)) % 4 for r in trained)  # a held-out worker's answer is in no training file
    settings = {"optimizer": {"learning_rate": 1e-3}, "batch_size": 4, "model": str(STORIES)}
    run = RewardConfig(output=tmp_path / "reward", rankings=str(tmp_path / "out" / "rankings.jsonl"), **settings)
    reward.run(run)
    done = json.loads((tmp_path / "reward" / "done.json").read_text())
    assert done["rankings"] + done["valid"]["held_out"]["rankings"] == len(trained)
    assert (tmp_path / "reward" / "model" / "model.safetensors").exists()
