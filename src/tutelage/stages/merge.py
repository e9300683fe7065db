"""An adapter's folder in, a plain model's folder out.

tutelage merge --model runs/sft/model --output runs/merged
"""

from __future__ import annotations

from tutelage.models.adapters import base_of, is_adapter
from tutelage.models.loading import is_scalar_adapter, load_policy, load_scalar, save_model
from tutelage.models.tokens import load_tokenizer
from tutelage.runs import inputs_of, open_run
from tutelage.settings.merge import MergeConfig


def run(config: MergeConfig) -> None:
    """Write `model/` into the run folder.

    Raises:
        ValueError: if the folder holds no adapter, or its base is not the one that it was trained on.
    """
    tokenizer = load_tokenizer(config.model)
    if not is_adapter(config.model):
        raise ValueError(f"model: {config.model}: holds no adapter, so there is nothing to merge")
    opened = open_run("merge", config, inputs_of(config, *config.INPUTS))
    if opened is None:
        return
    opened.begin(f"{config.model} into {base_of(config.model)}")
    load = load_scalar if is_scalar_adapter(config.model) else load_policy
    save_model(load(config.model, tokenizer), tokenizer, opened.folder / "model")
    opened.finish()
