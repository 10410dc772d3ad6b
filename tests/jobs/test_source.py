"""Sources of every layout, sorted; what cannot be used, set aside with its reason; what cannot be, refused."""

import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from jobs import JobError
from jobs.datasets.chest_xray.source import sort
from jobs.datasets.films import counts, named
from jobs.evaluation import audit
from model import preprocess
from tests.conftest import anew, jpeg, put


def aside(found):
    return {entry.file: (entry.reason, entry.detail) for entry in found.quarantine}


def test_kaggle_layout(kaggle):
    found = sort(kaggle)
    pooled = found.splits["train"] + found.splits["validation"]
    assert counts(pooled) == Counter({0: 11, 1: 21, 2: 10})
    assert counts(found.splits["test"]) == Counter({0: 3, 1: 3, 2: 3})
    assert found.quarantine == found.objected == []
    assert all(named(film.patient) for films in found.splits.values() for film in films)
    assert counts(found.splits["validation"]).keys() == {0, 1, 2}


def test_no_patient_on_both_sides(kaggle):
    found = sort(kaggle)
    train, validation = ({film.patient for film in found.splits[split]} for split in ("train", "validation"))
    assert not train & validation
    assert "person3_bacteria" in train | validation


def test_person_numbers_of_the_two_series_are_different_children(kaggle):
    put(kaggle, "test/PNEUMONIA/person3_virus_77.jpeg", jpeg(77_777))
    with pytest.raises(JobError, match="share a patient"):
        sort(kaggle)
    (kaggle / "test/PNEUMONIA/person3_virus_77.jpeg").rename(kaggle / "test/PNEUMONIA/person300_virus_77.jpeg")
    put(kaggle, "test/PNEUMONIA/person90_virus_78.jpeg", jpeg(88_888))  # person90_bacteria is in val
    assert counts(sort(kaggle).splits["test"])[2] == 5


def test_the_same_again_and_from_a_zip(kaggle, tmp_path):
    first = sort(kaggle)
    archive = tmp_path / "films.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in kaggle.rglob("*.jpeg"):
            file.write(path, f"chest_xray/{path.relative_to(kaggle)}")
        file.writestr("__MACOSX/chest_xray/train/NORMAL/._IM-0001-0001.jpeg", b"resource fork")
    again, zipped = sort(kaggle), sort(archive)
    for split, films in first.splits.items():
        assert [film.name for film in again.splits[split]] == [film.name for film in films]
        assert [film.sha256 for film in zipped.splits[split]] == [film.sha256 for film in films]
    assert list(aside(zipped).values()) == [("unreadable", "a system file, not an image")]


def test_nested_copy_of_the_whole_archive_adds_nothing(kaggle):
    shutil.copytree(kaggle, kaggle / "chest_xray" / "again")
    found = sort(kaggle)
    assert counts(found.splits["test"]) == Counter({0: 3, 1: 3, 2: 3})
    assert len(found.splits["train"] + found.splits["validation"]) == 42
    assert Counter(entry.reason for entry in found.quarantine) == {"duplicate": 51}


def test_a_few_films_more_move_no_patient(kaggle):
    before = {film.patient for film in sort(kaggle).splits["validation"]}
    put(kaggle, "train/PNEUMONIA/person5_bacteria_999.jpeg", jpeg(999))
    assert {film.patient for film in sort(kaggle).splits["validation"]} == before


@pytest.mark.parametrize(
    "names", [("bacteria", "normal", "virus"), ("Bacterial", "NORMAL", "Viral"), ("BACTERIA", "Normal", "VIRUS")]
)
def test_three_folders(tmp_path, names):
    for seed, name in enumerate(names):
        for number in range(4):
            put(tmp_path, f"{name}/{number}.png", jpeg(10 * seed + number))
    found = sort(tmp_path)
    assert counts(found.splits["train"] + found.splits["validation"]) == Counter({0: 4, 1: 4, 2: 4})
    assert "test" not in found.splits
    assert not any(named(film.patient) for films in found.splits.values() for film in films)
    # The same file name in three folders is three films.
    assert len({film.name for films in found.splits.values() for film in films}) == 12


def test_names_that_are_no_text_become_some(tmp_path):
    for seed, name in enumerate(("normal", "viral", "bacteria")):
        for number in range(3):
            put(tmp_path, os.fsdecode(b"%s/r\xf6ntgen %d.png" % (name.encode(), number)), jpeg(10 * seed + number))
    found = sort(tmp_path)
    names = {film.name for films in found.splits.values() for film in films}
    assert len(names) == 9 and all("r\\xf6ntgen" in name and name.isascii() for name in names)


