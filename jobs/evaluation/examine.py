"""What a model's answers hang on: shifts, shortcuts, pictures that are no films; and whether its maps say it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from rich.progress import track
from scipy import stats

from jobs.datasets.films import Split
from jobs.datasets.phantom.builder import film as phantom
from jobs.evaluation import faithfulness, metrics, negatives, shifts
from jobs.evaluation.intervals import estimate, mean
from jobs.evaluation.tables import number, share
from model import gradcam, preprocess
from model.labels import CLASSES, NORMAL
from model.outliers import objection
from model.predictor import REFUSED, Predictor, Raw

MAPPED_FILMS = 96  # films that the maps are judged on
REGION_MARGIN = 0.15  # of the side; what is inside is called the central chest region


def examine(predictor: Predictor, split: Split, heatmaps: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """All of it, as JSON values: `shifts`, `shortcuts`, `maps`, and where the model is calibrated `outliers`.

    Args:
      predictor: what is examined.
      split: the films.
      heatmaps: (N, 3, h, w) of each class.
      probabilities: (N, 3).
    """
    decided = probabilities.argmax(axis=1)
    variants, views = shifted(predictor, split)
    found: dict[str, Any] = {
        "shifts": variants,
        "shortcuts": {
            "views": views,
            "groups": groups(split, probabilities),
            "alone": alone(split),
            "heat_outside": heat_outside(
                heatmaps[np.arange(len(decided)), decided],
                faithfulness.seen(predictor),
                split.patients,
            ),
        },
        "maps": maps(predictor, split, decided),
    }
    if predictor.calibration:
        found["outliers"] = outliers(predictor, split)
    return found


def ask(predictor: Predictor, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S) uint8 -> (N, 3) probabilities, calibrated where the model is, and (N,) whether each film is refused."""
    answers = list(predictor.predict(images))
    probabilities = np.array([answer.probabilities for answer in answers], float)
    return probabilities, np.array([answer.decision == REFUSED for answer in answers])


