"""Training in phases: what rests does not move at all, costs no backward pass, and no phase is lost by going on."""

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs import base
from jobs import JobError, UsageError
from jobs.training import loop, plan, steps, trainable
from jobs.training.data import Films, one_hot
from model import checkpoint, layers
from model.preprocess import to_input
from model.registry import build
from tests.jobs.test_loop import config as small
from tests.jobs.test_loop import log, train

LABELS = np.arange(24, dtype=np.int32) % 3
IMAGES = np.random.default_rng(0).integers(0, 255, (24, 64, 64)).astype(np.uint8)
TREE = {
    "stem": {"conv": {"kernel": 0}, "norm": {"scale": 1}},
    "stage1": {"block1": {"conv1": {"kernel": 2}}},
    "stage2": {"block1": {"conv1": {"kernel": 3}}},
    "stage10": {"conv": {"kernel": 4}},
    "head": {"dense": {"kernel": 5, "bias": 6}},
}


@pytest.mark.parametrize(
    ("spec", "leaves"),
    [
        ("all", {0, 1, 2, 3, 4, 5, 6}),
        ("head", {5, 6}),
        ("stage10+", {4, 5, 6}),
        ("stage2+", {3, 4, 5, 6}),
        ("stage1", {2}),
        ("stem", {0, 1}),
        ("*/kernel", {0, 2, 3, 4, 5}),
        ("stage2/*, head/dense/bias", {3, 6}),
    ],
)
def test_what_a_phase_trains(spec, leaves):
    flat = flatten_dict(TREE, sep="/")
    assert {flat[path] for path in trainable.select(spec, TREE)} == leaves


@pytest.mark.parametrize("spec", ["stage3+", "stage3", "haed", "head,*/scales", ""])
def test_a_pattern_that_matches_nothing_is_refused(spec):
    wrong = spec.rpartition(",")[2]
    message = rf"trainable is '{spec}', .* no parameter is '{wrong}'; known: all, stem, stage1, stage2, stage10, head"
    with pytest.raises(UsageError, match=message.replace("*/", r"\*/").replace("+", r"\+")):
        trainable.select(spec, TREE)


def test_parts_make_the_whole_again():
    tree = {"params": {"a": {"b": 1, "c": 2}}, "batch_stats": {}}
    one, other = trainable.split(tree, {"params/a/c"})
    assert one == {"params": {"a": {"c": 2}}} and other == {"params": {"a": {"b": 1}}, "batch_stats": {}}
    assert trainable.merge(one, other) == tree


def test_learning_rates_fall_towards_the_stem():
    factors = flatten_dict(trainable.rate_factors(TREE, 0.5), sep="/")
    assert factors["head/dense/bias"] == 1 and factors["stage10/conv/kernel"] == 0.5
    assert factors["stage2/block1/conv1/kernel"] == 0.5**9 and factors["stem/conv/kernel"] == 0.5**11


def test_a_frozen_norm_works_as_in_inference():
    module = build("cnn", {"widths": (4, 8), "blocks": (1, 1), "dropout": 0.0})
    images = np.random.default_rng(1).normal(size=(4, 32, 32, 1)).astype(np.float32)
    variables = module.init(jax.random.key(0), images)
    norms = trainable.frozen_norms(variables["batch_stats"], [])
    assert "stage2/block1/shortcut_norm" in norms and len(norms) == 6
    with layers.norms_frozen(norms):
        frozen, updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(frozen, module.apply(variables, images))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), updated["batch_stats"], variables["batch_stats"]))
    with layers.norms_frozen(norms - {"stem/norm"}):
        partly, updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
    assert np.abs(partly - frozen).max() > 1e-3
    assert np.abs(updated["batch_stats"]["stem"]["norm"]["mean"]).max() > 0
    assert (updated["batch_stats"]["stage1"]["block1"]["norm1"]["mean"] == 0).all()


def config(*phases, **changes):
    made = base.get_config()
    made.global_batch_size = 12
    made.data.image_size = 32
    made.model.options.update({"widths": (4, 8), "blocks": (1, 1), "dropout": 0.0})
    made.augment.update(dict.fromkeys(made.augment, 0.0) | {"crop_area_min": 1.0})
    made.mixup_alpha = 0.0
    base.train_in(made, *phases)
    made.update(changes)
    return made


