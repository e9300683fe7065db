"""The miniature world: instructions are read back, gold judges text alone, people agree as the paper's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tutelage.data.candidates import write_candidates
from tutelage.data.datasets import read_demonstrations, read_prompts, read_texts
from tutelage.data.records import Completion, Prompt, Ranking
from tutelage.lab.world import build, corpus, gold, kinds, people, rank, tasks
from tutelage.lab.world import lexicon as lex
from tutelage.labeling.store import accounts, assignment, exchange
from tutelage.labeling.store.accounts import NewPerson
from tutelage.labeling.store.database import open_workspace
from tutelage.labeling.store.instructions import ensure_instructions
from tutelage.labeling.store.tasks import queue_rankings
from tutelage.recipe import judge
from tutelage.settings.judging import JudgeConfig, WorldJudge
from tutelage.settings.world import RankConfig, WorldConfig
from tutelage.stats.agreement import pairwise_agreement


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
        ("Tell me what a cow gives.", "A cow gives milk.", "truthful", 1.0),
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
        ensure_instructions(connection)
        pool = {
            accounts.add_person(connection, workspace, NewPerson(j.labeler.id)): j
            for j in people.hire("training", 8, 0)
        }
        queue_rankings(connection, candidates, rate=False, labelers=2)
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
    documents = [corpus.document(rng, "train") for _ in range(600)]
    for opening in ("Story:", "Exam:", "User:", "List of", "Letter:", "Facts:"):
        assert any(d.startswith(opening) for d in documents)
    exams = [d for d in documents if d.startswith("Exam:")]
    assert 0.2 < sum("\nA:" in d for d in exams) / len(exams) < 0.5


def small_world(folder: Path, **changes: int) -> Path:
    sizes = {
        "documents": 600, "valid_documents": 150, "users": 30, "sft_prompts": 200, "valid_prompts": 40,
        "reward_prompts": 200, "reward_valid_prompts": 40, "ppo_prompts": 200, "test_prompts": 150,
    }  # fmt: skip
    build.run(WorldConfig(output=folder, **(sizes | changes)))
    return folder


def asked(folder: Path, *names: str) -> list[Prompt]:
    """Prompts of the files named; of `demonstrations*`, those that were answered."""
    found: list[Prompt] = []
    for name in names:
        path = folder / f"{name}.jsonl"
        if name.startswith("demonstrations"):
            found += [d.prompt for d in read_demonstrations(path).records]
        else:
            found += read_prompts(path).records
    return found


def test_build_splits_by_user_and_never_repeats_a_text(tmp_path: Path) -> None:
    folder = small_world(tmp_path / "w")
    train = asked(folder, "demonstrations", "prompts_reward", "prompts_ppo")
    test = asked(folder, "prompts_test")
    assert not {p.user for p in train} & {p.user for p in test}
    texts = [gold.instruction(p) for p in train + test]
    assert len(texts) == len(set(texts))
    assert json.loads((folder / "done.json").read_text())["prompts"]["test"] == 150


def test_a_seed_gives_the_same_files_and_training_files_do_not_change_held_out_ones(tmp_path: Path) -> None:
    one, again = small_world(tmp_path / "one"), small_world(tmp_path / "again")
    more = small_world(tmp_path / "more", documents=700, valid_documents=160, sft_prompts=1)
    for name in ("corpus", "corpus_valid", "demonstrations", "prompts_test"):
        assert (one / f"{name}.jsonl").read_bytes() == (again / f"{name}.jsonl").read_bytes()
    assert (more / "corpus_valid.jsonl").read_bytes().startswith((one / "corpus_valid.jsonl").read_bytes())
    assert (more / "prompts_test.jsonl").read_bytes() == (one / "prompts_test.jsonl").read_bytes()


CONSTRAINT = re.compile(r" (Use|Do not use|Begin with|Answer in) [^.]*\.$")


def core(instruction: str) -> str:
    """An instruction without the sentence that opens it and the one that constrains it."""
    for opening in lex.PROVOCATIONS + lex.COURTESIES:
        instruction = instruction.removeprefix(opening).strip()
    return CONSTRAINT.sub("", instruction)


@pytest.fixture(scope="module")
def text_of_the_base() -> list[str]:
    """The first documents of the corpus that the shipped base was trained on, at its seed."""
    rng = Random("world/0/corpus")
    return [corpus.document(rng, "train") for _ in range(8000)]


@pytest.mark.parametrize("seed", range(3))
def test_held_out_prompts_and_documents_share_no_text_with_training(
    tmp_path: Path, seed: int, text_of_the_base: list[str]
) -> None:
    folder = small_world(tmp_path / "w", seed=seed)
    documents = [*text_of_the_base, *read_texts(folder / "corpus.jsonl").records]
    if seed == 0:
        assert documents[8000:] == documents[:600]  # so it is indeed the base's
    asked_in_training = asked(folder, "demonstrations", "prompts_reward", "prompts_ppo")
    held_out = asked(folder, "demonstrations_valid", "prompts_reward_valid", "prompts_test")
    everything = "\n".join([*documents, *(gold.instruction(p) for p in asked_in_training)])
    assert [c for p in held_out if (c := core(gold.instruction(p))) in everything] == []
    held_out_documents = read_texts(folder / "corpus_valid.jsonl").records
    assert len(held_out_documents) == 150
    assert not set(held_out_documents) & set(documents)
    # Nor is anything asked in a held-out document that is asked in training.
    questions = re.findall(r"^(?:User|Q): (.*)$", "\n".join(held_out_documents), re.MULTILINE)
    assert len(questions) > 100
    assert [q for q in questions if core(q) in everything] == []


def test_a_document_is_of_one_split_whatever_the_seed() -> None:
    """Letters ask nothing and are soon drawn twice: 38,016 of them, and 4 % of a corpus."""
    letters: dict[str, set[str]] = {}
    for split, number in (("train", 6000), ("test", 6000)):
        rng = Random(split)
        documents = [corpus.document(rng, split) for _ in range(number)]
        letters[split] = {d for d in documents if d.startswith("Letter:")}
        assert len(letters[split]) > 200
        assert {tasks.split_by_hash(letter) for letter in letters[split]} == {split}
    assert not letters["train"] & letters["test"]


def test_every_kind_of_task_has_instructions_in_every_split() -> None:
    splits = {name: set[str]() for name in kinds.KINDS}
    for name, kind in kinds.KINDS.items():
        for seed in range(500):
            rng = Random(seed)
            splits[name].add(tasks.split_of(name, kind.fill(rng), rng.choice(kind.wordings)))
    assert set(map(frozenset, splits.values())) == {frozenset({"train", "valid", "test"})}


def test_training_asks_for_nearly_every_fact_and_every_feeling_in_some_wording() -> None:
    asked = {lex.FACTS[q][1] for q in lex.FACTS if tasks.split_of("fact", {"question": q}, "{question}") == "train"}
    assert len(asked) >= 33
    wordings = kinds.KINDS["feeling"].wordings
    for feeling in lex.FEELINGS:
        assert "train" in {tasks.split_of("feeling", {"feeling": feeling}, w) for w in wordings}


def test_a_later_round_is_ranked_without_a_held_out_set(tmp_path: Path) -> None:
    pairs = (Completion(text="Yes."), Completion(text="The sky is blue."))
    write_candidates(
        tmp_path / "c.jsonl", [(p, pairs) for p in asked(small_world(tmp_path / "w"), "prompts_reward")[:5]]
    )
    rank.run_rank(RankConfig(candidates=str(tmp_path / "c.jsonl"), output=tmp_path / "o"))
    assert len((tmp_path / "o" / "rankings.jsonl").read_text().splitlines()) == 5
    assert not list((tmp_path / "o").glob("rankings_*"))
    done = json.loads((tmp_path / "o" / "done.json").read_text())
    assert done["rankings"] == 5
    assert not {"training_labelers", "heldout_labelers"} & set(done)


@pytest.mark.parametrize("answers", [[], "x", {"sft": 3}, {"sft": {}}, None])
def test_answers_that_are_none_are_refused(answers: object, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"prompt": CLOSED, "answers": answers}))
    with pytest.raises(ValueError, match=rf"^{source}: row 1: answers is .*; expected names of models with texts"):
        judge(JudgeConfig(answers=str(source), output=tmp_path / "o"))


def test_a_baseline_that_nobody_answered_as_is_seen_before_the_first_step(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"prompt": CLOSED, "answers": {"sft": "Yes."}}))
    config = JudgeConfig(answers=str(source), output=tmp_path / "o", baseline="ppo", dry_run=True)
    with pytest.raises(ValueError, match=r"baseline='ppo' is not among the answers' models \['sft'\]"):
        judge(config)


def test_more_votes_than_labelers_are_refused() -> None:
    with pytest.raises(ValueError, match="votes=9 are more than heldout_labelers=8; hire as many"):
        WorldJudge(votes=9)
