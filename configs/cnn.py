"""The CNN from scratch on the real images.

python jobs/train.py --config configs/cnn.py --workdir runs/cnn
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The residual CNN, 1.5 M parameters, 112 px."""
    config = base.get_config()
    config.model.architecture = "cnn"
    config.model.options = ConfigDict({"widths": (16, 48, 128, 256), "blocks": (1, 2, 2, 1), "dropout": 0.2})
    return config
