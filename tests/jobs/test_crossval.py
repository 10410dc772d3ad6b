"""Folds share no patient and cover every film once; the table is that of the members, however often it was stopped."""

import csv
import io
import json
import os
import shutil
import signal
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

from jobs import JobError, UsageError
from jobs.datasets import films
from jobs.datasets.splits import deal, hold_out, patient_groups
from jobs.evaluation import metrics, predictions
from jobs.training import beginning, crossval, loop, runs
from jobs.training.plan import check
from model import checkpoint
from model.calibration import FILE
from model.labels import CLASSES
from model.predictor import Predictor
from tests.conftest import command
from tests.jobs.test_commands import done, job
from tests.jobs.test_loop import config
from tests.jobs.test_loop import train as train_one

FOLDS, SEEDS = 2, 2


class Known(NamedTuple):
    patient: str
    content: str
    label: int


def tiny(data, **changes):
    return config(data, **{"model.options.widths": (4,), "model.options.blocks": (1,)} | changes)


def train_all(members):
    """Trains and returns what came of it, and what was printed."""
    text = io.StringIO()
    return runs.train_all(members, jax.devices()[:1], Console(file=text, width=200)), text.getvalue()


def test_folds_share_no_patient_nor_file_and_cover_each_film_once():
    random = np.random.default_rng(0)
    known = [
        Known(f"{CLASSES[label]}{patient}", f"{label}/{patient}/{copy}", label)
        for label, patients in enumerate((40, 60, 23))
        for patient in range(patients)
        for copy in range(random.integers(1, 9))
    ]
    known += [Known("normal1", "shared", 0), Known("normal2", "shared", 0), Known("normal3", "shared", 0)]
    dealt = deal(known, 5, "salt")
    assert sorted(film for fold in dealt for film in fold) == sorted(known)
    for part in ("patient", "content"):
        held = [{getattr(film, part) for film in fold} for fold in dealt]
        assert sum(map(len, held)) == len(set.union(*held))
    of_class = np.array([np.bincount([film.label for film in fold], minlength=3) for fold in dealt])
    largest = max(map(len, patient_groups(known).values()))
    assert (np.ptp(of_class, axis=0) <= largest).all() and np.ptp(of_class, axis=0)[1:].max() <= 1
    assert dealt == deal(known, 5, "salt") and dealt != deal(known, 5, "pepper")


def test_who_is_held_out_is_the_same_on_every_machine():
    known = [Known(f"p{patient}", str(patient), 0) for patient in range(20)]
    rest, held = hold_out(known, 0.2, "salt")
    assert [film.patient for film in held] == ["p2", "p7", "p14", "p18"]
    assert sorted(rest + held) == sorted(known)


def test_of_two_patients_one_is_held_out_and_a_group_has_the_class_of_most():
    two = [Known(f"p{patient}", str(patient), 0) for patient in range(2)]
    assert [len(part) for part in hold_out(two, 0.9, "salt")] == [1, 1]
    group = [Known("one", str(film), label) for film, label in enumerate((1, 1, 2))]  # with two of class 1 are two
    rest, held = hold_out([*group, Known("other", "x", 1)], 0.1, "salt")
    assert {film.patient for film in rest} | {film.patient for film in held} == {"one", "other"} and rest and held


def test_what_learns_no_classes_is_not_cross_validated(phantom_data, tmp_path):
    with pytest.raises(UsageError, match="config.objective is 'contrastive', which learns no classes"):
        crossval.plan(tiny(phantom_data, objective="contrastive"), tmp_path, FOLDS, SEEDS)


def test_weights_that_know_the_films_of_a_fold_are_no_beginning(phantom_data, straight, tmp_path):
    """The members learnt all films but those of their fold."""
    first = straight[0] / "member-1"
    held_out = {"data.folds": FOLDS, "data.fold": 0}
    assert "begins with" in train_one(tiny(phantom_data, init_from=str(first), **held_out), tmp_path / "same")
    for other in ({"data.folds": FOLDS, "data.fold": 1}, {}):
        with pytest.raises(
            JobError, match=r"init_from, .* learnt the films of phantom .* but for fold 0 of 2, and this"
        ):
            train_one(tiny(phantom_data, init_from=str(first), **other), tmp_path / "other")


