"""Runs that are killed, told to stop, moved and fought over: they end as if nothing had happened, or say why not."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from jobs import JobError
from jobs.training.lock import NAME, locked
from tests.jobs.conftest import assert_same_run, log
from tests.jobs.test_loop import config, train


def kill_at_random(start, workdir, kills, seed, epochs):
    """Kills a run at random moments, then lets it end; returns how many epochs were logged at each kill."""
    moments, logged = random.Random(seed), [0]
    for _ in range(kills):
        (trainer,) = start(workdir, f"--config.epochs={epochs}")
        trainer.wait_for("films a step")
        more = moments.randint(0, epochs // (kills + 1))
        if more:
            trainer.wait_for(rf"epoch +{logged[-1] + more}/")
        time.sleep(moments.uniform(0, 0.3))
        trainer.process.send_signal(signal.SIGKILL)
        assert trainer.finish() == -signal.SIGKILL, trainer.output
        logged.append(len(log(workdir)))
    (trainer,) = start(workdir, f"--config.epochs={epochs}")
    assert trainer.finish(600) == 0, trainer.output
    return logged


def test_a_run_killed_at_random_moments_is_the_run_that_was_not(start, straight, tmp_path):
    kill_at_random(start, tmp_path / "killed", 2, seed=0, epochs=12)
    assert_same_run(tmp_path / "killed", straight)


@pytest.mark.slow  # 4 minutes
def test_a_run_killed_twenty_times_is_the_run_that_was_not(start, tmp_path):
    (trainer,) = start(tmp_path / "straight", "--config.epochs=150")
    assert trainer.finish(600) == 0, trainer.output
    logged = kill_at_random(start, tmp_path / "killed", 20, seed=1, epochs=150)
    assert len(set(logged)) > 10, logged  # spread over the run
    assert_same_run(tmp_path / "killed", tmp_path / "straight")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_the_step_and_says_how_to_go_on(start, straight, tmp_path, number):
    (trainer,) = start(tmp_path / "stopped")
    trainer.wait_for("films a step")
    trainer.process.send_signal(number)  # while it compiles: the first step ends it
    assert trainer.finish() == 0, trainer.output
    assert f"stopped by {number.name} after step 1 of 36, saved; the same command goes on from there" in trainer.output
    assert "Traceback" not in trainer.output
    assert (tmp_path / "stopped" / "1").is_dir()
    assert (tmp_path / "stopped" / "log.jsonl").read_text() == ""
    (trainer,) = start(tmp_path / "stopped")
    assert trainer.finish() == 0, trainer.output
    assert "going on after epoch 0 of 12 and 1 steps" in trainer.output
    assert_same_run(tmp_path / "stopped", straight)


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    (trainer,) = start(tmp_path / "run", "--config.epochs=13")
    trainer.wait_for("films a step")
    trainer.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    trainer.process.send_signal(signal.SIGINT)
    assert trainer.finish(5) == 128 + signal.SIGINT
    assert not (tmp_path / "run" / "1").exists()  # it was compiling


@pytest.mark.slow
def test_streamed_runs_stop_and_go_on_and_leave_no_process_behind(start, straight, tmp_path):
    workdir = tmp_path / "streamed"
    (trainer,) = start(workdir, "--config.data.resident=false")
    trainer.wait_for(r"films a step")
    decoders = []
    while not decoders:
        children = psutil.Process(trainer.process.pid).children(recursive=True)
        decoders = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    trainer.wait_for(r"epoch +1/12")
    for decoder in decoders:  # as Ctrl-C in a terminal, or a cluster's signal to a whole job
        decoder.send_signal(signal.SIGINT)
        decoder.send_signal(signal.SIGTERM)
    trainer.wait_for(r"epoch +6/12")
    trainer.process.send_signal(signal.SIGINT)
    assert trainer.finish() == 0, trainer.output
    (trainer,) = start(workdir, "--config.data.resident=false")
    trainer.wait_for(r"epoch +9/12")
    workers = psutil.Process(trainer.process.pid).children(recursive=True)
    trainer.process.send_signal(signal.SIGKILL)
    trainer.finish()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    (trainer,) = start(workdir, "--config.data.resident=false")
    assert trainer.finish() == 0, trainer.output
    assert_same_run(workdir, straight)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 1)])
def test_going_on_with_other_devices_and_processes(start, straight, tmp_path, processes, devices):
    workdir = tmp_path / "moved"
    (trainer,) = start(workdir, devices=4)
    trainer.wait_for(r"epoch +3/12")
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.finish() == 0, trainer.output
    trainers = start(workdir, processes=processes, devices=devices)
    assert [trainer.finish() for trainer in trainers] == [0] * processes, trainers[0].output
    for mine, theirs in zip(log(workdir), log(straight), strict=True):
        # Sums in another order, over 36 steps.
        np.testing.assert_allclose(mine["train_loss"], theirs["train_loss"], rtol=1e-3)
        np.testing.assert_allclose(mine["val_loss"], theirs["val_loss"], rtol=1e-3)


@pytest.mark.slow
def test_a_second_trainer_is_refused_by_name(start, tmp_path):
    first, second = start(tmp_path / "run", "--config.epochs=100000"), None
    first[0].wait_for(r"epoch +1/")
    second = start(tmp_path / "run", "--config.epochs=100000")
    assert second[0].finish() == 1
    assert f"run is in use by process {first[0].process.pid} on " in second[0].output
    assert "give another --workdir" in second[0].output
    first[0].process.send_signal(signal.SIGKILL)
    first[0].finish()
    third = start(tmp_path / "run", "--config.epochs=1")  # a lock of the dead holds nobody up
    assert third[0].finish() == 0, third[0].output
    assert f"the lock of process {first[0].process.pid} on" in third[0].output
    assert "is stale: that process is gone" in third[0].output


def test_a_lock_ends_with_its_process_and_names_it(phantom_data, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from jobs.training.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(JobError, match=f"in use by process {holder.pid} on .* or give another --workdir"):
        train(config(phantom_data, epochs=1), tmp_path)
    holder.kill()
    holder.wait()
    # The lock of the dead holds nobody up.
    said = train(config(phantom_data, epochs=1), tmp_path)
    assert f"the lock of process {holder.pid} on" in said and "is stale: that process is gone" in said
    with locked(tmp_path) as stale:
        assert stale is None
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    (tmp_path / NAME).write_text("nonsense")
    with locked(tmp_path) as stale:
        assert stale == "a process that left no name"
