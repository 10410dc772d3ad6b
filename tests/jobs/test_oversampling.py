"""SMOTE: as many films of each class, those added between two of their class; the same every time."""

import sys

import numpy as np
import pytest

from jobs import JobError, UsageError
from jobs.training import loop
from jobs.training.oversampling import smote
from tests.jobs.test_loop import config, log, train

LABELS = np.array([0] * 12 + [1] * 7 + [2] * 9, np.int32)
IMAGES = (np.random.default_rng(0).integers(0, 60, (28, 6, 6)) + 80 * LABELS[:, None, None]).astype(np.uint8)


def test_films_are_made_between_films_of_their_class():
    pytest.importorskip("imblearn", reason="pip install -r requirements-smote.txt")
    images, labels = smote(IMAGES, LABELS, 3)
    assert np.bincount(labels).tolist() == [12, 12, 12] and images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images[:28], IMAGES)
    for image, label in zip(images[28:], labels[28:], strict=True):
        own = IMAGES[label == LABELS].astype(float)
        # Distances from it to the ends of the line that it lies on add up to the line, but for rounding.
        far = np.linalg.norm(own - image, axis=(1, 2))
        between = np.linalg.norm(own[:, None] - own[None], axis=(2, 3))
        assert (far[:, None] + far[None] - between + 1e9 * np.eye(len(own))).min() < 4
    np.testing.assert_array_equal(images, smote(IMAGES, LABELS, 3)[0])
    assert (images != smote(IMAGES, LABELS, 4)[0]).any()


def test_too_few_of_a_class():
    pytest.importorskip("imblearn", reason="pip install -r requirements-smote.txt")
    with pytest.raises(JobError, match="a class has 4 films; SMOTE needs 6"):
        smote(IMAGES[:23], LABELS[:23], 0)


def test_the_extra_is_named_where_it_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(JobError, match=r"needs imbalanced-learn; pip install -r requirements-smote.txt"):
        smote(IMAGES, LABELS, 0)


def test_a_run_on_films_that_were_made_up(phantom_data, tmp_path, monkeypatch):
    # The phantoms are balanced, so that SMOTE would add none.
    monkeypatch.setattr(loop, "smote", lambda images, labels, seed: (images[:45], labels[:45]) if seed == 7 else None)
    printed = train(config(phantom_data, epochs=1, seed=7, **{"data.balance": "smote"}), tmp_path)
    assert "45 films to train on, 12 held out" in printed
    assert log(tmp_path)[0]["step"] == 2
    with pytest.raises(UsageError, match="needs --config.data.resident=true"):
        train(config(phantom_data, **{"data.balance": "smote", "data.resident": "false"}), tmp_path / "streamed")
