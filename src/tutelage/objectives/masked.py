"""Sums, means and whitening over the tokens that count.

Values outside a mask are replaced, never multiplied by zero: 0 · inf is nan, in the value and again in the gradient.
"""

from jaxtyping import Bool, Float
from torch import Tensor


def keep(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x where mask is True, 0 elsewhere; so is its gradient. Apply before anything nonlinear."""
    return x.masked_fill(~mask, 0.0)


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Σ mask·x / Σ mask, a scalar; nan for an empty mask, as the mean of nothing is."""
    return keep(x, mask).sum() / mask.sum()


def masked_var(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The population variance (divided by N, not N − 1) of x over mask, a scalar."""
    return masked_mean((keep(x, mask) - masked_mean(x, mask)) ** 2, mask)


def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], shift_mean: bool = True
) -> Float[Tensor, "*shape"]:
    """(x − mean) / sqrt(var + 1e-8) over mask, 0 outside; shift_mean=False adds the mean back.

    Ziegler 2019 whitens advantages with the mean shifted to 0, and rewards with the mean kept. The InstructGPT paper
    states neither.

    Args:
        x: (…), in any unit.
        mask: (…), True where x counts.
        shift_mean: whether the result has mean 0 or x's own mean.
    """
    x = keep(x, mask)
    mean, var = masked_mean(x, mask), masked_var(x, mask)
    whitened = (x - mean) * (var + 1e-8).rsqrt()
    if not shift_mean:
        whitened = whitened + mean
    return keep(whitened, mask)
