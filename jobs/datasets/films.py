"""A prepared dataset: TFDS ArrayRecord files, written and read without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jobs import JobError, command, take_place
from jobs.datasets.splits import deal
from model.labels import CLASSES
from model.preprocess import STORAGE_SIZE

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Film:
    """One example: the stored square and what is known of its source."""

    name: str  # of the source file, unique within a split
    patient: str
    label: int  # index into CLASSES
    png: bytes  # grayscale, at the storage size
    sha256: str  # of the source's bytes
    width: int  # of the source, px
    height: int
    mode: str  # of the source, as Pillow calls it
    mask: bytes | None = None  # PNG of where the lesion is; phantoms alone know

    @property
    def content(self) -> str:
        """Equal for files that show the same picture: sha256 of the stored square."""
        return hashlib.sha256(self.png).hexdigest()


def named(patient: str) -> bool:
    """Whether the name of a film told of whom it is; else its class and its file stand for that, a slash in between."""
    return "/" not in patient


def png(pixels: np.ndarray) -> bytes:
    """(H, W) uint8 -> a grayscale PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    """The inverse of `png`."""
    return np.asarray(Image.open(io.BytesIO(data)))


def fingerprint(splits: Mapping[str, Iterable[Film]]) -> str:
    """sha256 over which film stands in train, and which in validation, under which label.

    What may be trained on and chosen by tells whose data a model is of; a test split that is added does not change it.
    """
    lines = sorted(
        f"{split} {film.name} {film.label} {film.sha256}"
        for split, films in splits.items()
        if split != "test"
        for film in films
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class FilmBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes films that are already split; each dataset's builder adds what it is and whose."""

    VERSION = tfds.core.Version("1.1.0")  # of what becomes of a source: 1.1 has no bars along the sides of films
    DESCRIPTION = ""
    HOMEPAGE = ""
    CITATION = ""
    LICENSE = ""
    HAS_MASK = False

    def __init__(self, *, data_dir: Path, films: Mapping[str, list[Film]], facts: Mapping[str, Any]):
        self._films = films
        self._facts = dict(facts)
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        # Encoded bytes go in, so that no TensorFlow is asked to encode them.
        picture = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        features: dict[str, Any] = {
            "image": picture,
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "patient": tfds.features.Text(),
            "name": tfds.features.Text(),
            "sha256": tfds.features.Text(),
            "width": tfds.features.Scalar(np.int32),
            "height": tfds.features.Scalar(np.int32),
            "mode": tfds.features.Text(),
        }
        if self.HAS_MASK:
            features["mask"] = picture
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE if self._facts["citation"] == self.CITATION else "",
            citation=self._facts["citation"],
            license=self._facts["license"],
            metadata=tfds.core.MetadataDict(self._facts),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(films) for split, films in self._films.items()}

    def _generate_examples(self, films: list[Film]) -> Iterator[tuple[str, dict[str, Any]]]:
        for film in films:
            example = {key: value for key, value in dataclasses.asdict(film).items() if value is not None}
            example["image"] = example.pop("png")
            yield film.name, example


def spare_others(builder: type[FilmBuilder], data_dir: Path, citation: str) -> None:
    """Raises JobError where `write` would replace films that are cited otherwise."""
    older = _older(builder, data_dir)
    if older and older.metadata["citation"] != citation:
        raise JobError(
            f"{data_dir} holds prepared films of another source ({older.metadata['source']!r}; "
            f"{older.metadata['citation']}), which would be replaced; give another --data_dir, or remove "
            f"{data_dir / builder.name} where they are these films"
        )


def _older(builder: type[FilmBuilder], data_dir: Path) -> tfds.core.DatasetInfo | None:
    """What is told of the prepared films that `write` would replace."""
    try:
        info = tfds.builder_from_directory(str(data_dir / builder.name / str(builder.VERSION))).info
        return info if {"source", "citation"} <= info.metadata.keys() else None
    except Exception:  # whatever TFDS says of none, or of a damaged one: nothing is lost with it
        return None


