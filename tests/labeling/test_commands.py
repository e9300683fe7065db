"""`tutelage label …` as people type it: what it does, what it prints, and exit code 2 for what is wrong."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import select, update

from tutelage.cli import main
from tutelage.data.candidates import read_candidates, write_candidates
from tutelage.data.datasets import read_prompts, read_rankings
from tutelage.data.records import Completion
from tutelage.labeling.store import accounts, assignment
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.database import existing_workspace, open_workspace
from tutelage.labeling.store.prompts import erase_user
from tutelage.labeling.store.schema import invites, prompts, tasks

from .conftest import PASSWORD


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty workspace, as `serve` leaves it."""
    open_workspace(tmp_path / "w").close()
    return tmp_path / "w"


def label(*words: object) -> None:
    assert main(["label", *map(str, words)]) == 0


def hire(folder: Path, *names: str, arm: str = "training") -> list[int]:
    workspace = existing_workspace(folder)
    with workspace.write() as connection:
        made = [accounts.add_person(connection, workspace, NewPerson(name, arm=arm)) for name in names]
    workspace.close()
    return made


def work(folder: Path, people: list[int], answer: dict[str, dict[str, Any]]) -> int:
    """Let people do all that is left for them, by kind; a ranking prefers short texts. Returns the number done."""
    workspace = existing_workspace(folder)
    done = 0
    with workspace.write() as connection:
        for person in people:
            while mine := assignment.next_task(connection, person):
                shown = assignment.show(connection, person, mine)
                body = dict(answer.get(shown.kind, {}))
                if shown.texts:
                    lengths = sorted({len(text) for text in shown.texts})
                    body["ranks"] = [lengths.index(len(text)) + 1 for text in shown.texts]
                    body["ratings"] = [{"quality": 7 - rank} for rank in body["ranks"]] if shown.rate else []
                assignment.submit(connection, person, mine, body, f"{person}/{mine}")
                done += 1
    workspace.close()
    return done


def test_a_prompt_that_comes_again_stays_in_its_split(folder: Path, tmp_path: Path) -> None:
    """Whatever would be drawn for it now, with another seed or other shares."""
    source = write(tmp_path / "p.jsonl", *({"prompt": f"Poem {i}."} for i in range(20)))
    label("prompts", folder, source, "--no-personal-data", "--output", tmp_path / "first.jsonl")
    label("prompts", folder, source, "--no-personal-data", "--seed", 7, "--output", tmp_path / "second.jsonl")
    first, second = (read_prompts(tmp_path / f"{name}.jsonl").records for name in ("first", "second"))
    assert first == second
    assert len({prompt.split for prompt in first}) > 1


def test_rows_without_a_prompt_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "p.jsonl", {"prompt": "Write a poem."}, {"prompt": " "}, {"prompt": ""})
    label("prompts", folder, source, "--no-personal-data")
    label("queue", folder, source, "--kind", "demonstration")
    assert capsys.readouterr().out.count(f"empty prompt: 2 rows of {source} left out") == 2


