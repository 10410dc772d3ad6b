"""The pictures: where the heat lies, how much of the film is seen, what is written beneath."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib import colormaps

from model.predictor import REFUSED, Prediction
from space import gallery

HOTTEST = np.asarray(colormaps["inferno"](1.0)[:3]) * 255


@pytest.fixture
def film():
    return np.random.default_rng(0).integers(0, 256, (150, 300), np.uint8)


@pytest.fixture
def prediction():
    heatmaps = np.zeros((3, 4, 4), np.float32)
    heatmaps[1, 0, 3] = 1
    return Prediction(
        decision="bacterial",
        probabilities=np.array([0.0004, 0.8712, 0.1284]),
        heatmaps=heatmaps,
        blank=np.array([False, False, True]),
    )


def pixels_of(shown):
    return [np.asarray(picture).astype(int)[: -gallery.MARGIN] for picture, _ in shown]


def test_original_and_an_overlay_a_class_of_one_size(film, prediction):
    shown = gallery.items(film, prediction, 0.6)
    assert [caption for _, caption in shown] == [
        "original",
        "normal < 0.1 %",
        "bacterial 87.1 %",
        "viral 12.8 %: nothing speaks for this class",
    ]
    assert {picture.size for picture, _ in shown} == {(768, 384 + gallery.MARGIN)}


def test_without_maps_or_where_it_was_refused_the_film_alone(film, prediction):
    without = Prediction("normal", np.array([0.8, 0.1, 0.1]))
    for alone in (without, dataclasses.replace(prediction, decision=REFUSED)):
        assert [caption for _, caption in gallery.items(film, alone, 0.6)] == ["original"]


def test_no_heat_and_no_opacity_leave_the_film_as_it_is(film, prediction):
    original, normal, bacterial, _ = pixels_of(gallery.items(film, prediction, 0.6))
    assert (original == gallery.fit(film)[..., None]).all()
    assert (normal == original).all()
    assert (bacterial != original).any()
    assert (pixels_of(gallery.items(film, prediction, 0.0))[2] == original).all()


def test_heat_lies_where_the_map_is_hot_in_the_shape_of_the_film(film, prediction):
    original, _, bacterial, _ = pixels_of(gallery.items(film, prediction, 0.6))
    rows, columns = np.nonzero(np.abs(bacterial - original).sum(axis=2))
    # A hot quarter of each side, smoothed over another quarter towards the middle at most.
    assert columns.min() >= 0.5 * 768 and columns.max() == 767
    assert rows.min() == 0 and rows.max() < 0.5 * 384


@pytest.mark.parametrize("opacity", [0.25, 1.0])
def test_the_hottest_place_has_the_opacity_asked_for(opacity):
    film = np.full((8, 8), 100, np.uint8)
    overlay = gallery.overlay(film, np.ones((2, 2), np.float32), opacity)
    assert overlay == pytest.approx(np.broadcast_to((1 - opacity) * 100 + opacity * HOTTEST, (8, 8, 3)), abs=0.51)


def test_scale_runs_from_gray_to_the_hottest_colour_as_overlays_show_it(film, prediction):
    shown = gallery.items(film, prediction, 0.6)
    middle = [np.asarray(picture)[-gallery.MARGIN // 2].astype(int) for picture, _ in shown]
    assert (middle[0] == 0).all()
    bar = middle[2][100:-100]  # well between "least" and "most"
    assert np.abs(bar[0] - 128).max() < 12
    right_end = np.nonzero((np.abs(middle[2] - (0.4 * 128 + 0.6 * HOTTEST)) < 1).all(axis=1))[0]
    assert 0.85 * 768 < right_end[-1] < 768
    assert (middle[2] == middle[1]).all()


@pytest.mark.parametrize(
    ("shape", "shown"), [((100, 400), (192, 768)), ((64, 64), (768, 768)), ((3000, 1500), (768, 384))]
)
def test_fit_keeps_the_aspect(shape, shown):
    assert gallery.fit(np.zeros(shape, np.uint8)).shape == shown


def test_film_narrower_than_its_scale(prediction):
    shown = gallery.items(np.zeros((12000, 64), np.uint8), prediction, 0.6)
    assert {picture.size for picture, _ in shown} == {(4, 768 + gallery.MARGIN)}
