"""Trains a backbone without labels, data-parallel over every device of every process.

    python jobs/pretrain.py --config configs/selfsup.py --workdir runs/selfsup
    python jobs/train.py --config configs/cnn.py --workdir runs/cnn_selfsup --config.init_from=runs/selfsup

SimCLR (Chen et al. 2020): two augmented views are made of each training film, and the network learns to match the two
among the views of the whole batch. The figures of an epoch are those of nearest neighbours: each held-out film is given
the classes of the training films whose features are most like its own.

WORKDIR, resuming, signals, jobs of many processes and the flags are those of jobs/train.py. The backbone that is
trained here has no classifier and answers nothing by itself: it is for `--config.init_from` of jobs/train.py.
"""

from __future__ import annotations

from absl import flags

from jobs import UsageError, run, train
from model.checkpoint import CheckpointError
from model.weights import WeightsError

flags.adopt_module_key_flags(train)


def main() -> int:
    objective = flags.FLAGS.config.objective
    if objective != "contrastive":
        raise UsageError(
            f"config.objective is {objective!r}; this command is for 'contrastive', as in configs/selfsup.py. "
            "python jobs/train.py trains the others"
        )
    return train.main()


if __name__ == "__main__":
    run(main, CheckpointError, WeightsError)
