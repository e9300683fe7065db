"""The report from a run root of made-up numbers: what it sums up, what it says, what it escapes, what it can lack."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from tutelage.report.page import examples, run, visible
from tutelage.report.summary import Folder, plain_of, read_runs, summarise, trained_models
from tutelage.report.verdict import apart, verdict
from tutelage.settings.report import ReportConfig

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> \"' \u202egnp.exe \x07 \ud800"
MODELS = ["base", "prompted", "sft", "ppo", "ppo_ptx", "sft_greedy", "ppo_greedy", "ppo_ptx_greedy"]
WINS = dict(zip(MODELS, [0.2, 0.3, 0.5, 0.6, 0.58, 0.65, 0.66, 0.9], strict=True))
STAGES = {
    "agreement": "agreement",
    "answers": "answer", "evaluation": "evaluate", "judgments": "judge", "ppo": "online", "ppo_ptx": "online",
    "rankings": "rank", "reward": "reward", "sft": "sft", "world": "world",
}  # fmt: skip


def rate(mean: float, n: int = 100) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": n}


def write_run(root: Path, name: str, settings: dict[str, Any], metrics: list[dict[str, float]], **results: Any) -> None:
    folder, stage = root / name, STAGES[name]
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 3, **settings}, sort_keys=False))
    (folder / "inputs.json").write_text(json.dumps({"identity": {"stage": stage, "settings": {}, "inputs": {}}}))
    done = {"stage": stage, "seconds": 2.0, "peak_memory_gib": 0.5, **results}
    (folder / "done.json").write_text(json.dumps(done, sort_keys=True))
    if metrics:
        timed = [{"seconds": 3.0 * row["step"] + 1} | row for row in metrics]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timed))


def write_losses(root: Path, loss: dict[str, float], documents: int = 40, noise: float = 0.01) -> None:
    """Losses of each model on documents of 10 tokens, around these means per token."""
    rng = Random(0)
    rows = [{n: [10 * (x + noise * rng.gauss(0, 1)), 10] for n, x in loss.items()} for _ in range(documents)]
    (root / "answers" / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


JUDGES = {"labelers": "simulated labelers", "gold": "the noise-free preference"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    root.mkdir()
    write_run(root, "world", {}, [])
    losses = [{"step": 0, "loss/train": 2.0}, {"step": 1, "loss/train": 1.5}, {"step": 1, "valid/loss": 1.6}]
    chosen = {"epoch": 1, "valid_loss": 1.6}
    write_run(root, "sft", {}, losses, demonstrations=10, chosen=chosen, chosen_by="validation loss")
    agreement = {"agreement": {"mean": 0.7, "low": 0.6, "high": 0.8, "pairs": 50}, "readers": {"gold": 0.8}}
    write_run(root, "rankings", {}, [], rankings=10, training_labelers=agreement, heldout_labelers=agreement)
    valid = {"accuracy": 0.66, "low": 0.6, "high": 0.72, "pairs": 90, "rankings": 9, "calibration": [[0.55, 0.6, 90.0]]}
    write_run(root, "reward", {}, [], valid={"training_labelers": valid, "heldout_labelers": valid})
    model = {"model_shared": rate(0.71), "labelers_shared": rate(0.69), "majority_shared": rate(0.83)}
    labelers = {"strict": rate(0.72), "tie_rate": rate(0.11), "kendall_tau_b": rate(0.44)}
    write_run(root, "agreement", {}, [], labelers=labelers, reward_model=model)
    curve = [{"step": i, "objective/scores": i / 2, "objective/kl": float(i), "loss/value": 1.0} for i in range(3)]
    write_run(root, "ppo", {"pretraining_texts": None}, curve)
    write_run(root, "ppo_ptx", {"pretraining_texts": "corpus.jsonl"}, curve)
    models = {name: f"/somewhere/{name}/model" for name in ("base", "sft", "ppo", "ppo_ptx")}
    settings = {"models": models, "prompted": {"prompted": "base"}, "greedy": ["sft", "ppo", "ppo_ptx"]}
    loss = {"base": 1.0, "sft": 1.2, "ppo": 1.4, "ppo_ptx": 1.29}
    kl, error = {"ppo": 4.0}, {"ppo": 0.5}
    write_run(
        root, "answers", settings, [], prompts=100, pretraining_loss=loss, kl=kl, kl_standard_error=error,
        scores=dict.fromkeys(MODELS, 0.25),
    )  # fmt: skip
    turns = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "Yes?"}]
    rows = [
        {"prompt": prompt, "use_case": use_case, "answers": dict.fromkeys(MODELS, HOSTILE)}
        for prompt, use_case in (("first", "chat"), ("second", "chat"), (turns, "a < b"))
    ]
    (root / "answers" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_losses(root, loss)
    write_run(root, "judgments", {}, [], baseline="sft", judges=JUDGES)
    wins = {name: rate(mean) for name, mean in WINS.items()}
    faults = dict.fromkeys(("hallucination", "toxicity"), wins) | {"constraint": {n: {} for n in MODELS}}
    cases = {"chat": wins}
    within, ahead = (
        {"mean": 0.01, "low": -0.02, "high": 0.04, "n": 100},
        {"mean": 0.2, "low": 0.2, "high": 0.3, "n": 100},
    )
    gain = {"ppo_greedy": {"labelers": within}, "ppo_ptx_greedy": {"labelers": ahead}}
    write_run(
        root, "evaluation", {}, [], prompts=100, win_rate=wins, gold_win_rate=wins, win_rate_by_use_case=cases,
        greedy_gain=gain, judges=list(JUDGES), **faults,
    )  # fmt: skip
    return root


def test_a_model_that_selected_answers_trained_is_spoken_of_and_the_selection_shown(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ppo` here is a model that sft made: of demonstrations that people wrote, then of what a selection chose."""
    monkeypatch.setitem(STAGES, "selected", "select")
    assert "The best of what was sampled" not in report(runs)
    shutil.rmtree(runs / "report")
    config = runs / "ppo" / "config.yaml"
    (runs / "ppo" / "inputs.json").write_text((runs / "sft" / "inputs.json").read_text())
    (runs / "ppo" / "done.json").write_text((runs / "sft" / "done.json").read_text())
    config.write_text("seed: 3\ndemonstrations: /somewhere/world/demonstrations.jsonl\npretraining_texts: null\n")
    write_run(runs, "selected", {}, [], prompts=3991, completions=23456, score=0.5, best=2.25, kl_bound=1.2044)
    assert trained_models(read_runs(runs)) == {"ppo_ptx": True}
    config.write_text(config.read_text().replace("/world/", "/selected/"))
    assert trained_models(read_runs(runs)) == {"ppo": False, "ppo_ptx": True}
    html = report(runs)
    assert "ppo beats sft" in html
    section = html.partition("The best of what was sampled")[2].partition("<h2>")[0]
    assert re.findall(r"<td>(.*?)</td>", section) == ["3,991", "23,456", "0.50", "2.25", "1.20"]