def test_numbers_that_begin_anew_in_every_folder(tmp_path):
    """No name is taken twice among the films that cross-validation pools, and no film for one of another split."""
    for number in range(40):
        for seed, path in enumerate(("train/normal", "val/viral", "train/bacteria", "test/viral", "test/bacteria")):
            # Of the pool two of each, which may fall on both sides.
            if seed > 2 or seed != number % 3:
                put(tmp_path, f"{path}/{number}.png", jpeg(1000 * seed + number))
        put(tmp_path, f"test/normal/{number}.png", jpeg(9000 + number))
    found = sort(tmp_path)
    pooled = [film.name for split in ("train", "validation") for film in found.splits[split]]
    assert len(pooled) == len(set(pooled)) == 80 and len(found.splits["test"]) == 120
    told = audit.collect(tmp_path)
    assert not any(audit.shared(told.images, lambda image: image.patient).values())


def test_names_of_the_original_archive(tmp_path):
    for seed, (folder, kind) in enumerate([("NORMAL", "NORMAL"), ("PNEUMONIA", "BACTERIA"), ("PNEUMONIA", "VIRUS")]):
        for number in range(3):
            put(tmp_path, f"train/{folder}/{kind}-1008{seed}{number // 2}-000{number}.jpeg", jpeg(10 * seed + number))
    found = sort(tmp_path)
    patients = {film.patient for films in found.splits.values() for film in films}
    assert patients == {
        f"{kind}-1008{seed}{n}" for seed, kind in enumerate(["NORMAL", "BACTERIA", "VIRUS"]) for n in (0, 1)
    }


def test_only_a_test_folder(kaggle):
    shutil.rmtree(kaggle / "train")
    shutil.rmtree(kaggle / "val")
    assert list(sort(kaggle).splits) == ["test"]


def test_what_is_set_aside(kaggle):
    put(kaggle, "train/PNEUMONIA/person1.jpeg", jpeg(1000))
    put(kaggle, "train/PNEUMONIA/normal_7.jpeg", jpeg(1001))
    put(kaggle, "train/NORMAL/person8_virus_1.jpeg", jpeg(1002))
    put(kaggle, "train/NORMAL/bacteria_and_virus.jpeg", jpeg(1003))
    put(kaggle, "train/COVID/a.jpeg", jpeg(1004))
    put(kaggle, "readme.txt", b"hello")
    put(kaggle, "train/NORMAL/.DS_Store", b"x")
    put(kaggle, "train/NORMAL/IM-0777-0001.jpeg", b"")
    put(kaggle, "train/NORMAL/IM-0778-0001.jpeg", jpeg(1005)[:700])
    put(kaggle, "train/NORMAL/IM-0779-0001.jpeg", b"not an image at all")
    put(kaggle, "train/NORMAL/IM-0780-0001.jpeg", jpeg(1006, size=(20, 20)))
    reasons = aside(sort(kaggle))
    assert reasons["train/PNEUMONIA/person1.jpeg"][0] == "unlabelled"
    assert reasons["train/COVID/a.jpeg"] == (
        "unlabelled",
        "it stands in no folder of a class (bacteria, bacterial, normal, viral, virus, pneumonia)",
    )
    assert reasons["readme.txt"][0] == "unlabelled"
    assert reasons["train/PNEUMONIA/normal_7.jpeg"][0] == "conflicting"
    assert reasons["train/NORMAL/person8_virus_1.jpeg"] == (
        "conflicting",
        "in the folder 'NORMAL', but the name says viral",
    )
    assert reasons["train/NORMAL/bacteria_and_virus.jpeg"][0] == "conflicting"
    assert reasons["train/NORMAL/.DS_Store"][0] == "unreadable"
    assert reasons["train/NORMAL/IM-0777-0001.jpeg"] == ("unreadable", "the file is empty")
    assert "damaged or cut short" in reasons["train/NORMAL/IM-0778-0001.jpeg"][1]
    assert reasons["train/NORMAL/IM-0779-0001.jpeg"][1].startswith("not a PNG, JPEG, WebP, TIFF or BMP image")
    assert "20 x 20 px; at least 64 x 64" in reasons["train/NORMAL/IM-0780-0001.jpeg"][1]
    assert len(reasons) == 11


