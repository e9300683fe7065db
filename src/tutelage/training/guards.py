"""What goes wrong in training without an error, said once and in words, with what to try; the batch is kept.

The rules read the logged metrics alone, so a resumed run says the same as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median, variance

from transformers import PreTrainedTokenizerBase

from tutelage.data.datasets import write_jsonl
from tutelage.runs import Run

Row = Mapping[str, float | None]

RECENT = 64  # rows that a value is compared with
ENOUGH = 20  # of them, before anything is said
SPIKE = 10.0  # typical deviations above the median, and twice the median at least: the demo's losses stay within 9
VANISHED = 1e-6  # gradient norm, over ten updates in a row
OFF_SAMPLER = 0.9  # effective sample size before an update, over five iterations: a sampler in bf16 stays above 0.99
ALL_FLAT = 0.95  # share of groups without a signal, over five iterations
RUNAWAY = 1.0  # nats of KL a token, over five iterations: the demo's policies stay below 0.3
START = 5  # rows of a run's beginning, which stay to be compared with
LONG = 2.0  # times the length at the start, over five iterations: the demo's completions become shorter
NARROW = 0.25  # of the entropy at the start, over five iterations: the demo's policies keep over half of it
WINDOWS, CLEAR = (20, RECENT), 3.0  # iterations in which scores part, each by so many standard errors


def spike(rows: Sequence[Row], name: str, rate: str = "optimizer.learning_rate") -> str | None:
    """A loss far above what it was of late (median and median deviation, so that one spike does not hide the next)."""
    *before, last = _values(rows, name)[-RECENT - 1 :] or [math.nan]
    if len(before) < ENOUGH:
        return None
    usual = median(before)
    deviation = 1.4826 * median(abs(value - usual) for value in before)
    if last <= max(usual + SPIKE * deviation, 2 * abs(usual)):
        return None
    return (
        f"{name} jumped to {last:.3g} from about {usual:.3g}; look at the batch for broken rows, or try a lower "
        f"{rate} or optimizer.max_grad_norm"
    )


def vanished(rows: Sequence[Row]) -> str | None:
    """Nothing is learned any more."""
    last = _values(rows, "grad_norm")[-10:]
    if len(last) < 10 or max(last) > VANISHED:
        return None
    return (
        f"the gradient has vanished (norm {last[-1]:.1g}), so nothing is learned; look whether all rows are alike, or "
        "whether the model is saturated: try a lower optimizer.learning_rate from the start"
    )


def runaway(rows: Sequence[Row]) -> str | None:
    """The policy leaves the reference for good: the reward model is read where it was never trained."""
    pairs = [
        (kl, length)
        for row in rows
        for kl in _values([row], "objective/kl")
        for length in _values([row], "objective/length")
        if length > 0
    ][-5:]
    if len(pairs) < 5 or min(kl / length for kl, length in pairs) < RUNAWAY:
        return None
    kl, length = pairs[-1]
    return (
        f"KL from the reference runs away: {kl:.1f} nats on completions of {length:.0f} tokens, over {RUNAWAY:g} a "
        "token; scores there mean little. Try a higher kl_coef, a kl_target, or a lower optimizer.learning_rate"
    )


def dead_value(rows: Sequence[Row]) -> str | None:
    """The value model predicts returns no better than their mean does, so advantages are noise."""
    explained = _values(rows, "val/explained_variance")[-ENOUGH:]
    if len(rows) < 2 * ENOUGH or len(explained) < ENOUGH or mean(explained) > 0:
        return None
    return (
        f"the value model explains nothing of the returns (explained variance {mean(explained):.2f} over "
        f"{ENOUGH} iterations), so advantages are mostly noise; try a higher algorithm.value_learning_rate"
    )


def off_sampler(rows: Sequence[Row]) -> str | None:
    """The samples are not the policy's: another engine, precision or checkpoint drew them."""
    sizes = _values(rows, "sampler/ess")[-5:]
    if len(sizes) < 5 or max(sizes) > OFF_SAMPLER:
        return None
    return (
        f"the samples are not the policy's: before any update their effective sample size is {sizes[-1]:.0%} of their "
        "number; see whether the sampler has the policy's weights, precision and temperature"
    )


def flat(rows: Sequence[Row]) -> str | None:
    """Completions of a prompt all have one score, so comparing them teaches nothing."""
    shares = _values(rows, "objective/flat_groups")[-5:]
    if len(shares) < 5 or min(shares) < ALL_FLAT:
        return None
    return (
        f"the completions of {shares[-1]:.0%} of the prompts all have one score, so comparing them teaches nothing; "
        "look whether the reward tells them apart, take harder or easier prompts, or set algorithm.refill"
    )


def parted(rows: Sequence[Row]) -> str | None:
    """The reward rises and a held-out judge's scores of the same samples fall: the policy has found the reward's errors
    (Gao 2022). The later half of a window is compared with the earlier."""
    both = _together(rows, "objective/scores", "objective/heldout_scores")
    for window in WINDOWS:
        if len(both) < window:
            break
        proxy, heldout = zip(*both[-window:], strict=True)
        if _rise(proxy) > CLEAR and _rise(heldout) < -CLEAR:
            (a, b), (c, d) = _halves(proxy), _halves(heldout)
            return (
                f"the reward rises and the held-out score falls: over {window} iterations from {mean(a):.2f} to "
                f"{mean(b):.2f}, and from {mean(c):.2f} to {mean(d):.2f}. The policy is learning the reward's errors; "
                "take an earlier policy, raise kl_coef, or have samples of this policy ranked"
            )
    return None


