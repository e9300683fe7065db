"""Collection: sample K = 4..9 completions per prompt, for labelers to rank (paper, section 3.4).

Completions of several policies may be mixed, as candidates of one quality teach a reward model little. What is written
is `candidates.jsonl`: prompt and completions, without ranks. Identical completions are merged; `sampled` says how many
there were before. `tutelage label queue` gives the file to labelers.

    tutelage collect --policy runs/sft/model --prompts prompts.jsonl --k 4..9 --output runs/candidates
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from tutelage.data.candidates import write_candidates
from tutelage.data.datasets import read_demonstrations, read_prompts
from tutelage.data.records import Completion, Demonstration, Prompt, Text, by_text
from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.sampling.completions import Writer, complete, fits, number_copies
from tutelage.settings.collect import CollectConfig


def other_prompts(moved: Sequence[int], texts: Sequence[Text]) -> dict[int, int]:
    """For each moved slot another moved slot of another prompt, whose completion it gets; each gives its own once.

    With the slots in order of prompts, a shift by the size of the largest group takes every slot out of its group.
    Where one prompt has more than half of them this cannot be, and as many of its slots stay as are too many.
    """
    groups: dict[Text, list[int]] = {}
    for i in moved:
        groups.setdefault(texts[i], []).append(i)
    if not groups:
        return {}
    largest = max(groups.values(), key=len)
    del largest[max(0, len(moved) - len(largest)) :]
    order = [i for group in groups.values() for i in group]
    return dict(zip(order, order[len(largest) :] + order[: len(largest)], strict=True))


@dataclass(frozen=True)
class Slot:
    """A completion to be sampled: of which prompt (its place in the file), by which policy, and which copy it is."""

    prompt: int
    policy: str
    copy: int


def draw_slots(config: CollectConfig, prompts: Sequence[Prompt], rng: Random) -> list[Slot]:
    """Who writes which completion of which prompt: K for each prompt, each by a policy drawn by its weight."""
    fewest, _, most = config.k.partition("..")
    k_min, k_max = int(fewest), int(most or fewest)
    names = list(config.writers)
    weights = [config.weights.get(name, 1.0) for name in names]
    drawn = [(p, rng.choices(names, weights)[0]) for p in range(len(prompts)) for _ in range(rng.randint(k_min, k_max))]
    copies = number_copies(prompts[p] for p, _ in drawn)
    return [Slot(p, name, copy) for (p, name), copy in zip(drawn, copies, strict=True)]


def load_writer(
    config: CollectConfig,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    examples: tuple[Demonstration, ...],
    name: str,
) -> Writer:
    """A policy by name, with the worked examples if it gets them."""
    policy = load_policy(config.writers[name], tokenizers[name])
    return Writer(name, policy, tokenizers[name], examples if name in config.few_shot else ())


def fitting(writer: Writer, prompts: Sequence[Prompt], slots: Sequence[Slot], config: CollectConfig) -> dict[int, bool]:
    """Whether each prompt that a policy is to answer leaves room for a completion in its context."""
    asked = {slot.prompt for slot in slots if slot.policy == writer.name}
    return {p: fits(writer, prompts[p], config.sampler.max_new_tokens) for p in asked}


def write_share(
    open_writer: Callable[[], Writer], prompts: Sequence[Prompt], slots: Sequence[Slot], config: CollectConfig
) -> dict[str, Any]:
    """The completions of one policy by slot, and the prompts that are too long for it."""
    writer = open_writer()
    room = fitting(writer, prompts, slots, config)
    mine = [i for i, slot in enumerate(slots) if slot.policy == writer.name and room[slot.prompt]]
    asked, copies = [prompts[slots[i].prompt] for i in mine], [slots[i].copy for i in mine]
    answers = complete(writer, asked, config.seed, config.sampler, copies)
    rows = [answer.completion.model_dump(mode="json") for answer in answers]
    return {"slots": mine, "completions": rows, "too_long": [p for p, ok in room.items() if not ok]}


def move_some(
    written: Mapping[int, Completion], share: float, texts: Sequence[Text], rng: Random
) -> dict[int, Completion]:
    """The completions by slot; this share of them have changed places, to be wrong for the prompt they come under."""
    moved = [i for i in written if rng.random() < share]
    swaps = other_prompts(moved, texts)
    return dict(written) | {
        i: written[j].model_copy(update={"policy": f"{written[j].policy} off prompt"}) for i, j in swaps.items()
    }


def run(config: CollectConfig) -> None:
    """Sample, then write `candidates.jsonl` into the run folder.

    Raises:
        ValueError: if off_prompt is wanted of a single prompt, or no prompt gets two distinct completions.
    """
    opened = open_run("collect", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    rng, loaded = Random(config.seed), read_prompts(config.prompts)
    prompts = loaded.records
    if config.off_prompt and len({p.text for p in prompts}) < 2:
        raise ValueError(
            f"off_prompt={config.off_prompt}: {config.prompts} holds one prompt, so no completion can come from "
            "another; leave off_prompt out, or add prompts"
        )
    examples = tuple(read_demonstrations(config.examples).records[: config.shots]) if config.examples else ()
    tokenizers = {name: load_tokenizer(folder) for name, folder in config.writers.items()}
    open_writer = partial(load_writer, config, tokenizers, examples)
    nothing = f"{config.prompts}: no prompt got two distinct completions within the models' context"
    # 1. Who writes which completion of which prompt.
    names, slots = list(config.writers), draw_slots(config, prompts, rng)
    if opened.dry and not sum(sum(fitting(open_writer(n), prompts, slots, config).values()) for n in names):
        raise ValueError(nothing)  # every policy was loaded, one at a time
    plan = f"{len(prompts):,} prompts, {len(slots):,} completions to sample, by {', '.join(names)}"
    opened.begin(plan, lost=loaded.dropped)
    # 2. Each policy writes its share.
    written, too_long = dict[int, Completion](), set[int]()
    opened.forget_after(-1)  # what is kept is logged again
    for index in opened.track(range(len(names))):
        work = partial(write_share, partial(open_writer, names[index]), prompts, slots, config)
        own = opened.once(f"policy-{index}", work)
        completions = [Completion.model_validate(row) for row in own["completions"]]
        written |= dict(zip(own["slots"], completions, strict=True))
        too_long |= set(own["too_long"])
        opened.log(index, {"completions": float(len(completions))})
    # 3. Some completions change places.
    written = move_some(written, config.off_prompt, [prompts[slot.prompt].text for slot in slots], rng)
    # 4. Merge identical completions, leave out empty ones, and write.
    groups: dict[int, list[Completion]] = {}
    for i, completion in sorted(written.items()):
        if completion.text.strip():
            groups.setdefault(slots[i].prompt, []).append(completion)
    equals = {p: by_text(c.text for c in group).values() for p, group in groups.items()}
    distinct = {p: tuple(groups[p][equal[0]] for equal in of) for p, of in equals.items()}
    several = {p: texts for p, texts in distinct.items() if len(texts) >= 2}
    candidates = [(prompts[p], texts) for p, texts in several.items()]
    if not candidates:
        raise ValueError(nothing)
    sampled = Counter(slots[i].prompt for i in written)
    write_candidates(opened.folder / "candidates.jsonl", candidates, [sampled[p] for p in several])
    whole = sum(len(group) for group in groups.values())
    opened.finish(
        prompts=len(candidates), completions=whole, merged=whole - sum(len(texts) for texts in distinct.values()),
        dropped=dropped({
            **loaded.dropped, "too long": len(too_long), "empty completion": len(written) - whole,
            "fewer than two distinct completions": len(distinct) - len(candidates),
        }),
    )  # fmt: skip