def test_films_that_no_one_would_answer_are_kept_and_told(kaggle):
    for name in ("IM-0990-0001", "IM-0992-0001"):  # the second is a copy, which is set aside
        Image.new("L", (90, 90), 8).save(kaggle / f"train/NORMAL/{name}.jpeg")
    put(kaggle, "test/NORMAL/IM-0991-0001.jpeg", jpeg(6003, size=(300, 64)))
    found = sort(kaggle)
    assert {(entry.file, entry.split, entry.reason) for entry in found.objected} == {
        ("train/NORMAL/IM-0990-0001.jpeg", "train+val", "kept"),
        ("test/NORMAL/IM-0991-0001.jpeg", "test", "kept"),
    }
    assert {entry.detail[:38] for entry in found.objected} == {
        "the picture is blank, or nearly so; se",
        "the longer side of the picture is 4.69",
    }
    names = {film.name for films in found.splits.values() for film in films}
    assert {"IM-0990-0001.jpeg", "IM-0991-0001.jpeg"} < names and len(found.quarantine) == 1


def test_copies_merge_and_bring_their_patients_together(kaggle):
    same = jpeg(2000)
    put(kaggle, "train/PNEUMONIA/person500_bacteria_1.jpeg", same)
    put(kaggle, "train/PNEUMONIA/person501_bacteria_2.jpeg", same)
    put(kaggle, "train/PNEUMONIA/person501_bacteria_3.jpeg", jpeg(2001))
    found = sort(kaggle)
    detail = aside(found)["train/PNEUMONIA/person501_bacteria_2.jpeg"]
    assert detail == ("duplicate", "the same bytes as train/PNEUMONIA/person500_bacteria_1.jpeg")
    patients = {film.name: film.patient for films in found.splits.values() for film in films}
    assert patients["person501_bacteria_3.jpeg"] == patients["person500_bacteria_1.jpeg"] == "person500_bacteria"


def test_the_same_bytes_under_two_classes(kaggle):
    same = jpeg(3000)
    put(kaggle, "train/PNEUMONIA/person600_bacteria_1.jpeg", same)
    put(kaggle, "train/PNEUMONIA/person601_virus_2.jpeg", same)
    reasons = aside(sort(kaggle))
    assert [reason for reason, _ in reasons.values()] == ["conflicting", "conflicting"]


def test_a_file_of_the_test_split_under_another_class_in_the_pool_is_refused(kaggle):
    tested = next((kaggle / "test/NORMAL").iterdir())
    shutil.copy(tested, kaggle / "train/PNEUMONIA/person900_virus_1.jpeg")
    with pytest.raises(JobError, match=r"train and test share a content in 1 files.*person900_virus_1.jpeg"):
        sort(kaggle)


def test_a_picture_saved_anew_is_the_same_film(kaggle):
    put(kaggle, "train/PNEUMONIA/person500_bacteria_1.png", anew(kaggle / "train/PNEUMONIA/person3_bacteria_6.jpeg"))
    put(kaggle, "train/PNEUMONIA/person501_virus_1.png", anew(kaggle / "train/PNEUMONIA/person4_bacteria_8.jpeg"))
    found = sort(kaggle)
    assert aside(found) == {
        "train/PNEUMONIA/person500_bacteria_1.png": (
            "duplicate",
            "the same picture as train/PNEUMONIA/person3_bacteria_6.jpeg",
        ),
        **dict.fromkeys(
            ("train/PNEUMONIA/person4_bacteria_8.jpeg", "train/PNEUMONIA/person501_virus_1.png"),
            ("conflicting", "the same picture stands elsewhere under another class"),
        ),
    }


def test_patients_of_whom_a_picture_stands_in_the_test_split_saved_anew_leave_the_pool(kaggle):
    """The split stays as it was published, under whatever class."""
    put(kaggle, "test/PNEUMONIA/person800_bacteria_1.png", anew(kaggle / "train/PNEUMONIA/person3_bacteria_6.jpeg"))
    put(kaggle, "test/PNEUMONIA/person801_virus_1.png", anew(kaggle / "train/PNEUMONIA/person4_bacteria_8.jpeg"))
    found = sort(kaggle)
    assert counts(found.splits["test"]) == Counter({0: 3, 1: 4, 2: 4})
    told = aside(found)
    assert told.pop("train/PNEUMONIA/person3_bacteria_7.jpeg") == (
        "tested",
        "of the patient of train/PNEUMONIA/person3_bacteria_6.jpeg, "
        "which is the same picture as test/PNEUMONIA/person800_bacteria_1.png",
    )
    assert told.pop("train/PNEUMONIA/person3_bacteria_6.jpeg") == (
        "tested",
        "the same picture as test/PNEUMONIA/person800_bacteria_1.png, saved anew",
    )
    assert told.keys() == {f"train/PNEUMONIA/person4_bacteria_{film}.jpeg" for film in (8, 9)}
    assert {film.patient for film in found.splits["train"]}.isdisjoint({"person3_bacteria", "person4_bacteria"})


