"""Counts what a source of chest X-rays holds, and what in it would flatter a model, before any training.

    python jobs/audit.py --source chest_xray.zip                   a folder or zip in a layout that prepare.py reads
    python jobs/audit.py --source chest_xray --out runs/audit

Prints the facts and writes them to OUT/audit.md, with a picture, OUT/audit.png:

- images and patients by class and by split folder, and how many images a patient has;
- leaks: patients and pictures that stand in two split folders. A patient is whom the name tells, as
  `prepare.py --help` says; what `person<N>` alone would find is shown beside it, as the two series are numbered
  independently and most of its findings are two children of one number;
- files of the same bytes, or that show the same picture: across splits, across classes, under several patients;
- shortcuts: colour mode, size, aspect and file size by class, and how well the aspect alone and the file size alone
  tell the class (a small decision tree, cross-validated by patient). What they tell, a network can learn from;
- files that cannot be used, with the reason.

Nothing is changed. A file that stands in a split twice under one name, as in nested archives, counts once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jobs import check_replaceable, headed, run, whole
from jobs.evaluation import audit as facts
from jobs.evaluation import plots
from jobs.evaluation.audit import Image, Told
from jobs.evaluation.audit_page import HEAD, page

_SOURCE = flags.DEFINE_string("source", None, "A folder or zip of chest X-rays.", required=True)
_OUT = flags.DEFINE_string("out", "runs/audit", "The folder that audit.md and audit.png go into.")


def main() -> None:
    audit(Path(_SOURCE.value), Path(_OUT.value), Console(markup=False))


def audit(source: Path, out: Path, console: Console) -> None:
    """Reads `source`, prints its facts and writes them to `out`."""
    check_replaceable(out / "audit.md", headed(HEAD), "table of an audit")
    if not (out / "audit.md").exists():
        check_replaceable(out / "audit.png", lambda _: False, "picture of an audit")
    out.mkdir(parents=True, exist_ok=True)
    with Progress(
        TextColumn("reading"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(), console=console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        contents = facts.collect(source, lambda done, total: bar.update(task, completed=done, total=total or None))
    images = contents.images
    told = {
        "aspect": facts.tell(images, np.array([image.width_px / image.height_px for image in images])),
        "file size": facts.tell(images, np.array([image.size_bytes for image in images])),
    }
    text = page(source, contents, told)
    with whole(out / "audit.md") as scratch:
        scratch.write_text(text, encoding="utf-8")
    columns = {name: np.array(column) for name, column in zip(Image._fields, zip(*images, strict=True), strict=True)}
    with whole(out / "audit.png") as scratch:
        plots.audit(columns, {name: found.auroc for name, found in told.items() if isinstance(found, Told)}, scratch)
    print(f"{text}\nWritten to {out / 'audit.md'} and {out / 'audit.png'}")


if __name__ == "__main__":
    run(main)
