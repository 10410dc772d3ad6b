"""The object that answers: the same alone and in a batch, from a run and from a bundle."""

import dataclasses
import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from model import checkpoint, gradcam
from model import predictor as predictor_module
from model.calibration import Calibration
from model.outliers import Gaussians, Outliers, thumbnails
from model.predictor import Prediction, Predictor
from model.preprocess import resize, to_input
from model.registry import build

OPTIONS = {"widths": (4, 8), "blocks": (1, 1)}
FILMS = np.random.default_rng(0).integers(0, 255, (37, 64, 64), np.uint8)


@functools.cache
def started():
    module = build("cnn", OPTIONS)
    return jax.device_get(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1))))


def save(directory, change=lambda variables: variables, **meta):
    variables = started()
    complete = {
        "architecture": "cnn",
        "options": OPTIONS,
        "classes": ["normal", "bacterial", "viral"],
        "image_size": 32,
        "side": 1.0,
        "storage_size": 64,
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
    expected = jax.nn.softmax(build("cnn", OPTIONS).apply(variables, to_input(FILMS, 32)))
    answers = list(predictor.predict(FILMS))
    assert len(answers) == 37
    np.testing.assert_allclose([answer.probabilities for answer in answers], expected, atol=1e-6)
    assert [answer.decision for answer in answers] == [
        ("normal", "bacterial", "viral")[index] for index in np.asarray(expected).argmax(axis=1)
    ]
    assert answers[0].heatmaps is None and predictor.steps == (5,)


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
        checkpoint.CheckpointError,
        match="order of classes .'bacterial', 'normal', 'viral'., where .'normal', 'bacterial', 'viral'. is needed",
    ):
        Predictor.open(tmp_path)


def test_another_architecture_lists_what_does_not_fit(tmp_path):
    save(tmp_path, options={"widths": (4, 8), "blocks": (1, 2)})
    with pytest.raises(checkpoint.CheckpointError, match="params/stage2/block2/conv1/kernel is missing"):
        Predictor.open(tmp_path)


def test_kernels_of_16_bits_are_served_in_32(tmp_path):
    variables = save(tmp_path, lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), variables)
    expected = jax.nn.softmax(build("cnn", OPTIONS).apply(rounded, to_input(FILMS[:2], 32)))
    answers = [answer.probabilities for answer in Predictor.open(tmp_path).predict(FILMS[:2])]
    np.testing.assert_allclose(answers, expected, atol=1e-6)


# Every key of what jobs/training/loop.py saves.
META = {
    "architecture": "cnn",
    "options": {"widths": (4, 8), "blocks": (1, 1)},
    "classes": ["normal", "bacterial", "viral"],
    "image_size": 32,
    "side": 1.0,
    "storage_size": 64,
    "config": {"seed": 0},
    "dataset": {"name": "phantom", "fingerprint": "0" * 64},
    "metrics": {"val_loss": 0.5},
    "epoch": 1,
    "history": [{"epoch": 1, "val_loss": 0.5}],
    "packages": {"jax": "0"},
}
# Forty films of different brightness, contrast and grain, so that answers differ.
COARSE = [resize(np.random.default_rng(i).integers(0, 255, (4 + i, 4 + i), np.uint8), 64) for i in range(40)]
VARIED = np.stack([(film * (0.2 + 0.02 * i)).astype(np.uint8) for i, film in enumerate(COARSE)])


