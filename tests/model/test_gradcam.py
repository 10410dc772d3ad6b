"""Heat maps, against closed forms, hand-made networks and the papers' formulas written out in loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import gradcam
from model.labels import BACTERIAL, NORMAL, VIRAL
from model.registry import build


class Planted(nn.Module):
    """Features are three quadrants of the image; class k's logit is the mean over channel k."""

    def features(self, images, train=False):
        places = jnp.zeros((3, 8, 8)).at[0, 1, 1].set(1).at[1, 6, 2].set(1).at[2, 2, 6].set(1)
        return images * jnp.moveaxis(places, 0, -1)[None]

    def classify(self, features, train=False):
        return features.mean(axis=(1, 2))

    def __call__(self, images, train=False):
        return self.classify(self.features(images, train), train)


class Curved(nn.Module):
    """The image is the features; the head is neither linear nor pooled."""

    def features(self, images, train=False):
        return images

    def classify(self, features, train=False):
        weights = jnp.linspace(-1, 1, features[0].size * 3).reshape(*features.shape[1:], 3)
        return jnp.tanh(jnp.einsum("nhwc,hwck->nk", features**2, weights))

    def __call__(self, images, train=False):
        return self.classify(self.features(images, train), train)


@pytest.fixture(scope="module")
def cnn():
    module = build("cnn", {"widths": (4, 8), "blocks": (1, 1)})
    images = jax.random.normal(jax.random.key(0), (5, 32, 32, 1))
    return module, jax.jit(module.init)(jax.random.key(1), images), images


PLACES = {NORMAL: (1, 1), BACTERIAL: (6, 2), VIRAL: (2, 6)}


@pytest.mark.parametrize("target", gradcam.TARGETS)
@pytest.mark.parametrize("method", gradcam.METHODS)
def test_planted_evidence_is_where_the_map_peaks(method, target):
    _, heatmaps = gradcam.explain(Planted(), {}, jnp.ones((2, 8, 8, 1)), method, target=target)
    for label, place in PLACES.items():
        for maps in heatmaps.maps:
            assert np.unravel_index(maps[label].argmax(), (8, 8)) == place
            assert maps[label].max() == pytest.approx(1)
    assert not heatmaps.blank.any()


def test_gradcam_equals_hirescam_for_pooling_and_a_linear_head(cnn):
    module, variables, images = cnn
    one, other = (gradcam.explain(module, variables, images, method)[1] for method in ("gradcam", "hirescam"))
    np.testing.assert_allclose(one.maps, other.maps, atol=1e-5)
    assert (one.blank == other.blank).all()


def test_gradcam_is_the_class_activation_map_for_a_linear_head(cnn):
    module, variables, images = cnn
    features = module.apply(variables, images, method="features")
    kernel = variables["params"]["head"]["dense"]["kernel"]  # (C, 3)
    expected = gradcam.normalise(jnp.einsum("nhwc,ck->nkhw", features, kernel))
    np.testing.assert_allclose(gradcam.explain(module, variables, images)[1].maps, expected.maps, atol=1e-5)
    contrast = kernel[:, [BACTERIAL]] - kernel[:, [NORMAL]]
    expected = gradcam.normalise(jnp.einsum("nhwc,ck->nkhw", features, contrast))
    against = gradcam.explain(module, variables, images, classes=(BACTERIAL,), target="against_normal")[1]
    np.testing.assert_allclose(against.maps, expected.maps, atol=1e-5)


def test_normal_is_explained_against_both_pneumonias():
    logits = jnp.array([[1.0, 2.0, 4.0]])
    expected = [1 - np.log(np.exp(2) + np.exp(4)), 2 - 1, 4 - 1]
    np.testing.assert_allclose(gradcam.TARGETS["against_normal"](logits)[0], expected, rtol=1e-6)


