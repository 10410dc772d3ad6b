"""Which films a network was trained on, including those of the networks that its weights came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def learnt(films: Mapping[str, Any]) -> str:
    """Out of which films a network learns, in words that are equal where they are; those left out count as learnt.

    Args:
      films: their `name` and `fingerprint`, and which of how many `folds` is held out.
    """
    part = f", but for fold {films['fold']} of {films['folds']}" if films["folds"] else ""
    return f"{films['name']} ({films['fingerprint'][:12]}){part}"


def ancestors(origin: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Out of which films weights learnt, and those that they were begun with, as far back as checkpoints tell it."""
    while origin:
        if "learnt" in origin:
            yield origin["learnt"]
        origin = origin.get("origin")


def unchecked(origin: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> bool:
    """Whether weights with this origin learnt films that are cited as these, and were prepared apart from them."""
    return any(
        earlier["citation"] == facts["citation"] and earlier["fingerprint"] != facts["fingerprint"]
        for earlier in ancestors(origin)
    )
