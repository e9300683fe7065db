"""Labelers' pages over HTTP, on both databases: every kind of task from start to stored answer, and what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import assignment
from tutelage.labeling.store.answers import KINDS
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.instructions import add_instruction
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import answers, assignments, completions
from tutelage.labeling.store.tasks import Terms, add_task
from tutelage.labeling.web.work import seconds_in_view

from .conftest import PATIENCE, Server, add, session_of

TEXTS = ("A frog.", "Two toads.", "Three newts.")
SECRETS = ("sft-secret", "ppo-secret", "base-secret")  # policies' names
Visit = Callable[..., httpx.Client]


def add_work(workspace: Workspace, kind: str, prompt: Any = "Name an animal.", **more: Any) -> int:
    """A task of a kind on a prompt of its own, with three completions to rank or two to compare."""
    k = {"ranking": 3, "comparison": 2}.get(kind, 0)
    made = [Completion(text=t, policy=p) for t, p in zip(TEXTS, SECRETS, strict=True)][:k]
    with workspace.write() as connection:
        asked = Prompt(id=f"{kind}-{more.pop('name', 1)}", text=prompt)
        add_prompts(connection, [asked])
        return add_task(connection, kind, asked, made, Terms(**more))


@pytest.fixture
def seen() -> list[str]:
    """All that servers have sent: addresses, headers and pages."""
    return []


@pytest.fixture
def visit(workspace: Workspace, serve: Callable[[Workspace], Server], seen: list[str]) -> Iterator[Visit]:
    """Visitors to a running server: `visit(name, status=...)` adds a labeler and signs them in."""
    place, clients = serve(workspace).url, []

    def note(reply: httpx.Response) -> None:
        reply.read()
        seen.append(f"{reply.url} {reply.headers} {reply.text}")

    def come(name: str = "Ada", **what: str) -> httpx.Client:
        cookies = {"tutelage_session": session_of(workspace, add(workspace, name, **what))}
        clients.append(
            httpx.Client(base_url=place, cookies=cookies, timeout=PATIENCE, event_hooks={"response": [note]})
        )
        return clients[-1]

    yield come
    for client in clients:
        client.close()


def start(client: httpx.Client, kind: str = "") -> str:
    """Lease a task; its address."""
    reply = client.post("/next", data={"kind": kind})
    assert reply.status_code == 303
    return reply.headers["location"]


def opened(client: httpx.Client, address: str) -> tuple[str, dict[str, Any]]:
    """A task's page, and what its form would send as it stands."""
    reply = client.get(address)
    assert reply.status_code == 200, reply.text
    return reply.text, fields_of(reply.text)


def fields_of(html: str) -> dict[str, Any]:
    form = html[html.index('<form id="answer"') :]
    form = form[: form.index("</form>")]
    fields: dict[str, Any] = {}
    for tag in re.findall(r"<input [^>]*>", form):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if attributes["type"] == "hidden":
            fields[attributes["name"]] = unescape(attributes["value"])
        elif " checked" in tag:
            fields.setdefault(attributes["name"], []).append(unescape(attributes["value"]))
    for name, text in re.findall(r'<textarea name="(\w+)"[^>]*>\n([^<]*)</textarea>', form):
        fields[name] = unescape(text)
    return fields


def shown_texts(html: str) -> list[str]:
    return [unescape(t) for t in re.findall(r'<h3 id="name-.*?<div class="text" dir="auto">(.*?)</div>', html, re.S)]


def stored(workspace: Workspace) -> list[Any]:
    with workspace.read() as connection:
        return list(connection.execute(select(answers).order_by(answers.c.id)))


