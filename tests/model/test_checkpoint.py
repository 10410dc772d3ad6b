"""Saved is loaded, exactly; the best is the best."""

import hashlib
import json
import os
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from model import checkpoint

VALUES = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)


def variables(shift: float = 0.0):
    return {"params": {"conv": {"kernel": VALUES + np.float32(shift)}}, "batch_stats": {"norm": {"mean": np.ones(3)}}}


def save(directory, scores):
    """Steps 1, 2, ... whose kernels are shifted by their number."""
    with checkpoint.Writer(directory) as writer:
        for step, score in enumerate(scores, start=1):
            train = {"opt": (jnp.int32(step), {}, np.full(4, step, np.float32))}
            writer.save(step, variables(step), {"mean": 0.48, "tuple": (1, 2)}, train=train, score=score)
    return directory


def test_round_trip_of_every_dtype(tmp_path):
    tree = {
        "params": {
            "a": {"kernel": VALUES, "half": VALUES.astype(ml_dtypes.bfloat16)},
            "n": np.int32(7),
        }
    }
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, tree, {"note": "x"}, train={"opt": (jnp.arange(3), {})}, score=1.0)
    loaded = checkpoint.load(tmp_path, train=True)
    for name, array in checkpoint.to_arrays(tree).items():
        stored = checkpoint.to_arrays(loaded.variables)[name]
        assert stored.dtype == array.dtype and (stored == array).all()
    restored = checkpoint.from_arrays({"opt": (jnp.zeros(3, jnp.int32), {})}, checkpoint.to_arrays(loaded.train))
    assert restored["opt"][0].tolist() == [0, 1, 2]
    assert loaded.meta["note"] == "x" and loaded.meta["step"] == 1


def test_best_latest_and_retention(tmp_path):
    save(tmp_path, [0.1, 0.9, 0.5, 0.2, 0.3])
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert checkpoint.load(tmp_path).step == 2
    newest = checkpoint.load(tmp_path, "latest")
    assert newest.step == 5 and newest.train is None
    np.testing.assert_array_equal(newest.variables["params"]["conv"]["kernel"], VALUES + np.float32(5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_never_becomes_the_best(tmp_path, bad):
    save(tmp_path, [0.1, 0.9, bad, 0.2, bad])
    assert checkpoint.load(tmp_path).step == 2
    assert checkpoint.load(tmp_path, "latest").step == 5


def test_scores_may_be_numpy_or_jax_scalars(tmp_path):
    save(tmp_path, [np.float32(0.5), jnp.float32(0.7), np.float64(0.6)])
    assert checkpoint.load(tmp_path).step == 2


def test_a_step_is_not_saved_twice(tmp_path):
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(3, variables(), {}, score=1.0)
        with pytest.raises(checkpoint.CheckpointError, match="step 3 was not saved"):
            writer.save(3, variables(), {}, score=1.0)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return save(tmp_path_factory.mktemp("pristine"), [0.1, 0.9])


def test_a_bundle_is_nothing_to_resume_from(tmp_path):
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, variables(), {})
    with pytest.raises(checkpoint.CheckpointError, match="is a bundle: it holds nothing to resume from"):
        checkpoint.load(tmp_path, "latest", train=True)


def test_no_checkpoint_gives_the_command(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            checkpoint.CheckpointError,
            match=r"no checkpoint in .*; give the folder of a run or a bundle.*, or train one: python jobs/train.py",
        ):
            checkpoint.load(directory)


def test_what_does_not_fit_is_listed_both_ways():
    like = {"a": np.zeros(3), "b": np.zeros((2, 2))}
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.from_arrays(like, {"b": np.zeros((2, 3)), "c": np.zeros(1)})
    assert str(error.value) == (
        "the stored arrays do not fit: a is missing; b is (2, 3), (2, 2) is needed; c is not part of it"
    )


def test_an_older_step_is_not_saved(tmp_path):
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(3, variables(), {}, score=1.0)
        with pytest.raises(checkpoint.CheckpointError, match="step 2 was not saved: it exists already, or a newer"):
            writer.save(2, variables(), {}, score=2.0)
    assert checkpoint.steps(tmp_path) == [3]


def test_meta_states_every_array(pristine):
    meta = checkpoint.load(pristine, "latest").meta
    kernel = meta["arrays"]["variables/params/conv/kernel"]
    digest = hashlib.sha256((VALUES + np.float32(2)).tobytes()).hexdigest()
    assert kernel == {"shape": [32, 16], "dtype": "float32", "sha256": digest}
    assert sorted(meta["arrays"]) == [
        "train/opt/0",
        "train/opt/2",
        "variables/batch_stats/norm/mean",
        "variables/params/conv/kernel",
    ]
    assert meta["score"] == 0.9 and meta["format"] == checkpoint.FORMAT and meta["tuple"] == [1, 2]


def test_a_score_that_is_no_number_is_stated_as_none(tmp_path):
    save(tmp_path, [float("nan"), float("-inf")])
    assert checkpoint.load(tmp_path).step == 2  # of equals the newest
    assert checkpoint.load(tmp_path).meta["score"] is None
    json.loads((tmp_path / "2" / "meta" / "metadata").read_text(), parse_constant=pytest.fail)


def test_arrays_take_the_type_they_are_put_into():
    like = {"a": (np.zeros((2, 2), np.float32), np.int32(0))}
    stored = {"a/0": np.array([[1.5, 2], [3, 4]], ml_dtypes.bfloat16), "a/1": np.int64(5)}
    restored = checkpoint.from_arrays(like, stored)
    assert restored["a"][0].dtype == np.float32 and restored["a"][0].tolist() == [[1.5, 2], [3, 4]]
    assert restored["a"][1].dtype == np.int32 and restored["a"][1] == 5


def test_trees_become_names_and_back():
    tree = {"b": [np.arange(3), {"c": jnp.ones((2, 1))}], "a": (np.float32(2),)}
    arrays = checkpoint.to_arrays(tree)
    assert {name: array.shape for name, array in arrays.items()} == {"a/0": (), "b/0": (3,), "b/1/c": (2, 1)}
    again = checkpoint.from_arrays(tree, dict(reversed(arrays.items())))
    assert again["b"][0].tolist() == [0, 1, 2] and again["b"][1]["c"].tolist() == [[1], [1]] and again["a"][0] == 2


def test_a_name_that_is_no_utf_8_is_told(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="has a name that is no UTF-8, by which no checkpoint is"):
        checkpoint.Writer(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))


def test_members_are_taken_by_number_and_all_of_them(tmp_path):
    assert checkpoint.member_folders(tmp_path) == [tmp_path]
    for number in range(1, 12):
        (tmp_path / f"member-{number}").mkdir()
    for other in ("member-2-old", "member-", "member-x", "member-0", "member-01", "member-\u0663"):
        (tmp_path / other).mkdir()
    (tmp_path / "member-12").write_text("a file")
    assert checkpoint.member_folders(tmp_path) == [tmp_path / f"member-{number}" for number in range(1, 12)]
    (tmp_path / "member-3").rename(tmp_path / "elsewhere")
    with pytest.raises(checkpoint.CheckpointError, match="holds member-11, but no member-3: "):
        checkpoint.member_folders(tmp_path)
    (tmp_path / "member-3").mkdir()
    (tmp_path / "7").mkdir()
    assert len(checkpoint.member_folders(tmp_path)) == 11
    (tmp_path / "7/meta").mkdir()
    with pytest.raises(checkpoint.CheckpointError, match="holds a checkpoint of its own and member-1; which of them"):
        checkpoint.member_folders(tmp_path)
