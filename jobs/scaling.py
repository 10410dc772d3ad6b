"""Measures what more devices and processes cost at the same global batch, and models what they gain on a cluster.

    python jobs/scaling.py --config configs/cnn.py --config.data.train_size=64 --config.global_batch_size=32 --out docs

Starts itself with 1, 2, 4 and 8 virtual devices and with 1, 2 and 4 processes on this machine's CPU, on random films.
Virtual devices share the cores, so that whatever they take beyond one device is overhead, or noise. Written to OUT:
scaling.md, with the model's assumptions, and scaling.png.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.progress import track

from jobs import JobError, UsageError, command, run, whole
from jobs.evaluation import plots
from jobs.evaluation.tables import markdown
from jobs.training import processes, steps
from jobs.training.data import Films, one_hot
from jobs.training.plan import check, check_batch, compile_steps
from model import registry
from model.labels import CLASSES
from model.preprocess import STORAGE_SIZE

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; its data are not read.")
_OUT = flags.DEFINE_string("out", None, "The folder for scaling.md and scaling.png.")
_MEASURE = flags.DEFINE_boolean("measure", False, "Measure on the devices of this process; print one line of JSON.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "With --measure: HOST:PORT where process 0 of several listens.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --measure: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --measure: which of them this is, from 0.")
flags.mark_flag_as_required("config")

PLACES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1))  # processes, devices of each
GPUS = (1, 2, 4, 8, 16, 32, 64)  # of the model
KINDS = ("idle", "no collectives", "pmean", "pmean and SyncBN")
ROUNDS, STEPS = 5, 5  # each round times every kind of step, so that a slow moment of the machine hits all of them


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the model assumes of a cluster; per GPU, in SI units."""

    flops: float = 990e12  # of an H200, bfloat16, dense, as its maker states
    utilisation: float = 0.3  # of that, by convolutions
    gpus_a_host: int = 8
    within: float = 450e9  # bytes/s each way, NVLink
    between: float = 50e9  # bytes/s, 400 Gbit/s for each GPU
    latency: float = 10e-6  # s, of one message
    call: float = 200e-6  # s a step that the host takes to start one
    decoded: float = 2000.0  # films/s a host's workers decode, where films are streamed


@dataclasses.dataclass(frozen=True)
class Network:
    """What the model knows of a network."""

    name: str
    parameters: int
    flops_an_image: float  # forward and backward
    batch: int  # films a step, over all GPUs


def seconds_a_step(network: Network, gpus: int, cluster: Cluster, streamed: bool) -> float:
    """Time of a step: the slower of computing and decoding, then one ring all-reduce of float32 gradients.

    A ring moves 2 (n - 1) / n of the bytes over its slowest link in 2 (n - 1) messages (Patarasuk and Yuan 2009,
    section 3). Nothing overlaps: what XLA hides behind the backward pass is not counted on.
    """
    share = math.ceil(network.batch / gpus)
    compute = share * network.flops_an_image / (cluster.flops * cluster.utilisation)
    hosts = math.ceil(gpus / cluster.gpus_a_host)
    decode = network.batch / (hosts * cluster.decoded) if streamed else 0.0
    bandwidth = cluster.within if hosts == 1 else cluster.between
    ring = 2 * (gpus - 1) / gpus * 4 * network.parameters / bandwidth + 2 * (gpus - 1) * cluster.latency
    return cluster.call + max(compute, decode) + ring


def measure(config: ConfigDict, devices: Sequence[jax.Device]) -> dict[str, float]:
    """Median ms of each kind of step; every process of the job calls this."""
    random = np.random.default_rng(0)
    count = 2 * config.global_batch_size
    labels = np.arange(count, dtype=np.int32) % len(CLASSES)
    images = random.integers(0, 255, (count, STORAGE_SIZE, STORAGE_SIZE), np.uint8)
    films = steps.replicate(Films(images, one_hot(labels)), devices)
    layout = steps.layout(devices)
    taken, states = {}, {}
    for kind in KINDS:
        made = copy.deepcopy(config)
        made.sync_batch_norm = "true" if kind.endswith("SyncBN") else "false"
        compiled = compile_steps(made, labels, devices, collectives=kind != "no collectives")
        last = compiled.phases[-1]  # which trains the most
        taken[kind] = steps.make_idle_step(devices) if kind == "idle" else last.train_step
        state = compiled.state.replace(opt_state=last.begin(compiled.state.params))
        states[kind] = steps.replicate(state, devices)
    indices = layout.share(compiled.order.batch(0))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(ROUNDS + 1):
        for kind in KINDS:
            started = time.perf_counter()
            for _ in range(STEPS):
                states[kind], result = taken[kind](states[kind], films, indices)
            jax.block_until_ready((states[kind], result))
            if turn > 0:  # the first compiles
                times[kind].append((time.perf_counter() - started) / STEPS * 1000)
    return {kind: statistics.median(values) for kind, values in times.items()}


