"""The architectures' contract, sizes and building blocks."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import cnn, layers, resnet
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


def random_variables(module, *arguments):
    """Every parameter and statistic drawn at random, so that none of them can be left out unseen."""
    like = jax.eval_shape(lambda key: module.init(key, *arguments), jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return random.normal(0, np.sqrt(1 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        low, high = (0.5, 1.5) if name in ("scale", "var") else (-0.5, 0.5)
        return random.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, like)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_three_methods(name):
    module = build(name, TINY[name])
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
    variables = random_variables(module, images)
    features = module.apply(variables, images, method="features")
    logits = module.apply(variables, features, method="classify")
    assert features.shape == FEATURES[name] and logits.shape == (2, 3)
    np.testing.assert_array_equal(logits, module.apply(variables, images))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_keeps_parameters_and_logits_in_float32(name):
    module = build(name, TINY[name], "bfloat16")
    images = jnp.ones((1, 64, 64, 1))
    variables = jax.eval_shape(module.init, jax.random.key(1), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert jax.eval_shape(lambda v: module.apply(v, images, method="features"), variables).dtype == jnp.bfloat16
    assert jax.eval_shape(lambda v: module.apply(v, images), variables).dtype == jnp.float32


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

    def watched(images):
        variables = block.init(jax.random.key(1), images, False)
        return block.apply(variables, images, False, capture_intermediates=True, mutable=["intermediates"])

    _, seen = jax.eval_shape(watched, jnp.zeros((1, 8, 8, 16)))
    sizes = {name: value["__call__"][0].shape[1] for name, value in seen["intermediates"].items() if "conv" in name}
    assert sizes == {"conv1": 8, "conv2": 4, "conv3": 4}


def test_a_gray_film_in_a_colour_stem_is_the_sum_of_its_kernels():
    colour, gray = (build("resnet", TINY["resnet"] | {"stem_channels": channels}) for channels in (3, 1))
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 1))
    variables = random_variables(colour, images)
    summed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.sum(axis=2, keepdims=True) if "stem" in str(path) and leaf.ndim == 4 else leaf,
        variables,
    )
    one, other = jax.jit(colour.apply)(variables, images), jax.jit(gray.apply)(summed, images)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * float(jnp.abs(one).max()))


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


@pytest.mark.parametrize(("name", "options"), [("cnn", {}), ("resnet", {"head": (512, 128)})])
def test_the_docstring_names_every_parameter(name, options):
    doc = {"cnn": cnn, "resnet": resnet}[name].__doc__
    table = re.findall(r"`(\w\S+/\S+)`", doc) if name == "cnn" else re.findall(r"^    (\w\S+)", doc, re.MULTILINE)
    assert len(table) == {"cnn": 3, "resnet": 7}[name]
    patterns = []
    for entry in table:
        pattern = re.sub(r"{([\w,]+)}", lambda found: f"({found[1].replace(',', '|')})", entry)
        pattern = re.sub(r"<\w>", r"\\d", pattern).replace("...", ".+")
        patterns.append(pattern if name == "resnet" else pattern + r"/\w+")
    matches = {path: [bool(re.fullmatch(pattern, path)) for pattern in patterns] for path in shapes(name, options)}
    assert {path: sum(row) for path, row in matches.items() if sum(row) != 1} == {}
    assert all(any(column) for column in zip(*matches.values(), strict=True))


@pytest.mark.parametrize(("name", "size", "expected"), [("cnn", 112, (1, 7, 7, 256)), ("resnet", 224, (1, 7, 7, 2048))])
def test_features_are_7_by_7_at_the_sizes_documented(name, size, expected):
    module, image = build(name, {}), jnp.zeros((1, size, size, 1))
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    assert jax.eval_shape(lambda v: module.apply(v, image, method="features"), variables).shape == expected


def conv(variables, path, x, stride=1):
    kernel = variables["params"]
    for part in path.split("/"):
        kernel = kernel[part]
    half = kernel["kernel"].shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel["kernel"], (stride, stride), [(half, half)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def norm(variables, path, x):
    params, stats = variables["params"], variables["batch_stats"]
    for part in path.split("/"):
        params, stats = params[part], stats[part]
    return (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def resnet50_by_the_paper(variables, images):
    """Features of He et al. 2016, table 1, as torchvision computes them, from the paths of the docstring."""
    x = nn.relu(norm(variables, "stem/norm", conv(variables, "stem/conv", images, 2)))
    low = -jnp.inf
    x = jax.lax.reduce_window(x, low, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)])
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(1, blocks + 1):
            at = f"stage{stage}/block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            y = nn.relu(norm(variables, f"{at}/norm1", conv(variables, f"{at}/conv1", x)))
            y = nn.relu(norm(variables, f"{at}/norm2", conv(variables, f"{at}/conv2", y, stride)))
            y = norm(variables, f"{at}/norm3", conv(variables, f"{at}/conv3", y))
            if block == 1:
                x = norm(variables, f"{at}/shortcut_norm", conv(variables, f"{at}/shortcut", x, stride))
            x = nn.relu(x + y)
    return x


def cnn_by_the_docstring(variables, images):
    """Features of a CNN of two stages of widths 4 and 8, blocks 1 and 2."""
    x = nn.relu(norm(variables, "stem/norm", conv(variables, "stem/conv", images, 2)))
    for at in ("stage1/block1", "stage2/block1", "stage2/block2"):
        if at == "stage2/block1":
            n, height, width, channels = x.shape
            x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        y = nn.relu(norm(variables, f"{at}/norm1", conv(variables, f"{at}/conv1", x)))
        y = norm(variables, f"{at}/norm2", conv(variables, f"{at}/conv2", y))
        if at == "stage2/block1":
            x = norm(variables, f"{at}/shortcut_norm", conv(variables, f"{at}/shortcut", x))
        x = nn.relu(x + y)
    return x


@pytest.mark.parametrize(
    ("name", "options", "reference", "last"),
    [
        ("cnn", TINY["cnn"], cnn_by_the_docstring, "dense"),
        ("resnet", {}, resnet50_by_the_paper, "logits"),
    ],
)
def test_against_a_second_writing(name, options, reference, last):
    module = build(name, options)
    images = jax.random.normal(jax.random.key(0), (2, 48, 48, 1))
    variables = random_variables(module, images)
    expected = jax.jit(reference)(variables, images)
    features = jax.jit(lambda v, x: module.apply(v, x, method="features"))(variables, images)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(features / scale, expected / scale, atol=1e-5)
    head = variables["params"]["head"][last]
    logits = expected.mean((1, 2)) @ head["kernel"] + head["bias"]
    scale = float(jnp.abs(logits).max())
    np.testing.assert_allclose(module.apply(variables, features, method="classify") / scale, logits / scale, atol=1e-4)


def test_the_dense_head_by_hand():
    module = resnet.Head((6, 5), 0.5, None, None)
    features = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    variables = random_variables(module, features, False)
    params, x = variables["params"], features.mean((1, 2))
    for index in (1, 2):
        x = nn.relu(x @ params[f"dense{index}"]["kernel"] + params[f"dense{index}"]["bias"])
        x = norm(variables, f"norm{index}", x)
    expected = x @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(module.apply(variables, features, False), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "block", [cnn.Block(4, None, jnp.float32), resnet.Bottleneck(1, 1, None, jnp.float32)], ids=["cnn", "resnet"]
)
def test_a_block_starts_as_the_identity(block):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    started, _ = block.init_with_output(jax.random.key(1), x, False)
    np.testing.assert_array_equal(started, nn.relu(x))


def test_training_moves_the_statistics_and_drops_by_key():
    module = build("cnn", TINY["cnn"] | {"dropout": 0.5})
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
    variables = random_variables(module, images)

    @jax.jit
    def trained(key):
        return module.apply(variables, images, True, rngs={"dropout": key}, mutable=["batch_stats"])

    (one, moved), (again, _), (other, _) = (trained(jax.random.key(seed)) for seed in (2, 2, 3))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    stem = conv(variables, "stem/conv", images, 2)
    started = variables["batch_stats"]["stem"]["norm"]["mean"]
    expected = 0.9 * started + 0.1 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(moved["batch_stats"]["stem"]["norm"]["mean"], expected, atol=1e-6)


def test_lists_of_a_config_become_tuples():
    module = build("cnn", {"widths": [4, 8], "blocks": [1, 1]})
    assert module.widths == (4, 8) and hash(module) == hash(build("cnn", {"widths": (4, 8), "blocks": (1, 1)}))


def test_what_the_caller_sets_is_no_option():
    with pytest.raises(ValueError, match="unknown option axis_name, dtype of cnn; known: blocks, dropout, widths"):
        build("cnn", {"dtype": "float64", "axis_name": "batch"})
