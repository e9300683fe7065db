"""Files in and out: who goes where, what is revealed, round trips, and what erasure leaves."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, String, cast, delete, func, select, update

from tutelage.data.datasets import read_demonstrations, read_rankings, read_rows
from tutelage.data.records import Completion, Prompt
from tutelage.evaluation import preference
from tutelage.labeling.store import accounts, assignment, exchange
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.answers import FLAGS
from tutelage.labeling.store.database import Workspace, open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.prompts import add_prompts, erase_prompt, erase_user
from tutelage.labeling.store.schema import answers, assignments, completions, events, metadata, people, prompts, tasks
from tutelage.labeling.store.tasks import Terms, add_task, queue_comparisons
from tutelage.settings.evaluation import EvaluateConfig
from tutelage.stats import agreement

TRAINING_FILES = ("rankings.jsonl", "demonstrations.jsonl", "pairs.jsonl")


def hire(workspace: Workspace, name: str, arm: str = "training", **how: Any) -> int:
    with workspace.write() as connection:
        return accounts.add_person(connection, workspace, NewPerson(name, arm=arm, **how))


def put(
    workspace: Workspace, kind: Any, prompt: Prompt, texts: tuple[str, ...] = (), *, rate: bool = False, **task: Any
) -> int:
    with workspace.write() as connection:
        add_prompts(connection, [prompt])
        written = [Completion(text=text, policy=f"policy {i}", finish="stop") for i, text in enumerate(texts)]
        return add_task(connection, kind, prompt, written, Terms(rate=rate, **task))


def answer(workspace: Workspace, person: int, body: dict[str, Any], *, by_text: dict[str, int] | None = None) -> int:
    """The person's next task, answered; `by_text` gives ranks by completion. 30 seconds from lease to submission."""
    with workspace.write() as connection:
        mine = assignment.next_task(connection, person, now=1000.0)
        assert mine is not None
        if by_text is not None:
            shown = assignment.show(connection, person, mine)
            body = body | {"ranks": [by_text[text] for text in shown.texts]}
            if shown.rate:
                body["ratings"] = [{"quality": 8 - by_text[t], "flags": ["hallucination"]} for t in shown.texts]
        assignment.submit(connection, person, mine, body, f"{person}/{mine}", now=1030.0, active_seconds=12.5)
        return mine


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def fill(workspace: Workspace) -> None:
    """Tess (training) and Hugo (held-out) each answer one of every kind."""
    train, valid = (
        Prompt(id=s, text=f"a {s} question", user="u1", split=s, use_case="chat") for s in ("train", "valid")
    )
    for prompt in (train, valid):
        put(workspace, "ranking", prompt, ("good", "fair", "poor"), capacity=2, rate=True)
        put(workspace, "demonstration", prompt, capacity=2)
    put(workspace, "labels", train, capacity=2)
    with workspace.write() as connection:
        queue_comparisons(connection, [(valid, {"sft": "one", "ppo": "two"})], "sft")
    for name, arm in (("Tess", "training"), ("Hugo", "heldout")):
        person = hire(workspace, name, arm)
        for _ in range(2):
            answer(workspace, person, {"annotations": ["ambiguous"]}, by_text={"good": 1, "fair": 2, "poor": 2})
            answer(workspace, person, {"completion": f"{name} wrote this"})
        answer(workspace, person, {"use_case": "open qa", "annotations": ["sensitive"]})
    answer(workspace, person, {}, by_text={"one": 2, "two": 1})


