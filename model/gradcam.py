"""Class-activation maps as pure functions of (module, variables, images).

Any module with `features` and `classify` will do: the maps differentiate the logits with respect to the features.
With A the features (h, w, C), g the gradient of a class's score with respect to A, and means and sums over places:

    gradcam     relu(sum_c mean(g)_c A_c)                       Selvaraju et al. 2017, eqs. 1 and 2
    gradcam++   relu(sum_c sum(alpha relu(g))_c A_c), with      Chattopadhay et al. 2018, eqs. 11 and 19
                alpha = g^2 / (2 g^2 + sum(A)_c g^3)
    hirescam    relu(sum_c g_c A_c)                             Draelos & Carin 2020, eq. 4
    layercam    relu(sum_c relu(g_c) A_c)                       Jiang et al. 2021, eq. 4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from model.labels import NORMAL


class Heatmaps(NamedTuple):
    """Maps of several classes for several images."""

    maps: jax.Array  # (N, K, h, w) float32 in [0, 1]; the largest value of each is 1 unless blank
    blank: jax.Array  # (N, K) bool: nothing speaks for that class, and the map is all zero


def _gradcam(a: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.einsum("nhwc,nkc->nkhw", a, g.mean(axis=(2, 3)))


def _gradcam_plus_plus(a: jax.Array, g: jax.Array) -> jax.Array:
    # Scaling the logit scales g; alpha is a ratio of g^2 to g^3 (the exponential of the paper's score cancels).
    denominator = 2 * g**2 + a.sum(axis=(1, 2))[:, None, None, None] * g**3
    alpha = jnp.where(denominator == 0, 0, g**2 / jnp.where(denominator == 0, 1, denominator))
    return jnp.einsum("nhwc,nkc->nkhw", a, (alpha * nn.relu(g)).sum(axis=(2, 3)))


def _hirescam(a: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.einsum("nhwc,nkhwc->nkhw", a, g)


def _layercam(a: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.einsum("nhwc,nkhwc->nkhw", a, nn.relu(g))


def _logit(logits: jax.Array) -> jax.Array:
    return logits


def _against_normal(logits: jax.Array) -> jax.Array:
    pneumonia = jax.nn.logsumexp(jnp.delete(logits, NORMAL, axis=-1), axis=-1)
    baseline = logits[..., NORMAL]
    return (logits - baseline[..., None]).at[..., NORMAL].set(baseline - pneumonia)


# The score of a class that is differentiated. The papers' is its logit. A softmax is blind to what is added to every
# logit, and a logit may rise with what merely speaks against another disease, such as clear lungs far from a lesion.
# "against_normal" takes normal as the baseline category (Agresti 2013, section 8.1): bacterial rather than normal,
# viral rather than normal, and normal rather than either.
TARGETS = {"logit": _logit, "against_normal": _against_normal}

METHODS = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "hirescam": _hirescam,
    "layercam": _layercam,
}


def explain(
    module: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    method: str = "gradcam",
    classes: tuple[int, ...] | None = None,
    target: str = "logit",
) -> tuple[jax.Array, Heatmaps]:
    """Logits and, in the same pass, heat maps.

    Args:
      module: has `features(images, train)` and `classify(features, train)`.
      variables: its {"params", "batch_stats"}.
      images: (N, H, W, 1) float32, standardised.
      method: a key of METHODS.
      classes: indices of the K classes to explain; None for all of them.
      target: the score that is explained, a key of TARGETS; the papers' is "logit".

    Returns:
      (N, classes) logits and the Heatmaps of the K classes asked for.

    Raises:
      ValueError: unknown method or target; the message lists the known ones.
    """
    features = jnp.asarray(module.apply(variables, images, method="features"))
    return explain_features(module, variables, features, method, classes, target)


def explain_features(
    module: nn.Module,
    variables: Mapping[str, Any],
    features: jax.Array,
    method: str = "gradcam",
    classes: tuple[int, ...] | None = None,
    target: str = "logit",
) -> tuple[jax.Array, Heatmaps]:
    """As `explain`, from the features (N, h, w, C) of the images."""
    for what, name, known in (("method", method, METHODS), ("target", target, TARGETS)):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")

    def scores(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.asarray(module.apply(variables, a, method="classify"))
        return TARGETS[target](logits), logits

    _, pullback, logits = jax.vjp(scores, features, has_aux=True)
    wanted = jnp.arange(logits.shape[-1]) if classes is None else jnp.asarray(classes)
    # In evaluation an image's scores depend on its own features only, so one pull-back serves the whole batch.
    rows = jax.nn.one_hot(wanted, logits.shape[-1], dtype=logits.dtype)  # (K, classes)
    (gradients,) = jax.vmap(lambda row: pullback(jnp.broadcast_to(row, logits.shape)))(rows)  # (K, N, h, w, C)
    a, g = features.astype(jnp.float32), jnp.moveaxis(gradients, 0, 1).astype(jnp.float32)
    return logits, normalise(METHODS[method](a, g))


def average(maps: Sequence[jax.Array]) -> Heatmaps:
    """The mean of the members' maps, each (N, K, h, w), at the finest of their grids; the peak is 1 again."""
    height, width = (max(m.shape[axis] for m in maps) for axis in (2, 3))
    fitted = [jax.image.resize(m, (*m.shape[:2], height, width), "bilinear") for m in maps]
    return normalise(jnp.mean(jnp.stack(fitted), axis=0))


def normalise(raw: jax.Array) -> Heatmaps:
    """Signed maps (N, K, h, w) -> Heatmaps: negative values cut, each divided by its maximum."""
    positive = jnp.where(jnp.isfinite(raw), nn.relu(raw), 0)
    peak = positive.max(axis=(2, 3))  # (N, K)
    blank = peak <= jnp.finfo(jnp.float32).tiny
    maps = positive / jnp.where(blank, 1, peak)[..., None, None]
    return Heatmaps(jnp.where(blank[..., None, None], 0, maps), blank)


def upsample(heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) float map -> (height, width) float32 by bilinear interpolation, as overlays show it."""
    stretched = Image.fromarray(heatmap.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(stretched)
