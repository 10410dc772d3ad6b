"""ResNet50V2, pre-trained on ImageNet, in the recipe of configs/seeds/vgg16.py.

    python jobs/train.py --config configs/seeds/resnetv2.py --workdir runs/seed_resnetv2

Not measured here: it needs ImageNet's weights and a GPU.
"""

from ml_collections import ConfigDict

from configs import resnetv2
from configs.seeds import vgg16


def get_config() -> ConfigDict:
    """All of it at 1e-4, at 224 px."""
    config = vgg16.get_config()
    config.model = resnetv2.get_config().model
    config.init_from = resnetv2.get_config().init_from
    return config
