"""The owner's and reviewers' pages over HTTP: every act, its event, and how the pages look to a screen reader."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from axe_playwright_python.sync_playwright import Axe
from sqlalchemy import func, insert, select, update
from starlette.testclient import TestClient

from tutelage.data.records import Prompt
from tutelage.labeling.store import accounts, assignment, exchange, screening
from tutelage.labeling.store.database import Workspace, open_workspace
from tutelage.labeling.store.instructions import current_instruction
from tutelage.labeling.store.prompts import add_prompts, erase_prompt
from tutelage.labeling.store.schema import answers, completions, events, invites, people, prompts, reviews, sessions
from tutelage.labeling.store.tasks import Terms, add_task
from tutelage.labeling.web import plots, review
from tutelage.labeling.web.app import create_app
from tutelage.labeling.web.security import COOKIE
from tutelage.stats import agreement

from .conftest import PASSWORD, Server, add, session_of
from .filling import fill

Client = Callable[[str], TestClient]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A workspace's folder, to be copied, and who is in it."""
    folder = tmp_path_factory.mktemp("filled") / "workspace"
    opened = open_workspace(folder)
    create_app(opened)
    ids = fill(opened)
    opened.close()
    return folder, ids


@pytest.fixture
def sqlite(filled: tuple[Path, dict[str, int]], tmp_path: Path) -> Iterator[Workspace]:
    shutil.copytree(filled[0], tmp_path / "workspace")
    opened = open_workspace(tmp_path / "workspace")
    yield opened
    opened.close()


@pytest.fixture
def ids(filled: tuple[Path, dict[str, int]]) -> dict[str, int]:
    return filled[1]


@pytest.fixture
def client(sqlite: Workspace, ids: dict[str, int]) -> Iterator[Client]:
    """A maker of signed-in clients, by name."""
    app = create_app(sqlite)

    def sign_in(name: str) -> TestClient:
        cookies = {COOKIE: session_of(sqlite, ids[name])}
        return TestClient(app, follow_redirects=False, cookies=cookies)

    return sign_in


@pytest.fixture
def owner(client: Client) -> TestClient:
    return client("Olga")


def rows(workspace: Workspace, query: Any) -> list[Any]:
    with workspace.read() as connection:
        return list(connection.execute(query).all())


def newest_event(workspace: Workspace) -> Any:
    return rows(workspace, select(events).order_by(events.c.id.desc()).limit(1))[0]


def person(workspace: Workspace, number: int) -> Any:
    return rows(workspace, select(people).where(people.c.id == number))[0]


# People


def test_people_are_listed_with_their_work(owner: TestClient) -> None:
    page = owner.get("/people").text
    row = re.search(r"<tr>(?:(?!</tr>).)*Tess.*?</tr>", page, re.S)
    assert row is not None
    cells = [re.sub(r"<.*?>|\s+", " ", cell).strip() for cell in re.findall(r"<td.*?</td>", row[0], re.S)]
    assert cells[:5] == ["labeler", "training", "working", "9", "1"]
    assert re.fullmatch(r"[0-9.]+ (s|min)", cells[5])


