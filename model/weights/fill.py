"""A network filled with weights from elsewhere, and an account of what was filled with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from model import checkpoint
from model.weights import WeightsError
from model.weights.convert import Converted, convert
from model.weights.source import Source


class Filled(NamedTuple):
    """A network's variables, and where they are from."""

    variables: dict[str, Any]  # {"params", "batch_stats"}, numpy float32
    origin: dict[str, Any]  # JSON: the facts of the source; `new` and `left_out`, as Converted has them


def fill(source: Source, architecture: str, variables: Mapping[str, Any]) -> Filled:
    """Lays weights into a network: all of its backbone, and of its head what fits.

    Args:
      source: the weights.
      architecture: of the network.
      variables: the freshly initialised {"params", "batch_stats"} of the network.

    Raises:
      WeightsError: they do not fit; every mismatch is named.
    """
    spec, meta = source.facts["from"], source.meta
    if meta is None:
        mean, std = (source.facts.get(name) for name in ("mean", "std"))
        converted = convert(architecture, source.arrays, variables, mean, std)
    elif meta["architecture"] != architecture:
        raise WeightsError(
            f"{spec} is a {meta['architecture']}, {architecture} is needed; give another run, or "
            f"--config.model.architecture={meta['architecture']}"
        )
    else:
        try:
            converted = _own(source.arrays, variables)
        except checkpoint.CheckpointError as error:
            raise WeightsError(f"{spec}, with the options {meta['options']}: {error}") from error
    origin = source.facts | {"new": converted.new, "left_out": converted.left_out}
    if meta is not None:
        origin["origin"] = meta.get("origin")  # of a run that did not begin at random, either
    return Filled(converted.variables, origin)


def _own(arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> Converted:
    """Those of this project: every array of the backbone, and the head where all of it fits."""
    ours = checkpoint.to_arrays(variables)
    mine, theirs = ({name: known[name].shape for name in known if _is_head(name)} for known in (ours, arrays))
    if mine == theirs:
        return Converted(checkpoint.from_arrays(dict(variables), arrays), [], [])
    taken = {name: array for name, array in arrays.items() if name not in theirs} | {name: ours[name] for name in mine}
    new = [name.removeprefix("params/") for name in mine if name.startswith("params/")]
    return Converted(checkpoint.from_arrays(dict(variables), taken), new, list(theirs))


def _is_head(name: str) -> bool:
    """Whether an array is no part of the backbone; a backbone trained without labels has a projection."""
    return name.split("/")[1] in ("head", "projection")
