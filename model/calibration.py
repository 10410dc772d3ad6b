"""What is fitted once a model is trained: how sure it may be, where its decisions turn, which films are not for it.

It lies beside the checkpoint as `calibration.json`, names the weights it was fitted for, and carries its own digest.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import CheckpointError, json_digest
from model.outliers import Outliers

FILE = "calibration.json"
FORMAT = 1
SMALLEST = 1e-12  # probabilities below it count as it


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One calibration; `python jobs/calibrate.py` fits it on the validation split.

    Attributes:
      weights: digests of the members it was fitted for, in order.
      steps: of their checkpoints.
      temperature: by which log-probabilities are divided (Guo et al. 2017, section 4.2).
      bias: (3,) added to them after that; zeros unless a prior was stated.
      confidence: below this top probability a decision is *uncertain*.
      operating_points: by name, the probability of pneumonia from which a film is called pneumonia.
      outliers: what is not like the training films.
      facts: JSON values of how it was fitted: dataset, split, prior, how many films and patients there were, the losses
        before and after, the figures that a person is told.
    """

    weights: tuple[str, ...]
    steps: tuple[int, ...]
    temperature: float
    bias: tuple[float, float, float]
    confidence: float
    operating_points: Mapping[str, float]
    outliers: Outliers
    facts: Mapping[str, Any]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, 3) probabilities of the network -> (N, 3) calibrated ones."""
        return rescale(probabilities, self.temperature, self.bias)

    @property
    def sha256(self) -> str:
        """What tells it from any other calibration."""
        return json_digest(self._stored())

    def to_text(self) -> str:
        """The contents of FILE."""
        return json.dumps(self._stored() | {"sha256": self.sha256}, indent=1)

    def _stored(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"format": FORMAT, "outliers": self.outliers.to_json()}

    @classmethod
    def read(cls, directory: Path, weights: Sequence[str]) -> Calibration | None:
        """The calibration that lies in `directory`; None where there is none.

        Raises:
          CheckpointError: it is damaged, or was fitted for other weights.
        """
        path = directory / FILE
        cure = f"fit it again: python jobs/calibrate.py --checkpoint {shlex.quote(str(directory))}"
        try:
            stored = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {cure}") from error
        if not isinstance(stored, dict) or stored.pop("sha256", None) != json_digest(stored):
            raise CheckpointError(f"{path} does not match its digest: it is damaged; {cure}")
        if stored.pop("format", None) != FORMAT or stored.keys() != {one.name for one in dataclasses.fields(cls)}:
            raise CheckpointError(f"{path} was made by another version; {cure}")
        if stored["weights"] != list(weights):
            raise CheckpointError(
                f"{path} was fitted for other weights (of step {', '.join(map(str, stored['steps']))}); {cure}"
            )
        for name in ("weights", "steps", "bias"):
            stored[name] = tuple(stored[name])
        stored["outliers"] = Outliers.from_json(stored["outliers"])
        return cls(**stored)


def rescale(probabilities: np.ndarray, temperature: float, bias: Sequence[float]) -> np.ndarray:
    """softmax(log(probabilities) / temperature + bias), (N, 3) float64."""
    logits = np.log(np.maximum(np.asarray(probabilities, float), SMALLEST)) / temperature + np.asarray(bias)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