def test_from_prompts_to_rankings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """prompts -> candidates by some policy -> queue -> answers -> export, as `tutelage reward` reads it."""
    out = tmp_path / "out"
    asked = [{"id": f"p{i}", "prompt": f"Tell me about number {i}.", "user": f"u{i}"} for i in range(30)]
    asked.append({"id": "mail", "prompt": "Write to ann.smith@example.com for me.", "user": "u99"})
    source = write(tmp_path / "customers.jsonl", *asked)
    label("prompts", folder, source, "--queue", "demonstration", "--output", tmp_path / "taken.jsonl")
    printed = capsys.readouterr().out
    assert "31 read, 30 kept" in printed
    assert "personal data: 1 quarantined" in printed
    assert "demonstration: 30 tasks queued" in printed
    assert "ann.smith" not in printed
    taken = read_prompts(tmp_path / "taken.jsonl").records
    assert {p.id for p in taken} == {f"p{i}" for i in range(30)}
    assert all(p.split for p in taken)
    with existing(folder) as connection:
        assert connection.execute(select(prompts.c.id).where(prompts.c.quarantine.is_not(None))).scalars().all() == [
            "mail"
        ]

    label("prompts", folder, source)  # again: nothing is new
    assert "31 read, 0 kept" in capsys.readouterr().out

    rng = Random(0)
    texts = [[Completion(text="x" * rng.randint(1, 99), policy="sft") for _ in range(4)] for _ in taken]
    write_candidates(tmp_path / "candidates.jsonl", zip(taken, texts, strict=True))
    label("queue", folder, tmp_path / "candidates.jsonl", "--overlap", "0")
    held_out = sum(p.split != "train" for p in taken)
    assert f"ranking: {30 + held_out} tasks queued" in capsys.readouterr().out
    label("queue", folder, tmp_path / "candidates.jsonl", "--overlap", "0")
    assert "ranking: 0 tasks queued; this file was queued before" in capsys.readouterr().out

    pool = hire(folder, "Tess", "Tom") + hire(folder, "Hana", arm="heldout")
    assert work(folder, pool, {"demonstration": {"completion": "It is a number."}}) == 30 + 30 + held_out
    label("export", folder, "--output", out, "--pairs", "--table")
    assert f"{out / 'rankings.jsonl'}: {30 - held_out} rows" in capsys.readouterr().out
    rankings = read_rankings(out / "rankings.jsonl").records
    assert len(rankings) == 30 - held_out
    for ranking in rankings:
        for better, worse in ranking.pairs:
            assert len(ranking.completions[better].text) < len(ranking.completions[worse].text)

    label("status", folder)
    status = capsys.readouterr().out
    assert f"ranking (work): {30 + held_out} tasks, {30 + held_out} answers" in status
    assert "labeler: 3" in status

    other = tmp_path / "other"
    open_workspace(other).close()
    label("import", other, out / "rankings.jsonl")
    assert json.loads(capsys.readouterr().out)["rankings"] == 30 - held_out
    label("erase", folder, "--user", "u3")
    assert "1 prompts erased" in capsys.readouterr().out
    label("export", folder, "--output", out)
    assert "number 3." not in "".join(path.read_text() for path in out.glob("*.jsonl") if path.name != "pairs.jsonl")


def existing(folder: Path) -> Any:
    return existing_workspace(folder).engine.connect()


def test_known_items_and_comparisons(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = write(tmp_path / "gold.jsonl", {"prompt": "q1", "completions": ["a", "bb"], "ranks": [1, 2]})
    flags = write(tmp_path / "flags.jsonl", {"prompt": "q2", "annotations": ["sensitive"]})
    asks = write(tmp_path / "asks.jsonl", {"prompt": "q3"})
    compared = write(tmp_path / "answers.jsonl", {"prompt": "q4", "answers": {"sft": "a", "ppo": "bb", "gpt": "a"}})
    label("queue", folder, gold, "--purpose", "gold")
    label("queue", folder, gold, "--purpose", "screening")  # for another purpose, it is not the same file
    label("queue", folder, flags, "--purpose", "screening", "--kind", "labels")
    label("queue", folder, asks, "--purpose", "screening", "--kind", "demonstration")
    label("queue", folder, asks, "--kind", "labels", "--labelers", "3")
    label("queue", folder, compared, "--kind", "comparison", "--baseline", "sft")
    assert [line.split(" tasks")[0] for line in capsys.readouterr().out.splitlines()] == [
        "ranking: 1", "ranking: 1", "labels: 1", "demonstration: 1", "labels: 1", "comparison: 1",
    ]  # fmt: skip
    with existing(folder) as connection:
        found = connection.execute(select(tasks.c.kind, tasks.c.purpose, tasks.c.capacity).order_by(tasks.c.id)).all()
    assert [tuple(row) for row in found[4:]] == [
        ("labels", "work", 3),
        ("comparison", "work", 1),
        ("comparison", "work", 0),
    ]
    assert work(folder, hire(folder, "Hugo", arm="heldout"), {}) == 2  # the comparison and the gold item
    label("export", folder, "--output", tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "judgments.jsonl").read_text().splitlines()]
    assert {name: m["wins"] for name, m in row["models"].items()} == {"sft": 0.5, "ppo": 0.0, "gpt": 0.5}


