"""The labelers' pages in a real Chromium: mouse, keyboard, phone, dark, without scripts, and axe-core's rules."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.schema import answers, assignments
from tutelage.labeling.store.tasks import Terms, add_task

from .conftest import Server, add, session_of

ARABIC = "مرحبا"
PATIENCE = 20_000  # ms: other tests work beside these on the same cores
expect.set_options(timeout=PATIENCE)
Visit = Callable[..., Page]


def add_work(workspace: Workspace, kind: str, k: int = 0, text: str = "Words about nothing. ", **more: Any) -> None:
    """A task on a prompt of its own; completion i says `#i` at its end."""
    with workspace.write() as connection:
        talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"{ARABIC}, name a frog."}]
        asked = Prompt.model_validate({"id": f"{kind} {more.pop('name', 1)}", "text": talk})
        add_prompts(connection, [asked])
        made = [Completion(text=f"{text * (1 + i % 3)}#{i}", policy="secret") for i in range(k)]
        add_task(connection, kind, asked, made, Terms(**{"rate": False, "capacity": 9, **more}))


@pytest.fixture
def visit(sqlite: Workspace, serve: Callable[[Workspace], Server], browser: Browser) -> Iterator[Visit]:
    """Visitors with a browser window each: `visit(name, **how)` signs a new labeler in and opens their first page.

    A page that breaks a rule of its own (the content policy, a script's error) fails the test.
    """
    place, contexts, complaints = serve(sqlite).url, [], []

    def come(name: str = "Ada", kind: str = "ranking", **how: Any) -> Page:
        context = browser.new_context(base_url=place, **{"viewport": {"width": 1280, "height": 900}, **how})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        token = session_of(sqlite, add(sqlite, name))
        context.add_cookies([{"name": "tutelage_session", "value": token, "url": place}])
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto("/")
        if kind:
            page.locator(f"form:has([value={kind}]) button").click()
            page.wait_for_url("**/task/*")
        if kind == "ranking" and how.get("java_script_enabled", True):
            page.wait_for_selector("form.scripted")
        return page

    yield come
    for context in contexts:
        context.close()
    assert [c for c in complaints if "status of 4" not in c] == []  # refusals are provoked here


def stored(workspace: Workspace) -> list[Any]:
    with workspace.read() as connection:
        return list(connection.execute(select(answers).order_by(answers.c.id)))


def order_of(workspace: Workspace) -> list[int]:
    with workspace.read() as connection:
        return connection.execute(select(assignments.c.order)).scalars().first()


def note_of_draft(workspace: Workspace) -> str:
    with workspace.read() as connection:
        return connection.execute(select(assignments.c.draft)).scalars().one()["note"]


def ranks_of(page: Page) -> list[int]:
    """The ranks that are chosen, by position shown; 0 is none."""
    return page.evaluate(
        "[...document.querySelectorAll('.card')].map(c => +(c.querySelector('[name^=rank_]:checked')?.value ?? 0))"
    )


def current(page: Page) -> str:
    return page.locator(".card[aria-current]").get_attribute("data-name")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def drag(page: Page, chip: str, row: int) -> None:
    """Drag a completion's letter to the row of a rank; 0 is that of none."""
    page.locator(".chip", has_text=chip).hover()
    page.mouse.down()
    box = page.locator(f".row[data-rank='{row}']").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()


def test_nine_are_ranked_by_at_most_twelve_keys(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 9)
    page = visit()
    keys = [*"314159265", "Enter"]
    assert len(keys) <= 12
    press(page, *keys)
    page.wait_for_url("**/")
    (row,) = stored(sqlite)
    assert [row.body["ranks"][i] for i in order_of(sqlite)] == [3, 1, 4, 1, 5, 9, 2, 6, 5]
    assert 0 < row.active_seconds < 60


def test_ranking_by_mouse(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 4)
    page = visit()
    for chip, row in (("C", 1), ("A", 2), ("D", 2), ("B", 4), ("B", 3)):
        drag(page, chip, row)
    assert ranks_of(page) == [2, 3, 1, 2]
    expect(page.locator(".row[data-rank='2']")).to_have_text("2ndAD")
    expect(page.locator(".card[data-name=D] .state")).to_have_text("2nd, tied with A")
    drag(page, "C", 0)
    assert ranks_of(page) == [2, 3, 0, 2]
    page.locator("#undo").click()
    page.locator("#send").click()
    page.wait_for_url("**/")
    assert [stored(sqlite)[0].body["ranks"][i] for i in order_of(sqlite)] == [2, 3, 1, 2]


def test_ranking_by_clicking_numbers(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "comparison", 2)
    page = visit(kind="comparison")
    page.locator(".card[data-name=B] label", has_text="1").click()
    assert current(page) == "B"
    page.locator(".card[data-name=A] label", has_text="1").click()
    page.locator("#send").click()
    page.wait_for_url("**/")
    assert stored(sqlite)[0].body["ranks"] == [1, 1]


def test_undo_takes_back_keys_and_drags(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3, rate=True)
    page = visit()
    expect(page.locator("#undo")).to_be_disabled()
    press(page, "2", "Shift+Digit6", "1")
    drag(page, "A", 3)
    assert (ranks_of(page), page.locator("[name^=quality]:checked").count()) == ([3, 1, 0], 1)
    press(page, "u")
    assert (ranks_of(page), current(page)) == ([2, 1, 0], "A")
    press(page, "Control+z")
    assert (ranks_of(page), current(page)) == ([2, 0, 0], "B")
    press(page, "u")
    assert (ranks_of(page), page.locator("[name^=quality]:checked").count()) == ([2, 0, 0], 0)
    press(page, "u", "u", "Control+z")
    assert ranks_of(page) == [0, 0, 0]


def test_keys_go_from_card_to_card(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 4, text="Long. " * 200)
    page = visit()
    walk = [("ArrowDown", "B"), ("ArrowRight", "C"), ("ArrowUp", "B"), ("1", "C"), ("ArrowDown", "D"), ("4", "A"),
            ("ArrowUp", "A"), ("9", "A"), ("2", "C"), ("3", "C"), ("ArrowUp", "B"), ("3", "B")]  # fmt: skip
    for key, place in walk:
        press(page, key)
        assert current(page) == place
        expect(page.locator(".card[aria-current] h3")).to_be_in_viewport()  # where reading begins
    assert ranks_of(page) == [2, 3, 3, 4]


def test_rating_by_keys(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3, rate=True)
    page = visit()
    press(page, "Shift+Digit5", "2", "1", "3")  # A is rated and ranked; B and C are ranked
    expect(page.locator("#send")).to_have_text("Submit: 3 of 3 ranked, 1 rated")
    assert current(page) == "B"
    press(page, "Shift+Digit8", "Shift+Digit7")
    assert current(page) == "B"  # rating never moves the mark, so that a rank goes where it is meant
    press(page, "ArrowDown", "Shift+Digit1")
    expect(page.locator("#send")).to_have_text("Submit")
    page.locator("summary", has_text="What is true of C").click()
    page.locator(".card[data-name=C] label", has_text="Hallucination").click()
    expect(page.locator(".card[data-name=C] .count")).to_have_text("1 ticked")
    press(page, "Control+Enter")
    page.wait_for_url("**/")
    (row,) = stored(sqlite)
    ratings = [row.body["ratings"][i] for i in order_of(sqlite)]
    assert [r["quality"] for r in ratings] == [5, 7, 1]
    assert [r["flags"] for r in ratings] == [[], [], ["hallucination"]]


def test_keys_rest_while_typing_and_with_modifiers(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3)
    page = visit()
    press(page, "Alt+1", "Control+1", "Shift+1", "Shift+ArrowDown")
    page.locator("[name=note]").click()
    press(page, "1", "u", "?", "Enter", "Control+Enter", "ArrowUp")
    expect(page.locator("[name=note]")).to_have_value("1u?\n")
    page.locator("details.skip summary").click()
    page.locator("details.skip input").first.focus()
    press(page, "2")
    assert (ranks_of(page), page.url.endswith("/"), page.locator("dialog[open]").count()) == ([0, 0, 0], False, 0)
    assert current(page) == "A"


def test_radio_buttons_keep_the_browsers_keys(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3)
    page = visit()
    page.locator(".card[data-name=B] [name^=rank]").first.focus()
    press(page, "Space", "ArrowRight", "ArrowDown")
    assert (ranks_of(page), current(page)) == ([0, 3, 0], "B")
    press(page, "Tab")
    assert (page.evaluate("document.activeElement.name"), current(page)) == ("rank_3", "C")
    press(page, "2")  # ours again: it ranks C and moves the focus to A
    assert (ranks_of(page), current(page), page.evaluate("document.activeElement.dataset.name")) == (
        [0, 3, 2],
        "A",
        "A",
    )


def test_help_is_a_key_away(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3)
    page = visit()
    press(page, "?")
    expect(page.locator("#keys")).to_be_visible()
    press(page, "1", "Escape")
    expect(page.locator("#keys")).to_be_hidden()
    assert ranks_of(page) == [0, 0, 0]


def test_an_incomplete_ranking_is_refused(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 9)
    page = visit()
    press(page, "Enter")
    expect(page.locator("#problem")).to_have_text("0 of 9 ranked: A has no rank yet.")
    press(page, "1", "2", "3")
    page.locator(".card[data-name=I]").click(position={"x": 5, "y": 5})
    assert current(page) == "I"
    expect(page.locator("#send")).to_have_text("Submit: 3 of 9 ranked")
    page.locator("#send").click()
    assert (current(page), stored(sqlite)) == ("D", [])
    expect(page.locator("#problem")).to_contain_text("3 of 9 ranked")
    page.evaluate("document.getElementById('answer').submit()")  # past the script: the server refuses too
    expect(page.locator("#problem")).to_contain_text("3 of 9 completions are ranked")
    assert (ranks_of(page), stored(sqlite)) == ([1, 2, 3, 0, 0, 0, 0, 0, 0], [])


def test_a_reload_keeps_the_draft(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3, rate=True)
    page = visit()
    expect(page.get_by_role("button", name="Save draft")).to_be_hidden()
    with page.expect_response("**/draft") as saved:
        press(page, "2", "1")
    assert saved.value.status == 204
    expect(page.locator("#status")).to_contain_text("Draft saved")
    page.reload()
    page.wait_for_selector("form.scripted")
    assert (ranks_of(page), current(page)) == ([2, 1, 0], "A")  # A and B have no quality yet
    page.locator("[name=note]").fill("On the way out")
    page.goto("/")  # before the second is over
    for _ in range(PATIENCE // 10):  # the browser does not wait for what it sends when a page is left
        if note_of_draft(sqlite) == "On the way out":
            break
        time.sleep(0.01)
    page.go_back()
    page.wait_for_selector("form.scripted")
    expect(page.locator("[name=note]")).to_have_value("On the way out")


def test_a_draft_is_sent_before_the_page_is_left(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3)
    sent = visit().evaluate("""() => {
        const sent = [];
        window.fetch = (address, how) => {
            sent.push([how.method, how.keepalive]);
            return Promise.resolve(new Response(null, { status: 204 }));
        };
        document.querySelector("[name=note]").dispatchEvent(new Event("input", { bubbles: true }));
        window.dispatchEvent(new Event("beforeunload"));
        const early = [...sent];
        window.dispatchEvent(new Event("pagehide"));
        return [early, sent];
    }""")
    assert sent == [[["POST", True]]] * 2  # once


def test_a_draft_that_cannot_be_saved_says_so(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "demonstration")
    page = visit(kind="demonstration")
    page.context.clear_cookies()
    page.locator("[name=completion]").press_sequentially("ab")
    expect(page.locator("#status")).to_contain_text("you are signed out")
    expect(page.locator("#count")).to_have_text("2 of 20000 characters")


def test_the_lease_is_renewed_while_the_page_is_in_view(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3)
    page = visit(kind="")
    page.clock.install()
    page.locator("form:has([value=ranking]) button").click()
    page.wait_for_selector("form.scripted")
    with sqlite.write() as connection:
        connection.execute(assignments.update().values(expires=1.0))
    with page.expect_response("**/draft"):
        page.clock.fast_forward(10 * 60 * 1000 + 1)
    with sqlite.read() as connection:
        row = connection.execute(select(assignments)).one()
    assert row.expires > time.time() + 3000
    assert row.draft["ranks"] == [None, None, None]  # untouched is no answer


def test_going_back_shows_the_task_as_it_is_now(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 2)
    page = visit()
    press(page, "1", "2", "Enter")
    page.wait_for_url("**/")
    page.go_back()
    expect(page.get_by_role("heading", name="Answered")).to_be_visible()
    page.get_by_role("link", name="Correct it").click()
    page.wait_for_selector("form.scripted")
    assert ranks_of(page) == [1, 2]
    press(page, "2", "Enter")
    page.wait_for_url("**/mine")
    assert [len(stored(sqlite)), page.locator("tbody tr").count()] == [2, 1]


def test_skipping(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3)
    page = visit()
    page.get_by_text("Skip this task").click()
    page.get_by_label("I can't tell what is wanted").check()
    page.locator("[name=skip_note]").fill("What frog?")
    page.get_by_role("button", name="Skip for good").click()
    page.wait_for_url("**/")
    expect(page.get_by_text("Nothing is left")).to_be_visible()
    with sqlite.read() as connection:
        assert connection.execute(select(assignments.c.skipped)).scalar_one()["note"] == "What frog?"


def test_without_javascript(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3, rate=True)
    page = visit(java_script_enabled=False)
    expect(page.locator("#board")).to_be_hidden()
    page.get_by_label("Note").fill("By hand")
    for field, value in (("rank_1", 2), ("rank_2", 1), ("rank_3", 2), ("quality_1", 7), ("quality_2", 7)):
        page.locator(f"[name={field}][value='{value}']").check()
    page.get_by_role("button", name="Submit").click()
    assert (page.url.endswith("/submit"), stored(sqlite)) == (False, [])  # the browser asks for what is missing
    with page.expect_navigation():
        page.get_by_role("button", name="Save draft").click()
    expect(page.get_by_label("Note")).to_have_value("By hand")
    page.locator("[name=quality_3][value='1']").check()
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/")
    (row,) = stored(sqlite)
    assert [row.body["ranks"][i] for i in order_of(sqlite)] == [2, 1, 2]
    assert (row.body["note"], row.active_seconds) == ("By hand", None)


def test_two_labelers_on_one_prompt(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3, capacity=2)
    ada, bob = visit("Ada"), visit("Bob")
    ada.locator("[name=note]").fill("Ada was here")
    ada.locator("body").click(position={"x": 2, "y": 2})
    press(ada, "1", "2", "3", "Enter")
    ada.wait_for_url("**/")
    bob.reload()
    bob.wait_for_selector("form.scripted")
    assert (ranks_of(bob), "Ada" in bob.content()) == ([0, 0, 0], False)
    press(bob, "3", "2", "1", "Enter")
    bob.wait_for_url("**/")
    assert len(stored(sqlite)) == 2


def test_stacked_or_side_by_side_is_remembered(sqlite: Workspace, visit: Visit) -> None:
    add_work(sqlite, "ranking", 3)
    page = visit()
    columns = "new Set([...document.querySelectorAll('.card')].map(c => c.getBoundingClientRect().x)).size"
    assert page.evaluate(columns) == 2
    page.get_by_role("button", name="Stack them").click()
    assert page.evaluate(columns) == 1
    page.reload()
    page.wait_for_selector("form.scripted")
    assert page.evaluate(columns) == 1
    page.get_by_role("button", name="Stack them").click()
    assert page.evaluate(columns) == 2


SMALL = """[...document.querySelectorAll('input:not([type=hidden]), button, summary, .chip')].filter(e => {
  const box = (e.closest('label') ?? e).getBoundingClientRect();
  return box.width && Math.min(box.width, box.height) < 24;
}).map(e => e.outerHTML)"""


def test_on_a_phone(sqlite: Workspace, visit: Visit) -> None:
    """Nothing is wider than the screen, not even a line of a megabyte; what is tapped is large enough."""
    add_work(sqlite, "ranking", 9, rate=True)
    add_work(sqlite, "comparison", 2, text="x" * 1_000_000)
    add_work(sqlite, "ranking", 3, name=2, text="x" * 900)
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    wide = "document.documentElement.scrollWidth"
    assert (page.evaluate(wide), page.evaluate(SMALL)) == (390, [])
    page.locator(".card[data-name=A] label", has_text="4").first.tap()
    assert ranks_of(page)[0] == 4
    page.goto("/")
    began = time.monotonic()
    page.locator("form:has([value=comparison]) button").click()
    page.wait_for_selector("form.scripted")
    assert page.evaluate(wide) == 390
    assert page.evaluate("document.documentElement.scrollHeight") < 3000
    press(page, "1", "2")
    assert (ranks_of(page), time.monotonic() - began < 10) == ([1, 2], True)
    press(page, "Enter")
    page.wait_for_url("**/")
    page.locator("form:has([value=ranking]) button").click()
    page.get_by_text("Skip this task").click()
    page.get_by_label("Something else").check()
    page.get_by_role("button", name="Skip for good").click()
    page.wait_for_url("**/task/3")
    assert page.evaluate(wide) == 390


def test_dark_when_the_reader_wants_it(sqlite: Workspace, visit: Visit) -> None:
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert max(visit("Ada", kind="", color_scheme="dark").evaluate(ground)) < 60
    assert min(visit("Bob", kind="", color_scheme="light").evaluate(ground)) > 200


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(sqlite: Workspace, visit: Visit, width: int) -> None:
    """On every page, light and dark, with what opens opened, and with something chosen and something wrong."""
    add_work(sqlite, "ranking", 9, rate=True)
    add_work(sqlite, "comparison", 2, text="long " * 1000)
    add_work(sqlite, "demonstration")
    add_work(sqlite, "labels")
    add_work(sqlite, "labels", name=2)
    page = visit(kind="", viewport={"width": width, "height": 844})

    def check(what: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = [
                (v["id"], [node["html"] for node in v["nodes"]][:3]) for v in Axe().run(page).response["violations"]
            ]
            assert found == [], f"{what}, {scheme}, {width} wide"

    check("home")
    for kind in ("ranking", "comparison", "demonstration", "labels"):
        page.goto("/")
        page.locator(f"form:has([value={kind}]) button").click()
        page.wait_for_url("**/task/*")
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        if kind == "ranking":
            press(page, "1", "Shift+Digit3", "1", "Enter")
            check("ranking with a problem")
            press(page, "?")
            check("keys")
            press(page, "Escape")
        check(kind)
    page.get_by_label("Chat").check()
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile(r"/task/\d+$"))
    for address in ("/mine", page.url, "/guide/ranking", "/task/999", "/sign-in"):
        if address == "/sign-in":
            page.context.clear_cookies()
        page.goto(address)
        check(address)
    with sqlite.write() as connection:
        from tutelage.labeling.store.accounts import invite

        token = invite(connection, status="screening")
    page.goto(f"/join/{token}")
    check("join")
