"""Augmentation: off it is the evaluation transform; on, each example's key decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import base
from jobs.training.augment import _affine, _erase_corners, _intensity, augment, views
from model.preprocess import standardise, to_input

STRENGTH = base.get_config().augment.to_dict()
OFF = dict.fromkeys(STRENGTH, 0.0) | {"crop_area_min": 1.0}


@pytest.fixture(scope="module")
def films():
    """Four films with a gradient and a bright square, so that geometry and tone both show."""
    y, x = np.mgrid[:64, :64]
    images = np.stack([60 + y + 0.5 * x + 10 * index for index in range(4)]).astype(np.uint8)
    images[:, 10:20, 40:50] = 250
    return jnp.asarray(images)


def view(films, key=0, **changes):
    keys = jax.random.split(jax.random.key(key), len(films))
    return np.asarray(augment(keys, films, 32, OFF | changes))


def test_off_is_the_evaluation_transform(films):
    keys = jax.random.split(jax.random.key(0), 4)
    views = augment(keys, films, 48, OFF)
    assert np.allclose(standardise(views), to_input(films, 48), atol=1e-5)


def test_an_example_depends_on_its_own_key_alone(films):
    keys = jax.random.split(jax.random.key(1), 4)
    together = augment(keys, films, 32, STRENGTH)
    alone = augment(keys[2:3], films[2:3], 32, STRENGTH)
    assert np.allclose(together[2], alone[0], atol=1e-6)
    other = augment(keys[1:2], films[2:3], 32, STRENGTH)
    assert not np.allclose(together[2], other[0], atol=1e-2)


def test_everything_on_is_finite_and_in_range(films):
    keys = jax.random.split(jax.random.key(2), 4)
    views = np.asarray(augment(keys, films, 32, STRENGTH))
    assert views.shape == (4, 32, 32)
    assert np.isfinite(views).all() and views.min() >= 0 and views.max() <= 1


def test_flip_mirrors(films):
    assert np.allclose(view(films, flip_probability=1.0), view(films)[:, :, ::-1], atol=1e-5)


def test_shift_moves_without_scaling(films):
    moved, plain = view(films, shift=0.5)[0], view(films)[0]
    peak = lambda image: np.argwhere(image > 0.9).mean(axis=0)
    assert np.abs(peak(moved) - peak(plain)).max() > 1
    assert abs((moved > 0.9).sum() - (plain > 0.9).sum()) <= 6


def test_crop_magnifies(films):
    areas = [(view(films, key, crop_area_min=0.25)[0] > 0.9).sum() for key in range(12)]
    plain = (view(films)[0] > 0.9).sum()
    assert max(areas) > 1.5 * plain  # a quarter of the area, magnified up to fourfold


def affines(**changes):
    """(400, 2, 3) of as many keys."""
    keys = jax.random.split(jax.random.key(0), 400)
    return np.asarray(jax.vmap(lambda key: _affine(key, OFF | changes))(keys))


def spans(values, low, high):
    """Whether values lie in [low, high] and fill it."""
    width = high - low
    return low - 1e-4 <= values.min() < low + 0.1 * width and high - 0.1 * width < values.max() <= high + 1e-4


def test_rotations_are_of_as_many_degrees_as_are_asked_for():
    turned = affines(rotation_degrees=10.0)
    assert spans(np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0])), -10, 10)


def test_zoom_and_aspect_reach_to_their_bounds():
    assert spans(np.log(affines(log_zoom=0.2)[:, 0, 0]), -0.2, 0.2)
    squeezed = affines(crop_log_aspect=0.3, crop_area_min=0.25)
    assert spans(np.log(squeezed[:, 1, 1] / squeezed[:, 0, 0]), -0.3, 0.3)


def test_crops_are_anywhere_within_the_film():
    cropped = affines(crop_area_min=0.25)
    centre, room = cropped[:, :, 2], 1 - np.abs(cropped[:, [0, 1], [0, 1]])
    assert (np.abs(centre) <= room + 1e-6).all()
    assert centre.min() < -0.25 and centre.max() > 0.25


def test_films_are_mirrored_as_often_as_is_asked_for():
    assert (affines(flip_probability=0.3)[:, 1, 1] < 0).mean() == pytest.approx(0.3, abs=0.08)


def test_rotation_keeps_the_centre(films):
    turned, plain = view(films, rotation_degrees=25.0), view(films)
    assert np.allclose(turned[:, 15:17, 15:17], plain[:, 15:17, 15:17], atol=0.03)
    assert np.abs(turned - plain).max() > 0.1


def test_gamma_keeps_order_contrast_keeps_the_mean_brightness_shifts_it(films):
    plain = view(films)[0]
    gamma = view(films, log_gamma=0.5)[0]
    assert (np.argsort(gamma.ravel()[::37]) == np.argsort(plain.ravel()[::37])).all()
    assert view(films, log_contrast=0.2)[0].mean() == pytest.approx(plain.mean(), abs=0.01)
    shifted = view(films, brightness=0.1)[0] - plain
    inside = shifted[plain < 0.8]
    assert np.ptp(inside) < 1e-4 and 0.001 < abs(inside.mean()) <= 0.1


def test_shading_adds_two_slopes_and_a_bowl_within_the_bound(films):
    even = jnp.full_like(films, 120)
    place = np.linspace(-1, 1, 32)
    bowl = place[:, None] ** 2 + place**2 - 2 / 3
    fields = np.stack([place[:, None] + 0 * place, 0 * place[:, None] + place, bowl]).reshape(3, -1)
    found = []
    for key in range(8):
        added = (view(even, key, shading=0.1) - view(even, key)).reshape(4, -1)
        coefficients, *_ = np.linalg.lstsq(fields.T, added.T)
        np.testing.assert_allclose(coefficients.T @ fields, added, atol=1e-5)
        found.extend(coefficients.T)
    assert (np.abs(found) <= 0.1 + 1e-6).all()
    assert (np.ptp(found, axis=0) > 0.15).all()  # each of the three, to either side


def test_an_s_curve_makes_middle_grays_steeper_or_flatter_and_keeps_order_black_and_white():
    ramp = jnp.asarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (4, 64, 1)))
    slopes = []
    for key in range(8):
        plain, curved = view(ramp, key)[:, 16], view(ramp, key, s_curve=0.5)[:, 16]
        np.testing.assert_allclose(curved[:, [0, -1]], plain[:, [0, -1]], atol=0.01)
        assert (np.diff(curved) > 0).all()
        slopes.extend((curved[:, 17] - curved[:, 14]) / (plain[:, 17] - plain[:, 14]))
    assert 0.5 <= min(slopes) < 0.75 and 1.25 < max(slopes) <= 1.5


def test_detail_changes_the_contrast_of_fine_things_and_keeps_coarse_ones():
    """Stripes of 4 px stand out more or less; what is even, and the mean of the stripes, stay."""
    row = (120 + 20 * (np.arange(32) // 2 % 2)).astype(np.uint8)
    stripes = jnp.asarray(np.tile(row, (4, 32, 1)))
    gains = []
    for key in range(12):
        plain, changed = view(stripes, key), view(stripes, key, log_detail=0.7)
        np.testing.assert_allclose(changed.mean(axis=(1, 2)), plain.mean(axis=(1, 2)), atol=0.01)
        gains.extend(np.log(changed.std(axis=(1, 2)) / plain.std(axis=(1, 2))))
    assert -0.36 < min(gains) < -0.1 and 0.5 < max(gains) < 0.75
    even = jnp.full_like(stripes, 77)
    np.testing.assert_allclose(view(even, log_detail=0.7), 77 / 255, atol=1e-5)


def test_blur_is_a_gaussian_of_at_most_the_stated_deviation():
    film = np.zeros((1, 64, 64), np.uint8)
    film[0, 32, 32] = 250
    place = np.arange(64) - 32
    deviations = []
    for key in range(12):
        soft = np.asarray(augment(jax.random.key(key)[None], jnp.asarray(film), 64, OFF | {"blur_px": 3.0}))[0]
        across = soft.sum(axis=0)
        assert across.sum() == pytest.approx(250 / 255, abs=1e-4)
        deviations.append(np.sqrt((across * place**2).sum() / across.sum()))
        if deviations[-1] > 0.7:  # below, one that is sampled at pixels is another than one that is cut to them
            np.testing.assert_allclose(soft, ndimage.gaussian_filter(film[0] / 255, deviations[-1]), atol=2e-3)
    assert 1.5 < max(deviations) <= 3.001
    assert sum(deviation < 1.5 for deviation in deviations) > 6  # the square of an even number


def test_blur_leaves_what_is_even_to_the_border(films):
    even = jnp.full_like(films, 77)
    np.testing.assert_allclose(view(even, blur_px=3.0), 77 / 255, atol=1e-5)


def test_noise_has_the_stated_bound_on_its_deviation(films):
    spread = [(view(films, key, noise=0.1)[1] - view(films)[1])[14:, :].std() for key in range(8)]
    assert max(spread) <= 0.105 and max(spread) > 0.05


def test_erasing_paints_corners_only_with_the_mean(films):
    plain, erased = view(films), view(films, erase_probability=1.0, erase_side=0.3)
    changed = np.abs(plain - erased) > 1e-6
    assert changed[:, :10, :10].any() and changed[:, -10:, -10:].any()
    assert not changed[:, 10:22, 10:22].any()
    assert np.allclose(erased[0, 0, 0], plain[0].mean(), atol=1e-6)


def test_collimation_blackens_strips_along_a_quarter_of_the_sides_or_all_four_and_nothing_else(films):
    widths = []
    for key in range(50):
        plain, collimated = view(films, key), view(films, key, collimation=0.25, framed=0.15)
        for before, after in zip(plain, collimated, strict=True):
            rows, columns = np.flatnonzero(after.any(axis=1)), np.flatnonzero(after.any(axis=0))
            top, bottom, left, right = rows[0], 31 - rows[-1], columns[0], 31 - columns[-1]
            inside = np.s_[top : 32 - bottom, left : 32 - right]
            np.testing.assert_array_equal(after[inside], before[inside])
            assert after.sum() == pytest.approx(before[inside].sum())
            widths.append((top, bottom, left, right))
    assert 5 <= np.max(widths) <= 8  # a quarter of 32
    striped = np.array(widths) > 0
    assert 0.3 < striped.mean() < 0.42
    assert 0.11 < striped.all(axis=1).mean() < 0.22


def test_strips_narrower_than_a_pixel_fill_one_along_each_side_alike(films):
    framed = view(films, collimation=0.03, framed=1.0)  # at most .96 px
    assert not framed[:, [0, -1]].any() and not framed[:, :, [0, -1]].any()
    assert framed[:, 1:-1, 1:-1].all()


def test_views_of_a_network_of_before_there_were_framed_ones_have_no_frames(monkeypatch):
    monkeypatch.setattr("jobs.training.augment.BATCH_SIZE", 64)
    images = np.full((128, 32, 32), 200, np.uint8)
    before = {"crop_area_min": 1.0, "collimation": 0.4}
    made = views(images, [before, before | {"framed": 1.0}])
    edges = np.stack([made[:, 0, 16], made[:, -1, 16], made[:, 16, 0], made[:, 16, -1]], axis=1)
    strips = (edges == 0).all(axis=1)
    assert strips[:64].mean() < 0.05 and strips[64:].mean() > 0.7


def test_views_are_those_that_the_networks_learned_from_in_turn(monkeypatch):
    monkeypatch.setattr("jobs.training.augment.BATCH_SIZE", 4)
    names = ("crop_log_aspect", "rotation_degrees", "log_zoom", "shift", "log_gamma", "log_contrast", "brightness")
    off = {"crop_area_min": 1.0, "flip_probability": 0.0} | dict.fromkeys(names, 0.0)  # of before there was shading
    changes = [off, off | {"flip_probability": 1.0}, off | {"log_gamma": 1.0}]
    images = np.random.default_rng(5).integers(0, 255, (14, 32, 32), np.uint8)
    made = views(images, changes)
    assert made.dtype == np.uint8
    for batch in (slice(0, 4), slice(12, 14)):
        np.testing.assert_array_equal(made[batch], images[batch])
    np.testing.assert_allclose(made[4:8], images[4:8, :, ::-1], atol=1)
    for view, image in zip(made[8:12], images[8:12], strict=True):  # gray values keep their order
        assert (np.diff(view.ravel()[image.ravel().argsort()].astype(int)) >= 0).all() and (view != image).mean() > 0.5


def test_contrast_is_raised_and_lowered_up_to_the_bound():
    image = np.tile(np.linspace(0.4, 0.6, 32), (32, 1))
    keys = jax.random.split(jax.random.key(0), 200)
    changed = np.asarray(jax.vmap(lambda key: _intensity(key, image, OFF | {"log_contrast": 0.2}))(keys))
    assert spans(np.log(changed.std(axis=(1, 2)) / image.std()), -0.2, 0.2)


def test_each_corner_is_erased_as_often_as_is_asked_for():
    image = np.zeros((32, 32))
    image[:16] = 1
    keys = jax.random.split(jax.random.key(0), 400)
    strength = OFF | {"erase_probability": 0.25, "erase_side": 0.5}
    changed = np.asarray(jax.vmap(lambda key: _erase_corners(key, image, strength))(keys))
    erased = np.stack([changed[:, row, column] for row in (0, -1) for column in (0, -1)]) == 0.5
    np.testing.assert_allclose(erased.mean(axis=1), 0.25, atol=0.09)
