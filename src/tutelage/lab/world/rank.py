"""Simulated labelers at work: they rank candidates for training.

They rank through the workspace that people use: tasks are leased to them, shown in shuffled order without a word of who
wrote what, and answers are exported by arm. Training labelers alone produce training rankings. Both arms rank the
held-out candidates, several people each, so that their agreement, and the ceiling that a noise-free reader reaches
against them, can be measured. `tutelage label serve RUN/rankings/workspace` shows their work.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from tutelage.data.candidates import read_candidates
from tutelage.data.records import Prompt, Ranking
from tutelage.lab.world import gold, people
from tutelage.labeling.store import accounts, assignment, exchange
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.database import KEY, Workspace, open_workspace, write_private
from tutelage.labeling.store.engines import in_words
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.tasks import queue_rankings
from tutelage.runs import inputs_of, open_run
from tutelage.settings.world import RankConfig
from tutelage.stats.agreement import pairwise_agreement, summary

WORDS_A_SECOND = 4.0  # reading, and thinking about it
BATCH = 100  # tasks in one transaction, as nobody else is writing


def work(workspace: Workspace, pool: Mapping[int, people.Judge], rng: Random, began: float = 0.0) -> None:
    """Let labelers, by their ids in the workspace, take and answer ranking tasks in turn until none is left for them.

    Each has a clock of their own that starts at `began`, so that the time an answer took is that of reading.
    """
    clock = dict.fromkeys(pool, began)
    waiting = list(pool)
    while waiting:
        with workspace.write() as connection:
            for _ in range(BATCH):
                if not waiting:
                    break
                person = rng.choice(waiting)
                task = assignment.next_task(connection, person, now=clock[person], rng=rng)
                if task is None:
                    waiting.remove(person)
                    continue
                shown = assignment.show(connection, person, task)
                prompt = Prompt(id="shown", text=shown.prompt)
                ranks = pool[person].rank(prompt, list(shown.texts), rng)
                words = sum(len(text.split()) for text in (gold.instruction(prompt), *shown.texts))
                clock[person] += words / WORDS_A_SECOND * rng.uniform(0.8, 2)
                assignment.submit(connection, person, task, {"ranks": ranks}, f"{person}/{task}", now=clock[person])


def gold_accuracy(rankings: Sequence[Ranking]) -> float:
    """Share of the labelers' ordered pairs that the noise-free gold preference orders alike (equal values: half)."""
    right = total = 0.0
    for r in rankings:
        values = [gold.value(gold.parts(r.prompt, c.text)) for c in r.completions]
        for i, j in r.pairs:
            right += 0.5 if values[i] == values[j] else values[i] > values[j]
            total += 1
    return right / total


def run_rank(config: RankConfig) -> None:
    """Write rankings.jsonl (training labelers) and rankings_{training,heldout}_labelers.jsonl (held-out prompts)."""
    with in_words():  # a full disk, say
        _rank(config)


def _rank(config: RankConfig) -> None:
    opened = open_run("rank", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    candidates = read_candidates(config.candidates)
    valid = read_candidates(config.valid_candidates) if config.valid_candidates else []
    opened.begin(f"{len(candidates):,} prompts to rank, {len(valid):,} held out")
    pools = {
        "training": people.hire("training", config.training_labelers, 0),
        "heldout": people.hire("heldout", config.heldout_labelers, 0),
    }
    shutil.rmtree(opened.folder / "workspace", ignore_errors=True)  # of an interrupted run: a second is soon over
    (opened.folder / "workspace").mkdir(mode=0o700)  # not its parents: if the run's folder was deleted, this ends
    workspace = open_workspace(opened.folder / "workspace")
    # Nobody here has a name to keep secret, and the same run should give the same pseudonyms, so the same bytes.
    workspace.key = hashlib.sha256(f"rank/{config.seed}".encode()).digest()
    write_private(workspace.folder / KEY, workspace.key)
    with workspace.write() as connection:
        ensure_instructions(connection)
        hired = {
            accounts.add_person(
                connection, workspace, NewPerson(j.labeler.id, arm=j.labeler.arm, pseudonym=j.labeler.id)
            ): j
            for pool in pools.values()
            for j in pool
        }
        queue_rankings(connection, candidates, rate=False)
        queue_rankings(connection, valid, rate=False, labelers=config.overlap)
    work(workspace, hired, Random(f"rank/{config.seed}"))
    opened.require_folder()
    counts = exchange.export(workspace, opened.folder)
    with workspace.read() as connection:
        held_out = {
            arm: [r for r in exchange.stored_rankings(connection, arm=arm) if r.prompt.split == "valid"]
            for arm in pools
        }
    workspace.close()
    results: dict[str, Any] = {"rankings": counts["rankings.jsonl"]}
    for arm, overlapping in held_out.items() if valid else ():
        results[f"{arm}_labelers"] = {
            "agreement": pairwise_agreement(overlapping, config.seed),
            "readers": {"gold": gold_accuracy(overlapping)},
            "tie_rate": summary(overlapping, config.seed, draws=1)["tie_rate"]["mean"],
        }
    opened.finish(**results)
