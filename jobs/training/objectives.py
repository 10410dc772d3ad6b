"""What a step minimises: the class of every film (supervised), or the likeness of two views of it (SimCLR).

An objective takes (params, batch_stats, key, positions, films, indices) and gives (loss, new batch_stats). `positions`
are (share,), the places in the global batch; `indices` (share, 2), the film at each and the one that it may be mixed
with. Everything random about the example at a place is keyed by (key, position).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jobs.training.augment import augment
from jobs.training.data import Films
from model import layers
from model.preprocess import standardise

Views = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (key, positions, films) -> inputs; see `views`
Objective = Callable[[Any, Any, jax.Array, jax.Array, Films, jax.Array], tuple[jax.Array, Any]]

PROJECTED = 128  # dimensions in which views are compared


class Recipe(NamedTuple):
    """What the supervised loss is made of."""

    mixup_alpha: float  # Beta(alpha, alpha); 0 turns mixup off
    label_smoothing: float  # in [0, 1)
    class_weights: tuple[float, ...]  # (3,), of each class's loss
    head_l2: float  # times the sum of squares of the head's kernels


def class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Inverse frequency, with mean 1 over the examples: N / (classes x count of the class)."""
    total = sum(counts)
    return tuple(total / (len(counts) * count) for count in counts)


def _keys(root: jax.Array, positions: jax.Array) -> jax.Array:
    return jax.vmap(lambda position: jax.random.fold_in(root, position))(positions)


def views(
    key: jax.Array,
    positions: jax.Array,
    images: jax.Array,
    size: int,
    strength: Mapping[str, float],
    neighbourhood: float = 0.0,
) -> jax.Array:
    """Random views of films, as a network is given them: a Views, once all but the first three are bound.

    Args:
      key: of the step.
      positions: (share,) of the films in the global batch.
      images: (share, S, S) uint8.
      size: of the views, px.
      strength: the fields of `config.augment`.
      neighbourhood: as `preprocess.standardise` says.

    Returns:
      (share, size, size, 1) float32.
    """
    return standardise(augment(_keys(key, positions), images, size, strength), neighbourhood)


def supervised(module: nn.Module, recipe: Recipe, views: Views) -> Objective:
    """Cross entropy with label smoothing, mixup, class weights and L2 on the head.

    Args:
      module: the network.
      recipe: of the loss.
      views: of the films.
    """
    class_weights = jnp.asarray(recipe.class_weights)

    def objective(
        params: Any, batch_stats: Any, key: jax.Array, positions: jax.Array, films: Films, indices: jax.Array
    ) -> tuple[jax.Array, Any]:
        augment_key, mixup_key, dropout_key = jax.random.split(key, 3)

        def examples(which: int) -> tuple[jax.Array, jax.Array]:
            chosen = indices[:, which]
            inputs = views(jax.random.fold_in(augment_key, which), positions, films.images[chosen])
            return inputs, films.targets[chosen]

        inputs, targets = examples(0)
        if recipe.mixup_alpha:  # Zhang et al. 2018, eq. 2
            alpha = recipe.mixup_alpha
            mix = jax.vmap(lambda k: jax.random.beta(k, alpha, alpha))(_keys(mixup_key, positions))
            others, other_targets = examples(1)
            inputs = others + mix[:, None, None, None] * (inputs - others)
            targets = other_targets + mix[:, None] * (targets - other_targets)
        weights = targets @ class_weights
        targets = optax.smooth_labels(targets, recipe.label_smoothing)
        logits, updated = module.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss = jnp.mean(weights * optax.softmax_cross_entropy(logits, targets))
        if recipe.head_l2:
            loss += recipe.head_l2 * _head_l2(params)
        return loss, updated.get("batch_stats", {})

    return objective


def _head_l2(params: Any) -> jax.Array:
    leaves = jax.tree_util.tree_leaves_with_path(params["head"])
    return sum((jnp.sum(leaf**2) for path, leaf in leaves if path[-1].key == "kernel"), jnp.zeros(()))


class Projection(nn.Module):
    """Dense, ReLU, dense: (N, C) -> (N, PROJECTED) of length 1. What it throws away, the backbone keeps."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(features.shape[-1], name="dense1")(features))
        x = nn.Dense(PROJECTED, name="dense2")(x)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def pooled(module: nn.Module, variables: Any, inputs: jax.Array) -> jax.Array:
    """(N, size, size, 1) -> (N, C): the features of a network, averaged over all places."""
    params = {name: value for name, value in variables["params"].items() if name != "projection"}
    variables = {**variables, "params": params}
    features: Any = module.apply(variables, inputs, train=False, method="features")
    return layers.global_average_pool(features)


def contrastive_variables(module: nn.Module, variables: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Those of a network, with a Projection in place of its head."""
    backbone = {
        kind: {name: value for name, value in tree.items() if name != "head"} for kind, tree in variables.items()
    }
    inputs = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32)
    channels = jax.eval_shape(lambda images: pooled(module, backbone, images), inputs).shape[-1]
    projection = Projection().init(jax.random.fold_in(jax.random.key(seed), 1), jnp.zeros((1, channels)))
    return backbone | {"params": backbone["params"] | {"projection": projection["params"]}}


def contrastive(module: nn.Module, temperature: float, views: Views, axis_name: str) -> Objective:
    """NT-Xent: each view is to find the other view of its film among those of the whole batch.

    SimCLR, Chen et al. 2020, eq. 1; labels are not looked at. `params` are those of the network without its head, and
    of a Projection under "projection".

    Args:
      module: the network.
      temperature: of the cosines.
      views: of the films.
      axis_name: of the devices, whose views are compared with each other.
    """

    def objective(
        params: Any, batch_stats: Any, key: jax.Array, positions: jax.Array, films: Films, indices: jax.Array
    ) -> tuple[jax.Array, Any]:
        backbone = {name: value for name, value in params.items() if name != "projection"}
        images = films.images[indices[:, 0]]
        both = [views(jax.random.fold_in(key, which), positions, images) for which in (0, 1)]
        features, updated = module.apply(
            {"params": backbone, "batch_stats": batch_stats},
            jnp.concatenate(both),
            train=True,
            method="features",
            mutable=["batch_stats"],
        )
        projected: Any = Projection().apply({"params": params["projection"]}, layers.global_average_pool(features))
        mine = projected.reshape(2, -1, PROJECTED)  # (2 views, share, PROJECTED)
        every = jax.lax.all_gather(mine, axis_name, axis=1, tiled=True)  # (2 views, global batch, PROJECTED)
        loss = jnp.mean(jnp.stack([_nt_xent(mine[view], every[view], every[1 - view], positions) for view in (0, 1)]))
        return loss, updated.get("batch_stats", {})

    def _nt_xent(mine: jax.Array, same: jax.Array, other: jax.Array, positions: jax.Array) -> jax.Array:
        """(share,) losses of my views: `same` are all films' views of the same draw, `other` of the other one."""
        itself = jax.nn.one_hot(positions, len(same), dtype=bool)  # (share, global batch)
        likeness = jnp.concatenate(
            [mine @ other.T / temperature, jnp.where(itself, -jnp.inf, mine @ same.T / temperature)], axis=1
        )
        return optax.softmax_cross_entropy_with_integer_labels(likeness, positions)

    return objective
