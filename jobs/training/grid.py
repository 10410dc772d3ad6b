"""A grid of configs: what is typed, the runs that it means, and their ranks."""

from __future__ import annotations

import ast
import copy
import csv
import difflib
import itertools
import math
import re
import urllib.parse
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from jobs import UsageError, check_replaceable, headed, whole
from jobs.evaluation import tables
from jobs.training.loop import score
from jobs.training.plan import FIGURES, flatten, plain
from jobs.training.runs import Run, seconds
from model import checkpoint

FILES = ("sweep.md", "sweep.csv")
SHARED = ("objective", "data.dir", "data.dataset", "data.folds", "data.fold")  # or figures are of other films
NAME_BYTES = 255  # of a file or a folder, on the common file systems

NOTE = """The figures of a run are those of its best epoch. The first row is the best of many on the same validation
films, which flatters it: measure it again on films that had no say, or with jobs/crossval.py."""


class Cell(NamedTuple):
    """One cell of the grid."""

    values: dict[str, Any]  # by field
    run: Run


class Row(NamedTuple):
    """What became of one; without figures where it diverged."""

    cell: Cell
    figures: dict[str, float | None]  # of the best epoch, by the names of the log
    epoch: int = 0  # the best
    parameters: int = 0
    seconds: float = 0.0  # of all epochs


def parse(grid: str, config: ConfigDict) -> dict[str, list[Any]]:
    """The values of each field of a grid such as `learning_rate=1e-3,2e-3;mixup=0,.2`.

    Raises:
      UsageError: a field that there is not or that could be several, or a value that is not of its type.
    """
    fields = flatten(plain(config))
    parsed: dict[str, list[Any]] = {}
    for part in filter(None, (part.strip() for part in grid.split(";"))):
        name, _, texts = part.partition("=")
        if not name.strip() or not texts.strip():
            raise UsageError(f"--grid has {part!r}; FIELD=VALUE,VALUE is needed, such as learning_rate=1e-3,2e-3")
        field = resolve(name.strip(), list(fields))
        if field.startswith("select.") or field in SHARED:
            raise UsageError(
                f"--grid has {field}, which runs that are ranked must share; set it for all: --config.{field}=VALUE"
                + ("; python jobs/crossval.py holds out every fold" if "fold" in field else "")
            )
        if field in parsed:
            raise UsageError(f"--grid has {field} twice; give all of its values at once, separated by commas")
        # A comma inside of parentheses is one of a tuple; of braces or brackets, one of a regular expression.
        parts = re.split(r",(?![^([{]*[])}])", texts)
        values = [_value(text.strip(), field, fields[field]) for text in parts]
        for value in values:
            if values.count(value) > 1:
                raise UsageError(f"--grid has {field}={value} twice; once is enough")
        parsed[field] = values
    if not parsed:
        raise UsageError("--grid is empty; give fields and values, such as 'learning_rate=1e-3,2e-3;mixup=0,.2'")
    return parsed


def resolve(name: str, fields: Sequence[str]) -> str:
    """The one field that `name` means: its path, the end of that, or the beginning or end of its last part.

    Raises:
      UsageError: none or several fit; the message lists them.
    """
    leaves = {field: field.rpartition(".")[2] for field in fields}
    for fitting in (
        [field for field in fields if field == name],
        [field for field in fields if field.endswith(f".{name}")],
        [field for field, leaf in leaves.items() if leaf.startswith(name) or leaf.endswith(name)],
    ):
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UsageError(f"--grid has {name!r}, which could be {' or '.join(fitting)}; write one of them out")
    near = difflib.get_close_matches(name.rpartition(".")[2], leaves.values())
    meant = [field for field, leaf in leaves.items() if leaf in near]
    known = f"did you mean {' or '.join(meant)}?" if meant else f"known: {', '.join(fields)}"
    raise UsageError(f"--grid has {name!r}, which is no field; {known}")


