"""Settings of the report."""

from __future__ import annotations

from typing import ClassVar

from tutelage.settings.common import Sources, StageConfig, Whole


class ReportConfig(StageConfig):
    """Draw one self-contained page and a summary from run folders alone. `tutelage report RUN` writes them into
    RUN/report."""

    POSITIONAL: ClassVar[str] = "runs"

    runs: Sources
    """Run folders, or folders that hold some, as a recipe's output does."""
    title: str = "From a base model to an aligned policy"
    """Heading of the page."""
    examples: Whole = 12
    """Prompts in the side-by-side table."""
