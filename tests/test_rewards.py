"""Any reward: what each kind is asked and answers, how several become one, and what is said when one fails."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
)

from tutelage.algorithms import make_algorithm
from tutelage.data.datasets import read_prompts, write_jsonl
from tutelage.data.records import Message, Prompt, Request, Sample
from tutelage.models.forward import all_scores
from tutelage.models.loading import load_scalar, new_scalar, save_model
from tutelage.models.tokens import encode_pairs
from tutelage.objectives.reward import combined_scores
from tutelage.rewards import endpoint
from tutelage.rewards.classifier import _positions, classifier_reward
from tutelage.rewards.endpoint import endpoint_reward
from tutelage.rewards.function import function_reward, sources_of
from tutelage.rewards.opening import Rewards, open_rewards
from tutelage.rewards.reward import Answers, checked_scores, joined_scores, score_all
from tutelage.rewards.reward_model import covered_kl
from tutelage.runs import done, inputs_of
from tutelage.settings.common import make
from tutelage.settings.online import OnlineConfig
from tutelage.settings.rewards import (
    ClassifierReward,
    Combination,
    EndpointReward,
    FunctionReward,
    RewardModelReward,
)  # fmt: skip
from tutelage.stages import online
from tutelage.stages.pretrain import train_tokenizer
from tutelage.training.updates import shuffled

MODULE = """
import asyncio
import signal
import time

calls = []

def length(prompts, completions, **columns):
    calls.append((prompts, completions, columns))
    return [float(len(c)) for c in completions]

async def answered(completions, prompts, answer):
    await asyncio.sleep(0)
    return [None if a is None else c == a for c, a in zip(completions, answer)]

def letters(prompts, completions):
    return [c.count("a") if "a" in c else None for c in completions]

def nothing(prompts, completions):
    return [None for _ in completions]

def one(prompts, completions):
    return [1.0 for _ in completions]

def odd(prompts, completions):
    return [1.0 if len(p) % 2 else float(len(c)) for p, c in zip(prompts, completions)]

def fails(prompts, completions):
    raise KeyError("no such thing")

def leaves(prompts, completions):
    raise SystemExit(3)

def late(prompts, completions):
    time.sleep(5)

def interrupted(prompts, completions):
    signal.raise_signal(signal.SIGINT)
    return one(prompts, completions)

async def never(prompts, completions):
    await asyncio.sleep(5)

async def own_timeout(prompts, completions):
    raise TimeoutError("its own")

def solo(texts):
    return texts

def trl(prompts, completions, completion_ids, **kwargs):
    return completions

def takes(completions, prompts, accepted):
    return [float(len(own.pop())) for own in accepted]

def lazy(prompts, completions):
    import my_helpers
    return [my_helpers.score for _ in completions]

def huge(prompts, completions):
    return [-1e39 for _ in completions]
"""
ANSWERS = Answers(
    [
        Prompt(id="1", text="p", meta={"answer": "yes"}),
        Prompt(id="2", text=(Message(role="user", content="q"),), use_case="chat"),
    ],
    ["yes", "no"], [True, False], [[2, 3, 1], [4, 5]],
)  # fmt: skip


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of reward functions in the working folder, which is not among those that Python imports from."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield lambda name, **more: function_reward(FunctionReward(function=f"my_rewards:{name}", **more), "r")
    sys.modules.pop("my_rewards", None)


def test_scores_combine_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 5.0, 9.0], [3.0, -1.0, 9.0, 9.0], [8.0, 2.0, 9.0, 9.0]])
    counts = torch.tensor([[True, True, True, False], [True, True, False, False], [True, True, False, False]])
    assert_close(combined_scores(scores, counts, "sum"), torch.tensor([12.0, 3.0, 5.0, 0.0]))
    assert_close(combined_scores(scores, counts, "minimum"), torch.tensor([1.0, -1.0, 5.0, 0.0]))
    # 1, 3, 8: mean 4, variance (9 + 1 + 16) / 2 = 13; 2, -1, 2: mean 1, variance (1 + 4 + 1) / 2 = 3.
    expected = torch.tensor([4 - 0.5 * 13**0.5, 1 - 0.5 * 3**0.5, 5.0, 0.0])
    assert_close(combined_scores(scores, counts, "mean_less_std", 0.5), expected)
    expected = torch.tensor([4 - 13**0.5, 1 - 3**0.5, 5.0, 0.0])
    assert_close(combined_scores(scores, counts, "mean_less_std"), expected)


def test_a_function_is_asked_as_peers_ask_it(module: Any) -> None:
    assert module("length")(ANSWERS) == [3.0, 1.0]  # a conversation's completion is a list of one message
    prompts, completions, columns = sys.modules["my_rewards"].calls[0]
    assert prompts == ["p", [{"role": "user", "content": "q"}]]
    assert completions == ["yes", [{"role": "assistant", "content": "no"}]]
    assert columns == {"answer": ["yes", None], "id": ["1", "2"], "use_case": [None, "chat"]}
    assert module("answered")(ANSWERS) == [1.0, None]  # async, and only the column that it names


def test_an_async_function_runs_inside_a_running_loop(module: Any) -> None:
    """As in a notebook."""

    async def notebook() -> list[float | None]:
        return module("answered")(ANSWERS)

    assert asyncio.run(notebook()) == [1.0, None]


def test_a_function_may_change_its_columns_and_import_its_neighbours(module: Any) -> None:
    prompt = Prompt(id="1", text="p", meta={"accepted": ["a", "bc"]})
    answers = Answers([prompt, prompt], ["x", "y"], [True, True], [[1], [1]])
    assert [module("takes")(answers), module("takes")(answers)] == [[2.0, 2.0], [2.0, 2.0]]
    Path("my_helpers.py").write_text("score = 3.0")
    assert module("lazy")(answers) == [3.0, 3.0]


def test_the_time_limit_holds_where_interrupts_are_ignored(module: Any) -> None:
    """As a shell has it for a command that it runs with &."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for name in ("late", "never"):
            with pytest.raises(ValueError, match=r"took more than 0\.2 s"):
                module(name, timeout_seconds=0.2)(ANSWERS)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_score_that_overflows_is_named(module: Any) -> None:
    settings = {"big": FunctionReward(function="my_rewards:huge"), "b": FunctionReward(function="my_rewards:one")}
    rewards = open_rewards(settings, Combination(), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"too large to be added up in fp32; .*'big': inf, 'b': 1.0"):
        rewards.scores(ANSWERS)


