"""The reward model's loss and accuracy on one labeler's ranking of K completions to one prompt; and several rewards as
one."""

from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from .masked import keep


def _pairs(scores: Tensor, ranks: Tensor) -> tuple[Float[Tensor, "k k"], Bool[Tensor, "k k"]]:
    """margins[w, l] = r_w − r_l, and where w was ranked strictly above l (rank 1 is best)."""
    return scores[:, None] - scores[None, :], ranks[:, None] < ranks[None, :]


def ranking_loss(scores: Float[Tensor, " k"], ranks: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """−mean over pairs (w above l) of log σ(r_w − r_l), in nats; ln 2 at equal scores. Ouyang 2022, eq. 1.

    The paper divides by C(K, 2) and drops ties without saying what then divides: here it is the number of pairs that
    are not tied, so every ranking weighs the same. K = 2 is Bradley–Terry. An all-tied ranking gives 0 and no gradient.

    Args:
        scores: (k,), the reward model's r(x, y), one per completion; only differences matter.
        ranks: (k,), 1 is best, equal ranks are ties.
    """
    margins, above = _pairs(scores, ranks)
    return -keep(logsigmoid(margins), above).sum() / above.sum().clamp(min=1)


def ranking_accuracy(
    scores: Float[Tensor, " k"], ranks: Int[Tensor, " k"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """(correct, total) over the pairs that are not tied: sums to be added up, then divided.

    A pair is correct when r_w > r_l; equal scores count half, as a coin would. Arguments as in `ranking_loss`.
    """
    margins, above = _pairs(scores.detach(), ranks)
    correct = (margins.sign() + 1) / 2
    return keep(correct, above).sum(), above.sum()


def combined_scores(
    scores: Float[Tensor, "m n"],
    counts: Bool[Tensor, "m n"],
    rule: Literal["sum", "minimum", "mean_less_std"],
    pessimism: float = 1.0,
) -> Float[Tensor, " n"]:
    """Σ_j r_j; or min_j r_j; or mean_j r_j − λ std_j r_j, std with n − 1 (Coste 2024 subtracts a variance): over the
    rewards that count, 0 where none does. One reward alone has std 0.

    Args:
        scores: (m, n), r, by m rewards of n completions, each times its weight.
        counts: (m, n), True where a reward says something of a completion.
        rule: which of the three.
        pessimism: λ.
    """
    number = counts.sum(0)
    if rule == "minimum":
        return keep(scores.masked_fill(~counts, float("inf")).amin(0), number > 0)
    total = keep(scores, counts).sum(0)
    if rule == "sum":
        return total
    mean = total / number.clamp(min=1)
    squares = keep((scores - mean) ** 2, counts).sum(0)
    return mean - pessimism * (squares / (number - 1).clamp(min=1)).sqrt()
