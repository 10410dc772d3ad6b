"""The model of a step's time by hand, and the measurement run for real on tiny pieces."""

import re

import jax
import pytest

from tests.conftest import command
from tests.jobs.test_commands import ROOT, job
from tests.jobs.test_steps import config

scaling = command("scaling")
CLUSTER = scaling.Cluster(
    flops=1e12, utilisation=0.5, gpus_a_host=8, within=1e9, between=1e8, latency=1e-3, call=2e-3, decoded=100.0
)
NETWORK = scaling.Network("n", parameters=25_000_000, flops_an_image=1e9, batch=64)


@pytest.mark.parametrize(
    ("gpus", "streamed", "expected"),
    [
        (1, False, 0.002 + 64e9 / 5e11),
        # A ring of 8 on one host: 2 * 7/8 of 100 MB at 1 GB/s, and 14 messages.
        (8, False, 0.002 + 8e9 / 5e11 + 0.175 + 0.014),
        # Two hosts: the slower link counts.
        (16, False, 0.002 + 4e9 / 5e11 + 1.875 + 0.030),
        # One host decodes 100 films/s: slower than one GPU computes.
        (1, True, 0.002 + 0.64),
        (16, True, 0.002 + 0.32 + 1.875 + 0.030),
    ],
)
def test_seconds_a_step_by_hand(gpus, streamed, expected):
    assert scaling.seconds_a_step(NETWORK, gpus, CLUSTER, streamed) == pytest.approx(expected)


def test_networks_are_counted_not_guessed():
    network = scaling._network("resnet", {}, 224, 256)
    assert 23_500_000 < network.parameters < 23_530_000
    # 4.1 G multiply-adds forward with three channels, as the literature counts, are 8.2 GFLOP; 0.16 less with one.
    assert network.flops_an_image == pytest.approx(3 * 8.0e9, rel=0.04)


@pytest.mark.slow  # half a minute
def test_every_kind_of_step_is_measured_and_written_down(monkeypatch):
    monkeypatch.setattr(scaling, "ROUNDS", 1)
    monkeypatch.setattr(scaling, "STEPS", 1)
    made = config(mixup_alpha=0.0)
    made.augment.update(dict.fromkeys(made.augment, 0.0) | {"crop_area_min": 1.0})
    measured = scaling.measure(made, jax.devices()[:2])
    assert list(measured) == list(scaling.KINDS)
    assert all(milliseconds > 0 for milliseconds in measured.values())
    assert measured["idle"] < measured["pmean"]
    text = scaling.document("command", "setting", {"1 x 1": measured, "1 x 2": measured}, [NETWORK], CLUSTER)
    close = re.sub(" +", " ", text)
    assert f"| 1 x 2 | {measured['idle']:.1f} |" in close and "- `latency` = 0.001" in text
    seconds = scaling.seconds_a_step(NETWORK, 8, CLUSTER, False)
    assert f"| 8 | {1000 * seconds:.2f} |" in close


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "error: --out is missing; give the folder for scaling.md and scaling.png"),
        (("--config.optimizer.name=foo",), 2, "error: config.optimizer.name is 'foo'; known: adamw, sgd, muon"),
        (("--config.global_batch_size=12",), 2, "error: a global batch of 12 does not divide over 8 devices; set"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(words, code, message, tmp_path):
    place = ("--out", tmp_path / "out") if words else ()
    result = job("scaling", "--config", ROOT / "configs/cnn.py", *words, *place)
    assert result.returncode == code and result.stderr.startswith(message)
