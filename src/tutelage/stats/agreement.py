"""Agreement between labelers on the same completions: pure functions of rankings, flags and categories.

The paper reports 72.6 ± 1.5 % between training labelers (section 3.4) and compares its reward models with that (section
5.1), without a formula; agreement on the pairs that both labelers ordered strictly, `strict`, is its likeliest reading
and the headline here. Ties are answers too: the other measures count them.

Rankings of one prompt (by its text) are laid side by side, completions matched by text: identical ones are one, of
which nobody can say anything but that it equals itself. An order is compared on the completions that both labelers
ranked. A labeler is never compared with themselves, and of their rankings of the same completions the newest, which is
the last, counts; rankings without a labeler are each by somebody else. Intervals are over prompts (`intervals.py`). A
measure that nothing defines (no two labelers, no ordered pair) is left out of the results.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.data.records import Ranking
from tutelage.stats.intervals import between, estimate, whole

Array = NDArray[np.float64]
Level = Literal["nominal", "ordinal"]
Measures = dict[str, dict[str, float]]
Count = tuple[float, float]  # of one prompt: how many, out of how many


def pairwise_agreement(rankings: Sequence[Ranking], seed: int = 0, draws: int = 1000) -> dict[str, float]:
    """`strict`: share of completion pairs, ordered strictly by two labelers of the same prompt, that both order alike.

    Returns `mean`, a 95 % interval over prompts (`low`, `high`), how many `prompts`, and the number of `pairs`, counted
    once for each two labelers; empty where no prompt has two labelers who order a pair.
    """
    return _rate([p.agreement["strict"] for p in panels(rankings)], seed, draws)


def summary(rankings: Sequence[Ranking], seed: int = 0, draws: int = 1000) -> Measures:
    """All measures of agreement between the labelers of the same prompts: `mean`, `low`, `high`, how many `prompts`.

    Of two labelers and a pair of completions that both ranked, each says <, = or >:

    - `strict`: both say < or >; the share that say the same (`pairs` of completions, counted for each two labelers);
    - `three_way`: the share of all pairs of which both say the same of <, =, >;
    - `half_credit`: as `three_way`, and = on exactly one side counts one half;
    - `tie_rate`: share of a ranking's pairs that are tied, over all rankings, one labeler's prompts included;
    - `kendall_tau_b`: mean over prompts of the mean over two labelers; two labelers of whom one ties all that they
      share have no tau and are counted in `left_out` (`labeler_pairs`: the rest);
    - `alpha_ordinal`, `alpha_nominal`: Krippendorff's alpha with a prompt's completions as units and ranks as values,
      ties given the mean of the ranks they span, so that alpha is a function of the orders alone. A rank means the
      same to two labelers only if they ranked the same completions, so just these meet (`units`: completions that two
      or more of them ranked).
    """
    every = panels(rankings)
    found = {name: [p.agreement[name] for p in every] for name in ("strict", "three_way", "half_credit")}
    found["tie_rate"] = [p.ties for p in every]
    out = {name: _rate(counts, seed, draws) for name, counts in found.items() if any(total for _, total in counts)}
    if taus := [p.taus for p in every if len(p.taus)]:
        rate = estimate([float(t.mean()) for t in taus], scale=(-1, 1), draws=draws, seed=seed)
        pairs = sum(map(len, taus))
        left_out = sum(p.labeler_pairs for p in every) - pairs
        out["kendall_tau_b"] = _interval(rate) | {"labeler_pairs": pairs, "left_out": left_out}
    return out | _alphas(every, seed, draws)


def by_labeler(rankings: Sequence[Ranking], seed: int = 0, draws: int = 1000) -> dict[str, Measures]:
    """Each labeler's `strict` agreement with everybody else who ranked the same prompts, and their `tie_rate`.

    Rankings without a labeler are among everybody else. Intervals are over the labeler's prompts.
    """
    strict: dict[str, list[Count]] = defaultdict(list)
    ties: dict[str, list[Count]] = defaultdict(list)
    for panel in panels(rankings):
        for name in {n for n in panel.labelers if n is not None}:
            mine = np.array([n == name for n in panel.labelers])
            strict[name].append((panel.alike[mine].sum(), panel.both_ordered[mine].sum()))
            ties[name].append((panel.tied[mine].sum(), panel.judged[mine].sum()))
    return {
        name: {
            measure: _rate(counts[name], seed, draws)
            for measure, counts in (("strict", strict), ("tie_rate", ties))
            if any(total for _, total in counts[name])
        }
        for name in sorted(ties)
    }


def scores_agreement(
    rankings: Sequence[Ranking], scores: Sequence[Sequence[float]], seed: int = 0, draws: int = 1000
) -> Measures:
    """A model's scores against labelers' orders, beside other labelers on the very same pairs.

    - `model`: over every pair that a labeler ordered strictly, the share of which the model's scores have the same
      order (equal scores count one half): a reward model's accuracy.

    The others count comparisons (labeler, another labeler of the prompt, pair of completions that both ordered
    strictly), each taken once with either of the two as the one to be predicted:

    - `labelers_shared`: how often the other labeler says what the labeler says; this is `strict`;
    - `model_shared`: how often the model does;
    - `difference`: `model_shared` less `labelers_shared`, paired by prompt;
    - `majority_shared`: what would be reached by saying of each pair what most of its labelers say, and hence the most
      that any model can reach. Labelers' agreement is no such bound: of a pair that two labelers order differently, any
      model gets one half right and the labelers none.

    Args:
        rankings: labelers' orders.
        scores: for each ranking one score per completion, higher is better.

    Returns:
        each with `mean`, `low`, `high`, and `pairs` (the shared ones counted once for each two labelers, as `strict`
        counts them).

    Raises:
        ValueError: if the scores do not match the completions one to one, or are not finite.
    """
    if [len(s) for s in scores] != [len(r.completions) for r in rankings]:
        raise ValueError(
            f"scores of {len(scores)} rankings do not match {len(rankings)} rankings' completions one to one"
        )
    if not all(np.isfinite(s).all() for s in scores):
        raise ValueError("a score is not a finite number; agreement with it is not defined")
    found: dict[str, list[Count]] = defaultdict(list)
    for panel in panels(rankings):
        scored = np.full(panel.ranks.shape, np.nan)
        for row, number in enumerate(panel.numbers):
            for completion, score in zip(rankings[number].completions, scores[number], strict=True):
                scored[row, panel.texts.index(completion.text)] = score
        right = (1 - panel.orders * np.nan_to_num(_signs(scored))) / 2  # a high score is a low rank
        found["model"].append(((right * panel.ordered).sum(), panel.ordered.sum()))
        # Each of a labeler's ordered pairs counts once for every other labeler who ordered it.
        weights = panel.ordered * (panel.others @ panel.ordered) / 2
        votes = [(weights * (panel.orders == sign)).sum(0) for sign in (-1, 1)]
        alike, total = panel.agreement["strict"]
        model = (right * weights).sum()
        found["labelers_shared"].append((alike, total))
        found["model_shared"].append((model, total))
        found["difference"].append((model - alike, total))
        found["majority_shared"].append((np.maximum(*votes).sum(), total))
    scales = {"difference": (-1.0, 1.0)}
    return {
        name: _rate(counts, seed, draws, scales.get(name, (0.0, 1.0)))
        for name, counts in found.items()
        if any(total for _, total in counts)
    }


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b: (C − D) / √((n₀ − n₁)(n₀ − n₂)) (Kendall 1945, The treatment of ties in ranking problems).

    C and D are the pairs of items that the vectors order alike and oppositely, n₀ all pairs, n₁ and n₂ the pairs that
    the first and the second tie.

    Args:
        first, second: (k,) ranks, or any other numbers, of the same items in the same order. Not the items in order of
            rank: that is another vector.

    Returns:
        between −1 and 1; nan if a vector is constant, as it then orders nothing.

    Raises:
        ValueError: if the vectors differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"ranks of {len(first)} items against ranks of {len(second)}")
    return float(_taus(_signs(np.array([first, second], dtype=float)))[0, 1])


def krippendorff_alpha(values: ArrayLike, level: Level = "ordinal") -> float:
    """Krippendorff's alpha: 1 − observed / expected disagreement (Krippendorff 2011, Computing alpha-reliability).

    With coincidences o_ck = Σ_u (ordered pairs c, k of values in unit u) / (m_u − 1), where unit u has m_u values,
    n_c = Σ_k o_ck and n = Σ_c n_c: α = 1 − (n − 1) Σ_ck o_ck δ²_ck / Σ_ck n_c n_k δ²_ck. Nominal: δ²_ck = 1 for c ≠ k.
    Ordinal: δ_ck = Σ_{g=c..k} n_g − (n_c + n_k) / 2.

    Args:
        values: (raters, units), nan where a rater gave none; only their equality (nominal) or order (ordinal) counts.

    Returns:
        1 for perfect agreement, 0 for chance, at times below; nan where no value varies or no unit has two values, as
        nothing can then be told from chance.

    Raises:
        ValueError: if the values are no table, or the level is not one of the two.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"values have shape {table.shape}; expected (raters, units)")
    if level not in ("nominal", "ordinal"):
        raise ValueError(f"level={level!r}; expected 'nominal' or 'ordinal'")
    return float(_alpha(_coincidences(table, np.unique(table[~np.isnan(table)])), level))


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Cohen's kappa of two raters: (p_o − p_e) / (1 − p_e) (Cohen 1960, A coefficient of agreement for nominal scales).

    p_o is the share of units that both put into the same category, p_e = Σ_c p_1c p_2c what two raters with these
    shares of categories would reach by chance.

    Args:
        first, second: (units,) a category (yes/no, word, number) per unit.

    Returns:
        between −1 and 1; nan if both put every unit into one and the same category: agreement is then whole by chance.

    Raises:
        ValueError: if the raters have different numbers of units, or none.
    """
    n = len(first)
    if n != len(second) or not n:
        raise ValueError(f"categories of {n} units against categories of {len(second)}; expected as many, and some")
    alike = sum(a == b for a, b in zip(first, second, strict=True))
    of_first, of_second = Counter(first), Counter(second)
    by_chance = sum(of_first[c] * of_second[c] for c in of_first)  # times n², so that all is whole numbers
    return (n * alike - by_chance) / (n * n - by_chance) if by_chance < n * n else float("nan")


def fleiss_kappa(counts: ArrayLike) -> float:
    """Fleiss' kappa of many raters: (P̄ − P̄_e) / (1 − P̄_e) (Fleiss 1971, Nominal scale agreement among many raters).

    P̄ is the mean over units of the share of rater pairs that agree, (Σ_j n_ij² − n) / (n (n − 1)), and P̄_e = Σ_j p_j²
    with p_j the share of all ratings in category j.

    Args:
        counts: (units, categories) how many raters put the unit into the category; a row sums to the number of raters,
            who need not be the same people for every unit.

    Returns:
        at most 1; nan if one category was used for everything: agreement is then whole by chance.

    Raises:
        ValueError: if the counts are no table, are negative, or do not give every unit the same two or more raters.
    """
    table = np.asarray(counts)
    raters = set(table.sum(1).tolist()) if table.ndim == 2 else set()
    if len(raters) != 1 or min(raters) < 2 or table.min() < 0:
        raise ValueError(
            f"counts of shape {table.shape} with row sums {sorted(raters)}; expected (units, categories) "
            "whose rows all sum to the same number of raters, 2 or more"
        )
    (n,) = raters
    observed = ((table**2).sum(1) - n).mean() / (n * (n - 1))
    shares = table.sum(0) / table.sum()
    return float((observed - (shares**2).sum()) / (1 - (shares**2).sum())) if shares.max() < 1 else float("nan")


def flags_kappa(prompts: Sequence[ArrayLike], seed: int = 0, draws: int = 1000) -> dict[str, float]:
    """Fleiss' kappa of yes/no flags, with an interval over prompts: `fleiss_kappa` where units differ in their raters.

    P̄ is the mean over units of the share of rater pairs that agree, P̄_e = Σ_j p_j² over all ratings.

    Args:
        prompts: for each prompt (units, 2) how many labelers said no and yes, a unit being a flag of a completion.

    Returns:
        `mean`, `low`, `high`, how many `prompts`, and the number of `units` with two labelers or more; empty where
        kappa is not defined.
    """
    stats = []
    for counts in prompts:
        table = np.asarray(counts, dtype=float)
        n = table.sum(1)
        table, n = table[n >= 2], n[n >= 2]
        if len(n):
            alike = ((table**2).sum(1) - n) / (n * (n - 1))
            stats.append([alike.sum(), len(n), *table.sum(0)])
    if not stats:
        return {}
    sums = np.asarray(stats)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))

    def kappa(total: np.ndarray) -> np.ndarray:
        chance = ((total[..., 2:] / total[..., 2:].sum(-1, keepdims=True)) ** 2).sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total[..., 0] / total[..., 1] - chance) / (1 - chance)

    mean, drawn = float(kappa(sums.sum(0))), kappa(sums[picks].sum(1))
    if not np.isfinite(mean):
        return {}
    low, high = between(mean, drawn, len(sums), len(sums))
    return {"mean": mean, "low": low, "high": high, "prompts": len(sums), "units": whole(sums[:, 1].sum())}


# One prompt's labelers side by side


@dataclass(frozen=True)
class Panel:
    """The n rankings of one prompt as a table, and what each two of their labelers say of pairs of completions.

    `ranks` (n, k) over all `texts` that anybody ranked, nan where a labeler did not; `numbers` (n,) are the rankings'
    places in the input. Of the p = k (k − 1) / 2 pairs of completions, `signs` (n, p) are −1 where the first is better,
    1 where the second is, 0 where tied, nan where not both were ranked. Tables of (n, n) are of two labelers.
    """

    labelers: tuple[str | None, ...]
    numbers: tuple[int, ...]
    texts: tuple[str, ...]
    ranks: Array

    @cached_property
    def signs(self) -> Array:
        return _signs(self.ranks)

    @cached_property
    def orders(self) -> Array:
        """(n, p): signs with 0 for what was not judged."""
        return np.nan_to_num(self.signs)

    @cached_property
    def ordered(self) -> Array:
        return np.abs(self.orders)

    @cached_property
    def judged(self) -> Array:
        return (~np.isnan(self.signs)).astype(float)

    @cached_property
    def tied(self) -> Array:
        return self.judged - self.ordered

    @cached_property
    def others(self) -> Array:
        """(n, n): 1 where two rankings are of different labelers."""
        whose = np.array([self.labelers.index(name) if name is not None else i for i, name in enumerate(self.labelers)])
        return (whose[:, None] != whose).astype(float)

    @cached_property
    def both_ordered(self) -> Array:
        """(n, n): pairs of completions that both labelers order strictly."""
        return self.others * (self.ordered @ self.ordered.T)

    @cached_property
    def alike(self) -> Array:
        """(n, n): those of them that both order alike."""
        return (self.both_ordered + self.others * (self.orders @ self.orders.T)) / 2

    @cached_property
    def agreement(self) -> dict[str, Count]:
        """Pairs of completions agreed on, out of how many, summed over each two labelers once."""
        same = self.alike + self.others * (self.tied @ self.tied.T)
        one_tie = self.others * (self.tied @ self.ordered.T + self.ordered @ self.tied.T)
        shared = self.others * (self.judged @ self.judged.T)
        measures = {
            "strict": (self.alike, self.both_ordered),
            "three_way": (same, shared),
            "half_credit": (same + one_tie / 2, shared),
        }
        return {name: (float(a.sum() / 2), float(b.sum() / 2)) for name, (a, b) in measures.items()}

    @property
    def ties(self) -> Count:
        return float(self.tied.sum()), float(self.judged.sum())

    @cached_property
    def labeler_pairs(self) -> int:
        """How many two labelers share a pair of completions."""
        return int((self.others * (self.judged @ self.judged.T) > 0).sum() // 2)

    @cached_property
    def taus(self) -> Array:
        """(labeler pairs,) tau-b of each two labelers on the completions both ranked, where it is defined."""
        found = _taus(self.signs)[np.triu(self.others) > 0]
        return found[~np.isnan(found)]

    def rank_tables(self) -> Iterable[Array]:
        """(raters, units) mid-ranks, a table for each set of two or more completions that labelers ranked.

        A completion alone has the same rank with everybody: that says nothing of how they agree.
        """
        absent = np.isnan(self.ranks)
        for missing in np.unique(absent, axis=0):
            ranks = self.ranks[(absent == missing).all(1)][:, ~missing]
            mine, theirs = ranks[:, :, None], ranks[:, None, :]
            if ranks.shape[1] > 1:
                yield (mine > theirs).sum(2) + ((mine == theirs).sum(2) + 1) / 2


def panels(rankings: Sequence[Ranking]) -> list[Panel]:
    """Rankings by prompt, in the order in which prompts first appear; equal texts are one, under their best rank.

    Of a labeler's rankings of the same completions the last counts.
    """
    groups: dict[Hashable, dict[Hashable, tuple[int, dict[str, int]]]] = defaultdict(dict)
    for number, r in enumerate(rankings):
        best = r.best_ranks
        whose = number if r.labeler is None else (r.labeler, frozenset(best))
        groups[r.prompt.identity][whose] = (number, best)
    out = []
    for group in groups.values():
        numbers, found = zip(*group.values(), strict=True)
        texts = tuple(dict.fromkeys(text for best in found for text in best))
        ranks = np.array([[best.get(text, np.nan) for text in texts] for best in found], dtype=float)
        out.append(Panel(tuple(rankings[i].labeler for i in numbers), numbers, texts, ranks))
    return out


# Arithmetic


def _signs(values: Array) -> Array:
    """(n, k) -> (n, k (k − 1) / 2): of columns i < j the sign of column i less column j."""
    first, second = np.triu_indices(values.shape[1], 1)
    return np.sign(values[:, first] - values[:, second])


def _taus(signs: Array) -> Array:
    """(n, n) Kendall's tau-b of rows of signs, over the pairs that both rows judge; nan where it is not defined."""
    judged, orders = (~np.isnan(signs)).astype(float), np.nan_to_num(signs)
    ordered = np.abs(orders) @ judged.T  # by the row, of what both judge
    with np.errstate(invalid="ignore"):
        return (orders @ orders.T) / np.sqrt(ordered * ordered.T)


