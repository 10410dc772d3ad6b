"""The checkpoint contract: what is saved, how the best is found, how it is verified.

A checkpoint directory holds Orbax steps, each with separate items, so that a reader takes only what it needs:
`variables` (the averaged parameters and BatchNorm statistics that are served), `train` (what resuming needs) and
`meta` (JSON). `meta` carries a sha256 of every array and of itself: Orbax restores a flipped bit without an error.
A bundle is the same directory with one step and no `train`; that of an ensemble holds one such folder a member.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

FORMAT = 1
ITEMS = ("variables", "train", "meta")
MEMBER = "member-"  # and a number: the folders of an ensemble
ATTRIBUTION = "ATTRIBUTION.md"  # of a bundle: whose data it was trained on
Tree = TypeVar("Tree")


class CheckpointError(Exception):
    """A checkpoint, or what lies beside it, cannot be read, written or used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One verified step: nested dicts of numpy arrays, and the JSON beside them."""

    step: int
    variables: dict[str, Any]
    train: dict[str, Any] | None
    meta: dict[str, Any]


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Any pytree -> {"path/of/leaf": array on the host}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def from_arrays(like: Tree, arrays: Mapping[str, np.ndarray]) -> Tree:
    """The inverse of `to_arrays`, into a tree shaped as `like`.

    Raises:
      CheckpointError: names or shapes differ; every mismatch is listed, in both directions.
    """
    expected = to_arrays(like)
    problems = [f"{name} is missing" for name in expected.keys() - arrays.keys()]
    problems += [f"{name} is not part of it" for name in arrays.keys() - expected.keys()]
    problems += [
        f"{name} is {arrays[name].shape}, {expected[name].shape} is needed"
        for name in expected.keys() & arrays.keys()
        if arrays[name].shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError("the stored arrays do not fit: " + "; ".join(sorted(problems)))
    leaves = [arrays[name].astype(leaf.dtype) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _nest(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    root: dict[str, Any] = {}
    for name, value in arrays.items():
        *parents, leaf = name.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return root


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def json_digest(values: Mapping[str, Any]) -> str:
    """sha256 of JSON values, but for one named `sha256`, which holds it."""
    rest = {key: value for key, value in values.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def weights_digest(meta: Mapping[str, Any]) -> str:
    """What tells the weights that are served from any others: the same in a run and in a bundle of it."""
    return json_digest({name: entry for name, entry in meta["arrays"].items() if name.startswith("variables/")})


def parameters(meta: Mapping[str, Any]) -> int:
    """How many numbers a network learns; statistics of BatchNorm are none of them."""
    return sum(
        math.prod(entry["shape"]) for name, entry in meta["arrays"].items() if name.startswith("variables/params/")
    )


def shared(meta: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself, but for where things lay on the machine that trained it."""
    config = dict(meta["config"])
    config["data"] = {key: config["data"][key] for key in config["data"] if key != "dir"}
    if "init_from" in config:
        config["init_from"] = _without_folder(config["init_from"])
    origin = {"origin": _origin(meta["origin"])} if "origin" in meta else {}
    return meta | {"config": config} | origin


def _without_folder(source: str) -> str:
    return source if "://" in source else Path(source).name


def _origin(origin: dict[str, Any] | None) -> dict[str, Any] | None:
    """Where weights came from, and where those did that they came from."""
    if origin is None:
        return None
    before = {"origin": _origin(origin["origin"])} if "origin" in origin else {}
    return origin | {"from": _without_folder(origin["from"])} | before


def attribution(metas: Iterable[Mapping[str, Any]]) -> str:
    """On what data the weights of some checkpoints were trained, under which licence, by whose work: the text of it."""
    datasets = {meta["dataset"]["name"]: meta["dataset"] for meta in metas}
    return "\n".join(
        f"Weights trained on `{name}`, licence {dataset['license']}.\n\n{dataset['citation']}\n"
        for name, dataset in datasets.items()
    )


