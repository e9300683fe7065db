"""The answers that the page leads with: is it preferred, at what price, is the reward hacked, is the reward model
sound, and which stage is at fault. Each is composed from the summary's numbers, and says what to run without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Rate = Mapping[str, float]
EVEN, NOTHING = {"low": 0.5, "high": 0.5}, {"low": 0.0, "high": 0.0}
MARKS = {1: "✓", 0: "~", -1: "✗", None: "?"}  # so that the page can be read without colour


@dataclass(frozen=True)
class Headline:
    """A question, its answer in a few words, the figures it rests on by name, and sentences that explain them.

    `sign` is 1 for good news, -1 for bad, 0 for neither, None where nothing was measured.
    """

    question: str
    answer: str
    sign: int | None
    figures: Mapping[str, str] = field(default_factory=dict)
    sentences: Sequence[str] = ()

    @property
    def mark(self) -> str:
        return MARKS[self.sign]


def percent(rate: Rate) -> str:
    """`61 % (55–67)`, without line breaks before a sign."""
    return f"{100 * rate['mean']:.0f}\u00a0% ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def spread(rate: Rate) -> str:
    """`+0.61 (0.52 to 0.70)`."""
    return f"{rate['mean']:+.2f} ({rate['low']:+.2f} to {rate['high']:+.2f})"


def apart(a: Rate, b: Rate) -> int:
    """1 if a's whole interval lies above b's, -1 if below, 0 if they overlap."""
    return int(a["low"] > b["high"]) - int(a["high"] < b["low"])


def names(of: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(of[:-1]), of[-1]] if len(of) > 1 else of)


def headlines(
    summary: Mapping[str, Any], trained: Sequence[str], baseline: str, judges: Mapping[str, str],
    start: str | None = None,
) -> list[Headline]:  # fmt: skip
    """The five answers, in the order in which a reader asks.

    Args:
        trained: names of the models that came out of reinforcement learning or DPO.
        judges: who each judge is, by name; the first is the one that counts.
        start: name of the model that the baseline was fine-tuned from, if it answered, too.
    """
    return [
        preferred(summary, trained, baseline, judges),
        price(summary, trained, baseline),
        hacked(summary, trained, baseline),
        sound(summary),
        at_fault(summary, trained, baseline, start),
    ]


def preferred(summary: Mapping[str, Any], trained: Sequence[str], baseline: str, judges: Mapping[str, str]) -> Headline:
    """Win rates of the trained models against the baseline, by the judge that counts; where others see it otherwise."""
    question, wins = "Is it preferred?", summary[f"win_rate_vs_{baseline}"]
    rates = {name: wins[name] for name in trained if name in wins}
    if not rates:
        return Headline(
            question, "Not measured", None,
            sentences=["Nobody has compared a trained model's answers: see `tutelage judge` and `tutelage evaluate`."],
        )  # fmt: skip
    counts, *others = judges
    who = judges[counts] or "judges"
    sides = {name: apart(rate, EVEN) for name, rate in rates.items()}
    sentences = [
        f"{who[0].upper()}{who[1:]} compared every model with {baseline} on {summary['prompts']:,} held-out prompts; "
        f"50\u00a0% is no better than {baseline}."
    ]
    for other in others:
        theirs = {n: r for n in rates if (r := summary[f"{other}_win_rate_vs_{baseline}"].get(n))}
        unlike = {n: r for n, r in theirs.items() if apart(r, EVEN) != sides[n]}
        known_as = f"{other} ({judges[other]})" if judges[other] else other
        if unlike:
            rest = ", ".join(f"{n} {percent(r)}" for n, r in unlike.items())
            sentences.append(f"But {known_as} sees it otherwise: {rest}.")
        elif theirs:
            sentences.append(f"By {known_as}, too.")
    sentences += _greedy(summary, list(rates), baseline, counts)
    ahead = sum(side == 1 for side in sides.values())
    if ahead == len(sides):
        answer, sign = "Yes", 1
    elif ahead:
        answer, sign = f"Yes: {names([n for n in sides if sides[n] == 1])}", 0
    elif max(sides.values()) == 0:
        answer, sign = "Not shown", 0
    else:
        answer, sign = f"No: {baseline} is preferred", -1
    return Headline(question, answer, sign, {name: percent(rate) for name, rate in rates.items()}, sentences)


def _greedy(summary: Mapping[str, Any], trained: Sequence[str], baseline: str, judge: str) -> Iterator[str]:
    """What is left of the gain where both models answer without chance: the paired difference, prompt by prompt."""
    gains = {n: own[judge] for n in trained if (own := summary["greedy_gain"].get(f"{n}_greedy"))}
    words = {1: "ahead of", -1: "behind", 0: "not shown to differ from"}
    for side, how in words.items():
        if alike := [n for n, gain in gains.items() if apart(gain, NOTHING) == side]:
            yield f"Where all answer greedily, {names(alike)} {'is' if len(alike) == 1 else 'are'} {how} {baseline}."


def price(summary: Mapping[str, Any], trained: Sequence[str], baseline: str) -> Headline:
    """The alignment tax: how much the loss on pretraining text rose, and how much the mixture took back."""
    question, rises = "At what price?", summary["tax"].get("rise", {})
    rises = {name: rises[name] for name in trained if name in rises}
    if not rises:
        return Headline(
            question, "Not measured", None,
            sentences=["Held-out pretraining text would show it: see `texts` of `tutelage answer`."],
        )  # fmt: skip
    shown = {n: spread(r) for n, r in rises.items()}
    dear = [n for n, r in rises.items() if apart(r, NOTHING) == 1]
    answer = f"Paid by {names(dear)}" if dear else "None shown"
    sentences = [
        f"Change of the loss on pretraining text since {baseline}"
        f" ({summary['pretraining_loss'][baseline]:.3f}), nats per token."
    ]
    for mixed, plain in summary["tax"].get("plain", {}).items():
        if mixed in rises and plain in rises:
            sentences.append(_taken_back(summary, mixed, plain, rises[plain]))
    sign = 1 if not dear else -1 if len(dear) == len(rises) else 0
    return Headline(question, answer, sign, shown, sentences)


def _taken_back(summary: Mapping[str, Any], mixed: str, plain: str, rise: Rate) -> str:
    if apart(rise, NOTHING) <= 0:
        return f"{plain} shows no rise that is clear of noise, so there is nothing for {mixed} to take back."
    back = summary["tax"]["taken_back"][mixed]
    share = (
        "all" if back["low"] >= 1 else "at least half" if back["low"] >= 0.5
        else "none" if back["high"] <= 0 else "less than half" if back["high"] < 0.5
        else "an unclear part"
    )  # fmt: skip
    return f"With pretraining text mixed in, {mixed} took back {share} of {plain}'s rise: {percent(back)}."


def hacked(summary: Mapping[str, Any], trained: Sequence[str], baseline: str) -> Headline:
    """Whether preference goes with the score: a score that rises while preference does not is hacked."""
    question, scores, wins = "Is the reward hacked?", summary["scores"], summary[f"win_rate_vs_{baseline}"]
    both = [n for n in trained if n in scores and n in wins and baseline in scores]
    if not both:
        return Headline(
            question, "Not measured", None,
            sentences=[
                "It takes scores and preferences of the same answers: a `reward_model` for `tutelage answer`, and "
                "`tutelage judge`."
            ],
        )  # fmt: skip
    rises = {n: scores[n] - scores[baseline] for n in both}
    shown = {n: f"{rises[n]:+.2f}, wins {100 * wins[n]['mean']:.0f}\u00a0%" for n in both}
    sides = {n: apart(wins[n], EVEN) for n in both if rises[n] > 0}
    worse, unclear = ([n for n, side in sides.items() if side == which] for which in (-1, 0))
    further = [
        f"Optimised on its own ({name}), the score rises and preference falls: {spread(turn['best'])} at a KL of "
        f"{turn['kl']:.1f} nats, {spread(turn['last'])} in the end."
        for name, turn in summary.get("overoptimization", {}).items()
    ]
    notes = [f"How far the mean score by the reward model rose over {baseline}'s, beside preference."]
    if worse:
        notes.append(f"The score of {names(worse)} rose while {baseline}'s answers are preferred.")
        return Headline(question, f"Yes: {names(worse)}", -1, shown, notes)
    if unclear or not sides:
        some = names(unclear) if unclear else "any model"
        notes.append(f"No gain of {some} is shown to be more than a higher score." if unclear else "No score rose.")
        return Headline(question, "Not shown either way", 0, shown, notes)
    if "overoptimization" not in summary:
        notes.append("Both rose. How much further they would, `tutelage overoptimize` measures.")
    else:
        notes.append("Both rose." if further else "Both rose, and optimising it further is not shown to do harm.")
    notes += further[:2]
    return Headline(question, "No sign of it", 1, shown, notes)


def sound(summary: Mapping[str, Any]) -> Headline:
    """The reward model's accuracy on held-out labelers, beside what those labelers and a noise-free reader reach."""
    question, numbers = "Is the reward model sound?", summary["reward_model"]
    arm = next((key for key in ("heldout_labelers", "train_labelers") if f"accuracy_{key}" in numbers), None)
    if arm is None:
        return Headline(
            question, "Not measured", None,
            sentences=["Held-out rankings would show it: see `valid` of `tutelage reward`, and `tutelage measure`."],
        )  # fmt: skip
    low, high = numbers[f"accuracy_{arm}_interval"]
    rate = {"mean": numbers[f"accuracy_{arm}"], "low": low, "high": high}
    figures = {"predicts": percent(rate)}
    figures |= {
        key.removesuffix("_ceiling"): f"{100 * share:.0f}\u00a0%"
        for key, share in numbers.items()
        if key.endswith("_ceiling")
    }
    whose = "they never learned from" if arm == "heldout_labelers" else "who ranked its training set"
    sentences = [f"Share of the choices of labelers {whose} that it predicts; 50\u00a0% is chance."]
    if any(key.endswith("_ceiling") for key in numbers):
        sentences.append("A reader without noise sets the most that can be reached on the same pairs.")
    shared = numbers.get("same_pairs", {})
    if shared.keys() >= {"labelers", "model"}:
        figures |= {"labelers agree": percent(shared["labelers"]), "it agrees": percent(shared["model"])}
        sentences.append("Agreement is counted on the pairs that two labelers ordered.")
    side = apart(rate, EVEN)
    below = shared and apart(shared["model"], shared["labelers"]) == -1
    if side < 1:
        return Headline(question, "No: not shown to beat chance" if side == 0 else "No", -1, figures, sentences)
    faults = numbers.get("faults")
    if faults is not None:
        sentences += [f"{words[0].upper()}{words[1:]}." for words in faults.values()] or [
            "No fault is shown in its confidence, or in what it makes of length and repetition."
        ]
    if below:
        return Headline(question, "Less than a labeler", 0, figures, sentences)
    if faults:
        return Headline(question, f"Yes, but {names(list(faults))}", 0, figures, sentences)
    return Headline(question, "Yes", 1, figures, sentences)