def _coincidences(values: Array, domain: Array) -> Array:
    """(v, v) Krippendorff's coincidences of (raters, units) values, in the order of the domain (v,)."""
    counts = (values[:, :, None] == domain).sum(0).astype(float)  # (units, v)
    counts = counts[counts.sum(1) > 1]
    shares = counts / (counts.sum(1, keepdims=True) - 1)
    return counts.T @ shares - np.diag(shares.sum(0))


def _alpha(coincidences: Array, level: Level) -> Array:
    """(...) alpha of (..., v, v) coincidences; nan where nothing varies."""
    n_c = coincidences.sum(-1)
    middle = n_c.cumsum(-1) - n_c / 2  # the sum in δ, from c to k, is a difference of these
    ordinal = (middle[..., :, None] - middle[..., None, :]) ** 2
    delta = ordinal if level == "ordinal" else 1 - np.eye(n_c.shape[-1])
    observed = (coincidences * delta).sum((-2, -1))
    expected = (n_c[..., :, None] * n_c[..., None, :] * delta).sum((-2, -1))
    with np.errstate(invalid="ignore"):
        return 1 - (n_c.sum(-1) - 1) * observed / expected


def _alphas(every: Sequence[Panel], seed: int, draws: int) -> Measures:
    """Both alphas of the panels; each resample of prompts sums their coincidences, as alpha is no ratio of sums."""
    tables = [tables for p in every if (tables := [t for t in p.rank_tables() if len(t) > 1])]
    if not tables:
        return {}
    domain = np.unique(np.concatenate([t.ravel() for group in tables for t in group]))
    per_prompt = np.array([sum(_coincidences(t, domain) for t in group) for group in tables])
    n = len(per_prompt)
    picks = np.random.default_rng(seed).integers(n, size=(draws, n))
    times = np.array([np.bincount(p, minlength=n) for p in picks])  # (draws, n): how often each prompt was drawn
    resampled = np.tensordot(times, per_prompt, 1)
    units = sum(t.shape[1] for group in tables for t in group)
    out: Measures = {}
    levels: tuple[Level, ...] = ("ordinal", "nominal")
    for level in levels:
        mean = float(_alpha(per_prompt.sum(0), level))
        if not np.isnan(mean):
            low, high = between(mean, _alpha(resampled, level), n, n)
            out[f"alpha_{level}"] = {"mean": mean, "low": low, "high": high, "prompts": n, "units": units}
    return out


def _rate(counts: Sequence[Count], seed: int, draws: int, scale: tuple[float, float] = (0.0, 1.0)) -> dict[str, float]:
    kept = [(a, b) for a, b in counts if b]  # a prompt of which nothing is counted is no unit
    if not kept:
        return {}
    rate = estimate([a for a, _ in kept], [b for _, b in kept], scale=scale, draws=draws, seed=seed)
    return _interval(rate) | {"pairs": rate["n"]}


def _interval(rate: dict[str, float]) -> dict[str, float]:
    return {name: rate[name] for name in ("mean", "low", "high", "prompts")}
