"""Runs that begin with weights from elsewhere: every backbone arrives, in the checkpoint it is said from where."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import base
from jobs import JobError
from jobs.datasets import films
from jobs.datasets.phantom.builder import Phantom, film
from jobs.evaluation import cards, report
from model import checkpoint
from model.labels import CLASSES
from model.predictor import Predictor
from model.registry import build
from model.weights import WeightsError
from model.weights.convert import convert
from tests.jobs.test_commands import ROOT, job
from tests.jobs.test_loop import config, train
from tests.model.weights.test_convert import file

OPTIONS = {"convolutions": (1, 2), "filters": (4, 8), "batch_norm": True, "head": (), "global_pool": True}
FILM = jnp.zeros((1, 32, 32, 1))


def vgg(data_dir, source, **changes):
    """A phase of the head, then one of everything."""
    made = config(data_dir, init_from=str(source), **changes)
    made.model.architecture, made.model.options = "vgg", type(made)(OPTIONS)
    base.train_in(made, base.phase(1, 1e-2, "head", schedule="constant"), base.phase(1, 1e-4))
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torchvision lays them out, of 1000 classes, and what it is in our layout."""
    module = build("vgg", OPTIONS)
    variables = jax.device_get(module.init(jax.random.key(1), FILM))
    arrays = file("vgg", variables, index=1)
    arrays |= {"classifier.6.weight": np.ones((1000, 8), np.float32), "classifier.6.bias": np.ones(1000, np.float32)}
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(arrays, path)
    return path, convert("vgg", arrays, variables).variables


def backbone(variables):
    return {name: array for name, array in checkpoint.to_arrays(variables).items() if "/head/" not in name}