GIVEN = {  # a whole answer to each kind, by position shown
    "demonstration": {"completion": "The hare."},
    "labels": {"use_case": "open qa", "annotations": ["ambiguous", "asks_for_advice"]},
    "comparison": {"rank_1": "2", "rank_2": "1"},
    "ranking": {
        "rank_1": "2", "rank_2": "1", "rank_3": "2", "quality_1": "4", "quality_2": "7", "quality_3": "3",
        "flags_1": ["hallucination", "harmful_advice"], "annotations": ["sensitive"], "note": "Close.",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_from_start_to_stored_answer(workspace: Workspace, visit: Visit, kind: str, seen: list[str]) -> None:
    add_work(workspace, kind)
    ada = visit()
    assert f'name="kind" value="{kind}"' in ada.get("/").text
    address = start(ada, kind)
    page, fields = opened(ada, address)
    reply = ada.post(address + "/submit", data=fields | GIVEN[kind] | {"active_seconds": "12.5"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    (row,) = stored(workspace)
    assert row.active_seconds == 12.5
    if kind == "demonstration":
        assert row.body["completion"] == "The hare."
    elif kind == "labels":
        assert (row.body["use_case"], row.body["annotations"]) == ("open qa", ["ambiguous", "asks_for_advice"])
    else:  # what was ranked first as shown is ranked first as stored, whatever the two orders are
        with workspace.read() as connection:
            texts = connection.execute(select(completions.c.text).order_by(completions.c.id)).scalars().all()
        ranks = dict(
            zip(shown_texts(page), (int(GIVEN[kind][f"rank_{i + 1}"]) for i in range(len(texts))), strict=True)
        )
        assert row.body["ranks"] == [ranks[text] for text in texts]
    if kind == "ranking":
        told = {shown_texts(page)[0]: (4, ["hallucination", "harmful_advice"]), shown_texts(page)[1]: (7, [])}
        for text, (quality, flags) in told.items():
            assert row.body["ratings"][texts.index(text)] == {"quality": quality, "flags": flags}
        assert (row.body["annotations"], row.body["note"]) == (["sensitive"], "Close.")
    after = ada.get("/").text
    assert "Nothing is left" in after
    assert f"<td>{KINDS[kind]}" in ada.get("/mine").text
    assert ada.get(f"{address}?correct=1").status_code == 200
    assert not [s for s in SECRETS if any(s in page for page in seen)]


def test_orders_differ_between_labelers(workspace: Workspace, visit: Visit) -> None:
    """Or the test above, that orders are told apart, would mean nothing."""
    add_work(workspace, "ranking", capacity=8)
    orders = set()
    for name in "abcdefgh":
        client = visit(name)
        orders.add(tuple(shown_texts(opened(client, start(client))[0])))
    assert len(orders) > 1
    assert {frozenset(order) for order in orders} == {frozenset(TEXTS)}


def test_submission_leads_to_the_next_of_its_kind(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "labels", name=1)
    add_work(workspace, "demonstration", name=2)
    add_work(workspace, "labels", name=3)
    ada = visit()
    first = start(ada, "labels")
    second = ada.post(first + "/submit", data=opened(ada, first)[1] | GIVEN["labels"]).headers["location"]
    assert second != first
    assert "use_case" in ada.get(second).text
    assert ada.post(second + "/submit", data=opened(ada, second)[1] | GIVEN["labels"]).headers["location"] == "/"


INCOMPLETE = [
    ("ranking", {}, "0 of 3 completions are ranked"),
    ("ranking", {"rank_1": "1", "rank_3": "1", "note": "Kept <b>", "flags_2": ["hallucination"]}, "2 of 3 completions"),
    ("ranking", {"rank_1": "1", "rank_2": "2", "rank_3": "3", "quality_2": "6"}, "1 of 3 completions are rated"),
    ("ranking", {"rank_1": "1", "rank_2": "9", "rank_3": "x", "note": "odd"}, "2 of 3 completions are ranked"),
    ("comparison", {"rank_2": "1", "annotations": ["sensitive"]}, "1 of 2 completions are ranked"),
    ("demonstration", {"completion": "  ", "note": "Hm."}, "nothing is written yet"),
    ("demonstration", {"completion": "y" * 20001}, "at most 20000 characters"),
    ("labels", {"annotations": ["ambiguous"]}, "choose a kind of request"),
    ("labels", {"use_case": "open qa", "note": "z" * 2001}, "at most 2000 characters"),
]


@pytest.mark.parametrize(("kind", "sent", "problem"), INCOMPLETE)
def test_an_incomplete_answer_is_refused_and_nothing_is_lost(
    workspace: Workspace, visit: Visit, kind: str, sent: dict[str, Any], problem: str
) -> None:
    add_work(workspace, kind)
    ada = visit()
    address = start(ada)
    _, fields = opened(ada, address)
    reply = ada.post(address + "/submit", data=fields | sent)
    assert reply.status_code == 400
    assert problem in re.search(r'role="alert">(.*?)</p>', reply.text).group(1)
    kept = {n: v if isinstance(v, list) or n in ("note", "completion") else [v] for n, v in sent.items() if v != "x"}
    assert not stored(workspace)
    for page in (reply.text, ada.get(address).text):  # as answered, and when they come back later
        now = fields_of(page)
        offered = {n: v for n, v in kept.items() if v != ["9"]}  # of three completions none can be shown as the 9th
        assert {name: now[name] for name in offered} == offered
    assert now["key"] != fields["key"]


def test_the_same_form_sent_twice_is_stored_once(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "comparison")
    ada = visit()
    address = start(ada)
    _, fields = opened(ada, address)
    replies = [ada.post(address + "/submit", data=fields | GIVEN["comparison"]) for _ in range(2)]
    assert [r.status_code for r in replies] == [303, 303]
    assert len(stored(workspace)) == 1
    other = ada.post(address + "/submit", data=fields | GIVEN["comparison"] | {"key": "another-form-of-theirs"})
    assert (other.status_code, len(stored(workspace))) == (409, 1)
    assert "submitted already" in other.text
    assert ada.post(address + "/skip", data={"reason": "unclear"}).status_code == 409
    assert ada.post(address + "/draft", data=fields).status_code == 409


def test_a_form_without_a_key_is_refused(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "labels")
    ada = visit()
    address = start(ada)
    for key in ("", "short", "x" * 101, "not a key of ours!!", "k\0" * 10):
        reply = ada.post(address + "/submit", data=GIVEN["labels"] | {"key": key})
        assert (reply.status_code, stored(workspace)) == (400, [])
        assert fields_of(reply.text)["use_case"] == ["open qa"]


def test_two_labelers_on_one_prompt_do_not_see_each_other(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "ranking", capacity=2)
    ada, bob = visit("Ada"), visit("Bob")
    hers, his = start(ada), start(bob)
    assert hers != his
    mark = {"note": "Only Ada's words", "active_seconds": "77.7"}
    assert ada.post(hers + "/draft", data=opened(ada, hers)[1] | GIVEN["ranking"] | mark).status_code == 204
    _, before = opened(bob, his)
    ada.post(hers + "/submit", data=opened(ada, hers)[1] | GIVEN["ranking"] | mark)
    page, after = opened(bob, his)
    assert "Only Ada" not in page + bob.get("/mine").text + bob.get("/").text
    assert {**before, "key": ""} == {**after, "key": ""} == {"key": "", "active_seconds": "", "note": ""}
    for reply in (
        bob.get(hers), bob.get(hers + "?correct=1"),
        *(bob.post(hers + act, data=before | GIVEN["ranking"]) for act in ("/submit", "/correct", "/draft", "/skip")),
    ):  # fmt: skip
        assert reply.status_code == 404
        assert "Only Ada" not in reply.text
    assert len(stored(workspace)) == 1


def test_a_skip_has_a_reason_and_gives_the_task_back(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "ranking")
    ada, bob = visit("Ada"), visit("Bob")
    address = start(ada)
    assert start(bob) == "/"  # one labeler is wanted, and Ada has it
    ada.post(address + "/draft", data=GIVEN["ranking"])
    refused = ada.post(address + "/skip", data={"skip_note": "I wonder"})
    assert refused.status_code == 400
    assert "choose a reason" in refused.text
    assert "I wonder" in refused.text
    assert fields_of(refused.text)["note"] == "Close."
    assert ada.post(address + "/skip", data={"reason": "unclear", "skip_note": "Which?"}).headers["location"] == "/"
    with workspace.read() as connection:
        row = connection.execute(select(assignments)).one()
    assert (row.state, row.skipped) == ("skipped", {"reason": "unclear", "note": "Which?"})
    assert ada.get(address).status_code == 404
    assert ada.post(address + "/submit", data={"key": "k" * 20} | GIVEN["ranking"]).status_code == 409
    assert start(ada) == "/"
    assert re.search(r"Skipped</dt><dd>1<", ada.get("/").text)
    assert start(bob) != "/"
    assert not stored(workspace)


def test_a_correction_is_a_second_answer(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "ranking")
    ada = visit()
    address = start(ada)
    ada.post(address + "/submit", data=opened(ada, address)[1] | GIVEN["ranking"])
    assert f"{address}?correct=1" in ada.get("/mine").text
    assert '<form id="answer"' not in ada.get(address).text
    assert f"{address}?correct=1" in ada.get(address).text
    page, fields = opened(ada, f"{address}?correct=1")
    assert "data-draft" not in page
    plain = {name: value for name, value in fields.items() if name not in ("key", "active_seconds")}
    assert plain == {n: v if n == "note" or isinstance(v, list) else [v] for n, v in GIVEN["ranking"].items()}
    short = ada.post(address + "/correct", data={**fields, "quality_1": ""})
    assert (short.status_code, len(stored(workspace))) == (400, 1)
    assert "2 of 3 completions are rated" in short.text
    reply = ada.post(address + "/correct", data={**fields, "rank_1": "3"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/mine")
    first, second = stored(workspace)
    assert (first.number, second.number) == (1, 2)
    changed = [i for i in range(3) if first.body["ranks"][i] != second.body["ranks"][i]]
    assert [second.body["ranks"][i] for i in changed] == [3]
    mine = ada.get("/mine").text
    assert mine.count("?correct=1") == 1
    assert "(corrected)" in mine
    assert re.search(r"Today</dt><dd>1<", ada.get("/").text)


def test_screening_gets_screening(workspace: Workspace, visit: Visit) -> None:
    reference = {"ranks": [1, 2, 3]}
    add_work(workspace, "ranking", name="trial", purpose="screening", reference=reference, capacity=9)
    add_work(workspace, "labels", name="work")
    add_work(workspace, "ranking", name="gold", purpose="gold", reference=reference, capacity=9)
    new = visit("New", status="screening")
    home = new.get("/").text
    assert ("trial" in home, 'value="ranking"' in home, 'value="labels"' in home) == (True, True, False)
    assert start(new, "labels") == "/"
    address = start(new, "ranking")
    assert new.post(address + "/submit", data=opened(new, address)[1] | GIVEN["ranking"]).headers["location"] == "/"
    assert "your trial is done" in new.get("/").text


def test_drafts_come_back(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "ranking")
    ada = visit()
    address = start(ada)
    _, fields = opened(ada, address)
    assert not [name for name in fields if name.startswith(("rank_", "quality_", "flags_"))]  # nothing is preselected
    part = {"rank_2": "3", "quality_3": "1", "flags_3": ["expresses_opinion"], "note": "\n a\n", "active_seconds": "61"}
    assert ada.post(address + "/draft", data=fields | part).status_code == 204
    by_button = ada.post(address + "/draft", data=fields | part | {"back": "1"})
    assert (by_button.status_code, by_button.headers["location"]) == (303, address)
    _, again = opened(ada, start(ada))
    assert again == {
        "key": again["key"], "active_seconds": "61.0", "note": "\n a\n",
        "rank_2": ["3"], "quality_3": ["1"], "flags_3": ["expresses_opinion"],
    }  # fmt: skip
    assert "1 ticked" in ada.get(address).text


def test_a_draft_renews_the_lease(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "labels")
    ada = visit()
    address = start(ada)
    with workspace.write() as connection:
        connection.execute(assignments.update().values(expires=1.0))
    ada.post(address + "/draft", data={})
    with workspace.read() as connection:
        assert connection.execute(select(assignments.c.expires)).scalar_one() > 1e9


def test_line_breaks_are_what_was_typed(workspace: Workspace, visit: Visit) -> None:
    """Browsers send CR LF, whatever was typed; a model should not learn it."""
    add_work(workspace, "demonstration")
    ada = visit()
    address = start(ada)
    ada.post(address + "/submit", data=opened(ada, address)[1] | {"completion": "\r\none\r\ntwo"})
    assert stored(workspace)[0].body["completion"] == "\none\ntwo"
    assert opened(ada, address + "?correct=1")[1]["completion"] == "\none\ntwo"


@pytest.mark.parametrize(
    ("said", "believed"),
    [("", None), ("7.25", 7.25), ("86401", None), ("-3", None), ("1e3", None), ("nan", None), ("inf", None)],
)
def test_seconds_in_view_must_make_sense(said: str, believed: float | None) -> None:
    assert seconds_in_view(said) == believed


HOSTILE = "<script>alert(1)</script>&amp;\u202egnp.exe \0 {{ 7 * 7 }}"


@pytest.mark.parametrize("prompt", [HOSTILE, [{"role": HOSTILE, "content": HOSTILE + "\ud83d"}]])
def test_texts_are_only_texts(workspace: Workspace, visit: Visit, prompt: Any) -> None:
    """Markup, template code, half a character, NUL: all shown, none obeyed, no page broken."""
    with workspace.write() as connection:
        asked = Prompt(id="p", text=prompt)
        add_prompts(connection, [asked])
        odd = [Completion(text=text) for text in (HOSTILE + "\ud83d", "", "y" * 4000)]
        add_task(connection, "ranking", asked, odd)
    ada = visit()
    page, _ = opened(ada, start(ada))
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;") == (2 if isinstance(prompt, str) else 3)
    assert "{{ 7 * 7 }}" in page
    assert page.count('class="text long"') == 1
    assert "(an empty text)" in page


def test_newcomers_are_shown_the_guide(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "labels", capacity=2)
    ada = visit()
    assert "New here?" in ada.get("/").text
    assert "<h1>Label a prompt</h1>" in ada.get("/guide/labels").text
    assert ada.get("/guide/nothing").status_code == 404
    address = start(ada)
    with workspace.write() as connection:
        add_instruction(connection, "labels", "# Label **well**")
    page, fields = opened(ada, address)  # pinned when the task was leased
    assert "Label <strong>well</strong>" not in page
    assert "Version 1" in page
    assert "Label <strong>well</strong>" in ada.get("/guide/labels").text
    ada.post(address + "/submit", data=fields | GIVEN["labels"])
    assert "New here?" not in ada.get("/").text


def test_home_counts_every_task_in_hand(workspace: Workspace, visit: Visit) -> None:
    for kind in KINDS:
        add_work(workspace, kind)
    ada = visit()
    held = {kind: start(ada, kind) for kind in KINDS}
    home = ada.get("/").text
    assert home.count("1 left") == len(KINDS)
    assert {kind: start(ada, kind) for kind in KINDS} == held


def test_a_withdrawn_prompt_cannot_be_opened(workspace: Workspace, visit: Visit) -> None:
    add_work(workspace, "labels")
    ada = visit()
    address = start(ada)
    ada.post(address + "/submit", data=opened(ada, address)[1] | GIVEN["labels"])
    with workspace.write() as connection:
        connection.exec_driver_sql("UPDATE prompts SET quarantine = '{\"name\": 1}'")
    assert ada.get(address + "?correct=1").status_code == 404
    mine = ada.get("/mine").text
    assert ("withdrawn" in mine, "?correct=1" in mine) == (True, False)


def test_what_is_not_there_is_not_found(workspace: Workspace, visit: Visit) -> None:
    ada = visit()
    for address in ("/task/7", "/task/x", "/task/-1", f"/task/{2**31}", f"/task/{2**70}", "/guide/x"):
        reply = ada.get(address)
        assert (reply.status_code, "There is nothing here" in reply.text) == (404, True)


def test_pages_are_for_who_signed_in(workspace: Workspace, serve: Callable[[Workspace], Server]) -> None:
    place = serve(workspace).url
    for address in ("/", "/mine", "/task/1", "/guide/ranking"):
        assert httpx.get(place + address, timeout=PATIENCE).headers["location"] == "/sign-in"
    for address in ("/next", "/task/1/submit", "/task/1/draft", "/task/1/skip", "/task/1/correct"):
        assert httpx.post(place + address, data={}, timeout=PATIENCE).headers["location"] == "/sign-in"


def test_own_answers_are_the_last_hundred_newest_first(workspace: Workspace) -> None:
    person = add(workspace, "Ada")
    for i in range(4):
        add_work(workspace, "labels", name=i)
    done = []
    with workspace.write() as connection:
        while (mine := assignment.next_task(connection, person)) is not None:
            assignment.submit(connection, person, mine, {"use_case": "chat"}, f"key-{mine}")
            done.append(mine)
        assignment.correct(connection, person, done[0], {"use_case": "other"}, "again")
        rows = assignment.recent(connection, person, 3)
    assert [(row.assignment, row.number) for row in rows] == [(done[0], 2), (done[3], 1), (done[2], 1)]
