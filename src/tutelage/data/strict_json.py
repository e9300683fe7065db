"""JSON as the standard has it: the one place that turns results into text, and how others' rows are read.

Python writes NaN and Infinity, which are no JSON: jq, browsers and other languages refuse the whole file. Here they
become null, which says what they are: a number that is not known. And Python takes the last of two equal names in an
object, where other languages take the first: neither is known to be meant.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tutelage.terminal import short


def loads(text: str) -> Any:
    """The value that a text is in JSON.

    Raises:
        ValueError: if it is none, is nested too deeply, or an object has a name twice.
    """
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply; flatten it") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the name {short(twice)} twice, {short(content)}; keep one")
    return content


DECODER = json.JSONDecoder(object_pairs_hook=_object)


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
