"""Every plot is written, shows what it was given, and copes with too little."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jobs.evaluation import metrics, plots

RANDOM = np.random.default_rng(0)
LABELS = np.arange(60) % 3
LOGITS = RANDOM.normal(size=(60, 3)) + 2 * np.eye(3)[LABELS]
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "val_loss": abs(epoch - 3) + 0.5,
        "val_accuracy": None,
        "learning_rate": 0.1,
    }
    for epoch in range(1, 6)
]
FIGURE = {
    "accuracy": {"value": 0.8, "interval": [0.7, 0.9]},
    "binary_accuracy": {"value": 0.9, "interval": [0.8, 0.95]},
    "binary_auroc": {"value": None, "interval": None},
}
SHIFTS = {"curves": {name: [{"value": v, **FIGURE} for v in (1, 2, 9)] for name in ("gamma", "jpeg_quality", "x")}}
CURVES = {"deletion_curve": {"0": 0.9, "0.5": 0.3, "1": 0.2}, "insertion_curve": {"0": 0.2, "0.5": 0.7, "1": 0.9}}
MAPS = {
    "films": 12,
    "methods": {
        "gradcam": CURVES | {"deletion": 0.2, "insertion": 0.9, "cascade": {"head": 0.1, "stem": -0.1}},
        "random": CURVES | {"deletion": 0.6, "insertion": 0.6},
    },
}
CASE = plots.Case(np.full((40, 50), 99, np.uint8), np.eye(40, 50), "a title", correct=False)

DRAWINGS = {
    "confusion_matrix": lambda path: plots.confusion_matrix(metrics.score(LABELS, PROBABILITIES), path),
    "roc": lambda path: plots.roc_curves(LABELS, PROBABILITIES, path),
    "precision_recall": lambda path: plots.precision_recall_curves(LABELS, PROBABILITIES, path),
    "reliability": lambda path: plots.reliability_diagrams(
        LABELS, {"before": PROBABILITIES, "after": PROBABILITIES}, path
    ),
    "risk_coverage": lambda path: plots.risk_coverage_curve(
        LABELS, PROBABILITIES, {"coverage": 0.5, "accuracy": 0.93}, path
    ),
    "class_distribution": lambda path: plots.class_distribution({"train": LABELS, "test": LABELS[:7]}, path),
    "heatmaps": lambda path: plots.heatmap_grid([CASE] * 5, path),
    "shifts": lambda path: plots.shift_curves(SHIFTS, path),
    "maps": lambda path: plots.map_methods(MAPS, path),
    "learning_curves": lambda path: plots.learning_curves(HISTORY, 3, path),
}
WORDS = {
    "confusion_matrix": ["Confusion matrix, 60 films", "labelled", "viral"],
    "roc": ["ROC, 60 films", "normal, AUROC 0.9", "pneumonia, AUROC 0.9"],
    "precision_recall": ["viral, average precision 0.", "recall (sensitivity)"],
    "reliability": ["Reliability, 60 films", "before: ECE ", "after: ECE ", "confidence in the most probable class"],
    "risk_coverage": ["Risk and coverage, 60 films", "decided here: 50 %, of them 7 % wrong"],
    "class_distribution": ["Classes, 67 films", "20", "train"],
    "heatmaps": ["5 wrong, 0 right", "a title", "most"],
    "shifts": ["jpeg quality", "accuracy, three classes", "accuracy, normal against pneumonia", "AUROC, pneumonia"],
    "maps": ["12 films", "gradcam, 0.90", "Insertion: area (more is better)", "random, 0.60", "stem"],
    "learning_curves": ["5 epochs", "best, epoch 3", "validation"],
}


@pytest.fixture
def words(monkeypatch):
    """All texts of the figures that are saved."""
    seen = []
    save = Figure.savefig

    def savefig(self, *args, **kwargs):
        save(self, *args, **kwargs)
        seen.extend(text.get_text() for text in self.findobj(lambda artist: hasattr(artist, "get_text")))

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_png_that_shows_what_it_was_given(name, tmp_path, words):
    path = tmp_path / "plot.png"
    DRAWINGS[name](path)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 400
        assert np.asarray(image.convert("L")).std() > 5
    text = "\n".join(words)
    for expected in WORDS[name]:
        assert expected in text


@pytest.mark.parametrize("kept", [1, 2])
def test_absent_classes(kept, tmp_path, words):
    few = kept > LABELS
    for name in ("confusion_matrix", "roc", "precision_recall", "reliability"):
        draw = {
            "confusion_matrix": lambda p: plots.confusion_matrix(metrics.score(LABELS[few], PROBABILITIES[few]), p),
            "roc": lambda p: plots.roc_curves(LABELS[few], PROBABILITIES[few], p),
            "precision_recall": lambda p: plots.precision_recall_curves(LABELS[few], PROBABILITIES[few], p),
            "reliability": lambda p: plots.reliability_diagrams(LABELS[few], {"": PROBABILITIES[few]}, p),
        }[name]
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert not any(word.startswith("viral, AUROC") for word in words)
    assert words.count("not defined: all films are of one class") == (2 if kept == 1 else 0)
    assert words.count("no film") == 3 * (3 - kept)


def test_no_films_to_show(tmp_path, words):
    plots.heatmap_grid([], tmp_path / "h.png")
    assert "no film to show" in words


@pytest.mark.parametrize("decided", [None, {"coverage": 0.0, "accuracy": None}])
def test_where_nothing_is_decided_nothing_is_marked(decided, tmp_path, words):
    plots.risk_coverage_curve(LABELS, PROBABILITIES, decided, tmp_path / "r.png")
    assert "Risk and coverage, 60 films" in words
    assert not any(word.startswith("decided here") for word in words)


def test_of_one_film_and_of_maps_that_turn_round_nothing_is_hidden(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))
    plots.risk_coverage_curve(LABELS[:1], PROBABILITIES[:1], None, tmp_path / "r.png")
    (curve,) = saved[0].axes[0].lines
    assert curve.get_marker() == "." and saved[0].axes[0].get_ylim()[1] >= 5
    assert saved[0].get_suptitle() == "Risk and coverage, 1 film"
    row = {"deletion": 0.5, "insertion": 0.5, "deletion_curve": {"0": 1, "1": 0}, "insertion_curve": {"0": 0, "1": 1}}
    found = {"films": 1, "methods": {"gradcam": row | {"cascade": {"head": -0.8, "stem": 0.1}}}}
    plots.map_methods(found, tmp_path / "m.png")
    assert saved[1].axes[2].get_ylim()[0] < -0.8


def test_the_titles_of_wrong_answers_are_red(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))
    right = plots.Case(CASE.image, CASE.heatmap, "fine", correct=True)
    plots.heatmap_grid([CASE, right], tmp_path / "h.png")
    colours = {axes.get_title(): axes.title.get_color() for axes in saved[0].axes}
    assert colours["a title"] == "#C00000" and colours["fine"] == "black"


def test_one_epoch_and_missing_losses(tmp_path):
    plots.learning_curves([{"epoch": 1, "train_loss": 1.0, "val_loss": None}], 1, tmp_path / "c.png")
    assert (tmp_path / "c.png").exists()