def vivid_variables():
    """Every parameter and statistic off its start, and a head whose logits differ from film to film by about 2."""
    module = build(META["architecture"], META["options"])
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: leaf + random.uniform(0.1, 0.4, leaf.shape).astype(np.float32), started())
    inputs = to_input(jnp.asarray(VARIED), 32)
    pooled = np.asarray(module.apply(variables, inputs, method="features")).mean((1, 2))  # (40, 8)
    kernel = random.normal(size=(8, 3))
    kernel *= 2 / (pooled @ kernel).std(0)
    head = {"kernel": kernel.astype(np.float32), "bias": -(pooled @ kernel).mean(0).astype(np.float32)}
    variables["params"]["head"]["dense"] = head
    return variables


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory: a good step, then a worse one with other values; and the variables of the good one."""
    directory = tmp_path_factory.mktemp("run")
    variables = vivid_variables()
    worse = jax.tree.map(lambda leaf: leaf + 1, variables)
    with checkpoint.Writer(directory) as writer:
        for step, values, score in ((10, variables, 0.9), (20, worse, 0.1)):
            writer.save(step, values, META, train={"params": values["params"], "count": np.int32(step)}, score=score)
    return directory, variables


@pytest.fixture(scope="module")
def vivid_predictor(run):
    return Predictor.open(run[0])


def by_hand(variables, films):
    """Probabilities: 2 x 2 means, standardised and exponentiated in numpy; the network alone is the project's."""
    halves = films.astype(float).reshape(len(films), 32, 2, 32, 2).mean((2, 4))
    centred = halves - halves.mean((1, 2), keepdims=True)
    inputs = (centred / halves.std((1, 2), keepdims=True))[..., None].astype(np.float32)
    logits = np.asarray(build("cnn", META["options"]).apply(variables, inputs), float)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def test_the_best_step_of_a_run_answers(run, vivid_predictor):
    assert vivid_predictor.steps == (10,) and vivid_predictor.meta["epoch"] == 1
    answers = list(vivid_predictor.predict(VARIED))
    assert len(answers) == 40
    expected = by_hand(run[1], VARIED)
    np.testing.assert_allclose([answer.probabilities for answer in answers], expected, atol=1e-4)
    np.testing.assert_allclose(sum(answer.probabilities.sum() for answer in answers), 40, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 0.02  # films differ, so their order is seen
    assert [answer.decision for answer in answers] == [
        META["classes"][label] for label in np.argmax([answer.probabilities for answer in answers], axis=1)
    ]
    assert len({answer.decision for answer in answers}) > 1


def test_forty_films_one_by_one(vivid_predictor):
    together = [answer.probabilities for answer in vivid_predictor.predict(VARIED)]
    alone = [next(vivid_predictor.predict(film[None])).probabilities for film in VARIED]
    np.testing.assert_allclose(alone, together, rtol=2e-4)  # another size of batch may sum in another order


def test_neighbours_and_padding_leave_no_trace(vivid_predictor):
    few = list(vivid_predictor.predict(VARIED[:3], "gradcam++"))
    among = VARIED.copy()
    among[3:] = 255
    many = list(vivid_predictor.predict(among, "gradcam++"))
    assert len(few) == 3 and len(many) == 40
    for one, other in zip(few, many[:3], strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.heatmaps, other.heatmaps)
    assert list(vivid_predictor.predict(VARIED[:0])) == []


def test_two_shapes_are_compiled_in_all(run):
    predictor = Predictor.open(run[0])
    before = predictor_module._ask._cache_size()
    for count in (1, 40, 1, 2, 33):
        assert len(list(predictor.predict(VARIED[:count]))) == count
    assert predictor_module._ask._cache_size() - before == 2


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_heat_maps_explain_the_odds_against_normal(run, vivid_predictor, method):
    answers = list(vivid_predictor.predict(VARIED[:2], method))
    inputs = to_input(jnp.asarray(VARIED[:2]), 32)
    module = build("cnn", META["options"])
    _, expected = gradcam.explain(module, run[1], inputs, method, target="against_normal")
    for index, answer in enumerate(answers):
        np.testing.assert_allclose(answer.heatmaps, expected.maps[index], atol=1e-4)
        assert answer.blank.tolist() == expected.blank[index].tolist() == (answer.heatmaps.max((1, 2)) == 0).tolist()
        assert answer.heatmaps.dtype == np.float32 and answer.reason == ""
    without = next(vivid_predictor.predict(VARIED[:1]))
    assert without.heatmaps is None and without.blank is None
    np.testing.assert_allclose(without.probabilities, answers[0].probabilities, atol=1e-4)


def test_reading_is_decoding_and_squashing(vivid_predictor):
    wide = np.random.default_rng(1).integers(0, 255, (70, 200), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    film = vivid_predictor.read(buffer.getvalue())
    np.testing.assert_array_equal(film, np.asarray(Image.fromarray(wide).resize((64, 64), Image.Resampling.BILINEAR)))
    asked, given = vivid_predictor.predict_file(buffer.getvalue()), next(vivid_predictor.predict(film[None]))
    np.testing.assert_array_equal(asked.probabilities, given.probabilities)
    assert asked.decision == given.decision and asked.heatmaps is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (
            b"nonsense",
            "not a PNG, JPEG, WebP, TIFF or BMP image; save it as one of these, or unpack what it is packed in",
        ),
    ],
)
def test_a_refusal_carries_its_sentence_and_nothing_else(vivid_predictor, data, reason):
    assert vivid_predictor.predict_file(data, "gradcam") == Prediction("refused", None, reason, None, None)


def test_an_unknown_method_is_named(vivid_predictor):
    with pytest.raises(ValueError, match="unknown method 'cam'; known: gradcam, gradcam"):
        next(vivid_predictor.predict(VARIED[:1], "cam"))


