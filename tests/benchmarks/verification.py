"""What the digests of a checkpoint cost: saving and loading with and without them, in one run.

python tests/benchmarks/verification.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from model import checkpoint, registry

ROUNDS = 5


def tree(name: str, size: int) -> dict:
    """Random parameters of a network, as numpy arrays."""
    module = registry.build(name, {})
    like = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 1), np.float32))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), like)


def seconds(variables: dict, folder: Path) -> tuple[float, float]:
    """Of saving, until it is on the disk, and of loading with what resuming needs."""
    train = {"params": variables["params"], "mu": variables["params"], "nu": variables["params"]}
    started = time.perf_counter()
    with checkpoint.Writer(folder) as writer:
        writer.save(1, variables, {}, train=train, score=1.0)
    saved = time.perf_counter()
    checkpoint.load(folder, train=True)
    return saved - started, time.perf_counter() - saved


def main() -> None:
    print("| network | MB | save, s | without digests | load, s | without digests |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, size in (("cnn", 112), ("resnet", 224)):
        variables = tree(name, size)
        times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for verified in (True, False):
                with (
                    tempfile.TemporaryDirectory() as folder,
                    mock.patch.object(checkpoint, "_digest", checkpoint._digest if verified else lambda array: ""),
                ):
                    times[verified].append(seconds(variables, Path(folder)))
        save, load = zip(*times[True], strict=True)
        plain_save, plain_load = zip(*times[False], strict=True)
        megabytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) * 4 / 1e6
        median = statistics.median
        print(
            f"| {name} | {megabytes:.0f} | {median(save):.2f} | {median(plain_save):.2f} | {median(load):.2f} | "
            f"{median(plain_load):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
