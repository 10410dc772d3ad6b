"""Weights of PyTorch networks, as named arrays, laid into ours.

Each format is a table from our layers to the names that a library gives the same ones; the tables in the docstrings of
the architectures show them. What the libraries call weight, bias, running_mean and running_var is our kernel or scale,
bias, mean and var. Their kernels are (out, in, H, W), ours (H, W, in, out).

The first convolution is folded for films. A network of colours sees (x - mean_c) / std_c of an image x in [0, 1]; we
let x = LEVEL + CONTRAST z of a standardised film z be all three colours. Its convolution is then one of z with

    sum_c W_c CONTRAST / std_c        and one of ones with        sum_c W_c (LEVEL - mean_c) / std_c,

padded with zeros both, exactly as the network of colours pads its normalised image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np

from model import checkpoint
from model.layers import CONTRAST, LEVEL
from model.vgg import GRID
from model.weights import WeightsError

Rules = Sequence[tuple[str, Callable[..., str]]]

# What networks of colours subtract and divide by, unless the caller knows better: the mean and deviation of ImageNet's
# red, green and blue; timm trained its resnetv2_50 on pixels from -1 to 1.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# TorchXRayVision's networks, the ones of a single channel, see pixels from -1024 to 1024: 2048 x - 1024.
XRAY = (0.5,), (1 / 2048,)

_SUFFIX = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_HEADS = ("head", "projection")  # no part of the backbone; the projection is that of one trained without labels
# How timm names the networks that compute as ours do. Others have arrays of the same names and shapes, which would fit
# and give nonsense: tf_efficientnet_b0 pads otherwise, resnetblur50 blurs.
TIMM = {
    "resnet": r"resnet\d+",
    "resnetv2": r"resnetv2_\d+",
    "vgg": r"vgg\d+(_bn)?",
    "densenet": r"densenet\d+",
    "efficientnet": r"efficientnet_b\d",
}


class Converted(NamedTuple):
    """A network's variables, filled from a file."""

    variables: dict[str, Any]  # params and batch_stats, nested dicts of numpy float32
    new: list[str]  # paths of the head's parameters that stay as initialised
    left_out: list[str]  # keys of the file's classifier that have no place here
    mean: float | Sequence[float]  # what the first convolution was taken to be given: pixels in [0, 1] less this,
    std: float | Sequence[float]  # over this


class Format(NamedTuple):
    """How some libraries name the layers of an architecture."""

    sources: tuple[str, ...]  # the libraries
    signature: str  # matches a key that files of this format have, and others have not
    names: Callable[[Collection[str]], dict[str, str]]  # our layers -> theirs
    classifier: str  # matches the keys that are no part of the backbone


def _by(rules: Rules) -> Callable[[Collection[str]], dict[str, str]]:
    """The `names` of a table of (our layer as a pattern, their name from the numbers in it)."""

    def names(layers: Collection[str]) -> dict[str, str]:
        found = {}
        for layer in layers:
            for pattern, name in rules:
                if match := re.fullmatch(pattern, layer):
                    found[layer] = name(*(int(group) if group.isdigit() else group for group in match.groups()))
        return found

    return names


def _vgg(head: dict[str, str]) -> Callable[[Collection[str]], dict[str, str]]:
    """The `names` of VGG, whose keys count convolutions, norms, ReLUs and max-pools in one row."""

    def names(layers: Collection[str]) -> dict[str, str]:
        found, position, last = dict(head), 0, "1"
        for stage, convolution in sorted(re.findall(r"stage(\d+)/conv(\d+)", " ".join(layers))):
            position += stage != last  # the max-pool between stages
            last = stage
            found[f"stage{stage}/conv{convolution}"] = f"features.{position}"
            normed = f"stage{stage}/norm{convolution}" in layers
            if normed:
                found[f"stage{stage}/norm{convolution}"] = f"features.{position + 1}"
            position += 2 + normed
        return found

    return names


