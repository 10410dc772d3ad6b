"""Whether heat maps are worth looking at: do they name what the model uses, and do they depend on the model at all?

A map is asked for the class that the model decides for. Deletion and insertion are after Petsiuk et al. 2018
(section 4.2), but for places that are blurred in deletion, too, where theirs are black; the cascading randomisation is
that of Adebayo et al. 2018 (section 3.1).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage, stats

from jobs.evaluation.shifts import rotation
from jobs.evaluation.tables import ALONE, markdown, number
from model import gradcam, preprocess
from model.predictor import Predictor, Raw

STEPS = 10  # of deletion and insertion
BLUR_PX = 11.0  # standard deviation, in px of a square of 224: what a deleted place looks like
SHIFT_PX, TURN_DEGREES = 8, 8.0  # the movements that a map should follow
RANKED_SIDE = 28  # of the pixels that maps are compared at
BLOB = "centred blob"
CONTROLS = ("random", BLOB)
EXPLAINED = 0.5  # squared correlation with the map of a network random throughout; above it, a map hardly depends on it


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of two maps; 0 where one is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic)


def control_maps(size: int, count: int) -> dict[str, np.ndarray]:
    """Maps that know nothing of the film, (count, S, S) by name: smooth noise, and a blob in the middle."""
    random = np.random.default_rng(0)
    coarse = random.random((count, 7, 7), np.float32)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    blob = np.exp(-(x**2 + y**2) / (2 * 0.2**2)).astype(np.float32)
    noise = np.stack([gradcam.upsample(one, size, size) for one in coarse])
    return dict(zip(CONTROLS, (noise, np.broadcast_to(blob, (count, size, size))), strict=True))


def deletion_and_insertion(
    ask: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Curves of the class's probability, as the places with most heat are blurred, or sharpened.

    Args:
      ask: (N, S, S) uint8 -> (N, 3) probabilities.
      images: (N, S, S) uint8.
      labels: (N,) int, the class that each map explains.
      maps: (N, S, S), more is more.

    Returns:
      (deletion, the lower the better; insertion, the higher the better), (STEPS + 1, N) each, from none of it to all.
    """
    size = images.shape[1]
    blurred = np.stack([ndimage.gaussian_filter(film.astype(float), BLUR_PX * size / 224) for film in images])
    blurred = np.round(blurred).astype(np.uint8)
    # Ranks, so that every step changes as many places; a stable order, so that ties fall the same way each time.
    flat = maps.reshape(len(maps), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1])[None], axis=1)
    ranks = ranks.reshape(maps.shape)
    curves = np.empty((2, STEPS + 1, len(images)))
    for step in range(STEPS + 1):
        hottest = ranks < step * flat.shape[1] / STEPS
        for index, (inside, outside) in enumerate(((blurred, images), (images, blurred))):
            probabilities = ask(np.where(hottest, inside, outside))
            curves[index, step] = probabilities[np.arange(len(images)), labels]
    return curves[0], curves[1]


def area(curve: np.ndarray) -> np.ndarray:
    """(STEPS + 1, N) -> (N,) areas under each."""
    return np.asarray(np.trapezoid(curve, dx=1 / STEPS, axis=0))


