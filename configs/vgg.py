"""VGG16 with BatchNorm, pre-trained on ImageNet, on the real images, in the phases of configs/resnet.py.

    python jobs/train.py --config configs/vgg.py --workdir runs/vgg --config.dtype=bfloat16

Without BatchNorm: --config.model.options.batch_norm=False --config.init_from=hf://timm/vgg16.tv_in1k

For GPUs; a full run has not been measured yet.
"""

from ml_collections import ConfigDict

from configs import resnet


def get_config() -> ConfigDict:
    """VGG16 at 224 px with its two dense layers of 4096, pre-trained, too, and new logits."""
    config = resnet.get_config()
    config.model.architecture = "vgg"
    config.model.options = ConfigDict({"batch_norm": True, "head": (4096, 4096), "dropout": 0.5})
    config.init_from = "hf://timm/vgg16_bn.tv_in1k"
    return config
