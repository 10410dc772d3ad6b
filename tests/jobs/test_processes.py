"""Several real processes as one job: how they find each other, agree, stop together and survive each other."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jobs import UsageError
from jobs.training.processes import settings
from model import checkpoint
from tests.conftest import free_port
from tests.jobs.conftest import log

SLURM = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-4]", "SLURM_PROCID": "2"}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "JAX_COORDINATOR_ADDRESS": "node1:1234"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "2", "JAX_COORDINATOR_ADDRESS": "node1:1234", "JAX_NUM_PROCESSES": "4"}
EXPLICIT = {
    "coordinator_address": "node1:1234",
    "num_processes": 4,
    "process_id": 2,
    "cluster_detection_method": "deactivate",
}


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None, None), {}, None),
        (("node1:1234", 4, 2), {}, EXPLICIT),
        (("node1:1234", 4, 2), SLURM | KUBERNETES, EXPLICIT),  # what was typed comes first
        ((None, None, None), SLURM, {"cluster_detection_method": "slurm"}),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "1"}, None),
        ((None, None, None), {"SLURM_NTASKS": "4"}, None),  # a batch script outside srun
        ((None, None, None), MPI, EXPLICIT),
        (
            (None, None, None),
            MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            EXPLICIT | {"local_device_ids": [0]},
        ),
        (
            (None, None, None),
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"},
            {"cluster_detection_method": "ompi"},
        ),
        ((None, None, None), MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ((None, None, None), KUBERNETES, EXPLICIT),
        ((None, None, None), KUBERNETES | {"JAX_NUM_PROCESSES": "1"}, None),
        ((None, None, None), {"JOB_COMPLETION_INDEX": "0"}, None),  # an Indexed Job of another kind
    ],
)
def test_the_environment_says_who_the_others_are(flags, environment, expected):
    assert settings(*flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("node1:1234", None, None), {}, "--num_processes, --process_id must be given, too"),
        ((None, 4, 2), {}, "--coordinator must be given, too"),
        (("node1:1234", 4, 4), {}, "process id 4 of 4 processes; it must be from 0 to 3"),
        (("node1:1234", 4, -1), {}, "process id -1 of 4 processes"),
        (("node1", 4, 0), {}, "the coordinator is 'node1'; give HOST:PORT"),
        (("node1:port", 4, 0), {}, "the coordinator is 'node1:port'; give HOST:PORT"),
        ((None, None, None), MPI | {"OMPI_COMM_WORLD_RANK": "x"}, "'4' and 'x'; give integers"),
        ((None, None, None), {"OMPI_COMM_WORLD_SIZE": "4"}, "JAX_COORDINATOR_ADDRESS is not set"),
        ((None, None, None), KUBERNETES | {"JAX_NUM_PROCESSES": "many"}, "'many' and '2'; give integers"),
        (
            (None, None, None),
            {"JOB_COMPLETION_INDEX": "0", "JAX_COORDINATOR_ADDRESS": "node1:1234"},
            "JAX_NUM_PROCESSES is not; set it to the number of pods",
        ),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(flags, environment, message):
    with pytest.raises(UsageError) as error:
        settings(*flags, environment)
    assert message in str(error.value)


def assert_close(one, other):
    """The losses to 1e-4 relative and the parameters to 1e-3, after 6 steps on the same batches in other shares."""
    for mine, theirs in zip(log(one), log(other), strict=True):
        np.testing.assert_allclose(mine["train_loss"], theirs["train_loss"], rtol=1e-4)
        np.testing.assert_allclose(mine["val_loss"], theirs["val_loss"], rtol=1e-4)
    a, b = (checkpoint.to_arrays(checkpoint.load(run, "latest", train=True).train["params"]) for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-3)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    """A run of two epochs by one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    (trainer,) = start(workdir, "--config.epochs=2", devices=4)
    assert trainer.finish() == 0, trainer.output
    return workdir


