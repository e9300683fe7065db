"""Every stage once, by the commands that README shows, on next to nothing; and the documents are true of it."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import select, update

from tutelage.cli import build, main
from tutelage.data.datasets import read_demonstrations, read_prompts, read_rankings, write_jsonl
from tutelage.lab.world import people, rank
from tutelage.labeling.store import accounts
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.database import open_workspace
from tutelage.labeling.store.schema import tasks
from tutelage.models.loading import load_policy
from tutelage.models.precision import trains_in_bf16
from tutelage.models.tokens import load_tokenizer
from tutelage.recipe import BASE, STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    assert main(["run", "smoke", "--output", str(folder)]) == 0
    return folder


def commands(page: str = README) -> list[list[str]]:
    """Every `tutelage …` line of a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if re.match(r"(\.venv/bin/)?tutelage ", line)]


def test_the_summary_has_what_the_report_promises(smoke: Path) -> None:
    summary = json.loads((smoke / "report" / "summary.json").read_text())
    assert set(summary["win_rate_vs_sft"]) >= {"base", "prompted", "sft", "ppo", "ppo_ptx", "sft_greedy", "ppo_greedy"}
    assert summary["win_rate_vs_sft"]["sft"]["mean"] == 0.5
    for rate in summary["gold_win_rate_vs_sft"].values():
        assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    for key in ("accuracy_train_labelers", "accuracy_heldout_labelers", "labeler_agreement", "gold_ceiling"):
        assert 0 < summary["reward_model"][key] < 1
    assert set(summary["pretraining_loss"]) == {"base", "sft", "dpo", "grpo", "ppo", "ppo_ptx"}
    assert set(summary["kl"]) >= {"ppo", "ppo_ptx"}
    for fault in ("hallucination", "constraint", "toxicity"):
        assert set(summary[fault]) >= {"base", "sft", "ppo", "ppo_ptx"}
    assert summary["seconds"]["total"] > summary["seconds"]["ppo"] > 0
    assert "<html" in (smoke / "report" / "report.html").read_text()


def test_a_second_run_does_nothing(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in smoke.rglob("*") if p.is_file()}
    assert main(["run", "smoke", "--output", str(smoke)]) == 0
    assert {p: p.stat().st_mtime_ns for p in smoke.rglob("*") if p.is_file()} == before
    captured = capsys.readouterr()
    assert captured.err.count("done already") == 16
    assert captured.out == f"{smoke / 'report' / 'report.html'}\n"


def test_rollouts_start_at_the_reference(smoke: Path) -> None:
    first = json.loads((smoke / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    folder = smoke / "sft" / "model"
    rounded = trains_in_bf16(load_policy(folder, load_tokenizer(folder)))  # then samples are drawn in bf16
    assert abs(first["objective/kl"]) < (0.02 if rounded else 1e-3)
    assert first["val/ratio"] == pytest.approx(1.0, abs=3e-3 if rounded else 1e-5)


def test_every_metric_is_explained_and_none_is_invented(smoke: Path) -> None:
    explained = set(re.findall(r"^\| `([^`]+)` \|", METRICS.split("## Results")[0], flags=re.MULTILINE))
    logged = {
        key
        for path in smoke.rglob("metrics.jsonl")
        for line in path.read_text().splitlines()
        for key in json.loads(line)
    }
    assert logged <= explained
    # In the smoke recipe validation loss chooses, and one reward scores everything (test_rewards.py has several).
    absent = {"valid/score", "reward/NAME", "reward/left_out", "objective/heldout_scores"}
    assert explained - logged == absent


def test_every_result_that_is_explained_is_there(smoke: Path) -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| (\w+)", METRICS.split("## Results")[1], flags=re.MULTILINE)
    assert len(rows) == 9
    found = {"report": set(json.loads((smoke / "report" / "summary.json").read_text()))}
    for path in smoke.glob("*/done.json"):
        done = json.loads(path.read_text())
        found.setdefault(done["stage"], set()).update(done)
    for names, stage in rows:
        assert set(re.findall(r"`(\w+)`", names.replace("JUDGE", "gold"))) <= found[stage]
    assert json.loads((smoke / "report" / "summary.json").read_text())["tax"]["rise"]["ppo"]["prompts"] == 40


def test_no_file_of_a_recipe_holds_what_is_no_json(smoke: Path) -> None:
    files = [path for path in smoke.rglob("*.json*") if path.suffix in (".json", ".jsonl")]
    assert len({path.name for path in files}) > 15
    for path in files:
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(line, parse_constant=lambda name, path=path: pytest.fail(f"{path}: {name}"))


def test_readme_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"`([a-z-]+)`", README.split("## The commands")[1].split("## ")[0]))
    assert named == {*STAGES, "demo", "run", "chat", "compare", "label"}
    for line in commands():
        parser = build(line[0])
        parser.parse_args(line)


