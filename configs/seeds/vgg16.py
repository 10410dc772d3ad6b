"""VGG16, pre-trained on ImageNet, fine-tuned for 10 epochs with zoom and rotation.

    python jobs/train.py --config configs/seeds/vgg16.py --workdir runs/seed_vgg16

Not measured here: it needs ImageNet's weights and a GPU.
"""

from ml_collections import ConfigDict

from configs import vgg
from configs.seeds import adam


def get_config() -> ConfigDict:
    """All of it at 1e-4, at 224 px."""
    config = adam.get_config()
    config.epochs = 10
    config.data.image_size = 224
    config.model = vgg.get_config().model
    config.model.options.batch_norm = False
    config.init_from = "hf://timm/vgg16.tv_in1k"
    config.optimizer.learning_rate = 1e-4
    config.augment.log_zoom = 0.2
    config.augment.rotation_degrees = 20.0
    return config
