"""Losses against ones written out by hand; SimCLR on any number of devices, and backbones that others begin with."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jobs.evaluation import neighbours
from jobs.training import objectives, plan, steps
from jobs.training.data import Films, one_hot
from model.registry import build
from tests.jobs.test_steps import IMAGES, LABELS, flat, plain


def contrastive():
    """Views that differ in their noise alone: other augmentation takes seconds to compile."""
    made = plain(objective="contrastive")
    made.augment.noise = 0.3
    return made


class Linear(nn.Module):
    """Logits of the pixels themselves."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3, name="head")(images.reshape(len(images), -1))


def test_cross_entropy_with_all_that_it_may_have_by_hand():
    """Mixup of films and labels alike, smoothing after it, weights of the labels that were mixed, L2 of the kernel."""
    alpha, smoothing, class_weights, l2 = 0.4, 0.1, np.array([2.0, 0.5, 1.0]), 0.3
    recipe = objectives.Recipe(alpha, smoothing, tuple(class_weights), l2)
    strength, module, key, positions = plain().augment.to_dict(), Linear(), jax.random.key(3), np.arange(6)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    films, indices = (
        Films(jnp.asarray(IMAGES), one_hot(LABELS)),
        np.stack([positions, (5 * positions + 7) % 24], axis=1),
    )
    views = functools.partial(objectives.views, size=32, strength=strength)
    objective = objectives.supervised(module, recipe, views)
    loss, _ = objective(variables["params"], {}, key, positions, films, indices)

    augment_key, mixup_key, _ = jax.random.split(key, 3)
    first, second = (
        np.asarray(views(jax.random.fold_in(augment_key, which), positions, IMAGES[indices[:, which]]))
        for which in (0, 1)
    )
    share = np.array([jax.random.beta(jax.random.fold_in(mixup_key, place), alpha, alpha) for place in positions])
    assert np.ptp(share) > 0.1  # some are more of the one, some of the other
    pixels = (share[:, None] * first.reshape(6, -1)) + (1 - share[:, None]) * second.reshape(6, -1)
    labels = share[:, None] * np.eye(3)[LABELS[indices[:, 0]]] + (1 - share[:, None]) * np.eye(3)[LABELS[indices[:, 1]]]
    kernel, bias = (np.asarray(variables["params"]["head"][name], np.float64) for name in ("kernel", "bias"))
    logits = pixels @ kernel + bias
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    learnt = (1 - smoothing) * labels + smoothing / 3
    expected = np.mean((labels @ class_weights) * -(learnt * log_probabilities).sum(axis=1)) + l2 * (kernel**2).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_nt_xent_by_hand():
    """Chen et al. 2020, eq. 1: 2N views, the positive of each among all others but itself."""
    temperature, count = 0.5, 4
    module = build("cnn", {"widths": (4, 8), "blocks": (1, 1), "dropout": 0.0})
    variables = {"batch_stats": {}} | module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    variables = objectives.contrastive_variables(module, variables, 0)
    strength = contrastive().augment.to_dict()
    views = functools.partial(objectives.views, size=32, strength=strength)
    objective = objectives.contrastive(module, temperature, views, "batch")
    films, indices = Films(jnp.asarray(IMAGES), one_hot(LABELS)), np.stack([np.arange(count)] * 2, axis=1)
    key, positions = jax.random.key(5), np.arange(count)
    loss, _ = jax.jit(
        jax.vmap(
            lambda one: objective(variables["params"], variables["batch_stats"], key, positions, films, one),
            axis_name="batch",
        )
    )(indices[None])

    both = [views(jax.random.fold_in(key, which), positions, IMAGES[:count]) for which in (0, 1)]
    backbone = {name: value for name, value in variables["params"].items() if name != "projection"}
    features, _ = module.apply(
        {"params": backbone, "batch_stats": variables["batch_stats"]},
        jnp.concatenate(both),
        train=True,
        method="features",
        mutable=["batch_stats"],
    )
    projected = objectives.Projection().apply({"params": variables["params"]["projection"]}, features.mean((1, 2)))
    projected = np.asarray(projected, np.float64)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, rtol=1e-5)
    likeness = np.exp(projected @ projected.T / temperature)
    by_hand = [
        -np.log(likeness[i, (i + count) % (2 * count)] / (likeness[i].sum() - likeness[i, i])) for i in range(2 * count)
    ]
    np.testing.assert_allclose(loss[0], np.mean(by_hand), rtol=1e-4)


def taken(devices, count=4):
    """Losses, and the variables after `count` contrastive steps."""
    chosen = jax.devices()[:devices]
    compiled = plan.compile_steps(contrastive(), LABELS, chosen)
    state, films = steps.replicate(compiled.state, chosen), steps.replicate(Films(IMAGES, one_hot(LABELS)), chosen)
    losses = []
    for _ in range(count):
        state, measured = compiled.phases[0].train_step(
            state, films, steps.layout(chosen).share(compiled.order.batch(0))
        )
        losses.append(float(measured["loss"]))
    return losses, flat(state.params)


def test_devices_change_nothing_but_the_order_of_sums():
    (alone, params), (shared, others) = taken(1), taken(4)
    np.testing.assert_allclose(shared, alone, rtol=1e-4)
    np.testing.assert_allclose(others, params, atol=2e-4)
    assert alone[-1] < alone[0]


def test_labels_are_not_looked_at():
    chosen = jax.devices()[:1]
    found = []
    for labels in (LABELS, 2 - LABELS):
        compiled = plan.compile_steps(contrastive(), LABELS, chosen)
        state, films = steps.replicate(compiled.state, chosen), Films(IMAGES, one_hot(labels))
        state, _ = compiled.phases[0].train_step(state, films, steps.layout(chosen).share(compiled.order.batch(0)))
        found.append(flat(state.params))
    np.testing.assert_array_equal(*found)


def test_nearest_neighbours_vote():
    known = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0]])
    votes = neighbours.vote(known, np.array([0, 0, 1, 1, 2]), np.array([[2.0, 0.1], [0.0, 0.5], [-3.0, 0.2]]))
    assert votes.argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(votes.sum(1), 1)
    assert votes.min() >= 0.01 - 1e-9


def test_the_same_film_at_two_places_of_a_batch_is_seen_two_ways():
    strength = plain().augment.to_dict() | {"noise": 0.3}
    films = np.repeat(IMAGES[:1], 4, axis=0)
    seen = np.asarray(objectives.views(jax.random.key(0), np.arange(4), films, 32, strength))
    assert min(np.abs(seen[one] - seen[other]).max() for one in range(4) for other in range(one)) > 0.01


def test_class_weights_average_to_one_over_the_films():
    counts = [10, 30, 20]
    weights = objectives.class_weights(counts)
    assert weights == pytest.approx((2, 2 / 3, 1))
    assert sum(weight * count for weight, count in zip(weights, counts, strict=True)) == pytest.approx(60)