def test_a_file_of_the_test_split_is_refused_though_another_of_its_patient_is_saved_anew(kaggle):
    put(kaggle, "test/PNEUMONIA/person800_bacteria_1.png", anew(kaggle / "train/PNEUMONIA/person3_bacteria_6.jpeg"))
    shutil.copy(kaggle / "train/PNEUMONIA/person3_bacteria_7.jpeg", kaggle / "test/PNEUMONIA/person801_bacteria_1.jpeg")
    with pytest.raises(JobError, match=r"train and test share a content in 1 files.*person3_bacteria_7.jpeg"):
        sort(kaggle)


def test_the_test_split_is_left_as_published(kaggle):
    same = jpeg(4000)
    put(kaggle, "test/PNEUMONIA/person700_bacteria_1.jpeg", same)
    put(kaggle, "test/PNEUMONIA/person701_bacteria_2.jpeg", same)
    found = sort(kaggle)
    assert counts(found.splits["test"])[1] == 5
    assert found.quarantine == []


def test_a_file_in_train_and_test_is_refused(kaggle):
    shutil.copy(kaggle / "train/PNEUMONIA/person1_virus_1.jpeg", kaggle / "test/PNEUMONIA/person800_virus_800.jpeg")
    with pytest.raises(JobError, match=r"train and test share a content in 1 files.*person1_virus_1.jpeg"):
        sort(kaggle)


def test_an_empty_class_is_refused(kaggle):
    for path in kaggle.glob("train/PNEUMONIA/*virus*"):
        path.unlink()
    with pytest.raises(JobError, match="no viral film in what is no test folder of"):
        sort(kaggle)


def test_why_a_class_is_empty_is_told(kaggle):
    for path in kaggle.glob("train/PNEUMONIA/*virus*"):
        path.write_bytes(b"")
    with pytest.raises(
        JobError, match=r"aside: 10 unreadable, as train/PNEUMONIA/person0_virus_0.*: the file is empty"
    ):
        sort(kaggle)


def test_films_to_test_on_alone_may_be_of_one_class(kaggle):
    shutil.rmtree(kaggle / "test/PNEUMONIA")
    with pytest.raises(JobError, match="no bacterial and no viral film in the test folder of"):
        sort(kaggle)
    shutil.rmtree(kaggle / "train")
    shutil.rmtree(kaggle / "val")
    assert counts(sort(kaggle).splits["test"]) == Counter({0: 3})


def test_the_folder_of_a_test_split_alone_is_one(kaggle, tmp_path):
    whole, alone = sort(kaggle).splits["test"], sort(kaggle / "test").splits
    assert alone.keys() == {"test"} and [film.content for film in alone["test"]] == [film.content for film in whole]
    with zipfile.ZipFile(tmp_path / "Testing.zip", "w") as archive:
        for path in (kaggle / "test").rglob("*.jpeg"):
            archive.write(path, path.relative_to(kaggle / "test"))
    assert counts(sort(tmp_path / "Testing.zip").splits["test"]) == counts(whole)
    kaggle = kaggle.rename(kaggle.parent / "test")  # splits inside say more than what they stand in
    assert counts(sort(kaggle).splits["test"]) == counts(whole) and sort(kaggle).splits.keys() > {"train"}
    other = (kaggle / "test").rename(tmp_path / "test.v2")
    assert sort(other).splits.keys() == {"train", "validation"}


def test_normal_within_a_word_is_no_class(kaggle):
    put(kaggle, "train/bacterial/case_1_normalized.jpeg", jpeg(5000))
    put(kaggle, "train/bacterial/abnormal_1.jpeg", jpeg(5001))
    put(kaggle, "train/bacterial/1_normal.jpeg", jpeg(5002))
    found = sort(kaggle)
    assert counts(found.splits["train"] + found.splits["validation"])[1] == 21 + 2
    assert list(aside(found)) == ["train/bacterial/1_normal.jpeg"]