def test_more_folds_than_patients_of_a_class_are_refused():
    known = [Known(f"{label}{index}", f"{label}{index}", label) for label in range(3) for index in range(4 - label)]
    with pytest.raises(JobError, match="3 folds need 3 patients of each class, and 2 are viral; take fewer folds"):
        deal(known, 3, "salt")


def test_the_folds_of_a_dataset_are_its_train_and_validation_films(phantom_data):
    prepared = {split: films.read(phantom_data, "phantom", split) for split in films.SPLITS}
    images = {name: image for split in prepared.values() for name, image in zip(split.names, split.images, strict=True)}
    held = []
    for fold in range(3):
        train, validation, test = (
            films.read(phantom_data, "phantom", split, folds=3, fold=fold) for split in films.SPLITS
        )
        assert not set(train.patients) & set(validation.patients)
        assert sorted(train.names + validation.names) == sorted(prepared["train"].names + prepared["validation"].names)
        assert np.bincount(validation.labels).tolist() == [len(validation.labels) // 3] * 3
        assert test.names == prepared["test"].names
        for split in (train, validation):
            assert all((images[name] == image).all() for name, image in zip(split.names, split.images, strict=True))
            streamed = films.read(
                phantom_data,
                "phantom",
                "train" if split is train else "validation",
                decoded=False,
                folds=3,
                fold=fold,
            )
            assert len(streamed.images) == len(split.names) and (streamed.images[-1] == split.images[-1]).all()
        held += validation.names
    assert sorted(held) == sorted(prepared["train"].names + prepared["validation"].names)


def test_preview_shows_no_film_of_the_fold_that_is_held_out(phantom_data, monkeypatch):
    preview, read, asked = command("preview"), films.read, []
    monkeypatch.setattr(films, "read", lambda *of, **how: asked.append(read(*of, **how)) or asked[0])
    preview.sheet(tiny(phantom_data, **{"data.folds": 3, "data.fold": 1}))
    assert asked[0].names == read(phantom_data, "phantom", "train", folds=3, fold=1).names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.folds": 1}, "config.data.folds is 1; it must be 0, for the splits as prepared, or at least 2"),
        ({"data.fold": 2}, "config.data.fold is 2; it needs config.data.folds, which is 0"),
        ({"data.folds": 3, "data.fold": 3}, "config.data.fold is 3; it must be from 0 to 2"),
    ],
)
def test_folds_that_there_are_not(phantom_data, changes, message):
    with pytest.raises(UsageError) as error:
        check(tiny(phantom_data, **changes))
    assert str(error.value) == message


def test_the_folds_are_given_to_the_command_alone(phantom_data, tmp_path):
    with pytest.raises(UsageError, match="config.data.folds is 3; leave it at 0 and give --folds"):
        crossval.plan(tiny(phantom_data, **{"data.folds": 3}), tmp_path, FOLDS, SEEDS)


def test_members_do_not_hide_a_run(phantom_data, straight, tmp_path):
    workdir = straight[0] / "member-1"
    with pytest.raises(UsageError, match="member-1 holds a run, which its members would hide; give another --workdir"):
        crossval.plan(tiny(phantom_data), workdir, FOLDS, SEEDS)


@pytest.mark.parametrize("folds", [30, 10**12])
def test_more_folds_than_can_be_dealt_are_refused_before_they_are_planned(phantom_data, tmp_path, folds):
    told = f"{folds} folds need {folds} patients of each class, and 15 are normal; take fewer folds"
    with pytest.raises(JobError, match=told):
        crossval.plan(tiny(phantom_data), tmp_path, folds, SEEDS)


@pytest.fixture(scope="module")
def straight(phantom_data, tmp_path_factory):
    """A cross-validation that nobody disturbed: its folder and what it measured."""
    workdir = tmp_path_factory.mktemp("straight")
    members = crossval.plan(tiny(phantom_data, seed=5), workdir, FOLDS, SEEDS)
    diverged, printed = train_all(members)
    assert diverged == {}
    assert [line.split(";")[0] for line in printed.splitlines() if " of 4: " in line] == [
        "1 of 4: member-1, fold 0 of 2, seed 5",
        "2 of 4: member-2, fold 1 of 2, seed 5",
        "3 of 4: member-3, fold 0 of 2, seed 6",
        "4 of 4: member-4, fold 1 of 2, seed 6",
    ]
    assert "member-4, fold 1 of 2, seed 6; about " in printed and " s left" in printed
    return workdir, crossval.measure(members, workdir)


