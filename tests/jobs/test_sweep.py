"""Grids name fields and values that there are; each cell is a run, ranked by what selects."""

import ast
import csv
import io
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from configs import base
from jobs import JobError, UsageError
from jobs.evaluation import tables
from jobs.training import grid, loop, objectives, runs
from jobs.training.plan import FIGURES
from model import checkpoint
from tests.jobs.test_crossval import tiny
from tests.jobs.test_loop import log


def test_fields_are_named_by_path_end_or_part():
    parsed = grid.parse(
        "learning_rate=1e-3, 2e-3; mixup=0,.2;augment.noise=.1;train_size=96,112;resume=False", base.get_config()
    )
    assert parsed == {
        "optimizer.learning_rate": [0.001, 0.002],
        "mixup_alpha": [0.0, 0.2],
        "augment.noise": [0.1],
        "data.train_size": [96, 112],
        "resume": [False],
    }
    assert {field: type(values[0]) for field, values in parsed.items()} == {
        "optimizer.learning_rate": float,
        "mixup_alpha": float,
        "augment.noise": float,
        "data.train_size": int,
        "resume": bool,
    }
    made = base.get_config()
    made.model.options.widths = (8, 16)
    assert grid.parse("options.widths=(4, 8),(8,);balance=none,loss", made) == {
        "model.options.widths": [(4, 8), (8,)],
        "data.balance": ["none", "loss"],
    }
    leave_out = grid.parse("leave_out=a{1,2}_[b,c],d", made)
    assert leave_out == {"data.leave_out": ["a{1,2}_[b,c]", "d"]}
    for before, typed in (((), "(8,16)"), ((8, 16), "()")):  # of an empty one nothing is known
        made.model.options.widths = before
        assert grid.parse(f"widths={typed}", made) == {"model.options.widths": [ast.literal_eval(typed)]}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("decay=0,1", "--grid has 'decay', which could be ema_decay or optimizer.weight_decay; write one of them out"),
        ("learning_rat=1", None),
        ("lerning_rate=1", "--grid has 'lerning_rate', which is no field; did you mean optimizer.learning_rate?"),
        ("optimiser.momentun=1", "which is no field; did you mean optimizer.momentum?"),
        ("zzz=1", "--grid has 'zzz', which is no field; known: augment.blur_px, "),
        ("epochs=3,many", "--grid has epochs=many; 'many' is not of type int, like the default 60"),
        ("epochs=1.5", "--grid has epochs=1.5; '1.5' is not of type int, like the default 60"),
        ("mixup=a", "--grid has mixup_alpha=a; 'a' is not of type float, like the default 0.2"),
        ("resume=1", "--grid has resume=1; '1' is not of type bool, like the default True"),
        ("widths=8,16", "--grid has model.options.widths=8; '8' is not of type tuple, like the default (4, 8)"),
        ("widths=(8,a)", "'(8,a)' is not of type tuple, like the default (4, 8)"),
        ("epochs", "--grid has 'epochs'; FIELD=VALUE,VALUE is needed, such as learning_rate=1e-3,2e-3"),
        ("=1", "--grid has '=1'; FIELD=VALUE,VALUE is needed"),
        ("epochs=1,2,1", "--grid has epochs=1 twice; once is enough"),
        ("epochs=1;epochs=2", "--grid has epochs twice; give all of its values at once, separated by commas"),
        (
            "metric=val_loss",
            "--grid has select.metric, which runs that are ranked must share; set it for all: --config.select.metric=",
        ),
        (
            "fold=0,1",
            "--grid has data.fold, which runs that are ranked must share; set it for all: --config.data.f",
        ),
        ("objective=supervised", "--grid has objective, which runs that are ranked must share"),
        (" ; ", "--grid is empty; give fields and values"),
        (
            "phases=abc",
            "--grid has phases, which is a list; give a field of one of its entries, such as phases[0].epochs",
        ),
    ],
)
def test_grids_that_cannot_be_meant(typed, message):
    made = base.get_config()
    made.model.options.widths = (4, 8)
    if message is None:  # the beginning of a name
        assert grid.parse(typed, made) == {"optimizer.learning_rate": [1.0]}
        return
    with pytest.raises(UsageError) as error:
        grid.parse(typed, made)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"mixup_alpha": [0.0, -1.0]}, r"config.mixup_alpha is -1.0; it must be from 0 to 100"),
        ({"optimizer.warmup_epochs": [0.0, 2.0]}, "a warm-up of 2 epochs leaves nothing of a run or phase of 2; lower"),
        ({"model.architecture": ["cnn", "resnet"]}, "config.model: unknown option .*widths of resnet"),
        (
            {"global_batch_size": [16, 5000]},
            "a global batch of 5000 is more than the 48 training films; lower --config.",
        ),
        (
            {"data.leave_out": ["", "."]},
            "the training split of .* holds no normal, no bacterial, no viral film; leave out",
        ),
        (
            {"global_batch_size": [5000], "data.balance": ["none", "smote"]},
            "a global batch of 5000 is more than the 48 training films; lower --config.",
        ),
        (
            {
                "model.options.widths": [(4,) * 7],
                "model.options.blocks": [(1,) * 7],
                "data.image_size": [128, 32],
                "data.train_size": [0],
            },
            "nothing is left of a film of 32 px when the network has halved it so often; raise",
        ),
        ({"model.options.widths": [(4,), (4, 8)]}, r"config.model: blocks \(1,\) has 1 numbers; give 2"),
    ],
)
def test_what_no_run_can_be_made_of_is_refused_before_anything_is_trained(phantom_data, tmp_path, typed, message):
    cells = grid.plan(tiny(phantom_data, epochs=2), tmp_path, typed)
    with pytest.raises(JobError, match=message):
        runs.train_all([cell.run for cell in cells], jax.devices()[:1], Console(file=io.StringIO()))
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_for_a_folder_is_refused(tmp_path):
    longest = "a" * (255 - len("data.leave_out="))
    (cell,) = grid.plan(base.get_config(), tmp_path, {"data.leave_out": [longest]})
    cell.run.workdir.mkdir()
    with pytest.raises(UsageError, match="aa', 256 bytes, and 255 is the most; give shorter values, or fewer fields"):
        grid.plan(base.get_config(), tmp_path, {"data.leave_out": [longest + "a"]})


