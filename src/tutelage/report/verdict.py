"""The report's verdict in plain words, composed from its numbers: what holds, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rate = Mapping[str, float]
CLAIMS = {
    1: ("beats", "all of it above one half"),
    -1: ("loses to", "all of it below one half"),
    0: ("is not shown to differ from", "with one half inside it"),
}
NOTHING = {"low": 0.0, "high": 0.0}
GREEDY = {1: "it is ahead of", -1: "it is behind", 0: "it does not differ beyond noise from"}


def percent(rate: Rate) -> str:
    """`61 % (95 % interval 55–67)`, without line breaks before a sign."""
    return f"{100 * rate['mean']:.0f}\u00a0% (95\u00a0% interval {100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def apart(a: Rate, b: Rate) -> int:
    """1 if a's whole interval lies above b's, -1 if below, 0 if they overlap."""
    return int(a["low"] > b["high"]) - int(a["high"] < b["low"])


def verdict(
    summary: Mapping[str, Any], trained: Mapping[str, bool], baseline: str, judges: Mapping[str, str]
) -> list[str]:
    """Sentences for a reader in a hurry; those whose numbers are missing are left out.

    Args:
        trained: names of the models that came out of reinforcement learning -> whether pretraining text was mixed in.
        judges: who each judge is, by name; the first is the one that counts.
    """
    counts, *others = judges
    wins = summary[f"win_rate_vs_{baseline}"]
    who = judges[counts] or "judges"
    who = who[0].upper() + who[1:]
    sentences = (
        [f"{who} compared every model with {baseline} on {summary['prompts']} held-out prompts."] if wins else []
    )
    even = {"low": 0.5, "high": 0.5}
    for name in (n for n in trained if n in wins):
        side = apart(wins[name], even)
        sentence = f"{name} {CLAIMS[side][0]} {baseline}: it wins {percent(wins[name])}, {CLAIMS[side][1]}"
        for other in others:
            if rate := summary[f"{other}_win_rate_vs_{baseline}"].get(name):
                joint = "and" if apart(rate, even) == side else "but"
                known_as = f"{other}, {judges[other]}," if judges[other] else other
                sentence += f", {joint} {known_as} gives it {percent(rate)}"
        sentences.append(sentence + ".")
        if gain := summary["greedy_gain"].get(f"{name}_greedy"):
            difference = gain[counts]
            points = f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f} points"
            verb = GREEDY[apart(difference, NOTHING)]
            sentences.append(f"Where both answer greedily {verb} {baseline} ({points}, prompt by prompt).")
    return [*sentences, *_reward(summary), *_tax(summary, baseline)]


def _reward(summary: Mapping[str, Any]) -> list[str]:
    """Each sentence speaks of one set of pairs: all that held-out labelers ordered, or those that two of them did."""
    numbers, sentences = summary["reward_model"], []
    if "accuracy_heldout_labelers" in numbers:
        low, high = numbers["accuracy_heldout_labelers_interval"]
        rate = percent({"mean": numbers["accuracy_heldout_labelers"], "low": low, "high": high})
        sentence = f"The reward model predicts {rate} of the choices of labelers it never learned from"
        for share in (value for key, value in numbers.items() if key.endswith("_ceiling")):
            sentence += f"; a noise-free reader would predict {100 * share:.0f}\u00a0% of them"
        sentences.append(sentence + ".")
    shared = numbers.get("same_pairs", {})
    if shared.keys() >= {"labelers", "model"}:
        sentences.append(
            f"Of the pairs that two labelers ordered, one says what the other does of {percent(shared['labelers'])}, "
            f"and the reward model of {percent(shared['model'])}."
        )
    return sentences


def _tax(summary: Mapping[str, Any], baseline: str) -> list[str]:
    loss, rises = summary["pretraining_loss"], summary["tax"].get("rise", {})
    mixed, plain = next(iter(summary["tax"].get("plain", {}).items()), (None, None))
    if mixed is None or plain is None:
        return []
    rise = rises[plain]
    change = f"by {rise['mean']:+.3f} nats per token (95\u00a0% interval {rise['low']:+.3f} to {rise['high']:+.3f})"
    moved = f"the loss on pretraining text from {baseline}'s {loss[baseline]:.3f} {change}"
    if apart(rise, NOTHING) <= 0:
        return [f"{plain} changed {moved}: no rise that is clear of noise, so nothing for {mixed} to take back."]
    back = summary["tax"]["taken_back"][mixed]
    share = (
        "all" if back["low"] >= 1 else "at least half" if back["low"] >= 0.5
        else "none" if back["high"] <= 0 else "less than half" if back["high"] < 0.5
        else "an unclear part"
    )  # fmt: skip
    return [f"{plain} raised {moved}; {mixed}, with such text mixed in, took back {share} of it: {percent(back)}."]
