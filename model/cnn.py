"""The CNN trained from scratch: residual stages of two 3x3 convolutions, 1.5 M parameters at the default widths.

Parameter paths: `stem/{conv,norm}`, `stage<i>/block<j>/{conv1,norm1,conv2,norm2,shortcut,shortcut_norm}`,
`head/dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import layers
from model.labels import CLASSES


class Stem(nn.Module):
    """3x3 convolution at stride 2, BatchNorm, ReLU: halves the side."""

    filters: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = layers.convolution(self.filters, 3, stride=2, dtype=self.dtype, name="conv")(x)
        return nn.relu(layers.batch_norm(train, self.axis_name, dtype=self.dtype, name="norm")(x))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, fig. 2): (N, H, W, C) -> (N, H, W, filters)."""

    filters: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm(name: str, **kwargs) -> Callable[[jax.Array], jax.Array]:
            return layers.batch_norm(train, self.axis_name, dtype=self.dtype, name=name, **kwargs)

        y = layers.convolution(self.filters, 3, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm("norm1")(y))
        y = layers.convolution(self.filters, 3, dtype=self.dtype, name="conv2")(y)
        # Starting each block as the identity helps from scratch: Goyal et al. 2017, section 5.1.
        y = norm("norm2", scale_init=nn.initializers.zeros)(y)
        if x.shape[-1] != self.filters:
            x = layers.convolution(self.filters, 1, dtype=self.dtype, name="shortcut")(x)
            x = norm("shortcut_norm")(x)
        return nn.relu(y + x)


class Stage(nn.Module):
    """`blocks` blocks on one resolution."""

    filters: int
    blocks: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index in range(self.blocks):
            x = Block(self.filters, self.axis_name, self.dtype, name=f"block{index + 1}")(x, train)
        return x


class Head(nn.Module):
    """Global average pooling, dropout, dense: (N, h, w, C) -> (N, 3) float32 logits."""

    dropout: float
    axis_name: str | None

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        x = layers.global_average_pool(features)  # (N, C)
        x = layers.Dropout(self.dropout, self.axis_name, name="dropout")(x, train)
        return nn.Dense(len(CLASSES), name="dense")(x)


class CNN(nn.Module):
    """The residual CNN.

    Attributes:
      widths: channels of each stage; the mean over 2 x 2 px halves the side between stages.
      blocks: blocks in each stage.
      dropout: rate before the dense layer, in [0, 1).
      axis_name: the axis of the parallel step, which dropout counts examples along; None outside it.
      sync_batch_norm: whether BatchNorm averages over `axis_name` too.
      dtype: of the activations; parameters and logits are float32.

    Raises:
      ValueError: `widths` or `blocks` are not whole numbers from 1 on, or differ in length.
    """

    widths: Sequence[int] = (16, 48, 128, 256)
    blocks: Sequence[int] = (1, 2, 2, 1)
    dropout: float = 0.2
    axis_name: str | None = None
    sync_batch_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        layers.expect_counts("widths", self.widths)
        layers.expect_stages("blocks", self.blocks, len(self.widths))
        super().__post_init__()

    def setup(self) -> None:
        norm_axis = self.axis_name if self.sync_batch_norm else None
        self.stem = Stem(self.widths[0], norm_axis, self.dtype)
        self.stages = [
            Stage(width, blocks, norm_axis, self.dtype, name=f"stage{index + 1}")
            for index, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True))
        ]
        self.head = Head(self.dropout, self.axis_name)

    def features(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(N, H, W, 1) float32 -> (N, h, w, C), the last activations with a place; 7 x 7 x 256 from 112 px."""
        x = self.stem(images.astype(self.dtype), train)
        for index, stage in enumerate(self.stages):
            if index > 0:
                # Averaging, not striding: it keeps every pixel, and XLA's CPU backend is up to 15 times slower
                # at the input gradient of a strided 3x3 convolution with few channels.
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = stage(x, train)
        return x

    def classify(self, features: jax.Array, train: bool = False) -> jax.Array:
        """(N, h, w, C) -> (N, 3) logits."""
        return self.head(features, train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.classify(self.features(images, train), train)
