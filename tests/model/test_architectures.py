"""The architectures' contract, sizes and building blocks."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import layers, resnet
from model.registry import ARCHITECTURES, build

TINY = {
    "cnn": {"widths": (4, 8), "blocks": (1, 2)},
    "resnet": {"blocks": (1, 1, 1, 1), "head": (8,)},
}
FEATURES = {"cnn": (2, 16, 16, 8), "resnet": (2, 2, 2, 2048)}


def shapes(name, options=None, size=64):
    module = build(name, options or {})
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 1)))
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def count(parameters):
    return sum(int(np.prod(shape)) for shape in parameters.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_methods(name):
    module = build(name, TINY[name])
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
    variables = module.init(jax.random.key(1), images)
    features = module.apply(variables, images, method="features")
    logits = module.apply(variables, features, method="classify")
    assert features.shape == FEATURES[name] and logits.shape == (2, 3)
    np.testing.assert_array_equal(logits, module.apply(variables, images))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_keeps_parameters_and_logits_in_float32(name):
    module = build(name, TINY[name], "bfloat16")
    images = jnp.ones((1, 64, 64, 1))
    variables = module.init(jax.random.key(1), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert module.apply(variables, images, method="features").dtype == jnp.bfloat16
    assert module.apply(variables, images).dtype == jnp.float32


def test_cnn_size():
    parameters = shapes("cnn")
    assert count(parameters) == 1_500_115
    kernels = [name for name in parameters if re.search(r"block\d/conv[12]/kernel", name)]
    assert len(kernels) == 12 and all(parameters[name][:2] == (3, 3) for name in kernels)
    assert {name.split("/")[0] for name in parameters} == {"stem", "stage1", "stage2", "stage3", "stage4", "head"}


@pytest.mark.parametrize(("channels", "backbone"), [(1, 23_501_760), (3, 23_508_032)])
def test_resnet50_size(channels, backbone):
    parameters = shapes("resnet", {"stem_channels": channels})
    assert count({name: shape for name, shape in parameters.items() if not name.startswith("head")}) == backbone
    convolutions = [name for name, shape in parameters.items() if len(shape) == 4]
    assert len(convolutions) == 53
    assert parameters["head/logits/kernel"] == (2048, 3)


def test_resnet50_dense_head():
    parameters = shapes("resnet", {"head": (512, 128)})
    assert parameters["head/dense1/kernel"] == (2048, 512) and parameters["head/dense2/kernel"] == (512, 128)
    assert parameters["head/norm1/scale"] == (512,) and parameters["head/logits/kernel"] == (128, 3)


def test_resnet50_paths_are_those_documented():
    parameters = shapes("resnet")
    for path in ("stem/conv/kernel", "stage3/block6/conv2/kernel", "stage2/block1/shortcut/kernel", "stem/norm/bias"):
        assert path in parameters
    assert parameters["stage2/block1/shortcut/kernel"] == (1, 1, 256, 512)
    assert "stage2/block2/shortcut/kernel" not in parameters
    for part in ("stem/conv/kernel (7, 7, in, 64)", "stage<i>/block1/shortcut/kernel"):
        assert part in resnet.__doc__


def test_the_stride_of_v15_sits_in_the_3x3_convolution():
    block = resnet.Bottleneck(4, 2, None, jnp.float32)
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 16))
    _, state = block.init_with_output(jax.random.key(1), images, False)
    _, seen = block.apply(state, images, False, capture_intermediates=True, mutable=["intermediates"])
    sizes = {name: value["__call__"][0].shape[1] for name, value in seen["intermediates"].items() if "conv" in name}
    assert sizes == {"conv1": 8, "conv2": 4, "conv3": 4}


def test_a_gray_film_in_a_colour_stem_is_the_sum_of_its_kernels():
    colour, gray = (build("resnet", TINY["resnet"] | {"stem_channels": channels}) for channels in (3, 1))
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 1))
    variables = colour.init(jax.random.key(1), images)
    summed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.sum(axis=2, keepdims=True) if "stem" in str(path) and leaf.ndim == 4 else leaf,
        variables,
    )
    np.testing.assert_allclose(colour.apply(variables, images), gray.apply(summed, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_is_a_1x1_convolution(stride):
    images = jax.random.normal(jax.random.key(0), (2, 7, 8, 5))
    ours = layers.Pointwise(6, stride)
    theirs = nn.Conv(6, (1, 1), (stride, stride), use_bias=False, padding=0)
    variables = ours.init(jax.random.key(1), images)

    def loss(module):
        return lambda v, x: jnp.sum(jnp.sin(module.apply(v, x)))

    np.testing.assert_allclose(ours.apply(variables, images), theirs.apply(variables, images), atol=1e-5)
    one, other = (jax.grad(loss(module), (0, 1))(variables, images) for module in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, other)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_max_pool_is_the_primitive(size):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def theirs(x):
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    np.testing.assert_array_equal(layers.max_pool_3x3(images), theirs(images))
    one, other = (jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(images) for f in (layers.max_pool_3x3, theirs))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_dropout_belongs_to_the_example():
    module, x = layers.Dropout(0.4), jnp.ones((6, 500))
    rngs = {"dropout": jax.random.key(3)}
    dropped = module.apply({}, x, True, rngs=rngs)
    np.testing.assert_array_equal(dropped[:3], module.apply({}, x[:3], True, rngs=rngs))
    assert not (dropped[0] == dropped[1]).all()
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.6], rtol=1e-6)
    assert abs(float((dropped == 0).mean()) - 0.4) < 0.03
    np.testing.assert_array_equal(module.apply({}, x, False), x)


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="unknown architecture 'vit'; known: cnn, resnet"):
        build("vit", {})
    with pytest.raises(ValueError, match="unknown option depth of cnn; known: blocks, dropout, widths"):
        build("cnn", {"depth": 3})