def test_the_figures_are_those_of_the_members_on_films_they_did_not_train_on(phantom_data, straight):
    workdir, measured = straight
    labels, patients, pooled = [], [], []
    figures = {}
    for fold in range(FOLDS):
        split = films.read(phantom_data, "phantom", "validation", folds=FOLDS, fold=fold)
        answers = []
        for number in (1 + fold, 1 + fold + FOLDS):
            predictor = Predictor.open(workdir / f"member-{number}")
            data = predictor.meta["config"]["data"]
            assert (data["folds"], data["fold"]) == (FOLDS, fold)
            answers.append(np.array([answer.probabilities for answer in predictor.predict(split.images)], float))
            figures[f"member-{number}"] = metrics.score(split.labels, answers[-1])
            # The trainer held out the same films: what it measured on them is this.
            assert predictor.meta["metrics"]["val_loss"] == pytest.approx(
                figures[f"member-{number}"]["log_loss"], rel=1e-4
            )
        labels += split.labels.tolist()
        patients += split.patients
        pooled += list((answers[0] + answers[1]) / 2)
    for row in measured["members"]:
        assert row["figures"]["loss"] == figures[row["member"]]["log_loss"]
        assert row["figures"]["binary_auroc"] == figures[row["member"]]["binary"]["auroc"]
    losses = [figures[f"member-{number}"]["log_loss"] for number in range(1, 5)]
    assert measured["mean"]["loss"] == pytest.approx(np.mean(losses))
    assert measured["standard_deviation"]["loss"] == pytest.approx(np.std(losses, ddof=1))
    assert measured["pooled"] == metrics.score(np.array(labels), np.array(pooled))
    low, high = measured["intervals"]["log_loss"]
    assert low < measured["pooled"]["log_loss"] < high
    assert measured["pooled"]["count"] == 60 and measured["patients"] == len(set(patients))


def test_what_is_written(straight):
    workdir, measured = straight
    assert json.loads((workdir / "crossval.json").read_text()) == json.loads(json.dumps(measured))
    document = (workdir / "crossval.md").read_text()
    assert document == crossval.document(measured) + "\n"
    assert f"| member-3           |    0 |    6 |     {measured['members'][2]['epoch']} |    30 |" in document
    assert (
        f"| standard deviation |      |      |       |       | {measured['standard_deviation']['loss']:.4f} |"
        in document
    )
    written = predictions.read(workdir / "predictions.csv")
    assert len(set(written.names)) == len(list(csv.reader((workdir / "predictions.csv").open()))) - 1 == 60
    np.testing.assert_allclose(
        metrics.score(written.labels, written.probabilities)["log_loss"], measured["pooled"]["log_loss"], rtol=1e-5
    )