def test_median_of_times(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    """Three answers of 10, 20 and 60 seconds have the median 20; an imported one (0 s) was not timed."""
    with sqlite.write() as connection:
        own = select(answers.c.id).join(assignment.assignments).where(assignment.assignments.c.person == ids["Tom"])
        numbers = list(connection.execute(own).scalars())
        for number, seconds in zip(numbers, [10, 20, 60] + [0] * len(numbers), strict=False):
            connection.execute(update(answers).where(answers.c.id == number).values(seconds=float(seconds)))
    assert "median time 20 s" in owner.get(f"/people/{ids['Tom']}").text


def test_invited_link_is_shown_once_and_works_once(sqlite: Workspace, owner: TestClient) -> None:
    shown = owner.post("/people/invite", data={"role": "labeler", "arm": "heldout", "status": "screening"})
    link = re.search(r'value="http://testserver(/join/[\w-]{43})"', shown.text)
    assert link is not None
    assert newest_event(sqlite).kind == "invited"
    assert newest_event(sqlite).detail == {"role": "labeler", "arm": "heldout", "status": "screening"}
    later = owner.get("/people").text
    assert link[1] not in later
    assert "somebody new" in later
    stranger = TestClient(owner.app, follow_redirects=False)
    assert stranger.post(link[1], data={"name": "Nora", "password": PASSWORD}).status_code == 303
    nora = rows(sqlite, select(people).where(people.c.name == "Nora"))[0]
    assert (nora.role, nora.arm, nora.status) == ("labeler", "heldout", "screening")
    assert stranger.post(link[1], data={"name": "Nils", "password": PASSWORD}).status_code == 404
    assert "somebody new" not in owner.get("/people").text


@pytest.mark.parametrize("field", ["role", "arm", "status"])
def test_invitation_to_something_unknown(sqlite: Workspace, owner: TestClient, field: str) -> None:
    chosen = {"role": "labeler", "arm": "training", "status": "working"} | {field: "king"}
    assert owner.post("/people/invite", data=chosen).status_code == 400
    assert rows(sqlite, select(invites)) == []


def test_invitation_revoked(sqlite: Workspace, owner: TestClient) -> None:
    owner.post("/people/invite", data={"role": "reviewer", "arm": "training", "status": "working"})
    link = rows(sqlite, select(invites))[0]
    assert owner.post("/people/invite/revoke", data={"link": link.token_hash}).status_code == 303
    assert rows(sqlite, select(invites)) == []
    event = newest_event(sqlite)
    assert (event.kind, event.detail) == ("invite revoked", {"role": "reviewer"})
    assert owner.post("/people/invite/revoke", data={"link": link.token_hash}).status_code == 404


def test_change_of_a_person(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    assert owner.post(f"/people/{ids['Tom']}", data={"status": "paused", "role": "reviewer"}).status_code == 303
    tom = person(sqlite, ids["Tom"])
    assert (tom.status, tom.role) == ("paused", "reviewer")
    event = newest_event(sqlite)
    assert (event.kind, event.person, event.subject) == ("changed", ids["Olga"], str(ids["Tom"]))
    assert event.detail == {"status": "paused", "role": "reviewer"}


@pytest.mark.parametrize("fields", [{"arm": "heldout"}, {"status": "banned"}])
def test_change_refused(sqlite: Workspace, owner: TestClient, ids: dict[str, int], fields: dict[str, str]) -> None:
    before = person(sqlite, ids["Tom"])
    assert owner.post(f"/people/{ids['Tom']}", data=fields).status_code == 400
    assert person(sqlite, ids["Tom"]) == before


def test_the_last_owner_stays(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    answer = owner.post(f"/people/{ids['Olga']}", data={"role": "labeler"})
    assert answer.status_code == 400
    assert "only owner" in answer.text
    assert person(sqlite, ids["Olga"]).role == "owner"


@pytest.mark.parametrize(("decision", "status"), [("admit", "working"), ("decline", "paused")])
def test_screening_decided_with_its_scores(
    sqlite: Workspace, client: Client, ids: dict[str, int], decision: str, status: str
) -> None:
    demonstration = rows(sqlite, screening._waiting(ids["Rafi"]))[0]
    client("Rafi").post(f"/review/{demonstration.id}", data={"quality": "5"})
    with sqlite.read() as connection:
        expected = {c.name: {"score": c.score, "n": c.n} for c in screening.scores(connection, ids["Sina"])}
    assert expected["demonstrations"] == {"score": 5.0, "n": 1}
    owner = client("Olga")
    page = owner.get(f"/people/{ids['Sina']}").text
    assert re.search(r"5\.00 <span class=\"below\">below", page)
    assert owner.post(f"/people/{ids['Sina']}/screening", data={"decision": decision}).status_code == 303
    assert person(sqlite, ids["Sina"]).status == status
    assert newest_event(sqlite).detail == {"status": status, "decision": decision, "screening": expected}


def test_a_decision_that_changes_nothing_is_recorded(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    """Tom works already: to admit him changes no status, but was decided, on these scores."""
    assert owner.post(f"/people/{ids['Tom']}/screening", data={"decision": "admit"}).status_code == 303
    event = newest_event(sqlite)
    assert (event.kind, event.person, event.subject) == ("changed", ids["Olga"], str(ids["Tom"]))
    assert event.detail.keys() == {"decision", "screening"}
    assert event.detail["decision"] == "admit"


def test_screening_needs_a_decision(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    assert owner.post(f"/people/{ids['Sina']}/screening", data={}).status_code == 400
    assert person(sqlite, ids["Sina"]).status == "screening"


def test_signed_out_everywhere(sqlite: Workspace, client: Client, ids: dict[str, int]) -> None:
    tess, owner = client("Tess"), client("Olga")
    assert tess.get("/mine").status_code == 200
    assert owner.post(f"/people/{ids['Tess']}/sign-out").status_code == 303
    assert tess.get("/mine").status_code == 303
    event = newest_event(sqlite)
    assert (event.kind, event.person, event.detail) == ("signed out", ids["Olga"], {"all": True})
    assert rows(sqlite, select(sessions).where(sessions.c.person == ids["Tess"])) == []
    assert owner.get("/people").status_code == 200


def test_link_for_a_new_password(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    shown = owner.post(f"/people/{ids['Tess']}/password")
    link = re.search(r'value="http://testserver(/join/[\w-]{43})"', shown.text)
    assert link is not None
    assert "a new password of" in shown.text
    other = TestClient(owner.app, follow_redirects=False)
    other.post(link[1], data={"name": "ignored", "password": "another long one"})
    assert other.post("/sign-in", data={"name": "Tess", "password": "another long one"}).status_code == 303
    assert other.post("/sign-in", data={"name": "Tess", "password": PASSWORD}).status_code == 403
    assert person(sqlite, ids["Tess"]).role == "labeler"


@pytest.mark.parametrize("act", ["", "/screening", "/sign-out", "/password"])
def test_nobody_of_that_number(owner: TestClient, act: str) -> None:
    fields = {"decision": "admit", "status": "paused"}
    assert owner.post(f"/people/999{act}", data=fields).status_code == 404
    assert owner.get("/people/999").status_code == 404


# Review


def test_demonstration_is_rated(sqlite: Workspace, client: Client, ids: dict[str, int]) -> None:
    rafi = client("Rafi")
    page = rafi.get("/review").text
    first, second = (int(n) for n in re.findall(r'action="/review/(\d+)"', page))
    assert page.index("screening</span>") < page.index(f'id="d{second}"')
    assert "Sina" not in page.split("To talk about")[0]
    assert rafi.post(f"/review/{first}", data={"quality": "6"}).status_code == 303
    stored = rows(sqlite, select(reviews))
    assert [(r.answer, r.reviewer, r.quality) for r in stored] == [(first, ids["Rafi"], 6)]
    event = newest_event(sqlite)
    assert (event.kind, event.subject, event.detail) == ("reviewed", str(first), {"quality": 6})
    assert re.findall(r'action="/review/(\d+)"', rafi.get("/review").text) == [str(second)]
    assert rafi.post(f"/review/{first}", data={"quality": "6"}).status_code == 303  # a form sent twice
    assert rafi.post(f"/review/{first}", data={"quality": "2"}).status_code == 400
    assert [r.quality for r in rows(sqlite, select(reviews))] == [6]


@pytest.mark.parametrize("quality", ["0", "8", "1.5", "", "seven"])
def test_quality_is_1_to_7(sqlite: Workspace, client: Client, ids: dict[str, int], quality: str) -> None:
    demonstration = rows(sqlite, screening._waiting(ids["Rafi"]))[0]
    assert client("Rafi").post(f"/review/{demonstration.id}", data={"quality": quality}).status_code == 400
    assert rows(sqlite, select(reviews)) == []


def test_nobody_rates_their_own(sqlite: Workspace, client: Client, ids: dict[str, int]) -> None:
    with sqlite.write() as connection:
        accounts.change_person(connection, ids["Tess"], ids["Olga"], role="reviewer")
    tess = client("Tess")
    hers = next(r.id for r in rows(sqlite, screening._DEMONSTRATIONS) if r.person == ids["Tess"])
    assert f'action="/review/{hers}"' not in tess.get("/review").text
    assert tess.post(f"/review/{hers}", data={"quality": "7"}).status_code == 403
    assert rows(sqlite, select(reviews)) == []


def test_only_the_newest_demonstration_is_rated(sqlite: Workspace, client: Client, ids: dict[str, int]) -> None:
    old = next(r.id for r in rows(sqlite, screening._DEMONSTRATIONS) if r.person == ids["Tess"])
    with sqlite.write() as connection:
        mine = connection.execute(select(answers.c.assignment).where(answers.c.id == old)).scalar_one()
        body = {"completion": "Better."}
        new = assignment.correct(connection, ids["Tess"], mine, body, "another-key-0123456789")
    rafi = client("Rafi")
    assert rafi.post(f"/review/{old}", data={"quality": "7"}).status_code == 404
    assert rafi.post(f"/review/{new}", data={"quality": "7"}).status_code == 303
    ranking = rows(sqlite, select(func.min(answers.c.id)))[0][0]
    assert rafi.post(f"/review/{ranking}", data={"quality": "7"}).status_code == 404


def test_demonstrations_of_open_tasks_wait(sqlite: Workspace, client: Client, ids: dict[str, int]) -> None:
    """Two labelers are wanted: until both have answered, the reviewer may be the second, and must not see the first."""
    prompt = Prompt(id="two", text="Write two lines.", split="train")
    with sqlite.write() as connection:
        add_prompts(connection, [prompt])
        add_task(connection, "demonstration", prompt, terms=Terms(arm="training", capacity=2))

    def write(name: str) -> None:
        with sqlite.write() as connection:
            mine = assignment.next_task(connection, ids[name], "demonstration")
            assert mine is not None
            assignment.submit(connection, ids[name], mine, {"completion": f"{name} was here."}, f"two-{name}")

    write("Tess")
    assert "was here" not in client("Rafi").get("/review").text
    write("Tom")
    page = client("Rafi").get("/review").text
    assert "Tess was here" in page
    assert "Tom was here" in page


def test_review_shows_gold_warnings_and_skips(sqlite: Workspace, client: Client, ids: dict[str, int]) -> None:
    with sqlite.write() as connection:
        connection.execute(update(answers).values(active_seconds=0.1))
    page = client("Rafi").get("/review").text
    gold, skipped = page.split("Items whose answer is known")[1].split("Skipped, newest first")
    assert "Tess" in gold
    assert "What is it about?" in skipped
    assert "I can&#39;t tell what is wanted" in skipped
    assert "too fast" in page
    assert "for a conversation" in page
    assert f'href="/people/{ids["Tess"]}"' not in page  # that page is the owner's
    assert f'href="/people/{ids["Tess"]}"' in client("Olga").get("/review").text
    assert {p.status for p in rows(sqlite, select(people))} == {"working", "screening"}  # nothing happened by itself


# Prompts


def test_prompts_counted(owner: TestClient) -> None:
    page = re.sub(r"\s+", " ", re.sub(r"<.*?>", " ", owner.get("/prompts").text))
    assert "train not labeled 8 0 0" in page
    assert "train chat 0 1 0" in page
    assert "Rate and rank ordinary work 0 0 6" in page
    assert "phone (1), name (2)" in page


def test_leases_counted(sqlite: Workspace, owner: TestClient) -> None:
    new = add(sqlite, "Nina", arm="heldout")
    with sqlite.write() as connection:
        add_prompts(connection, [Prompt(id="new", text="And now?")])
        add_task(connection, "labels", Prompt(id="new", text="And now?"), terms=Terms(arm="heldout"))
        assert assignment.next_task(connection, new) is not None
    page = re.sub(r"\s+", " ", re.sub(r"<.*?>", " ", owner.get("/prompts").text))
    assert "Label a prompt ordinary work 4 1 0" in page


def test_quarantined_text_is_read_by_an_act(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    assert "030 1234567" not in owner.get("/prompts").text
    assert "030 1234567" in owner.post("/prompts/read", data={"prompt": '"secret"'}).text
    event = newest_event(sqlite)
    assert (event.kind, event.person, event.subject) == ("quarantine read", ids["Olga"], "secret")


def test_quarantine_released(sqlite: Workspace, owner: TestClient) -> None:
    assert owner.post("/prompts/release", data={"prompt": '"secret"'}).status_code == 303
    assert rows(sqlite, select(prompts.c.quarantine).where(prompts.c.id == "secret"))[0][0] is None
    event = newest_event(sqlite)
    assert (event.kind, event.detail) == ("quarantine released", {"found": {"phone": 1, "name": 2}})
    assert owner.post("/prompts/release", data={"prompt": '"secret"'}).status_code == 404


def test_quarantine_erased(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    assert owner.post("/prompts/erase", data={"prompt": '"secret"'}).status_code == 400  # the box is not ticked
    assert owner.post("/prompts/erase", data={"prompt": '"secret"', "sure": "yes"}).status_code == 303
    row = rows(sqlite, select(prompts).where(prompts.c.id == "secret"))[0]
    assert row.text is None
    assert row.erased is not None
    assert newest_event(sqlite).person == ids["Olga"]
    assert owner.post("/prompts/read", data={"prompt": '"secret"'}).status_code == 404


@pytest.mark.parametrize("key", ['"p1"', "secret", "[]", "", '{"a": 1}', '"\\ud800"'])
def test_only_quarantined_prompts_are_named(sqlite: Workspace, owner: TestClient, key: str) -> None:
    for act in ("read", "release", "erase"):
        assert owner.post(f"/prompts/{act}", data={"prompt": key, "sure": "yes"}).status_code in (400, 404)
    assert rows(sqlite, select(prompts).where(prompts.c.erased.is_not(None))) == []


def test_odd_prompt_ids_survive_the_form(sqlite: Workspace, owner: TestClient) -> None:
    odd = " two\r\nlines\t\"<b>'&amp;\u202e "
    with sqlite.write() as connection:
        add_prompts(connection, [Prompt(id=odd, text="x")], {odd: {"name": 1}})
    form = r'action="/prompts/release"><input type="hidden" name="prompt" value="(.*?)">'
    keys = [html.unescape(key) for key in re.findall(form, owner.get("/prompts").text)]
    assert {json.loads(key) for key in keys} == {odd, "secret"}
    assert owner.post("/prompts/release", data={"prompt": json.dumps(odd)}).status_code == 303


def test_user_erased(sqlite: Workspace, owner: TestClient) -> None:
    assert owner.post("/prompts/erase-user", data={"user": "u0"}).status_code == 400
    assert owner.post("/prompts/erase-user", data={"user": "", "sure": "yes"}).status_code == 404
    assert owner.post("/prompts/erase-user", data={"user": "u0", "sure": "yes"}).status_code == 303
    gone = rows(sqlite, select(prompts.c.id).where(prompts.c.erased.is_not(None)))
    assert {row.id for row in gone} == {"p0", "p3", "p6"}
    left = rows(sqlite, select(completions).where(completions.c.prompt == "p0", completions.c.text.is_not(None)))
    assert left == []
    for path in ("/agreement", "/review", "/prompts", "/people"):
        assert owner.get(path).status_code == 200


# Instructions


def test_instructions_published_by_version(sqlite: Workspace, owner: TestClient, ids: dict[str, int]) -> None:
    fields = {"text": "# New\r\n\r\nBe kind.", "base": "1"}
    preview = owner.post("/instructions/ranking", data=fields | {"act": "preview"})
    assert "<p>Be kind.</p>" in preview.text
    with sqlite.read() as connection:
        assert current_instruction(connection, "ranking").version == 1
    assert owner.post("/instructions/ranking", data=fields | {"act": "publish"}).status_code == 303
    with sqlite.read() as connection:
        page = current_instruction(connection, "ranking")
    assert (page.version, page.text, page.author) == (2, "# New\n\nBe kind.", ids["Olga"])
    assert newest_event(sqlite).kind == "instruction published"
    assert owner.get("/guide/ranking").text.count("Be kind.") == 1
    history = owner.get("/instructions").text
    assert "/instructions/ranking?version=1" in history
    assert "helpfulness comes first" in owner.get("/instructions/ranking?version=1").text


def test_two_owners_do_not_overwrite_each_other(sqlite: Workspace, owner: TestClient) -> None:
    first = {"text": "First.", "base": "1", "act": "publish"}
    owner.post("/instructions/labels", data=first)
    late = owner.post("/instructions/labels", data=first | {"text": "Second."})
    assert late.status_code == 400
    assert "Second." in late.text  # not lost
    assert 'name="base" value="2"' in late.text
    with sqlite.read() as connection:
        assert current_instruction(connection, "labels").text == "First."


def test_instructions_refused(sqlite: Workspace, owner: TestClient) -> None:
    for text in ("", "  ", "x" * 50_001):
        sent = {"text": text, "base": "1", "act": "publish"}
        assert owner.post("/instructions/labels", data=sent).status_code == 400
    assert owner.get("/instructions/nothing").status_code == 404
    assert owner.post("/instructions/nothing", data={"text": "x"}).status_code == 404
    assert owner.get("/instructions/labels?version=9").status_code == 404
    with sqlite.read() as connection:
        assert current_instruction(connection, "labels").version == 1


# Agreement


def test_agreement_is_that_of_the_functions(sqlite: Workspace, owner: TestClient) -> None:
    with sqlite.read() as connection:
        rankings = exchange.stored_rankings(connection, names=True)
        training = exchange.stored_rankings(connection, arm="training")
    everybody = agreement.summary(rankings, draws=review.DRAWS)
    strict = agreement.summary(training, draws=review.DRAWS)["strict"]
    page = owner.get("/agreement").text
    assert f"{100 * strict['mean']:.1f} %" in page.split("Held-out labelers")[0]
    assert f"95 % interval {100 * strict['low']:.1f} to {100 * strict['high']:.1f} %" in page
    assert f"{everybody['alpha_ordinal']['mean']:.2f} " in page
    assert "The paper's labelers: 72.6 ± 1.5 %" in page
    assert "The paper's labelers: 77.3 ± 1.3 %" in page
    table = page.split('aria-label="Agreement by labeler"')[1]
    assert all(name in table for name in ("Tess", "Tom", "Hana", "Hugo"))
    assert "policy-" not in page


def test_agreement_is_kept_until_there_is_another_answer(
    sqlite: Workspace, owner: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = 0
    summary = agreement.summary

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal computed
        computed += 1
        return summary(*arguments, **options)

    monkeypatch.setattr(review.agreement, "summary", counted)
    first = owner.get("/agreement").text
    owner.get("/agreement/labelers.svg")
    owner.get("/agreement")
    assert computed == 3  # all, and each arm
    with sqlite.write() as connection:
        erase_prompt(connection, "p1")
    assert owner.get("/agreement").text != first
    assert computed == 6


def test_nothing_to_agree_on_yet(tmp_path: Path) -> None:
    empty = open_workspace(tmp_path / "empty")
    boss = add(empty, "Boss", "owner")
    owner = TestClient(create_app(empty), cookies={COOKIE: session_of(empty, boss)})
    assert "No rankings yet" in owner.get("/agreement").text
    for plot in plots.ALTS:
        assert owner.get(f"/agreement/{plot}.svg").status_code == 404
    for path in ("/people", f"/people/{boss}", "/review", "/prompts", "/audit"):
        assert owner.get(path).status_code == 200
    empty.close()


@pytest.mark.parametrize("plot", plots.ALTS)
def test_plots_are_pictures_without_styles(owner: TestClient, plot: str) -> None:
    drawn = owner.get(f"/agreement/{plot}.svg")
    assert drawn.headers["content-type"] == "image/svg+xml"
    ElementTree.fromstring(drawn.text)
    assert "style" not in drawn.text
    assert "<script" not in drawn.text
    assert f"/agreement/{plot}.svg" in owner.get("/agreement").text


def test_names_in_plots_are_no_formulas() -> None:
    """Names that a font lacks, that look like mathematics or like markup, or are long."""
    names = ["$\\frac$", "--><script>", "名前", "محمد", "n" * 80, "_ & <b>"]
    rates = {name: {"mean": 0.5 + i / 20, "low": 0.4, "high": 0.9} for i, name in enumerate(names)}
    drawn = plots.labelers(rates, dict.fromkeys(names, "heldout"))
    ElementTree.fromstring(drawn)
    assert b"<script" not in drawn


@pytest.mark.parametrize("counts", [{19_000: 1}, {19_000: 3, 19_001: 1}, {10: 1, 19_000: 5}])
def test_plot_of_any_days(counts: dict[int, int]) -> None:
    ElementTree.fromstring(plots.days(counts))


def test_plots_of_one_answer() -> None:
    ElementTree.fromstring(plots.times([0.001]))


# Audit


def test_audit_pages(sqlite: Workspace, owner: TestClient) -> None:
    with sqlite.write() as connection:
        connection.execute(
            insert(events), [{"at": float(i), "kind": "tick", "subject": f"tick-{i}", "detail": {}} for i in range(250)]
        )
    first = owner.get("/audit?kind=tick").text
    assert re.findall(r"tick-(\d+)", first) == [str(i) for i in range(249, 149, -1)]
    older = re.search(r'href="(/audit[^"]*before[^"]*)">Older', first)
    assert older is not None
    second = owner.get(older[1].replace("&amp;", "&")).text
    assert re.findall(r"tick-(\d+)", second) == [str(i) for i in range(149, 49, -1)]
    assert "Older" in second
    assert "submitted" in owner.get("/audit?kind=submitted").text
    assert "Nothing." in owner.get("/audit", params={"kind": "' OR 1=1 --"}).text
    assert owner.get("/audit?before=x").status_code == 404
    assert owner.get(f"/audit?before={10**30}").status_code == 404


def test_an_act_that_fails_leaves_no_event(
    sqlite: Workspace, owner: TestClient, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change and event stand or fall together."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("the audit is full")

    before = rows(sqlite, select(events))
    for module in ("accounts", "prompts", "screening"):
        monkeypatch.setattr(f"tutelage.labeling.store.{module}.record", broken)
    demonstration = rows(sqlite, screening._waiting(ids["Olga"]))[0]
    for path, fields in {
        "/people/invite": {"role": "labeler", "arm": "training", "status": "working"},
        f"/people/{ids['Tom']}": {"status": "paused"},
        f"/people/{ids['Tom']}/sign-out": {},
        f"/people/{ids['Tom']}/password": {},
        "/prompts/release": {"prompt": '"secret"'},
        f"/review/{demonstration.id}": {"quality": "7"},
    }.items():
        with pytest.raises(ValueError, match="the audit is full"):
            owner.post(path, data=fields)
    monkeypatch.undo()
    assert rows(sqlite, select(events)) == before
    assert rows(sqlite, select(invites)) == rows(sqlite, select(reviews)) == []
    assert person(sqlite, ids["Tom"]).status == "working"
    assert rows(sqlite, select(prompts.c.quarantine).where(prompts.c.id == "secret"))[0][0] is not None


# In a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_accessible(
    sqlite: Workspace, serve: Callable[[Workspace], Server], browser: Any, ids: dict[str, int], width: int, scheme: str
) -> None:
    """axe finds nothing, no page is wider than the window, and nothing is refused by the security policy."""
    server = serve(sqlite)
    with sqlite.write() as connection:
        accounts.invite(connection)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.add_cookies([{"name": COOKIE, "value": session_of(sqlite, ids["Olga"]), "url": server.url}])
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    visits = [
        "/people", f"/people/{ids['Tess']}", f"/people/{ids['Sina']}", "/review", "/prompts", "/instructions",
        "/instructions/ranking", "/agreement", "/audit",
    ]  # fmt: skip
    for path in visits:
        page.goto(server.url + path)
        check(page, width, path)
    page.goto(f"{server.url}/people")
    page.get_by_role("button", name="Make a link").click()
    check(page, width, "a link")
    page.goto(f"{server.url}/prompts")
    page.get_by_role("button", name="Read secret").click()
    check(page, width, "a text in quarantine")
    page.goto(f"{server.url}/agreement")
    assert page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 100)") == [True] * 3
    page.goto(f"{server.url}/agreement/labelers.svg")  # opened by itself it must look the same
    assert [message for message in told if "Content Security Policy" in message] == []
    context.close()


def check(page: Any, width: int, where: str) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, f"{where}: {found.generate_report()}"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, where
    boxes = page.locator(".scroll")
    for i in range(boxes.count()):
        boxes.nth(i).focus()
        assert page.evaluate("document.activeElement.className") == "scroll"
