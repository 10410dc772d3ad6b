"""VGG16 (Simonyan & Zisserman 2015, table 1, column D), with or without BatchNorm: 134.3 M parameters.

119.6 M of them stand in the two dense layers after the 7 x 7 grid; pooling by average leaves 14.7 M and the head's.
There is no stem. Parameter paths, torchvision's keys and timm's; <n> counts convolutions, norms, ReLUs and max-pools:

    stage<i>/conv<j>/{kernel,bias}      features.<n>.{weight,bias}
    stage<i>/norm<j>/{scale,bias}       features.<n+1>.{weight,bias}
    head/dense1/{kernel,bias}           classifier.0.{weight,bias}      pre_logits.fc1.{weight,bias}
    head/dense2/{kernel,bias}           classifier.3.{weight,bias}      pre_logits.fc2.{weight,bias}
    head/logits/{kernel,bias}           classifier.6.{weight,bias}      head.fc.{weight,bias}

BatchNorm statistics stand under the same paths in `batch_stats`, as {mean,var}. Kernels are (H, W, in, out); the rows
of dense1 are the grid in the order row, column, channel. The first kernel, (3, 3, 2, 64), acts on the film and a plane
of ones (layers.film_and_ones), torchvision's on three colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import layers

GRID = 7  # the side that the dense layers of the paper see, at any image size


class Stage(nn.Module):
    """`convolutions` 3x3 convolutions, each with ReLU: (N, H, W, C) -> (N, H/s, W/s, filters)."""

    filters: int
    convolutions: int
    stride: int  # of the first
    batch_norm: bool
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index in range(1, self.convolutions + 1):
            stride = self.stride if index == 1 else 1
            x = layers.convolution(
                self.filters, 3, stride=stride, use_bias=True, dtype=self.dtype, name=f"conv{index}"
            )(x)
            if self.batch_norm:
                x = layers.batch_norm(train, self.axis_name, dtype=self.dtype, name=f"norm{index}")(x)
            x = nn.relu(x)
        return x


class VGG(nn.Module):
    """VGG; the default depth is VGG16.

    Attributes:
      convolutions: in each stage; between stages the maximum over 2 x 2 px halves the side.
      filters: channels of each stage.
      strided: whether the first convolution of every stage halves the side, in place of the maximum.
      batch_norm: whether BatchNorm follows each convolution.
      head: widths of the dense layers before the logits, each with ReLU and dropout.
      dropout: rate after each of them, in [0, 1).
      global_pool: whether the dense layers see the average over all places, not the flattened 7 x 7 grid.
      axis_name: the axis of the parallel step, which dropout counts examples along; None outside it.
      sync_batch_norm: whether BatchNorm averages over `axis_name` too.
      dtype: of the activations; parameters and logits are float32.

    Raises:
      ValueError: `convolutions` and `filters` differ in length, or they or `head` are not whole numbers from 1 on.
    """

    convolutions: Sequence[int] = (2, 2, 3, 3, 3)
    filters: Sequence[int] = (64, 128, 256, 512, 512)
    strided: bool = False
    batch_norm: bool = False
    head: Sequence[int] = (4096, 4096)
    dropout: float = 0.5
    global_pool: bool = False
    axis_name: str | None = None
    sync_batch_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        layers.expect_counts("filters", self.filters)
        layers.expect_stages("convolutions", self.convolutions, len(self.filters))
        layers.expect_counts("head", self.head, least=0)
        super().__post_init__()

    def setup(self) -> None:
        norm_axis = self.axis_name if self.sync_batch_norm else None
        self.stages = [
            Stage(
                filters,
                convolutions,
                2 if self.strided else 1,
                self.batch_norm,
                norm_axis,
                self.dtype,
                name=f"stage{index + 1}",
            )
            for index, (filters, convolutions) in enumerate(zip(self.filters, self.convolutions, strict=True))
        ]
        self.classifier = layers.Head(self.head, self.dropout, self.axis_name, norm_axis, batch_norm=False, name="head")

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, 1) float32 -> (N, H/16, W/16, 512), the last activations before the last max-pool."""
        x = layers.film_and_ones(images).astype(self.dtype)
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 or self.strided else layers.max_pool_2x2(x), train)
        return x

    def classify(self, features: jax.Array, train: bool = False) -> jax.Array:
        """(N, h, w, 512) -> (N, 3) logits."""
        x = features if self.strided else layers.max_pool_2x2(features)
        if self.global_pool:
            x = layers.global_average_pool(x)  # (N, 512)
        else:
            x = layers.adaptive_average_pool(x, GRID).reshape(x.shape[0], -1)  # (N, 25088)
        return self.classifier(x, train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.classify(self.features(images, train), train)