def _digests(builder: type[FilmBuilder], data_dir: Path) -> set[str]:
    """sha256 of the sources of the films that `write` would replace."""
    try:
        older = tfds.builder_from_directory(str(data_dir / builder.name / str(builder.VERSION)))
        return {example["sha256"].decode() for example in _encoded(older, "+".join(older.info.splits))}
    except Exception:  # damaged: nothing is lost with them
        return set()


def _encoded(builder: tfds.core.DatasetBuilder, splits: str) -> Any:
    """The examples of some splits, with pictures as the bytes of a PNG: TFDS would ask for OpenCV to decode them."""
    pictures = {name: tfds.decode.SkipDecoding() for name in ("image", "mask") if name in builder.info.features}
    return builder.as_data_source(splits, decoders=pictures)


def write(
    builder: type[FilmBuilder],
    splits: Mapping[str, list[Film]],
    data_dir: Path,
    source: str,
    whose: Mapping[str, str] | None = None,
) -> Path:
    """Writes a dataset beside any older one, then puts it in the older one's place.

    Args:
      builder: of the dataset.
      splits: its films.
      data_dir: where it goes.
      source: as it is told.
      whose: `license` and `citation` of films that are not those which the builder speaks of.

    Returns:
      The folder of the dataset.

    Raises:
      JobError: the older one has a split that this has not, or is of another source and has no film of this.
    """
    filled = {split: films for split, films in splits.items() if films}
    older = _older(builder, data_dir)
    if older and (lost := [split for split in SPLITS if split in older.splits and split not in filled]):
        raise JobError(
            f"{data_dir} holds prepared films with a {' and a '.join(lost)} split, which {source!r} has not: they "
            "would be lost; give another --data_dir, or a source that holds both, or remove "
            f"{data_dir / builder.name}"
        )
    ours = {film.sha256 for films in filled.values() for film in films}
    theirs = _digests(builder, data_dir) if older and older.metadata["source"] != source else set()
    if older and theirs and theirs.isdisjoint(ours):
        raise JobError(
            f"{data_dir} holds prepared films of {older.metadata['source']!r}, none of which is in {source!r}: they "
            f"would be replaced; give another --data_dir, or remove {data_dir / builder.name}"
        )
    facts = {
        "fingerprint": fingerprint(filled),
        "storage_size": STORAGE_SIZE,
        "source": source,
        "license": builder.LICENSE,
        "citation": builder.CITATION,
        **(whose or {}),
    }
    data_dir.mkdir(parents=True, exist_ok=True)
    tfds.disable_progress_bar()  # it draws one bar a shard
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=data_dir) as scratch:
        writer = builder(data_dir=Path(scratch), films=filled, facts=facts)
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads, of which there are none
            writer.download_and_prepare()
        written = Path(writer.data_dir)
        target = data_dir / written.relative_to(scratch)
        target.parent.mkdir(exist_ok=True)
        take_place(written, target)
    return target