def report(runs: Path) -> str:
    run(ReportConfig(runs=runs, output=runs / "report"))
    return (runs / "report" / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Names and attributes of all elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_summary_has_the_numbers_of_every_stage(runs: Path) -> None:
    summary = summarise(runs)
    assert summary["seconds"] == dict.fromkeys(sorted(STAGES), 2.0) | {"total": 20.0}
    assert (summary["peak_memory_gib"], summary["seed"], summary["prompts"]) == (0.5, 3, 100)
    assert summary["win_rate_vs_sft"]["ppo"] == summary["gold_win_rate_vs_sft"]["ppo"] == rate(0.6)
    assert list(summary["win_rate_vs_sft"]) == MODELS  # the recipe's order, though done.json is sorted
    assert summary["reward_model"] == {
        "accuracy_train_labelers": 0.66,
        "accuracy_train_labelers_interval": [0.6, 0.72],
        "accuracy_heldout_labelers": 0.66,
        "accuracy_heldout_labelers_interval": [0.6, 0.72],
        "training_labeler_agreement": 0.7,
        "labeler_agreement": 0.7,
        "gold_ceiling": 0.8,
        "same_pairs": {"labelers": rate(0.69), "model": rate(0.71)},
    }
    assert summary["pretraining_loss"] == {"base": 1.0, "sft": 1.2, "ppo": 1.4, "ppo_ptx": 1.29}
    assert (summary["kl"], summary["kl_standard_error"]) == ({"ppo": 4.0}, {"ppo": 0.5})
    assert summary["scores"] == dict.fromkeys(MODELS, 0.25)
    assert summary["hallucination"]["base"] == summary["toxicity"]["base"] == rate(0.2)
    assert summary["constraint"] == {}  # measured on no model


def test_files_are_written_into_the_run_folder(runs: Path) -> None:
    report(runs)
    assert json.loads((runs / "report" / "summary.json").read_text()) == summarise(runs)
    assert {p.name for p in runs.iterdir()} == {*STAGES, "report"}
    said = json.loads((runs / "report" / "done.json").read_text())["verdict"]
    assert said == verdict(summarise(runs), {"ppo": False, "ppo_ptx": True}, "sft", JUDGES)


def test_verdict_says_what_holds_and_what_does_not(runs: Path) -> None:
    said = "\n".join(verdict(summarise(runs), {"ppo": False, "ppo_ptx": True}, "sft", JUDGES)).replace("\u00a0", " ")
    assert "ppo beats sft: it wins 60 % (95 % interval 55–65), all of it above one half, and gold" in said
    assert "Where both answer greedily it does not differ beyond noise from sft (-2.0 to +4.0 points, prompt" in said
    assert "Where both answer greedily it is ahead of sft (+20.0 to +30.0 points, prompt by prompt)." in said
    # Of all pairs of the held-out labelers; then of those that two of them ordered.
    choices = "predicts 66 % (95 % interval 60–72) of the choices of labelers it never learned from"
    assert f"{choices}; a noise-free reader would predict 80 % of them." in said
    assert (
        "Of the pairs that two labelers ordered, one says what the other does of 69 % (95 % interval 64–74), "
        "and the reward model of 71 % (95 % interval 66–76)." in said
    )
    # ppo rose from 1.2 to 1.4; 1.29 is 0.11 of 0.20 back, give or take a hundredth of a nat in the documents
    assert "ppo raised the loss on pretraining text from sft's 1.200 by +0.20" in said
    assert "ppo_ptx, with such text mixed in, took back at least half of it: 5" in said


def tax_said(runs: Path, loss: dict[str, float], **how: Any) -> str:
    write_losses(runs, loss, **how)
    return verdict(summarise(runs), {"ppo": False, "ppo_ptx": True}, "sft", JUDGES)[-1].replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("mixed", "words"),
    [
        (1.32, "less than half of it: 4"), (1.45, "none of it: -2"), (1.15, "all of it: 12"),
        (1.304, "an unclear part of it: 50 %"),
    ],
)  # fmt: skip
def test_verdict_on_the_tax(runs: Path, mixed: float, words: str) -> None:
    said = tax_said(runs, {"sft": 1.2, "ppo": 1.4, "ppo_ptx": mixed})
    assert f"ppo_ptx, with such text mixed in, took back {words}" in said