def test_a_table_that_is_none_of_a_sweep_is_not_replaced(tmp_path):
    for name, own in (("sweep.md", "# 2 runs by val_loss"), ("sweep.csv", "run,epochs")):
        (tmp_path / name).write_text(own)
        grid.plan(base.get_config(), tmp_path, {"epochs": [2]})
        (tmp_path / name).write_text("mine")
        with pytest.raises(UsageError, match=f"{name} exists and is no table of a sweep; .* give another --workdir"):
            grid.plan(base.get_config(), tmp_path, {"epochs": [2]})
        (tmp_path / name).unlink()


def test_folders_are_named_for_the_values_in_any_order(tmp_path):
    one, other = (
        grid.plan(base.get_config(), tmp_path, dict(typed))
        for typed in ([("epochs", [2]), ("data.dir", ["a/b"])], [("data.dir", ["a/b"]), ("epochs", [2])])
    )
    assert one[0].run.workdir == other[0].run.workdir == tmp_path / "data.dir=a%2Fb,epochs=2"
    assert one[0].run.config.data.dir == "a/b" and one[0].run.config.epochs == 2


def test_a_sweep_ranks_its_runs_and_goes_on(phantom_data, tmp_path, monkeypatch):
    made = tiny(phantom_data, **{"select.metric": "val_binary_auroc", "max_skipped_steps": 2})
    real = objectives.supervised

    def poisoned(module, recipe, *args):
        objective = real(module, recipe, *args)
        if recipe.mixup_alpha < 0.5:
            return objective

        def not_finite(*inputs):
            loss, batch_stats = objective(*inputs)
            return loss * np.float32("nan"), batch_stats

        return not_finite

    monkeypatch.setattr(objectives, "supervised", poisoned)

    def swept(typed):
        cells = grid.plan(made, tmp_path, grid.parse(typed, made))
        text = io.StringIO()
        diverged = runs.train_all([cell.run for cell in cells], jax.devices()[:1], Console(file=text, width=200))
        rows = grid.rank(cells, diverged, made.select.metric)
        grid.write(rows, made.select.metric, tmp_path)
        return rows, diverged, text.getvalue()

    rows, diverged, printed = swept("mixup=1.,0.")
    assert [path.name for path in diverged] == ["mixup_alpha=1.0"]
    assert "1 of 2: mixup_alpha=1.0 diverged: 2 steps in a row gave no finite loss" in printed
    assert [(row.cell.values, row.figures == {}) for row in rows] == [
        ({"mixup_alpha": 0.0}, False),
        ({"mixup_alpha": 1.0}, True),
    ]
    logged = log(tmp_path / "mixup_alpha=0.0")
    best = max(logged, key=lambda epoch: (epoch["val_binary_auroc"], epoch["epoch"]))  # of equals the later
    assert {name: best[name] for name in FIGURES} == rows[0].figures and rows[0].epoch == best["epoch"]
    assert rows[0].seconds == pytest.approx(sum(epoch["seconds"] for epoch in logged), abs=0.1)
    weights = checkpoint.load(tmp_path / "mixup_alpha=0.0").variables["params"]
    assert rows[0].parameters == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert "| 1.0         |         diverged |" in (tmp_path / "sweep.md").read_text()

    (tmp_path / "mixup_alpha=0.0" / "log.jsonl").unlink()  # for people alone: the checkpoint knows it, too
    trained = []
    train = loop._train
    monkeypatch.setattr(loop, "_train", lambda given, *rest: trained.append(given.mixup_alpha) or train(given, *rest))
    rows, _, printed = swept("mixup=0.,.1")
    assert trained == [0.1] and "1 of 2: mixup_alpha=0.0, finished before" in printed
    assert rows[0].figures["val_binary_auroc"] >= rows[1].figures["val_binary_auroc"]
    head, _, first, _ = [line for line in (tmp_path / "sweep.md").read_text().splitlines() if line.startswith("|")]
    assert head.startswith("| mixup_alpha | val_binary_auroc | val_loss |")
    assert first.split()[1:4:2] == [
        str(rows[0].cell.values["mixup_alpha"]),
        f"{rows[0].figures['val_binary_auroc']:.4f}",
    ]
    written = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["run"] for row in written] == [row.cell.run.workdir.name for row in rows]
    assert [float(row["val_loss"]) for row in written] == [row.figures["val_loss"] for row in rows]


