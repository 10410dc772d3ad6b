"""The words of the page, as HTML and Markdown: an answer, the table of several, and what the model is.

File names and reasons come from uploads and are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from model import checkpoint
from model.labels import CLASSES, NORMAL
from model.predictor import REFUSED, UNCERTAIN, Prediction, Predictor

TITLE = """# Pneumoscope
Reads a chest X-ray of a child: normal, bacterial pneumonia or viral pneumonia, how sure it is, and where it looked."""
EMPTY = "<p>The answer appears here. Choose films and press <em>Read the films</em>, or try a synthetic one.</p>"
DECISIONS = {
    "normal": "Normal",
    "bacterial": "Bacterial pneumonia",
    "viral": "Viral pneumonia",
    UNCERTAIN: "Uncertain",
    REFUSED: "This film was refused",
}
FIGURES = {  # by their names in a checkpoint's meta, but for "val_"
    "accuracy": "{} of films get the right one of the three classes",
    "balanced_accuracy": "{} if every class counts the same",
    "binary_accuracy": "{} accuracy of normal against pneumonia",
    "binary_auroc": "{} AUROC of normal against pneumonia (0.5 is guessing, 1 is perfect)",
    "macro_f1": "{} macro-F1 of the three classes",
    "ece": "{} calibration error (0: of the answers given 80 %, 80 % are right)",
}
_NOTICE = (
    "<p class='notice'><strong>Not a medical device: for education and research, never for diagnosis.</strong> "
    "Bacterial and viral pneumonia cannot be told apart reliably on an X-ray, not even by experts.</p>"
)
_NOTHING = "What it answers to a real film means nothing."
_SYNTHETIC = f"<p class='notice'><strong>This model was trained on synthetic drawings.</strong> {_NOTHING}</p>"
_COMMANDS = """\
python jobs/prepare.py --source FOLDER_OR_ARCHIVE --data_dir data
python jobs/train.py --config configs/cnn.py --workdir runs/cnn
python jobs/bundle.py --checkpoint runs/cnn --out space/checkpoint
python jobs/calibrate.py --checkpoint space/checkpoint
python space/app.py --checkpoint space/checkpoint"""

# Of the page that has no model; why would tell visitors folders of the server.
UNTRAINED = (
    "<h2>There is no model to serve</h2><p>The log of the server says why.</p>"
    f"<p>These commands train one and serve it:</p><pre tabindex='0'>{_COMMANDS}</pre>"
    "<p>Without data, <code>--source phantom</code> and <code>--config configs/demo.py</code> do it with "
    f"synthetic drawings, within minutes.</p>{_NOTICE}"
)


def percent(probability: float) -> str:
    """0.8712 -> "87.1 %"; nothing is called impossible or certain."""
    if probability < 0.001:
        return "< 0.1 %"
    if probability > 0.999:
        return "> 99.9 %"
    return f"{100 * probability:.1f} %"


def notices(meta: dict[str, Any]) -> str:
    """HTML of what must stand right where an answer is read."""
    return (_SYNTHETIC if meta["dataset"]["name"] == "phantom" else "") + _NOTICE


def answer(name: str, prediction: Prediction) -> str:
    """HTML of one answer: the decision and a bar a class, or why there is none."""
    lines = [f"<p class='file'>{html.escape(name)}</p><h2>{DECISIONS[prediction.decision]}</h2>"]
    if prediction.reason:
        lines.append(f"<p>{html.escape(prediction.reason[0].upper() + prediction.reason[1:])}.</p>")
    if prediction.decision == UNCERTAIN:
        lines.append("<p>No class is probable enough to decide for it; the model leaves such films open.</p>")
    if prediction.decision != REFUSED and prediction.probabilities is not None:
        lines.append("<table class='bars'><caption>Probabilities</caption>")
        for label, probability in zip(CLASSES, prediction.probabilities, strict=True):
            emphasis = " class='decided'" if label == prediction.decision else ""
            lines.append(
                f"<tr{emphasis}><th scope='row'>{label}</th>"
                f"<td>{percent(probability)}</td>"
                f"<td aria-hidden='true'><div style='width: {100 * probability:.1f}%'></div></td></tr>"
            )
        pneumonia = percent(1 - prediction.probabilities[NORMAL])
        lines.append(f"</table><p>Pneumonia of either kind: <strong>{pneumonia}</strong></p>")
    return "".join(lines)


def table(names: list[str], predictions: list[Prediction]) -> str:
    """HTML table of several answers."""
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("film", "decision", *CLASSES))
    rows = []
    for name, prediction in zip(names, predictions, strict=True):
        numbers = None if prediction.decision == REFUSED else prediction.probabilities
        shares = ["–"] * len(CLASSES) if numbers is None else [percent(number) for number in numbers]
        reason = f"<small>{html.escape(prediction.reason)}</small>" if prediction.reason else ""
        cells = "</td><td>".join([prediction.decision + reason, *shares])
        rows.append(f"<tr><th scope='row'>{html.escape(name)}</th><td>{cells}</td></tr>")
    # Focusable, so that what does not fit can be scrolled to with the keyboard.
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='All answers'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def about(predictor: Predictor) -> str:
    """Markdown of what a checkpoint says of itself."""
    dataset = predictor.meta["dataset"]
    parameters = sum(checkpoint.parameters(meta) for meta in predictor.metas)
    networks = "; ".join(
        f"`{meta['architecture']}` at {meta['image_size']} x {meta['image_size']} pixels{_seen(meta)} "
        f"after {meta['epoch']} epoch{'' if meta['epoch'] == 1 else 's'}"
        + (f", begun with {_origin(meta['origin'])}" if meta.get("origin") else "")
        for meta in predictor.metas
    )
    what = "A neural network" if len(predictor.metas) == 1 else f"The mean of {len(predictor.metas)} neural networks"
    refusals = (
        "Pictures that are unlike the films it learned from are refused, but not all of them."
        if predictor.calibration
        else "Its percentages are not calibrated: they may say too much or too little, and no film is left uncertain. "
        "Almost any picture gets an answer, also one that is no chest X-ray."
    )
    # Two of three networks that learnt mirrored films are enough, one is not: "Mirrored films" in docs/experiments.md.
    learnt = [bool(meta["config"]["augment"]["flip_probability"]) for meta in predictor.metas]
    warned = ", and do not trust the answer to a mirrored film, which passes for any other"
    mirrored = "" if sum(learnt) > len(learnt) / 2 else warned
    whose = dataset["citation"] or "Drawn by a program."
    elsewhere = (
        _NOTHING
        if dataset["name"] == "phantom"
        else f"Expect worse on films of other hospitals, machines and ages{mirrored}."
    )
    return f"""\