def test_export_says_who_goes_where(workspace: Workspace, tmp_path: Path) -> None:
    fill(workspace)
    counts = exchange.export(workspace, tmp_path / "out", pairs=True, table=True)
    assert counts == {
        "rankings.jsonl": 1, "demonstrations.jsonl": 1,  # Tess, train
        "rankings_training_labelers.jsonl": 1, "demonstrations_valid.jsonl": 1,  # Tess, valid
        "rankings_heldout_labelers.jsonl": 1, "demonstrations_heldout_labelers.jsonl": 2,  # Hugo
        "rankings_heldout_labelers_on_training_prompts.jsonl": 1,
        "labels.jsonl": 2, "judgments.jsonl": 1, "pairs.jsonl": 2, "answers.csv": 4 * 3 + 4 + 2 + 2,
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*counts, "export.json"}
    tess, hugo = workspace.pseudonym("labeler", "tess"), workspace.pseudonym("labeler", "hugo")
    (row,) = lines(tmp_path / "out" / "rankings.jsonl")
    assert sorted(row.pop("order")) == [0, 1, 2]
    assert row == {
        "prompt": "a train question", "id": "train", "split": "train", "use_case": "chat",
        "user": workspace.pseudonym("user", "u1"), "ranks": [1, 2, 2], "annotations": ["ambiguous"],
        "ratings": [{"quality": q, "flags": ["hallucination"]} for q in (7, 6, 6)],
        "completions": [
            {"text": text, "policy": f"policy {i}", "finish": "stop"} for i, text in enumerate(("good", "fair", "poor"))
        ],
        "labeler": tess, "arm": "training", "instruction": "ranking v1", "seconds": 30.0, "active_seconds": 12.5,
        "at": 1030,
    }  # fmt: skip
    assert {r["labeler"] for r in lines(tmp_path / "out" / "rankings_heldout_labelers.jsonl")} == {hugo}
    assert [r["use_case"] for r in lines(tmp_path / "out" / "labels.jsonl")] == ["open qa", "open qa"]
    everything = (
        "".join(p.read_text() for p in (tmp_path / "out").iterdir()).replace("Tess wrote", "").replace("Hugo wrote", "")
    )
    assert not any(name in everything for name in ("Tess", "Hugo", '"u1"'))  # names are in no file
    with workspace.read() as connection:
        (detail,) = connection.execute(select(events.c.detail).where(events.c.kind == "exported")).scalars()
    assert detail["rankings.jsonl"] == 1


def test_an_export_replaces_only_what_an_export_wrote(workspace: Workspace, tmp_path: Path) -> None:
    fill(workspace)
    (tmp_path / "demonstrations.jsonl").write_text("my own")
    with pytest.raises(ValueError, match="no export wrote it"):
        exchange.export(workspace, tmp_path)
    assert [p.name for p in tmp_path.glob("*.json*")] == ["demonstrations.jsonl"]
    exchange.export(workspace, tmp_path / "out", pairs=True)
    assert (tmp_path / "out" / "pairs.jsonl").exists()
    exchange.export(workspace, tmp_path / "out")
    assert not (tmp_path / "out" / "pairs.jsonl").exists()  # of an earlier export, erased texts perhaps included


