"""A network filled with weights from elsewhere, and an account of what was filled with what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from model import checkpoint
from model.weights import WeightsError
from model.weights.convert import TIMM, convert, is_head
from model.weights.source import Source


class Filled(NamedTuple):
    """A network's variables, and where they are from."""

    variables: dict[str, Any]  # {"params", "batch_stats"}, numpy float32
    # JSON: the facts of the source; `new`, `left_out`, `mean` and `std`, as Converted has them; of a checkpoint out of
    # which films it `learnt`, and its own `origin`
    origin: dict[str, Any]


def fill(source: Source, architecture: str, variables: Mapping[str, Any]) -> Filled:
    """Lays weights into a network: all of its backbone, and of its head what fits.

    Args:
      source: the weights.
      architecture: of the network.
      variables: the freshly initialised {"params", "batch_stats"} of the network.

    Raises:
      WeightsError: they do not fit; every mismatch is named.
    """
    filled = _foreign if source.meta is None else _own
    return filled(source, architecture, variables)


def _foreign(source: Source, architecture: str, variables: Mapping[str, Any]) -> Filled:
    """Of other libraries."""
    facts = source.facts
    converted = convert(architecture, source.arrays, variables, facts.get("mean"), facts.get("std"))
    if "network" in facts and not re.fullmatch(TIMM[architecture], facts["network"]):
        raise WeightsError(
            f"{facts['from']}: the config.json beside it says that it is timm's {facts['network']}, which computes "
            f"otherwise than {architecture} does from arrays of the same shapes; give other weights, such as those in "
            f"configs/{architecture}.py"
        )
    normalisation = {name: np.atleast_1d(getattr(converted, name)).tolist() for name in ("mean", "std")}
    origin = facts | normalisation | {"new": converted.new, "left_out": converted.left_out}
    return Filled(converted.variables, origin)


def _own(source: Source, architecture: str, variables: Mapping[str, Any]) -> Filled:
    """Of this project: every array of the backbone, and the head where all of it fits."""
    spec, meta, arrays = source.facts["from"], source.meta, source.arrays
    assert meta
    if meta["architecture"] != architecture:
        raise WeightsError(
            f"{spec} is a {meta['architecture']}, {architecture} is needed; give another run, or "
            f"--config.model.architecture={meta['architecture']}"
        )
    ours = checkpoint.to_arrays(variables)
    mine, theirs = (
        {name: known[name].shape for name in known if is_head(name.partition("/")[2])} for known in (ours, arrays)
    )
    new: list[str] = []
    left_out: list[str] = []
    if mine != theirs:
        kept = {name: array for name, array in arrays.items() if name not in theirs}
        arrays = kept | {name: ours[name] for name in mine}
        new = [name.removeprefix("params/") for name in mine if name.startswith("params/")]
        left_out = list(theirs)
    try:
        filled = checkpoint.from_arrays(dict(variables), arrays)
    except checkpoint.CheckpointError as error:
        raise WeightsError(f"{spec}, with the options {meta['options']}: {error}") from error
    films, held_out = meta["dataset"], meta["config"]["data"]
    learnt = {name: films[name] for name in ("name", "fingerprint", "citation")}
    learnt |= {name: held_out.get(name, 0) for name in ("folds", "fold")}  # 0 of a run of before there were folds
    # It may not have begun at random, either.
    before = {"learnt": learnt, "origin": meta.get("origin")}
    return Filled(filled, source.facts | {"new": new, "left_out": left_out} | before)
