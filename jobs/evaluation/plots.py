"""Plots as PNG files, one function each. Figures are built without pyplot, so threads and servers may call them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.evaluation.decisions import risk_coverage
from jobs.evaluation.metrics import expected_calibration_error, reliability_bins
from jobs.evaluation.tables import counted
from model.labels import CLASSES, NORMAL

DPI = 150
# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = {"normal": "#0072B2", "bacterial": "#D55E00", "viral": "#009E73", "pneumonia": "#444444"}
HEAT = colormaps["inferno"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One film of the heat-map grid."""

    image: np.ndarray  # (H, W) uint8
    heatmap: np.ndarray  # (H, W) in [0, 1]
    title: str
    correct: bool


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _say(axes: Axes, text: str) -> None:
    """In the middle of an empty plot."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def scaling(
    measured: Mapping[str, Mapping[str, float]], modelled: Mapping[str, Mapping[int, float]], path: Path
) -> None:
    """What more devices cost here, and gain elsewhere.

    Args:
      measured: "processes x devices" -> kind of step -> ms.
      modelled: network -> devices -> times as fast as one.
      path: of the PNG.
    """
    figure = _figure(10, 4.2, "The same global batch on more devices")
    here, elsewhere = figure.subplots(1, 2)
    kinds = list(next(iter(measured.values())))
    for index, kind in enumerate(kinds):
        places = np.arange(len(measured)) + (index - (len(kinds) - 1) / 2) / (len(kinds) + 1)
        here.bar(places, [row[kind] for row in measured.values()], width=1 / (len(kinds) + 1), label=kind)
    here.set_xticks(np.arange(len(measured)), list(measured))
    here.set(xlabel="processes x virtual devices", ylabel="ms a step", title=f"Measured on {os.cpu_count()} CPU cores")
    here.legend(frameon=False, fontsize=8)
    for name, row in modelled.items():
        elsewhere.plot(list(row), list(row.values()), marker="o", markersize=3, label=name)
    most = max(max(row) for row in modelled.values())
    elsewhere.plot([1, most], [1, most], color="0.6", linestyle=":", label="no cost at all")
    for axis, scale in ((elsewhere.xaxis, elsewhere.set_xscale), (elsewhere.yaxis, elsewhere.set_yscale)):
        scale("log", base=2)
        axis.set_major_formatter("{x:g}")
    elsewhere.set(xlabel="GPUs", ylabel="times as fast as one", title="Modelled")
    elsewhere.legend(frameon=False, fontsize=8)
    for axes in (here, elsewhere):
        _tidy(axes)
    figure.savefig(path, dpi=DPI)


def confusion_matrix(measured: Mapping[str, Any], path: Path) -> None:
    """Counts, and the share of each row, of `metrics.score(...)`."""
    matrix = np.asarray(measured["confusion_matrix"])
    films = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(films, 1)
    figure = _figure(4.6, 4.2, f"Confusion matrix, {counted(int(matrix.sum()), 'film')}")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(
            column,
            row,
            f"{count}\n{100 * shares[row, column]:.0f} %" if films[row] else "no film",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
        )
    axes.set_xticks(range(len(CLASSES)), CLASSES)
    axes.set_yticks(range(len(CLASSES)), CLASSES)
    axes.set_xlabel("read as")
    axes.set_ylabel("labelled")
    figure.savefig(path, dpi=DPI)


def _one_against_rest(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, truth, score) of each class against the rest, and of pneumonia against normal, where both sides exist."""
    pairs = [(name, labels == label, probabilities[:, label]) for label, name in enumerate(CLASSES)]
    pairs.append(("pneumonia", labels != NORMAL, 1 - probabilities[:, NORMAL]))
    return [pair for pair in pairs if 0 < pair[1].sum() < len(labels)]


