"""Which films make up which batch, and how they reach the devices.

The batch of a step is a pure function of (seed, step), so going on needs no more than the step.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from model.labels import CLASSES


def workers() -> int:
    """Processes that decode films for one trainer: half of its cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // 2))


class Films(NamedTuple):
    """Decoded films that indices point into: a whole split on every device, or each device's films of one batch.

    Streamed films have a leading axis of local devices.
    """

    images: Any  # (N, S, S) uint8, of numpy or JAX
    targets: Any  # (N, 3) float32, what is to be learnt of each: a distribution over CLASSES


def one_hot(labels: np.ndarray) -> np.ndarray:
    """(N,) integers -> (N, 3) float32: what films are to be taken for whose labels are believed."""
    return np.eye(len(CLASSES), dtype=np.float32)[labels]


# Global batches of indices -> for each, the films and the indices (local devices, share, ...) into them.
Feed = Callable[[Sequence[np.ndarray]], Generator[tuple[Films, np.ndarray], None, None]]


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


@dataclasses.dataclass(frozen=True)
class Batches(Sequence[np.ndarray]):
    """The batches of the steps from `first` up to `end`."""

    order: Order
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.order.batch(self.first + int(index))


def evaluation_batches(count: int, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every film once: ((batch_size,) int32 indices, (batch_size,) bool which of them are not padding)."""
    starts = np.arange(0, count, batch_size, dtype=np.int32)
    rows = [np.arange(start, start + batch_size, dtype=np.int32) for start in starts]
    return [(np.minimum(row, count - 1), row < count) for row in rows]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which rows of a global batch belong to this process.

    Attributes:
      devices: of all processes.
      local: positions of this process's devices among them.
    """

    devices: int
    local: tuple[int, ...]

    def share(self, batch: np.ndarray) -> np.ndarray:
        """(global batch, ...) -> (local devices, share, ...).

        Raises:
          ValueError: the devices do not divide the batch; the message names both numbers.
        """
        if len(batch) % self.devices:
            raise ValueError(
                f"the global batch of {len(batch)} does not divide over {self.devices} devices; "
                f"set --config.global_batch_size to a multiple of {self.devices}"
            )
        return batch.reshape(self.devices, -1, *batch.shape[1:])[list(self.local)]


def from_memory(films: Films, layout: Layout) -> Feed:
    """A feed from films that are on every device already."""
    return lambda batches: ((films, layout.share(batch)) for batch in batches)


def from_files(images: Sequence[np.ndarray], targets: np.ndarray, layout: Layout, workers: int) -> Feed:
    """A feed that decodes the films of each batch ahead of the steps.

    Args:
      images: (S, S) uint8 each; what it takes to get one is what the workers are sent.
      targets: (N, 3) float32.
      layout: only this process's share of a batch is decoded.
      workers: processes that decode; 0: threads of this one, which start at once.
    """

    def feed(batches: Sequence[np.ndarray]) -> Generator[tuple[Films, np.ndarray], None, None]:
        stream = (
            grain.MapDataset.source(batches)
            .map(_Decode(images, targets, layout))
            .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
            .mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
                worker_init_fn=_live_as_long_as_the_trainer,
            )
        )
        decoded = iter(stream)
        try:
            for pixels, chosen, indices in decoded:
                yield Films(pixels, chosen), indices
        finally:
            decoded.close()

    return feed


@dataclasses.dataclass(frozen=True)
class _Decode(grain.transforms.Map):
    """A global batch of indices -> the films of this process's share, and where each stands among them."""

    images: Sequence[np.ndarray]
    targets: np.ndarray
    layout: Layout

    def map(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        share = self.layout.share(batch)  # (local devices, share, ...)
        flat = share.reshape(len(share), -1)
        pixels = np.stack([np.stack([self.images[index] for index in row]) for row in flat])
        indices = np.arange(flat.size, dtype=np.int32) % flat.shape[1]
        return pixels, self.targets[flat], indices.reshape(share.shape)


def _live_as_long_as_the_trainer(worker: int, workers: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process; the trainer needs its films until it has saved."""
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    trainer = os.getppid()

    def watch() -> None:
        while os.getppid() == trainer:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def memory(device: Any) -> int:
    """Bytes one device has for films, parameters and activations together."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // len([other for other in device.client.local_devices() if other.platform == device.platform])
