"""What is shared belongs together: the weights, their report, their card, and what the page and README say of them."""

import csv
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from configs import cnn
from jobs.evaluation import cards, intervals, metrics, predictions
from model.labels import CLASSES, NORMAL
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
    # A grid of films, which are not ours to share, stays where it is made.
    heatmaps = REPORT / "heatmaps.png"
    assert str(heatmaps) in (ROOT / ".gitignore").read_text().splitlines()
    tracked = subprocess.run(["git", "ls-files", heatmaps], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not tracked.stdout


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
    text = " ".join((ROOT / "README.md").read_text().split())

    def number(value):
        return f"{value:.3f}".removeprefix("0")

    def told(value, interval):
        return f"{number(value)} ({number(interval[0])} to {number(interval[1])})"

    def figure(found):
        return told(found["value"], found["interval"])

    def each(*values):
        return ", ".join(map(number, values))

    bounds, views = measured["intervals"], measured["shortcuts"]["views"]
    copies, negatives = measured["shifts"]["mean"], measured["outliers"]
    accuracy = told(measured["accuracy"], bounds["accuracy"])
    binary, of_binary = measured["binary"], told(measured["binary"]["accuracy"], bounds["binary"]["accuracy"])
    phantoms = told(negatives["phantoms"]["refused"], negatives["phantoms"]["intervals"]["refused"])
    rows = [
        f"balanced accuracy, macro-F1 | {accuracy}, {each(measured['balanced_accuracy'], measured['macro_f1'])}",
        f"specificity, AUROC | {of_binary}, {each(binary['sensitivity'], binary['specificity'], binary['auroc'])}",
        f"bacterial, viral | {each(*(values['sensitivity'] for values in measured['classes'].values()))}",
        f"(ECE) | {told(measured['log_loss'], bounds['log_loss'])}, {each(measured['brier'], measured['ece'])}",
        f"(45 copies) | three classes {number(copies['accuracy']['value'])}, "
        f"pneumonia {number(copies['binary_accuracy']['value'])}, AUROC {number(copies['binary_auroc']['value'])}",
        f"phantoms | {figure(measured['shifts']['as it is']['refused'])}, {figure(copies['refused'])}, {phantoms}",
    ]
    for view, words in (("mirrored", "mirrored"), ("four changes at once", "with four of these changes at once")):
        found = views[view]
        rows.append(
            f"films {words} | three classes {figure(found['accuracy'])}, pneumonia {figure(found['binary_accuracy'])}, "
            f"AUROC {number(found['binary_auroc']['value'])}"
        )
    for row in rows:
        assert f"{row} |" in text, row


def test_the_readme_tells_which_films_are_answered_wrong():
    text = " ".join((ROOT / "README.md").read_text().split())
    written = predictions.read(ROOT / REPORT / "predictions.csv")
    answers, numbers = written.probabilities.argmax(axis=1), []
    for name in written.names:
        found = re.search(r"person(\d+)_", name)
        numbers.append(int(found[1]) if found else 0)
    wrong = answers != written.labels
    mixed = wrong & (answers != NORMAL) & (written.labels != NORMAL)
    odd = np.array([bool(re.search(cnn.get_config().data.leave_out, name)) for name in written.names])
    low = ~odd & (written.labels == CLASSES.index("viral")) & (np.array(numbers) < 447)
    rest = ~odd & ~low
    assert f"Of its {wrong.sum()} wrong answers {mixed.sum()} take bacterial for viral" in text
    assert f"{(mixed & odd).sum()} on the {odd.sum()} films in ranges of patient numbers" in text
    assert f"{(mixed & low).sum()} on the {low.sum()} other viral films of low numbers" in text
    assert f"{(mixed & rest).sum()} on all the rest. On that rest, {rest.sum()} films" in text
    on_rest = written.labels[rest], written.probabilities[rest]
    figures = metrics.score(*on_rest)
    bounds = intervals.intervals(*on_rest, [one for one, kept in zip(written.patients, rest, strict=True) if kept])
    told = []
    for name in ("accuracy", "macro_f1"):
        value, low_bound, high_bound = (f"{one:.3f}"[1:] for one in (figures[name], *bounds[name]))
        told.append(f"{value} ({low_bound} to {high_bound})")
    assert f"three classes have {told[0]} and macro-F1 {told[1]}" in text
