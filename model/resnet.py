"""ResNet50 v1.5 (He et al. 2016, table 1; the stride sits in the 3x3 convolution): 23.5 M parameters.

Parameter paths are a public interface; weights from elsewhere are loaded into them. Beside each, the key of torchvision
and of timm:

    stem/conv/kernel (7, 7, 2, 64)                  conv1.weight
    stem/norm/{scale,bias}                          bn1.{weight,bias}
    stage<i>/block<j>/conv{1,2,3}/kernel            layer<i>.<j-1>.conv{1,2,3}.weight
    stage<i>/block<j>/norm{1,2,3}/{scale,bias}      layer<i>.<j-1>.bn{1,2,3}.{weight,bias}
    stage<i>/block1/shortcut/kernel                 layer<i>.0.downsample.0.weight
    stage<i>/block1/shortcut_norm/{scale,bias}      layer<i>.0.downsample.1.{weight,bias}
    head/logits/{kernel,bias}                       fc.{weight,bias}
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


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut: (N, H, W, C) -> (N, H/s, W/s, 4 * filters)."""

    filters: int
    stride: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(filters: int, kernel_px: int, name: str, stride: int = 1) -> nn.Module:
            return layers.convolution(filters, kernel_px, stride=stride, dtype=self.dtype, name=name)

        def norm(name: str, **kwargs) -> Callable[[jax.Array], jax.Array]:
            return layers.batch_norm(train, self.axis_name, dtype=self.dtype, name=name, **kwargs)

        y = nn.relu(norm("norm1")(conv(self.filters, 1, "conv1")(x)))
        y = nn.relu(norm("norm2")(conv(self.filters, 3, "conv2", self.stride)(y)))
        # Starting each block as the identity helps from scratch: Goyal et al. 2017, section 5.1.
        y = norm("norm3", scale_init=nn.initializers.zeros)(conv(4 * self.filters, 1, "conv3")(y))
        if x.shape != y.shape:
            x = norm("shortcut_norm")(conv(4 * self.filters, 1, "shortcut", self.stride)(x))
        return nn.relu(x + y)


class Stage(nn.Module):
    """`blocks` bottlenecks, the first at `stride`."""

    filters: int
    blocks: int
    stride: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index in range(self.blocks):
            block = Bottleneck(
                self.filters,
                self.stride if index == 0 else 1,
                self.axis_name,
                self.dtype,
                name=f"block{index + 1}",
            )
            x = block(x, train)
        return x


class ResNet(nn.Module):
    """ResNet with bottleneck blocks; the default depth is ResNet50.

    Attributes:
      blocks: bottlenecks in each of the four stages; (3, 4, 6, 3) is ResNet50.
      head: widths of the dense layers before the logits: () is linear, (512, 128) the seeds' head.
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
        self.stem = layers.Stem(64, norm_axis, self.dtype)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            Stage(64 * 2**index, blocks, 1 if index == 0 else 2, norm_axis, self.dtype)
            for index, blocks in enumerate(self.blocks)
        )
        self.classifier = layers.Head(self.head, self.dropout, self.axis_name, norm_axis, name="head")

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, 1) float32 -> (N, H/32, W/32, 2048), the last activations with a place."""
        x = self.stem(layers.film_and_ones(images).astype(self.dtype), train)  # (N, H/4, W/4, 64)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x, train)
        return x

    def classify(self, features: jax.Array, train: bool = False) -> jax.Array:
        """(N, h, w, 2048) -> (N, 3) logits."""
        return self.classifier(layers.global_average_pool(features), train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.classify(self.features(images, train), train)
