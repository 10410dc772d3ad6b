"""A small DenseNet from scratch on the real images, with the changes of films of configs/cnn.py, by Muon.

    python jobs/prepare.py --source SRC --data_dir data
    XLA_FLAGS=--xla_force_host_platform_device_count=2 python jobs/train.py --config configs/densenet_scratch.py \\
        --workdir runs/densenet_scratch

On two CPU cores, as two devices, an epoch takes 47 s. The run of seed 71 at f62140c, before strips and rotations were
wider and contrast was local, is under "Muon" in docs/experiments.md; gone on with twice at 128 px, the second time with
wider strips and rotations but without local contrast, it is one of the four networks that are bundled ("How the bundle
came to be", there).
"""

from ml_collections import ConfigDict

from configs import cnn


def get_config() -> ConfigDict:
    """DenseNet-BC, 1.0 M parameters: trained on random crops at 112 px, served the middle at 144 px."""
    config = cnn.get_config()
    config.epochs = 80
    config.optimizer.name = "muon"
    config.model.architecture = "densenet"
    config.model.options = ConfigDict({"depths": (4, 6, 8, 6), "growth": 24, "head": (), "dropout": 0.2})
    return config
