"""Settings of the report."""

from __future__ import annotations

from pathlib import Path

from tutelage.settings.common import StageConfig, Whole


class ReportConfig(StageConfig):
    """Draw one self-contained page and a summary from the run folders of a recipe."""

    runs: Path
    """Folder that holds the run folders."""
    title: str = "From a base model to an aligned policy"
    """Heading of the page."""
    examples: Whole = 12
    """Prompts in the side-by-side table."""
