"""Weights of other libraries, laid into ours: every array in its place, and every mismatch named."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from model.layers import CONTRAST, LEVEL
from model.registry import build
from model.weights import WeightsError
from model.weights.convert import FORMATS, IMAGENET, SOURCES, convert, gray_kernel

TINY = {
    "resnet": {"blocks": (1, 1, 1, 1)},
    "resnetv2": {"blocks": (1, 1, 1, 1)},
    "vgg": {"convolutions": (1, 2), "filters": (4, 8), "head": (6, 5)},
    "densenet": {"depths": (1, 2, 1, 1), "growth": 4},
    "efficientnet": {"blocks": (1, 2, 1, 0, 0, 0, 0)},
}
SUFFIX = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
EVERY = [(name, index) for name, formats in FORMATS.items() for index in range(len(formats))]


def network(name, options):
    """Variables of zeros."""
    module = build(name, options)
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), like)


def flat(variables):
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def file(name, variables, index=0, colours=3):
    """A file of random numbers in the format, as PyTorch lays them out."""
    random = np.random.default_rng(0)
    layers = {path.split("/", 1)[1].rpartition("/")[0] for path in flat(variables)}
    names = FORMATS[name][index].names(layers)
    arrays = {}
    for path, leaf in flat(variables).items():
        layer, _, kind = path.split("/", 1)[1].rpartition("/")
        shape = leaf.shape
        if len(shape) == 4:
            shape = (*shape[:2], colours if layer in ("stem/conv", "stage1/conv1") else shape[2], shape[3])
            shape = tuple(np.array(shape)[[3, 2, 0, 1]])
        elif len(shape) == 2:
            shape = shape[::-1] + ((1, 1) if "squeeze" in layer else ())
        array = random.uniform(0.5, 1.5, shape).astype(np.float32)
        if layer in ("head/dense1", "head/dense2") and kind == "kernel" and FORMATS[name][index].sources == ("timm",):
            array = array.reshape(shape[0], -1, *((7, 7) if layer == "head/dense1" else (1, 1)))
        arrays[f"{names[layer]}.{SUFFIX[kind]}"] = array
        if kind == "mean":
            arrays[f"{names[layer]}.num_batches_tracked"] = np.array(7)
    return arrays


@pytest.mark.parametrize(
    ("name", "index", "options", "count", "some"),
    [
        (
            "resnet", 0, {}, 320,
            {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.running_var": (64,),
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer1.0.downsample.1.num_batches_tracked": (),
                "layer3.5.bn2.bias": (256,),
                "layer4.2.conv2.weight": (512, 512, 3, 3),
                "fc.weight": (3, 2048),
            },
        ),
        (
            "resnet", 1, {}, 320,
            {
                "embedder.embedder.convolution.weight": (64, 3, 7, 7),
                "encoder.stages.0.layers.0.shortcut.convolution.weight": (256, 64, 1, 1),
                "encoder.stages.2.layers.5.layer.1.normalization.bias": (256,),
                "classifier.1.bias": (3,),
            },
        ),
        (
            "resnetv2", 0, {}, 300,
            {
                "stem.conv.weight": (64, 3, 7, 7),
                "stages.0.blocks.0.downsample.conv.weight": (256, 64, 1, 1),
                "stages.2.blocks.5.norm1.running_mean": (1024,),
                "norm.weight": (2048,),
                "head.fc.weight": (3, 2048),
            },
        ),
        (
            "vgg", 0, {"head": (96, 64)}, 32,
            {
                "features.0.weight": (64, 3, 3, 3),
                "features.28.bias": (512,),
                "pre_logits.fc1.weight": (96, 512, 7, 7),
                "pre_logits.fc2.weight": (64, 96, 1, 1),
                "head.fc.bias": (3,),
            },
        ),
        (
            "vgg", 1, {"batch_norm": True, "head": (96, 64)}, 97,
            {
                "features.3.weight": (64, 64, 3, 3),
                "features.4.running_mean": (64,),
                "features.40.weight": (512, 512, 3, 3),
                "features.41.bias": (512,),
                "classifier.0.weight": (96, 25088),
                "classifier.6.weight": (3, 64),
            },
        ),
        (
            "densenet", 0, {}, 727,
            {
                "features.conv0.weight": (64, 3, 7, 7),
                "features.norm0.weight": (64,),
                "features.denseblock4.denselayer16.conv1.weight": (128, 992, 1, 1),
                "features.transition1.conv.weight": (128, 256, 1, 1),
                "features.norm5.weight": (1024,),
                "classifier.weight": (3, 1024),
            },
        ),
        (
            "efficientnet", 0, {}, 360,
            {
                "conv_stem.weight": (32, 3, 3, 3),
                "bn1.bias": (32,),
                "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
                "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
                "blocks.0.0.bn2.weight": (16,),
                "blocks.1.0.se.conv_reduce.weight": (4, 96, 1, 1),
                "blocks.6.0.conv_pwl.weight": (320, 1152, 1, 1),
                "blocks.6.0.bn3.running_var": (320,),
                "conv_head.weight": (1280, 320, 1, 1),
                "bn2.weight": (1280,),
                "classifier.bias": (3,),
            },
        ),
    ],
)  # fmt: skip
def test_keys_and_shapes_are_those_of_the_libraries(name, index, options, count, some):
    # As many as the published networks have; with three classes instead of 1000.
    shapes = {key: array.shape for key, array in file(name, network(name, options), index).items()}
    assert len(shapes) == count
    assert {key: shapes.get(key) for key in some} == some


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_every_array_comes_to_its_place(name, index):
    variables = network(name, TINY[name])
    arrays = file(name, variables, index)
    converted = convert(name, arrays, variables)
    assert converted.new == [] and converted.left_out == []
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(converted.variables))
    assert jax.tree.structure(converted.variables) == jax.tree.structure(variables)
    names = FORMATS[name][index].names({path.split("/", 1)[1].rpartition("/")[0] for path in flat(variables)})
    for path, ours in flat(converted.variables).items():
        layer, _, kind = path.split("/", 1)[1].rpartition("/")
        theirs = arrays[f"{names[layer]}.{SUFFIX[kind]}"]
        if layer in ("stem/conv", "stage1/conv1") and kind == "kernel":
            mean, std = ((0.5,) * 3,) * 2 if name == "resnetv2" else IMAGENET
            film = sum(theirs[:, c] * CONTRAST / std[c] for c in range(3))  # (f, k, k)
            ones = sum(theirs[:, c] * (LEVEL - mean[c]) / std[c] for c in range(3))
            np.testing.assert_allclose(ours, np.stack([film, ones]).transpose(2, 3, 0, 1), rtol=1e-5, atol=1e-6)
        elif layer == "head/dense1" and name == "vgg":
            if kind == "kernel":
                grid = theirs.reshape(6, 8, 7, 7)
                for row, column, channel in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (3, 5, 7), (6, 6, 7)):
                    place = (row * 7 + column) * 8 + channel
                    np.testing.assert_array_equal(ours[place], grid[:, channel, row, column])
        elif ours.ndim == 4:
            np.testing.assert_array_equal(ours, np.einsum("oihw->hwio", theirs))
        else:
            np.testing.assert_array_equal(ours, theirs.squeeze().T)


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_formats_of_the_same_weights_give_the_same_network(name):
    variables = network(name, TINY[name])
    one, other = (convert(name, file(name, variables, index), variables) for index in (0, 1))
    assert set(file(name, variables, 0)) != set(file(name, variables, 1))
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def densenet(head=(), **changes):
    """Variables of a small DenseNet, and a file for it."""
    variables = network("densenet", TINY["densenet"] | {"head": head})
    return variables, file("densenet", network("densenet", TINY["densenet"])) | changes


def refusal(name, arrays, variables, **normalisation):
    with pytest.raises(WeightsError) as caught:
        convert(name, arrays, variables, **normalisation)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.densenet121.", "_orig_mod.model."])
@pytest.mark.parametrize("name", ["densenet", "resnet"])
def test_a_prefix_of_wrappers_is_no_part_of_the_names(name, prefix):
    variables = network(name, TINY[name])
    arrays = file(name, variables)
    expected = convert(name, arrays, variables)
    wrapped = {prefix + key: array for key, array in arrays.items()}
    jax.tree.map(np.testing.assert_array_equal, convert(name, wrapped, variables), expected)
    # What TorchXRayVision's network keeps beside the one that it wraps.
    found = convert(name, wrapped | {"op_threshs": np.full(18, np.nan)}, variables)
    assert found.left_out == ["op_threshs"] and found.new == []


def test_what_is_beside_a_wrapped_network_is_named():
    variables, arrays = densenet()
    arrays = {f"module.{key}": array for key, array in arrays.items()} | {"n_averaged": np.ones(1)}
    assert refusal("densenet", arrays, variables)[1:] == ["unexpected (1): n_averaged"]
    arrays["features.norm5.bias"] = np.ones(9)
    both = "module.features.norm5.bias and features.norm5.bias are two spellings of one name"
    assert refusal("densenet", arrays, variables) == [both]


def test_the_backbone_of_transformers_has_no_prefix():
    variables = network("resnet", TINY["resnet"])
    bare = file("resnet", variables, index=1)
    assert "encoder.stages.0.layers.0.layer.2.convolution.weight" in bare
    expected = convert("resnet", bare, variables)
    whole = {key if key.startswith("classifier") else f"resnet.{key}": array for key, array in bare.items()}
    jax.tree.map(np.testing.assert_array_equal, convert("resnet", whole, variables), expected)
    for key in ("classifier.1.weight", "classifier.1.bias"):
        del bare[key]
    assert convert("resnet", bare, variables).new == ["head/logits/bias", "head/logits/kernel"]


def test_the_old_spelling_of_densenet():
    variables, arrays = densenet()
    old = {re.sub(r"(denselayer\d\.(norm|conv))", r"\1.", key): array for key, array in arrays.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    expected = convert("densenet", arrays, variables)
    jax.tree.map(np.testing.assert_array_equal, convert("densenet", old, variables), expected)
    key = "features.denseblock1.denselayer1.norm.1.weight"
    both = refusal("densenet", arrays | {key: old[key]}, variables)
    assert both == [f"features.denseblock1.denselayer1.norm1.weight and {key} are two spellings of one name"]


def test_all_mismatches_are_named_at_once():
    variables, arrays = densenet()
    del arrays["features.norm0.running_mean"], arrays["features.transition2.conv.weight"]
    arrays["features.conv9.weight"] = arrays["surplus"] = np.ones(3)
    arrays["features.norm5.weight"] = np.ones(8)
    arrays["features.conv0.weight"] = np.ones((8, 3, 5, 5))
    arrays["features.transition1.conv.weight"][1, 2] = np.nan
    arrays["features.transition1.norm.running_var"][3] = -0.5
    assert refusal("densenet", arrays, variables) == [
        "the weights do not fit densenet:",
        "missing (2): features.norm0.running_mean for stem/norm/mean (8,), "
        "features.transition2.conv.weight for stage2/transition/conv/kernel (1, 1, 14, 7)",
        "unexpected (2): features.conv9.weight, surplus",
        "of a wrong shape (2): features.norm5.weight (8,) for stage4/norm/scale (9,), "
        "features.conv0.weight (8, 3, 5, 5) for stem/conv/kernel (7, 7, 2, 8)",
        "not usable (2): features.transition1.norm.running_var has a variance below 0: -0.5, "
        "features.transition1.conv.weight is not finite in 1 of 72 places",
    ]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (np.full(9, np.inf), "is not finite in 9 of 9 places"),
        (np.full(9, 1e300), "is not finite in 9 of 9 places"),
        (np.ones(9, np.complex64), "is of type complex64, which is no real number"),
        (np.array(["a"] * 9), "is of type <U1, which is no real number"),
    ],
)
def test_values_that_no_network_can_use(bad, why):
    variables, arrays = densenet(**{"features.norm5.bias": bad})
    assert refusal("densenet", arrays, variables)[1:] == [f"not usable (1): features.norm5.bias {why}"]


def test_a_first_kernel_that_is_no_number():
    variables, arrays = densenet(**{"features.conv0.weight": np.full((8, 3, 7, 7), "a")})
    assert refusal("densenet", arrays, variables)[1].startswith("of a wrong shape (1): features.conv0.weight")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_become_float32(dtype):
    variables, arrays = densenet()
    cast = {key: array.astype(dtype) for key, array in arrays.items()}
    found = convert("densenet", cast, variables).variables["params"]["stage4"]["norm"]["scale"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, cast["features.norm5.weight"].astype(np.float32))


@pytest.mark.parametrize(
    ("taken", "given"),
    [
        ("densenet", "resnet"),
        ("resnet", "resnetv2"),
        ("resnetv2", "vgg"),
        ("vgg", "efficientnet"),
        ("efficientnet", "densenet"),
    ],
)
def test_a_file_of_another_architecture_is_recognised(taken, given):
    lines = refusal(taken, file(given, network(given, TINY[given])), network(taken, TINY[taken]))
    assert lines[0] == f"these look like the weights of {given}, not of {taken}; set model.architecture to {given}"
    # Nothing of it fits, and all of that is listed.
    assert re.match(r"missing \(\d+\): ", lines[1]) and re.match(r"unexpected \(\d+\): ", lines[2])


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("cls_token", "a vision transformer"),
        ("vit.embeddings.cls_token", "a vision transformer"),
        ("layer1.0.conv2.weight", "a ResNet whose blocks have two convolutions (ResNet18 or 34)"),
        ("features.0.0.weight", "torchvision's EfficientNet or MobileNet"),
        ("stages.0.blocks.0.conv_dw.weight", "a ConvNeXt"),
    ],
)
def test_a_file_of_no_architecture_of_ours(key, what):
    variables, _ = densenet()
    expected = f"these look like the weights of {what}, not of densenet"
    assert refusal("densenet", {key: np.ones(3)}, variables)[0] == expected


def test_a_file_that_cannot_be_told():
    variables, _ = densenet()
    known = "timm, torchvision, torchxrayvision"
    expected = f"these are not the weights of densenet in a format of {known}: something.weight, ..."
    assert refusal("densenet", {"something.weight": np.ones(3)}, variables)[0] == expected


@pytest.mark.parametrize(("taken", "have", "has"), [(False, "with", "none"), (True, "without", "some")])
def test_a_vgg_with_batch_norm_is_not_one_without(taken, have, has):
    variables = network("vgg", TINY["vgg"] | {"batch_norm": taken})
    arrays = file("vgg", network("vgg", TINY["vgg"] | {"batch_norm": not taken}))
    assert refusal("vgg", arrays, variables)[0] == (
        f"these are the weights of a VGG {have} BatchNorm, and the network has {has}; "
        f"set the option batch_norm to {not taken}"
    )


def test_a_network_without_batch_norm_is_named():
    variables, arrays = densenet()
    arrays = {key: array for key, array in arrays.items() if "running" not in key}
    assert refusal("densenet", arrays, variables)[0] == (
        "these are the weights of a network without BatchNorm (with GroupNorm?), and densenet has it"
    )


def test_nothing_and_nobody():
    variables, arrays = densenet()
    assert refusal("densenet", {}, variables) == ["there is no array in the weights"]
    assert refusal("cnn", arrays, variables) == [
        "no weights are known for cnn; there are some for resnet, resnetv2, vgg, densenet, efficientnet"
    ]


def test_a_head_of_its_own_stays_new():
    variables, arrays = densenet(head=(6,))
    variables["params"]["head"]["logits"]["bias"] += 5
    converted = convert("densenet", arrays, variables)
    layers = ("dense1/bias", "dense1/kernel", "logits/bias", "logits/kernel", "norm1/bias", "norm1/scale")
    assert converted.new == [f"head/{layer}" for layer in layers]
    # The bias would fit by its shape, but it is that of another kernel.
    assert arrays["classifier.bias"].shape == (3,)
    assert sorted(converted.left_out) == ["classifier.bias", "classifier.weight"]
    np.testing.assert_array_equal(converted.variables["params"]["head"]["logits"]["bias"], [5, 5, 5])


def test_a_classifier_of_1000_classes_is_left_out():
    variables, arrays = densenet()
    arrays |= {"classifier.weight": np.full((1000, 9), np.nan), "classifier.bias": np.ones(1000)}
    converted = convert("densenet", arrays, variables)
    assert converted.new == ["head/logits/bias", "head/logits/kernel"]
    assert set(converted.left_out) == {"classifier.weight", "classifier.bias"}


def test_a_classifier_that_fits_must_be_finite():
    variables, arrays = densenet()
    arrays["classifier.weight"][0, 1] = np.nan
    assert refusal("densenet", arrays, variables)[1:] == [
        "not usable (1): classifier.weight is not finite in 1 of 27 places"
    ]


def test_a_file_without_classifier():
    variables, arrays = densenet()
    del arrays["classifier.weight"], arrays["classifier.bias"]
    converted = convert("densenet", arrays, variables)
    assert converted.new == ["head/logits/bias", "head/logits/kernel"] and converted.left_out == []


def test_vgg_keeps_the_dense_layers_that_fit():
    arrays = file("vgg", network("vgg", TINY["vgg"]))
    arrays |= {"head.fc.weight": np.ones((1000, 5)), "head.fc.bias": np.ones(1000)}
    converted = convert("vgg", arrays, network("vgg", TINY["vgg"]))
    assert converted.new == ["head/logits/bias", "head/logits/kernel"]
    assert set(converted.left_out) == {
        "head.fc.bias", "head.fc.weight"
    }  # fmt: skip
    pooled = convert("vgg", arrays, network("vgg", TINY["vgg"] | {"global_pool": True}))
    assert pooled.new == ["head/dense1/bias", "head/dense1/kernel", "head/logits/bias", "head/logits/kernel"]


def test_what_is_given_is_not_changed():
    variables, arrays = densenet()
    kept = {key: array.copy() for key, array in arrays.items()}
    converted = convert("densenet", arrays, variables)
    for leaf in jax.tree.leaves(converted.variables):
        assert not any(np.shares_memory(leaf, array) for array in arrays.values())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(variables))
    assert all((kept[key] == array).all() for key, array in arrays.items())


def test_a_gray_first_convolution_is_torchxrayvisions():
    variables = network("densenet", TINY["densenet"])
    arrays = file("densenet", variables, colours=1) | {"op_threshs": np.full(18, np.nan)}
    converted = convert("densenet", arrays, variables)
    kernel = converted.variables["params"]["stem"]["conv"]["kernel"]
    theirs = arrays["features.conv0.weight"][:, 0].transpose(1, 2, 0)  # (k, k, f)
    # A pixel x in [0, 1] is 2048 x - 1024 there, and .449 + .226 z of a standardised film.
    np.testing.assert_allclose(kernel[:, :, 0], theirs * 2048 * 0.226, rtol=1e-5)
    np.testing.assert_allclose(kernel[:, :, 1], theirs * (2048 * 0.449 - 1024), rtol=1e-5)
    assert converted.left_out == ["op_threshs"]
    assert (converted.mean, converted.std) == ((0.5,), (1 / 2048,))
    given = convert("densenet", arrays, variables, mean=0.449, std=0.226).variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(given[:, :, 0], theirs, rtol=1e-6)
    np.testing.assert_allclose(given[:, :, 1], 0, atol=1e-6)


def test_folding_by_hand():
    kernel = np.ones((1, 1, 3, 1))
    kernel[0, 0, :, 0] = 1, 2, 3
    folded = gray_kernel(kernel, (0.449, 0.4, 0.3), (0.226, 0.113, 1.0))
    assert folded.dtype == np.float64 and folded.shape == (1, 1, 2, 1)
    # 1 + 2 x 2 + 3 x .226, and 0 + 2 x .049 / .113 + 3 x .149
    np.testing.assert_allclose(folded.ravel(), [5.678, 0.098 / 0.113 + 0.447], rtol=1e-12)


@pytest.mark.parametrize(
    ("normalisation", "message"),
    [
        (
            {"mean": (0.5, 0.5)},
            "mean has 2 numbers; the first convolution takes 3; mend the config.json beside the weights",
        ),
        ({"std": (0.2, 0.2, 0.0)}, "std is (0.2, 0.2, 0.0); it must be finite, and above 0"),
        ({"mean": float("nan")}, "mean is nan; it must be finite"),
        ({"std": "wide"}, "std is 'wide'; give numbers, one for each channel: 3"),
    ],
)
def test_a_normalisation_that_cannot_be(normalisation, message):
    variables, arrays = densenet()
    assert refusal("densenet", arrays, variables, **normalisation) == [message]


def test_the_sources_of_each_architecture():
    assert SOURCES == {
        "resnet": ("timm", "torchvision", "torchxrayvision", "transformers"),
        "resnetv2": ("timm",),
        "vgg": ("timm", "torchvision"),
        "densenet": ("timm", "torchvision", "torchxrayvision"),
        "efficientnet": ("timm",),
    }
