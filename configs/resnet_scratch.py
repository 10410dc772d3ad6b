"""ResNet50 from scratch on the real images, for GPUs.

    python jobs/train.py --config configs/resnet_scratch.py --workdir runs/resnet_scratch --config.dtype=bfloat16

The whole schedule has not been measured yet; two CPU cores would take weeks.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """ResNet50 at 224 px with the dense 512 -> 128 head."""
    config = base.get_config()
    config.epochs = 200
    config.global_batch_size = 128
    config.data.image_size = 224
    config.model.architecture = "resnet"
    config.model.options = ConfigDict({"blocks": (3, 4, 6, 3), "head": (512, 128), "dropout": 0.5})
    config.head_l2 = 1e-4
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 5.0
    return config
