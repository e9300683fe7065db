"""The miniature world's labelers at the real pages: sign in, take a task, read its page, rank, until none is left."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from random import Random

from fastapi.testclient import TestClient

from tutelage.data.datasets import read_rankings
from tutelage.data.records import Completion, Prompt
from tutelage.lab.world import people, tasks
from tutelage.labeling.store import exchange
from tutelage.labeling.store.database import Workspace
from tutelage.labeling.store.tasks import queue_rankings
from tutelage.labeling.web.app import create_app

from .conftest import PASSWORD, add

TEXT = re.compile(r'<div class="text" dir="auto">(.*?)</div>', re.DOTALL)
KEY = re.compile(r'name="key" value="([^"]+)"')


def rank_all(client: TestClient, judge: people.Judge, rng: Random) -> int:
    """One labeler's day; returns how many tasks they answered."""
    page = client.post("/next")
    for done in range(1000):
        if page.url.path == "/":
            return done
        assert page.status_code == 200, page.text
        prompt, *texts = map(html.unescape, TEXT.findall(page.text))
        ranks = judge.rank(Prompt(id="shown", text=prompt), texts, rng)
        form = {f"rank_{i}": str(rank) for i, rank in enumerate(ranks, start=1)}
        page = client.post(f"{page.url.path}/submit", data=form | {"key": KEY.findall(page.text)[0]})
    raise AssertionError("there is no end to the work")


def test_simulated_labelers_work_through_the_pages(workspace: Workspace, tmp_path: Path) -> None:
    rng = Random(0)
    candidates = []
    for i in range(12):
        instruction = tasks.make(rng)
        texts = {people.write_answer(instruction, people.STRANGER, rng) for _ in range(5)}
        written = [Completion(text=t, policy="a secret policy") for t in sorted(texts)]
        if len(written) > 1:
            candidates.append((Prompt(id=f"p{i}", text=instruction, split="valid" if i < 4 else "train"), written))
    with workspace.write() as connection:
        number = queue_rankings(connection, candidates, rate=False, overlap=1.0)
    app, answered = create_app(workspace), 0
    judges: dict[str, people.Judge] = {}
    for arm in ("training", "heldout"):
        for hired in people.hire(arm, 2, 0):
            judge = replace(hired, noise=0.0)  # so that what they think of a text is the same at every reading
            judges[workspace.pseudonym("labeler", judge.labeler.id)] = judge
            add(workspace, judge.labeler.id, arm=arm)
            client = TestClient(app)
            home = client.post("/sign-in", data={"name": judge.labeler.id, "password": PASSWORD})
            assert judge.labeler.id in home.text
            answered += rank_all(client, judge, rng)
    assert answered == 2 * number
    counts = exchange.export(workspace, tmp_path / "out")
    valid = sum(p.split == "valid" for p, _ in candidates)
    assert counts == {
        "rankings.jsonl": 2 * (len(candidates) - valid),
        "rankings_heldout_labelers.jsonl": 2 * valid,
        "rankings_training_labelers.jsonl": 2 * valid,
    }
    # What is stored is what the labeler thinks of each text, in whatever order the page showed them.
    for name in counts:
        for ranking in read_rankings(tmp_path / "out" / name).records:
            texts = [c.text for c in ranking.completions]
            assert list(ranking.ranks) == judges[str(ranking.labeler)].rank(ranking.prompt, texts, rng)
            assert {c.policy for c in ranking.completions} == {"a secret policy"}
