"""What is fitted after training: found where it is known, and the best where it can be searched."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax, softmax
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import log_loss

from jobs import JobError
from jobs.evaluation import fit
from jobs.evaluation.intervals import intervals
from model.calibration import rescale
from model.outliers import Outliers

RANDOM = np.random.default_rng(0)


def drawn(probabilities, random):
    """A label of each film, drawn from its own probabilities."""
    return (random.random((len(probabilities), 1)) > probabilities.cumsum(axis=1)).sum(axis=1)


TRUE = softmax(RANDOM.normal(size=(20_000, 3)), axis=1)
LABELS = drawn(TRUE, RANDOM)


def test_rescaling_by_hand():
    # Square roots of .64, .32 and .04, and the odds of the second doubled.
    roots = np.array([0.8, 0.32**0.5 * 2, 0.2])
    np.testing.assert_allclose(rescale(np.array([[0.64, 0.32, 0.04]]), 2.0, (0, np.log(2), 0)), [roots / roots.sum()])


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(factor):
    sharpened = rescale(TRUE, 1 / factor, np.zeros(3))
    temperature, bias = fit.temperature(LABELS, sharpened)
    assert temperature == pytest.approx(factor, rel=0.04) and bias == (0, 0, 0)
    best = log_loss(LABELS, rescale(sharpened, temperature, bias))
    for other in (0.98 * temperature, 1.02 * temperature):
        assert log_loss(LABELS, rescale(sharpened, other, bias)) > best


def test_answers_of_0_and_1_are_softened_as_far_as_others():
    random = np.random.default_rng(5)
    labels = np.arange(300) % 3
    said = (labels + (np.arange(300) % 10 == 0)) % 3  # a tenth is wrong, for sure
    saturated = np.eye(3)[said] * random.uniform(30, 40, (300, 1))
    saturated = np.exp(saturated - saturated.max(axis=1, keepdims=True))
    saturated /= saturated.sum(axis=1, keepdims=True)
    temperature, bias = fit.temperature(labels, saturated)
    assert temperature == pytest.approx(fit.temperature(labels, saturated, (1 / 3, 1 / 3, 1 / 3))[0], rel=1e-3)
    assert rescale(saturated, temperature, bias).max(axis=1).mean() == pytest.approx(0.9, abs=0.02)


def test_films_that_are_all_right_make_nothing_certain():
    labels = np.arange(90) % 3
    right = rescale(np.eye(3)[labels] * 0.9 + 0.03, 1, np.zeros(3))
    temperature, bias = fit.temperature(labels, right)
    # One of the 33 that count for a class is of each other one: Laplace's rule of succession.
    assert rescale(right, temperature, bias)[0] == pytest.approx([31 / 33, 1 / 33, 1 / 33], abs=1e-3)


@pytest.mark.parametrize("prior", [None, (0.34, 0.33, 0.33)])
def test_answers_no_better_than_guesses_are_not_made_alike(prior):
    confused = TRUE[:, [0, 2, 1]]  # bacterial and viral change places
    confused = confused**9 / (confused**9).sum(axis=1, keepdims=True)
    temperature, bias = fit.temperature(LABELS, confused, prior)  # without a bound, above 2,000
    assert temperature == pytest.approx(100)
    assert len(np.unique(rescale(confused, temperature, bias)[:, 0].round(7))) > 1000


def test_a_stated_prior_is_met():
    # Where the classes are as common as here, nothing is to be changed; elsewhere Bayes' theorem says how much.
    shares = np.bincount(LABELS) / len(LABELS)
    temperature, bias = fit.temperature(LABELS, TRUE, tuple(shares))
    np.testing.assert_allclose([temperature, *bias], [1, 0, 0, 0], atol=0.06)
    prior = np.array([0.7, 0.2, 0.1])
    temperature, bias = fit.temperature(LABELS, TRUE, tuple(prior))
    expected = np.log(prior / shares)
    np.testing.assert_allclose(bias, expected - expected.mean(), atol=0.06)
    assert temperature == pytest.approx(1, rel=0.05) and sum(bias) == pytest.approx(0)


@pytest.mark.parametrize("prior", [(0.9, 0.06, 0.04), (0.98, 0.01, 0.01), (0.999, 0.0005, 0.0005)])
def test_a_rare_class_stays_rare_where_films_are_few(prior):
    labels, probabilities = LABELS[:600], TRUE[:600]
    fitted = rescale(probabilities, *fit.temperature(labels, probabilities, prior))
    often = fit.as_often(labels, prior, np.ones(len(labels)))
    np.testing.assert_allclose(often @ fitted / often.sum(), prior, rtol=0.02)


@pytest.mark.parametrize("prior", [(0.6, 0.2, 0.2), (0.34, 0.33, 0.33)])
def test_a_prior_is_met_where_one_class_has_few_films(prior):
    kept = np.concatenate([np.flatnonzero(label == LABELS)[:count] for label, count in enumerate((200, 200, 10))])
    labels, probabilities = LABELS[kept], TRUE[kept]
    fitted = rescale(probabilities, *fit.temperature(labels, probabilities, prior))
    often = fit.as_often(labels, prior, np.ones(len(labels)))
    np.testing.assert_allclose(often @ fitted / often.sum(), prior, atol=0.003)


def test_the_operating_points_hold_what_they_promise():
    points = fit.operating_points(LABELS, TRUE)
    ill, pneumonia = LABELS != 0, 1 - TRUE[:, 0]

    def at(threshold):
        called = pneumonia >= threshold
        return called[ill].mean(), 1 - called[~ill].mean()

    values = np.unique(pneumonia)
    assert at(points["screening"])[0] >= 0.98 > at(values[np.searchsorted(values, points["screening"]) + 1])[0]
    assert at(points["specific"])[1] >= 0.95 > at(values[np.searchsorted(values, points["specific"]) - 1])[1]
    assert sum(at(points["balanced"])) == pytest.approx(max(sum(at(value)) for value in values[::20]), abs=2e-3)
    for threshold in points.values():  # never at a film
        assert np.abs(values - threshold).min() > 0


def test_normal_films_that_are_surely_called_ill_leave_an_operating_point():
    probabilities = np.array([[0.0, 1.0, 0.0]] * 4 + [[0.5, 0.5, 0.0]])
    points = fit.operating_points(np.array([0, 0, 1, 2, 1]), probabilities)
    assert points["specific"] > 1  # so that nothing is called ill


def test_operating_points_by_hand():
    probabilities = np.array([[0.9, 0.05, 0.05], [0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.8, 0.1, 0.1]])
    points = fit.operating_points(np.array([0, 0, 1, 2, 1]), probabilities)
    # Pneumonia: well .1 and .3, ill .2, .6 and .8.
    assert points == pytest.approx({"balanced": 0.45, "screening": 0.15, "specific": 0.45})


def test_operating_points_of_a_good_model_stay_in_order():
    pneumonia = np.concatenate([np.linspace(0.01, 0.7, 100), np.linspace(0.3, 0.99, 100) ** 0.05])
    probabilities = np.stack([1 - pneumonia, pneumonia, np.zeros(200)], axis=1)
    points = fit.operating_points(np.repeat([0, 1], 100), probabilities)
    # Both asks are met from .67 to .94, so each by itself would be met beyond the other.
    assert points["screening"] <= points["balanced"] <= points["specific"]


@pytest.mark.parametrize("label", [0, 1])
def test_operating_points_need_both_kinds(label):
    with pytest.raises(JobError, match="normal films and .* of pneumonia: operating points need some of both"):
        fit.operating_points(np.full(5, label), TRUE[:5])


def test_a_tenth_is_left_undecided():
    top, once = TRUE.max(axis=1), np.ones(len(TRUE))
    threshold = fit.confidence(TRUE, once)
    assert (top >= threshold).mean() == pytest.approx(0.9, abs=1e-3)
    assert np.abs(top - threshold).min() > 0
    often = np.where(LABELS == 0, 5.0, 1.0)
    assert often[top >= fit.confidence(TRUE, often)].sum() / often.sum() == pytest.approx(0.9, abs=1e-3)
    assert fit.confidence(TRUE, often) != threshold
    for count in (10, 20, 50, 100):
        few = TRUE[:count]
        assert (few.max(axis=1) >= fit.confidence(few, once[:count])).sum() == count * 9 // 10


def test_films_count_as_often_as_their_class_is_there():
    labels = np.array([0, 0, 0, 1, 2, 2])
    resamples = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 0, 0, 3], [1, 0, 0, 5, 0, 0]])
    np.testing.assert_array_equal(fit.as_often(labels, None, resamples), resamples)
    weights = fit.as_often(labels, (0.5, 0.3, 0.2), resamples)[0]
    assert weights.sum() == pytest.approx(6)
    np.testing.assert_allclose([weights[labels == label].sum() / 6 for label in range(3)], [0.5, 0.3, 0.2])
    weights = fit.as_often(labels, (0.5, 0.3, 0.2), resamples)
    np.testing.assert_allclose(weights[1], [2, 0, 1, np.nan, 0, 1.2])  # of a class that was not drawn nothing counts
    np.testing.assert_allclose(weights[2], [3, 0, 0, 1.8, np.nan, np.nan])


@pytest.mark.parametrize("prior", [None, (0.6, 0.25, 0.15), (0.9, 0.07, 0.03), (0.98, 0.01, 0.01)])
def test_no_other_temperature_and_bias_lose_less(prior):
    """Of few films, some of them wrong, a search may stop at the bound though there is a minimum within."""
    random = np.random.default_rng(7)
    for _ in range(20):
        labels = random.permutation(np.arange(random.integers(30, 200)) % 3)
        logits = random.normal(size=(len(labels), 3)) + random.uniform(0.3, 2) * np.eye(3)[labels]
        logits *= random.uniform(0.5, 4)
        probabilities = softmax(logits, axis=1)
        weights = np.ones(len(labels)) if prior is None else (np.array(prior) / np.bincount(labels))[labels]
        more = 3 / (len(labels) / 3 + 3)
        shares = np.bincount(labels, weights) / weights.sum()
        targets = ((1 - more) * np.eye(3)[labels] + more * shares) * weights[:, None] / weights.sum()

        def loss(temperature, bias):
            return -(targets * log_softmax(logits / temperature + bias, axis=1)).sum()  # noqa: B023

        found = loss(*fit.temperature(labels, probabilities, prior))

        def of_vector(vector):
            return loss(1 / vector[0], [0, *(vector[1:] if prior else (0, 0))])

        starts = random.uniform([0.01, -3, -3], [3, 3, 3], (5, 3))
        others = [optimize.minimize(of_vector, one, bounds=[(0.01, None), *[(None, None)] * 2]).fun for one in starts]
        assert found <= min(others) + 1e-6


def test_figures_at_a_prior_are_of_no_other_place():
    labels = np.repeat([0, 1, 2], 20)
    probabilities = np.tile([0.8, 0.1, 0.1], (60, 1))  # right of normal films alone, whoever is drawn
    patients = [f"patient {index}" for index in range(60)]
    told = fit.figures(labels, probabilities, patients, (0.6, 0.3, 0.1))
    assert told["accuracy"] == pytest.approx([0.6, 0.6, 0.6])
    value, low, high = fit.figures(labels, probabilities, patients, None)["accuracy"]
    assert value == pytest.approx(1 / 3) and low < value < high


def test_figures_at_a_prior_hang_on_no_single_patient():
    labels = np.repeat([0, 1, 2], [20, 20, 1])
    probabilities = np.tile([0.4, 0.5, 0.1], (41, 1))
    probabilities[:20] = [0.8, 0.1, 0.1]
    told = fit.figures(labels, probabilities, [f"patient {index}" for index in range(41)], (0.25, 0.25, 0.5))
    # A third of the resamples have no viral film, and could be of no such place.
    assert told["accuracy"] == pytest.approx([0.5]) and len(told["ece"]) == len(told["binary_accuracy"]) == 1


def test_the_gaussians_whiten_what_is_within_the_classes():
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], 3000)
    mixing = random.normal(size=(6, 6))
    features = random.normal(size=(9000, 6)) @ mixing + 10 * random.normal(size=(3, 6))[labels]
    member = fit.gaussians(labels, features)
    centres = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(member.centres, centres @ member.projection.T, rtol=1e-6)
    covariance, _ = ledoit_wolf(features - centres[labels], assume_centered=True)
    np.testing.assert_allclose(member.projection.T @ member.projection, np.linalg.inv(covariance), rtol=1e-6)
    assert member.distances(features).mean() == pytest.approx(1, rel=0.05)


def test_the_largest_components_are_what_is_fitted(monkeypatch):
    monkeypatch.setattr(fit, "COMPONENTS", 2)
    random = np.random.default_rng(3)
    features = random.normal(size=(900, 4)) * [10, 5, 0.1, 0.1]
    member = fit.gaussians(np.repeat([0, 1, 2], 300), features)
    assert member.projection.shape == (2, 4)
    assert np.abs(member.projection[:, 2:]).max() < 0.05 * np.abs(member.projection[:, :2]).max()


def test_one_in_a_hundred_held_out_films_lies_beyond():
    random = np.random.default_rng(4)
    labels = np.repeat([0, 1, 2], 100)
    images = random.integers(0, 255, (300, 32, 32), np.uint8)
    features, held_out = [random.normal(size=(300, 5))], [random.normal(size=(1000, 5))]
    fitted = fit.outliers(labels, images, features, held_out)
    assert (fitted.distances(held_out) > fitted.threshold).mean() == pytest.approx(0.01, abs=0.0011)
    assert fitted.mean_film.std() == pytest.approx(1)
    for count, beyond in ((99, 0), (100, 1), (613, 6)):
        some = [held_out[0][:count]]
        fitted = Outliers.from_json(fit.outliers(labels, images, features, some).to_json())  # as it is read
        distances = fitted.distances(some)
        assert (distances > fitted.threshold).sum() == beyond
        assert np.abs(distances / fitted.threshold - 1).min() > 1e-5  # never at a film


def test_figures_have_intervals_of_their_own():
    labels, patients = np.arange(60) % 3, [str(film) for film in range(60)]
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 60)
    bounds = intervals(labels, probabilities, patients)
    found = fit.figures(labels, probabilities, patients, None)
    assert found["binary_auroc"][1:] == bounds["binary"]["auroc"] and found["accuracy"][1:] == bounds["accuracy"]
