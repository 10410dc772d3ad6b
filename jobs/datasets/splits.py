"""Who goes where: films grouped by patient and by content, then split, stratified and stable."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable

from jobs.datasets.films import Film


def patient_groups(films: Iterable[Film]) -> dict[str, list[Film]]:
    """Films by patient, patients who share a file's content being one group; keys are stable."""
    parent: dict[str, str] = {}

    def root(patient: str) -> str:
        while parent.setdefault(patient, patient) != patient:
            patient = parent[patient]
        return patient

    first: dict[str, str] = {}
    films = list(films)
    for film in films:
        one, other = root(film.patient), root(first.setdefault(film.sha256, film.patient))
        parent[max(one, other)] = min(one, other)
    groups: dict[str, list[Film]] = defaultdict(list)
    for film in films:
        groups[root(film.patient)].append(film)
    return dict(groups)


def hold_out(films: Iterable[Film], fraction: float, salt: str) -> tuple[list[Film], list[Film]]:
    """Splits films into (rest, held out): about `fraction` of the patients of each class are held out.

    The patients are ranked by a hash of their key, so running it again, or with a few films more, moves hardly one.
    At least one patient of each class that has two goes to either side.
    """
    by_class: dict[int, list[tuple[str, list[Film]]]] = defaultdict(list)
    for key, members in patient_groups(films).items():
        label = Counter(film.label for film in members).most_common(1)[0][0]
        by_class[label].append((hashlib.sha256(f"{salt}/{key}".encode()).hexdigest(), members))
    rest: list[Film] = []
    held: list[Film] = []
    for ranked in by_class.values():
        ranked.sort(key=lambda item: item[0])
        count = min(max(round(fraction * len(ranked)), 1), len(ranked) - 1)
        held += [film for _, members in ranked[:count] for film in members]
        rest += [film for _, members in ranked[count:] for film in members]
    return rest, held