class Encoded:
    """The squares of some examples, each decoded when it is asked for."""

    def __init__(self, examples: Any, rows: Sequence[int], size: int):
        self._examples, self._rows = examples, rows
        self.shape = (len(rows), size, size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """(S, S) uint8."""
        return _pixels(self._examples[self._rows[int(index)]]["image"])


@dataclasses.dataclass(frozen=True)
class Split:
    """A split; its squares are decoded, or decoded when asked for."""

    images: Any  # (N, S, S) uint8: an array, or Encoded
    labels: np.ndarray  # (N,) int32
    names: list[str]
    patients: list[str]
    sizes: np.ndarray  # (N, 2) int32, height and width of the source, px
    masks: np.ndarray | None  # (N, S, S) bool, where the dataset knows the lesions
    facts: dict[str, Any]  # name, fingerprint, storage_size, source, license, citation
    left_out: int = 0  # how many films of the split are none of these, as `read` was told


def check_classes(split: Split, name: str, data_dir: Path) -> None:
    """Raises JobError where a class is absent; `name` and `data_dir` are told."""
    absent = [CLASSES[label] for label in set(range(len(CLASSES))) - set(split.labels.tolist())]
    if absent:
        cure = (
            "leave out fewer by --config.data.leave_out"
            if split.left_out
            else "prepare two patients or more of each class"
        )
        raise JobError(f"the {name} split of {data_dir} holds no {', no '.join(absent)} film; {cure}")


def _open(data_dir: Path, dataset: str, split: str) -> tfds.core.DatasetBuilder:
    """The builder of a prepared dataset that has `split`; JobError where there is none."""
    version = str(FilmBuilder.VERSION)
    folder = Path(data_dir) / dataset / version
    if not folder.is_dir():
        inside = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        others = [name for name in inside if re.fullmatch(r"\d+\.\d+\.\d+", name)]
        found = f" (there is version {', '.join(sorted(others))}; this program reads {version})" if others else ""
        cure = _command(data_dir, dataset)
        if dataset != "phantom" and _holds_source(Path(data_dir)):
            cure = f"{command('prepare', '--source', data_dir, '--data_dir', 'data')}, and read them from there"
        raise JobError(f"no prepared {dataset} data in {data_dir}{found}; prepare it: {cure}")
    with _damage_is_told(data_dir, dataset):
        builder = tfds.builder_from_directory(str(folder))
    if split not in builder.info.splits:
        present = ", ".join(builder.info.splits)
        what = "a test folder" if split == "test" else "two patients of each class or more, in no test folder,"
        raise JobError(
            f"{dataset} in {data_dir} has no {split!r} split (it has: {present}); "
            f"a source with {what} gives one: {_command(data_dir, dataset)}"
        )
    return builder


def _holds_source(folder: Path) -> bool:
    """Whether there are folders of classes, as `prepare.py --source` reads them, down to chest_xray/train/NORMAL."""
    return any(
        entry.is_dir() and entry.name.lower() in (*CLASSES, "pneumonia")
        for depth in ("*", "*/*", "*/*/*")
        for entry in folder.glob(depth)
    )


def _command(data_dir: Path, dataset: str) -> str:
    source = "phantom" if dataset == "phantom" else "SRC"
    return command("prepare", "--source", source, "--data_dir", data_dir)


@contextlib.contextmanager
def _damage_is_told(data_dir: Path, dataset: str) -> Iterator[None]:
    """Whatever TFDS makes of files that are cut, missing or not its own becomes one JobError."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise JobError(
            f"the prepared {dataset} data in {data_dir} are damaged or half prepared ({reason}); "
            f"prepare them again: {_command(data_dir, dataset)}"
        ) from error


def size(data_dir: Path, dataset: str, split: str) -> int:
    """Bytes of a split's squares once decoded; raises as `read`."""
    info = _open(data_dir, dataset, split).info
    return info.splits[split].num_examples * info.metadata["storage_size"] ** 2


def read(
    data_dir: Path,
    dataset: str,
    split: str,
    decoded: bool = True,
    folds: int = 0,
    fold: int = 0,
    leave_out: str = "",
) -> Split:
    """Reads a prepared split.

    Args:
      data_dir: where it was prepared.
      dataset: chest_xray or phantom.
      split: one of SPLITS.
      decoded: whether all squares are decoded now; else each when it is asked for, and masks are left out.
      folds: 0 for the splits as they were prepared. Else train and validation are pooled and dealt into so many folds
        by patient, the same ones every time; the test split is what it is.
      fold: which of them is the validation split, from 0; the others are the train split.
      leave_out: a regular expression; the train split is without the films that have a match of it in their name, the
        other splits are what they are.

    Raises:
      JobError: not prepared there, damaged, without that split, or with too few patients for the folds; the message
        gives the cure.
    """
    pooled = ("train", "validation") if folds and split != "test" else (split,)
    for part in pooled:
        builder = _open(data_dir, dataset, part)
    with _damage_is_told(data_dir, dataset):
        has_mask = decoded and "mask" in builder.info.features
        examples = _encoded(builder, "+".join(pooled))
        rows = _of_fold(examples, split, folds, fold) if len(pooled) > 1 else range(len(examples))
        whole = len(rows)
        if leave_out and split == "train":
            rows = [row for row in rows if not re.search(leave_out, examples[row]["name"].decode())]
        size = builder.info.metadata["storage_size"]
        count = len(rows)
        images = np.empty((count, size, size), np.uint8) if decoded else Encoded(examples, rows, size)
        masks = np.empty((count, size, size), bool) if has_mask else None
        labels, names, patients = np.empty(count, np.int32), [], []
        sizes = np.empty((count, 2), np.int32)
        for index, row in enumerate(rows):
            example = examples[row]
            labels[index] = example["label"]
            names.append(example["name"].decode())
            patients.append(example["patient"].decode())
            sizes[index] = example["height"], example["width"]
            if isinstance(images, np.ndarray):
                images[index] = _pixels(example["image"])
            if masks is not None:
                masks[index] = _pixels(example["mask"]) > 0
    return Split(images, labels, names, patients, sizes, masks, _facts(builder), whole - count)


class _Known(NamedTuple):
    """What of a film decides which fold it is in, and its place among the examples."""

    patient: str
    content: str
    label: int
    row: int


def _of_fold(examples: Any, split: str, folds: int, fold: int) -> Sequence[int]:
    """The places of the films that are dealt into `fold`, for validation; of all others, for train."""
    # Pictures that come twice were set aside, so the file stands for the picture.
    known = [
        _Known(example["patient"].decode(), example["sha256"].decode(), int(example["label"]), row)
        for row, example in enumerate(examples)
    ]
    dealt = deal(known, folds, salt="folds")
    chosen = [dealt[fold]] if split == "validation" else [*dealt[:fold], *dealt[fold + 1 :]]
    return sorted(film.row for films in chosen for film in films)


def _facts(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    return {"name": builder.name, **builder.info.metadata}


def facts(data_dir: Path, dataset: str) -> dict[str, Any]:
    """What prepared training data say of themselves: see Split; raises as `read`."""
    return _facts(_open(data_dir, dataset, "train"))


def read_as_trained(metas: Sequence[Mapping[str, Any]], data_dir: Path, split: str) -> Split:
    """Reads what a trained model means by the name of a split: one that held out a fold saw films of the others.

    Args:
      metas: what the checkpoint of each of its members says of itself (Predictor.metas).
      data_dir: where the data were prepared.
      split: one of SPLITS.

    Raises:
      JobError: the members held out different films, so none are unseen by all; the data are not those that were
        dealt into the folds; or as `read`.
    """
    dataset = metas[0]["dataset"]
    # Checkpoints of before there were folds do not speak of them.
    held_out = {(data.get("folds", 0), data.get("fold", 0)) for data in (meta["config"]["data"] for meta in metas)}
    if held_out == {(0, 0)} or split == "test":
        return read(data_dir, dataset["name"], split)
    if len(held_out) > 1:
        raise JobError(
            f"each film of train and validation was trained on by some of the {len(metas)} members, which held out "
            "different folds; calibrate or evaluate one member, evaluate all of them with --split test, or read the "
            "out-of-fold figures in crossval.md"
        )
    if facts(data_dir, dataset["name"])["fingerprint"] != dataset["fingerprint"]:
        raise JobError(
            f"the checkpoint held out a fold of another {dataset['name']} than is in {data_dir}: films it has seen "
            "would pass for new ones; give the --data_dir it was trained from, or evaluate it with --split test"
        )
    ((folds, fold),) = held_out
    return read(data_dir, dataset["name"], split, folds=folds, fold=fold)


def table(splits: Mapping[str, list[Film]]) -> list[tuple[str, ...]]:
    """Rows of class x split: images (patients); a split that is absent says so."""
    rows = []
    for label, name in enumerate((*CLASSES, "all")):
        row = [name]
        for split in SPLITS:
            films = [film for film in splits.get(split, []) if name == "all" or film.label == label]
            patients = len({film.patient for film in films})
            row.append(f"{len(films)} ({patients})" if splits.get(split) else "absent")
        rows.append(tuple(row))
    return rows


def counts(films: Iterable[Film]) -> Counter[int]:
    """Films of each label."""
    return Counter(film.label for film in films)
