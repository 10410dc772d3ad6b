"""DenseNet121, pre-trained on ImageNet, on the real images, in the phases of configs/resnet.py.

    python jobs/train.py --config configs/densenet.py --workdir runs/densenet --config.dtype=bfloat16

For GPUs; a full run has not been measured yet.
"""

from ml_collections import ConfigDict

from configs import resnet


def get_config() -> ConfigDict:
    """DenseNet121 at 224 px with a linear head."""
    config = resnet.get_config()
    config.model.architecture = "densenet"
    config.model.options = ConfigDict({"head": (), "dropout": 0.0})
    config.init_from = "hf://timm/densenet121.ra_in1k"
    return config
