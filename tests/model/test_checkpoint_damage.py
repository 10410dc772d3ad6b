"""A damaged directory gives what was saved, an older step and the reason, or one clear error: never a wrong value."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model import checkpoint
from tests.model.test_checkpoint import VALUES, save, variables


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two steps, the second newer and better."""
    return save(tmp_path_factory.mktemp("pristine"), [0.1, 0.9])


@pytest.fixture
def run(pristine, tmp_path):
    """A copy to damage."""
    return shutil.copytree(pristine, tmp_path / "run")


def files_of(directory, step):
    return [path for path in sorted((directory / str(step)).rglob("*")) if path.is_file() and path.stat().st_size]


def truth_or_error(directory):
    """Loads the best: its step, having seen that its values are those that were saved; None where it refuses."""
    try:
        loaded = checkpoint.load(directory, train=True)
    except checkpoint.CheckpointError as error:
        assert str(directory) in str(error)
        return None
    np.testing.assert_array_equal(loaded.variables["params"]["conv"]["kernel"], VALUES + np.float32(loaded.step))
    assert loaded.train["opt"]["2"].tolist() == [loaded.step] * 4
    assert loaded.meta["mean"] == 0.48
    return loaded.step


@pytest.mark.parametrize("damage", ["metrics", "data"])
def test_a_writer_goes_on_after_damage_is_set_aside(run, damage):
    assert checkpoint.set_aside_damaged(run, 1) == []
    victim = run / "2" / ("metrics/metrics" if damage == "metrics" else "variables/manifest.ocdbt")
    victim.write_bytes(victim.read_bytes()[:-1])
    assert checkpoint.set_aside_damaged(run, 1) == [run / "damaged-2-1"]
    with checkpoint.Writer(run) as writer:
        writer.save(2, variables(7), {}, train={"n": np.ones(1)}, score=0.3)
    assert checkpoint.steps(run) == [1, 2] and (run / "damaged-2-1").is_dir()


def test_an_edited_meta_is_not_believed(run, caplog):
    path = run / "2" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": 0.5}))
    assert truth_or_error(run) == 1
    assert "step 2 is damaged (the digest of meta does not match)" in caplog.text


def test_nothing_left_to_load_lists_every_step(run):
    for step in (1, 2):
        shutil.rmtree(run / str(step) / "variables")
    with pytest.raises(checkpoint.CheckpointError, match=r"step 2 is damaged.*step 1 is damaged"):
        checkpoint.load(run)


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


def test_a_step_may_be_set_aside_twice(run, pristine):
    for _ in range(2):
        (run / "2" / "variables" / "manifest.ocdbt").write_bytes(b"")
        assert len(checkpoint.set_aside_damaged(run, 1)) == 1
        assert checkpoint.steps(run) == [1]
        shutil.copytree(pristine / "2", run / "2")  # trained again
    assert checkpoint.steps(run) == [1, 2]


@pytest.mark.parametrize(("which", "order"), [("best", [1, 3, 2]), ("latest", [3, 2, 1])])
def test_damaged_steps_are_passed_over_in_order(tmp_path, which, order):
    save(tmp_path, [0.9, 0.1, 0.5])
    for step in order:
        assert checkpoint.load(tmp_path, which).step == step
        shutil.rmtree(tmp_path / str(step) / "variables")
    with pytest.raises(checkpoint.CheckpointError, match="; ".join(f"step {step} is damaged .*" for step in order)):
        checkpoint.load(tmp_path, which)


def test_variables_are_read_without_the_rest(run, caplog):
    shutil.rmtree(run / "2" / "train")
    loaded = checkpoint.load(run)
    assert loaded.step == 2 and loaded.train is None and "damaged" not in caplog.text
    assert checkpoint.load(run, train=True).step == 1
    assert "step 2 is damaged" in caplog.text


def test_a_digest_of_meta_that_is_gone_is_not_believed(run):
    path = run / "2" / "meta" / "metadata"
    edited = json.loads(path.read_text()) | {"mean": 0.5}
    del edited["sha256"]
    path.write_text(json.dumps(edited))
    assert truth_or_error(run) == 1


