"""The list of architectures: its numbers, and the command that shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jobs import models
from model import layers, registry

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "options", "published", "giga_multiply_adds", "of_a_colour"),
    [
        # What torchvision and timm publish, of three colours and 1000 classes.
        ("resnet", {}, 25_557_032, 4.089, 112 * 112 * 7 * 7 * 64),
        ("resnetv2", {}, 25_549_352, 4.11, 112 * 112 * 7 * 7 * 64),
        ("vgg", {}, 138_357_544, 15.47, 224 * 224 * 3 * 3 * 64),
        ("vgg", {"batch_norm": True}, 138_365_992, 15.47, 224 * 224 * 3 * 3 * 64),
        ("densenet", {}, 7_978_856, 2.834, 112 * 112 * 7 * 7 * 64),
        ("efficientnet", {}, 5_288_548, 0.386, 112 * 112 * 3 * 3 * 32),
    ],
)
def test_the_numbers_are_those_published(name, options, published, giga_multiply_adds, of_a_colour):
    row = models.describe(name, options)
    assert row.published == published
    # We see two planes, not three.
    assert row.gflop / 2 + of_a_colour / 1e9 == pytest.approx(giga_multiply_adds, rel=0.006)


def test_a_row_by_hand():
    row = models.describe("cnn", {})
    assert row == models.Row("cnn", 1_500_115, None, pytest.approx(row.gflop), (14, 14, 256), ())
    vgg = models.describe("vgg", {"batch_norm": True})
    assert (vgg.name, vgg.features, vgg.sources) == ("vgg, batch_norm", (14, 14, 512), ("timm", "torchvision"))


def test_multiply_adds_by_hand():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = layers.convolution(4, 3, stride=2, dtype=jnp.float32, name="conv")(x)  # 4 x 4 x (3 x 3 x 2 x 4)
            x = layers.Depthwise(5, name="depthwise")(x)  # 4 x 4 x (5 x 5 x 4)
            x = layers.convolution(6, 1, dtype=jnp.float32, name="pointwise")(x)  # 4 x 4 x (4 x 6)
            return nn.Dense(3, name="dense")(x.mean((1, 2)))  # 6 x 3

    image = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)
    variables = jax.eval_shape(Small().init, jax.random.key(0), image)
    assert models.multiply_adds(Small(), variables, image) == 16 * 72 + 16 * 100 + 16 * 24 + 18


def test_multiply_adds_are_what_the_compiler_counts():
    # XLA leaves out products with padding, and counts BatchNorm, ReLU and pooling.
    module = registry.build("resnet", {})
    image = jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    counted = jax.jit(module.apply).lower(variables, image).cost_analysis()["flops"]
    assert 2 * models.multiply_adds(module, variables, image) == pytest.approx(counted, rel=0.04)


def test_the_command_shows_every_architecture():
    environment = os.environ | {"XLA_FLAGS": "", "COLUMNS": "80"}
    command = [sys.executable, str(ROOT / "jobs/models.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = {re.split("  +", line.strip())[0]: line for line in lines if re.search(r"\d,\d{3}", line)}
    assert list(rows) == ["cnn", "resnet", "resnetv2", "vgg", "vgg, batch_norm", "densenet", "efficientnet"]
    # Eighty columns are enough.
    assert "…" not in done.stdout and max(map(len, lines)) <= 80
    for text in ("23,511,043", "25,557,032", "8.10", "7 x 7 x 2048", "timm"):
        assert text in rows["resnet"]
    after = lines[lines.index(rows["resnet"]) + 1 :]
    assert [line.strip() for line in after[:3]] == ["torchvision", "torchxrayvision", "transformers"]
    assert "none" in rows["cnn"]
    surplus = subprocess.run([*command, "resnet"], env=environment, capture_output=True, text=True, check=False)
    assert surplus.returncode == 2
    assert surplus.stderr == "error: 'resnet' is one word too many; a flag begins with --, and --help lists them\n"
