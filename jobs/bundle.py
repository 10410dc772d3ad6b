"""Makes the slim copy of a run that is served and shared: the best variables, meta, and the calibration.

    python jobs/bundle.py --checkpoint runs/cnn --out space/checkpoint
    python jobs/bundle.py --checkpoint runs/cnn --out space/checkpoint --dtype bfloat16
    python jobs/bundle.py --checkpoint runs/a --checkpoint runs/b --checkpoint runs/c --out space/checkpoint

It takes the best step by config.select.metric, or with --latest the newest. Several checkpoints make an ensemble, whose
answer is the mean of its members'; calibrate it afterwards. Every --checkpoint of the other commands takes such a copy
as well as a run directory. With bfloat16 the kernels take half the room; biases and BatchNorm stay float32. Rounded
kernels are other weights, to which the calibration of the run does not apply, so calibrate the copy; bundling the same
weights into the same place again keeps the calibration that is there.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from absl import flags

from jobs import JobError, command, headed, run, take_place
from jobs.evaluation import cards
from model import checkpoint
from model.calibration import FILE, Calibration
from model.predictor import Predictor

_CHECKPOINT = flags.DEFINE_multi_string("checkpoint", None, "A run directory, or another bundle.", required=True)
_OUT = flags.DEFINE_string("out", None, "The folder to write; an older bundle there is replaced.", required=True)
_LATEST = flags.DEFINE_bool("latest", False, "Take the latest step of a run, not the best; calibrate after that.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "With bfloat16 kernels are rounded; else they stay as they are."
)


def main() -> None:
    bundle([Path(source) for source in _CHECKPOINT.value], Path(_OUT.value), _LATEST.value, _DTYPE.value)


def bundle(sources: Sequence[Path], out: Path, latest: bool, dtype: str) -> None:
    """Writes the best or the latest step of each source, or of each of its members, to `out`: whole or not at all.

    Raises:
      CheckpointError: nothing in a source can be loaded, or its members are no ensemble.
      JobError: a network is there twice, or `out` holds something that is no bundle, or one of the sources.
    """
    loaded = [
        checkpoint.load(folder, "latest" if latest else "best")
        for source in sources
        for folder in checkpoint.member_folders(source)
    ]
    calibration = None
    if len(sources) == 1 and not latest:  # what was calibrated is the best
        calibration = Calibration.read(sources[0], [checkpoint.weights_digest(member.meta) for member in loaded])
    Predictor(loaded)  # or it could not be opened
    times = Counter(checkpoint.weights_digest(member.meta) for member in loaded)
    if twice := next((digest for digest, count in times.items() if count > 1), None):
        raise JobError(
            f"{times[twice]} of the {len(loaded)} networks are one and the same (weights {twice[:12]}), whose mean "
            "says no more than it alone; give each --checkpoint once"
        )
    place = out.resolve()  # of a link what it leads to is replaced
    if claimant := checkpoint.claimed(place) or _claimed_as_member(place):
        raise JobError(f"{out} would become a part of the checkpoint in {claimant}; give another --out")
    # What is no part of a bundle was put there by somebody; it is not ours to replace.
    strangers = [entry.name for entry in out.iterdir() if not _is_ours(entry)] if out.exists() else []
    within = [source for source in sources if place in (source.resolve(), *source.resolve().parents)]
    if strangers or within:
        held = f"{within[0]}, a source" if within else ", ".join(sorted(strangers)[:3])
        raise JobError(f"{out} would be replaced, but it holds {held}; give another --out")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundling-", dir=place.parent) as scratch:
        new = Path(scratch) / "new"
        folders = [new] if len(loaded) == 1 else [new / f"{checkpoint.MEMBER}{n}" for n in range(1, len(loaded) + 1)]
        kernels: set[str] = set()
        for folder, member in zip(folders, loaded, strict=True):
            stored = jax.tree.map(lambda leaf: _cast(leaf, dtype), member.variables)
            kernels |= {str(leaf.dtype) for leaf in jax.tree.leaves(stored) if leaf.ndim > 1}
            score = member.meta["score"]
            with checkpoint.Writer(folder) as writer:
                writer.save(
                    member.step, stored, checkpoint.shared(member.meta), score=float("-inf") if score is None else score
                )
        for receipt in new.rglob("commit_success.txt"):  # of Orbax: nothing reads it, and it names folders of this disk
            receipt.unlink()
        weights = tuple(checkpoint.weights_digest(checkpoint.load(folder).meta) for folder in folders)
        if calibration and calibration.weights == weights:
            (new / FILE).write_text(calibration.to_text())
        elif _calibrated(out, weights):  # the same once more loses nothing
            for name in (FILE, cards.FILE):
                if (out / name).exists():
                    shutil.copy2(out / name, new / name)
        attribution = checkpoint.attribution(member.meta for member in loaded)
        (new / checkpoint.ATTRIBUTION).write_text(attribution, encoding="utf-8")
        take_place(new, place)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    members = ", ".join(f"step {member.step}, epoch {member.meta['epoch']}" for member in loaded)
    print(f"{out}: {members}, {' and '.join(sorted(kernels))}, {size / 1e6:.1f} MB")
    if not (out / FILE).exists():
        why = f" ({sources[0] / FILE} is of the kernels before they were rounded)" if calibration else ""
        print(f"not calibrated{why}; next: {command('calibrate', '--checkpoint', out)}")


def _claimed_as_member(place: Path) -> Path | None:
    """The ensemble of which a folder would be a member, or the run that it would hide."""
    if not re.fullmatch(f"{checkpoint.MEMBER}[1-9][0-9]*", place.name):
        return None
    others = (path for path in place.parent.glob(f"{checkpoint.MEMBER}*") if path != place)
    taken = checkpoint.holds_steps(place.parent) or any(map(checkpoint.member_number, others))
    return place.parent if taken else None


def _calibrated(out: Path, weights: Sequence[str]) -> bool:
    """Whether a bundle that is about to be replaced has a calibration of these weights."""
    try:
        return Calibration.read(out, weights) is not None
    except checkpoint.CheckpointError:
        return False


def _is_ours(entry: Path) -> bool:
    """Whether a bundle has such a part: a step that cannot be gone on with, a member of such, or a file of ours."""
    if checkpoint.member_number(entry):
        return all(_is_step(within) for within in entry.iterdir())
    if entry.name == cards.FILE:
        return headed(cards.TITLE)(entry)
    return entry.name in (FILE, checkpoint.ATTRIBUTION) or _is_step(entry)


def _is_step(entry: Path) -> bool:
    return checkpoint.is_step(entry.name) and (entry / "meta").is_dir() and not (entry / "train").exists()


def _cast(leaf: np.ndarray, dtype: str) -> np.ndarray:
    return leaf.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" and leaf.ndim > 1 else leaf


if __name__ == "__main__":
    run(main, checkpoint.CheckpointError)
