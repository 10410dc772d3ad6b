"""The training run, from prepared data to checkpoints."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jobs import JobError
from jobs.datasets import films
from jobs.evaluation import metrics, plots
from jobs.training import optim, steps
from jobs.training.data import evaluation_batches
from jobs.training.plan import FIGURES, check, compile_steps, flatten
from model import checkpoint
from model.labels import CLASSES

MAY_CHANGE = ("epochs", "early_stopping_epochs", "data.dir")  # between the start of a run and its resumption


def train(config: ConfigDict, workdir: Path, devices: Sequence[jax.Device], console: Console) -> None:
    """Trains what `config` describes, or goes on where the run in `workdir` stopped.

    Args:
      config: as configs/base.py.
      workdir: the checkpoint directory.
      devices: those of the parallel step.
      console: for the progress bar and a line an epoch.

    Raises:
      JobError: something the user can mend: no data, numbers that do not fit, a run that diverged.
    """
    check(config)
    training = films.read(Path(config.data.dir), config.data.dataset, "train")
    validation = films.read(Path(config.data.dir), config.data.dataset, "validation")
    order, learning_rate, state, train_step, eval_step, synced = compile_steps(config, training.labels, devices)
    state, history = _resume(config, workdir, state, console)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    console.print(
        f"{config.model.architecture}, {parameters:,} parameters, {config.data.image_size} px, {config.dtype}; "
        f"{len(training.labels)} films to train on, {len(validation.labels)} held out; "
        f"{len(devices)} x {devices[0].device_kind}, {config.global_batch_size} films a step"
        f"{', SyncBN' if synced and len(devices) > 1 else ''}",
        soft_wrap=True,
    )
    if history:
        console.print(f"going on after epoch {len(history)} of {config.epochs}")

    state = steps.replicate(state, devices)
    resident = steps.replicate(steps.Resident(training.images, training.labels), devices)
    held_out = steps.replicate(steps.Resident(validation.images, validation.labels), devices)
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / "config.json", json.dumps(config.to_dict(), indent=1))
    _write_log(workdir, history)
    with (
        checkpoint.Writer(workdir) as writer,
        SummaryWriter(str(workdir / "tensorboard"), purge_step=len(history) + 1) as events,
        _progress(console) as bar,
    ):
        task = bar.add_task("", total=config.epochs * order.steps_per_epoch, speed="")
        scores = [_score(row, config.select) for row in history]
        while len(history) < config.epochs and not _stalled(scores, config.early_stopping_epochs):
            started = time.monotonic()
            first = len(history) * order.steps_per_epoch
            scale = optim.plateau_scale(scores, config.optimizer.plateau_factor, config.optimizer.plateau_patience)
            state = state.replace(opt_state=optim.set_plateau_scale(state.opt_state, np.float32(scale)))

            def advance(done: int, first: int = first, started: float = started) -> None:
                speed = done * config.global_batch_size / (time.monotonic() - started)
                epoch = f"epoch {first // order.steps_per_epoch + 1}/{config.epochs}"
                bar.update(task, completed=first + done, description=epoch, speed=f"{speed:.0f} images/s")

            batches = (order.batch(step) for step in range(first, first + order.steps_per_epoch))
            state, losses = _epoch(
                train_step, state, resident, batches, len(devices), config.max_skipped_steps, advance
            )
            trained_seconds = time.monotonic() - started
            probabilities = evaluate(
                eval_step, state.ema, held_out, len(validation.labels), config.global_batch_size, len(devices)
            )
            measured = metrics.score(validation.labels, probabilities)
            row = {
                "epoch": len(history) + 1,
                "step": int(state.step),
                "train_loss": float(np.nanmean(losses)),
                **{name: figure(measured) for name, figure in FIGURES.items()},
                "learning_rate": float(learning_rate(int(state.step) - 1)) * scale,
                "skipped_steps": int(np.isnan(losses).sum()),
                "images_per_second": round(len(losses) * config.global_batch_size / trained_seconds, 1),
                "seconds": round(time.monotonic() - started, 2),
            }
            history.append(row)
            scores.append(_score(row, config.select))
            writer.save(
                row["step"],
                state.ema,
                _meta(config, training.facts, history),
                train={
                    "params": state.params,
                    "batch_stats": state.batch_stats,
                    "opt_state": state.opt_state,
                },
                score=scores[-1],
            )
            _write_log(workdir, history)
            for name, value in row.items():
                if isinstance(value, float) and math.isfinite(value):
                    events.add_scalar(name, value, row["epoch"])
            plots.learning_curves(history, history[int(np.argmax(scores))]["epoch"], workdir / "curves.png")
            console.print(_line(row, config.epochs), soft_wrap=True)
    if _stalled(scores, config.early_stopping_epochs):
        console.print(f"stopped early: no better {config.select.metric} in {config.early_stopping_epochs} epochs")
    best = history[int(np.argmax(scores))]
    console.print(
        f"best: epoch {best['epoch']}, {config.select.metric} {best[config.select.metric]:.4f}; "
        f"curves in {workdir / 'curves.png'}\nnext: python jobs/evaluate.py --checkpoint {workdir} "
        f"--split validation --data_dir {config.data.dir} --out {workdir / 'report'}",
        soft_wrap=True,
    )


def _epoch(
    train_step: steps.TrainStep,
    state: steps.State,
    resident: steps.Resident,
    batches: Iterable[np.ndarray],
    devices: int,
    max_skipped: int,
    advance: Callable[[int], None],
) -> tuple[steps.State, np.ndarray]:
    """Takes a step a batch; returns the state and each step's loss, NaN where the step was skipped."""
    losses: list[float] = []
    skipped_in_a_row = 0

    def note(step_metrics: dict[str, jax.Array]) -> None:
        nonlocal skipped_in_a_row
        skipped = bool(step_metrics["skipped"])
        skipped_in_a_row = skipped_in_a_row + 1 if skipped else 0
        losses.append(math.nan if skipped else float(step_metrics["loss"]))
        advance(len(losses))
        if skipped_in_a_row >= max_skipped:
            raise JobError(
                f"{skipped_in_a_row} steps in a row gave no finite loss or gradient; lower "
                "--config.optimizer.learning_rate, or use --config.dtype=float32. Checkpoints up to the last epoch "
                "are kept: the same command goes on from there"
            )

    previous = None
    for batch in batches:
        state, current = train_step(state, resident, steps.per_device(devices, batch))
        if previous is not None:
            note(previous)  # one step behind, so that the devices never wait for the host
        previous = current
    if previous is not None:
        note(previous)
    return state, np.asarray(losses)


