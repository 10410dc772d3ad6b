"""Input, convolution, normalisation, pooling and the head as the architectures share them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Container, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.labels import CLASSES

# A network pre-trained on photographs should see a film as a gray photograph: a standardised film z is taken for the
# image LEVEL + CONTRAST z, whose mean and deviation are those of ImageNet's gray pixels in [0, 1].
LEVEL, CONTRAST = 0.449, 0.226

# He et al. 2015, "Delving Deep into Rectifiers", eq. 14: by fan-out, as in the reference ResNets.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# One filter a channel: what flax takes for the fan-in, kernel_px^2, is the fan-out, too.
he_normal_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def expect_stages(what: str, given: Sequence[int], count: int, smallest: int = 1) -> None:
    """Raises ValueError unless `given`, the attribute called `what`, has a number for each of `count` stages."""
    if len(given) != count:
        raise ValueError(f"{what} {tuple(given)} has {len(given)} numbers; give {count}, one for each stage")
    expect_counts(what, given, smallest=smallest)


def expect_counts(what: str, given: Sequence[int], least: int = 1, smallest: int = 1) -> None:
    """Raises ValueError unless `given`, the attribute called `what`, has `least` whole numbers from `smallest` on."""
    if len(given) < least or not all(isinstance(number, int) and number >= smallest for number in given):
        at_least = ", one at least" if least else ""
        raise ValueError(f"{what} {tuple(given)} must be whole numbers from {smallest} on{at_least}")


def film_and_ones(images: jax.Array) -> jax.Array:
    """(N, H, W, 1) standardised films -> (N, H, W, 2): the film, and a plane of ones.

    Pre-trained networks pad the normalised image with zeros, so what normalising adds to the first convolution is
    smaller at the border than inside. A kernel on a padded plane of ones is exactly that; a bias would not be.
    """
    return jnp.concatenate([images, jnp.ones_like(images)], axis=-1)


class Pointwise(nn.Module):
    """A 1x1 convolution, written as a matmul: (N, H, W, C) -> (N, ceil(H/s), ceil(W/s), filters).

    XLA's CPU backend computes the weight gradient of a 1x1 convolution 5 to 8 times slower than that of the
    same matmul. The kernel keeps the convolution's shape (1, 1, C, filters), so weights load into either.
    """

    filters: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", he_normal, (1, 1, x.shape[-1], self.filters))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]


class Depthwise(nn.Module):
    """A convolution of each channel by itself: (N, H, W, C) -> (N, ceil(H/s), ceil(W/s), C), padded by kernel_px // 2.

    The sum, in float32, of kernel_px^2 weighted and shifted slices. XLA's CPU backend takes 4 to 50 times as long for
    the convolution primitive, and up to 11 times as long for its gradient. The kernel has the convolution's shape,
    (kernel_px, kernel_px, 1, C).
    """

    kernel_px: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side, half, stride = self.kernel_px, self.kernel_px // 2, self.stride
        kernel = self.param("kernel", he_normal_depthwise, (side, side, 1, x.shape[-1]))
        rows, columns = (stride * ((size - 1) // stride) + 1 for size in x.shape[1:3])
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (half, half), (half, half), (0, 0)))
        shifted = [
            padded[:, i : i + rows : stride, j : j + columns : stride].astype(jnp.float32) * kernel[i, j, 0]
            for i in range(side)
            for j in range(side)
        ]
        return functools.reduce(jnp.add, shifted).astype(self.dtype)


def convolution(
    filters: int, kernel_px: int, *, stride: int = 1, use_bias: bool = False, dtype: jnp.dtype, name: str
) -> nn.Module:
    """A convolution padded explicitly by kernel_px // 2 as torch does ("SAME" differs)."""
    if kernel_px == 1 and not use_bias:
        return Pointwise(filters, stride, dtype, name=name)
    return nn.Conv(
        filters,
        (kernel_px, kernel_px),
        (stride, stride),
        padding=kernel_px // 2,
        use_bias=use_bias,
        kernel_init=he_normal,
        dtype=dtype,
        name=name,
    )


