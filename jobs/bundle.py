"""Makes the slim copy of a run that is served and shared: the best variables, meta, and the calibration.

    python jobs/bundle.py --checkpoint runs/cnn --out space/checkpoint
    python jobs/bundle.py --checkpoint runs/cnn --out space/checkpoint --dtype bfloat16

Every --checkpoint of the other commands takes such a copy as well as a run directory. With bfloat16 the kernels take
half the room; biases and BatchNorm stay float32.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from absl import flags

from jobs import JobError, run
from model import checkpoint

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run directory, or another bundle.", required=True)
_OUT = flags.DEFINE_string("out", None, "The folder to write; an older bundle there is replaced.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "In which the kernels are stored.")

CALIBRATION = "calibration.json"


def main(arguments: list[str]) -> None:
    del arguments
    bundle(Path(_CHECKPOINT.value), Path(_OUT.value), _DTYPE.value)


def bundle(source: Path, out: Path, dtype: str) -> None:
    """Writes the best step of `source` to `out`, whole or not at all.

    Raises:
      CheckpointError: nothing in `source` can be loaded.
      JobError: `out` holds something that is no bundle.
    """
    best = checkpoint.load(source, "best")
    # What is not numbered or known was put there by somebody; it is not ours to replace.
    strangers = [e.name for e in out.iterdir() if not _is_ours(e)] if out.exists() else []
    if strangers or out.resolve() == source.resolve():
        reason = f"it holds {', '.join(sorted(strangers)[:3])}" if strangers else "it is the source"
        raise JobError(f"{out} would be replaced, but {reason}; give another --out")
    stored = jax.tree.map(lambda leaf: _cast(leaf, dtype), best.variables)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundling-", dir=out.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        score = best.meta["score"]
        with checkpoint.Writer(new) as writer:
            writer.save(best.step, stored, best.meta, score=float("-inf") if score is None else score)
        if (source / CALIBRATION).exists():
            shutil.copy(source / CALIBRATION, new / CALIBRATION)
        dataset = best.meta["dataset"]
        (new / "ATTRIBUTION.md").write_text(
            f"Weights trained on `{dataset['name']}`, licence {dataset['license']}.\n\n{dataset['citation']}\n"
        )
        if out.exists():
            out.rename(Path(scratch) / "old")
        new.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: step {best.step}, epoch {best.meta['epoch']}, {dtype}, {size / 1e6:.1f} MB")


def _is_ours(entry: Path) -> bool:
    return entry.name.isdigit() or entry.name in (CALIBRATION, "ATTRIBUTION.md")


def _cast(leaf: np.ndarray, dtype: str) -> np.ndarray:
    return leaf.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" and leaf.ndim > 1 else leaf


if __name__ == "__main__":
    run(main, checkpoint.CheckpointError)
