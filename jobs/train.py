"""Trains a model, data-parallel over every local device.

    python jobs/prepare.py --source phantom --data_dir data
    python jobs/train.py --config configs/demo.py --workdir runs/demo
    python jobs/train.py --config configs/cnn.py --workdir runs/cnn
    python jobs/train.py --config configs/cnn.py --workdir runs/short --config.epochs=3 --config.mixup_alpha=0

Any field of configs/base.py can be set with --config.FIELD=VALUE. Running the same command again goes on where the run
stopped. WORKDIR receives the checkpoints (the latest two and the best), log.jsonl with one object an epoch,
TensorBoard events, config.json and curves.png.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from jobs import run
from jobs.training.loop import train
from model.checkpoint import CheckpointError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, such as configs/cnn.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives, such as runs/cnn.", required=True)
flags.mark_flag_as_required("config")


def main(arguments: list[str]) -> None:
    del arguments
    train(_CONFIG.value, Path(_WORKDIR.value), jax.local_devices(), Console())


if __name__ == "__main__":
    run(main, CheckpointError)
