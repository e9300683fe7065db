"""What is asked of an engine that samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tutelage.data.records import Request, Sample


class Sampler(Protocol):
    """Anything that answers requests."""

    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """One sample per request, in the order of the requests; each depends on its own request only."""
        ...
