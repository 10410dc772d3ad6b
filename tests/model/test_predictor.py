"""The object that answers: the same alone and in a batch, from a run and from a bundle."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from model import checkpoint
from model.predictor import Predictor
from model.preprocess import to_input
from model.registry import build

OPTIONS = {"widths": (4, 8), "blocks": (1, 1)}
FILMS = np.random.default_rng(0).integers(0, 255, (37, 64, 64), np.uint8)


def save(directory, change=lambda variables: variables, **meta):
    module = build("cnn", OPTIONS)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    complete = {
        "architecture": "cnn",
        "options": OPTIONS,
        "classes": ["normal", "bacterial", "viral"],
        "image_size": 32,
        "storage_size": 64,
        "mean": 0.5,
        "std": 0.25,
    }
    with checkpoint.Writer(directory) as writer:
        writer.save(5, change(variables), complete | meta, score=1.0)
    return variables


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    return save(directory), Predictor.open(directory)


def test_probabilities_are_the_networks(opened):
    variables, predictor = opened
    expected = jax.nn.softmax(build("cnn", OPTIONS).apply(variables, to_input(FILMS, 32, 0.5, 0.25)))
    answers = list(predictor.predict(FILMS))
    assert len(answers) == 37
    np.testing.assert_allclose([answer.probabilities for answer in answers], expected, atol=1e-6)
    assert [answer.decision for answer in answers] == [
        ("normal", "bacterial", "viral")[index] for index in np.asarray(expected).argmax(axis=1)
    ]
    assert answers[0].heatmaps is None and predictor.step == 5


def test_alone_and_in_a_batch_alike(opened):
    _, predictor = opened
    together = list(predictor.predict(FILMS, "gradcam"))
    for index in (0, 31, 32, 36):
        alone = next(predictor.predict(FILMS[index : index + 1], "gradcam"))
        np.testing.assert_allclose(alone.probabilities, together[index].probabilities, atol=1e-6)
        np.testing.assert_allclose(alone.heatmaps, together[index].heatmaps, atol=1e-4)
        assert alone.heatmaps.shape == (3, 8, 8) and alone.blank.shape == (3,)


def test_a_file_is_answered_or_refused(opened):
    _, predictor = opened
    buffer = io.BytesIO()
    Image.fromarray(FILMS[3]).save(buffer, "PNG")
    answer = predictor.predict_file(buffer.getvalue(), "layercam")
    np.testing.assert_allclose(answer.probabilities, next(predictor.predict(FILMS[3:4])).probabilities, atol=1e-6)
    assert answer.heatmaps is not None
    refused = predictor.predict_file(buffer.getvalue()[:-300])
    assert refused.decision == "refused" and "cut short" in refused.reason and refused.probabilities is None


@pytest.mark.parametrize(
    ("films", "message"),
    [
        (FILMS[0], r"images are \(64, 64\) uint8; \(N, 64, 64\) uint8 is needed"),
        (FILMS[:, :32], r"images are \(37, 32, 64\) uint8"),
        (FILMS / 255.0, "float64"),
    ],
)
def test_other_shapes_and_types_are_named(opened, films, message):
    with pytest.raises(ValueError, match=message):
        next(opened[1].predict(films))


def test_another_order_of_classes_is_refused(tmp_path):
    save(tmp_path, classes=["bacterial", "normal", "viral"])
    with pytest.raises(
        checkpoint.CheckpointError, match="classes are .'bacterial', 'normal', 'viral'.; these programs"
    ):
        Predictor.open(tmp_path)


def test_another_architecture_lists_what_does_not_fit(tmp_path):
    save(tmp_path, options={"widths": (4, 8), "blocks": (1, 2)})
    with pytest.raises(checkpoint.CheckpointError, match="params/stage2/block2/conv1/kernel is missing"):
        Predictor.open(tmp_path)


def test_kernels_of_16_bits_are_served_in_32(tmp_path):
    variables = save(tmp_path, lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
    expected = jax.nn.softmax(build("cnn", OPTIONS).apply(rounded, to_input(FILMS[:2], 32, 0.5, 0.25)))
    answers = [answer.probabilities for answer in Predictor.open(tmp_path).predict(FILMS[:2])]
    np.testing.assert_allclose(answers, expected, atol=1e-6)
