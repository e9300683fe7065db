"""Direct preference optimisation: a policy's own log-ratios as the scores of a labeler's ranking."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from .masked import keep


def preference_loss(
    log_ratios: Float[Tensor, " k"],
    ranks: Int[Tensor, " k"],
    beta: float,
    loss: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean over pairs (w above l) of −(1 − ε) log σ(β h) − ε log σ(−β h), or of (h − 1/2β)², h = ρ_w − ρ_l.

    ρ is log π(y|x) − log π_ref(y|x), summed over a completion's tokens. The first is DPO (Rafailov 2023, eq. 7) and,
    with ε, cDPO (Mitchell 2023); the second IPO (Azar 2024, eq. 17). K = 2 is theirs; a ranking of K is one element, as
    in the reward model's loss, whose scores βρ stand for. An all-tied ranking gives 0 and no gradient.

    Args:
        log_ratios: (k,), ρ, one per completion, in nats.
        ranks: (k,), 1 is best, equal ranks are ties.
        beta: β, how strongly the policy is held to the reference.
        loss: which of the two.
        label_smoothing: ε, the share of labels taken to be wrong; of the first alone.
    """
    margins, above = log_ratios[:, None] - log_ratios[None, :], ranks[:, None] < ranks[None, :]
    if loss == "ipo":
        each = (margins - 1 / (2 * beta)) ** 2
    else:
        each = -(1 - label_smoothing) * logsigmoid(beta * margins) - label_smoothing * logsigmoid(-beta * margins)
    return keep(each, above).sum() / above.sum().clamp(min=1)
