"""A teacher's answers are mixed into the labels, and only a teacher that learnt these very films is asked."""

import io
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from jobs import JobError, UsageError
from jobs.datasets import films
from jobs.training import loop
from jobs.training.data import one_hot
from jobs.training.plan import check
from jobs.training.teaching import lessons
from model import checkpoint
from model.predictor import Predictor
from tests.jobs.test_crossval import tiny


def learn(made, workdir):
    """Trains; what was printed."""
    text = io.StringIO()
    assert loop.train(made, workdir, jax.devices()[:1], Console(file=text, width=300))
    return text.getvalue()


def given(made, split):
    return lessons(made, split, Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def teacher(phantom_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    learn(tiny(phantom_data, epochs=2), workdir)
    return workdir


@pytest.mark.parametrize("decoded", [True, False])
def test_targets_are_labels_and_answers_by_share(phantom_data, teacher, decoded):
    training = films.read(phantom_data, "phantom", "train", decoded=True)
    answers = np.stack([p.probabilities for p in Predictor.open(teacher, calibrated=False).predict(training.images)])
    assert np.ptp(answers) > 0.05
    split = films.read(phantom_data, "phantom", "train", decoded=decoded)
    for share in (0.0, 0.25, 1.0):
        targets, whose = given(tiny(phantom_data, teacher=str(teacher), teacher_share=share), split)
        expected = (1 - share) * np.eye(3)[training.labels] + share * answers
        np.testing.assert_allclose(targets, expected, atol=1e-6)
        assert targets.dtype == np.float32 and targets.shape == (48, 3)
        assert whose["weights"] == [checkpoint.weights_digest(checkpoint.load(teacher).meta)]
    targets, whose = given(tiny(phantom_data), split)
    np.testing.assert_array_equal(targets, one_hot(training.labels))
    assert whose is None


def test_a_run_that_is_taught_says_by_whom_and_learns_it(phantom_data, teacher, tmp_path):
    teacher = shutil.copytree(teacher, tmp_path / "teacher")
    made = tiny(phantom_data, teacher=str(teacher), teacher_share=0.9, epochs=1)
    told = learn(made, tmp_path / "taught")
    assert f"taught by {teacher} (step " in told and "its answers are 90% of what is to be learnt" in told
    learn(tiny(phantom_data, epochs=1), tmp_path / "alone")
    taught, alone = (checkpoint.load(tmp_path / name) for name in ("taught", "alone"))
    assert checkpoint.weights_digest(taught.meta) != checkpoint.weights_digest(alone.meta)
    assert alone.meta["teacher"] is None and taught.meta["teacher"]["from"] == str(teacher)
    leaving = checkpoint.shared(taught.meta)
    assert leaving["teacher"]["from"] == leaving["config"]["teacher"] == teacher.name

    # It is gone on with by the same teacher, and by no other.
    longer = tiny(phantom_data, teacher=str(tmp_path / "moved"), teacher_share=0.9, epochs=2)
    shutil.copytree(teacher, tmp_path / "moved")
    with pytest.raises(JobError, match="holds a run of another config .*teacher: "):
        learn(longer, tmp_path / "taught")
    longer.teacher = str(teacher)
    shutil.copytree(tmp_path / "taught", tmp_path / "copy")
    assert "going on after epoch 1" in learn(longer, tmp_path / "copy")
    shutil.rmtree(teacher)
    learn(tiny(phantom_data, epochs=1, seed=1), teacher)  # another has its place
    with pytest.raises(JobError, match=r"was taught by other weights \(step \[\d+\]\) than are in .* \(step \[\d+\]\)"):
        learn(longer, tmp_path / "taught")


def test_a_teacher_that_may_know_held_out_films_is_refused(phantom_data, teacher):
    made = tiny(phantom_data, teacher=str(teacher), **{"data.folds": 3, "data.fold": 1})
    split = films.read(phantom_data, "phantom", "train", True, 3, 1)
    with pytest.raises(JobError, match=r"learnt the films of phantom \(\w+\), and .*, but for fold 1 of 3"):
        given(made, split)
    split.facts["fingerprint"] = "f" * 64
    made = tiny(phantom_data, teacher=str(teacher))
    with pytest.raises(JobError, match=r"and this run learns those of phantom \(ffffffffffff\)"):
        given(made, split)
    made = tiny(phantom_data, teacher=str(teacher), objective="contrastive")
    with pytest.raises(UsageError, match="without labels there is nothing that it could teach"):
        check(made)
    with pytest.raises(checkpoint.CheckpointError, match="nowhere"):
        given(tiny(phantom_data, teacher="nowhere"), split)
