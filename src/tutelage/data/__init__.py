"""Files and rows to records: any accepted layout, read whole or refused by name."""

from tutelage.data.candidates import read_candidates, write_candidates
from tutelage.data.datasets import (
    Loaded,
    read_demonstrations,
    read_prompts,
    read_rankings,
    read_texts,
    write_jsonl,
)
from tutelage.data.records import (
    Comparison,
    Completion,
    Demonstration,
    Labeler,
    Message,
    Prompt,
    Ranking,
    Rating,
    Request,
    Sample,
)
from tutelage.data.sources import DataError

__all__ = [
    "Comparison", "Completion", "DataError", "Demonstration", "Labeler", "Loaded", "Message", "Prompt", "Ranking",
    "Rating", "Request", "Sample", "read_candidates", "read_demonstrations", "read_prompts",
    "read_rankings", "read_texts", "write_candidates", "write_jsonl",
]  # fmt: skip
