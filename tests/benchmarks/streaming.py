"""Training throughput of films streamed from files against films resident on the device, in one run.

    python tests/benchmarks/streaming.py --config configs/cnn.py

Rounds of one and the other follow each other (A B A B), so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from jobs import run
from jobs.datasets import films
from jobs.training import steps
from jobs.training.data import Batches, Films, from_files, from_memory, one_hot, workers
from jobs.training.plan import compile_steps

_CONFIG = config_flags.DEFINE_config_file("config", "configs/cnn.py", "A file of configs/.")
_ROUNDS = flags.DEFINE_integer("rounds", 6, "Of each kind.")
_STEPS = flags.DEFINE_integer("steps", 20, "In each round.")


def main(arguments: list[str]) -> None:
    del arguments
    config, devices = _CONFIG.value, jax.devices()
    layout, end = steps.layout(devices), (_ROUNDS.value + 1) * _STEPS.value
    kinds = {}
    with contextlib.ExitStack() as stack:
        for resident in (True, False):
            split = films.read(Path(config.data.dir), config.data.dataset, "train", decoded=resident)
            compiled = compile_steps(config, split.labels, devices, resident)
            if resident:
                feed = from_memory(steps.replicate(Films(split.images, one_hot(split.labels)), devices), layout)
            else:
                feed = from_files(split.images, one_hot(split.labels), layout, workers())
            batches = stack.enter_context(contextlib.closing(feed(Batches(compiled.order, 0, end))))
            kinds["resident" if resident else "streamed"] = [
                compiled.phases[0].train_step,
                steps.replicate(compiled.state, devices),
                batches,
                [],
            ]
        for turn in range(_ROUNDS.value + 1):
            for name, kind in kinds.items():
                train_step, state, batches, speeds = kind
                started = time.perf_counter()
                for _ in range(_STEPS.value):
                    state, measured = train_step(state, *next(batches))
                jax.block_until_ready(measured)
                kind[1] = state
                speed = _STEPS.value * config.global_batch_size / (time.perf_counter() - started)
                if turn > 0:  # the first compiles
                    speeds.append(speed)
                    print(f"{name:>9}: {speed:6.1f} images/s", flush=True)
    ratios = [b / a for a, b in zip(kinds["resident"][3], kinds["streamed"][3], strict=True)]
    print(f"streamed / resident: median {statistics.median(ratios):.3f} of {len(ratios)} rounds, {workers()} workers")


if __name__ == "__main__":
    run(main)