_RESNET: Rules = (
    (r"stem/conv", lambda: "conv1"),
    (r"stem/norm", lambda: "bn1"),
    (r"stage(\d)/block(\d+)/conv(\d)", lambda stage, block, n: f"layer{stage}.{block - 1}.conv{n}"),
    (r"stage(\d)/block(\d+)/norm(\d)", lambda stage, block, n: f"layer{stage}.{block - 1}.bn{n}"),
    (r"stage(\d)/block1/shortcut", lambda stage: f"layer{stage}.0.downsample.0"),
    (r"stage(\d)/block1/shortcut_norm", lambda stage: f"layer{stage}.0.downsample.1"),
    (r"head/logits", lambda: "fc"),
)


def _transformers(part: str) -> Callable[..., str]:
    return lambda stage, block, n: f"encoder.stages.{stage - 1}.layers.{block - 1}.layer.{n - 1}.{part}"


_RESNET_TRANSFORMERS: Rules = (
    (r"stem/conv", lambda: "embedder.embedder.convolution"),
    (r"stem/norm", lambda: "embedder.embedder.normalization"),
    (r"stage(\d)/block(\d+)/conv(\d)", _transformers("convolution")),
    (r"stage(\d)/block(\d+)/norm(\d)", _transformers("normalization")),
    (r"stage(\d)/block1/shortcut", lambda stage: f"encoder.stages.{stage - 1}.layers.0.shortcut.convolution"),
    (r"stage(\d)/block1/shortcut_norm", lambda stage: f"encoder.stages.{stage - 1}.layers.0.shortcut.normalization"),
    (r"head/logits", lambda: "classifier.1"),
)
_RESNETV2: Rules = (
    (r"stem/conv", lambda: "stem.conv"),
    (
        r"stage(\d)/block(\d+)/(conv|norm)(\d)",
        lambda stage, block, kind, n: f"stages.{stage - 1}.blocks.{block - 1}.{kind}{n}",
    ),
    (r"stage(\d)/block1/shortcut", lambda stage: f"stages.{stage - 1}.blocks.0.downsample.conv"),
    (r"stage4/norm", lambda: "norm"),
    (r"head/logits", lambda: "head.fc"),
)
_DENSENET: Rules = (
    (r"stem/(conv|norm)", lambda kind: f"features.{kind}0"),
    (
        r"stage(\d)/layer(\d+)/(conv|norm)(\d)",
        lambda stage, layer, kind, n: f"features.denseblock{stage}.denselayer{layer}.{kind}{n}",
    ),
    (r"stage(\d)/transition/(conv|norm)", lambda stage, kind: f"features.transition{stage}.{kind}"),
    (r"stage4/norm", lambda: "features.norm5"),
    (r"head/logits", lambda: "classifier"),
)


def _efficientnet(stages: str, layer: str, name: str) -> tuple[str, Callable[..., str]]:
    return rf"stage({stages})/block(\d+)/{layer}", lambda stage, block: f"blocks.{stage - 1}.{block - 1}.{name}"


_EFFICIENTNET: Rules = (
    (r"stem/conv", lambda: "conv_stem"),
    (r"stem/norm", lambda: "bn1"),
    _efficientnet("1", "depthwise_norm", "bn1"),
    _efficientnet("1", "project", "conv_pw"),
    _efficientnet("1", "project_norm", "bn2"),
    _efficientnet("[2-7]", "expand", "conv_pw"),
    _efficientnet("[2-7]", "expand_norm", "bn1"),
    _efficientnet("[2-7]", "depthwise_norm", "bn2"),
    _efficientnet("[2-7]", "project", "conv_pwl"),
    _efficientnet("[2-7]", "project_norm", "bn3"),
    _efficientnet("[1-7]", "depthwise", "conv_dw"),
    _efficientnet("[1-7]", "squeeze/reduce", "se.conv_reduce"),
    _efficientnet("[1-7]", "squeeze/expand", "se.conv_expand"),
    (r"stage8/conv", lambda: "conv_head"),
    (r"stage8/norm", lambda: "bn2"),
    (r"head/logits", lambda: "classifier"),
)

