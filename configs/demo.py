"""A small CNN on the phantom set: what `make demo` trains, in minutes on two cores.

    python jobs/prepare.py --source phantom --data_dir data
    python jobs/train.py --config configs/demo.py --workdir runs/demo

Accuracy of normal against pneumonia .989 on the phantoms' test split (`make demo` at fa7576c).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """A narrow CNN at 96 px with mild augmentation; the global batch divides over up to 8 devices."""
    config = base.get_config()
    config.epochs = 40
    config.global_batch_size = 32
    config.data.dataset = "phantom"
    config.data.image_size = 96
    config.data.balance = "none"
    config.model.options = ConfigDict({"widths": (16, 32, 64), "blocks": (1, 1, 2), "dropout": 0.1})
    # Mild: the phantoms are few and of one make, and the demo is to be over in minutes.
    config.augment.crop_area_min = 0.7
    config.augment.crop_log_aspect = 0.1
    config.augment.log_gamma = 0.2
    config.augment.log_contrast = 0.2
    config.augment.brightness = 0.05
    config.augment.s_curve = 0.0
    config.augment.shading = 0.0
    config.augment.log_detail = 0.0
    config.augment.blur_px = 0.0
    config.augment.noise = 0.02
    config.augment.erase_probability = 0.0
    config.augment.collimation = 0.0
    config.augment.framed = 0.0
    config.mixup_alpha = 0.0
    config.optimizer.warmup_epochs = 1.0
    config.ema_decay = 0.98
    return config