def by_the_papers(method, a, g):
    """One image, one class: a and g are (h, w, C)."""
    height, width, channels = a.shape
    total = np.zeros((height, width))
    for c in range(channels):
        if method == "gradcam":
            weight = g[..., c].mean()
        elif method == "gradcam++":
            weight = 0.0
            for i in range(height):
                for j in range(width):
                    below = 2 * g[i, j, c] ** 2 + a[..., c].sum() * g[i, j, c] ** 3
                    weight += (g[i, j, c] ** 2 / below if below else 0.0) * max(g[i, j, c], 0)
        elif method == "hirescam":
            weight = g[..., c]
        else:
            weight = np.maximum(g[..., c], 0)
        total += weight * a[..., c]
    positive = np.maximum(total, 0)
    return positive / positive.max() if positive.max() > 0 else positive


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_against_the_formulas(method):
    images = jax.random.uniform(jax.random.key(2), (3, 4, 5, 6))
    logits, heatmaps = gradcam.explain(Curved(), {}, images, method)
    np.testing.assert_allclose(logits, Curved().apply({}, images), rtol=1e-6)
    for label in range(3):
        gradient = jax.grad(lambda a, label=label: Curved().apply({}, a, method="classify")[:, label].sum())(images)
        for index in range(3):
            expected = by_the_papers(method, np.asarray(images[index], float), np.asarray(gradient[index], float))
            np.testing.assert_allclose(heatmaps.maps[index, label], expected, atol=2e-4)


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_a_batch_is_its_films_one_by_one(cnn, method):
    module, variables, images = cnn
    together = gradcam.explain(module, variables, images, method)[1]
    for index in range(len(images)):
        alone = gradcam.explain(module, variables, images[index : index + 1], method)[1]
        np.testing.assert_allclose(together.maps[index], alone.maps[0], atol=1e-5)


def test_some_classes_are_rows_of_all(cnn):
    module, variables, images = cnn
    everything = gradcam.explain(module, variables, images)[1]
    some = gradcam.explain(module, variables, images, classes=(2, 0))[1]
    np.testing.assert_allclose(some.maps, everything.maps[:, [2, 0]], atol=1e-6)


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_no_evidence_is_blank_and_never_nan(method):
    logits, heatmaps = gradcam.explain(Curved(), {}, jnp.zeros((2, 4, 5, 6)), method)
    assert heatmaps.blank.all() and (heatmaps.maps == 0).all()
    assert jnp.isfinite(logits).all()


def test_normalise_flags_what_is_negative_or_no_number():
    raw = jnp.stack([-jnp.ones((2, 2)), jnp.full((2, 2), jnp.nan), jnp.full((2, 2), jnp.inf), jnp.eye(2) * 5])[None]
    heatmaps = gradcam.normalise(raw)
    assert heatmaps.blank[0].tolist() == [True, True, True, False]
    assert (heatmaps.maps[0, 3] == jnp.eye(2)).all() and jnp.isfinite(heatmaps.maps).all()


def test_what_is_unknown_is_named(cnn):
    with pytest.raises(ValueError, match="unknown method 'cam'; known: gradcam, gradcam"):
        gradcam.explain(*cnn, "cam")
    with pytest.raises(ValueError, match="unknown target 'odds'; known: logit, against_normal"):
        gradcam.explain(*cnn, target="odds")


def test_upsampling_keeps_a_constant_and_the_place_of_the_peak():
    assert (gradcam.upsample(np.full((3, 3), 0.5), 20, 30) == 0.5).all()
    peak = np.zeros((4, 4))
    peak[1, 2] = 1
    large = gradcam.upsample(peak, 40, 80)
    assert large.shape == (40, 80)
    row, column = np.unravel_index(large.argmax(), large.shape)
    assert row // 10 == 1 and column // 20 == 2


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
def test_against_the_formulas_where_features_are_negative_too(method):
    images = jax.random.normal(jax.random.key(3), (2, 4, 5, 6)) / 3
    gradient = [
        jax.grad(lambda a, label=label: Curved().apply({}, a, method="classify")[:, label].sum())(images)
        for label in range(3)
    ]
    maps = gradcam.explain(Curved(), {}, images, method)[1].maps
    for index in range(2):
        for label in range(3):
            a, g = np.asarray(images[index], float), np.asarray(gradient[label][index], float)
            np.testing.assert_allclose(maps[index, label], by_the_papers(method, a, g), atol=2e-4)


