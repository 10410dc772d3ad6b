"""The one object that answers: opens the best checkpoint, compiles once, images -> predictions.

`jobs/predict.py`, `jobs/evaluate.py` and the Space all ask it, so they agree by construction.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model import checkpoint, gradcam, layers, outliers, preprocess, registry
from model.calibration import Calibration
from model.labels import CLASSES

UNCERTAIN, REFUSED = "uncertain", "refused"
BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to one film."""

    decision: str  # one of CLASSES, UNCERTAIN or REFUSED
    # (3,) in the order of CLASSES, calibrated where the checkpoint is; None where the file could not be read as a film
    probabilities: np.ndarray | None = None
    reason: str = ""  # why it was refused, a plain sentence
    heatmaps: np.ndarray | None = None  # (3, h, w) in [0, 1], one a class; None where not asked for or not read
    blank: np.ndarray | None = None  # (3,) bool: maps with nothing on them


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: what is compiled for it stays its own
class Member:
    """One network, and how films become its input."""

    module: nn.Module
    image_size: int  # px
    side: float  # of the middle of the film that it sees, as a part of the film's
    neighbourhood: float  # that contrast is local to, as `preprocess.standardise` says


class Raw(NamedTuple):
    """What the networks say, before calibration."""

    probabilities: Any  # (N, 3), the mean over the members
    features: tuple[Any, ...]  # of each member (N, C), the mean of the features over places
    heatmaps: Any  # gradcam.Heatmaps, or None

    @classmethod
    def joined(cls, asked: Iterable[tuple[np.ndarray, Raw]]) -> Raw:
        """Concatenates the batches that `Predictor.ask` yields; there is at least one."""
        return cast(Raw, jax.tree.map(lambda *of_batches: np.concatenate(of_batches), *(raw for _, raw in asked)))


class Predictor:
    """A trained model, or an ensemble of several, ready to answer.

    Attributes:
      metas: what each member's checkpoint says of itself.
      meta: that of the first; dataset and storage size are those of all.
      calibration: what was fitted beside it; None where nothing was.
      storage_size: of the films it answers for, px.
      members: the networks.
      variables: those of each network.
    """

    def __init__(self, loaded: Sequence[checkpoint.Checkpoint], calibration: Calibration | None = None):
        self.metas = [member.meta for member in loaded]
        self.meta, self.calibration = self.metas[0], calibration
        if any(meta.get("config", {}).get("objective") == "contrastive" for meta in self.metas):
            raise checkpoint.CheckpointError(
                "this is a backbone that was trained without labels and has no classifier; train one from it: "
                "python jobs/train.py --config configs/cnn.py --config.init_from=THIS --workdir runs/cnn"
            )
        for what, wanted, of in (
            ("order of classes", list(CLASSES), lambda meta: meta.get("classes")),
            ("storage size", self.meta["storage_size"], lambda meta: meta.get("storage_size")),
            ("dataset", _dataset(self.meta), _dataset),
        ):
            for number, meta in enumerate(self.metas, 1):
                if of(meta) != wanted:
                    cure = "; leave it out, or train it as the first was" if number > 1 else ""
                    raise checkpoint.CheckpointError(
                        f"network {number} of {len(self.metas)}: {what} {of(meta)}, where {wanted} is needed{cure}"
                    )
        self.storage_size: int = self.meta["storage_size"]
        self.members = tuple(map(_member, self.metas))
        self.variables = jax.device_put(
            [_fit(member, one.variables) for member, one in zip(self.members, loaded, strict=True)]
        )

    @classmethod
    def open(cls, directory: Path | str, calibrated: bool = True) -> Predictor:
        """Opens the best step of a run directory or a bundle that is whole, or that of each member of an ensemble.

        Args:
          directory: the run directory or the bundle.
          calibrated: whether the calibration that lies there is used.

        Raises:
          CheckpointError: nothing there can be loaded, or the calibration is damaged or that of other weights; the
            message says why.
        """
        directory = Path(directory)
        loaded = [checkpoint.load(folder, "best") for folder in checkpoint.member_folders(directory)]
        weights = [checkpoint.weights_digest(member.meta) for member in loaded]
        return cls(loaded, Calibration.read(directory, weights) if calibrated else None)

    def with_variables(self, variables: Sequence[Any]) -> Predictor:
        """The same networks with other variables, and nothing to compile again."""
        other = copy.copy(self)
        other.variables = jax.device_put(list(variables))
        return other

    @property
    def steps(self) -> tuple[int, ...]:
        """The training steps that the members were saved at."""
        return tuple(meta["step"] for meta in self.metas)

    @property
    def weights(self) -> tuple[str, ...]:
        """Digests of the members' weights."""
        return tuple(checkpoint.weights_digest(meta) for meta in self.metas)

    def read(self, data: bytes) -> np.ndarray:
        """Bytes of an image file -> (S, S) uint8, S the storage size.

        Raises:
          ImageRefused: it cannot be read, or is plainly no chest film.
        """
        film = preprocess.decode(data)
        if reason := outliers.objection(film):
            raise preprocess.ImageRefused(reason)
        return preprocess.resize(film.pixels, self.storage_size)

    def predict(self, images: np.ndarray, method: str | None = None) -> Iterator[Prediction]:
        """Answers for films that were read, in order, a batch at a time.

        Args:
          images: (N, S, S) uint8, as `read` or a prepared dataset gives them.
          method: of the heat maps, a key of gradcam.METHODS; None for probabilities alone.

        Raises:
          ValueError: images of another shape or type.
        """
        for batch, raw in self.ask(images, method):
            yield from self.answer(batch, raw)

    def predict_file(self, data: bytes, method: str | None = None) -> Prediction:
        """Bytes of one image file -> Prediction; what cannot be read is refused with the reason."""
        try:
            image = self.read(data)
        except preprocess.ImageRefused as refusal:
            return Prediction(REFUSED, reason=str(refusal))
        return next(self.predict(image[None], method))

    def answer(self, images: np.ndarray, raw: Raw) -> Iterator[Prediction]:
        """What follows from what the networks say: calibrated probabilities, and decisions."""
        probabilities = raw.probabilities
        reasons: list[str | None] = [None] * len(images)
        least = 0.0
        if self.calibration:
            probabilities = self.calibration.apply(probabilities)
            reasons = self.calibration.outliers.objections(images, raw.features)
            least = self.calibration.confidence
        for index, reason in enumerate(reasons):
            top = int(probabilities[index].argmax())
            decision = CLASSES[top] if probabilities[index, top] >= least else UNCERTAIN
            yield Prediction(
                decision=REFUSED if reason else decision,
                probabilities=probabilities[index],
                reason=reason or "",
                heatmaps=None if raw.heatmaps is None else raw.heatmaps.maps[index],
                blank=None if raw.heatmaps is None else raw.heatmaps.blank[index],
            )

    def ask(self, images: np.ndarray, method: str | None = None) -> Iterator[tuple[np.ndarray, Raw]]:
        """What the networks say of films, in order: a batch of them, and the Raw of it, on the host.

        Arguments and errors are those of `predict`.
        """
        size = self.storage_size
        if images.ndim != 3 or images.shape[1:] != (size, size) or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.shape} {images.dtype}; (N, {size}, {size}) uint8 is needed: "
                "use Predictor.read, or films prepared by the version that it was trained with"
            )
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            # Two compiled shapes in all: a single film as the Space sends it, and a full batch.
            padding = 0 if len(images) == 1 else BATCH_SIZE - len(batch)
            padded = np.pad(batch, ((0, padding), (0, 0), (0, 0)))
            raw = jax.device_get(_ask(self.members, self.variables, padded, method))
            count = len(batch)
            yield batch, jax.tree.map(lambda leaf: leaf[:count], raw)  # noqa: B023


