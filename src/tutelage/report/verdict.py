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
GREEDY = {1: "it is ahead", -1: "it is behind", 0: "the difference is within noise"}


def percent(rate: Rate) -> str:
    """`61 % (95 % interval 55–67)`, without line breaks before a sign."""
    return f"{100 * rate['mean']:.0f}\u00a0% (95\u00a0% interval {100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def apart(a: Rate, b: Rate) -> int:
    """1 if a's whole interval lies above b's, -1 if below, 0 if they overlap."""
    return int(a["low"] > b["high"]) - int(a["high"] < b["low"])


def verdict(summary: Mapping[str, Any], trained: Mapping[str, bool], baseline: str, simulated: bool) -> list[str]:
    """Sentences for a reader in a hurry; those whose numbers are missing are left out.

    Args:
        trained: names of the models that came out of reinforcement learning -> whether pretraining text was mixed in.
        simulated: whether the judges were the world's labelers rather than people.
    """
    wins, gold = summary[f"win_rate_vs_{baseline}"], summary[f"gold_win_rate_vs_{baseline}"]
    judges = "Simulated labelers who took no part in training" if simulated else "Judges"
    said = [f"{judges} compared every model with {baseline} on {summary['prompts']} held-out prompts."] if wins else []
    even = {"low": 0.5, "high": 0.5}
    for name in (n for n in trained if n in wins):
        side = apart(wins[name], even)
        sentence = f"{name} {CLAIMS[side][0]} {baseline}: it wins {percent(wins[name])}, {CLAIMS[side][1]}"
        if name in gold:
            joint = "and" if apart(gold[name], even) == side else "but"
            sentence += f", {joint} gold, the noise-free preference, gives it {percent(gold[name])}"
        said.append(sentence + ".")
        gain, other = summary["greedy_gain"].get(f"{name}_greedy"), wins.get(f"{baseline}_greedy")
        if gain and other:
            greedy = wins[f"{name}_greedy"]
            sentence = f"Answering greedily it wins {percent(greedy)}, where greedy {baseline} wins {percent(other)}"
            points = f"{100 * gain['labelers']['low']:+.0f} to {100 * gain['labelers']['high']:+.0f} points"
            said.append(f"{sentence}: {GREEDY[apart(gain['labelers'], NOTHING)]} ({points}, prompt by prompt).")
    return [*said, *_reward(summary), *_tax(summary, trained, baseline)]


def _reward(summary: Mapping[str, Any]) -> list[str]:
    numbers = summary["reward_model"]
    if "accuracy_heldout_labelers" not in numbers:
        return []
    low, high = numbers["accuracy_heldout_labelers_interval"]
    rate = percent({"mean": numbers["accuracy_heldout_labelers"], "low": low, "high": high})
    said = f"The reward model foretells {rate} of the choices of labelers it never learned from"
    if "labeler_agreement" in numbers:
        agree, ceiling = 100 * numbers["labeler_agreement"], 100 * numbers["gold_ceiling"]
        said += f"; two of them agree on {agree:.0f} %, and a noise-free reader would foretell {ceiling:.0f} %"
    return [said + "."]


def _tax(summary: Mapping[str, Any], trained: Mapping[str, bool], baseline: str) -> list[str]:
    loss = summary["pretraining_loss"]
    mixed = next((name for name, ptx in trained.items() if ptx and name in loss), None)
    plain = next((name for name, ptx in trained.items() if not ptx and name in loss), None)
    if mixed is None or plain is None or baseline not in loss:
        return []
    rise = loss[plain] - loss[baseline]
    moved = f"the loss on pretraining text from {baseline}'s {loss[baseline]:.3f} to {loss[plain]:.3f} nats per token"
    if rise <= 0:
        return [f"{plain} moved {moved}: no rise for {mixed} ({loss[mixed]:.3f}) to take back."]
    share = (loss[plain] - loss[mixed]) / rise
    part = "all" if share >= 1 else "at least half" if share >= 0.5 else "less than half" if share > 0 else "none"
    return [
        f"{plain} raised {moved}; {mixed}, with such text mixed in, took back {part} of the rise ({loss[mixed]:.3f})."
    ]
