"""What is queued for whom: shares, arms, known items, comparisons, files once, and mistakes by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tutelage.data import candidates
from tutelage.data.datasets import DataError
from tutelage.data.records import Completion, Prompt
from tutelage.labeling import commands
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.instructions import add_instruction, current_instruction, ensure_instructions
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import completions, events, instructions, prompts, tasks
from tutelage.labeling.store.tasks import (
    EVERYBODY,
    Terms,
    add_completions,
    add_task,
    doubly_labeled,
    queue_comparisons,
    queue_known,
    queue_prompts,
    queue_rankings,
)

P = Prompt(id="p", text="q")
TWO = (Completion(text="a", policy="sft"), Completion(text="b", policy="ppo"))


def queued(workspace: Workspace, *columns: str) -> list[tuple[Any, ...]]:
    with workspace.read() as connection:
        found = connection.execute(select(*(tasks.c[name] for name in columns)).order_by(tasks.c.id))
        return [tuple(row) for row in found]


def test_the_doubly_labeled_share_is_fixed_by_the_prompts_id() -> None:
    ids = [f"prompt {i}" for i in range(4000)]
    tenth = {i for i in ids if doubly_labeled(i, 0.1)}
    fifth = {i for i in ids if doubly_labeled(i, 0.2)}
    assert len(tenth) == pytest.approx(400, abs=4 * 19)  # four standard deviations of a fair draw
    assert tenth < fifth
    assert not any(doubly_labeled(i, 0) for i in ids)
    assert all(doubly_labeled(i, 1) for i in ids)
    # sha256 of "prompt 8" begins c2df, which is 0.761 of the way
    assert [doubly_labeled("prompt 8", share) for share in (0.760, 0.762)] == [False, True]


def test_rankings_go_to_arms_by_split(workspace: Workspace) -> None:
    asked = [(Prompt(id=str(s), text=str(s), split=s), TWO) for s in (None, "train", "valid", "test")]
    with workspace.write() as connection:
        assert queue_rankings(connection, asked, overlap=0.0, labelers=2) == 6
    assert queued(workspace, "prompt", "arm", "capacity") == [
        ("None", "training", 2), ("train", "training", 2), ("valid", "training", 2), ("valid", "heldout", 2),
        ("test", "training", 2), ("test", "heldout", 2),
    ]  # fmt: skip


def test_the_overlap_wants_one_labeler_more(workspace: Workspace) -> None:
    asked = [(Prompt(id=f"p{i}", text=f"q{i}"), TWO) for i in range(50)]
    with workspace.write() as connection:
        queue_rankings(connection, asked, overlap=0.3)
    for prompt, capacity in queued(workspace, "prompt", "capacity"):
        assert capacity == 1 + doubly_labeled(prompt, 0.3)
    assert set(Counter(capacity for (capacity,) in queued(workspace, "capacity"))) == {1, 2}


def test_known_items_are_everybodys_and_unrated(workspace: Workspace) -> None:
    three = (*TWO, Completion(text="a", policy="gpt"))  # identical to the first: two to rank
    with workspace.write() as connection:
        assert queue_known(connection, "ranking", [(P, three, {"ranks": [2, 1]})], "gold") == 1
        assert queue_known(connection, "labels", [(P, (), {"annotations": ["sensitive"]})], "screening") == 1
        assert queue_known(connection, "demonstration", [(P, (), None)], "screening") == 1
    assert queued(workspace, "kind", "purpose", "arm", "capacity", "rate") == [
        ("ranking", "gold", None, EVERYBODY, False), ("labels", "screening", None, EVERYBODY, False),
        ("demonstration", "screening", None, EVERYBODY, False),
    ]  # fmt: skip
    ranking, labels, demonstration = queued(workspace, "reference")
    assert (ranking[0]["ranks"], labels[0]["annotations"], demonstration) == ([2, 1], ["sensitive"], (None,))


@pytest.mark.parametrize(
    ("kind", "written", "reference", "said"),
    [
        ("ranking", TWO[:1], None, "'p': a ranking task cannot have 1 distinct completions"),
        ("ranking", (TWO[0], TWO[0]), None, "cannot have 1 distinct"),
        ("comparison", (*TWO, Completion(text="c")), None, "a comparison task cannot have 3"),
        ("labels", TWO, None, "a labels task cannot have 2"),
        ("ranking", TWO, {"ranks": [1]}, "'p': its known answer: 1 of 2 completions are ranked"),
        ("ranking", TWO, {"ranks": "first"}, "'p': its known answer: ranks: Input should be a valid list"),
        ("labels", (), {"annotations": ["rude"]}, "'p': its known answer: annotations: 'rude' is no annotation"),
    ],
)
def test_impossible_tasks_are_named(sqlite: Workspace, kind: Any, written: Any, reference: Any, said: str) -> None:
    with sqlite.write() as connection:
        add_prompts(connection, [P])
    with pytest.raises(ValueError, match="prompt") as error, sqlite.write() as connection:
        add_task(connection, kind, P, written, Terms(reference=reference))
    assert said in str(error.value)
    with sqlite.read() as connection:
        assert connection.execute(select(func.count()).select_from(completions)).scalar_one() == 0


def test_comparisons_with_the_baseline(workspace: Workspace) -> None:
    """Two models differ from the baseline, one equals it: two to judge, and a tie that wants nobody."""
    answers = {"ppo": "new", "sft": "base", "copy": "base", "gpt": "big"}
    with workspace.write() as connection:
        assert queue_comparisons(connection, [(P, answers)], "sft", labelers=3) == 2
        written = dict(connection.execute(select(completions.c.id, completions.c.policies)).all())
    found = queued(workspace, "completions", "arm", "capacity", "open", "rate")
    pairs = [tuple(written[i][0] for i in ids) for ids, *_ in found]
    assert pairs == [("sft", "ppo"), ("sft", "copy"), ("sft", "gpt")]  # the baseline comes first, but in pages
    assert [row[1:] for row in found] == [
        ("heldout", 3, True, False), ("heldout", 0, False, False), ("heldout", 3, True, False),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'p': baseline 'base' is not among"), workspace.write() as connection:
        queue_comparisons(connection, [(P, answers)], "base")


def test_a_prompt_has_one_task_of_a_kind(workspace: Workspace) -> None:
    other = Prompt(id="o", text="other")
    with workspace.write() as connection:
        assert queue_prompts(connection, "demonstration", [P, P]) == 1
        assert queue_prompts(connection, "demonstration", [P, other]) == 1
        assert queue_prompts(connection, "labels", [P]) == 1
    assert queued(workspace, "kind", "prompt", "arm") == [
        ("demonstration", "p", "training"), ("demonstration", "o", "training"), ("labels", "p", "training"),
    ]  # fmt: skip


def test_a_prompts_id_means_one_text(workspace: Workspace) -> None:
    with workspace.write() as connection:
        assert add_prompts(connection, [P], {"p": {"EMAIL_ADDRESS": 1}}) == 1
        assert add_prompts(connection, [P]) == 0
        assert connection.execute(select(prompts.c.quarantine)).scalar_one() == {"EMAIL_ADDRESS": 1}
    with pytest.raises(ValueError, match="'p' is there already with another text"), workspace.write() as connection:
        add_prompts(connection, [Prompt(id="new", text="x"), Prompt(id="p", text="changed")])
    with workspace.read() as connection:
        assert connection.execute(select(prompts.c.id)).scalars().all() == ["p"]


def test_user_and_split_are_completed_but_not_changed(workspace: Workspace) -> None:
    """What belongs to whom, and what may train, hangs on them: unknown ones are taken over, others refused."""

    def known(**values: Any) -> tuple[Any, ...]:
        with workspace.write() as connection:
            assert add_prompts(connection, [Prompt(id="r", text="q", **values)]) <= 1
            return tuple(connection.execute(select(prompts.c.user, prompts.c.split)).one())

    assert known() == (None, None)
    assert known(user="u1") == ("u1", None)
    assert known(split="valid") == ("u1", "valid")
    assert known() == ("u1", "valid")
    assert known(user="u1", split="valid") == ("u1", "valid")
    with pytest.raises(ValueError, match="'r' is there already with user 'u1', not 'u2'"):
        known(user="u2")
    with pytest.raises(ValueError, match="'r' is there already with split 'valid', not 'train'"):
        known(split="train")
    assert known() == ("u1", "valid")


def test_half_a_surrogate_pair_is_a_question_mark(workspace: Workspace) -> None:
    """As no file of UTF-8 could hold it. So two halves become one text, and why it ended is kept."""
    halves = [Completion(text=f"half {half}", policy="sft", finish="length") for half in ("\ud83d", "\udc00")]
    whole = Completion(text="a pair \U0001f600", policy="ppo", finish="stop")
    with workspace.write() as connection:
        add_prompts(connection, [P])
        assert len(add_completions(connection, "p", [*halves, whole])) == 2
        found = connection.execute(select(completions).order_by(completions.c.id)).all()
    assert [(c.text, c.policies, c.finish) for c in found] == [
        ("half ?", ["sft"], "length"), ("a pair \U0001f600", ["ppo"], "stop"),
    ]  # fmt: skip


def queue_file(workspace: Workspace, path: Path) -> int:
    """How many tasks came of it."""
    before = len(queued(workspace, "id"))
    commands.queue_file(workspace.folder, commands.QueueRequest(str(path)))
    return len(queued(workspace, "id")) - before


def test_a_file_is_queued_once(workspace: Workspace, tmp_path: Path) -> None:
    one, copy, changed = (tmp_path / f"{name}.jsonl" for name in ("one", "one_copy", "changed"))
    candidates.write_candidates(one, [(Prompt(id=f"p{i}", text=f"q{i}"), TWO) for i in range(3)])
    candidates.write_candidates(changed, [(Prompt(id="p9", text="q9"), TWO)])
    assert candidates.read_candidates(one) == [(Prompt(id=f"p{i}", text=f"q{i}"), TWO) for i in range(3)]
    assert queue_file(workspace, one) == 3
    assert queue_file(workspace, one) == 0
    assert queue_file(workspace, changed) == 1
    assert len(queued(workspace, "id")) == 4
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"prompt": "q", "completions": ["a"]}) + "\n")
    for _ in range(2):  # what failed was not queued
        with pytest.raises(ValueError, match="here are 1"):
            queue_file(workspace, broken)
    copy.write_text("")
    with pytest.raises(DataError, match="empty"):
        queue_file(workspace, copy)
    with workspace.read() as connection:
        assert connection.execute(select(func.count()).where(events.c.kind == "file queued")).scalar_one() == 2


def test_instructions_have_versions(workspace: Workspace) -> None:
    with workspace.write() as connection:
        ensure_instructions(connection)  # there already
        assert add_instruction(connection, "labels", "Second.") == 2
        ensure_instructions(connection)
        assert current_instruction(connection, "labels").text == "Second."
        assert current_instruction(connection, "ranking").version == 1
        assert connection.execute(select(func.count()).select_from(instructions)).scalar_one() == 5
        told = connection.execute(select(events).where(events.c.kind == "instruction published")).all()
    assert max((e.id, e.subject, e.detail["version"]) for e in told)[1:] == ("labels", 2)
