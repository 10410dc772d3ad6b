"""Convolution, normalisation and dropout as the architectures share them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Container, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al. 2015, "Delving Deep into Rectifiers", eq. 10, by fan-out as in the reference ResNets.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


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


def convolution(filters: int, kernel_px: int, *, stride: int = 1, dtype: jnp.dtype, name: str) -> nn.Module:
    """A convolution without bias, padded explicitly by kernel_px // 2 as torch does ("SAME" differs)."""
    if kernel_px == 1:
        return Pointwise(filters, stride, dtype, name=name)
    return nn.Conv(
        filters,
        (kernel_px, kernel_px),
        (stride, stride),
        padding=kernel_px // 2,
        use_bias=False,
        kernel_init=he_normal,
        dtype=dtype,
        name=name,
    )


def batch_norm(train: bool, axis_name: str | None, **kwargs) -> functools.partial[jax.Array]:
    """BatchNorm over the device's share, or over the whole global batch where `axis_name` is given (SyncBN).

    Statistics and the averages over them are float32 whatever the activations are. Whether they are used or made is
    said in the call, where `norms_frozen` can have its word.
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
