"""What a run begins with: weights of its own making, those from elsewhere, or its newest whole checkpoint."""

from __future__ import annotations

import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console

from jobs import JobError
from jobs.datasets import lineage
from jobs.evaluation.metrics import LOGGED_LOSSES
from jobs.training import journal, steps
from jobs.training.plan import FIGURES, Compiled, flatten, phase_of, plain
from model import checkpoint
from model.labels import CLASSES
from model.weights.fill import fill
from model.weights.source import Source

MAY_CHANGE = ("epochs", "early_stopping_epochs", "resume", "data.dir", "data.resident")  # when a run is resumed
# What a run did that was begun before there was such a field, or does since it is gone.
ABSENT = {
    "augment.framed": 0.15,  # of runs since f4abbd0, before which there were no such views
    "data.folds": 0,
    "data.fold": 0,
    "data.leave_out": "",
    "data.neighbourhood": 0.0,
    "init_from": "",
    "phases": [],
    "objective": "supervised",
    "temperature": 0.2,
    "teacher": "",
    "teacher_share": 0.5,
}


class Beginning(NamedTuple):
    """Where a run goes on from, or begins."""

    state: steps.State
    history: list[dict[str, Any]]  # the rows of log.jsonl
    losses: list[float]  # of the epoch begun
    origin: dict[str, Any] | None  # where the first weights came from; None: they were random


def begin(
    config: ConfigDict,
    workdir: Path,
    facts: dict[str, Any],
    compiled: Compiled,
    source: Source | None,
    console: Console,
) -> Beginning:
    """What the newest whole checkpoint holds, or what a new run begins with.

    Raises:
      JobError: there is a run in `workdir` of another config or other data, or it may not be resumed; or `source`
        learnt films that are held out here.
      WeightsError: the weights of `source` do not fit.
    """
    state = compiled.state
    if not checkpoint.steps(workdir):
        if not source:
            return Beginning(state, [], [], None)
        variables, origin = fill(source, config.model.architecture, state.variables)
        _check_held_out(config, facts, origin)
        console.print(journal.provenance(origin), soft_wrap=True)
        if lineage.unchecked(origin, facts):
            console.print(
                "its weights were trained on a separately prepared dataset with the same citation: whether they have "
                "seen films that are held out here is not checked, and reports will say so; if the films are others, "
                "prepare them with --citation",
                soft_wrap=True,
            )
        begun = steps.create_state(variables, compiled.phases[0].begin(variables["params"]))
        return Beginning(begun, [], [], origin)
    if not config.resume:
        raise JobError(
            f"{workdir} holds a run, and config.resume is False; give another --workdir, or leave out --config.resume"
        )
    loaded = checkpoint.load(workdir, "latest", train=True)
    _wait_for_all("loaded")
    if jax.process_index() == 0:
        for damaged in checkpoint.set_aside_damaged(workdir, loaded.step):
            console.print(f"a damaged checkpoint was moved to {damaged}", soft_wrap=True)
    _wait_for_all("set aside")
    changed = changes(config, loaded.meta)
    may_change = {*MAY_CHANGE, f"phases[{len(config.phases) - 1}].epochs"}
    refused = [change for name, change in changed.items() if name not in may_change]
    if refused:
        raise JobError(
            f"{workdir} holds a run of another config ({'; '.join(refused)}); give another --workdir, or the old values"
        )
    if changed:
        console.print(f"changed since the run began: {'; '.join(changed.values())}", soft_wrap=True)
    if loaded.meta["dataset"]["fingerprint"] != facts["fingerprint"]:
        raise JobError(
            f"{workdir} holds a run on other data than are in {config.data.dir} now; give another --workdir, or "
            f"prepare the same source again ({loaded.meta['dataset']['source']})"
        )
    stored = checkpoint.to_arrays({"ema": loaded.variables, **(loaded.train or {})})
    like = {
        "ema": state.ema,
        "params": state.params,
        "batch_stats": state.batch_stats,
        # A checkpoint at the end of a phase holds what that phase had.
        "opt_state": phase_of(compiled.phases, (loaded.step - 1) // compiled.order.steps_per_epoch).begin(state.params),
    }
    state = state.replace(step=np.int32(loaded.step), **checkpoint.from_arrays(like, stored))
    losses = [math.nan if loss is None else loss for loss in loaded.meta["losses"]]
    return Beginning(state, loaded.meta["history"], losses, loaded.meta.get("origin"))


def _check_held_out(config: ConfigDict, facts: dict[str, Any], origin: dict[str, Any]) -> None:
    mine = lineage.learnt(facts | {name: config.data[name] for name in ("folds", "fold")})
    for earlier in lineage.ancestors(origin):
        theirs = lineage.learnt(earlier)
        folded = config.data.folds or earlier["folds"]
        if folded and earlier["citation"] == facts["citation"] and theirs != mine:
            knows = "it knows" if earlier["fingerprint"] == facts["fingerprint"] else "it may know"
            raise JobError(
                f"config.init_from, {config.init_from}, learnt the films of {theirs}, and this run learns those of "
                f"{mine}; {knows} films that are held out here, so that no figure of them would be worth anything: "
                "begin with weights that held out the same, or with others"
            )


def changes(config: ConfigDict, meta: dict[str, Any]) -> dict[str, str]:
    """The fields in which `config` is not that of the checkpoint, each with what it says of it."""
    new = flatten(json.loads(json.dumps(plain(config))))  # tuples as lists
    old = flatten(meta["config"])
    if "select.mode" in old:  # once a field of its own
        new["select.mode"] = "min" if config.select.metric in LOGGED_LOSSES else "max"
    names = sorted(old.keys() | new.keys())
    pairs = {name: [fields.get(name, ABSENT.get(name)) for fields in (old, new)] for name in names}
    return {name: f"{name}: {one!r} -> {other!r}" for name, (one, other) in pairs.items() if one != other}


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def meta(
    config: ConfigDict,
    facts: dict[str, Any],
    history: list[dict[str, Any]],
    losses: list[float],
    origin: dict[str, Any] | None,
) -> dict[str, Any]:
    """What a checkpoint says of itself.

    `losses` are those of an epoch begun, None where a step was skipped; `origin` says where the first weights are from.
    """
    packages = ("pneumoscope", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "architecture": config.model.architecture,
        "options": config.model.options.to_dict(),
        "classes": list(CLASSES),
        "image_size": config.data.image_size,
        "side": config.data.side,
        "neighbourhood": config.data.neighbourhood,
        "storage_size": facts["storage_size"],
        "config": plain(config),
        "dataset": facts,
        "metrics": {name: history[-1][name] for name in ("train_loss", *FIGURES)} if history else {},
        "origin": origin,
        "epoch": len(history),
        "history": history,
        "losses": [None if math.isnan(loss) else loss for loss in losses],
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