def take(made, devices, count, phase=0):
    """Variables and averages before and after `count` steps, and the last state."""
    chosen = jax.devices()[:devices]
    compiled = plan.compile_steps(made, LABELS, chosen)
    planned = compiled.phases[phase]
    before = compiled.state.replace(opt_state=planned.begin(compiled.state.params))
    # Averages that are not the values, so that moving them would show.
    before = jax.device_get(before.replace(ema=jax.tree.map(lambda leaf: leaf * 1.1, before.ema)))
    state, films = steps.replicate(before, chosen), steps.replicate(Films(IMAGES, one_hot(LABELS)), chosen)
    for step in range(count):
        state, _ = planned.train_step(state, films, steps.layout(chosen).share(compiled.order.batch(step)))
    state = jax.device_get(state)
    parts = [{"params": part.params, "batch_stats": part.batch_stats} for part in (before, state)]
    averages = [before.ema, state.ema]
    return *([flatten_dict(tree, sep="/") for tree in trees] for trees in (parts, averages)), state


@pytest.mark.parametrize(("spec", "rests"), [("head", ("stem", "stage1", "stage2")), ("stage2+", ("stem", "stage1"))])
def test_what_is_frozen_moves_by_exactly_nothing(spec, rests):
    # Three devices, since a mean of three equal numbers need not be that number.
    for before, after in take(config(base.phase(1, 1e-2, spec)), 3, 2)[:2]:
        for path in before:
            resting = path.split("/")[1] in rests
            assert (before[path] == after[path]).all() == resting, path


def test_what_begins_to_rest_is_trained_on_as_it_is_served(phantom_data, tmp_path):
    made = small(phantom_data, ema_decay=0.9)
    base.train_in(made, base.phase(1, 1e-2), base.phase(1, 1e-2, "head"))
    train(made, tmp_path)
    loaded = checkpoint.load(tmp_path, "latest", train=True)
    served, trained = (
        flatten_dict(tree, sep="/")
        for tree in (loaded.variables, {name: loaded.train[name] for name in ("params", "batch_stats")})
    )
    assert all((trained[path] == served[path]).all() == (path.split("/")[1] != "head") for path in served)