# TorchXRayVision keeps the thresholds of its findings, op_threshs, beside its classifier or beside the whole network.
FORMATS: dict[str, tuple[Format, ...]] = {
    "resnet": (
        Format(
            ("timm", "torchvision", "torchxrayvision"),
            r"layer1\.0\.conv3\.weight",
            _by(_RESNET),
            r"fc\..+|op_threshs",
        ),
        Format(
            ("transformers",),
            r"encoder\.stages\.0\.layers\.0\.layer\.2\.convolution\.weight",
            _by(_RESNET_TRANSFORMERS),
            r"classifier\..+",
        ),
    ),
    "resnetv2": (Format(("timm",), r"stages\.0\.blocks\.0\.conv3\.weight", _by(_RESNETV2), r"head\..+"),),
    "vgg": (
        Format(
            ("timm",),
            r"pre_logits\.fc1\.weight",
            _vgg({"head/dense1": "pre_logits.fc1", "head/dense2": "pre_logits.fc2", "head/logits": "head.fc"}),
            r"(pre_logits|head)\..+",
        ),
        Format(
            ("torchvision",),
            r"features\.0\.weight",
            _vgg({"head/dense1": "classifier.0", "head/dense2": "classifier.3", "head/logits": "classifier.6"}),
            r"classifier\..+",
        ),
    ),
    "densenet": (
        Format(
            ("timm", "torchvision", "torchxrayvision"),
            r"features\.denseblock1\.denselayer1\.conv1\.weight",
            _by(_DENSENET),
            r"classifier\..+|op_threshs",
        ),
    ),
    "efficientnet": (
        Format(("timm",), r"blocks\.1\.0\.conv_pwl\.weight", _by(_EFFICIENTNET), r"classifier\..+"),
    ),
}  # fmt: skip
# Architecture -> the libraries whose weights it takes.
SOURCES = {name: tuple(source for format in formats for source in format.sources) for name, formats in FORMATS.items()}

# Files that are no architecture of ours, so that the message can say what they are.
_OTHERS = (
    ("a vision transformer", r"(.+\.)?(cls_token|patch_embed\..+|embeddings\.patch_embeddings\..+)"),
    ("a ResNet whose blocks have two convolutions (ResNet18 or 34)", r"layer1\.0\.conv2\.weight"),
    ("torchvision's EfficientNet or MobileNet", r"features\.0\.0\.weight"),
    ("a ConvNeXt", r"stages\.0\.blocks\.0\.conv_dw\.weight"),
)


