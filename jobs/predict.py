"""Reads films and writes a table of answers.

    python jobs/predict.py --checkpoint space/checkpoint --out predictions.csv film.png more_films/

Folders are walked, and every file in them except this table is a row: file, decision, normal, bacterial, viral, reason.
A file that cannot be read, or is plainly not a chest film, has the decision `refused` and the reason; one that is
unlike the training films is refused, with the probabilities it would have had. Where no class is probable enough the
decision is `uncertain`. Only the first page of a file is read. The exit code is 0 if any film was answered.
For education and research, never for diagnosis.
"""

from __future__ import annotations

import csv
import os
import stat
from collections import Counter
from pathlib import Path

from absl import flags
from rich.progress import track

from jobs import JobError, UsageError, check_replaceable, headed, printable, run, unfinished, walk, whole
from model.checkpoint import CheckpointError
from model.labels import CLASSES
from model.predictor import REFUSED, Prediction, Predictor
from model.preprocess import ImageRefused, check_length

_BUNDLED = Path(__file__).resolve().parents[1] / "space/checkpoint"
_CHECKPOINT = flags.DEFINE_string("checkpoint", str(_BUNDLED), "A run directory or a bundle.")
_OUT = flags.DEFINE_string("out", "predictions.csv", "The table to write.")

COLUMNS = ("file", "decision", *CLASSES, "reason")


def main(arguments: list[str]) -> int:
    if not arguments:
        raise UsageError("no file or folder given; python jobs/predict.py --out predictions.csv FILES_OR_FOLDERS")
    out = Path(_OUT.value)
    files = gather([Path(argument) for argument in arguments], out)
    predictor = Predictor.open(Path(_CHECKPOINT.value))
    decisions, reasons = predict(predictor, files, out)
    print(f"{out}: {', '.join(f'{count} {decision}' for decision, count in decisions.most_common())}")
    if reasons:
        (reason, count), *others = reasons.most_common()
        how = "" if not others else ", most often" if count > others[0][1] else ", for example"
        print(f"refused{how} ({count}): {reason}")
    if predictor.calibration is None:
        print(
            "Not calibrated: the probabilities are as the networks give them, and no film is uncertain or too unlike."
        )
    if predictor.meta["dataset"]["name"] == "phantom":
        print("Trained on synthetic drawings: what it answers to a real film means nothing.")
    print("For education and research, never for diagnosis.")
    return 0 if decisions.total() > decisions[REFUSED] else 1


def gather(sources: list[Path], out: Path) -> list[Path]:
    """The files to read, those of folders walked.

    Raises:
      UsageError: `out` is no place for a table.
      JobError: none of the sources is there, or they hold no file.
    """
    check_replaceable(out, headed(",".join(COLUMNS) + "$"), "table of this command")
    if not any(os.path.lexists(source) for source in sources):
        raise JobError(f"{', '.join(map(str, sources))}: not there; give films, or folders that hold some")
    found = [file for source in sources for file in (walk(source) if _is_folder(source) else [source])]
    files = list({file.absolute(): file for file in reversed(found)}.values())[::-1]  # each once
    table = Path(os.path.realpath(out))  # of the last time, and what was left of one that was not finished
    resolved = ((file, Path(os.path.realpath(file))) for file in files)
    files = [file for file, at in resolved if at != table and not unfinished(at, table)]
    if not files:
        raise JobError(f"{', '.join(map(str, sources))}: no file in there; give films, or folders that hold some")
    return files


def predict(predictor: Predictor, files: list[Path], out: Path) -> tuple[Counter[str], Counter[str]]:
    """Writes a row for every file; returns how often each decision was made, and each reason to refuse given."""
    out.parent.mkdir(parents=True, exist_ok=True)
    decisions, reasons = Counter[str](), Counter[str]()
    with whole(out) as path, path.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for file in track(files, "reading films", transient=True):
            answer = _answer(predictor, file)
            decisions[answer.decision] += 1
            reasons.update([answer.reason] if answer.reason else [])
            numbers = ("",) * len(CLASSES) if answer.probabilities is None else answer.probabilities
            cells = (f"{number:.7f}" if number != "" else "" for number in numbers)
            writer.writerow((printable(file), answer.decision, *cells, answer.reason))
    return decisions, reasons


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # and then no file either


def _answer(predictor: Predictor, file: Path) -> Prediction:
    try:
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            return Prediction(REFUSED, reason="the folder cannot be opened")
        if not stat.S_ISREG(found.st_mode):
            return Prediction(REFUSED, reason="not a regular file")  # reading a pipe would wait for ever
        check_length(found.st_size)
        data = file.read_bytes()
    except ImageRefused as refusal:
        return Prediction(REFUSED, reason=str(refusal))
    except OSError as error:
        return Prediction(REFUSED, reason=f"the file cannot be opened ({error.strerror})")
    return predictor.predict_file(data)


if __name__ == "__main__":
    run(main, CheckpointError)
