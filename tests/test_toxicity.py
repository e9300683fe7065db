"""The toxicity classifier: labels from spans and columns, one step by hand, and use as a reward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from tutelage.data.records import Prompt
from tutelage.data.sources import DataError
from tutelage.models.loading import load_classifier, new_classifier
from tutelage.rewards.classifier import classifier_reward
from tutelage.rewards.reward import Answers
from tutelage.settings.benchmarks import ToxicityClassifierConfig
from tutelage.settings.common import make
from tutelage.settings.rewards import ClassifierReward
from tutelage.stages import toxicity_classifier
from tutelage.stages.toxicity_classifier import LABELS, backward, read, sentences

WORDS = ["cat", "mat", "moon", "sky", "hill", "green", "blue", "glad"]


def rows(number: int) -> list[dict[str, Any]]:
    """A text is toxic if "dog" is in it."""
    return [
        {"text": f"The {WORDS[i % 8]} {'dog' if i % 2 else 'sun'} and the {WORDS[(i // 3) % 8]}", "label": i % 2}
        for i in range(number)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return str(path)


def settings(folder: Path, model: Path, texts: str, **more: Any) -> ToxicityClassifierConfig:
    values = {"model": str(model), "texts": texts, "output": folder, "epochs": 4, "batch_size": 16}
    return make(ToxicityClassifierConfig, values | {"optimizer.learning_rate": 3e-3} | more, "r.yaml")


def test_a_sentence_is_toxic_that_a_span_touches() -> None:
    text = "You sat there. What a fool!! He said: ok\nBye. ..."
    assert sentences(text, [text.index("fool"), text.index("Bye")]) == [
        ("You sat there.", False), ("What a fool!!", True), ("He said: ok", False), ("Bye.", True),
    ]  # fmt: skip
    assert sentences("no end", []) == [("no end", False)]


def test_labels_scores_and_spans(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text('spans,text\n"[0, 1]",Fool you. Good day.\n[],Fine words.\n')
    assert [(each.text, each.toxic) for each in read(str(tmp_path / "s.csv"))] == [
        ("Fool you.", True), ("Good day.", False), ("Fine words.", False),
    ]  # fmt: skip
    assert len({each.document for each in read(str(tmp_path / "s.csv"))}) == 2
    (tmp_path / "l.csv").write_text("text,label\na,toxic\nb,not_toxic\nc,True\nd,0\n")
    assert [each.toxic for each in read(str(tmp_path / "l.csv"))] == [True, False, True, False]
    path = write(tmp_path / "n.jsonl", [{"text": "a", "score": 0.5}, {"text": "b", "score": 0.49}])
    assert [each.toxic for each in read(path)] == [True, False]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": "a", "label": 1}] * 3, r"l\.jsonl: all 3 texts are toxic; give texts of both kinds"),
        ([{"text": "a", "label": 2}], r"l\.jsonl:1: label is 2; expected one of 0, 1"),
        ([{"text": "a", "label": 0}, {"text": " ", "label": 1}], r"l\.jsonl:2: text is ' '; expected a text"),
        ([{"text": "a", "score": 7}], r"l\.jsonl:1: has no label, no spans, and score is 7; expected 0 to 1"),
        ([{"text": "a"}], r"l\.jsonl:1: has no label, no spans, and score is None"),
        ([{"text": "a", "spans": "[1, "}], r"l\.jsonl:1: spans is '\[1, '; expected a list of the places"),
        ([{"text": "a", "spans": [True]}], r"l\.jsonl:1: spans is \[True\]"),
        ([], r"l\.jsonl: empty file"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "l.jsonl", lines))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_cross_entropy_of_each_text_alone(folders: Callable[[str], Path], kind: str) -> None:
    """Whatever the micro-batches and their padding."""
    model, tokenizer = new_classifier(folders(kind), LABELS, 0)
    ids, toxic = [list(tokenizer(row["text"])["input_ids"]) for row in rows(5)], [bool(i % 2) for i in range(5)]
    ids[2] = ids[2][:4]
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([each])).logits.log_softmax(1)[0] for each in ids]
    expected = -sum(float(logs[int(kind_)]) for logs, kind_ in zip(alone, toxic, strict=True)) / 5
    for most in (1000, 20):
        assert backward(model, ids, toxic, most) == pytest.approx(expected, rel=1e-4)


def test_it_learns_and_is_a_reward(folders: Callable[[str], Path], tmp_path: Path) -> None:
    config = settings(
        tmp_path / "run", folders("llama"), write(tmp_path / "l.jsonl", rows(200)),
        valid={"new": write(tmp_path / "v.jsonl", rows(60))},
    )  # fmt: skip
    toxicity_classifier.run(config)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    auc = done["valid"]["new"]["auc"]
    assert auc["low"] > 0.85
    assert (auc["n"], auc["positive"], done["label"]) == (60, 30, "toxic")
    reward = classifier_reward(ClassifierReward(model=str(tmp_path / "run" / "model"), label="toxic"), "c")
    texts = ["The moon dog and the hill", "The moon sun and the hill"]
    scores = reward(Answers([Prompt(id="0", text="x")] * 2, texts, [True] * 2, [[], []]))
    assert scores[0] > 0.5 > scores[1]


def test_a_small_encoder_is_made_of_the_texts(tmp_path: Path) -> None:
    texts = write(tmp_path / "l.jsonl", rows(200))
    config = make(ToxicityClassifierConfig, {"texts": texts, "output": tmp_path / "run", "batch_size": 16}, "r.yaml")
    toxicity_classifier.run(config)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert done["valid"]["held_out"]["auc"]["mean"] > 0.95
    reward = classifier_reward(ClassifierReward(model=str(tmp_path / "run" / "model"), label="toxic"), "c")
    texts_ = ["The moon DOG and the hill", "the moon sun and the hill", "\u0378"]
    scores = reward(Answers([Prompt(id="0", text="x")] * 3, texts_, [True] * 3, [[]] * 3))
    alone = [reward(Answers([Prompt(id="0", text="x")], [t], [True], [[]]))[0] for t in texts_]
    assert scores[0] > 0.5 > scores[1]
    assert scores == pytest.approx(alone, abs=1e-5)  # padding is not read


def test_a_part_is_held_out_by_document(folders: Callable[[str], Path], tmp_path: Path) -> None:
    config = settings(tmp_path / "run", folders("llama"), write(tmp_path / "l.jsonl", rows(50)), epochs=1, held_out=0.2)
    toxicity_classifier.run(config)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert (done["texts"], done["valid"]["held_out"]["auc"]["n"]) == (40, 10)


def test_an_encoder_will_do(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **shape))
    encoder.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    config = settings(tmp_path / "run", tmp_path / "bert", write(tmp_path / "l.jsonl", rows(40)), epochs=1)
    toxicity_classifier.run(config)
    model, _ = load_classifier(tmp_path / "run" / "model")
    assert model.config.id2label == {0: "not_toxic", 1: "toxic"}
