"""The commands as a person types them, one after the other, on a small source of real files."""

import csv
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jobs import command
from jobs.datasets.films import SPLITS, facts, read, write
from jobs.datasets.phantom.builder import Phantom, film
from jobs.datasets.phantom.drawing import draw
from jobs.evaluation import cards, fit, predictions, report
from jobs.evaluation.tables import NO_WIDTH
from jobs.training.augment import views
from model import checkpoint
from model.predictor import Predictor
from model.preprocess import MAX_BYTES
from tests.conftest import jpeg, put

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "prepare",
    "train",
    "evaluate",
    "bundle",
    "predict",
    "preview",
    "scaling",
    "calibrate",
    "audit",
    "card",
    "crossval",
    "sweep",
    "compare",
    "models",
    "export",
    "pretrain",
)

CONFIG = """
from configs import base

def get_config():
    config = base.get_config()
    config.epochs = 1
    config.global_batch_size = 8
    config.data.dataset = "phantom"
    config.data.image_size = 32
    config.model.options.widths = (4, 8)
    config.model.options.blocks = (1, 1)
    config.optimizer.warmup_epochs = 0.0
    return config
"""


def job(name, *arguments, cwd=ROOT, env=None):
    environment = os.environ | {"XLA_FLAGS": "", "COLUMNS": "200"} | (env or {})
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def done(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def run(phantom_data, tmp_path_factory):
    """A run of one epoch, by the command."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.py").write_text(CONFIG)
    out = done(
        job("train", "--config", folder / "tiny.py", "--workdir", folder / "run", f"--config.data.dir={phantom_data}")
    )
    assert "epoch   1/1" in out
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "checkpoint"
    printed = done(job("bundle", "--checkpoint", run, "--out", out, "--dtype", "bfloat16"))
    assert "epoch 1, bfloat16" in printed
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains(name):
    out = done(job(name, "--help"))
    assert f"python jobs/{name}.py" in out
    for flag in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (ROOT / "jobs" / f"{name}.py").read_text()):
        assert f"--{flag}" in out.split("Flags:")[1] or f"--[no]{flag}" in out.split("Flags:")[1]


@pytest.mark.parametrize("name", ("prepare", "train", "predict"))
def test_an_unknown_flag_is_a_usage_error(name):
    result = job(name, "--nonsense")
    assert result.returncode == 2
    assert "nonsense" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.epoch=3", '\'epoch\' Did you mean "epochs" instead of "epoch"?'),
        ("--config.epochs=many", "flag --config.epochs=many: invalid literal for int()"),
        ("--config=configs/absent.py", "configs/absent.py"),
    ],
)
def test_a_mistyped_config_is_a_usage_error(flag, message):
    result = job("train", "--config", "configs/demo.py", "--workdir", "unused", flag)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr


def test_prepare_prints_the_table_and_lists_what_was_set_aside(kaggle, tmp_path):
    (kaggle / "train/NORMAL/IM-0990-0001.jpeg").write_bytes(jpeg(1)[:500])
    shutil.copytree(kaggle / "test/NORMAL", tmp_path / "healthy/test/NORMAL")
    put(tmp_path, "healthy/test/NORMAL/of nobody.jpeg", jpeg(2, size=(300, 64)))
    out = done(job("prepare", "--source", tmp_path / "healthy", "--data_dir", tmp_path / "healthy_data"))
    assert "1 of 4 films name no patient (--help says how names do); each counts as of one of its own, so" in out
    assert "so films of one child may make intervals too narrow." in out
    assert (
        "Kept, though predict.py and the page refuse to answer them: 1 film, 1 as test/NORMAL/of nobody.jpeg: the"
        in out
    )
    listed = (tmp_path / "healthy_data/quarantine.csv").read_text().splitlines()
    assert listed[1].startswith("test/NORMAL/of nobody.jpeg,test,kept,the longer side of the picture is 4.69 times")
    assert "The test split has no bacterial and no viral film; figures that need some are not defined." in out
    shutil.rmtree(kaggle / "test")
    out = done(job("prepare", "--source", kaggle, "--data_dir", tmp_path / "data"))
    assert "no patient" not in out and "refuse" not in out
    assert "absent" in out and "The source has no test split" in out and "Set aside: 1 unreadable" in out
    put(tmp_path, "mine/quarantine.csv", b"my own list")
    result = job("prepare", "--source", kaggle, "--data_dir", tmp_path / "mine")
    assert result.returncode == 2 and "quarantine.csv exists and is no table of this command" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["quarantine.csv"]
    rows = list(csv.DictReader((tmp_path / "data/quarantine.csv").open()))
    assert rows[0]["file"] == "train/NORMAL/IM-0990-0001.jpeg" and rows[0]["reason"] == "unreadable"
    again = done(job("prepare", "--source", kaggle, "--data_dir", tmp_path / "data"))
    assert again == out
    assert "Recorded as films of the published dataset, licence CC BY 4.0. If they are others, prepare" in out
    whose = ("--license", "not public")
    out = done(job("prepare", "--source", kaggle, "--data_dir", tmp_path / "ours", *whose))
    assert "published" not in out
    of = facts(tmp_path / "ours", "chest_xray")
    assert (of["license"], of["citation"]) == ("not public", "not stated")
    result = job("prepare", "--source", kaggle, "--data_dir", tmp_path / "data", *whose)
    assert result.returncode == 1 and "holds prepared films of another source ('kaggle'; " in result.stderr
    assert facts(tmp_path / "data", "chest_xray")["license"] == "CC BY 4.0"
    result = job("prepare", "--source", "phantom", "--data_dir", tmp_path / "data", *whose)
    assert result.returncode == 2 and "the licence and citation of phantom are known; leave --license" in result.stderr


def test_one_patient_of_a_class_is_too_few_to_train(tmp_path):
    for label in ("normal", "bacterial", "viral"):
        for patient in range(1 if label == "viral" else 2):
            put(tmp_path, f"films/{label}/child{patient}.jpeg", jpeg(10 * patient + len(label)))
    out = done(job("prepare", "--source", tmp_path / "films", "--data_dir", tmp_path / "data"))
    assert "The source has no test split;" in out
    assert "Of viral there is one patient; to train, two of each class are needed, one of whom is held out." in out
    for label in ("normal", "bacterial"):
        (tmp_path / f"films/{label}/child1.jpeg").unlink()
    out = done(job("prepare", "--source", tmp_path / "films", "--data_dir", tmp_path / "alone"))
    assert "The source has no validation and no test split;" in out and "of viral there is one patient" in out
    assert "so films of one child may make intervals too narrow." in out
    result = job(
        "train", "--config", "configs/cnn.py", f"--config.data.dir={tmp_path}/alone", "--workdir", tmp_path / "r"
    )
    assert "a source with two patients of each class or more, in no test folder, gives one" in result.stderr


@pytest.mark.parametrize("words", [("models", "--help"), ("compare", *["docs/report/predictions.csv"] * 2)])
def test_who_stops_reading_ends_a_command_quietly(words):
    command = [sys.executable, f"jobs/{words[0]}.py", *words[1:]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        told = process.stderr.read().decode()
    assert process.returncode == 1 and "Traceback" not in told and "Exception" not in told


def test_prepare_refuses_in_one_line(tmp_path):
    result = job("prepare", "--source", "", "--data_dir", tmp_path / "data")
    assert result.returncode == 2 and "--source is empty; give a value: 'download'" in result.stderr
    result = job("prepare", "--source", tmp_path, "--data_dir", tmp_path / "data")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no usable image") and "Traceback" not in result.stderr
    (tmp_path / "file").touch()
    result = job("prepare", "--source", tmp_path / "absent", "--data_dir", tmp_path / "file")  # before it is read
    assert result.returncode == 1 and "file'; give a place that can be written" in result.stderr
    result = job("prepare", "--source", tmp_path, "--data_dir", os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    assert result.returncode == 2 and r"--data_dir is " in result.stderr and r"/d\xe9, no UTF-8" in result.stderr


def test_a_source_may_have_any_name(kaggle, tmp_path):
    source = kaggle.rename(os.fsdecode(os.fsencode(tmp_path) + b"/R\xf6ntgen"))
    done(job("prepare", "--source", source, "--data_dir", tmp_path / "data"))
    assert facts(tmp_path / "data", "chest_xray")["source"] == r"R\xf6ntgen"


def test_train_without_data_gives_the_command(run, tmp_path):
    result = job(
        "train", "--config", run.parent / "tiny.py", "--workdir", tmp_path / "x", f"--config.data.dir={tmp_path}"
    )
    assert result.returncode == 1
    assert "python jobs/prepare.py --source phantom" in result.stderr and "Traceback" not in result.stderr


def test_evaluate_writes_figures_predictions_and_plots(run, phantom_data, tmp_path):
    out = done(
        job("evaluate", "--checkpoint", run, "--split", "test", "--data_dir", phantom_data, "--out", tmp_path / "out")
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    plots = (
        "confusion_matrix",
        "roc",
        "precision_recall",
        "reliability",
        "class_distribution",
        "heatmaps",
        "risk_coverage",
    )
    assert written == {"metrics.json", "predictions.csv", *(f"{name}.png" for name in plots)}
    for name in plots:
        assert str(tmp_path / "out" / f"{name}.png") in out
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 300
    measured = json.loads((tmp_path / "out/metrics.json").read_text())
    assert measured["count"] == 12 and sum(map(sum, measured["confusion_matrix"])) == 12
    assert measured["pointing_game"].keys() == {"normal", "bacterial", "viral"}
    assert measured["films_are"] == "held out" and "gradcam peaks inside the lesion\n" in out
    assert "no patient" not in out and "apart" not in out
    low, high = measured["intervals"]["pointing_game"]["bacterial"]
    assert low <= measured["pointing_game"]["bacterial"] <= high
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open()))
    assert list(rows[0]) == ["name", "patient", "label", "normal", "bacterial", "viral", "refused"]
    right = [max(("normal", "bacterial", "viral"), key=lambda name: float(row[name])) == row["label"] for row in rows]
    assert np.mean(right) == pytest.approx(measured["accuracy"])


@pytest.mark.parametrize(
    ("name", "text", "beside", "what"),
    [
        ("predictions.csv", "file,decision,normal,bacterial,viral,reason", "notes.txt", "table"),  # of predict.py
        ("predictions.csv", ",".join(predictions.COLUMNS), "crossval.json", "table"),
        ("predictions.csv", ",".join((*predictions.COLUMNS, "my reading")), "notes.txt", "table"),
        ("metrics.json", '{"mine": 1}', "notes.txt", "figures"),
        ("shifts.png", "mine", "notes.txt", "picture"),
    ],
)
def test_evaluate_replaces_nothing_but_a_report(run, phantom_data, tmp_path, name, text, beside, what):
    (tmp_path / name).write_text(text)
    (tmp_path / beside).touch()
    result = job("evaluate", "--checkpoint", run, "--data_dir", phantom_data, "--out", tmp_path)
    assert result.returncode == 2 and f"{name} exists and is no {what} of a report" in result.stderr
    assert len(list(tmp_path.iterdir())) == 2 and (tmp_path / name).read_text() == text


def test_a_report_whose_table_was_taken_along_is_one(run, phantom_data, tmp_path):
    arguments = ("evaluate", "--checkpoint", run, "--data_dir", phantom_data, "--out", tmp_path)
    done(job(*arguments))
    (tmp_path / "predictions.csv").unlink()
    done(job(*arguments))
    assert (tmp_path / "predictions.csv").exists()


def test_evaluate_says_whose_films_are_not_known(run, tmp_path):
    drawn = [film(index) for index in range(600, 608)]
    drawn[0] = dataclasses.replace(drawn[0], patient="test/normal/a")
    write(Phantom, {"test": drawn}, tmp_path / "data", "phantom")
    paths = ("--data_dir", tmp_path / "data", "--out", tmp_path / "out")
    out = done(job("evaluate", "--checkpoint", run, "--split", "test", *paths))
    assert "These films are prepared apart from the training data: where the model has seen them, the figures" in out
    assert "1 of 8 films name no patient and count as of one each: where some are of one child, the intervals" in out


def test_evaluate_says_which_split_is_absent(run, tmp_path):
    arguments = ("--checkpoint", run, "--split", "test", "--data_dir", tmp_path, "--out", tmp_path / "o")
    assert "no prepared phantom data" in job("evaluate", *arguments).stderr
    films = [film(index) for index in range(6)]
    write(Phantom, {"train": films[:3], "validation": films[3:]}, tmp_path, "phantom")
    result = job("evaluate", *arguments)
    assert result.returncode == 1 and "no 'test' split (it has: train, validation)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_report_takes_the_place_of_another_whole_or_not_at_all(run, phantom_data, tmp_path):
    arguments = ("evaluate", "--checkpoint", run, "--data_dir", phantom_data, "--out", tmp_path / "out")
    assert "replaced the older" not in done(job(*arguments, "--split", "test"))
    said = done(job(*arguments))
    assert f"replaced the older report (step {checkpoint.load(run).step}; test) with:" in said
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "new").mkdir()
    for name in ("predictions.csv", "roc.png", "maps.png"):
        (tmp_path / "new" / name).write_text("new")
    with pytest.raises(FileNotFoundError):
        report._take_place(tmp_path / "new", ["predictions.csv", "maps.png", "metrics.json"], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out/roc.png").unlink()
    (tmp_path / "out/roc.png").mkdir()
    result = job(*arguments)
    assert result.returncode == 2 and "roc.png is a folder, where a report has a file; give another" in result.stderr
    assert (tmp_path / "out/metrics.json").read_bytes() == before["metrics.json"]


def test_nothing_but_steps_goes_where_a_checkpoint_has_its_steps(run, phantom_data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run, tmp_path / "ensemble/member-1")
    shutil.copytree(run, tmp_path / "ensemble/member-2")
    step = checkpoint.load(run).step
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path / f"run/{step}", tmp_path / f"run/{step}/report", tmp_path / "run/99"):
        result = job("evaluate", "--checkpoint", run, "--data_dir", phantom_data, "--out", out)
        assert (
            result.returncode == 2
            and f"{out} is inside the checkpoint {tmp_path / 'run'}, in the place of its" in result.stderr
        )
        result = job("bundle", "--checkpoint", run, "--out", out)
        assert (
            result.returncode == 1
            and f"{out} would become a part of the checkpoint in {tmp_path / 'run'};" in result.stderr
        )
    for name in ("run/member-1", "ensemble/member-1", "ensemble/member-3"):
        result = job("bundle", "--checkpoint", run, "--out", tmp_path / name)
        assert (
            result.returncode == 1
            and f"{name} would become a part of the checkpoint in {(tmp_path / name).parent};" in result.stderr
        )
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "2026/1").mkdir(parents=True)  # folders named by numbers are no steps
    done(job("bundle", "--checkpoint", run, "--out", tmp_path / "2026/2"))


def test_a_shorter_report_leaves_no_plot_of_a_longer_one(run, phantom_data, tmp_path):
    for name in ("shifts.png", "maps.png", "notes.txt"):
        (tmp_path / name).write_text("of other weights")
    (tmp_path / "predictions.csv").write_text(",".join(predictions.COLUMNS))
    done(job("evaluate", "--checkpoint", run, "--data_dir", phantom_data, "--out", tmp_path))
    assert not (tmp_path / "shifts.png").exists() and not (tmp_path / "maps.png").exists()
    assert (tmp_path / "notes.txt").exists()


def test_a_bundle_is_slim_whole_and_attributed(run, bundle):
    files = {path.relative_to(bundle).parts[0] for path in bundle.rglob("*")}
    best = checkpoint.load(run, "best")
    assert files == {str(best.step), "ATTRIBUTION.md"}
    assert "phantom" in (bundle / "ATTRIBUTION.md").read_text()
    assert not any(str(bundle.parent).encode() in path.read_bytes() for path in bundle.rglob("*") if path.is_file())
    stored = checkpoint.load(bundle)
    assert str(stored.variables["params"]["stem"]["conv"]["kernel"].dtype) == "bfloat16"
    assert str(stored.variables["params"]["head"]["dense"]["bias"].dtype) == "float32"
    assert stored.meta["arrays"]["variables/params/stem/conv/kernel"]["dtype"] == "bfloat16"
    assert not (bundle / str(best.step) / "train").exists()
    assert "dir" in best.meta["config"]["data"] and "dir" not in stored.meta["config"]["data"]  # nobody's business


@pytest.fixture(scope="module")
def calibrated(run, phantom_data, tmp_path_factory):
    """A copy of the run with its calibration, and what the command said."""
    copied = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(run, copied)
    return copied, done(job("calibrate", "--checkpoint", copied, "--data_dir", phantom_data))


def test_films_are_told_by_those_of_training_and_by_views_of_them(calibrated, phantom_data):
    predictor = Predictor.open(calibrated[0])
    train, validation = (read(phantom_data, "phantom", split) for split in ("train", "validation"))

    def features(images):
        return np.concatenate([raw.features[0] for _, raw in predictor.ask(images)])

    viewed = features(views(train.images, [predictor.meta["config"]["augment"]]))
    alone, held_out = features(train.images), [features(validation.images)]
    both = [np.concatenate([alone, viewed])]
    expected = fit.outliers(np.tile(train.labels, 2), train.images, both, held_out)
    assert predictor.calibration.outliers.threshold == pytest.approx(expected.threshold, rel=1e-3)
    without = fit.outliers(train.labels, train.images, [alone], held_out)
    assert without.threshold != pytest.approx(expected.threshold, rel=0.05)


def test_calibrate_writes_what_evaluate_then_measures(calibrated, phantom_data, tmp_path):
    directory, said = calibrated
    assert f"written: {directory / 'calibration.json'}" in said and "screening: pneumonia from" in said
    arguments = ("--checkpoint", directory, "--data_dir", phantom_data, "--split", "validation")
    out = done(job("evaluate", *arguments, "--prevalence", "0.0004", "--out", tmp_path))
    assert "PPV and NPV at a prevalence of 0.04 %" in out
    assert out.count(NO_WIDTH) == 1 and "(100.0 to 100.0)" in out
    measured = json.loads((tmp_path / "metrics.json").read_text())
    fitted = json.loads((directory / "calibration.json").read_text())
    assert ("No temperature fits" in said) == (fitted["temperature"] > 99)
    # Measured on what it was fitted on, it holds what it promises.
    for name in ("log_loss", "brier", "ece", "ece_equal_mass"):
        assert measured["calibration"]["before"][name] == pytest.approx(fitted["facts"]["before"][name], abs=1e-6)
        assert measured[name] == pytest.approx(fitted["facts"]["after"][name], abs=1e-6)
    assert measured["log_loss"] <= measured["calibration"]["before"]["log_loss"]
    assert "The calibration and its thresholds were fitted to these films, so these figures are opt" in out
    low, high = measured["calibration"]["intervals"]["before"]["log_loss"]
    assert low < measured["calibration"]["before"]["log_loss"] < high
    assert f"log loss  {measured['calibration']['before']['log_loss']:.4f} ({low:.4f} to {high:.4f})" in out
    found = measured["decisions"]
    assert found["operating_points"]["screening"]["sensitivity"] >= 0.98
    assert found["operating_points"]["specific"]["specificity"] >= 0.95
    assert found["intervals"]["operating_points"]["screening"]["sensitivity"][1] <= 1
    assert fitted["steps"] == measured["checkpoint"]["steps"] == list(Predictor.open(directory).steps)
    assert (tmp_path / "risk_coverage.png").exists()


def test_a_bundle_takes_the_calibration_along(calibrated, tmp_path):
    directory, _ = calibrated
    for source, out in ((directory, tmp_path / "bundle"), (tmp_path / "bundle", tmp_path / "again")):
        assert "not calibrated" not in done(job("bundle", "--checkpoint", source, "--out", out))
        bundled, run = Predictor.open(out), Predictor.open(directory)
        assert bundled.weights == run.weights
        assert bundled.calibration.to_text() == run.calibration.to_text()


def test_a_bundle_goes_where_a_link_leads(run, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "served")
    done(job("bundle", "--checkpoint", run, "--out", tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "served/ATTRIBUTION.md").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "served"}


def test_a_place_that_cannot_hold_a_calibration_is_known_before_the_work(run, phantom_data):
    program = """
import errno, os, runpy, tempfile
from model.predictor import Predictor

def refused(dir):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

tempfile.TemporaryFile = refused
Predictor.ask = None
runpy.run_path("jobs/calibrate.py", run_name="__main__")
"""
    words = [sys.executable, "-c", program, "--checkpoint", run, "--data_dir", phantom_data]
    result = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, check=False)
    told = f"error: {run} cannot be written to (Read-only file system), and its calibration.json belongs there; copy"
    assert result.returncode == 1 and told in result.stderr and "Traceback" not in result.stderr


def test_a_folder_in_the_place_of_a_calibration_is_known_before_the_work(run, phantom_data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/calibration.json").mkdir()
    program = (
        "import runpy; from model.predictor import Predictor; Predictor.ask = None\n"
        "runpy.run_path('jobs/calibrate.py', run_name='__main__')"
    )
    words = [sys.executable, "-c", program, "--checkpoint", tmp_path / "run", "--data_dir", phantom_data]
    result = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        result.returncode == 1
        and "calibration.json is a folder; the calibration is a file of that name" in result.stderr
    )


def test_rounded_kernels_are_calibrated_themselves(calibrated, phantom_data, tmp_path):
    directory, _ = calibrated
    out, arguments = tmp_path / "bundle", ("--dtype", "bfloat16")
    done(job("bundle", "--checkpoint", directory, "--out", out))
    said = done(job("bundle", "--checkpoint", directory, "--out", out, *arguments))  # in the place of one that has it
    assert said.endswith(
        f"not calibrated ({directory / 'calibration.json'} is of the kernels before they were rounded); "
        f"next: python jobs/calibrate.py --checkpoint {out}\n"
    )
    assert Predictor.open(out).calibration is None
    done(job("calibrate", "--checkpoint", out, "--data_dir", phantom_data))
    assert "not calibrated" not in done(job("bundle", "--checkpoint", out, "--out", tmp_path / "again", *arguments))
    assert Predictor.open(tmp_path / "again").calibration.weights == Predictor.open(out).weights  # rounded already


def test_several_make_an_ensemble_that_is_calibrated_as_one(run, phantom_data, tmp_path):
    out, rounded = tmp_path / "ensemble", tmp_path / "rounded"
    done(job("bundle", "--checkpoint", run, "--out", rounded, "--dtype", "bfloat16"))
    said = done(job("bundle", "--checkpoint", run, "--checkpoint", rounded, "--out", out))
    assert f"not calibrated; next: python jobs/calibrate.py --checkpoint {out}" in said
    done(job("calibrate", "--checkpoint", out, "--data_dir", phantom_data, "--prior", "0.6,0.25,0.15"))
    predictor = Predictor.open(out)
    assert len(predictor.members) == len(predictor.calibration.outliers.members) == 2
    assert predictor.calibration.bias[0] > predictor.calibration.bias[2]
    assert {path.name for path in out.iterdir()} == {"member-1", "member-2", "ATTRIBUTION.md", "calibration.json"}
    (out / cards.FILE).write_text(f"{cards.TITLE}\n")
    said = done(job("bundle", "--checkpoint", run, "--checkpoint", rounded, "--out", out))  # the same once more
    assert "bfloat16 and float32" in said and "not calibrated" not in said
    assert Predictor.open(out).calibration.to_text() == predictor.calibration.to_text()
    assert (out / cards.FILE).read_text() == f"{cards.TITLE}\n"
    said = done(job("bundle", "--checkpoint", rounded, "--checkpoint", run, "--out", out))  # in another order
    assert "not calibrated" in said and not (out / cards.FILE).exists()


def test_figures_at_a_prior_are_written_here_and_those_of_the_split_by_evaluate(run, phantom_data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    arguments = ("--checkpoint", tmp_path / "run", "--data_dir", phantom_data)
    done(job("calibrate", *arguments, "--prior", "0.6,0.3,0.1"))
    done(job("evaluate", *arguments, "--out", tmp_path / "report"))
    fitted = json.loads((tmp_path / "run/calibration.json").read_text())["facts"]["figures"]
    measured = json.loads((tmp_path / "report/metrics.json").read_text())
    sensitivities = [values["sensitivity"] for values in measured["classes"].values()]
    shares = [values["count"] / measured["count"] for values in measured["classes"].values()]
    assert fitted["accuracy"][0] == pytest.approx(np.dot([0.6, 0.3, 0.1], sensitivities))
    assert measured["accuracy"] == pytest.approx(np.dot(shares, sensitivities))
    assert abs(fitted["accuracy"][0] - measured["accuracy"]) > 0.01


@pytest.mark.parametrize("prevalence", ["nan", "1.5", "0.0", "1.0"])
def test_a_prevalence_is_a_share(prevalence, tmp_path):
    result = job("evaluate", "--checkpoint", tmp_path / "absent", "--out", tmp_path, f"--prevalence={prevalence}")
    refused = f"error: --prevalence={prevalence}: it must be from 0 to 1; give a share, such as 0.2\n"
    assert result.returncode == (2 if prevalence in ("nan", "1.5") else 1)
    assert (result.stderr == refused) == (result.returncode == 2) and "Traceback" not in result.stderr


def test_a_prevalence_is_of_operating_points(run, tmp_path):
    result = job("evaluate", "--checkpoint", run, "--out", tmp_path / "report", "--prevalence", "0.2")
    assert result.returncode == 2 and not (tmp_path / "report").exists()
    assert f"not calibrated; do that first: python jobs/calibrate.py --checkpoint {run}\n" in result.stderr


@pytest.mark.parametrize("prior", ["a,b,c", "0.5,0.4,0.3", "1e-300,0.5,0.5"])
def test_a_prior_is_three_shares(run, phantom_data, prior):
    result = job("calibrate", "--checkpoint", run, "--data_dir", phantom_data, "--prior", prior)
    assert result.returncode == 2 and f"--prior={prior}: " in result.stderr and "Traceback" not in result.stderr
    assert not (run / "calibration.json").exists()


def test_films_of_other_data_calibrate_nothing(run, tmp_path):
    splits = {split: [film(6 * part + index) for index in range(6)] for part, split in enumerate(SPLITS)}
    write(Phantom, splits, tmp_path, "phantom")
    result = job("calibrate", "--checkpoint", run, "--data_dir", tmp_path)
    assert result.returncode == 1 and "holds another phantom than" in result.stderr
    assert "Traceback" not in result.stderr
    out = done(job("evaluate", "--checkpoint", run, "--data_dir", tmp_path, "--out", tmp_path / "report"))
    assert "These films are prepared apart from the training data: where the model has seen them" in out
    (tmp_path / "file").write_text("")
    result = job("evaluate", "--checkpoint", run, "--data_dir", tmp_path, "--out", tmp_path / "file")
    assert result.returncode == 1 and "place that can be written" in result.stderr and "Traceback" not in result.stderr


def test_the_latest_step_is_bundled_where_it_is_asked_for(calibrated, tmp_path):
    best = checkpoint.load(calibrated[0])
    shutil.copytree(calibrated[0], tmp_path / "run")
    later = jax.tree.map(lambda leaf: leaf + 1, best.variables)
    with checkpoint.Writer(tmp_path / "run") as writer:
        writer.save(best.step + 1, later, best.meta, score=-99.0)
    for arguments, expected in (((), best.variables), (("--latest",), later)):
        said = done(job("bundle", "--checkpoint", tmp_path / "run", "--out", tmp_path / "out", *arguments))
        stored = checkpoint.load(tmp_path / "out").variables["params"]["head"]["dense"]["bias"]
        np.testing.assert_array_equal(stored, expected["params"]["head"]["dense"]["bias"])
        assert ("not calibrated" in said) == bool(arguments)  # what was fitted is the best step's


def test_networks_of_different_data_are_not_bundled(run, tmp_path):
    best = checkpoint.load(run)
    other = best.meta | {"dataset": best.meta["dataset"] | {"fingerprint": "1" * 64}}
    with checkpoint.Writer(tmp_path / "other") as writer:
        writer.save(1, best.variables, other, score=0.5)
    result = job("bundle", "--checkpoint", run, "--checkpoint", tmp_path / "other", "--out", tmp_path / "out")
    assert result.returncode == 1 and "network 2 of 2: dataset phantom (111111111111), where phantom (" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_network_is_bundled_once(run, tmp_path):
    result = job("bundle", "--checkpoint", run, "--checkpoint", run, "--out", tmp_path / "out")
    digest = checkpoint.weights_digest(checkpoint.load(run).meta)[:12]
    assert result.returncode == 1 and f"2 of the 2 networks are one and the same (weights {digest})" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_replaces_nothing_that_is_not_one(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = job("bundle", "--checkpoint", run, "--out", tmp_path)
    assert result.returncode == 1 and "it holds thesis.tex" in result.stderr
    assert (tmp_path / "thesis.tex").exists()


def test_a_bundle_replaces_no_folder_of_years_no_member_in_training_and_no_source(run, bundle, tmp_path):
    (tmp_path / "films/2023").mkdir(parents=True)
    (tmp_path / "films/2023/a.png").write_text("a film")
    shutil.copytree(run, tmp_path / "cv/member-1")
    shutil.copytree(bundle, tmp_path / "ensemble/member-1")
    (tmp_path / "ensemble/member-1/ATTRIBUTION.md").rename(tmp_path / "ensemble/ATTRIBUTION.md")
    (tmp_path / "list/member-2.csv").parent.mkdir()
    (tmp_path / "list/member-2.csv").write_text("a list")
    put(tmp_path, "card/MODEL_CARD.md", b"# What I found")
    put(tmp_path, "power/\u00b2/meta/a", b"")
    before = sorted(tmp_path.rglob("*"))
    for source, out, held in (
        (run, "films", "2023"),
        (run, "cv", "member-1"),
        (run, "list", "member-2.csv"),
        (run, "card", "MODEL_CARD.md"),
        (run, "power", "\u00b2"),
        (tmp_path / "ensemble/member-1", "ensemble", f"{tmp_path / 'ensemble/member-1'}, a source"),
    ):
        result = job("bundle", "--checkpoint", source, "--out", tmp_path / out)
        assert result.returncode == 1 and f"{out} would be replaced, but it holds {held};" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    done(job("bundle", "--checkpoint", run, "--out", tmp_path / "ensemble"))  # a bundle alone


def test_predict_walks_folders_and_never_crashes(bundle, tmp_path):
    films = tmp_path / "films"
    (films / "deep").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(draw(index).image).save(films / "deep" / f"{index}.png")
    (films / "notes.txt").write_text("not a film")
    (films / "cut.jpeg").write_bytes(jpeg(5)[:300])
    (films / "empty.png").write_bytes(b"")
    (films / "large.png").touch()
    os.truncate(films / "large.png", MAX_BYTES + 1)
    (films / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(draw(3).image).save(tmp_path / "elsewhere" / "3.png")
    (films / "linked").symlink_to(tmp_path / "elsewhere")
    (films / "deep" / "loop").symlink_to(films)
    named = films / "deep" / "0.png"  # by its name, and in its folder
    out = done(
        job("predict", "--checkpoint", bundle, "--out", tmp_path / "p.csv", films, tmp_path / "absent.png", named)
    )
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(rows[0]) == ["file", "decision", "normal", "bacterial", "viral", "reason"]
    decisions = {Path(row["file"]).name: row["decision"] for row in rows}
    assert len(rows) == 10
    assert {name for name, decision in decisions.items() if decision == "refused"} == {
        "notes.txt", "cut.jpeg", "empty.png", "large.png", "dangling.png", "absent.png",
    }  # fmt: skip
    assert all(row["reason"] for row in rows if row["decision"] == "refused")
    assert (
        "6 refused" in out
        and "refused, most often (2): the file " in out
        and "Not calibrated: the probabilities are as the networks give them" in out
    )
    assert out.endswith("means nothing.\nFor education and research, never for diagnosis.\n")
    predictor = Predictor.open(bundle)
    buffer = io.BytesIO()
    Image.fromarray(draw(1).image).save(buffer, "PNG")
    served = predictor.predict_file(buffer.getvalue())
    row = next(row for row in rows if row["file"].endswith("1.png"))
    assert row["decision"] == served.decision
    written = [float(row[name]) for name in ("normal", "bacterial", "viral")]
    np.testing.assert_allclose(written, served.probabilities, atol=1e-6)


def test_names_of_an_old_archive_are_rows_and_a_table_is_replaced_whole(bundle, tmp_path):
    (tmp_path / "films").mkdir()
    for name in (b"r\xf6ntgen.png", "röntgen.png".encode()):
        with (tmp_path / "films" / os.fsdecode(name)).open("wb") as file:
            Image.fromarray(draw(1).image).save(file, "PNG")
    done(job("predict", "--checkpoint", bundle, "--out", tmp_path / "p.csv", tmp_path / "films"))
    rows = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert [Path(row["file"]).name for row in rows] == ["röntgen.png", "r\\xf6ntgen.png"]
    assert all(row["normal"] for row in rows)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["p.csv"]
    (tmp_path / ".17-p.csv").write_text("file,")  # of a table that was not finished
    done(job("predict", "--checkpoint", bundle, "--out", "films/../p.csv", ".", cwd=tmp_path))
    again = list(csv.DictReader((tmp_path / "p.csv").open(encoding="utf-8")))
    assert [Path(row["file"]).name for row in again] == ["röntgen.png", "r\\xf6ntgen.png"]


def test_predict_fails_where_nothing_could_be_read(bundle, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    result = job("predict", "--checkpoint", bundle, "--out", tmp_path / "p.csv", tmp_path / "a.png")
    assert result.returncode == 1
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 2
    assert "refused (1): not a PNG" in result.stdout
    result = job("predict", "--checkpoint", bundle, "--out", tmp_path / ("a" * 300), tmp_path / "a.png")
    assert result.returncode == 1 and "File name too long" in result.stderr and "Traceback" not in result.stderr


def test_predict_without_files_or_checkpoint(tmp_path):
    result = job("predict", "--out", tmp_path, ROOT / "README.md")
    assert result.returncode == 2 and f"{tmp_path} is a folder; give the file to write" in result.stderr
    film = tmp_path / "film.png"
    film.write_bytes(jpeg(1))
    result = job("predict", "--out", film, ROOT / "README.md")
    assert result.returncode == 2 and "exists and is no table of this command; it is not overwritten" in result.stderr
    assert film.read_bytes() == jpeg(1)
    (tmp_path / "mine.csv").write_text("file,decision,normal,bacterial,viral,reason,my reading\n")
    result = job("predict", "--out", tmp_path / "mine.csv", ROOT / "README.md")
    assert result.returncode == 2 and "exists and is no table of this command" in result.stderr
    (tmp_path / "empty.csv").write_bytes(b"")  # as mktemp leaves it
    result = job("predict", "--checkpoint", tmp_path / "none", "--out", tmp_path / "empty.csv", tmp_path)
    assert result.returncode == 1 and "not overwritten" not in result.stderr
    result = job("predict", "--checkpoint", tmp_path / "none", "--out", tmp_path / "p.csv", tmp_path)
    assert result.returncode == 1 and "python jobs/train.py" in result.stderr
    result = job("predict", "--out", tmp_path / "p.csv")
    assert result.returncode == 2 and "no file or folder given" in result.stderr
    (tmp_path / "p.csv").write_text("file,decision,normal,bacterial,viral,reason\nfilm.png,normal,1,0,0,\n")
    (tmp_path / "nothing").mkdir()
    for missing, why in (("typo", "typo: not there; give films"), ("nothing", "nothing: no file in there; give films")):
        result = job("predict", "--out", tmp_path / "p.csv", tmp_path / missing)
        assert result.returncode == 1 and why in result.stderr
    assert "film.png" in (tmp_path / "p.csv").read_text()


def test_evaluated_and_served_predictions_are_equal(run, phantom_data, tmp_path):
    done(job("evaluate", "--checkpoint", run, "--split", "test", "--data_dir", phantom_data, "--out", tmp_path))
    predictor = Predictor.open(run)
    for row in csv.DictReader((tmp_path / "predictions.csv").open()):
        buffer = io.BytesIO()
        Image.fromarray(draw(int(row["name"].split("_")[1])).image).save(buffer, "PNG")
        served = predictor.predict_file(buffer.getvalue()).probabilities
        np.testing.assert_allclose([float(row[name]) for name in ("normal", "bacterial", "viral")], served, atol=1e-6)


def test_a_word_that_is_no_flag_is_not_passed_over(run, phantom_data, tmp_path):
    config = ("--config", run.parent / "tiny.py")
    for typed in (
        ("train", *config, "--workdir", tmp_path / "run", "config.epochs=3"),
        ("prepare", "--source", "phantom", "--data_dir", tmp_path / "data", "data2"),
    ):
        result = job(*typed)
        assert result.returncode == 2, result.stdout
        assert (
            result.stderr
            == f"error: '{typed[-1]}' is one word too many; a flag begins with --, and --help lists them\n"
        )
    assert not (tmp_path / "run").exists()


def test_preview_refuses_what_cannot_be_trained(run, phantom_data, tmp_path):
    tiny = ("preview", "--config", run.parent / "tiny.py", f"--config.data.dir={phantom_data}")
    film = tmp_path / "film.png"
    Image.fromarray(draw(0).image).save(film)
    before = film.read_bytes()
    result = job(*tiny, "--out", film)
    assert result.returncode == 2 and "film.png exists and is no contact sheet of this version" in result.stderr
    assert film.read_bytes() == before
    (tmp_path / "folder.png").mkdir()
    result = job(*tiny, "--out", tmp_path / "folder.png")
    assert result.returncode == 2 and "folder.png is a folder; give the file to write" in result.stderr
    result = job(*tiny, "--out", tmp_path / "p")
    assert result.returncode == 2 and "p does not end in .png; a PNG is what is written" in result.stderr
    result = job(*tiny, "--config.data.leave_out=.*", "--out", tmp_path / "p.png")
    assert result.returncode == 1 and "holds no normal, no bacterial, no viral film; leave out fewer" in result.stderr
    result = job(
        "preview", "--config", run.parent / "tiny.py", "--config.data.leave_out=(", "--out", tmp_path / "p.png"
    )
    assert result.returncode == 2 and "config.data.leave_out is '(', which is no regular expression" in result.stderr


def test_preview_is_a_sheet_of_nine_rows(run, phantom_data, tmp_path):
    tiny = ("preview", "--config", run.parent / "tiny.py", f"--config.data.dir={phantom_data}")
    done(job(*tiny, "--out", tmp_path / "s.png"))
    done(job(*tiny, "--out", tmp_path / "s.png"))  # a sheet takes the place of one
    sheet = Image.open(tmp_path / "s.png")
    assert sheet.size == (8 * 36 + 4, 16 + 9 * (36 + 16))
    assert np.asarray(sheet).std() > 20
    views = [
        np.asarray(sheet)[32 + row * 52 :, 40 + column * 36 :][:32, :32] for row in range(9) for column in range(7)
    ]
    assert np.abs([view.mean() - 127.5 for view in views]).max() < 12  # as they are standardised: of one mean


def test_the_full_size_films_are_read_as_their_small_copies(shared, tmp_path):
    bundled = ROOT / "space" / "checkpoint"
    predictor = Predictor.open(bundled)
    copies = {path.name: path for path in (shared / "chest_xray/train").rglob("*.jpeg")}
    originals = sorted((shared / "originals").rglob("*.jpeg"))
    assert len(originals) == 72
    differences = [
        np.abs(
            predictor.predict_file(path.read_bytes()).probabilities
            - predictor.predict_file(copies[path.name].read_bytes()).probabilities
        ).max()
        for path in originals
    ]
    assert np.median(differences) < 0.02


def test_brackets_in_names_are_no_markup(tmp_path):
    put(tmp_path, "sources/[old] [b]/test/NORMAL/film[bold].jpeg", jpeg(9001, size=(300, 64)))
    data = tmp_path / "data[old]"
    out = done(job("prepare", "--source", ".", "--data_dir", data, cwd=tmp_path / "sources/[old] [b]"))
    assert "1 as test/NORMAL/film[bold].jpeg: the longer side of the picture" in out and f"Written to {data}" in out
    assert read(data, "chest_xray", "test").facts["source"] == "[old] [b]"


def test_a_command_that_is_told_can_be_typed():
    told = command("evaluate", "--checkpoint", Path("my runs/(4,8)"), "--full")
    assert told == "python jobs/evaluate.py --checkpoint 'my runs/(4,8)' --full"
    assert shlex.split(told)[3] == "my runs/(4,8)"
