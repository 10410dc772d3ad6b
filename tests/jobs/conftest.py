"""Real trainers: `python jobs/train.py` as a person or a cluster starts it, on a tiny network and a few phantoms."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from model import checkpoint
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
CONFIG = """
from configs import base

def get_config():
    made = base.get_config()
    made.epochs = 12
    made.global_batch_size = 16
    made.data.dir = {data!r}
    made.data.dataset = "phantom"
    made.data.image_size = 32
    made.model.options.widths = (4, 8)
    made.model.options.blocks = (1, 1)
    made.augment.update(dict.fromkeys(made.augment, 0.0) | {{"crop_area_min": 1.0, "flip_probability": 0.5}})
    made.optimizer.warmup_epochs = 0.0
    made.optimizer.plateau_factor = 0.5
    made.optimizer.plateau_patience = 2
    made.sync_batch_norm = "true"
    return made
"""


class Trainer:
    """One process of a job; what it prints is kept as it comes."""

    def __init__(self, config: Path, workdir: Path, devices: int, arguments: list[str]):
        self.output = ""
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }
        command = [sys.executable, "jobs/train.py", "--config", str(config), "--workdir", str(workdir), *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, pattern: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, f"no {pattern!r} in {seconds} s:\n{self.output}"
            time.sleep(0.02)

    def finish(self, seconds: float = 180) -> int:
        """The exit code."""
        code = self.process.wait(seconds)
        self._reader.join(5)  # a child that outlives the process keeps its pipe open
        return code


@pytest.fixture(scope="module")
def start(phantom_data, tmp_path_factory):
    """Starts trainers; `start(workdir, *arguments, processes=1, devices=1)` gives the list of them."""
    config = tmp_path_factory.mktemp("config") / "tiny.py"
    config.write_text(CONFIG.format(data=str(phantom_data)))
    started = []

    def begin(workdir, *arguments, processes=1, devices=1):
        port = free_port()
        trainers = []
        for index in range(processes):
            place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={index}"]
            trainers.append(Trainer(config, workdir, devices, [*arguments, *(place if processes > 1 else [])]))
        started.extend(trainers)
        return trainers

    yield begin
    for trainer in started:
        trainer.process.kill()
        trainer.process.wait()


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory):
    """The folder of a run of 12 epochs of 3 steps on one device that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    (trainer,) = start(workdir)
    assert trainer.finish() == 0, trainer.output
    return workdir


def log(workdir: Path) -> list[dict]:
    """log.jsonl without the times."""
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Logs, and the best and the latest checkpoint with all that resuming needs, are equal to the bit."""
    assert log(one) == log(other)
    for which in ("best", "latest"):
        mine, theirs = (checkpoint.load(run, which, train=True) for run in (one, other))
        assert mine.step == theirs.step
        assert mine.meta["history"][-1]["epoch"] == theirs.meta["history"][-1]["epoch"]
        for name in ("variables", "train"):
            a, b = (checkpoint.to_arrays(getattr(loaded, name)) for loaded in (mine, theirs))
            assert a.keys() == b.keys()
            assert all((a[key] == b[key]).all() for key in a), name
    assert jax.tree.structure(mine.variables) == jax.tree.structure(theirs.variables)