def test_normal_against_both_pneumonias_for_a_linear_head(cnn):
    # The gradient of log(e^b + e^v) weighs the two kernels by their softmax.
    module, variables, images = cnn
    logits, heatmaps = gradcam.explain(module, variables, images, "hirescam", (NORMAL,), "against_normal")
    features = module.apply(variables, images, method="features")
    kernel = variables["params"]["head"]["dense"]["kernel"]  # (C, 3)
    share = jax.nn.softmax(logits[:, [BACTERIAL, VIRAL]])  # (N, 2)
    contrast = kernel[:, NORMAL] - share @ kernel[:, [BACTERIAL, VIRAL]].T  # (N, C)
    expected = gradcam.normalise(jnp.einsum("nhwc,nc->nhw", features, contrast)[:, None])
    np.testing.assert_allclose(heatmaps.maps, expected.maps, atol=1e-5)


class Opposed(nn.Module):
    """The image is the features; it speaks for normal and against bacterial, and viral does not look at it."""

    def features(self, images, train=False):
        return images

    def classify(self, features, train=False):
        return features.mean(axis=(1, 2, 3))[:, None] * jnp.array([1.0, -1.0, 0.0])


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_only_the_class_that_nothing_speaks_for_is_blank(method):
    images = jax.random.uniform(jax.random.key(0), (2, 3, 4, 1), minval=0.1)
    _, heatmaps = gradcam.explain(Opposed(), {}, images, method)
    assert heatmaps.blank.tolist() == [[False, True, True]] * 2
    np.testing.assert_allclose(heatmaps.maps[:, 0], (images / images.max((1, 2), keepdims=True))[..., 0], rtol=1e-5)
    assert (heatmaps.maps[:, 1:] == 0).all()


def test_maps_lie_between_0_and_1_and_touch_1(cnn):
    module, variables, images = cnn
    for method in gradcam.METHODS:
        maps, blank = gradcam.explain(module, variables, images, method)[1]
        assert maps.shape == (5, 3, 8, 8) and float(maps.min()) >= 0
        np.testing.assert_allclose(maps.max((2, 3)), jnp.where(blank, 0.0, 1.0), rtol=1e-6)


def test_maps_of_bfloat16_are_float32(cnn):
    _, variables, images = cnn
    half = build("cnn", {"widths": (4, 8), "blocks": (1, 1)}, "bfloat16")
    logits, heatmaps = gradcam.explain(half, variables, images)
    assert logits.dtype == heatmaps.maps.dtype == jnp.float32
    # 8 bits of mantissa in the features: a place on the map is off by a few hundredths.
    exact = gradcam.explain(*cnn)[1]
    np.testing.assert_allclose(heatmaps.maps, exact.maps, atol=0.1)


def test_compiled_or_not_alike(cnn):
    module, variables, images = cnn
    compiled = jax.jit(lambda v, x: gradcam.explain(module, v, x, "layercam", (1,)))
    one, other = compiled(variables, images), gradcam.explain(module, variables, images, "layercam", (1,))
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    np.testing.assert_allclose(one[1].maps, other[1].maps, atol=1e-5)


def test_normalise_keeps_what_is_finite_beside_what_is_not():
    raw = jnp.array([[[[jnp.inf, 4.0], [-3.0, jnp.nan]], [[1e-39, 0.0], [0.0, 0.0]]]])
    heatmaps = gradcam.normalise(raw)
    assert heatmaps.maps[0, 0].tolist() == [[0, 1], [0, 0]] and heatmaps.maps[0, 1].tolist() == [[0, 0], [0, 0]]
    assert heatmaps.blank.tolist() == [[False, True]]


def test_maps_of_unlike_grids_are_averaged_at_the_finer_one():
    ramp, even = np.array([[0.0, 0.0], [1.0, 1.0]]), np.full((4, 4), 0.5)
    found = gradcam.average([jnp.asarray(ramp)[None, None], jnp.asarray(even)[None, None]])
    rows = np.array([0, 0.25, 0.75, 1])  # of the ramp, between the middles of its cells
    np.testing.assert_allclose(found.maps[0, 0], np.tile(((rows + 0.5) / 1.5)[:, None], 4), atol=1e-6)
