"""ResNet50V2 (He et al. 2016, "Identity Mappings in Deep Residual Networks", fig. 4e): 23.5 M parameters.

BatchNorm and ReLU come before each convolution, and nothing comes after the addition. The stride sits in the 3x3
convolution, as in timm's resnetv2_50. Parameter paths, and timm's keys:

    stem/conv/kernel (7, 7, 2, 64)                  stem.conv.weight
    stage<i>/block<j>/norm{1,2,3}/{scale,bias}      stages.<i-1>.blocks.<j-1>.norm{1,2,3}.{weight,bias}
    stage<i>/block<j>/conv{1,2,3}/kernel            stages.<i-1>.blocks.<j-1>.conv{1,2,3}.weight
    stage<i>/block1/shortcut/kernel                 stages.<i-1>.blocks.0.downsample.conv.weight
    stage4/norm/{scale,bias}                        norm.{weight,bias}
    head/logits/{kernel,bias}                       head.fc.{weight,bias}
    head/{dense,norm}<k>/...

BatchNorm statistics stand under the same paths in `batch_stats`, as {mean,var}. Kernels are (H, W, in, out).
The first one acts on the film and a plane of ones (layers.film_and_ones), timm's on three colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import layers


class Stem(nn.Module):
    """7x7 convolution at stride 2, 3x3 max-pool at stride 2: quarters the side. The first block normalises."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.convolution(64, 7, stride=2, dtype=self.dtype, name="conv")(x)
        return layers.max_pool_3x3(x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 on the normalised input, added to the raw one: (N, H, W, C) -> (N, H/s, W/s, 4 * filters)."""

    filters: int
    stride: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(filters: int, kernel_px: int, name: str, stride: int = 1) -> nn.Module:
            return layers.convolution(filters, kernel_px, stride=stride, dtype=self.dtype, name=name)

        def norm(name: str) -> Callable[[jax.Array], jax.Array]:
            return layers.batch_norm(train, self.axis_name, dtype=self.dtype, name=name)

        active = nn.relu(norm("norm1")(x))
        if self.stride > 1 or x.shape[-1] != 4 * self.filters:
            x = conv(4 * self.filters, 1, "shortcut", self.stride)(active)
        y = nn.relu(norm("norm2")(conv(self.filters, 1, "conv1")(active)))
        y = nn.relu(norm("norm3")(conv(self.filters, 3, "conv2", self.stride)(y)))
        return x + conv(4 * self.filters, 1, "conv3")(y)


class Stage(nn.Module):
    """`blocks` bottlenecks, the first at `stride`; the last stage ends with BatchNorm and ReLU."""

    filters: int
    blocks: int
    stride: int
    last: bool
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index in range(self.blocks):
            stride = self.stride if index == 0 else 1
            x = Bottleneck(self.filters, stride, self.axis_name, self.dtype, name=f"block{index + 1}")(x, train)
        if self.last:
            x = nn.relu(layers.batch_norm(train, self.axis_name, dtype=self.dtype, name="norm")(x))
        return x


class ResNetV2(nn.Module):
    """ResNet with pre-activated bottleneck blocks; the default depth is ResNet50V2.

    Attributes:
      blocks: bottlenecks in each of the four stages.
      head: widths of the dense layers before the logits; () is linear.
      dropout: rate after each of them, in [0, 1).
      axis_name: the axis of the parallel step, which dropout counts examples along; None outside it.
      sync_batch_norm: whether BatchNorm averages over `axis_name` too.
      dtype: of the activations; parameters and logits are float32.

    Raises:
      ValueError: `blocks` has not a number from 1 on for each stage, or one of `head` is below 1.
    """

    blocks: Sequence[int] = (3, 4, 6, 3)
    head: Sequence[int] = ()
    dropout: float = 0.5
    axis_name: str | None = None
    sync_batch_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        layers.expect_stages("blocks", self.blocks, 4)
        layers.expect_counts("head", self.head, least=0)
        super().__post_init__()

    def setup(self) -> None:
        norm_axis = self.axis_name if self.sync_batch_norm else None
        self.stem = Stem(self.dtype)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            Stage(64 * 2**index, blocks, 1 if index == 0 else 2, index == 3, norm_axis, self.dtype)
            for index, blocks in enumerate(self.blocks)
        )
        self.classifier = layers.Head(self.head, self.dropout, self.axis_name, norm_axis, name="head")

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, 1) float32 -> (N, H/32, W/32, 2048), the last activations with a place."""
        x = self.stem(layers.film_and_ones(images).astype(self.dtype))  # (N, H/4, W/4, 64)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x, train)
        return x

    def classify(self, features: jax.Array, train: bool = False) -> jax.Array:
        """(N, h, w, 2048) -> (N, 3) logits."""
        return self.classifier(layers.global_average_pool(features), train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.classify(self.features(images, train), train)
