"""Whole runs of a tiny network on a few phantoms: log, checkpoints, resuming, stopping."""

import io
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from configs import base, cnn
from jobs import JobError
from jobs.datasets import films
from jobs.training import beginning, journal, loop, optim, steps
from model import checkpoint
from model.predictor import Predictor, Raw

ROOT = Path(__file__).parents[2]


def config(data_dir, **changes):
    made = base.get_config()
    made.epochs = 2
    made.global_batch_size = 16
    made.data.dir = str(data_dir)
    made.data.dataset = "phantom"
    made.data.image_size = 32
    made.model.options.widths = (4, 8)
    made.model.options.blocks = (1, 1)
    made.augment.update(dict.fromkeys(made.augment, 0.0) | {"crop_area_min": 1.0, "flip_probability": 0.5})
    made.mixup_alpha = 0.0
    made.optimizer.warmup_epochs = 0.0
    made.update_from_flattened_dict(changes)
    return made


def train(made, workdir, devices=1):
    """Trains and returns what was printed."""
    text = io.StringIO()
    loop.train(made, workdir, jax.devices()[:devices], Console(file=text, width=200))
    return text.getvalue()


def log(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(phantom_data, tmp_path_factory):
    """A run of four epochs in one go: its folder and what it printed."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, train(config(phantom_data, epochs=4), workdir)


def test_log_has_an_object_an_epoch(straight):
    rows = log(straight[0])
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]  # 48 films, 16 a step
    for row in rows:
        assert {"train_loss", "val_loss", "val_accuracy", "val_macro_f1", "val_auroc", "seconds"} <= row.keys()
        assert math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])
    assert rows[0]["learning_rate"] > rows[-1]["learning_rate"]


def test_what_a_run_leaves_behind(straight):
    workdir, printed = straight
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "config.json").read_text())["model"]["options"]["widths"] == [4, 8]
    (events,) = (workdir / "tensorboard").iterdir()
    records = []
    with events.open("rb") as file:  # length, its checksum, the event, its checksum
        while head := file.read(12):
            records.append(Event.FromString(file.read(int.from_bytes(head[:8], "little"))))
            file.read(4)
    told = {(value.tag, event.step): value.simple_value for event in records for value in event.summary.value}
    for row in log(workdir):
        assert told["val_loss", row["epoch"]] == pytest.approx(row["val_loss"])
    assert "epoch   4/4" in printed and "python jobs/evaluate.py --checkpoint" in printed


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(straight):
    rows = log(straight[0])
    best = checkpoint.load(straight[0], "best")
    assert best.step == min(rows, key=lambda row: row["val_loss"])["step"]
    assert best.meta["metrics"]["val_loss"] == min(row["val_loss"] for row in rows)
    assert best.meta["classes"] == ["normal", "bacterial", "viral"]
    assert best.meta["dataset"]["name"] == "phantom" and len(best.meta["dataset"]["fingerprint"]) == 64
    assert len(checkpoint.steps(straight[0])) <= 3


def test_another_metric_selects(phantom_data, tmp_path):
    made = config(phantom_data, epochs=3, **{"select.metric": "val_accuracy"})
    train(made, tmp_path)
    rows = log(tmp_path)
    assert checkpoint.load(tmp_path).meta["metrics"]["val_accuracy"] == max(row["val_accuracy"] for row in rows)


def test_of_equal_epochs_the_latest_is_announced_and_kept(phantom_data, tmp_path):
    made = config(phantom_data, epochs=3, **{"select.metric": "val_accuracy"})
    made.optimizer.learning_rate = 0.0
    assert "best: epoch 3, val_accuracy" in train(made, tmp_path)
    assert checkpoint.load(tmp_path).meta["epoch"] == 3


def test_a_run_of_before_the_metric_told_the_better_end_goes_on(straight):
    meta = checkpoint.load(straight[0]).meta
    made = type(base.get_config())(meta["config"])
    for mode, changed in (("min", set()), ("max", {"select.mode"})):
        meta["config"]["select"]["mode"] = mode
        assert beginning.changes(made, meta).keys() == changed


def test_going_on_gives_the_run_that_was_not_interrupted(phantom_data, straight, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    save = checkpoint.Writer.save

    def save_and_die(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        if step == 6:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.Writer, "save", save_and_die)
        train(config(phantom_data, epochs=4), tmp_path)
    printed = train(config(phantom_data, epochs=4), tmp_path)
    assert "going on after epoch 2 of 4" in printed
    times = ("seconds", "images_per_second")
    strip = lambda rows: [{k: v for k, v in row.items() if k not in times} for row in rows]
    assert strip(log(tmp_path)) == strip(log(straight[0]))
    for which in ("best", "latest"):
        one, other = (checkpoint.load(folder, which, train=True) for folder in (tmp_path, straight[0]))
        assert one.step == other.step
        for name in ("variables", "train"):
            pairs = zip(jax.tree.leaves(getattr(one, name)), jax.tree.leaves(getattr(other, name)), strict=True)
            assert all((a == b).all() for a, b in pairs)


def test_a_finished_run_is_not_trained_further(phantom_data, straight, tmp_path):
    again = shutil.copytree(straight[0], tmp_path / "run")
    before = (again / "log.jsonl").read_text()
    printed = train(config(phantom_data, epochs=4), again)
    assert "going on after epoch 4 of 4" in printed
    assert (again / "log.jsonl").read_text() == before


def test_a_run_made_shorter_than_it_is_has_ended(phantom_data, straight, tmp_path):
    again = shutil.copytree(straight[0], tmp_path / "run")
    printed = train(config(phantom_data, epochs=2), again)
    assert "changed since the run began: epochs: 4 -> 2" in printed and "going on after epoch 4 of 2" in printed
    assert len(log(again)) == 4


def test_a_step_within_an_epoch_is_gone_on_from_and_never_the_best(phantom_data, tmp_path):
    class AtTheFourth:
        asked = 0

        @property
        def name(self):
            self.asked += 1  # once a step
            return "SIGTERM" if self.asked >= 4 else None

    quiet = Console(file=io.StringIO())
    assert not loop.train(config(phantom_data, epochs=3), tmp_path, jax.devices()[:1], quiet, AtTheFourth())
    assert checkpoint.steps(tmp_path) == [3, 4]  # an epoch has three
    assert checkpoint.load(tmp_path, "latest").meta["score"] is None
    assert checkpoint.load(tmp_path).step == 3


def test_the_last_bundled_run_can_be_gone_on_with():
    """What is new in the config since it began has a value that it had then."""
    *_, bundled = checkpoint.member_folders(ROOT / "space/checkpoint")
    meta = checkpoint.load(bundled).meta
    made = cnn.get_config()
    made.update_from_flattened_dict(
        {name: meta["config"][name] for name in ("seed", "epochs", "init_from", "mixup_alpha")}
    )
    for name in ("learning_rate", "warmup_epochs"):  # as docs/experiments.md tells
        made.optimizer[name] = meta["config"]["optimizer"][name]
    assert set(beginning.changes(made, meta)) == {"data.dir"}


def test_a_run_says_what_it_leaves_out(phantom_data, tmp_path):
    """Of 48 films those of the numbers 0 to 9."""
    printed = train(config(phantom_data, epochs=1, **{"data.leave_out": "phantom_000"}), tmp_path)
    assert "38 films to train on (10 left out by their names), 12 held out" in printed
    assert log(tmp_path)[0]["step"] == 2  # 16 films each


def test_another_config_in_the_same_place_is_refused(phantom_data, straight):
    with pytest.raises(JobError, match=r"holds a run of another config \(label_smoothing: 0.05 -> 0.1; seed: 0 -> 1\)"):
        train(config(phantom_data, epochs=4, seed=1, label_smoothing=0.1), straight[0])


def test_without_resume_a_run_is_not_written_over(phantom_data, straight):
    with pytest.raises(JobError, match="holds a run, and config.resume is False; give another --workdir"):
        train(config(phantom_data, epochs=4, resume=False), straight[0])


def test_early_stopping(phantom_data, tmp_path):
    made = config(phantom_data, epochs=50, early_stopping_epochs=2)
    made.select.metric = "val_accuracy"
    made.optimizer.learning_rate = 0.0  # nothing changes, so the first epoch stays the best
    printed = train(made, tmp_path)
    assert [row["epoch"] for row in log(tmp_path)] == [1, 2, 3]
    assert "stopped early: no better val_accuracy in 2 epochs" in printed


def test_reduce_on_plateau(phantom_data, tmp_path):
    made = config(phantom_data, epochs=4)
    made.optimizer.schedule, made.optimizer.learning_rate = "constant", 1e-12
    made.optimizer.plateau_factor, made.optimizer.plateau_patience = 0.5, 1
    made.select.metric = "val_accuracy"
    train(made, tmp_path)
    rates = [row["learning_rate"] for row in log(tmp_path)]
    np.testing.assert_allclose(rates, [1e-12, 1e-12, 0.5e-12, 0.25e-12])
    stored = checkpoint.load(tmp_path, "latest", train=True).train
    scales = [
        value for name, value in checkpoint.to_arrays(stored).items() if name.endswith(f"hyperparams/{optim.PLATEAU}")
    ]
    assert [float(scale) for scale in scales] == [0.25]


def test_a_run_that_diverges_stops_and_keeps_what_it_had(phantom_data, tmp_path, monkeypatch):
    train(config(phantom_data, epochs=1), tmp_path)
    made = config(phantom_data, epochs=3)
    real = steps.make_train_step

    def poisoned(*args):
        step = real(*args)

        def nan_step(state, data, indices):
            state, metrics = step(state, data, indices)
            return state, metrics | {"skipped": np.float32(1), "loss": np.float32("nan")}

        return nan_step

    made.max_skipped_steps = 4
    monkeypatch.setattr(steps, "make_train_step", poisoned)
    with pytest.raises(JobError, match="holds a run of another config .max_skipped_steps: 20 -> 4"):
        train(made, tmp_path)
    made.max_skipped_steps = 2
    with pytest.raises(JobError, match="2 steps in a row gave no finite loss or gradient; lower --config.optimizer"):
        train(made, tmp_path / "other")
    assert checkpoint.load(tmp_path).step == 3


def test_steps_in_a_row_are_counted_over_epochs_and_those_alone(phantom_data, tmp_path, monkeypatch):
    real, spared = steps.make_train_step, lambda step: False

    def poisoned(*args):
        step, taken = real(*args), []

        def nan_step(state, data, indices):
            state, metrics = step(state, data, indices)
            taken.append(0)
            if spared(len(taken)):
                return state, metrics
            return state, metrics | {"skipped": np.float32(1), "loss": np.float32("nan")}

        return nan_step

    monkeypatch.setattr(steps, "make_train_step", poisoned)
    with pytest.raises(loop.Diverged, match="^5 steps in a row"):
        train(config(phantom_data, epochs=3, max_skipped_steps=5), tmp_path / "all")  # of three steps an epoch
    spared = lambda step: step not in (2, 3, 4)
    with pytest.raises(loop.Diverged, match="^3 steps in a row"):
        train(config(phantom_data, epochs=3, max_skipped_steps=3), tmp_path / "over the end")
    assert log(tmp_path / "over the end")[0]["skipped_in_a_row"] == 2
    spared = lambda step: step % 2 == 0
    train(config(phantom_data, epochs=3, max_skipped_steps=2), tmp_path / "every other")
    rows = log(tmp_path / "every other")
    assert [row["skipped_steps"] for row in rows] == [2, 1, 2]
    schedule = optim.schedule("cosine", 2e-3, 0, 9)
    # One step was taken after the first epoch, three after the second, four after the third.
    np.testing.assert_allclose([row["learning_rate"] for row in rows], [schedule(0), schedule(2), schedule(3)])


@pytest.mark.parametrize("objective", ["supervised", "contrastive"])
def test_answers_that_are_no_numbers_are_a_run_that_diverged(phantom_data, tmp_path, monkeypatch, objective):
    real = loop.answers
    monkeypatch.setattr(loop, "answers", lambda *args: real(*args) * np.nan)
    with pytest.raises(loop.Diverged, match="answers with numbers that are not finite; lower --config.optimizer"):
        train(config(phantom_data, objective=objective), tmp_path)


def test_too_little_memory_is_told_with_the_cure(phantom_data, tmp_path, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(loop, "_epoch", exhausted)
    with pytest.raises(
        JobError, match="too little memory .* 16 films of 32 px .*9 bytes.*; lower --config.global_batch"
    ):
        train(config(phantom_data), tmp_path)


def test_a_disk_that_is_full_of_events_ends_the_run(phantom_data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.EventsWriter, "write_event", full)
    with pytest.raises(OSError, match="No space left"):
        train(config(phantom_data), tmp_path)


def test_films_are_learnt_evaluated_and_served_with_the_contrast_of_their_neighbourhood(phantom_data, tmp_path):
    held_out = films.read(phantom_data, "phantom", "validation")
    losses = {}
    for radius in (0.0, 0.2):
        made = config(phantom_data, epochs=1, **{"data.neighbourhood": radius, "data.side": 0.75})
        train(made, tmp_path / str(radius))
        probabilities = Raw.joined(Predictor.open(tmp_path / str(radius)).ask(held_out.images)).probabilities
        (row,) = log(tmp_path / str(radius))
        chosen = probabilities[np.arange(len(held_out.labels)), held_out.labels]
        assert row["val_loss"] == pytest.approx(-np.log(chosen).mean(), rel=1e-4)
        losses[radius] = row["train_loss"], row["val_loss"]
    assert losses[0.0][0] != pytest.approx(losses[0.2][0], rel=1e-3)
    assert losses[0.0][1] != pytest.approx(losses[0.2][1], rel=1e-3)


@pytest.mark.parametrize(("auroc", "told"), [(0.0, "AUROC 0.0000"), (None, "AUROC nan")])
def test_an_area_of_nothing_is_no_absent_one(auroc, told):
    names = ("train_loss", "val_loss", "val_accuracy", "val_macro_f1", "images_per_second", "skipped_steps")
    assert told in journal._line(dict.fromkeys(names, 0.5) | {"epoch": 1, "val_binary_auroc": auroc}, 3)


def test_two_devices_are_told(phantom_data, tmp_path):
    printed = train(config(phantom_data, epochs=1), tmp_path, devices=2)
    assert "2 x cpu, 16 films a step, SyncBN" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "config.dtype is 'float16'; known: float32, bfloat16"),
        ({"select.metric": "loss"}, "config.select.metric is 'loss'; known: val_loss, "),
        ({"data.balance": "mote"}, "config.data.balance is 'mote'; known: none, loss, sampling, smote"),
        ({"epochs": 0}, "config.epochs is 0; it must be at least 1"),
        ({"augment.crop_area_min": 1.5}, "config.augment.crop_area_min is 1.5; it must be from 0.01 to 1"),
        ({"model.architecture": "vit"}, "config.model: unknown architecture 'vit'; known: cnn, resnet"),
        ({"global_batch_size": 64}, "a global batch of 64 is more than the 48 training films"),
    ],
)
def test_impossible_configs_name_the_value_and_the_bound(phantom_data, tmp_path, changes, message):
    with pytest.raises(JobError) as error:
        train(config(phantom_data, **changes), tmp_path)
    assert message in str(error.value)


def test_no_data_gives_the_command(tmp_path):
    with pytest.raises(JobError, match="prepare it: python jobs/prepare.py --source phantom"):
        train(config(tmp_path / "nothing"), tmp_path / "run")
