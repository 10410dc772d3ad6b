"""The CNN's backbone from the training films alone, without their labels: two views of a film are to look alike.

    python jobs/pretrain.py --config configs/selfsup.py --workdir runs/selfsup
    python jobs/train.py --config configs/cnn.py --workdir runs/cnn_selfsup --config.init_from=runs/selfsup

An epoch takes two minutes on two CPU cores, and 16 GB with the allocator settings of the README. With
--config.epochs=12 in both commands the log loss was .554, and .573 without pre-training; a long run gained nothing
(docs/experiments.md, "Training, 12 epochs" and "Longer, and several together").
"""

from ml_collections import ConfigDict

from configs import base, cnn


def get_config() -> ConfigDict:
    """SimCLR of the network of configs/cnn.py on crops of 112 px, 256 films a step."""
    config = base.get_config()
    config.epochs = 100
    config.global_batch_size = 256
    config.sync_batch_norm = "true"  # else the statistics of a device's share tell which views belong together
    config.data = cnn.get_config().data
    config.data.balance, config.data.leave_out = "none", ""  # which would look at the labels
    config.model = cnn.get_config().model
    config.objective = "contrastive"
    # The best step is the one whose nearest neighbours agree most on the held-out films.
    config.select.metric = "val_balanced_accuracy"
    return config