def _value(text: str, field: str, default: Any) -> Any:
    """`text` as a value of the type that `default` has."""
    kind = type(default)
    if kind is list:
        raise UsageError(
            f"--grid has {field}, which is a list; give a field of one of its entries, such as {field}[0].epochs"
        )
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is tuple:
            values = ast.literal_eval(text)
            kinds = [{type(value) for value in one} for one in (values, default)]
            if not isinstance(values, tuple) or (all(kinds) and kinds[0] != kinds[1]):
                raise ValueError
            return values
        return kind(text)
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise UsageError(
            f"--grid has {field}={text}; {text!r} is not of type {kind.__name__}, like the default {default!r}"
        ) from error


def plan(config: ConfigDict, workdir: Path, grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """The cells of the grid; their folders are named for their values, whatever order the grid was typed in.

    Raises:
      UsageError: such a name is too long for a folder; or a table in `workdir` is none of a sweep.
    """
    for name, head in zip(FILES, (r"# [\d,]+ runs? by ", "run,"), strict=True):
        check_replaceable(workdir / name, headed(head), "table of a sweep", "--workdir")
    cells = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        changed = copy.deepcopy(config)
        for field, value in values.items():
            config_path.set_value(field, changed, value)
        name = ",".join(f"{field}={_text(values[field])}" for field in sorted(values))
        folder = urllib.parse.quote(name, safe="=,.+-()")  # a value may be a path
        if len(folder) > NAME_BYTES:
            raise UsageError(
                f"--grid makes a run whose folder is named {folder!r}, {len(folder)} bytes, and {NAME_BYTES} is the "
                "most; give shorter values, or fewer fields at once"
            )
        cells.append(Cell(values, Run(name, workdir / folder, changed)))
    return cells


def _text(value: Any) -> str:
    return str(value).replace(" ", "")


def rank(cells: Sequence[Cell], diverged: Container[Path], metric: str) -> list[Row]:
    """A row a cell, the best first and those that diverged last.

    Args:
      cells: those of `plan`, trained.
      diverged: workdirs of those that did.
      metric: that of config.select.
    """
    rows = []
    for cell in cells:
        if cell.run.workdir in diverged:
            rows.append(Row(cell, {}))
            continue
        meta = checkpoint.load(cell.run.workdir, "best").meta
        figures = {name: meta["metrics"][name] for name in FIGURES}
        rows.append(Row(cell, figures, meta["epoch"], checkpoint.parameters(meta), round(seconds(cell.run.workdir), 1)))

    # A best epoch of a score that is not finite has no place among the others, either.
    return sorted(rows, key=lambda row: score(row.figures, metric) if row.figures else -math.inf, reverse=True)


def document(rows: Sequence[Row], metric: str) -> str:
    """The contents of sweep.md."""
    figures = [metric, *(name for name in FIGURES if name != metric)]
    table = [[*rows[0].cell.values, *figures, "epoch", "parameters", "time"]]
    for row in rows:
        values = [_text(value) for value in row.cell.values.values()]
        if row.figures:
            cost = [str(row.epoch), f"{row.parameters:,}", tables.duration(row.seconds)]
            table.append([*values, *(tables.figure(row.figures[name]) for name in figures), *cost])
        else:
            table.append([*values, "diverged", *[""] * (len(figures) + 2)])
    return f"# {tables.counted(len(rows), 'run')} by {metric}\n\n{tables.markdown(table)}\n\n{NOTE}"


def write(rows: Sequence[Row], metric: str, workdir: Path) -> None:
    """Writes sweep.md and sweep.csv; where a run diverged, the cells of its figures are empty."""
    with whole(workdir / "sweep.md") as path:
        path.write_text(document(rows, metric) + "\n", encoding="utf-8")
    with whole(workdir / "sweep.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["run", *rows[0].cell.values, *FIGURES, "epoch", "parameters", "seconds"])
        writer.writeheader()
        for row in rows:
            cost = {"epoch": row.epoch, "parameters": row.parameters, "seconds": row.seconds} if row.figures else {}
            writer.writerow({"run": row.cell.run.workdir.name} | row.cell.values | row.figures | cost)
