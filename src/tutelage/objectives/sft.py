"""Maximum likelihood: the loss of supervised fine-tuning, of pretraining, and of PPO-ptx's pretraining term."""

from jaxtyping import Bool, Float
from torch import Tensor

from .masked import keep


def nll_sum(logprobs: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """−Σ log π(token) over mask: a sum in nats, to be divided by the global count of tokens.

    Fine-tuning on demonstrations (Ouyang 2022, §3.5): mask is True on the completion, its end-of-text token included,
    and not on the prompt. The pretraining term γ·E[log π(x)] of PPO-ptx (Ouyang 2022, eq. 2): True on every token.

    Args:
        logprobs: (…), log π of each token, in nats.
        mask: (…), True for tokens to learn.
    """
    return -keep(logprobs, mask).sum()
