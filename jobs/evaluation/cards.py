"""The model card: the words are these, the figures are those of a checkpoint and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.datasets.chest_xray.builder import ChestXray
from jobs.evaluation import faithfulness
from jobs.evaluation.fit import FALSE_REFUSALS, UNDECIDED
from jobs.evaluation.intervals import RESAMPLES
from jobs.evaluation.metrics import BINS, LOGGED_LOSSES, LOSSES
from jobs.evaluation.report import HELD_OUT, from_elsewhere
from jobs.evaluation.shifts import SHIFTS
from jobs.evaluation.tables import NO_WIDTH, markdown, number, points, share
from model import checkpoint
from model.labels import CLASSES
from model.predictor import Predictor

FILE = "MODEL_CARD.md"
TITLE = "# Model card: "
PHANTOM = "phantom"
MARGIN = 0.02  # of accuracy: a loss that is surely less is told as none that counts


def _stated(figure: Mapping[str, Any]) -> str:
    return share(figure["value"], figure["interval"])


def card(predictor: Predictor, measured: Mapping[str, Any], report: Path) -> str:
    """The whole card, in Markdown.

    Args:
      predictor: the model, calibrated.
      measured: the contents of metrics.json, of `evaluate.py --full`.
      report: the folder it is in, which the card points at.
    """
    sections = {
        "Limits": _limits(predictor, measured),
        "Model details": _details(predictor),
        "Intended use": _use(),
        "Factors": _factors(measured),
        "Metrics": _METRICS,
        "Evaluation data": _evaluation_data(predictor, measured),
        "Training data": _training_data(predictor),
        "Quantitative analyses": _analyses(predictor, measured, report),
        "Ethical considerations": _ETHICS,
        "Caveats and recommendations": _CAVEATS,
        "Where reporting guidelines are answered": _guidelines(from_elsewhere(predictor, measured["dataset"])),
    }
    weights = ", ".join(digest[:12] for digest in predictor.weights)
    head = (
        f"{TITLE}Pneumoscope, trained on `{predictor.meta['dataset']['name']}`\n\n"
        f"Written by `python jobs/card.py` from the checkpoint (weights {weights}) "
        f"and `{report.as_posix()}/metrics.json`."
    )
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def _limits(predictor: Predictor, measured: Mapping[str, Any]) -> str:
    views, decisions = measured["shortcuts"]["views"], measured["decisions"]
    lines = ["**Not a medical device: for education and research, never for diagnosis.**"]
    if predictor.meta["dataset"]["name"] == PHANTOM:
        lines.append("It was trained on synthetic drawings: what it answers to a real film means nothing.")
    else:
        published = predictor.meta["dataset"]["citation"] == ChestXray.CITATION
        whom = "As it was published, the dataset is of children of one to five years, of one hospital. "
        elsewhere = "" if from_elsewhere(predictor, measured["dataset"]) else ": nothing here was measured there"
        lines += [
            f"{whom if published else ''}Expect worse on other ages, hospitals and machines{elsewhere}.",
            "The labels are the dataset's. Bacterial and viral pneumonia cannot be told apart reliably on an X-ray, "
            "not even by experts, and a film of any other disease is called one of the three classes.",
        ]
    border = views["border only"]["binary_auroc"]
    if border["value"] is not None:
        if border["interval"] is None:
            remain = "Whether the border is a shortcut cannot be told"
        elif border["interval"][0] > 0.5:
            remain = "Shortcuts remain"
        elif border["interval"][1] < 0.5:
            remain = "The border moves the answer, to the wrong side"
        else:
            remain = "No shortcut was seen in the border"
        lines.append(
            f"{remain}: with the middle of a film painted over, its border alone tells pneumonia from normal with an "
            f"AUROC of {number(border['value'], border['interval'])}; .5 is guessing."
        )
    whole, mirrored = measured["shifts"]["as it is"], views["mirrored"]
    change = mirrored["binary_accuracy"]["change"]
    low, high = change["interval"] or (-1.0, 1.0)  # too few patients for an interval: it could be anything
    # Where nothing is lost on films of n patients, it may be with 3 in n (Hanley and Lippman-Hand 1983).
    if low >= -MARGIN and measured["patients"] >= 3 / MARGIN:
        trust = f"so less than {100 * MARGIN:.0f} are lost"
    elif high < 0:
        trust = "so do not trust the answer to a mirrored one"
    else:
        trust = f"which leaves open whether more than {100 * MARGIN:.0f} are lost"
    lines.append(
        "Nothing looks for a mirrored film: refused are "
        f"{_stated(mirrored['refused'])} of these films mirrored, and {_stated(whole['refused'])} as they are. Normal "
        f"against pneumonia, the accuracy on them is {_stated(mirrored['binary_accuracy'])} mirrored, and "
        f"{_stated(whole['binary_accuracy'])} as they are, a difference of "
        f"{points(change['value'], change['interval'])}, {trust}."
    )
    missed = {kind: values for kind, values in measured["outliers"].items() if values["refused"] < 0.95}
    if missed:
        kinds = ", ".join(
            f"{kind} {share(values['refused'], values['intervals']['refused'])}" for kind, values in missed.items()
        )
        lines.append(f"Not everything that is no chest film is refused; of these, only: {kinds}.")
    lines.append(
        f"Of the films of the {measured['split']} split {share(decisions['refused'])} are refused, and "
        f"{share(decisions['abstention']['coverage'])} are decided; the figures below count every film as answered. "
        "What is refused where a file is opened, for colour, shape or blankness, is not counted here: these films were "
        "prepared before."
    )
    return "\n".join(f"- {line}" for line in lines)


def _origin(origin: dict[str, Any]) -> str:
    """Where the first weights of a network came from."""
    which = origin.get("commit") or origin.get("sha256") or f"step {origin['step']}, {origin['weights_digest'][:12]}"
    before = ""
    if "origin" in origin:  # a run of this project
        first = origin["origin"]
        before = f", which was begun with {_origin(first)}" if first else ", which began at random"
    return f"`{origin['from']}` ({which}){before}"


def _phases(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a checkpoint's config, or the one that it is."""
    return config.get("phases") or [config["optimizer"] | {"epochs": config["epochs"], "trainable": "all"}]


