"""Judges compare each model's answers with the baseline's, or every two models'.

    tutelage judge --answers runs/answers/answers.jsonl --judges rm=runs/reward/model --output runs/judged

Answers that are equal are a tie, asked of nobody; the same two answers to the same prompt are asked once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tutelage.data.answers import Answered, instruction_of, read_answers, write_list
from tutelage.data.datasets import write_jsonl
from tutelage.evaluation.judges.judge import Pair, Rater, Share
from tutelage.evaluation.judges.opening import OpenWorld, open_judge
from tutelage.rewards.function import sources_of
from tutelage.runs import inputs_of, open_run
from tutelage.settings.judging import JudgeConfig
from tutelage.stats.intervals import estimate
from tutelage.terminal import listed, short

BATCH = 256  # pairs that a judge is given at once; what it said of them is then kept
Key = tuple[Any, str, str]  # which prompt, and two answers


@dataclass(frozen=True)
class Match:
    """A prompt, and the models whose answers are compared with one model's; `first` of the prompt's matches."""

    answered: Answered
    baseline: str
    models: list[str]
    first: bool = True

    def pair(self, model: str) -> Pair:
        """The prompt with a model's answer and the baseline's."""
        return self.answered.prompt, self.answered.texts[model], self.answered.texts[self.baseline]


def key_of(pair: Pair) -> Key:
    """What makes two pairs the same question."""
    prompt, first, second = pair
    return prompt.identity, first, second


def line_up(answered: Sequence[Answered], config: JudgeConfig) -> tuple[list[Match], dict[str, int]]:
    """Who is compared with whom, and how many prompts are left out, by reason.

    Raises:
        ValueError: if the baseline has answered no prompt, or nobody else has.
    """
    names = list(dict.fromkeys(name for each in answered for name in each.texts))
    if config.baseline not in names:
        raise ValueError(f"baseline={short(config.baseline)} is not among the answers' models {short(sorted(names))}")
    if names == [config.baseline]:
        raise ValueError(f"answers: all are of {config.baseline!r}, so there is nobody to compare it with")
    order = [config.baseline, *(name for name in names if name != config.baseline)]
    matches, lost = [], Counter[str]()
    for each in answered:
        there = [name for name in order if name in each.texts]
        if len(there) < 2:
            lost["prompt that one model alone answered"] += 1
        elif not config.every_pair and there[0] != config.baseline:
            lost["prompt without an answer of the baseline"] += 1
        elif config.every_pair:
            matches += [Match(each, name, there[i + 1 :], i == 0) for i, name in enumerate(there[:-1])]
        else:
            matches.append(Match(each, config.baseline, there[1:]))
    if not matches:
        raise ValueError(f"answers: no prompt has answers of {config.baseline!r} and another model")
    return matches, dict(lost)


def pairs_of(matches: Sequence[Match]) -> dict[Key, Pair]:
    """The pairs to ask about: those whose answers differ, each once."""
    every = (match.pair(model) for match in matches for model in match.models)
    pairs: dict[Key, Pair] = {}
    for pair in every:
        if pair[1] != pair[2]:
            pairs.setdefault(key_of(pair), pair)
    return pairs


def in_order(share: Share) -> Share:
    """With its voters sorted, as what is kept does not keep their order."""
    return dict(sorted(share.items())) if isinstance(share, dict) else share


def mean_share(share: Share) -> float | None:
    """The share of votes that a verdict comes to."""
    return sum(share.values()) / len(share) if isinstance(share, dict) else share


Verdicts = Mapping[str, Mapping[Key, Share]]  # by judge


def verdict(match: Match, model: str, verdicts: Verdicts) -> dict[str, Any]:
    """What all judges say of a model's answer, as a `Verdict`."""
    _, text, other = pair = match.pair(model)
    wins: dict[str, float] = {}
    votes: list[dict[str, Any]] = []
    for judge, shares in verdicts.items():
        share = 0.5 if text == other else shares[key_of(pair)]
        if (mean := mean_share(share)) is not None:
            wins[judge] = mean
        if isinstance(share, dict):
            votes += [{"judge": judge, "labeler": voter, "share": own} for voter, own in share.items()]
    return {"wins": wins, **({"votes": votes} if votes else {}), "length": len(text)}


