"""The compiled steps. The only file that knows pmap: replacing it is a change to this file alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jobs.training import trainable
from jobs.training.data import Films, Layout
from jobs.training.objectives import Objective
from model import layers

AXIS = "batch"


class State(flax.struct.PyTreeNode):
    """Everything a step changes. Replicated over the devices; it has no device axis."""

    step: jax.Array  # () int32, steps taken
    params: Any
    batch_stats: Any
    ema: Any  # {"params", "batch_stats"}: the averages that are evaluated and served
    opt_state: optax.OptState  # of the parameters that the phase trains, and of no others

    @property
    def variables(self) -> dict[str, Any]:
        """{"params", "batch_stats"}, as a network takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def begin_phase(state: State, trained: frozenset[str], opt_state: optax.OptState) -> State:
    """The state, on the host, before the first step of a phase: what the phase freezes is set to its average.

    Otherwise a head would be trained on the raw values of a frozen backbone and served with their average.
    """
    moves = trainable.moving(state.variables, trained)
    moving, _ = trainable.split(state.variables, moves)
    _, resting = trainable.split(state.ema, moves)
    return state.replace(opt_state=opt_state, **trainable.merge(moving, resting))


TrainStep = Callable[[State, Films, np.ndarray], tuple[State, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Films, np.ndarray], jax.Array]


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts a host tree on each of this process's devices once, without stacking copies on one of them first."""
    return jax.device_put(tree, NamedSharding(Mesh(np.asarray(local(devices)), (AXIS,)), PartitionSpec()))


def layout(devices: Sequence[jax.Device]) -> Layout:
    """Which rows of a global batch belong to this process's devices."""
    return Layout(len(devices), tuple(devices.index(device) for device in local(devices)))


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def create_variables(module: nn.Module, seed: int, image_size: int) -> dict[str, Any]:
    """{"params", "batch_stats"} before the first step: a pure function of the arguments."""
    images = jnp.zeros((1, image_size, image_size, 1))
    return {"batch_stats": {}} | jax.jit(module.init)(jax.random.key(seed), images)


def create_state(variables: Mapping[str, Any], opt_state: optax.OptState) -> State:
    """The state before the first step."""
    return State(
        step=jnp.zeros((), jnp.int32),
        **variables,
        # A copy, since the state is donated and no buffer can be donated twice.
        ema=jax.tree.map(jnp.copy, dict(variables)),
        opt_state=opt_state,
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    trained: frozenset[str],
    ema_decay: float,
    seed: int,
    devices: Sequence[jax.Device],
    resident: bool = True,
    collectives: bool = True,
) -> TrainStep:
    """Compiles one training step over the devices of all processes.

    It moves the parameters whose paths are in `trained`. Those before the first of them take no backward pass, and
    BatchNorm of which nothing is trained works as in inference.

    The step takes (state, films, indices (local devices, share, 2) int32): the film, and the one it is mixed with. The
    films are a whole split on every device, or, where not `resident`, those of this batch with a leading axis of
    local devices. Without `collectives` each device goes its own way, which is no training, but measures their cost.

    Everything random about the example at global position p of step s is keyed by (seed, s, p), so the number of
    devices changes nothing but the order of sums. A step whose loss or gradient is not finite changes nothing but
    the step counter. The state is donated.

    Args:
      objective: what it minimises.
      optimizer: whose state the state holds.
      trained: paths of parameters.
      ema_decay: of the averages, in [0, 1); 0 serves the raw parameters.
      seed: of all that is random.
      devices: of all processes.
      resident: whether the films are a whole split.
      collectives: whether the devices share what they find.

    Returns:
      A function (state, data, indices) -> (state, metrics), metrics being float32 scalars: loss, grad_norm, and
      skipped (1 where the step was not finite).
    """

    def step(state: State, data: Films, indices: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        share = indices.shape[0]
        positions = jax.lax.axis_index(AXIS) * share + jnp.arange(share)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        before = state.variables
        moves = trainable.moving(before, trained)
        moving, resting = trainable.split(state.params, trained)

        def loss_of(moving: Any) -> tuple[jax.Array, Any]:
            with layers.norms_frozen(trainable.frozen_norms(state.batch_stats, trained)):
                params = trainable.merge(moving, resting)
                return objective(params, state.batch_stats, key, positions, data, indices)

        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(moving)
        if collectives:
            loss, batch_stats, gradients = jax.lax.pmean((loss, batch_stats, gradients), AXIS)
        grad_norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, moving)
        params = trainable.merge(optax.apply_updates(moving, updates), resting)
        # What is frozen is carried over, not averaged: a mean of equal numbers need not be that number.
        fresh, _ = trainable.split({"params": params, "batch_stats": batch_stats}, moves)
        average, rested = trainable.split(state.ema, moves)
        now = trainable.merge(fresh, trainable.split(before, moves)[1])
        # At first the average reaches back over a ninth of the steps, so that the initial values are soon forgotten.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = trainable.merge(optax.incremental_update(fresh, average, step_size=1 - decay), rested)
        taken = State(state.step, **now, ema=ema, opt_state=opt_state)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), taken, state)
        metrics = {"loss": loss, "grad_norm": grad_norm, "skipped": 1.0 - finite}
        return kept.replace(step=state.step + 1), metrics

    return jax.pmap(
        step,
        axis_name=AXIS,
        devices=devices,
        in_axes=(None, None if resident else 0, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )


def make_idle_step(devices: Sequence[jax.Device]) -> TrainStep:
    """Compiles a step that only counts: the time it takes is what calling any step costs."""

    def step(state: State, data: Films, indices: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        del data, indices
        return state.replace(step=state.step + 1), {"loss": jnp.zeros(())}

    return jax.pmap(
        step, axis_name=AXIS, devices=devices, in_axes=(None, None, 0), out_axes=(None, None), donate_argnums=0
    )


def make_eval_step(
    answer: Callable[..., Any],
    see: Callable[[jax.Array], jax.Array],
    devices: Sequence[jax.Device],
    resident: bool = True,
) -> EvalStep:
    """Compiles evaluation: (variables, films, indices (local devices, share)) -> (devices, share, K) answers.

    `see` takes (share, S, S) uint8 films and gives the network's inputs, of which, and of variables, `answer` gives
    (share, K). The films are as those of a training step. The answers of all devices are gathered, so that every
    process holds them.
    """

    def step(variables: Any, data: Films, indices: jax.Array) -> jax.Array:
        return jax.lax.all_gather(answer(variables, see(data.images[indices])), AXIS)

    return jax.pmap(step, axis_name=AXIS, devices=devices, in_axes=(None, None if resident else 0, 0), out_axes=None)
