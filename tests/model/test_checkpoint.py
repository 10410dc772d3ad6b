"""Saved is loaded, exactly; the best is the best; damage is seen and never becomes a wrong value."""

import hashlib
import json
import shutil

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


def files_of(directory, step):
    return [path for path in sorted((directory / str(step)).rglob("*")) if path.is_file() and path.stat().st_size]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return save(tmp_path_factory.mktemp("pristine"), [0.1, 0.9])


def truth_or_error(directory):
    """Loads the best: its step, having seen that its values are those that were saved; None where it refuses."""
    try:
        loaded = checkpoint.load(directory, train=True)
    except checkpoint.CheckpointError:
        return None
    np.testing.assert_array_equal(loaded.variables["params"]["conv"]["kernel"], VALUES + np.float32(loaded.step))
    assert loaded.train["opt"]["2"].tolist() == [loaded.step] * 4
    assert loaded.meta["mean"] == 0.48
    return loaded.step


def test_a_flipped_bit_never_becomes_a_wrong_value(pristine, tmp_path):
    random = np.random.default_rng(1)
    fell_back = 0
    for trial in range(60):
        damaged = tmp_path / str(trial)
        shutil.copytree(pristine, damaged)
        files = files_of(damaged, 2)
        sizes = np.array([path.stat().st_size for path in files])
        path = files[random.choice(len(files), p=sizes / sizes.sum())]
        data = bytearray(path.read_bytes())
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        fell_back += truth_or_error(damaged) == 1
        shutil.rmtree(damaged)
    assert fell_back > 10


@pytest.mark.parametrize("damage", ["cut", "empty", "remove"])
def test_a_damaged_file_falls_back_or_is_refused(pristine, tmp_path, damage):
    for number, _ in enumerate(files_of(pristine, 2)):
        damaged = tmp_path / f"{damage}{number}"
        shutil.copytree(pristine, damaged)
        path = files_of(damaged, 2)[number]
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "cut" else b"")
        assert truth_or_error(damaged) in (1, 2)


@pytest.mark.parametrize("damage", ["metrics", "data"])
def test_a_writer_goes_on_after_damage_is_set_aside(pristine, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(pristine, run)
    assert checkpoint.set_aside_damaged(run, 1) == []
    victim = run / "2" / ("metrics/metrics" if damage == "metrics" else "variables/manifest.ocdbt")
    victim.write_bytes(victim.read_bytes()[:-1])
    assert checkpoint.set_aside_damaged(run, 1) == [run / "damaged-2-1"]
    with checkpoint.Writer(run) as writer:
        writer.save(2, variables(7), {}, train={"n": np.ones(1)}, score=0.3)
    assert checkpoint.steps(run) == [1, 2] and (run / "damaged-2-1").is_dir()


def test_a_bundle_is_nothing_to_resume_from(tmp_path):
    with checkpoint.Writer(tmp_path) as writer:
        writer.save(1, variables(), {})
    with pytest.raises(checkpoint.CheckpointError, match="is a bundle: it holds nothing to resume from"):
        checkpoint.load(tmp_path, "latest", train=True)


def test_an_edited_meta_is_not_believed(pristine, tmp_path, caplog):
    damaged = tmp_path / "run"
    shutil.copytree(pristine, damaged)
    path = damaged / "2" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": 0.5}))
    assert truth_or_error(damaged) == 1
    assert "step 2 is damaged (the digest of meta does not match)" in caplog.text


def test_nothing_left_to_load_lists_every_step(pristine, tmp_path):
    damaged = tmp_path / "run"
    shutil.copytree(pristine, damaged)
    for step in (1, 2):
        shutil.rmtree(damaged / str(step) / "variables")
    with pytest.raises(checkpoint.CheckpointError, match=r"step 2 is damaged.*step 1 is damaged"):
        checkpoint.load(damaged)


def test_no_checkpoint_gives_the_command(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint in .*; train one: python jobs/train.py"):
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


def test_variables_are_read_without_the_rest(pristine, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(pristine, run)
    shutil.rmtree(run / "2" / "train")
    loaded = checkpoint.load(run)
    assert loaded.step == 2 and loaded.train is None and "damaged" not in caplog.text
    assert checkpoint.load(run, train=True).step == 1
    assert "step 2 is damaged" in caplog.text


@pytest.mark.parametrize(("which", "order"), [("best", [1, 3, 2]), ("latest", [3, 2, 1])])
def test_damaged_steps_are_passed_over_in_order(tmp_path, which, order):
    save(tmp_path, [0.9, 0.1, 0.5])
    for step in order:
        assert checkpoint.load(tmp_path, which).step == step
        shutil.rmtree(tmp_path / str(step) / "variables")
    with pytest.raises(checkpoint.CheckpointError, match="; ".join(f"step {step} is damaged .*" for step in order)):
        checkpoint.load(tmp_path, which)


def test_a_flipped_bit_of_an_array_is_named(tmp_path, caplog):
    # 64 KiB of noise, which no compression shrinks: a bit in the middle of the largest file is a bit of the kernel.
    noise = np.random.default_rng(2).integers(0, 2**32, (128, 128), np.uint32)
    with checkpoint.Writer(tmp_path) as writer:
        for step in (1, 2):
            writer.save(step, {"params": {"noise": noise + np.uint32(step)}}, {}, score=step)
    largest = max(files_of(tmp_path, 2), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    assert len(data) > noise.nbytes
    data[len(data) // 2] ^= 16
    largest.write_bytes(data)
    loaded = checkpoint.load(tmp_path)
    assert loaded.step == 1
    np.testing.assert_array_equal(loaded.variables["params"]["noise"], noise + np.uint32(1))
    assert "step 2 is damaged (variables/params/noise does not match its digest)" in caplog.text


def test_a_digest_of_meta_that_is_gone_is_not_believed(pristine, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pristine, run)
    path = run / "2" / "meta" / "metadata"
    edited = json.loads(path.read_text()) | {"mean": 0.5}
    del edited["sha256"]
    path.write_text(json.dumps(edited))
    assert truth_or_error(run) == 1


def test_another_format_is_refused(pristine, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(pristine, run)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    with pytest.raises(checkpoint.CheckpointError, match="format 1 is not 99: made by another version"):
        checkpoint.load(run)


def test_what_an_interrupted_save_left_is_no_step(pristine, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pristine, run)
    shutil.copytree(run / "2", run / "3.orbax-checkpoint-tmp-1")
    (run / "4").write_text("a file")
    assert checkpoint.steps(run) == [1, 2]
    (run / "4").unlink()
    with checkpoint.Writer(run) as writer:
        writer.save(3, variables(3), {}, score=0.95)
    assert checkpoint.load(run).step == 3
    assert not (run / "3.orbax-checkpoint-tmp-1").exists()


def test_a_step_may_be_set_aside_twice(pristine, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pristine, run)
    for _ in range(2):
        (run / "2" / "variables" / "manifest.ocdbt").write_bytes(b"")
        assert len(checkpoint.set_aside_damaged(run, 1)) == 1
        assert checkpoint.steps(run) == [1]
        shutil.copytree(pristine / "2", run / "2")  # trained again
    assert checkpoint.steps(run) == [1, 2]


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