class Writer:
    """Writes steps into a directory; keeps the latest two and the best one. Use as a context manager."""

    def __init__(self, directory: Path):
        def score(metrics: Any) -> float:
            return metrics["score"]

        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(2),
                checkpoint_managers.BestN(n=1, get_metric_fn=score, reverse=False),
            ]
        )
        try:
            os.fsencode(directory.resolve()).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{directory} has a name that is no UTF-8, by which no checkpoint is written; give another place"
            ) from error
        try:
            # Where it may not write, Orbax waits five minutes before it says so.
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
            self._manager = ocp.CheckpointManager(
                directory.resolve(),
                item_names=ITEMS,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=keep, best_fn=score, best_mode="max", cleanup_tmp_directories=True
                ),
            )
        except OSError as error:
            raise CheckpointError(f"{directory} cannot be written ({error}); mend it, or give another place") from error

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._failure_is_told():
                self._manager.wait_until_finished()
        except CheckpointError:
            if kind is None:  # else the error on its way out says more
                raise
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _failure_is_told(self) -> Iterator[None]:
        """What Orbax raises where it cannot write, some of it one save later, becomes a CheckpointError."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # a device or another process, not the disk
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise CheckpointError(
                f"a checkpoint could not be written to {self._manager.directory} ({reason}); free some room or mend "
                "its permissions. Steps saved before are whole"
            ) from error

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster wants the job to end, once all processes have taken this step; each asks at every one."""
        return self._manager.reached_preemption(step)

    def save(
        self, step: int, variables: Any, meta: Mapping[str, Any], train: Any = None, score: float = -math.inf
    ) -> None:
        """Saves one step.

        Args:
          step: larger than any saved before.
          variables: {"params", "batch_stats"}, what is served.
          meta: JSON values; `step`, `score`, `format`, digests are added.
          train: what resuming needs; None in a bundle.
          score: larger is better; a value that is not finite never becomes the best.

        Raises:
          CheckpointError: Orbax did not take the step (it exists, or a newer one does).
        """
        # A NaN would become "the best" and the real best be deleted; a numpy scalar would fail in the background.
        score = float(score) if math.isfinite(score) else -math.inf
        stored = {"variables": to_arrays(variables)} | ({} if train is None else {"train": to_arrays(train)})
        complete = dict(meta) | {
            "format": FORMAT,
            "step": int(step),
            "score": score if math.isfinite(score) else None,
            "arrays": {
                f"{item}/{name}": {
                    "shape": list(array.shape),
                    "dtype": str(array.dtype),
                    "sha256": _digest(array),
                }
                for item, arrays in stored.items()
                for name, array in arrays.items()
            },
        }
        complete = json.loads(json.dumps(complete))  # what a reader will see, tuples as lists
        complete["sha256"] = json_digest(complete)
        items = {item: ocp.args.StandardSave(_nest(arrays)) for item, arrays in stored.items()}
        with self._failure_is_told():
            taken = self._manager.save(
                step, args=ocp.args.Composite(meta=ocp.args.JsonSave(complete), **items), metrics={"score": score}
            )
        if not taken:
            raise CheckpointError(f"step {step} was not saved: it exists already, or a newer one does")


def is_step(name: str) -> bool:
    """Whether a folder of this name may hold a step."""
    return name.isascii() and name.isdecimal()


def steps(directory: Path) -> list[int]:
    """The finished steps of a directory, oldest first; whether they can be read is another matter."""
    try:
        if not directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in directory.iterdir() if is_step(entry.name) and entry.is_dir())
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read ({error.strerror}); mend its permissions") from error


def holds_steps(directory: Path) -> bool:
    """Whether a folder holds steps that were saved, not just folders named by numbers."""
    try:
        named = [entry for entry in directory.iterdir() if is_step(entry.name)]
    except OSError:  # it is not there, or may not be read: no checkpoint that could be opened
        return False
    return any(os.path.isdir(entry / "meta") for entry in named)  # noqa: PTH112  (is_dir raises where it may not look)


def claimed(place: Path) -> Path | None:
    """The run or bundle of which `place` is a step, or would be taken for one, or in a step of which it lies."""
    place = place.resolve()
    above = (folder.parent for folder in (place, *place.parents) if is_step(folder.name))
    return next(filter(holds_steps, above), None)


def load(directory: Path, which: Literal["best", "latest"] = "best", train: bool = False) -> Checkpoint:
    """Loads and verifies a step; where one is damaged, the next in order is taken and a warning says why.

    Args:
      directory: a run directory or a bundle.
      which: the order to try steps in: highest score first, or newest first.
      train: whether to read what resuming needs, too.

    Raises:
      CheckpointError: no step there, or none that can be read and verified.
    """
    directory = Path(directory)
    found = steps(directory)
    if not found:
        raise CheckpointError(
            f"no checkpoint in {directory}{'' if directory.exists() else ', which is not there'}; give the folder of a "
            "run or a bundle, or train one: python jobs/train.py --config configs/cnn.py --workdir runs/cnn"
        )
    problems: list[str] = []
    for step, meta in _ordered(directory, found, which, problems):
        if train and not any(name.startswith("train/") for name in meta["arrays"]):
            raise CheckpointError(f"{directory} is a bundle: it holds nothing to resume from; give another --workdir")
        try:
            return _restore(directory, step, meta, train)
        except Exception as error:  # Orbax and tensorstore raise a dozen kinds for damaged files
            problems.append(_skipped(step, error))
    raise CheckpointError(
        f"no step of {directory} can be loaded: {'; '.join(problems)}; put a copy back in its place, or train again"
    )


