"""JSON as the standard has it: the one place that turns results into text.

Python writes NaN and Infinity, which are no JSON: jq, browsers and other languages refuse the whole file. Here they
become null, which says what they are: a number that is not known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(content: Any, **options: Any) -> str:
    """`json.dumps` with null for every float that is not finite."""
    return json.dumps(finite(content), allow_nan=False, **options)


def finite(content: Any) -> Any:
    """The content with None for every float that is not finite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return content