def test_a_bundle_of_half_precision_is_served_in_float32(run, tmp_path):
    # As jobs/bundle.py makes one: a single step without `train`, the kernels in bfloat16.
    def cast(leaf):
        return leaf.astype(jnp.bfloat16) if leaf.ndim > 1 else leaf

    with checkpoint.Writer(tmp_path) as writer:
        writer.save(10, jax.tree.map(cast, run[1]), META, score=0.9)
    predictor = Predictor.open(str(tmp_path))
    rounded = jax.tree.map(lambda leaf: cast(leaf).astype(np.float32), run[1])
    answers = [answer.probabilities for answer in predictor.predict(VARIED)]
    np.testing.assert_allclose(answers, by_hand(rounded, VARIED), atol=1e-4)
    assert answers[0].dtype == np.float32
    # Rounding shows, so the stored kernels were the ones served; arithmetic in bfloat16 would be off by more.
    assert 1e-4 < np.abs(answers - by_hand(run[1], VARIED)).max() < 0.1


def test_every_mismatch_of_an_architecture_is_listed(run):
    loaded = checkpoint.load(run[0])
    narrow = dataclasses.replace(loaded, meta=loaded.meta | {"options": {"widths": [4, 6], "blocks": [1, 1]}})
    with pytest.raises(checkpoint.CheckpointError) as error:
        Predictor([narrow])
    text = str(error.value)
    assert text.startswith("the stored arrays do not fit: batch_stats/stage2/block1/norm1/mean is (8,), (6,) is needed")
    assert "params/head/dense/kernel is (8, 3), (6, 3) is needed" in text
    other = dataclasses.replace(loaded, meta=loaded.meta | {"options": {"widths": [4], "blocks": [1]}})
    with pytest.raises(checkpoint.CheckpointError, match="params/stage2/block1/conv1/kernel is not part of it"):
        Predictor([other])


def test_an_unknown_architecture_is_named(run):
    loaded = checkpoint.load(run[0])
    with pytest.raises(checkpoint.CheckpointError, match="of another version: unknown architecture 'vit'; known: cnn,"):
        Predictor([dataclasses.replace(loaded, meta=loaded.meta | {"architecture": "vit"})])
    gone = loaded.meta | {"options": loaded.meta["options"] | {"stem_channels": 3}}
    with pytest.raises(checkpoint.CheckpointError, match="unknown option stem_channels of cnn"):
        Predictor([dataclasses.replace(loaded, meta=gone)])


def test_a_checkpoint_of_films_that_were_standardised_otherwise_is_refused(run):
    loaded = checkpoint.load(run[0])
    older = {name: value for name, value in loaded.meta.items() if name != "side"} | {"mean": 0.5, "std": 0.25}
    with pytest.raises(checkpoint.CheckpointError, match="step 10 is of another version, .* train it again"):
        Predictor([dataclasses.replace(loaded, meta=older)])


def test_nothing_to_open_says_how_to_train(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="train one: python jobs/train.py --config configs/cnn.py"):
        Predictor.open(tmp_path / "absent")


# What was fitted beside the vivid model: hotter, biased, and a Gaussian around nothing in particular.
def calibration(predictor, **change):
    raw = next(raw for _, raw in predictor.ask(VARIED[:32]))
    (features,) = raw.features
    member = Gaussians(np.eye(8), np.tile(features.mean(axis=0, dtype=float), (3, 1)))
    mean_film = thumbnails(VARIED).mean(axis=0)
    fitted = Calibration(
        weights=predictor.weights,
        steps=predictor.steps,
        temperature=2.0,
        bias=(0.3, -0.1, -0.2),
        confidence=0.0,
        operating_points={"balanced": 0.5},
        outliers=Outliers((member,), 1e9, mean_film / mean_film.std()),
        facts={},
    )
    return dataclasses.replace(fitted, **change)


@pytest.fixture
def beside(run, vivid_predictor):
    """Opens the run with a calibration beside it."""

    def open_with(**change):
        (run[0] / "calibration.json").write_text(calibration(vivid_predictor, **change).to_text())
        return Predictor.open(run[0])

    yield open_with
    (run[0] / "calibration.json").unlink()


def test_what_was_fitted_is_applied(run, beside):
    predictor = beside()
    logits = np.log(by_hand(run[1], VARIED)) / 2 + np.array([0.3, -0.1, -0.2])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = list(predictor.predict(VARIED))
    np.testing.assert_allclose([answer.probabilities for answer in answers], expected, atol=1e-4)
    plain = Predictor.open(run[0], calibrated=False)
    np.testing.assert_allclose(next(plain.predict(VARIED[:1])).probabilities, by_hand(run[1], VARIED)[0], atol=1e-4)


