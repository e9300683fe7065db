"""Policy + requests -> samples. `local.LocalSampler` samples here; other engines stand behind the same protocol."""

from tutelage.sampling.completions import Writer, complete, scored_ids
from tutelage.sampling.local import LocalSampler
from tutelage.sampling.protocol import Sampler
from tutelage.sampling.seeds import request_seed

__all__ = ["LocalSampler", "Sampler", "Writer", "complete", "request_seed", "scored_ids"]