def test_why_nothing_is_queued(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file was queued before as this kind of task, its prompts have such tasks, or there is nothing to judge."""
    one = write(tmp_path / "one.jsonl", {"id": "p", "prompt": "q"})
    other = write(tmp_path / "other.jsonl", {"id": "p", "prompt": "q", "use_case": "chat"})
    equal = write(tmp_path / "equal.jsonl", {"prompt": "q", "answers": {"sft": "a", "ppo": "a"}})
    label("queue", folder, one, "--kind", "labels")
    label("queue", folder, one, "--kind", "labels")
    label("queue", folder, other, "--kind", "labels")
    label("queue", folder, one, "--kind", "demonstration")
    label("queue", folder, equal, "--kind", "comparison", "--baseline", "sft")
    assert capsys.readouterr().out.splitlines() == [
        "labels: 1 tasks queued",
        "labels: 0 tasks queued; this file was queued before, and its tasks stay as they were",
        "labels: 0 tasks queued; every prompt has such a task already",
        "demonstration: 1 tasks queued",
        "comparison: 0 tasks queued; every answer equals the baseline's",
    ]


def test_invitations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_workspace(tmp_path / "w").close()
    label("invite", tmp_path / "w", "--arm", "heldout", "--screening", "--url", "https://label.example/")
    link = capsys.readouterr().out.strip()
    assert re.fullmatch(r"https://label\.example/join/[\w-]{43}", link)
    workspace = existing_workspace(tmp_path / "w")
    with workspace.write() as connection:
        token = link.rsplit("/", 1)[1]
        assert token not in connection.execute(select(invites.c.token_hash)).scalars().all()
        person = accounts.join(connection, workspace, token, "Ann  Smith", PASSWORD)
    label("invite", tmp_path / "w", "--name", "ann smith")
    again = capsys.readouterr().out.strip().rsplit("/", 1)[1]
    with workspace.write() as connection:
        assert accounts.open_invite(connection, again).name == "Ann Smith"
        assert accounts.join(connection, workspace, again, "", "another password") == person
        assert accounts.check_password(connection, workspace, "Ann Smith", "another password", "") == person
    workspace.close()


RANKING = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "ann"}


@pytest.mark.parametrize(
    ("words", "row", "said"),
    [
        ("status none", None, "none is no labeling workspace; `tutelage label serve"),
        ("invite none", None, "is no labeling workspace"),
        ("export none --output out", None, "is no labeling workspace"),
        ("erase none --user u", None, "is no labeling workspace"),
        ("status file.jsonl", {}, "is no labeling workspace"),
        ("queue w missing.jsonl", None, "missing.jsonl: no such file"),
        ("queue w missing.jsonl --kind labels", None, "missing.jsonl"),
        ("prompts w missing.jsonl", None, "missing.jsonl: no such file"),
        ("import w missing.jsonl", None, "missing.jsonl: no such file"),
        ("prompts none file.jsonl", {"prompt": "q"}, "none is no labeling workspace; `tutelage label serve"),
        ("queue none file.jsonl", RANKING, "is no labeling workspace"),
        ("import none file.jsonl", RANKING, "is no labeling workspace"),
        ("queue . file.jsonl", RANKING, "is no labeling workspace"),
        ("queue file.jsonl file.jsonl", RANKING, "is no labeling workspace"),
        ("serve .", RANKING, "holds files that are not a labeling workspace"),
        ("serve file.jsonl", RANKING, "is a file; choose a folder"),
        ("queue w file.jsonl", {"prompt": "q"}, "file.jsonl:1: no field 'completions'"),
        ("queue w file.jsonl", {"prompt": "q", "completions": ["a"]}, "needs two distinct completions, here are 1"),
        ("queue w file.jsonl", {"prompt": "q", "completions": [{"words": 1}]}, "row 1: text: Field required"),
        ("queue w file.jsonl", {"prompt": "q", "completions": "ab"}, "file.jsonl: row 1: completions is 'ab'"),
        ("queue w file.jsonl --kind comparison", {"prompt": "q", "answers": {"a": "b"}}, "needs --baseline"),
        ("queue w file.jsonl --kind comparison --baseline x", {"prompt": "q", "answers": {"a": "b"}}, "baseline 'x'"),
        ("queue w file.jsonl --kind comparison --baseline x", {"prompt": "q", "answers": "x"}, "answers is 'x';"),
        ("queue w file.jsonl --kind comparison --baseline x", {"prompt": "", "answers": {}}, "1 rows have an empty"),
        ("queue w file.jsonl --purpose gold", {"prompt": "q", "completions": ["a", "b"]}, "no field 'ranks'"),
        ("queue w file.jsonl --purpose gold", RANKING | {"ranks": [1]}, "known answer: 1 of 2 completions"),
        ("queue w file.jsonl --purpose screening --kind labels", {"prompt": "q", "annotations": ["x"]}, "no annot"),
        ("queue w file.jsonl --purpose gold --kind labels", {"prompt": "q", "annotations": []}, "gold items are rank"),
        ("queue w file.jsonl --baseline sft", RANKING, "--baseline is for comparisons; this is 'ranking' for 'work'"),
        ("queue w file.jsonl --arm heldout", RANKING, "--arm is for other work than rankings, which go by"),
        ("queue w file.jsonl --kind labels --overlap 0.1", {"prompt": "q"}, "--overlap is for rankings that are work;"),
        ("queue w file.jsonl --purpose gold --overlap 0.1", RANKING, "--overlap is for rankings that are work;"),
        ("queue w file.jsonl --kind labels --no-rate", {"prompt": "q"}, "--no-rate is for rankings; this is 'labels'"),
        ("queue w file.jsonl --purpose gold --labelers 1", RANKING, "--labelers is for work; every labeler meets"),
        ("queue w file.jsonl --kind essay", RANKING, "invalid choice: 'essay'"),
        ("queue w file.jsonl --labelers 0", RANKING, "labelers=0"),
        ("queue w file.jsonl --overlap 2", RANKING, "overlap=2"),
        ("import w file.jsonl", RANKING | {"ranks": [1]}, "file.jsonl: row 1: ranks has 1 entries for 2"),
        ("import w file.jsonl", {"prompt": "q"}, "file.jsonl:1: no field 'completions'"),
        ("prompts w file.jsonl --max-per-user 0", {"prompt": "q"}, "max"),
        ("prompts w file.jsonl --splits 3", {"prompt": "q"}, "unknown option '--splits'"),
        ("invite w --name Nobody", None, "nobody here is called 'Nobody'"),
        ("invite w --name=", None, "nobody here is called ''"),
        ("invite w --name Ann --role owner", None, "--role, --arm and --screening are for a new person; 'Ann' keeps"),
        ("invite w --name Ann --arm training", None, "are for a new person"),
        ("invite w --name Ann --screening", None, "are for a new person"),
        ("erase w --user nobody", None, "no prompt here is by user 'nobody'"),
        ("serve w --database mysql://x/y", None, "keeps its work in"),
        ("serve new --database mysql://x/y", None, "'mysql' is not supported"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, row: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    open_workspace(tmp_path / "w").close()
    if row is not None:
        write(tmp_path / "file.jsonl", row)
    try:
        code = main(["label", *words.split()])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    assert code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert captured.err.strip().splitlines()[-1:] == captured.err.strip().splitlines()
    assert not Path("none").exists()
    with existing(tmp_path / "w") as connection:
        assert connection.execute(select(tasks.c.id)).all() == []


def test_a_taken_port_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no link is printed, which would lead to the other server."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["label", "serve", str(folder), "--port", str(port)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = f"tutelage: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port\n"
    assert captured.err == said


def test_nothing_answered_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label("export", folder, "--output", tmp_path / "out", "--pairs")
    assert capsys.readouterr().out == "nothing is answered yet\n"


def test_what_is_released_comes_in_by_the_next_intake(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into its user's split, though it came without one; and what was erased stays out, without a complaint."""
    rows = [
        {"id": "a", "prompt": "Write a story about a ship.", "user": "u1", "split": "valid"},
        {"id": "b", "prompt": "Write to jane.doe@example.com for me.", "user": "u1"},
        {"id": "c", "prompt": "List three colours of the sky.", "user": "u2", "split": "train"},
    ]
    file = write(tmp_path / "prompts.jsonl", *rows)
    label("prompts", folder, file, "--queue", "demonstration")
    assert "1 quarantined" in capsys.readouterr().out
    workspace = existing_workspace(folder)
    with workspace.write() as connection:
        connection.execute(update(prompts).where(prompts.c.id == "b").values(quarantine=None))  # the page's Release
        erase_user(connection, "u2")
    label("prompts", folder, file, "--no-personal-data", "--queue", "demonstration")
    told = capsys.readouterr().out
    assert "demonstration: 1 tasks queued" in told
    assert "erased: 1 left out" in told
    with workspace.read() as connection:
        found = dict(connection.execute(select(prompts.c.id, prompts.c.split).order_by(prompts.c.id)).all())
        queued = connection.execute(select(tasks.c.prompt).order_by(tasks.c.id)).scalars().all()
    workspace.close()
    assert (found["a"], found["b"]) == ("valid", "valid")
    assert queued == ["a", "c", "b"]


def test_a_dry_run_tells_the_same_and_keeps_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = write(tmp_path / "p.jsonl", *({"prompt": f"What is {i} times {i}?", "user": "u"} for i in range(3)))
    ranked = write(
        tmp_path / "r.jsonl", {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "x", "id": "1"}
    )

    def held() -> list[int]:
        workspace = existing_workspace(folder)
        with workspace.read() as connection:
            counts = [len(connection.execute(select(table)).all()) for table in (prompts, tasks)]
        workspace.close()
        return counts

    for words in (
        ["prompts", folder, asked, "--queue", "demonstration", "--output", tmp_path / "taken.jsonl"],
        ["queue", folder, asked, "--kind", "labels"],
        ["import", folder, ranked],
        ["erase", folder, "--user", "u"],
    ):
        before = held()
        label(*words, "--dry-run")
        rehearsed = capsys.readouterr().out.splitlines()
        assert held() == before
        assert not (tmp_path / "taken.jsonl").exists()
        label(*words)
        assert rehearsed == [*capsys.readouterr().out.splitlines(), "dry run: nothing of this was written"]
        (tmp_path / "taken.jsonl").unlink(missing_ok=True)
    assert held() == [4, 7]


def test_prompts_taken_before_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second time they are all duplicates, and the file would be empty."""
    open_workspace(tmp_path / "w").close()
    asked = write(tmp_path / "p.jsonl", {"prompt": "What is that over there?"})
    words = ["label", "prompts", str(tmp_path / "w"), str(asked), "--no-personal-data", "--queue", "demonstration"]
    command = [*words, "--languages", "en,de", "--output", str(tmp_path / "taken.jsonl")]
    assert main(command) == 0
    taken = (tmp_path / "taken.jsonl").read_bytes()
    assert taken
    capsys.readouterr()
    assert main(command) == 2
    assert f"output: {tmp_path / 'taken.jsonl'} is there already, with prompts taken" in capsys.readouterr().err
    assert (tmp_path / "taken.jsonl").read_bytes() == taken


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--policy", "none"], "none: no "),
        (["--sampler.max-new-tokens", "1000"], "no prompt got two distinct"),
    ],
)
def test_a_dry_run_of_collect_loads_the_policies(
    words: list[str], why: str, tmp_path: Path, folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = write(tmp_path / "p.jsonl", {"prompt": "What is that?"})
    command = ["collect", "--policy", str(folders("llama")), "--prompts", str(asked), "--output", str(tmp_path / "out")]
    assert main([*command, *words, "--dry-run"]) == 2
    assert why in capsys.readouterr().err


def test_a_ranking_of_one_completion_is_refused_by_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completions": ["x", "y"]}, {"prompt": "b", "completions": ["x", "x"]}]
    path = write(tmp_path / "c.jsonl", *rows)
    with pytest.raises(ValueError, match=rf"{path}: row 2: a ranking needs two distinct completions, here are 1"):
        read_candidates(path)
