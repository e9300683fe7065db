"""Who answers what: leases, capacity, arms, gold, drafts, corrections; also with many people at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import accounts, assignment, exchange
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.answers import CompletionRating, RankingAnswer
from tutelage.labeling.store.assignment import GOLD_EVERY, LEASE_SECONDS, Conflict
from tutelage.labeling.store.database import Workspace, record
from tutelage.labeling.store.instructions import INSTRUCTIONS, add_instruction
from tutelage.labeling.store.prompts import add_prompts, erase_prompt
from tutelage.labeling.store.schema import answers, assignments, completions, events, people, prompts, tasks
from tutelage.labeling.store.tasks import Terms, add_task

NOW = 1_000_000.0


def hire(workspace: Workspace, name: str, arm: str = "training", status: str = "working") -> int:
    with workspace.write() as connection:
        return accounts.add_person(connection, workspace, NewPerson(name, "labeler", arm, status))


def ask(
    workspace: Workspace, number: int = 1, *, k: int = 3, rate: bool = False, start: int = 0, **task: Any
) -> list[int]:
    """Ranking tasks on prompts p0, p1, …; completion j of p0 reads "p0 answer j", by policy `m{j}`."""
    made = []
    with workspace.write() as connection:
        for i in range(start, start + number):
            prompt = Prompt(id=f"p{i}", text=f"question {i}")
            add_prompts(connection, [prompt])
            written = [Completion(text=f"p{i} answer {j}", policy=f"m{j}") for j in range(k)]
            made.append(add_task(connection, "ranking", prompt, written, Terms(rate=rate, **task)))
    return made


def take(workspace: Workspace, person: int, now: float = NOW, kind: Any = None) -> int | None:
    with workspace.write() as connection:
        return assignment.next_task(connection, person, kind, now=now)


def shown(workspace: Workspace, person: int, mine: int) -> assignment.Shown:
    with workspace.read() as connection:
        return assignment.show(connection, person, mine)


def send(workspace: Workspace, person: int, mine: int, ranks: tuple[int, ...] = (1, 2, 3), **how: Any) -> int:
    how = {"key": f"{person}/{mine}", "now": NOW + 10} | how
    with workspace.write() as connection:
        act = assignment.correct if how.pop("correct", False) else assignment.submit
        return act(connection, person, mine, {"ranks": list(ranks)}, **how)


def task_of(workspace: Workspace, mine: int | None) -> int | None:
    return one(workspace, select(assignments.c.task).where(assignments.c.id == mine))


def one(workspace: Workspace, query: Any) -> Any:
    with workspace.read() as connection:
        return connection.execute(query).scalar()


def rows(workspace: Workspace, query: Any) -> list[Any]:
    with workspace.read() as connection:
        return list(connection.execute(query).all())


def told(workspace: Workspace) -> list[tuple[str, str | None]]:
    """Kinds and subjects of the events about tasks."""
    kinds = ("leased", "submitted", "corrected", "skipped")
    query = select(events.c.kind, events.c.subject).where(events.c.kind.in_(kinds)).order_by(events.c.id)
    return [tuple(row) for row in rows(workspace, query)]


def at_once(act: Callable[[int], None], number: int) -> None:
    """Run `act` in so many threads that start together; an error in one is an error here."""
    start, wrong = threading.Barrier(number), []

    def run(i: int) -> None:
        start.wait()
        try:
            act(i)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if wrong:
        raise wrong[0]


# Leases


def test_a_lease_is_one_persons_until_it_ends(workspace: Workspace) -> None:
    (task,) = ask(workspace)
    ann, bob = hire(workspace, "Ann"), hire(workspace, "Bob")
    mine = take(workspace, ann, NOW)
    assert task_of(workspace, mine) == task
    assert take(workspace, bob, NOW + LEASE_SECONDS - 1) is None
    theirs = take(workspace, bob, NOW + LEASE_SECONDS)
    assert theirs != mine
    assert task_of(workspace, theirs) == task
    assert take(workspace, ann, NOW + LEASE_SECONDS + 1) is None  # now it is Bob's


def test_taking_again_renews_the_same_lease(workspace: Workspace) -> None:
    ask(workspace, 2)
    ann, bob = hire(workspace, "Ann"), hire(workspace, "Bob")
    mine = take(workspace, ann, NOW)
    assert take(workspace, ann, NOW + 100) == mine
    assert shown(workspace, ann, mine).expires == NOW + 100 + LEASE_SECONDS
    assert task_of(workspace, take(workspace, bob, NOW + 50 + LEASE_SECONDS)) != task_of(workspace, mine)
    assert told(workspace) == [("leased", "1"), ("leased", "2")]  # renewing is no event


def test_a_draft_renews_the_lease(workspace: Workspace) -> None:
    ask(workspace)
    ann, bob = hire(workspace, "Ann"), hire(workspace, "Bob")
    mine = take(workspace, ann, NOW)
    draft = {"ranks": [2, None, 1], "note": "wait"}
    with workspace.write() as connection:
        assignment.save_draft(connection, ann, mine, draft, now=NOW + 100)
    assert shown(workspace, ann, mine).draft == draft
    assert take(workspace, bob, NOW + 100 + LEASE_SECONDS - 1) is None
    send(workspace, ann, mine)
    assert rows(workspace, select(assignments.c.draft)) == [(None,)]
    with pytest.raises(Conflict, match="submitted already"), workspace.write() as connection:
        assignment.save_draft(connection, ann, mine, draft)


def test_whose_lease_ran_out_may_take_the_task_again(workspace: Workspace) -> None:
    ask(workspace)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann, NOW)
    order = one(workspace, select(assignments.c.order))
    later = NOW + 5 * LEASE_SECONDS
    assert take(workspace, ann, later) == mine
    assert one(workspace, select(assignments.c.order)) == order
    send(workspace, ann, mine, now=later + 20)
    assert one(workspace, select(answers.c.seconds)) == 20  # of this lease, not of the first


def test_late_answers_are_kept(workspace: Workspace) -> None:
    (task,) = ask(workspace)
    ann, bob, cas = (hire(workspace, name) for name in ("Ann", "Bob", "Cas"))
    mine = take(workspace, ann, NOW)
    later = NOW + 2 * LEASE_SECONDS
    theirs = take(workspace, bob, later)
    send(workspace, ann, mine, now=later + 1)
    assert not one(workspace, select(tasks.c.open))
    assert take(workspace, cas, later + 2) is None
    send(workspace, bob, theirs, now=later + 3)  # was at it when the late one came
    assert one(workspace, select(func.count()).select_from(answers)) == 2
    assert told(workspace)[2:] == [("submitted", str(task))] * 2


def test_a_task_and_a_labeler_meet_once(workspace: Workspace) -> None:
    ask(workspace, 3, capacity=5)
    ann = hire(workspace, "Ann")
    met = []
    for step in range(3):
        mine = take(workspace, ann, NOW + step)
        met.append(task_of(workspace, mine))
        if step == 1:
            with workspace.write() as connection:
                assignment.skip(connection, ann, mine, "language", now=NOW)
        else:
            send(workspace, ann, mine)
    assert met == [1, 2, 3]
    assert take(workspace, ann, NOW + 10 * LEASE_SECONDS) is None
    row = rows(workspace, select(assignments).limit(1))[0]._mapping
    with pytest.raises(IntegrityError), workspace.write() as connection:
        connection.execute(insert(assignments).values({k: v for k, v in row.items() if k != "id"}))


def test_skipping_gives_the_task_to_somebody_else(workspace: Workspace) -> None:
    (task,) = ask(workspace)
    ann, bob = hire(workspace, "Ann"), hire(workspace, "Bob")
    mine = take(workspace, ann)
    with pytest.raises(ValueError, match="choose a reason"), workspace.write() as connection:
        assignment.skip(connection, ann, mine, "bored")
    with workspace.write() as connection:
        assignment.skip(connection, ann, mine, "other", "x" * 3000)
        assignment.skip(connection, ann, mine, "other")  # twice is once
    assert one(workspace, select(assignments.c.skipped)) == {"reason": "other", "note": "x" * 2000}
    assert told(workspace) == [("leased", str(task)), ("skipped", str(task))]
    assert take(workspace, ann) is None
    assert task_of(workspace, take(workspace, bob)) == task
    with pytest.raises(Conflict, match="skipped already"):
        send(workspace, ann, mine)


def test_nobody_touches_anothers_task(workspace: Workspace) -> None:
    ask(workspace)
    ann, bob = hire(workspace, "Ann"), hire(workspace, "Bob")
    mine = take(workspace, ann)
    for act in (
        lambda c: assignment.show(c, bob, mine), lambda c: assignment.save_draft(c, bob, mine, {}),
        lambda c: assignment.submit(c, bob, mine, {"ranks": [1, 2, 3]}, "k"),
        lambda c: assignment.skip(c, bob, mine, "other"),
    ):  # fmt: skip
        with pytest.raises(LookupError, match="no such task of yours"), workspace.write() as connection:
            act(connection)
    with pytest.raises(LookupError, match="no person"):
        take(workspace, 99)


# Capacity, also at once


@pytest.mark.parametrize("submitted", [0, 1, 2])
def test_capacity_counts_live_leases_and_submissions(workspace: Workspace, submitted: int) -> None:
    ask(workspace, capacity=2)
    first = [hire(workspace, name) for name in ("Ann", "Bob")]
    last = hire(workspace, "Cas")
    mine = [take(workspace, person) for person in first]
    for person, lease in list(zip(first, mine, strict=True))[:submitted]:
        send(workspace, person, lease)
    assert take(workspace, last) is None
    ended = take(workspace, last, NOW + LEASE_SECONDS)
    assert (ended is None) == (submitted == 2)
    assert one(workspace, select(tasks.c.open)) == (submitted < 2)


def test_many_people_at_once_finish_every_task_just_once(workspace: Workspace) -> None:
    """16 people, 30 tasks for 2 each, all at the same time: 60 answers, two a task, by different people."""
    ask(workspace, 30, capacity=2)
    pool = [hire(workspace, f"labeler {i}") for i in range(16)]
    over = []

    def work(i: int) -> None:
        while (mine := take(workspace, pool[i])) is not None:
            live = select(func.count()).select_from(assignments).group_by(assignments.c.task)
            over.extend(n for (n,) in rows(workspace, live) if n > 2)
            send(workspace, pool[i], mine)

    at_once(work, 16)
    assert over == []
    done = rows(workspace, select(assignments.c.task, assignments.c.person, assignments.c.state))
    assert Counter(r.task for r in done) == dict.fromkeys(range(1, 31), 2)
    assert {r.state for r in done} == {"submitted"}
    assert one(workspace, select(func.count(answers.c.assignment.distinct()))) == 60
    assert one(workspace, select(func.count()).select_from(answers)) == 60
    assert one(workspace, select(func.count()).where(tasks.c.open)) == 0
    assert Counter(kind for kind, _ in told(workspace)) == {"leased": 60, "submitted": 60}


def test_one_task_at_once_goes_to_one_of_eight(workspace: Workspace) -> None:
    ask(workspace)
    pool = [hire(workspace, f"labeler {i}") for i in range(8)]
    got: list[int | None] = [None] * 8

    def work(i: int) -> None:
        got[i] = take(workspace, pool[i])

    at_once(work, 8)
    assert sum(mine is not None for mine in got) == 1


def test_one_person_in_two_windows_has_one_task(workspace: Workspace) -> None:
    ask(workspace, 8)
    ann = hire(workspace, "Ann")
    got: list[int | None] = [None] * 8

    def work(i: int) -> None:
        got[i] = take(workspace, ann)

    at_once(work, 8)
    assert len(set(got)) == 1


# Keys


def test_the_same_form_twice_is_one_answer(workspace: Workspace) -> None:
    ask(workspace)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann)
    first = send(workspace, ann, mine, (1, 2, 3), key="form")
    assert send(workspace, ann, mine, (3, 2, 1), key="form") == first
    stored = [a.ranks for a in (RankingAnswer(**body) for (body,) in rows(workspace, select(answers.c.body)))]
    order = one(workspace, select(assignments.c.order))
    assert stored == [tuple(order.index(i) + 1 for i in range(3))]
    assert told(workspace) == [("leased", "1"), ("submitted", "1")]
    with pytest.raises(Conflict, match="submitted already"):
        send(workspace, ann, mine, key="another form")


def test_the_same_form_at_once_is_one_answer(workspace: Workspace) -> None:
    ask(workspace)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann)
    got: list[int] = [0] * 8

    def work(i: int) -> None:
        got[i] = send(workspace, ann, mine, key="form")

    at_once(work, 8)
    assert got == [got[0]] * 8
    assert one(workspace, select(func.count()).select_from(answers)) == 1


def test_a_form_of_another_task_is_refused(workspace: Workspace) -> None:
    ask(workspace, 2)
    ann = hire(workspace, "Ann")
    send(workspace, ann, take(workspace, ann), key="form")
    second = take(workspace, ann)
    with pytest.raises(Conflict, match="another task"):
        send(workspace, ann, second, key="form")
    assert shown(workspace, ann, second).state == "leased"


# Arms, screening, gold


def test_arms_never_meet_each_others_tasks(workspace: Workspace) -> None:
    ask(workspace, 2, arm="training", capacity=9)
    ask(workspace, 2, arm="heldout", capacity=9, start=2)
    ask(workspace, 2, capacity=9, start=4)
    met: dict[str, list[Any]] = {}
    for arm in ("training", "heldout"):
        person = hire(workspace, arm, arm)
        while (mine := take(workspace, person)) is not None:
            met.setdefault(arm, []).append(task_of(workspace, mine))
            send(workspace, person, mine)
    assert met == {"training": [1, 2, 5, 6], "heldout": [3, 4, 5, 6]}


def test_a_lease_does_not_outlive_a_change_of_arm(workspace: Workspace) -> None:
    ask(workspace, arm="training")
    ask(workspace, arm="heldout", start=1)
    ann = hire(workspace, "Ann")
    assert task_of(workspace, take(workspace, ann)) == 1
    with workspace.write() as connection:
        accounts.change_person(connection, ann, ann, arm="heldout")
    assert task_of(workspace, take(workspace, ann)) == 2
    with workspace.read() as connection:
        assert assignment.progress(connection, ann, NOW)["left"] == {"ranking": 1}


@pytest.mark.parametrize(("status", "met"), [("screening", [2]), ("working", [1, 3]), ("paused", [])])
def test_status_says_which_tasks(workspace: Workspace, status: str, met: list[int]) -> None:
    ask(workspace)
    ask(workspace, start=1, purpose="screening")
    ask(workspace, start=2, purpose="gold")
    ann = hire(workspace, "Ann", status=status)
    found = []
    while (mine := take(workspace, ann)) is not None:
        found.append(task_of(workspace, mine))
        send(workspace, ann, mine)
    assert found == met


def test_a_paused_labelers_lease_waits(workspace: Workspace) -> None:
    ask(workspace)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann)
    with workspace.write() as connection:
        accounts.change_person(connection, ann, ann, status="paused")
    assert take(workspace, ann) is None
    with pytest.raises(accounts.Paused):
        send(workspace, ann, mine)
    with workspace.write() as connection:
        accounts.change_person(connection, ann, ann, status="working")
    send(workspace, ann, mine)


def test_every_twentieth_answer_is_to_a_gold_item(sqlite: Workspace) -> None:
    ask(sqlite, 3, purpose="gold", capacity=9)
    ask(sqlite, 50, start=3)
    ann = hire(sqlite, "Ann")
    met = []
    for _ in range(50):
        mine = take(sqlite, ann)
        met.append(task_of(sqlite, mine))
        send(sqlite, ann, mine)
    assert [i + 1 for i, task in enumerate(met) if task <= 3] == [GOLD_EVERY, 2 * GOLD_EVERY]
    rest = []
    while (mine := take(sqlite, ann)) is not None:
        rest.append(task_of(sqlite, mine))
        send(sqlite, ann, mine)
    assert rest == [52, 53, 3]  # the last gold item once no work is left


def test_a_kind_may_be_chosen(workspace: Workspace) -> None:
    ask(workspace)
    with workspace.write() as connection:
        add_task(connection, "labels", Prompt(id="p0", text="question 0"))
    ann = hire(workspace, "Ann")
    labels = take(workspace, ann, kind="labels")
    assert task_of(workspace, labels) == 2
    ranking = take(workspace, ann, kind="ranking")
    assert task_of(workspace, ranking) == 1
    assert take(workspace, ann, kind="labels") == labels
    assert take(workspace, ann, kind="demonstration") is None
    with workspace.read() as connection:
        assert assignment.progress(connection, ann, NOW)["left"] == {"labels": 1, "ranking": 1}


# Withdrawn prompts


@pytest.mark.parametrize("withdrawn", ["quarantined", "erased"])
def test_withdrawn_prompts_are_shown_to_nobody(workspace: Workspace, withdrawn: str) -> None:
    ask(workspace, 2)
    ann, bob = hire(workspace, "Ann"), hire(workspace, "Bob")
    mine = take(workspace, ann)
    with workspace.write() as connection:
        if withdrawn == "erased":
            erase_prompt(connection, "p0")
        else:
            connection.execute(update(prompts).where(prompts.c.id == "p0").values(quarantine={"EMAIL_ADDRESS": 1}))
    with pytest.raises(LookupError, match="withdrawn"):
        shown(workspace, ann, mine)
    assert task_of(workspace, take(workspace, ann)) == 2
    assert take(workspace, bob) is None
    with workspace.read() as connection:
        assert assignment.progress(connection, bob, NOW)["left"] == {}


def test_what_was_erased_does_not_come_back_by_an_open_page(workspace: Workspace) -> None:
    ask(workspace)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann)
    with workspace.write() as connection:
        erase_prompt(connection, "p0")
    for act in (
        lambda c: assignment.submit(c, ann, mine, {"ranks": [1, 2, 3], "note": "question 0"}, "k"),
        lambda c: assignment.save_draft(c, ann, mine, {"note": "question 0"}),
        lambda c: assignment.skip(c, ann, mine, "other", "question 0"),
    ):
        with pytest.raises(LookupError, match="withdrawn"), workspace.write() as connection:
            act(connection)


# Answers


def test_corrections_add_a_row_and_leave_the_first(workspace: Workspace) -> None:
    ask(workspace)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann)
    with pytest.raises(Conflict, match="leased already"):
        send(workspace, ann, mine, correct=True)
    first = send(workspace, ann, mine, (1, 2, 3))
    before = rows(workspace, select(answers).where(answers.c.id == first))
    send(workspace, ann, mine, (3, 2, 1), key="second", correct=True, now=NOW + 60)
    send(workspace, ann, mine, (2, 2, 1), key="third", correct=True, now=NOW + 70)
    assert rows(workspace, select(answers).where(answers.c.id == first)) == before
    assert rows(workspace, select(answers.c.number).order_by(answers.c.id)) == [(1,), (2,), (3,)]
    again = shown(workspace, ann, mine)
    assert again.correcting
    assert again.draft["ranks"] == [2, 2, 1]
    with workspace.read() as connection:
        (counted,) = exchange.newest_answers(connection)
        assert sorted(counted.body["ranks"]) == [1, 2, 2]
        done = assignment.progress(connection, ann, NOW + 80)
        (newest,) = assignment.recent(connection, ann, 10)
    assert (done["done"], done["today"]) == (1, 1)
    assert newest.number == 3
    assert told(workspace)[1:] == [("submitted", "1"), ("corrected", "1"), ("corrected", "1")]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"ranks": [1, 2]}, "2 of 3 completions are ranked"),
        ({"ranks": [1, 2, 4], "ratings": [{"quality": 1}] * 3}, "rank 4 is given"),
        ({"ranks": [1, 2, 0]}, "ranks 3: Input should be greater than or equal to 1"),
        ({"ranks": [1, 2, 3], "ratings": [{"quality": 4}]}, "1 of 3 completions are rated"),
        ({"ranks": [1, 2, 3], "ratings": [{"quality": 8}] * 3}, "ratings 1 quality"),
        ({"ranks": [1, 2, 3], "ratings": [{"quality": 1, "flags": ["ugly"]}] * 3}, "'ugly' is no flag"),
        ({"ranks": [1, 2, 3], "ratings": [{"quality": 1}] * 3, "annotations": ["long"]}, "'long' is no annotation"),
        ({}, "ranks: Field required"),
    ],
)
def test_incomplete_answers_are_named_and_change_nothing(sqlite: Workspace, body: dict[str, Any], said: str) -> None:
    ask(sqlite, rate=True)
    ann = hire(sqlite, "Ann")
    mine = take(sqlite, ann)
    with pytest.raises(ValueError, match=said), sqlite.write() as connection:
        assignment.submit(connection, ann, mine, body, "form")
    assert one(sqlite, select(assignments.c.state)) == "leased"
    assert told(sqlite) == [("leased", "1")]


def test_the_order_shown_is_a_persons_own(workspace: Workspace) -> None:
    ask(workspace, k=9, capacity=6)
    orders = []
    for i in range(6):
        person = hire(workspace, f"labeler {i}")
        mine = take(workspace, person)
        order = one(workspace, select(assignments.c.order).where(assignments.c.id == mine))
        assert sorted(order) == list(range(9))
        assert shown(workspace, person, mine).texts == tuple(f"p0 answer {j}" for j in order)
        orders.append(tuple(order))
    assert len(set(orders)) == 6


def test_what_is_shown_names_no_policy(sqlite: Workspace) -> None:
    ask(sqlite)
    ann = hire(sqlite, "Ann")
    page = shown(sqlite, ann, take(sqlite, ann))
    assert "m0" not in repr(page)
    assert page.instruction == INSTRUCTIONS["ranking"]
    assert (page.kind, page.prompt, page.version, page.state, page.draft) == (
        "ranking",
        "question 0",
        1,
        "leased",
        None,
    )


def test_answers_are_stored_in_the_tasks_own_order(workspace: Workspace) -> None:
    """Whoever ranks by the texts, in whatever order they are shown, is stored alike."""
    ask(workspace, k=5, capacity=4, rate=True)
    for i in range(4):
        person = hire(workspace, f"labeler {i}")
        mine = take(workspace, person)
        places = [int(text[-1]) for text in shown(workspace, person, mine).texts]  # "p0 answer 3" -> 3
        body = {
            "ranks": [place + 1 for place in places],
            "ratings": [{"quality": 7 - place, "flags": ["hallucination"] * (place == 4)} for place in places],
        }
        with workspace.write() as connection:
            assignment.submit(connection, person, mine, body, f"form {i}")
        draft = shown(workspace, person, mine).draft
        assert draft["ranks"] == body["ranks"]
        assert [r["quality"] for r in draft["ratings"]] == [r["quality"] for r in body["ratings"]]
    for (body,) in rows(workspace, select(answers.c.body)):
        assert body["ranks"] == [1, 2, 3, 4, 5]
        assert [r["quality"] for r in body["ratings"]] == [7, 6, 5, 4, 3]
        assert [r["flags"] for r in body["ratings"]] == [[], [], [], [], ["hallucination"]]


@given(st.data())
def test_stored_and_shown_order_undo_each_other(data: st.DataObject) -> None:
    k = data.draw(st.integers(2, 9))
    order = data.draw(st.permutations(range(k)))
    ranks = tuple(data.draw(st.lists(st.integers(1, k), min_size=k, max_size=k)))
    qualities = data.draw(st.lists(st.integers(1, 7), min_size=k, max_size=k))
    answer = RankingAnswer(ranks=ranks, ratings=tuple(CompletionRating(quality=q) for q in qualities))
    body = assignment._as_stored(answer, order)
    for position, index in enumerate(order):  # position shown -> the task's own
        assert body["ranks"][index] == ranks[position]
        assert body["ratings"][index]["quality"] == qualities[position]
    again = assignment._as_shown(body, order)
    assert again == answer.model_dump(mode="json")


def test_identical_completions_are_one_of_all_their_policies(workspace: Workspace) -> None:
    written = [Completion(text=t, policy=p) for t, p in (("a", "sft"), ("b", "ppo"), ("a", "gpt"), ("a", "sft"))]
    with workspace.write() as connection:
        prompt = Prompt(id="p", text="q")
        add_prompts(connection, [prompt])
        add_task(connection, "ranking", prompt, written, Terms(rate=False))
    assert rows(workspace, select(completions.c.text, completions.c.policies).order_by(completions.c.id)) == [
        ("a", ["gpt", "sft"]), ("b", ["ppo"]),
    ]  # fmt: skip
    ann = hire(workspace, "Ann")
    assert sorted(shown(workspace, ann, take(workspace, ann)).texts) == ["a", "b"]


def test_an_answer_pins_the_instruction_it_was_shown(workspace: Workspace) -> None:
    ask(workspace, 2)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann)
    with workspace.write() as connection:
        add_instruction(connection, "ranking", "Rank well.")
    page = shown(workspace, ann, mine)
    assert (page.version, page.instruction) == (1, INSTRUCTIONS["ranking"])
    send(workspace, ann, mine)
    second = take(workspace, ann)
    assert (shown(workspace, ann, second).version, shown(workspace, ann, second).instruction) == (2, "Rank well.")
    send(workspace, ann, second)
    with workspace.read() as connection:
        assert [a.instruction for a in exchange.newest_answers(connection)] == ["ranking v1", "ranking v2"]


# The audit


def test_an_act_without_its_event_is_undone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is the last thing that an act writes; if that fails, nothing of the act is there."""
    ask(workspace, 2)
    ann = hire(workspace, "Ann")
    mine = take(workspace, ann)
    tables = (assignments, answers, events, tasks)
    before = [rows(workspace, select(table)) for table in tables]

    def broken(*args: Any, **kwargs: Any) -> float:
        record(*args, **kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(assignment, "record", broken)
    with pytest.raises(OSError, match="disk full"):
        send(workspace, ann, mine)
    with pytest.raises(OSError, match="disk full"), workspace.write() as connection:
        assignment.skip(connection, ann, mine, "other")
    with pytest.raises(OSError, match="disk full"):
        take(workspace, hire(workspace, "Bob"))
    after = [rows(workspace, select(table)) for table in tables]
    joined = [row for row in after[2] if row.kind == "joined"]
    assert len(joined) == 2
    after[2].remove(joined[-1])  # Bob's
    assert after == before


def test_progress_counts(workspace: Workspace) -> None:
    ask(workspace, 4, capacity=2)
    ask(workspace, 1, arm="heldout", start=4)
    ann = hire(workspace, "Ann")
    send(workspace, ann, take(workspace, ann, NOW - 90_000), now=NOW - 90_000)  # the day before
    send(workspace, ann, take(workspace, ann))
    with workspace.write() as connection:
        assignment.skip(connection, ann, assignment.next_task(connection, ann, now=NOW), "other")
    with workspace.read() as connection:
        assert assignment.progress(connection, ann, NOW + 20) == {
            "done": 2,
            "skipped": 1,
            "today": 1,
            "left": {"ranking": 1},
        }
    take(workspace, ann)
    with workspace.read() as connection:
        assert assignment.progress(connection, ann, NOW + 20)["left"] == {"ranking": 1}  # the one in hand
        assert assignment.progress(connection, ann, NOW + 9 * LEASE_SECONDS)["left"] == {"ranking": 1}
        assert connection.execute(select(people.c.status)).scalars().all() == ["working"]
