"""The CNN from scratch on the real images.

    python jobs/prepare.py --source SRC --data_dir data
    XLA_FLAGS=--xla_force_host_platform_device_count=2 python jobs/train.py --config configs/cnn.py --workdir runs/cnn

Measured with these commands on two CPU cores, as two devices, while other work ran beside it: 60 epochs in 58 minutes,
40 to 149 images/s. On the 613 held-out films of 440 patients: accuracy .739, balanced accuracy .742, macro-F1 .732;
normal against pneumonia: accuracy .940, AUROC .992; log loss .546, ECE .052. `python jobs/evaluate.py --checkpoint
space/checkpoint --split validation` gives the same for the bundle, whose kernels are bfloat16.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The residual CNN, 1.5 M parameters: trained on random crops at 112 px, served the middle at 144 px."""
    config = base.get_config()
    config.data.image_size = 144
    config.data.side = 0.875
    config.data.train_size = 112
    config.model.architecture = "cnn"
    config.model.options = ConfigDict({"widths": (16, 48, 128, 256), "blocks": (1, 2, 2, 1), "dropout": 0.2})
    return config
