"""configs/resnet.py as a person types it, from a file that PyTorch wrote: frozen, fine-tuned, served."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -r requirements-parity.txt")

from safetensors.torch import save_file  # noqa: E402

from jobs.datasets.phantom.builder import film  # noqa: E402
from model import checkpoint  # noqa: E402
from model.labels import CLASSES  # noqa: E402
from tests.parity import references  # noqa: E402
from tests.parity.test_parity import randomised  # noqa: E402

ROOT = Path(__file__).parents[2]


def command(*arguments, code=0):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_resnet_from_a_local_file(phantom_data, tmp_path):
    with torch.no_grad():
        network = randomised(references.ResNet())
    network.fc = torch.nn.Linear(2048, 1000)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    workdir = tmp_path / "run"
    typed = (
        "jobs/train.py",
        "--config=configs/resnet.py",
        f"--workdir={workdir}",
        f"--config.data.dir={phantom_data}",
        "--config.data.dataset=phantom",
        "--config.data.image_size=64",
        "--config.global_batch_size=24",
        "--config.phases[0].epochs=1",
        "--config.phases[1].epochs=2",
    )
    missing = command(*typed, f"--config.init_from={tmp_path / 'absent.safetensors'}", code=1)
    assert "absent.safetensors does not exist" in missing and "Traceback" not in missing

    printed = command(*typed, f"--config.init_from={tmp_path / 'model.safetensors'}")
    assert "phase 1 of 2, 1 epochs: trains head, 6,147 of 23,511,043 parameters" in printed  # 2048 x 3 + 3
    assert "phase 2 of 2, 2 epochs: trains all, 23,511,043 of 23,511,043 parameters" in printed
    assert "new: head/logits/bias, head/logits/kernel; left out: fc.bias, fc.weight" in printed
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == [1, 2, 2] and all(np.isfinite(row["train_loss"]) for row in rows)

    found = checkpoint.load(workdir, "latest", train=True)
    kernel = checkpoint.to_arrays(found.variables)["params/stage4/block3/conv3/kernel"]
    source = network.state_dict()["layer4.2.conv3.weight"].numpy().transpose(2, 3, 1, 0)
    difference = np.abs(kernel - source).max()
    assert 0 < difference < 0.1 * np.abs(source).max()  # tuned, from what was read

    (tmp_path / "film.png").write_bytes(film(700).png)
    command("jobs/predict.py", f"--checkpoint={workdir}", f"--out={tmp_path / 'out.csv'}", str(tmp_path / "film.png"))
    header, row = (line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines())
    assert sum(float(row[header.index(name)]) for name in CLASSES) == pytest.approx(1, abs=1e-3)
