"""Batches as a pure function of (seed, step)."""

import jax
import numpy as np
import psutil
import pytest

from jobs.datasets import films
from jobs.training import loop
from jobs.training.data import (
    Batches,
    Films,
    Layout,
    Order,
    evaluation_batches,
    from_files,
    from_memory,
    memory,
    one_hot,
)
from tests.jobs.test_loop import config, train

LABELS = (0,) * 50 + (1,) * 30 + (2,) * 10


def order(**changes) -> Order:
    return Order(**({"labels": LABELS, "seed": 3, "global_batch_size": 8, "balanced": False} | changes))


def test_an_epoch_is_a_permutation():
    one = order(global_batch_size=9)
    seen = np.concatenate([one.batch(step)[:, 0] for step in range(10)])
    assert sorted(seen) == list(range(90))


def test_steps_in_any_order_give_the_same_batches():
    forward = [order().batch(step) for step in range(40)]
    one = order()
    for step in reversed(range(40)):
        assert (one.batch(step) == forward[step]).all()


def test_epochs_seeds_and_partners_differ():
    one = order()
    assert one.steps_per_epoch == 11
    assert (one.batch(0) != one.batch(11)).any()
    assert (one.batch(0) != order(seed=4).batch(0)).any()
    assert (one.batch(0)[:, 0] != one.batch(0)[:, 1]).any()


def test_balanced_epochs_hold_a_third_of_each_class():
    one = order(balanced=True, global_batch_size=9)
    drawn = np.concatenate([one.batch(step) for step in range(10)])
    for stream in (0, 1):
        films = drawn[:, stream]
        assert np.bincount(np.asarray(LABELS)[films]).tolist() == [30, 30, 30]
        viral = films[np.asarray(LABELS)[films] == 2]
        assert np.bincount(viral)[80:].tolist() == [3] * 10  # each of ten films three times, none left out


def test_evaluation_sees_every_film_once():
    batches = list(evaluation_batches(21, 8))
    assert [indices.shape for indices, _ in batches] == [(8,)] * 3
    seen = np.concatenate([indices[real] for indices, real in batches])
    assert seen.tolist() == list(range(21))
    assert max(indices.max() for indices, _ in batches) == 20


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("local", [(0, 1, 2, 3), (2, 3)])
def test_streamed_batches_are_the_resident_ones_to_the_bit(phantom_data, workers, local):
    decoded, encoded = (films.read(phantom_data, "phantom", "train", decoded=choice) for choice in (True, False))
    assert encoded.images.shape == decoded.images.shape and len(encoded.images) == 48
    layout = Layout(4, local)
    order = Order(tuple(decoded.labels.tolist()), 0, 16, True)
    steps = Batches(order, 2, 8)  # from the middle of an epoch, as a run that goes on
    resident = from_memory(Films(decoded.images, one_hot(decoded.labels)), layout)(steps)
    streamed = from_files(encoded.images, one_hot(encoded.labels), layout, workers)(steps)
    count = 0
    for (whole, indices), (batch, places) in zip(resident, streamed, strict=True):
        assert indices.shape == places.shape == (len(local), 4, 2)
        np.testing.assert_array_equal(indices, layout.share(order.batch(2 + count)))
        assert batch.images.shape == (len(local), 8, 224, 224) and batch.images.dtype == np.uint8
        for device in range(len(local)):
            np.testing.assert_array_equal(whole.images[indices[device]], batch.images[device][places[device]])
            np.testing.assert_array_equal(whole.targets[indices[device]], batch.targets[device][places[device]])
        count += 1
    assert count == 6


def test_a_layout_gives_each_process_its_rows():
    batch = np.arange(16).reshape(8, 2)
    np.testing.assert_array_equal(Layout(4, (0, 1)).share(batch), batch[:4].reshape(2, 2, 2))
    np.testing.assert_array_equal(Layout(4, (3,)).share(batch), batch[6:].reshape(1, 2, 2))
    with pytest.raises(ValueError, match="global batch of 8 does not divide over 3 devices; .* multiple of 3"):
        Layout(3, (0,)).share(batch)


@pytest.mark.parametrize(("limit", "expected"), [(10**6, "streamed"), (10**9, "resident")])
def test_auto_keeps_films_on_the_device_where_they_fit(phantom_data, tmp_path, monkeypatch, limit, expected):
    monkeypatch.setattr(loop, "memory", lambda device: limit)  # 60 films of 224 x 224 are 3 MB
    assert f", {expected};" in train(config(phantom_data, epochs=1), tmp_path)


def test_memory_is_what_the_device_says_or_its_share_of_the_host():
    class Gpu:
        def memory_stats(self):
            return {"bytes_limit": 7}

    assert memory(Gpu()) == 7
    host = psutil.virtual_memory().total
    assert memory(jax.devices()[0]) == pytest.approx(host / len(jax.devices()), rel=0.05)
