"""What the maps are judged by, on networks and maps whose truth is known."""

import types

import numpy as np
import pytest

from jobs.evaluation import faithfulness
from jobs.evaluation.faithfulness import area, deletion_and_insertion
from jobs.evaluation.shifts import rotation


def ask(films):
    """A model that looks at one square alone: the probability of class 1 is its brightness."""
    bright = films[:, 8:16, 8:16].mean(axis=(1, 2)) / 255
    return np.stack([1 - bright, bright, np.zeros_like(bright)], axis=1)


@pytest.fixture(scope="module")
def scene():
    """Black films with a white square that the model looks at; maps that are right, wrong and indifferent."""
    images = np.zeros((3, 64, 64), np.uint8)
    images[:, 8:16, 8:16] = 255
    right = np.zeros((3, 64, 64), np.float32)
    right[:, 8:16, 8:16] = 1
    wrong = np.broadcast_to(np.add.outer(np.arange(64), np.arange(64)), right.shape)  # from the far corner on
    return images, np.ones(3, int), right, wrong


def test_a_map_that_names_the_place_deletes_and_inserts_it_first(scene):
    images, labels, right, wrong = scene
    deletion, insertion = map(area, deletion_and_insertion(ask, images, labels, right))
    worse_deletion, worse_insertion = map(area, deletion_and_insertion(ask, images, labels, wrong))
    assert deletion.shape == insertion.shape == (3,)
    assert (deletion < 0.55).all() and (worse_deletion > 0.55).all()
    assert (insertion > 0.7).all() and (worse_insertion < 0.7).all()


def test_a_model_that_does_not_care_has_the_area_of_its_answer(scene):
    images, labels, right, _ = scene

    def indifferent(films):
        return np.tile([0.2, 0.7, 0.1], (len(films), 1))

    curves = deletion_and_insertion(indifferent, images, labels, right)
    assert curves[0].shape == curves[1].shape == (faithfulness.STEPS + 1, 3)
    np.testing.assert_allclose(curves, 0.7)
    np.testing.assert_allclose(area(curves[0]), 0.7)
    np.testing.assert_allclose(area(np.linspace(0, 1, faithfulness.STEPS + 1)), 0.5)


def test_curves_start_and_end_at_the_film_and_the_blur(scene):
    images, labels, right, _ = scene
    seen = []

    def listening(films):
        seen.append(films)
        return ask(films)

    deletion_and_insertion(listening, images, labels, right)
    assert len(seen) == 2 * (faithfulness.STEPS + 1)
    np.testing.assert_array_equal(seen[0], images)  # deletion starts with the film
    np.testing.assert_array_equal(seen[-1], images)  # insertion ends with it
    np.testing.assert_array_equal(seen[1], seen[-2])  # the blur
    changed = [(films != images).mean() for films in seen[::2]]
    assert changed == sorted(changed)


def test_layers_from_the_output_to_the_input():
    names = ["head", "stage1", "stage10", "stage2", "stem"]
    assert faithfulness.layers(dict.fromkeys(names)) == ["head", "stage10", "stage2", "stage1", "stem"]


def test_randomised_parts_keep_their_numbers_in_another_order():
    random = np.random.default_rng(0)
    variables = {
        "params": {
            "head": {"dense": {"kernel": random.normal(size=(9, 3)), "bias": np.arange(3.0)}},
            "stem": {"conv": {"kernel": random.normal(size=(3, 3, 1, 4))}},
        },
        "batch_stats": {"stem": np.ones(4)},
    }
    changed = faithfulness.randomised(variables, ["head"])
    before, after = (tree["params"]["head"]["dense"] for tree in (variables, changed))
    assert (before["kernel"] != after["kernel"]).any()
    np.testing.assert_array_equal(np.sort(before["kernel"], None), np.sort(after["kernel"], None))
    np.testing.assert_array_equal(before["bias"], after["bias"])
    kernels = [tree["params"]["stem"]["conv"]["kernel"] for tree in (variables, changed)]
    np.testing.assert_array_equal(*kernels)
    assert changed["batch_stats"] is variables["batch_stats"]


