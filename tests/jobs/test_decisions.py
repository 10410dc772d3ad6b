"""Operating points, undecided and refused films: by hand, and against definitions."""

import numpy as np
import pytest

from jobs.evaluation import decisions

LABELS = np.array([0, 0, 1, 2, 1])
PROBABILITIES = np.array([[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.4, 0.35, 0.25], [0.15, 0.8, 0.05]])
ONES = np.ones((1, 5))
NONE = np.zeros(5, bool)


def first(tree):
    return {name: first(value) if isinstance(value, dict) else float(value[0]) for name, value in tree.items()}


def test_predictive_values_follow_bayes():
    # Pneumonia .1, .7, .8, .6, .85: from .65 it is called in one of two healthy and two of three ill films.
    found = first(decisions.operating_point(LABELS, PROBABILITIES, 0.65, 0.1, ONES))
    ppv = (2 / 3 * 0.1) / (2 / 3 * 0.1 + 0.5 * 0.9)
    npv = (0.5 * 0.9) / (0.5 * 0.9 + 1 / 3 * 0.1)
    assert found == pytest.approx({"sensitivity": 2 / 3, "specificity": 0.5, "ppv": ppv, "npv": npv})
    for share in (0, 1):  # where nobody is ill, or everybody
        found = first(decisions.operating_point(LABELS, PROBABILITIES, 0.65, share, ONES))
        assert (found["ppv"], found["npv"]) == (share, 1 - share)
    own = first(decisions.operating_point(LABELS, PROBABILITIES, 0.65, None, ONES))
    assert (own["ppv"], own["npv"]) == pytest.approx((2 / 3, 1 / 2))  # counts of the films themselves
    one_kind = first(decisions.operating_point(LABELS[2:], PROBABILITIES[2:], 0.65, None, ONES[:, 2:]))
    assert (one_kind["ppv"], one_kind["npv"]) == (1, 0) and np.isnan(one_kind["specificity"])


def test_undecided_films_are_left_out():
    found = first(decisions.selective(LABELS, PROBABILITIES, NONE, 0.55, ONES))
    # Decided: .9 right, .6 wrong, .8 right. Risks from the surest on: 0, 0, 1/3, 1/4, 2/5.
    assert found["coverage"] == pytest.approx(3 / 5) and found["accuracy"] == pytest.approx(2 / 3)
    assert found["risk_coverage_area"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    coverage, risk = decisions.risk_coverage(LABELS, PROBABILITIES)
    np.testing.assert_allclose(coverage, [0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 4, 2 / 5])

    without_first = np.array([True, False, False, False, False])
    found = first(decisions.selective(LABELS, PROBABILITIES, without_first, 0.55, ONES))
    assert found["coverage"] == pytest.approx(2 / 5) and found["accuracy"] == pytest.approx(1 / 2)


def test_nothing_decided_has_no_accuracy():
    found = decisions.selective(LABELS, PROBABILITIES, NONE, 0.95, ONES)
    assert found["coverage"][0] == 0 and np.isnan(found["accuracy"][0])


def test_equally_sure_films_come_together():
    probabilities = np.array([[0.8, 0.1, 0.1]] * 2)
    coverage, risk = decisions.risk_coverage(np.array([0, 1]), probabilities)
    assert coverage.tolist() == [1] and risk.tolist() == [0.5]


def test_weights_count_films():
    weights = np.array([[1, 0, 2, 1, 3.0]])
    rows = np.repeat(np.arange(5), weights[0].astype(int))
    refused = np.array([True, False, True, False, False])
    arguments = (0.45, {"balanced": 0.65}, None)
    weighted = first(decisions.measure(LABELS, PROBABILITIES, refused, *arguments, weights))
    ones = np.ones((1, len(rows)))
    repeated = first(decisions.measure(LABELS[rows], PROBABILITIES[rows], refused[rows], *arguments, ones))
    assert weighted["refused"] == repeated["refused"] == pytest.approx(3 / 7)
    assert weighted["abstention"] == pytest.approx(repeated["abstention"])
    assert weighted["operating_points"]["balanced"] == pytest.approx(repeated["operating_points"]["balanced"])


def test_thresholds_belong_to_what_is_above_them():
    even = np.array([[0.5, 0.5, 0.0]])
    assert first(decisions.operating_point(np.array([1]), even, 0.5, None, np.ones((1, 1))))["sensitivity"] == 1
    assert first(decisions.selective(np.array([0]), even, NONE[:1], 0.5, np.ones((1, 1))))["coverage"] == 1