def batch_norm(train: bool, axis_name: str | None, **kwargs) -> functools.partial[jax.Array]:
    """BatchNorm over the device's share, or over the whole global batch where `axis_name` is given (SyncBN).

    Statistics and the averages over them are float32 whatever the activations are. Whether they are used is an
    argument of the call, so that `norms_frozen` can change it.
    """
    norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, axis_name=axis_name if train else None, **kwargs)
    return functools.partial(norm, use_running_average=not train)


def norms_frozen(paths: Container[str]) -> contextlib.AbstractContextManager[None]:
    """Within it the BatchNorm layers at `paths`, such as "stem/norm", work as in inference, even in training.

    Leaving parameters as they are does not freeze BatchNorm: its averages would go on moving.
    """

    def in_inference(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and "/".join(context.module.path) in paths:
            kwargs = kwargs | {"use_running_average": True}
        return call(*args, **kwargs)

    return nn.intercept_methods(in_inference)


class Dropout(nn.Module):
    """Dropout whose mask belongs to the example, not to the device that holds it.

    Example p of the global batch draws its mask from fold_in(key, p), so 1, 4 or 8 devices drop the same units.
    The key is rng "dropout"; `axis_name` is the axis of the parallel step, None outside it.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        first = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * x.shape[0]
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(x.shape[0]))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), 0)


def global_average_pool(features: jax.Array) -> jax.Array:
    """(N, h, w, C) -> (N, C) in float32."""
    return features.astype(jnp.float32).mean(axis=(1, 2))


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2, padded by 1: (N, H, W, C) -> (N, ceil(H/2), ceil(W/2), C).

    The maximum over nine shifted slices: its gradient on XLA's CPU backend takes a third of the pooling
    primitive's, and the values are the same.
    """
    low = jnp.finfo(x.dtype).min
    rows, columns = (size + 1 for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=low)
    shifted: Sequence[jax.Array] = [
        padded[:, i : i + rows - 1 : 2, j : j + columns - 1 : 2] for i in range(3) for j in range(3)
    ]
    return functools.reduce(jnp.maximum, shifted)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """2x2 maximum at stride 2, without padding: (N, H, W, C) -> (N, floor(H/2), floor(W/2), C)."""
    rows, columns = (size - size % 2 for size in x.shape[1:3])
    return functools.reduce(jnp.maximum, [x[:, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)])


class Stem(nn.Module):
    """7x7 convolution at stride 2, BatchNorm, ReLU, 3x3 max-pool at stride 2: quarters the side."""

    filters: int
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = convolution(self.filters, 7, stride=2, dtype=self.dtype, name="conv")(x)
        x = nn.relu(batch_norm(train, self.axis_name, dtype=self.dtype, name="norm")(x))
        return max_pool_3x3(x)


def adaptive_average_pool(features: jax.Array, side: int) -> jax.Array:
    """(N, h, w, C) -> (N, side, side, C) in float32, the means over bins as torch's AdaptiveAvgPool2d cuts them.

    Bin i of n over s places goes from floor(i s / n) to ceil((i + 1) s / n); bins overlap where n does not divide s.
    """

    def means(size: int) -> np.ndarray:
        bins, places = np.arange(side)[:, None], np.arange(size)
        inside = (places >= bins * size // side) & (places < -(-(bins + 1) * size // side))
        return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)  # (side, size)

    height, width = features.shape[1:3]
    return jnp.einsum("ih,jw,nhwc->nijc", means(height), means(width), features.astype(jnp.float32))


class Head(nn.Module):
    """Dense layers of `widths`, each with ReLU, BatchNorm and dropout, then logits: (N, C) -> (N, 3) float32.

    Attributes:
      widths: of the dense layers; () is linear.
      dropout: rate after each of them, in [0, 1).
      axis_name: the axis that dropout counts examples along; None outside the parallel step.
      norm_axis: the axis that BatchNorm averages over; None for the device's share alone.
      batch_norm: whether there is BatchNorm.
    """

    widths: Sequence[int]
    dropout: float
    axis_name: str | None
    norm_axis: str | None
    batch_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for index, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"dense{index + 1}")(x))
            if self.batch_norm:
                x = batch_norm(train, self.norm_axis, name=f"norm{index + 1}")(x)
            x = Dropout(self.dropout, self.axis_name, name=f"dropout{index + 1}")(x, train)
        return nn.Dense(len(CLASSES), name="logits")(x)
