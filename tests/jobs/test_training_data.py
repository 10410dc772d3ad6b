"""Batches as a pure function of (seed, step)."""

import numpy as np

from jobs.training.data import Order, evaluation_batches

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