def rows_of(matches: Sequence[Match], verdicts: Verdicts, raters: Sequence[Rater]) -> Iterator[dict[str, Any]]:
    """The rows of a judgments file. The baseline against itself is one half, and every answer is rated once."""
    for match in matches:
        prompt, texts = match.answered.prompt, match.answered.texts
        asked = prompt.model_dump(mode="json", include={"id", "text", "use_case"})
        models = {model: verdict(match, model, verdicts) for model in match.models}
        if match.first:
            own = {"wins": dict.fromkeys(verdicts, 0.5), "length": len(texts[match.baseline])}
            models = {name: own if name == match.baseline else models[name] for name in texts}
            for name, rater in ((name, rater) for rater in raters for name in models):
                models[name] |= rater.rate(prompt, texts[name])
        yield {
            "id": asked["id"], "prompt": asked["text"], "use_case": asked["use_case"], "baseline": match.baseline,
            "models": models,
        }  # fmt: skip


def annotation_rows(matches: Sequence[Match], verdicts: Verdicts) -> Iterator[dict[str, Any]]:
    """The same as AlpacaEval has it: `preference` is 1 for the baseline, 2 for the model, null without a verdict.

    Raises:
        ValueError: if a prompt has several turns.
    """
    for match in matches:
        for model in match.models:
            prompt, text, other = match.pair(model)
            wins = verdict(match, model, verdicts)["wins"]
            for judge in verdicts:
                yield {
                    "instruction": instruction_of(prompt), "output_1": other, "output_2": text,
                    "generator_1": match.baseline, "generator_2": model, "dataset": prompt.use_case or "",
                    "annotator": judge, "preference": 1 + wins[judge] if judge in wins else None,
                }  # fmt: skip


def changed_minds(shares: Mapping[Key, Share], seed: int) -> dict[str, float]:
    """How often a judge that is asked in both orders changed its mind with the order; nothing of other judges."""
    asked = [(key[0], share) for key, share in shares.items() if isinstance(share, dict) and "shown first" in share]
    if not asked:
        return {}
    changed = [float(len(set(share.values())) > 1) for _, share in asked]
    return estimate(changed, prompts=[prompt for prompt, _ in asked], seed=seed)


def run(config: JudgeConfig, open_world: OpenWorld | None = None) -> None:
    """Write judgments.jsonl: for each prompt what judges say of every model's answer, and who voted if that is known.

    Raises:
        ValueError: if the answers hold nothing to compare, or a judge fails or says nothing at all.
    """
    opened = open_run("judge", config, inputs_of(config, *config.INPUTS) | sources_of(config.judges, "judges"))
    if opened is None:
        return
    matches, lost = line_up(read_answers(config.answers), config)
    if config.annotations:
        for match in matches:
            instruction_of(match.answered.prompt)  # what cannot be written is met now
    pairs = pairs_of(matches)
    judges = {
        name: open_judge(each, name, opened.state, config.seed, open_world) for name, each in config.readers.items()
    }
    prompts = len({match.answered.prompt.identity for match in matches})
    opened.begin(f"{prompts:,} prompts, {len(pairs):,} pairs of answers to judge by {listed(judges)}", lost=lost)
    parts = [(name, start) for name in judges for start in range(0, len(pairs), BATCH)]
    asked = list(pairs.values())
    shares: dict[str, list[Share]] = {name: [] for name in judges}
    for place in opened.track(range(len(parts))):
        name, start = parts[place]
        compared = opened.once(f"{name}-{start}", partial(judges[name].compare, asked[start : start + BATCH]))
        shares[name] += [in_order(share) for share in compared]
    verdicts = {name: dict(zip(pairs, own, strict=True)) for name, own in shares.items()}
    judged = {name: sum(share is not None for share in own) for name, own in shares.items()}
    for name, number in judged.items():
        if pairs and not number:
            raise ValueError(f"judges.{name}: has no verdict on any of {len(pairs):,} pairs of answers")
        if number < len(pairs):
            opened.warn(f"judges.{name}: has no verdict on {len(pairs) - number:,} of {len(pairs):,} pairs of answers")
    raters = [judge for judge in judges.values() if isinstance(judge, Rater)]
    opened.require_folder()
    write_jsonl(opened.folder / "judgments.jsonl", rows_of(matches, verdicts, raters))
    if config.annotations:
        write_list(opened.folder / "annotations.json", list(annotation_rows(matches, verdicts)))
    changed = {name: rate for name, own in verdicts.items() if (rate := changed_minds(own, config.seed))}
    opened.finish(
        prompts=prompts, baseline=config.baseline, judges={name: judge.about for name, judge in judges.items()},
        pairs=len(pairs), judged=judged, failed={name: len(pairs) - number for name, number in judged.items()},
        changed_mind=changed, dropped=lost,
    )  # fmt: skip
