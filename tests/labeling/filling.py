"""A workspace with people and work in it, for the tests of pages."""

from __future__ import annotations

from random import Random

from tutelage.data.records import Completion, Prompt
from tutelage.labeling.store import assignment
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.prompts import add_prompts
from tutelage.labeling.store.tasks import Terms, add_task

from .conftest import add

DAY = 86400.0
START = 1_700_000_000.0
ANSWER = "Warm the pot first, let the leaves stand for four minutes, and pour slowly, please, number"


def fill(workspace: Workspace) -> dict[str, int]:
    """Ids by name: owner Olga, reviewer Rafi, labelers Tess, Tom, Hana and Hugo who worked, Sina in screening.

    There are 8 prompts to rank by everybody, 2 of them gold; a demonstration by Tess, and one by Sina in screening,
    waiting for a review; a prompt in quarantine; a task that Tom skipped.
    """
    ids = {"Olga": add(workspace, "Olga", "owner"), "Rafi": add(workspace, "Rafi", "reviewer")}
    for name, arm in (("Tess", "training"), ("Tom", "training"), ("Hana", "heldout"), ("Hugo", "heldout")):
        ids[name] = add(workspace, name, arm=arm)
    ids["Sina"] = add(workspace, "Sina", status="screening")
    asked = [Prompt(id=f"p{i}", text=f"What is {i} and {i}?", user=f"u{i % 3}", split="train") for i in range(8)]
    secret = Prompt(id="secret", text="Call me at 030 1234567, says Ines", user="u9", split="train", use_case="chat")
    with workspace.write() as connection:
        add_prompts(connection, [*asked, secret], {"secret": {"phone": 1, "name": 2}})
        for i, prompt in enumerate(asked):
            gold = {"ranks": [1, 2, 3], "ratings": []} if i > 5 else None
            texts = [Completion(text=f"It is {n}.", policy=f"policy-{n}") for n in (2 * i, 2 * i + 1, 99)]
            terms = Terms(capacity=4, rate=False, purpose="gold" if gold else "work", reference=gold)
            add_task(connection, "ranking", prompt, texts, terms)
        add_task(connection, "demonstration", asked[0], terms=Terms(arm="training"))
        add_task(connection, "demonstration", asked[1], terms=Terms(purpose="screening"))
        add_task(connection, "labels", asked[2], terms=Terms(arm="heldout"))
        add_task(connection, "labels", asked[3], terms=Terms(arm="training"))
        add_task(connection, "labels", secret)
    for number, name in enumerate(("Tess", "Tom", "Hana", "Hugo", "Sina")):
        _work(workspace, ids[name], number)
    return ids


def _work(workspace: Workspace, person: int, seed: int) -> None:
    chance, now = Random(seed), START + seed * DAY
    with workspace.write() as connection:
        while (mine := assignment.next_task(connection, person, now=now)) is not None:
            shown = assignment.show(connection, person, mine)
            now += chance.uniform(20, 300)
            if shown.kind == "labels":
                assignment.skip(connection, person, mine, "unclear", "What is it about?", now)
                continue
            body: dict[str, object] = {"completion": f"{ANSWER} {person}.", "note": "I was unsure."}
            if shown.kind == "ranking":
                good = {text: i + chance.choice([0, 0, 0, 1, 2]) for i, text in enumerate(sorted(shown.texts))}
                places = sorted(set(good.values()))
                body = {"ranks": [places.index(good[text]) + 1 for text in shown.texts]}
            assignment.submit(connection, person, mine, body, f"key-{person}-{mine}-0123456789", now=now)
