"""Tables that a terminal shows as a README does: Markdown, padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NO_WIDTH = """\
An interval of no width says only that all patients are alike in this: where the films of none of n patients are wrong,
those of up to 3 in n others like them may be (Hanley and Lippman-Hand 1983)."""
ALIKE = (
    "An interval of no width says only that the two are alike in this on all of these films; on others they may not be."
)
ALONE = ()  # in the place of an interval: the figure is told without one


def widthless(found: Mapping[str, Any], within: bool = False) -> bool:
    """Whether any `interval`, or any of the `intervals`, in nested figures has no width."""
    for name, value in found.items():
        inside = within or name in ("interval", "intervals")
        if isinstance(value, Mapping):
            if widthless(value, inside):
                return True
        elif inside and value and value[0] == value[1]:
            return True
    return False


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells, the first row its head; the first column to the left, the others to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (rows[0], rule, *rows[1:]):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(value: float | None) -> str:
    """Four digits, as few tests have films for more."""
    return "" if value is None else f"{value:.4f}"


def number(value: float | None, interval: Sequence[float] | None = ALONE, form: str = ".3f") -> str:
    """0.98765, (0.98, 0.99) -> "0.988 (0.980 to 0.990)"."""
    if value is None:
        return "not defined"
    return f"{value:{form}}{_between(interval, form)}"


def share(value: float | None, interval: Sequence[float] | None = ALONE, width: int = 0) -> str:
    """0.8126, (0.78, 0.84) -> "81.3 % (78.0 to 84.0)"; `width` lines up what a terminal shows."""
    if value is None:
        return "not defined"
    return f"{format(100 * value, '.1f'):>{width}} %{_between(interval, '.1f', 100)}"


def points(value: float | None, interval: Sequence[float] | None) -> str:
    """-0.002, (-0.012, 0.008) -> "-0.2 points (-1.2 to +0.8)"."""
    if value is None:
        return "not defined"
    return f"{100 * value:+.1f} points{_between(interval, '+.1f', 100)}"


def _between(interval: Sequence[float] | None, form: str, scale: float = 1) -> str:
    if interval is None:
        return " (too few such patients for an interval)"
    if interval == ALONE:
        return ""
    low, high = interval
    return f" ({scale * low:{form}} to {scale * high:{form}})"


def counted(count: int, what: str) -> str:
    """1, "film" -> "1 film"; 5232, "film" -> "5,232 films"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """40 s, 12 min, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
