"""A CNN from scratch: four blocks of two convolutions, a dense layer of 128, 15 epochs, reduce on plateau.

    python jobs/train.py --config configs/seeds/scratch_cnn.py --workdir runs/scratch_cnn

Accuracy over three classes .754 (.699 to .808) on the validation films, .708 on shifted copies of them
(docs/experiments.md, "Recipes of earlier projects").
"""

from ml_collections import ConfigDict

from configs.seeds import adam


def get_config() -> ConfigDict:
    """32 to 256 filters at 112 px; zoom, shift, rotation and flips."""
    config = adam.get_config()
    config.epochs = 15
    config.model.architecture = "vgg"
    config.model.options = ConfigDict(
        {"convolutions": (2, 2, 2, 2), "filters": (32, 64, 128, 256), "batch_norm": True, "head": (128,)}
    )
    config.augment.log_zoom = 0.2
    config.augment.shift = 0.2  # in halves of the side: a tenth of it
    config.augment.rotation_degrees = 15.0
    config.augment.flip_probability = 0.5
    config.optimizer.plateau_factor = 0.3
    config.optimizer.plateau_patience = 2
    return config
