"""Writes a trained model as one file for other programs: its weights as safetensors, or all of it as ONNX.

    python jobs/export.py --checkpoint runs/cnn --format safetensors --out cnn.safetensors
    python jobs/export.py --checkpoint space/checkpoint --format onnx --out pneumoscope.onnx

safetensors: the arrays of the best step, of the type that the checkpoint stores, named by their paths
(params/stem/conv/kernel), with what the checkpoint says of itself as metadata. Training starts from such a file as from
the run: --config.init_from=cnn.safetensors. It holds one network; of an ensemble, export a member.

onnx: one graph for onnxruntime and other runtimes, an ensemble as a whole.
  film           (N, S, S) uint8, any N: gray films squashed to squares, S the storage size in the metadata (224).
                 Cutting out the middle, resizing to the network's input and standardising are part of the graph.
  logits         (N, 3): normal, bacterial, viral; of an ensemble the logarithm of the mean probabilities.
  probabilities  (N, 3): calibrated, where the checkpoint is, as every command and the page give them.
The graph refuses no film and knows no *uncertain*; the confidence below which the page says so is in the metadata.
Before the file is kept, onnxruntime answers random films, and the largest difference from our own answer is printed;
one above 1e-4 is an error. Needs `pip install -r requirements-export.txt`.

For education and research, never for diagnosis.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import flags

from jobs import JobError, UsageError, run, whole
from jobs.exporting import graph
from model import checkpoint, preprocess
from model.calibration import SMALLEST, Calibration
from model.labels import CLASSES
from model.predictor import Predictor
from model.weights import WeightsError, source

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run directory or a bundle.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, ["safetensors", "onnx"], "What to write.", required=True)
_OUT = flags.DEFINE_string("out", None, "The file to write, named *.safetensors or *.onnx.", required=True)

# Between onnxruntime and JAX: of probabilities, and of a film's logits as parts of the largest, where that is above 1.
TOLERANCE = 1e-4
BATCHES = (1, 7)  # of random films, that they are compared on


def main() -> None:
    if Path(_OUT.value).suffix != f".{_FORMAT.value}":
        raise UsageError(f"--out={_OUT.value} must be a name that ends in .{_FORMAT.value}")
    export(Path(_CHECKPOINT.value), _FORMAT.value, Path(_OUT.value))


def export(directory: Path, kind: str, out: Path) -> None:
    """Writes the best step of a run or bundle to `out`, whole or not at all.

    Raises:
      CheckpointError: nothing there can be loaded.
      JobError: `out` is there already, a package is absent, or what was written answers otherwise.
    """
    if out.exists():
        raise JobError(f"{out} is there already; remove it, or give another --out")
    if within := checkpoint.claimed(out):
        raise JobError(f"{out} is inside the checkpoint {within}, in the place of its steps; give another --out")
    absent = [name for name in ("onnx", "onnxruntime") if kind == "onnx" and not importlib.util.find_spec(name)]
    if absent:
        raise JobError(f"{' and '.join(absent)} not installed; pip install -r requirements-export.txt")
    # Accelerators round the products of float32; what is compared below is computed where they do not.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        loaded = [checkpoint.load(folder) for folder in checkpoint.member_folders(directory)]
        if kind == "safetensors" and len(loaded) > 1:
            raise JobError(
                f"{directory} is an ensemble of {len(loaded)}, and this format holds one network; export a member: "
                f"--checkpoint {checkpoint.member_folders(directory)[0]}"
            )
        calibration = Calibration.read(directory, [checkpoint.weights_digest(member.meta) for member in loaded])
        predictor = Predictor(loaded, calibration)  # or it could not be opened
        facts = _facts(predictor.metas, calibration) | {"attribution": _attribution(directory, predictor.metas)}
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as scratch:
            said = (
                _write_safetensors(scratch, loaded[0], facts)
                if kind == "safetensors"
                else _write_onnx(scratch, predictor, facts)
            )
    steps = ", ".join(f"step {step}" for step in predictor.steps)
    print(f"{out}: {steps}, {'calibrated' if calibration else 'not calibrated'}, {out.stat().st_size / 1e6:.1f} MB")
    print(said.format(out=shlex.quote(str(out)), path=str(out)))


def _write_safetensors(path: Path, loaded: checkpoint.Checkpoint, facts: Mapping[str, str]) -> str:
    """Writes the file, and reads it again; returns what to do next."""
    served = {name: entry for name, entry in loaded.meta["arrays"].items() if name.startswith("variables/")}
    meta = checkpoint.shared(loaded.meta) | {"arrays": served}
    meta["sha256"] = checkpoint.json_digest(meta)
    # The library writes the memory as it lies, whatever the strides.
    arrays = {name: np.ascontiguousarray(array) for name, array in checkpoint.to_arrays(loaded.variables).items()}
    path.write_bytes(safetensors.numpy.save(arrays, {**facts, source.META: json.dumps(meta)}))
    try:
        source.read(str(path))  # every digest is compared
    except WeightsError as error:
        raise JobError(f"what was written is not what was read: {error}") from error
    return (
        "next: python jobs/train.py --config CONFIG --config.init_from={out} --workdir RUN, with a CONFIG of "
        f"{meta['architecture']} and the same options"
    )


def _write_onnx(path: Path, predictor: Predictor, facts: Mapping[str, str]) -> str:
    """Writes the file, and compares its answers with ours; returns how far they are apart."""
    import onnx
    import onnxruntime

    size = predictor.storage_size

    def answer(films: jax.Array) -> dict[str, jax.Array]:
        each = []
        for member, variables in zip(predictor.members, predictor.variables, strict=True):
            inputs = preprocess.to_input(films, member.image_size, member.side, member.neighbourhood)
            each.append(jnp.asarray(member.module.apply(variables, inputs)))
        logits = each[0]
        if len(each) > 1:
            logits = jnp.log(sum(map(jax.nn.softmax, each), jnp.zeros(())) / len(each))
        probabilities = jax.nn.softmax(logits)
        if fitted := predictor.calibration:
            logarithms = jnp.log(jnp.maximum(probabilities, SMALLEST)) / fitted.temperature
            probabilities = jax.nn.softmax(logarithms + jnp.asarray(fitted.bias, jnp.float32))
        return {"logits": logits, "probabilities": probabilities}

    try:
        onnx.save(graph.to_onnx(answer, "film", (size, size), np.uint8, facts), path)
    except graph.NoSuchOperation as error:
        raise JobError(f"this network cannot be written as ONNX: {error}") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for count in BATCHES:
        films = random_films(count, size)
        logits, probabilities = session.run(["logits", "probabilities"], {"film": films})
        ours = np.array([one.probabilities for one in predictor.predict(films)])
        expected = np.asarray(jax.jit(answer)(films)["logits"])
        apart = np.abs(logits - expected) / np.maximum(1, np.abs(expected).max(axis=1, keepdims=True))
        differences += [apart.max(), np.abs(probabilities - ours).max()]
    largest = float(np.max(differences))
    if not largest <= TOLERANCE:
        raise JobError(
            f"onnxruntime {onnxruntime.__version__} answers otherwise than JAX, by {largest:.1e} on random films; "
            f"at most {TOLERANCE:.0e} is rounding. Nothing was written; try the version of requirements-export.txt"
        )
    return (
        f"onnxruntime answers {sum(BATCHES)} random films as JAX does, but for {largest:.1e} at most\n"
        "next: onnxruntime.InferenceSession({path!r}).run(None, {{'film': films}})"
    )


def random_films(count: int, size: int) -> np.ndarray:
    """(count, size, size) uint8: noise by turns as fine as pixels and as coarse as organs."""
    random = np.random.default_rng(count)
    noise = (random.integers(0, 256, (side, side), np.uint8) for side in [8, size] * count)
    return np.stack([preprocess.resize(film, size) for film, _ in zip(noise, range(count), strict=False)])


def _facts(metas: Sequence[Mapping[str, Any]], calibration: Calibration | None) -> dict[str, str]:
    """What a reader of the file should know, as texts; of an ensemble, lists in the order of its members."""

    def of_each(value: Callable[[Mapping[str, Any]], Any]) -> str:
        values = [value(meta) for meta in metas]
        one = values if len(values) > 1 else values[0]
        return one if isinstance(one, str) else json.dumps(one)

    facts = {
        "format": f"pneumoscope {checkpoint.FORMAT}",
        "architecture": of_each(lambda meta: meta["architecture"]),
        "options": of_each(lambda meta: meta["options"]),
        "classes": json.dumps(CLASSES),
        "storage_size": json.dumps(metas[0]["storage_size"]),
        "image_size": of_each(lambda meta: meta["image_size"]),
        "side": of_each(lambda meta: meta["side"]),
        "neighbourhood": of_each(lambda meta: meta.get("neighbourhood", 0.0)),
        "step": of_each(lambda meta: meta["step"]),
        "weights_digest": of_each(checkpoint.weights_digest),
        "purpose": "for education and research, never for diagnosis",
    }
    if calibration:
        facts |= {
            "temperature": json.dumps(calibration.temperature),
            "bias": json.dumps(calibration.bias),
            "confidence": json.dumps(calibration.confidence),
            "operating_points": json.dumps(dict(calibration.operating_points)),
        }
    return facts


def _attribution(directory: Path, metas: Sequence[Mapping[str, Any]]) -> str:
    """Whose data it was trained on: the words of the bundle, or those that a bundle would have."""
    try:
        return (directory / checkpoint.ATTRIBUTION).read_text(encoding="utf-8")
    except FileNotFoundError:
        return checkpoint.attribution(metas)


if __name__ == "__main__":
    run(main, checkpoint.CheckpointError)