def test_readme_commands_run(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands under "your own model and files", in order, on the smoke run's files."""
    monkeypatch.chdir(tmp_path)
    world = smoke / "world"
    Path("prompts.jsonl").write_bytes((world / "prompts_ppo.jsonl").read_bytes())
    Path("demonstrations.jsonl").write_bytes((world / "demonstrations_valid.jsonl").read_bytes())
    Path("rankings.jsonl").write_bytes((smoke / "rankings" / "rankings.jsonl").read_bytes())
    heldout = smoke / "rankings" / "rankings_heldout_labelers.jsonl"
    Path("other_rankings.jsonl").write_bytes(heldout.read_bytes())
    small = {
        "sft": ["--epochs", "1", "--max-completion-tokens", "40"],
        "collect": ["--sampler.max-new-tokens", "8"],
        "reward": [],
        "measure": [],
        "online": [
            "--total-episodes",
            "16",
            "--batch-size",
            "16",
            "--mini-batch-size",
            "16",
            "--sampler.max-new-tokens",
            "8",
        ],
        "select": [],
        "compare": ["--limit", "3", "--max-new-tokens", "8"],
    }
    ran = []
    for line in commands():
        if line[0] in small:
            line = [str(BASE) if word == "MODEL" else word for word in line]
            assert main([*line, *small[line[0]]]) == 0, capsys.readouterr().err
            ran.append(line[0])
    assert ran == list(small)
    assert "against" in capsys.readouterr().out
    Path("recipe.yaml").write_text(
        "stages:\n  world: {documents: 5, valid_documents: 2, sft_prompts: 5, valid_prompts: 2,\n"
        "    reward_prompts: 2, reward_valid_prompts: 2, ppo_prompts: 2, test_prompts: 2}\n"
    )
    assert main(["run", "recipe.yaml", "--output", "runs/mine"]) == 0


def test_the_labeling_guide_leads_to_a_reward_model(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/labeling.md's first commands in order; a simulated labeler ranks where the reader would."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/smoke").symlink_to(smoke)
    ran = []
    for line in commands((ROOT / "docs" / "labeling.md").read_text(encoding="utf-8")):
        build(line[0]).parse_args(line)
        if line[0] == "run":
            continue
        if line[:2] == ["label", "serve"]:
            workspace = open_workspace(Path(line[2]))
            continue
        if line[:2] == ["label", "export"]:
            with workspace.write() as connection:
                person = accounts.add_person(connection, workspace, NewPerson("Olga", "owner"))
                prompts = connection.execute(select(tasks.c.rate)).scalars().all()
                connection.execute(update(tasks).values(rate=False))  # the simulated labeler only ranks
            assert prompts
            assert all(prompts)
            rank.work(workspace, {person: people.hire("training", 1, 0)[0]}, Random(0))
        assert main(line) == 0, capsys.readouterr().err
        ran.append(" ".join(line[:2] if line[0] == "label" else line[:1]))
    workspace.close()
    assert ran == ["label prompts", "collect", "label queue", "label export", "reward", "compare"]
    assert Path("runs/work-reward/model/config.json").exists()


def test_the_chat_recipe_takes_files_of_messages_through_all_stages(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs as UltraFeedback writes them, ShareGPT's demonstrations, and the small base that comes with the project."""
    demonstrations = read_demonstrations(smoke / "world" / "demonstrations_valid.jsonl").records
    pairs = [pair for r in read_rankings(smoke / "rankings" / "rankings.jsonl").records for pair in r.comparisons()]
    asked = {pair.prompt.id: pair.prompt.text[-1].content for pair in pairs if not isinstance(pair.prompt.text, str)}
    write_jsonl(
        tmp_path / "demonstrations.jsonl",
        [
            {"conversations": [{"from": "human", "value": d.prompt.text[-1].content},  # type: ignore[union-attr]
                               {"from": "gpt", "value": d.completion}]}
            for d in demonstrations
        ],
    )  # fmt: skip
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": asked[p.prompt.id]}
            | {
                name: [{"role": "user", "content": asked[p.prompt.id]}, {"role": "assistant", "content": text}]
                for name, text in (("chosen", p.chosen), ("rejected", p.rejected))
            }
            for p in pairs
        ],
    )
    given = {
        "model": BASE, "demonstrations": tmp_path / "demonstrations.jsonl", "rankings": tmp_path / "pairs.jsonl",
        "sft.epochs": 1, "sft.optimizer.learning_rate": "1e-3", "reward.optimizer.learning_rate": "1e-3",
        "ppo.total_episodes": 32, "ppo.batch_size": 32, "ppo.sampler.max_new_tokens": 16,
        "answers.sampler.max_new_tokens": 16,
    }  # fmt: skip
    options = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    assert main(["run", "chat", "--output", str(tmp_path / "mine"), *options]) == 0
    captured = capsys.readouterr()
    report = tmp_path / "mine" / "report" / "report.html"
    assert captured.out.splitlines()[-1] == str(report)
    assert report.is_file()
    found = {
        name: json.loads((tmp_path / "mine" / name / "done.json").read_text()) for name in ("sft", "reward", "ppo")
    }
    assert found["sft"]["demonstrations"] + found["sft"]["valid_demonstrations"] == len(demonstrations)
    assert found["reward"]["verdict"]["held_out"] in captured.err
    assert found["ppo"]["prompts"] + found["ppo"]["dropped"].get("too long", 0) == len(pairs)


def test_the_python_example_runs(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "python_api.py"))
    demonstrations, rankings = smoke / "world" / "demonstrations_valid.jsonl", smoke / "rankings" / "rankings.jsonl"
    model = example["train"](str(BASE), str(demonstrations), str(rankings), tmp_path, learning_rate=1e-3, episodes=128)
    assert capsys.readouterr().out.startswith("held_out: ")
    assert model == tmp_path / "ppo" / "model"
    answers = example["ask"](model, "List three animals.", "Name a colour.")
    assert len(answers) == 2
    assert all(isinstance(answer, str) for answer in answers)