**The model.** {what}, {parameters:,} parameters, that see{"s" if len(predictor.metas) == 1 else ""} films in gray,
squashed to a square: {networks}.

**Trained on** `{dataset["name"]}` (from `{dataset["source"]}`), licence {dataset["license"]}. {whose}

**How good it is** {_quality(predictor)}

{elsewhere} {refusals}

**The maps** show which places speak for normal rather than pneumonia, or for one kind of pneumonia rather than normal,
in the eyes of the model: not where disease is, nor what tells the two kinds apart. The most in one map is not the most
in another. Where the methods disagree, trust the maps less."""


def _seen(meta: Mapping[str, Any]) -> str:
    """How a network sees a film, where that is not all of it as it is."""
    middle = "" if meta["side"] == 1 else f" of its middle {100 * meta['side']:g} % each way"
    return middle + (", evened out from place to place," if meta.get("neighbourhood") else "")


def _origin(origin: Mapping[str, Any]) -> str:
    """Where first weights came from; the name that a run had on somebody's disk would tell a visitor nothing."""
    return "the weights of an earlier run" if "weights_digest" in origin else f"`{origin['from']}`"


def _quality(predictor: Predictor) -> str:
    """On which films, and the figures; of an ensemble that is not calibrated, that there are none."""
    if len(predictor.metas) > 1 and not predictor.calibration:
        return "was not measured of these networks together; `python jobs/calibrate.py --checkpoint` does it."
    return f"on {_films(predictor)}:\n\n{_figures(predictor)}"


def _figures(predictor: Predictor) -> str:
    """A line a figure: with intervals where the model is calibrated, else as they were when it was trained."""
    if predictor.calibration:
        found = predictor.calibration.facts["figures"]
        lines = {name: _stated(name, *found[name]) for name in FIGURES if name in found}
    else:
        # A figure is None where it is not defined, such as AUROC where one class is absent.
        metrics = predictor.meta["metrics"]
        lines = {
            name: _stated(name, metrics[f"val_{name}"]) for name in FIGURES if metrics.get(f"val_{name}") is not None
        }
    return (
        "\n".join(f"- {FIGURES[name].format(stated)}" for name, stated in lines.items())
        or "- not measured: it was stopped before its first epoch ended"
    )


def _films(predictor: Predictor) -> str:
    """What the figures are measured on."""
    if not predictor.calibration:
        return "films of that set that it was not trained on, but by which it was chosen"
    facts = predictor.calibration.facts
    held_out = facts["splits"]["validation"]
    text = (
        f"{held_out['films']} films of {held_out['patients']} patients of that set that it was not trained on, but by "
        "which it was chosen, with 95 % intervals, every film answered"
    )
    if facts["prior"] is None:
        return text
    shares = ", ".join(f"{100 * share:g} % {name}" for name, share in zip(CLASSES, facts["prior"], strict=True))
    return f"{text}, and each class as common as stated ({shares})"


def _stated(name: str, value: float, low: float | None = None, high: float | None = None) -> str:
    """0.8126, 0.78, 0.84 -> "81.3 % (78.0 to 84.0)"; areas and errors stay as they are."""
    share = name.endswith("accuracy")
    words = f"{100 * value:.1f} %" if share else f"{value:.3f}"
    if low is None or high is None:
        return words
    return words + (f" ({100 * low:.1f} to {100 * high:.1f})" if share else f" ({low:.3f} to {high:.3f})")
