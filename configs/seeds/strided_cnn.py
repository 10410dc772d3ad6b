"""A CNN from scratch whose convolutions stride instead of pooling, with zoom and rotation, 10 epochs.

    python jobs/train.py --config configs/seeds/strided_cnn.py --workdir runs/strided_cnn

Accuracy over three classes .757 (.703 to .811) on the validation films, .703 on shifted copies of them
(docs/experiments.md, "Recipes of earlier projects").
"""

from ml_collections import ConfigDict

from configs.seeds import adam


def get_config() -> ConfigDict:
    """Five strided convolutions, 16 to 256 filters, at 128 px."""
    config = adam.get_config()
    config.epochs = 10
    config.data.image_size = 128
    config.model.architecture = "vgg"
    config.model.options = ConfigDict(
        {
            "convolutions": (1, 1, 1, 1, 1),
            "filters": (16, 32, 64, 128, 256),
            "strided": True,
            "batch_norm": True,
            "head": (128,),
            "global_pool": True,
        }
    )
    config.augment.log_zoom = 0.2
    config.augment.rotation_degrees = 20.0
    return config
