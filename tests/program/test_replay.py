"""When products are captured; the capture itself needs a CUDA device (tests/cuda)."""

import torch

from lsfast.program.replay import Replays


def test_the_third_product_of_a_kind_and_shape_is_captured_and_later_ones_replayed():
    captured = []

    def capture(product, rows):
        captured.append(tuple(rows.shape))
        return lambda rows: product(rows) + 100.0

    replays = Replays(capture)
    rows = torch.ones(2, 3)
    assert [float(replays.run("hvp", lambda r: 2 * r, rows)[0, 0]) for _ in range(4)] == [2.0, 2.0, 102.0, 102.0]
    assert float(replays.run("ggnvp", lambda r: 2 * r, rows)[0, 0]) == 2.0
    assert float(replays.run("hvp", lambda r: 2 * r, rows[:1])[0, 0]) == 2.0
    assert captured == [(2, 3)]


def test_a_product_that_cannot_be_captured_runs_as_it_is():
    attempts = []

    def capture(product, rows):
        attempts.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    replays = Replays(capture)
    for i in range(5):
        assert float(replays.run("hvp", lambda r: 2 * r, torch.full((1, 1), float(i)))) == 2.0 * i
    assert attempts == [1]