def _schedule(config: dict[str, Any]) -> str:
    return ", then ".join(
        f"peak learning rate {phase['learning_rate']:g}, {phase['schedule']} schedule over {phase['epochs']} epochs"
        + (f" of {phase['trainable']}" if config.get("phases") else "")
        for phase in _phases(config)
    )


def _training(meta: dict[str, Any]) -> str:
    """How a member was trained, and which of its epochs it is."""
    config = meta["config"]
    same = {"crop_area_min": 1}  # what changes nothing, where it is not 0
    needs = {"erase_side": "erase_probability", "framed": "collimation"}  # each is of what the other asks for
    augment = config["augment"]
    changes = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in augment.items()
        if value != same.get(name, 0) and augment[needs.get(name, name)]
    ]
    balance = {"sampling": "a third of each class in every epoch", "loss": "classes weighted in the loss"}
    # Checkpoints of before there was such a field do not speak of it.
    left_out = config["data"].get("leave_out")
    metric = config["select"]["metric"]
    best = min if metric in LOGGED_LOSSES else max
    scores = {row["epoch"]: row[metric] for row in meta["history"] if row.get(metric) is not None}
    if meta["epoch"] == sum(phase["epochs"] for phase in _phases(config)):
        kept = "The last epoch"
    elif scores.get(meta["epoch"]) == best(scores.values(), default=None):
        kept = f"The epoch with the best {metric}"
    else:
        kept = "The latest epoch of a run that was not finished"
    return (
        (f"The films with `{left_out}` in their names were left out. " if left_out else "")
        + f"{config['optimizer']['name']}, {_schedule(config)} of {config['global_batch_size']} "
        f"films a step; {balance.get(config['data']['balance'], 'films as they come')}; label smoothing "
        f"{config['label_smoothing']:g}, mixup {config['mixup_alpha']:g}, averaged weights {config['ema_decay']:g}; "
        f"random changes of every film: {', '.join(changes) or 'none'}. {kept} is kept."
    )


def _contrast(meta: Mapping[str, Any]) -> str:
    """Over how much of its input a network's contrast is local, where it is."""
    radius = meta.get("neighbourhood")  # checkpoints of before there was one do not speak of it
    return f", contrast local to {share(radius)} of it" if radius else ""


