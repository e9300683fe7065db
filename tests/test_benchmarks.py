"""Public benchmarks: asked as transformers answers, scored by hand, resumed, and refused where files are broken."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from conftest import SENTENCES, tiny_model
from tutelage.cli import main
from tutelage.data.sources import DataError
from tutelage.evaluation.benchmarks import crows_pairs, lambada, reading, stage, toxicity, truthfulqa, winogender
from tutelage.evaluation.benchmarks.asking import ask, encode_group, fits
from tutelage.evaluation.benchmarks.classified import classify
from tutelage.evaluation.benchmarks.ifeval import read as read_ifeval
from tutelage.evaluation.benchmarks.protocol import Continuations, Generation, Item, Measure, Scores
from tutelage.evaluation.benchmarks.results import results_of, verdict
from tutelage.models.loading import save_model
from tutelage.sampling.completions import Writer
from tutelage.settings.benchmarks import BenchmarkConfig
from tutelage.settings.common import make
from tutelage.stages.pretrain import train_tokenizer

CONFIG = BenchmarkConfig(models={"a": "m"}, tasks={"lambada": "f"}, output=Path("o"))
TRUTHFUL = """Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source
Adversarial,Fiction,What is blue?,The sky,The sky; The sea.,The moon; A dog;,s
Other,Law,Who ran?,"A dog, of course",A dog,The hill,s
"""
CROWS = """,sent_more,sent_less,stereo_antistereo,bias_type,annotations
0,The cat sat on the mat.,The dog sat on the mat.,stereo,animal,[]
1,A dog ran.,A cat ran.,antistereo,speed,[]
2,The moon is glad.,The moon is blue.,stereo,speed,[]
"""
NUMBERS = itertools.count()  # of modules, which are imported once a process
PASSAGES = [
    "The cat sat on the mat and looked at the moon", "A dog ran over the hill; the hill was green",
    "Name a colour of the sky: the sky is blue",
]  # fmt: skip


@pytest.fixture
def writer(tiny: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Callable[[str], Writer]:
    return lambda kind: Writer(kind, tiny(kind).eval(), tokenizer)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Small files in the published layouts."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "t.csv").write_text(TRUTHFUL)
    (folder / "c.csv").write_text(CROWS)
    lines = ["sentid\tsentence"]
    for schema in ("cook.guest.1", "cook.guest.0", "maid.guest.1"):
        for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they")):
            lines.append(f'{schema}.{gender}.txt\tThe "{schema}" sat where {pronoun} ran.')
    (folder / "w.tsv").write_text("\n".join(lines) + "\n")
    squad = {"data": [{
        "title": f"T_{i}",
        "paragraphs": [{"context": text, "qas": [
            {"id": f"{i}a", "question": "Who?", "answers": [{"text": "the cat", "answer_start": 0}]},
            {"id": f"{i}b", "question": "Why?", "answers": [], "is_impossible": True},
        ]}],
    } for i, text in enumerate(PASSAGES)]}  # fmt: skip
    (folder / "s.json").write_text(json.dumps(squad))
    nothing = {"number": "", "spans": [], "date": {"day": "", "month": "", "year": ""}}
    drop = {f"p{i}": {"passage": text, "qa_pairs": [{
        "question": "How many?", "query_id": f"q{i}", "answer": nothing | {"number": "2"},
        "validated_answers": [nothing | {"spans": ["red", "blue"]}, nothing],
    }]} for i, text in enumerate(PASSAGES)}  # fmt: skip
    (folder / "d.json").write_text(json.dumps(drop))
    rtp = [{"prompt": {"text": text, "toxicity": 0.1}, "challenging": bool(i)} for i, text in enumerate(PASSAGES)]
    ifeval = {
        "key": 7, "prompt": "Write without a comma.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 900, "num_sentences": None}],
    }  # fmt: skip
    return {
        "truthfulqa": str(folder / "t.csv"), "crows_pairs": str(folder / "c.csv"), "winogender": str(folder / "w.tsv"),
        "lambada": write(folder / "l.jsonl", [{"text": text} for text in PASSAGES]),
        "squad_v2": str(folder / "s.json"), "drop": str(folder / "d.json"),
        "realtoxicityprompts": write(folder / "r.jsonl", rtp), "ifeval": write(folder / "i.jsonl", [ifeval]),
    }  # fmt: skip


def theirs(model: PreTrainedModel, ids: list[int], start: int) -> tuple[float, bool]:
    """Log-probability of ids from `start` on, and whether each is the likeliest, by transformers' own forward pass."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    chosen = range(start, len(ids))
    return sum(float(logits[t - 1, ids[t]]) for t in chosen), all(int(logits[t - 1].argmax()) == ids[t] for t in chosen)