def roc_curves(labels: np.ndarray, probabilities: np.ndarray, path: Path) -> None:
    """Sensitivity against false alarms, one curve a class and one for normal against pneumonia."""
    from sklearn.metrics import roc_auc_score, roc_curve  # a second, which no trainer should wait for

    curves = _one_against_rest(labels, probabilities)
    figure = _figure(5, 4.8, f"ROC, {counted(len(labels), 'film')}")
    axes = figure.add_subplot()
    for name, truth, value in curves:
        false_alarms, sensitivity, _ = roc_curve(truth, value)
        style = "--" if name == "pneumonia" else "-"
        label = f"{name}, AUROC {roc_auc_score(truth, value):.3f}"
        axes.plot(false_alarms, sensitivity, style, color=COLOURS[name], label=label)
    axes.plot([0, 1], [0, 1], ":", color="gray", linewidth=1, label="chance")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(loc="lower right", fontsize=9)
    if not curves:
        _say(axes, "not defined: all films are of one class")
    _tidy(axes)
    figure.savefig(path, dpi=DPI)


def precision_recall_curves(labels: np.ndarray, probabilities: np.ndarray, path: Path) -> None:
    """Precision against sensitivity, one curve a class and one for normal against pneumonia."""
    from sklearn.metrics import average_precision_score, precision_recall_curve  # as above

    figure = _figure(5, 4.8, f"Precision and recall, {counted(len(labels), 'film')}")
    axes = figure.add_subplot()
    curves = _one_against_rest(labels, probabilities)
    for name, truth, value in curves:
        precision, recall, _ = precision_recall_curve(truth, value)
        style = "--" if name == "pneumonia" else "-"
        label = f"{name}, average precision {average_precision_score(truth, value):.3f}"
        axes.plot(recall, precision, style, color=COLOURS[name], label=label)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    if curves:
        axes.legend(loc="lower left", fontsize=9)
    else:
        _say(axes, "not defined: all films are of one class")
    _tidy(axes)
    figure.savefig(path, dpi=DPI)