def test_a_pre_trained_backbone_is_frozen_then_tuned(phantom_data, weights, tmp_path, monkeypatch):
    path, expected = weights
    saved = {}
    save = checkpoint.Writer.save

    def remember(self, step, variables, meta, *args, **kwargs):
        saved[meta["epoch"]] = checkpoint.to_arrays(variables), meta
        save(self, step, variables, meta, *args, **kwargs)

    monkeypatch.setattr(checkpoint.Writer, "save", remember)
    printed = train(vgg(phantom_data, path), tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    assert f"begins with {path} ({size}, sha256 {digest[:12]}); trained on pixels in [0, 1] less 0.485, " in printed
    assert "; new: head/logits/bias, head/logits/kernel; left out: classifier.6.bias, classifier.6.weight" in printed
    frozen, meta = saved[1]
    assert all((frozen[name] == array).all() for name, array in backbone(expected).items())
    assert meta["origin"]["sha256"] == digest and meta["origin"]["bytes"] == path.stat().st_size
    tuned = saved[2][0]
    moved = [name for name, array in backbone(expected).items() if (tuned[name] != array).any()]
    assert set(backbone(expected)) == set(moved)
    assert np.abs(tuned["params/head/logits/kernel"] - frozen["params/head/logits/kernel"]).max() > 0


def test_going_on_needs_the_source_no_more(phantom_data, weights, tmp_path):
    source = tmp_path / "model.safetensors"
    source.write_bytes(weights[0].read_bytes())
    train(vgg(phantom_data, source), tmp_path / "run")
    source.unlink()
    made = vgg(phantom_data, source)
    made.phases[1].epochs = 2
    assert "going on after epoch 2 of 3" in train(made, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run", "latest").meta["origin"]["file"] == "model.safetensors"


def test_without_network_the_first_command_says_which_file_to_fetch(tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    result = job("train", "--config", ROOT / "configs/resnet.py", "--workdir", tmp_path / "run", env=offline)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "error: hf://timm/resnet50.a1_in1k: the hub cannot be reached (" in result.stderr
    assert "fetch model.safetensors, and config.json if there is one, from https://huggingface.co/" in result.stderr
    assert not checkpoint.steps(tmp_path / "run")


def test_what_is_not_there_is_said_before_anything_is_read(phantom_data, tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere.safetensors does not exist"):
        train(vgg(phantom_data / "no_data", "nowhere.safetensors"), tmp_path)


def test_weights_of_another_network_are_refused(phantom_data, weights, tmp_path):
    made = vgg(phantom_data, weights[0])
    made.model.options.filters = (4, 16)
    with pytest.raises(WeightsError, match=r"of a wrong shape \(\d+\): .*features.4.weight"):
        train(made, tmp_path)
    assert not checkpoint.steps(tmp_path)


def test_a_network_that_computes_otherwise_is_refused_by_its_name(phantom_data, weights, tmp_path):
    shutil.copy(weights[0], tmp_path)
    beside = {"pretrained_cfg": {"mean": [0.5], "std": [0.25]}}
    (tmp_path / "config.json").write_text(json.dumps(beside | {"architecture": "tf_vgg16"}))
    made = vgg(phantom_data, tmp_path / weights[0].name)
    with pytest.raises(WeightsError, match=r"it is timm's tf_vgg16, which computes otherwise than vgg does"):
        train(made, tmp_path / "run")
    (tmp_path / "config.json").write_text(json.dumps(beside | {"architecture": "vgg16_bn"}))
    assert "; trained on pixels in [0, 1] less 0.5, over 0.25;" in train(made, tmp_path / "run")
    origin = checkpoint.load(tmp_path / "run").meta["origin"]
    assert (origin["network"], origin["mean"], origin["std"]) == ("vgg16_bn", [0.5], [0.25])


def test_a_classifier_that_fits_is_said_to_be_kept(phantom_data, tmp_path):
    module = build("vgg", OPTIONS)
    save_file(file("vgg", jax.device_get(module.init(jax.random.key(1), FILM)), index=1), tmp_path / "w.safetensors")
    printed = train(vgg(phantom_data, tmp_path / "w.safetensors"), tmp_path / "run")
    assert "; its classifier is taken for one of normal, bacterial, viral, in that order" in printed
    assert "; trained on pixels in [0, 1] less 0.485, 0.456, 0.406, over 0.229, 0.224, 0.225;" in printed
    assert checkpoint.load(tmp_path / "run").meta["origin"]["mean"] == [0.485, 0.456, 0.406]


def test_a_backbone_without_labels_may_begin_elsewhere(phantom_data, weights, tmp_path):
    made = config(phantom_data, objective="contrastive", init_from=str(weights[0]))
    made.model.architecture, made.model.options = "vgg", type(made)(OPTIONS)
    made.select.metric, made.data.balance = "val_balanced_accuracy", "none"
    made.epochs = 1
    assert "; new: projection/dense1/bias, " in train(made, tmp_path)


def test_a_backbone_trained_without_labels(phantom_data, tmp_path):
    made = config(phantom_data, objective="contrastive", **{"select.metric": "val_balanced_accuracy"})
    made.data.balance = "none"
    printed = train(made, tmp_path / "selfsup")
    assert f"--config.init_from={tmp_path / 'selfsup'}" in printed
    found = checkpoint.load(tmp_path / "selfsup")
    assert "projection" in found.variables["params"] and "head" not in found.variables["params"]
    with pytest.raises(checkpoint.CheckpointError, match="trained without labels and has no classifier; train one"):
        Predictor.open(tmp_path / "selfsup")

    tuned = config(phantom_data, init_from=str(tmp_path / "selfsup"))
    base.train_in(tuned, base.phase(1, 1e-2, "head"))
    printed = train(tuned, tmp_path / "tuned")
    assert f"(step {found.step}); new: head/dense/bias, head/dense/kernel; left out: params/projection/" in printed
    after = checkpoint.load(tmp_path / "tuned")
    for name, array in backbone(after.variables).items():
        np.testing.assert_array_equal(array, checkpoint.to_arrays(found.variables)[name])
    assert after.meta["origin"]["weights_digest"] == checkpoint.weights_digest(found.meta)
    film = np.random.default_rng(0).integers(0, 255, (1, 224, 224)).astype(np.uint8)
    assert next(Predictor.open(tmp_path / "tuned").predict(film)).probabilities.shape == (len(CLASSES),)

    # A run whose head fits gives that, too; one of other options is refused by name.
    again = config(phantom_data, init_from=str(tmp_path / "tuned"))
    base.train_in(again, base.phase(1, 0.0, "head"))
    assert "new:" not in train(again, tmp_path / "again")
    again = checkpoint.load(tmp_path / "again")
    same = checkpoint.to_arrays(again.variables)
    for name, array in checkpoint.to_arrays(after.variables).items():
        np.testing.assert_allclose(same[name], array, rtol=1e-6)  # a running average of equals is rounded
    assert again.meta["origin"]["origin"]["from"] == str(tmp_path / "selfsup")
    leaving = checkpoint.shared(again.meta)  # without the folders, which are nobody's business
    assert leaving["config"]["init_from"] == leaving["origin"]["from"] == "tuned"
    of_the_hub = checkpoint.shared(leaving | {"config": leaving["config"] | {"init_from": "hf://timm/x"}})
    assert of_the_hub["config"]["init_from"] == "hf://timm/x"
    assert leaving["origin"]["origin"]["from"] == "selfsup"
    assert str(tmp_path) not in str({name: value for name, value in leaving.items() if name != "dataset"})
    assert cards._origin(leaving["origin"]).startswith("`tuned` (step ")
    assert ", which was begun with `selfsup` (step " in cards._origin(leaving["origin"])
    other = config(phantom_data, init_from=str(tmp_path / "tuned"))
    other.model.options.widths = (4, 16)
    with pytest.raises(WeightsError, match=r"with the options .*stage2/.* is \(.*\), \(.*\) is needed"):
        train(other, tmp_path / "other")
    other.model.architecture, other.model.options = "vgg", type(other)(OPTIONS)
    with pytest.raises(WeightsError, match="is a cnn, vgg is needed"):
        train(other, tmp_path / "other")


def test_films_that_earlier_weights_may_know_are_not_said_to_be_held_out(phantom_data, tmp_path):
    """The run before it, or one before that, learnt films of the same source that were prepared apart."""
    splits = {"train": [film(index) for index in range(290, 338)], "validation": [film(index) for index in range(12)]}
    films.write(Phantom, splits, tmp_path / "data", "phantom")
    held_out = films.read(phantom_data, "phantom", "validation")
    assert set(held_out.names) < {one.name for one in splits["train"]}  # of which nobody is told

    def made(data_dir, before, **changes):
        return config(data_dir, epochs=1, init_from=str(tmp_path / before) if before else "", **changes)

    def said(name):
        return report.relation(Predictor.open(tmp_path / name), held_out, "validation")

    train(made(phantom_data, ""), tmp_path / "straight")
    assert "not checked" not in train(made(phantom_data, "straight"), tmp_path / "alike")
    assert said("alike") == report.HELD_OUT
    train(made(tmp_path / "data", ""), tmp_path / "first")
    for before, name, knows in (("first", "second", "may know"), ("second", "third", "knows")):
        printed = train(made(phantom_data, before), tmp_path / name)
        assert "whether they have seen films that are held out here is not checked" in printed
        assert said(name) == report.UNCHECKED
        with pytest.raises(JobError, match=f"this run learns those of .* fold 0 of 2; it {knows} films that are"):
            train(made(phantom_data, before, **{"data.folds": 2}), tmp_path / "fold")
