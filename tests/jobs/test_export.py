"""What leaves comes back to the bit, or answers as it did here; what would not is never left behind."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jobs import JobError
from jobs.exporting import graph
from model import checkpoint, registry
from model.calibration import FILE, Calibration
from model.outliers import Gaussians, Outliers
from model.predictor import Predictor
from model.weights import WeightsError, source
from tests.conftest import command
from tests.jobs.test_commands import job
from tests.model.weights.test_convert import TINY

export = command("export")

WANTED = "onnx and onnxruntime are not installed: pip install -r requirements-export.txt"
META = {
    "architecture": "cnn",
    "options": {"widths": (4, 8), "blocks": (1, 1)},
    "classes": ["normal", "bacterial", "viral"],
    "image_size": 24,
    "storage_size": 40,
    "side": 0.875,
    "config": {"seed": 0, "data": {"dir": "/home/somebody", "dataset": "phantom"}},
    "dataset": {"name": "phantom", "fingerprint": "0" * 64, "license": "CC0", "citation": "Nobody 2020"},
}
OTHERS = {"side": 1.0, "neighbourhood": 0.15, "image_size": 64, "storage_size": 72}
FILMS = np.random.default_rng(1).integers(0, 256, (33, 40, 40), np.uint8)


def save(directory, seed=0, dtype=np.float32, **meta):
    """A network none of whose parameters is what it began with, which a mistake could leave unseen."""
    meta = META | meta
    module = registry.build(meta["architecture"], meta["options"])
    image = jnp.zeros((1, meta["image_size"], meta["image_size"], 1))
    variables = jax.device_get(jax.jit(module.init)(jax.random.key(seed), image))
    random = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda leaf: (leaf + 0.2 * np.abs(random.normal(size=leaf.shape))).astype(dtype) if leaf.ndim == 1 else leaf,
        variables,
    )
    if dtype != np.float32:
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    with checkpoint.Writer(directory) as writer:
        writer.save(7, variables, meta, train={"steps": np.int32(7)}, score=1.0)
    return directory


def calibrate(directory, temperature=1.7, bias=(0.2, -0.1, 0.0)):
    predictor = Predictor.open(directory, calibrated=False)
    members = tuple(Gaussians(np.ones((1, 8)), np.zeros((3, 1))) for _ in predictor.members)
    fitted = Calibration(
        predictor.weights,
        predictor.steps,
        temperature,
        bias,
        0.5,
        {"screening": 0.25},
        Outliers(members, 1e9, np.zeros((16, 16))),
        {},
    )
    (directory / FILE).write_text(fitted.to_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = save(tmp_path_factory.mktemp("run") / "run")
    calibrate(directory)
    return directory


# safetensors


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weights_come_back_to_the_bit_and_are_a_start_for_training(tmp_path, dtype):
    directory, out = save(tmp_path / "run", dtype=dtype), tmp_path / "new" / "w.safetensors"
    export.export(directory, "safetensors", out)
    stored, read, same = checkpoint.load(directory), source.read(str(out)), source.read(str(directory))
    assert read.arrays.keys() == same.arrays.keys() == checkpoint.to_arrays(stored.variables).keys()
    for name, array in checkpoint.to_arrays(stored.variables).items():
        assert read.arrays[name].dtype == np.float32
        assert read.arrays[name].tobytes() == same.arrays[name].tobytes() == array.astype(np.float32).tobytes()
    assert out.stat().st_size < sum(array.nbytes for array in checkpoint.to_arrays(stored.variables).values()) + 16_000
    # As from the run itself, but for what is nobody's business.
    changed = {"arrays", "sha256", "config"}
    assert {key: read.meta[key] for key in read.meta.keys() - changed} == {
        key: same.meta[key] for key in same.meta.keys() - changed
    }
    assert read.meta["config"] == {"seed": 0, "data": {"dataset": "phantom"}} and "somebody" not in str(
        out.read_bytes()
    )
    assert read.meta["arrays"] == {k: v for k, v in same.meta["arrays"].items() if k.startswith("variables/")}
    assert {key: read.facts[key] for key in ("step", "weights_digest")} == {
        key: same.facts[key] for key in ("step", "weights_digest")
    }
    module = registry.build(read.meta["architecture"], read.meta["options"])
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 24, 24, 1)))
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    assert jax.tree.structure(checkpoint.from_arrays(like, read.arrays)) == jax.tree.structure(like)


def test_other_programs_find_what_they_need_in_the_metadata(run, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    export.export(run, "safetensors", tmp_path / "w.safetensors")
    with safetensors.safe_open(tmp_path / "w.safetensors", "np") as file:
        facts = file.metadata()
    assert json.loads(facts.pop("pneumoscope_meta"))["step"] == 7
    assert facts == {
        "format": "pneumoscope 1",
        "architecture": "cnn",
        "options": '{"widths": [4, 8], "blocks": [1, 1]}',
        "classes": '["normal", "bacterial", "viral"]',
        "storage_size": "40",
        "image_size": "24",
        "side": "0.875",
        "neighbourhood": "0.0",
        "step": "7",
        "weights_digest": Predictor.open(run).weights[0],
        "purpose": "for education and research, never for diagnosis",
        "temperature": "1.7",
        "bias": "[0.2, -0.1, 0.0]",
        "confidence": "0.5",
        "operating_points": '{"screening": 0.25}',
        "attribution": "Weights trained on `phantom`, licence CC0.\n\nNobody 2020\n",
    }


def test_the_attribution_of_a_bundle_is_kept_word_for_word(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "ATTRIBUTION.md").write_text("By hand.")
    export.export(tmp_path / "run", "safetensors", tmp_path / "w.safetensors")
    assert b'"attribution":"By hand."' in (tmp_path / "w.safetensors").read_bytes()


def test_a_flipped_bit_anywhere_is_seen(run, tmp_path):
    out = tmp_path / "w.safetensors"
    export.export(run, "safetensors", out)
    data = out.read_bytes()
    for place in (len(data) - 1, len(data) - 2000, data.index(b"fingerprint"), data.index(b"image_size\\")):
        out.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(WeightsError, match=r"does not match its digest|is damaged .*; export it again"):
            source.read(str(out))


# onnx


def answers(path, films):
    onnxruntime = pytest.importorskip("onnxruntime", reason=WANTED)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (film,) = session.get_inputs()
    assert film.name == "film" and film.type == "tensor(uint8)" and film.shape == ["N", *films.shape[1:]]
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    return session, session.run(None, {"film": films})


def test_a_graph_answers_as_the_predictor_for_any_number_of_films(run, tmp_path, capsys):
    pytest.importorskip("onnx", reason=WANTED)
    export.export(run, "onnx", tmp_path / "w.onnx")
    assert "step 7, calibrated" in (said := capsys.readouterr().out) and "but for " in said
    raw, calibrated = Predictor.open(run, calibrated=False), Predictor.open(run)
    for count in (1, 2, 33):
        session, (logits, probabilities) = answers(tmp_path / "w.onnx", FILMS[:count])
        expected = [one.probabilities for one in calibrated.predict(FILMS[:count])]
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        before = [one.probabilities for one in raw.predict(FILMS[:count])]
        np.testing.assert_allclose(np.asarray(jax.nn.softmax(logits)), before, atol=1e-5)
        assert np.abs(np.array(before) - expected).max() > 0.01  # what is calibrated differs
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["temperature"] == "1.7" and json.loads(facts["classes"]) == ["normal", "bacterial", "viral"]
    assert "CC0" in facts["attribution"] and {path.name for path in tmp_path.iterdir()} == {"w.onnx"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n != "vgg" else n for n in TINY])
def test_every_architecture_answers_as_the_predictor(name, tmp_path):
    pytest.importorskip("onnx", reason=WANTED)
    directory = save(tmp_path / "run", **OTHERS, architecture=name, options=TINY[name])
    export.export(directory, "onnx", tmp_path / "w.onnx")
    films = np.random.default_rng(2).integers(0, 256, (3, 72, 72), np.uint8)
    _, (logits, probabilities) = answers(tmp_path / "w.onnx", films)
    expected = [one.probabilities for one in Predictor.open(directory).predict(films)]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(jax.nn.softmax(logits)), probabilities, atol=1e-6)


def test_an_ensemble_is_one_graph_and_is_averaged(tmp_path):
    pytest.importorskip("onnx", reason=WANTED)
    directory = tmp_path / "ensemble"
    save(directory / "member-1")
    save(directory / "member-2", seed=1, image_size=32, side=1.0)
    calibrate(directory)
    export.export(directory, "onnx", tmp_path / "w.onnx")
    session, (logits, probabilities) = answers(tmp_path / "w.onnx", FILMS[:5])
    np.testing.assert_allclose(
        probabilities, [one.probabilities for one in Predictor.open(directory).predict(FILMS[:5])], atol=1e-5
    )
    each = [
        [one.probabilities for one in Predictor.open(directory / name).predict(FILMS[:5])]
        for name in ("member-1", "member-2")
    ]
    np.testing.assert_allclose(np.exp(logits), np.mean(each, axis=0), atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["image_size"]) == [24, 32]
    with pytest.raises(JobError, match=f"ensemble of 2, and this format holds one network; .*{directory}/member-1"):
        export.export(directory, "safetensors", tmp_path / "w.safetensors")


def test_a_graph_that_answers_otherwise_is_not_left(run, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx", reason=WANTED)
    right = graph.to_onnx

    def wrong(*arguments):
        model = right(*arguments)
        bias = next(
            c
            for c in model.graph.initializer
            if c.data_type == onnx.TensorProto.FLOAT and c.dims[-1:] == [3] and np.prod(c.dims) == 3
        )
        bias.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32([0, 5e-4, 0]), bias.name)
        )
        return model

    monkeypatch.setattr(graph, "to_onnx", wrong)
    with pytest.raises(JobError, match=r"answers otherwise than JAX, by [1-5]\.\de-04 on random films; at most 1e-04"):
        export.export(run, "onnx", tmp_path / "new" / "w.onnx")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_has_no_form_is_named(run, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason=WANTED)
    monkeypatch.delitem(graph._SAME, "max")
    with pytest.raises(JobError, match="this network cannot be written as ONNX: max with .* has no form in ONNX here"):
        export.export(run, "onnx", tmp_path / "w.onnx")
    assert list(tmp_path.iterdir()) == []


def test_random_films_are_fine_and_coarse():
    films = export.random_films(7, 40)
    assert films.shape == (7, 40, 40) and films.dtype == np.uint8
    steps = np.abs(np.diff(films.astype(float), axis=2)).mean(axis=(1, 2))
    assert (steps[0::2] < 30).all() and (steps[1::2] > 60).all()


# What is refused


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "w.safetensors").write_text("years of work")
    with pytest.raises(JobError, match=r"w\.safetensors is there already; remove it, or give another --out"):
        export.export(run, "safetensors", tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_text() == "years of work"
    inside = run / str(checkpoint.load(run).step) / "w.safetensors"
    with pytest.raises(JobError, match=r"w\.safetensors is inside the checkpoint .*, in the place of its steps; give"):
        export.export(run, "safetensors", inside)
    assert not inside.exists()


def test_an_absent_package_names_the_file_that_brings_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"onnx and onnxruntime not installed; pip install -r requirements-export\.txt"):
        export.export(run, "onnx", tmp_path / "w.onnx")
    export.export(run, "safetensors", tmp_path / "w.safetensors")


def test_another_calibration_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "7")
    save(tmp_path / "run", seed=3)
    with pytest.raises(checkpoint.CheckpointError, match="was fitted for other weights"):
        export.export(tmp_path / "run", "safetensors", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_the_command_says_what_it_wrote_and_what_to_do_next(run, tmp_path):
    out = tmp_path / "w.safetensors"
    done = job("export", "--checkpoint", run, "--format", "safetensors", "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"{out}: step 7, calibrated, {out.stat().st_size / 1e6:.1f} MB\n"
        f"next: python jobs/train.py --config CONFIG --config.init_from={out} --workdir RUN, with a CONFIG of cnn and "
        "the same options\n"
    )
    for arguments, code, message in (
        (("--format", "onnx", "--out", out), 2, f"--out={out} must be a name that ends in .onnx"),
        (("--format", "h5", "--out", out), 2, "h5"),
        (("--format", "safetensors", "--out", out), 1, f"{out} is there already"),
        (("--format", "safetensors", "--out", tmp_path / "x.safetensors", "extra"), 2, "'extra' is one word too many"),
    ):
        result = job("export", "--checkpoint", run, *arguments)
        assert result.returncode == code and message in result.stderr and "Traceback" not in result.stderr
    result = job("export", "--checkpoint", tmp_path, "--format", "safetensors", "--out", tmp_path / "y.safetensors")
    assert result.returncode == 1 and result.stderr.startswith(f"error: no checkpoint in {tmp_path}")
