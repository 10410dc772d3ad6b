"""The audit of a source: facts that are known because the source was made so."""

import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from jobs import JobError
from jobs.evaluation import audit as facts
from jobs.evaluation.audit import Told, collect, duplicates, person, shared, tell
from jobs.evaluation.audit_page import page
from tests.conftest import anew, jpeg, put
from tests.jobs.test_commands import done, job


@pytest.fixture
def flawed(kaggle):
    """The Kaggle layout with two leaks, a copy, a conflict and a file that is no image."""
    put(kaggle, "test/PNEUMONIA/person3_virus_900.jpeg", jpeg(900))  # a child of train
    put(kaggle, "test/NORMAL/IM-0777-0001.jpeg", (kaggle / "train/NORMAL/IM-0004-0001.jpeg").read_bytes())
    put(kaggle, "train/PNEUMONIA/person700_virus_1.jpeg", (kaggle / "train/NORMAL/IM-0005-0001.jpeg").read_bytes())
    put(kaggle, "train/NORMAL/notes.txt", b"no image")
    return kaggle


def row(text, start):
    """The cells of the first row of a table that starts with a word."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_images_and_patients_by_class_and_folder(kaggle):
    text = page(kaggle, collect(kaggle), {})
    assert text.startswith("# kaggle: 51 images of 41 patients")
    assert row(text, "class") == ["train", "val", "test", "all"]
    assert row(text, "normal") == ["10 (10)", "1 (1)", "3 (3)", "14 (14)"]
    assert row(text, "bacterial") == ["20 (10)", "1 (1)", "3 (3)", "24 (14)"]
    assert row(text, "viral") == ["10 (10)", "0 (0)", "3 (3)", "13 (13)"]
    assert row(text, "all") == ["40 (30)", "2 (2)", "9 (9)", "51 (41)"]
    assert "No leaks: no patient and no picture stands in two folders." in text
    assert "several classes" not in text
    assert row(text, "mode RGB") == ["0", "0", "10"]
    assert row(text, "width, px")[0] == "80 (80 to 80)" and "All files are 80 x 70 px." in text


def test_the_naive_key_takes_two_children_for_one(kaggle):
    images = collect(kaggle).images
    assert len({person(image) for image in images}) == 14 + 14  # 10, 1 and 3 numbers, and the normal ones
    put(kaggle, "test/PNEUMONIA/person4_virus_901.jpeg", jpeg(901))
    shutil.rmtree(kaggle / "train/PNEUMONIA")
    put(kaggle, "train/PNEUMONIA/person4_bacteria_902.jpeg", jpeg(902))
    images = collect(kaggle).images
    assert shared(images, lambda image: image.patient)["train", "test"] == set()
    assert shared(images, person)["train", "test"] == {"person4"}


def test_leaks_copies_and_conflicts_are_named(flawed):
    contents = collect(flawed)
    assert shared(contents.images, lambda image: image.patient)["train", "test"] == {"person3_virus"}
    assert len(duplicates(contents.images, lambda image: image.sha256)) == 2
    text = page(flawed, contents, {})
    assert "- patients in both train and test: 1: person3_virus" in text
    assert "- pictures in both train and test: 1: test/NORMAL/IM-0777-0001.jpeg" in text
    columns = ["groups", "files", "groups across splits", "across classes", "under several patients"]
    assert row(text, "files with the same") == columns
    assert row(text, "bytes") == row(text, "picture") == ["2", "4", "1", "1", "2"]
    assert "**One picture, several classes;**" in text
    assert "- train/NORMAL/IM-0005-0001.jpeg (normal), train/PNEUMONIA/person700_virus_1.jpeg (viral)\n" in text
    assert "unreadable" in text and "such as train/NORMAL/notes.txt" in text


def test_a_picture_that_is_saved_anew_leaks(kaggle):
    put(kaggle, "test/NORMAL/IM-0778-0001.png", anew(kaggle / "train/NORMAL/IM-0004-0001.jpeg"))
    text = page(kaggle, collect(kaggle), {})
    assert "- pictures in both train and test: 1: test/NORMAL/IM-0778-0001.png" in text
    assert row(text, "bytes")[0] == "0" and row(text, "picture") == ["1", "2", "1", "0", "1"]


def test_a_zip_is_its_folder(flawed, tmp_path):
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for path in sorted(flawed.rglob("*")):
            archive.write(path, path.relative_to(flawed))
    zipped, plain = collect(tmp_path / "source.zip"), collect(flawed)
    assert zipped.images == plain.images and zipped.set_aside == plain.set_aside


def test_what_a_number_tells_is_cross_validated():
    images = [
        facts.Image(f"{i}", "train", i % 3, f"p{i // 2}", str(i), str(i), "L", 100, 80, 1000)
        for i in range(240)
    ]  # fmt: skip
    random = np.random.default_rng(0)
    labels = np.array([image.label for image in images])
    telling = tell(images, labels + random.normal(0, 0.05, 240))
    assert isinstance(telling, Told) and telling.balanced_accuracy > 0.95 and telling.auroc > 0.95
    assert telling.intervals["auroc"][0] <= telling.auroc <= telling.intervals["auroc"][1] <= 1
    silent = tell(images, random.normal(size=240))
    low, high = silent.intervals["balanced_accuracy"]
    assert low < silent.balanced_accuracy < high < low + 0.2
    ill = tell([image for image in images if image.label], random.normal(size=160))
    assert ill.chance == 1 / 2 and ill.auroc is None and ill.intervals["auroc"] is None
    assert silent.balanced_accuracy == pytest.approx(1 / 3, abs=0.12) and silent.chance == pytest.approx(1 / 3)
    assert tell(images, np.full(240, 1.25)) == "says nothing: it is 1.25 in all files"
    assert "patients are" in tell(images[:9], np.arange(9.0)) and "5 are needed" in tell(images[:9], np.arange(9.0))
    assert tell(images[::3], np.arange(80.0)) == "cannot be said: all files are normal"


def test_a_source_without_films_is_refused(tmp_path):
    put(tmp_path, "a/b.txt", b"nothing")
    with pytest.raises(JobError, match=r"0 of the 1 files of .* are images of a known class \(1 unlabelled: it stands"):
        collect(tmp_path)


def test_the_command_writes_a_page_and_a_picture(flawed, tmp_path):
    out = done(job("audit", "--source", flawed, "--out", tmp_path / "out"))
    text = (tmp_path / "out/audit.md").read_text()
    assert text in out and "## Images (patients)" in text and "file size" in text
    with Image.open(tmp_path / "out/audit.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 5
    done(job("audit", "--source", ".", "--out", tmp_path / "out", cwd=flawed))  # over that of the last time
    assert (tmp_path / "out/audit.md").read_text() == text
    done(job("audit", "--source", shutil.copytree(flawed, tmp_path / "of two\nlines"), "--out", tmp_path / "out"))
    assert (tmp_path / "out/audit.md").read_text().startswith("# of two lines: ")
    done(job("audit", "--source", flawed, "--out", tmp_path / "out"))
    for name in ("audit.md", "audit.png"):
        (mine := tmp_path / name).write_text("# mine")
        result = job("audit", "--source", flawed, "--out", tmp_path)
        assert result.returncode == 2 and f"{mine} exists and is no" in result.stderr and mine.read_text() == "# mine"
        mine.unlink()
    result = job("audit", "--source", tmp_path / "absent")
    assert result.returncode == 1 and "absent" in result.stderr and "Traceback" not in result.stderr
