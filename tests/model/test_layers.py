"""The building blocks, against numpy and Flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import layers

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(4, 8, 7, 3)).astype(np.float32)


def convolved(images, kernel, stride):
    """A convolution padded by half its kernel, written out."""
    side = kernel.shape[0]
    half = side // 2
    padded = np.pad(images.astype(float), ((0, 0), (half, half), (half, half), (0, 0)))
    rows, columns = (-(-size // stride) for size in images.shape[1:3])
    out = np.zeros((len(images), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + side, j * stride : j * stride + side]
            out[:, i, j] = np.einsum("nyxc,yxcf->nf", window, kernel)
    return out


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolution_is_padded_by_half_its_kernel(side, stride):
    module = layers.convolution(5, side, stride=stride, dtype=jnp.float32, name="conv")
    kernel = RANDOM.normal(size=(side, side, 3, 5)).astype(np.float32)
    # A kernel and nothing else: a bias would be a parameter that apply() misses.
    ours = module.apply({"params": {"kernel": kernel}}, IMAGES)
    np.testing.assert_allclose(ours, convolved(IMAGES, kernel, stride), atol=2e-4)


def test_kernels_start_with_the_variance_of_he_by_fan_out():
    for side in (1, 3):
        module = layers.convolution(128, side, stride=1, dtype=jnp.float32, name="conv")
        (kernel,) = jax.tree.leaves(module.init(jax.random.key(0), np.zeros((1, 4, 4, 32), np.float32)))
        assert kernel.shape == (side, side, 32, 128)
        assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (side * side * 128)), rel=0.03)


def test_pointwise_in_bfloat16_keeps_its_kernel_in_float32():
    module = layers.Pointwise(6, 2, jnp.bfloat16)
    variables = module.init(jax.random.key(0), IMAGES)
    kernel = variables["params"]["kernel"]
    assert kernel.dtype == jnp.float32
    answer = module.apply(variables, IMAGES)
    assert answer.dtype == jnp.bfloat16 and answer.shape == (4, 4, 4, 6)
    np.testing.assert_allclose(answer.astype(jnp.float32), IMAGES[:, ::2, ::2] @ kernel[0, 0], atol=0.05)


def batch_norm(train, axis_name, variables, images=IMAGES, **kwargs):
    """The layer on its own, as a network calls it."""
    norm = layers.batch_norm(train, axis_name)
    return norm.func.apply(variables, images, **norm.keywords, **kwargs)


def test_batch_norm_by_hand():
    variables = {
        "params": {"scale": np.array([1.0, 2, 3], np.float32), "bias": np.array([0.5, 0, -1], np.float32)},
        "batch_stats": {"mean": np.array([0.1, 0.2, 0.3], np.float32), "var": np.array([1.0, 2, 4], np.float32)},
    }
    scale, bias, mean, var = (value for item in variables.values() for value in item.values())
    served = batch_norm(False, "batch", variables)  # no axis is needed when serving
    np.testing.assert_allclose(served, (IMAGES - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-5)
    trained, updated = batch_norm(True, None, variables, mutable=["batch_stats"])
    here, spread = IMAGES.mean((0, 1, 2)), IMAGES.var((0, 1, 2))
    np.testing.assert_allclose(trained, (IMAGES - here) / np.sqrt(spread + 1e-5) * scale + bias, atol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 * mean + 0.1 * here, atol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * var + 0.1 * spread, atol=1e-6)


@pytest.mark.parametrize("synced", [True, False])
def test_batch_norm_sees_the_whole_batch_only_where_it_is_synchronised(synced):
    variables = {
        "params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
    }

    def share(images):
        return batch_norm(True, "batch" if synced else None, variables, images, mutable=["batch_stats"])[0]

    shares = IMAGES.reshape(2, 2, *IMAGES.shape[1:])
    split = jax.vmap(share, axis_name="batch")(shares).reshape(IMAGES.shape)
    whole = batch_norm(True, None, variables, mutable=["batch_stats"])[0]
    assert np.allclose(split, whole, atol=1e-4) == synced


def test_dropout_counts_examples_along_the_axis():
    x, rngs = np.ones((6, 50), np.float32), {"dropout": jax.random.key(3)}
    whole = layers.Dropout(0.4).apply({}, x, True, rngs=rngs)
    shared = layers.Dropout(0.4, "batch")
    shares = jax.vmap(lambda part: shared.apply({}, part, True, rngs=rngs), axis_name="batch")(x.reshape(2, 3, 50))
    np.testing.assert_array_equal(shares.reshape(6, 50), whole)
    other = layers.Dropout(0.4).apply({}, x, True, rngs={"dropout": jax.random.key(4)})
    assert (np.asarray(other) != np.asarray(whole)).mean() > 0.3  # 2 x .4 x .6 = .48 are expected to differ


@pytest.mark.parametrize(("rate", "train"), [(0.0, True), (0.0, False), (0.5, False)])
def test_dropout_that_drops_nothing_is_the_identity_and_needs_no_key(rate, train):
    np.testing.assert_array_equal(layers.Dropout(rate).apply({}, IMAGES, train), IMAGES)


def test_pooling_over_all_places_adds_up_in_float32():
    features = jnp.asarray(RANDOM.uniform(1, 2, (2, 40, 40, 3)), jnp.bfloat16)
    pooled = layers.global_average_pool(features)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, np.asarray(features, float).mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_pads_with_nothing_that_could_win(dtype):
    pooled = layers.max_pool_3x3(jnp.full((1, 5, 6, 1), -7, dtype))
    assert pooled.shape == (1, 3, 3, 1) and pooled.dtype == dtype
    assert (pooled == -7).all()


def test_max_pool_after_relu_has_the_gradient_of_the_primitive():
    # Half of the pixels tie at zero there.
    def theirs(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    one, other = (
        jax.grad(lambda x, pool=pool: jnp.sum(jnp.sin(pool(nn.relu(x)))))(IMAGES)
        for pool in (layers.max_pool_3x3, theirs)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert 0 < np.count_nonzero(one) < one.size


def test_max_pool_shares_a_tie_without_loss():
    # Sixteen windows over a flat image: however a tie is shared out, a gradient of one each is conserved.
    gradient = jax.grad(lambda x: layers.max_pool_3x3(x).sum())(jnp.ones((1, 8, 8, 1)))
    assert float(gradient.sum()) == 16 and float(gradient.min()) >= 0


def test_a_film_and_a_plane_of_ones():
    planes = layers.film_and_ones(IMAGES[..., :1])
    assert planes.shape == (4, 8, 7, 2)
    np.testing.assert_array_equal(planes[..., 0], IMAGES[..., 0])
    assert (planes[..., 1] == 1).all()


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_is_a_convolution_of_each_channel(side, stride):
    module = layers.Depthwise(side, stride)
    variables = module.init(jax.random.key(0), IMAGES)
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (side, side, 1, 3)
    alone = [convolved(IMAGES[..., c : c + 1], kernel[..., c : c + 1], stride) for c in range(3)]
    np.testing.assert_allclose(module.apply(variables, IMAGES), np.concatenate(alone, -1), atol=1e-5)


def test_depthwise_adds_up_in_float32():
    module = layers.Depthwise(5, 1, jnp.bfloat16)
    flat = jnp.full((1, 5, 5, 1), 1.0, jnp.bfloat16)
    # 1 + 24 / 512, of which a sum in bfloat16 would lose every part.
    kernel = np.full((5, 5, 1, 1), 1 / 512, np.float32)
    kernel[0, 0] = 1
    answer = module.apply({"params": {"kernel": kernel}}, flat)
    assert answer.dtype == jnp.bfloat16 and float(answer[0, 2, 2, 0]) == pytest.approx(1 + 24 / 512, abs=2**-8)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_max_pool_of_two_drops_an_odd_last_row(size):
    images = RANDOM.normal(size=(2, *size, 3)).astype(np.float32)
    np.testing.assert_array_equal(layers.max_pool_2x2(images), nn.max_pool(images, (2, 2), (2, 2)))


def test_adaptive_pooling_by_hand():
    row = np.arange(1.0, 6)[None, None, :, None]  # 1 to 5 in a row
    # Bins of 3 over 5 places: 0 to 2, 1 to 4, 3 to 5.
    np.testing.assert_allclose(layers.adaptive_average_pool(row, 3)[0, 0, :, 0], [1.5, 3, 4.5], rtol=1e-6)
    np.testing.assert_allclose(layers.adaptive_average_pool(row, 5)[0, 4, :, 0], row.ravel(), rtol=1e-6)
    np.testing.assert_allclose(layers.adaptive_average_pool(row[:, :, :2], 3)[0, 0, :, 0], [1, 1.5, 2], rtol=1e-6)


def test_a_head_without_batch_norm_by_hand():
    head = layers.Head((4,), 0.5, None, None, batch_norm=False)
    x = RANDOM.normal(size=(2, 6)).astype(np.float32)
    variables = head.init(jax.random.key(0), x, False)
    assert set(variables) == {"params"} and set(variables["params"]) == {"dense1", "logits"}
    dense, logits = (variables["params"][name] for name in ("dense1", "logits"))
    hidden = np.maximum(x @ dense["kernel"] + dense["bias"], 0)
    np.testing.assert_allclose(head.apply(variables, x, False), hidden @ logits["kernel"], rtol=1e-4, atol=1e-5)


def test_the_head_drops_by_key():
    head = layers.Head((50,), 0.5, None, None, batch_norm=False)
    x = RANDOM.normal(size=(2, 6)).astype(np.float32)
    variables = head.init(jax.random.key(0), x, False)
    one, other = (head.apply(variables, x, True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert (np.asarray(one) != np.asarray(other)).all()