def _figures(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    decisions = probabilities.argmax(axis=1)
    total = weights.sum(axis=1)
    return {
        "accuracy": metrics.ratio(weights @ (decisions == labels), total),
        "binary_accuracy": metrics.ratio(weights @ ((decisions != NORMAL) == (labels != NORMAL)), total),
        "binary_auroc": metrics.auroc(labels != NORMAL, 1 - probabilities[:, NORMAL], weights),
    }


def shifted(predictor: Predictor, split: Split) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures with intervals on every changed copy of the films.

    Returns:
      Of the shifts: by name the values and, beside "as it is" and the "mean" over all shifted copies, the figures of
      each; and those of the views, by name, each with its `change`: what it is less that of the films as they are, over
      the same resamples of patients.
    """
    whole = "as it is"
    asked = {whole: ask(predictor, split.images)}
    of_shifts = []
    for variant in track(shifts.variants(split.images), "shifted films", total=shifts.COUNT, transient=True):
        asked[variant.key] = ask(predictor, variant.images)
        if variant.name in shifts.SHIFTS:
            of_shifts.append(variant.key)

    def every(weights: np.ndarray) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key, (probabilities, refused) in asked.items():
            tree[key] = _figures(split.labels, probabilities, weights)
            if predictor.calibration:  # without one nothing is ever refused
                tree[key]["refused"] = metrics.ratio(weights @ refused, weights.sum(axis=1))
        tree["mean"] = {name: np.mean([tree[key][name] for key in of_shifts], axis=0) for name in tree[whole]}
        for view in shifts.VIEWS:
            tree[f"{view}, change"] = {name: tree[view][name] - tree[whole][name] for name in tree[whole]}
        return tree

    values, intervals = estimate(every, split.patients)

    def stated(key: str) -> dict[str, Any]:
        return {name: {"value": values[key][name], "interval": intervals[key][name]} for name in values[key]}

    return {
        "as it is": stated(whole),
        "mean": stated("mean"),
        "curves": {
            name: [
                {"value": value, **stated(whole if value == identity else shifts.key(name, value))}
                for value in values_of
            ]
            for name, (_, values_of, identity) in shifts.SHIFTS.items()
        },
    }, {
        view: {
            name: figure | {"change": change}
            for (name, figure), change in zip(stated(view).items(), stated(f"{view}, change").values(), strict=True)
        }
        for view in shifts.VIEWS
    }


def series(name: str) -> str:
    """The letters a file name starts with: the source names its series so."""
    found = re.match(r"[^\W\d_]+", PurePosixPath(name).name)
    return found[0] if found else "other"


def groups(split: Split, probabilities: np.ndarray) -> dict[str, Any]:
    """By what should not matter, file series, numbers of patients within a class, brightness, and size where films
    differ: accuracy, and AUROC of normal against pneumonia.

    Groups differ in their classes, which are told beside; the AUROC does not depend on how many there are of each.
    Within a class, an accuracy that changes with the numbers points to films or labels that differ along the source.
    """
    names = [series(name) for name in split.names]
    found = sorted(set(names))
    brightness = np.array([film.mean() for film in split.images])
    # Each way: the groups in order, and which of them each film is in.
    ways: dict[str, tuple[Sequence[str], np.ndarray]] = {
        "file series": (found, np.array([found.index(name) for name in names])),
    }
    numbers = [re.fullmatch(r"(?P<series>[^/]*?)(?P<number>\d+)(?:_[a-z]+)?", patient) for patient in split.patients]
    if all(numbers):  # where a film names no patient, the key is its path
        of_patient = np.array([int(match["number"]) for match in numbers if match], dtype=object)
        # Normal films are of two series, each with numbers of its own.
        whose = np.array(
            [f"{label} {match['series']}" for label, match in zip(split.labels, numbers, strict=True) if match]
        )
        within = np.zeros(len(of_patient), int)
        for one in np.unique(whose):
            # By their order: the identifiers of some archives are longer than a float is exact.
            within[whose == one] = thirds(np.unique(of_patient[whose == one], return_inverse=True)[1])
        words = [f"{name}, {third} third" for name in CLASSES for third in ("low", "middle", "high")]
        ways["patient number"] = words, 3 * split.labels + within
    height, width = split.sizes.T
    for what, values, of_third in (
        ("brightness", brightness, ("dark third", "middle third", "bright third")),
        ("source aspect", width / height, ("narrow third", "middle third", "wide third")),
        ("source resolution", np.sqrt(width * height), ("small third", "middle third", "large third")),
    ):
        if np.ptp(values) > 0:
            ways[what] = of_third, thirds(values)
    told: dict[str, Any] = {}
    for way, (groups_of, of_film) in ways.items():
        told[way] = {}
        for index, group in enumerate(groups_of):
            rows = np.flatnonzero(of_film == index)
            if not len(rows):
                continue

            def figures(weights: np.ndarray, rows: np.ndarray = rows) -> dict[str, Any]:
                return _figures(split.labels[rows], probabilities[rows], weights)

            values, bounds = estimate(figures, [split.patients[row] for row in rows])
            told[way][group] = {
                "films": len(rows),
                "classes": np.bincount(split.labels[rows], minlength=3).tolist(),
                **{name: {"value": values[name], "interval": bounds[name]} for name in ("accuracy", "binary_auroc")},
            }
    return told


def alone(split: Split) -> dict[str, Any]:
    """What one number of the source's files says without a look at the film, where files differ in it: the AUROC of
    pneumonia if wide films, and if small films, are taken for it."""
    height, width = split.sizes.T
    told = {}
    for what, score in (("a wide film", width / height), ("a small film", -np.sqrt(width * height))):
        if np.ptp(score) > 0:

            def area(weights: np.ndarray, score: np.ndarray = score) -> dict[str, Any]:
                return {"auroc": metrics.auroc(split.labels != NORMAL, score, weights)}

            values, bounds = estimate(area, split.patients)
            told[what] = {"value": values["auroc"], "interval": bounds["auroc"]}
    return told


def thirds(values: np.ndarray) -> np.ndarray:
    """For each film its third, 0 to 2; equal values fall into one."""
    low, high = np.quantile(values, [1 / 3, 2 / 3])
    return (values > low).astype(int) + (values > high)


def heat_outside(maps: np.ndarray, flat: np.ndarray, patients: Sequence[str]) -> dict[str, Any]:
    """Mean share of a map's energy outside the central chest region.

    Args:
      maps: (N, h, w), at least 0; each cell counts with the part of it that is outside.
      flat: (h, w) a map that is the same wherever the networks have one.
      patients: (N,) who each film is of.

    Returns:
      The `share` and its `interval`, and that `of_a_flat_map`.
    """
    height, width = maps.shape[1:]

    def inside(cells: int) -> np.ndarray:
        edges = np.linspace(0, 1, cells + 1)
        overlap = np.minimum(edges[1:], 1 - REGION_MARGIN) - np.maximum(edges[:-1], REGION_MARGIN)
        return np.maximum(overlap, 0) * cells

    weight = 1 - np.outer(inside(height), inside(width))
    shares = metrics.ratio((maps * weight).sum(axis=(1, 2)), maps.sum(axis=(1, 2)))  # NaN of a blank map
    value, bounds = estimate(lambda weights: {"share": mean(shares, weights)}, patients)
    return {
        "share": value["share"],
        "interval": bounds["share"],
        "of_a_flat_map": float((flat * weight).sum() / flat.sum()),
    }


def maps(predictor: Predictor, split: Split, decided: np.ndarray) -> dict[str, Any]:
    """The table over the CAM methods with its intervals, nested alike, their advantage over a blob in the middle, and
    `chosen`, the best of them; where lesions are known, with the pointing game and the share of energy inside them."""
    chosen = np.random.default_rng(0).permutation(len(split.labels))[:MAPPED_FILMS]
    films = np.asarray(split.images)[chosen]
    steps = len(gradcam.METHODS) + len(faithfulness.CONTROLS)
    patients = [split.patients[row] for row in chosen]
    judged = faithfulness.measure(predictor, films, decided[chosen], patients)
    table = dict(track(judged, "judging the maps", total=steps, transient=True))
    if split.masks is not None:
        for method in gradcam.METHODS:
            table[method] |= faithfulness.on_lesions(
                predictor, films, split.labels[chosen], split.masks[chosen], method
            )

    def means(weights: np.ndarray) -> dict[str, Any]:
        of_methods = metrics.each(table, lambda values: mean(values, weights))
        return {"methods": of_methods, "against_blob": faithfulness.against_blob(of_methods)}

    values, bounds = estimate(means, patients)
    against = {
        name: {column: {"value": row[column], "interval": bounds["against_blob"][name][column]} for column in row}
        for name, row in values["against_blob"].items()
    }
    return {
        "films": len(films),
        "methods": values["methods"],
        "intervals": bounds["methods"],
        "against_blob": against,
        "chosen": faithfulness.best(values["methods"]),
    }


def outliers(predictor: Predictor, split: Split) -> dict[str, Any]:
    """By kind of picture: how many are refused and why, and the AUROC of the distance of features against the films."""
    calibration = predictor.calibration
    assert calibration

    ours = calibration.outliers.distances(Raw.joined(predictor.ask(np.asarray(split.images))).features)
    made = list(negatives.pictures(np.asarray(split.images), split.patients))
    if split.facts["name"] != "phantom":
        drawn: dict[str, bytes] = {}
        for film in map(phantom, itertools.count()):
            drawn.setdefault(film.patient, film.png)
            if len(drawn) == negatives.COUNT:
                break
        made += [negatives.Picture("phantoms", patient, png) for patient, png in drawn.items()]
    told = {}
    for kind, pictures in itertools.groupby(made, key=lambda picture: picture.kind):
        whose, files = zip(*((picture.patient, picture.file) for picture in pictures), strict=True)
        films = [preprocess.decode(data) for data in files]
        images = np.stack([preprocess.resize(film.pixels, predictor.storage_size) for film in films])
        raw = Raw.joined(predictor.ask(images))
        answers = predictor.answer(images, raw)
        reasons = [objection(film) or answer.reason for film, answer in zip(films, answers, strict=True)]
        far = calibration.outliers.distances(raw.features)
        other = np.repeat([False, True], [len(ours), len(far)])
        both = np.concatenate([ours, far])

        def area(weights: np.ndarray, other: np.ndarray = other, both: np.ndarray = both) -> dict[str, Any]:
            return {"auroc": metrics.auroc(other, both, weights)}

        values, bounds = estimate(area, [*split.patients, *whose])
        # Pictures of a kind are each of another patient, or of none.
        refused = stats.binomtest(sum(bool(reason) for reason in reasons), len(reasons))
        told[kind] = {
            "count": len(films),
            "refused": refused.statistic,
            **values,
            "intervals": {"refused": list(refused.proportion_ci()), **bounds},
            "reasons": dict(Counter(reason for reason in reasons if reason).most_common()),
        }
    return told


def table(found: Mapping[str, Any]) -> str:
    """The findings for a terminal."""

    def stated(name: str, figure: Mapping[str, Any]) -> str:
        value, interval = figure["value"], figure["interval"]
        return number(value, interval, ".4f") if name.endswith("auroc") else share(value, interval, 5)

    shift, shortcuts = found["shifts"], found["shortcuts"]
    lines = ["accuracy; normal against pneumonia: accuracy, AUROC" + ("; refused" if "outliers" in found else "")]
    rows = {"as it is": shift["as it is"], "mean of the shifted copies": shift["mean"], **shortcuts["views"]}
    for name, figures in rows.items():
        lines.append(f"{name:>28}  " + ";  ".join(itertools.starmap(stated, figures.items())))
    for way, of_way in shortcuts["groups"].items():
        lines += ["", f"accuracy, and AUROC of pneumonia, by {way}; films that are {', '.join(CLASSES)}"]
        for group, values in of_way.items():
            figures = ";  ".join(stated(name, values[name]) for name in ("accuracy", "binary_auroc"))
            lines.append(f"{group:>28}  {figures};  {', '.join(map(str, values['classes']))}")
    if shortcuts["alone"]:
        lines += ["", "AUROC of pneumonia without a look at the film"]
        lines += [f"{f'{what} is ill':>28}  {stated('auroc', figure)}" for what, figure in shortcuts["alone"].items()]
    outside = shortcuts["heat_outside"]
    heat = share(outside["share"], outside["interval"])
    lines += ["", f"heat outside the central region: {heat}; of a flat map {share(outside['of_a_flat_map'])}"]
    lines += ["", *faithfulness.lines(found["maps"])]
    if "outliers" in found:
        lines += ["", "refused, of pictures that are no upright chest films; AUROC of the features' distance"]
        for kind, values in found["outliers"].items():
            refused = share(values["refused"], values["intervals"]["refused"], 5)
            area = number(values["auroc"], values["intervals"]["auroc"], ".4f")
            lines.append(f"{kind:>36}  {refused} of {values['count']}; {area}")
    return "\n".join(lines)
