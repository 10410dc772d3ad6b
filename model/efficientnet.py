"""EfficientNet-B0 (Tan & Le 2019, table 1): 4.0 M parameters.

Blocks are those of MobileNetV2 (Sandler et al. 2018, fig. 3) with squeeze-excitation (Hu et al. 2018). As in timm's
efficientnet_b0, padding is symmetric and BatchNorm has epsilon 1e-5; there is no drop-path. Parameter paths, and
timm's keys. In stage 1, which does not expand, timm calls `project` conv_pw, its norm bn2, and the norm before it bn1:

    stem/conv/kernel (3, 3, 2, 32)                      conv_stem.weight
    stem/norm/{scale,bias}                              bn1.{weight,bias}
    stage<i>/block<j>/expand/kernel                     blocks.<i-1>.<j-1>.conv_pw.weight
    stage<i>/block<j>/expand_norm/{scale,bias}          blocks.<i-1>.<j-1>.bn1.{weight,bias}
    stage<i>/block<j>/depthwise/kernel                  blocks.<i-1>.<j-1>.conv_dw.weight
    stage<i>/block<j>/depthwise_norm/{scale,bias}       blocks.<i-1>.<j-1>.bn2.{weight,bias}
    stage<i>/block<j>/squeeze/{reduce,expand}/{kernel,bias}    blocks.<i-1>.<j-1>.se.conv_{reduce,expand}.{weight,bias}
    stage<i>/block<j>/project/kernel                    blocks.<i-1>.<j-1>.conv_pwl.weight
    stage<i>/block<j>/project_norm/{scale,bias}         blocks.<i-1>.<j-1>.bn3.{weight,bias}
    stage8/conv/kernel                                  conv_head.weight
    stage8/norm/{scale,bias}                            bn2.{weight,bias}
    head/logits/{kernel,bias}                           classifier.{weight,bias}
    head/{dense,norm}<k>/...

BatchNorm statistics stand under the same paths in `batch_stats`, as {mean,var}. Kernels are (H, W, in, out), those of
the depthwise convolutions (H, W, 1, channels), those of the squeeze (in, out). The first one acts on the film and a
plane of ones (layers.film_and_ones), timm's on three colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import layers

# Of each stage of blocks, from the first: expansion, kernel in px, stride, filters (Tan & Le 2019, table 1).
STAGES = ((1, 3, 1, 16), (6, 3, 2, 24), (6, 5, 2, 40), (6, 3, 2, 80), (6, 5, 1, 112), (6, 5, 2, 192), (6, 3, 1, 320))


class Convolution(nn.Module):
    """Convolution, BatchNorm, SiLU: the stem, and the last stage."""

    filters: int
    kernel_px: int
    stride: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = layers.convolution(self.filters, self.kernel_px, stride=self.stride, dtype=self.dtype, name="conv")(x)
        return nn.silu(layers.batch_norm(train, self.axis_name, dtype=self.dtype, name="norm")(x))


class Squeeze(nn.Module):
    """Channels weighted by what their means over all places say: (N, H, W, C) -> the same."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        means = layers.global_average_pool(x)  # (N, C) float32
        weights = nn.sigmoid(nn.Dense(x.shape[-1], name="expand")(nn.silu(nn.Dense(self.width, name="reduce")(means))))
        return x * weights[:, None, None].astype(x.dtype)


class Block(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-excitation, 1x1 projection: (N, H, W, C) -> (N, H/s, W/s, filters).

    Where the shape stays, the input is added.
    """

    expansion: int
    kernel_px: int
    stride: int
    filters: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm(name: str) -> Callable[[jax.Array], jax.Array]:
            return layers.batch_norm(train, self.axis_name, dtype=self.dtype, name=name)

        y, channels = x, x.shape[-1]
        if self.expansion > 1:
            y = layers.convolution(self.expansion * channels, 1, dtype=self.dtype, name="expand")(y)
            y = nn.silu(norm("expand_norm")(y))
        y = layers.Depthwise(self.kernel_px, self.stride, self.dtype, name="depthwise")(y)
        y = nn.silu(norm("depthwise_norm")(y))
        y = Squeeze(channels // 4, name="squeeze")(y)
        y = norm("project_norm")(layers.convolution(self.filters, 1, dtype=self.dtype, name="project")(y))
        return x + y if self.stride == 1 and channels == self.filters else y


class Stage(nn.Module):
    """`blocks` blocks, the first at `stride`."""

    blocks: int
    expansion: int
    kernel_px: int
    stride: int
    filters: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index in range(self.blocks):
            block = Block(
                self.expansion,
                self.kernel_px,
                self.stride if index == 0 else 1,
                self.filters,
                self.axis_name,
                self.dtype,
                name=f"block{index + 1}",
            )
            x = block(x, train)
        return x


class EfficientNet(nn.Module):
    """EfficientNet; the default depth is that of B0.

    Attributes:
      blocks: in each of the seven stages that have blocks; 0 leaves a stage out.
      head: widths of the dense layers before the logits; () is linear.
      dropout: rate after each of them, in [0, 1).
      axis_name: the axis of the parallel step, which dropout counts examples along; None outside it.
      sync_batch_norm: whether BatchNorm averages over `axis_name` too.
      dtype: of the activations; parameters and logits are float32.

    Raises:
      ValueError: `blocks` has not a number from 0 on for each stage, or one of `head` is below 1.
    """

    blocks: Sequence[int] = (1, 2, 2, 3, 3, 4, 1)
    head: Sequence[int] = ()
    dropout: float = 0.5
    axis_name: str | None = None
    sync_batch_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        layers.expect_stages("blocks", self.blocks, len(STAGES), smallest=0)
        layers.expect_counts("head", self.head, least=0)
        super().__post_init__()

    def setup(self) -> None:
        norm_axis = self.axis_name if self.sync_batch_norm else None
        self.stem = Convolution(32, 3, 2, norm_axis, self.dtype)
        self.stages = [
            Stage(blocks, *shape, norm_axis, self.dtype, name=f"stage{index + 1}")
            for index, (blocks, shape) in enumerate(zip(self.blocks, STAGES, strict=True))
        ]
        self.stage8 = Convolution(1280, 1, 1, norm_axis, self.dtype)
        self.classifier = layers.Head(self.head, self.dropout, self.axis_name, norm_axis, name="head")

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, 1) float32 -> (N, H/32, W/32, 1280), the last activations with a place."""
        x = self.stem(layers.film_and_ones(images).astype(self.dtype), train)  # (N, H/2, W/2, 32)
        for stage in self.stages:
            x = stage(x, train)
        return self.stage8(x, train)

    def classify(self, features: jax.Array, train: bool = False) -> jax.Array:
        """(N, h, w, 1280) -> (N, 3) logits."""
        return self.classifier(layers.global_average_pool(features), train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.classify(self.features(images, train), train)
