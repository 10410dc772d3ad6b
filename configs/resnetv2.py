"""ResNet50V2, pre-trained on ImageNet, on the real images, in the phases of configs/resnet.py.

    python jobs/train.py --config configs/resnetv2.py --workdir runs/resnetv2 --config.dtype=bfloat16

For GPUs; a full run has not been measured yet.
"""

from ml_collections import ConfigDict

from configs import resnet


def get_config() -> ConfigDict:
    """ResNet50V2 at 224 px with a linear head."""
    config = resnet.get_config()
    config.model.architecture = "resnetv2"
    config.model.options = ConfigDict({"head": (), "dropout": 0.0})
    config.init_from = "hf://timm/resnetv2_50.a1h_in1k"
    return config
