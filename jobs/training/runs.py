"""Many runs one after the other, each gone on with where it was.

They are trained in this process, not in children of it: a scheduler's SIGTERM then reaches the trainer itself, which
saves and ends, and no child outlives a parent that was killed. What a run holds, its films on the devices above all, is
let go of when `train` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jobs.evaluation.tables import duration
from jobs.training.loop import Diverged, check_films, finished, train
from jobs.training.plan import check
from jobs.training.processes import StopSignal
from model import checkpoint


class Run(NamedTuple):
    """One of them."""

    title: str  # what sets it apart from the others
    workdir: Path
    config: ConfigDict


def train_all(runs: Sequence[Run], devices: Sequence[jax.Device], console: Console) -> dict[Path, str] | None:
    """Trains the runs that are not finished, in order; one that diverges does not keep the others from it.

    Args:
      runs: each with a workdir of its own.
      devices: those of the parallel step.
      console: for the progress.

    Returns:
      By workdir, why the runs that diverged did; None where a signal stopped the training before its end.

    Raises:
      JobError: as `train`, and before anything is trained where one of the configs, or the batch of one, cannot be.
    """
    for run in runs:
        check(run.config)
    alike = {(run.config.global_batch_size, run.config.data.leave_out, run.config.data.balance): run for run in runs}
    for run in alike.values():
        check_films(run.config, devices)
    diverged: dict[Path, str] = {}
    taken: list[float] = []  # seconds, of each run that is finished
    with StopSignal() as signalled:
        for number, run in enumerate(runs, 1):
            place = f"{number} of {len(runs)}: {run.title}"
            if signalled.name:  # once the last step of a run was taken, which ended that run as it should
                console.print(
                    f"stopped by {signalled.name} before {place}; the same command goes on with it", soft_wrap=True
                )
                return None
            if finished(run.config, run.workdir):
                console.print(f"{place}, finished before", soft_wrap=True)
                taken.append(seconds(run.workdir))
                continue
            ahead = len(runs) - number + 1
            left = f"; about {duration(ahead * sum(taken) / len(taken))} left" if taken else ""
            console.print(f"{place}{left}", soft_wrap=True)
            try:
                if not train(run.config, run.workdir, devices, console, signalled):
                    return None
                taken.append(seconds(run.workdir))
            except Diverged as error:
                console.print(f"{place} diverged: {error}", soft_wrap=True)
                diverged[run.workdir] = str(error)
            finally:
                jax.clear_caches()  # programs of this run alone, 70 MB of them even of a tiny network
    return diverged


def seconds(workdir: Path) -> float:
    """What the epochs of a run took, as its checkpoint says."""
    return sum(row["seconds"] for row in checkpoint.load(workdir, "latest").meta["history"])