@functools.partial(jax.jit, static_argnums=(0, 3))
def _ask(members: tuple[Member, ...], variables: list[Any], images: jax.Array, method: str | None) -> Raw:
    probabilities, features, maps = [], [], []
    for member, weights in zip(members, variables, strict=True):
        inputs = preprocess.to_input(images, member.image_size, member.side, member.neighbourhood)
        a = jnp.asarray(member.module.apply(weights, inputs, method="features"))
        features.append(layers.global_average_pool(a))
        if method is None:
            logits = jnp.asarray(member.module.apply(weights, a, method="classify"))
        else:
            logits, heatmaps = gradcam.explain_features(member.module, weights, a, method, target="against_normal")
            maps.append(preprocess.from_middle(heatmaps.maps, member.side))
        probabilities.append(jax.nn.softmax(logits))
    mean = jnp.mean(jnp.stack(probabilities), axis=0)
    return Raw(mean, tuple(features), gradcam.average(maps) if maps else None)


def _dataset(meta: Mapping[str, Any]) -> str:
    """What a network was trained on, in short."""
    dataset = meta.get("dataset")
    return f"{dataset['name']} ({dataset['fingerprint'][:12]})" if dataset else "unknown"


def _member(meta: Mapping[str, Any]) -> Member:
    """The network that a checkpoint is of; CheckpointError where there is no such one here."""
    try:
        module = registry.build(meta["architecture"], meta["options"])
    except ValueError as error:
        raise checkpoint.CheckpointError(
            f"a checkpoint of step {meta['step']} is of another version: {error}"
        ) from error
    if "side" not in meta:
        raise checkpoint.CheckpointError(
            f"a checkpoint of step {meta['step']} is of another version, which standardised all films by one mean; "
            "train it again"
        )
    # Checkpoints of before there was a neighbourhood do not speak of it.
    return Member(module, meta["image_size"], meta["side"], meta.get("neighbourhood", 0.0))


def _fit(member: Member, variables: Any) -> Any:
    """The stored variables in the types and shapes that the module has; CheckpointError where they do not fit."""
    image = jnp.zeros((1, member.image_size, member.image_size, 1))
    like = jax.eval_shape(member.module.init, jax.random.key(0), image)
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    return checkpoint.from_arrays(like, checkpoint.to_arrays(variables))