@pytest.mark.parametrize(
    ("metric", "order"),
    [("val_loss", ["b", "a", "c"]), ("val_ece", ["b", "a", "c"]), ("val_accuracy", ["a", "b", "c"])],
)
def test_ranks(tmp_path, monkeypatch, metric, order):
    values = {"a": 2.0, "b": 1.0, "c": None}
    cells = [grid.Cell({"dtype": name}, runs.Run(name, tmp_path / name, base.get_config())) for name in "cab"]
    monkeypatch.setattr(grid, "seconds", lambda workdir: 1.0)
    monkeypatch.setattr(
        grid.checkpoint,
        "load",
        lambda workdir, which: SimpleNamespace(
            meta={"arrays": {}, "epoch": 1, "metrics": dict.fromkeys(FIGURES, 0.0) | {metric: values[workdir.name]}}
        ),
    )
    assert [row.cell.values["dtype"] for row in grid.rank(cells, {}, metric)] == order


def test_a_table_is_padded_and_times_are_short():
    assert tables.markdown([("a", "long"), ("wider", "1")]) == "| a     | long |\n| ----- | ---: |\n| wider |    1 |"
    assert [tables.duration(seconds) for seconds in (40, 100, 7500)] == ["40 s", "2 min", "2 h 05 min"]
    assert tables.figure(None) == "" and tables.figure(0.12345) == "0.1235"
