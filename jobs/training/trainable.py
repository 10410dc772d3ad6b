"""Which parameters a phase trains. All others stay as they are, to the bit, and so do their BatchNorm statistics."""

from __future__ import annotations

import fnmatch
import functools
import operator
import re
from collections.abc import Container, Iterable
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jobs import UsageError

Tree = dict[str, Any]


def paths(params: Tree) -> list[str]:
    """Of every parameter, such as "stage1/block1/conv1/kernel"."""
    return list(flatten_dict(params, sep="/"))


def select(spec: str, params: Tree) -> frozenset[str]:
    """The paths of the parameters that `spec` names.

    Args:
      spec: "all"; "head"; "stage4+" for that stage and what follows it; or patterns of paths with commas between, in
        which * stands for anything: "stage4/*,head/*".
      params: of the network.

    Raises:
      UsageError: a pattern that matches no parameter.
    """
    known = paths(params)
    if spec == "all":
        return frozenset(known)
    chosen: set[str] = set()
    for pattern in (part.strip() for part in spec.split(",")):
        if from_stage := re.fullmatch(r"stage(\d+)\+", pattern):
            first, top = int(from_stage[1]), _depths(params)
            found = [path for path in known if top[_top(path)] >= first] if _top(pattern[:-1]) in top else []
        else:
            found = fnmatch.filter(known, f"{pattern}/*" if pattern in params else pattern)
        if not found:
            raise UsageError(
                f"trainable is {spec!r}, and no parameter is {pattern!r}; known: all, {', '.join(_depths(params))}, "
                f"stage2+ and the like, patterns such as '{known[0]}'"
            )
        chosen.update(found)
    return frozenset(chosen)


def split(tree: Tree, chosen: Container[str]) -> tuple[Tree, Tree]:
    """Two trees: of the leaves whose path is chosen, and of those whose path is not."""
    flat = flatten_dict(tree, keep_empty_nodes=True, sep="/")
    one, other = ({path: leaf for path, leaf in flat.items() if (path in chosen) is which} for which in (True, False))
    return unflatten_dict(one, sep="/"), unflatten_dict(other, sep="/")


def merge(one: Tree, other: Tree) -> Tree:
    """The inverse of `split`."""
    flat = (flatten_dict(part, keep_empty_nodes=True, sep="/") for part in (one, other))
    return unflatten_dict(functools.reduce(operator.or_, flat), sep="/")


def frozen_norms(batch_stats: Tree, trained: Iterable[str]) -> frozenset[str]:
    """The paths of the BatchNorm layers none of whose parameters is trained."""
    norms = {path.rpartition("/")[0] for path in paths(batch_stats)}
    return frozenset(norms - {path.rpartition("/")[0] for path in trained})


def moving(variables: Tree, trained: Iterable[str]) -> frozenset[str]:
    """The paths in {"params", "batch_stats"} of all that a step changes: what is trained, and its statistics."""
    frozen = frozen_norms(variables["batch_stats"], trained)
    stats = (path for path in paths(variables["batch_stats"]) if path.rpartition("/")[0] not in frozen)
    return frozenset([f"params/{path}" for path in trained] + [f"batch_stats/{path}" for path in stats])


def rate_factors(params: Tree, decay: float) -> Tree:
    """What each parameter's learning rate is multiplied by: decay ** (stages between it and the head).

    Layer-wise learning-rate decay: Clark et al. 2020 (ELECTRA), section 3.1; Howard & Ruder 2018, section 3.2.

    Args:
      params: of the network, all of them.
      decay: in (0, 1]; the head has 1, the last stage `decay`, the one before `decay ** 2`.
    """
    depths = _depths(params)
    last = max(depths.values())
    return unflatten_dict({path: decay ** (last - depths[_top(path)]) for path in paths(params)}, sep="/")


def _top(path: str) -> str:
    return path.partition("/")[0]


def _depths(params: Tree) -> dict[str, int]:
    """{"stem": 0, "stage1": 1, ..., "head": one more than the last stage}, for those that there are."""
    stages = {name: int(name.removeprefix("stage")) for name in params if re.fullmatch(r"stage\d+", name)}
    ends = {name: 0 if name == "stem" else max(stages.values()) + 1 for name in params if name not in stages}
    return dict(sorted((stages | ends).items(), key=lambda one: one[1]))