FAULTS = {
    "fails": r"raised KeyError: .*no such thing.* \(.*my_rewards.py:\d+\); once its cause is gone the same",
    "leaves": "raised SystemExit: '3'",
    "late": "took more than 0.2 s for 2 completions; make it faster, or raise its timeout_seconds",
    "never": "took more than 0.2 s",
    "own_timeout": "raised TimeoutError: 'its own'",
    "solo": r"takes \(texts\), no 'prompts'",
    "trl": "wants TRL's completion_ids, which is not passed here",
    "lenght": "has no function 'lenght'; it has length, answered",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_function_that_fails_is_named(name: str, module: Any) -> None:
    with pytest.raises(ValueError, match=rf"^rewards\.r: my_rewards:{name}: .*{FAULTS[name]}"):
        module(name, timeout_seconds=0.2)(ANSWERS)


def test_the_line_that_fails_is_named(module: Any) -> None:
    """Not the one that called it."""
    Path("deep_inner.py").write_text("def inner():\n    raise KeyError('x')\n")
    Path("deep.py").write_text("import deep_inner\n\n\ndef f(prompts, completions):\n    return deep_inner.inner()\n")
    with pytest.raises(ValueError, match=r"raised KeyError: .* \([^ ]*/deep_inner\.py:2\); once its cause"):
        function_reward(FunctionReward(function="deep:f"), "r")(ANSWERS)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_a_slow_function_is_stopped_also_in_the_background(handler: Any, module: Any) -> None:
    """What a script starts with `&` ignores interruptions."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(ValueError, match=r"took more than 0.2 s"):
            module("late", timeout_seconds=0.2)(ANSWERS)
        assert module("one")(ANSWERS) == [1.0, 1.0]
        assert signal.getsignal(signal.SIGINT) is handler
        if handler is signal.default_int_handler:
            with pytest.raises(KeyboardInterrupt):
                module("interrupted")(ANSWERS)
        else:
            assert module("interrupted")(ANSWERS) == [1.0, 1.0]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_function_that_says_nothing_of_its_arguments_is_named() -> None:
    with pytest.raises(ValueError, match=r"rewards\.r: builtins:dict: does not say what it takes"):
        function_reward(FunctionReward(function="builtins:dict"), "r")


def test_a_function_that_is_not_there_or_lacks_a_column_is_named(module: Any) -> None:
    with pytest.raises(
        ValueError, match=r"rewards\.r: rewardz:f: no module 'rewardz'; install it, or give the command"
    ):
        function_reward(FunctionReward(function="rewardz:f"), "r")
    Path("needy.py").write_text("import not_installed")
    with pytest.raises(ValueError, match="needy needs not_installed, which is missing"):
        function_reward(FunctionReward(function="needy:f"), "r")
    with pytest.raises(ValueError, match=r"no module 'nowhere\.at'; .* in the folder that holds nowhere\.py \(now "):
        function_reward(FunctionReward(function="nowhere.at:f"), "r")
    Path("parent").mkdir()
    Path("parent/__init__.py").touch()
    with pytest.raises(ValueError, match=r"no module 'parent\.child'; install it"):
        function_reward(FunctionReward(function="parent.child:f"), "r")
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(ValueError, match="importing broken fails: ZeroDivisionError"):
        function_reward(FunctionReward(function="broken:f"), "r")
    plain = Answers([Prompt(id="1", text="p")], ["x"], [True], [[1]])
    with pytest.raises(ValueError, match="wants a column 'answer', which no prompt has; their columns are id"):
        module("answered")(plain)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("0.5", "returned '0.5'; expected a list of 2 numbers"),
        ({"a": 1}, "expected a list of 2 numbers"),
        ({1.0, 2.0}, "expected a list of 2 numbers"),
        ((x for x in (1.0, 2.0)), "expected a list of 2 numbers"),
        (None, "returned None; expected a list"),
        ([1.0], "returned 1 scores for 2 completions"),
        (["1", "2"], "returned '1' for completion 0; expected a number or None"),
        ([0.0, [1.0]], r"returned \[1.0\] for completion 1"),
        ([float("nan"), 1.0], "returned nan for completion 0; return None where there is no score"),
        ([1.0, float("inf")], "returned inf for completion 1"),
        (torch.ones(2, 2), "for completion 0; expected a number or None"),
        (torch.tensor(1.0), r"returned tensor\(1.\); expected a list of 2 numbers"),
        (np.array(1.0), r"returned array\(1.\); expected a list of 2 numbers"),
        ([10**400, 1], "returned 1000.* for completion 0; expected a number or None"),
    ],
)
def test_what_is_no_score_is_refused(given: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^mine {fault}|^mine .*{fault}"):
        checked_scores(given, 2, "mine")


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ({"function": "m:f"}, FunctionReward(function="m:f")), ("m:f", FunctionReward(function="m:f")),
        ({"url": "http://h/x"}, EndpointReward(url="http://h/x")),
        ({"model": "o/m", "label": "toxic", "weight": -1.0}, ClassifierReward(model="o/m", label="toxic", weight=-1.0)),
        ({"model": "o/m"}, RewardModelReward(model="o/m")), ("o/m", RewardModelReward(model="o/m")),
    ],
)  # fmt: skip
def test_a_reward_is_known_by_what_only_it_has(typed: Any, kind: Any) -> None:
    config = OnlineConfig.model_validate({"model": "o/p", "prompts": "p", "output": "o", "rewards": {"r": typed}})
    assert config.rewards["r"] == kind


def test_rl_has_no_dropout() -> None:
    with pytest.raises(ValueError, match=r"adapter\.dropout=0\.1: reinforcement learning has no dropout"):
        OnlineConfig.model_validate(
            {"model": "o/p", "prompts": "p", "output": "o", "rewards": {"r": "m:f"}, "adapter": {"dropout": 0.1}}
        )


def test_scores_of_many_kinds_are_taken() -> None:
    assert checked_scores(torch.tensor([1.5, 2.0]), 2, "mine") == [1.5, 2.0]
    assert checked_scores((True, None), 2, "mine") == [1.0, None]


class Server(ThreadingHTTPServer):
    """Answers the lengths of completions, after the faults that stand in `faults`."""

    faults: list[Any] = []
    bodies: list[Any] = []
    tokens: list[Any] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.tokens.append(self.headers.get("Authorization"))
        answer: Any = {"scores": [float(len(c)) for c in body["completions"]]}
        status = 200
        if self.server.faults:
            fault = self.server.faults.pop(0)
            status, answer = (fault, {}) if isinstance(fault, int) else (200, fault)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.01)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.faults, server.bodies, server.tokens = [], [], []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asking(server: Server, **more: Any) -> Any:
    return endpoint_reward(EndpointReward(url=f"http://127.0.0.1:{server.server_port}/score", **more), "r")


def test_an_endpoint_is_asked_in_batches_and_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abc")
    server.faults = [503, 429]
    assert asking(server, batch_size=1, concurrency=1, token_variable="MY_TOKEN")(ANSWERS) == [3.0, 2.0]
    assert [body["completions"] for body in server.bodies] == [["yes"]] * 3 + [["no"]]
    assert server.bodies[3]["prompts"] == [[{"role": "user", "content": "q"}]]
    assert server.bodies[0]["columns"] == {"answer": ["yes"], "id": ["1"]}
    assert set(server.tokens) == {"Bearer abc"}
    many = Answers([ANSWERS.prompts[0]] * 50, [str(10**i) for i in range(50)], [True] * 50, [[1]] * 50)
    assert asking(server, batch_size=7)(many) == [i + 1.0 for i in range(50)]  # in order, whoever answers first


def test_an_endpoint_that_fails_is_named(server: Server) -> None:
    server.faults = [500] * 3
    with pytest.raises(
        ValueError, match=r"^rewards\.r: http.*: no answer after 3 tries \(status 500\); .*goes on from"
    ):
        asking(server, retries=2)(ANSWERS)
    assert len(server.bodies) == 3
    cases = [(404, "refused with status 404"), (b"<html>", "is not JSON"), ([1, 2], 'expected {"scores": '),
             ({"scores": [1, None, 2]}, "returned 3 scores for 2 completions")]  # fmt: skip
    for fault, words in cases:
        server.faults = [fault]
        with pytest.raises(ValueError, match=words):
            asking(server)(ANSWERS)
    with pytest.raises(ValueError, match=r"no answer after 2 tries \(ConnectError"):
        endpoint_reward(EndpointReward(url="http://127.0.0.1:9/", retries=1), "r")(ANSWERS)
    with pytest.raises(ValueError, match="the environment variable NO_TOKEN is not set"):
        asking(server, token_variable="NO_TOKEN")
    with pytest.raises(ValueError, match=r"^rewards\.r: http://\[::1/: is no address"):
        endpoint_reward(EndpointReward(url="http://[::1/"), "r")
    with pytest.raises(ValueError, match=r"^rewards\.r: .*: the prompts' columns cannot be sent"):
        asking(server)(replace(ANSWERS, prompts=[with_column(math.nan)] * 2))


def test_an_endpoint_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 s, then twice as long each time, a minute at most; so many at once, and so long each, as the settings say."""
    waits: list[float] = []
    pools: list[int] = []
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 60.0)
    monkeypatch.setattr(endpoint, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(endpoint, "ThreadPoolExecutor", lambda n: pools.append(n) or ThreadPoolExecutor(n))
    server.faults = [500, 429, 503, 599, 500, 500, 500, 500]
    assert asking(server, retries=8, concurrency=3)(ANSWERS) == [3.0, 2.0]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pools == [3]
    client = endpoint.open_client("http://h/x", None, 12.5, "it")
    assert client.timeout == httpx.Timeout(12.5)
    assert client.headers["Content-Type"] == "application/json"
    assert "Authorization" not in client.headers


def with_column(value: Any) -> Prompt:
    """A prompt with a column as readers of Parquet give it."""
    return Prompt(id="1", text="p").model_copy(update={"meta": {"when": value}})


def test_an_endpoint_gets_dates_as_texts(server: Server) -> None:
    assert asking(server)(replace(ANSWERS, prompts=[with_column(date(2020, 1, 2))] * 2)) == [3.0, 2.0]
    assert server.bodies[0]["columns"]["when"] == ["2020-01-02"] * 2


@pytest.fixture
def classifier(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A small BERT with three labels, read in both directions."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=40, num_labels=3, id2label={0: "good", 1: "bad", 2: "odd"}, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_a_classifier_scores_its_label(classifier: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["yes", "no, " * 30, "it is what it is"]  # the second is longer than it reads
    answers = Answers([ANSWERS.prompts[0]] * 3, texts, [True] * 3, [[1]] * 3)
    settings = ClassifierReward(model=str(classifier), label="odd")
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    for reads in ("completion", "both"):
        for output in ("logit", "probability"):
            scores = classifier_reward(settings.model_copy(update={"reads": reads, "output": output}), "r")(answers)
            for text, score in zip(texts, scores, strict=True):
                pair = ("p", text) if reads == "both" else (text,)
                encoded = tokenizer(*pair, truncation=True, max_length=40, return_tensors="pt")
                logits = model(**encoded).logits[0].detach()
                expected = logits[2] if output == "logit" else logits.softmax(0)[2]
                assert score == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(ValueError, match=r"rewards\.r: .*has no label 'odt'; good, bad, odd"):
        classifier_reward(settings.model_copy(update={"label": "odt"}), "r")


@pytest.mark.parametrize("pad", [0, None, 5])
def test_classifiers_that_pad_otherwise_read_the_same(
    pad: int | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    common = {"vocab_size": len(tokenizer), "num_labels": 2, "pad_token_id": pad, "initializer_range": 0.5}
    gpt2 = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=40, **common)
    roberta = RobertaConfig(max_position_embeddings=46, **sizes, **common | {"pad_token_id": pad or 1})
    texts = ["yes", "no, " * 60, "it is what it is"]
    answers = Answers([ANSWERS.prompts[0]] * 3, texts, [True] * 3, [[1]] * 3)
    for config in (gpt2, roberta):
        model = AutoModelForSequenceClassification.from_config(config).eval()
        model.save_pretrained(tmp_path)
        own = copy.deepcopy(tokenizer)
        if pad is None:
            own.pad_token = None  # it cannot pad at all
        own.save_pretrained(tmp_path)
        scores = classifier_reward(ClassifierReward(model=str(tmp_path), label="LABEL_1", output="logit"), "r")(answers)
        longest = 40 if config is gpt2 else 46 - (pad or 1) - 1
        assert _positions(model) == longest
        for text, score in zip(texts, scores, strict=True):
            logits = model(**tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")).logits
            assert score == pytest.approx(float(logits[0, 1].detach()), abs=1e-5)


def test_independent_labels_have_probabilities_of_their_own(classifier: Path) -> None:
    config = json.loads((classifier / "config.json").read_text())
    (classifier / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    settings = ClassifierReward(model=str(classifier), label="bad")
    one = Answers(ANSWERS.prompts[:1], ["x"], [True], [[1]])
    (logit,), (probability,) = (
        classifier_reward(settings.model_copy(update={"output": output}), "r")(one)
        for output in ("logit", "probability")
    )
    assert probability == pytest.approx(1 / (1 + 2.718281828**-logit), abs=1e-6)


@pytest.mark.parametrize("labels", [1, 2])
def test_one_label_has_a_probability_of_its_own_and_two_share_it(
    labels: int, classifier: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The turns of a conversation are read with an empty line between them."""
    config = BertConfig.from_pretrained(classifier, num_labels=labels)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(classifier)
    turns = (Message(role="user", content="who"), Message(role="assistant", content="me"))
    answers = Answers([Prompt(id="1", text=turns)], ["yes"], [True], [[1]])
    settings = ClassifierReward(model=str(classifier), label="LABEL_0", reads="both")
    (score,) = classifier_reward(settings, "r")(answers)
    with torch.no_grad():
        logits = model(**tokenizer("who\n\nme", "yes", return_tensors="pt")).logits[0].double()
    wanted = logits.sigmoid()[0] if labels == 1 else logits.softmax(0)[0]
    assert score == pytest.approx(float(wanted), abs=1e-6)


def test_a_classifier_without_positions_reads_all(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2, num_labels=2, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["no, " * 60 + "yes", "yes"]
    answers = Answers([ANSWERS.prompts[0]] * 2, texts, [True] * 2, [[1]] * 2)
    scores = classifier_reward(ClassifierReward(model=str(tmp_path), label="LABEL_1", output="logit"), "r")(answers)
    for text, score in zip(texts, scores, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        assert score == pytest.approx(float(logits[0, 1]), abs=1e-5)


def test_a_language_model_is_no_classifier(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"lacks the weight score.weight; is it a classifier\?"):
        classifier_reward(ClassifierReward(model=str(folders("llama")), label="x"), "r")


def test_rewards_are_weighed_and_logged_each(
    module: Any, folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(new_scalar(folders("llama"), tokenizer, seed=1), tokenizer, tmp_path / "rm")
    settings = {
        "rm": RewardModelReward(model=str(tmp_path / "rm"), weight=2.0),
        "letters": FunctionReward(function="my_rewards:letters", weight=-1.0),
    }
    rewards = open_rewards(settings, Combination(), tokenizer)
    texts = ["banana", "no"]
    pairs = encode_pairs(tokenizer, [("p", text, True) for text in texts])
    answers = Answers([Prompt(id="1", text="p")] * 2, texts, [True, True], [a + b for a, b in pairs])
    own = all_scores(load_scalar(tmp_path / "rm", tokenizer), answers.sequences)
    scores = rewards.scores(answers)
    assert_close(scores.total, torch.stack([2 * own[0] - 3, 2 * own[1]]))
    assert scores.counts.tolist() == [[True, True], [True, False]]
    assert scores.metrics() == pytest.approx({"reward/rm": float(2 * own.mean()), "reward/letters": -3.0}, abs=1e-5)


def test_a_text_stands_for_the_reward_that_it_looks_like(tmp_path: Path) -> None:
    rewards = {
        "a": "pkg.mod:f",
        "b": "https://host/x",
        "c": str(tmp_path),
        "d": {"name": "classifier", "model": "m", "label": "l"},
    }
    base = {"model": "m", "prompts": "p", "output": tmp_path}
    config = make(OnlineConfig, {**base, "rewards": rewards}, "test")
    kinds = [type(each).__name__ for each in config.rewards.values()]
    assert kinds == ["FunctionReward", "EndpointReward", "RewardModelReward", "ClassifierReward"]
    assert set(inputs_of(config, "rewards")) == {"rewards.c.model", "rewards.d.model"}
    typo = {"name": "function", "function": "m:f", "wait": 3}
    faults = [
        ({}, "nothing scores completions; give a reward_model"),
        ({"reward_model": "x", "rewards": {"reward_model": "m:f"}}, "call one of them by another name"),
        ({"rewards": {"a": "m:f"}, "combination": "mean_less_std"}, "give at least two rewards"),
        ({"rewards": {"a": typo}}, "rewards.a.wait is no setting of function; did you mean 'weight'"),
        ({"rewards": {"a": {"name": "functon"}}}, "rewards.a.name='functon': expected one of 'reward_"),
        ({"rewards": {"a/b": "m:f"}}, "rewards"),
        ({"rewards": {"reward_model": {"name": "function", "function": "m"}}}, "rewards.reward_model.function='m'"),
    ]  # fmt: skip
    for more, fault in faults:
        with pytest.raises(ValueError, match=fault):
            make(OnlineConfig, {**base, **more}, "test")


def test_columns_of_prompts_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "answer": 3, "meta": {"answer": 4, "x": 1}}, {"prompt": "q", "hint": "h", "user": "u"}]
    write_jsonl(tmp_path / "p.jsonl", rows)
    first, second = read_prompts(tmp_path / "p.jsonl", columns=True).records
    assert first.meta == {"answer": 4, "x": 1}
    assert second.meta == {"hint": "h"}
    assert [p.meta for p in read_prompts(tmp_path / "p.jsonl").records] == [{"answer": 4, "x": 1}, {}]


@pytest.fixture
def asked(module: Any, folders: Callable[[str], Path], tmp_path: Path) -> dict[str, Any]:
    """What the loop is asked, but for its rewards: from prompts alone."""
    prompts = [
        {"prompt": text, "answer": "a"} for text in ("the cat", "a b c", "moon", "sun", "red", "one", "two", "six")
    ]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    return {
        "model": str(folders("llama")), "prompts": str(tmp_path / "prompts.jsonl"), "output": tmp_path / "run",
        "batch_size": 8, "mini_batch_size": 8, "total_episodes": 16, "sampler": {"max_new_tokens": 6},
        "optimizer": {"learning_rate": 1e-3}, "missing_eos_penalty": 0,
    }  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_loop_runs_from_prompts_and_a_function_alone(
    algorithm: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"num_generations": 4} if algorithm == "grpo" else {"value_learning_rate": 1e-3}
    rewards = {"letters": "my_rewards:letters", "length": "my_rewards:length"}
    config = OnlineConfig(**asked, rewards=rewards, algorithm={"name": algorithm, **own})
    online.run(config)
    assert "reward length: on 4 completions " in capsys.readouterr().err
    rows = rows_of(config.output)
    assert all(row["reward/length"] > 0 for row in rows)
    assert set(json.loads((config.output / "inputs.json").read_text())["paths"]) == {
        "model", "prompts", "rewards.letters.source", "rewards.length.source",
    }  # fmt: skip
    before, after = (
        load_file(Path(config.model) / "model.safetensors"),
        load_file(config.output / "last/model.safetensors"),
    )
    assert any((before[name] != after[name]).any() for name in before)
    Path("my_rewards.py").write_text(MODULE + "\n")
    with pytest.raises(ValueError, match=r"holds a run with other inputs: rewards\.\w+\.source differs"):
        online.run(config)


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the learner is given, as it comes."""
    kept: list[Any] = []
    real = online.Learner.improve

    def improve(self: Any, rollout: Any, *rest: Any) -> Any:
        kept.append(rollout)
        return real(self, rollout, *rest)

    monkeypatch.setattr(online.Learner, "improve", improve)
    return kept


def test_completions_without_a_score_are_left_out_of_the_loss(
    asked: dict[str, Any], rollouts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OnlineConfig(
        **asked, rewards={"letters": "my_rewards:letters"}, algorithm={"name": "rloo", "num_generations": 4}
    )
    online.run(config)
    for rollout, row in zip(rollouts, rows_of(config.output), strict=True):
        assert 0 < len(rollout.prompts) < 8
        assert row["reward/left_out"] == 1 - len(rollout.prompts) / 8
        assert row["objective/scores"] == pytest.approx(float(rollout.scores.mean()))
        alone = torch.tensor([int((rollout.group == g).sum()) == 1 for g in rollout.group])
        assert (rollout.advantages[alone] == 0).all()
    # At the end there may be no score at all, which is no reason to lose the run.
    fixed = online.usable_prompts(config, online.load_models(config, online.make_algorithm(config.algorithm, 8)))[0]
    monkeypatch.setattr(online, "FINAL_PROMPTS", 1)
    unscored = online.shuffled(fixed, config.seed, -1)[0][0].id
    Path("picky.py").write_text(
        "def picky(completions, prompts, id):\n"
        f"    return [None if i == {unscored!r} else len(c) for c, i in zip(completions, id)]\n"
    )
    picky = {"rewards": {"r": FunctionReward(function="picky:picky")}, "overwrite": True}
    online.run(config.model_copy(update=picky))
    assert {name: set(of) for name, of in (done(config.output) or {})["final"].items()} == {
        name: {"kl", "length"} for name in ("model", "last")
    }
    nothing = config.model_copy(
        update={"rewards": {"r": FunctionReward(function="my_rewards:nothing")}, "overwrite": True}
    )
    with pytest.raises(ValueError, match="none scores any of the 8 completions of iteration 0"):
        online.run(nothing)


def test_groups_without_a_signal_are_replaced(asked: dict[str, Any], rollouts: list[Any]) -> None:
    """`odd` gives every completion of a prompt of odd length the same score: of eight prompts, six."""
    algorithm = {"name": "grpo", "num_generations": 4, "refill": 5}
    config = OnlineConfig(**asked, rewards={"odd": "my_rewards:odd"}, algorithm=algorithm)
    online.run(config)
    texts = {p.text for r in rollouts for p in r.prompts}
    for rollout, row in zip(rollouts, rows_of(config.output), strict=True):
        assert len({p.id for p in rollout.prompts}) <= 2
        assert all(len(str(p.text)) % 2 == 0 for p in rollout.prompts), texts
        assert row["objective/sampled"] > 8
        assert row["objective/flat_groups"] == pytest.approx(
            1 - len(rollout.group.unique()) / (row["objective/sampled"] / 4)
        )
        assert (rollout.advantages[:, 0] != 0).any()
        assert rollout.mask.shape == rollout.logprobs.shape == rollout.rewards.shape
    flat = config.model_copy(
        update={"rewards": {"r": FunctionReward(function="my_rewards:one")}, "output": config.output / "one"}
    )
    rollouts.clear()
    online.run(flat)  # nothing teaches: the first prompts stay, and only the KL penalty says something
    assert [len(r.prompts) for r in rollouts] == [8, 8]
    assert all((r.advantages == 0).all() for r in rollouts)


class Scripted:
    """A policy, its sampler and its reward in one: they answer as a script says, a round at a time.

    A completion is its score, None where the reward says nothing, and `cut` those that end at no stop token.
    """

    def __init__(self, *rounds: list[float | None], cut: float = math.inf) -> None:
        self.rounds, self.cut = list(rounds), cut
        self.asked: list[list[str]] = []
        self.seeds: list[int] = []
        self.generation_config = SimpleNamespace(eos_token_id=1)
        self.training = True

    def eval(self) -> None:
        self.training = False

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        assert not self.training
        self.training = True  # each round asks for it anew
        self.now = self.rounds.pop(0)
        self.seeds += [r.seed for r in requests]
        assert {(r.max_new_tokens, r.stop_ids, r.temperature) for r in requests} == {(7, (1,), 0.5)}
        length = 1 + len(self.asked)  # rounds differ in width
        kinds = ["length" if x == self.cut else "stop" for x in self.now]
        return [Sample((5,) * length, (-1.0,) * length, kind) for kind in kinds]  # type: ignore[arg-type]

    def __call__(self, answers: Answers) -> list[float | None]:
        self.asked.append([p.id for p in answers.prompts])
        assert len(answers.texts) == len(self.now)
        return self.now

    def one_iteration(
        self, tokenizer: PreTrainedTokenizerBase, number: int, algorithm: Any, iteration: int = 0, **settings: Any
    ) -> tuple[Any, list[float], dict[str, float]]:
        common = {"model": "m", "prompts": "p", "output": "o", "rewards": {"r": "m:f"}, "seed": 3}
        sampler = {"max_new_tokens": 7, "temperature": 0.5}
        config = OnlineConfig(**common | settings, algorithm=algorithm, sampler=sampler)
        prompts = [(Prompt(id=f"p{i}", text=f"{i}"), (i + 10,)) for i in range(number)]
        rewards = Rewards({"r": (1.0, self)}, config.combination, {})
        models = online.Models(tokenizer, self, None, rewards, None, None, self)
        episodes, scores, logged = online.sample_and_score(
            models, make_algorithm(config.algorithm, config.batch_size), prompts, iteration, config
        )
        assert not self.rounds
        return episodes, scores.tolist(), logged


def test_which_prompts_are_asked_again_and_what_is_learned_from(tokenizer: PreTrainedTokenizerBase) -> None:
    """Groups of two, an iteration of two groups, and at most two rounds more; a cut-off costs 1."""
    script = Scripted(
        [1, 1, None, 2],  # both flat: of the second only one counts
        [0, 3, 8, 9],  # the first teaches; the second does not, as 9 was cut off: 8 and 8
        [4, 4],  # flat; and that was the last round
        cut=9,
    )
    rloo = {"name": "rloo", "num_generations": 2, "refill": 2}
    episodes, scores, logged = script.one_iteration(
        tokenizer, 6, rloo, batch_size=4, mini_batch_size=4, missing_eos_penalty=1
    )
    assert [len(asked) for asked in script.asked] == [4, 4, 2]
    names = [asked[::2] for asked in script.asked]
    assert all(asked[::2] == asked[1::2] for asked in script.asked)  # copies stand together
    assert len({name for each in names for name in each}) == 5  # no prompt twice
    assert len(set(script.seeds)) == 10
    assert [p.id for p in episodes.prompts] == [names[1][0]] * 2
    assert scores == [0, 3]
    assert episodes.group[0] == episodes.group[1]
    assert episodes.mask[:, :2].tolist() == [[True, True]] * 2  # its completions have two tokens
    assert logged == {
        "objective/sampled": 10,
        "objective/scores": pytest.approx((1 + 1 + 2 + 0 + 3 + 8 + 9 + 4 + 4) / 9),
        "objective/flat_groups": 4 / 5,
        "reward/left_out": pytest.approx(1 / 10),
    }


def test_an_iteration_that_is_full_asks_no_more(tokenizer: PreTrainedTokenizerBase) -> None:
    grpo = {"name": "grpo", "num_generations": 2, "refill": 5}
    script = Scripted([1, 1, 0, 3], [5, 6])
    episodes, scores, logged = script.one_iteration(
        tokenizer, 6, grpo, batch_size=4, mini_batch_size=4, missing_eos_penalty=0
    )
    assert scores == [0, 3, 5, 6]
    assert [p.id for p in episodes.prompts] == [*script.asked[0][2:], *script.asked[1]]
    first, second = episodes.group[:2].tolist(), episodes.group[2:].tolist()
    assert first[0] == first[1] != second[0] == second[1]
    assert episodes.mask.tolist() == [[True, False]] * 2 + [[True, True]] * 2
    assert episodes.logprobs.tolist() == [[-1, 0]] * 2 + [[-1, -1]] * 2
    assert episodes.ended.tolist() == [True] * 4
    assert episodes.prompt_lengths == [1] * 4
    own = [[int(p.id[1:]) + 10] for p in episodes.prompts]
    assert episodes.sequences == [[*ids, 5] for ids in own[:2]] + [[*ids, 5, 5] for ids in own[2:]]
    assert logged["objective/flat_groups"] == pytest.approx(1 / 3)
    # Without others to ask, it ends early; without `refill`, groups that are flat stay.
    script = Scripted([1, 1, 0, 3], [2, 2])
    assert script.one_iteration(tokenizer, 3, grpo, batch_size=4, mini_batch_size=4)[1] == [0, 3]
    assert len(script.asked) == 2
    plain = {"name": "grpo", "num_generations": 2}
    script = Scripted([1, 1, None, 3])
    episodes, scores, logged = script.one_iteration(tokenizer, 6, plain, batch_size=4, mini_batch_size=4)
    assert scores == [1, 1, 3]
    assert [p.id for p in episodes.prompts] == [script.asked[0][i] for i in (0, 1, 3)]
    assert logged["objective/sampled"] == 4


def test_where_nothing_teaches_the_first_scored_round_stays(tokenizer: PreTrainedTokenizerBase) -> None:
    rloo = {"name": "rloo", "num_generations": 2, "refill": 2}
    script = Scripted([None] * 4, [1, 1, None, 2], [7, 7, 7, 7])
    episodes, scores, logged = script.one_iteration(tokenizer, 6, rloo, batch_size=4, mini_batch_size=4)
    assert scores == [1, 1, 2]
    assert [p.id for p in episodes.prompts] == [script.asked[1][i] for i in (0, 1, 3)]
    assert logged["objective/sampled"] == 12
    assert logged["objective/flat_groups"] == 1
    script = Scripted([None] * 4, [None] * 4, [None] * 4)
    with pytest.raises(ValueError, match="none scores any of the 12 completions of iteration 0"):
        script.one_iteration(tokenizer, 6, rloo, batch_size=4, mini_batch_size=4)


def test_a_prompt_that_is_sampled_once_is_no_group(tokenizer: PreTrainedTokenizerBase) -> None:
    script = Scripted([1, None, 4])
    _, scores, logged = script.one_iteration(tokenizer, 3, {"name": "ppo"}, batch_size=3, mini_batch_size=3)
    assert scores == [1, 4]
    assert logged == {
        "objective/sampled": 3, "objective/scores": 2.5, "reward/left_out": pytest.approx(1 / 3),
    }  # fmt: skip


def test_each_iteration_samples_anew(tokenizer: PreTrainedTokenizerBase) -> None:
    """The same three prompts, with other seeds."""
    seeds = []
    for iteration in range(3):
        script = Scripted([1, 2, 3])
        script.one_iteration(tokenizer, 3, {"name": "ppo"}, iteration, batch_size=3, mini_batch_size=3)
        assert sorted(script.asked[0]) == ["p0", "p1", "p2"]
        seeds += script.seeds
    assert len(set(seeds)) == 9


def test_other_prompts_come_in_an_order_of_seed_and_iteration() -> None:
    prompts = [(Prompt(id=f"p{i}", text=f"{i}"), (i,)) for i in range(9)]

    def order(iteration: int, seed: int) -> list[str]:
        config = OnlineConfig(model="m", prompts="p", output="o", reward_model="r", seed=seed)
        return [p.id for p, _ in online.spare_prompts(prompts, prompts[2:4] * 2, iteration, config)]

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == ["p0", "p1", "p4", "p5", "p6", "p7", "p8"]
    orders = [order(iteration, seed) for iteration in range(3) for seed in range(2)]
    for seed in range(2):  # nor are they those of the passes, or of the prompts of the last measure
        passes = [[p.id for p, _ in shuffled(prompts, seed, epoch)] for epoch in range(-1, 3)]
        orders += [[name for name in names if name not in ("p2", "p3")] for names in passes]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_rewards_are_tried_before_the_first_step(tokenizer: PreTrainedTokenizerBase) -> None:
    """On four short completions, whatever the run's length; a reward model alone is not tried."""
    script = Scripted([0.12345, None, 2, 1000])
    common = {"model": "m", "prompts": "p", "output": "o"}
    sampler = {"max_new_tokens": 99, "temperature": 0.5}
    config = OnlineConfig(**common, rewards={"r": "m:f"}, sampler=sampler)
    requests: list[Request] = []

    class Recorder:
        def sample(self, asked: Sequence[Request]) -> list[Sample]:
            requests.extend(asked)
            script.now = script.rounds.pop()
            return [Sample((5,), (-1.0,), "stop") for _ in asked]

    prompts = [(Prompt(id=f"p{i}", text=f"{i}"), (i + 10,)) for i in range(6)]
    rewards = Rewards({"r": (2.0, script)}, config.combination, {})
    models = online.Models(tokenizer, script, None, rewards, None, None, Recorder())
    assert online.try_rewards(models, prompts, config) == ["reward r: on 4 completions 0.247, None, 4, 2e+03"]
    assert script.asked == [["p0", "p1", "p2", "p3"]]
    assert [(r.prompt_ids, r.max_new_tokens, r.stop_ids) for r in requests] == [((10 + i,), 16, (1,)) for i in range(4)]
    alone = OnlineConfig(**common, reward_model="r")
    assert online.try_rewards(models, prompts, alone) == []


def test_scores_of_several_rewards_by_hand() -> None:
    """Weights 2 and -1: a completion of both, of one, and of none."""
    rewards = {"a": (2.0, lambda _: [1.0, 3.0, None]), "b": (-1.0, lambda _: [4.0, None, None])}
    scores = score_all(rewards, Combination(), ANSWERS)
    assert scores.total.tolist() == [2 - 4, 6, 0]
    assert scores.each.tolist() == [[2, 6, 0], [-4, 0, 0]]
    assert scores.counts.tolist() == [[True, True, False], [True, False, False]]
    assert scores.known.tolist() == [True, True, False]
    assert scores.metrics() == {"reward/a": 4, "reward/b": -4, "reward/left_out": pytest.approx(1 / 3)}
    part = scores.take(torch.tensor([False, True, True]))
    assert (part.total.tolist(), part.each.tolist()) == ([6, 0], [[6, 0], [0, 0]])
    assert part.counts.tolist() == [[True, False], [False, False]]
    assert part.metrics() == {"reward/a": 6, "reward/left_out": 0.5}
    both = joined_scores([part, scores])
    assert both.total.tolist() == [6, 0, -2, 6, 0]
    assert both.each.tolist() == [[6, 0, 2, 6, 0], [0, 0, -4, 0, 0]]
    assert both.counts.tolist() == [[True, False, True, True, False], [False, False, True, False, False]]
    assert both.names == ["a", "b"]
    lowest = score_all(rewards, Combination(name="minimum"), ANSWERS)
    assert lowest.total.tolist() == [-4, 6, 0]
    spread = score_all(rewards, Combination(name="mean_less_std", pessimism=0.5), ANSWERS)
    assert_close(spread.total, torch.tensor([-1 - 0.5 * 18**0.5, 6, 0]))  # 2 and -4: variance 9 + 9
    assert score_all({"a": rewards["a"]}, Combination(), ANSWERS).metrics() == {"reward/left_out": pytest.approx(1 / 3)}


def test_how_far_rankings_cover_by_hand(tmp_path: Path) -> None:
    """log n − (n − 1)/n of n completions; other runs' models, and folders without a run, say nothing."""
    runs: dict[str, Any] = {
        "four": {"stage": "reward", "completions": 4}, "nine": {"stage": "reward", "completions": 9},
        "none": {"stage": "reward", "completions": 0}, "old": {"stage": "reward"},
        "policy": {"stage": "sft", "completions": 2}, "unknown": None,
    }  # fmt: skip
    models: dict[str, Any] = {name: SimpleNamespace(folder=str(tmp_path / name / "model")) for name in runs}
    for name, results in runs.items():
        (tmp_path / name).mkdir()
        if results is not None:
            (tmp_path / name / "done.json").write_text(json.dumps(results))
    four = math.log(4) - 3 / 4
    assert covered_kl([models["nine"]]) == pytest.approx(math.log(9) - 8 / 9)
    assert covered_kl([models["nine"], models["four"]]) == pytest.approx(four)
    assert covered_kl(models.values()) == pytest.approx(four)
    assert covered_kl([models[name] for name in ("none", "old", "policy", "unknown")]) is None


def test_sources_of_functions_are_inputs(module: Any, tmp_path: Path) -> None:
    rewards = {"a": FunctionReward(function="my_rewards:length"), "b": EndpointReward(url="http://h")}
    assert sources_of(rewards) == {"rewards.a.source": tmp_path / "my_rewards.py"}
    Path("bare").mkdir()
    for function in ("nowhere.at.all:f", "builtins:dict", "bare:f"):  # no module; none in a file; a folder
        assert sources_of({"a": FunctionReward(function=function)}) == {}, function


def test_the_working_folder_comes_first_and_goes_again(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two modules of a name it is the user's own that counts."""
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "my_rewards.py").write_text("def one(prompts, completions):\n    return [7.0, 7.0]\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "else"), *sys.path])
    before = list(sys.path)
    assert module("one")(ANSWERS) == [1.0, 1.0]
    assert sys.path == before
    with pytest.raises(ValueError, match="KeyError"):
        module("fails")(ANSWERS)
    assert sys.path == before


def test_a_function_is_called_from_any_thread(module: Any) -> None:
    """Only the main thread can be interrupted; in another one a plain function has no limit, and an async one has."""
    reward, never = module("one"), module("never", timeout_seconds=0.2)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(reward, ANSWERS).result() == [1.0, 1.0]
        with pytest.raises(ValueError, match=r"took more than 0\.2 s"):
            pool.submit(never, ANSWERS).result()


def test_kl_coef_0_and_a_policy_that_is_far_away_is_said() -> None:
    settings = {"model": "m", "prompts": "p", "output": "o", "reward_model": "r"}
    free, held = (OnlineConfig(**settings, kl_coef=beta) for beta in (0, 0.1))
    assert any("kl_coef=0 holds the policy to nothing, and its KL from the start is 12.0 nats" in w
               for w in online.warnings_of(1.0, free, 0.9, 5, 12.0))  # fmt: skip
    assert not list(online.warnings_of(1.0, held, 0.9, 5, 12.0))
    assert not list(online.warnings_of(1.0, free, 0.9, 5, 2.0))


def test_a_reward_of_other_tokens_reads_texts(
    asked: dict[str, Any], folders: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Only a value model must share the policy's tokens."""

    other = train_tokenizer(["other words make other tokens", "moon sun red"], 280)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(
            vocab_size=len(other), num_labels=1, pad_token_id=other.pad_token_id, max_position_embeddings=128, **shape
        )
    )
    model.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    config = OnlineConfig(
        **asked, reward_model=str(tmp_path / "other"), algorithm={"name": "rloo", "num_generations": 4}
    )
    online.run(config)
    assert done(config.output) is not None
    with pytest.raises(ValueError, match="reward_model"):
        online.run(
            config.model_copy(
                update={"algorithm": OnlineConfig(**asked, reward_model="x").algorithm, "output": tmp_path / "ppo"}
            )
        )
