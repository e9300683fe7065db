"""Settings of merging an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tutelage.settings.common import Model, StageConfig


class MergeConfig(StageConfig):
    """Add an adapter's products to its base's weights: a plain model folder, which needs neither PEFT nor the base."""

    INPUTS: ClassVar[Mapping[str, str]] = {"model": "model"}

    model: Model
    """Folder of the adapter, of a policy or of a reward model."""
