"""The examination of a model, on a model whose answers are known."""

import copy
import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jobs.datasets.films import Split, png
from jobs.evaluation import examine, faithfulness, negatives, shifts
from jobs.evaluation.intervals import estimate, mean
from jobs.evaluation.metrics import auroc
from model import gradcam
from model.predictor import REFUSED, Predictor, Raw
from tests.model.test_predictor import VARIED, run  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def split():
    random = np.random.default_rng(0)
    return Split(
        images=VARIED,
        labels=np.arange(40, dtype=np.int32) % 3,
        names=[("IM-1", "NORMAL2-IM-2", "person3")[index % 3] for index in range(40)],
        patients=[str(index // 2) for index in range(40)],
        sizes=random.integers(300, 900, (40, 2)).astype(np.int32),
        masks=np.zeros((40, 64, 64), bool),
        facts={"name": "phantom"},
    )


@pytest.fixture(scope="module")
def predictor(run):  # noqa: F811
    return Predictor.open(run[0])


def test_shifted_figures_are_those_of_the_shifted_films(predictor, split):
    found, views = examine.shifted(predictor, split)
    curve = {point["value"]: point for point in found["curves"]["gamma"]}
    films = np.stack([shifts.gamma(film, 2.0) for film in VARIED])
    probabilities = np.stack([answer.probabilities for answer in predictor.predict(films)]).astype(float)
    assert curve[2.0]["accuracy"]["value"] == pytest.approx((probabilities.argmax(axis=1) == split.labels).mean())
    area = auroc(split.labels != 0, 1 - probabilities[:, 0], np.ones((1, 40)))[0]
    assert curve[2.0]["binary_auroc"]["value"] == pytest.approx(area)
    low, high = curve[2.0]["accuracy"]["interval"]
    assert low < curve[2.0]["accuracy"]["value"] < high
    assert curve[1.0]["accuracy"] == found["as it is"]["accuracy"]
    values = [p["accuracy"]["value"] for name in found["curves"] for p in found["curves"][name]]
    identities = [shifts.SHIFTS[name][2] for name in found["curves"]]
    shifted = [
        point["accuracy"]["value"]
        for (name, points), identity in zip(found["curves"].items(), identities, strict=True)
        for point in points
        if point["value"] != identity
    ]
    assert len(values) - len(shifted) == len(shifts.SHIFTS)
    assert found["mean"]["accuracy"]["value"] == pytest.approx(np.mean(shifted))
    assert views.keys() == shifts.VIEWS.keys()
    mirrored, asked = (examine.ask(predictor, films)[0] for films in (split.images[:, :, ::-1], split.images))
    gains = (mirrored.argmax(axis=1) == split.labels).astype(float) - (asked.argmax(axis=1) == split.labels)
    change = views["mirrored"]["accuracy"]["change"]
    assert gains.any() and change["value"] == pytest.approx(gains.mean())
    expected = estimate(lambda weights: {"gain": mean(gains, weights)}, split.patients)[1]["gain"]
    assert change["interval"] == pytest.approx(expected)


def bright_third(split):
    means = split.images.mean(axis=(1, 2))
    return means > np.quantile(means, 2 / 3)


def test_groups_by_what_should_not_matter(split):
    right = np.arange(40) % 3 == 0  # the first series alone
    probabilities = np.eye(3)[np.where(right, split.labels, (split.labels + 1) % 3)]
    found = examine.groups(split, probabilities)
    assert found.keys() == {"file series", "patient number", "brightness", "source aspect", "source resolution"}
    series = found["file series"]
    assert {name: values["accuracy"]["value"] for name, values in series.items()} == {"IM": 1, "NORMAL": 0, "person": 0}
    assert series["IM"]["films"] == 14 and series["IM"]["classes"] == [14, 0, 0]
    assert series["IM"]["binary_auroc"] == {"value": None, "interval": None}  # of one class
    bright = found["brightness"]["bright third"]
    assert bright["classes"] == np.bincount(split.labels[bright_third(split)], minlength=3).tolist()
    assert 0 <= bright["binary_auroc"]["interval"][0] <= bright["binary_auroc"]["value"] <= 1
    for of_way in found.values():
        assert sum(values["films"] for values in of_way.values()) == 40
    # Patients 0 to 19 in order, of two films each: the first five of the fourteen normal films have the low numbers.
    low = found["patient number"]["normal, low third"]
    assert low["classes"] == [5, 0, 0] and low["accuracy"]["value"] == 1
    assert found["patient number"]["viral, high third"]["accuracy"]["value"] == 0
    # Some archives have identifiers of more digits than a float.
    for least in (10**25, 2**63 - 5):  # all beyond the integers of NumPy, and some
        long = [f"NORMAL-{least + index}" for index in range(40)]
        of_long = examine.groups(types.SimpleNamespace(**vars(split) | {"patients": long}), probabilities)
        of_third = [of_long["patient number"][f"normal, {third} third"] for third in ("low", "middle", "high")]
        assert [values["films"] for values in of_third] == [5, 4, 5]
    # Numbers of the two normal series begin anew, so each has thirds of its own.
    both = [f"{('IM-', 'NORMAL2-IM-')[index % 2]}{index + 100 * (index % 2)}" for index in range(40)]
    of_both = examine.groups(types.SimpleNamespace(**vars(split) | {"patients": both}), probabilities)
    rows = [index for index in range(40) if split.labels[index] == 0]
    wanted = sum(
        sorted(row for row in rows if row % 2 == odd).index(row) < 3 for odd in (0, 1) for row in rows if row % 2 == odd
    )
    assert of_both["patient number"]["normal, low third"]["films"] == wanted
    names = [f"child {'abcd'[index % 4]}" for index in range(40)]
    same = types.SimpleNamespace(**vars(split) | {"sizes": np.full((40, 2), 224), "patients": names})
    assert examine.groups(same, probabilities).keys() == {"file series", "brightness"}
    assert examine.alone(same) == {}
    assert examine.series("train/NORMAL/IM-1.jpeg") == "IM"  # a name that is taken keeps its folders


def test_accuracy_of_pneumonia_takes_either_kind_for_it():
    answers = np.eye(3)[[0, 2, 1, 1]]
    found = examine._figures(np.array([0, 1, 2, 0]), answers, np.ones((1, 4)))
    assert (found["accuracy"][0], found["binary_accuracy"][0]) == (0.25, 0.75)


def test_thirds_by_size_are_called_what_they_are():
    height, width = np.full(9, 100), 100 + 10 * np.arange(9)
    labels = np.arange(9) % 3
    films = types.SimpleNamespace(
        labels=labels,
        names=["a"] * 9,
        patients=[f"x{index}" for index in range(9)],
        images=np.zeros((9, 4, 4), np.uint8),
        sizes=np.stack([height, width], axis=1),
    )
    only_wide_ones = np.eye(3)[np.where(np.arange(9) >= 6, labels, (labels + 1) % 3)]
    found = examine.groups(films, only_wide_ones)
    for way, third in (("source aspect", "wide third"), ("source resolution", "large third")):
        assert {name for name, values in found[way].items() if values["accuracy"]["value"] == 1} == {third}


def test_what_a_size_tells_alone(split):
    ill = split.labels != 0
    wide = np.where(ill, 900, 600) + np.arange(40) % 2  # ill ones are wider, and of all areas
    sizes = np.stack([np.full(40, 500), wide], axis=1)
    found = examine.alone(types.SimpleNamespace(**vars(split) | {"sizes": sizes}))
    assert found["a wide film"] == {"value": 1, "interval": [1, 1]}
    assert found["a small film"] == {"value": 0, "interval": [0, 0]}
    found = examine.alone(split)["a wide film"]  # sizes by chance
    height, width = split.sizes.T
    assert found["value"] == pytest.approx(roc_auc_score(ill, width / height))
    assert found["interval"][0] < 0.5 < found["interval"][1]


def test_heat_outside_the_centre():
    even, who = np.ones((2, 7, 7)), ["a", "b"]
    found = examine.heat_outside(even, even[0], who)
    assert found["share"] == pytest.approx(found["of_a_flat_map"]) == pytest.approx(1 - 0.7**2)
    middle, corner = np.zeros((2, 1, 7, 7))
    middle[0, 3, 3], corner[0, 0, 0] = 1, 1
    assert examine.heat_outside(middle, even[0], who[:1])["share"] == 0
    assert examine.heat_outside(corner, even[0], who[:1])["share"] == 1  # a seventh is less than the margin
    assert examine.heat_outside(np.zeros((1, 7, 7)), even[0], who[:1])["share"] is None
    found = examine.heat_outside(np.repeat([middle[0], corner[0]], 3, axis=0), middle[0], list("abcdef"))
    assert found == {"share": 0.5, "interval": pytest.approx([1 / 6, 5 / 6]), "of_a_flat_map": 0.0}


def test_what_is_seen_is_the_middle(predictor):
    (whole,), variables = predictor.members, predictor.variables * 2
    cells = len(faithfulness.seen(predictor))
    np.testing.assert_array_equal(faithfulness.seen(predictor), np.ones((cells, cells)))
    half = dataclasses.replace(whole, side=0.5)
    flat = faithfulness.seen(types.SimpleNamespace(members=[half, whole], variables=variables))
    assert flat.shape == (2 * cells, 2 * cells)
    edge = cells // 2
    assert (flat[:edge] == 0.5).all() and (flat[edge:-edge, edge:-edge] == 1).all()


def test_what_is_seen_is_what_a_map_without_preference_shows(predictor, monkeypatch):
    (whole,), variables = predictor.members, predictor.variables * 2
    alike = predictor.with_variables(variables)
    alike.members = (dataclasses.replace(whole, image_size=24, side=0.875), dataclasses.replace(whole, side=0.875))
    monkeypatch.setitem(gradcam.METHODS, "flat", lambda a, g: jnp.ones((*g.shape[:2], *a.shape[1:3])))
    shown = Raw.joined(alike.ask(VARIED[:1], "flat")).heatmaps.maps
    np.testing.assert_allclose(faithfulness.seen(alike), shown[0, 0], atol=1e-6)
    assert shown.min() == 0.5 and shown.max() == 1  # the cells of the coarser are wider than what it does not see


def test_the_maps_are_a_table_with_a_best(predictor, split, monkeypatch):
    monkeypatch.setattr(examine, "MAPPED_FILMS", 6)
    monkeypatch.setattr(faithfulness.gradcam, "METHODS", dict(list(faithfulness.gradcam.METHODS.items())[::3]))
    decided = np.arange(40)[::-1] % 3
    asked, maps = [], faithfulness._maps
    monkeypatch.setattr(faithfulness, "_maps", lambda *of: [asked.append(of[2]), maps(*of)][1])
    found = examine.maps(predictor, split, decided)
    chosen = np.random.default_rng(0).permutation(40)[:6]
    assert asked and all((labels == decided[chosen]).all() for labels in asked)  # not those of before calibration
    assert found["films"] == 6 and found["methods"].keys() == {"gradcam", "layercam", "random", "centred blob"}
    row = found["methods"]["gradcam"]
    assert list(row["cascade"]) == ["head", "stage2", "stage1", "stem"]
    curves = {"deletion_curve", "insertion_curve"}
    more = {*curves, "cascade", "explained"}
    assert row.keys() == {*faithfulness.JUDGED, *more} - {"pointing_game", "energy_in_lesion"}
    assert all(-1 <= row[name] <= 1 for name in ("shift", "rotation", "another_film"))
    low, high = found["intervals"]["gradcam"]["randomised"]
    assert low <= row["randomised"] <= high
    assert found["methods"]["random"].keys() == {"deletion", "insertion", *curves, "randomised"}
    assert found["methods"]["centred blob"].keys() == {"deletion", "insertion", *curves}
    curve = list(row["insertion_curve"].values())
    assert len(curve) == 11 and row["insertion"] == pytest.approx(np.trapezoid(curve, dx=0.1))
    assert found["chosen"] in ("gradcam", "layercam")
    low, high = found["intervals"]["gradcam"]["deletion"]
    assert low <= row["deletion"] <= high
    gain = found["against_blob"]["gradcam"]["insertion"]
    assert gain["value"] == pytest.approx(row["insertion"] - found["methods"]["centred blob"]["insertion"])
    assert gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    assert "deletion" in "\n".join(faithfulness.lines(found))


def test_maps_are_compared_where_the_networks_look(predictor, monkeypatch):
    half = copy.copy(predictor)
    half.members = (dataclasses.replace(predictor.members[0], side=0.5),)
    random = np.random.default_rng(0)

    def maps_of_nothing(predictor, images, labels, method):
        """Noise in the middle, as of a network that knows nothing, and blank where it does not look."""
        return np.pad(random.random((len(images), 32, 32)), ((0, 0), (16, 16), (16, 16)))

    monkeypatch.setattr(faithfulness, "_maps", maps_of_nothing)
    found = dict(faithfulness.measure(half, VARIED[:8], np.arange(8) % 3, [*"aabbccdd"]))["gradcam"]
    for name in ("shift", "rotation", "another_film"):
        assert abs(found[name].mean()) < 0.15, name  # .5 and more if the blank border counted
    assert abs(found["cascade"]["stem"].mean()) < 0.15


def test_what_randomising_leaves_has_no_sign(predictor, monkeypatch):
    ramp = np.tile(np.arange(64.0), (6, 64, 1))
    turns = ramp * np.array([1, -1] * 3)[:, None, None]  # a network that is random turns half of the maps about

    def maps_of(network, *_):
        return ramp if network is predictor else turns

    monkeypatch.setattr(faithfulness, "_maps", maps_of)
    monkeypatch.setattr(faithfulness.gradcam, "METHODS", {"gradcam": faithfulness.gradcam.METHODS["gradcam"]})
    found = dict(faithfulness.measure(predictor, VARIED[:6], np.zeros(6, int), [*"abcdef"]))
    assert found["gradcam"]["cascade"]["stem"].mean() == 0
    for figure in ("randomised", "explained"):
        np.testing.assert_allclose(found["gradcam"][figure], 1)
    by_chance = found["random"]["randomised"]
    assert by_chance.shape == (6,) and (by_chance > 0).all() and by_chance.mean() < 0.5


def test_another_film_is_of_another_patient(predictor, monkeypatch):
    maps = np.random.default_rng(0).random((4, 64, 64))
    monkeypatch.setattr(faithfulness, "_maps", lambda *_: maps)
    monkeypatch.setattr(faithfulness.gradcam, "METHODS", {"gradcam": faithfulness.gradcam.METHODS["gradcam"]})

    def of(patients):
        return dict(faithfulness.measure(predictor, VARIED[:4], np.zeros(4, int), patients))["gradcam"]["another_film"]

    everywhere = np.ones((64, 64), bool)
    np.testing.assert_allclose(of([*"aabb"]), faithfulness._correlations(maps, maps[[2, 2, 0, 0]], everywhere))
    assert np.isnan(of([*"aaaa"])).all()


def test_lesions_are_pointed_at_where_they_are_known(predictor, monkeypatch):
    maps = np.zeros((3, 64, 64), np.float32)
    maps[0, 10, 10] = maps[1, 50, 50] = 1
    maps[1, 10, 10] = 0.5
    monkeypatch.setattr(faithfulness, "_maps", lambda *_: maps[:2])
    masks = np.zeros((3, 64, 64), bool)
    masks[:2, 8:12, 8:12] = True
    found = faithfulness.on_lesions(predictor, VARIED[:3], np.array([1, 2, 0]), masks, "gradcam")
    np.testing.assert_array_equal(found["pointing_game"], [1, 0, np.nan])
    np.testing.assert_allclose(found["energy_in_lesion"], [1, 1 / 3, np.nan])
    assert faithfulness.on_lesions(predictor, VARIED[:3], np.zeros(3, int), np.zeros_like(masks), "gradcam") == {}


def test_shifted_films_that_are_refused_are_counted(run, split):  # noqa: F811
    from tests.model.test_predictor import calibration

    calibrated = Predictor.open(run[0], calibrated=False)
    fitted = calibration(calibrated)
    distances = [fitted.outliers.distances(raw.features) for _, raw in calibrated.ask(split.images)]
    threshold = float(np.median(np.concatenate(distances)))
    outliers = dataclasses.replace(fitted.outliers, threshold=threshold)
    calibrated.calibration = dataclasses.replace(fitted, outliers=outliers)
    found, views = examine.shifted(calibrated, split)
    assert 0.4 < found["as it is"]["refused"]["value"] < 1
    sloped = np.stack([shifts.exposure_slope(film, 60) for film in split.images])
    refused = np.mean([answer.decision == REFUSED for answer in calibrated.predict(sloped)])
    point = next(point for point in found["curves"]["exposure_slope"] if point["value"] == 60)
    assert point["refused"]["value"] == pytest.approx(refused) and refused != found["as it is"]["refused"]["value"]
    assert views["mirrored"]["refused"]["change"]["value"] == pytest.approx(
        views["mirrored"]["refused"]["value"] - found["as it is"]["refused"]["value"]
    )
    calibrated.calibration = None
    found, views = examine.shifted(calibrated, split)
    assert not any("refused" in figures for figures in (found["as it is"], found["mean"], views["mirrored"]))


def test_other_pictures_are_counted_by_kind(run, predictor, split, monkeypatch):  # noqa: F811
    monkeypatch.setattr(negatives, "COUNT", 5)
    from tests.model.test_predictor import calibration

    calibrated = Predictor.open(run[0], calibrated=False)
    calibrated.calibration = calibration(calibrated)  # whose Gaussian refuses nothing
    found = examine.outliers(calibrated, split)
    assert found.keys() == {*negatives.DRAWN, *negatives.CHANGED}
    colour = found["colour textures like photographs"]
    assert colour["count"] == 5 and colour["refused"] == 1
    assert colour["intervals"]["refused"] == pytest.approx([0.025 ** (1 / 5), 1])  # Clopper and Pearson 1934
    assert colour["reasons"] == {
        "this is a colour picture, and X-ray films are gray; if it shows one, save it in grayscale": 5
    }
    assert all(0 <= values["auroc"] <= 1 for values in found.values())
    low, high = found["noise"]["intervals"]["auroc"]
    assert low <= found["noise"]["auroc"] <= high

    def distances(features):  # of the films, which are asked for first, and of what is no film
        return np.full(len(features[0]), 0.0 if len(features[0]) == 40 else 9.0)

    gate = types.SimpleNamespace(distances=distances, objections=lambda images, _: ["so unlike"] * len(images))
    calibrated.calibration = dataclasses.replace(calibrated.calibration, outliers=gate)
    far = examine.outliers(calibrated, split)["noise"]
    assert far["auroc"] == 1 and far["refused"] == 1 and far["reasons"] == {"so unlike": 5}


def test_phantoms_are_each_of_another_child(run, split, monkeypatch):  # noqa: F811
    from tests.model.test_predictor import calibration

    predictor = Predictor.open(run[0], calibrated=False)
    predictor.calibration = calibration(predictor)
    monkeypatch.setattr(negatives, "COUNT", 5)
    monkeypatch.setattr(negatives, "pictures", lambda *_: [])
    drawn = [types.SimpleNamespace(patient=f"child {index // 2}", png=png(VARIED[index])) for index in range(10)]
    monkeypatch.setattr(examine, "phantom", drawn.__getitem__)
    asked = []
    ask = predictor.ask
    monkeypatch.setattr(predictor, "ask", lambda images: asked.append(images) or ask(images))
    real = types.SimpleNamespace(**vars(split) | {"facts": {"name": "chest_xray"}})
    assert examine.outliers(predictor, real)["phantoms"]["count"] == 5
    np.testing.assert_array_equal(asked[1], VARIED[:10:2])  # after the films
