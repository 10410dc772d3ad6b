"""A folder or zip of chest X-rays -> films with split, label and patient, and what had to be set aside.

Read are the Kaggle layout (train|val|test / NORMAL|PNEUMONIA, bacteria or virus in the file name), the archive's own
(the same without val) and three folders (bacteria|bacterial, normal, viral|virus), with or without splits above them.
Spellings such as "Viral Pneumonia" and "Testing" are read, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath

from jobs import JobError
from jobs.datasets.chest_xray.files import File, files
from jobs.datasets.films import Film, counts, png
from jobs.datasets.splits import hold_out, patient_groups
from model.labels import BACTERIAL, CLASSES, NORMAL, VIRAL
from model.outliers import objection
from model.preprocess import ImageRefused, decode, resize

VALIDATION_FRACTION = 0.12  # of the patients of each class
SPLIT_SALT = "pneumoscope"  # changing it moves every patient

POOL = "train+val"
_SPLIT_FOLDER = re.compile(r"(train|val|valid|validation|test)(?:ing|s)?(?:[-_ ]?(?:set|data))?", re.IGNORECASE)
_CLASS_FOLDERS = {
    "bacteria": BACTERIAL,
    "bacterial": BACTERIAL,
    "normal": NORMAL,
    "viral": VIRAL,
    "virus": VIRAL,
}
_PNEUMONIA = "pneumonia"
_KIND = re.compile(r"bacteria|virus|viral|(?<![a-z])normal(?![a-z])", re.IGNORECASE)  # not in "normalized"
# One patient, several films. The numbers of the bacterial and the viral series are independent of each other; IM-<N>
# counts patients among the normal films alone, for elsewhere it is the number that a viewer gives to a series.
_PATIENT = re.compile(
    r"^(?P<person>person\d+_(?:bacteria|virus))_\d+"
    r"|^(?P<normal>(?:NORMAL2-)?IM-\d+)(?:-\d+)*"
    r"|^(?P<coded>(?:BACTERIA|VIRUS|NORMAL)-\d+)-\d+",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class SetAside:
    """A file that is in no split, and why; or one that is, though it is refused where it is opened to be answered."""

    file: str
    split: str
    reason: str  # unreadable | unlabelled | tested | duplicate | conflicting | kept
    detail: str


@dataclasses.dataclass(frozen=True)
class Sorted:
    """A source, sorted."""

    splits: dict[str, list[Film]]
    quarantine: list[SetAside]
    objected: list[SetAside]  # what speaks against films that are in the splits all the same


def sort(source: Path, advance: Callable[[int, int], None] = lambda done, total: None) -> Sorted:
    """Reads every file of a source and gives each a place.

    Args:
      source: a folder or a zip file.
      advance: called with (files done, files in all).

    Returns:
      The splits `train`, `validation` and `test` (those with films), stable under re-running.

    Raises:
      JobError: no images, an empty class, or train and test sharing a patient, a file's content or a picture.
    """
    pools: dict[str, list[Film]] = defaultdict(list)
    quarantine: list[SetAside] = []
    objected: list[SetAside] = []
    for file, outcome in read(source, advance):
        if isinstance(outcome, SetAside):
            quarantine.append(outcome)
            continue
        film, against = outcome
        pools[_split(file.path)].append(film)
        if against:
            objected.append(SetAside(file.path, _split(file.path), "kept", against))
    quarantine += _tested(pools)
    quarantine += _conflicts(pools)
    quarantine += _duplicates(pools)
    _check(source, pools, quarantine)
    kept = {film.name for films in pools.values() for film in films}
    objected = [entry for entry in objected if entry.file in kept]
    # Train and validation together: cross-validation deals them anew.
    pools = {pool: _unique_names(films) for pool, films in pools.items()}
    splits = {"test": pools["test"]} if pools.get("test") else {}
    if pools.get(POOL):
        splits["train"], splits["validation"] = hold_out(pools[POOL], VALIDATION_FRACTION, SPLIT_SALT)
    return Sorted(splits, quarantine, objected)


def read(
    source: Path, advance: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tuple[File, tuple[Film, str | None] | SetAside]]:
    """Each file of a source, in order of path, with its film and what speaks against that, or why it has none.

    A few files are decoded ahead, so that memory holds a few sources and not all.

    Args:
      source: a folder or a zip file.
      advance: called with (files done, files in all).

    Raises:
      JobError: the source is neither.
    """
    total, stream = files(source)
    own = source.resolve().stem if source.is_file() else source.resolve().name
    if _split(f"{own}/film") == "test":  # the folder of a test split alone, which is no less one for it
        stream = (dataclasses.replace(file, path=f"{own}/{file.path}") for file in stream)
    with ThreadPoolExecutor() as threads:  # Pillow decodes outside the interpreter's lock
        waiting: deque[tuple[File, Future]] = deque()
        for done in range(1, total + 1):
            waiting.extend((file, threads.submit(_film, file)) for file in islice(stream, 64 - len(waiting)))
            file, future = waiting.popleft()
            yield file, future.result()
            advance(done, total)


def split_folder(path: str) -> str:
    """The split folder nearest the file, in lower case; empty where the file stands in none."""
    folders = reversed(PurePosixPath(path).parts[:-1])
    return next((folder.lower() for folder in folders if _SPLIT_FOLDER.fullmatch(folder)), "")


def _split(path: str) -> str:
    """The test split or the pool."""
    return "test" if split_folder(path).startswith("test") else POOL


def _film(file: File) -> tuple[Film, str | None] | SetAside:
    """One file -> the film and why it would be refused where it is to be answered, or why it is set aside."""

    def aside(reason: str, detail: str) -> SetAside:
        return SetAside(file.path, _split(file.path), reason, detail)

    path = PurePosixPath(file.path)
    if path.name.startswith(".") or "__MACOSX" in path.parts:
        return aside("unreadable", "a system file, not an image")
    folder = path.parts[-2] if len(path.parts) > 1 else ""
    label = _class(folder)
    kinds = {_kind(match) for match in _KIND.findall(path.stem)}
    if len(kinds) > 1:
        return aside("conflicting", f"the name says {' and '.join(CLASSES[kind] for kind in sorted(kinds))}")
    named = kinds.pop() if kinds else None
    if folder.lower() == _PNEUMONIA:
        if named is None:
            return aside("unlabelled", "in a pneumonia folder, but the name says neither bacteria nor virus")
        if named == NORMAL:
            return aside("conflicting", "in a pneumonia folder, but the name says normal")
        label = named
    elif label is None:
        return aside("unlabelled", f"it stands in no folder of a class ({', '.join(_CLASS_FOLDERS)}, pneumonia)")
    elif named is not None and named != label:
        return aside("conflicting", f"in the folder {folder!r}, but the name says {CLASSES[named]}")
    if file.unread:
        return aside("unreadable", file.unread)
    try:
        decoded = decode(file.data)
    except ImageRefused as refusal:
        return aside("unreadable", str(refusal))
    # Of the test split apart, for numbers may begin anew there.
    unnamed = f"{'test/' if _split(file.path) == 'test' else ''}{CLASSES[label]}/{path.stem}"
    patient = _patient(path.name, label) or unnamed
    digest = hashlib.sha256(file.data).hexdigest()
    square = png(resize(decoded.pixels))
    film = Film(file.path, patient, label, square, digest, decoded.width, decoded.height, decoded.mode)
    return film, objection(decoded)


def _patient(name: str, label: int) -> str | None:
    """The patient whom the name of a file names, spelled one way."""
    match = _PATIENT.match(name)
    if not match or not match.lastgroup or (match.lastgroup == "normal" and label != NORMAL):
        return None
    patient = match[match.lastgroup]
    return patient.lower() if match.lastgroup == "person" else patient.upper()


def _kind(word: str) -> int:
    return _CLASS_FOLDERS[word.lower()]


def _class(folder: str) -> int | None:
    """The class whose films a folder holds; "Viral Pneumonia" says it, too."""
    words = set(re.findall("[a-z]+", folder.lower())) - {_PNEUMONIA}
    return _CLASS_FOLDERS.get(words.pop()) if len(words) == 1 else None


def _same(pool: str, film: Film) -> str:
    """Equal for copies: files of the same bytes; in the pool, whatever shows the same picture."""
    return film.sha256 if pool == "test" else film.content


def _tested(pools: dict[str, list[Film]]) -> list[SetAside]:
    """Sets aside the pooled films of patients of whom a picture stands in the test split, saved anew.

    The official test split is left as published. A file of it in the pool, byte for byte, is for `_check` to refuse.
    """
    tested = {film.content: film.name for film in pools["test"]}
    published = {film.sha256 for film in pools["test"]}
    aside = {}
    for films in patient_groups(pools[POOL]).values():
        shown = next((film for film in films if film.content in tested), None)
        if shown is None or any(film.sha256 in published for film in films):
            continue
        same = f"the same picture as {tested[shown.content]}"
        for film in films:
            why = f"{same}, saved anew" if film is shown else f"of the patient of {shown.name}, which is {same}"
            aside[film.name] = SetAside(film.name, POOL, "tested", why)
    pools[POOL] = [film for film in pools[POOL] if film.name not in aside]
    return list(aside.values())


def _conflicts(pools: dict[str, list[Film]]) -> list[SetAside]:
    """Sets aside copies with different labels within a pool; what train and test share is for `_check` to refuse."""
    aside = []
    for pool, films in pools.items():
        labels = defaultdict(set)
        for film in films:
            labels[_same(pool, film)].add(film.label)
        clash = [film for film in films if len(labels[_same(pool, film)]) > 1]
        aside += [
            SetAside(film.name, pool, "conflicting", "the same picture stands elsewhere under another class")
            for film in clash
        ]
        pools[pool] = [film for film in films if len(labels[_same(pool, film)]) == 1]
    return aside


def _duplicates(pools: dict[str, list[Film]]) -> list[SetAside]:
    """Sets aside second copies: in the pool any, in the test split only the same file name twice.

    The official test split is left as published. Copies of a pooled film hand their patients to the first, so that
    patients who share a picture stay on one side of the split.
    """
    aside = []
    for pool, films in pools.items():
        merged = {film.patient: key for key, group in patient_groups(films).items() for film in group}
        first: dict[tuple[str, str], Film] = {}
        kept = []
        for film in films:
            key = (_same(pool, film), PurePosixPath(film.name).name if pool == "test" else "")
            other = first.get(key)
            if other:
                same = "bytes" if film.sha256 == other.sha256 else "picture"
                aside.append(SetAside(film.name, pool, "duplicate", f"the same {same} as {other.name}"))
            else:
                first[key] = film
                patient = film.patient if pool == "test" else merged[film.patient]
                kept.append(dataclasses.replace(film, patient=patient))
        pools[pool] = kept
    return aside


def _check(source: Path, pools: dict[str, list[Film]], quarantine: list[SetAside]) -> None:
    """Raises JobError where the films cannot make a dataset."""
    aside = "; ".join(
        f"{count} {entry.reason}, as {entry.file}: {entry.detail}" for entry, count in reasons(quarantine)[:3]
    )
    if not any(pools.values()):
        raise JobError(
            f"no usable image in {source} ({aside or 'it holds no files'}); "
            "the layouts that are read: train|test / NORMAL|PNEUMONIA, or bacterial, normal, viral folders"
        )
    # Films to test on alone may be of one class: a hospital's normal films tell the specificity there.
    for pool, films in pools.items() if pools[POOL] else ():
        empty = [CLASSES[label] for label in range(len(CLASSES)) if films and not counts(films)[label]]
        if empty:
            where = "the test folder" if pool == "test" else "what is no test folder"
            raise JobError(
                f"no {' and no '.join(empty)} film in {where} of {source}; every class needs some"
                + ("" if pool == "test" else ". To measure a model on these alone, put them into a folder named test")
                + (f". Set aside: {aside}" if aside else "")
            )
    for what, of in (
        ("patient", lambda film: film.patient),
        ("content", lambda film: film.sha256),
        ("picture", lambda film: film.content),
    ):
        test = {of(film): film.name for film in pools["test"]}
        shared = [(film.name, test[of(film)]) for film in pools[POOL] if of(film) in test]
        if shared:
            examples = "; ".join(f"{one} and {other}" for one, other in shared[:3])
            raise JobError(
                f"train and test share a {what} in {len(shared)} files of {source} ({examples}); "
                "remove them from one side: results on such a test would be worth nothing"
            )


def reasons(quarantine: list[SetAside]) -> list[tuple[SetAside, int]]:
    """Why files are set aside, the most common reason first: the first file of each, and how many there are."""
    first = {(entry.reason, entry.detail): entry for entry in reversed(quarantine)}
    common = Counter((entry.reason, entry.detail) for entry in quarantine).most_common()
    return [(first[why], count) for why, count in common]


def _unique_names(films: list[Film]) -> list[Film]:
    """File names alone where they are unique, paths within the source where they are not."""
    times = Counter(PurePosixPath(film.name).name for film in films)
    return [
        dataclasses.replace(film, name=name) if times[name := PurePosixPath(film.name).name] == 1 else film
        for film in films
    ]