def convert(
    architecture: str,
    arrays: Mapping[str, np.ndarray],
    variables: Mapping[str, Any],
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Converted:
    """Lays weights into a network: all of its backbone, and of its head what fits.

    A layer of the head is filled where the file has every array of it in exactly its shape; the others stay as
    initialised. All of a file but its classifier must have a place here.

    Args:
      architecture: a key of FORMATS.
      arrays: the file: its keys, which may have a prefix of wrappers such as "module.", and its arrays.
      variables: the freshly initialised {"params", "batch_stats"} of the network to fill; read, not changed.
      mean: subtracted from pixels in [0, 1] where the weights were trained, one number or one a channel. None for
        ImageNet's; for .5, as timm does, of resnetv2; for TorchXRayVision's of a first convolution of one channel.
      std: what they were then divided by; as `mean`.

    Raises:
      WeightsError: the file does not fit. The message begins with the architecture that its keys look like, if that
        is another one, and names everything that is missing, unexpected, of a wrong shape or not finite.
    """
    if architecture not in FORMATS:
        raise WeightsError(f"no weights are known for {architecture}; there are some for {', '.join(FORMATS)}")
    keys = _plain(arrays, architecture)
    ours = checkpoint.to_arrays(variables)
    layers: dict[str, list[str]] = {}
    for path in ours:
        layers.setdefault(_layer(path), []).append(path)
    matching = [format for format in FORMATS[architecture] if _any(format.signature, keys)]
    format = (matching or FORMATS[architecture])[0]
    names = format.names(layers)
    first = f"params/{'stem/conv' if 'stem/conv' in layers else 'stage1/conv1'}/kernel"
    grid = _grid(ours) if architecture == "vgg" else ""
    stem = arrays.get(keys.get(f"{names[_layer(first)]}.weight", ""), np.zeros(()))
    default = XRAY if stem.shape[1:2] == (1,) else HALVES if architecture == "resnetv2" else IMAGENET
    mean, std = default[0] if mean is None else mean, default[1] if std is None else std

    def fitted(path: str, source: np.ndarray) -> np.ndarray:
        """The array of a file in our layout, in whatever shape it then has."""
        source = _arranged(source, ours[path].shape, path == grid)
        if path != first or source.ndim != 4 or source.shape[2] not in (1, 3) or _unreal(source):
            return source
        return gray_kernel(source, mean, std)

    filled: dict[str, np.ndarray] = {}
    used: set[str] = set()
    missing, wrong, bad = [], [], []
    for layer, paths in layers.items():
        wanted = {path: f"{names.get(layer, layer)}.{_SUFFIX[path.rpartition('/')[2]]}" for path in paths}
        found = {path: np.asarray(arrays[keys[key]]) for path, key in wanted.items() if key in keys}
        made = {path: fitted(path, source) for path, source in found.items()}
        fits = {path for path, array in made.items() if array.shape == ours[path].shape}
        if is_head(layer) and len(fits) < len(paths):
            continue
        used |= set(wanted.values())
        if f"batch_stats/{layer}/mean" in paths:
            used.add(f"{names.get(layer, layer)}.num_batches_tracked")
        for path, key in wanted.items():
            place = f"{path.partition('/')[2]} {ours[path].shape}"
            if path not in found:
                missing.append(f"{key} for {place}")
            elif path not in fits:
                wrong.append(f"{keys[key]} {found[path].shape} for {place}")
            elif why := _refused(found[path], path):
                bad.append(f"{keys[key]} {why}")
            else:
                filled[path] = np.array(made[path], np.float32, order="C")  # a copy, never a view of the file

    left_out = [keys[key] for key in keys if key not in used and re.fullmatch(format.classifier, key)]
    unexpected = [keys[key] for key in keys if key not in used and not re.fullmatch(format.classifier, key)]
    kinds = {"missing": missing, "unexpected": unexpected, "of a wrong shape": wrong, "not usable": bad}
    sentence = _another(architecture, keys) if not matching else _batch_norm(architecture, keys, layers)
    if sentence or any(kinds.values()):
        lines = [sentence or f"the weights do not fit {architecture}:"]
        lines += [f"{kind} ({len(listed)}): {', '.join(listed)}" for kind, listed in kinds.items() if listed]
        raise WeightsError("\n".join(lines))
    new = [path.partition("/")[2] for path in ours if path.startswith("params/") and path not in filled]
    tree = checkpoint.from_arrays(variables, ours | filled)
    return Converted(dict(tree), new, left_out, mean, std)


def is_head(path: str) -> bool:
    """Whether a layer or parameter is no part of the backbone."""
    return path.partition("/")[0] in _HEADS


def gray_kernel(kernel: np.ndarray, mean: float | Sequence[float], std: float | Sequence[float]) -> np.ndarray:
    """The first kernel of a network of colours, or of gray, for films: (k, k, C, f) -> (k, k, 2, f) float64.

    Args:
      kernel: of a convolution of (x - mean) / std, C = 3 or 1 channels of an image in [0, 1].
      mean: one number, or C of them.
      std: one number above 0, or C of them.

    Returns:
      Its equivalent for a standardised film z and a plane of ones, where x = LEVEL + CONTRAST z in every channel.

    Raises:
      WeightsError: `mean` or `std` has another length, is not finite, or `std` is not above 0.
    """
    channels = kernel.shape[2]
    for what, value in (("mean", mean), ("std", std)):
        try:
            numbers = np.atleast_1d(np.asarray(value, np.float64))
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{what} is {value!r}; give numbers, one for each channel: {channels}") from error
        if numbers.shape not in ((1,), (channels,)):
            raise WeightsError(
                f"{what} has {numbers.size} numbers; the first convolution takes {channels}; mend the config.json "
                "beside the weights"
            )
        if not np.isfinite(numbers).all() or (what == "std" and (numbers <= 0).any()):
            raise WeightsError(f"{what} is {value}; it must be finite{', and above 0' if what == 'std' else ''}")
    means, deviations = (np.broadcast_to(np.asarray(value, np.float64), channels) for value in (mean, std))
    planes = np.stack([CONTRAST / deviations, (LEVEL - means) / deviations])  # (2, C)
    return np.einsum("pc,hwcf->hwpf", planes, kernel.astype(np.float64))


def _plain(arrays: Mapping[str, np.ndarray], architecture: str) -> dict[str, str]:
    """Their keys in the spelling of today, without the prefix of wrappers -> as they stand in the file."""
    if not arrays:
        raise WeightsError("there is no array in the weights")
    # Before module names could have no dots, torchvision wrote DenseNet's norm1 as norm.1.
    spelled = {key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key) for key in arrays}
    formats = (*FORMATS[architecture], *(format for formats in FORMATS.values() for format in formats))
    found = (re.fullmatch(rf"(.+\.)?{format.signature}", name) for format in formats for name in spelled.values())
    prefix = next((match[1] or "" for match in found if match), "")
    plain: dict[str, str] = {}
    for key, name in spelled.items():
        name = name.removeprefix(prefix)
        if name in plain:
            raise WeightsError(f"{plain[name]} and {key} are two spellings of one name")
        plain[name] = key
    return plain


