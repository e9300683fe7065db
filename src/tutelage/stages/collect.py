"""Collection: sample K = 4..9 completions per prompt, for labelers to rank (paper, section 3.4).

Completions of several policies may be mixed, as candidates of one quality teach a reward model little. What is written
is `candidates.jsonl`: prompt and completions, without ranks. Identical completions are merged. With a workspace they
are queued there as ranking tasks.

    tutelage collect --policy runs/sft/model --prompts prompts.jsonl --k 4..9 --output runs/candidates
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tutelage.datasets import read_demonstrations, read_prompts
from tutelage.labeling.candidates import queue_candidates, write_candidates
from tutelage.labeling.database import existing_workspace, require_workspace
from tutelage.labeling.engines import in_words
from tutelage.models.loading import load_policy
from tutelage.models.tokens import load_tokenizer
from tutelage.records import Completion, Text
from tutelage.runs import dropped, inputs_of, open_run
from tutelage.sampling.completions import Writer, complete, fits, number_copies
from tutelage.stages.config import CollectConfig
from tutelage.terminal import message


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


def to_labelers(config: CollectConfig, workspace: Path) -> None:
    """Queue the candidates as ranking tasks, unless the workspace has them."""
    with in_words(), closing(existing_workspace(workspace)) as opened:  # in words: a full disk, say
        queued = queue_candidates(opened, config.output / "candidates.jsonl", config.rate, config.overlap)
    if queued:
        text = f"{queued:,} tasks queued"
    else:
        text = f"its tasks are in {workspace} already, and stay as they were queued"
    print(message(f"collect: {text}"), file=sys.stderr, flush=True)  # no result: a kill may come right after it


def run(config: CollectConfig) -> None:
    """Sample, then write `candidates.jsonl` into the run folder.

    Raises:
        ValueError: if off_prompt is wanted of a single prompt, or there is no such workspace.
    """
    policies = config.policies or {"policy": str(config.policy)}
    fewest, _, most = config.k.partition("..")
    k_min, k_max = int(fewest), int(most or fewest)
    if config.workspace:
        require_workspace(config.workspace)
        if not config.dry_run:  # as opening writes
            existing_workspace(config.workspace).close()  # a damaged one is refused now, not after all the sampling
    run = open_run("collect", config, inputs_of(config, *config.INPUTS))
    if run is None:
        if config.workspace and not config.dry_run:  # which may have been restored, or made anew, since
            to_labelers(config, config.workspace)
        return
    rng = Random(config.seed)
    loaded = read_prompts(config.prompts)
    prompts = loaded.records
    if config.off_prompt and len({p.text for p in prompts}) < 2:
        raise ValueError(
            f"off_prompt={config.off_prompt}: {config.prompts} holds one prompt, so no completion can come from "
            "another; leave off_prompt out, or add prompts"
        )
    examples = tuple(read_demonstrations(config.examples).records[: config.shots]) if config.examples else ()
    nothing = f"{config.prompts}: no prompt got two distinct completions within the models' context"
    tokenizers = {name: load_tokenizer(folder) for name, folder in policies.items()}
    # 1. Who writes which completion of which prompt.
    names = list(policies)
    weights = [config.weights.get(name, 1.0) for name in names]
    slots = [(p, rng.choices(names, weights)[0]) for p in range(len(prompts)) for _ in range(rng.randint(k_min, k_max))]
    copies = number_copies(prompts[p] for p, _ in slots)

    def load(name: str) -> tuple[Writer, dict[int, bool]]:
        """A policy, and whether each prompt that it is to answer leaves room in its context."""
        policy = load_policy(policies[name], tokenizers[name])
        writer = Writer(name, policy, tokenizers[name], examples if name in config.few_shot else ())
        asked = {p for p, n in slots if n == name}
        return writer, {p: fits(writer, prompts[p], 2**31, config.max_new_tokens) for p in asked}

    if run.dry:
        rooms = [load(name)[1] for name in names]  # every policy is loaded, one at a time
        if not any(ok for room in rooms for ok in room.values()):
            raise ValueError(nothing)
    run.begin(
        f"{len(prompts):,} prompts, {len(slots):,} completions to sample, by {', '.join(names)}", lost=loaded.dropped
    )
    # 2. Each policy writes its share.
    written: dict[int, Completion] = {}
    too_long: set[int] = set()

    def share(name: str) -> dict[str, Any]:
        """The completions of one policy by slot, and the prompts that are too long for it."""
        writer, room = load(name)
        mine = [i for i, (p, n) in enumerate(slots) if n == name and room[p]]
        completions, _, _ = complete(
            writer, [prompts[slots[i][0]] for i in mine], config.seed, copies=[copies[i] for i in mine],
            temperature=config.temperature, max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        rows = [completion.model_dump(mode="json") for completion in completions]
        return {"slots": mine, "completions": rows, "too_long": [p for p, ok in room.items() if not ok]}

    run.forget_after(-1)  # what is kept is logged again
    for index in run.track(range(len(names))):
        own = run.once(f"policy-{index}", partial(share, names[index]))
        completions = [Completion.model_validate(row) for row in own["completions"]]
        written |= dict(zip(own["slots"], completions, strict=True))
        too_long |= set(own["too_long"])
        run.log(index, completions=float(len(completions)))
    # 3. Some completions change places, to be wrong for the prompt they come under.
    moved = [i for i in written if rng.random() < config.off_prompt]
    from_slot = other_prompts(moved, [prompts[p].text for p, _ in slots])
    written |= {
        i: written[j].model_copy(update={"policy": f"{written[j].policy} off prompt"}) for i, j in from_slot.items()
    }
    # 4. Merge identical completions, leave out empty ones, and write.
    empty = [i for i, completion in written.items() if not completion.text.strip()]
    for i in empty:
        del written[i]
    groups: dict[int, dict[str, Completion]] = {}
    for i, completion in sorted(written.items()):
        groups.setdefault(slots[i][0], {}).setdefault(completion.text, completion)
    candidates = [(prompts[p], tuple(texts.values())) for p, texts in groups.items() if len(texts) >= 2]
    if not candidates:
        raise ValueError(nothing)
    write_candidates(run.folder / "candidates.jsonl", candidates)
    # 5. To the labelers.
    if config.workspace:
        to_labelers(config, config.workspace)
    run.finish(
        prompts=len(candidates), completions=len(written), merged=len(written) - sum(len(g) for g in groups.values()),
        dropped=dropped({
            **loaded.dropped, "too long": len(too_long), "empty completion": len(empty),
            "fewer than two distinct completions": len(groups) - len(candidates),
        }),
    )  # fmt: skip