def lengthened(rows: Sequence[Row]) -> str | None:
    """Completions grow: labelers, and hence reward models, often prefer what is long."""
    lengths, ended = _values(rows, "objective/length"), _values(rows, "objective/ended")
    if len(lengths) < 2 * START or min(lengths[-START:]) < LONG * mean(lengths[:START]):
        return None
    before, now = mean(lengths[:START]), lengths[-1]
    cut = f", and {1 - ended[-1]:.0%} of them are cut off" if ended and ended[-1] < 1 else ""
    return (
        f"completions run away in length: from {before:.0f} tokens at the start to {now:.0f}{cut}. Look whether the "
        "reward pays for length (`tutelage measure` says it of a reward model), or try a higher kl_coef or "
        "missing_eos_penalty"
    )


def narrowed(rows: Sequence[Row]) -> str | None:
    """The policy has nearly stopped to vary, so it explores nothing more."""
    entropy = _values(rows, "objective/entropy")
    if len(entropy) < 2 * START or max(entropy[-START:]) > NARROW * mean(entropy[:START]):
        return None
    return (
        f"entropy collapses: from {mean(entropy[:START]):.2g} nats a token at the start to {entropy[-1]:.2g}, so the "
        "policy hardly varies what it writes, and learns little more. Try a higher kl_coef, a lower "
        "optimizer.learning_rate, or fewer inner_epochs"
    )


def outside(rows: Sequence[Row]) -> str | None:
    """The policy writes what no ranked completion is like: see `rewards.reward_model.covered_kl`."""
    pairs = _together(rows, "objective/kl", "objective/kl_covered")[-5:]
    if len(pairs) < 5 or any(kl <= covered for kl, covered in pairs):
        return None
    kl, covered = pairs[-1]
    return (
        f"the policy has left what the reward model learned from: KL from the reference is {kl:.1f} nats a completion, "
        f"and of all ranked completions the best is at most {covered:.1f} nats away. Take an earlier policy, raise "
        "kl_coef, or have samples of this policy ranked and train the reward model anew"
    )


# Not `loss/policy`: with whitened advantages it lies around 0, where "far above" means nothing.
RULES: Mapping[str, Callable[[Sequence[Row]], str | None]] = {
    "spike": lambda rows: spike(rows, "loss/train"),
    "ptx spike": lambda rows: spike(rows, "loss/ptx"),
    "value spike": lambda rows: spike(rows, "loss/value", "algorithm.value_learning_rate"),
    "vanished": vanished,
    "runaway": runaway,
    "off sampler": off_sampler,
    "dead value": dead_value,
    "flat": flat,
    "parted": parted,
    "lengthened": lengthened,
    "narrowed": narrowed,
    "outside": outside,
}


class Watch:
    """Looks at each step of a run; make it after the checkpoint is loaded, as it reads what was logged before."""

    def __init__(self, run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
        self.run, self.tokenizer = run, tokenizer
        self.step = 0
        self.sequences: list[list[int]] = []
        self._rows: list[Row] = []
        self._warned: set[str] = set()
        for row in run.logged():
            self._look(row, self.run.warnings.append)

    def reads(self, step: int, sequences: Sequence[Sequence[int]]) -> None:
        """The step that comes, and the ids that it learns from."""
        self.step, self.sequences = step, [list(ids) for ids in sequences]

    def look(self, row: Row) -> None:
        """Warn of what a logged step shows for the first time."""
        if self._look(row, self.run.warn):
            self.keep()

    def keep(self) -> str:
        """Write the step's rows into the run folder; returns the file's name."""
        name = f"batch-{self.step}.jsonl"
        rows = [{"ids": ids, "text": self.tokenizer.decode(ids)} for ids in self.sequences]
        write_jsonl(self.run.folder / name, rows)
        return name

    def _look(self, row: Row, tell: Callable[[str], None]) -> bool:
        self._rows = [*self._rows[:START], *self._rows[START:][-RECENT:], row]
        warned = len(self._warned)
        for name, rule in RULES.items():
            if name not in self._warned and (warning := rule(self._rows)):
                self._warned.add(name)
                tell(f"step {row['step']:.0f}: {warning}. Its rows are in batch-{row['step']:.0f}.jsonl")
        return len(self._warned) > warned


def _together(rows: Sequence[Row], *names: str) -> list[tuple[float, ...]]:
    """The values of several metrics in the rows that have all of them."""
    every = (tuple(value for name in names for value in _values([row], name)) for row in rows)
    return [values for values in every if len(values) == len(names)]


def _halves(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


def _rise(values: Sequence[float]) -> float:
    """By how many standard errors the mean of the later half is above that of the earlier (Welch's t)."""
    before, after = _halves(values)
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    return (mean(after) - mean(before)) / error if error else 0.0


def _values(rows: Sequence[Row], name: str) -> list[float]:
    """A metric's values, rows left out that lack it or have no number."""
    return [value for row in rows if (value := row.get(name)) is not None and math.isfinite(value)]
