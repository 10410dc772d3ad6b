"""ResNet50, frozen then fine-tuned: dense 512 and 128 with BatchNorm and dropout, L2, Adam 1e-4, 25 epochs at most.

    python jobs/train.py --config configs/seeds/frozen_resnet.py --workdir runs/frozen_resnet
    python jobs/train.py --config configs/seeds/frozen_resnet.py --workdir runs/frozen_smote --config.data.balance=smote

A fifth of the films is held out, by patient. Balanced by sampling, or by SMOTE (pip install -r requirements-smote.txt).

Not measured here: it needs ImageNet's weights and a GPU.
"""

from ml_collections import ConfigDict

from configs import base
from configs.seeds import adam


def get_config() -> ConfigDict:
    """The head for 10 epochs, all of it for 15 at a tenth of the rate; early stop and plateau."""
    config = adam.get_config()
    config.data.image_size = 224
    config.data.folds = 5
    config.data.balance = "sampling"
    config.model.architecture = "resnet"
    config.model.options = ConfigDict({"head": (512, 128), "dropout": 0.5})
    config.init_from = "hf://timm/resnet50.a1_in1k"
    base.train_in(
        config,
        base.phase(10, 1e-4, "head", schedule="constant"),
        base.phase(15, 1e-5, schedule="constant"),
    )
    config.head_l2 = 1e-4
    config.augment.log_zoom = 0.1
    config.augment.shift = 0.1
    config.augment.rotation_degrees = 10.0
    config.optimizer.plateau_factor = 0.5
    config.optimizer.plateau_patience = 3
    config.early_stopping_epochs = 5
    return config
