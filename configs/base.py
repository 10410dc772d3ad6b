"""Every field and every default. A config file starts from this and changes a few lines."""

from ml_collections import ConfigDict


def phase(
    epochs: int,
    learning_rate: float,
    trainable: str = "all",
    layer_decay: float = 1.0,
    schedule: str = "cosine",
    warmup_epochs: float = 0.0,
) -> ConfigDict:
    """One phase of training, for config.phases: what it trains, and how; all other parameters are frozen.

    On the command line its fields are --config.phases[0].epochs and so on.

    Args:
      epochs: of this phase.
      learning_rate: at the peak, of the head.
      trainable: all | head | stage4+ (that stage and what follows it) | patterns of parameter paths, commas between.
      layer_decay: each stage, going down from the head, has this times the learning rate of the one above it.
      schedule: cosine | constant, both after the warm-up, over the epochs of this phase.
      warmup_epochs: from 0 up to the peak.
    """
    return ConfigDict(locals())


def train_in(config: ConfigDict, *phases: ConfigDict) -> None:
    """Gives `config` phases; their epochs, rates and schedules take the place of its own, which go."""
    config.phases = list(phases)
    del config.epochs
    for name in ("learning_rate", "schedule", "warmup_epochs"):
        del config.optimizer[name]


def get_config() -> ConfigDict:
    """The defaults: the CNN on the real images at 112 px."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 60
    config.global_batch_size = 64  # films a step, over all devices of all hosts
    config.dtype = "float32"  # of the activations: float32 | bfloat16 (GPUs; never faster on a CPU)
    # BatchNorm over the global batch: auto (where a device's share is below 32) | true | false
    config.sync_batch_norm = "auto"

    # Weights to begin with: hf://OWNER/NAME[@REVISION], a .safetensors, .pth or .pt file, a run; "" is random
    config.init_from = ""
    config.phases = []  # see train_in; []: everything is trained at once

    config.resume = True  # False refuses a workdir that holds a run

    config.data = ConfigDict()
    config.data.dir = "data"  # where `python jobs/prepare.py --data_dir` wrote
    config.data.dataset = "chest_xray"  # chest_xray | phantom
    config.data.folds = 0  # 0: the splits as prepared | n: train and validation pooled and dealt into n by patient
    config.data.fold = 0  # which fold is held out, from 0
    config.data.leave_out = ""  # a regular expression: films that match it in their name are not trained on
    config.data.image_size = 112  # px, of the network's input as it is evaluated and served
    config.data.side = 1.0  # of the middle of the film that is evaluated and served, as a part of the film's
    config.data.neighbourhood = 0.0  # of local contrast normalisation, as a part of a view's side; 0: none
    config.data.train_size = 0  # px, of the augmented views it is trained on; 0: image_size
    config.data.balance = "sampling"  # none | loss (weights) | sampling (a third of each class) | smote
    config.data.resident = "auto"  # true: on every device | false: decoded as needed | auto: true where they fit

    config.model = ConfigDict()
    config.model.architecture = "cnn"  # a key of model.registry.ARCHITECTURES
    config.model.options = ConfigDict()  # the architecture's own attributes
    config.model.options.dropout = 0.2

    config.augment = ConfigDict()
    config.augment.crop_area_min = 0.2  # smallest part of the film's area that a crop keeps; 1: no crops
    config.augment.crop_log_aspect = 0.5  # bound on the log of the crop's aspect
    config.augment.rotation_degrees = 12.0
    config.augment.log_zoom = 0.1  # bound on the log of the zoom
    config.augment.shift = 0.05  # bound, in halves of the film's side
    config.augment.flip_probability = 0.0  # a mirrored heart is rare: 0.5 only where it is known to help
    config.augment.log_gamma = 0.4
    config.augment.s_curve = 0.6  # bound on how much steeper or flatter middle grays become; below 1 they keep order
    config.augment.log_contrast = 0.3
    config.augment.brightness = 0.1  # bound, of pixels in [0, 1]
    config.augment.shading = 0.2  # bound on what an uneven exposure adds, of pixels in [0, 1]: two slopes and a bowl
    config.augment.log_detail = 1.0  # bound on the log of the contrast of details, of any scale; half of it downwards
    config.augment.blur_px = 2.5  # largest standard deviation of a Gaussian blur; half are below a quarter
    config.augment.noise = 0.04  # largest standard deviation, of pixels in [0, 1]
    config.augment.erase_probability = 0.25  # of each corner
    config.augment.erase_side = 0.25  # largest side of an erased corner, of the film's
    config.augment.collimation = 0.12  # widest black strip along a side, of the view's; a quarter of the sides have one
    config.augment.framed = 0.15  # of the views, those with strips along all four sides
    config.objective = "supervised"  # supervised | contrastive (jobs/pretrain.py: two views of a film, no labels)
    config.temperature = 0.2  # of the contrastive cosines
    config.mixup_alpha = 0.2  # 0: off
    config.label_smoothing = 0.05
    config.head_l2 = 0.0  # on the kernels of the head, in the loss

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw | sgd | muon (convolutions by orthogonalised momentum, the rest by Adam)
    config.optimizer.learning_rate = 2e-3  # at the peak
    config.optimizer.schedule = "cosine"  # cosine | constant, both after the warm-up
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.momentum = 0.9  # of sgd
    config.optimizer.weight_decay = 0.05  # never on BatchNorm or biases
    config.optimizer.clip_norm = 1.0  # of the global gradient; 0: off
    config.optimizer.plateau_factor = 1.0  # multiplies the rate when the selection metric stalls; 1: off
    config.optimizer.plateau_patience = 5  # epochs
    config.ema_decay = 0.998  # of the parameters that are evaluated and served; 0: the raw ones

    config.select = ConfigDict()
    # A val_ figure of log.jsonl, for the best checkpoint, the plateau and the early stop; of val_loss and val_ece the
    # lowest is the best, of the others the highest
    config.select.metric = "val_loss"
    config.early_stopping_epochs = 0  # without a new best; 0: off
    config.max_skipped_steps = 20  # in a row whose loss or gradient is not finite; then training stops
    return config
