"""The pmapped step: the same on any number of devices, honest about what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from configs import base
from jobs import JobError
from jobs.training import loop, plan, steps
from jobs.training.data import Films, from_memory, one_hot
from model import checkpoint
from model.preprocess import to_input
from model.registry import build
from tests.model.test_architectures import TINY

DEVICES = (1, 2, 4, 8)
LABELS = np.arange(24, dtype=np.int32) % 3
IMAGES = (np.random.default_rng(0).normal(110, 40, (24, 64, 64)) + 25 * LABELS[:, None, None]).clip(0, 255)
IMAGES = IMAGES.astype(np.uint8)


def config(**changes):
    made = base.get_config()
    made.epochs = 4
    made.global_batch_size = 16
    made.sync_batch_norm = "true"
    made.data.image_size = 32
    made.model.options.widths = (4, 8)
    made.model.options.blocks = (1, 1)
    made.model.options.dropout = 0.5
    made.optimizer.warmup_epochs = 0.0
    made.update(changes)
    return made


def plain(**changes):
    """Without augmentation and mixup, which take seconds to compile."""
    made = config(mixup_alpha=0.0, label_smoothing=0.0)
    made.augment.update(dict.fromkeys(made.augment, 0.0) | {"crop_area_min": 1.0})
    made.update(changes)
    return made


def run(made, devices: int, count: int, labels=LABELS, images=IMAGES):
    """`count` steps from the start: losses, the last state, the compiled pieces and the resident data."""
    chosen = jax.devices()[:devices]
    compiled = plan.compile_steps(made, labels, chosen)
    state = steps.replicate(compiled.state, chosen)
    resident = steps.replicate(Films(images, one_hot(labels)), chosen)
    layout = steps.layout(chosen)
    losses = []
    for step in range(count):
        state, metrics = compiled.phases[0].train_step(
            state, resident, layout.share(compiled.order.batch(step % compiled.order.steps_per_epoch))
        )
        losses.append(float(metrics["loss"]))
    return losses, state, compiled, resident


@pytest.fixture(scope="module")
def ten_steps():
    """Ten steps with everything random switched on, on 1, 2, 4 and 8 devices."""
    return {devices: run(config(), devices, 10) for devices in DEVICES}


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("devices", DEVICES[1:])
def test_devices_change_nothing_but_the_order_of_sums(ten_steps, devices):
    # Float32, SyncBN, dropout, augmentation and mixup on; learning rate 2e-3. The sums of gradients and of batch
    # statistics are taken in another order, and AdamW's division magnifies that: 1e-4 of the loss, 1e-3 of a parameter.
    losses, state, *_ = ten_steps[devices]
    expected, reference, *_ = ten_steps[1]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for name in ("params", "batch_stats", "ema"):
        np.testing.assert_allclose(flat(getattr(state, name)), flat(getattr(reference, name)), atol=1e-3)


def test_replicas_agree_exactly(ten_steps):
    state = ten_steps[8][1]
    for leaf in jax.tree.leaves(state):
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert len(others) == 7
        assert all((first == other).all() for other in others)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(optimizer):
    made = plain(epochs=100)
    made.optimizer.name = optimizer
    made.optimizer.learning_rate = 1e-2
    made.model.options.dropout = 0.0
    losses, *_ = run(made, 2, 60)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_the_state_has_no_device_axis(ten_steps):
    _, state, compiled, _ = ten_steps[8]
    assert int(state.step) == 10
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, compiled.state.params)


def test_without_sync_the_statistics_still_agree_between_devices():
    made = plain(sync_batch_norm="false")
    _, state, *_ = run(made, 4, 3)
    for leaf in jax.tree.leaves(state.batch_stats):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all((shards[0] == shard).all() for shard in shards)
    _, synced, *_ = run(plain(), 4, 3)
    assert np.abs(flat(state.batch_stats) - flat(synced.batch_stats)).max() > 1e-4


def test_ema_is_the_stated_average():
    made = plain(ema_decay=0.5)
    states = [run(made, 1, count)[1] for count in (1, 2)]
    first, second = (flat(state.params) for state in states)
    # Step 1 has decay min(.5, 2/11).
    expected = 2 / 11 * flat(states[0].ema["params"]) + 9 / 11 * second
    np.testing.assert_allclose(flat(states[1].ema["params"]), expected, atol=1e-6)
    assert np.abs(first - second).max() > 1e-4


def test_without_ema_the_raw_parameters_are_served():
    _, state, *_ = run(plain(ema_decay=0.0), 1, 3)
    assert (flat(state.ema["params"]) == flat(state.params)).all()


def test_mixup_smoothing_and_head_l2_change_the_loss():
    loss = run(plain(), 1, 1)[0][0]
    assert abs(run(plain(mixup_alpha=0.4), 1, 1)[0][0] - loss) > 1e-3
    assert abs(run(plain(label_smoothing=0.2), 1, 1)[0][0] - loss) > 1e-3
    assert run(plain(head_l2=1.0), 1, 1)[0][0] > loss + 1e-2


def test_classes_may_be_weighted_in_the_loss():
    labels = np.array([0] * 12 + [1] * 6 + [2] * 6, np.int32)
    made = plain(global_batch_size=24)
    made.data.balance = "none"
    even = run(made, 1, 1, labels=labels)[0][0]
    made.data.balance = "loss"
    weighted = run(made, 1, 1, labels=labels)[0][0]
    # The head starts near zero, so that every film's loss is close to log 3, and the weights have mean 1.
    assert weighted == pytest.approx(even, rel=0.2)
    assert weighted != even


def test_a_step_that_is_not_finite_changes_nothing_but_the_counter():
    _, before, compiled, resident = run(plain(), 2, 2)
    kept = jax.tree.map(np.array, before)
    poisoned = before.replace(params=jax.tree.map(lambda leaf: leaf * np.float32("nan"), before.params))
    after, metrics = compiled.phases[0].train_step(
        poisoned, resident, steps.layout(jax.devices()[:2]).share(compiled.order.batch(0))
    )
    assert float(metrics["skipped"]) == 1
    assert int(after.step) == 3
    assert (flat(after.ema) == flat(kept.ema)).all()
    assert (flat(after.opt_state) == flat(kept.opt_state)).all()
    assert (flat(after.batch_stats) == flat(kept.batch_stats)).all()


@pytest.mark.parametrize("devices", DEVICES)
def test_evaluation_counts_every_film_once(ten_steps, devices):
    _, state, compiled, resident = ten_steps[devices]
    feed = from_memory(resident, steps.layout(jax.devices()[:devices]))
    probabilities = softmax(loop.answers(compiled.eval_step, state.ema, feed, len(LABELS), 16), axis=1)
    module = build("cnn", {"widths": (4, 8), "blocks": (1, 1), "dropout": 0.5})
    logits = module.apply(jax.device_get(state.ema), to_input(IMAGES, 32))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=2e-5)


@pytest.mark.parametrize(
    "architecture",
    ["vgg", "densenet", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet", "resnetv2", "efficientnet"))],
)
def test_a_step_of_every_architecture(architecture):
    made = plain(global_batch_size=4)
    made.model.architecture, made.model.options = architecture, type(made)(TINY[architecture])
    losses, state, _, _ = run(made, 2, 2)
    assert np.isfinite(losses).all() and int(state.step) == 2
    begun = steps.create_variables(build(architecture, TINY[architecture]), made.seed, 32)
    before, after = (checkpoint.to_arrays(variables) for variables in (begun, state.variables))
    still = [name for name in before if (before[name] == after[name]).all()]
    assert not still  # every kernel and every statistic has moved


def test_a_batch_that_does_not_divide_names_both_numbers():
    with pytest.raises(JobError, match="global batch of 12 does not divide over 8 devices; .* multiple of 8"):
        plan.compile_steps(config(global_batch_size=12), LABELS, jax.devices())
    with pytest.raises(ValueError, match="12 does not divide over 8"):
        steps.layout(jax.devices()).share(np.zeros((12, 2), np.int32))


def test_a_batch_larger_than_the_data_is_named():
    with pytest.raises(JobError, match="a global batch of 32 is more than the 24 training films"):
        plan.compile_steps(config(global_batch_size=32), LABELS, jax.devices())


def test_every_step_and_every_seed_has_randomness_of_its_own():
    chosen, losses, state = jax.devices()[:1], {}, None
    films = steps.replicate(Films(IMAGES, one_hot(LABELS)), chosen)
    share = steps.layout(chosen).share(np.stack([np.arange(16)] * 2, axis=1).astype(np.int32))
    for seed in (0, 1):
        made = plain(seed=seed)
        made.augment.noise, made.model.options.dropout, made.optimizer.learning_rate = 0.3, 0.0, 0.0
        compiled = plan.compile_steps(made, LABELS, chosen)
        state = state or jax.device_get(compiled.state)  # the same weights, which do not move, and the same films
        moved = steps.replicate(state, chosen)
        for step in (0, 1):
            moved, found = compiled.phases[0].train_step(moved, films, share)
            losses[seed, step] = float(found["loss"])
    assert np.abs(np.subtract.outer([*losses.values()], [*losses.values()]))[~np.eye(4, dtype=bool)].min() > 1e-6


def test_a_gradient_that_is_not_finite_is_not_applied_though_the_loss_is():
    params, optimizer = {"head": {"weight": jnp.zeros(())}}, optax.sgd(0.1)

    def root(params, batch_stats, key, positions, films, indices):
        return jnp.sqrt(params["head"]["weight"]), {}

    step = steps.make_train_step(root, optimizer, frozenset({"head/weight"}), 0.0, 0, jax.devices()[:1])
    state = steps.create_state({"params": params, "batch_stats": {}}, optimizer.init(params))
    state, found = step(state, Films(np.zeros((1, 2, 2)), np.zeros((1, 3))), np.zeros((1, 1, 2), np.int32))
    assert float(found["loss"]) == 0 and float(found["skipped"]) == 1
    assert float(state.params["head"]["weight"]) == 0


def test_a_config_comes_down_to_its_order_its_size_and_its_norms(monkeypatch):
    labels, sizes = np.repeat([0, 1, 2], [36, 20, 8]).astype(np.int32), []
    viewed = plan.objectives.views
    monkeypatch.setattr(
        plan.objectives, "views", lambda *of, size, **how: [sizes.append(size), viewed(*of, size=size, **how)][1]
    )
    for balance, batch, auto in (("sampling", 64, False), ("none", 32, True)):
        made = plain(global_batch_size=batch, sync_batch_norm="auto")
        made.data.balance, made.data.train_size = balance, 40
        films = Films(np.zeros((64, 64, 64), np.uint8), one_hot(labels))
        chosen = jax.devices()[:2]
        compiled = plan.compile_steps(made, labels, chosen)
        assert compiled.synced == auto  # of 32 films a device BatchNorm has enough
        counts = np.bincount(labels[compiled.order.batch(0)[:, 0]], minlength=3)
        assert (np.ptp(counts) < 4) == (balance == "sampling")
        share = steps.layout(chosen).share(compiled.order.batch(0))
        compiled.phases[0].train_step(steps.replicate(compiled.state, chosen), steps.replicate(films, chosen), share)
    assert set(sizes) == {40}
