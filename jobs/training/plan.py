"""What a config comes down to: the order of the films, the first state, the compiled steps."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jobs import UsageError
from jobs.training import objectives, optim, steps, trainable
from jobs.training.data import Order
from model import registry
from model.labels import CLASSES
from model.preprocess import to_input

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
    "phases.epochs": (1, math.inf),
    "phases.learning_rate": (0, 1000),
    "phases.layer_decay": (0.01, 1),
    "phases.warmup_epochs": (0, math.inf),
    "global_batch_size": (1, math.inf),
    "data.folds": (0, math.inf),
    "data.fold": (0, math.inf),
    "data.image_size": (32, 1024),
    "data.train_size": (0, 1024),
    "data.side": (0.1, 1),
    "data.neighbourhood": (0, 1),
    "model.options.dropout": (0, 0.99),
    "augment.crop_area_min": (0.01, 1),
    "augment.crop_log_aspect": (0, 2),
    "augment.rotation_degrees": (0, 180),
    "augment.log_zoom": (0, 2),
    "augment.shift": (0, 1),
    "augment.flip_probability": (0, 1),
    "augment.log_gamma": (0, 3),
    "augment.s_curve": (0, 0.99),
    "augment.log_contrast": (0, 3),
    "augment.brightness": (0, 1),
    "augment.shading": (0, 1),
    "augment.log_detail": (0, 3),
    "augment.blur_px": (0, 20),
    "augment.noise": (0, 1),
    "augment.erase_probability": (0, 1),
    "augment.erase_side": (0, 1),
    "augment.collimation": (0, 0.45),
    "augment.framed": (0, 1),
    "temperature": (0.01, 10),
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

# Fields that are neither a number nor a choice among few; what `model.options` may hold, the architecture says.
OTHERS = ("phases", "phases.trainable", "init_from", "resume", "data.dir", "data.leave_out", "model.architecture")


class Phase(NamedTuple):
    """A part of the training that moves some of the parameters."""

    first_epoch: int  # from 0
    epochs: int
    trainable: str  # as the config says it
    trained: frozenset[str]  # paths of parameters
    learning_rate: optax.Schedule  # by step of the run
    begin: Callable[[Any], optax.OptState]  # params -> the optimizer state before the first step of the phase
    train_step: steps.TrainStep

    @property
    def end_epoch(self) -> int:
        return self.first_epoch + self.epochs


class Compiled(NamedTuple):
    """What a config comes down to on these devices."""

    order: Order
    phases: list[Phase]
    state: steps.State
    eval_step: steps.EvalStep
    synced: bool


def phases(config: ConfigDict) -> list[ConfigDict]:
    """Those of the config, or the one that all of it is."""
    if config.phases:
        return config.phases
    rates = {name: config.optimizer[name] for name in ("learning_rate", "schedule", "warmup_epochs")}
    return [ConfigDict({"epochs": config.epochs, "trainable": "all", "layer_decay": 1.0} | rates)]


def phase_of(planned: Sequence[Phase], epoch: int) -> Phase:
    """The one that an epoch, from 0, belongs to; beyond the last, as where a run was made shorter, that."""
    return next((phase for phase in planned if epoch < phase.end_epoch), planned[-1])


def epochs(config: ConfigDict) -> int:
    """Of all phases together."""
    return sum(phase.epochs for phase in phases(config))


def check(config: ConfigDict) -> None:
    """Raises UsageError for choices that no run can be made of."""
    choices = {
        "dtype": ("float32", "bfloat16"),
        "optimizer.name": tuple(optim.OPTIMIZERS),
        "optimizer.schedule": ("cosine", "constant"),
        "phases.schedule": ("cosine", "constant"),
        "sync_batch_norm": ("auto", "true", "false"),
        "objective": ("supervised", "contrastive"),
        "data.dataset": ("chest_xray", "phantom"),
        "data.balance": ("none", "loss", "sampling", "smote"),
        "data.resident": ("auto", "true", "false"),
        "select.metric": tuple(FIGURES),
    }
    fields = (*choices, *BOUNDS, *OTHERS)
    for name, value in flatten(plain(config)).items():
        field = re.sub(r"\[\d+\]", "", name)
        if field not in fields and not field.startswith("model.options."):
            alike = difflib.get_close_matches(field, fields, 1)
            meant = f"did you mean {alike[0]}?" if alike else "configs/base.py has all there are"
            raise UsageError(f"config.{name} is not a field of the config; {meant}")
        if field in choices and value not in choices[field]:
            raise UsageError(f"config.{name} is {value!r}; known: {', '.join(choices[field])}")
        low, high = BOUNDS.get(field, (value, value))
        if not low <= value <= high:
            bound = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise UsageError(f"config.{name} is {value}; it must be {bound}")
    try:
        re.compile(config.data.leave_out)
    except (re.error, OverflowError) as error:
        raise UsageError(
            f"config.data.leave_out is {config.data.leave_out!r}, which is no regular expression: {error}"
        ) from error
    folds, fold = config.data.folds, config.data.fold
    if folds == 1:
        raise UsageError("config.data.folds is 1; it must be 0, for the splits as prepared, or at least 2")
    if fold >= max(folds, 1):
        cure = f"it must be from 0 to {folds - 1}" if folds else "it needs config.data.folds, which is 0"
        raise UsageError(f"config.data.fold is {fold}; {cure}")
    if 0 < config.data.train_size < BOUNDS["data.image_size"][0]:
        raise UsageError(
            f"config.data.train_size is {config.data.train_size}; it must be 0, for image_size, or at least "
            f"{BOUNDS['data.image_size'][0]}"
        )
    for one in phases(config):
        if one.warmup_epochs >= one.epochs:
            raise UsageError(
                f"a warm-up of {one.warmup_epochs:g} epochs leaves nothing of a run or phase of {one.epochs}; "
                "lower warmup_epochs or raise epochs"
            )
    module = _network(config)
    size = config.data.image_size
    _check_size(module, min(size, config.data.train_size or size))
    params = jax.eval_shape(functools.partial(_variables, config, module))["params"]
    for one in phases(config):
        trainable.select(one.trainable, params)


def check_batch(config: ConfigDict, count: int, devices: int) -> None:
    """Raises UsageError where `devices` cannot share a batch of `count` training films."""
    if config.global_batch_size % devices:
        raise UsageError(
            f"a global batch of {config.global_batch_size} does not divide over {devices} devices; "
            f"set --config.global_batch_size to a multiple of {devices}"
        )
    if config.global_batch_size > count:
        raise UsageError(
            f"a global batch of {config.global_batch_size} is more than the {count} training films; "
            "lower --config.global_batch_size"
        )


def compile_steps(
    config: ConfigDict,
    labels: np.ndarray,
    devices: Sequence[jax.Device],
    resident: bool = True,
    collectives: bool = True,
) -> Compiled:
    """Unpacks a config into the order of the films, the first state and the compiled steps."""
    check_batch(config, len(labels), len(devices))
    balance = config.data.balance
    order = Order(tuple(labels.tolist()), config.seed, config.global_batch_size, balance == "sampling")
    share = config.global_batch_size // len(devices)
    synced = share < SYNC_BELOW if config.sync_batch_norm == "auto" else config.sync_batch_norm == "true"
    module = _network(config, axis_name=steps.AXIS, sync_batch_norm=synced)
    size = config.data.image_size
    train_size, neighbourhood = config.data.train_size or size, config.data.neighbourhood
    views = functools.partial(
        objectives.views, size=train_size, strength=config.augment.to_dict(), neighbourhood=neighbourhood
    )
    see = functools.partial(to_input, size=size, side=config.data.side, neighbourhood=neighbourhood)
    variables = _variables(config, module)
    answer: Callable[..., Any]
    if config.objective == "contrastive":
        objective = objectives.contrastive(module, config.temperature, views, steps.AXIS)
        answer = functools.partial(objectives.pooled, module)
    else:
        counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
        recipe = objectives.Recipe(
            mixup_alpha=config.mixup_alpha,
            label_smoothing=config.label_smoothing,
            class_weights=objectives.class_weights(counts) if balance == "loss" else (1.0,) * len(CLASSES),
            head_l2=config.head_l2,
        )
        objective = objectives.supervised(module, recipe, views)
        answer = module.apply
    params = variables["params"]
    planned: list[Phase] = []
    for settings in phases(config):
        first_epoch = planned[-1].end_epoch if planned else 0
        schedule = optim.schedule(
            settings.schedule,
            settings.learning_rate,
            warmup_steps=round(settings.warmup_epochs * order.steps_per_epoch),
            total_steps=settings.epochs * order.steps_per_epoch,
        )
        trained = trainable.select(settings.trainable, params)
        factors = trainable.rate_factors(params, settings.layer_decay)
        optimizer = optim.build(
            config.optimizer.name,
            schedule,
            config.optimizer.momentum,
            config.optimizer.weight_decay,
            config.optimizer.clip_norm,
            trainable.split(factors, trained)[0] if settings.layer_decay < 1 else None,
        )
        planned.append(
            Phase(
                first_epoch=first_epoch,
                epochs=settings.epochs,
                trainable=settings.trainable,
                trained=trained,
                learning_rate=functools.partial(_from, schedule, first_epoch * order.steps_per_epoch),
                begin=functools.partial(_begin, optimizer, trained),
                train_step=steps.make_train_step(
                    objective, optimizer, trained, config.ema_decay, config.seed, devices, resident, collectives
                ),
            )
        )
    return Compiled(
        order=order,
        phases=planned,
        state=steps.create_state(variables, planned[0].begin(params)),
        eval_step=steps.make_eval_step(answer, see, devices, resident),
        synced=synced,
    )


def _network(config: ConfigDict, **parallel: Any) -> nn.Module:
    try:
        return registry.build(config.model.architecture, config.model.options.to_dict(), config.dtype, **parallel)
    except ValueError as error:
        raise UsageError(f"config.model: {error}") from error


def _variables(config: ConfigDict, module: nn.Module) -> dict[str, Any]:
    """Those before the first step."""
    variables = steps.create_variables(module, config.seed, config.data.image_size)
    if config.objective == "contrastive":
        variables = objectives.contrastive_variables(module, variables, config.seed)
    return variables


def _check_size(module: nn.Module, size: int) -> None:
    """Raises UsageError where a film of `size` px is gone before the head."""
    film = jnp.zeros((1, size, size, 1))
    left, _ = jax.eval_shape(functools.partial(module.init_with_output, method="features"), jax.random.key(0), film)
    if 0 in left.shape:
        raise UsageError(
            f"nothing is left of a film of {size} px when the network has halved it so often; raise "
            "--config.data.image_size and train_size, or take fewer stages"
        )


def _begin(optimizer: optax.GradientTransformation, trained: frozenset[str], params: Any) -> optax.OptState:
    return optimizer.init(trainable.split(params, trained)[0])


def _from(schedule: optax.Schedule, first: int, step: int) -> Any:
    return schedule(step - first)


def plain(config: Any) -> Any:
    """A config as dicts, those within its lists, too."""
    if isinstance(config, ConfigDict):
        return {name: plain(value) for name, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, list) else config


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}, "c": [{"d": 2}]} -> {"a.b": 1, "c[0].d": 2}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, one in enumerate(value):
                flat |= flatten(one, f"{name}[{index}].")
        else:
            flat[name] = value
    return flat