def test_verdict_speaks_of_a_rise_only_where_it_is_clear_of_noise(runs: Path) -> None:
    by_a_thousandth = {"sft": 1.2, "ppo": 1.201, "ppo_ptx": 1.2}
    said = tax_said(runs, by_a_thousandth)
    assert summarise(runs)["tax"]["taken_back"] == {}
    assert said.startswith("ppo changed the loss on pretraining text from sft's 1.200 by ")
    assert said.endswith("no rise that is clear of noise, so nothing for ppo_ptx to take back.")
    assert "by -0.100" in (fell := tax_said(runs, {"sft": 1.2, "ppo": 1.1, "ppo_ptx": 1.2}))
    assert fell.endswith("nothing for ppo_ptx to take back.")
    assert "pretraining text" not in tax_said(runs, {"sft": 1.2, "ppo": 1.4, "ppo_ptx": 1.3}, documents=29)  # too few


def test_the_rise_is_of_the_same_documents(runs: Path) -> None:
    """By hand: each document costs every model another 5 nats, which cancel; without noise all are alike."""
    rows = [{n: [x + 5 * i, 10] for n, x in (("sft", 12), ("ppo", 14), ("ppo_ptx", 13))} for i in range(30)]
    (runs / "answers" / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = summarise(runs)["tax"]
    same = {"mean": pytest.approx(0.2), "low": pytest.approx(0.2), "high": pytest.approx(0.2), "n": 300, "prompts": 30}
    assert found["rise"]["ppo"] == same
    assert found["taken_back"]["ppo_ptx"]["mean"] == pytest.approx(0.5)


def test_verdict_when_gold_disagrees_or_a_model_loses(runs: Path) -> None:
    summary = summarise(runs)
    summary["win_rate_vs_sft"]["ppo"] = rate(0.52)
    judges = {"labelers": "", "gold": "the noise-free preference"}
    said = verdict(summary, {"ppo": False}, "sft", judges)
    assert said[0].startswith("Judges compared")
    assert said[1].startswith("ppo is not shown to differ from sft")
    assert "but gold, the noise-free preference" in said[1]
    summary["win_rate_vs_sft"]["ppo"] = rate(0.4)
    assert verdict(summary, {"ppo": False}, "sft", judges)[1].startswith("ppo loses to sft")


def test_apart_needs_intervals_that_do_not_touch() -> None:
    assert [apart(rate(0.6), rate(m)) for m in (0.4, 0.55, 0.8)] == [1, 0, -1]


def test_hostile_text_is_shown_and_never_run(runs: Path) -> None:
    html = report(runs)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; &#34;&#39; ⟨U+202E⟩gnp.exe" in html
    assert "⟨U+0007⟩ ⟨U+D800⟩" in html
    assert "a &lt; b" in html
    assert not set("\u202e\x07") & set(html)
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in Tags(html).found}
    assert visible("שלום 👩‍🔬\n") == "שלום 👩‍🔬\n"  # right-to-left letters and joined emoji are just text