def test_the_head_is_trained_on_what_the_frozen_backbone_serves():
    made, chosen = config(base.phase(1, 1e-2, "head"), label_smoothing=0.0), jax.devices()[:1]
    compiled = plan.compile_steps(made, LABELS, chosen)
    batch, variables = compiled.order.batch(0), jax.device_get(compiled.state.variables)
    films = steps.replicate(Films(IMAGES, one_hot(LABELS)), chosen)
    _, measured = compiled.phases[0].train_step(compiled.state, films, steps.layout(chosen).share(batch))
    module = build("cnn", made.model.options.to_dict())
    logits = module.apply(variables, to_input(IMAGES[batch[:, 0]], 32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS[batch[:, 0]])
    np.testing.assert_allclose(measured["loss"], losses.mean(), rtol=1e-5)


@pytest.mark.parametrize(("optimizer", "trained"), [("adamw", "head"), ("muon", "head"), ("muon", "stage2+")])
def test_the_optimizer_keeps_nothing_of_what_is_frozen(optimizer, trained):
    made = config(base.phase(1, 1e-2, trained))
    made.optimizer.name = optimizer
    state = take(made, 1, 1)[2]
    # Muon's own three coefficients are of no parameter.
    names = [name for name, leaf in checkpoint.to_arrays(state.opt_state).items() if leaf.size > 3]
    parts = {part for part in ("stem", "stage1", "stage2", "head") if any(f"/{part}/" in name for name in names)}
    assert parts == {"head", "stage2"} - ({"stage2"} if trained == "head" else set()), names


def test_layer_decay_scales_the_update():
    def moved(decay):
        made = config(base.phase(1, 1e-2, layer_decay=decay))
        made.optimizer.weight_decay = 0.0
        (before, after), _, _ = take(made, 1, 1)
        return {path: after[path] - before[path] for path in before if path.startswith("params")}

    whole, decayed = moved(1.0), moved(0.5)
    for top, factor in {"head/dense/kernel": 1, "stage2/block1/conv1/kernel": 0.5, "stem/conv/kernel": 0.125}.items():
        np.testing.assert_allclose(decayed[f"params/{top}"], factor * whole[f"params/{top}"], rtol=1e-3, atol=1e-7)


def test_what_is_frozen_costs_no_backward_pass():
    made = config(base.phase(1, 1e-2, "head"), base.phase(1, 1e-2))
    made.model.options.update({"widths": (16, 32), "blocks": (2, 2)})
    made.ema_decay = 0.0
    chosen = jax.devices()[:1]
    compiled = plan.compile_steps(made, LABELS, chosen)
    films, batch = Films(IMAGES, one_hot(LABELS)), steps.layout(chosen).share(compiled.order.batch(0))
    flops = []
    for phase in compiled.phases:
        state = compiled.state.replace(opt_state=phase.begin(compiled.state.params))
        flops.append(phase.train_step.lower(state, films, batch).compile().cost_analysis()["flops"])
    assert flops[1] / flops[0] > 2.7  # forward is a third: the rest is the gradients of inputs and of kernels


def in_phases(data, **changes):
    made = small(data)
    base.train_in(made, base.phase(2, 1e-2, "head", schedule="constant"), base.phase(3, 1e-3, warmup_epochs=1.0))
    made.update_from_flattened_dict(changes)
    return made


@pytest.fixture(scope="module")
def straight(phantom_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, train(in_phases(phantom_data), workdir)


def test_each_phase_has_its_own_rate_and_is_announced(straight):
    workdir, printed = straight
    rows = log(workdir)
    assert [row["phase"] for row in rows] == [1, 1, 2, 2, 2]
    # The rate of the last of an epoch's three steps; the cosine ends at a hundredth of the peak one step later.
    np.testing.assert_allclose([row["learning_rate"] for row in rows[:3]], [1e-2, 1e-2, 1e-3 * 2 / 3], rtol=1e-6)
    assert rows[4]["learning_rate"] < rows[3]["learning_rate"] < 1e-3
    assert "phase 1 of 2, 2 epochs: trains head, 27 of" in printed  # 8 x 3 + 3
    assert "phase 2 of 2, 3 epochs: trains all" in printed and "epoch   5/5" in printed


@pytest.mark.parametrize("step", [2, 6, *(pytest.param(step, marks=pytest.mark.slow) for step in (8, 9))])
def test_going_on_within_a_phase_or_between_two(phantom_data, straight, tmp_path, monkeypatch, step):
    """Stopped after the 2nd of 6 steps of the first phase, after its last, and within and at an epoch of the second."""
    real, taken = loop._epoch, []

    def stopping(*arguments):
        def stop_there(done):
            taken.append(done)
            return len(taken) == step

        return real(*arguments[:-1], stop_there)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_epoch", stopping)
        assert f"after step {step} of 15" in train(in_phases(phantom_data), tmp_path)
    assert checkpoint.steps(tmp_path)[-1] == step
    train(in_phases(phantom_data), tmp_path)
    one, other = (checkpoint.load(folder, "latest", train=True) for folder in (tmp_path, straight[0]))
    assert one.meta["history"][-1]["val_loss"] == other.meta["history"][-1]["val_loss"]
    for name in ("variables", "train"):
        mine, theirs = (checkpoint.to_arrays(getattr(part, name)) for part in (one, other))
        assert mine.keys() == theirs.keys() and all((mine[key] == theirs[key]).all() for key in mine)


def test_the_last_phase_may_be_made_longer(phantom_data, tmp_path):
    train(in_phases(phantom_data), tmp_path)
    made = in_phases(phantom_data)
    made.phases[1].epochs = 4
    assert "changed since the run began: phases[1].epochs: 3 -> 4" in train(made, tmp_path)
    assert len(log(tmp_path)) == 6
    made.phases[0].epochs = 1
    with pytest.raises(JobError, match=r"another config \(phases\[0\].epochs: 2 -> 1"):
        train(made, tmp_path)


def test_only_the_last_phase_stops_early(phantom_data, tmp_path):
    made = small(phantom_data, early_stopping_epochs=1, **{"select.metric": "val_accuracy"})
    made.optimizer.plateau_factor, made.optimizer.plateau_patience = 0.5, 1
    base.train_in(made, *(base.phase(3, 1e-12, "head", schedule="constant") for _ in range(2)))  # nothing changes
    printed = train(made, tmp_path)
    rows = log(tmp_path)
    assert [row["phase"] for row in rows] == [1, 1, 1, 2, 2]
    assert "stopped early: no better val_accuracy in 1 epochs" in printed
    # A plateau is one of the phase, too.
    np.testing.assert_allclose([row["learning_rate"] for row in rows], [1e-12, 1e-12, 5e-13, 1e-12, 1e-12])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, r"config.phases\[1\].epochs is 0; it must be at least 1"),
        ("learning_rate", -1.0, r"config.phases\[1\].learning_rate is -1.0; it must be from 0 to 1000"),
        ("layer_decay", 1.5, r"config.phases\[1\].layer_decay is 1.5; it must be from 0.01 to 1"),
        ("warmup_epochs", 3.0, "a warm-up of 3 epochs leaves nothing of a run or phase of 3; lower warmup_epochs"),
        ("schedule", "linear", r"config.phases\[1\].schedule is 'linear'; known: cosine, constant"),
        ("trainable", "stage7+", "no parameter is 'stage7\\+'; known: all, stem, stage1, stage2, head"),
    ],
)
def test_a_phase_that_cannot_be(phantom_data, tmp_path, field, value, message):
    made = in_phases(phantom_data)
    made.phases[1][field] = value
    with pytest.raises(UsageError, match=message):
        train(made, tmp_path)
    assert not checkpoint.steps(tmp_path)
