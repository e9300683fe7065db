"""Answers, tax and win rates: against transformers' own numbers and by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from conftest import SENTENCES, tiny_model
from tutelage.data.datasets import write_jsonl
from tutelage.data.records import Completion, Prompt
from tutelage.data.sources import DataError
from tutelage.evaluation import answer, preference
from tutelage.evaluation.compare import compare
from tutelage.evaluation.scoring import readings
from tutelage.evaluation.tax import document_losses
from tutelage.models import precision
from tutelage.models.forward import completion_logprobs
from tutelage.models.loading import new_scalar, save_model
from tutelage.models.precision import full_precision
from tutelage.rewards.reward_model import RewardModel
from tutelage.sampling.completions import Answer, Writer
from tutelage.settings.evaluation import AnswerConfig, EvaluateConfig
from tutelage.settings.sampler import LocalSampling
from tutelage.stages.pretrain import train_tokenizer
from tutelage.stats.intervals import estimate, standard_error, wilson


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return tiny(request.param).eval()


@pytest.fixture
def in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with bf16 units."""
    monkeypatch.setattr(precision, "trains_in_bf16", lambda model: True)


def their_losses(model: PreTrainedModel, documents: list[list[int]]) -> list[float]:
    """Sums of next-token losses by transformers' own forward pass in fp32, a document at a time."""
    with torch.inference_mode():
        return [
            float(model(input_ids=(ids := torch.tensor([d])), labels=ids).loss) * (len(d) - 1) for d in documents
        ]  # fmt: skip


def test_the_tax_is_transformers_loss_in_fp32(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, in_bf16: None
) -> None:
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in SENTENCES]
    expected = their_losses(model, documents)
    found = document_losses(model, tokenizer, SENTENCES)
    assert [count for _, count in found] == [len(d) - 1 for d in documents]
    assert [nats for nats, _ in found] == pytest.approx(expected, rel=1e-5)
    rounded = -completion_logprobs(model, documents, [1] * len(documents)).sum(1)  # what it would be in bf16
    assert rounded.tolist() != pytest.approx(expected, rel=1e-5)


def test_full_precision_ends_where_it_ends(model: PreTrainedModel, in_bf16: None) -> None:
    def casts() -> bool:
        with precision.autocast(model):
            return torch.is_autocast_enabled(model.device.type)

    def fail() -> None:
        with full_precision():
            with full_precision():
                pass
            assert not casts()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert casts()


def test_kl_is_of_fp32_and_its_error_of_prompts(tiny: Callable[[str], PreTrainedModel], in_bf16: None) -> None:
    policy, reference = tiny("llama").eval(), tiny("gpt2").eval()
    sequences = [(5, 6, 7, 8), (5, 6, 9, 4), (9, 8, 7, 6)]
    gaps = []
    for ids in sequences:
        with torch.inference_mode():
            ours, theirs = (m(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0] for m in (policy, reference))
        gaps.append(sum(float(ours[t - 1, ids[t]] - theirs[t - 1, ids[t]]) for t in (2, 3)))
    answers = [
        Answer(Prompt(id=str(i), text=text), Completion(text="x"), ids[:2], ids[2:])
        for i, (text, ids) in enumerate(zip("aab", sequences, strict=True))
    ]
    mean, error = answer.kl_to(reference, policy, answers)
    assert mean == pytest.approx(sum(gaps) / 3, rel=1e-4)
    assert error == pytest.approx(standard_error(gaps, "aab"), rel=1e-4)
    alone = answer.kl_to(reference, policy, answers[:2])
    assert alone == (pytest.approx(sum(gaps[:2]) / 2, rel=1e-4), None)


