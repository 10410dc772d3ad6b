"""Three classes from the layout with a folder for each, and a grid search.

    python jobs/prepare.py --source FOLDER --data_dir data    # FOLDER/train/{bacterial,normal,viral}, FOLDER/test/...
    python jobs/sweep.py --config configs/seeds/three_folders.py --workdir runs/grid \\
        --grid 'learning_rate=1e-4,1e-3;dropout=.2,.5;filters=(16,32,64),(32,64,128)'

Of the four runs without `filters` the best, at 1e-4 and .2, has an accuracy over three classes of .781 (.738 to .822)
on the validation films, and .702 on shifted copies of them (docs/experiments.md, "Recipes of earlier projects").
"""

from ml_collections import ConfigDict

from configs.seeds import adam


def get_config() -> ConfigDict:
    """Three blocks of one convolution at 112 px, 10 epochs."""
    config = adam.get_config()
    config.epochs = 10
    config.model.architecture = "vgg"
    config.model.options = ConfigDict(
        {"convolutions": (1, 1, 1), "filters": (32, 64, 128), "batch_norm": True, "head": (128,), "dropout": 0.5}
    )
    config.data.balance = "loss"
    return config
