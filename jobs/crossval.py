"""Cross-validates a config: every fold of the training and validation films with every seed.

    python jobs/crossval.py --config configs/cnn.py --folds 5 --seeds 3
    python jobs/crossval.py --config configs/demo.py --workdir runs/cv_demo --folds 3 --seeds 1 --config.epochs=10

Train and validation are pooled and dealt into folds that share no patient and hold about as many films of each class;
the deal is the same for every seed and every time. The official test split is never read. Each member, one fold held
out with one seed, is a run in WORKDIR/member-1, member-2, ...: the folds with the first seed, then with the next, so
that more --seeds later add to what is there.

Running the same command again goes on where it stopped; a member that is finished is not trained again. Ctrl-C or
SIGTERM finishes the step, saves and exits with 0; a second one stops at once.

Written to WORKDIR at the end: crossval.md and crossval.json (the figures of each member on its fold, their mean and
standard deviation, and those of all films out of fold with 95 % intervals over resampled patients) and predictions.csv
(each film by the members that did not train on it, their probabilities averaged), for jobs/compare.py. WORKDIR can be
opened as an ensemble of all members. Of the films here none was held out by all of them, so it can be measured on the
test split alone, and cannot be calibrated; a single member can.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from jobs import JobError, run
from jobs.training import crossval
from jobs.training.runs import train_all
from model.checkpoint import CheckpointError
from model.weights import WeightsError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, such as configs/cnn.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the members live; runs/crossval-CONFIG where none is given.")
_FOLDS = flags.DEFINE_integer("folds", 5, "How many folds; as many patients of each class are needed.", 2)
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds each fold is trained with, from config.seed on.", 1, 100)
flags.mark_flag_as_required("config")


def main() -> None:
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(_WORKDIR.value or f"runs/crossval-{Path(config_file).stem}")
    members = crossval.plan(_CONFIG.value, workdir, _FOLDS.value, _SEEDS.value)
    diverged = train_all(members, jax.devices(), Console(markup=False))
    if diverged is None:
        return
    if diverged:
        raise JobError(
            f"{len(diverged)} of {len(members)} members diverged ({', '.join(path.name for path in diverged)}), so "
            "there are no figures; lower --config.optimizer.learning_rate, or that of the phase, and give another "
            "--workdir"
        )
    print(crossval.document(crossval.measure(members, workdir)))
    print(f"\nwritten: {', '.join(str(workdir / name) for name in crossval.FILES)}")


if __name__ == "__main__":
    run(main, CheckpointError, WeightsError)