def test_models_of_other_tokens_are_not_compared(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """KL and losses per token of two models say nothing where the models read other tokens, or another template."""
    other = train_tokenizer(SENTENCES, 300)
    save_model(tiny_model("llama", len(other)), other, tmp_path / "other")
    turned = copy.deepcopy(tokenizer)
    turned.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_model(tiny_model("llama", len(turned)), turned, tmp_path / "turned")
    write_jsonl(tmp_path / "chat.jsonl", [{"prompt": [{"role": "user", "content": "a b"}]}])
    write_jsonl(tmp_path / "plain.jsonl", [{"prompt": "a b"}])
    write_jsonl(tmp_path / "texts.jsonl", ["the cat sat"])

    def answered(b: Path, prompts: str = "plain", **more: Any) -> None:
        models = {"a": str(folders("llama")), "b": str(b)}
        values = {"models": models, "prompts": str(tmp_path / f"{prompts}.jsonl"), "sampler": {"max_new_tokens": 4}}
        answer.run(AnswerConfig(output=tmp_path / "run", overwrite=True, **(values | more)))

    with pytest.raises(ValueError, match=r"reference: the tokenizers of 'b' and 'a' differ \(300 and 320 tokens\)"):
        answered(tmp_path / "other", reference="a")
    with pytest.raises(ValueError, match=r"texts: the tokenizers of 'b' and 'a' differ .* cannot be compared"):
        answered(tmp_path / "other", texts=str(tmp_path / "texts.jsonl"))
    with pytest.raises(ValueError, match="the chat templates of 'b' and 'a' differ"):
        answered(tmp_path / "turned", "chat", reference="a")
    answered(tmp_path / "turned", reference="a", texts=str(tmp_path / "texts.jsonl"))  # strings go through no template
    answered(tmp_path / "other")


@pytest.mark.parametrize(
    ("label", "more"),
    [
        ("a", {"prompted": {"a": "b"}, "examples": "d.jsonl"}),
        ("a_greedy", {"models": {"a": "1", "a_greedy": "2"}, "greedy": ["a"]}),
        ("a_greedy", {"greedy": ["a", "a"]}),
        ("best_of_4", {"models": {"a": "1", "best_of_4": "2"}, "best_of": "a", "best_of_n": 4, "reward_model": "r"}),
    ],
)
def test_no_two_rows_of_answers_have_one_name(tmp_path: Path, label: str, more: dict[str, Any]) -> None:
    values = {"models": {"a": "1", "b": "2"}, "prompts": "p.jsonl"} | more
    with pytest.raises(ValueError, match=f"two rows of answers would be called '{label}'"):
        answer.run(AnswerConfig(output=tmp_path / "run", **values))


def test_a_prompt_that_comes_twice_is_answered_twice(
    folders: Callable[[str], Path], reward_folder: str, tmp_path: Path
) -> None:
    """And the best of n draws from neither of the two answers' seeds."""
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a b c"}, {"prompt": "c d"}, {"prompt": "a b c"}])
    seen: list[tuple[str, int]] = []
    real = answer.complete

    def spy(writer: Any, prompts: list[Prompt], seed: int, sampling: Any, copies: list[int]) -> Any:
        seen.extend((p.id, k) for p, k in zip(prompts, copies, strict=True))
        return real(writer, prompts, seed, sampling, copies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "complete", spy)
        config = AnswerConfig(
            models={"a": str(folders("llama"))}, prompts=str(tmp_path / "p.jsonl"), output=tmp_path / "run",
            sampler={"max_new_tokens": 8}, best_of="a", best_of_n=2, reward_model=reward_folder,
        )  # fmt: skip
        answer.run(config)
    assert len(set(seen)) == len(seen) == 3 + 3 * 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert len({row["answers"]["a"] for row in rows}) == 3


def test_compare_counts_a_prompt_that_comes_twice_once(
    folders: Callable[[str], Path], reward_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a b c"}] * 3 + [{"prompt": "c d"}])
    models = [str(folders("llama")), str(folders("gpt2"))]
    compare(models, str(tmp_path / "p.jsonl"), reward_folder, 10, LocalSampling(max_new_tokens=4), 0)
    said = " ".join(capsys.readouterr().out.split())
    assert "n = 2 prompts" in said
    assert "[0.00, 0.00]" not in said
    assert "[1.00, 1.00]" not in said


@pytest.fixture(scope="module")
def reward_folder(
    folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, folder)
    return str(folder)


def test_texts_are_read_before_answers_are_sampled(folders: Callable[[str], Path], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a b c"}])
    write_jsonl(tmp_path / "t.jsonl", [{"words": "the cat"}])
    config = AnswerConfig(
        models={"a": str(folders("gpt2"))}, prompts=str(tmp_path / "p.jsonl"), output=tmp_path / "run",
        texts=str(tmp_path / "t.jsonl"), dry_run=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"t\.jsonl"):
        answer.run(config)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_stay_within_the_reward_models_context(
    folders: Callable[[str], Path],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    save_model(tiny_model(kind, len(tokenizer), context=24), tokenizer, tmp_path / "short")
    save_model(new_scalar(tmp_path / "short", tokenizer, seed=1), tokenizer, tmp_path / "reward")
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a b c"}, {"prompt": "moon " * 12}, {"prompt": ""}])
    write_jsonl(tmp_path / "t.jsonl", ["the cat", " "])
    write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}])
    config = AnswerConfig(
        models={"a": str(folders("gpt2"))}, prompts=str(tmp_path / "p.jsonl"), output=tmp_path / "run",
        sampler={"max_new_tokens": 12}, reward_model=str(tmp_path / "reward"), texts=str(tmp_path / "t.jsonl"),
        examples=str(tmp_path / "d.jsonl"),
    )  # fmt: skip
    answer.run(config)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert done["prompts"] == 1
    assert done["dropped"] == {
        "empty prompt": 1, "too long for the reward model": 1, "empty completion in examples": 1,
        "empty text in texts": 1,
    }  # fmt: skip
    capsys.readouterr()
    models = [str(folders("llama")), str(folders("gpt2"))]
    compare(models, str(tmp_path / "p.jsonl"), str(tmp_path / "reward"), 10, LocalSampling(max_new_tokens=12), 0)
    assert "prompts left out: 1 empty prompt; 1 too long" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="no prompt leaves room for 30 tokens"):
        compare(models, str(tmp_path / "p.jsonl"), str(tmp_path / "reward"), 10, LocalSampling(max_new_tokens=30), 0)
    long = Answer(Prompt(id="p", text="a"), Completion(text="b"), (1,) * 12, (1,) * 13)
    reward, writer = RewardModel(str(tmp_path / "reward")), Writer("a", tiny_model(kind, len(tokenizer)), tokenizer)
    with pytest.raises(ValueError, match="an answer and its prompt are 25 of its tokens, more than its context of 24"):
        readings(reward, writer, [long])


