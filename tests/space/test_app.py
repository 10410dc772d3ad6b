"""The page and its endpoint: served answers are the Predictor's, refusals are plain, nothing else is open."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import requests
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from model import gradcam, preprocess
from model.labels import CLASSES
from model.predictor import Prediction
from space import app
from tests.conftest import free_port
from tests.space.conftest import encoded

ROOT = Path(app.__file__).parents[1]


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False, analytics_enabled=False)


def ask(client, *paths):
    return client.predict([handle_file(path) for path in paths], api_name="/predict")


def test_served_answers_are_the_predictors(client, predictor, films):
    answers = ask(client, *films.values())
    assert [answer["file"] for answer in answers] == [path.name for path in films.values()]
    for answer, path in zip(answers, films.values(), strict=True):
        expected = predictor.predict_file(path.read_bytes())
        assert answer["decision"] == expected.decision and answer["reason"] == ""
        assert list(answer["probabilities"]) == list(CLASSES)
        assert list(answer["probabilities"].values()) == pytest.approx(expected.probabilities.tolist(), abs=1e-7)
    first, second, _ = (list(answer["probabilities"].values()) for answer in answers)
    assert first != pytest.approx(second, abs=1e-6), "the model answers all films alike: the test could not fail"


def test_the_first_film_shown_is_one_that_was_read():
    answers = iter([Prediction("refused", np.ones(3) / 3, reason="turned"), Prediction("normal", np.ones(3) / 3)])
    predictor = types.SimpleNamespace(predict_file=lambda data, method: next(answers))
    _, _, chosen = app.read(predictor, [__file__, __file__], progress=types.SimpleNamespace(tqdm=lambda x, **_: x))
    assert chosen.value == 1


def test_every_format_is_answered_as_its_pixels(client, predictor, films, tmp_path):
    pixels = np.asarray(Image.open(films["bacterial"]))
    expected = predictor.predict_file(films["bacterial"].read_bytes()).probabilities.tolist()
    files = {
        "8-bit.tiff": encoded(pixels, "TIFF"),
        "8-bit.bmp": encoded(pixels, "BMP"),
        "16-bit.png": encoded(pixels.astype(np.uint16) * 257, "PNG"),
        "lossy.jpg": encoded(pixels, "JPEG"),
        "lossy.webp": encoded(pixels, "WEBP"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for answer in ask(client, *(tmp_path / name for name in files)):
        tolerance = 0.02 if answer["file"].startswith("lossy") else 1e-6
        assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=tolerance), answer["file"]


def test_refused_films_say_why_and_the_others_are_answered(client, films, damaged, tmp_path):
    (tmp_path / "notes.txt").write_text("no film")
    (tmp_path / "small.png").write_bytes(encoded(np.zeros((9, 12), np.uint8), "PNG"))
    answers = ask(client, damaged, tmp_path / "notes.txt", films["normal"], tmp_path / "small.png")
    assert [answer["decision"] == "refused" for answer in answers] == [True, True, False, True]
    assert [answer["probabilities"] is None for answer in answers] == [True, True, False, True]
    reasons = [answer["reason"] for answer in answers]
    assert "damaged or cut short" in reasons[0]
    assert "not a PNG, JPEG, WebP, TIFF or BMP image" in reasons[1]
    assert reasons[2] == ""
    assert "image is 12 x 9 px; at least 64 x 64 is needed" in reasons[3]


def test_answers_do_not_depend_on_who_else_asks(client, films):
    alone = {name: ask(client, path) for name, path in films.items()}
    names = [*films] * 4
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: ask(client, films[name]), names))
    assert together == [alone[name] for name in names]


def test_one_film_alone_is_a_list_of_one_and_what_is_no_upload_is_told(client, films):
    assert client.predict(handle_file(films["normal"]), api_name="/predict") == ask(client, films["normal"])
    for sent in (None, [], 5, "film.png", [None], {"a": 1}):
        with pytest.raises(AppError, match=r"files must be a list of uploads, one at least: \[handle_file"):
            client.predict(sent, api_name="/predict")


def test_the_number_of_the_opacity_may_be_empty_while_another_is_typed(bundle):
    (slider,) = (one for one in app.build(bundle).blocks.values() if isinstance(one, gr.Slider))
    assert [slider.preprocess(typed) for typed in (None, 0.3)] == [app.OPACITY, 0.3]
    with pytest.raises(gr.Error, match="Value 7 is greater than maximum value 1"):
        slider.preprocess(7)


def test_the_only_endpoint_is_predict(client):
    endpoints = client.view_api(return_format="dict")
    assert list(endpoints["named_endpoints"]) == ["/predict"] and not endpoints["unnamed_endpoints"]


def test_files_of_the_server_cannot_be_asked_for(url, films):
    def reply(path, **extra):
        body = {"data": [[{"path": path, **extra}]]}
        event = requests.post(f"{url}gradio_api/call/predict", json=body, timeout=10).json()["event_id"]
        return requests.get(f"{url}gradio_api/call/predict/{event}", timeout=10).text

    tag = {"meta": {"_type": "gradio.FileData"}}
    with films["normal"].open("rb") as film:
        uploaded = requests.post(f"{url}gradio_api/upload", files={"files": film}, timeout=10).json()[0]
    assert "event: complete" in reply(uploaded, **tag)
    for refused in (reply(str(films["normal"]), **tag), reply(str(films["normal"]))):
        assert "event: error" in refused and "decision" not in refused


def test_no_film_is_an_error_that_says_what_to_do(predictor):
    with pytest.raises(gr.Error, match="No film is chosen: upload one"):
        app.read(predictor, None)


def test_one_film_needs_no_table_and_no_choice(predictor, films):
    path = str(films["viral"])
    paths, table, chosen = app.read(predictor, [path])
    assert paths == [path] and not table.visible and not chosen.visible and chosen.value == 0


def test_of_several_films_the_first_readable_one_is_shown(predictor, films, damaged):
    paths = [str(damaged), str(films["normal"]), str(films["viral"])]
    _, table, chosen = app.read(predictor, paths)
    assert table.visible and table.value.count("<tr>") == 1 + len(paths)
    assert chosen.visible and chosen.value == 1
    assert [name for name, _ in chosen.choices] == ["1. damaged.png", "2. phantom_normal.png", "3. phantom_viral.png"]


@pytest.mark.parametrize("method", gradcam.METHODS)
def test_show_gives_the_chosen_film_under_the_maps_of_the_method(predictor, films, method):
    paths = [str(films["normal"]), str(films["viral"])]
    card, maps, pictures = app.show(predictor, paths, 1, method, 1.0)
    assert "2. phantom_viral.png" in card and "Not a medical device" in card and maps.visible
    assert pictures["visible"] and pictures["label"] == "What speaks for each class"
    assert len(pictures["value"]) == 1 + len(CLASSES)
    expected = predictor.predict_file(films["viral"].read_bytes(), method)
    film = preprocess.decode(films["viral"].read_bytes()).pixels
    for (picture, _), heatmap in zip(pictures["value"][1:], expected.heatmaps, strict=True):
        overlay = app.gallery.overlay(app.gallery.fit(film), heatmap, 1.0)
        assert np.array_equal(np.asarray(picture)[: len(overlay)], overlay)


def test_refused_film_shows_its_reason_and_no_pictures(predictor, damaged):
    card, maps, pictures = app.show(predictor, [str(damaged)], 0, "gradcam", 0.5)
    assert "This film was refused" in card and "damaged or cut short" in card
    assert not maps.visible and pictures == gr.update(value=[], visible=False)


def test_a_refused_picture_that_could_be_opened_is_shown_without_maps(predictor, films, tmp_path):
    coloured = np.asarray(Image.open(films["viral"]).convert("RGB")) * np.array([1, 0.2, 0])
    coloured[:, : coloured.shape[1] // 2] = coloured[:, : coloured.shape[1] // 2, ::-1]
    path = tmp_path / "coloured.png"
    Image.fromarray(coloured.astype(np.uint8)).save(path)
    card, maps, pictures = app.show(predictor, [str(path)], 0, "gradcam", 0.5)
    assert "This film was refused" in card and "colour" in card
    assert not maps.visible and pictures["visible"] and pictures["label"] == "The film"
    assert len(pictures["value"]) == 1


def test_a_page_whose_films_were_forgotten_says_what_to_do(predictor):
    with pytest.raises(gr.Error, match="This page was left for too long: send the films again."):
        app.show(predictor, [], 0, "gradcam", 0.5)


def test_a_page_that_is_older_than_the_server_says_what_to_do(url):
    config = requests.get(f"{url}config", timeout=10).json()
    of = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    (show, *_) = (one["id"] for one in config["dependencies"] if of["chosen"] in one["inputs"])
    asked = {"data": [None, 0, "gradcam", 0.5], "fn_index": show, "session_hash": "of_before"}
    requests.post(f"{url}gradio_api/queue/join", json=asked, timeout=10).raise_for_status()
    with requests.get(f"{url}gradio_api/queue/data?session_hash=of_before", stream=True, timeout=30) as events:
        (told,) = (line for line in events.iter_lines() if b"process_completed" in line)
    assert b"This page was left for too long: send the films again." in told


def test_all_that_opens_films_shares_one_limit(bundle):
    limits = {one.concurrency_id for one in app.build(bundle).fns.values() if one.fn and one.inputs}
    assert limits == {app.READING}


def test_uploads_are_deleted_when_the_page_is_terminated(bundle, films, tmp_path):
    port = free_port()
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path)}
    arguments = [sys.executable, "space/app.py", "--checkpoint", str(bundle), "--port", str(port)]
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as page:
        try:
            for _ in range(120):
                with contextlib.suppress(requests.ConnectionError):
                    requests.get(f"http://127.0.0.1:{port}/config", timeout=10)
                    break
                time.sleep(0.5)
            with films["normal"].open("rb") as film:
                upload = f"http://127.0.0.1:{port}/gradio_api/upload"
                requests.post(upload, files={"files": film}, timeout=10).raise_for_status()
            assert [path.name for path in tmp_path.rglob("*.png")] == [films["normal"].name]
            page.terminate()
            assert page.wait(30) == 0
        finally:
            page.kill()
    assert not [*tmp_path.rglob("*.png")]


def test_upload_that_has_been_deleted_is_refused_with_the_cure(predictor, tmp_path):
    answer = app.ask(predictor, str(tmp_path / "gone.png"))
    assert answer.decision == "refused"
    assert answer.reason == "uploads are deleted after 60 minutes; send the film again"


def test_without_a_model_there_is_nothing_to_call(url_without_model):
    config = requests.get(f"{url_without_model}config", timeout=10).json()
    text = str(config["components"])
    assert "There is no model to serve" in text and "no checkpoint in" not in text  # which would name a folder
    assert config["dependencies"] == []


def test_no_analytics_and_no_fonts_from_elsewhere(url):
    config = requests.get(f"{url}config", timeout=10).json()
    assert config["analytics_enabled"] is False and config["stylesheets"] == []
    assert "--font: system-ui, sans-serif;" in requests.get(f"{url}theme.css", timeout=10).text


def test_examples_are_films_that_say_they_are_synthetic():
    assert list(app.EXAMPLES) == list(CLASSES)
    for path in app.EXAMPLES.values():
        assert min(preprocess.decode(path.read_bytes()).pixels.shape) >= preprocess.STORAGE_SIZE
        with Image.open(path) as image:
            assert image.info["Description"].startswith("Synthetic drawing, not an X-ray of anyone")


def test_uploads_are_deleted_when_the_page_says_and_examples_are_not(url, tmp_path):
    page = requests.get(f"{url}config", timeout=10).text
    assert f"deleted here after {app.KEPT_MINUTES} minutes" in page
    assert app.build(tmp_path).delete_cache == (6 * app.KEPT_MINUTES, 60 * app.KEPT_MINUTES)
    # Gradio deletes its own copies of files, too: the pictures of the examples must not be among them.
    for path in app.EXAMPLES.values():
        assert f'"path":"{path}"' in page.replace('": "', '":"')
        assert requests.get(f"{url}gradio_api/file={path}", timeout=10).content == path.read_bytes()


def test_help_teaches(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "--help"])
    with pytest.raises(SystemExit) as exit_:
        app.main()
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for taught in ("python space/app.py --checkpoint runs/cnn", "GRADIO_SERVER_NAME", "--share", "/predict"):
        assert taught in text


def test_a_port_in_use_is_named_with_the_cure(monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app.py", "--checkpoint", str(tmp_path), "--port", str(port)])
        with pytest.raises(SystemExit, match=rf"port {port}; give another with --port$"):
            app.main()


def test_an_address_of_another_machine_is_named_with_the_cure(tmp_path):
    # In a process of its own: Gradio reads the address when it is imported. 192.0.2.1 is no machine's: RFC 5737.
    result = subprocess.run(
        [sys.executable, "space/app.py", "--checkpoint", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"GRADIO_SERVER_NAME": "192.0.2.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "error: nothing can be served on port 7860 of 192.0.2.1; give another with --port, or an address of this "
        "machine in GRADIO_SERVER_NAME"
    )


@pytest.mark.parametrize("port", ["0", "65536"])
def test_a_port_that_there_is_not_is_named_with_its_bounds(monkeypatch, capsys, port):
    monkeypatch.setattr(sys, "argv", ["app.py", "--port", port])
    with pytest.raises(SystemExit):
        app.main()
    assert f"--port is {port}; it must be from 1 to 65535" in capsys.readouterr().err


def test_requirements_hold_what_is_imported_at_the_versions_of_the_repository():
    def pins(path):
        return set(re.findall(r"^[\w-]+==[\w.]+", path.read_text(), re.MULTILINE))

    needed = pins(ROOT / "space/requirements.txt")
    assert needed <= pins(ROOT / "requirements.txt")
    imported = set()
    for source in [*ROOT.glob("model/*.py"), *ROOT.glob("space/*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    distributions = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"}
    third_party = imported - set(sys.stdlib_module_names) - {"model", "space"}
    assert {distributions.get(name, name) for name in third_party} == {pin.split("==")[0] for pin in needed} - {
        "jaxlib"
    }
