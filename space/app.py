"""Serves the page: chest films in; out comes what the model makes of each, and where it looked.

    python space/app.py
    python space/app.py --checkpoint runs/cnn --port 7861
    python space/app.py --share

Then open http://localhost:7860 in a browser. With GRADIO_SERVER_NAME=0.0.0.0 in the environment other machines are
served too. Programs ask the endpoint /predict: see "Use via API" at the foot of the page.
For education and research, never for diagnosis.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import ListFiles

from model import gradcam, preprocess
from model.checkpoint import CheckpointError
from model.labels import CLASSES
from model.predictor import REFUSED, Prediction, Predictor
from space import gallery, words

HERE = Path(__file__).resolve().parent
EXAMPLES = {name: HERE / "examples" / f"phantom_{name}.png" for name in CLASSES}
UPLOAD_MB = 50
KEPT_MINUTES = 60  # for which uploads and their pictures stay on the server
METHOD, OPACITY = "gradcam", 0.6
READING = "reading"  # what opens films: all of it shares one limit, for a large film takes a gigabyte

SEND = "files must be a list of uploads, one at least: [handle_file(PATH), ...]"

# What `launch` is to be given; tests launch with the same.
LAUNCH: dict[str, Any] = {
    # Fonts of the system: the page asks no other server for anything.
    "theme": gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    ).set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800"),
    "css_paths": [HERE / "style.css"],
    "max_file_size": f"{UPLOAD_MB}mb",
    "footer_links": ["api"],
    "run_history": False,
    "ssr_mode": False,
}


class Uploads(ListFiles):
    """Films to read; one alone is a list of one."""  # the page for programs shows it

    @classmethod
    def model_validate(cls, obj: Any, *args: Any, **settings: Any) -> Uploads:
        """As Gradio calls it, with what a program sent; gr.Error where that is no list of uploads."""
        try:
            return super().model_validate([obj] if isinstance(obj, dict) else obj, *args, **settings)
        except ValueError as error:
            raise gr.Error(SEND, print_exception=False) from error


def build(checkpoint: Path) -> gr.Blocks:
    """The page over the best model in `checkpoint`; where there is none, a page that says how to get one."""
    kept = 60 * KEPT_MINUTES
    with gr.Blocks(title="Pneumoscope", analytics_enabled=False, delete_cache=(kept // 10, kept)) as app:
        gr.Markdown(words.TITLE)
        try:
            predictor = Predictor.open(checkpoint)
        except CheckpointError as error:
            print(f"no model to serve: {error}", file=sys.stderr)
            gr.HTML(words.UNTRAINED, elem_id="untrained")
        else:
            _lay_out(predictor)
    return app.queue(default_concurrency_limit=2, max_size=64)


def _lay_out(predictor: Predictor) -> None:
    """Places the components and wires them to the functions below."""
    # Compiled now, or the first visitor would wait for it.
    blank = np.zeros((1, predictor.storage_size, predictor.storage_size), np.uint8)
    for compiled in (None, METHOD):
        next(predictor.predict(blank, compiled))

    # Served as they are: the copies that Gradio makes of other files are deleted like uploads.
    gr.set_static_paths(HERE / "examples")
    films = gr.State([])  # paths of the films that were read, whatever the upload box holds by now
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(label="Chest films", file_count="multiple", height=180, elem_id="films")
            gr.Markdown(
                f"PNG, JPEG, WebP, TIFF (its first page) or BMP, up to {UPLOAD_MB} MB each; deleted here after "
                f"{KEPT_MINUTES} minutes.",
            )
            button = gr.Button("Read the films", variant="primary", elem_id="read")
            gr.Markdown(
                "No film at hand? These are drawings, not X-rays of anyone; a model of X-rays does not know them:"
            )
            with gr.Row(elem_id="examples"):
                examples = {
                    path: gr.Button(f"synthetic: {name}", icon=path, size="sm", min_width=80)
                    for name, path in EXAMPLES.items()
                }
        with gr.Column(scale=3, min_width=300):
            card = gr.HTML(
                words.EMPTY + words.notices(predictor.meta),
                elem_id="answer",
                js_on_load="element.setAttribute('role', 'status')",  # screen readers announce what it comes to hold
            )
            table = gr.HTML(visible=False, elem_id="table")
            chosen = gr.Dropdown(label="Film shown", filterable=False, visible=False, elem_id="chosen")
            # Any choice is let by: where the server is younger than the page, it is `show` that says what to do.
            chosen.preprocess = lambda payload: payload  # type: ignore[method-assign]
            pictures = gr.Gallery(columns=2, height="auto", buttons=["fullscreen"], visible=False, elem_id="pictures")
            with gr.Column(visible=False) as maps:
                method = gr.Radio(
                    list(gradcam.METHODS),
                    value=METHOD,
                    label="Method of the maps",
                    info="Where methods disagree, trust the maps less.",
                    elem_id="method",
                )
                opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity of the maps", elem_id="opacity")
                # Its number is empty while another one is being typed.
                within = opacity.preprocess
                opacity.preprocess = lambda payload: OPACITY if payload is None else within(payload)  # type: ignore[method-assign]
            with gr.Accordion("What this is", open=False):
                gr.Markdown(words.about(predictor))

    reading: dict[str, Any] = {
        "fn": functools.partial(read, predictor),
        "concurrency_id": READING,
        "inputs": files,
        "outputs": [films, table, chosen],
        "api_visibility": "private",
    }
    showing: dict[str, Any] = {
        "fn": functools.partial(show, predictor),
        "concurrency_id": READING,
        "inputs": [films, chosen, method, opacity],
        "outputs": [card, maps, pictures],
        "api_visibility": "private",
    }
    # On a phone the answer is below the button.
    reveal: dict[str, Any] = {
        "fn": None,
        "js": "() => document.getElementById('answer').scrollIntoView({block: 'nearest'})",
    }
    button.click(**reading).success(**showing).success(**reveal)
    for path, example in examples.items():
        picked = example.click(functools.partial(pick, path), outputs=files, api_visibility="private")
        picked.success(**reading).success(**showing).success(**reveal)
    # Of the many values of a moving slider only the last one counts.
    gr.on([chosen.input, method.input, opacity.change], **showing, trigger_mode="always_last", show_progress="hidden")

    # For programs. Hidden components, so that Gradio checks their uploads as it checks those of the page.
    sent = gr.File(label="files", file_count="multiple", visible=False)
    sent.data_model = Uploads
    gr.Button(visible=False).click(
        functools.partial(predict, predictor),
        sent,
        gr.JSON(label="answers", visible=False),
        api_name="predict",
        concurrency_id=READING,
        api_description="For each film: file; decision, a class, uncertain or refused; the probabilities, null where "
        "it could not be read; and the reason why it was refused.",
    )


def pick(path: Path) -> list[str]:
    """Puts an example into the upload box."""
    return [str(path)]


def read(predictor: Predictor, files: list[str] | None, progress=gr.Progress()) -> tuple[list[str], Any, Any]:  # noqa: B008
    """Reads all uploads: (their paths, the table, the choice of the film to show).

    Raises:
      gr.Error: there are none.
    """
    if not files:
        raise gr.Error("No film is chosen: upload one, or try a synthetic one.", print_exception=False)
    names = named(files)
    predictions = [ask(predictor, path) for path in progress.tqdm(files, unit="films")]
    readable = [index for index, prediction in enumerate(predictions) if prediction.decision != REFUSED]
    choices = [(name, index) for index, name in enumerate(names)]
    several = len(files) > 1
    return (
        files,
        gr.HTML(words.table(names, predictions), visible=several),
        gr.Dropdown(choices, value=readable[0] if readable else 0, visible=several),
    )


def show(predictor: Predictor, films: list[str], chosen: int, method: str, opacity: float) -> tuple[str, Any, Any]:
    """One of the films that were read: (its answer, what the maps are set by, the pictures).

    A film that was refused is shown without maps, and without any picture where it could not be read.

    Raises:
      gr.Error: there is none any more: of a page that was left for an hour, or is older than the server, Gradio has
        forgotten what it held.
    """
    if not isinstance(chosen, int) or chosen not in range(len(films)):
        raise gr.Error("This page was left for too long: send the films again.", print_exception=False)
    path = films[chosen]
    prediction = ask(predictor, path, method)
    card = words.answer(named(films)[chosen], prediction) + words.notices(predictor.meta)
    try:
        pixels = preprocess.decode(Path(path).read_bytes()).pixels
    except (FileNotFoundError, preprocess.ImageRefused):  # as the answer says
        return card, gr.Column(visible=False), gr.update(value=[], visible=False)
    refused = prediction.decision == REFUSED
    items = gallery.items(pixels, prediction, opacity)  # a gr.Gallery of them would write the pictures twice
    label = "The film" if refused else "What speaks for each class"
    return card, gr.Column(visible=not refused), gr.update(value=items, label=label, visible=True)


def named(films: list[str]) -> list[str]:
    """What the uploads are called: their names, of several with a number, for phones call all films alike."""
    names = [Path(path).name for path in films]
    return names if len(names) == 1 else [f"{number}. {name}" for number, name in enumerate(names, 1)]


def predict(predictor: Predictor, files: list[str] | None) -> list[dict[str, Any]]:
    """Answers to uploads, in order, as JSON values; probabilities keep all their digits.

    Raises:
      gr.Error: there are none.
    """
    if not files:
        raise gr.Error(SEND, print_exception=False)
    answers = []
    for path in files:
        prediction = ask(predictor, path)
        numbers = prediction.probabilities
        answers.append(
            {
                "file": Path(path).name,
                "decision": prediction.decision,
                "probabilities": None if numbers is None else dict(zip(CLASSES, numbers.tolist(), strict=True)),
                "reason": prediction.reason,
            }
        )
    return answers


def ask(predictor: Predictor, path: str, method: str | None = None) -> Prediction:
    """The answer to one upload."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return Prediction(REFUSED, reason=f"uploads are deleted after {KEPT_MINUTES} minutes; send the film again")
    return predictor.predict_file(data, method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint", help="a bundle or a run directory")
    parser.add_argument("--port", type=int, default=7860, help="where the page is served (%(default)s)")
    parser.add_argument("--share", action="store_true", help="also ask Gradio for a public link, good for a week")
    arguments = parser.parse_args()
    if not 1 <= arguments.port <= 65535:
        parser.error(f"--port is {arguments.port}; it must be from 1 to 65535")
    page = build(arguments.checkpoint)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, at which Gradio deletes the uploads
    try:
        page.launch(server_port=arguments.port, share=arguments.share, **LAUNCH)
    except OSError as error:
        if "empty port" not in str(error):
            raise
        # Gradio takes an address that is not this machine's for a port in use.
        address = os.environ.get("GRADIO_SERVER_NAME")
        sys.exit(
            f"error: nothing can be served on port {arguments.port}{f' of {address}' if address else ''}; give another "
            f"with --port{', or an address of this machine in GRADIO_SERVER_NAME' if address else ''}"
        )
    except ValueError as error:  # of Gradio, which asks its own page whether it is there
        sys.exit(
            f"error: the page does not answer on this machine ({error}); try again where it was busy, set "
            "NO_PROXY=localhost where there is a proxy, or give --share"
        )


if __name__ == "__main__":
    main()
