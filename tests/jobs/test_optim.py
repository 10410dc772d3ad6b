"""Learning rates and optimizers, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jobs import JobError
from jobs.training import optim

PARAMS = {"conv": {"kernel": jnp.full((2, 2), 2.0)}, "norm": {"scale": jnp.ones(2), "bias": jnp.full(2, 3.0)}}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)


def sgd(**changes):
    options = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0} | changes
    return optim.build("sgd", lambda step: 0.1, **options)


def test_cosine_with_warm_up():
    rate = optim.schedule("cosine", 1.0, warmup_steps=10, total_steps=110)
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(0.5)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(60)) == pytest.approx((1 + 0.01) / 2, rel=1e-4)
    assert float(rate(110)) == pytest.approx(0.01, rel=1e-4)


def test_constant_and_no_warm_up():
    assert [float(optim.schedule("constant", 0.5, 4, 100)(step)) for step in (0, 2, 50)] == [0, 0.25, 0.5]
    assert float(optim.schedule("cosine", 0.5, 0, 100)(0)) == 0.5


def test_weight_decay_leaves_norms_and_biases():
    optimizer = sgd(weight_decay=0.5)
    updates, _ = optimizer.update(ZERO, optimizer.init(PARAMS), PARAMS)
    assert np.allclose(updates["conv"]["kernel"], -0.1 * 0.5 * 2)
    assert (updates["norm"]["scale"] == 0).all() and (updates["norm"]["bias"] == 0).all()


def test_clipping_bounds_the_global_norm():
    gradients = jax.tree.map(jnp.ones_like, PARAMS)  # eight ones: norm sqrt(8)
    optimizer = sgd(clip_norm=0.5)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    assert np.allclose(updates["conv"]["kernel"], -0.1 * 0.5 / np.sqrt(8))


def test_adamw_first_step_is_the_sign():
    optimizer = optim.build("adamw", lambda step: 0.1, 0.9, weight_decay=0.0, clip_norm=0.0)
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.03), PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    assert np.allclose(updates["conv"]["kernel"], 0.1, rtol=1e-4)


def test_muon_turns_convolutions_and_leaves_the_rest_to_adam():
    # A gradient of 9 x 4 by 6 as a sum of directions of very unequal size: all are taken equally far.
    left, right = (np.linalg.qr(np.random.default_rng(0).normal(size=(size, 3)))[0] for size in (36, 6))
    gradient = (left * [1.0, 1e-1, 1e-2]) @ right.T
    params = {"conv": jnp.zeros((3, 3, 4, 6)), "norm": jnp.ones(6), "dense": jnp.zeros((6, 3))}
    gradients = {"conv": jnp.asarray(gradient).reshape(3, 3, 4, 6), "norm": jnp.full(6, 0.2), "dense": jnp.ones((6, 3))}
    optimizer = optim.build("muon", lambda step: 0.1, 0.9, weight_decay=0.0, clip_norm=0.0)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    turned = np.asarray(updates["conv"]).reshape(36, 6) / (-0.1 * optim.ORTHOGONAL)
    along = np.diag(left.T @ turned @ right)
    assert (np.abs(along - 1) < 0.35).all(), along  # five steps of Newton and Schulz come so near
    np.testing.assert_allclose(turned, (left * along) @ right.T, atol=1e-2)  # and nothing else is moved along
    assert np.allclose(updates["norm"], -0.1, rtol=1e-4) and np.allclose(updates["dense"], -0.1, rtol=1e-4)


def test_plateau_scale_multiplies_updates():
    optimizer = sgd()
    state = optim.set_plateau_scale(optimizer.init(PARAMS), np.float32(0.25))
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    assert np.allclose(updates["conv"]["kernel"], -0.025)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    assert np.allclose(updates["conv"]["kernel"], -0.025)  # and stays until it is set again


def test_plateau_is_a_function_of_the_log():
    scale = lambda scores: optim.plateau_scale(scores, 0.5, 2)
    assert scale([]) == 1
    assert scale([1, 0.5]) == 1
    assert scale([1, 0.5, 1]) == 0.5  # two epochs without a new best
    assert scale([1, 0.5, 0.4, 2, 1]) == 0.5
    assert scale([1, 0, 0, 0, 0]) == 0.25
    assert optim.plateau_scale([1, 0, 0, 0, 0], 1.0, 2) == 1


def test_what_is_unknown_is_named():
    with pytest.raises(JobError, match="unknown optimizer 'adam'; known: adamw, sgd, muon"):
        optim.build("adam", lambda step: 0.1, 0.9, 0.0, 0.0)
    with pytest.raises(JobError, match="unknown schedule 'step'; known: cosine, constant"):
        optim.schedule("step", 1.0, 0, 10)
    with pytest.raises(JobError, match="warm-up of 10 steps leaves nothing of a run or phase of 10"):
        optim.schedule("cosine", 1.0, 10, 10)


def test_momentum_is_nesterovs():
    optimizer, gradient = sgd(momentum=0.9), jax.tree.map(jnp.ones_like, PARAMS)
    state = optimizer.init(PARAMS)
    for taken in (1.9, 2.71):  # g + .9 v, where v is 1 and then 1.9
        moves, state = optimizer.update(gradient, state, PARAMS)
        np.testing.assert_allclose(moves["conv"]["kernel"], -0.1 * taken, rtol=1e-5)