@pytest.mark.parametrize(
    ("processes", "devices", "resident"),
    [
        (2, 2, "true"),
        pytest.param(2, 2, "false", marks=pytest.mark.slow),  # half a minute
        pytest.param(4, 1, "true", marks=pytest.mark.slow),  # a minute
    ],
)
def test_processes_change_nothing_but_the_order_of_sums(start, alone, tmp_path, processes, devices, resident):
    workdir = tmp_path / "many"
    trainers = start(
        workdir, "--config.epochs=2", f"--config.data.resident={resident}", processes=processes, devices=devices
    )
    assert [trainer.finish() for trainer in trainers] == [0] * processes, trainers[0].output
    assert f"{processes} processes, 4 x cpu" in trainers[0].output
    assert_close(workdir, alone)
    # Process 0 alone speaks and writes.
    assert "epoch   2/2" in trainers[0].output
    assert all("epoch" not in trainer.output for trainer in trainers[1:])
    assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_a_signal_to_one_stops_all_after_the_same_step(start, tmp_path):
    workdir = tmp_path / "run"
    trainers = start(workdir, "--config.epochs=100000", "--stopped_exit_code=75", processes=2)
    trainers[0].wait_for(r"epoch +1/")
    trainers[1].process.send_signal(signal.SIGTERM)
    assert [trainer.finish() for trainer in trainers] == [75, 75], trainers[0].output
    stopped = checkpoint.steps(workdir)[-1]
    assert f"stopped by SIGTERM after step {stopped} of 300000, saved" in trainers[0].output


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])  # half a minute each
def test_when_one_dies_the_other_says_so_and_ends_within_a_minute(start, tmp_path, victim):
    workdir = tmp_path / "run"
    trainers = start(workdir, "--config.epochs=100000", processes=2)
    trainers[0].wait_for(r"epoch +2/")
    trainers[victim].process.send_signal(signal.SIGKILL)
    died = time.monotonic()
    survivor = trainers[1 - victim]
    assert survivor.finish(60) != 0
    assert time.monotonic() - died < 60
    # Whichever notices first: the step whose sums fail, or JAX, which then aborts.
    assert "lost another one" in survivor.output or "another task died" in survivor.output, survivor.output
    # Two are restarted as one.
    (trainer,) = start(workdir, f"--config.epochs={len(log(workdir)) + 1}")
    assert trainer.finish() == 0, trainer.output
    assert "going on after epoch" in trainer.output


def test_an_error_of_the_user_ends_every_process(start, tmp_path):
    trainers = start(tmp_path / "run", "--config.global_batch_size=17", processes=2)
    assert [trainer.finish(60) for trainer in trainers] == [2, 2]
    for index, trainer in enumerate(trainers):
        assert f"error: process {index} of 2: a global batch of 17 does not divide over 2 devices" in trainer.output
        assert "Traceback" not in trainer.output


@pytest.mark.parametrize(
    ("pauses", "codes"),
    [
        ((0, 2), [2, 2]),  # process 0 is first, and its end would abort the other
        pytest.param((1000, 0), [-signal.SIGABRT, 2], marks=pytest.mark.slow),  # half a minute
    ],
)
def test_processes_wait_a_little_for_each_other_to_fail(pauses, codes):
    program = """
import sys, time
from jobs import UsageError
from jobs.training import processes
address, index, pause = sys.argv[1:]
with processes.joined(processes.settings(address, 2, int(index), {})):
    time.sleep(int(pause))
    raise UsageError("no")
"""
    address = f"127.0.0.1:{free_port()}"
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(index), str(pause)], stderr=subprocess.PIPE, text=True
        )
        for index, pause in enumerate(pauses)
    ]
    said = [process.communicate(timeout=90)[1] for process in pair]
    assert [process.returncode for process in pair] == codes, said
    for index, code in enumerate(codes):
        assert (f"error: process {index} of 2: no" in said[index]) == (code == 2)
