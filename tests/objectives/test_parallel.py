"""A weighted mean over the parts of a batch is that of the batch."""

from __future__ import annotations

import pytest
import torch

from jetssl_cli.objectives import parallel


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_the_average_over_processes_is_the_weighted_mean_of_all(monkeypatch, cut):
    rng = torch.Generator().manual_seed(0)
    errors, weights = torch.rand(9, generator=rng), torch.rand(9, generator=rng)
    weights[3] = 0
    wanted = (errors * weights).sum() / weights.sum()
    torch.testing.assert_close(parallel.weighted_mean(errors, weights), wanted)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "summed", lambda _: weights.sum(dtype=torch.float64))
    parts = [
        parallel.weighted_mean(errors[chosen], weights[chosen])
        for chosen in (slice(0, cut), slice(cut, 9))
    ]
    torch.testing.assert_close(sum(parts) / 2, wanted)


def test_of_nothing_it_is_zero():
    assert float(parallel.weighted_mean(torch.ones(3), torch.zeros(3))) == 0
    assert float(parallel.weighted_mean(torch.ones(0), torch.zeros(0))) == 0