def at_fault(summary: Mapping[str, Any], trained: Sequence[str], baseline: str, start: str | None) -> Headline:
    """The first stage that did not do its part: labels, fine-tuning, reward model, optimisation, or too much of it."""
    question = "Which stage is at fault?"
    wins, scores = summary[f"win_rate_vs_{baseline}"], summary["scores"]
    numbers = summary["reward_model"]
    checks: list[tuple[str, bool, str]] = []  # the stage, whether it did its part, and if not, why
    if start in wins:
        why = f"{baseline} is not shown to beat {start}: look at the demonstrations, or train longer"
        checks.append(("fine-tuning", wins[start]["high"] < 0.5, why))
    if shared := numbers.get("same_pairs", {}).get("labelers"):
        why = f"two labelers agree on {percent(shared)} of the pairs, no more than chance: look at the instructions"
        checks.append(("labels", shared["low"] > 0.5, why))
    for arm in ("train_labelers", "heldout_labelers"):
        if interval := numbers.get(f"accuracy_{arm}_interval"):
            low, high = (100 * end for end in interval)
            why = f"it predicts {low:.0f}–{high:.0f}\u00a0% of choices: label more, or train anew"
            checks.append(("the reward model", interval[0] > 0.5, why))
    for name in (n for n in trained if n in scores and baseline in scores):
        why = f"the score of {name} did not rise: try a higher learning rate, more episodes, or a lower kl_coef"
        checks.append(("optimisation", scores[name] > scores[baseline], why))
        if name in wins and scores[name] > scores[baseline]:
            why = f"the score of {name} rose, but not its win rate: try a higher kl_coef, or more rankings"
            checks.append(("the reward", wins[name]["low"] > 0.5, why))
    if not checks:
        return Headline(question, "Not measured", None, sentences=["No stage left figures that could tell."])
    failed = [(stage, why) for stage, fine, why in checks if not fine]
    looked_at = names(list(dict.fromkeys(stage for stage, *_ in checks)))
    if not failed:
        return Headline(question, "None", 1, sentences=[f"Looked at: {looked_at}."])
    reasons = [f"{stage[0].upper()}{stage[1:]}: {why}." for stage, why in dict.fromkeys(failed)]
    return Headline(question, failed[0][0][0].upper() + failed[0][0][1:], -1, sentences=reasons)