def reliability_diagrams(labels: np.ndarray, probabilities: Mapping[str, np.ndarray], path: Path) -> None:
    """Accuracy by confidence, and how many films have each confidence (Guo et al. 2017, fig. 1); a column a name."""
    figure = _figure(4.8 * len(probabilities), 5.6, f"Reliability, {counted(len(labels), 'film')}")
    panels = figure.subplots(2, len(probabilities), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    for (upper, lower), (name, values) in zip(panels.T, probabilities.items(), strict=True):
        confidence, accuracy, count = reliability_bins(labels, values)
        edges = np.linspace(0, 1, len(count) + 1)
        upper.bar(edges[:-1], np.nan_to_num(accuracy), np.diff(edges), align="edge", color="#56B4E9", edgecolor="white")
        upper.plot([0, 1], [0, 1], ":", color="gray", label="calibrated")
        upper.plot(confidence, accuracy, "o", color=COLOURS["bacterial"], markersize=4, label="mean of a bin")
        error = f"ECE {100 * expected_calibration_error(labels, values):.1f} %"
        upper.set_title(f"{name}: {error}" if name else error, fontsize=10)
        upper.set(ylabel="accuracy", ylim=(0, 1.02))
        upper.legend(loc="upper left", fontsize=9)
        lower.bar(edges[:-1], count, np.diff(edges), align="edge", color="#999999", edgecolor="white")
        lower.set(xlabel="confidence in the most probable class", ylabel="films", xlim=(0, 1))
        for axes in (upper, lower):
            axes.label_outer()
            _tidy(axes)
    figure.savefig(path, dpi=DPI)


def risk_coverage_curve(
    labels: np.ndarray, probabilities: np.ndarray, decided: Mapping[str, Any] | None, path: Path
) -> None:
    """The share of wrong answers where only the most confident films are decided (Geifman and El-Yaniv 2017, fig. 1).

    Args:
      labels: (N,) int.
      probabilities: (N, 3).
      decided: `abstention` of decisions.measure; what is decided is marked, which lies beside the curve where films
        are refused. None: no film is left undecided.
      path: of the PNG.
    """
    coverage, risk = risk_coverage(labels, probabilities)
    figure = _figure(5, 4, f"Risk and coverage, {counted(len(labels), 'film')}")
    axes = figure.add_subplot()
    marker = "." if len(coverage) == 1 else None
    # Above the axis, for a line at 0 is one, too.
    axes.plot(100 * coverage, 100 * risk, color=COLOURS["pneumonia"], marker=marker, clip_on=False, zorder=3)
    if decided is not None and decided["accuracy"] is not None:
        share, wrong = 100 * decided["coverage"], 100 - 100 * decided["accuracy"]
        label = f"decided here: {share:.0f} %, of them {wrong:.0f} % wrong"
        axes.plot(share, wrong, "o", color=COLOURS["bacterial"], clip_on=False, label=label)
        axes.legend(frameon=False, fontsize=9)
    axes.set(xlabel="films decided, %", ylabel="of them wrong, %", xlim=(0, 100.5))
    axes.set_ylim(0, max(105 * risk.max(), 5))
    _tidy(axes)
    figure.savefig(path, dpi=DPI)


def class_distribution(labels_of: Mapping[str, np.ndarray], path: Path) -> None:
    """Films of each class, a group of bars a split."""
    total = sum(len(labels) for labels in labels_of.values())
    figure = _figure(1.8 + 2.2 * len(labels_of), 3.6, f"Classes, {counted(total, 'film')}")
    axes = figure.add_subplot()
    for label, name in enumerate(CLASSES):
        counts = [int((labels == label).sum()) for labels in labels_of.values()]
        bars = axes.bar(np.arange(len(labels_of)) + 0.27 * (label - 1), counts, 0.25, color=COLOURS[name], label=name)
        axes.bar_label(bars, fontsize=9)
    axes.set_xticks(range(len(labels_of)), list(labels_of))
    axes.set_ylabel("films")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    figure.legend(loc="outside lower center", ncols=len(CLASSES), fontsize=9, frameon=False)
    _tidy(axes)
    figure.savefig(path, dpi=DPI)


def heatmap_grid(cases: Sequence[Case], path: Path) -> None:
    """Films beside their heat maps; the titles of wrong answers are red."""
    columns = 3
    rows = max(math.ceil(len(cases) / columns), 1)
    wrong = sum(not case.correct for case in cases)
    figure = _figure(4.4 * columns, 2.2 * rows + 0.5, f"Where it looked: {wrong} wrong, {len(cases) - wrong} right")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    if not cases:
        grid.flat[0].text(0, 0.5, "no film to show")
    for axes, case in zip(grid.flat, cases, strict=False):
        height, width = case.image.shape
        axes.imshow(case.image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        beside = (width, 2 * width, height, 0)
        axes.imshow(case.image, cmap="gray", vmin=0, vmax=255, extent=beside)
        axes.imshow(HEAT(case.heatmap), alpha=0.65 * np.clip(case.heatmap, 0, 1), extent=beside)
        axes.set_xlim(0, 2 * width)
        axes.set_title(case.title, fontsize=9, color="black" if case.correct else "#C00000")
    if cases:
        bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=grid, shrink=0.5, ticks=(0, 1))
        bar.ax.set_yticklabels(("least", "most"))
    figure.savefig(path, dpi=DPI)


def shift_curves(found: Mapping[str, Any], path: Path) -> None:
    """A panel a shift: accuracy of three classes and of two, and the AUROC of pneumonia, with their 95 % intervals.

    Args:
      found: the `shifts` of `examine.examine`.
      path: of the PNG.
    """
    curves = found["curves"]
    columns = 4
    rows = math.ceil(len(curves) / columns)
    figure = _figure(3.1 * columns, 2.7 * rows + 0.5, "On shifted copies of the films")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    shown = {
        "accuracy": ("accuracy, three classes", "bacterial"),
        "binary_accuracy": ("accuracy, normal against pneumonia", "viral"),
        "binary_auroc": ("AUROC, pneumonia", "normal"),
    }
    for axes, (name, points) in zip(panels, curves.items(), strict=False):
        values = [point["value"] for point in points]
        for key, (label, colour) in shown.items():
            heights = [np.nan if point[key]["value"] is None else point[key]["value"] for point in points]
            bounds = np.array([point[key]["interval"] or (np.nan, np.nan) for point in points])
            axes.plot(values, heights, marker="o", markersize=3, color=COLOURS[colour], label=label)
            axes.fill_between(values, bounds[:, 0], bounds[:, 1], color=COLOURS[colour], alpha=0.15, linewidth=0)
        axes.set_title(name.replace("_", " "), fontsize=10)
        if min(values) > 0 and max(values) / min(values) > 3:
            axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        _tidy(axes)
    handles, labels = axes.get_legend_handles_labels()
    for spare in panels[len(curves) :]:
        spare.axis("off")
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=DPI)