def test_below_the_confidence_a_decision_is_uncertain(run, beside):
    predictor = beside(confidence=0.45)
    answers = list(predictor.predict(VARIED))
    tops = np.array([answer.probabilities.max() for answer in answers])
    assert 0 < (tops < 0.45).sum() < 40
    assert [answer.decision == "uncertain" for answer in answers] == (tops < 0.45).tolist()


def test_what_is_not_like_the_training_films_is_refused_with_its_numbers(vivid_predictor, beside):
    fitted = calibration(vivid_predictor).outliers
    features = [raw.features[0] for _, raw in vivid_predictor.ask(VARIED)]
    distances = fitted.distances([np.concatenate(features)])
    middle = float(np.median(distances))
    predictor = beside(outliers=dataclasses.replace(fitted, threshold=middle))
    answers = list(predictor.predict(VARIED))
    # A film that looks turned or inverted says so instead.
    assert all(answer.decision == "refused" for answer, far in zip(answers, distances > middle, strict=True) if far)
    reason = "this is not like the chest films that the model learned from; cut off anything around the film"
    assert sum(answer.reason == reason for answer in answers) > 5
    assert all(answer.probabilities is not None for answer in answers)


def resealed(text, absent):
    """A calibration that lacks a field, with a digest that is right."""
    rest = {name: value for name, value in json.loads(text).items() if name != absent}
    return json.dumps(rest | {"sha256": checkpoint.json_digest(rest)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"temperature": 2.0', '"temperature": 3.0'), "does not match its digest: it is dam"),
        (lambda text: text[:500], "cannot be read"),
        (lambda text: "[1]", "does not match its digest"),
        (lambda text: 100_000 * "[", "cannot be read"),
        (lambda text: resealed(text, "format"), "was made by another version"),
        (lambda text: resealed(text, "steps"), "was made by another version"),
    ],
)
def test_a_damaged_calibration_is_refused(run, beside, change, message):
    beside()
    path = run[0] / "calibration.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(checkpoint.CheckpointError, match=f"{message}.*fit it again: python jobs/calibrate.py"):
        Predictor.open(run[0])


def test_the_calibration_of_another_version_is_refused(run, beside, monkeypatch):
    beside()
    monkeypatch.setattr("model.calibration.FORMAT", 99)
    with pytest.raises(checkpoint.CheckpointError, match="was made by another version; fit it again"):
        Predictor.open(run[0])


def test_the_calibration_of_another_checkpoint_is_refused(beside):
    with pytest.raises(checkpoint.CheckpointError, match=r"was fitted for other weights \(of step 7\); fit it again"):
        beside(weights=("0" * 64,), steps=(7,))


def test_an_ensemble_answers_with_the_mean(run, tmp_path):
    other = jax.tree.map(lambda leaf: leaf * 1.1, run[1])
    for number, variables in ((1, run[1]), (2, other), (3, run[1])):
        with checkpoint.Writer(tmp_path / f"member-{number}") as writer:
            writer.save(number, variables, META, score=0.5)
    predictor = Predictor.open(tmp_path)
    assert predictor.steps == (1, 2, 3)
    expected = (2 * by_hand(run[1], VARIED) + by_hand(other, VARIED)) / 3
    answers = list(predictor.predict(VARIED, "hirescam"))
    np.testing.assert_allclose([answer.probabilities for answer in answers], expected, atol=1e-4)

    module = build("cnn", META["options"])
    inputs = to_input(jnp.asarray(VARIED[:2]), 32)
    maps = [
        gradcam.explain(module, variables, inputs, "hirescam", target="against_normal")[1].maps
        for variables in (run[1], other, run[1])
    ]
    mean = np.mean(maps, axis=0)
    peak = mean.max(axis=(2, 3), keepdims=True)
    for index in range(2):
        np.testing.assert_allclose(answers[index].heatmaps, (mean / np.where(peak > 0, peak, 1))[index], atol=1e-3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dataset": META["dataset"] | {"fingerprint": "1" * 64}}, r"dataset .*1111.*, where .*0000.* is needed"),
        ({"storage_size": 2 * META["storage_size"]}, rf"storage size \d+, where {META['storage_size']} is needed"),
    ],
)
def test_members_of_different_data_are_no_ensemble(run, tmp_path, other, message):
    for number, change in ((1, {}), (2, other)):
        with checkpoint.Writer(tmp_path / f"member-{number}") as writer:
            writer.save(number, run[1], META | change, score=0.5)
    with pytest.raises(checkpoint.CheckpointError, match=f"network 2 of 2: {message}; leave it out"):
        Predictor.open(tmp_path)
