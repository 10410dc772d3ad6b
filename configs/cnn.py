"""The CNN from scratch on the real images.

    python jobs/prepare.py --source SRC --data_dir data
    XLA_FLAGS=--xla_force_host_platform_device_count=2 python jobs/train.py --config configs/cnn.py --workdir runs/cnn

    python jobs/bundle.py --checkpoint runs/cnn --out space/checkpoint --dtype bfloat16
    python jobs/calibrate.py --checkpoint space/checkpoint

On two CPU cores, as two devices, an epoch takes 25 to 130 s where nothing else runs, with the memory settings that the
README names. Three of the four networks that are bundled are such, and came to be in several runs each; the last run of
one was this, begun with the weights of another, shorter and at a lower rate: "How the bundle came to be" in
docs/experiments.md has the commands.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The residual CNN, 1.5 M parameters: trained on random crops at 112 px, served the middle at 144 px."""
    config = base.get_config()
    config.epochs = 140
    config.data.image_size = 144
    config.data.side = 0.875
    config.data.neighbourhood = 0.15  # "Contrast of the neighbourhood" in docs/experiments.md
    config.data.train_size = 112
    # Ranges of patient numbers whose labels contradict the others: "Films left out of training" in docs/experiments.md.
    config.data.leave_out = "person(13[2-9]|1[4-9].)._bacteria|person(69|7.|8[0-4]|11[4-9]|12[01]|14[5-9])._virus"
    # Tone twice as strong as in base.py: "Tone twice as strong" in docs/experiments.md.
    config.augment.log_gamma = 0.8
    config.augment.log_contrast = 0.6
    config.augment.brightness = 0.2
    # Margins on all sides and rotations are what called most normal films ill: "Changes together" there.
    config.augment.collimation = 0.2
    config.augment.rotation_degrees = 20.0
    config.augment.flip_probability = 0.5  # or mirrored films are answered wrong: docs/experiments.md
    config.model.architecture = "cnn"
    config.model.options = ConfigDict({"widths": (16, 48, 128, 256), "blocks": (1, 2, 2, 1), "dropout": 0.2})
    return config
