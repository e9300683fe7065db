"""Build the world's data files: corpus, prompts of many users split by user, and demonstrations.

    tutelage world --output runs/world

writes corpus.jsonl, corpus_valid.jsonl, demonstrations.jsonl, demonstrations_valid.jsonl and prompts_{reward,
reward_valid,ppo,test}.jsonl. A text belongs to one split for good, so no test prompt was ever trained on.
"""

from __future__ import annotations

import hashlib
from random import Random

from tutelage.datasets import write_jsonl
from tutelage.records import Demonstration, Message, Prompt
from tutelage.runs import open_run
from tutelage.world import corpus, gold, kinds, people, tasks
from tutelage.world.config import WorldConfig

# Share of texts, and of users, that belong to each split.
SPLITS = {"train": 0.6, "valid": 0.1, "test": 0.3}


def split_of(text: str) -> str:
    """The split that a text belongs to, by its hash."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    return "test"


def ask(split: str, number: int, users: list[str], taken: set[str], rng: Random) -> list[Prompt]:
    """Prompts of a split's users, no text twice."""
    prompts: list[Prompt] = []
    while len(prompts) < number:
        text = tasks.make(rng)
        if text in taken or split_of(text) != split:
            continue
        taken.add(text)
        task = tasks.parse(text)
        assert task is not None
        prompts.append(
            Prompt(
                id=hashlib.sha256(text.encode()).hexdigest()[:16],
                text=(Message(role="user", content=text),),
                user=rng.choice(users),
                split=split,
                use_case=kinds.KINDS[task.kind].use_case,
            )
        )
    return prompts


def demonstrate(prompts: list[Prompt], rng: Random) -> list[Demonstration]:
    """A demonstration for each prompt, each by a labeler in a hurry."""
    writers = [judge.labeler.id for judge in people.hire("training", 12, 0)]
    return [
        Demonstration(
            prompt=p,
            completion=people.write_answer(gold.instruction(p), people.DEMONSTRATOR, rng),
            labeler=rng.choice(writers),
        )
        for p in prompts
    ]


def run(config: WorldConfig) -> None:
    """Write all files into the run folder."""
    run = open_run("world", config, {})
    if run is None:
        return
    rng = Random(f"world/{config.seed}")
    users = {
        split: [f"user-{split}-{i:03d}" for i in range(max(1, round(config.users * share)))]
        for split, share in SPLITS.items()
    }
    taken: set[str] = set()

    write_jsonl(run.folder / "corpus.jsonl", [corpus.document(rng) for _ in range(config.documents)])
    write_jsonl(run.folder / "corpus_valid.jsonl", [corpus.document(rng) for _ in range(config.valid_documents)])
    sets = {
        name: ask(split, number, users[split], taken, rng)
        for name, split, number in (
            ("sft", "train", config.sft_prompts), ("sft_valid", "valid", config.valid_prompts),
            ("reward", "train", config.reward_prompts), ("reward_valid", "valid", config.reward_valid_prompts),
            ("ppo", "train", config.ppo_prompts), ("test", "test", config.test_prompts),
        )
    }  # fmt: skip
    write_jsonl(run.folder / "demonstrations.jsonl", demonstrate(sets["sft"], rng))
    write_jsonl(run.folder / "demonstrations_valid.jsonl", demonstrate(sets["sft_valid"], rng))
    for name in ("reward", "reward_valid", "ppo", "test"):
        write_jsonl(run.folder / f"prompts_{name}.jsonl", sets[name])
    run.finish(
        prompts={name: len(prompts) for name, prompts in sets.items()}, users={s: len(u) for s, u in users.items()}
    )
