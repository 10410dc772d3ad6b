"""The words of the page: escaped, complete, and the notices beside the answer."""

from __future__ import annotations

import types

import numpy as np
import pytest

from model.labels import CLASSES
from model.predictor import REFUSED, Prediction
from space import words

ANSWERED = Prediction("viral", np.array([0.05, 0.2, 0.75]))
HOSTILE = "<img src=x onerror=alert(1)>.png"


def test_answer_gives_decision_and_every_probability():
    text = words.answer("film.png", ANSWERED)
    assert "<h2>Viral pneumonia</h2>" in text
    for name, share in zip(CLASSES, ("5.0 %", "20.0 %", "75.0 %"), strict=True):
        assert f"<th scope='row'>{name}</th><td>{share}</td>" in text
    assert text.count("class='decided'") == 1 and "class='decided'><th scope='row'>viral" in text


def test_refusal_gives_its_reason_and_no_probabilities():
    text = words.answer("film.png", Prediction(REFUSED, reason="image is 12 x 9 px; at least 64 x 64 is needed"))
    assert "<h2>This film was refused</h2><p>Image is 12 x 9 px; at least 64 x 64 is needed.</p>" in text
    assert "<table" not in text and "%" not in text


def test_pneumonia_may_be_sure_where_its_kind_is_not():
    for decision, shares in (("uncertain", [0.04, 0.5, 0.46]), ("normal", [0.36, 0.33, 0.31])):
        text = words.answer("film.png", Prediction(decision, np.array(shares)))
        assert f"Pneumonia of either kind: <strong>{100 - 100 * shares[0]:.1f} %</strong>" in text


def test_table_has_a_row_a_film():
    text = words.table(["1. a.png", "2. b.png"], [ANSWERED, Prediction(REFUSED, reason="the file is empty")])
    assert "1. a.png</th><td>viral</td><td>5.0 %</td><td>20.0 %</td><td>75.0 %</td></tr>" in text
    assert "2. b.png</th><td>refused<small>the file is empty</small></td><td>–</td><td>–</td><td>–</td></tr>" in text


def test_names_and_reasons_are_escaped():
    refused = Prediction(REFUSED, reason=HOSTILE)
    for text in (
        words.answer(HOSTILE, refused),
        words.table([HOSTILE], [refused]),
    ):
        assert "<img" not in text and "&lt;img src=x" in text


def test_notices_stand_beside_every_answer_and_warn_of_phantoms(predictor):
    notice = words.notices(predictor.meta)
    assert "Not a medical device: for education and research, never for diagnosis." in notice
    assert "cannot be told apart reliably" in notice and "synthetic" not in notice
    phantom = words.notices({"dataset": predictor.meta["dataset"] | {"name": "phantom"}})
    assert "This model was trained on synthetic drawings." in phantom and notice in phantom


def test_about_says_that_nothing_was_measured(predictor):
    unmeasured = types.SimpleNamespace(meta=predictor.meta | {"metrics": {}}, metas=predictor.metas, calibration=None)
    assert "not measured: it was stopped before its first epoch ended" in words.about(unmeasured)
    assert "not measured" not in words.about(predictor)


def test_about_says_what_the_checkpoint_says(predictor):
    text = words.about(predictor)
    convolutions = 9 * 1 * 4 + 2 * 9 * 4 * 4 + 9 * 4 * 8 + 9 * 8 * 8 + 4 * 8  # stem, two blocks, one shortcut
    norms = 2 * (4 + 4 + 4 + 8 + 8 + 8)
    assert f"{convolutions + norms + 8 * 3 + 3:,} parameters" in text
    cut = words.about(types.SimpleNamespace(**vars(predictor) | {"metas": [predictor.meta | {"side": 0.875}]}))
    assert "`cnn` at 32 x 32 pixels of its middle 87.5 % each way after 3 epochs." in cut
    local = words.about(
        types.SimpleNamespace(**vars(predictor) | {"metas": [predictor.meta | {"neighbourhood": 0.15}]})
    )
    assert "`cnn` at 32 x 32 pixels, evened out from place to place, after 3 epochs." in local
    assert "`cnn` at 32 x 32 pixels after 3 epochs." in text and "A neural network" in text
    assert "`chest_xray` (from `some_folder`), licence CC BY 4.0. A. Author: Films of Somewhere" in text
    assert "- 81.2 % of films" in text and "- 0.062 calibration error" in text
    assert "AUROC" not in text  # not defined on this split
    assert "not trained on, but by which it was chosen" in text and "Its percentages are not calibrated" in text
    assert "what tells the two kinds apart" in text and "Expect worse on films of other" in text
    assert "do not trust the answer to a mirrored film" in text
    metas = [meta | {"config": {"augment": {"flip_probability": 0.5}}} for meta in predictor.metas]
    mirrored = types.SimpleNamespace(meta=predictor.meta, metas=metas, calibration=None)
    assert "mirrored" not in words.about(mirrored)
    mirrored.metas = [*predictor.metas, *metas]  # half of the networks have not learnt them
    assert "do not trust the answer to a mirrored film" in words.about(mirrored)
    mirrored.metas = [*predictor.metas, *metas, *metas]
    assert "mirrored" not in words.about(mirrored)