def _details(predictor: Predictor) -> str:
    rows = [["member", "architecture", "parameters", "input", "epochs", "seed", "weights"]]
    for number_of, (meta, digest) in enumerate(zip(predictor.metas, predictor.weights, strict=True), 1):
        rows.append(
            [
                str(number_of),
                meta["architecture"],
                f"{checkpoint.parameters(meta):,}",
                f"{meta['image_size']} px of the middle {share(meta['side'])} of the side{_contrast(meta)}",
                str(meta["epoch"]),
                str(meta["config"]["seed"]),
                digest[:12],
            ]
        )
    packages = ", ".join(f"{name} {version}" for name, version in predictor.meta["packages"].items())
    told = [markdown(rows)]
    if len(predictor.metas) > 1:
        told.append("The answer is the mean of the members' probabilities, calibrated.")
    origins = [_origin(meta["origin"]) if meta.get("origin") else "" for meta in predictor.metas]
    if not any(origins):
        begun = "trained from scratch, without other data"
    elif len(set(origins)) == 1:
        begun = f"begun with {origins[0]}"
    else:
        begun = "of which " + "; ".join(
            f"member {number_of} {f'was begun with {origin}' if origin else 'began at random'}"
            for number_of, origin in enumerate(origins, 1)
        )
    told.append(
        f"Convolutional networks {begun}. Code: Apache-2.0. Weights: trained on "
        f"`{predictor.meta['dataset']['name']}`, licence {predictor.meta['dataset']['license']}. Made with {packages}. "
        "The whole configuration is in the checkpoint's `meta`."
    )
    recipes = [_training(meta) for meta in predictor.metas]
    if len(set(recipes)) == 1:
        told.append(f"Training: {recipes[0]}")
    else:
        told.extend(f"Training of member {number_of}: {recipe}" for number_of, recipe in enumerate(recipes, 1))
    calibration = predictor.calibration
    assert calibration
    prior = ""
    if calibration.facts["prior"] is not None:
        biases = ", ".join(f"{name} {value:+.3f}" for name, value in zip(CLASSES, calibration.bias, strict=True))
        prior = f", bias for the shares {calibration.facts['prior']} of the classes {biases}"
    told.append(
        f"Calibration, on {calibration.facts['splits']['validation']['films']} validation films: temperature "
        f"{calibration.temperature:.3f}{prior}; uncertain below a top probability of {calibration.confidence:.3f}."
    )
    return "\n\n".join(told)


def _use() -> str:
    return (
        "Teaching and research: how such models are trained, calibrated and examined, and where they fail. Users are "
        "engineers, students and researchers. Out of scope: any decision about a patient; adults; films other than "
        "frontal chest films; diseases other than the three classes."
    )


def _factors(measured: Mapping[str, Any]) -> str:
    rows = [["factor", "group", *CLASSES, "accuracy", "pneumonia AUROC"]]
    for way, of_way in measured["shortcuts"]["groups"].items():
        for group, values in of_way.items():
            area = values["binary_auroc"]
            figures = [_stated(values["accuracy"]), number(area["value"], area["interval"])]
            rows.append([way, group, *map(str, values["classes"]), *figures])
    return (
        "By what should not matter, with the films of each class: groups hold different shares of them, which moves "
        "the accuracy but not the AUROC. Where the accuracy changes with the numbers of patients within a class, films "
        "or labels may differ from one part of the source to another. Age, sex, ethnicity and machine are not in the "
        f"data, so fairness could not be examined.\n\n{markdown(rows)}"
    )


_METRICS = f"""\
Three-class accuracy, balanced accuracy and macro-F1; for normal against pneumonia accuracy, sensitivity, specificity
and AUROC; log loss, Brier score and expected calibration error ({BINS} bins, of equal width and of equal mass) for the
probabilities. Each with its 95 % interval over {RESAMPLES:,} bootstrap resamples of the patients, since films of one
patient are alike: percentiles, but for the calibration errors, which chance makes larger and whose intervals reach as
far as those of reflected and of re-centred resamples. How many pictures that are no films are refused, each of another
patient or of none, has an exact binomial one. Thresholds were chosen on the validation split and nowhere else.
{NO_WIDTH}"""