def test_interrupted_it_goes_on_and_gives_the_same_to_the_bit(phantom_data, straight, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    members = crossval.plan(tiny(phantom_data, seed=5), tmp_path, FOLDS, SEEDS)
    save, real = checkpoint.Writer.save, loop._train
    saved = []

    def interrupted(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        saved.append(step)
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # in the first member, after its first epoch
        if len(saved) == 4:
            os.kill(os.getpid(), signal.SIGINT)  # after the last epoch of the second
        if len(saved) == 5:
            raise Killed  # after the first of the third

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Writer, "save", interrupted)
        diverged, printed = train_all(members)
        assert diverged is None and "stopped by SIGTERM after step" in printed and "2 of 4" not in printed
        diverged, printed = train_all(members)
        assert diverged is None and "stopped by SIGINT before 3 of 4: member-3" in printed
        with pytest.raises(Killed):
            train_all(members)
    trained = []
    monkeypatch.setattr(loop, "_train", lambda given, *rest: trained.append(given.seed) or real(given, *rest))
    diverged, printed = train_all(members)
    assert diverged == {} and trained == [6, 6]
    assert "2 of 4: member-2, fold 1 of 2, seed 5, finished before" in printed
    assert "going on after epoch 1 of 2" in printed
    crossval.measure(members, tmp_path)
    for name in crossval.FILES:
        assert (tmp_path / name).read_bytes() == (straight[0] / name).read_bytes()


def test_more_seeds_add_to_what_is_there_and_other_values_do_not_pass_for_it(phantom_data, straight, tmp_path):
    shutil.copytree(straight[0], tmp_path, dirs_exist_ok=True)
    fewer, more = (crossval.plan(tiny(phantom_data, seed=5), tmp_path, FOLDS, seeds) for seeds in (1, 3))
    assert [run[1:] for run in fewer] == [run[1:] for run in more[:FOLDS]]
    assert [loop.finished(member.config, member.workdir) for member in more] == [True] * 4 + [False] * 2
    shutil.rmtree(phantom_copy := tmp_path / "member-1")
    assert not loop.finished(more[0].config, phantom_copy)
    with pytest.raises(JobError, match=r"member-2 holds a run of another config \(data.fold: 1 -> 0\)"):
        train_all([more[1]._replace(config=more[0].config)])
    with pytest.raises(JobError, match=r"member-2 holds a run of another config \(label_smoothing: 0.05 -> 0.0\)"):
        train_all(crossval.plan(tiny(phantom_data, seed=5, label_smoothing=0.0), tmp_path, FOLDS, 1)[1:])


def test_what_is_none_of_cross_validation_is_not_replaced(phantom_data, tmp_path):
    for name in crossval.FILES:
        (tmp_path / name).write_text("mine")
        with pytest.raises(UsageError, match=f"{name} exists and is no result of cross-validation; .* another --workd"):
            crossval.plan(tiny(phantom_data), tmp_path, FOLDS, 1)
        (tmp_path / name).unlink()


def test_a_shorter_command_does_not_change_what_members_were_trained_with(phantom_data, straight, tmp_path):
    shutil.copytree(straight[0], tmp_path, dirs_exist_ok=True)
    shorter = crossval.plan(tiny(phantom_data, seed=5, epochs=1), tmp_path, FOLDS, SEEDS)
    assert crossval.measure(shorter, tmp_path)["config"] == json.loads(json.dumps(straight[1]["config"]))


def test_seen_films_do_not_pass_for_held_out_ones(phantom_data, straight, tmp_path):
    one, other = (checkpoint.load(straight[0] / f"member-{number}").meta for number in (1, 2))
    validation = films.read(phantom_data, "phantom", "validation", folds=FOLDS, fold=1)
    assert films.read_as_trained([other], phantom_data, "validation").names == validation.names
    assert films.read_as_trained([other, other], phantom_data, "train").names != validation.names
    for split in ("train", "validation"):
        with pytest.raises(JobError, match="by some of the 2 members, which held out different folds; calibrate or"):
            films.read_as_trained([one, other], phantom_data, split)
    test = films.read(phantom_data, "phantom", "test")
    assert films.read_as_trained([one, other], phantom_data, "test").names == test.names
    elsewhere = one | {"dataset": one["dataset"] | {"fingerprint": "other"}}
    with pytest.raises(JobError, match="held out a fold of another phantom than is in"):
        films.read_as_trained([elsewhere], phantom_data, "validation")


def test_one_member_is_calibrated_but_not_all(phantom_data, straight, tmp_path):
    refused = job("calibrate", "--checkpoint", straight[0], "--data_dir", phantom_data)
    assert refused.returncode == 1 and not (straight[0] / FILE).exists()
    assert "some of the 4 members, which held out different folds; calibrate or evaluate one member" in refused.stderr
    shutil.copytree(straight[0] / "member-2", tmp_path / "member-2")
    done(job("calibrate", "--checkpoint", tmp_path / "member-2", "--data_dir", phantom_data))
    fitted = json.loads((tmp_path / "member-2" / FILE).read_text())["facts"]["splits"]
    held_out = films.read(phantom_data, "phantom", "validation", folds=FOLDS, fold=1)
    assert fitted["validation"]["films"] == len(held_out.names)


def test_runs_of_before_there_were_folds_go_on_and_are_read_as_prepared(phantom_data, straight):
    older = checkpoint.load(straight[0] / "member-2").meta
    assert beginning.changes(tiny(phantom_data, seed=5), older).keys() == {"data.folds", "data.fold"}
    del older["config"]["data"]["folds"], older["config"]["data"]["fold"]
    assert beginning.changes(tiny(phantom_data, seed=5), older) == {}
    names = films.read(phantom_data, "phantom", "validation").names
    assert films.read_as_trained([older], phantom_data, "validation").names == names
