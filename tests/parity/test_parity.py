"""Our networks against PyTorch's, with the same weights: what a published weight means must not change on the way.

The reference sees a normalised photograph of three equal colours (TorchXRayVision's: a film of one), ours the
standardised film that it shows. All weights and BatchNorm statistics are random, so that none can be left out unseen.
"""

import functools

import jax
import numpy as np
import pytest

WHY = "the references are PyTorch's: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from model.layers import CONTRAST, LEVEL  # noqa: E402
from model.registry import build  # noqa: E402
from model.weights.convert import FORMATS, HALVES, IMAGENET, convert  # noqa: E402
from tests.parity import references  # noqa: E402

TOLERANCE = 1e-4  # of the largest value
FILMS = np.random.default_rng(0).normal(size=(2, 224, 224, 1)).astype(np.float32)
DENSE = (96, 64)


class Transformers(torch.nn.Module):
    """microsoft/resnet-50, whose configuration is the default one."""

    def __init__(self):
        super().__init__()
        self.whole = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=3))
        self.state_dict, self.named_modules = self.whole.state_dict, self.whole.named_modules

    def activations(self, x):
        return self.whole.resnet(x).last_hidden_state

    def forward(self, x):
        return self.whole(x).logits


CASES = {
    "resnet timm": ("resnet", {}, references.ResNet, IMAGENET),
    "resnet transformers": ("resnet", {}, Transformers, IMAGENET),
    "resnet torchxrayvision": ("resnet", {}, lambda: references.ResNet(channels=1), None),
    "resnetv2 timm": ("resnetv2", {}, references.ResNetV2, HALVES),
    "vgg timm": ("vgg", {"head": DENSE}, lambda: references.VGG(False, True, DENSE), IMAGENET),
    "vgg torchvision, BatchNorm": (
        "vgg", {"head": DENSE, "batch_norm": True}, lambda: references.VGG(True, False, DENSE), IMAGENET,
    ),
    "densenet timm": ("densenet", {}, references.DenseNet, IMAGENET),
    "efficientnet timm": ("efficientnet", {}, references.EfficientNet, IMAGENET),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            part.weight.normal_(0, (2 / part.weight[0].numel()) ** 0.5, generator=generator)
            if part.bias is not None:
                part.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(part, torch.nn.BatchNorm2d):
            part.weight.uniform_(0.5, 1.5, generator=generator)
            part.bias.normal_(0, 0.2, generator=generator)
            part.running_mean.normal_(0, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def photographs(films, normalisation):
    """What the reference sees of standardised films: (N, C, H, W)."""
    pixels = LEVEL + CONTRAST * films.astype(np.float64)
    if normalisation is None:
        seen = 2048 * pixels - 1024
    else:
        mean, std = np.array(normalisation)
        seen = (pixels - mean) / std
    return torch.tensor(seen.transpose(0, 3, 1, 2), dtype=torch.float32)


def filled(architecture, options, network, films):
    """Our network and its variables, converted from those of `network`."""
    module = build(architecture, options)
    like = jax.eval_shape(module.init, jax.random.key(0), films)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), like)
    converted = convert(architecture, {key: value.numpy() for key, value in network.state_dict().items()}, zeros)
    assert converted.new == [] and converted.left_out == []
    return module, converted.variables


@functools.partial(jax.jit, static_argnums=0)
def answers(module, variables, films):
    features = module.apply(variables, films, method="features")
    return features, module.apply(variables, features, method="classify")


def channels_last(value):
    value = value.numpy()
    return np.moveaxis(value, 1, -1) if value.ndim == 4 else value


def distance(ours, theirs):
    """The largest difference, as a share of the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def first_difference(architecture, module, variables, network, films, seen):
    """Names the first layer, in the reference's order, whose output differs."""
    _, state = jax.jit(functools.partial(module.apply, capture_intermediates=True, mutable=["intermediates"]))(
        variables, films
    )
    leaves = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    outputs = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/__call__/0"): np.asarray(leaf)
        for path, leaf in leaves
    }
    keys = set(network.state_dict())
    for format in FORMATS[architecture]:
        layers = {theirs: ours for ours, theirs in format.names(outputs).items()}
        if all(f"{name}.weight" in keys for name in layers):
            break
    found = []

    def watch(name):
        def hook(_, __, output):
            theirs = channels_last(output)
            ours = outputs[layers[name]]
            if ours.size != theirs.size:
                found.append(f"{layers[name]} ({name}) is the first layer to differ: {ours.shape}, not {theirs.shape}")
            elif not (away := distance(ours.reshape(theirs.shape), theirs)) <= TOLERANCE:
                found.append(f"{layers[name]} ({name}) is the first layer to differ, by {away:.1e}")

        return hook

    parts = dict(network.named_modules())
    hooks = [parts[name].register_forward_hook(watch(name)) for name in layers]
    network(seen)
    for hook in hooks:
        hook.remove()
    return found[0] if found else "no layer differs; what is between them does"


def compare(architecture, module, variables, network, films, normalisation):
    """Fails, naming the first layer that differs, unless features and logits agree."""
    seen = photographs(films, normalisation)
    features, logits = answers(module, variables, films)
    expected = channels_last(network.activations(seen)), channels_last(network(seen))
    assert features.shape == expected[0].shape and logits.shape == expected[1].shape == (len(films), 3)
    away = distance(features, expected[0]), distance(logits, expected[1])
    if not max(away) <= TOLERANCE:
        where = first_difference(architecture, module, variables, network, films, seen)
        pytest.fail(f"features differ by {away[0]:.1e}, logits by {away[1]:.1e}, of their largest; {where}")
    # Numbers that hardly vary would agree whatever the network does.
    assert expected[0].std() > 0.05 * np.abs(expected[0]).max()


@pytest.mark.parametrize("case", CASES)
def test_features_and_logits_are_those_of_pytorch(case):
    architecture, options, reference, normalisation = CASES[case]
    network = randomised(reference())
    module, variables = filled(architecture, options, network, FILMS)
    compare(architecture, module, variables, network, FILMS, normalisation)


def test_a_failure_names_the_first_layer_that_differs():
    films, options = FILMS[:, :64, :64], {"blocks": (1, 1, 1, 1)}
    network = randomised(references.ResNet(**options))
    module, variables = filled("resnet", options, network, films)
    compare("resnet", module, variables, network, films, IMAGENET)
    block = variables["params"]["stage2"]["block1"]
    block["norm1"], block["norm2"] = block["norm2"], block["norm1"]
    with pytest.raises(
        pytest.fail.Exception, match=r"stage2/block1/norm1 \(layer2.0.bn1\) is the first layer to differ"
    ):
        compare("resnet", module, variables, network, films, IMAGENET)