# --- asking ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_probabilities_are_transformers(kind: str, writer: Callable[[str], Writer]) -> None:
    w = writer(kind)
    texts = (" looked at the moon.", " ran over the hill.", " sat")
    items = [Item("0", (Continuations("The cat", texts),)), Item("1", (Continuations("", SENTENCES[:2]),))]
    answer = ask(w, "t", items, False, CONFIG)
    (after,), (alone,) = answer["responses"]
    head = w.tokenizer("The cat")["input_ids"]
    for text, value in zip(texts, after["logprobs"], strict=True):
        ids = w.tokenizer("The cat" + text)["input_ids"]
        assert ids[: len(head)] == head
        assert value == pytest.approx(theirs(w.policy, ids, len(head))[0], rel=1e-4)
    for text, value in zip(SENTENCES, alone["logprobs"], strict=False):  # after end-of-text, as there is no begin token
        ids = [w.tokenizer.eos_token_id, *w.tokenizer(text)["input_ids"]]
        assert value == pytest.approx(theirs(w.policy, ids, 1)[0], rel=1e-4)
    assert (answer["cut"], after["greedy"]) == (0, None)


def test_greedy_is_transformers(writer: Callable[[str], Writer]) -> None:
    w = writer("llama")
    head = w.tokenizer("The cat")["input_ids"]
    with torch.inference_mode():
        likeliest = int(w.policy(input_ids=torch.tensor([head])).logits[0, -1].argmax())
    text = w.tokenizer.decode([likeliest])
    other = w.tokenizer.decode([likeliest - 1])
    items = [
        Item(str(i), (Continuations("The cat", (t,), greedy=True),))
        for i, t in enumerate([text, other, text + " hill", " ran over"])
    ]
    answer = ask(w, "t", items, False, CONFIG)
    expected = [theirs(w.policy, [*head, *encode_group(w, item.asks[0]).texts[0]], len(head))[1] for item in items]
    assert [own[0]["greedy"] for own in answer["responses"]] == expected
    assert expected[1:] == [False, False, False]


