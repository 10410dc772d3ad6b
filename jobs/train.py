"""Trains a model, data-parallel over every device of every process.

    python jobs/prepare.py --source phantom --data_dir data
    python jobs/train.py --config configs/demo.py --workdir runs/demo
    python jobs/train.py --config configs/cnn.py --workdir runs/cnn
    python jobs/train.py --config configs/cnn.py --workdir runs/short --config.epochs=3 --config.mixup_alpha=0

    python jobs/train.py --config configs/resnet.py --workdir runs/resnet --config.init_from=model.safetensors

Any field of configs/base.py can be set with --config.FIELD=VALUE, and those of phases: --config.phases[0].epochs=2. A
run may begin with weights from elsewhere (--config.init_from: hf://OWNER/NAME, a .safetensors or .pth file, a run).
WORKDIR receives the checkpoints (the latest two and the best), log.jsonl with one object an epoch, TensorBoard events,
config.json and curves.png.

Running the same command again goes on where the run stopped, on however many devices and processes there are now.
Ctrl-C or SIGTERM finishes the step, saves and exits with 0 (or --stopped_exit_code); a second one stops at once.

Many processes train one model where WORKDIR and the data are on storage they share. Slurm and Open MPI are recognised,
and so is a Kubernetes Indexed Job that sets JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES; jobs/launch has files to
start from. Anywhere else, on every host I of N:

    python jobs/train.py --config configs/resnet.py --workdir runs/resnet \\
        --coordinator HOST_0:12345 --num_processes N --process_id I
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from jobs import run
from jobs.training import processes
from jobs.training.loop import train
from model.checkpoint import CheckpointError
from model.weights import WeightsError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, such as configs/cnn.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives, such as runs/cnn.", required=True)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 of several listens.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code", 0, "Exit code after a signal, for schedulers that start again only what failed.", 0, 255
)
flags.mark_flag_as_required("config")


def main() -> int:
    told = processes.settings(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, os.environ)
    with processes.joined(told):
        finished = train(_CONFIG.value, Path(_WORKDIR.value), jax.devices(), Console(markup=False))
    return 0 if finished else _STOPPED_EXIT_CODE.value


if __name__ == "__main__":
    run(main, CheckpointError, WeightsError)
