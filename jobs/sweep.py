"""Trains a small grid of configs and ranks them.

    python jobs/sweep.py --config configs/cnn.py --grid 'learning_rate=1e-3,2e-3;mixup=0,.2'
    python jobs/sweep.py --config configs/demo.py --workdir runs/wide --grid 'widths=(8,16,32),(16,32,64)'

One run a cell of the grid, each with all the values of its row. A field is named by its path in configs/base.py
(optimizer.learning_rate), or by the last part of it, or the beginning or end of that, where only one field fits. Values
are separated by commas, fields by semicolons; whatever all runs share is set with --config.FIELD=VALUE.

Each run is a folder of WORKDIR, named for its values. Running the same command again goes on where it stopped: what is
finished is not trained again, and a larger grid trains what is new. Ctrl-C or SIGTERM finishes the step, saves and
exits with 0; a second one stops at once. A run that diverges is listed as such, and the others go on.

Written to WORKDIR at the end: sweep.md and sweep.csv, a row a run, the best by config.select.metric first, with the
number of its parameters and the time that its epochs took.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from jobs import run
from jobs.training import grid
from jobs.training.runs import train_all
from model.checkpoint import CheckpointError
from model.weights import WeightsError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, such as configs/cnn.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs live; runs/sweep-CONFIG where none is given.")
_GRID = flags.DEFINE_string("grid", None, "FIELD=VALUE,VALUE;FIELD=VALUE,VALUE, such as 'mixup=0,.2'.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    config, workdir = _CONFIG.value, Path(_WORKDIR.value or f"runs/sweep-{Path(config_file).stem}")
    cells = grid.plan(config, workdir, grid.parse(_GRID.value, config))
    diverged = train_all([cell.run for cell in cells], jax.devices(), Console(markup=False))
    if diverged is None:
        return
    rows = grid.rank(cells, diverged, config.select.metric)
    grid.write(rows, config.select.metric, workdir)
    print(grid.document(rows, config.select.metric))
    print(f"\nwritten: {', '.join(str(workdir / name) for name in grid.FILES)}")


if __name__ == "__main__":
    run(main, CheckpointError, WeightsError)