def test_a_patient_is_spelled_one_way_and_counted_in_one_series(kaggle):
    put(kaggle, "train/PNEUMONIA/PERSON3_BACTERIA_900.JPEG", jpeg(6000))
    put(kaggle, "train/NORMAL/im-0004-0002.jpeg", jpeg(6001))
    put(kaggle, "train/bacterial/IM-0004-0001.jpeg", jpeg(6002))  # a viewer's number of a series
    found = sort(kaggle)
    patients = {film.name: film.patient for films in found.splits.values() for film in films}
    assert patients["PERSON3_BACTERIA_900.JPEG"] == "person3_bacteria"
    assert patients["im-0004-0002.jpeg"] == "IM-0004"
    assert patients["train/bacterial/IM-0004-0001.jpeg"] == "bacterial/IM-0004-0001"
    assert [patient for patient in patients.values() if not named(patient)] == ["bacterial/IM-0004-0001"]


@pytest.mark.parametrize("test", ["Testing", "TEST SET", "tests", "test_data"])
def test_folders_of_other_spellings(kaggle, test):
    (kaggle / "train").rename(kaggle / "Training")
    for path in sorted((kaggle / "test/PNEUMONIA").iterdir()):
        kind = "Viral Pneumonia" if "virus" in path.name else "Pneumonia-Bacterial"
        put(kaggle, f"{test}/{kind}/{path.name}", path.read_bytes())
    for path in sorted((kaggle / "test/NORMAL").iterdir()):
        put(kaggle, f"{test}/normal/{path.name}", path.read_bytes())
    shutil.rmtree(kaggle / "test")
    found = sort(kaggle)
    assert counts(found.splits["test"]) == Counter({0: 3, 1: 3, 2: 3})
    assert counts(found.splits["train"] + found.splits["validation"]) == Counter({0: 11, 1: 21, 2: 10})
    assert found.quarantine == []


def test_no_images(tmp_path):
    with pytest.raises(JobError, match="it holds no files"):
        sort(tmp_path)
    put(tmp_path, "train/NORMAL/IM-0001-0001.jpeg", b"")
    with pytest.raises(JobError, match=r"no usable image in .*1 unreadable"):
        sort(tmp_path)


def test_no_source(tmp_path):
    with pytest.raises(JobError, match="absent is not there; give the folder that holds train"):
        sort(tmp_path / "absent")
    (tmp_path / "film.png").write_bytes(b"\x89PNG")
    with pytest.raises(JobError, match=r"film.png is neither a folder nor a zip"):
        sort(tmp_path / "film.png")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_a_zip_is_set_aside(kaggle, tmp_path, compression):
    archive, damaged = tmp_path / "films.zip", "train/NORMAL/IM-0003-0001.jpeg"
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in kaggle.rglob("*.jpeg"):
            file.write(path, path.relative_to(kaggle))
        at = file.getinfo(damaged)
    data = bytearray(archive.read_bytes())
    start = at.header_offset + 30 + len(damaged)
    for place in range(start, start + at.compress_size):
        data[place] ^= 0xFF
    archive.write_bytes(data)
    assert list(aside(sort(archive))) == [damaged]


def test_why_a_member_of_a_zip_cannot_be_unpacked_is_told(kaggle, tmp_path):
    """A password's flag, and the number of a compression that Python does not know, set in the headers by hand."""
    archive, odd = tmp_path / "films.zip", ("train/NORMAL/IM-0003-0001.jpeg", "train/NORMAL/IM-0004-0001.jpeg")
    with zipfile.ZipFile(archive, "w") as file:
        for path in kaggle.rglob("*.jpeg"):
            file.write(path, path.relative_to(kaggle))
        local = {member.filename: member.header_offset for member in file.infolist()}
    data = bytearray(archive.read_bytes())
    for name, local_at, central_at, value in ((odd[0], 6, 8, 1), (odd[1], 8, 10, 9)):
        data[local[name] + local_at] = data[data.rindex(name.encode()) - 46 + central_at] = value
    archive.write_bytes(data)
    reasons = aside(sort(archive))
    assert list(reasons) == list(odd) and "locked by a password" in reasons[odd[0]][1]
    assert reasons[odd[1]][1].startswith("compressed in a way that cannot be read here; unpack the zip")


def test_of_one_path_in_a_zip_one_file_is_taken(kaggle, tmp_path):
    archive, twice = tmp_path / "films.zip", "train/NORMAL/IM-0003-0001.jpeg"
    with zipfile.ZipFile(archive, "w") as file:
        for path in kaggle.rglob("*.jpeg"):
            file.write(path, path.relative_to(kaggle))
        file.writestr(twice.replace("/", "\\"), jpeg(9003))
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr(twice, jpeg(9004))
    found = sort(archive)
    for split, films in sort(kaggle).splits.items():
        assert [film.sha256 for film in found.splits[split]] == [film.sha256 for film in films]
    assert [(entry.file, entry.detail) for entry in found.quarantine] == [
        (twice, "another file of the zip has the same path and is taken; rename one")
    ] * 2


