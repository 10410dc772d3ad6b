"""The training run, from prepared data to checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from rich.console import Console

from jobs import JobError, UsageError, command
from jobs.datasets import films
from jobs.evaluation import metrics, neighbours
from jobs.training import beginning, optim, steps
from jobs.training.data import (
    Batches,
    Feed,
    Films,
    evaluation_batches,
    from_files,
    from_memory,
    memory,
    one_hot,
    workers,
)
from jobs.training.journal import Journal, announcement, progress
from jobs.training.lock import locked
from jobs.training.oversampling import smote
from jobs.training.plan import FIGURES, check, check_batch, compile_steps, epochs, phase_of, phases
from jobs.training.processes import StopSignal
from model import checkpoint
from model.weights.source import read

RESIDENT_SHARE = 0.4  # of a device's memory that films may fill


CURE = (  # of a run that diverged
    "lower --config.optimizer.learning_rate, or that of the phase, or use --config.dtype=float32, in another "
    "--workdir; --config.init_from=THIS_WORKDIR begins with the best checkpoint that is there"
)


class Diverged(JobError):
    """The loss, the gradient or the answers stayed without a finite value."""


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
    if checkpoint.member_folders(workdir) != [workdir]:
        raise UsageError(f"{workdir} holds the networks of an ensemble; give the run a --workdir of its own")
    main = jax.process_index() == 0
    console.quiet = not main
    listening = contextlib.nullcontext(signalled) if signalled else StopSignal()
    with locked(workdir) if main else contextlib.nullcontext() as stale, listening as signalled:
        if stale:
            console.print(f"the lock of {stale}, is stale: that process is gone", soft_wrap=True)
        try:
            return _train(config, workdir, devices, console, signalled)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise JobError(
                f"a device has too little memory for its share of {config.global_batch_size} films of "
                f"{config.data.train_size or config.data.image_size} px a step ({str(error).splitlines()[0][:200]}); "
                "lower --config.global_batch_size or the size, or take more devices"
            ) from error


def check_films(config: ConfigDict, devices: Sequence[jax.Device]) -> None:
    """Raises JobError where the films that `config` names cannot be trained on; quick, since none is decoded."""
    training, _ = _splits(config, decoded=False)
    if config.data.balance != "smote":  # which makes some up
        check_batch(config, len(training.labels), len(devices))


def finished(config: ConfigDict, workdir: Path) -> bool:
    """Whether `workdir` holds a run of this very config and these data that has ended, so that `train` adds nothing.

    Raises:
      CheckpointError: there is a run, and none of its steps can be loaded.
    """
    if not checkpoint.steps(workdir):
        return False
    meta = checkpoint.load(workdir, "latest").meta
    return (
        not beginning.changes(config, meta)
        and meta["dataset"]["fingerprint"] == films.facts(Path(config.data.dir), config.data.dataset)["fingerprint"]
        and not meta["losses"]
        and _ended([score(row, config.select.metric) for row in meta["history"]], config)
    )


def _train(
    config: ConfigDict, workdir: Path, devices: Sequence[jax.Device], console: Console, signalled: StopSignal
) -> bool:
    main = jax.process_index() == 0
    # First of all: what cannot be had is to be said at once.
    source = read(config.init_from) if config.init_from and not checkpoint.steps(workdir) else None
    training, validation, resident = _read(config, devices)
    compiled = compile_steps(config, training.labels, devices, resident)
    state, history, losses, origin = beginning.begin(config, workdir, training.facts, compiled, source, console)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    left_out = f" ({training.left_out} left out by their names)" if config.data.leave_out else ""
    processes = f"{jax.process_count()} processes, " if jax.process_count() > 1 else ""
    console.print(
        f"{config.model.architecture}, {parameters:,} parameters, "
        f"{config.data.train_size or config.data.image_size} px, {config.dtype}; "
        f"{len(training.labels)} films to train on{left_out}, {len(validation.labels)} held out, "
        f"{'resident' if resident else 'streamed'}; "
        f"{processes}{len(devices)} x {devices[0].device_kind}, {config.global_batch_size} films a step"
        f"{', SyncBN' if compiled.synced and len(devices) > 1 else ''}",
        soft_wrap=True,
    )
    if history or losses:
        into = f" and {len(losses)} steps" if losses else ""
        console.print(f"going on after epoch {len(history)} of {epochs(config)}{into}")

    state = steps.replicate(state, devices)
    feed = _feed(training.images, one_hot(training.labels), devices, resident, workers())
    # Too short for processes to be worth their start.
    evaluation_feed = _feed(validation.images, one_hot(validation.labels), devices, resident, 0)
    measure = functools.partial(
        _measure, config, compiled.eval_step, (evaluation_feed, validation.labels), (feed, training.labels)
    )
    epoch_steps = compiled.order.steps_per_epoch
    end = epochs(config) * epoch_steps
    batches = feed(Batches(compiled.order, len(history) * epoch_steps + len(losses), end))
    scores = [score(row, config.select.metric) for row in history]
    stopped, told = False, None
    with (
        checkpoint.Writer(workdir) as writer,
        Journal(config, workdir, history, console) if main else contextlib.nullcontext() as journal,
        progress(console) as bar,
        contextlib.closing(batches),
    ):
        task = bar.add_task("", total=end, completed=len(history) * epoch_steps + len(losses), speed="")
        while not stopped and not _ended(scores, config):
            started, first, begun = time.monotonic(), len(history) * epoch_steps, len(losses)
            phase = phase_of(compiled.phases, len(history))
            if len(history) == phase.first_epoch and not losses:
                state = jax.device_get(state)
                state = steps.begin_phase(state, phase.trained, phase.begin(state.params))
                state = steps.replicate(state, devices)
            if len(compiled.phases) > 1 and phase is not told:
                console.print(announcement(phase, compiled.phases, state.params), soft_wrap=True)
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

            skipped_before = history[-1].get("skipped_in_a_row", 0) if history else 0  # older runs did not log it
            skips = (skipped_before, config.max_skipped_steps)
            state, stopped = _epoch(phase.train_step, state, batches, losses, epoch_steps, *skips, advance, stop)
            if len(losses) == epoch_steps:
                speed = (len(losses) - begun) * config.global_batch_size / (time.monotonic() - started)
                measured = measure(state.ema)
                skipped = int(np.isnan(losses).sum())
                # The optimizer's schedule goes by the steps that it took.
                untaken = skipped + sum(row["skipped_steps"] for row in history[phase.first_epoch :])
                last_taken = max(int(state.step) - 1 - untaken, phase.first_epoch * epoch_steps)
                history.append(
                    {
                        "epoch": len(history) + 1,
                        "step": int(state.step),
                        "train_loss": float(np.nanmean(losses)) if skipped < epoch_steps else math.nan,
                        **{name: figure(measured) for name, figure in FIGURES.items()},
                        "phase": compiled.phases.index(phase) + 1,
                        "learning_rate": float(phase.learning_rate(last_taken)) * scale,
                        "skipped_steps": skipped,
                        "skipped_in_a_row": _in_a_row(losses, skipped_before),
                        "images_per_second": round(speed, 1),
                        "seconds": round(time.monotonic() - started, 2),
                    }
                )
                scores.append(score(history[-1], config.select.metric))
                losses = []
            writer.save(
                int(state.step),
                state.ema,
                beginning.meta(config, training.facts, history, losses, origin),
                train={"params": state.params, "batch_stats": state.batch_stats, "opt_state": state.opt_state},
                # Only whole epochs were evaluated; any other step is there to go on from.
                score=-math.inf if losses else scores[-1],
            )
            if journal and not losses:
                journal.add(history, _best(history, scores))
    if stopped:
        console.print(
            f"stopped by {signalled.name or 'SIGTERM'} after step {int(state.step)} of {end}, saved; the same command "
            "goes on from there",
            soft_wrap=True,
        )
        return False
    if len(history) < epochs(config):
        console.print(f"stopped early: no better {config.select.metric} in {config.early_stopping_epochs} epochs")
    console.print(_conclusion(config, workdir, history, scores), soft_wrap=True)
    return True


def _read(config: ConfigDict, devices: Sequence[jax.Device]) -> tuple[films.Split, films.Split, bool]:
    """The training and validation splits, and whether they are to live on the devices."""
    at, dataset = Path(config.data.dir), config.data.dataset
    resident = config.data.resident != "false"
    if config.data.resident == "auto":
        needed = sum(films.size(at, dataset, split) for split in ("train", "validation"))
        room = memory(steps.local(devices)[0])
        if jax.process_count() > 1:  # the smallest of all: they run one program
            room = int(np.min(multihost_utils.process_allgather(np.float32(room))))
        resident = needed <= RESIDENT_SHARE * room
    training, validation = _splits(config, resident)
    if config.data.balance == "smote":
        if not resident:
            raise UsageError("SMOTE makes films up, which no file holds; it needs --config.data.resident=true")
        images, labels = smote(training.images, training.labels, config.seed)
        training = dataclasses.replace(training, images=images, labels=labels)
    return training, validation, resident


def _splits(config: ConfigDict, decoded: bool) -> tuple[films.Split, films.Split]:
    at, folds = Path(config.data.dir), (config.data.folds, config.data.fold)
    training, validation = (
        films.read(at, config.data.dataset, split, decoded, *folds, config.data.leave_out)
        for split in ("train", "validation")
    )
    films.check_classes(training, "training", at)
    films.check_classes(validation, "validation", at)
    return training, validation


def _feed(images: Any, targets: np.ndarray, devices: Sequence[jax.Device], resident: bool, decoders: int) -> Feed:
    if resident:
        return from_memory(steps.replicate(Films(images, targets), devices), steps.layout(devices))
    return from_files(images, targets, steps.layout(devices), decoders)


def _epoch(
    train_step: steps.TrainStep,
    state: steps.State,
    batches: Iterator[tuple[Films, np.ndarray]],
    losses: list[float],
    count: int,
    skipped_before: int,
    max_skipped: int,
    advance: Callable[[int], None],
    stop: Callable[[int], bool],
) -> tuple[steps.State, bool]:
    """Takes steps until `losses`, one a step and NaN where it was skipped, has `count`, or `stop` of a step is true.

    `skipped_before` steps in a row were skipped when the epoch began; at `max_skipped` it is Diverged.

    Returns:
      The state, and whether it was `stop`.
    """

    def note(step_metrics: dict[str, jax.Array]) -> None:
        losses.append(math.nan if step_metrics["skipped"] else float(step_metrics["loss"]))
        advance(len(losses))
        skipped = _in_a_row(losses, skipped_before)
        if skipped and skipped >= max_skipped:
            raise Diverged(f"{skipped} steps in a row gave no finite loss or gradient; {CURE}")

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


def _measure(
    config: ConfigDict,
    eval_step: steps.EvalStep,
    held_out: tuple[Feed, np.ndarray],
    known: tuple[Feed, np.ndarray],
    variables: Any,
) -> dict[str, Any]:
    """The figures of the held-out films; without a classifier, those of their nearest neighbours among the known."""

    def ask(split: tuple[Feed, np.ndarray]) -> np.ndarray:
        given = answers(eval_step, variables, split[0], len(split[1]), config.global_batch_size)
        if not np.isfinite(given).all():
            raise Diverged(f"the network answers with numbers that are not finite; {CURE}")
        return given

    if config.objective == "contrastive":
        probabilities = neighbours.vote(ask(known), known[1], ask(held_out))
    else:
        from scipy.special import softmax  # half a second, which no `--help` should wait for

        probabilities = softmax(ask(held_out), axis=1)
    return metrics.score(held_out[1], probabilities)


def answers(eval_step: steps.EvalStep, variables: Any, feed: Feed, count: int, batch_size: int) -> np.ndarray:
    """(count, K) of a split, every film exactly once."""
    batches = evaluation_batches(count, batch_size)
    given = [np.asarray(eval_step(variables, *batch)) for batch in feed([indices for indices, _ in batches])]
    flat = [answer.reshape(-1, answer.shape[-1]) for answer in given]
    kept = np.concatenate([answer[real] for answer, (_, real) in zip(flat, batches, strict=True)]).astype(float)
    assert len(kept) == count, f"{len(kept)} answers for {count} films"
    return kept


def _conclusion(config: ConfigDict, workdir: Path, history: list[dict[str, Any]], scores: list[float]) -> str:
    """What a person is told of a run that has ended, and what to do next."""
    best = _best(history, scores)
    if config.objective == "contrastive":
        begun = ("--config", "CONFIG", f"--config.init_from={workdir}", "--workdir", f"{workdir}_tuned")
        then = f"{command('train', *begun)}, with a CONFIG of the same network"
    else:
        films = ("--split", "validation", "--data_dir", config.data.dir)
        then = command("evaluate", "--checkpoint", workdir, *films, "--out", workdir / "report")
    return (
        f"best: epoch {best['epoch']}, {config.select.metric} {best[config.select.metric]:.4f}; "
        f"curves in {workdir / 'curves.png'}\nnext: {then}"
    )


def _best(history: list[dict[str, Any]], scores: list[float]) -> dict[str, Any]:
    """The epoch whose checkpoint is the best: of equals the latest, as `checkpoint.load` has it."""
    return max(zip(scores, history, strict=True), key=lambda pair: (pair[0], pair[1]["epoch"]))[1]


def _in_a_row(losses: Sequence[float], before: int) -> int:
    """How many steps up to the last of `losses`, which are NaN where a step was skipped, and `before` them were."""
    skipped = len(list(itertools.takewhile(math.isnan, reversed(losses))))
    return skipped + (before if skipped == len(losses) else 0)


def score(row: dict[str, Any], metric: str) -> float:
    """The selection metric of an epoch, larger being better; not finite is the worst there is."""
    value = row[metric]
    if value is None or not math.isfinite(value):
        return -math.inf
    return -value if metric in metrics.LOGGED_LOSSES else value


def _ended(scores: list[float], config: ConfigDict) -> bool:
    """Whether all epochs are done, or the best one of the last phase is as old as the early stop has patience."""
    last = scores[epochs(config) - phases(config)[-1].epochs :]
    patience = config.early_stopping_epochs
    stalled = bool(patience and last) and len(last) - 1 - int(np.argmax(last)) >= patience
    return stalled or len(scores) >= epochs(config)
