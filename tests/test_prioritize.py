"""What to label next: by the disagreement of reward models, worked by hand; and what comes out can be queued."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tutelage.data.candidates import read_candidates
from tutelage.models.loading import new_scalar, save_model
from tutelage.rewards.reward_model import RewardModel
from tutelage.settings.prioritize import PrioritizeConfig
from tutelage.stages import prioritize
from tutelage.stages.prioritize import disagreement

ODDS = math.log(3)  # a probability of 3/4


def test_disagreement_by_hand() -> None:
    """3/4 and 1/4 have variance 1/16. Members that agree have none, whatever they add to all scores."""
    assert disagreement([[ODDS, 0.0], [0.0, ODDS]]) == pytest.approx(1 / 16)
    assert disagreement([[9.0, 0.0], [19.0, 10.0]]) == pytest.approx(0)
    assert disagreement([[0.0, 1e6], [1e6, 0.0]]) == pytest.approx(1 / 4)
    # Of three pairs one differs: 1 of the first member is sure of, the other not at all.
    assert disagreement([[ODDS, 0.0, 1e6], [0.0, 0.0, 1e6]]) == pytest.approx((3 / 4 - 1 / 2) ** 2 / 4 / 3)
    # Three members: 3/4, 1/2, 1/4 have variance (1/16 + 0 + 1/16)/3
    assert disagreement([[ODDS, 0.0], [0.0, 0.0], [0.0, ODDS]]) == pytest.approx(1 / 24)


@pytest.fixture(scope="module")
def models(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = tmp_path_factory.mktemp("ensemble")
    for seed in (1, 2):
        (folder / str(seed)).mkdir()
        save_model(new_scalar(folders("llama"), tokenizer, seed=seed), tokenizer, folder / str(seed) / "model")
    return [str(folder / str(seed) / "model") for seed in (1, 2)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Name a colour of the sky, {i}."}]


def rows(number: int = 9) -> list[dict[str, Any]]:
    return [
        {"prompt": asked(i), "id": str(i), "completions": [f"red {i}", f"green {i * i}", "blue"]} for i in range(number)
    ]


def results(folder: Path) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """done.json, the ids in candidates.jsonl, the rows of priorities.jsonl."""
    done = json.loads((folder / "done.json").read_text())
    taken = [prompt.id for prompt, _ in read_candidates(folder / "candidates.jsonl")]
    return done, taken, [json.loads(line) for line in (folder / "priorities.jsonl").read_text().splitlines()]


def test_the_first_are_those_that_the_members_disagree_on(models: list[str], tmp_path: Path) -> None:
    candidates = write(tmp_path / "c.jsonl", rows())
    ranked = write(tmp_path / "r.jsonl", [rows()[4] | {"ranks": [1, 2, 2]}, rows()[5] | {"ranks": [1, 1, 1]}])
    config = PrioritizeConfig(
        output=tmp_path / "out", candidates=candidates, reward_models=models, ranked=ranked, number=3
    )
    prioritize.run(config)
    done, taken, order = results(tmp_path / "out")
    expected = {}
    for prompt, written in read_candidates(candidates):
        scores = []
        for folder in models:
            reward = RewardModel(folder)
            ids = reward.encode([prompt] * 3, [c.text for c in written], [True] * 3)
            scores.append([float(reward.scores([each])[0]) for each in ids])
        expected[prompt.id] = disagreement(scores)
    del expected["4"], expected["5"]
    wanted = sorted(expected, key=lambda name: -expected[name])
    assert taken == wanted[:3]
    assert [row["id"] for row in order] == wanted
    assert [row["taken"] for row in order] == [True] * 3 + [False] * 4
    assert [row["disagreement"] for row in order] == pytest.approx([expected[name] for name in wanted], abs=1e-6)
    assert (done["prompts"], done["candidates"], done["members"], done["completions"]) == (3, 7, 2, 9)
    assert done["dropped"] == {"ranked already": 2}
    assert done["disagreement"]["all"]["mean"] == pytest.approx(sum(expected.values()) / 7, abs=1e-6)
    assert done["disagreement"]["taken"]["mean"] > done["disagreement"]["all"]["mean"]


def test_a_random_order_is_the_seeds(tmp_path: Path) -> None:
    candidates = write(tmp_path / "c.jsonl", rows(12))
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prioritize.run(PrioritizeConfig(output=tmp_path / name, candidates=candidates, by="random", seed=seed))
        done, taken, order = results(tmp_path / name)
        assert (done["members"], done["disagreement"], set(order[0])) == (0, {}, {"id", "taken"})
        assert sorted(taken) == sorted(str(i) for i in range(12))
        orders.append(taken)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0], key=int)


def test_what_a_member_cannot_read_is_left_out(models: list[str], tmp_path: Path) -> None:
    long = {"prompt": asked(0), "completions": ["red " * 300, "blue"]}
    candidates = write(tmp_path / "c.jsonl", [long, *rows(2)[1:]])
    config = PrioritizeConfig(output=tmp_path / "out", candidates=candidates, reward_models=models)
    prioritize.run(config)
    done, taken, _ = results(tmp_path / "out")
    assert (taken, done["dropped"]) == (["1"], {"too long for a reward model": 1})
    none = {"candidates": write(tmp_path / "long.jsonl", [long]), "output": tmp_path / "none"}
    with pytest.raises(ValueError, match=r"long.jsonl: none of 1 prompts is left to rank"):
        prioritize.run(config.model_copy(update=none))


def test_one_model_cannot_disagree(models: list[str], tmp_path: Path) -> None:
    for few in ([], models[:1], models[:1] * 2):
        with pytest.raises(ValueError, match="by=disagreement needs two different reward_models at least, here are"):
            PrioritizeConfig(output=tmp_path, candidates="c.jsonl", reward_models=few)


def test_a_score_that_is_none_is_named(models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        prioritize, "group_scores", lambda _, groups, __: [torch.tensor([0.0, math.inf, 0.0])] * len(groups)
    )
    config = PrioritizeConfig(
        output=tmp_path / "out", candidates=write(tmp_path / "c.jsonl", rows(1)), reward_models=models
    )
    with pytest.raises(ValueError, match=r"reward_models: .*: a completion of prompt '0' scores inf; train"):
        prioritize.run(config)
