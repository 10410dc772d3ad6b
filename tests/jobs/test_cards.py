"""The model card: complete, from the report, and refused where there is none."""

import csv
import json
import re
import shutil

import pytest

from jobs.datasets.chest_xray.builder import ChestXray
from jobs.evaluation import cards, intervals, metrics
from jobs.evaluation.report import APART, PLOTS
from model import checkpoint
from model.predictor import Predictor
from tests.jobs.test_commands import done, job, run  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def reported(run, phantom_data, tmp_path_factory):  # noqa: F811
    """A calibrated copy of the run with its full report."""
    directory = tmp_path_factory.mktemp("card") / "run"
    shutil.copytree(run, directory)
    done(job("calibrate", "--checkpoint", directory, "--data_dir", phantom_data))
    report = directory / "report"
    out = done(job("evaluate", "--checkpoint", directory, "--data_dir", phantom_data, "--full", "--out", report))
    assert "mean of the shifted copies" in out and "chosen by mean rank" in out and "text pages" in out
    return directory


def test_the_card_says_what_was_measured_limits_first(reported):
    said = done(job("card", "--checkpoint", reported))
    assert said.strip() == f"{reported}/MODEL_CARD.md, with the figures of {reported}/report"
    text = (reported / "MODEL_CARD.md").read_text()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles[:3] == ["Limits", "Model details", "Intended use"]
    order = [
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
    ]
    assert titles[3:9] == order
    assert "What it answers to a real film means nothing".lower() in text.lower()
    measured = json.loads((reported / "report/metrics.json").read_text())
    low, high = measured["intervals"]["accuracy"]
    assert f"| {100 * measured['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) |" in " ".join(text.split())
    for kind in measured["outliers"]:
        assert kind in text
    # What guards the files of others, and removes those of an older report, knows all that there are.
    assert {path.name for path in (reported / "report").iterdir()} == {"metrics.json", "predictions.csv", *PLOTS}
    with (reported / "report/predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == measured["count"]
    assert "None" not in text and "nan" not in text


def test_every_answer_points_at_a_section_that_exists(reported):
    done(job("card", "--checkpoint", reported))
    text = (reported / "MODEL_CARD.md").read_text()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    rows = [line for line in text.splitlines() if line.startswith(("| CLAIM", "| TRIPOD+AI"))]
    assert len(rows) > 30
    others = ("head", "none", "not done", "files that cannot be read")
    for row in rows:
        where = row.split("|")[2].strip()
        for place in where.split("; "):
            assert place.startswith((*titles, *others)) or place == "said in Limits", row


def test_where_weights_came_from_is_told(reported):
    predictor = Predictor.open(reported)
    measured = json.loads((reported / "report/metrics.json").read_text())
    assert "trained from scratch, without other data. Code" in cards.card(predictor, measured, reported / "report")
    predictor.meta["origin"] = {"from": "films", "step": 3, "weights_digest": "0123456789abcdef", "origin": None}
    assert "begun with `films` (step 3, 0123456789ab), which began at random. Code" in cards.card(
        predictor, measured, reported / "report"
    )
    first = {"from": "hf://timm/x", "commit": "c0ffee"}
    predictor.meta["origin"] = {"from": "films", "step": 3, "weights_digest": "abc", "origin": first}
    text = cards.card(predictor, measured, reported / "report")
    assert "begun with `films` (step 3, abc), which was begun with `hf://timm/x` (c0ffee). Code" in text


def test_the_card_claims_no_more_than_is_known(reported):
    predictor = Predictor.open(reported)
    measured = json.loads((reported / "report/metrics.json").read_text())
    measured["dataset"]["name"] = predictor.meta["dataset"]["name"] = "chest_xray"
    measured["dataset"]["citation"] = predictor.meta["dataset"]["citation"] = "A hospital"
    text = cards.card(predictor, measured, reported / "report")
    assert "As it was published" not in text and "Expect worse on other ages" in text
    measured["shifts"]["as it is"]["binary_accuracy"] = {"value": 0.97, "interval": [0.96, 0.98]}
    measured["shifts"]["as it is"]["refused"] = {"value": 0.01, "interval": [0.0, 0.02]}
    mirrored = measured["shortcuts"]["views"]["mirrored"]
    mirrored["refused"] = {"value": 0.05, "interval": [0.03, 0.08]}
    for interval, patients, told in (
        ([-0.04, -0.01], 150, "(-4.0 to -1.0), so do not trust the answer to a mirrored one."),
        ([-0.019, -0.001], 150, "(-1.9 to -0.1), so less than 2 are lost."),
        ([0.0, 0.0], 149, "(+0.0 to +0.0), which leaves open whether more than 2 are lost."),
        ([-0.04, 0.0], 150, "(-4.0 to +0.0), which leaves open whether more than 2 are lost."),
        (None, 150, "which leaves open whether more than 2 are lost."),
    ):
        measured["patients"] = patients
        change = {"value": -0.01, "interval": interval}
        mirrored["binary_accuracy"] = {"value": 0.95, "interval": [0.94, 0.98], "change": change}
        text = cards.card(predictor, measured, reported / "report")
        assert "refused are 5.0 % (3.0 to 8.0) of these films mirrored, and 1.0 % (0.0 to 2.0) as they are" in text
        assert "on them is 95.0 % (94.0 to 98.0) mirrored, and 97.0 % (96.0 to 98.0) as they are" in text
        assert "a difference of -1.0 points" in text and told in text
    predictor.meta["dataset"]["citation"] = measured["dataset"]["citation"] = ChestXray.CITATION
    text = " ".join(cards.card(predictor, measured, reported / "report").split())
    assert f"({metrics.BINS} bins, of equal width" in text and f"over {intervals.RESAMPLES:,} bootstrap" in text
    assert "As it was published, the dataset is of children of one to five years, of one hospital." in text
    assert "Training, calibration and this report read no film of a test split." in text
    assert "a film whose name tells none counts as a patient of its own." in text
    assert "CLAIM is that of 2020, with 42 items" in text
    assert "The checkpoint, the temperature and the thresholds were chosen on it" in text
    other = {"films_are": APART, "dataset": measured["dataset"] | {"citation": "Another hospital"}}
    for change in ({"split": "test"}, {"films_are": APART}, other):
        text = cards.card(predictor, measured | change, reported / "report")
        assert "read no film of a test split" not in text and "chosen on it" not in text
        # Films of the published dataset that were prepared apart are still of the one hospital.
        external = change is other
        assert ("nothing here was measured there" in text) != external
        assert (re.search(r"\| CLAIM 32 external testing +\| +none \|", text) is None) == external
        assert ("Films of another source than those of training: Another hospital. The validation" in text) == external


def test_which_epoch_is_kept_is_told(reported):
    predictor = Predictor.open(reported)
    measured = json.loads((reported / "report/metrics.json").read_text())
    meta = predictor.meta
    meta["config"]["epochs"] = 9
    for history, kept in (
        ([0.7, 0.6, 0.5], "The epoch with the best val_loss is kept."),
        ([0.7, 0.5, 0.6], "The latest epoch of a run that was not finished is kept."),
        ([0.5] * 9, "The last epoch is kept."),
    ):
        meta["history"] = [{"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate(history, 1)]
        meta["epoch"] = len(history)
        assert kept in cards.card(predictor, measured, reported / "report")


def test_how_strong_the_changes_of_films_were_is_told(reported):
    predictor = Predictor.open(reported)
    measured = json.loads((reported / "report/metrics.json").read_text())
    predictor.meta["config"]["augment"] |= {
        "collimation": 0.0,
        "framed": 0.15,
        "erase_probability": 0.0,
        "rotation_degrees": 20.0,
        "crop_area_min": 1.0,
    }
    text = cards.card(predictor, measured, reported / "report")
    told = text.partition("random changes of every film: ")[2].partition(" is kept.")[0]
    assert "rotation degrees 20," in told and "collimation" not in told and "crop area min" not in told
    assert "framed" not in told and "erase side" not in told  # of what is not done
    predictor.meta["config"]["augment"] |= {"collimation": 0.2, "framed": 0.15, "erase_probability": 0.25}
    text = cards.card(predictor, measured, reported / "report")
    assert "framed 0.15" in text and "erase side 0.25" in text


def test_few_patients_leave_figures_without_intervals(reported):
    predictor = Predictor.open(reported)
    measured = json.loads((reported / "report/metrics.json").read_text())
    measured["intervals"]["accuracy"] = measured["shortcuts"]["views"]["border only"]["binary_auroc"]["interval"] = None
    text = " ".join(cards.card(predictor, measured, reported / "report").split())
    stated = f"{100 * measured['accuracy']:.1f} % (too few such patients for an interval)"
    assert f"| accuracy | {stated} |" in text
    assert "Whether the border is a shortcut cannot be told: with" in text


def test_the_border_is_told_by_its_interval(reported):
    predictor = Predictor.open(reported)
    measured = json.loads((reported / "report/metrics.json").read_text())
    for interval, told in (
        ([0.6, 0.8], "Shortcuts remain: with"),
        ([0.2, 0.4], "The border moves the answer, to the wrong side: with"),
        ([0.4, 0.6], "No shortcut was seen in the border: with"),
    ):
        area = {"value": sum(interval) / 2, "interval": interval}
        measured["shortcuts"]["views"]["border only"]["binary_auroc"] = area
        assert told in cards.card(predictor, measured, reported / "report")


def test_guidelines_are_answered_item_by_item():
    answered = {"CLAIM": [], "TRIPOD+AI": []}
    for line in cards._guidelines(external=False).splitlines():
        if found := re.match(r"\| (CLAIM|TRIPOD\+AI) ([\d, -]+) ", line):
            for part in found[2].split(", "):
                first, _, last = part.partition("-")
                answered[found[1]] += range(int(first), int(last or first) + 1)
    assert answered == {"CLAIM": [*range(1, 43)], "TRIPOD+AI": [*range(1, 28)]}


def test_no_card_without_calibration_report_or_these_weights(run, reported, tmp_path):  # noqa: F811
    result = job("card", "--checkpoint", run)
    assert result.returncode == 1 and "is not calibrated; do that first: python jobs/calibrate.py" in result.stderr
    other = tmp_path / "other"
    shutil.copytree(reported, other)
    shutil.rmtree(other / "report")
    (other / "MODEL_CARD.md").unlink(missing_ok=True)
    result = job("card", "--checkpoint", other, "--report", tmp_path / "none")
    assert result.returncode == 1 and "none holds no report" in result.stderr
    assert f"python jobs/evaluate.py --checkpoint {other} --full --out {tmp_path / 'none'}" in result.stderr
    done(job("bundle", "--checkpoint", reported, "--out", tmp_path / "bundle"))
    for directory, at in ((other, other / "report"), (tmp_path / "bundle", "docs/report")):
        result = job("card", "--checkpoint", directory, cwd=tmp_path)
        assert f"write one: python jobs/evaluate.py --checkpoint {directory} --full --out {at}\n" in result.stderr
    measured = json.loads((reported / "report/metrics.json").read_text())
    for change, problem in (
        ({"checkpoint": {"weights": ["0" * 64]}}, "is of other weights"),
        ({"shifts": None}, "was made without --full"),
        ({"films_are": "trained on"}, "is of films that the model was trained on"),
        ({"calibration": measured["calibration"] | {"sha256": "0" * 64}}, "was made with another calibration"),
    ):
        (tmp_path / "r").mkdir(exist_ok=True)
        changed = {key: value for key, value in (measured | change).items() if value is not None}
        (tmp_path / "r/metrics.json").write_text(json.dumps(changed))
        result = job("card", "--checkpoint", other, "--report", tmp_path / "r")
        assert result.returncode == 1 and problem in result.stderr and "Traceback" not in result.stderr
    (tmp_path / "notes.md").write_text("mine")
    result = job("card", "--checkpoint", reported, "--out", tmp_path / "notes.md")
    assert result.returncode == 2 and "exists and is no model card; it is not overwritten" in result.stderr
    assert (tmp_path / "notes.md").read_text() == "mine"
    older = measured | {"shortcuts": {key: value for key, value in measured["shortcuts"].items() if key != "alone"}}
    (tmp_path / "r/metrics.json").write_text(json.dumps(older))
    result = job("card", "--checkpoint", other, "--report", tmp_path / "r")
    assert (
        result.returncode == 1 and "r has no figure named 'alone': it is damaged, or another version" in result.stderr
    )
    as_it_is = measured["shifts"]["as it is"] | {"accuracy": None}
    damaged = measured | {"shifts": measured["shifts"] | {"as it is": as_it_is}}
    (tmp_path / "r/metrics.json").write_text(json.dumps(damaged))
    result = job("card", "--checkpoint", other, "--report", tmp_path / "r")
    assert result.returncode == 1 and "cannot be made into a card ('NoneType'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (other / "MODEL_CARD.md").exists()


def test_members_that_were_trained_otherwise_are_told_one_by_one(reported):
    measured = json.loads((reported / "report/metrics.json").read_text())
    loaded = [checkpoint.load(reported) for _ in range(2)]
    calibration = Predictor.open(reported).calibration
    alike = cards.card(Predictor(loaded, calibration), measured, reported / "report")
    assert "Training: adamw" in alike and "of member 2" not in alike and "did not learn" not in alike
    loaded[1].meta["config"]["mixup_alpha"] = 0.7
    loaded[1].meta["config"]["data"]["leave_out"] = "person[12]_"
    text = cards.card(Predictor(loaded, calibration), measured, reported / "report")
    first, second = (re.search(rf"Training of member {which}: (.*)", text)[1] for which in (1, 2))
    assert "mixup 0.7," in second and "mixup 0.7," not in first
    assert "begun with" not in text
    held_out = measured | {"films_are": cards.HELD_OUT}
    apart = "none of them in training{}. The checkpoint, the temperature"
    assert apart.format("") in cards.card(Predictor(loaded, calibration), held_out, reported / "report")
    loaded[1].meta["origin"] = {"from": "films", "step": 3, "weights_digest": "abc", "origin": None}
    begun = cards.card(Predictor(loaded, calibration), measured, reported / "report")
    assert (
        "networks of which member 1 began at random; member 2 was begun with `films` (step 3, abc), which began at "
        in begun
    )
    known = ", as far back as checkpoints tell what weights were begun with"
    assert apart.format(known) in cards.card(Predictor(loaded, calibration), held_out, reported / "report")
    loaded[0].meta["origin"] = loaded[1].meta["origin"]
    alike = cards.card(Predictor(loaded, calibration), measured, reported / "report")
    assert "networks begun with `films` (step 3, abc), which began at random. Code" in alike
    told = "The films with `person[12]_` in their names were left out."
    assert second.startswith(told) and "left out" not in first
    few = "Of these {} did not learn the ones that are said under Model details to be left out{}. "
    assert few.format("member 2", "") in text
    before = ", though the runs that weights were begun with may have"
    assert few.format("member 2", before) in alike
    loaded.append(loaded[1])
    assert few.format("members 2 and 3", before) in cards.card(
        Predictor(loaded, calibration), measured, reported / "report"
    )
