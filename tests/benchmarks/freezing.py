"""What freezing the backbone saves: steps of the head alone against steps of everything, in turns.

    python tests/benchmarks/freezing.py
    python tests/benchmarks/freezing.py --config configs/resnet.py --batch 8 --rounds 3

Films are random: a step costs the same whatever it sees. Augmentation and, where the config has it, mixup are included.
"""

from __future__ import annotations

import statistics
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from jobs import run
from jobs.training import steps
from jobs.training.data import Films, one_hot
from jobs.training.plan import compile_steps
from model.labels import CLASSES

_CONFIG = config_flags.DEFINE_config_file("config", "configs/resnet.py", "A file of configs/ that has two phases.")
_BATCH = flags.DEFINE_integer("batch", 8, "Films a step, over all devices.")
_STEPS = flags.DEFINE_integer("steps", 2, "In each round.")
_ROUNDS = flags.DEFINE_integer("rounds", 4, "Of each phase.")


def main(arguments: list[str]) -> None:
    del arguments
    config, devices = _CONFIG.value, jax.devices()
    config.global_batch_size = _BATCH.value
    labels = np.arange(2 * _BATCH.value, dtype=np.int32) % len(CLASSES)
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 224, 224), np.uint8)
    compiled = compile_steps(config, labels, devices)
    films, layout = steps.replicate(Films(images, one_hot(labels)), devices), steps.layout(devices)
    batch = layout.share(compiled.order.batch(0))
    start = jax.device_get(compiled.state)
    states = [steps.replicate(start.replace(opt_state=phase.begin(start.params)), devices) for phase in compiled.phases]
    times: list[list[float]] = [[] for _ in compiled.phases]
    for turn in range(_ROUNDS.value + 1):
        for index, phase in enumerate(compiled.phases):
            began = time.perf_counter()
            for _ in range(_STEPS.value):
                states[index], measured = phase.train_step(states[index], films, batch)
            jax.block_until_ready((states[index], measured))
            if turn > 0:  # the first compiles
                times[index].append((time.perf_counter() - began) / _STEPS.value)
                print(f"{phase.trainable:>8}: {times[index][-1]:6.2f} s a step", flush=True)
    ratios = [whole / head for head, whole in zip(times[0], times[-1], strict=True)]
    trained = " / ".join(phase.trainable for phase in reversed(compiled.phases))
    print(f"{config.model.architecture}, {trained}: median {statistics.median(ratios):.2f} of {len(ratios)} rounds")


if __name__ == "__main__":
    run(main)
