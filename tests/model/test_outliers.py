"""What is refused as no chest film, and how it is told."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import mahalanobis

from model import outliers, preprocess
from model.outliers import Gaussians, Outliers, objection


def decoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return preprocess.decode(buffer.getvalue())


TURNED = "this looks like a film that is turned; turn it head up, and cut off what is around it"
GRAY = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (150, 1)))


def coloured(amount):
    """A gray film whose halves are redder and bluer by `amount`."""
    pixels = np.stack([np.asarray(GRAY)] * 3, axis=2).astype(int)
    pixels[:75, :, 0] += amount
    pixels[75:, :, 2] += amount
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK"])
def test_a_gray_film_is_gray_in_any_mode(mode):
    buffer = io.BytesIO()
    GRAY.convert(mode).save(buffer, "TIFF")
    film = preprocess.decode(buffer.getvalue())
    assert film.chroma < 1
    assert objection(film) is None


@pytest.mark.parametrize(("amount", "refused"), [(0, False), (20, False), (30, True)])
def test_colour_is_refused(amount, refused):
    film = decoded(coloured(amount))
    assert film.chroma == pytest.approx(amount, abs=2)
    reason = "this is a colour picture, and X-ray films are gray; if it shows one, save it in grayscale"
    assert (objection(film) == reason) == refused


@pytest.mark.parametrize("gains", [(0.85, 1, 1.12), (1, 0.95, 0.8), (0.6, 0.8, 1)])
def test_a_tint_of_the_whole_is_no_colour(gains):
    film = decoded(Image.merge("RGB", [GRAY.point(lambda value, gain=gain: value * gain) for gain in gains]))
    assert film.chroma < 2
    assert objection(film) is None


@pytest.mark.parametrize(("size", "refused"), [((400, 100), False), ((401, 100), True), ((100, 420), True)])
def test_an_extreme_aspect_is_refused(size, refused):
    reason = objection(decoded(GRAY.resize(size)))
    assert (reason is not None) == refused
    if refused:
        assert "times the shorter; for a chest film it is at most 4 times: crop the picture" in reason


def test_a_blank_picture_is_refused():
    pixels = np.full((100, 100), 90, np.uint8)
    pixels[:1, :50] = 255  # a speck of light on half a percent of it
    assert (
        objection(decoded(Image.fromarray(pixels)))
        == "the picture is blank, or nearly so; send it with more contrast, and nothing transparent"
    )
    pixels[:50] += 16
    assert objection(decoded(Image.fromarray(pixels))) is None


def test_thumbnails_are_means_of_blocks():
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64), np.uint8)
    blocks = images.reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
    expected = (blocks - blocks.mean(axis=(1, 2), keepdims=True)) / blocks.std(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(outliers.thumbnails(images), expected, atol=1e-12)
    uneven = images[:, :50, :50]  # blocks of 3 and 4 px
    np.testing.assert_allclose(outliers.thumbnails(255 - uneven), -outliers.thumbnails(uneven), atol=1e-12)


def test_distances_are_mahalanobis_to_the_nearest_class():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(5, 5))
    covariance = mixing @ mixing.T
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    centres, features = random.normal(size=(3, 5)), random.normal(size=(7, 5)) * 3
    found = Gaussians(whiten, centres @ whiten.T).distances(features)
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(film, centre, inverse) for centre in centres) ** 2 / 5 for film in features]
    np.testing.assert_allclose(found, expected)


def film_like(random):
    """A bright spine between dark lungs, darker below than above, and noise."""
    y, x = np.mgrid[0:64, 0:64] / 63
    spine = np.exp(-(((x - 0.5) / 0.12) ** 2)) + 0.4 * np.exp(-(((x - 0.1) / 0.1) ** 2))
    return np.clip(255 * (0.2 + 0.6 * spine - 0.2 * y) + random.normal(0, 10, (64, 64)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted():
    random = np.random.default_rng(1)
    films = np.stack([film_like(random) for _ in range(20)])
    mean = outliers.thumbnails(films).mean(axis=0)
    member = Gaussians(np.eye(2), np.zeros((3, 2)))
    return Outliers((member, member), 4.0, mean / mean.std()), films


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda film: film, None),
        (lambda film: 255 - film, "this looks like an inverted film; bones must be bright and lungs dark"),
        (np.rot90, TURNED),
        (lambda film: np.rot90(film, 2), TURNED),
    ],
)
def test_inverted_and_turned_films_are_named(fitted, change, reason):
    gate, films = fitted
    changed = np.stack([change(film) for film in films])
    assert gate.objections(changed, [np.zeros((20, 2))] * 2) == [reason] * 20


def test_what_is_likened_faintly_to_an_inverted_film_is_refused_as_unlike(fitted):
    gate, films = fitted
    noise = np.random.default_rng(0).normal(0, 1, (16, 16)).repeat(4, axis=0).repeat(4, axis=1)
    faint = 128 - 25 * (films[0] - 128.0) / films[0].std() + 45 * noise
    film = np.clip(faint, 0, 255).astype(np.uint8)[None]
    assert -outliers.LIKENESS < (outliers.thumbnails(film) * gate.mean_film).mean() < -0.3
    (reason,) = gate.objections(film, [np.zeros((1, 2))] * 2)
    assert reason.startswith("this is not like the chest films")


def test_a_film_is_not_turned_that_is_hardly_more_like_one_turned(fitted):
    gate, _ = fitted
    upright, turned = gate.mean_film, np.rot90(gate.mean_film)
    both = np.clip(128 + 30 * (upright + 1.02 * turned), 0, 255).repeat(4, axis=0).repeat(4, axis=1)
    film = both.astype(np.uint8)[None]
    more = (outliers.thumbnails(film) * (turned - upright)).mean()
    assert 0 < more < outliers.TURN_MARGIN
    assert gate.objections(film, [np.zeros((1, 2))] * 2) == [None]


def test_a_film_far_from_every_class_is_named(fitted):
    gate, films = fitted
    features = [np.array([[0.0, 2.0], [3.0, 3.0]]), np.array([[2.0, 2.0], [0.0, 0.0]])]  # distances 2, 9 and 4, 0
    np.testing.assert_allclose(gate.distances(features), [3, 4.5])
    reasons = gate.objections(films[:2], features)
    assert reasons == [
        None,
        "this is not like the chest films that the model learned from; cut off anything around the film",
    ]


def test_it_survives_json(fitted):
    gate, _ = fitted
    again = Outliers.from_json(gate.to_json())
    np.testing.assert_allclose(again.mean_film, gate.mean_film, rtol=1e-6)
    np.testing.assert_allclose(again.members[1].projection, np.eye(2))
    assert again.threshold == 4.0 and len(again.members) == 2
