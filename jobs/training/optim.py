"""Optimizers and learning rates, from optax."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
import optax.contrib

from jobs import UsageError

PLATEAU = "plateau_scale"
# Times the learning rate: that of muon's kernels, whose updates have singular values of about 1.
ORTHOGONAL = 30.0


def decayed(params: Any) -> Any:
    """A mask of the parameters that weight decay pulls on: kernels, never biases or BatchNorm."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def schedule(kind: str, learning_rate: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then a cosine to a hundredth of the peak, or constant.

    Raises:
      UsageError: unknown kind, or a warm-up as long as the run.
    """
    if warmup_steps >= total_steps:
        raise UsageError(
            f"a warm-up of {warmup_steps} steps leaves nothing of a run or phase of {total_steps}; lower warmup_epochs "
            "or raise epochs"
        )
    if kind == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup_steps else learning_rate,
            learning_rate,
            warmup_steps,
            total_steps,
            learning_rate * 1e-2,
        )
    if kind == "constant":
        return optax.warmup_constant_schedule(0.0 if warmup_steps else learning_rate, learning_rate, warmup_steps)
    raise UsageError(f"unknown schedule {kind!r}; known: cosine, constant")


def _muon() -> optax.GradientTransformation:
    """Orthogonalised momentum for the kernels of convolutions, as matrices of inputs by outputs, and Adam for the rest.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def as_matrices(kernels: Any) -> Any:  # (kernel_px, kernel_px, in, out)
        numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
        return jax.tree.map(lambda _: numbers, kernels)

    return optax.partition(
        {
            "convolution": optax.chain(
                optax.contrib.scale_by_muon(weight_dimension_numbers=as_matrices), optax.scale(ORTHOGONAL)
            ),
            "other": optax.scale_by_adam(),
        },
        lambda params: jax.tree.map(lambda leaf: "convolution" if leaf.ndim == 4 else "other", params),
    )


# By name, from the momentum of sgd: what the learning rate is multiplied by.
OPTIMIZERS: Mapping[str, Callable[[float], optax.GradientTransformation]] = {
    "adamw": lambda _: optax.scale_by_adam(),
    "sgd": lambda momentum: optax.trace(momentum, nesterov=True),
    "muon": lambda _: _muon(),
}


def build(
    name: str,
    learning_rate: optax.Schedule,
    momentum: float,
    weight_decay: float,
    clip_norm: float,
    rate_factors: Any = None,
) -> optax.GradientTransformation:
    """An optimizer whose updates `set_plateau_scale` can scale between epochs.

    Args:
      name: "adamw" (Loshchilov & Hutter 2019), "sgd" (with Nesterov momentum), or "muon" (`_muon`).
      learning_rate: by step.
      momentum: of sgd, in [0, 1).
      weight_decay: times the learning rate is taken from every kernel at each step, for sgd too.
      clip_norm: bound on the global norm of the gradient; 0 turns clipping off.
      rate_factors: a tree of what the learning rate of each parameter is multiplied by; None: all have the same.

    Raises:
      UsageError: unknown name.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        OPTIMIZERS[name](momentum),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate),
        optax.inject_hyperparams(lambda plateau_scale: optax.scale(plateau_scale))(plateau_scale=1.0),
        optax.stateless(lambda updates, _: jax.tree.map(operator.mul, updates, rate_factors))
        if rate_factors is not None
        else optax.identity(),
    )


def plateau_scale(scores: Sequence[float], factor: float, patience: int) -> float:
    """What the learning rate is multiplied by after epochs that scored thus: a pure function of the log.

    Args:
      scores: one an epoch, larger is better.
      factor: of each reduction, in (0, 1); 1 turns it off.
      patience: epochs without a new best before a reduction, at least 1.
    """
    best, waited, scale = float("-inf"), 0, 1.0
    for score in scores:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
        if waited >= patience:
            scale, waited = scale * factor, 0
    return scale


def set_plateau_scale(opt_state: optax.OptState, scale: Any) -> optax.OptState:
    """The optimizer state with its updates scaled from now on."""
    return optax.tree.set(opt_state, **{PLATEAU: scale})
