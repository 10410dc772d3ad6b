"""Lists the architectures: how large they are, what they cost, and whose weights they take.

    python jobs/models.py

A row shows, of an architecture with the options it has unless a config says otherwise:

- parameters, with our three classes, and those of the published network, with three colours and 1000 classes;
- GFLOP to read one film of 224 x 224 px: two for each multiply-add of a convolution or dense layer, counted from the
  shapes of its kernel and output as JAX traces the network. BatchNorm, activations and pooling are not counted, and
  the padding of a convolution is, as the literature does it. Training a film takes about three times as much;
- the grid of features at 224 px, which is that of the heat maps, and their channels;
- the libraries whose weights it can start from. Without any it starts from random numbers, as the cnn always does.

The name is what a config's model.architecture takes; "vgg, batch_norm" is vgg with batch_norm=True in model.options.
Nothing is computed or downloaded: it takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jobs import run
from model import registry
from model.labels import CLASSES
from model.weights.convert import SOURCES

SIZE_PX = 224
# What is shown beside the defaults: options that another set of published weights needs.
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {"vgg": [{"batch_norm": True}]}


class Row(NamedTuple):
    """What is known of an architecture."""

    name: str
    parameters: int
    published: int | None  # of the network whose weights are read; None where there is none
    gflop: float  # a film
    features: tuple[int, ...]  # (h, w, C)
    sources: tuple[str, ...]


def main() -> None:
    console = Console(markup=False)
    shown = [(name, options) for name in registry.ARCHITECTURES for options in ({}, *VARIANTS.get(name, ()))]
    console.print(table([describe(*each) for each in track(shown, "counting", console=console, transient=True)]))
    console.print("Of the reference: as published, with three colours and 1000 classes.", style="dim")


def describe(name: str, options: Mapping[str, Any]) -> Row:
    """Counts an architecture, without running it."""
    module = registry.build(name, options)
    image = jax.ShapeDtypeStruct((1, SIZE_PX, SIZE_PX, 1), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    features = jax.eval_shape(lambda v, x: module.apply(v, x, method="features"), variables, image)
    kernels = dict(_kernels(variables["params"]))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Row(
        name=name + "".join(f", {key}" for key in options),
        parameters=parameters,
        published=_published(kernels, parameters) if name in SOURCES else None,
        gflop=2e-9 * multiply_adds(module, variables, image),
        features=features.shape[1:],
        sources=SOURCES.get(name, ()),
    )


def multiply_adds(module: nn.Module, variables: Mapping[str, Any], image: jax.ShapeDtypeStruct) -> int:
    """Products of all convolutions and dense layers of one film: each weight takes part once for each place."""

    def watched(v, x):
        return module.apply(v, x, capture_intermediates=True, mutable=["intermediates"])[1]["intermediates"]

    kernels = dict(_kernels(variables["params"]))
    total = 0
    for path, output in jax.tree_util.tree_leaves_with_path(jax.eval_shape(watched, variables, image)):
        layer = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/__call__/0")
        if layer in kernels:
            total += math.prod(output.shape[1:-1]) * math.prod(kernels[layer])
    return total


def table(rows: list[Row]) -> Table:
    """The rows for a terminal."""
    shown = Table(
        title=f"architectures, at {SIZE_PX} px",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    shown.add_column("architecture", no_wrap=True)
    for number in ("parameters", "of the\nreference", "GFLOP", "features"):
        shown.add_column(number, justify="right", no_wrap=True)
    shown.add_column("weights from")
    for row in rows:
        shown.add_row(
            row.name,
            f"{row.parameters:,}",
            "" if row.published is None else f"{row.published:,}",
            f"{row.gflop:.2f}",
            " x ".join(map(str, row.features)),
            "\n".join(row.sources) or "none",
        )
    return shown


def _kernels(params: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layer, _, kind = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")
        if kind == "kernel":
            yield layer, leaf.shape


def _published(kernels: Mapping[str, tuple[int, ...]], parameters: int) -> int:
    """Parameters with a third plane in the first kernel, and 1000 classes, each with a bias."""
    side, _, _, filters = kernels["stem/conv" if "stem/conv" in kernels else "stage1/conv1"]
    inputs, classes = kernels["head/logits"]
    assert classes == len(CLASSES)
    return parameters + side * side * filters + (1000 - classes) * (inputs + 1)


if __name__ == "__main__":
    run(main)
