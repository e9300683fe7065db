"""Policy + requests -> samples. `local.LocalSampler` samples here; other engines stand behind the same protocol."""

from tutelage.sampling.completions import Answer, Writer, complete
from tutelage.sampling.engines import open_sampler
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.protocol import Sampler
from tutelage.sampling.rollout import Episodes, Rollout, episodes_of
from tutelage.sampling.seeds import request_seed

__all__ = [
    "Answer", "Episodes", "LocalSampler", "Rollout", "Sampler", "Writer", "complete", "episodes_of", "open_sampler",
    "request_seed",
]  # fmt: skip