def judged(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    write_jsonl(tmp_path / "j.jsonl", [{"baseline": "sft", "use_case": None, **row} for row in rows])
    preference.run(EvaluateConfig(judgments=str(tmp_path / "j.jsonl"), output=tmp_path / "out"))
    return json.loads((tmp_path / "out" / "done.json").read_text())


def test_win_rates_are_over_prompts(tmp_path: Path) -> None:
    """Forty prompts, each judged five times in rows of its own, all five alike."""
    won = [float(i % 3 > 0) for i in range(40)]
    rows = [
        {"id": str(i), "models": {"sft": {"wins": 0.5}, "ppo": {"wins": w}}}
        for _ in range(5)
        for i, w in enumerate(won)
    ]
    found = judged(tmp_path, rows)
    once = estimate(won)
    assert found["win_rate"]["ppo"] == once | {"n": 200, "prompts": 40, "mean": pytest.approx(once["mean"])}
    assert found["win_rate"]["sft"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 200, "prompts": 40}  # by definition
    assert found["baseline"] == "sft"


def test_few_prompts_get_wilsons_interval(tmp_path: Path) -> None:
    models = {"sft_greedy": {"wins": 0.0}, "ppo": {"wins": 1.0, "toxicity": 0.0}, "ppo_greedy": {"wins": 1.0}}
    found = judged(tmp_path, [{"id": str(i), "models": models} for i in range(8)])
    for rate, value in ((found["win_rate"]["ppo"], 1.0), (found["toxicity"]["ppo"], 0.0)):
        assert [rate["low"], rate["high"]] == pytest.approx(wilson(value, 8))
    gain = found["greedy_gain"]["ppo_greedy"]["labelers"]
    assert (gain["mean"], gain["high"]) == (1.0, 1.0)
    assert gain["low"] == pytest.approx(wilson(1.0, 8, (-1, 1))[0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"models": {"ppo": {"wins": 7}}}, r"models\.ppo\.wins\.labelers: .*less than or equal to 1, found 7"),
        ({"models": {"ppo": {"wins": -0.1}}}, r"models\.ppo\.wins\.labelers: .*greater than or equal to 0"),
        ({"models": {"ppo": {"wins": float("nan")}}}, r"models\.ppo\.wins\.labelers: Input should be a finite number"),
        ({"models": {"ppo": {"toxicity": "1"}}}, r"models\.ppo\.toxicity: Input should be a valid number, found '1'"),
        ({"models": ["ppo"]}, "models: Input should be a valid dictionary"),
        ({"models": {"ppo": 1.0}}, r"models\.ppo: Input should be .*found 1\.0"),
        ({"id": [0]}, r"id: Input should be a valid string, found \[0\]"),
        ({"baseline": "other"}, "baseline is 'other', and 'sft' before; .* a file of its own"),
    ],
)
def test_a_malformed_judgment_is_named_by_its_row(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    row = {"id": "a", "baseline": "sft", "use_case": None, "models": {"ppo": {"wins": 1.0}}}
    file = tmp_path / "j.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in (row, row | wrong)))
    with pytest.raises(DataError, match=rf"j\.jsonl:2: {said}"):
        preference.run(EvaluateConfig(judgments=str(file), output=tmp_path / "out"))


def test_what_nobody_judged_counts_for_nothing(tmp_path: Path) -> None:
    unjudged = {"ppo": {"wins": None}, "ppo_greedy": {"wins": None}, "sft_greedy": {"wins": 1.0, "parts": None}}
    rows: list[dict[str, Any]] = [{"id": i, "models": unjudged, "use_case": "qa"} for i in range(3)]
    rows += [{"models": {"ppo": {"wins": True, "parts": {"x": 1.0}}}, "use_case": 1}]
    rows += [{"id": None, "models": {"ppo": {"wins": 0, "parts": {"y": 0.5}}}}]
    found = judged(tmp_path, rows)
    assert found["greedy_gain"] == {}
    assert {key: found["win_rate"]["ppo"][key] for key in ("mean", "n", "prompts")} == {
        "mean": 0.5, "n": 2, "prompts": 2
    }  # fmt: skip
    assert found["parts"]["ppo"] == {"x": 1.0, "y": 0.5}
    assert set(found["win_rate_by_use_case"]) == {"qa", "1"}


def test_every_judge_has_win_rates_of_its_own(tmp_path: Path) -> None:
    """A number alone is of the judge `labelers`."""
    rows = [
        {"models": {"ppo": {"wins": {"people": 1.0, "a model": 0.0}}}},
        {"models": {"ppo": {"wins": {"people": 1.0}}, "sft": {"wins": {"a model": 0.5}}}},
        {"models": {"ppo": {"wins": 0.5}}},
    ]
    found = judged(tmp_path, [{"id": str(i), **row} for i, row in enumerate(rows)])
    assert found["judges"] == ["labelers", "people", "a model"]
    means = {key: found[key]["ppo"]["mean"] for key in ("win_rate", "people_win_rate", "a model_win_rate")}
    assert means == {"win_rate": 0.5, "people_win_rate": 1.0, "a model_win_rate": 0.0}
    assert found["a model_win_rate"]["sft"]["mean"] == 0.5  # against itself


def test_labelers_count_wherever_they_stand_in_the_file(tmp_path: Path) -> None:
    """A judge who has not judged an answer is no judge of it."""
    rows = [{"wins": {"gold": 1.0, "labelers": None}}, {"wins": {"gold": 1.0, "labelers": 0.0}}]
    found = judged(tmp_path, [{"id": str(i), "models": {"ppo": row}} for i, row in enumerate(rows)])
    assert found["judges"] == ["labelers", "gold"]
    assert (found["win_rate"]["ppo"]["mean"], found["win_rate"]["ppo"]["n"]) == (0.0, 1)


def test_judgments_of_one_text_are_of_one_prompt(tmp_path: Path) -> None:
    asked = [("1", "a"), ("2", "a"), ("2", "b"), ("2", [{"role": "user", "content": "a"}])]
    found = judged(tmp_path, [{"id": i, "prompt": text, "models": {"ppo": {"wins": 1.0}}} for i, text in asked])
    assert (found["win_rate"]["ppo"]["n"], found["win_rate"]["ppo"]["prompts"]) == (4, 3)
