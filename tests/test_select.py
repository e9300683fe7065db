"""Selection: a reward model ranks candidates, and the best of each prompt becomes its demonstration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from byhand import assert_run_of
from tutelage.data.candidates import read_candidates, read_samples, write_candidates
from tutelage.data.datasets import DataError, read_demonstrations, read_rankings
from tutelage.data.records import Completion, Prompt
from tutelage.models.loading import new_scalar, save_model
from tutelage.rewards.reward_model import RewardModel
from tutelage.runs import DryRun
from tutelage.settings.dpo import DpoConfig
from tutelage.settings.select import SelectConfig
from tutelage.settings.sft import SftConfig
from tutelage.stages import dpo, select, sft

COLOURS = ("red", "green", "blue", "grey", "white")


@pytest.fixture(scope="module")
def reward_folder(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, folder)
    return str(folder)


def asked(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Name a colour of the sky, {i}."}]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chosen(tmp_path: Path, reward_folder: str, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    candidates = write(tmp_path / "candidates.jsonl", rows)
    select.run(SelectConfig(output=tmp_path / "out", candidates=candidates, reward_model=reward_folder, **settings))
    return json.loads((tmp_path / "out" / "done.json").read_text())


def scoring(monkeypatch: pytest.MonkeyPatch, *scores: list[float]) -> list[int]:
    """The reward model gives these scores, by prompt; returns how many tokens at once it was asked to read."""
    rest, limits = iter(scores), []

    def group_scores(_: Any, groups: list[Any], max_tokens: int) -> list[torch.Tensor]:
        limits.append(max_tokens)
        return [torch.tensor(next(rest)) for _ in groups]

    monkeypatch.setattr(select, "group_scores", group_scores)
    return limits


def test_the_best_by_the_reward_models_own_reading_is_kept(tmp_path: Path, reward_folder: str) -> None:
    """Scores are those of each completion read alone, in fp32, one that was cut off without its end."""
    rows = [{"prompt": asked(i), "completions": [f"{a} {i}" for a in COLOURS], "sampled": 8} for i in range(6)]
    rows[0]["completions"] = [{"text": f"{a} 0", "finish": "length" if a == "red" else "stop"} for a in COLOURS]
    done = chosen(tmp_path, reward_folder, rows, labeler="rm")
    reward = RewardModel(reward_folder)
    demonstrations = read_demonstrations(tmp_path / "out" / "demonstrations.jsonl").records
    rankings = read_rankings(tmp_path / "out" / "rankings.jsonl").records
    means, best = [], []
    for i, (demonstration, ranking) in enumerate(zip(demonstrations, rankings, strict=True)):
        texts = [f"{a} {i}" for a in COLOURS]
        ended = [i > 0 or not text.startswith("red") for text in texts]
        scores = reward.scores(reward.encode([ranking.prompt] * 5, texts, ended)).tolist()
        by_score = sorted(texts, key=lambda text: -scores[texts.index(text)])
        assert sorted(texts, key=lambda text: ranking.best_ranks[text]) == by_score
        assert ranking.ranks == tuple(1 + sum(other > own for other in scores) for own in scores)
        assert [c.text for c in ranking.completions] == texts
        assert demonstration.completion == next(text for text in by_score if i or not text.startswith("red"))
        assert demonstration.prompt == ranking.prompt
        assert demonstration.labeler == ranking.labeler == "rm"
        means.append(sum(scores) / 5)
        best.append(scores[texts.index(demonstration.completion)])
    assert (done["prompts"], done["completions"], done["demonstrations"], done["dropped"]) == (6, 30, 6, {})
    assert done["score"] == pytest.approx(sum(means) / 6, abs=1e-5)
    assert done["best"] == pytest.approx(sum(best) / 6, abs=1e-5)
    assert done["kl_bound"] == pytest.approx(math.log(8) - 7 / 8)
    assert_run_of(tmp_path / "out", "select", "candidates", "reward_model")


def test_equal_scores_are_ties_and_the_first_of_them_is_the_best(
    tmp_path: Path, reward_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = scoring(monkeypatch, [0.5, 2.0, 2.0, -1.0])
    rows = [{"prompt": asked(0), "completions": list("abcd")}]
    done = chosen(tmp_path, reward_folder, rows, micro_batch_tokens=77)
    assert limits == [77]
    (ranking,) = read_rankings(tmp_path / "out" / "rankings.jsonl").records
    (demonstration,) = read_demonstrations(tmp_path / "out" / "demonstrations.jsonl").records
    assert ranking.ranks == (2, 1, 1, 3)
    assert demonstration.completion == "b"
    assert (done["score"], done["best"]) == (0.875, 2.0)
    assert done["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)  # without `sampled`, as many as there are


def test_what_was_cut_off_is_ranked_and_never_a_demonstration(
    tmp_path: Path, reward_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring(monkeypatch, [3.0, 1.0, 2.0], [1.0, 2.0])
    cut = [{"text": text, "finish": "length"} for text in "ab"]
    first = [cut[0], {"text": "b", "finish": "stop"}, {"text": "c"}]
    done = chosen(
        tmp_path, reward_folder, [{"prompt": asked(0), "completions": first}, {"prompt": asked(1), "completions": cut}]
    )
    assert [r.ranks for r in read_rankings(tmp_path / "out" / "rankings.jsonl").records] == [(1, 3, 2), (2, 1)]
    (demonstration,) = read_demonstrations(tmp_path / "out" / "demonstrations.jsonl").records
    assert demonstration.completion == "c"
    assert (done["best"], done["score"], done["demonstrations"]) == (2.0, (2.0 + 1.5) / 2, 1)
    assert done["dropped"] == {"prompt without a demonstration, as all its completions were cut off": 1}


def test_what_cannot_be_compared_is_dropped_and_counted(tmp_path: Path, reward_folder: str) -> None:
    long = "red " * 200  # longer than the context of 128 tokens
    done = chosen(
        tmp_path,
        reward_folder,
        [
            {"prompt": asked(0), "completions": ["red", " ", "red", "blue", long]},
            {"prompt": asked(1), "completions": ["red"]},
            {"prompt": asked(2), "completions": ["red", "red"]},
            {"prompt": asked(3), "completions": []},
            {"prompt": asked(4), "completions": ["blue", long]},
        ],
    )
    assert done["dropped"] == {
        "empty completion": 1, "duplicate completions merged": 2, "completion too long for the reward model": 2,
        "fewer than two completions": 4,
    }  # fmt: skip
    (ranking,) = read_rankings(tmp_path / "out" / "rankings.jsonl").records
    assert [c.text for c in ranking.completions] == ["red", "blue"]
    assert (done["prompts"], done["completions"]) == (1, 2)


def test_what_fills_the_context_still_fits(tmp_path: Path, reward_folder: str) -> None:
    reward, prompt = RewardModel(reward_folder), Prompt(id="p", text="the cat")

    def length(text: str) -> int:
        return len(reward.encode([prompt], [text], [True])[0])

    texts = [" a" * n for n in range(100, 130)]
    (full,) = (text for text in texts if length(text) == reward.context)
    (long,) = (text for text in texts if length(text) == reward.context + 1)
    done = chosen(tmp_path, reward_folder, [{"prompt": "the cat", "completions": [" b", full, long]}])
    (ranking,) = read_rankings(tmp_path / "out" / "rankings.jsonl").records
    assert [c.text for c in ranking.completions] == [" b", full]
    assert done["dropped"] == {"completion too long for the reward model": 1}


def test_nothing_to_choose_from_is_an_error(tmp_path: Path, reward_folder: str) -> None:
    with pytest.raises(ValueError, match=r"candidates.jsonl: none of 1 prompts has two distinct completions .*--k"):
        chosen(tmp_path, reward_folder, [{"prompt": asked(0), "completions": ["red"]}])
    with pytest.raises(ValueError, match=r"candidates.jsonl: none of 2 prompts has two distinct completions"):
        chosen(tmp_path, reward_folder, [{"prompt": asked(i), "completions": [" "] * i} for i in range(2)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": "red"}, r"row 2: completions is 'red'; expected a list of strings or of \{text"),
        ({"completions": ["a", {"txt": "b"}]}, r"row 2: text: Field required, found \{'txt': 'b'\}"),
        ({"completions": ["a", "b"], "sampled": 1}, r"row 2: sampled is 1; expected how many .* of which 2 are here"),
        ({"completions": ["a", "b"], "sampled": "8"}, r"row 2: sampled is '8'; expected how many"),
        ({"completions": ["a", "b"], "sampled": True}, r"row 2: sampled is True; expected how many"),
        ({"completion": "a"}, r"candidates.jsonl:2: no field 'completions'"),
    ],
)
def test_a_row_that_is_no_candidates_is_named(
    row: dict[str, Any], message: str, tmp_path: Path, reward_folder: str
) -> None:
    rows = [{"prompt": asked(0), "completions": ["red", "blue"]}, {"prompt": asked(1), **row}]
    with pytest.raises(ValueError, match=message):
        chosen(tmp_path, reward_folder, rows)
    with pytest.raises(DataError, match="no such file"):
        read_samples(tmp_path / "nope.jsonl")


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_named(
    broken: float, tmp_path: Path, reward_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring(monkeypatch, [1.0, broken])
    with pytest.raises(ValueError, match=rf"reward_model .*: a completion of prompt 'p7' scores {broken}; train"):
        chosen(tmp_path, reward_folder, [{"prompt": asked(0), "id": "p7", "completions": ["red", "blue"]}])


def test_a_run_that_was_interrupted_scores_no_prompt_twice(
    tmp_path: Path, reward_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "PART", 2)
    rows = [{"prompt": asked(i), "completions": [f"{a} {i}" for a in COLOURS]} for i in range(5)]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    chosen(tmp_path / "whole", reward_folder, rows)
    real, calls = select.scores_of, []

    def until(last: int) -> Callable[..., list[list[float]]]:
        def scores(*arguments: Any) -> list[list[float]]:
            if len(calls) == last:
                raise KeyboardInterrupt
            calls.append(len(arguments[1]))
            return real(*arguments)

        return scores

    monkeypatch.setattr(select, "scores_of", until(2))
    with pytest.raises(KeyboardInterrupt):
        chosen(tmp_path / "cut", reward_folder, rows)
    monkeypatch.setattr(select, "scores_of", until(9))
    chosen(tmp_path / "cut", reward_folder, rows)
    assert calls == [2, 2, 1]
    for name in ("demonstrations.jsonl", "rankings.jsonl"):
        assert (tmp_path / "cut/out" / name).read_bytes() == (tmp_path / "whole/out" / name).read_bytes()
    logged = [json.loads(line) for line in (tmp_path / "cut/out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [0, 1, 2]
    assert sum(row["select/score"] * n for row, n in zip(logged, calls, strict=True)) / 5 == pytest.approx(
        json.loads((tmp_path / "cut/out/done.json").read_text())["score"]
    )


def test_a_dry_run_says_what_would_be_scored_and_writes_nothing(
    tmp_path: Path, reward_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": asked(0), "completions": ["red", "blue", "blue"]}]
    with pytest.raises(DryRun):
        chosen(tmp_path, reward_folder, rows, dry_run=True)
    plan = capsys.readouterr().err
    assert "select: 1 prompts, 2 completions to score" in plan
    assert "rows dropped or changed: 1 duplicate completions merged" in plan
    assert not (tmp_path / "out").exists()


def test_sft_and_dpo_learn_from_what_was_selected(
    tmp_path: Path, reward_folder: str, folders: Callable[[str], Path]
) -> None:
    rows = [{"prompt": asked(i), "completions": [f"{a} sky" for a in COLOURS]} for i in range(12)]
    chosen(tmp_path, reward_folder, rows)
    policy, small = str(folders("llama")), {"batch_size": 4, "optimizer": {"learning_rate": 3e-3}}
    demonstrations, rankings = (str(tmp_path / "out" / f"{name}.jsonl") for name in ("demonstrations", "rankings"))
    sft.run(SftConfig(output=tmp_path / "sft", model=policy, demonstrations=demonstrations, epochs=6, **small))
    losses = [epoch["valid_loss"] for epoch in json.loads((tmp_path / "sft/done.json").read_text())["history"]]
    assert losses[-1] < losses[0]
    dpo.run(DpoConfig(output=tmp_path / "dpo", model=policy, rankings=rankings, epochs=4, **small))
    assert json.loads((tmp_path / "dpo/done.json").read_text())["valid"]["accuracy"] > 0.6


def test_candidates_say_how_many_were_sampled(tmp_path: Path) -> None:
    pairs = [(Prompt(id=str(i), text="p"), (Completion(text="a"), Completion(text="b"))) for i in range(2)]
    write_candidates(tmp_path / "new.jsonl", pairs, [8, 3])
    write_candidates(tmp_path / "old.jsonl", pairs)
    assert read_candidates(tmp_path / "new.jsonl") == read_candidates(tmp_path / "old.jsonl") == pairs
    assert [each.sampled for each in read_samples(tmp_path / "new.jsonl")] == [8, 3]
    assert [each.sampled for each in read_samples(tmp_path / "old.jsonl")] == [2, 2]
