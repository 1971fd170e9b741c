"""LoRA adapters: added to a backbone, switched off to get its base back, merged for deployment.

A directory of weights may hold an adapter alone; transformers then loads the base that its
`adapter_config.json` names, and the adapter on top.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import _get_submodules

from mgsd_core.config import LoraConfig
from mgsd_core.model import Backbone

_CONFIG = "adapter_config.json"


class AdapterError(ValueError):
    """An adapter that does not fit what is asked of it; the message says why."""


def add_adapter(backbone: Backbone, config: LoraConfig, seed: int) -> None:
    """Put an untrained adapter on every linear layer but the head; only it is trained from now on.

    Args:
        backbone: changed in place; says the same as before until the adapter is trained.
        config: rank above 0.
        seed: of the adapter's random half.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone.model.add_adapter(
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules="all-linear",
            )
        )
    train_adapter(backbone)


def train_adapter(backbone: Backbone) -> None:
    """Let the adapter's parameters, in float32, and no others be trained."""
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_adapter(backbone: Backbone) -> bool:
    """Return whether the backbone has an adapter."""
    return any(isinstance(module, BaseTunerLayer) for module in backbone.model.modules())


@contextmanager
def adapter_off(backbone: Backbone) -> Iterator[None]:
    """Let the backbone be its base meanwhile: the same weights, without the adapter."""
    layers = [m for m in backbone.model.modules() if isinstance(m, BaseTunerLayer)]
    trained = {p: p.requires_grad for layer in layers for p in layer.parameters()}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, wanted in trained.items():  # peft sets it by its own rules
            parameter.requires_grad_(wanted)


def merge_adapter(backbone: Backbone) -> None:
    """Add the adapter to the weights and remove it; does nothing where there is none."""
    if not has_adapter(backbone):
        return
    for name, module in list(backbone.model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, attribute = _get_submodules(backbone.model, name)
            module.merge(safe_merge=True)
            setattr(parent, attribute, module.get_base_layer())
    backbone.model._hf_peft_config_loaded = False
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(True)


def base_of(path: Path | str) -> Path | str | None:
    """Return the base that the adapter in a directory of weights stands on; None without adapter.

    A text is a name on a hub.

    Raises:
        AdapterError: the adapter's configuration is damaged.
    """
    file = Path(path) / _CONFIG
    if isinstance(path, str) or not file.is_file():
        return None
    try:
        base = json.loads(file.read_text())["base_model_name_or_path"]
        place = Path(base)
    except (ValueError, KeyError, TypeError):
        raise AdapterError(f"{file} is damaged: it names no base") from None
    return place if place.is_absolute() or place.is_dir() else str(base)