def _any(pattern: str, keys: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, key) for key in keys)


def _another(architecture: str, keys: Mapping[str, str]) -> str:
    """The sentence for keys in none of the architecture's formats."""
    ours = [name for name, formats in FORMATS.items() if any(_any(format.signature, keys) for format in formats)]
    theirs = [name for name, signature in _OTHERS if _any(signature, keys)]
    if ours or theirs:
        cure = f"; set model.architecture to {ours[0]}" if ours else ""
        return f"these look like the weights of {(ours + theirs)[0]}, not of {architecture}{cure}"
    first = ", ".join(list(keys.values())[:3])
    return (
        f"these are not the weights of {architecture} in a format of {', '.join(SOURCES[architecture])}: {first}, ..."
    )


def _unreal(array: np.ndarray) -> bool:
    return array.dtype.kind in "cOSUmM"


def _refused(array: np.ndarray, path: str) -> str:
    """Why the values cannot be used; empty if they can."""
    if _unreal(array):
        return f"is of type {array.dtype}, which is no real number"
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if count := int((~np.isfinite(values)).sum()):
        return f"is not finite in {count} of {values.size} places"
    if path.endswith("/var") and (values < 0).any():
        return f"has a variance below 0: {values.min():g}"
    return ""


def _layer(path: str) -> str:
    """params/path/of/leaf -> path/of"""
    return path.partition("/")[2].rpartition("/")[0]


def _grid(ours: Mapping[str, np.ndarray]) -> str:
    """The path of VGG's dense layer that sees the flattened grid; empty if none does."""
    dense = ("params/head/dense1/kernel", "params/head/logits/kernel")
    path = next((path for path in dense if path in ours), "")
    last = max(path for path in ours if re.fullmatch(r"params/stage\d/conv\d/kernel", path))
    return path if path and len(ours[path]) == GRID**2 * ours[last].shape[-1] else ""


def _arranged(source: np.ndarray, shape: tuple[int, ...], grid: bool) -> np.ndarray:
    """A kernel in our layout if it is one; `shape` is ours, and `grid` whether its inputs are VGG's flattened grid.

    Those are (channel, row, column) in a dense layer of PyTorch, and (row, column, channel) here.
    """
    if len(shape) == 2 and source.shape == shape[::-1]:
        source = source.reshape(len(source), -1, *((GRID, GRID) if grid else (1, 1)))
    if source.ndim == 4 and len(shape) > 1:
        source = source.transpose(2, 3, 1, 0)  # (out, in, H, W) -> (H, W, in, out)
        if len(shape) == 2 and source.shape[:2] == ((GRID, GRID) if grid else (1, 1)):
            source = source.reshape(-1, source.shape[-1])
    return source


def _batch_norm(architecture: str, keys: Mapping[str, str], layers: Collection[str]) -> str:
    """The sentence for weights with BatchNorm in a network without, or the other way round; else empty."""
    given, taken = _any(r".+\.running_mean", keys), architecture != "vgg" or "stage1/norm1" in layers
    if given == taken:
        return ""
    if architecture != "vgg":
        return f"these are the weights of a network without BatchNorm (with GroupNorm?), and {architecture} has it"
    return (
        f"these are the weights of a VGG {'with' if given else 'without'} BatchNorm, and the network has "
        f"{'some' if taken else 'none'}; set the option batch_norm to {given}"
    )