def test_another_format_is_refused(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    with pytest.raises(checkpoint.CheckpointError, match="format 1 is not 99: made by another version"):
        checkpoint.load(run)


def test_what_an_interrupted_save_left_is_no_step(run):
    shutil.copytree(run / "2", run / "3.orbax-checkpoint-tmp-1")
    (run / "4").write_text("a file")
    assert checkpoint.steps(run) == [1, 2]
    (run / "4").unlink()
    with checkpoint.Writer(run) as writer:
        writer.save(3, variables(3), {}, score=0.95)
    assert checkpoint.load(run).step == 3
    assert not (run / "3.orbax-checkpoint-tmp-1").exists()


def every_file(pristine, tmp_path, caplog, damage, stride):
    """Damages every `stride`-th file of the newest step in turn; how often an older step came back."""
    fell_back = 0
    for number in range(0, len(files_of(pristine, 2)), stride):
        run = shutil.copytree(pristine, tmp_path / str(number))
        path = files_of(run, 2)[number]
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(b"" if damage == "emptied" else path.read_bytes()[: path.stat().st_size // 2])
        caplog.clear()
        step = truth_or_error(run)
        assert step in (1, 2)
        assert (step == 1) == ("step 2 is damaged (" in caplog.text)
        fell_back += step == 1
        shutil.rmtree(run)
    return fell_back


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_any_file_may_be_damaged(pristine, tmp_path, caplog, damage):
    assert every_file(pristine, tmp_path, caplog, damage, stride=1) > 3


def flipped_bits(pristine, tmp_path, count, seed):
    """Flips one bit at `count` random places of the newest step's bytes; how often an older step came back."""
    random = np.random.default_rng(seed)
    sizes = np.array([path.stat().st_size for path in files_of(pristine, 2)])
    fell_back = 0
    for trial in range(count):
        run = shutil.copytree(pristine, tmp_path / str(trial))
        path = files_of(run, 2)[random.choice(len(sizes), p=sizes / sizes.sum())]
        data = bytearray(path.read_bytes())
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        fell_back += truth_or_error(run) == 1
        shutil.rmtree(run)
    return fell_back


def test_a_flipped_bit_never_becomes_a_wrong_value(pristine, tmp_path):
    assert flipped_bits(pristine, tmp_path, 200, seed=1) > 40


def _replace_by_file(step: Path) -> None:
    shutil.rmtree(step)
    step.write_text("not a directory")


def _loop(step: Path) -> None:
    shutil.rmtree(step / "variables")
    (step / "variables").symlink_to("variables")


def _swap(step: Path) -> None:
    # How many data files a save leaves is decided by how its writes fell together, so the two steps may differ in it.
    mine, others = ([path for path in files_of(step.parent, n) if "/d/" in str(path)] for n in (2, 1))
    for path, other in zip(mine, itertools.cycle(others), strict=False):
        path.write_bytes(other.read_bytes())


def _other_content(step: Path) -> None:
    shutil.rmtree(step)
    shutil.copytree(step.parent / "1", step)


FAULTS = {
    "step directory renamed": lambda step: step.rename(step.with_name("2.old")),
    "step directory emptied": lambda step: [shutil.rmtree(step), step.mkdir()],
    "step directory replaced by a file": _replace_by_file,
    "step directory holds another step": _other_content,
    "item directory renamed": lambda step: (step / "variables").rename(step / "variable"),
    "item directory emptied": lambda step: [shutil.rmtree(step / "train"), (step / "train").mkdir()],
    "item directory is a link to itself": _loop,
    "items swapped": lambda step: [
        (step / "train").rename(step / "x"),
        (step / "variables").rename(step / "train"),
        (step / "x").rename(step / "variables"),
    ],
    "data files of another step": _swap,
    "meta is no object": lambda step: (step / "meta" / "metadata").write_text("[1, 2]"),
    "meta is not UTF-8": lambda step: (step / "meta" / "metadata").write_bytes(b"\xff\xfe{}"),
    "meta of another step": lambda step: shutil.copy(step.parent / "1/meta/metadata", step / "meta/metadata"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_directories_renamed_emptied_and_mixed_up(run, caplog, fault):
    FAULTS[fault](run / "2")
    assert truth_or_error(run) == 1
    named = fault in ("step directory renamed", "step directory replaced by a file")  # then there is no step 2
    assert named or "step 2 is damaged (" in caplog.text


def test_strangers_beside_the_steps_do_no_harm(run):
    (run / "notes.txt").write_text("mine")
    (run / "damaged-1-1").mkdir()
    (run / "2" / "extra").write_text("mine")
    (run / "2.orbax-checkpoint-tmp-123").mkdir()
    assert truth_or_error(run) == 2


AS_NOBODY = """
import os, sys
from pathlib import Path
from model import checkpoint
import jax; jax.devices()
import numpy as np
path = Path(sys.argv[1])
os.setuid(65534)
try:
    if sys.argv[2] == "read":
        print("step", checkpoint.load(path).step)
    else:
        with checkpoint.Writer(path) as writer:
            writer.save(9, {"params": {"a": np.ones(4)}}, {}, score=1.0)
except checkpoint.CheckpointError as error:
    print("CheckpointError:", error)
"""


def as_nobody(run, what):
    """Reads or writes as a user without rights; what was printed."""
    if os.getuid() != 0:
        pytest.skip("only root can become nobody")
    command = [sys.executable, "-c", AS_NOBODY, str(run), what]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout


@pytest.fixture
def reachable(run):
    """The run at a place that everybody may enter."""
    for parent in [run, *run.parents]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    return run


def test_a_step_that_may_not_be_read_is_passed_over_and_said(reachable):
    (reachable / "2" / "meta").chmod(0o700)
    assert as_nobody(reachable, "read") == "step 1\n"
    reachable.chmod(0o700)
    assert as_nobody(reachable, "read").startswith(f"CheckpointError: {reachable} cannot be read (Permission denied)")


def test_a_directory_that_may_not_be_written_is_one_error(reachable):
    printed = as_nobody(reachable, "write")
    assert printed.startswith("CheckpointError: ") and str(reachable) in printed and "Permission denied" in printed
    assert truth_or_error(reachable) == 2


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from model import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
large = {"params": {"a": np.random.default_rng(0).normal(size=200_000)}}
try:
    with checkpoint.Writer(Path(sys.argv[1])) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        writer.save(9, large, {}, score=1.0)
except checkpoint.CheckpointError as error:
    print("CheckpointError:", error)
"""


def test_a_full_disk_is_one_error_and_leaves_the_older_steps(run):
    command = [sys.executable, "-c", FULL, str(run)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert f"CheckpointError: a checkpoint could not be written to {run}" in result.stdout, result.stderr
    assert "free some room" in result.stdout
    assert checkpoint.steps(run) == [1, 2]
    assert truth_or_error(run) == 2
    with checkpoint.Writer(run) as writer:  # once there is room again
        writer.save(9, variables(9), {"mean": 0.48, "tuple": (1, 2)}, train={"n": np.ones(1)}, score=0.95)
    assert checkpoint.load(run).step == 9
