"""The examples are phantoms as the drawing makes them today, and say that they are synthetic."""

import numpy as np
import pytest
from PIL import Image

from jobs.datasets.phantom.drawing import draw
from model.labels import CLASSES
from space.app import EXAMPLES


@pytest.mark.parametrize(("name", "index"), [("normal", 9), ("bacterial", 82), ("viral", 23)])
def test_an_example_is_the_phantom_it_claims_to_be(name, index):
    phantom = draw(index, 512)
    assert CLASSES[phantom.label] == name
    with Image.open(EXAMPLES[name]) as image:
        assert "synthetic" in image.info["Description"].lower()
        assert np.array_equal(np.asarray(image), phantom.image)