def _spawn(count: int, devices: int) -> dict[str, float]:
    """Runs this file as `count` processes of `devices` virtual devices each; what process 0 measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    started = []
    for index in range(count):
        place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={index}"]
        words = [sys.executable, __file__, *sys.argv[1:], "--measure", *(place if count > 1 else [])]
        started.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise JobError(f"{count} processes of {devices} devices did not end well: {outputs[0][1].strip()[-500:]}")
    return json.loads(outputs[0][0].strip().splitlines()[-1])


def _network(name: str, options: dict[str, object], size: int, batch: int) -> Network:
    """Counts parameters and operations without running anything."""
    module = registry.build(name, options)
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    counted = jax.jit(module.apply).lower(variables, image).cost_analysis()
    assert counted, f"XLA of {jax.default_backend()} does not count operations"
    forward = counted["flops"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    # Backward computes two products for each of forward's: by the weights, and by the inputs.
    return Network(f"{name}, {size} px, {batch} films a step", parameters, 3 * forward, batch)


def document(
    typed: str,
    setting: str,
    measured: Mapping[str, Mapping[str, float]],
    networks: Sequence[Network],
    cluster: Cluster,
) -> str:
    """The contents of scaling.md."""
    first = measured["1 x 1"]["no collectives"]
    here = [
        ("processes x devices", *(f"{kind}, ms" for kind in KINDS), "pmean / no collectives of 1 x 1", "idle, of pmean")
    ]
    for place, row in measured.items():
        here.append(
            (
                place,
                *(f"{row[kind]:.1f}" for kind in KINDS),
                f"{row['pmean'] / first:.2f}",
                f"{100 * row['idle'] / row['pmean']:.1f} %",
            )
        )
    there = [
        ("network", "parameters", "GFLOP an image", "GPUs", "ms a step", "times one GPU", "efficiency", "streamed, ms")
    ]
    for network in networks:
        one = seconds_a_step(network, 1, cluster, False)
        for gpus in GPUS:
            seconds = seconds_a_step(network, gpus, cluster, False)
            there.append(
                (
                    network.name,
                    f"{network.parameters:,}",
                    f"{network.flops_an_image / 1e9:.2f}",
                    str(gpus),
                    f"{1000 * seconds:.2f}",
                    f"{one / seconds:.1f}",
                    f"{100 * one / seconds / gpus:.0f} %",
                    f"{1000 * seconds_a_step(network, gpus, cluster, True):.1f}",
                )
            )
    assumed = "\n".join(f"- `{field.name}` = {getattr(cluster, field.name):g}" for field in dataclasses.fields(cluster))
    return f"""# What more devices cost, and gain

    {typed}

![Measured overhead and modelled speed](scaling.png)

## Measured here

{setting}.

The global batch is the same everywhere, and virtual devices share the cores, so whatever is slower than the first row
is overhead, or noise: on one device the three training steps do the same work, so what they differ by in the first row
is chance. *Idle* is a step that only counts, with the same arguments: the cost of calling a parallel step.
*No collectives* is the training step with every device on its own, *pmean* adds the all-reduce of loss, statistics and
gradients, *SyncBN* one more in every BatchNorm, each way. Median of {ROUNDS} rounds of {STEPS} steps, every kind in
each round. Between processes the sums go through gloo, array by array: on a GPU, XLA joins them and NCCL moves them.

{markdown(here)}

## Modelled beyond

`seconds_a_step` in `jobs/scaling.py`: a step is the call, then the slower of computing and decoding, then a ring
all-reduce of float32 gradients that nothing hides. The global batch stays the same, so a GPU's share shrinks. Assumed,
not measured, in SI units (see `Cluster` for the meaning of each):

{assumed}

{markdown(there)}

The small network at its batch is done in well under a millisecond: calls and messages are all that is left, and more
GPUs make it slower. ResNet50 at 256 films gains from the GPUs of one host and loses to the slower link between hosts.
Use more for larger networks, larger batches, or one run each. Decoding limits a host as soon as films are streamed,
which is why they are resident wherever they fit.
"""


def main() -> None:
    config = _CONFIG.value
    if _MEASURE.value:
        told = processes.settings(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, {})
        with processes.joined(told):
            measured = measure(config, jax.devices())
            print(json.dumps(measured), flush=True)
        return
    if _OUT.value is None:
        raise UsageError("--out is missing; give the folder for scaling.md and scaling.png")
    check(config)
    for _, devices in PLACES:
        check_batch(config, 2 * config.global_batch_size, devices)
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    rows = {f"{count} x {devices}": _spawn(count, devices) for count, devices in track(PLACES, "measuring")}
    cluster = Cluster()
    networks = [
        _network("cnn", {}, 112, 64),
        _network("resnet", {}, 224, 256),
    ]
    modelled = {
        network.name: {
            gpus: seconds_a_step(network, 1, cluster, False) / seconds_a_step(network, gpus, cluster, False)
            for gpus in GPUS
        }
        for network in networks
    }
    setting = (
        f"{config.model.architecture} at {config.data.train_size or config.data.image_size} px, "
        f"{config.global_batch_size} films a step, "
        f"{os.cpu_count()} CPU cores, JAX {jax.__version__}"
    )
    with whole(out / "scaling.md") as path:
        path.write_text(document(command("scaling", *sys.argv[1:]), setting, rows, networks, cluster))
    with whole(out / "scaling.png") as path:
        plots.scaling(rows, modelled, path)
    print(f"{out / 'scaling.md'}\n{out / 'scaling.png'}")


if __name__ == "__main__":
    run(main)
