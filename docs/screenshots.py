"""`make screenshots`: every labeling page at desktop and phone width, into screenshots/; two of them stand in docs/.

A workspace of the miniature world's prompts and labelers is made, served on loopback, and looked at with Chromium.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from random import Random

import uvicorn
from playwright.sync_api import Browser, sync_playwright

from tutelage.data.records import Completion, Prompt
from tutelage.lab.world import people, rank, tasks
from tutelage.labeling.store import accounts, assignment
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.answers import KINDS
from tutelage.labeling.store.database import Workspace, open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.tasks import queue_comparisons, queue_prompts, queue_rankings
from tutelage.labeling.web.app import create_app

DOCS = Path(__file__).parent
OUTPUT = DOCS.parent / "screenshots"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
KEPT = {"ranking-desktop": "ranking.png", "agreement-desktop": "agreement.png"}
PAGES = {
    "anybody": {"sign-in": "/sign-in", "join": "/join/{join}"},
    "labeler": {"home": "/", **{kind: kind for kind in KINDS}, "guide": "/guide/ranking", "mine": "/mine"},
    "owner": {
        **{name: f"/{name}" for name in ("people", "review", "prompts", "instructions", "agreement", "audit")},
        "person": "/people/1",
    },
}
NAMES = {"training": ("Tess", "Tom", "Tara"), "heldout": ("Hana", "Hugo", "Hedi")}
DAYS = 6  # of work so far


def furnish(workspace: Workspace) -> tuple[str, str]:
    """Prompts, tasks, and six labelers who have worked for some days; sessions of an owner and of a new labeler."""
    rng = Random(3)

    def ask(number: int, name: str, split: str = "train") -> list[Prompt]:
        return [Prompt(id=f"{name}{i}", text=tasks.make(rng), split=split) for i in range(number)]

    def write(prompt: Prompt, k: int) -> list[Completion]:
        texts = {people.write_answer(str(prompt.text), people.STRANGER, rng) for _ in range(3 * k)}
        return [Completion(text=t, policy="sft") for t in sorted(texts)[:k]]

    def candidates(prompts: list[Prompt], k: int) -> list[tuple[Prompt, list[Completion]]]:
        return [(p, written) for p in prompts if len(written := write(p, k)) >= 2]

    began = time.time() - DAYS * 86400
    with workspace.write() as connection:
        ensure_instructions(connection)
        queue_rankings(connection, candidates(ask(70, "valid", "valid"), 6), rate=False, labelers=3)
        hired = {}
        for arm in ("training", "heldout"):
            for name, judge in zip(NAMES[arm], people.hire(arm, 3, 0), strict=True):
                hired[accounts.add_person(connection, workspace, NewPerson(name, arm=arm))] = judge
    for person, judge in hired.items():
        rank.work(workspace, {person: judge}, rng, began + rng.uniform(0, DAYS - 1) * 86400)
    with workspace.write() as connection:
        owner = accounts.add_person(connection, workspace, NewPerson("Olga", "owner", areas=("health",)))
        labeler = accounts.add_person(connection, workspace, NewPerson("Lena"))
        accounts.add_person(connection, workspace, NewPerson("Sina", status="screening", areas=("religion", "health")))
        queue_rankings(connection, candidates(ask(30, "train"), 5), overlap=0.2)
        queue_prompts(connection, "demonstration", ask(12, "write"))
        queue_prompts(connection, "labels", ask(8, "label"))
        answers = [(p, {"sft": write(p, 1)[0].text, "ppo": write(p, 1)[0].text}) for p in ask(9, "test", "test")]
        queue_comparisons(connection, answers, "sft", arm="training")
        private = Prompt(
            id="letter-17", text="Write to my aunt, her number is 030 1234567.", user="user-9", split="train"
        )
        add_prompts(connection, [private], {"letter-17": {"PHONE_NUMBER": 1}})
        accounts.invite(connection, by=owner)
        mine = assignment.next_task(connection, labeler, "ranking")
        assert mine is not None
        shown = assignment.show(connection, labeler, mine)
        half = {"ranks": [2, 1, 1][: len(shown.texts)] + [None] * (len(shown.texts) - 3), "annotations": [], "note": ""}
        half["ratings"] = [{"quality": q, "flags": []} for q in (4, 6, 6)[: len(shown.texts)]]
        half["ratings"] += [{"quality": None, "flags": []}] * (len(shown.texts) - 3)
        assignment.save_draft(connection, labeler, mine, half)
        return accounts.start_session(connection, owner), accounts.start_session(connection, labeler)


def shoot(browser: Browser, url: str, sessions: dict[str, str | None], join: str) -> None:
    """All pages at all widths; a page with a toolbar that stays in view is shown as a screen, the others whole."""
    for width, (x, y) in WIDTHS.items():
        for who, session in sessions.items():
            context = browser.new_context(viewport={"width": x, "height": y})
            if session:
                context.add_cookies([{"name": "tutelage_session", "value": session, "url": url}])
            page = context.new_page()
            for name, path in PAGES[who].items():
                if path in KINDS:
                    page.goto(f"{url}/")
                    page.locator(f"form:has(input[value={path}]) button").click()
                else:
                    page.goto(url + path.replace("{join}", join))
                page.wait_for_load_state("networkidle")
                page.screenshot(path=OUTPUT / f"{name}-{width}.png", full_page=path not in KINDS)
            context.close()


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        workspace = open_workspace(Path(folder) / "workspace")
        owner, labeler = furnish(workspace)
        with workspace.write() as connection:
            join = accounts.invite(connection, status="screening")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(workspace), host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            sessions = {"anybody": None, "labeler": labeler, "owner": owner}
            shoot(browser, f"http://127.0.0.1:{port}", sessions, join)
            browser.close()
        server.should_exit = True
        thread.join(10)
        workspace.close()
    (DOCS / "images").mkdir(exist_ok=True)
    for name, kept in KEPT.items():
        shutil.copy(OUTPUT / f"{name}.png", DOCS / "images" / kept)
    print(f"{len(list(OUTPUT.glob('*.png')))} pictures in {OUTPUT}")


if __name__ == "__main__":
    main()
