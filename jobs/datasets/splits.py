"""Who goes where: films grouped by patient and by picture, then split, stratified and stable."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Protocol, TypeVar

from jobs import JobError
from model.labels import CLASSES


class Known(Protocol):
    """What of a film decides where it goes."""

    @property
    def patient(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def label(self) -> int: ...


Film = TypeVar("Film", bound=Known)


def patient_groups(films: Iterable[Film]) -> dict[str, list[Film]]:
    """Films by patient, patients who share a picture being one group; keys are stable."""
    parent: dict[str, str] = {}

    def root(patient: str) -> str:
        while parent.setdefault(patient, patient) != patient:
            patient = parent[patient]
        return patient

    first: dict[str, str] = {}
    films = list(films)
    for film in films:
        one, other = root(film.patient), root(first.setdefault(film.content, film.patient))
        parent[max(one, other)] = min(one, other)
    groups: dict[str, list[Film]] = defaultdict(list)
    for film in films:
        groups[root(film.patient)].append(film)
    return dict(groups)


def _ranked(films: Iterable[Film], salt: str) -> dict[int, list[list[Film]]]:
    """The groups of each class, in the order of a hash of their key."""
    by_class: dict[int, list[tuple[str, list[Film]]]] = defaultdict(list)
    for key, members in patient_groups(films).items():
        label = Counter(film.label for film in members).most_common(1)[0][0]
        by_class[label].append((hashlib.sha256(f"{salt}/{key}".encode()).hexdigest(), members))
    return {
        label: [members for _, members in sorted(groups, key=lambda item: item[0])]
        for label, groups in by_class.items()
    }


def hold_out(films: Iterable[Film], fraction: float, salt: str) -> tuple[list[Film], list[Film]]:
    """Splits films into (rest, held out): about `fraction` of the patients of each class are held out.

    The patients are ranked by a hash of their key, so running it again, or with a few films more, moves hardly one.
    At least one patient of each class that has two goes to either side.
    """
    rest: list[Film] = []
    held: list[Film] = []
    for ranked in _ranked(films, salt).values():
        count = min(max(round(fraction * len(ranked)), 1), len(ranked) - 1)
        held += [film for members in ranked[:count] for film in members]
        rest += [film for members in ranked[count:] for film in members]
    return rest, held


def deal(films: Iterable[Film], folds: int, salt: str) -> list[list[Film]]:
    """Deals films into folds that share no patient and hold about as many films of each class.

    The largest groups go first, each to the fold that has the fewest films of its class; groups of a size go in the
    order of a hash. The same films give the same folds.

    Raises:
      JobError: a class has fewer patients than there are folds.
    """
    by_class = sorted(_ranked(films, salt).items())
    for label, ranked in by_class:
        if len(ranked) < folds:
            raise JobError(
                f"{folds} folds need {folds} patients of each class, and {len(ranked)} are {CLASSES[label]}; "
                "take fewer folds, or prepare more films"
            )
    dealt: list[list[Film]] = [[] for _ in range(folds)]
    for _, ranked in by_class:
        counts = [0] * folds
        for members in sorted(ranked, key=len, reverse=True):
            fold = counts.index(min(counts))
            dealt[fold] += members
            counts[fold] += len(members)
    return dealt
