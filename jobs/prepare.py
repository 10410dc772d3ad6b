"""Prepares a dataset for training: reads a source, splits it by patient, writes it as TFDS ArrayRecord files.

    python jobs/prepare.py --source download --data_dir data       the published archive (1.2 GB, CC BY 4.0)
    python jobs/prepare.py --source chest_xray.zip --data_dir data a folder or zip in the Kaggle layout, or with
                                                                   bacterial, normal and viral folders
    python jobs/prepare.py --source phantom --data_dir data        synthetic films, in seconds, to try things out
    python jobs/prepare.py --source my_films --data_dir mine --license "not public" --citation "Our hospital, 2026"

The official test folder is left as it is, also where it is the whole source (--source chest_xray/test); everything else
is pooled, files that show the same picture are merged, and about 12 % of the patients of each class are held out for
validation. Files that cannot be used are listed, with the reason, in DATA_DIR/quarantine.csv, and so are films that are
kept though they are refused where they are opened to be answered: blank, coloured or far too wide. Running it again
gives the same splits. Prepared films are never overwritten by films with another citation, by a set that lacks one of
their splits, or by a source that has no film in common with them.

The names of films tell which of them are of one patient: person12_bacteria_3, person12_virus_7, IM-0115-0001 and
NORMAL2-IM-0115-0001 (normal films alone), BACTERIA-12-3, VIRUS-12-3 and NORMAL-12-3 are of the patient whom all but the
last number names. A film with any other name counts as a patient of its own, except that films of one class with the
same name, in whatever folders, count as one patient.
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jobs import UsageError, check_replaceable, headed, printable, run, whole
from jobs.datasets import films
from jobs.datasets.chest_xray.builder import ChestXray
from jobs.datasets.chest_xray.download import download
from jobs.datasets.chest_xray.source import Sorted, reasons, sort
from jobs.datasets.phantom import builder as phantom
from jobs.datasets.phantom.drawing import COUNT
from jobs.datasets.splits import hold_out
from jobs.evaluation.tables import counted
from model.labels import CLASSES

LISTED = ("file", "split", "reason", "detail")  # of what is set aside

_SOURCE = flags.DEFINE_string(
    "source", None, "'download', 'phantom', or the path of a folder or zip of chest X-rays.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where the prepared dataset goes.")
_LICENSE = flags.DEFINE_string("license", None, "Licence of films that are not the published ones, as 'CC0'.")
_CITATION = flags.DEFINE_string("citation", None, "Whose films they are, and of whom, if not the published ones.")


def main() -> None:
    given = {"license": _LICENSE.value, "citation": _CITATION.value}
    whose = {name: value or "not stated" for name, value in given.items()} if any(given.values()) else None
    if whose and _SOURCE.value in ("download", "phantom"):
        raise UsageError(f"the licence and citation of {_SOURCE.value} are known; leave --license and --citation out")
    prepare(_SOURCE.value, Path(_DATA_DIR.value), Console(markup=False), whose)


def prepare(source: str, data_dir: Path, console: Console, whose: Mapping[str, str] | None = None) -> Path:
    """Prepares `source` into `data_dir` and prints what went where; returns the dataset's folder.

    `whose` are the `license` and `citation` of films that are not the published ones.
    """
    listed = data_dir / "quarantine.csv"
    check_replaceable(listed, headed(",".join(LISTED) + "$"), "table of this command", "--data_dir")
    if (name := printable(data_dir)) != data_dir.as_posix():
        raise UsageError(f"--data_dir is {name}, no UTF-8, by which prepared films could not be read; give another")
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=data_dir):  # a place that cannot be is known before the work
        pass
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(), console=console, transient=True,
    ) as bar:  # fmt: skip

        def progress(description: str):
            task = bar.add_task(description, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total or None)

        builder: type[films.FilmBuilder] = phantom.Phantom if source == "phantom" else ChestXray
        films.spare_others(builder, data_dir, (whose or {}).get("citation", builder.CITATION))
        if source == "phantom":
            sorted_films = _phantoms(progress("drawing"))
        else:
            path = download(data_dir / "downloads", progress("downloading")) if source == "download" else Path(source)
            sorted_films = sort(path, progress("reading"))
    folder = films.write(builder, sorted_films.splits, data_dir, printable(Path(Path(source).resolve().name)), whose)
    _report(sorted_films, folder, console)
    if source not in ("phantom", "download") and not whose:
        console.print(
            f"Recorded as films of the published dataset, licence {builder.LICENSE}. If they are others, prepare them "
            "with --license and --citation, which checkpoints, cards and the page repeat.",
            soft_wrap=True,
        )
    if source != "phantom":
        _write_quarantine(sorted_films, listed, console)
    return folder


def _phantoms(advance) -> Sorted:
    drawn = []
    for index in range(COUNT):
        drawn.append(phantom.film(index))
        advance(index + 1, COUNT)
    rest, test = hold_out(drawn, 0.2, "phantom test")
    train, validation = hold_out(rest, 0.15, "phantom validation")
    return Sorted({"train": train, "validation": validation, "test": test}, [], [])


def _report(sorted_films: Sorted, folder: Path, console: Console) -> None:
    table = Table("class", *films.SPLITS, title=f"{folder.parent.name}: images (patients)")
    for row in films.table(sorted_films.splits):
        table.add_row(*row)
    console.print(table)
    absent = [split for split in films.SPLITS if not sorted_films.splits.get(split)]
    if absent:
        console.print(f"The source has no {' and no '.join(absent)} split; what needs one will say so.")
    test = sorted_films.splits.get("test", [])
    lacking = [name for label, name in enumerate(CLASSES) if test and not films.counts(test)[label]]
    if lacking:
        console.print(f"The test split has no {' and no '.join(lacking)} film; figures that need some are not defined.")
    pooled = [film for split in ("train", "validation") for film in sorted_films.splits.get(split, [])]
    few = [
        name for label, name in enumerate(CLASSES)
        if pooled and len({film.patient for film in pooled if film.label == label}) < 2
    ]  # fmt: skip
    if few:
        console.print(
            f"Of {' and of '.join(few)} there is one patient; to train, two of each class are needed, one of whom is "
            "held out.",
            soft_wrap=True,
        )
    patients = [film.patient for split in sorted_films.splits.values() for film in split]
    both = "stand on both sides of a split, and " if len(films.SPLITS) - len(absent) > 1 else ""
    if unnamed := sum(not films.named(patient) for patient in patients):
        console.print(
            f"{unnamed} of {len(patients)} films name no patient (--help says how names do); each counts as of one of "
            f"its own, so films of one child may {both}make intervals too narrow.",
            soft_wrap=True,
        )
    if sorted_films.objected:
        common = reasons(sorted_films.objected)[:3]
        told = "; ".join(f"{count} as {entry.file}: {entry.detail}" for entry, count in common)
        console.print(
            "Kept, though predict.py and the page refuse to answer them: "
            f"{counted(len(sorted_films.objected), 'film')}, {told}",
            soft_wrap=True,
        )
    console.print(f"Written to {folder}", soft_wrap=True)


def _write_quarantine(sorted_films: Sorted, path: Path, console: Console) -> None:
    with whole(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(LISTED)
        entries = sorted_films.quarantine + sorted_films.objected
        writer.writerows((entry.file, entry.split, entry.reason, entry.detail) for entry in entries)
    aside = Counter(entry.reason for entry in sorted_films.quarantine)
    told = ", ".join(f"{count} {reason}" for reason, count in aside.most_common()) or "nothing"
    console.print(f"Set aside: {told} (see {path})", soft_wrap=True)


if __name__ == "__main__":
    run(main)
