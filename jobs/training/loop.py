"""The training run, from prepared data to checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jobs import JobError, UsageError, whole
from jobs.datasets import films
from jobs.evaluation import metrics, plots
from jobs.training import optim, steps
from jobs.training.data import Batches, Feed, Films, evaluation_batches, from_files, from_memory, memory, workers
from jobs.training.lock import locked
from jobs.training.oversampling import smote
from jobs.training.plan import FIGURES, Compiled, Phase, check, compile_steps, epochs, flatten, phases, plain
from jobs.training.processes import StopSignal
from model import checkpoint
from model.labels import CLASSES
from model.weights.fill import fill
from model.weights.source import Source, read

MAY_CHANGE = ("epochs", "early_stopping_epochs", "resume", "data.dir", "data.resident")  # when a run is resumed
# What runs did that were begun before there was such a field.
BEFORE = {"data.folds": 0, "data.fold": 0, "init_from": "", "phases": []}
RESIDENT_SHARE = 0.4  # of a device's memory that films may fill


class Diverged(JobError):
    """The loss or the gradient stayed without a finite value."""


def train(
    config: ConfigDict,
    workdir: Path,
    devices: Sequence[jax.Device],
    console: Console,
    signalled: StopSignal | None = None,
) -> bool:
    """Trains what `config` describes, or goes on where the run in `workdir` stopped.

    Every process of a job calls this with the same arguments; `workdir` and the data are on storage they share.
    After SIGTERM or SIGINT the step is finished, the state saved and the function returns.

    Args:
      config: as configs/base.py.
      workdir: the checkpoint directory.
      devices: those of the parallel step, of all processes.
      console: for the progress bar and a line an epoch.
      signalled: who listens for signals already; None: nobody does.

    Returns:
      Whether the run is finished; a signal may have stopped it before.

    Raises:
      JobError: something the user can mend: no data, numbers that do not fit, a run that diverged, a directory in use.
    """
    check(config)
    main = jax.process_index() == 0
    console.quiet = not main
    listening = contextlib.nullcontext(signalled) if signalled else StopSignal()
    with locked(workdir) if main else contextlib.nullcontext() as stale, listening as signalled:
        if stale:
            console.print(f"the lock of {stale}, is stale: that process is gone", soft_wrap=True)
        return _train(config, workdir, devices, console, signalled)


def finished(config: ConfigDict, workdir: Path) -> bool:
    """Whether `workdir` holds a run of this very config and these data that has ended, so that `train` adds nothing.

    Raises:
      CheckpointError: there is a run, and none of its steps can be loaded.
    """
    if not checkpoint.steps(workdir):
        return False
    meta = checkpoint.load(workdir, "latest").meta
    return (
        not _changes(config, meta)
        and meta["dataset"]["fingerprint"] == films.facts(Path(config.data.dir), config.data.dataset)["fingerprint"]
        and not meta["losses"]
        and _ended([score(row, config.select) for row in meta["history"]], config)
    )


def _train(
    config: ConfigDict, workdir: Path, devices: Sequence[jax.Device], console: Console, signalled: StopSignal
) -> bool:
    main = jax.process_index() == 0
    # First of all: what cannot be had is to be said at once.
    source = read(config.init_from) if config.init_from and not checkpoint.steps(workdir) else None
    training, validation, resident = _read(config, devices)
    compiled = compile_steps(config, training.labels, devices, resident)
    state, history, losses, origin = _begin(config, workdir, training.facts, compiled, source, console)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    processes = f"{jax.process_count()} processes, " if jax.process_count() > 1 else ""
    console.print(
        f"{config.model.architecture}, {parameters:,} parameters, "
        f"{config.data.train_size or config.data.image_size} px, {config.dtype}; "
        f"{len(training.labels)} films to train on, {len(validation.labels)} held out, "
        f"{'resident' if resident else 'streamed'}; "
        f"{processes}{len(devices)} x {devices[0].device_kind}, {config.global_batch_size} films a step"
        f"{', SyncBN' if compiled.synced and len(devices) > 1 else ''}",
        soft_wrap=True,
    )
    if history or losses:
        into = f" and {len(losses)} steps" if losses else ""
        console.print(f"going on after epoch {len(history)} of {epochs(config)}{into}")

    state = steps.replicate(state, devices)
    feed = _feed(training, devices, resident, workers())
    evaluation_feed = _feed(validation, devices, resident, 0)  # too short for processes to be worth their start
    epoch_steps = compiled.order.steps_per_epoch
    end = epochs(config) * epoch_steps
    batches = feed(Batches(compiled.order, len(history) * epoch_steps + len(losses), end))
    scores = [score(row, config.select) for row in history]
    stopped, told = False, None
    with (
        checkpoint.Writer(workdir) as writer,
        _Journal(config, workdir, history, console) if main else contextlib.nullcontext() as journal,
        _progress(console) as bar,
        contextlib.closing(batches),
    ):
        task = bar.add_task("", total=end, completed=len(history) * epoch_steps + len(losses), speed="")
        while not stopped and not _ended(scores, config):
            started, first, begun = time.monotonic(), len(history) * epoch_steps, len(losses)
            phase = _phase(compiled.phases, len(history))
            if len(history) == phase.first_epoch and not losses:
                state = state.replace(opt_state=steps.replicate(phase.begin(jax.device_get(state.params)), devices))
            if len(compiled.phases) > 1 and phase is not told:
                console.print(_announcement(phase, compiled.phases, state.params), soft_wrap=True)
                told = phase
            scale = optim.plateau_scale(
                scores[phase.first_epoch :], config.optimizer.plateau_factor, config.optimizer.plateau_patience
            )
            state = state.replace(opt_state=optim.set_plateau_scale(state.opt_state, np.float32(scale)))

            def advance(done: int, first: int = first, started: float = started, begun: int = begun) -> None:
                speed = (done - begun) * config.global_batch_size / (time.monotonic() - started)
                epoch = f"epoch {first // epoch_steps + 1}/{epochs(config)}"
                bar.update(task, completed=first + done, description=epoch, speed=f"{speed:.0f} images/s")

            def stop(taken: int, first: int = first) -> bool:
                # Many processes must agree on the step, so no one goes by its own signal.
                alone = jax.process_count() == 1
                return signalled.name is not None if alone else writer.reached_preemption(first + taken)

            patience = max(1, config.max_skipped_steps - epoch_steps * _epochs_skipped(history, epoch_steps))
            state, stopped = _epoch(phase.train_step, state, batches, losses, epoch_steps, patience, advance, stop)
            if len(losses) == epoch_steps:
                speed = (len(losses) - begun) * config.global_batch_size / (time.monotonic() - started)
                ask = functools.partial(answers, compiled.eval_step, state.ema, batch_size=config.global_batch_size)
                held_out = ask(evaluation_feed, len(validation.labels))
                if config.objective == "contrastive":
                    probabilities = nearest(ask(feed, len(training.labels)), training.labels, held_out)
                else:
                    probabilities = softmax(held_out)
                measured = metrics.score(validation.labels, probabilities)
                skipped = int(np.isnan(losses).sum())
                history.append(
                    {
                        "epoch": len(history) + 1,
                        "step": int(state.step),
                        "train_loss": float(np.nanmean(losses)) if skipped < epoch_steps else math.nan,
                        **{name: figure(measured) for name, figure in FIGURES.items()},
                        "phase": compiled.phases.index(phase) + 1,
                        "learning_rate": float(phase.learning_rate(int(state.step) - 1)) * scale,
                        "skipped_steps": skipped,
                        "images_per_second": round(speed, 1),
                        "seconds": round(time.monotonic() - started, 2),
                    }
                )
                scores.append(score(history[-1], config.select))
                losses = []
            writer.save(
                int(state.step),
                state.ema,
                _meta(config, training.facts, history, losses, origin),
                train={"params": state.params, "batch_stats": state.batch_stats, "opt_state": state.opt_state},
                # Only whole epochs were evaluated; any other step is there to go on from.
                score=-math.inf if losses else scores[-1],
            )
            if journal and not losses:
                journal.add(history, scores)
    if stopped:
        console.print(
            f"stopped by {signalled.name or 'SIGTERM'} after step {int(state.step)} of {end}, saved; the same command "
            "goes on from there",
            soft_wrap=True,
        )
        return False
    if len(history) < epochs(config):
        console.print(f"stopped early: no better {config.select.metric} in {config.early_stopping_epochs} epochs")
    best = history[int(np.argmax(scores))]
    if config.objective == "contrastive":
        then = f"python jobs/train.py --config configs/cnn.py --config.init_from={workdir} --workdir {workdir}_tuned"
    else:
        then = (
            f"python jobs/evaluate.py --checkpoint {workdir} --split validation --data_dir {config.data.dir} "
            f"--out {workdir / 'report'}"
        )
    console.print(
        f"best: epoch {best['epoch']}, {config.select.metric} {best[config.select.metric]:.4f}; "
        f"curves in {workdir / 'curves.png'}\nnext: {then}",
        soft_wrap=True,
    )
    return True


class _Journal:
    """What a run tells people: config.json, log.jsonl, TensorBoard events, curves.png, and a line an epoch."""

    def __init__(self, config: ConfigDict, workdir: Path, history: list[dict[str, Any]], console: Console):
        self._epochs, self._workdir, self._console = epochs(config), workdir, console
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=len(history) + 1)
        with whole(workdir / "config.json") as path:
            path.write_text(json.dumps(plain(config), indent=1))
        self._write_log(history)  # a run that was killed may have logged more than it had saved

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def add(self, history: list[dict[str, Any]], scores: list[float]) -> None:
        """Tells of the last epoch of `history`."""
        row = history[-1]
        self._write_log(history)
        for name, value in row.items():
            if isinstance(value, float) and math.isfinite(value):
                self._events.add_scalar(name, value, row["epoch"])
        with whole(self._workdir / "curves.png") as path:
            plots.learning_curves(history, history[int(np.argmax(scores))]["epoch"], path)
        self._console.print(_line(row, self._epochs), soft_wrap=True)

    def _write_log(self, history: list[dict[str, Any]]) -> None:
        with whole(self._workdir / "log.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in history))


def _read(config: ConfigDict, devices: Sequence[jax.Device]) -> tuple[films.Split, films.Split, bool]:
    """The training and validation splits, and whether they are to live on the devices."""
    at, dataset = Path(config.data.dir), config.data.dataset
    resident = config.data.resident != "false"
    if config.data.resident == "auto":
        needed = sum(films.size(at, dataset, split) for split in ("train", "validation"))
        resident = needed <= RESIDENT_SHARE * memory(steps.local(devices)[0])
    training, validation = (
        films.read(at, dataset, split, resident, config.data.folds, config.data.fold)
        for split in ("train", "validation")
    )
    for split, name in ((training, "training"), (validation, "validation")):
        absent = [CLASSES[label] for label in set(range(len(CLASSES))) - set(split.labels.tolist())]
        if absent:
            raise JobError(f"the {name} split of {at} holds no {', no '.join(absent)} film; prepare it again")
    if config.data.balance == "smote":
        if not resident:
            raise UsageError("SMOTE makes films up, which no file holds; it needs --config.data.resident=true")
        images, labels = smote(training.images, training.labels, config.seed)
        training = dataclasses.replace(training, images=images, labels=labels)
    return training, validation, resident


def _feed(split: films.Split, devices: Sequence[jax.Device], resident: bool, decoders: int) -> Feed:
    if resident:
        return from_memory(steps.replicate(Films(split.images, split.labels), devices), steps.layout(devices))
    return from_files(split.images, split.labels, steps.layout(devices), decoders)


def _epoch(
    train_step: steps.TrainStep,
    state: steps.State,
    batches: Iterator[tuple[Films, np.ndarray]],
    losses: list[float],
    count: int,
    max_skipped: int,
    advance: Callable[[int], None],
    stop: Callable[[int], bool],
) -> tuple[steps.State, bool]:
    """Takes steps until `losses`, one a step and NaN where it was skipped, has `count`, or `stop` of a step is true.

    Returns:
      The state, and whether it was `stop`.
    """

    def note(step_metrics: dict[str, jax.Array]) -> None:
        losses.append(math.nan if step_metrics["skipped"] else float(step_metrics["loss"]))
        advance(len(losses))
        if len(losses) >= max_skipped and np.isnan(losses[-max_skipped:]).all():
            raise Diverged(
                f"{max_skipped} steps in a row gave no finite loss or gradient; lower "
                "--config.optimizer.learning_rate, or use --config.dtype=float32. Checkpoints up to the last epoch "
                "are kept: the same command goes on from there"
            )

    taken, stopped, previous = len(losses), False, None
    while taken < count and not stopped:
        state, current = train_step(state, *next(batches))
        taken += 1
        if previous is not None:
            note(previous)  # one step behind, so that the devices never wait for the host
        previous = current
        stopped = stop(taken)
    if previous is not None:
        note(previous)
    return state, stopped


def answers(eval_step: steps.EvalStep, variables: Any, feed: Feed, count: int, batch_size: int) -> np.ndarray:
    """(count, K) of a split, every film exactly once."""
    batches = evaluation_batches(count, batch_size)
    given = [np.asarray(eval_step(variables, *batch)) for batch in feed([indices for indices, _ in batches])]
    flat = [answer.reshape(-1, answer.shape[-1]) for answer in given]
    kept = np.concatenate([answer[real] for answer, (_, real) in zip(flat, batches, strict=True)]).astype(float)
    assert len(kept) == count, f"{len(kept)} answers for {count} films"
    return kept


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, 3) -> (N, 3), in the precision given."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def nearest(known: np.ndarray, labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Probabilities (N, 3) by the nearest neighbours in features: Wu et al. 2018, section 3.4, with theirs of .07.

    Args:
      known: (M, C), of films whose labels are known.
      labels: (M,), all classes among them.
      features: (N, C).
    """
    from sklearn.neighbors import KNeighborsClassifier

    vote = KNeighborsClassifier(min(20, len(labels)), metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
    return 0.97 * vote.fit(known, labels).predict_proba(features) + 0.03 / len(CLASSES)  # none is impossible


def _begin(
    config: ConfigDict,
    workdir: Path,
    facts: dict[str, Any],
    compiled: Compiled,
    source: Source | None,
    console: Console,
) -> tuple[steps.State, list[dict[str, Any]], list[float], dict[str, Any] | None]:
    """What the newest whole checkpoint holds, or what a new run begins with.

    Returns:
      The state, the log, the losses of the epoch begun, and where the first weights came from.
    """
    state = compiled.state
    if not checkpoint.steps(workdir):
        if not source:
            return state, [], [], None
        variables, origin = fill(source, config.model.architecture, state.variables)
        console.print(_provenance(origin), soft_wrap=True)
        return steps.create_state(variables, compiled.phases[0].begin(variables["params"])), [], [], origin
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
    changed = _changes(config, loaded.meta)
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
        "opt_state": _phase(compiled.phases, (loaded.step - 1) // compiled.order.steps_per_epoch).begin(state.params),
    }
    state = state.replace(step=np.int32(loaded.step), **checkpoint.from_arrays(like, stored))
    losses = [math.nan if loss is None else loss for loss in loaded.meta["losses"]]
    return state, loaded.meta["history"], losses, loaded.meta.get("origin")


def _changes(config: ConfigDict, meta: dict[str, Any]) -> dict[str, str]:
    """The fields in which `config` is not that of the checkpoint, each with what it says of it."""
    new = flatten(json.loads(json.dumps(plain(config))))  # tuples as lists
    old = flatten(meta["config"])
    pairs = {name: (old.get(name, BEFORE.get(name)), new.get(name)) for name in sorted(old.keys() | new.keys())}
    return {name: f"{name}: {one!r} -> {other!r}" for name, (one, other) in pairs.items() if one != other}


def _provenance(origin: dict[str, Any]) -> str:
    """What a person is told of the weights that a run begins with."""
    which = f"commit {origin['commit']}" if "commit" in origin else f"step {origin['step']}" if "step" in origin else ""
    size = f"{origin['bytes'] / 1e6:.1f} MB, sha256 {origin['sha256'][:12]}" if "bytes" in origin else ""
    known = ", ".join(filter(None, [which, size]))
    new = f"; new: {', '.join(origin['new'])}" if origin["new"] else ""
    left_out = f"; left out: {', '.join(origin['left_out'])}" if origin["left_out"] else ""
    return f"begins with {origin['from']} ({known}){new}{left_out}"


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _epochs_skipped(history: list[dict[str, Any]], epoch_steps: int) -> int:
    """How many epochs in a row, up to the last, took no step that was finite."""
    return len(list(itertools.takewhile(lambda row: row["skipped_steps"] == epoch_steps, reversed(history))))


def score(row: dict[str, Any], select: ConfigDict) -> float:
    """The selection metric of an epoch, larger being better; not finite is the worst there is."""
    value = row[select.metric]
    if value is None or not math.isfinite(value):
        return -math.inf
    return -value if select.mode == "min" else value


def _ended(scores: list[float], config: ConfigDict) -> bool:
    """Whether all epochs are done, or the best one of the last phase is as old as the early stop has patience."""
    last = scores[epochs(config) - phases(config)[-1].epochs :]
    patience = config.early_stopping_epochs
    stalled = bool(patience and last) and len(last) - 1 - int(np.argmax(last)) >= patience
    return stalled or len(scores) >= epochs(config)


def _phase(planned: Sequence[Phase], epoch: int) -> Phase:
    """The one that an epoch, from 0, belongs to."""
    return next(phase for phase in planned if epoch < phase.end_epoch)


def _meta(
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


def _announcement(phase: Phase, planned: Sequence[Phase], params: Any) -> str:
    sizes = {path: leaf.size for path, leaf in flatten_dict(params, sep="/").items()}
    count = sum(sizes[path] for path in phase.trained)
    return (
        f"phase {planned.index(phase) + 1} of {len(planned)}, {phase.epochs} epochs: trains {phase.trainable}, "
        f"{count:,} of {sum(sizes.values()):,} parameters"
    )


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