def test_page_fetches_nothing_and_its_ids_are_its_own(runs: Path) -> None:
    shutil.copytree(runs / "sft", runs / "sft_again")
    with (runs / "sft_again" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "loss/train": 1.0}')
    html = report(runs)
    assert not re.search(r"https?:|url\((?!#)|@import", html)
    tags = Tags(html).found
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}) in tags  # fmt: skip  # noqa: E501
    links = [value for _, attrs in tags for name, value in attrs.items() if name.split(":")[-1] in ("href", "src")]
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert {link[1:] for link in links if link} <= set(ids)
    assert all(link and link.startswith("#") for link in links)
    assert len(ids) == len(set(ids))


def test_examples_take_use_cases_in_turn(runs: Path) -> None:
    folders = read_runs(runs)
    assert [row["use_case"] for row in examples(folders, 12)] == ["a < b", "chat", "chat"]
    assert [row["prompt"] for row in examples(folders, 2)] == [f"user: {HOSTILE}\nassistant: Yes?", "first"]


TOGETHER = [["answers"], ["judgments", "rankings", "ppo"], ["evaluation", "world"], ["reward", "sft", "ppo_ptx"]]


@pytest.mark.parametrize("missing", TOGETHER + [[n for n in STAGES if n != kept] for kept in STAGES])
def test_any_stage_may_be_missing(runs: Path, missing: list[str]) -> None:
    for name in missing:
        shutil.rmtree(runs / name)
    html = report(runs)
    assert ("Which answers are preferred" in html) == (not {"evaluation", "answers"} <= set(missing))
    assert ("Supervised fine-tuning" in html) == ("sft" not in missing)
    assert ("The reward model" in html) == ("reward" not in missing)


def test_logs_and_answers_may_be_missing(runs: Path) -> None:
    for file in [*runs.glob("*/metrics.jsonl"), *runs.glob("*/answers.jsonl")]:
        file.unlink()
    html = report(runs)
    assert "Reinforcement learning" not in html
    assert "side by side" not in html


def test_agreement_stands_beside_the_model_on_the_same_pairs(runs: Path) -> None:
    page = report(runs)
    for shown in ("two labelers agree", "72 %", "the most anybody could", "83 %", "tau-b", "0.44 ("):
        assert shown in page
    assert "alpha" not in page  # not measured in this run


def test_agreement_of_single_labelers_is_not_a_number(runs: Path) -> None:
    done = json.loads((runs / "rankings" / "done.json").read_text())
    done["heldout_labelers"]["agreement"] = {}
    (runs / "rankings" / "done.json").write_text(json.dumps(done))
    assert "labeler_agreement" not in summarise(runs)["reward_model"]
    report(runs)


