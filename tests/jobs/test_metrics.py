"""The figures, against hand-made cases and scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as reference

from jobs.evaluation import metrics
from jobs.evaluation.intervals import intervals
from jobs.evaluation.tables import markdown, widthless

# Truth normal, normal, bacterial, viral; the second is called bacterial.
LABELS = np.array([0, 0, 1, 2])
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.05, 0.05, 0.9]])


@pytest.fixture
def random_answers():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    logits = random.normal(size=(400, 3)) + 1.5 * np.eye(3)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_by_hand():
    measured = metrics.score(LABELS, PROBABILITIES)
    assert measured["accuracy"] == 0.75
    assert measured["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert measured["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert measured["classes"]["normal"] == {
        "count": 2,
        "sensitivity": 0.5,
        "specificity": 1.0,
        "precision": 1.0,
        "f1": pytest.approx(2 / 3),
        "auroc": 1.0,
        "average_precision": 1.0,
    }
    assert measured["classes"]["bacterial"]["precision"] == 0.5
    assert measured["binary"] == {"accuracy": 0.75, "sensitivity": 1.0, "specificity": 0.5, "auroc": 1.0}
    assert measured["log_loss"] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.9]).mean())


def test_against_scikit_learn(random_answers):
    labels, probabilities = random_answers
    measured = metrics.score(labels, probabilities)
    decisions = probabilities.argmax(axis=1)
    assert measured["accuracy"] == pytest.approx(reference.accuracy_score(labels, decisions))
    assert measured["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(labels, decisions))
    assert measured["macro_f1"] == pytest.approx(reference.f1_score(labels, decisions, average="macro"))
    assert measured["auroc"] == pytest.approx(reference.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert measured["log_loss"] == pytest.approx(reference.log_loss(labels, probabilities))
    assert measured["confusion_matrix"] == reference.confusion_matrix(labels, decisions).tolist()
    assert measured["average_precision"] == pytest.approx(
        reference.average_precision_score(np.eye(3)[labels], probabilities, average="macro")
    )


def test_calibration_error_by_hand():
    # Confidences .9, .9 (one right) and .6 (right): bins (.8667, .9333] and (.5333, .6].
    probabilities = np.array([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.2, 0.6, 0.2]])
    error = metrics.expected_calibration_error(np.array([0, 1, 1]), probabilities)
    assert error == pytest.approx((2 * abs(0.5 - 0.9) + 1 * abs(1 - 0.6)) / 3)


def test_bins_hold_their_upper_edge():
    confidence, accuracy, count = metrics.reliability_bins(np.array([0, 1]), np.array([[1.0, 0, 0], [0.6, 0.2, 0.2]]))
    filled = [8, 14]  # of 15: (.533, .6] and (.933, 1]
    assert np.flatnonzero(count).tolist() == filled and count[filled].tolist() == [1, 1]
    assert confidence[filled].tolist() == [0.6, 1.0]
    assert accuracy[filled].tolist() == [0.0, 1.0]


def test_an_absent_class_is_none_not_nan():
    measured = metrics.score(LABELS[:3], PROBABILITIES[:3])
    viral = measured["classes"]["viral"]
    assert viral["sensitivity"] is None and viral["auroc"] is None and viral["precision"] is None
    assert measured["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    found = intervals(LABELS[:3], PROBABILITIES[:3], ["a", "b", "c"])
    assert "sensitivity  not defined" in metrics.table(measured, found)


def test_one_class_alone():
    measured = metrics.score(np.zeros(2, int), PROBABILITIES[:2])
    assert measured["auroc"] is None and measured["binary"]["sensitivity"] is None
    assert measured["binary"]["specificity"] == 0.5


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (LABELS[:2], PROBABILITIES, r"\(2,\) labels and \(4, 3\) probabilities"),
        (LABELS[:0], PROBABILITIES[:0], "N at least 1"),
        (LABELS + 1, PROBABILITIES, "1 to 3; 0 to 2 are classes"),
        (LABELS, PROBABILITIES * 2, "0.1 to 1.8; 0 to 1 is needed"),
        (LABELS, PROBABILITIES * np.nan, "nan"),
        (LABELS, PROBABILITIES * 0.9, "0.1 off a sum of 1"),
    ],
)
def test_wrong_input_is_named(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        metrics.score(labels, probabilities)


def test_table_shows_every_figure_with_its_interval():
    labels, probabilities = np.tile(LABELS, 2), np.tile(PROBABILITIES, (2, 1))
    found = intervals(labels, probabilities, list("abcdefgh"))
    told = metrics.table(metrics.score(labels, probabilities), found)
    assert widthless({"intervals": found})  # sensitivity to viral films is 100.0 % (100.0 to 100.0)
    assert not widthless({"intervals": metrics.each(found, lambda _: [0.1, 0.9])})
    lines = told.splitlines()
    low, high = (100 * edge for edge in found["accuracy"])
    assert f"                accuracy   75.0 % ({low:.1f} to {high:.1f})" in lines
    low, high = found["log_loss"]
    assert any(line.endswith(f" ({low:.4f} to {high:.4f})") and "log loss" in line for line in lines)
    assert not any("%" in line for line in lines if "auroc" in line)
    assert [line for line in lines if "films" in line][1:] == [
        "normal, 4 films",
        "bacterial, 2 films",
        "viral, 2 films",
    ]


def test_intervals_of_no_width_are_found_wherever_they_stand():
    assert not widthless({"steps": [5, 5], "maps": {"figure": {"value": 1.0, "interval": None}}})
    assert widthless({"steps": [5, 6], "maps": {"figure": {"value": 1.0, "interval": [1.0, 1.0]}}})
    assert widthless({"decisions": {"intervals": {"balanced": {"npv": [0.9, 1.0], "ppv": [1.0, 1.0]}}}})


def test_a_bar_in_a_cell_is_no_column():
    row = markdown([["run", "accuracy"], ["leave_out=a|b", "0.9"]]).splitlines()[2]
    assert row == r"| leave_out=a\|b |      0.9 |"


def test_films_of_one_class_rank_nothing():
    measured = metrics.score(np.zeros(4, int), PROBABILITIES)
    of_class = measured["classes"]["normal"]
    assert of_class["average_precision"] is None and of_class["auroc"] is None
    assert measured["average_precision"] is None and of_class["sensitivity"] is not None


def test_weights_count_films(random_answers):
    """A weight of two is a film that is there twice, of none one that is not there."""
    labels, probabilities = random_answers
    weights = np.random.default_rng(1).integers(0, 3, len(labels))
    probabilities[:50] = probabilities[0]  # ties
    weighted = metrics.measure(labels, probabilities, np.stack([np.ones(len(labels)), weights]).astype(float))
    repeated = metrics.score(np.repeat(labels, weights), np.repeat(probabilities, weights, axis=0))
    repeated.pop("ece_equal_mass")  # whose bins are those of the films as they are

    def same(ours, theirs):
        for name, value in theirs.items():
            if isinstance(value, dict):
                same(ours[name], value)
            elif name not in ("count", "confusion_matrix"):
                assert ours[name][1] == pytest.approx(value, abs=1e-12), name

    same(weighted, repeated)


def test_ties_against_scikit_learn(random_answers):
    labels, probabilities = random_answers
    probabilities = np.round(probabilities, 1)
    probabilities[:, 2] = 1 - probabilities[:, :2].sum(axis=1)
    measured = metrics.score(labels, probabilities.clip(0, 1))
    truth, value = labels != 0, 1 - probabilities[:, 0]
    assert measured["binary"]["auroc"] == pytest.approx(reference.roc_auc_score(truth, value))
    average = reference.average_precision_score(labels == 0, probabilities[:, 0])
    assert measured["classes"]["normal"]["average_precision"] == pytest.approx(average)


def test_brier_and_equal_mass_by_hand():
    measured = metrics.score(LABELS, PROBABILITIES)
    squares = [0.06, 0.7**2 + 0.6**2 + 0.1**2, 0.2**2 + 0.3**2 + 0.1**2, 0.05**2 + 0.05**2 + 0.1**2]
    assert measured["brier"] == pytest.approx(np.mean(squares))
    # Fewer films than bins: each is a bin of its own.
    assert measured["ece_equal_mass"] == pytest.approx(np.mean([0.2, 0.6, 0.3, 0.1]))


def test_the_order_of_equally_sure_answers_is_nothing():
    sure = np.repeat([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1]], 60, axis=0)
    labels = np.arange(120) % 2  # half of them right
    for rows in (np.arange(120), np.argsort(labels, kind="stable")):
        assert metrics.score(labels[rows], sure[rows])["ece_equal_mass"] == pytest.approx((0.1 + 0.3) / 2)


def test_a_class_that_was_thought_impossible_costs_a_bounded_log_loss():
    certain = np.array([[0.0, 1, 0], [0, 1, 0]])
    assert metrics.score(np.array([0, 1]), certain)["log_loss"] == pytest.approx(-np.log(metrics.CLIP) / 2)