def test_the_example_of_a_verifiable_reward(tmp_path: Path) -> None:
    """Demonstrations earn the reward, the column reaches it, and no opening that is held out is trained on."""
    example = runpy.run_path(str(ROOT / "examples" / "verifiable_reward.py"))
    assert example["uses_word"](None, ["Two parks.", "The Park!"], word=["park", "park"]) == [0.0, 1.0]
    stories = [f"Cat {n} once sat down by a big tree. It saw a bird there. The water was cold." for n in range(20)]
    write_jsonl(tmp_path / "stories.jsonl", [{"text": story} for story in stories])
    example["prepare"](tmp_path / "stories.jsonl", tmp_path)
    demonstrations = read_demonstrations(tmp_path / "demonstrations.jsonl").records
    assert len(demonstrations) == 16 * 3
    words = [str(d.prompt.text).split()[1] for d in demonstrations]
    assert example["uses_word"](None, [d.completion for d in demonstrations], words) == [1.0] * len(words)
    train, test = (read_prompts(tmp_path / f"{n}.jsonl", columns=True).records for n in ("prompts", "prompts_test"))
    assert (len(train), len(test)) == (16, 4)
    assert all(p.meta["word"] in str(p.text).split() for p in (*train, *test))
    opening = {str(p.text).partition("\n")[2] for p in test}
    assert not opening & {str(p.text).partition("\n")[2] for p in (*train, *(d.prompt for d in demonstrations))}


def test_what_stages_write_is_read_by_the_next(smoke: Path) -> None:
    assert read_demonstrations(smoke / "world" / "demonstrations.jsonl").records
    rankings = read_rankings(smoke / "rankings" / "rankings.jsonl").records
    assert {r.labeler.split("-")[0] for r in rankings} == {"training"}  # held-out labelers never train
    test = {p.id for p in read_prompts(smoke / "world" / "prompts_test.jsonl").records}
    assert not test & {r.prompt.id for r in rankings}


def test_chat_talks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["List two animals.", "/new", "[bold]x[/bold]", "/quit"])
    monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: next(lines))
    assert main(["chat", "base", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out.count("model") >= 2
