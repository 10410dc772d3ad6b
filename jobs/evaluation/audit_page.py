"""What an audit found, as Markdown that reads well in a terminal too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jobs import printable
from jobs.datasets.chest_xray.source import reasons
from jobs.datasets.films import named
from jobs.evaluation.audit import Contents, Image, Told, duplicates, folders, person, shared
from jobs.evaluation.tables import counted, markdown, number
from model.labels import CLASSES

HEAD = r"# .*: [\d,]+ images? of [\d,]+ patients?$"  # the first line of a page
LISTED = 10  # leaks and reasons that are spelled out; the others are counted


def page(source: Path, contents: Contents, told: Mapping[str, Told | str]) -> str:
    """The facts as Markdown that reads well in a terminal too."""
    images = contents.images
    patients = len({image.patient for image in images})
    name = " ".join(printable(Path(source.resolve().name)).split())
    blocks = [f"# {name}: {counted(len(images), 'image')} of {counted(patients, 'patient')}"]
    if contents.copies:
        blocks.append(f"{contents.copies:,} files repeat another of their split, name and all; they count once.")
    if unnamed := sum(not named(image.patient) for image in images):
        blocks.append(f"Of {counted(unnamed, 'image')} no patient is named; each counts as a patient of its own.")
    blocks += ["## Images (patients)", markdown(_counts(images))]
    blocks += ["## Patients", markdown(_patients(images)), *_leaks(images)]
    blocks += [
        "## Byte-identical files, and files that show the same picture",
        markdown(_duplicates(images)),
        *_contradictions(images),
    ]
    blocks += ["## Files by class: median (5 % to 95 %)", markdown(_files(images))]
    sizes = {(image.width_px, image.height_px) for image in images}
    if len(sizes) == 1:
        blocks.append("All files are {} x {} px.".format(*sizes.pop()))
    blocks += ["## The class, told without looking at the picture", *_told(told)]
    blocks += ["## Files that are not used", *_set_aside(contents)]
    return "\n\n".join(blocks) + "\n"


def _counts(images: Sequence[Image]) -> list[list[str]]:
    columns = (*folders(images), "all")
    rows = [["class", *columns]]
    for name in (*CLASSES, "all"):
        of_class = [image for image in images if name in ("all", CLASSES[image.label])]
        row = [name]
        for folder in columns:
            patients = [image.patient for image in of_class if folder in ("all", image.folder)]
            row.append(f"{len(patients):,} ({len(set(patients)):,})")
        rows.append(row)
    return rows


def _patients(images: Sequence[Image]) -> list[list[str]]:
    """A column a key."""
    columns = [["", "patients", "images of one: median", "images of one: most"]]
    for name, key in (("number and kind", lambda image: image.patient), ("person<N> alone", person)):
        times = list(Counter(map(key, images)).values())
        common = shared(images, key)
        columns.append([name, f"{len(times):,}", f"{np.median(times):g}", f"{max(times)}"])
        columns[-1] += [f"{len(found):,}" for found in common.values()]
    columns[0] += [f"in both {one} and {other}" for one, other in common]
    return [list(row) for row in zip(*columns, strict=True)]


def _leaks(images: Sequence[Image]) -> list[str]:
    """What stands in two split folders, by name."""
    name_of = {image.content: image.name for image in reversed(images)}
    leaks = [
        f"- {what} in both {one} and {other}: {len(found):,}: "
        + ", ".join(sorted(map(shown, found))[:LISTED])
        + (" ..." if len(found) > LISTED else "")
        for what, key, shown in (
            ("patients", lambda image: image.patient, str),
            ("pictures", lambda image: image.content, name_of.__getitem__),
        )
        for (one, other), found in shared(images, key).items()
        if found
    ]
    if leaks:
        return ["**Leaks:**", "\n".join(leaks)]
    if len(folders(images)) == 1:
        return ["There is one folder only, so nothing can leak from one into another."]
    return ["No leaks: no patient and no picture stands in two folders."]


def _duplicates(images: Sequence[Image]) -> list[list[str]]:
    rows = [
        ["files with the same", "groups", "files", "groups across splits", "across classes", "under several patients"]
    ]
    for what, key in (("bytes", lambda image: image.sha256), ("picture", lambda image: image.content)):
        groups = duplicates(images, key)
        across = [
            sum(len({getattr(image, field) for image in group}) > 1 for group in groups)
            for field in ("folder", "label", "patient")
        ]
        rows.append([what, *(f"{count:,}" for count in (len(groups), sum(map(len, groups)), *across))])
    return rows


def _contradictions(images: Sequence[Image]) -> list[str]:
    """The files that stand under several classes, by name."""
    groups = [
        group for group in duplicates(images, lambda image: image.content) if len({image.label for image in group}) > 1
    ]
    if not groups:
        return []
    lines = [
        "- " + ", ".join(f"{image.name} ({CLASSES[image.label]})" for image in sorted(group))
        for group in groups[:LISTED]
    ]
    lines += ["- ..."] if len(groups) > LISTED else []
    return [
        "**One picture, several classes;** `prepare.py` sets these aside (of the test folder, the same bytes alone):",
        "\n".join(lines),
    ]


def _files(images: Sequence[Image]) -> list[list[str]]:
    by_class = [[image for image in images if image.label == label] for label in range(len(CLASSES))]
    modes = sorted({image.mode for image in images})
    rows = [["", *CLASSES]]
    rows += [[f"mode {mode}", *(f"{sum(i.mode == mode for i in members):,}" for members in by_class)] for mode in modes]
    for name, form, value in (
        ("width, px", ".0f", lambda image: image.width_px),
        ("height, px", ".0f", lambda image: image.height_px),
        ("aspect, width / height", ".2f", lambda image: image.width_px / image.height_px),
        ("file size, kB", ".1f", lambda image: image.size_bytes / 1000),
    ):
        row = [name]
        for members in by_class:
            values = [value(image) for image in members] or [np.nan]
            low, median, high = np.percentile(values, (5, 50, 95))
            row.append(f"{median:{form}} ({low:{form}} to {high:{form}})" if members else "")
        rows.append(row)
    return rows


def _told(told: Mapping[str, Told | str]) -> list[str]:
    rows = [["from", "balanced accuracy (95 % interval)", "of a guess", "AUROC, pneumonia"]]

    def stated(found: Told, name: str) -> str:
        return number(getattr(found, name), found.intervals[name])

    sentences = []
    for name, found in told.items():
        if isinstance(found, str):
            sentences.append(f"The {name} {found}.")
        else:
            rows.append([name, stated(found, "balanced_accuracy"), f"{found.chance:.3f}", stated(found, "auroc")])
    return [markdown(rows), *sentences] if len(rows) > 1 else sentences


def _set_aside(contents: Contents) -> list[str]:
    why = reasons(contents.set_aside)
    if not why:
        return ["None."]
    lines = [f"- {count:,} {one.reason}: {one.detail} (such as {one.file})" for one, count in why[:LISTED]]
    if len(why) > LISTED:
        lines.append(f"- and {sum(count for _, count in why[LISTED:]):,} for other reasons")
    kinds = Counter(entry.reason for entry in contents.set_aside).most_common()
    return [", ".join(f"{count:,} {kind}" for kind, count in kinds) + ":", "\n".join(lines)]
