"""The architectures' contract, sizes and building blocks."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import cnn, densenet, efficientnet, gradcam, layers, resnet, resnetv2, vgg
from model.labels import CLASSES
from model.registry import ARCHITECTURES, build

TINY = {
    "cnn": {"widths": (4, 8), "blocks": (1, 2)},
    "resnet": {"blocks": (1, 1, 1, 1), "head": (8,)},
    "resnetv2": {"blocks": (1, 1, 1, 1), "head": (8,)},
    "vgg": {"convolutions": (1, 2), "filters": (4, 8), "batch_norm": True, "head": (8,)},
    "densenet": {"depths": (1, 2, 1, 1), "growth": 4, "head": (8,)},
    "efficientnet": {"blocks": (1, 2, 1, 0, 0, 0, 0), "head": (8,)},
}
FEATURES = {
    "cnn": (2, 16, 16, 8),
    "resnet": (2, 2, 2, 2048),
    "resnetv2": (2, 2, 2, 2048),
    "vgg": (2, 32, 32, 8),
    # 8 + 4 = 12, half is 6; 6 + 8 = 14, 7; 7 + 4 = 11, 5; 5 + 4 = 9.
    "densenet": (2, 2, 2, 9),
    "efficientnet": (2, 8, 8, 1280),
}


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

    @jax.jit
    def three(variables):
        features = module.apply(variables, images, method="features")
        coarse = build(name, TINY[name], "bfloat16").apply(variables, images)
        return features, module.apply(variables, features, method="classify"), module.apply(variables, images), coarse

    features, logits, whole, coarse = three(variables)
    assert features.shape == FEATURES[name] and logits.shape == (2, 3)
    np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-5)
    # Eight bits of every activation.
    np.testing.assert_allclose(coarse, whole, atol=0.05 * float(jnp.abs(whole).max()))


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


def test_resnet50_size():
    parameters = shapes("resnet")
    # 23,501,760 of a gray stem and 7 x 7 x 64 of the plane of ones
    assert count({name: shape for name, shape in parameters.items() if not name.startswith("head")}) == 23_504_896
    convolutions = [name for name, shape in parameters.items() if len(shape) == 4]
    assert len(convolutions) == 53
    assert parameters["head/logits/kernel"] == (2048, 3)


@pytest.mark.parametrize(
    ("name", "options", "first", "published"),
    [
        ("resnet", {}, "stem/conv", 25_557_032),
        ("resnetv2", {}, "stem/conv", 25_549_352),
        ("vgg", {}, "stage1/conv1", 138_357_544),
        ("vgg", {"batch_norm": True}, "stage1/conv1", 138_365_992),
        ("densenet", {}, "stem/conv", 7_978_856),
        ("efficientnet", {}, "stem/conv", 5_288_548),
    ],
)
def test_sizes_are_those_published(name, options, first, published):
    parameters = shapes(name, options)
    side, _, planes, filters = parameters[f"{first}/kernel"]
    assert planes == 2
    # A colour more in the first kernel; 997 classes more in the last one, each with a bias.
    more = side * side * filters + (1000 - len(CLASSES)) * (parameters["head/logits/kernel"][0] + 1)
    assert count(parameters) + more == published


@pytest.mark.parametrize(
    ("name", "stages"), [("resnet", 4), ("resnetv2", 4), ("vgg", 5), ("densenet", 4), ("efficientnet", 8)]
)
def test_the_parts_of_a_network(name, stages):
    parts = {f"stage{index}" for index in range(1, stages + 1)} | {"head"} | ({"stem"} if name != "vgg" else set())
    assert {path.split("/")[0] for path in shapes(name)} == parts


def test_where_the_last_norms_and_transitions_belong():
    assert shapes("resnetv2")["stage4/norm/scale"] == (2048,)
    dense = shapes("densenet")
    assert dense["stage4/norm/scale"] == (1024,) and dense["stage3/transition/norm/scale"] == (1024,)
    assert dense["stage1/transition/conv/kernel"] == (1, 1, 256, 128)
    assert not [path for path in dense if path.startswith("stage4/transition")]
    efficient = shapes("efficientnet")
    assert efficient["stage8/conv/kernel"] == (1, 1, 320, 1280) and efficient["stage8/norm/bias"] == (1280,)
    assert efficient["stage3/block1/depthwise/kernel"] == (5, 5, 1, 144)
    assert efficient["stage2/block1/squeeze/reduce/kernel"] == (96, 4)  # a quarter of the 16 that enter
    assert shapes("vgg")["head/dense1/kernel"] == (7 * 7 * 512, 4096)
    pooled = shapes("vgg", {"global_pool": True, "head": (256,)})
    assert pooled["head/dense1/kernel"] == (512, 256) and pooled["head/logits/kernel"] == (256, 3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_and_gradients_of_every_architecture(name):
    module = build(name, TINY[name])
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
    variables = random_variables(module, images)
    _, heatmaps = jax.jit(lambda v, x: gradcam.explain(module, v, x))(variables, images)
    assert heatmaps.maps.shape == (2, 3, *FEATURES[name][1:3]) and not heatmaps.blank.all()
    assert np.isfinite(heatmaps.maps).all() and float(heatmaps.maps.max()) == 1

    @jax.jit
    def gradients(params):
        def loss(params):
            answer, _ = module.apply(
                variables | {"params": params}, images, True, rngs={"dropout": jax.random.key(1)}, mutable="batch_stats"
            )
            return (answer**2).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"blocks": (1, 2)}, r"blocks \(1, 2\) has 2 numbers; give 4, one for each stage"),
        ("resnetv2", {"blocks": (1, 2)}, r"blocks \(1, 2\) has 2 numbers; give 4"),
        ("densenet", {"depths": [1] * 5}, r"depths \(1, 1, 1, 1, 1\) has 5 numbers; give 4"),
        ("efficientnet", {"blocks": (1,)}, r"blocks \(1,\) has 1 numbers; give 7"),
        ("vgg", {"filters": (4, 8)}, r"convolutions \(2, 2, 3, 3, 3\) has 5 numbers; give 2"),
        ("vgg", {"filters": (0, 8), "convolutions": (1, 1)}, r"filters \(0, 8\) must be whole numbers from 1 on"),
        ("vgg", {"filters": (), "convolutions": ()}, r"filters \(\) must be whole numbers from 1 on, one at least"),
        ("vgg", {"head": (-1,)}, r"head \(-1,\) must be whole numbers from 1 on$"),
        ("densenet", {"growth": 0}, r"growth \(0,\) must be whole numbers from 1 on"),
        ("densenet", {"depths": (1, 1, 1, -1)}, r"depths \(1, 1, 1, -1\) must be whole numbers from 1 on"),
        ("densenet", {"head": (0,)}, r"head \(0,\) must be"),
        ("efficientnet", {"blocks": (1, 2, 1, 0, 0, 0, -1)}, r"blocks .* must be whole numbers from 0 on"),
        ("efficientnet", {"head": (0,)}, r"head \(0,\) must be"),
        ("resnet", {"head": (0,)}, r"head \(0,\) must be"),
        ("resnetv2", {"head": (2.5,)}, r"head \(2.5,\) must be"),
    ],
)
def test_a_stage_too_many_or_too_few_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, options)


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
    for part in ("stem/conv/kernel (7, 7, 2, 64)", "stage<i>/block1/shortcut/kernel"):
        assert part in resnet.__doc__


def test_the_stride_of_v15_sits_in_the_3x3_convolution():
    block = resnet.Bottleneck(4, 2, None, jnp.float32)

    def watched(images):
        variables = block.init(jax.random.key(1), images, False)
        return block.apply(variables, images, False, capture_intermediates=True, mutable=["intermediates"])

    _, seen = jax.eval_shape(watched, jnp.zeros((1, 8, 8, 16)))
    sizes = {name: value["__call__"][0].shape[1] for name, value in seen["intermediates"].items() if "conv" in name}
    assert sizes == {"conv1": 8, "conv2": 4, "conv3": 4}


def test_a_standardised_film_and_a_plane_of_ones_are_a_normalised_photograph():
    random = np.random.default_rng(0)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    film, kernel = random.normal(size=(1, 9, 9, 1)), random.normal(size=(7, 7, 3, 4))
    photograph = (layers.LEVEL + layers.CONTRAST * film - mean) / std  # (1, 9, 9, 3)
    planes = np.stack([layers.CONTRAST / std, (layers.LEVEL - mean) / std])
    folded = np.einsum("pc,hwcf->hwpf", planes, kernel)
    stem = layers.convolution(4, 7, stride=2, dtype=jnp.float32, name="conv")
    theirs = stem.apply({"params": {"kernel": kernel}}, photograph)
    ours = stem.apply({"params": {"kernel": folded}}, layers.film_and_ones(jnp.asarray(film)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    bias = folded[:, :, 1].sum((0, 1))
    biased = stem.apply({"params": {"kernel": folded[:, :, :1]}}, jnp.asarray(film)) + bias
    np.testing.assert_allclose(biased[:, 2:3, 2:3], theirs[:, 2:3, 2:3], rtol=1e-4, atol=1e-4)
    assert np.abs(biased - theirs).max() > 0.1  # at the border a bias would not do


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


@pytest.mark.parametrize(
    ("name", "options", "entries"),
    [
        ("cnn", {}, 3),
        ("resnet", {"head": (512, 128)}, 8),
        ("resnetv2", {"head": (512, 128)}, 7),
        ("vgg", {"batch_norm": True}, 5),
        ("densenet", {"head": (512, 128)}, 9),
        ("efficientnet", {"head": (512, 128)}, 13),
    ],
)
def test_the_docstring_names_every_parameter(name, options, entries):
    module = {"cnn": cnn, "resnet": resnet, "resnetv2": resnetv2, "vgg": vgg, "densenet": densenet}
    doc = (module | {"efficientnet": efficientnet})[name].__doc__
    table = re.findall(r"`(\w\S+/\S+)`", doc) if name == "cnn" else re.findall(r"^    (\w\S+)", doc, re.MULTILINE)
    assert len(table) == entries
    patterns = []
    for entry in table:
        pattern = re.sub(r"{([\w,]+)}", lambda found: f"({found[1].replace(',', '|')})", entry)
        pattern = re.sub(r"<\w>", r"\\d+", pattern).replace("...", ".+")
        patterns.append(pattern + r"/\w+" if name == "cnn" else pattern)
    matches = {path: [bool(re.fullmatch(pattern, path)) for pattern in patterns] for path in shapes(name, options)}
    assert {path: sum(row) for path, row in matches.items() if sum(row) != 1} == {}
    assert all(any(column) for column in zip(*matches.values(), strict=True))


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("cnn", 112, (1, 7, 7, 256)),
        ("resnet", 224, (1, 7, 7, 2048)),
        ("resnetv2", 224, (1, 7, 7, 2048)),
        ("vgg", 224, (1, 14, 14, 512)),
        ("densenet", 224, (1, 7, 7, 1024)),
        ("efficientnet", 224, (1, 7, 7, 1280)),
    ],
)
def test_features_at_the_sizes_documented(name, size, expected):
    module, image = build(name, {}), jnp.zeros((1, size, size, 1))
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    assert jax.eval_shape(lambda v: module.apply(v, image, method="features"), variables).shape == expected


def at(tree, path):
    return functools.reduce(lambda branch, part: branch[part], path.split("/"), tree)


def conv(variables, path, x, stride=1):
    layer = at(variables["params"], path)
    kernel = layer["kernel"]
    half, groups = kernel.shape[0] // 2, x.shape[-1] // kernel.shape[2]
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(half, half)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip
    return y + layer.get("bias", 0)


def norm(variables, path, x):
    params, stats = at(variables["params"], path), at(variables["batch_stats"], path)
    return (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def pooled(x, side, padding):
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, side, side, 1), (1, 2, 2, 1), [(0, 0), *[(padding, padding)] * 2, (0, 0)]
    )


def resnet50_by_the_paper(variables, images):
    """Features of He et al. 2016, table 1, as torchvision computes them, from the paths of the docstring."""
    x = nn.relu(norm(variables, "stem/norm", conv(variables, "stem/conv", layers.film_and_ones(images), 2)))
    x = pooled(x, 3, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(1, blocks + 1):
            here = f"stage{stage}/block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            y = nn.relu(norm(variables, f"{here}/norm1", conv(variables, f"{here}/conv1", x)))
            y = nn.relu(norm(variables, f"{here}/norm2", conv(variables, f"{here}/conv2", y, stride)))
            y = norm(variables, f"{here}/norm3", conv(variables, f"{here}/conv3", y))
            if block == 1:
                x = norm(variables, f"{here}/shortcut_norm", conv(variables, f"{here}/shortcut", x, stride))
            x = nn.relu(x + y)
    return x


def resnetv2_by_the_paper(variables, images):
    """Features of He et al. 2016b, fig. 4e, one bottleneck a stage."""
    x = pooled(conv(variables, "stem/conv", layers.film_and_ones(images), 2), 3, 1)
    for stage in (1, 2, 3, 4):
        here, stride = f"stage{stage}/block1", 1 if stage == 1 else 2
        y = nn.relu(norm(variables, f"{here}/norm1", x))
        x = conv(variables, f"{here}/shortcut", y, stride)
        y = nn.relu(norm(variables, f"{here}/norm2", conv(variables, f"{here}/conv1", y)))
        y = nn.relu(norm(variables, f"{here}/norm3", conv(variables, f"{here}/conv2", y, stride)))
        x = x + conv(variables, f"{here}/conv3", y)
    return nn.relu(norm(variables, "stage4/norm", x))


def vgg_by_the_paper(variables, images):
    """Features of two stages, of one convolution and of two."""
    x = layers.film_and_ones(images)
    for here in ("stage1/{}1", "stage2/{}1", "stage2/{}2"):
        x = pooled(x, 2, 0) if here == "stage2/{}1" else x
        x = nn.relu(norm(variables, here.format("norm"), conv(variables, here.format("conv"), x)))
    return x


def densenet_by_the_paper(variables, images):
    """Features of Huang et al. 2017, section 3, of 1, 2, 1 and 1 layers."""
    x = nn.relu(norm(variables, "stem/norm", conv(variables, "stem/conv", layers.film_and_ones(images), 2)))
    x = pooled(x, 3, 1)
    for stage, depth in enumerate((1, 2, 1, 1), start=1):
        for layer in range(1, depth + 1):
            here = f"stage{stage}/layer{layer}"
            y = conv(variables, f"{here}/conv1", nn.relu(norm(variables, f"{here}/norm1", x)))
            y = conv(variables, f"{here}/conv2", nn.relu(norm(variables, f"{here}/norm2", y)))
            x = jnp.concatenate([x, y], -1)
        if stage < 4:
            here = f"stage{stage}/transition"
            x = conv(variables, f"{here}/conv", nn.relu(norm(variables, f"{here}/norm", x)))
            n, height, width, channels = x.shape
            x = x[:, : height // 2 * 2, : width // 2 * 2]
            x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    return nn.relu(norm(variables, "stage4/norm", x))


def efficientnet_by_the_paper(variables, images):
    """Features of Tan & Le 2019, table 1, of the first three stages and the last."""
    x = nn.silu(norm(variables, "stem/norm", conv(variables, "stem/conv", layers.film_and_ones(images), 2)))
    for here, stride in (("stage1/block1", 1), ("stage2/block1", 2), ("stage2/block2", 1), ("stage3/block1", 2)):
        y = x
        if here != "stage1/block1":
            y = nn.silu(norm(variables, f"{here}/expand_norm", conv(variables, f"{here}/expand", y)))
        y = nn.silu(norm(variables, f"{here}/depthwise_norm", conv(variables, f"{here}/depthwise", y, stride)))
        reduce, expand = (at(variables["params"], f"{here}/squeeze/{name}") for name in ("reduce", "expand"))
        means = nn.silu(y.mean((1, 2)) @ reduce["kernel"] + reduce["bias"])
        y = y * nn.sigmoid(means @ expand["kernel"] + expand["bias"])[:, None, None]
        y = norm(variables, f"{here}/project_norm", conv(variables, f"{here}/project", y))
        x = x + y if here == "stage2/block2" else y
    return nn.silu(norm(variables, "stage8/norm", conv(variables, "stage8/conv", x)))


def cnn_by_the_docstring(variables, images):
    """Features of a CNN of two stages of widths 4 and 8, blocks 1 and 2."""
    x = nn.relu(norm(variables, "stem/norm", conv(variables, "stem/conv", images, 2)))
    for here in ("stage1/block1", "stage2/block1", "stage2/block2"):
        if here == "stage2/block1":
            n, height, width, channels = x.shape
            x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        y = nn.relu(norm(variables, f"{here}/norm1", conv(variables, f"{here}/conv1", x)))
        y = norm(variables, f"{here}/norm2", conv(variables, f"{here}/conv2", y))
        if here == "stage2/block1":
            x = norm(variables, f"{here}/shortcut_norm", conv(variables, f"{here}/shortcut", x))
        x = nn.relu(x + y)
    return x


@pytest.mark.parametrize(
    ("name", "options", "reference", "last"),
    [
        ("cnn", TINY["cnn"], cnn_by_the_docstring, "dense"),
        ("resnet", {}, resnet50_by_the_paper, "logits"),
        ("resnetv2", TINY["resnetv2"] | {"head": ()}, resnetv2_by_the_paper, "logits"),
        ("vgg", TINY["vgg"] | {"head": ()}, vgg_by_the_paper, "logits"),
        ("densenet", TINY["densenet"] | {"head": ()}, densenet_by_the_paper, "logits"),
        ("efficientnet", TINY["efficientnet"] | {"head": ()}, efficientnet_by_the_paper, "logits"),
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
    if name == "vgg":
        means = pooled(expected, 2, 0)  # (2, 12, 12, 8)
        edges = [(0, 2), (1, 4), (3, 6), (5, 7), (6, 9), (8, 11), (10, 12)]  # of 12 / 7 = 1.71 each, rounded outwards
        cells = [means[:, a:b, c:d].mean((1, 2)) for a, b in edges for c, d in edges]
        means = jnp.concatenate(cells, -1)
    else:
        means = expected.mean((1, 2))
    logits = means @ head["kernel"] + head["bias"]
    scale = float(jnp.abs(logits).max())
    assert 0 < scale < np.inf
    np.testing.assert_allclose(module.apply(variables, features, method="classify") / scale, logits / scale, atol=1e-4)


def test_the_dense_head_by_hand():
    module = layers.Head((6, 5), 0.5, None, None)
    features = jax.random.normal(jax.random.key(0), (3, 4))
    variables = random_variables(module, features, False)
    params, x = variables["params"], features
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
