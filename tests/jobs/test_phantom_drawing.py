"""The phantom films: reproducible, balanced, and told apart by their lesions alone."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from jobs.datasets.phantom import drawing
from model.labels import BACTERIAL, CLASSES, NORMAL, VIRAL

SIZE = 96  # px; small, so that the whole set is drawn in seconds
TOUCHING = np.ones((3, 3))  # pixels that share a corner are neighbours


@pytest.fixture(scope="module")
def films():
    """The whole set, in order."""
    return [drawing.draw(index, SIZE) for index in range(drawing.COUNT)]


@pytest.fixture
def healthy(monkeypatch):
    """Draws a film as it would be had its child stayed well: (Phantom, the chest inside)."""

    def draw(index):
        patient, chest_of, chests = drawing._patient(index), drawing._chest, []

        def kept(*args):
            chests.append(chest_of(*args))
            return chests[-1]

        with monkeypatch.context() as patch:
            patch.setattr(drawing, "_label", lambda index: NORMAL)
            patch.setattr(drawing, "_patient", lambda index: patient)
            patch.setattr(drawing, "_chest", kept)
            return drawing.draw(index, SIZE), chests[0]

    return draw


def of_class(films, label):
    return [film for film in films if film.label == label]


def numbered(films, label, every):
    """Every so-manieth film of a class with its index."""
    return [(index, film) for index, film in enumerate(films) if film.label == label][::every]


def sha256(film):
    return hashlib.sha256(film.image.tobytes() + film.mask.tobytes()).hexdigest()


def test_a_film_depends_on_its_index_and_size_alone(films):
    assert sha256(drawing.draw(7, SIZE)) == sha256(films[7])
    assert len({sha256(film) for film in films}) == drawing.COUNT


def test_the_set_stays_the_same():
    """Other numbers here mean another set: what was prepared from this one or trained on it is stale."""
    film = drawing.draw(1)
    assert film.name == "phantom_0001_bacterial.png"
    assert film.patient == "child_0001"
    assert film.image.mean() == pytest.approx(145.217, abs=0.01)
    assert film.mask.sum() == pytest.approx(1720, abs=2)


def test_a_film_is_a_square_of_bytes_with_a_mask():
    for size in (64, 97, 224):
        film = drawing.draw(2, size)
        assert (film.image.shape, film.image.dtype) == ((size, size), np.uint8)
        assert (film.mask.shape, film.mask.dtype) == ((size, size), bool)


def test_sizes_show_the_same_chest():
    small, large = drawing.draw(4, 112), drawing.draw(4, 224)
    halved = large.image.reshape(112, 2, 112, 2).mean((1, 3))
    assert np.corrcoef(halved.ravel(), small.image.ravel())[0, 1] > 0.98
    assert np.mean(large.mask[::2, ::2] != small.mask) < 0.01


def test_classes_are_balanced_and_named(films):
    assert Counter(film.label for film in films) == {NORMAL: 300, BACTERIAL: 300, VIRAL: 300}
    assert all(film.name == f"phantom_{i:04d}_{CLASSES[film.label]}.png" for i, film in enumerate(films))


def test_a_child_has_one_class_and_some_have_several_films(films):
    labels = defaultdict(list)
    for film in films:
        labels[film.patient].append(film.label)
    assert all(len(set(of_child)) == 1 for of_child in labels.values())
    assert Counter(len(of_child) for of_child in labels.values()) == {1: 549, 2: 99, 3: 51}


def test_films_of_a_child_share_its_proportions(films, monkeypatch):
    seen = []
    chest = drawing._chest
    monkeypatch.setattr(drawing, "_chest", lambda thorax, *rest: seen.append(thorax) or chest(thorax, *rest))
    first, second, stranger = 3, 6, 12
    assert films[first].patient == films[second].patient != films[stranger].patient
    for index in (first, second, stranger):
        drawing.draw(index, SIZE)
    assert seen[0] == seen[1] != seen[2]


def test_only_normal_films_have_an_empty_mask(films):
    assert [film.mask.any() for film in films] == [film.label != NORMAL for film in films]


def test_a_consolidation_is_one_region_of_lobar_size(films):
    for film in of_class(films, BACTERIAL):
        assert ndimage.label(film.mask, TOUCHING)[1] == 1, film.name
        assert 0.012 < film.mask.mean() < 0.075, film.name


def test_a_consolidation_lies_in_one_lung_and_is_brighter_than_the_other(films, healthy):
    for index, film in numbered(films, BACTERIAL, every=5):
        _, chest = healthy(index)
        lung = chest.lung > 0.5
        side = chest.left if (film.mask & chest.left).any() else ~chest.left
        assert not (film.mask & ~(lung & side)).any(), film.name
        assert 0.12 < film.mask.sum() / (lung & side).sum() < 0.37, film.name
        assert film.image[film.mask].mean() > film.image[lung & ~side].mean() + 5, film.name


def test_a_viral_mask_is_both_lungs(films, healthy):
    for index, film in numbered(films, VIRAL, every=5):
        _, chest = healthy(index)
        assert np.array_equal(film.mask, chest.lung > 0.5), film.name
        for side in (chest.left, ~chest.left):
            assert (film.mask & side).mean() > 0.07, film.name


def test_a_viral_pattern_makes_both_lungs_brighter_and_streakier(films, healthy):
    def streakiness(image, where):
        return np.std((image - ndimage.gaussian_filter(image.astype(float), 3))[where])

    ratios = []
    for index, film in numbered(films, VIRAL, every=10):
        before, chest = healthy(index)
        for side in (chest.left, ~chest.left):
            where = film.mask & side
            assert film.image[where].mean() > before.image[where].mean() + 3, film.name
        inner = ndimage.binary_erosion(film.mask, iterations=4)
        ratios.append(streakiness(film.image, inner) / streakiness(before.image, inner))
    assert min(ratios) > 1.03
    assert np.mean(ratios) > 1.12  # a haze without streaks gives 1.04


def test_nothing_but_the_lesion_depends_on_the_class(films, healthy):
    for index in (*range(1, 60, 3), *range(2, 60, 3)):
        before, chest = healthy(index)
        changed = before.image != films[index].image
        reach = ndimage.binary_dilation(chest.lung > 0, TOUCHING)  # the blur carries one pixel further
        assert changed.sum() >= 0.5 * films[index].mask.sum()
        assert not (changed & ~reach).any(), films[index].name


def test_the_marker_says_nothing_about_the_class(films):
    """A lead letter outshines the corner that has none; R and L each mark about half of every class."""
    corner = SIZE // 5
    for label in range(3):
        left = [
            np.ptp(film.image[:corner, -corner:].astype(int)) > np.ptp(film.image[:corner, :corner].astype(int))
            for film in of_class(films, label)
        ]
        assert 0.4 < np.mean(left) < 0.6


@pytest.mark.parametrize("label", [BACTERIAL, VIRAL])
@pytest.mark.parametrize("statistic", [np.mean, np.std, np.min, np.max])
def test_exposure_does_not_tell_the_classes_apart(films, label, statistic):
    pair = of_class(films, NORMAL) + of_class(films, label)
    auroc = roc_auc_score([film.label == label for film in pair], [statistic(film.image) for film in pair])
    assert 0.3 < auroc < 0.7


def test_exposure_varies(films):
    brightest = [np.percentile(film.image, 99) for film in films]
    mean = [film.image.mean() for film in films]
    assert np.std(brightest) > 9
    assert np.std(mean) > 10
    assert 60 < min(mean) < max(mean) < 195


@pytest.mark.parametrize("index", [-1, 900])
def test_an_index_outside_the_set_is_refused(index):
    with pytest.raises(ValueError, match=f"film index is {index}; the phantom set has 0 to 899"):
        drawing.draw(index)


def test_a_film_too_small_to_read_is_refused():
    with pytest.raises(ValueError, match="film size is 63 px; at least 64 px is needed"):
        drawing.draw(0, 63)
