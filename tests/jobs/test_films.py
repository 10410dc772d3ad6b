"""What is written is what is read; preparing again replaces; what is absent is said."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from jobs import JobError
from jobs.datasets import films
from jobs.datasets.chest_xray.builder import ChestXray
from jobs.datasets.chest_xray.source import sort
from jobs.datasets.phantom.builder import Phantom
from jobs.datasets.phantom.builder import film as phantom_film
from jobs.datasets.phantom.drawing import draw
from tests.conftest import jpeg, put


def test_round_trip(phantom_data):
    split = films.read(phantom_data, "phantom", "train")
    assert split.images.shape == (48, 224, 224) and split.images.dtype == np.uint8
    assert np.bincount(split.labels).tolist() == [16, 16, 16]
    for position, name in enumerate(split.names):
        phantom = draw(int(name.split("_")[1]))
        assert (split.images[position] == phantom.image).all()
        assert (split.masks[position] == phantom.mask).all()
        assert split.labels[position] == phantom.label
        assert split.patients[position] == phantom.patient


@pytest.mark.parametrize("decoded", [True, False])
def test_films_may_be_left_out_of_training_and_of_nothing_else(phantom_data, decoded):
    def read(split, **chosen):
        return films.read(phantom_data, "phantom", split, decoded, **chosen)

    whole, fewer = read("train"), read("train", leave_out="_000[0-3]")
    kept = [place for place, name in enumerate(whole.names) if int(name.split("_")[1]) // 4]
    assert fewer.names == [whole.names[place] for place in kept] and len(fewer.names) < len(whole.names)
    assert fewer.left_out == len(whole.names) - len(kept) and whole.left_out == 0
    assert (fewer.labels == whole.labels[kept]).all() and fewer.images.shape[0] == len(kept)
    for place in (0, len(kept) - 1):
        assert (fewer.images[place] == whole.images[kept[place]]).all()
    held_out = [read("validation", leave_out=pattern).names for pattern in ("", ".")]
    assert held_out[0] == held_out[1]
    folded = [set(read("train", folds=3, fold=1, leave_out=pattern).names) for pattern in ("", "_000[0-3]")]
    assert folded[1] == {name for name in folded[0] if int(name.split("_")[1]) // 4} != folded[0]


def test_real_films_know_their_source(kaggle, tmp_path):
    found = sort(kaggle)
    folder = films.write(ChestXray, found.splits, tmp_path / "data", "kaggle")
    split = films.read(tmp_path / "data", "chest_xray", "test")
    assert len(split.labels) == 9 and split.masks is None
    assert split.facts["license"] == "CC BY 4.0" and "Kermany" in split.facts["citation"]
    assert split.facts["fingerprint"] == films.fingerprint(found.splits)
    assert (folder / "metadata.json").exists()
    original = np.asarray(Image.open(kaggle / "test/NORMAL/IM-0050-0001.jpeg").resize((224, 224), Image.BILINEAR))
    assert (split.images[split.names.index("IM-0050-0001.jpeg")] == original).all()


def test_films_of_others_are_said_to_be_theirs(kaggle, tmp_path):
    whose = {"license": "not public", "citation": "A hospital"}
    folder = films.write(ChestXray, sort(kaggle).splits, tmp_path / "data", "ours", whose)
    split = films.read(tmp_path / "data", "chest_xray", "test")
    assert {name: split.facts[name] for name in whose} == whose
    assert not any(word in path.read_text() for path in folder.glob("*.json") for word in ("Kermany", "CC BY", "rscb"))


def test_preparing_again_replaces_and_leaves_nothing_behind(kaggle, tmp_path):
    data = tmp_path / "data"
    films.write(ChestXray, sort(kaggle).splits, data, "kaggle")
    before = films.read(data, "chest_xray", "test").facts["fingerprint"]
    next(kaggle.glob("test/NORMAL/*")).unlink()
    films.write(ChestXray, sort(kaggle).splits, data, "kaggle")
    after = films.read(data, "chest_xray", "test")
    assert len(after.labels) == 8 and after.facts["fingerprint"] == before  # it is that of what may be trained on
    next(kaggle.glob("train/NORMAL/*")).unlink()
    films.write(ChestXray, sort(kaggle).splits, data, "kaggle")
    assert films.read(data, "chest_xray", "test").facts["fingerprint"] != before
    assert [path.name for path in data.iterdir()] == ["chest_xray"]


@pytest.mark.parametrize(
    ("keep", "lost"), [(("test",), "a train and a validation split"), (("train", "validation"), "a test split")]
)
def test_preparing_a_part_does_not_lose_the_rest(kaggle, tmp_path, keep, lost):
    splits = sort(kaggle).splits
    films.write(ChestXray, splits, tmp_path, "kaggle")
    with pytest.raises(JobError, match=rf"films with {lost}, which 'part' has not: they would be"):
        films.write(ChestXray, {name: splits[name] for name in keep}, tmp_path, "part")
    assert len(films.read(tmp_path, "chest_xray", "test").labels) == 9
    assert len(films.read(tmp_path, "chest_xray", "train").labels) == len(splits["train"])
    films.write(ChestXray, {name: splits[name] for name in keep}, tmp_path / "alone", "part")
    films.write(ChestXray, splits, tmp_path / "alone", "kaggle")  # which has all of it, and more
    assert films.read(tmp_path / "alone", "chest_xray", "test").facts["source"] == "kaggle"


def test_films_of_another_source_are_replaced_by_none_of_their_own_alone(kaggle, tmp_path):
    splits = sort(kaggle).splits
    others = {
        split: [dataclasses.replace(film, sha256=f"other {film.sha256}") for film in of] for split, of in splits.items()
    }
    films.write(ChestXray, splits, tmp_path, "kaggle")
    with pytest.raises(JobError, match=r"films of 'kaggle', none of which is in 'hospital': they would be replaced; "):
        films.write(ChestXray, others, tmp_path, "hospital")
    assert films.read(tmp_path, "chest_xray", "test").facts["source"] == "kaggle"
    films.write(ChestXray, others, tmp_path, "kaggle")  # saved anew, say
    films.write(ChestXray, others | {"test": [*others["test"][1:], splits["test"][0]]}, tmp_path, "renamed")
    assert films.read(tmp_path, "chest_xray", "test").facts["source"] == "renamed"
    for shard in (tmp_path / "chest_xray").rglob("*.array_record*"):
        shard.write_bytes(b"damaged")
    films.write(ChestXray, splits, tmp_path, "kaggle")  # nothing is lost
    assert films.read(tmp_path, "chest_xray", "test").facts["source"] == "kaggle"


def test_fingerprint_follows_labels_and_splits(kaggle):
    splits = sort(kaggle).splits
    whole = films.fingerprint(splits)
    assert films.fingerprint({name: reversed(members) for name, members in splits.items()}) == whole
    assert films.fingerprint({"train": splits["validation"], "validation": splits["train"]}) != whole


def test_a_fingerprint_is_of_name_label_and_bytes():
    def of(**changes):
        film = films.Film("a", "a", 0, b"", "digest", 80, 70, "L")
        return films.fingerprint({"train": [dataclasses.replace(film, **changes)]})

    assert len({of(), of(name="b"), of(label=1), of(sha256="other")}) == 4
    assert of(patient="b", width=90) == of()


def test_sizes_are_height_and_width(tmp_path):
    made = [dataclasses.replace(phantom_film(index), width=90, height=70) for index in range(3)]
    films.write(Phantom, {"train": made}, tmp_path, "phantom")
    assert films.read(tmp_path, "phantom", "train").sizes.tolist() == [[70, 90]] * 3


def test_no_data_names_the_command(tmp_path):
    with pytest.raises(JobError, match=r"no prepared phantom data in .*prepare.py --source phantom --data_dir"):
        films.read(tmp_path, "phantom", "train")


def test_films_that_are_not_prepared_are_the_source_and_not_the_place(kaggle):
    command = rf"prepare it: python jobs/prepare.py --source {re.escape(str(kaggle))} --data_dir data, and read"
    with pytest.raises(JobError, match=rf"no prepared chest_xray data in [^(]*; {command}"):
        films.read(kaggle, "chest_xray", "train")
    kaggle.rename(kaggle.parent / "chest_xray")  # as the published archive calls its folder
    command = command.replace(re.escape(str(kaggle)), re.escape(str(kaggle.parent)))
    with pytest.raises(JobError, match=rf"no prepared chest_xray data in [^(]*; {command}"):
        films.read(kaggle.parent, "chest_xray", "train")


def test_a_place_that_holds_some_pictures_is_no_source(tmp_path):
    put(tmp_path, "docs/plots/roc.png", jpeg(1))
    put(tmp_path, "downloads/films.zip", b"")
    command = f"prepare it: python jobs/prepare.py --source SRC --data_dir {re.escape(str(tmp_path))}"
    with pytest.raises(JobError, match=f"{command}$"):
        films.read(tmp_path, "chest_xray", "train")


def test_an_absent_split_names_those_there_are(kaggle, tmp_path):
    found = sort(kaggle)
    del found.splits["test"]
    films.write(ChestXray, found.splits, tmp_path, "kaggle")
    with pytest.raises(JobError, match=r"no 'test' split \(it has: train, validation\)"):
        films.read(tmp_path, "chest_xray", "test")


def test_table_says_absent(kaggle):
    found = sort(kaggle)
    del found.splits["test"]
    rows = films.table(found.splits)
    assert rows[0][0] == "normal" and rows[0][3] == "absent"
    assert rows[-1][1] == "38 (29)"
