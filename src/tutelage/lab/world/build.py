"""Build the world's data files: corpus, prompts of many users split by user, and demonstrations.

    tutelage world --output runs/world

writes corpus.jsonl, corpus_valid.jsonl, demonstrations.jsonl, demonstrations_valid.jsonl and prompts_{reward,
reward_valid,ppo,test}.jsonl. Training files, the corpus among them, hold core instructions of the training split alone
(`tasks.split_of`), at any seed. Held-out text and test prompts have random streams of their own: how much is made to
train on does not change them.
"""

from __future__ import annotations

import hashlib
from random import Random

from tutelage.data.datasets import write_jsonl
from tutelage.data.records import Demonstration, Message, Prompt
from tutelage.lab.world import corpus, gold, kinds, people, tasks
from tutelage.runs import open_run
from tutelage.settings.world import WorldConfig


def ask(split: str, number: int, users: list[str], taken: set[str], rng: Random) -> list[Prompt]:
    """Prompts of a split and its users, no text twice."""
    prompts: list[Prompt] = []
    while len(prompts) < number:
        text = tasks.make(rng, split)
        if text in taken:
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
    opened = open_run("world", config, {})
    if opened is None:
        return

    opened.begin(
        f"{config.documents:,} documents, {config.sft_prompts:,} demonstrations, {config.ppo_prompts:,} prompts"
    )

    def stream(name: str) -> Random:
        return Random(f"world/{config.seed}/{name}")

    users = {
        split: [f"user-{split}-{i:03d}" for i in range(max(1, round(config.users * share)))]
        for split, share in tasks.SPLITS.items()
    }
    taken: set[str] = set()

    for name, split, number in (
        ("corpus", "train", config.documents),
        ("corpus_valid", "test", config.valid_documents),
    ):
        rng = stream(name)
        write_jsonl(opened.folder / f"{name}.jsonl", [corpus.document(rng, split) for _ in range(number)])
    sets = {
        name: ask(split, number, users[split], taken, stream(name))
        for name, split, number in (
            ("sft", "train", config.sft_prompts), ("sft_valid", "valid", config.valid_prompts),
            ("reward", "train", config.reward_prompts), ("reward_valid", "valid", config.reward_valid_prompts),
            ("ppo", "train", config.ppo_prompts), ("test", "test", config.test_prompts),
        )
    }  # fmt: skip
    write_jsonl(opened.folder / "demonstrations.jsonl", demonstrate(sets["sft"], stream("demonstrations")))
    write_jsonl(
        opened.folder / "demonstrations_valid.jsonl", demonstrate(sets["sft_valid"], stream("demonstrations_valid"))
    )
    for name in ("reward", "reward_valid", "ppo", "test"):
        write_jsonl(opened.folder / f"prompts_{name}.jsonl", sets[name])
    opened.finish(
        prompts={name: len(prompts) for name, prompts in sets.items()}, users={s: len(u) for s, u in users.items()}
    )
