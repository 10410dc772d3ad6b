"""What a run tells people: its files, its progress, and lines as it goes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jobs import whole
from jobs.evaluation import plots
from jobs.training.plan import Phase, epochs, plain
from model.labels import CLASSES


class Journal:
    """What a run tells people: config.json, log.jsonl, TensorBoard events, curves.png, and a line an epoch."""

    def __init__(self, config: ConfigDict, workdir: Path, history: list[dict[str, Any]], console: Console):
        self._epochs, self._workdir, self._console = epochs(config), workdir, console
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # Not by SummaryWriter, whose thread dies where the disk is full, and with it whoever waits for its queue.
        self._events = EventsWriter(str(workdir / "tensorboard/events"))
        purge = SessionLog(status=SessionLog.START)  # of what a run that was killed may have written of later epochs
        self._events.write_event(Event(step=len(history) + 1, wall_time=time.time(), session_log=purge))
        with whole(workdir / "config.json") as path:
            path.write_text(json.dumps(plain(config), indent=1))
        self._write_log(history)  # a run that was killed may have logged more than it had saved

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def add(self, history: list[dict[str, Any]], best: dict[str, Any]) -> None:
        """Tells of the last epoch of `history`; `best` is the best one yet."""
        row = history[-1]
        self._write_log(history)
        for name, value in row.items():
            if isinstance(value, float) and math.isfinite(value):
                told = Event(step=row["epoch"], wall_time=time.time(), summary=scalar(name, value))
                self._events.write_event(told)
        self._events.flush()
        with whole(self._workdir / "curves.png") as path:
            plots.learning_curves(history, best["epoch"], path)
        self._console.print(_line(row, self._epochs), soft_wrap=True)

    def _write_log(self, history: list[dict[str, Any]]) -> None:
        with whole(self._workdir / "log.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in history))


def provenance(origin: dict[str, Any]) -> str:
    """What a person is told of the weights that a run begins with."""
    which = f"commit {origin['commit']}" if "commit" in origin else f"step {origin['step']}" if "step" in origin else ""
    size = f"{origin['bytes'] / 1e6:.1f} MB, sha256 {origin['sha256'][:12]}" if "bytes" in origin else ""
    known = ", ".join(filter(None, [which, size]))
    told = [f"begins with {origin['from']} ({known})"]
    if "mean" in origin:
        mean, std = (", ".join(f"{value:g}" for value in origin[name]) for name in ("mean", "std"))
        told.append(f"trained on pixels in [0, 1] less {mean}, over {std}")
    told += [f"{name.replace('_', ' ')}: {', '.join(origin[name])}" for name in ("new", "left_out") if origin[name]]
    if "mean" in origin and not origin["new"]:
        told.append(f"its classifier is taken for one of {', '.join(CLASSES)}, in that order")
    return "; ".join(told)


def announcement(phase: Phase, planned: Sequence[Phase], params: Any) -> str:
    sizes = {path: leaf.size for path, leaf in flatten_dict(params, sep="/").items()}
    count = sum(sizes[path] for path in phase.trained)
    return (
        f"phase {planned.index(phase) + 1} of {len(planned)}, {phase.epochs} epochs: trains {phase.trainable}, "
        f"{count:,} of {sum(sizes.values()):,} parameters"
    )


def _line(row: dict[str, Any], epochs: int) -> str:
    auroc = math.nan if row["val_binary_auroc"] is None else row["val_binary_auroc"]
    return (
        f"epoch {row['epoch']:>3}/{epochs}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"accuracy {row['val_accuracy']:.3f}  macro-F1 {row['val_macro_f1']:.3f}  "
        f"pneumonia AUROC {auroc:.4f}  {row['images_per_second']:.0f} images/s"
        + (f"  {row['skipped_steps']} steps skipped" if row["skipped_steps"] else "")
    )


def progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