def test_a_context_that_is_too_long_loses_its_beginning(
    writer: Callable[[str], Writer], stories: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    w = writer("llama")  # whose context is 128 tokens
    long = " ".join(f"{n} cats" for n in range(200))
    group = encode_group(w, Continuations(long, (" sat", " ran over the hill")))
    whole = w.tokenizer(long)["input_ids"]
    assert group.cut
    assert len(group.context) + max(map(len, group.texts)) == 128
    assert group.context == whole[-len(group.context) :]
    assert ask(w, "t", [Item("0", (Continuations(long, (" sat",)),))], False, CONFIG)["cut"] == 1
    assert encode_group(w, Continuations("a", (long,))) is None
    assert not fits(w, Item("0", (Continuations("a", (long,)),)), False)
    assert not fits(w, Item("0", (Generation(long),)), False)
    policy, tokenizer = stories
    cut = encode_group(Writer("s", policy, tokenizer), Continuations(long, (" sat",)))
    assert cut.cut
    assert cut.context[0] == tokenizer.bos_token_id  # the token that begins a text stays
    assert len(cut.context) + len(cut.texts[0]) == 512


def test_a_text_is_a_function_of_its_request(writer: Callable[[str], Writer]) -> None:
    w = writer("llama")
    items = [Item(str(i), (Generation("The cat", 8, samples=3, temperature=1.0, top_p=0.9),)) for i in range(2)]
    both = [own[0]["texts"] for own in ask(w, "t", items, False, CONFIG)["responses"]]
    assert len({*both[0], *both[1]}) > 3  # each sample has a seed of its own
    assert ask(w, "t", items[1:], False, CONFIG)["responses"][0][0]["texts"] == both[1]
    cut = Item("0", (Generation("The cat", 8, samples=3, temperature=1.0, top_p=0.9, stops=(both[0][0].strip()[2],)),))
    assert (
        ask(w, "t", [cut], False, CONFIG)["responses"][0][0]["texts"][0]
        == both[0][0].lstrip().split(both[0][0].strip()[2])[0].rstrip()
    )


def test_the_least_nucleus_is_the_likeliest_token(writer: Callable[[str], Writer]) -> None:
    w = writer("llama")
    asks = (Generation("The cat", 8, temperature=1.0, top_p=1e-6), Generation("The cat", 8))
    (texts,) = ask(w, "t", [Item("0", asks)], False, CONFIG)["responses"]
    assert texts[0] == texts[1]


def test_an_instruction_goes_through_the_template(writer: Callable[[str], Writer]) -> None:
    w = writer("llama")
    for asked, templated in ((Generation("Who?", 4, instruction=True), True), (Generation("Who?", 4), False)):
        plain, chat = (ask(w, "t", [Item("0", (asked,))], way, CONFIG)["responses"] for way in (False, True))
        assert (plain != chat) == templated


# --- readers and scores ---


def test_truthfulqa_as_its_authors_form_it(files: dict[str, str], tmp_path: Path) -> None:
    first, second = truthfulqa.read(files["truthfulqa"], CONFIG)
    asked = first.asks[0]
    assert asked.texts == (" The sky.", " The sea.", " The moon.", " A dog.")
    assert asked.context.endswith("Barcelona, Spain.\n\nQ: What is blue?\nA:")
    assert second.asks[0].texts == (" A dog, of course.", " A dog.", " The hill.")
    assert first.group == "Fiction"
    response = {"logprobs": [math.log(p) for p in (0.3, 0.1, 0.2, 0.2)]}
    assert truthfulqa.score(first, [response]) == {"mc1": 1.0, "mc2": pytest.approx(0.5)}
    path = tmp_path / "mc_task.json"
    row = {"question": "Who?", "mc1_targets": {"x": 0, "I": 1}, "mc2_targets": {"I": 1, "x": 0, "we": 1}}
    path.write_text(json.dumps([row]))
    (item,) = truthfulqa.read(str(path), CONFIG)
    assert [asked.texts for asked in item.asks] == [(" I", " x"), (" I", " we", " x")]
    ways = [{"logprobs": [-1.0, -2.0]}, {"logprobs": [math.log(p) for p in (0.1, 0.2, 0.7)]}]
    assert truthfulqa.score(item, ways) == {"mc1": 1.0, "mc2": pytest.approx(0.3)}
    path.write_text(json.dumps([row | {"mc2_targets": {"I": 1}}]))
    with pytest.raises(DataError, match=r"row 1: mc2_targets is no mapping of answers to 0 and 1, with both"):
        truthfulqa.read(str(path), CONFIG)


def test_pairs_and_pronouns(files: dict[str, str]) -> None:
    pairs = crows_pairs.read(files["crows_pairs"], CONFIG)
    assert [item.group for item in pairs] == ["animal", "speed", "speed"]
    quarter = [{"logprobs": [math.log(0.25), math.log(0.75)]}]
    assert crows_pairs.score(pairs[0], quarter) == {
        "stereotype": 0.0, "entropy": pytest.approx(0.811278, abs=1e-6), "difference": pytest.approx(math.log(3)),
    }  # fmt: skip
    assert crows_pairs.score(pairs[0], [{"logprobs": [-1.0, -1.0]}])["stereotype"] == 0.5
    schemas = winogender.read(files["winogender"], CONFIG)
    assert [item.unit for item in schemas] == ["cook", "cook", "maid"]
    assert schemas[0].asks[0].texts[1] == 'The "cook.guest.1" sat where she ran.'
    own = winogender.score(schemas[0], [{"logprobs": [math.log(p) for p in (0.2, 0.2, 0.6)]}])
    assert own == {"entropy": pytest.approx(1.0), "entropy_three": pytest.approx(1.370951, abs=1e-6), "male": 0.5}


def test_lambada_asks_for_the_last_word(files: dict[str, str]) -> None:
    item = lambada.read(files["lambada"], CONFIG)[0]
    assert item.asks == (Continuations("The cat sat on the mat and looked at the", (" moon",), greedy=True),)
    assert lambada.score(item, [{"logprobs": [-2.5], "greedy": True}]) == {"accuracy": 1.0, "nats": 2.5}


def test_passages_with_worked_examples(files: dict[str, str]) -> None:
    items = reading.read_squad(files["squad_v2"], CONFIG.model_copy(update={"shots": 2}))
    text = items[0].asks[0].text
    assert text.count("Background:") == 3
    assert all(item.asks[0].text.count(item.unit) == 1 for item in items)  # no example of the same passage
    assert text.endswith(f"Title: T 0\n\nBackground: {PASSAGES[0]}\n\nQ: Who?\n\nA:")
    assert [item.group for item in items[:2]] == ["answerable", "unanswerable"]
    for wrote, scores in (("The cat.", (1.0, 0.0)), ("Not in background.", (0.0, 1.0)), ("", (0.0, 1.0))):
        own = [reading.score_squad(item, [{"texts": [wrote]}])["exact_match"] for item in items[:2]]
        assert tuple(own) == scores
    with pytest.raises(DataError, match="shots=9: the file has too few other passages"):
        reading.read_squad(files["squad_v2"], CONFIG.model_copy(update={"shots": 9}))
    item = reading.read_drop(files["drop"], CONFIG)[0]
    assert item.expects == [["2"], ["red", "blue"]]
    assert reading.score_drop(item, [{"texts": [" 2.0"]}]) == {"exact_match": 1.0, "f1": 1.0}
    assert reading.score_drop(item, [{"texts": [" blue"]}]) == {"exact_match": 0.0, "f1": 0.5}


def test_toxicity_by_hand(files: dict[str, str]) -> None:
    item = toxicity.read(files["realtoxicityprompts"], CONFIG)[0]
    assert [asked.samples for asked in item.asks] == [25] * 3
    assert [asked.instruction for asked in item.asks] == [False, True, True]
    responses = [{"toxicity": [0.1, 0.7]}, {"toxicity": [0.2, None]}, {"toxicity": [None, None]}]
    assert toxicity.score(item, responses) == {
        "empty_plain": 0.0, "max_plain": 0.7, "any_plain": 1.0, "mean_plain": pytest.approx(0.4),
        "empty_respectful": 0.5, "max_respectful": 0.2, "any_respectful": 0.0, "mean_respectful": 0.2,
        "empty_biased": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("read", "name", "text", "message"),
    [
        (truthfulqa.read, "t.csv", TRUTHFUL[:-20], r"t\.csv:3: .* cells under 7 column names|t\.csv:3: not valid CSV"),
        (
            truthfulqa.read,
            "t.csv",
            "Question,Best Answer\na,b\n",
            r"t\.csv:2: Correct Answers is None; expected a text",
        ),
        (truthfulqa.read, "t.json", '[{"question": "a", "mc1', r"t\.json: not valid JSON: .*; is it cut short\?"),
        (crows_pairs.read, "c.csv", CROWS[:-30], r"c\.csv:4: 3 cells under 6 column names"),
        (winogender.read, "w.tsv", "sentid\tsentence\na.b.1.male.txt\tHe ran.\n", "a.b.1 lacks a sentence of male"),
        (
            winogender.read,
            "w.tsv",
            "sentid\tsentence\na.b.1.male.txt\n",
            r"w\.tsv:2: 1 cells under 2 .*; is it cut short",
        ),
        (
            winogender.read,
            "w.tsv",
            "sentid\tsentence\nnobody\tHe ran.\n",
            r"w\.tsv:2: sentid nobody: expected OCCUPATION",
        ),
        (winogender.read, "w.tsv", "", r"w\.tsv: empty file"),
        (lambada.read, "l.jsonl", '{"text": "a b"}\n{"text": "a', r"l\.jsonl:2: not valid JSON"),
        (lambada.read, "l.jsonl", '{"text": "one"}\n', r"l\.jsonl:1: text is a single word"),
        (reading.read_squad, "s.json", '{"data": [{"title"', r"s\.json: not valid JSON: .*; is it cut short\?"),
        (
            reading.read_squad,
            "s.json",
            '{"data": [{"title": "a"}]}',
            r"s\.json: not in SQuAD's layout: KeyError 'paragr",
        ),
        (reading.read_squad, "s.json", '{"data": []}', r"s\.json: holds no question"),
        (reading.read_drop, "d.json", "[]", r"d\.json: not in DROP's layout: AttributeError"),
        (toxicity.read, "r.jsonl", '{"prompt": "a"}\n', r"r\.jsonl:1: prompt\.text is None; expected a text"),
        (
            read_ifeval,
            "i.jsonl",
            '{"prompt": "a", "instruction_id_list": ["x"], "kwargs": []}\n',
            r"i\.jsonl:1: .*two lists",
        ),
        (
            read_ifeval,
            "i.jsonl",
            '{"prompt": "a", "instruction_id_list": ["x"], "kwargs": [{}]}\n',
            "no instruction 'x'",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, read: Any, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(str(tmp_path / name), CONFIG)


def test_a_gzip_file_that_is_cut_short(tmp_path: Path, files: dict[str, str]) -> None:
    path = tmp_path / "s.json.gz"
    path.write_bytes(gzip.compress(Path(files["squad_v2"]).read_bytes())[:-30])
    with pytest.raises(DataError, match=r"s\.json\.gz: cannot be read"):
        reading.read_squad(str(path), CONFIG)


# --- results ---


def test_differences_are_of_the_same_items() -> None:
    """Item 0 has the measure in one model only; the others differ by 1, 0 and 1."""
    items = [Item(str(i), (), group="ab"[i % 2]) for i in range(4)]
    one: list[Scores] = [{"x": 1.0}, {"x": 1.0}, {"x": 1.0}, {"x": 1.0}]
    two: list[Scores] = [{}, {"x": 0.0}, {"x": 1.0}, {"x": 0.0}]
    results = results_of({"x": Measure()}, items, {"base": two, "ppo": one}, "base")
    assert results["means"]["x"]["base"]["mean"] == pytest.approx(1 / 3)
    gap = results["differences"]["x"]["ppo"]
    assert (gap["mean"], gap["n"]) == (pytest.approx(2 / 3), 3)
    assert set(results["differences"]["x"]) == {"ppo"}
    assert results["groups"]["b"]["x"]["base"]["mean"] == 0
    assert verdict(Measure(), gap | {"low": 0.1}) == "better"
    assert verdict(Measure(better="lower"), gap | {"low": 0.1}) == "worse"
    assert verdict(Measure(), gap | {"low": -0.1}) == "not clear"


def test_a_ratio_is_of_sums_and_a_perplexity_of_its_mean() -> None:
    items = [Item("0", ()), Item("1", ())]
    rows: list[Scores] = [{"kept": (1.0, 1.0), "nats": 1.0}, {"kept": (0.0, 3.0), "nats": 3.0}]
    measures = {"kept": Measure(), "nats": Measure(scale=None, perplexity=True)}
    others: list[Scores] = [{"kept": (0.0, 1.0), "nats": 1.0}, {"kept": (3.0, 3.0), "nats": 3.0}]
    results = results_of(measures, items, {"m": rows, "o": others}, "m")
    means = results["means"]
    assert results["differences"]["kept"]["o"]["mean"] == (-1 + 3) / 4
    assert means["kept"]["m"]["mean"] == 0.25
    assert means["perplexity"]["m"]["mean"] == pytest.approx(math.exp(2))
    assert means["perplexity"]["m"]["high"] == pytest.approx(math.exp(means["nats"]["m"]["high"]))


def test_items_of_a_unit_are_one() -> None:
    items = [Item(str(i), (), unit=unit) for i, unit in enumerate(("cook", "cook", "maid"))]
    rows: list[Scores] = [{"x": 1.0}, {"x": 1.0}, {"x": 0.0}]
    own = results_of({"x": Measure()}, items, {"m": rows}, "m")["means"]["x"]["m"]
    assert (own["mean"], own["n"], own["prompts"]) == (pytest.approx(2 / 3), 3, 2)


# --- the stage ---


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A maker of classifier functions in a module of the working folder."""
    monkeypatch.chdir(tmp_path)

    def make_one(body: str) -> str:
        name = f"judge_of_toxicity_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(f"def rate(prompts, completions, **columns):\n    return {body}\n")
        return f"{name}:rate"

    return make_one


def config_of(folder: Path, models: dict[str, Path], tasks: dict[str, str], **more: Any) -> BenchmarkConfig:
    names = {name: str(path) for name, path in models.items()}
    values = {"models": names, "tasks": tasks, "output": folder, "sampler": {"max_new_tokens": 8}, "samples": 3}
    return make(BenchmarkConfig, values | more, "r.yaml")


def test_all_benchmarks_over_models_of_other_tokens(
    files: dict[str, str], folders: Callable[[str], Path], scorer: Callable[[str], str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = train_tokenizer(SENTENCES[:2], 290)
    save_model(tiny_model("gpt2", len(other), 600), other, tmp_path / "other")
    wide = tiny_model("llama", 320, 600)
    models = {"base": tmp_path / "wide", "same": tmp_path / "wide", "other": tmp_path / "other"}
    save_model(wide, train_tokenizer(SENTENCES, 320), models["base"])
    texts = write(tmp_path / "texts.jsonl", [{"text": text} for text in PASSAGES])
    tasks = files | {"truthfulqa_generation": files["truthfulqa"]}
    classifier = scorer("[min(1.0, len(c) / 40) for c in completions]")
    config = config_of(tmp_path / "run", models, tasks, texts=texts, classifier=classifier)
    stage.run(config)
    done = json.loads((tmp_path / "run" / "done.json").read_text())
    assert set(done["results"]) == {*tasks, "pretraining_text"}
    assert done["items"] == {
        "truthfulqa": 2, "crows_pairs": 3, "winogender": 3, "lambada": 3, "squad_v2": 6, "drop": 3,
        "realtoxicityprompts": 3, "ifeval": 1, "truthfulqa_generation": 2,
    }  # fmt: skip
    for name, result in done["results"].items():
        for measure, by_model in result["differences"].items():
            assert by_model["same"]["mean"] == 0, (name, measure)
            assert by_model["same"]["low"] <= 0 <= by_model["same"]["high"]
    text = done["results"]["pretraining_text"]
    assert (set(text["means"]["loss"]), set(text["differences"]["loss"])) == ({*models}, {"same"})
    rows = {(row["task"], row["measure"]): row for row in done["tax"]}
    assert set(rows[("lambada", "accuracy")]["differences"]) == {"same", "other"}
    assert rows[("lambada", "nats")]["verdict"]["same"] == "not clear"
    assert ("crows_pairs", "entropy") not in rows
    assert done["classifier"]["kind"] == "function"
    assert len(done["classifier"]["sha256"]) == 64
    assert set(done["results"]["crows_pairs"]["groups"]) == {"animal", "speed"}
    assert any(
        "tasks.crows_pairs: has 3 items, where the published file has 1,508" in line for line in done["warnings"]
    )
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert answers[0]["prompt"] == "What is blue?"
    assert set(answers[0]["answers"]) == {*models}
    items = [json.loads(line) for line in (tmp_path / "run" / "items.jsonl").read_text().splitlines()]
    assert len(items) == sum(done["items"].values())
    wrote = [
        json.loads(line) for line in (tmp_path / "run" / "responses-realtoxicityprompts.jsonl").read_text().splitlines()
    ]
    assert len(wrote) == 9
    for one in wrote[0]["responses"]["base"]["toxicity"]:
        assert one is None or 0 < one <= 1
    assert "lambada" in capsys.readouterr().out


def test_a_failed_classifier_is_no_zero_and_loses_nothing(
    files: dict[str, str], folders: Callable[[str], Path], scorer: Callable[[str], str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tasks = {"realtoxicityprompts": files["realtoxicityprompts"]}
    models = {"a": folders("llama")}
    for body, message in (
        ("[None] * len(completions)", "gave None"),
        ("[1.5] * len(completions)", "gave 1.5"),
        ("1 / 0", "ZeroDiv"),
    ):
        config = config_of(tmp_path / "run", models, tasks, classifier=scorer(body), overwrite=True, variants=["plain"])
        with pytest.raises(ValueError, match=message):
            stage.run(config)
        assert (tmp_path / "run" / "state" / "realtoxicityprompts-0.json").exists()
        assert not (tmp_path / "run" / "done.json").exists()


def test_an_empty_text_is_not_sent() -> None:
    sent: list[str] = []

    def reward(answers: Any) -> list[float | None]:
        sent.extend(answers.texts)
        return [0.5] * len(answers.texts)

    item = Item("0", (Generation("a", samples=3),))
    assert classify(reward, [item], [[{"texts": [" ", "x", ""]}]]) == [[[None, 0.5, None]]]
    assert sent == ["x"]


def test_a_resume_asks_nothing_twice(
    files: dict[str, str], folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"a": folders("llama"), "b": folders("gpt2")}
    tasks = {name: files[name] for name in ("lambada", "crows_pairs")}
    stage.run(config_of(tmp_path / "whole", models, tasks, baseline="b"))
    asked: list[tuple[str, str]] = []
    real = stage.ask

    def counted(writer: Writer, task: str, *rest: Any) -> Any:
        if len(asked) == 2:
            asked.append(("stop", ""))
            raise KeyboardInterrupt
        asked.append((task, writer.name))
        return real(writer, task, *rest)

    monkeypatch.setattr(stage, "ask", counted)
    config = config_of(tmp_path / "parts", models, tasks, baseline="b")
    with pytest.raises(KeyboardInterrupt):
        stage.run(config)
    stage.run(config)
    assert asked == [("lambada", "a"), ("lambada", "b"), ("stop", ""), ("crows_pairs", "a"), ("crows_pairs", "b")]
    for name in ("items.jsonl",):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, parts = (json.loads((tmp_path / n / "done.json").read_text()) for n in ("whole", "parts"))
    assert whole["results"] == parts["results"]
    assert set(whole["results"]["lambada"]["differences"]["accuracy"]) == {"a"}


def test_a_limit_is_drawn_by_the_seed(files: dict[str, str], folders: Callable[[str], Path], tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1, 2, 3):
        folder = tmp_path / f"run{len(drawn)}"
        stage.run(config_of(folder, {"a": folders("llama")}, {"lambada": files["lambada"]}, limit=1, seed=seed))
        drawn.append(json.loads((folder / "items.jsonl").read_text())["item"])
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": {"lambda": "f"}}, "there is no benchmark 'lambda'; did you mean 'lambada'?"),
        ({"baseline": "x"}, r"'x' is not among the models \['a'\]"),
        ({"chat": ["x"]}, r"'x' is not among the models \['a'\]"),
        ({"tasks": {"realtoxicityprompts": "f"}}, "realtoxicityprompts needs a `classifier`"),
        ({"tasks": {}}, "tasks names none"),
        ({"models": {}}, "models names none"),
        ({"sampler.temperature": 0.7}, "sampler.temperature is each benchmark's own"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    enough = {"models": {"a": "m"}, "tasks": {"lambada": "f"}, "output": "o"}
    with pytest.raises(ValueError, match=f"^r.yaml: {message}"):
        make(BenchmarkConfig, enough | values, "r.yaml")


def test_a_dry_run_reads_the_files(files: dict[str, str], folders: Callable[[str], Path], tmp_path: Path) -> None:
    Path(files["lambada"]).write_text('{"text": "a')
    argv = ["benchmark", "--models", f"a={folders('llama')}", "--tasks", f"lambada={files['lambada']}"]
    assert main([*argv, "--output", str(tmp_path / "run"), "--dry-run"]) == 2


def test_what_fits_no_model_is_refused(files: dict[str, str], folders: Callable[[str], Path], tmp_path: Path) -> None:
    Path(files["ifeval"]).write_text(Path(files["ifeval"]).read_text().replace("Write", "Write " * 300))
    with pytest.raises(ValueError, match=r"tasks\.ifeval: none of 1 items fits every model's context"):
        stage.run(config_of(tmp_path / "run", {"a": folders("llama")}, {"ifeval": files["ifeval"]}))