def test_an_export_that_fails_is_not_in_the_audit(
    sqlite: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event tells of files that are there, and writing them keeps nobody from working."""
    fill(sqlite)

    def full(path: Path, rows: Any) -> None:
        with sqlite.write():  # which would wait for itself, were the export a writer
            raise OSError("no space left")

    monkeypatch.setattr(exchange, "write_jsonl", full)
    with pytest.raises(OSError, match="no space"):
        exchange.export(sqlite, tmp_path)
    with sqlite.read() as connection:
        assert connection.execute(select(events).where(events.c.kind == "exported")).all() == []


def test_the_stages_read_what_is_exported(workspace: Workspace, tmp_path: Path) -> None:
    fill(workspace)
    exchange.export(workspace, tmp_path, pairs=True)
    (ranking,) = read_rankings(tmp_path / "rankings.jsonl").records
    assert (ranking.ranks, [c.text for c in ranking.completions]) == ((1, 2, 2), ["good", "fair", "poor"])
    assert ranking.completions[0].policy == "policy 0"
    (written,) = read_demonstrations(tmp_path / "demonstrations.jsonl").records
    assert (written.completion, written.prompt.split) == ("Tess wrote this", "train")
    assert ranking.pairs == [(0, 1), (0, 2)]
    assert lines(tmp_path / "pairs.jsonl") == [  # as TRL's preference datasets: prompt, chosen, rejected
        {"prompt": "a train question", "labeler": ranking.labeler, "chosen": "good", "rejected": worse}
        for worse in ("fair", "poor")
    ]
    assert [r.ranks for r in read_rankings(tmp_path / "pairs.jsonl").records] == [(1, 2), (1, 2)]


def test_conversations_are_exported_as_messages(sqlite: Workspace, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": 'hello\r\n"there"'}]
    put(sqlite, "ranking", Prompt.model_validate({"id": "p", "text": turns}), ("a", "b"))
    answer(sqlite, hire(sqlite, "Tess"), {}, by_text={"a": 2, "b": 1})
    exchange.export(sqlite, tmp_path, table=True)
    (ranking,) = read_rankings(tmp_path / "rankings.jsonl").records
    assert [turn.model_dump() for turn in ranking.prompt.text] == turns
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as stream:
        row, _ = csv.DictReader(stream)
    assert row["prompt"] == 'user: hello\r\n"there"'


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arms=st.lists(st.sampled_from(["training", "heldout"]), min_size=1, max_size=3),
    asked=st.lists(
        st.tuples(
            st.sampled_from(["ranking", "demonstration"]),
            st.sampled_from([None, "train", "valid", "test"]),
            st.sampled_from([None, "training", "heldout"]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_held_out_labelers_never_train(
    sqlite: Workspace, tmp_path: Path, arms: list[str], asked: list[tuple[Any, Any, Any]]
) -> None:
    with sqlite.write() as connection:
        for table in (answers, assignments, tasks, completions, prompts):
            connection.execute(delete(table))
        before = connection.execute(select(func.count()).select_from(people)).scalar_one()
    for i, (kind, split, arm) in enumerate(asked):
        put(sqlite, kind, Prompt(id=f"p{i}", text=f"q{i}", split=split), ("a", "b") * (kind == "ranking"), arm=arm,
            capacity=9)  # fmt: skip
    for i, arm in enumerate(arms):
        person = hire(sqlite, f"labeler {before + i}", arm, pseudonym=f"{arm} {before + i}")
        with sqlite.write() as connection:
            while mine := assignment.next_task(connection, person):
                kind = assignment.show(connection, person, mine).kind
                body = {"completion": "mine"} if kind == "demonstration" else {"ranks": [1, 2]}
                assignment.submit(connection, person, mine, body, f"{person}/{mine}")
    exchange.export(sqlite, tmp_path, pairs=True)
    for name in TRAINING_FILES:
        for row in lines(tmp_path / name):
            assert row["labeler"].startswith("training")
            assert row.get("split") not in ("valid", "test")
    trains = sum(split in (None, "train") and arm != "heldout" for _, split, arm in asked) * arms.count("training")
    assert len(lines(tmp_path / "rankings.jsonl")) + len(lines(tmp_path / "demonstrations.jsonl")) == trains


def test_corrected_quarantined_and_erased(workspace: Workspace, tmp_path: Path) -> None:
    """The newest answer counts, and the first one's time; withdrawn prompts are left out, and a file that empties is
    removed."""
    put(workspace, "ranking", Prompt(id="p", text="q"), ("a", "b"))
    tess = hire(workspace, "Tess")
    mine = answer(workspace, tess, {}, by_text={"a": 1, "b": 2})
    with workspace.write() as connection:
        shown = assignment.show(connection, tess, mine)
        ranks = [{"a": 2, "b": 1}[text] for text in shown.texts]
        assignment.correct(connection, tess, mine, {"ranks": ranks}, "again", now=9000.0, active_seconds=3.0)
    exchange.export(workspace, tmp_path, pairs=True)
    (row,) = lines(tmp_path / "rankings.jsonl")
    assert (row["ranks"], row["seconds"], row["active_seconds"], row["at"]) == ([2, 1], 30.0, 12.5, 9000)
    with workspace.write() as connection:
        connection.execute(update(prompts).values(quarantine={"EMAIL_ADDRESS": 1}))
    assert exchange.export(workspace, tmp_path, pairs=True) == {}
    assert list(tmp_path.glob("*.jsonl")) == []


# The table for spreadsheets


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"), ("  =1", "'  =1"),
        ("\ttab", "'\ttab"), ("\rreturn", "'\rreturn"), ("\n=1", "'\n=1"), ("\u00a0=1", "'\u00a0=1"),
        ("1=1", "1=1"), ("a\nb", "a\nb"), ('say "=1"', 'say "=1"'), ("a;b,c", "a;b,c"), ("x\r\ny", "x\r\ny"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula_and_every_text_survives(sqlite: Workspace, tmp_path: Path, text: str, cell: str) -> None:
    put(sqlite, "ranking", Prompt(id="p", text=text), (text, "other"), rate=True)
    answer(sqlite, hire(sqlite, "Tess", pseudonym=text), {}, by_text={text: 1, "other": 2})
    exchange.export(sqlite, tmp_path, table=True)
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as stream:
        first, second = csv.DictReader(stream, strict=True)
    assert (first["prompt"], first["completion"], first["labeler"]) == (cell, cell, cell)
    assert {first.pop("shown"), second.pop("shown")} == {"1", "2"}
    assert {k: v for k, v in first.items() if k not in ("prompt", "completion", "labeler")} == {
        "task": "1", "kind": "ranking", "arm": "training", "instruction": "ranking v1", "seconds": "30",
        "policy": "policy 0", "rank": "1", "quality": "7", "flags": "hallucination", "paused": "",
    }  # fmt: skip
    assert (second["rank"], second["quality"], second["policy"]) == ("2", "6", "policy 1")


# Comparisons


def test_judgments_are_what_evaluate_reads(workspace: Workspace, tmp_path: Path) -> None:
    """Prompt 1: ppo wins 2 of 3 votes, gpt wins 1½ of 3. Prompt 2: ppo equals the baseline, gpt is not judged yet."""
    asked = [
        (Prompt(id="1", text="q1", use_case="chat"), {"sft": "base", "ppo": "new", "gpt": "big"}),
        (Prompt(id="2", text="q2", use_case="open qa"), {"sft": "same", "ppo": "same", "gpt": "other"}),
        (Prompt(id="3", text="q3"), {"sft": "equal", "ppo": "equal"}),
    ]
    with workspace.write() as connection:
        assert queue_comparisons(connection, asked, "sft", labelers=3) == 3
    votes = [({"new": 1, "base": 2}, {"big": 1, "base": 2}), ({"new": 1, "base": 2}, {"big": 1, "base": 1}),
             ({"new": 2, "base": 1}, {"big": 2, "base": 1})]  # fmt: skip
    for i, (ppo, gpt) in enumerate(votes):
        person = hire(workspace, f"hugo {i}", "heldout")
        answer(workspace, person, {}, by_text=ppo)
        answer(workspace, person, {}, by_text=gpt)
    exchange.export(workspace, tmp_path)
    who = [workspace.pseudonym("labeler", f"hugo {i}") for i in range(3)]
    votes_of = {
        model: [{"labeler": w, "arm": "heldout", "share": share} for w, share in zip(who, shares, strict=True)]
        for model, shares in (("ppo", (1.0, 1.0, 0.0)), ("gpt", (1.0, 0.5, 0.0)))
    }
    assert lines(tmp_path / "judgments.jsonl") == [
        {"id": "1", "use_case": "chat", "baseline": "sft", "models": {
            "sft": {"wins": 0.5, "length": 4}, "ppo": {"wins": 2 / 3, "votes": votes_of["ppo"], "length": 3},
            "gpt": {"wins": 0.5, "votes": votes_of["gpt"], "length": 3}}},
        {"id": "2", "use_case": "open qa", "baseline": "sft", "models": {
            "sft": {"wins": 0.5, "length": 4}, "ppo": {"wins": 0.5, "votes": [], "length": 4}}},
        {"id": "3", "use_case": None, "baseline": "sft", "models": {
            "sft": {"wins": 0.5, "length": 5}, "ppo": {"wins": 0.5, "votes": [], "length": 5}}},
    ]  # fmt: skip
    config = EvaluateConfig(judgments=str(tmp_path / "judgments.jsonl"), output=tmp_path / "evaluate", draws=10)
    preference.run(config)
    results = json.loads((tmp_path / "evaluate" / "done.json").read_text())
    assert results["win_rate"]["ppo"]["mean"] == pytest.approx((2 / 3 + 0.5 + 0.5) / 3)
    assert (results["win_rate"]["gpt"]["mean"], results["win_rate"]["gpt"]["n"]) == (0.5, 1)
    assert results["win_rate_by_use_case"]["open qa"]["gpt"] == {}
    assert results["win_rate_by_use_case"]["chat"]["ppo"]["n"] == 1
    assert {arm: {n: r["mean"] for n, r in of.items()} for arm, of in results["win_rate_by_arm"].items()} == {
        "heldout": {"ppo": pytest.approx(2 / 3), "gpt": 0.5}
    }


def test_greedy_gain_counts_prompts_that_have_both(tmp_path: Path) -> None:
    """Wins of ppo_greedy less those of sft_greedy: 1 − ½ where both were judged; other prompts say nothing."""
    models = [{"ppo_greedy": 1.0, "sft_greedy": 0.5}, {"ppo_greedy": 1.0}, {"sft_greedy": 0.0, "gpt_greedy": 1.0}]
    with (tmp_path / "judgments.jsonl").open("w") as stream:
        for row in models:
            wins = {name: {"wins": value} for name, value in row.items()}
            stream.write(json.dumps({"baseline": "sft", "use_case": None, "models": wins}) + "\n")
    config = EvaluateConfig(judgments=str(tmp_path / "judgments.jsonl"), output=tmp_path / "evaluate", draws=10)
    preference.run(config)
    gain = json.loads((tmp_path / "evaluate" / "done.json").read_text())["greedy_gain"]
    assert {name: (g["labelers"]["mean"], g["labelers"]["n"]) for name, g in gain.items()} == {
        "ppo_greedy": (0.5, 1), "gpt_greedy": (1.0, 1),
    }  # fmt: skip


# Import


def same(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what another workspace calls its own: the user's pseudonym there."""
    return [{k: v for k, v in row.items() if k != "user"} for row in rows]


def test_an_export_is_imported_whole(workspace: Workspace, tmp_path: Path) -> None:
    fill(workspace)
    put(workspace, "ranking", Prompt(id="tied", text="a tied question"), ("x", "y"))
    with workspace.read() as connection:
        tess = connection.execute(select(people.c.id).where(people.c.sign_in == "tess")).scalar_one()
    answer(workspace, tess, {"note": "no difference"}, by_text={"x": 1, "y": 1})
    exchange.export(workspace, tmp_path / "one")
    other = open_workspace(tmp_path / "other")
    names = [p.name for p in sorted((tmp_path / "one").glob("rankings*.jsonl"))]
    assert len(names) == 4
    counts = [exchange.import_rankings(other, str(tmp_path / "one" / name)) for name in names]
    assert counts == [
        {"labelers": 1, "prompts": 2, "rankings": 2}, {"labelers": 1, "prompts": 1, "rankings": 1},
        {"prompts": 0, "rankings": 1}, {"prompts": 0, "rankings": 1},
    ]  # fmt: skip
    exchange.export(other, tmp_path / "two")
    for name in names:
        assert same(lines(tmp_path / "two" / name)) == same(lines(tmp_path / "one" / name))
    assert lines(tmp_path / "two" / "rankings.jsonl")[1]["ranks"] == [1, 1]
    again = [exchange.import_rankings(other, str(tmp_path / "one" / name)) for name in names]
    assert again == [{"prompts": 0, "there already": n} for n in (2, 1, 1, 1)]
    with pytest.raises(ValueError, match="already with user"):  # its own export calls users by other names
        exchange.import_rankings(other, str(tmp_path / "two" / "rankings.jsonl"))
    with other.read() as connection:
        assert connection.execute(select(func.count()).select_from(answers)).scalar_one() == 5
        imported = connection.execute(select(people.c.password, people.c.status)).all()
    assert [tuple(row) for row in imported] == [(None, "paused")] * 2
    other.close()


def test_identical_completions_are_merged_and_gaps_closed(sqlite: Workspace, tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b", "a", "c"], "ranks": [7, 3, 1, 9], "labeler": 5}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    assert exchange.import_rankings(sqlite, str(tmp_path / "r.jsonl"))["rankings"] == 1
    exchange.export(sqlite, tmp_path)
    (found,) = lines(tmp_path / "rankings.jsonl")
    assert [c["text"] for c in found["completions"]] == ["a", "b", "c"]
    assert (found["ranks"], found["labeler"], found["arm"]) == ([1, 2, 3], "5", "training")


def test_a_labelers_newest_answer_counts(sqlite: Workspace, tmp_path: Path) -> None:
    """The same completions may come twice, in another order and among the tasks of another file."""
    told = {"prompt": "q", "labeler": "ann", "at": 100.0}
    rated = [{"quality": 1, "flags": ["hallucination"]}, {"quality": 7, "flags": []}]
    rows = [
        told | {"completions": ["b", "a"], "ranks": [2, 1], "at": 200.0, "ratings": rated},  # the newest, though first
        told | {"completions": ["a", "b"], "ranks": [2, 1], "ratings": rated},
        told | {"completions": ["a", "b", "c"], "ranks": [1, 2, 3]},  # another question
        told | {"completions": ["a", "b"], "ranks": [2, 1], "labeler": "ben", "ratings": rated},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert exchange.import_rankings(sqlite, str(tmp_path / "r.jsonl"))["rankings"] == 4
    assert exchange.export(sqlite, tmp_path / "out", pairs=True, table=True)["rankings.jsonl"] == 3
    found = {(row["labeler"], len(row["ranks"])): row for row in lines(tmp_path / "out" / "rankings.jsonl")}
    assert [c["text"] for c in found["ann", 2]["completions"]] == ["b", "a"]
    assert found["ann", 2]["ranks"] == [2, 1]
    assert len(lines(tmp_path / "out" / "pairs.jsonl")) == 1 + 3 + 1
    with sqlite.read() as connection:
        by_name = agreement.by_labeler(exchange.stored_rankings(connection, names=True))
        votes = exchange.flag_votes(exchange.newest_answers(connection))
    # Of a and b Ben says what Ann said before she changed her mind; of c he says nothing.
    assert by_name["ben"]["strict"]["mean"] == by_name["ann"]["strict"]["mean"] == 0.0
    assert sorted(no + yes for no, yes in votes[0]) == [2] * 2 * len(FLAGS)  # two labelers, each once


GOOD: dict[str, Any] = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "ann"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ranks": [1]}, "row 2: ranks has 1 entries for 2 completions"),
        ({"ranks": [0, 1]}, "row 2: ranks start at 1"),
        ({"ranks": ["1", "2"]}, "row 2: ranks 1: Input should be a valid integer"),
        ({"ranks": [True, 2]}, "row 2: ranks 1: Input should be a valid integer"),
        ({"ranks": 1}, "row 2: ranks: Input should be a valid list"),
        ({"completions": "ab"}, "row 2: completions is 'ab'; expected a list"),
        ({"completions": ["a", {"words": "b"}]}, "row 2: text: Field required"),
        ({"completions": ["a", "a"]}, "row 2: a ranking needs two distinct completions, here are 1"),
        ({"labeler": ""}, "row 2: labeler: String should have at least 1"),
        ({"labeler": None}, "row 2: labeler: Field required"),
        ({"labeler": "Ann"}, "row 2: name: 'Ann' is taken"),
        ({"arm": "test"}, "row 2: arm: Input should be 'training' or 'heldout'"),
        ({"arm": "heldout"}, "row 2: labeler 'ann' is of the training arm"),
        ({"at": "soon"}, "row 2: at: Input should be a valid number"),
        ({"at": float("nan")}, "row 2: at: Input should be a finite number"),
        ({"seconds": -1}, "row 2: seconds: Input should be greater than or equal to 0"),
        ({"ratings": [{"quality": 9}, {"quality": 1}]}, "row 2: ratings 1 quality"),
        ({"ratings": 5}, "row 2: ratings: Input should be a valid list"),
        ({"annotations": ["odd"]}, "row 2: annotations: 'odd' is no annotation"),
        ({"id": "first", "prompt": "another"}, "row 2: prompt 'first' is there already with another text"),
        ({"prompt": ""}, "1 rows have an empty prompt"),
        ({"prompt": 5}, "r.jsonl:2: prompt is 5"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named_and_nothing_is_imported(
    sqlite: Workspace, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(GOOD | {"id": "first"}) + "\n" + json.dumps(GOOD | {"id": "x"} | change) + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl") as error:
        exchange.import_rankings(sqlite, str(path))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    with sqlite.read() as connection:
        for table in (people, prompts, tasks, answers):
            assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0


def test_a_workspaces_own_export_is_not_imported_twice(sqlite: Workspace, tmp_path: Path) -> None:
    put(sqlite, "ranking", Prompt(id="p", text="q"), ("a", "b"))
    answer(sqlite, hire(sqlite, "Tess", password="correct horse"), {}, by_text={"a": 1, "b": 2})
    exchange.export(sqlite, tmp_path)
    with pytest.raises(ValueError, match=r"row 1: labeler 'labeler-.*' works in this workspace"):
        exchange.import_rankings(sqlite, str(tmp_path / "rankings.jsonl"))


# Erasure

SECRET = "Zebedee"


def write_about(workspace: Workspace) -> int:
    """Everything that a labeler may write quotes the prompt, which says SECRET and is by the user SECRETuser."""
    prompt = Prompt(
        id="p", text=f"I am {SECRET}", user=f"{SECRET}user", split="train", use_case="chat", meta={"name": SECRET}
    )
    put(workspace, "demonstration", prompt, capacity=2)
    put(workspace, "ranking", prompt, (f"Hello {SECRET}", f"Bye {SECRET}"), capacity=3)
    put(workspace, "labels", prompt, purpose="gold", reference={"note": SECRET})
    put(workspace, "labels", Prompt(id="other", text="another's", user="someone"))
    tess, tom = hire(workspace, "Tess"), hire(workspace, "Tom")
    answer(workspace, tess, {"completion": f"Dear {SECRET}"})
    mine = answer(workspace, tess, {"note": SECRET}, by_text={f"Hello {SECRET}": 1, f"Bye {SECRET}": 2})
    with workspace.write() as connection:
        assignment.correct(connection, tess, mine, {"ranks": [1, 1], "note": SECRET}, "again")
        first = assignment.next_task(connection, tom)
        assignment.skip(connection, tom, first, "other", f"I know {SECRET}")
        second = assignment.next_task(connection, tom)
        assignment.save_draft(connection, tom, second, {"note": SECRET})
    return tom


def everything(workspace: Workspace) -> str:
    """All text and JSON of all tables."""
    found = []
    with workspace.read() as connection:
        for table in metadata.sorted_tables:
            texts = [cast(c, String) if isinstance(c.type, JSON) else c for c in table.c]
            found += [repr(tuple(row)) for row in connection.execute(select(*texts))]
    return "\n".join(found)


def test_erasure_leaves_no_text_and_a_tombstone(workspace: Workspace, tmp_path: Path) -> None:
    tom = write_about(workspace)
    assert everything(workspace).count(SECRET) == 11
    exchange.export(workspace, tmp_path, pairs=True)
    assert SECRET in (tmp_path / "rankings.jsonl").read_text()
    with workspace.write() as connection:
        assert erase_user(connection, f"{SECRET}user", by=tom) == 1
    assert SECRET not in everything(workspace)
    with workspace.read() as connection:
        tomb = connection.execute(select(prompts).where(prompts.c.id == "p")).one()
        events_after = connection.execute(select(events).order_by(events.c.id.desc())).first()
        bodies = connection.execute(select(answers.c.body)).scalars().all()
        still = connection.execute(select(tasks.c.prompt).where(tasks.c.open)).scalars().all()
    assert (tomb.text, tomb.user, tomb.meta, tomb.use_case) == (None, None, {}, None)
    assert tomb.erased is not None
    assert (events_after.kind, events_after.person, events_after.subject) == ("erased", tom, "p")
    assert bodies == [None, None, None]  # the rows stay, for the counts
    assert still == ["other"]
    assert exchange.export(workspace, tmp_path, pairs=True) == {}
    assert not any(SECRET in path.read_text() for path in tmp_path.glob("*.jsonl"))
    with pytest.raises(ValueError, match="'p' was erased"), workspace.write() as connection:
        add_prompts(connection, [Prompt(id="p", text="I am back")])
    with pytest.raises(LookupError, match="no prompt here is by user"), workspace.write() as connection:
        erase_user(connection, f"{SECRET}user")
    with pytest.raises(LookupError, match="no prompt 'q'"), workspace.write() as connection:
        erase_prompt(connection, "q")


def test_what_is_erased_is_not_in_sqlites_file(tmp_path: Path) -> None:
    """secure_delete overwrites it in the file itself; the write-ahead log goes when the last connection closes."""
    workspace = open_workspace(tmp_path / "w")
    with workspace.write() as connection:
        ensure_instructions(connection)
    write_about(workspace)
    long = f"{SECRET} " * 5000  # spills over several pages
    with workspace.write() as connection:
        add_prompts(connection, [Prompt(id="long", text=long, user=f"{SECRET}user")])
    workspace.close()
    path = tmp_path / "w" / "labeling.db"
    assert path.read_bytes().count(SECRET.encode()) > 5000
    workspace = open_workspace(tmp_path / "w")
    with workspace.write() as connection:
        assert erase_user(connection, f"{SECRET}user") == 2
    workspace.close()
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(path.name)] == [path.name]
    assert SECRET.encode() not in path.read_bytes()
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def test_rows_of_an_export_hold_an_id(sqlite: Workspace, tmp_path: Path) -> None:
    """So that a second import of a text without an id, and a later erasure, find the same prompt."""
    (tmp_path / "r.jsonl").write_text(json.dumps(GOOD) + "\n")
    exchange.import_rankings(sqlite, str(tmp_path / "r.jsonl"))
    exchange.export(sqlite, tmp_path)
    (row,) = read_rows(tmp_path / "rankings.jsonl", "id")
    with sqlite.write() as connection:
        erase_prompt(connection, row["id"])
    with pytest.raises(ValueError, match="was erased"):
        exchange.import_rankings(sqlite, str(tmp_path / "rankings.jsonl"))