def member_folders(directory: Path) -> list[Path]:
    """The folders of an ensemble's members, in order; those of a checkpoint alone are itself.

    Raises:
      CheckpointError: a member is missing, or there are steps beside them.
    """
    found = {number: path for path in Path(directory).glob(f"{MEMBER}*") if (number := member_number(path))}
    if found and holds_steps(Path(directory)):
        raise CheckpointError(
            f"{directory} holds a checkpoint of its own and {MEMBER}{min(found)}; which of them is meant is not known: "
            "move one elsewhere"
        )
    if missing := set(range(1, max(found, default=0))) - found.keys():
        raise CheckpointError(
            f"{directory} holds {MEMBER}{max(found)}, but no {MEMBER}{min(missing)}: its answer would be that of fewer "
            "networks; put it back, or make another ensemble: python jobs/bundle.py"
        )
    return [found[number] for number in sorted(found)] or [Path(directory)]


def member_number(path: Path) -> int:
    """Which member of an ensemble a folder is, from 1; 0 for all others, member-01 among them."""
    number = path.name.removeprefix(MEMBER)
    return int(number) if re.fullmatch("[1-9][0-9]*", number) and number != path.name and path.is_dir() else 0


def set_aside_damaged(directory: Path, verified: int) -> list[Path]:
    """Renames each step that cannot be read whole to `damaged-<step>-<count>`, so that a Writer goes on without it.

    A Writer cannot open a directory in which a step's metrics are cut, nor save below a step that is newer. What
    `load` gave is not read again: `verified` is its step.
    """
    moved = []
    for step in steps(directory):
        try:
            json.loads((directory / str(step) / "metrics" / "metrics").read_text())
            if step != verified:
                _restore(directory, step, _read_meta(directory, step), train=True)
        except Exception:  # as above
            names = (directory / f"damaged-{step}-{count}" for count in itertools.count(1))
            moved.append((directory / str(step)).rename(next(name for name in names if not name.exists())))
    return moved


def _skipped(step: int, error: Exception) -> str:
    problem = f"step {step} is damaged ({' '.join(str(error).split())[:200] or type(error).__name__})"
    logging.warning("%s; trying another", problem)
    return problem


def _read_meta(directory: Path, step: int) -> dict[str, Any]:
    meta = json.loads((directory / str(step) / "meta" / "metadata").read_text())
    if meta.get("sha256") != json_digest(meta):
        raise ValueError("the digest of meta does not match")
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']} is not {FORMAT}: made by another version")
    if meta["step"] != step:
        raise ValueError(f"it holds step {meta['step']}")
    return meta


def _ordered(
    directory: Path, found: list[int], which: str, problems: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Steps whose meta is intact, the most wanted first; the others go to `problems`."""
    metas = {}
    for step in reversed(found):
        try:
            metas[step] = _read_meta(directory, step)
        except Exception as error:
            problems.append(_skipped(step, error))

    def score(step: int) -> float:
        value = metas[step]["score"]
        return -math.inf if value is None else value

    order = sorted(metas, key=lambda step: (score(step), step) if which == "best" else step, reverse=True)
    return ((step, metas[step]) for step in order)


def _restore(directory: Path, step: int, meta: dict[str, Any], train: bool) -> Checkpoint:
    """Restores the items of one step into the shapes `meta` states, and checks every digest."""
    restored: dict[str, dict[str, Any]] = {}
    for item in ("variables", "train")[: 1 + train]:
        entries = {
            name.removeprefix(f"{item}/"): entry
            for name, entry in meta["arrays"].items()
            if name.startswith(f"{item}/")
        }
        like = {name: np.empty(entry["shape"], np.dtype(entry["dtype"])) for name, entry in entries.items()}
        me = jax.process_index()  # a process reads alone: no barrier with others, who may have no need to
        alone = ocp.options.MultiprocessingOptions(me, active_processes={me}, barrier_sync_key_prefix=f"reader-{me}")
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as reader:
            restored[item] = reader.restore((directory / str(step) / item).resolve(), _nest(like))
        for name, array in to_arrays(restored[item]).items():
            if list(array.shape) != entries[name]["shape"] or _digest(array) != entries[name]["sha256"]:
                raise ValueError(f"{item}/{name} does not match its digest")
    return Checkpoint(step, restored["variables"], restored.get("train"), meta)