def test_rank_correlation():
    ramp = np.arange(16.0).reshape(4, 4)
    assert faithfulness.rank_correlation(ramp, ramp**3) == pytest.approx(1)
    assert faithfulness.rank_correlation(ramp, -ramp) == pytest.approx(-1)
    assert faithfulness.rank_correlation(ramp, np.ones((4, 4))) == 0


def test_controls_know_nothing_of_the_film():
    maps = faithfulness.control_maps(32, 3)
    assert list(maps) == list(faithfulness.CONTROLS)
    assert all(values.shape == (3, 32, 32) for values in maps.values())
    assert maps["centred blob"][0].argmax() in (15 * 32 + 15, 15 * 32 + 16, 16 * 32 + 15, 16 * 32 + 16)
    assert (maps["random"][0] != maps["random"][1]).any()


def test_the_best_has_the_best_mean_rank():
    table = {
        "gradcam": {"deletion": 0.3, "insertion": 0.8, "randomised": 0.1, "explained": 0.01},
        "layercam": {"deletion": 0.2, "insertion": 0.8004, "randomised": 0.5, "explained": 0.01},
        "random": {"deletion": 0.1, "insertion": 0.9},
    }
    assert faithfulness.best(table) == "gradcam"  # 2 + 1.5 + 1 against 1 + 1.5 + 2, the first of equals
    table["layercam"]["randomised"] = 0.05
    assert faithfulness.best(table) == "layercam"
    table["layercam"] |= {"insertion": 0.85, "randomised": 0.3}
    assert faithfulness.best(table) == "layercam"  # 1 + 1 + 2 against 2 + 2 + 1
    table["layercam"] |= {"randomised": 0.56, "explained": 0.52}
    table["gradcam"] |= {"randomised": 0.4, "explained": 0.49}
    assert faithfulness.best(table) == "gradcam"  # the other one shows the film, whatever the network
    table["gradcam"]["explained"] = 0.64
    assert faithfulness.best(table) == "layercam"  # unless all do
    for figures in table.values():
        figures["another_film"] = None  # all films are of one patient
    assert faithfulness.best(table) == "layercam"
    against = {"layercam": {"deletion": {"value": -0.1, "interval": [-0.2, 0.01]}}}
    bounds = {name: {column: [0.1, 0.9] for column in row} for name, row in table.items()}
    found = {"films": 5, "methods": table, "intervals": bounds, "against_blob": against, "chosen": "layercam"}
    text = "\n".join(faithfulness.lines(found))
    assert "layercam less the centred blob: deletion -0.100 (-0.200 to +0.010)" in text
    assert text.count("not defined") == 3
    deletion, insertion, randomised = (f"{x:.3f} (0.100 to 0.900)" for x in (0.2, 0.85, 0.56))
    assert faithfulness.rows(found)[2] == ["layercam", deletion, insertion, "not defined", randomised]
    assert "maps of 5 films, their intervals in metrics.json; chosen by mean rank: layercam" in text
    assert "| layercam |    0.200 |     0.850 |  not defined |      0.560 |" in text


@pytest.mark.parametrize("column", faithfulness.JUDGED)
def test_each_column_is_judged_the_right_way(column):
    less = column in ("deletion", "another_film", "randomised")
    table = {name: {column: value, "explained": 0.0} for name, value in (("gradcam", 0.4), ("layercam", 0.6))}
    assert faithfulness.best(table) == ("gradcam" if less else "layercam")


def test_maps_are_turned_as_their_films():
    film = np.tile(np.linspace(40, 200, 64), (64, 1))
    inside = np.s_[8:-8, 8:-8]
    expected = rotation(film.astype(np.uint8), faithfulness.TURN_DEGREES)[inside]
    np.testing.assert_allclose(faithfulness._turned(film[None])[0][inside], expected, atol=2)


def test_the_cascade_adds_one_part_more_at_a_time():
    kernels = {name: {"kernel": np.arange(30.0).reshape(5, 6)} for name in ("head", "stage1", "stem")}
    predictor = types.SimpleNamespace(variables=[{"params": kernels}], with_variables=lambda variables: variables)
    changed = [
        (part, [name for name in kernels if (one["params"][name]["kernel"] != kernels[name]["kernel"]).any()])
        for part, (one,) in faithfulness.cascade(predictor)
    ]
    assert changed == [("head", ["head"]), ("stage1", ["head", "stage1"]), ("stem", ["head", "stage1", "stem"])]