def _evaluation_data(predictor: Predictor, measured: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{values['count']} {name}" for name, values in measured["classes"].items())
    text = (
        f"The {measured['split']} split of `{measured['dataset']['name']}`: {measured['count']} films of "
        f"{measured['patients']} patients ({counts}), "
    )
    if from_elsewhere(predictor, measured["dataset"]):
        text = f"Films of another source than those of training: {measured['dataset']['citation']}. {text}"
    held_out = measured["films_are"] == HELD_OUT
    apart = f"{measured['films_are']}: whether a patient is in both was not checked."
    begun = any(meta.get("origin") for meta in predictor.metas)
    known = ", as far back as checkpoints tell what weights were begun with" if begun else ""
    text += f"none of them in training{known}." if held_out else apart
    if measured["split"] == "validation" and held_out:
        text += (
            " The checkpoint, the temperature and the thresholds were chosen on it, which flatters the figures a "
            f"little: that {100 * FALSE_REFUSALS:.0f} % are refused and {100 * UNDECIDED:.0f} % left undecided is what "
            "was asked for. Training, calibration and this report read no film of a test split."
        )
    return text


def _training_data(predictor: Predictor) -> str:
    dataset = predictor.meta["dataset"]
    assert predictor.calibration
    train = predictor.calibration.facts["splits"]["train"]
    counts = ", ".join(f"{count} {name}" for name, count in train["classes"].items())
    return (
        f"The train split of `{dataset['name']}`: {train['films']} films of {train['patients']} patients ({counts}). "
        f"{_left_out(predictor.metas)}{dataset['citation'] or 'Drawn by a program'}. Licence {dataset['license']}. "
        f"Fingerprint of the prepared data: `{dataset['fingerprint'][:16]}`. Preparing lets no file and no patient be "
        "in two splits, as far as the names of files tell patients; a film whose name tells none counts as a patient "
        "of its own."
    )


def _left_out(metas: Sequence[Mapping[str, Any]]) -> str:
    """Which members did not learn all of the films, as far as their checkpoints know."""
    fewer = {str(number_of): meta for number_of, meta in enumerate(metas, 1) if meta["config"]["data"].get("leave_out")}
    if not fewer:
        return ""
    *others, last = fewer
    several = f"members {', '.join(others)} and {last}" if others else f"member {last}"
    begun = any(meta.get("origin") for meta in fewer.values())
    return (
        f"Of these {several if len(metas) > 1 else 'the network'} did not learn the ones that are said under Model "
        f"details to be left out{', though the runs that weights were begun with may have' if begun else ''}. "
    )


def _analyses(predictor: Predictor, measured: Mapping[str, Any], report: Path) -> str:
    intervals, decisions = measured["intervals"], measured["decisions"]
    rows = [["figure", "value (95 % interval)"]]
    overall = ("accuracy", "balanced_accuracy", "macro_f1")
    rows += [[name.replace("_", " "), share(measured[name], intervals[name])] for name in overall]
    for name, value in measured["binary"].items():
        form = number if name == "auroc" else share
        rows.append([f"pneumonia {name}", form(value, intervals["binary"][name])])
    before, before_it = measured["calibration"]["before"], measured["calibration"]["intervals"]["before"]
    for name in LOSSES:
        stated = number(measured[name], intervals[name])
        stated += f"; before calibration {number(before[name], before_it[name])}"
        rows.append([name.replace("_", " "), stated])
    abstention, bounds = decisions["abstention"], decisions["intervals"]["abstention"]
    rows.append(["decided", share(abstention["coverage"], bounds["coverage"])])
    rows.append(["accuracy of the decided", share(abstention["accuracy"], bounds["accuracy"])])
    area = number(abstention["risk_coverage_area"], bounds["risk_coverage_area"])
    rows.append(["area under the risk-coverage curve", area])

    classes = [["class", "films", "sensitivity", "specificity", "precision", "AUROC"]]
    for name, values in measured["classes"].items():
        of_class = intervals["classes"][name]
        shares = [share(values[key], of_class[key]) for key in ("sensitivity", "specificity", "precision")]
        classes.append([name, str(values["count"]), *shares, number(values["auroc"], of_class["auroc"])])

    prevalence = decisions["prevalence"]
    operating = [["operating point", "threshold", "sensitivity", "specificity", "PPV", "NPV"]]
    for name, values in decisions["operating_points"].items():
        of_point = decisions["intervals"]["operating_points"][name]
        threshold = f"{measured['calibration']['thresholds'][name]:.4f}"
        shares = [share(values[key], of_point[key]) for key in ("sensitivity", "specificity", "ppv", "npv")]
        operating.append([name, threshold, *shares])
    at = "of these films" if prevalence is None else share(prevalence)

    shifted = [["films", "accuracy", "pneumonia accuracy", "pneumonia AUROC", "refused"]]
    shifts = measured["shifts"]
    named = {"as they are": shifts["as it is"], "mean of the shifted copies": shifts["mean"]}
    for name, figures in (named | measured["shortcuts"]["views"]).items():
        ranked = figures["binary_auroc"]
        shares = [_stated(figures[key]) for key in ("accuracy", "binary_accuracy")]
        shifted.append([name, *shares, number(ranked["value"], ranked["interval"]), _stated(figures["refused"])])
    copies = {
        f"{name.replace('_', ' ')} {point['value']:g}": point["refused"]
        for name, curve in shifts["curves"].items()
        for point in curve
        if point["value"] != SHIFTS[name][2]
    }
    most = sorted(copies, key=lambda copy: copies[copy]["value"], reverse=True)[:3]

    alone = measured["shortcuts"]["alone"]
    sizes = "; ".join(f"{what} taken for ill {number(of['value'], of['interval'])}" for what, of in alone.items())

    refused = [["pictures", "refused", "AUROC of the distance"]]
    for kind, values in measured["outliers"].items():
        bounds_of = values["intervals"]
        refused.append(
            [
                kind,
                f"{share(values['refused'], bounds_of['refused'])} of {values['count']}",
                number(values["auroc"], bounds_of["auroc"]),
            ]
        )

    outside = measured["shortcuts"]["heat_outside"]
    found = measured["maps"]
    return "\n\n".join(
        [
            markdown(rows),
            markdown(classes),
            f"Operating points, with predictive values at the prevalence {at}:",
            markdown(operating),
            "On films that were changed, or of which only a part was left:",
            markdown(shifted),
            f"Of the shifted copies these are refused most: {', '.join(f'{m} {_stated(copies[m])}' for m in most)}.",
            f"Without a look at the film, AUROC of pneumonia: {sizes or 'all are of one size, which tells nothing'}.",
            "Pictures that are no upright chest films of a patient:",
            markdown(refused),
            f"Heat maps (`{measured['method']}`): {share(outside['share'], outside['interval'])} of their energy lies "
            f"outside the central region; of a flat map, blank where they are, {share(outside['of_a_flat_map'])}. "
            "Deletion and insertion; how well a map follows a film that is moved, and beside it how like the map of "
            "another film it is; and what is left of it when the network is randomised: "
            "the size of the correlation, beside that of two maps that know nothing, in the row of `random` "
            f"({found['films']} films; `{found['chosen']}` is chosen: the best mean rank of the "
            "methods whose maps do not outlast the network, or of all where every one does):",
            markdown(faithfulness.rows(found)),
            f"{faithfulness.advantage(found)}.",
            f"The calibrated probabilities behind these figures, film by film, are in "
            f"`{report.as_posix()}/predictions.csv`, the plots beside it.",
        ]
    )


_ETHICS = """\
Consent, ethics approval and the removal of names are those of the dataset. A confident wrong answer about a child could
delay treatment, and a heat map lends it an air of reason: the page therefore says beside every answer that it is not a
medical device, leaves films undecided, and refuses what it was not made for."""

_CAVEATS = f"""\
Compare models by `python jobs/compare.py` on the same films, not by two figures with overlapping intervals. Measure
again wherever films come from elsewhere; calibrate again (`python jobs/calibrate.py --prior`) where the shares of
{", ".join(CLASSES)} differ. Trust the maps less where methods disagree."""

_EDITIONS = """\
CLAIM is that of 2020, with 42 items (Mongan et al., Radiology: Artificial Intelligence 2, e200029); its update of 2024
numbers them otherwise. TRIPOD+AI is that of 2024 (Collins et al., BMJ 385, e078378)."""


def _guidelines(external: bool) -> str:
    """Where each item is answered."""
    rows = [
        ["guideline, item", "where"],
        ["CLAIM 1, 2 title and abstract", "head; Limits"],
        ["CLAIM 3, 4 background and objectives", "Intended use"],
        ["CLAIM 5, 6 design and goal: retrospective, public data", "Training data; Intended use"],
        ["CLAIM 7-10 sources, eligibility, preprocessing, subsets", "Training data; Model details"],
        ["CLAIM 11 definitions of data elements", "Limits"],
        ["CLAIM 12 de-identification", "Ethical considerations"],
        ["CLAIM 13 missing data", "files that cannot be read are listed when data are prepared"],
        ["CLAIM 14-17 ground truth: definition, rationale, source, tools", "Limits (the labels are the dataset's)"],
        ["CLAIM 18 variability between and within experts", "not done: how far experts agree is not measured here"],
        ["CLAIM 19 sample size", "Training data; Evaluation data (all films there are)"],
        ["CLAIM 20, 21 partitions, and at which level they are disjoint", "Training data; Evaluation data"],
        ["CLAIM 22-24 model, software, initialisation", "Model details"],
        ["CLAIM 25, 26 training, and how the final model was chosen", "Model details; Evaluation data"],
        ["CLAIM 27 ensembling", "Model details"],
        ["CLAIM 28, 29 metrics and uncertainty", "Metrics"],
        ["CLAIM 30 robustness", "Quantitative analyses; Factors"],
        ["CLAIM 31 explainability, and how it was validated", "Quantitative analyses"],
        ["CLAIM 32 external testing", "Evaluation data" if external else "none"],
        ["CLAIM 33, 34 participants and their characteristics", "Evaluation data; Factors"],
        ["CLAIM 35, 36 performance and its precision", "Quantitative analyses"],
        ["CLAIM 37 failures", "Factors; Quantitative analyses"],
        ["CLAIM 38, 39 limitations, and what follows for practice", "Limits; Caveats and recommendations"],
        ["CLAIM 40-42 registration, protocol, funding", "none"],
        ["TRIPOD+AI 1, 2 title and abstract", "head; Limits"],
        ["TRIPOD+AI 3, 4 background and objectives", "Intended use"],
        ["TRIPOD+AI 5, 6 data and participants", "Training data; Evaluation data"],
        ["TRIPOD+AI 7 data preparation", "Training data; Model details"],
        ["TRIPOD+AI 8 outcome", "Limits"],
        ["TRIPOD+AI 9 predictors", "Model details (the pixels of one film)"],
        ["TRIPOD+AI 10 sample size", "Training data; Evaluation data (all films there are)"],
        ["TRIPOD+AI 11 missing data", "files that cannot be read are listed when data are prepared"],
        ["TRIPOD+AI 12 analytical methods", "Metrics; Model details"],
        ["TRIPOD+AI 13 class imbalance", "Model details (balance, calibration)"],
        ["TRIPOD+AI 14 fairness", "Factors"],
        ["TRIPOD+AI 15 model output", "Quantitative analyses (probabilities, thresholds)"],
        ["TRIPOD+AI 16 training against evaluation", "Evaluation data"],
        ["TRIPOD+AI 17 ethical approval", "Ethical considerations"],
        ["TRIPOD+AI 18 open science: code, data; funding, registration", "Model details; Training data; none"],
        ["TRIPOD+AI 19 patient and public involvement", "none"],
        ["TRIPOD+AI 20, 21 participants and model development", "Training data; Evaluation data"],
        ["TRIPOD+AI 22 model specification", "Model details (the weights themselves)"],
        ["TRIPOD+AI 23 model performance", "Quantitative analyses; Factors"],
        ["TRIPOD+AI 24 model updating", "Caveats and recommendations"],
        ["TRIPOD+AI 25, 26 interpretation and limitations", "Limits"],
        ["TRIPOD+AI 27 usability", "Intended use; Caveats and recommendations"],
    ]
    return f"{_EDITIONS}\n\n{markdown(rows)}"
