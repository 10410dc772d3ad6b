"""Augmentation inside the compiled step: one composed affine, one bilinear gather, then intensity.

Every function takes one example and is vmapped; an example's key decides everything about it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from model.preprocess import sample, smoothed

BATCH_SIZE = 32  # of `views`
DETAIL = (0.01, 0.15)  # of the view's side: standard deviations of the blur that details are finer than


def _affine(key: jax.Array, strength: Mapping[str, float]) -> jax.Array:
    """Random output -> source map, (2, 3), in coordinates where the image spans [-1, 1] x [-1, 1], (y, x)."""
    k = jax.random.split(key, 7)

    def uniform(index: int, bound: float) -> jax.Array:
        return jax.random.uniform(k[index], (), minval=-bound, maxval=bound)

    # Random resized crop (Szegedy et al. 2015, section 6): an area, an aspect, a place inside the image.
    area = jax.random.uniform(k[0], (), minval=strength["crop_area_min"], maxval=1.0)
    aspect = jnp.exp(uniform(1, strength["crop_log_aspect"]))
    height = jnp.minimum(jnp.sqrt(area / aspect), 1.0)
    width = jnp.minimum(jnp.sqrt(area * aspect), 1.0)
    place = jax.random.uniform(k[2], (2,), minval=-1.0, maxval=1.0)
    centre = place * (1 - jnp.stack([height, width])) + jax.random.uniform(
        k[3], (2,), minval=-strength["shift"], maxval=strength["shift"]
    )
    zoom = jnp.exp(uniform(4, strength["log_zoom"]))
    angle = uniform(5, math.radians(strength["rotation_degrees"]))
    flip = jnp.where(jax.random.bernoulli(k[6], strength["flip_probability"]), -1.0, 1.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    scale = jnp.stack([height * zoom, width * zoom * flip])
    return jnp.concatenate([rotation * scale[None, :], centre[:, None]], axis=1)


def _intensity(key: jax.Array, image: jax.Array, strength: Mapping[str, float]) -> jax.Array:
    """From gamma to noise, on (S, S) in [0, 1]; the result is clipped to [0, 1]."""
    k = jax.random.split(key, 10)

    def uniform(index: int, bound: float) -> jax.Array:
        return jax.random.uniform(k[index], (), minval=-bound, maxval=bound)

    if strength["log_gamma"]:
        image = jnp.maximum(image, 1e-4) ** jnp.exp(uniform(0, strength["log_gamma"]))
    if strength["s_curve"]:  # the slope is 1 - s at black and white, 1 + s halfway
        image = image - uniform(7, strength["s_curve"]) * jnp.sin(2 * jnp.pi * image) / (2 * jnp.pi)
    mean = image.mean()
    image = (image - mean) * jnp.exp(uniform(1, strength["log_contrast"])) + mean
    image = image + uniform(2, strength["brightness"])
    if strength["shading"]:  # an uneven exposure adds to a film: from edge to edge both ways, and outwards
        place = jnp.linspace(-1, 1, image.shape[0])
        bound = strength["shading"]
        down, across, outwards = jax.random.uniform(k[6], (3,), minval=-bound, maxval=bound)
        image = image + down * place[:, None] + across * place + outwards * (place[:, None] ** 2 + place**2 - 2 / 3)
    if strength["log_detail"]:  # what viewers' processing does: details finer than a random scale stand out, or less
        finest, coarsest = (math.log(part * image.shape[0]) for part in DETAIL)
        even = smoothed(image, jnp.exp(jax.random.uniform(k[8], (), minval=finest, maxval=coarsest)))
        gain = jax.random.uniform(k[9], (), minval=-0.5, maxval=1.0) * strength["log_detail"]
        image = even + (image - even) * jnp.exp(gain)
    if strength["blur_px"]:
        image = smoothed(image, jax.random.uniform(k[3], ()) ** 2 * strength["blur_px"])
    if strength["noise"]:
        deviation = jax.random.uniform(k[4], ()) * strength["noise"]
        image = image + deviation * jax.random.normal(k[5], image.shape)
    return jnp.clip(image, 0, 1)


def _erase_corners(key: jax.Array, image: jax.Array, strength: Mapping[str, float]) -> jax.Array:
    """Each corner, by chance, is painted over with the film's mean: markers and collimation live there."""
    size = image.shape[0]
    k = jax.random.split(key, 2)
    chosen = jax.random.bernoulli(k[0], strength["erase_probability"], (4,))
    sides = jax.random.uniform(k[1], (4, 2), maxval=strength["erase_side"]) * size
    y, x = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    distances = ((y, x), (y, size - 1 - x), (size - 1 - y, x), (size - 1 - y, size - 1 - x))
    erased = jnp.zeros(image.shape, bool)
    for chance, (height, width), (down, across) in zip(chosen, sides, distances, strict=True):
        erased |= chance & (down < height) & (across < width)
    return jnp.where(erased, image.mean(), image)


def _collimate(key: jax.Array, image: jax.Array, strength: Mapping[str, float]) -> jax.Array:
    """Black strips, what a collimator shades or a viewer adds: along all four sides by chance, else each by its own."""
    size, bound = image.shape[0], strength["collimation"]
    which, width = jax.random.split(key)
    narrowest = jnp.where(jax.random.bernoulli(which, strength["framed"]), 0.0, -3 * bound)  # below 0: none
    top, bottom, left, right = jnp.ceil(jax.random.uniform(width, (4,), minval=narrowest, maxval=bound) * size)
    place = jnp.arange(size)
    rows = (place >= top) & (place < size - bottom)
    columns = (place >= left) & (place < size - right)
    return image * (rows[:, None] & columns)


def augment(keys: jax.Array, images: jax.Array, size: int, strength: Mapping[str, float]) -> jax.Array:
    """Random views of stored films, to be standardised as films are.

    Args:
      keys: (N,) keys, one an example.
      images: (N, H, W) uint8.
      size: side of the result, px.
      strength: the fields of `config.augment`; with all of them off the whole film is seen.

    Returns:
      (N, size, size) float32 in [0, 1].
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        place, tone, corners, sides = jax.random.split(key, 4)
        pixels = sample(image, _affine(place, strength), size) / 255
        pixels = _intensity(tone, pixels, strength)
        if strength["erase_probability"]:
            pixels = _erase_corners(corners, pixels, strength)
        if strength["collimation"]:
            pixels = _collimate(sides, pixels, strength)
        return pixels

    return jax.vmap(one)(keys, images)


def views(images: np.ndarray, changes: Sequence[Mapping[str, float]]) -> np.ndarray:
    """A random view of each film, changed as in training, but at the film's own size, so that blur and noise are finer.

    The same films get the same views.

    Args:
      images: (N, S, S) uint8.
      changes: the fields of `config.augment` of one network or several, which take turns; those that came after a
        network was trained are off.

    Returns:
      (N, S, S) uint8.
    """

    def of(strength: Mapping[str, float]) -> Callable[[jax.Array, np.ndarray], jax.Array]:
        known = defaultdict(float, strength)
        return jax.jit(lambda keys, films: jnp.round(255 * augment(keys, films, films.shape[1], known)))

    augmented = [of(strength) for strength in changes]
    made = np.empty_like(images)
    for number, start in enumerate(range(0, len(images), BATCH_SIZE)):
        batch = images[start : start + BATCH_SIZE]
        keys = jax.random.split(jax.random.key(number), len(batch))
        made[start : start + BATCH_SIZE] = augmented[number % len(augmented)](keys, batch)
    return made