def map_methods(found: Mapping[str, Any], path: Path) -> None:
    """The CAM methods side by side: curves of deletion and insertion with their controls, and what randomising leaves.

    Args:
      found: the `maps` of `examine.examine`.
      path: of the PNG.
    """
    table = found["methods"]
    figure = _figure(13, 4.2, f"Are the maps worth looking at? {found['films']} films")
    *curves, right = figure.subplots(1, 3)
    # Some methods agree to the last digit: a line under another shows between its dashes.
    styles = dict(zip(table, itertools.cycle(("-", "--", ":", "-.")), strict=False))
    colours = {name: f"C{place}" if "cascade" in row else "0.6" for place, (name, row) in enumerate(table.items())}
    for axes, kind, aim in zip(curves, ("deletion", "insertion"), ("less", "more"), strict=True):
        for name, row in table.items():
            shares = [float(share) for share in row[f"{kind}_curve"]]
            heights = list(row[f"{kind}_curve"].values())
            axes.plot(shares, heights, styles[name], color=colours[name], label=f"{name}, {row[kind]:.2f}")
        axes.set(title=f"{kind.capitalize()}: area ({aim} is better)", ylim=(0, 1))
        axes.set_xlabel("share of the film blurred" if kind == "deletion" else "share of the film not blurred")
        axes.legend(frameon=False, fontsize=8)
    curves[0].set_ylabel("mean probability of the class")
    lowest = 0.0
    for name, row in table.items():
        if "cascade" in row:
            lowest = min(lowest, *row["cascade"].values())
            heights = [1, *row["cascade"].values()]
            right.plot(heights, styles[name], color=colours[name], marker="o", markersize=3, label=name)
            parts = list(row["cascade"])
    right.axhline(0, color="0.6", linewidth=1)
    right.set_xticks(range(len(parts) + 1), ["none", *parts], rotation=20)
    right.set(
        xlabel="randomised down to",
        ylabel="rank correlation with the map as it was",
        ylim=(min(-0.5, lowest - 0.05), 1.05),
    )
    right.set_title("What randomising the network leaves")
    right.legend(frameon=False, fontsize=8)
    for axes in (*curves, right):
        axes.title.set_fontsize(10)
        _tidy(axes)
    figure.savefig(path, dpi=DPI)


def learning_curves(history: Sequence[Mapping[str, Any]], best: int, path: Path) -> None:
    """Loss, figures and learning rate by epoch, and where a phase of the training begins.

    Args:
      history: the rows of log.jsonl.
      best: the epoch whose checkpoint is the best; marked.
      path: of the PNG.
    """
    epochs = [row["epoch"] for row in history]
    figure = _figure(11, 3.4, f"{len(epochs)} epochs")
    panels = figure.subplots(1, 3)
    curves = (
        ("loss", {"train_loss": "training (augmented)", "val_loss": "validation"}),
        (
            "validation figures",
            {
                "val_accuracy": "accuracy",
                "val_macro_f1": "macro-F1",
                "val_auroc": "AUROC",
                "val_binary_auroc": "AUROC, pneumonia",
            },
        ),
        ("learning rate", {"learning_rate": "learning rate"}),
    )
    palette = list(COLOURS.values())
    for axes, (title, names) in zip(panels, curves, strict=True):
        for colour, (name, label) in zip(palette, names.items(), strict=False):
            values = [math.nan if row.get(name) is None else row[name] for row in history]
            if not np.isnan(values).all():
                axes.plot(epochs, values, color=colour, label=label, marker="." if len(epochs) < 3 else None)
        axes.axvline(best, color="gray", linestyle=":", linewidth=1, label=f"best, epoch {best}")
        for before, row in itertools.pairwise(history):
            if row.get("phase") != before.get("phase"):
                axes.axvline(before["epoch"] + 0.5, color="0.8", linewidth=1, label=f"phase {row['phase']} begins")
        axes.set(title=title, xlabel="epoch")
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8)
        _tidy(axes)
    figure.savefig(path, dpi=DPI)


