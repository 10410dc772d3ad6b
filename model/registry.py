"""Name -> architecture. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from model.cnn import CNN
from model.densenet import DenseNet
from model.efficientnet import EfficientNet
from model.resnet import ResNet
from model.resnetv2 import ResNetV2
from model.vgg import VGG

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "cnn": CNN,
    "resnet": ResNet,
    "resnetv2": ResNetV2,
    "vgg": VGG,
    "densenet": DenseNet,
    "efficientnet": EfficientNet,
}


def build(architecture: str, options: Mapping[str, Any], dtype: str = "float32", **parallel) -> nn.Module:
    """Builds the module called `architecture`.

    Args:
      architecture: a key of ARCHITECTURES.
      options: the architecture's own attributes, such as `dropout`.
      dtype: of the activations, "float32" or "bfloat16".
      **parallel: `axis_name` and `sync_batch_norm` inside the parallel step.

    Raises:
      ValueError: unknown architecture or option; the message lists the known ones.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    module = ARCHITECTURES[architecture]
    reserved = {"axis_name", "sync_batch_norm", "dtype", "parent", "name"}
    known = set(module.__dataclass_fields__) - reserved
    if unknown := set(options) - known:
        raise ValueError(
            f"unknown option {', '.join(sorted(unknown))} of {architecture}; known: {', '.join(sorted(known))}"
        )
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return module(**plain, dtype=jnp.dtype(dtype), **parallel)