def evaluate(
    eval_step: steps.EvalStep,
    variables: Any,
    resident: steps.Resident,
    count: int,
    batch_size: int,
    devices: int,
) -> np.ndarray:
    """Probabilities (count, 3) of a resident split, every film exactly once."""
    answers = []
    for indices, real in evaluation_batches(count, batch_size):
        logits = np.asarray(eval_step(variables, resident, steps.per_device(devices, indices)))
        answers.append(logits.reshape(-1, len(CLASSES))[real])
    logits = np.concatenate(answers).astype(np.float64)
    assert len(logits) == count, f"{len(logits)} answers for {count} films"
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def _resume(
    config: ConfigDict, workdir: Path, state: steps.State, console: Console
) -> tuple[steps.State, list[dict[str, Any]]]:
    """The state and the log of the newest whole checkpoint, or those of a new run."""
    if not checkpoint.steps(workdir):
        return state, []
    loaded = checkpoint.load(workdir, "latest", train=True)
    for damaged in checkpoint.set_aside_damaged(workdir):
        console.print(f"a damaged checkpoint was moved to {damaged}", soft_wrap=True)
    new, old = flatten(json.loads(json.dumps(config.to_dict()))), flatten(loaded.meta["config"])
    changed = [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in MAY_CHANGE
    ]
    if changed:
        raise JobError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}); give another --workdir, or the old values"
        )
    stored = checkpoint.to_arrays({"ema": loaded.variables, **(loaded.train or {})})
    like = {
        "ema": state.ema,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
    }
    return state.replace(step=np.int32(loaded.step), **checkpoint.from_arrays(like, stored)), loaded.meta["history"]


def _score(row: dict[str, Any], select: ConfigDict) -> float:
    """The selection metric of an epoch, larger being better; not finite is the worst there is."""
    value = row[select.metric]
    if value is None or not math.isfinite(value):
        return -math.inf
    return -value if select.mode == "min" else value


def _stalled(scores: list[float], patience: int) -> bool:
    """Whether the best epoch is `patience` epochs old; never, where that is 0."""
    return bool(patience and scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


def _meta(config: ConfigDict, facts: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    packages = ("pneumoscope", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "architecture": config.model.architecture,
        "options": config.model.options.to_dict(),
        "classes": list(CLASSES),
        "image_size": config.data.image_size,
        "storage_size": facts["storage_size"],
        "mean": config.data.mean,
        "std": config.data.std,
        "config": config.to_dict(),
        "dataset": facts,
        "metrics": {name: history[-1][name] for name in ("train_loss", *FIGURES)},
        "epoch": history[-1]["epoch"],
        "history": history,
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)


def _write_log(workdir: Path, history: list[dict[str, Any]]) -> None:
    _write(workdir / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def _line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>3}/{epochs}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"accuracy {row['val_accuracy']:.3f}  macro-F1 {row['val_macro_f1']:.3f}  "
        f"AUROC {row['val_binary_auroc'] or math.nan:.4f}  {row['images_per_second']:.0f} images/s"
        + (f"  {row['skipped_steps']} steps skipped" if row["skipped_steps"] else "")
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