def audit(columns: Mapping[str, np.ndarray], aurocs: Mapping[str, float | None], path: Path) -> None:
    """What a source holds and what in it tells the class without a look at the picture.

    Args:
      columns: (N,) each: folder, label, patient, mode, width_px, height_px, size_bytes of the files.
      aurocs: of pneumonia against normal, told from "aspect" or "file size" alone, where known.
      path: of the PNG.
    """
    figure = _figure(12, 6.8, f"{len(columns['label'])} films of {len(np.unique(columns['patient']))} patients")
    (counts, patients, modes), (sizes, aspects, files) = figure.subplots(2, 3)
    of_class = {
        name: {key: column[columns["label"] == label] for key, column in columns.items()}
        for label, name in enumerate(CLASSES)
    }
    for panel, key, title in ((counts, "folder", "Split folders"), (modes, "mode", "Colour mode")):
        values = sorted(set(columns[key]), key=lambda value: (value == "test", value))
        for place, (name, films) in enumerate(of_class.items(), start=-1):
            found = [int((films[key] == value).sum()) for value in values]
            bars = panel.bar(np.arange(len(values)) + 0.27 * place, found, 0.25, color=COLOURS[name], label=name)
            panel.bar_label(bars, fontsize=8)
        panel.set_xticks(range(len(values)), values)
        panel.set(ylabel="films", title=title, xlim=(-0.6, len(values) - 0.4))
        panel.margins(y=0.12)
    most = np.unique(columns["patient"], return_counts=True)[1].max()
    for place, (name, films) in enumerate(of_class.items(), start=-1):
        times = np.unique(films["patient"], return_counts=True)[1]
        numbers = np.bincount(times, minlength=most + 1)[1:]
        patients.bar(np.arange(1, most + 1) + 0.27 * place, numbers, 0.25, color=COLOURS[name])
    patients.set_yscale("log")
    patients.set_ylim(bottom=0.5)  # where one patient is a bar, too
    patients.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    patients.set(xlabel="films of one patient", ylabel="patients", title="Films of one patient")
    for name, films in of_class.items():
        sizes.plot(films["width_px"], films["height_px"], ".", markersize=3, alpha=0.35, color=COLOURS[name])
    sizes.set(xlabel="width, px", ylabel="height, px", title="Size")
    for panel, name, value, label in (
        (aspects, "aspect", lambda films: films["width_px"] / films["height_px"], "width / height"),
        (files, "file size", lambda films: films["size_bytes"] / 1000, "kB"),
    ):
        low, high = np.percentile(value(columns), (0.5, 99.5))
        for kind, films in of_class.items() if high > low else ():
            edges = np.linspace(low, high, 40)
            panel.hist(np.clip(value(films), low, high), edges, histtype="step", linewidth=1.5, color=COLOURS[kind])
        if high == low:
            _say(panel, f"{low:.4g} in all films")
            panel.set(xticks=[], yticks=[])
        known = aurocs.get(name)
        told = "" if known is None else f": alone, AUROC {known:.2f} for pneumonia"
        panel.set(xlabel=label, ylabel="films", title=name.capitalize() + told)
    figure.legend(*counts.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    for panel in (counts, patients, modes, sizes, aspects, files):
        panel.title.set_fontsize(10)
        _tidy(panel)
    figure.savefig(path, dpi=DPI)