def test_what_a_zip_may_hold_that_cannot_be_unpacked(kaggle, tmp_path):
    archive, damaged = tmp_path / "films.zip", "train/NORMAL/IM-0003-0001.jpeg"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as file:
        for path in kaggle.rglob("*.jpeg"):
            file.write(path, path.relative_to(kaggle))
        start, local = file.start_dir, file.getinfo(damaged).header_offset
    data = bytearray(archive.read_bytes())
    data[local + 30 + len(damaged) + 4 : local + 30 + len(damaged) + 9] = b"\xff" * 5  # the properties of LZMA
    archive.write_bytes(data)
    assert aside(sort(archive))[damaged][1].startswith("damaged in the zip")
    data[start + 6] = 99  # the version that is needed
    archive.write_bytes(data)
    with pytest.raises(JobError, match=r"films.zip is a damaged zip file \(zip file version 9.9\); fetch it again"):
        sort(archive)


def test_folders_of_a_zip_may_be_parted_as_on_windows(kaggle, tmp_path):
    archive = tmp_path / "films.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in kaggle.rglob("*.jpeg"):
            file.writestr(str(path.relative_to(kaggle)).replace("/", "\\"), path.read_bytes())
    assert {split: len(films) for split, films in sort(archive).splits.items()} == {
        split: len(films) for split, films in sort(kaggle).splits.items()
    }


def test_a_zip_whose_list_of_files_is_damaged_is_refused(kaggle, tmp_path):
    archive = tmp_path / "films.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in kaggle.rglob("*.jpeg"):
            file.write(path, path.relative_to(kaggle))
        start = file.start_dir
    data = bytearray(archive.read_bytes())
    data[start : start + 4] = b"PK??"
    archive.write_bytes(data)
    with pytest.raises(JobError, match=r"films.zip is a damaged zip file \(Bad magic number .*; fetch it again"):
        sort(archive)
    archive.write_bytes(data[:start])
    with pytest.raises(JobError, match=r"films.zip is a zip file that is cut short; fetch it again"):
        sort(archive)


def test_a_pipe_is_set_aside(kaggle):
    os.mkfifo(kaggle / "train/NORMAL/IM-0999-0001.jpeg")
    assert aside(sort(kaggle)) == {"train/NORMAL/IM-0999-0001.jpeg": ("unreadable", "neither a file nor a link to one")}


def test_a_file_larger_than_any_film_is_set_aside_unread(kaggle, tmp_path, monkeypatch):
    read = []
    of_folder, of_zip = Path.read_bytes, zipfile.ZipFile.read
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), of_folder(path))[1])
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, of: (read.append(of.filename), of_zip(self, of))[1])
    film = "train/NORMAL/IM-0990-0001.jpeg"
    put(kaggle, film, b"")
    os.truncate(kaggle / film, preprocess.MAX_BYTES + 1)  # a hole, which takes no room
    told = "the file has 400,000,001 bytes; at most 400,000,000 are read: save the film alone, as PNG"
    assert aside(sort(kaggle)) == {film: ("unreadable", told)}
    assert len(read) == 51 and "IM-0990-0001.jpeg" not in read
    os.truncate(kaggle / film, 100_000)
    monkeypatch.setattr(preprocess, "MAX_BYTES", 50_000)
    told = "the file has 100,000 bytes; at most 50,000 are read: save the film alone, as PNG"
    assert aside(sort(Path(shutil.make_archive(str(tmp_path / "films"), "zip", kaggle)))) == {
        film: ("unreadable", told)
    }
    assert len(read) == 102 and film not in read


def test_progress_is_told(kaggle):
    seen = []
    sort(kaggle, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (51, 51) and len(seen) == 51


def test_the_real_images(shared):
    found = sort(shared / "chest_xray")
    pooled = found.splits["train"] + found.splits["validation"]
    assert len(pooled) + len(found.quarantine) == 5216 + 16
    assert {entry.reason for entry in found.quarantine} == {"duplicate"}
    train, validation = ({film.patient for film in found.splits[split]} for split in ("train", "validation"))
    assert not train & validation
    assert 0.11 < len(validation) / len(train | validation) < 0.13
