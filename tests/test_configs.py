"""Every config can be run: it is within bounds, its network can be built, and its phases train something."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jobs.training import trainable
from jobs.training.plan import check, epochs, phases, plain
from model.registry import build
from model.weights.convert import FORMATS

ROOT = Path(__file__).parents[1]
NO_RECIPES = ("__init__", "base", "adam")
CONFIGS = [path.relative_to(ROOT) for path in sorted((ROOT / "configs").rglob("*.py")) if path.stem not in NO_RECIPES]


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_config_can_be_run(path):
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    config = module.get_config()
    check(config)
    assert f"--config {path}" in module.__doc__  # the command
    network = build(config.model.architecture, plain(config.model.options), config.dtype)
    size = config.data.image_size
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 1)))["params"]
    assert all(trainable.select(phase.trainable, params) for phase in phases(config))
    assert epochs(config) >= 10
    if config.init_from:
        assert config.model.architecture in FORMATS


def test_what_a_config_changes_is_its_own():
    one, other = (importlib.import_module("configs.resnet").get_config() for _ in range(2))
    one.phases[0].epochs, one.model.options.head = 1, (8,)
    assert other.phases[0].epochs == 5 and other.model.options.head == ()
