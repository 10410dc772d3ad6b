"""Writes the model card of a checkpoint from what was measured; no figure in it is typed by hand.

    python jobs/calibrate.py --checkpoint runs/cnn
    python jobs/evaluate.py --checkpoint runs/cnn --full --out runs/cnn/report
    python jobs/card.py --checkpoint runs/cnn

The figures come from the checkpoint, its calibration, and a report of the same weights and calibration: that of
--report, or else of CHECKPOINT/report or docs/report, whichever has one first. The card follows Model Cards (Mitchell
et al. 2019, section 4), the limits first, and ends with where it answers CLAIM and TRIPOD+AI.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import flags

from jobs import JobError, check_replaceable, command, headed, run, whole
from jobs.evaluation import cards
from jobs.evaluation.report import TRAINED_ON
from model.checkpoint import CheckpointError
from model.predictor import Predictor

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run directory or a bundle, calibrated.", required=True)
_REPORT = flags.DEFINE_string("report", None, "The folder that `evaluate.py --full` wrote.")
_OUT = flags.DEFINE_string("out", None, "The file to write; CHECKPOINT/MODEL_CARD.md where none is given.")

DOCS = Path("docs/report")  # where that of the bundled model lies


def main() -> None:
    directory = Path(_CHECKPOINT.value)
    predictor = Predictor.open(directory)
    if predictor.calibration is None:
        raise JobError(
            f"{directory} is not calibrated; do that first: {command('calibrate', '--checkpoint', directory)}"
            + (" (of a cross-validation, one of its members)" if len(predictor.metas) > 1 else "")
        )
    folders = [Path(_REPORT.value)] if _REPORT.value else [directory / "report", DOCS]
    folder, measured = _report(predictor, directory, folders)
    out = Path(_OUT.value) if _OUT.value else directory / cards.FILE
    check_replaceable(out, headed(cards.TITLE), "model card")
    try:
        text = cards.card(predictor, measured, folder)
    except (KeyError, TypeError) as error:
        absent = isinstance(error, KeyError)
        what = f"has no figure named {error}" if absent else f"cannot be made into a card ({error})"
        raise JobError(
            f"{folder} {what}: it is damaged, or another version wrote it; write it again: "
            f"{command('evaluate', '--checkpoint', directory, '--full', '--out', folder)}"
        ) from error
    with whole(out) as path:
        path.write_text(text, encoding="utf-8")
    print(f"{out}, with the figures of {folder}")


def _report(predictor: Predictor, directory: Path, folders: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The first report of these weights and their calibration, and its figures.

    Raises:
      JobError: there is none, or it lacks what --full adds.
    """
    # Within a bundle a report would be served and shared with it.
    at = folders[0] if (directory / "log.jsonl").exists() else folders[-1]
    if _REPORT.value and at.is_file():
        at = at.with_name(f"{at.name}-report")
    cure = command("evaluate", "--checkpoint", directory, "--full", "--out", at)
    problems = []
    assert predictor.calibration
    for folder in folders:
        try:
            measured = json.loads((folder / "metrics.json").read_text())
            if measured["checkpoint"]["weights"] != list(predictor.weights):
                problems.append(f"{folder} is of other weights")
            elif not {"shifts", "decisions"} <= measured.keys():
                problems.append(f"{folder} was made without --full, or before the model was calibrated")
            elif measured["calibration"].get("sha256") != predictor.calibration.sha256:
                problems.append(f"{folder} was made with another calibration")
            elif measured["films_are"] == TRAINED_ON:
                problems.append(f"{folder} is of films that the model was trained on")
            else:
                return folder, measured
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{folder} holds no report ({' '.join(str(error).split())[:80]})")
    raise JobError(f"{'; '.join(problems)}; write one: {cure}")


if __name__ == "__main__":
    run(main, CheckpointError)