def _of_curves(curves: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """The area of each curve, and the curve by the share of the film that was changed."""
    told: dict[str, Any] = {}
    for name, curve in zip(("deletion", "insertion"), curves, strict=True):
        told[name] = area(curve)
        told[f"{name}_curve"] = {f"{step / STEPS:g}": values for step, values in enumerate(curve)}
    return told


def layers(params: Mapping[str, Any]) -> list[str]:
    """The parts of a network from its output to its input."""

    def depth(name: str) -> tuple[int, int]:
        number = re.search(r"\d+$", name)
        return (2 if name == "head" else 1 if number else 0, int(number[0]) if number else 0)

    return sorted(params, key=depth, reverse=True)


def randomised(variables: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """The variables with the kernels of some parts shuffled, the same numbers in another order; all else as trained."""
    random = np.random.default_rng(0)

    def shuffle(path: Any, leaf: Any) -> Any:
        inside = path[0].key in parts and np.ndim(leaf) > 1
        return random.permuted(np.asarray(leaf).ravel()).reshape(np.shape(leaf)) if inside else leaf

    return dict(variables) | {"params": jax.tree_util.tree_map_with_path(shuffle, dict(variables["params"]))}


def cascade(predictor: Predictor) -> Iterator[tuple[str, Predictor]]:
    """From the output on, one part more of every network randomised at a time; the last is random throughout."""
    names = [layers(variables["params"]) for variables in predictor.variables]
    deepest = max(names, key=lambda of_one: len(of_one))
    for depth, part in enumerate(deepest, 1):
        yield (
            part,
            predictor.with_variables(
                [randomised(one, of_one[:depth]) for one, of_one in zip(predictor.variables, names, strict=True)]
            ),
        )


def _maps(predictor: Predictor, images: np.ndarray, labels: np.ndarray, method: str) -> np.ndarray:
    """(N, S, S): the map of each film's class, as a reader sees it."""
    size = images.shape[1]
    coarse = Raw.joined(predictor.ask(images, method)).heatmaps.maps[np.arange(len(images)), labels]
    return np.stack([gradcam.upsample(one, size, size) for one in coarse])


def seen(predictor: Predictor) -> np.ndarray:
    """(h, w) the map of a film where each network finds all that it sees alike: 1 where all see, 0 where none does."""
    flat = []
    for member, variables in zip(predictor.members, predictor.variables, strict=True):
        features = functools.partial(member.module.apply, method="features")
        image = jax.ShapeDtypeStruct((1, member.image_size, member.image_size, 1), jnp.float32)
        grid = jax.eval_shape(features, variables, image).shape[1:3]
        flat.append(preprocess.from_middle(jnp.ones((1, 1, *grid)), member.side))
    return np.asarray(gradcam.average(flat).maps[0, 0])


def _correlations(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Of each two maps (N, S, S), at places (S, S) bool."""
    # Some pixels: maps are smooth, and ranking all of them would take longer than making them.
    step = max(1, first.shape[1] // RANKED_SIDE)
    chosen = where[::step, ::step]
    pairs = zip(first[:, ::step, ::step], second[:, ::step, ::step], strict=True)
    return np.array([rank_correlation(one[chosen], other[chosen]) for one, other in pairs])


def _shifted(pictures: np.ndarray) -> np.ndarray:
    """(..., S, S) down and to the right by SHIFT_PX of 224."""
    edge = SHIFT_PX * pictures.shape[-1] // 224
    return np.roll(pictures, (edge, edge), axis=(-2, -1))


def _turned(pictures: np.ndarray) -> np.ndarray:
    """(..., S, S) floats turned as `rotation` turns a film."""
    return ndimage.rotate(pictures, TURN_DEGREES, axes=(-1, -2), reshape=False, order=1, mode="nearest")


def measure(
    predictor: Predictor, images: np.ndarray, labels: np.ndarray, patients: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is known of the methods, and of the controls, film by film.

    Args:
      predictor: the model.
      images: (N, S, S) uint8; some hundred films are enough.
      labels: (N,) int, the class that is decided for, whose map it is.
      patients: (N,) who each film is of.

    Yields:
      A method, and of it, (N,) each: deletion and insertion, and their curves by the share that was changed. The rank
      correlation of the moved map with the map of the moved film (shift, rotation), of the map with that of
      another_film, by which the former are to be read (the next of another patient; NaN where there is none), and with
      that of the network of which the parts down to one were randomised (cascade): a map that explains the network
      must lose it. Of the cascade the size of the correlation, whatever its sign, averaged over the parts (randomised),
      and its square at the end (explained). Only places that the networks see are compared, since maps agree where all
      are blank. Of a control, deletion and insertion; of the random one the size of its correlation with another, too:
      what chance leaves where maps are as smooth.
    """

    def ask(films: np.ndarray) -> np.ndarray:
        return Raw.joined(predictor.ask(films)).probabilities

    size = images.shape[1]
    turned_films = np.stack([rotation(film, TURN_DEGREES) for film in images])
    flat = gradcam.upsample(seen(predictor), size, size)  # below 1 where the blank border shines in
    whole, shifted, turned = (
        picture > 1 - 1e-3 for picture in (flat, np.minimum(flat, _shifted(flat)), np.minimum(flat, _turned(flat)))
    )
    different = np.asarray(patients)[:, None] != np.asarray(patients)
    alone = ~different.any(axis=1)
    others = np.array([(row + np.roll(different[row], -row).argmax()) % len(images) for row in range(len(images))])
    for method in gradcam.METHODS:
        maps = _maps(predictor, images, labels, method)
        of_parts = {
            part: _correlations(maps, _maps(other, images, labels, method), whole) for part, other in cascade(predictor)
        }
        yield (
            method,
            {
                **_of_curves(deletion_and_insertion(ask, images, labels, maps)),
                "shift": _correlations(_shifted(maps), _maps(predictor, _shifted(images), labels, method), shifted),
                "rotation": _correlations(_turned(maps), _maps(predictor, turned_films, labels, method), turned),
                "another_film": np.where(alone, np.nan, _correlations(maps, maps[others], whole)),
                "cascade": of_parts,
                "randomised": np.mean(np.abs(list(of_parts.values())), axis=0),
                "explained": list(of_parts.values())[-1] ** 2,
            },
        )
    for name, maps in control_maps(size, len(images) + 1).items():
        found = _of_curves(deletion_and_insertion(ask, images, labels, maps[:-1]))
        yield name, found if name == BLOB else found | {"randomised": np.abs(_correlations(maps[:-1], maps[1:], whole))}


def points_into(maps: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """(N,) bool whether each map (N, S, S) peaks inside the lesion (N, S, S) bool; a blank one points nowhere.

    This is the pointing game (Zhang et al. 2018, section 4.2).
    """
    peaks = maps.reshape(len(maps), -1).argmax(axis=1)
    return lesions.reshape(len(lesions), -1)[np.arange(len(maps)), peaks] & (maps.max(axis=(1, 2)) > 0)


def on_lesions(
    predictor: Predictor, images: np.ndarray, labels: np.ndarray, masks: np.ndarray, method: str
) -> dict[str, np.ndarray]:
    """The pointing game, and the share of a map's energy inside the lesion.

    Args:
      predictor: the model.
      images: (N, S, S) uint8.
      labels: (N,) int, the class of each film, whose map it is.
      masks: (N, S, S) bool.
      method: of the maps.

    Returns:
      `pointing_game` and `energy_in_lesion`, (N,) each, NaN for films without a lesion; nothing where none has one.
    """
    ill = np.flatnonzero(masks.any(axis=(1, 2)))
    if not len(ill):
        return {}
    maps, lesions = _maps(predictor, images[ill], labels[ill], method), masks[ill]
    found = {name: np.full(len(masks), np.nan) for name in ("pointing_game", "energy_in_lesion")}
    found["pointing_game"][ill] = points_into(maps, lesions)
    energy = np.maximum(maps.sum(axis=(1, 2)), 1e-12)
    found["energy_in_lesion"][ill] = (maps * lesions).sum(axis=(1, 2)) / energy
    return found


def against_blob(table: Mapping[str, Any]) -> dict[str, Any]:
    """Deletion and insertion of each method less those of the blob in the middle, figures of any shape."""
    return {
        name: {column: row[column] - table[BLOB][column] for column in ("deletion", "insertion")}
        for name, row in table.items()
        if name not in CONTROLS
    }


# Whether more is better.
JUDGED = {
    "deletion": False,
    "insertion": True,
    "shift": True,
    "rotation": True,
    "another_film": False,
    "randomised": False,
    "pointing_game": True,
    "energy_in_lesion": True,
}


def best(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The method with the best mean rank over the columns; of equals the first.

    A map that hardly changes when the network is randomised would win by showing the film alone (Adebayo et al. 2018,
    section 5): such methods are left out, unless all are such.
    """
    methods = [name for name in table if name not in CONTROLS]
    methods = [name for name in methods if table[name]["explained"] <= EXPLAINED] or methods
    ranks = np.zeros(len(methods))
    for column, more in JUDGED.items():
        if table[methods[0]].get(column) is not None:
            # To three digits: methods that agree but for rounding are equals.
            values = np.round([table[method][column] for method in methods], 3)
            ranks += stats.rankdata(-values if more else values)
    return methods[int(ranks.argmin())]


def rows(found: Mapping[str, Any], intervals: bool = True) -> list[list[str]]:
    """The table as cells, its head first; with intervals where there are some."""
    table = found["methods"]
    columns = [column for column in JUDGED if any(column in row for row in table.values())]
    told = [["method", *(column.replace("_", " ") for column in columns)]]
    for name, row in table.items():
        told.append([name, *(_cell(row, column, found["intervals"][name], intervals) for column in columns)])
    return told


def _cell(row: Mapping[str, Any], column: str, bounds: Mapping[str, Any], intervals: bool) -> str:
    if column not in row:
        return ""
    # Not defined is that of another patient's film, where all are of one.
    return number(row[column], bounds[column] if intervals else ALONE)


def advantage(found: Mapping[str, Any]) -> str:
    """How the chosen method's maps compare with a blob in the middle of every film."""
    told = []
    for column, figure in found["against_blob"][found["chosen"]].items():
        told.append(f"{column} {number(figure['value'], figure['interval'], '+.3f')}")
    return f"{found['chosen']} less the {BLOB}: {', '.join(told)}"


def lines(found: Mapping[str, Any]) -> list[str]:
    """The table for a terminal."""
    return [
        f"maps of {found['films']} films, their intervals in metrics.json; chosen by mean rank: {found['chosen']}",
        *markdown(rows(found, intervals=False)).splitlines(),
        advantage(found),
    ]
