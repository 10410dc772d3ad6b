"""Shifted copies: each does what its name says, the value that changes nothing changes nothing."""

import numpy as np
import pytest

from jobs.evaluation import negatives, shifts
from model import preprocess
from model.outliers import objection

FILM = np.random.default_rng(0).integers(40, 200, (64, 64)).astype(np.uint8)
SMOOTH = np.tile(np.linspace(40, 200, 64), (64, 1)).astype(np.uint8)


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_the_identity_changes_nothing_and_the_rest_something(name):
    change, values, identity = shifts.SHIFTS[name]
    assert identity in values
    for value in values:
        film = np.tile(FILM, (4, 4))[:224, :224] if name in ("blur", "detail") else SMOOTH
        changed = change(film, value)
        assert changed.shape == film.shape and changed.dtype == np.uint8
        largest = np.abs(changed.astype(int) - film).max()
        assert largest <= 2 if value == identity else largest > 2, value


def test_shifts_by_hand():
    assert shifts.gamma(np.array([[64]], np.uint8), 2.0)[0, 0] == round(255 * (64 / 255) ** 2)
    np.testing.assert_array_equal(shifts.contrast(np.array([[50, 150]], np.uint8), 0.5), [[75, 125]])
    np.testing.assert_array_equal(shifts.brightness(np.array([[10, 250]], np.uint8), 30), [[40, 255]])
    np.testing.assert_array_equal(shifts.brightness(np.array([[10, 250]], np.uint8), -30), [[0, 220]])
    even = np.full((3, 3), 100, np.uint8)
    np.testing.assert_array_equal(shifts.exposure_slope(even, 30), [[70] * 3, [100] * 3, [130] * 3])
    np.testing.assert_array_equal(shifts.vignetting(even, 30), [[60, 90, 60], [90, 120, 90], [60, 90, 60]])
    np.testing.assert_array_equal(shifts.collimation(even, 1 / 3), [[0, 0, 0], [0, 100, 0], [0, 0, 0]])
    np.testing.assert_array_equal(shifts.detail(even, 3), even)
    edges = np.where(np.arange(64) // 2 % 2, 110, 90).astype(np.uint8) + np.zeros((64, 1), np.uint8)
    np.testing.assert_allclose(shifts.detail(edges, 3)[:, 8:-8], 3 * (edges[:, 8:-8].astype(int) - 100) + 100, atol=2)
    dark = np.array([[10, 10], [20, 30]], np.uint8)
    np.testing.assert_array_equal(shifts.equalisation(dark, 1), [[128, 128], [191, 255]])
    np.testing.assert_array_equal(shifts.equalisation(dark, 0.5), [[69, 69], [106, 142]])
    # The middle half of a ramp, stretched: half the slope, the same middle.
    cropped = shifts.crop(SMOOTH, 0.5).astype(float)
    assert cropped[0, 5] == pytest.approx(80, abs=8) and np.diff(cropped[0]).mean() == pytest.approx(80 / 64, rel=0.1)
    assert shifts.blur(FILM, 3).std() < 0.5 * FILM.std()
    np.testing.assert_allclose(shifts.rotation(SMOOTH, 90)[5:-5, 5:-5], np.rot90(SMOOTH)[5:-5, 5:-5], atol=2)


def test_views():
    edge = round(0.15 * 64)
    film = FILM.copy()
    film[20:30, 20:50] += 8
    assert film.mean() % 1 > 0.5
    mean = int(film.mean()) + 1
    border, centre, corners, mirrored = (view(film) for view in list(shifts.VIEWS.values())[:4])
    middle = (slice(edge, 64 - edge),) * 2
    assert (border[middle] == mean).all() and (centre[middle] == film[middle]).all()
    np.testing.assert_array_equal(border[:edge], film[:edge])
    assert (centre[:edge] == mean).all() and (centre[:, -edge:] == mean).all()
    assert (corners[:16, -16:] == mean).all()
    np.testing.assert_array_equal(corners[16:48], film[16:48])
    np.testing.assert_array_equal(mirrored, film[:, ::-1])


def test_several_changes_are_different_ones_that_change_something(monkeypatch):
    shift = shifts.SHIFTS["brightness"][0]
    adding = {str(place): (shift, (0, 1 << place, 2 << place), 0) for place in range(0, 12, 2)}
    monkeypatch.setattr(shifts, "SHIFTS", adding)
    films = [np.full((8, 8), gray, np.uint16) for gray in range(1, 60)]
    monkeypatch.setattr(shifts, "_clipped", lambda pixels: pixels.astype(np.uint16))
    drawn = set()
    for film in films:
        added = np.unique(shifts.several(film) - film)
        parts = [int(added[0]) >> place & 3 for place in range(0, 12, 2)]
        assert len(added) == 1 and sum(part > 0 for part in parts) == shifts.AT_ONCE and 3 not in parts
        np.testing.assert_array_equal(shifts.several(film), shifts.several(film))
        drawn.add(tuple(parts))
    assert len(drawn) > 40 and shifts.VIEWS["four changes at once"] is shifts.several


def test_every_variant_comes_once():
    films = np.stack([FILM, SMOOTH])
    found = list(shifts.variants(films))
    assert len(found) == shifts.COUNT == len({variant.key for variant in found})
    assert all(variant.images.shape == (2, 64, 64) for variant in found)
    np.testing.assert_array_equal(found[0].images[1], shifts.gamma(SMOOTH, 0.5))


def test_negatives_are_files_of_every_kind_and_repeat(monkeypatch):
    monkeypatch.setattr(negatives, "COUNT", 2)
    films = np.stack([FILM, SMOOTH, 255 - SMOOTH])
    made = list(negatives.pictures(films, list("aba")))
    kinds = [picture.kind for picture in made]
    assert list(dict.fromkeys(kinds)) == [*negatives.DRAWN, *negatives.CHANGED] and len(made) == 2 * 8
    assert made == list(negatives.pictures(films, list("aba")))
    assert made != list(negatives.pictures(films, list("aba"), seed=1))
    for kind in kinds:  # each is of another patient, so that they are independent
        assert len({picture.patient for picture in made if picture.kind == kind}) == 2
    assert {picture.patient for picture in made if picture.kind in negatives.CHANGED} == {"a", "b"}
    reasons = {picture.kind: objection(preprocess.decode(picture.file)) for picture in made}
    assert reasons["colour textures like photographs"].startswith("this is a colour picture, and X-ray films are gray")
    assert reasons["text pages"] is None  # left to what was learned
    upside_down = [preprocess.decode(picture.file).pixels for picture in made if picture.kind == "films upside down"]
    assert all(any((film[::-1, ::-1] == one).all() for one in films) for film in upside_down)
