"""DenseNet121 (Huang et al. 2017, table 1, DenseNet-BC with growth 32): 7.0 M parameters.

Each layer adds `growth` channels to all those before it. Parameter paths, and the keys of torchvision and timm:

    stem/conv/kernel (7, 7, 2, 64)                  features.conv0.weight
    stem/norm/{scale,bias}                          features.norm0.{weight,bias}
    stage<i>/layer<j>/norm{1,2}/{scale,bias}        features.denseblock<i>.denselayer<j>.norm{1,2}.{weight,bias}
    stage<i>/layer<j>/conv{1,2}/kernel              features.denseblock<i>.denselayer<j>.conv{1,2}.weight
    stage<i>/transition/norm/{scale,bias}           features.transition<i>.norm.{weight,bias}
    stage<i>/transition/conv/kernel                 features.transition<i>.conv.weight
    stage4/norm/{scale,bias}                        features.norm5.{weight,bias}
    head/logits/{kernel,bias}                       classifier.{weight,bias}
    head/{dense,norm}<k>/...

BatchNorm statistics stand under the same paths in `batch_stats`, as {mean,var}. Kernels are (H, W, in, out).
The first one acts on the film and a plane of ones (layers.film_and_ones), torchvision's on three colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import layers


class Layer(nn.Module):
    """BatchNorm, ReLU, 1x1 to 4 * growth, BatchNorm, ReLU, 3x3: (N, H, W, C) -> (N, H, W, C + growth)."""

    growth: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm(name: str) -> Callable[[jax.Array], jax.Array]:
            return layers.batch_norm(train, self.axis_name, dtype=self.dtype, name=name)

        y = layers.convolution(4 * self.growth, 1, dtype=self.dtype, name="conv1")(nn.relu(norm("norm1")(x)))
        y = layers.convolution(self.growth, 3, dtype=self.dtype, name="conv2")(nn.relu(norm("norm2")(y)))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 to half the channels, mean over 2 x 2 px: (N, H, W, C) -> (N, H/2, W/2, C/2)."""

    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(layers.batch_norm(train, self.axis_name, dtype=self.dtype, name="norm")(x))
        y = layers.convolution(x.shape[-1] // 2, 1, dtype=self.dtype, name="conv")(y)
        return nn.avg_pool(y, (2, 2), (2, 2))


class Stage(nn.Module):
    """`depth` dense layers, then the transition to the next stage, or BatchNorm and ReLU where this is the last."""

    depth: int
    growth: int
    last: bool
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index in range(self.depth):
            x = Layer(self.growth, self.axis_name, self.dtype, name=f"layer{index + 1}")(x, train)
        if self.last:
            return nn.relu(layers.batch_norm(train, self.axis_name, dtype=self.dtype, name="norm")(x))
        return Transition(self.axis_name, self.dtype, name="transition")(x, train)


class DenseNet(nn.Module):
    """DenseNet-BC; the default depth is DenseNet121.

    Attributes:
      depths: dense layers in each of the four stages.
      growth: channels that each adds; the stem has twice as many.
      head: widths of the dense layers before the logits; () is linear.
      dropout: rate after each of them, in [0, 1).
      axis_name: the axis of the parallel step, which dropout counts examples along; None outside it.
      sync_batch_norm: whether BatchNorm averages over `axis_name` too.
      dtype: of the activations; parameters and logits are float32.

    Raises:
      ValueError: `depths` has not a number from 1 on for each stage, or `growth` or one of `head` is below 1.
    """

    depths: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32
    head: Sequence[int] = ()
    dropout: float = 0.5
    axis_name: str | None = None
    sync_batch_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        layers.expect_stages("depths", self.depths, 4)
        layers.expect_counts("growth", (self.growth,))
        layers.expect_counts("head", self.head, least=0)
        super().__post_init__()

    def setup(self) -> None:
        norm_axis = self.axis_name if self.sync_batch_norm else None
        self.stem = layers.Stem(2 * self.growth, norm_axis, self.dtype)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            Stage(depth, self.growth, index == 3, norm_axis, self.dtype) for index, depth in enumerate(self.depths)
        )
        self.classifier = layers.Head(self.head, self.dropout, self.axis_name, norm_axis, name="head")

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, 1) float32 -> (N, H/32, W/32, 1024), the last activations with a place."""
        x = self.stem(layers.film_and_ones(images).astype(self.dtype), train)  # (N, H/4, W/4, 64)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x, train)
        return x

    def classify(self, features: jax.Array, train: bool = False) -> jax.Array:
        """(N, h, w, 1024) -> (N, 3) logits."""
        return self.classifier(layers.global_average_pool(features), train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.classify(self.features(images, train), train)
