"""Invalid input, in configs, data folders and run folders: one error, naming the value and the cure."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections.config_flags import config_path

from configs import base
from jobs import JobError, UsageError, take_place, walk, whole
from jobs.datasets import films
from jobs.datasets.chest_xray.files import files
from jobs.datasets.phantom.builder import Phantom, film
from jobs.training.plan import BOUNDS, check, flatten, plain
from tests.jobs.test_loop import config, train

ROOT = Path(__file__).parents[2]
VERSION = str(films.FilmBuilder.VERSION)


def places(data_dir):
    """{field as BOUNDS names it: (a config that has it, its path there)}, of all numbers."""
    phased = config(data_dir)
    base.train_in(phased, base.phase(1, 0.1))
    found = {}
    for made in (phased, config(data_dir)):
        for path, value in flatten(plain(made)).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[path.replace("[0]", "")] = made, path
    return found


def test_a_field_that_there_is_not_is_told(phantom_data):
    for name, told in (
        ("optimizer.learning_rte", "did you mean optimizer.learning_rate?"),
        ("augment.gamma", "did you mean augment.log_gamma?"),
        ("epohcs", "did you mean epochs?"),
        ("quite_another", "configs/base.py has all there are"),
    ):
        made = config(phantom_data)
        within = made
        for part in name.split(".")[:-1]:
            within = within[part]
        with within.unlocked():
            within[name.split(".")[-1]] = 1.0
        with pytest.raises(UsageError) as error:
            check(made)
        assert str(error.value) == f"config.{name} is not a field of the config; {told}"


def test_every_number_of_a_config_is_bounded(phantom_data):
    assert places(phantom_data).keys() == BOUNDS.keys()


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_out_of_bounds_name_the_value_and_the_bound(phantom_data, name):
    low, high = BOUNDS[name]
    made, path = places(phantom_data)[name]
    kind = type(flatten(plain(made))[path])
    bad = [kind(low - 1)] + ([kind(high + 1)] if high != float("inf") else [])
    for value in bad + ([float("nan")] if kind is float else []):
        config_path.set_value(path, made, value)
        with pytest.raises(UsageError) as error:
            check(made)
        bound = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        assert str(error.value) == f"config.{path} is {value}; it must be {bound}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.name": "adam"}, "config.optimizer.name is 'adam'; known: adamw, sgd, muon"),
        ({"optimizer.schedule": "linear"}, "config.optimizer.schedule is 'linear'; known: cosine, constant"),
        ({"data.resident": "yes"}, "config.data.resident is 'yes'; known: auto, true, false"),
        ({"optimizer.warmup_epochs": 2.0}, "a warm-up of 2 epochs leaves nothing of a run or phase of 2; lower warmup"),
        ({"model.options.widths": (4, 8, 16)}, "blocks (1, 1) has 2 numbers; give 3, one for each stage"),
        (
            {"model.options.widths": (), "model.options.blocks": ()},
            "widths () must be whole numbers from 1 on, one",
        ),
        ({"model.options.widths": (0, 8)}, "widths (0, 8) must be whole numbers from 1 on"),
        ({"model.options.blocks": (1, -1)}, "blocks (1, -1) must be whole numbers from 1 on"),
        (
            {"model.options.widths": (4,) * 7, "model.options.blocks": (1,) * 7},
            "nothing is left of a film of 32 px when the network has halved it so often; raise",
        ),
        ({"data.train_size": 16}, "config.data.train_size is 16; it must be 0, for image_size, or at least 32"),
        ({"data.leave_out": "(a"}, "config.data.leave_out is '(a', which is no regular expression: missing )"),
        ({"data.leave_out": "a{99999999999}"}, "which is no regular expression: the repetition number is too large"),
        ({"global_batch_size": 49}, "a global batch of 49 is more than the 48 training films"),
    ],
)
def test_combinations_that_no_run_can_be_made_of(phantom_data, tmp_path, changes, message):
    with pytest.raises(UsageError) as error:
        train(config(phantom_data, **changes), tmp_path)
    assert message in str(error.value)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _records(folder):
    return sorted(folder.glob("*train.array_record*"))[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "dataset_info.json").unlink(),
        lambda folder: _cut(folder / "dataset_info.json"),
        lambda folder: (folder / "dataset_info.json").write_text("[]"),
        lambda folder: (folder / "features.json").unlink(),
        lambda folder: _cut(folder / "features.json"),
        lambda folder: _records(folder).unlink(),
        lambda folder: _cut(_records(folder)),
        lambda folder: _records(folder).write_bytes(b""),
    ],
    ids=["no info", "info cut", "info a list", "no features", "features cut", "no records", "records cut", "no bytes"],
)
@pytest.mark.parametrize("resident", ["true", "false"])
def test_half_prepared_data_say_so_and_give_the_command(phantom_data, tmp_path, damage, resident):
    data = shutil.copytree(phantom_data, tmp_path / "data")
    damage(data / "phantom" / VERSION)
    with pytest.raises(JobError) as error:
        train(config(data, epochs=1, **{"data.resident": resident}), tmp_path / "run")
    text = str(error.value)
    assert f"the prepared phantom data in {data} are damaged or half prepared (" in text
    assert f"prepare them again: python jobs/prepare.py --source phantom --data_dir {data}" in text
    assert not list((tmp_path / "run").glob("[0-9]*"))


def test_data_of_another_version_are_named(phantom_data, tmp_path):
    data = shutil.copytree(phantom_data, tmp_path / "data")
    (data / "phantom" / VERSION).rename(data / "phantom" / "0.9.0")
    with pytest.raises(JobError, match=rf"there is version 0.9.0; this program reads {VERSION}\); prepare it: python"):
        train(config(data), tmp_path / "run")


def test_a_class_that_is_missing_is_named(tmp_path):
    drawn = [film(index) for index in range(24)]
    without = [one for one in drawn if one.label != 2]
    films.write(Phantom, {"train": without, "validation": drawn}, tmp_path / "data", "phantom")
    with pytest.raises(
        JobError, match="the training split of .* holds no viral film; prepare two patients or more of each class"
    ):
        train(config(tmp_path / "data", global_batch_size=8), tmp_path / "run")


def test_leaving_out_a_class_is_told(phantom_data, tmp_path):
    split = films.read(phantom_data, "phantom", "train")
    viral = "|".join(name for name, label in zip(split.names, split.labels, strict=True) if label == 2)
    with pytest.raises(JobError, match="holds no viral film; leave out fewer by --config.data.leave_out"):
        train(config(phantom_data, **{"data.leave_out": viral}), tmp_path)


def test_a_run_on_other_data_is_not_gone_on_with(phantom_data, tmp_path):
    train(config(phantom_data, epochs=1), tmp_path / "run")
    splits = {"train": [film(index) for index in range(1, 49)], "validation": [film(index) for index in range(60, 72)]}
    films.write(Phantom, splits, tmp_path / "data", "phantom")
    with pytest.raises(JobError, match="holds a run on other data than are in .*; give another --workdir, or prepare"):
        train(config(tmp_path / "data", epochs=2), tmp_path / "run")


def test_a_workdir_of_another_architecture_lists_both(phantom_data, tmp_path):
    train(config(phantom_data, epochs=1), tmp_path)
    made = config(phantom_data, epochs=1)
    made.model.architecture = "resnet"
    made.model.options = {"blocks": (1, 1, 1, 1), "dropout": 0.2}
    with pytest.raises(JobError, match=r"another config \(model.architecture: 'cnn' -> 'resnet'; .*widths"):
        train(made, tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path):
    for name in ("a", "b", "inside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(b"")
    (tmp_path / "a" / "over").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "first").symlink_to(tmp_path / "inside")  # which is walked under its own name, too
    found = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path)]
    assert found == ["a/a.png", "a/over/b.png", "b/b.png", "b/back/a.png", "first/inside.png", "inside/inside.png"]


def test_a_folder_that_cannot_be_opened_is_a_file_that_cannot(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "b.png").write_bytes(b"")
    opened = os.scandir

    def scandir(path):
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert walk(tmp_path) == [tmp_path / "b.png", tmp_path / "shut"]
    assert files(tmp_path)[0] == 2
    assert [file.data for file in files(tmp_path)[1]] == [b"", b""]
    code = f"from pathlib import Path; from jobs import predict; print(predict._answer(None, Path({str(tmp_path)!r})))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "refused" in answer and "the folder cannot be opened" in answer


def test_what_may_change_is_taken_and_noted_and_the_rest_is_refused(phantom_data, tmp_path):
    train(config(phantom_data, epochs=1), tmp_path)
    assert "changed since the run began: epochs: 1 -> 2" in train(config(phantom_data, epochs=2), tmp_path)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]
    with pytest.raises(JobError, match=r"another config \(dtype: 'float32' -> 'bfloat16'; seed: 0 -> 3\)"):
        train(config(phantom_data, epochs=2, seed=3, dtype="bfloat16"), tmp_path)


def test_a_workdir_that_is_a_file_is_named(phantom_data, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(JobError, match="run/lock.json cannot be written .*; give another --workdir"):
        train(config(phantom_data), tmp_path / "run")


DEMO = ("--config", "configs/demo.py")


def command(name, *arguments):
    environment = os.environ | {"XLA_FLAGS": ""}
    words = [sys.executable, f"jobs/{name}.py", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "message", "arguments"),
    [
        (2, "config.epochs is -1; it must be at least 1", ["--config.epochs=-1"]),
        (2, "config.global_batch_size is 0", ["--config.global_batch_size=0"]),
        (2, "--num_processes, --process_id must be given, too", ["--coordinator=localhost:1"]),
        (1, "no prepared phantom data in nowhere; prepare it: python", ["--config.data.dir=nowhere"]),
    ],
)
def test_exit_codes_of_the_command(tmp_path, code, message, arguments):
    result = command("train", "--config", "configs/demo.py", "--workdir", tmp_path / "run", *arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "message", "arguments"),
    [
        ("train", "error: --config is needed: A file of configs/, such as configs/cnn.py.\n", ["--workdir=run"]),
        ("prepare", "error: --source is needed: 'download', 'phantom', or the path of a folder or zip of chest", []),
        (
            "prepare",
            "error: --data_dir is empty; give a value: Where the prepared",
            ["--source=phantom", "--data_dir="],
        ),
        (
            "bundle",
            "error: --checkpoint is empty; give a value: A run",
            ["--checkpoint=run", "--checkpoint=", "--out=bundle"],
        ),
        ("train", "error: --workdir is empty; give a value: Where the run lives", ["--workdir=", *DEMO]),
        (
            "train",
            "error: a phase is set that the config does not have",
            ["--workdir=r", *DEMO, "--config.phases[0].epochs=2"],
        ),
        ("train", "error: --config: No such file or directory: 'no.py'\n", ["--workdir=run", "--config=no.py"]),
    ],
)
def test_what_a_command_cannot_do_without_is_told(name, message, arguments):
    result = command(name, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(message) and result.stderr.endswith("see --help\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def get_config(:", "line 1: invalid syntax"),
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("from configs.cnn import get_config\nint('a')", "line 2: ValueError: invalid literal for int()"),
        ("def get_config():\n    return {}['a']", "line 2: KeyError: a"),
        ("def get_config():\n    return [][1]", "line 2: IndexError: list index out of range"),
        (
            "from configs import base\ndef get_config():\n    base.get_config().modle.a = 1",
            "line 3: AttributeError: 'modl",
        ),
    ],
)
def test_a_broken_config_is_told_in_one_line(tmp_path, text, told):
    (tmp_path / "c.py").write_text(text)
    result = command("train", "--workdir=run", f"--config={tmp_path / 'c.py'}")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: --config: {tmp_path / 'c.py'}, {told}") and result.stderr.count("\n") == 2


def test_a_config_without_its_function_is_told(tmp_path):
    (tmp_path / "c.py").write_text("")
    result = command("train", "--workdir=run", f"--config={tmp_path / 'c.py'}")
    assert result.stderr == "error: --config: the file has no get_config(); configs/cnn.py shows one\nsee --help\n"


def test_a_run_does_not_live_in_an_ensemble(phantom_data, tmp_path):
    (tmp_path / "member-1").mkdir()
    with pytest.raises(UsageError, match="holds the networks of an ensemble; give the run a --workdir of its own"):
        train(config(phantom_data), tmp_path)


def test_a_full_disk_is_one_line(tmp_path):
    code = (
        "import resource, signal, sys; from pathlib import Path; from jobs import run, whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def main(arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        f"    with whole(Path({str(tmp_path / 'file')!r})) as path: path.write_text('x' * 5000)\n"
        "run(main)"
    )
    (tmp_path / "file").write_text("older")
    # Coverage of the child could not be written either, and would say so.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command_line = [sys.executable, "-c", code]
    result = subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"File too large: '{tmp_path / 'file'}'; free some room, or give a place that can" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "file").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    with whole(path) as scratch:
        scratch.write_text("{}")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), whole(path) as scratch:
        scratch.write_text('{"half":')
        _ = 1 / 0
    assert json.loads(path.read_text()) == {}
    assert list(tmp_path.iterdir()) == [path]
    absent = tmp_path / "absent/config.json"
    with pytest.raises(OSError) as error, whole(absent) as scratch:
        scratch.write_text("{}")
    assert error.value.filename == str(absent)


def test_a_link_stays_one_and_a_pipe_is_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with whole(tmp_path / "link") as scratch:
        scratch.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(JobError, match="pipe is not a regular file and cannot be replaced; give the path"),
        whole(tmp_path / "pipe"),
    ):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_an_interrupt_is_one_line():
    code = "from jobs import run\ndef main(): raise KeyboardInterrupt\nrun(main)"
    command_line = [sys.executable, "-c", code]
    result = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 130 and result.stderr.strip() == "stopped"


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.EBUSY, "give a place that can be written"),
        (errno.EDQUOT, "free some room, or give a place that can be written"),
        (errno.ENAMETOOLONG, "give another path"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_a_cure(number, cure):
    code = f"from jobs import run\ndef main(): raise OSError({number}, 'no', 'here')\nrun(main)"
    command_line = [sys.executable, "-c", code]
    result = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stderr == f"error: [Errno {number}] no: 'here'; {cure}\n"


def test_a_name_that_is_no_utf_8_can_be_printed():
    code = r"from jobs import run\ndef main(): print('a\udcff')\nrun(main)".replace(r"\n", "\n")
    command_line = [sys.executable, "-c", code]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command_line, cwd=ROOT, env=strict, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "a\\udcff\n", "")


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path):
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(FileNotFoundError):
        take_place(tmp_path / "absent", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["out"]
    take_place(tmp_path / "new", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
