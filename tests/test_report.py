"""The report from a run root of made-up numbers: what it sums up, what it says, what it escapes, what it can lack."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from matplotlib.figure import Figure

from tutelage.cli import main
from tutelage.report import figures
from tutelage.report.headlines import Headline, apart, headlines
from tutelage.report.overoptimization import falls
from tutelage.report.page import examples, run, visible
from tutelage.report.summary import Folder, plain_of, read_runs, start_of, summarise, trained_models
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
    assert 'id="selection"' not in report(runs)
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
    assert "Yes: ppo_ptx" not in html  # both are ahead
    section = html.partition('<h2 id="selection">')[2].partition("<h2")[0]
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
    answers = json.loads((runs / "report" / "done.json").read_text())["headlines"]
    assert [each["answer"] for each in answers] == [each.answer for each in lead(summarise(runs))]


def lead(summary: dict[str, Any], judges: dict[str, str] = JUDGES) -> list[Headline]:
    return headlines(summary, ["ppo", "ppo_ptx"], "sft", judges, "base")


def words(headline: Headline) -> str:
    return " ".join([*headline.figures.values(), *headline.sentences]).replace("\u00a0", " ")


def test_the_page_leads_with_five_answers(runs: Path) -> None:
    preferred, price, hacked, sound, fault = lead(summarise(runs))
    assert (preferred.answer, preferred.sign) == ("Yes", 1)  # .6 ± .05 and .58 ± .05
    assert preferred.figures["ppo"] == "60\u00a0% (55–65)"
    said = words(preferred)
    assert "Simulated labelers compared every model with sft on 100 held-out prompts; 50 % is no better" in said
    assert "By gold (the noise-free preference), too." in said
    assert "Where all answer greedily, ppo is not shown to differ from sft." in said
    assert "Where all answer greedily, ppo_ptx is ahead of sft." in said
    assert "<td>+20.0 (+20.0 to +30.0)</td>" in report(runs)
    assert (price.answer, price.sign) == ("Paid by ppo and ppo_ptx", -1)
    assert price.figures["ppo"].startswith("+0.20")  # from 1.2 to 1.4
    assert "ppo_ptx took back at least half of ppo's rise: 5" in words(price)
    assert (hacked.answer, hacked.sign) == ("Not shown either way", 0)  # all scores are .25, so none rose
    assert (sound.answer, sound.sign) == ("Yes", 1)
    assert sound.figures["predicts"] == "66\u00a0% (60–72)"
    assert sound.figures["gold"] == "80\u00a0%"
    assert sound.figures["it agrees"] == "71\u00a0% (66–76)"
    assert (fault.answer, fault.sign) == ("Optimisation", -1)
    assert "the score of ppo did not rise" in words(fault)


def test_a_score_that_rises_without_preference_is_hacked(runs: Path) -> None:
    summary = summarise(runs)
    summary["scores"] |= {"ppo": 1.25, "ppo_ptx": 0.75}
    *_, hacked, _, fault = lead(summary)
    assert (hacked.answer, hacked.sign, fault.answer) == ("No sign of it", 1, "None")
    assert hacked.figures["ppo"] == "+1.00, wins 60\u00a0%"
    summary["win_rate_vs_sft"]["ppo"] = rate(0.52)
    *_, hacked, _, fault = lead(summary)
    assert (hacked.answer, hacked.sign) == ("Not shown either way", 0)
    assert "No gain of ppo is shown" in words(hacked)
    assert (fault.answer, words(fault)) == (
        "The reward", "The reward: the score of ppo rose, but not its win rate: try a higher kl_coef, or more rankings."
    )  # fmt: skip
    summary["win_rate_vs_sft"]["ppo"] = rate(0.4)
    assert (lead(summary)[2].answer, lead(summary)[2].sign) == ("Yes: ppo", -1)


def test_where_preference_turned_is_said_beside_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "over", "overoptimize")
    golds = [(0.5, rate(0.2)), (1.0, rate(0.4)), (2.0, rate(0.32)), (3.0, rate(0.29))]
    points = [{"n": 1, "kl_bound": kl, "proxy": rate(kl), "gold": gold} for kl, gold in golds]
    curves = {"flat": {"points": points[:3], "fit": None}, "bent": {"points": points, "fit": None}}
    write_run(runs, "over", {}, [], best_of_n=curves, curves={})
    assert falls(read_runs(runs)) == {"bent, over": {"kl": 1.0, "best": rate(0.4), "last": rate(0.29)}}
    summary = summarise(runs) | {"overoptimization": falls(read_runs(runs))}
    summary["scores"] |= {"ppo": 1.25, "ppo_ptx": 0.75}
    assert "(bent, over), the score rises and preference falls: +0.40 (+0.35 to +0.45) at a KL of 1.0 nats, +0.29" in words(lead(summary)[2])  # fmt: skip  # noqa: E501
    summary["overoptimization"] = {}
    assert "optimising it further is not shown to do harm" in words(lead(summary)[2])
    report(runs)
    assert "overoptimization" in json.loads((runs / "report" / "summary.json").read_text())


def test_the_first_stage_that_fails_is_at_fault(runs: Path) -> None:
    summary = summarise(runs)
    summary["scores"] |= {"ppo": 1.25, "ppo_ptx": 0.75}
    summary["reward_model"]["accuracy_heldout_labelers_interval"] = [0.45, 0.72]
    *_, sound, fault = lead(summary)
    assert (sound.answer, fault.answer) == ("No: not shown to beat chance", "The reward model")
    summary["reward_model"]["same_pairs"]["labelers"] = rate(0.52)
    assert lead(summary)[-1].answer == "Labels"
    summary["win_rate_vs_sft"]["base"] = rate(0.48)
    assert lead(summary)[-1].answer == "Fine-tuning"
    assert len(lead(summary)[-1].sentences) == 3


def test_fine_tuning_is_compared_with_what_it_began_from(runs: Path) -> None:
    """Whatever that is called; nothing, if it did not answer."""
    assert start_of(read_runs(runs)) is None
    config = runs / "sft" / "config.yaml"
    config.write_text(config.read_text() + "model: /somewhere/base/model\n")
    assert start_of(read_runs(runs)) == "base"
    config.write_text(config.read_text().replace("/base/", "/other/"))
    assert start_of(read_runs(runs)) is None


def test_a_reward_model_that_agrees_less_than_labelers_do(runs: Path) -> None:
    summary = summarise(runs)
    summary["reward_model"]["same_pairs"]["model"] = rate(0.58)
    assert (lead(summary)[3].answer, lead(summary)[3].sign) == ("Less than a labeler", 0)


def test_faults_of_the_reward_model_stand_in_the_lead(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "measured", "measure")
    write_run(runs, "measured", {}, [], by={}, verdict="", faults={})
    assert lead(summarise(runs))[3].answer == "Yes"
    assert "No fault is shown" in words(lead(summarise(runs))[3])
    done = json.loads((runs / "measured" / "done.json").read_text())
    done["faults"] = {"prefers length": "it expects the longer answer to win too often"}
    (runs / "measured" / "done.json").write_text(json.dumps(done))
    sound = lead(summarise(runs))[3]
    assert (sound.answer, sound.sign) == ("Yes, but prefers length", 0)
    assert "It expects the longer answer to win too often." in sound.sentences


def test_without_figures_the_lead_says_what_to_run(tmp_path: Path) -> None:
    write_run(tmp_path, "world", {}, [])
    answers = headlines(summarise(tmp_path), [], "baseline", {"labelers": ""})
    assert [(each.answer, each.mark) for each in answers] == [("Not measured", "?")] * 5
    assert all(each.sentences for each in answers)
    assert "tutelage judge" in report(tmp_path)


def tax_said(runs: Path, loss: dict[str, float], **how: Any) -> Headline:
    write_losses(runs, loss, **how)
    return lead(summarise(runs))[1]


@pytest.mark.parametrize(
    ("mixed", "share"),
    [
        (1.32, "less than half of ppo's rise: 4"), (1.45, "none of ppo's rise: -2"), (1.15, "all of ppo's rise: 12"),
        (1.304, "an unclear part of ppo's rise: 50 %"),
    ],
)  # fmt: skip
def test_what_the_mixture_took_back(runs: Path, mixed: float, share: str) -> None:
    said = words(tax_said(runs, {"sft": 1.2, "ppo": 1.4, "ppo_ptx": mixed}))
    assert f"With pretraining text mixed in, ppo_ptx took back {share}" in said


def test_a_rise_is_a_price_only_where_it_is_clear_of_noise(runs: Path) -> None:
    price = tax_said(runs, {"sft": 1.2, "ppo": 1.201, "ppo_ptx": 1.2})
    assert summarise(runs)["tax"]["taken_back"] == {}
    assert (price.answer, price.sign) == ("None shown", 1)
    assert words(price).endswith(
        "ppo shows no rise that is clear of noise, so there is nothing for ppo_ptx to take back."
    )
    fell = tax_said(runs, {"sft": 1.2, "ppo": 1.1, "ppo_ptx": 1.2})
    assert fell.figures["ppo"].startswith("-0.10")
    assert words(fell).endswith("nothing for ppo_ptx to take back.")
    few = tax_said(runs, {"sft": 1.2, "ppo": 1.4, "ppo_ptx": 1.3}, documents=29)
    assert few.answer == "Not measured"


def test_the_rise_is_of_the_same_documents(runs: Path) -> None:
    """By hand: each document costs every model another 5 nats, which cancel; without noise all are alike."""
    rows = [{n: [x + 5 * i, 10] for n, x in (("sft", 12), ("ppo", 14), ("ppo_ptx", 13))} for i in range(30)]
    (runs / "answers" / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = summarise(runs)["tax"]
    same = {"mean": pytest.approx(0.2), "low": pytest.approx(0.2), "high": pytest.approx(0.2), "n": 300, "prompts": 30}
    assert measured["rise"]["ppo"] == same
    assert measured["taken_back"]["ppo_ptx"]["mean"] == pytest.approx(0.5)


def test_the_lead_when_judges_disagree_or_a_model_loses(runs: Path) -> None:
    summary = summarise(runs)
    summary["win_rate_vs_sft"]["ppo"] = rate(0.52)
    preferred = lead(summary, {"labelers": "", "gold": "the noise-free preference"})[0]
    assert words(preferred).count("Judges compared") == 1
    assert (preferred.answer, preferred.sign) == ("Yes: ppo_ptx", 0)
    assert "But gold (the noise-free preference) sees it otherwise: ppo 60 % (55–65)" in words(preferred)
    summary["win_rate_vs_sft"] |= {"ppo": rate(0.4), "ppo_ptx": rate(0.45)}
    assert lead(summary)[0].answer == "Not shown"
    summary["win_rate_vs_sft"]["ppo_ptx"] = rate(0.3)
    assert lead(summary)[0].answer == "No: sft is preferred"


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
    files = {f"figures/{path.name}" for path in (runs / "report" / "figures").iterdir()}
    assert {link for link in links if not str(link).startswith("#")} == files
    assert {link[1:] for link in links if link and link.startswith("#")} <= set(ids)
    assert len(ids) == len(set(ids))


def test_examples_take_use_cases_in_turn(runs: Path) -> None:
    folders = read_runs(runs)
    assert [row["use_case"] for row in examples(folders, 12)] == ["a < b", "chat", "chat"]
    assert [row["prompt"] for row in examples(folders, 2)] == [f"user: {HOSTILE}\nassistant: Yes?", "first"]


def test_figures_are_files_with_their_numbers(runs: Path) -> None:
    html = report(runs)
    folder = runs / "report" / "figures"
    assert len(list(folder.glob("*.svg"))) == len(list(folder.glob("*.csv"))) == html.count("<svg ")
    for path in folder.glob("*.svg"):
        ElementTree.parse(path)
    with (folder / "win-rates.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert (rows[3]["series"], rows[3]["name"], rows[3]["mean"], rows[3]["high"]) == (
        "labelers",
        "ppo_ptx",
        "0.58",
        "0.63",
    )
    with (folder / "score-by-the-reward-model-by-iteration.csv").open() as stream:
        assert list(csv.reader(stream))[:3] == [
            ["run", "iteration", "Score by the reward model"], ["ppo", "0", "0.0"], ["ppo", "1", "0.5"]
        ]  # fmt: skip


def cells(html: str, section: str) -> list[str]:
    part = html.partition(f'<h2 id="{section}">')[2].partition("<h2")[0]
    return [cell.replace("\u00a0", " ") for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", part)]


def test_ratings_arms_and_flags_of_an_evaluation(runs: Path) -> None:
    done = json.loads((runs / "evaluation" / "done.json").read_text())
    done["ratings"] = {"sft": {"mean": 0.0, "low": 0.0, "high": 0.0}, "ppo": {"mean": 0.5, "low": None, "high": None}}
    done["likert"] = {"ppo": {"mean": 5.25, "low": 5.0, "high": 5.5}}
    done["length_controlled_win_rate"] = {"ppo": rate(0.55)}
    done["win_rate_for_other_labelers"] = {"ppo": rate(0.6)}
    done["win_rate_by_arm"] = {"heldout": {"ppo": rate(0.62)}}
    done["flags"] = {"harmful": {"ppo": rate(0.1)}}
    (runs / "evaluation" / "done.json").write_text(json.dumps(done))
    html = report(runs)
    preferred = cells(html, "preferred")
    assert preferred[preferred.index("rating, nats") :] == [
        "rating, nats", "quality, 1–7", "wins at equal length", "wins, had others judged",
        "sft", "0.00 (0.00 to 0.00)", "–", "–", "–",
        "ppo", "0.50", "5.25 (5.00 to 5.50)", "55 % (50–60)", "60 % (55–65)",
    ]  # fmt: skip
    assert cells(html, "cases")[:4] == ["model", "heldout, n = 100", "ppo", "62 % (57–67)"]
    assert "10 % (5–15)" in cells(html, "faults")


def test_benchmarks_mark_what_is_clear_of_noise(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "benchmarks", "benchmark")
    rows = [
        {
            "task": "lambada", "measure": "accuracy", "better": "higher",
            "values": {"base": rate(0.3), "ppo": rate(0.2)}, "differences": {"ppo": {}}, "verdict": {"ppo": "worse"},
        },
        {
            "task": "truthfulqa", "measure": "mc1", "better": "higher",
            "values": {"base": rate(0.25), "ppo": rate(0.26)}, "differences": {}, "verdict": {"ppo": "not clear"},
        },
    ]  # fmt: skip
    write_run(runs, "benchmarks", {}, [], tax=rows, baseline="base")
    assert cells(report(runs), "tax") == [
        "benchmark", "base", "ppo",
        "lambada, accuracy", "0.300 (0.250 to 0.350)", "0.200 (0.150 to 0.250) ▼",
        "truthfulqa, mc1", "0.250 (0.200 to 0.300)", "0.260 (0.210 to 0.310)",
    ]  # fmt: skip


def test_gold_is_drawn_beside_the_proxy(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "over", "overoptimize")
    number = {"mean": 1.0, "low": 0.9, "high": 1.1}
    peak = {"d": {"mean": 2.0, "low": 1.5, "high": None}, "gold": number, "share": 0.9, "inside": False}
    fit = {
        "form": "best_of_n", "alpha": number, "beta": number, "peak": peak, "held_out": {"gain": number},
    }  # fmt: skip
    points = [{"n": n, "kl_bound": n / 4, "proxy": rate(n / 2), "gold": rate(n / 3)} for n in (1, 2, 4)]
    policies = [
        {"point": str(kl), "kl": {"mean": kl}, "proxies": {"rm": rate(kl), "other": rate(0.3)}, "gold": rate(1.0)}
        for kl in (2.0, 1.0)
    ]
    best = {
        "best": "kl_coef=0.1", "gold": number, "shares": {}, "low": 0.03, "high": 1.0, "spans_grid": False,
    }  # fmt: skip
    write_run(
        runs, "over", {}, [], best_of_n={"rm": {"points": points, "fit": fit}},
        curves={"beta": {"points": policies, "fit": None}}, best={"beta": best},
    )  # fmt: skip
    assert cells(report(runs), "over") == [
        "curve", "α", "β", "gold highest at d", "gold there", "predicts better by",
        "rm, over", *["1.00 (0.90 to 1.10)"] * 2, "2.00, beyond what was measured", *["1.00 (0.90 to 1.10)"] * 2,
        "sweep", "best", "its gold", "95 % of the time from, to",
        "beta, over", "kl_coef=0.1", "1.00 (0.90 to 1.10)", "0.03, 1",
    ]  # fmt: skip
    with (runs / "report" / "figures" / "best-of-n-by-rm-over.csv").open() as stream:
        assert [row[:4] for row in csv.reader(stream)][1:5] == [
            ["0.25", "rm", "0.5", "0.45"], ["0.5", "rm", "1.0", "0.95"], ["1.0", "rm", "2.0", "1.95"],
            ["0.25", "gold", "0.3333333333333333", "0.2833333333333333"],
        ]  # fmt: skip
    with (runs / "report" / "figures" / "policies-of-beta-over.csv").open() as stream:
        rows = [(row["score"], row["kl"]) for row in csv.DictReader(stream)]
    # By what they spent, each proxy by its name: only one of them was optimised.
    assert rows == [(name, kl) for name in ("other", "rm", "gold") for kl in ("1.0", "2.0")]


def test_parts_of_a_reward_models_pairs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "measured", "measure")
    by = {"length": {"longer": rate(0.7) | {"pairs": 1234}}, "arm": {"heldout": rate(0.6) | {"pairs": 50}}}
    write_run(runs, "measured", {}, [], by=by, verdict="It is sound.")
    html = report(runs)
    assert "<b>measured</b>: It is sound." in html
    assert cells(html, "reward")[:9] == [
        "pairs", "accuracy", "pairs", "labelers: heldout", "60 % (55–65)", "50",
        "the chosen one is: longer", "70 % (65–75)", "1,234",
    ]  # fmt: skip


def test_score_and_preference_stand_over_the_kl_spent(runs: Path) -> None:
    """The reference has none; what KL was not measured of is left out."""
    settings = yaml.safe_load((runs / "answers" / "config.yaml").read_text()) | {"reference": "sft"}
    (runs / "answers" / "config.yaml").write_text(yaml.safe_dump(settings))
    report(runs)
    with (runs / "report" / "figures" / "mean-score-and-win-rate-against-sft-against-kl.csv").open() as stream:
        rows = [(r["model"], r["kl"], r["score"], r["judge"], r["mean"]) for r in csv.DictReader(stream)]
    assert rows == [
        ("sft", "0.0", "0.25", "labelers", "0.5"), ("sft", "0.0", "0.25", "gold", "0.5"),
        ("ppo", "4.0", "0.25", "labelers", "0.6"), ("ppo", "4.0", "0.25", "gold", "0.6"),
    ]  # fmt: skip


def test_score_stands_over_kl_without_a_judge(runs: Path) -> None:
    shutil.rmtree(runs / "evaluation")
    settings = yaml.safe_load((runs / "answers" / "config.yaml").read_text()) | {"reference": "sft"}
    (runs / "answers" / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "Without a judge it says nothing of preference" in report(runs)
    with (runs / "report" / "figures" / "mean-score-against-kl.csv").open() as stream:
        rows = [(row["model"], row["kl"], row["judge"], row["mean"]) for row in csv.DictReader(stream)]
    assert rows == [("sft", "0.0", "", ""), ("ppo", "4.0", "", "")]


def test_names_of_points_keep_apart() -> None:
    """Four points at one height, at the top of the axes."""
    axes = Figure().add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 14))
    figures._name_points(axes, dict.fromkeys("abcd", (0.5, 13.9)))
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert heights == pytest.approx([11 / 14, 12 / 14, 13 / 14, 1.0])


def test_contents_name_the_sections_that_are_there(runs: Path) -> None:
    html = report(runs)
    nav = html.partition("<nav")[2].partition("</nav>")[0]
    assert re.findall(r'href="#(.*?)"', nav) == re.findall(r'<h2 id="(.*?)"', html)


def test_several_folders_make_one_page(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (runs / "ppo").rename(tmp_path / "more" / "ppo")
    run(ReportConfig(runs=(str(runs), str(tmp_path / "more" / "ppo")), output=tmp_path / "report"))
    assert json.loads((tmp_path / "report" / "done.json").read_text())["runs"] == sorted(STAGES)
    shutil.copytree(tmp_path / "more" / "ppo", runs / "ppo")
    with pytest.raises(ValueError, match="runs: two are called 'ppo'"):
        run(ReportConfig(runs=(str(runs), str(tmp_path / "more" / "ppo")), output=tmp_path / "again"))


def test_the_command_takes_run_folders(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs)]) == 0
    assert (runs / "report" / "report.html").exists()
    assert "Is it preferred? Yes\n" in capsys.readouterr().err


def test_series_differ_without_colour() -> None:
    assert len({(figures.colour(k), figures.dash(k)) for k in range(18)}) == 18


TOGETHER = [["answers"], ["judgments", "rankings", "ppo"], ["evaluation", "world"], ["reward", "sft", "ppo_ptx"]]


@pytest.mark.parametrize("missing", TOGETHER + [[n for n in STAGES if n != kept] for kept in STAGES])
def test_any_stage_may_be_missing(runs: Path, missing: list[str]) -> None:
    for name in missing:
        shutil.rmtree(runs / name)
    html = report(runs)
    assert ('<h2 id="preferred">' in html) == (not {"evaluation", "answers"} <= set(missing))
    assert ('<h2 id="sft">' in html) == ("sft" not in missing)
    assert ('<h2 id="reward">' in html) == ("reward" not in missing)
    absent = {"sft": "tutelage sft", "agreement": "tutelage agreement", "evaluation": "tutelage evaluate"}
    section = html.partition('<h2 id="missing">')[2].partition("<h2")[0]
    assert {name for name, what in absent.items() if what in section} == absent.keys() & set(missing)


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
    moved = runs.parent.rename(runs.parent.with_name("elsewhere"))
    assert report(moved / runs.name) == first


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
