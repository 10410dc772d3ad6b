"""What is shared belongs together: the weights, their report, their card, and what the page and README say of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluation import cards, metrics, predictions
from model.predictor import Predictor
from space import app

ROOT = Path(__file__).parents[2]
REPORT = Path("docs/report")


@pytest.fixture(scope="module")
def predictor():
    return Predictor.open(ROOT / "space/checkpoint")


@pytest.fixture(scope="module")
def measured():
    return json.loads((ROOT / REPORT / "metrics.json").read_text())


def test_the_report_is_of_these_weights_and_of_films_held_out(predictor, measured):
    assert measured["checkpoint"]["weights"] == list(predictor.weights)
    assert measured["calibration"]["sha256"] == predictor.calibration.sha256
    assert measured["films_are"] == "held out" and measured["dataset"]["name"] == "chest_xray"
    assert not (ROOT / REPORT / "heatmaps.png").exists()  # a grid of films, which are not ours to share


def test_the_figures_are_those_of_the_predictions(measured):
    written = predictions.read(ROOT / REPORT / "predictions.csv")
    again = metrics.score(written.labels, written.probabilities)
    for name in ("accuracy", "macro_f1", "log_loss", "ece"):
        assert again[name] == pytest.approx(measured[name], abs=1e-5)
    assert again["confusion_matrix"] == measured["confusion_matrix"]
    with (ROOT / REPORT / "predictions.csv").open() as file:
        refused = {row["name"]: row["refused"] == "1" for row in csv.DictReader(file)}
    assert np.mean(list(refused.values())) == pytest.approx(measured["decisions"]["refused"])
    sure = written.probabilities.max(axis=1) >= measured["calibration"]["confidence"]
    decided = [one and not refused[name] for name, one in zip(written.names, sure, strict=True)]
    assert np.mean(decided) == pytest.approx(measured["decisions"]["abstention"]["coverage"])


def test_the_page_opens_with_the_maps_that_the_report_picks(measured):
    assert measured["maps"]["chosen"] == app.METHOD


def test_the_card_is_what_the_command_writes(predictor, measured):
    assert (ROOT / "space/checkpoint" / cards.FILE).read_text() == cards.card(predictor, measured, REPORT)


def test_the_readme_tells_the_figures_of_the_report(measured):
    text = (ROOT / "README.md").read_text()
    told = [measured[name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece")]
    told += [*measured["binary"].values(), *(values["sensitivity"] for values in measured["classes"].values())]
    bounds = [bound for name in ("accuracy", "log_loss") for bound in measured["intervals"][name]]
    for value in told + bounds:
        assert f"{value:.3f}".lstrip("0") in text, value
