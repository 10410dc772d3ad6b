"""What the recipes share: Adam at a rate that is constant or falls on a plateau, plain augmentation, nothing else."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Every field of configs/base.py, with nothing on that the recipes do not name."""
    config = base.get_config()
    config.global_batch_size = 32
    config.data.balance = "none"
    config.augment.update(dict.fromkeys(config.augment, 0.0) | {"crop_area_min": 1.0})
    config.mixup_alpha = 0.0
    config.label_smoothing = 0.0
    config.ema_decay = 0.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.weight_decay = 0.0  # AdamW without decay is Adam
    config.optimizer.clip_norm = 0.0
    return config
