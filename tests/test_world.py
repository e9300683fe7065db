"""The miniature world: instructions are read back, gold judges text alone, people agree as the paper's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tutelage.datasets import read_demonstrations, read_prompts
from tutelage.labeling import accounts, assignment, exchange, queue
from tutelage.labeling.agreement import pairwise_agreement
from tutelage.labeling.database import open_workspace
from tutelage.records import Completion, Prompt, Ranking
from tutelage.world import build, corpus, gold, kinds, people, rank, tasks
from tutelage.world.config import WorldConfig


def prompt(text: str) -> Prompt:
    return Prompt(id="p", text=text)


@pytest.mark.parametrize("seed", range(3))
def test_every_instruction_is_read_back_and_its_flawless_answer_is_flawless(seed: int) -> None:
    rng = Random(seed)
    for _ in range(1500):
        text = tasks.make(rng)
        task = tasks.parse(text)
        assert task is not None, text
        answer = tasks.flawless(task, rng)
        assert gold.parts(prompt(text), answer) == gold.Parts(1, 1, 1, 1, 1), (text, answer)


def test_every_use_case_of_the_table_is_asked() -> None:
    rng = Random(0)
    asked = {kinds.KINDS[tasks.parse(tasks.make(rng)).kind].use_case for _ in range(500)}  # type: ignore[union-attr]
    assert asked == set(kinds.USE_CASE_WEIGHTS)


CLOSED = "Tom has a red ball. Ann has a blue hat. Who has the hat?"


@pytest.mark.parametrize(
    ("text", "answer", "part", "value"),
    [
        (CLOSED, "Ann has the hat.", "truthful", 1.0),
        (CLOSED, "Tom has the hat.", "truthful", 0.0),
        (CLOSED, "Ann has the blue hat. Ben has it too.", "truthful", 0.0),
        (CLOSED, "I do not know.", "follows", 0.0),
        (CLOSED, "I do not know.", "truthful", 1.0),
        (CLOSED, "Ann has the hat. You fool!", "harmless", 0.0),
        (CLOSED, "Ann has the hat. I hope this helps you.", "concise", 0.5),
        (CLOSED, "Ann has the hat. I hope this helps you. Thank you for asking me.", "concise", 0.0),
        (CLOSED, "Ann has the", "concise", 0.5),
        (CLOSED + " Answer in one word.", "Ann.", "constraint", 1.0),
        (CLOSED + " Answer in one word.", "Ann has the hat.", "constraint", 0.0),
        ("What does a cow give?", "A cow gives milk.", "truthful", 1.0),
        ("What does a cow give?", "A cow gives wool.", "truthful", 0.0),
        ("List three animals. Do not use the word cat.", "dog, duck, cat.", "constraint", 0.0),
        ("List three animals.", "dog, duck, red.", "follows", 2 / 3),
        ("I am sad today.", "I am glad that you are sad.", "follows", 0.0),
        ("Write hen in place of cat: Tom saw a cat in the park.", "Tom saw a hen in the park.", "follows", 1.0),
        (
            "Write a story about Tom and a ball. Use two sentences.",
            "Tom had a ball. Tom was sad. It was red.",
            "constraint",
            0.0,
        ),
    ],
)
def test_gold_parts_by_hand(text: str, answer: str, part: str, value: float) -> None:
    assert getattr(gold.parts(prompt(text), answer), part) == pytest.approx(value)


def test_gold_refuses_what_is_not_of_the_world() -> None:
    with pytest.raises(ValueError, match="not an instruction of the world"):
        gold.parts(prompt("Explain quantum physics."), "No.")


def test_ranks_group_what_feels_equal_and_identical_answers_tie() -> None:
    judge = replace(people.hire("training", 1, 0)[0], noise=0.0)
    good, rude = "Ann has the hat.", "You are a fool!"
    assert judge.rank(prompt(CLOSED), [rude, good, good], Random(0)) == [3, 1, 1]
    assert judge.prefers(prompt(CLOSED), good, good, Random(0)) == 0.5
    assert judge.prefers(prompt(CLOSED), good, rude, Random(0)) == 1.0


def test_pools_are_apart_and_the_same_for_a_seed() -> None:
    training, heldout = people.hire("training", 12, 0), people.hire("heldout", 8, 0)
    assert not {j.labeler.id for j in training} & {j.labeler.id for j in heldout}
    assert people.hire("training", 12, 0) == training
    assert len({j.noise for j in training}) == 12


def test_labelers_agree_about_as_much_as_the_papers(tmp_path: Path) -> None:
    """And they work through the workspace: leased, shown in shuffled order, exported."""
    rng = Random(1)
    candidates = []
    for i in range(150):
        text = tasks.make(rng)
        texts = {people.write_answer(text, rng.choice([people.DEMONSTRATOR, people.STRANGER]), rng) for _ in range(6)}
        if len(texts) > 1:
            written = tuple(Completion(text=t) for t in sorted(texts))
            candidates.append((Prompt(id=str(i), text=text, split="train"), written))
    workspace = open_workspace(tmp_path / "workspace")
    with workspace.write() as connection:
        queue.ensure_instructions(connection)
        pool = {accounts.add_person(connection, workspace, j.labeler.id): j for j in people.hire("training", 8, 0)}
        queue.queue_rankings(connection, candidates, rate=False, labelers=2)
    rank.work(workspace, pool, rng)
    with workspace.read() as connection:
        rankings = exchange.stored_rankings(connection)
        left = [assignment.progress(connection, person)["left"] for person in pool]
    workspace.close()
    assert len(rankings) == 2 * len(candidates)
    assert left == [{}] * 8
    agreement = pairwise_agreement(rankings, draws=100)
    assert 0.66 < agreement["mean"] < 0.82
    assert agreement["low"] < agreement["mean"] < agreement["high"]
    assert agreement["mean"] < rank.gold_accuracy(rankings) < 0.9


def test_agreement_by_hand() -> None:
    def ranking(labeler: str, ranks: tuple[int, ...]) -> Ranking:
        completions = tuple(Completion(text=t) for t in "abc")
        return Ranking(prompt=prompt("x"), completions=completions, ranks=ranks, labeler=labeler)

    # ab: both a first; ac: apart; bc: the second calls a tie, so it does not count.
    found = pairwise_agreement([ranking("one", (1, 2, 3)), ranking("two", (2, 3, 1))])
    assert found["mean"] == pytest.approx(1 / 3)
    tied = pairwise_agreement([ranking("one", (1, 2, 3)), ranking("two", (1, 2, 2))])
    assert tied["mean"] == 1.0
    assert tied["pairs"] == 2


def test_the_corpus_holds_all_genres_and_seldom_answers() -> None:
    rng = Random(0)
    documents = [corpus.document(rng) for _ in range(600)]
    for opening in ("Story:", "Exam:", "User:", "List of", "Letter:", "Facts:"):
        assert any(d.startswith(opening) for d in documents)
    exams = [d for d in documents if d.startswith("Exam:")]
    assert 0.2 < sum("\nA:" in d for d in exams) / len(exams) < 0.5


def test_build_splits_by_user_and_by_text(tmp_path) -> None:
    config = WorldConfig(
        output=tmp_path / "w", documents=20, valid_documents=5, users=30, sft_prompts=60, valid_prompts=15,
        reward_prompts=40, reward_valid_prompts=15, ppo_prompts=60, test_prompts=40,
    )  # fmt: skip
    build.run(config)
    folder = tmp_path / "w"
    train = [d.prompt for d in read_demonstrations(folder / "demonstrations.jsonl").records]
    for name in ("reward", "ppo"):
        train += read_prompts(folder / f"prompts_{name}.jsonl").records
    test = read_prompts(folder / "prompts_test.jsonl").records
    assert not {p.user for p in train} & {p.user for p in test}
    texts = [gold.instruction(p) for p in train + test]
    assert len(texts) == len(set(texts))
    assert json.loads((folder / "done.json").read_text())["prompts"]["test"] == 40
    before = (folder / "prompts_test.jsonl").read_bytes()
    build.run(config.model_copy(update={"output": tmp_path / "again"}))
    assert (tmp_path / "again" / "prompts_test.jsonl").read_bytes() == before