def test_an_unchanged_report_is_skipped_and_is_no_input_of_itself(runs: Path) -> None:
    first = report(runs)
    written = (runs / "report" / "report.html").stat().st_mtime_ns
    assert report(runs) == first
    assert (runs / "report" / "report.html").stat().st_mtime_ns == written
    run(ReportConfig(runs=runs, output=runs.parent / "again"))
    assert (runs.parent / "again" / "report.html").read_text() == first  # the same runs, the same bytes
    (runs / "sft" / "done.json").write_text((runs / "sft" / "done.json").read_text().replace("2.0", "9.0"))
    with pytest.raises(ValueError, match=r"other inputs: runs\.sft"):
        report(runs)


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run in it"):
        run(ReportConfig(runs=tmp_path, output=tmp_path / "report"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("done.json", "{"), ("inputs.json", "[]"), ("inputs.json", "{}"), ("config.yaml", "{"), ("answers.jsonl", "{")],
)
def test_a_damaged_run_is_named(runs: Path, name: str, content: str) -> None:
    (runs / "answers" / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^{runs / 'answers'}.*(is damaged|not valid YAML)"):
        run(ReportConfig(runs=runs, output=runs / "report"))


def test_a_run_that_lost_a_file_is_not_reported(runs: Path) -> None:
    """Its section would be missing without a word."""
    results = runs / "answers" / "done.json"
    results.write_text(json.dumps({**json.loads(results.read_text()), "files": {"gone.jsonl": 9}}))
    with pytest.raises(ValueError, match=r"^runs: .*gone.jsonl is gone; run its stage again"):
        run(ReportConfig(runs=runs, output=runs / "report"))


def test_a_folder_of_runs_can_be_renamed(runs: Path) -> None:
    first = report(runs)
    moved = runs.rename(runs.with_name("elsewhere"))
    assert report(moved) == first


def test_every_column_has_its_own_n(runs: Path) -> None:
    done = json.loads((runs / "evaluation" / "done.json").read_text())
    done["gold_win_rate"] = {name: rate(mean, 1234) for name, mean in WINS.items()}
    done["toxicity"] = {"sft": rate(0.2, 100), "ppo": rate(0.1, 37)}  # people have not judged all of ppo's yet
    (runs / "evaluation" / "done.json").write_text(json.dumps(done))
    page = report(runs).replace("\u00a0", " ")
    for title in ("wins, labelers, n = 100", "wins, gold, n = 1,234", "hallucination, n = 100", "mean score, n = 100"):
        assert f"<th>{title}</th>" in page
    assert "<th>toxicity</th>" in page
    assert "10 % (5–15), n = 37" in page


def test_the_baseline_has_its_name_without_a_judges_run(runs: Path) -> None:
    """People's judgments name it, too."""
    shutil.rmtree(runs / "judgments")
    done = json.loads((runs / "evaluation" / "done.json").read_text()) | {"baseline": "sft"}
    (runs / "evaluation" / "done.json").write_text(json.dumps(done))
    assert summarise(runs)["win_rate_vs_sft"]["ppo"] == rate(0.6)
    assert "Judges compared every model with sft" in report(runs)


def test_a_mixture_is_compared_with_its_own_algorithm() -> None:
    """Whatever was trained without text before it, and only with what answers."""
    trained = [
        ("dpo", "dpo", None, None), ("rloo", "online", "rloo", None), ("old", "online", "ppo", None),
        ("mix", "online", "ppo", "t"), ("ppo", "online", "ppo", None), ("alone", "online", "grpo", "t"),
    ]  # fmt: skip
    folders = [
        Folder(name, Path(name), stage, {}, {"pretraining_texts": text} | ({"algorithm": {"name": a}} if a else {}))
        for name, stage, a, text in trained
    ]
    models = {f"{name}_": f"runs/{name}/model" for name, *_ in trained if name != "old"}
    answer = Folder("answers", Path("answers"), "answer", {}, {"models": models})
    assert plain_of([*folders, answer]) == {"mix_": "ppo_"}


def test_curves_stand_over_what_they_cost(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "seconds": 1.5, "objective/scores": 0.0, "objective/length": 5.0, "objective/sampled": 8.0},
        {"step": 1, "seconds": 2.5, "objective/length": 10.0, "objective/sampled": 8.0},
        {"step": 2, "seconds": 4.0, "objective/scores": 1.0, "objective/length": 2.0, "objective/sampled": 16.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = Folder("ppo", tmp_path, "online", {}, {})
    assert folder.tokens("objective/scores") == [40.0, 152.0]  # 8 · 5, then 8 · 10 and 16 · 2 more
    assert folder.seconds("objective/scores") == [1.5, 4.0]
