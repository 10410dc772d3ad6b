"""The one object that answers: opens the best checkpoint, compiles once, images -> predictions.

`jobs/predict.py`, `jobs/evaluate.py` and the Space all ask it, so they agree by construction.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import checkpoint, gradcam, preprocess, registry
from model.labels import CLASSES

REFUSED = "refused"
BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to one film."""

    decision: str  # one of CLASSES, or REFUSED
    probabilities: np.ndarray | None = None  # (3,) in the order of CLASSES; None where refused
    reason: str = ""  # why it was refused, a plain sentence
    heatmaps: np.ndarray | None = None  # (3, h, w) in [0, 1], one a class; None where refused or not asked for
    blank: np.ndarray | None = None  # (3,) bool: maps with nothing on them


class Predictor:
    """A trained model, ready to answer.

    Attributes:
      meta: what the checkpoint says of itself.
      step: the training step it was saved at.
    """

    def __init__(self, loaded: checkpoint.Checkpoint):
        self.meta, self.step = loaded.meta, loaded.step
        if tuple(self.meta["classes"]) != CLASSES:
            raise checkpoint.CheckpointError(
                f"the checkpoint's classes are {self.meta['classes']}; these programs read {list(CLASSES)}"
            )
        self.storage_size: int = self.meta["storage_size"]
        self.module = registry.build(self.meta["architecture"], self.meta["options"])
        image_size = self.meta["image_size"]
        like = jax.eval_shape(self.module.init, jax.random.key(0), jnp.zeros((1, image_size, image_size, 1)))
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        stored = checkpoint.from_arrays(like, checkpoint.to_arrays(loaded.variables))
        self._variables = jax.device_put(stored)

    @classmethod
    def open(cls, directory: Path | str) -> Predictor:
        """Opens the best step of a run directory or a bundle that is whole.

        Raises:
          CheckpointError: nothing there can be loaded; the message says why.
        """
        return cls(checkpoint.load(Path(directory), "best"))

    def read(self, data: bytes) -> np.ndarray:
        """Bytes of an image file -> (S, S) uint8, S the storage size; raises ImageRefused."""
        return preprocess.resize(preprocess.decode(data).pixels, self.storage_size)

    def predict(self, images: np.ndarray, method: str | None = None) -> Iterator[Prediction]:
        """Answers for films that were read, in order, a batch at a time.

        Args:
          images: (N, S, S) uint8, as `read` or a prepared dataset gives them.
          method: of the heat maps, a key of gradcam.METHODS; None for probabilities alone.

        Raises:
          ValueError: images of another shape or type.
        """
        size = self.storage_size
        if images.ndim != 3 or images.shape[1:] != (size, size) or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.shape} {images.dtype}; (N, {size}, {size}) uint8 is needed: "
                "use Predictor.read, or prepare the data at that size"
            )
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            # Two compiled shapes in all: a single film as the Space sends it, and a full batch.
            padding = 0 if len(images) == 1 else BATCH_SIZE - len(batch)
            padded = np.pad(batch, ((0, padding), (0, 0), (0, 0)))
            probabilities, heatmaps = jax.device_get(self._answer(self._variables, padded, method))
            for index in range(len(batch)):
                yield Prediction(
                    decision=CLASSES[int(probabilities[index].argmax())],
                    probabilities=probabilities[index],
                    heatmaps=None if heatmaps is None else heatmaps.maps[index],
                    blank=None if heatmaps is None else heatmaps.blank[index],
                )

    def predict_file(self, data: bytes, method: str | None = None) -> Prediction:
        """Bytes of one image file -> Prediction; what cannot be read is refused with the reason."""
        try:
            image = self.read(data)
        except preprocess.ImageRefused as refusal:
            return Prediction(REFUSED, reason=str(refusal))
        return next(self.predict(image[None], method))

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def _answer(
        self, variables: Any, images: jax.Array, method: str | None
    ) -> tuple[jax.Array, gradcam.Heatmaps | None]:
        inputs = preprocess.to_input(images, self.meta["image_size"], self.meta["mean"], self.meta["std"])
        if method is None:
            return jax.nn.softmax(jnp.asarray(self.module.apply(variables, inputs))), None
        logits, heatmaps = gradcam.explain(self.module, variables, inputs, method, target="against_normal")
        return jax.nn.softmax(logits), heatmaps