def test_about_says_of_drawings_what_they_are(predictor):
    drawn = predictor.meta | {"epoch": 1, "dataset": predictor.meta["dataset"] | {"name": "phantom", "citation": ""}}
    text = words.about(types.SimpleNamespace(**vars(predictor) | {"meta": drawn, "metas": [drawn]}))
    assert "after 1 epoch." in text and "CC BY 4.0. Drawn by a program." in text
    assert "What it answers to a real film means nothing." in text and "hospitals" not in text


def test_about_says_with_what_a_run_was_begun(predictor):
    assert "begun with" not in words.about(predictor)
    metas = [meta | {"origin": {"from": "hf://timm/x"}} for meta in predictor.metas]
    begun = types.SimpleNamespace(meta=metas[0], metas=metas, calibration=None)
    assert " epochs, begun with `hf://timm/x`." in words.about(begun)
    metas[0]["origin"] = {"from": "my_run", "step": 3, "weights_digest": "abc", "origin": None}
    assert " epochs, begun with the weights of an earlier run." in words.about(begun)


def test_untrained_tells_the_way_out():
    at = [words.UNTRAINED.index(f"python jobs/{job}.py ") for job in ("prepare", "train", "bundle")]
    assert at == sorted(at)


@pytest.mark.parametrize("figure", words.FIGURES.values())
def test_figures_are_sentences_with_a_number(figure):
    assert figure.format("50.0 %").startswith("50.0 % ")


def test_about_an_ensemble_that_is_calibrated_gives_intervals(predictor):
    figures = {"accuracy": [0.81, 0.777, 0.8402], "binary_auroc": [0.99, 0.985, 0.995]}
    facts = {"figures": figures, "prior": None, "splits": {"validation": {"films": 613, "patients": 440}}}
    ensemble = types.SimpleNamespace(
        meta=predictor.meta,
        metas=predictor.metas * 3,
        calibration=types.SimpleNamespace(facts=facts),
    )
    apart = types.SimpleNamespace(meta=predictor.meta, metas=predictor.metas * 3, calibration=None)
    assert "**How good it is** was not measured of these networks together" in words.about(apart)
    text = words.about(ensemble)
    assert "The mean of 3 neural networks" in text and text.count("`cnn` at 32 x 32 pixels") == 3
    assert "- 81.0 % (77.7 to 84.0) of films get the right one" in text
    assert "- 0.990 (0.985 to 0.995) AUROC of normal against pneumonia" in text
    assert "on 613 films of 440 patients of that set that it was not trained on, but by which it was chosen" in text
    assert "not calibrated" not in text
    assert "95 % intervals" in text and "common as stated" not in text
    facts["prior"] = (0.7, 0.205, 0.095)
    assert "each class as common as stated (70 % normal, 20.5 % bacterial, 9.5 % viral)" in words.about(ensemble)
    assert "macro-F1" not in text and "are refused, but not all of them" in text


def test_uncertain_is_explained_and_a_refusal_shows_no_numbers():
    text = words.answer("film.png", Prediction("uncertain", np.array([0.4, 0.35, 0.25])))
    assert "<h2>Uncertain</h2>" in text and "No class is probable enough" in text and "40.0 %" in text
    unlike = Prediction(REFUSED, np.array([0.4, 0.35, 0.25]), reason="this is not like the chest films")
    assert "40.0 %" not in words.answer("film.png", unlike) and "This is not like" in words.answer("film.png", unlike)
    assert "40.0 %" not in words.table(["film.png"], [unlike])


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "< 0.1 %"), (0.001, "0.1 %"), (0.8712, "87.1 %"), (0.9989, "99.9 %"), (0.99999, "> 99.9 %")],
)
def test_percent_calls_nothing_certain(probability, text):
    assert words.percent(probability) == text
