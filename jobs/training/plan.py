"""What a config comes down to: the order of the films, the first state, the compiled steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jobs import UsageError
from jobs.training import optim, steps
from jobs.training.data import Order
from model import registry
from model.labels import CLASSES

SYNC_BELOW = 32  # films a device: with fewer, BatchNorm's own statistics are too noisy

# What the log says of the held-out split after each epoch.
FIGURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "val_loss": lambda scores: scores["log_loss"],
    "val_accuracy": lambda scores: scores["accuracy"],
    "val_balanced_accuracy": lambda scores: scores["balanced_accuracy"],
    "val_macro_f1": lambda scores: scores["macro_f1"],
    "val_auroc": lambda scores: scores["auroc"],
    "val_ece": lambda scores: scores["ece"],
    "val_binary_accuracy": lambda scores: scores["binary"]["accuracy"],
    "val_binary_auroc": lambda scores: scores["binary"]["auroc"],
}


# Of every number in a config; NaN lies in none of them.
BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "epochs": (1, math.inf),
    "global_batch_size": (1, math.inf),
    "data.folds": (0, math.inf),
    "data.fold": (0, math.inf),
    "data.image_size": (32, 1024),
    "data.train_size": (0, 1024),
    "data.side": (0.1, 1),
    "model.options.dropout": (0, 0.99),
    "augment.crop_area_min": (0.01, 1),
    "augment.crop_log_aspect": (0, 2),
    "augment.rotation_degrees": (0, 180),
    "augment.log_zoom": (0, 2),
    "augment.shift": (0, 1),
    "augment.flip_probability": (0, 1),
    "augment.log_gamma": (0, 3),
    "augment.log_contrast": (0, 3),
    "augment.brightness": (0, 1),
    "augment.blur": (0, 1),
    "augment.noise": (0, 1),
    "augment.erase_probability": (0, 1),
    "augment.erase_side": (0, 1),
    "mixup_alpha": (0, 100),
    "label_smoothing": (0, 0.999),
    "head_l2": (0, math.inf),
    "optimizer.learning_rate": (0, 1000),
    "optimizer.warmup_epochs": (0, math.inf),
    "optimizer.momentum": (0, 0.9999),
    "optimizer.weight_decay": (0, 100),
    "optimizer.clip_norm": (0, math.inf),
    "optimizer.plateau_factor": (0.001, 1),
    "optimizer.plateau_patience": (1, math.inf),
    "ema_decay": (0, 0.99999),
    "early_stopping_epochs": (0, math.inf),
    "max_skipped_steps": (1, math.inf),
}


class Compiled(NamedTuple):
    """What a config comes down to on these devices."""

    order: Order
    learning_rate: optax.Schedule
    state: steps.State
    train_step: steps.TrainStep
    eval_step: steps.EvalStep
    synced: bool


def check(config: ConfigDict) -> None:
    """Raises UsageError for choices that no run can be made of."""
    choices = {
        "dtype": ("float32", "bfloat16"),
        "optimizer.name": ("adamw", "sgd"),
        "optimizer.schedule": ("cosine", "constant"),
        "sync_batch_norm": ("auto", "true", "false"),
        "data.dataset": ("chest_xray", "phantom"),
        "data.balance": ("none", "loss", "sampling"),
        "data.resident": ("auto", "true", "false"),
        "select.metric": tuple(FIGURES),
        "select.mode": ("min", "max"),
    }
    flat = flatten(config.to_dict())
    for name, known in choices.items():
        if flat[name] not in known:
            raise UsageError(f"config.{name} is {flat[name]!r}; known: {', '.join(known)}")
    for name, (low, high) in BOUNDS.items():
        if not low <= flat.get(name, low) <= high:
            raise UsageError(f"config.{name} is {flat[name]}; it must be from {low} to {high}")
    folds, fold = config.data.folds, config.data.fold
    if folds == 1:
        raise UsageError("config.data.folds is 1; it must be 0, for the splits as prepared, or at least 2")
    if fold >= max(folds, 1):
        cure = f"it must be from 0 to {folds - 1}" if folds else "it needs config.data.folds, which is 0"
        raise UsageError(f"config.data.fold is {fold}; {cure}")


def compile_steps(
    config: ConfigDict,
    labels: np.ndarray,
    devices: Sequence[jax.Device],
    resident: bool = True,
    collectives: bool = True,
) -> Compiled:
    """Unpacks a config into the order of the films, the first state and the compiled steps."""
    if config.global_batch_size % len(devices):
        raise UsageError(
            f"a global batch of {config.global_batch_size} does not divide over {len(devices)} devices; "
            f"set --config.global_batch_size to a multiple of {len(devices)}"
        )
    if config.global_batch_size > len(labels):
        raise UsageError(
            f"a global batch of {config.global_batch_size} is more than the {len(labels)} training films; "
            "lower --config.global_batch_size"
        )
    balance = config.data.balance
    order = Order(tuple(labels.tolist()), config.seed, config.global_batch_size, balance == "sampling")
    share = config.global_batch_size // len(devices)
    synced = share < SYNC_BELOW if config.sync_batch_norm == "auto" else config.sync_batch_norm == "true"
    try:
        module = registry.build(
            config.model.architecture,
            config.model.options.to_dict(),
            config.dtype,
            axis_name=steps.AXIS,
            sync_batch_norm=synced,
        )
    except ValueError as error:
        raise UsageError(f"config.model: {error}") from error
    learning_rate = optim.schedule(
        config.optimizer.schedule,
        config.optimizer.learning_rate,
        warmup_steps=round(config.optimizer.warmup_epochs * order.steps_per_epoch),
        total_steps=config.epochs * order.steps_per_epoch,
    )
    optimizer = optim.build(
        config.optimizer.name,
        learning_rate,
        config.optimizer.momentum,
        config.optimizer.weight_decay,
        config.optimizer.clip_norm,
    )
    counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
    recipe = steps.Recipe(
        augment=config.augment.to_dict(),
        mixup_alpha=config.mixup_alpha,
        label_smoothing=config.label_smoothing,
        class_weights=optim.class_weights(counts) if balance == "loss" else (1.0,) * len(CLASSES),
        head_l2=config.head_l2,
        ema_decay=config.ema_decay,
    )
    size = config.data.image_size
    return Compiled(
        order=order,
        learning_rate=learning_rate,
        state=steps.create_state(module, optimizer, config.seed, size),
        train_step=steps.make_train_step(
            module, optimizer, recipe, config.data.train_size or size, config.seed, devices, resident, collectives
        ),
        eval_step=steps.make_eval_step(module, size, config.data.side, devices, resident),
        synced=synced,
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
