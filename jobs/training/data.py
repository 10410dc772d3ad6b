"""Which films make up which batch: the batch of a step is a pure function of (seed, step)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from model.labels import CLASSES


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of the training films.

    Attributes:
      labels: (N,) of the training split, as a tuple.
      seed: of the shuffles.
      global_batch_size: films a step, over all devices.
      balanced: whether each class makes up a third of every epoch; a film of a rare class then comes up again.
    """

    labels: tuple[int, ...]
    seed: int
    global_batch_size: int
    balanced: bool

    @property
    def steps_per_epoch(self) -> int:
        """The last, incomplete batch of an epoch is left out; the shuffle leaves out others each time."""
        return len(self.labels) // self.global_batch_size

    def batch(self, step: int) -> np.ndarray:
        """(global batch, 2) int32: the film at each position, and the one it is mixed with."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = slice(place * self.global_batch_size, (place + 1) * self.global_batch_size)
        return np.stack([self._epoch(epoch, stream)[rows] for stream in (0, 1)], axis=1)

    @functools.lru_cache(maxsize=4)  # noqa: B019  (an Order lives as long as its run)
    def _epoch(self, epoch: int, stream: int) -> np.ndarray:
        """(N,) int32: the shuffle of an epoch."""
        random = np.random.default_rng([self.seed, epoch, stream])
        labels = np.asarray(self.labels)
        if not self.balanced:
            return random.permutation(len(labels)).astype(np.int32)
        share = -(-len(labels) // len(CLASSES))
        drawn = []
        for label in range(len(CLASSES)):
            films = np.flatnonzero(labels == label)
            rounds = -(-share // len(films))
            drawn.append(np.concatenate([random.permutation(films) for _ in range(rounds)])[:share])
        return random.permutation(np.concatenate(drawn))[: len(labels)].astype(np.int32)


def evaluation_batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every film once: ((batch_size,) int32 indices, (batch_size,) bool which of them are not padding)."""
    for start in range(0, count, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        yield np.minimum(indices, count - 1), indices < count
