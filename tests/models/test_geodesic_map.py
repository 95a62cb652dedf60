"""Parts of Isomap: the order in which points are placed, and what the differentiable chain refuses."""

from __future__ import annotations

import pytest
import torch
from pyops.models import isomap_embedding
from pyops.models.geodesic_map import along_curve


def cloud(n: int) -> torch.Tensor:
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def test_places_along_a_curve_lie_near_each_other():
    generator = torch.Generator().manual_seed(0)
    for axes in (1, 2, 3, 5):
        places = torch.rand(1000, axes, generator=generator)
        order = along_curve(places)
        assert torch.equal(order.sort().values, torch.arange(1000))
        steps = places[:, :3][order].diff(dim=0).norm(dim=1)
        assert float(steps.mean()) < 2.5 * 1000 ** (-1 / min(axes, 3))
    assert len(along_curve(places[:0])) == 0 and along_curve(
        places[:1].expand(5, 5)
    ).sort().values.tolist() == [*range(5)]


@pytest.mark.parametrize(
    "options, error, message",
    (
        ({"n_neighbors": 20}, ValueError, "n_neighbors must be below the 20 points and at most 1023, got 20"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
        ({"n_neighbors": 2.5}, TypeError, "n_neighbors must be an int, got float"),
        (
            {"n_components": 21},
            ValueError,
            "n_components must be at most the 20 points that are scaled, got 21",
        ),
        ({"landmarks": torch.tensor([1])}, ValueError, "n_components must be at most the 1 points"),
        (
            {"landmarks": torch.tensor([0, 20])},
            ValueError,
            "landmarks must be from 0 to N - 1 = 19, got 0 to 20",
        ),
        ({"landmarks": torch.tensor([0, -1])}, ValueError, "landmarks must be from 0 .*, got -1 to 0"),
        ({"landmarks": [0, 1]}, TypeError, "landmarks must be a torch.Tensor or None, got list"),
        (
            {"landmarks": torch.ones(20, dtype=torch.bool)},
            TypeError,
            "landmarks must be int64, got torch.bool",
        ),
        ({"landmarks": torch.tensor([[0, 1]])}, ValueError, r"landmarks must be \[L\], got shape \[1, 2\]"),
        ({"x": cloud(20).half()}, TypeError, "x must be float32 or float64, got torch.float16"),
        ({"x": cloud(20) / 0}, ValueError, "x must be finite"),
        ({"x": cloud(1)}, ValueError, "x must have at least 2 points, got 1"),
        ({"x": cloud(20).numpy()}, TypeError, "x must be a torch.Tensor"),
    ),
)
def test_chain_names_what_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        isomap_embedding(**{"x": cloud(20), "n_neighbors": 5, "n_components": 2} | options)


def test_chain_refuses_what_is_not_connected():
    with pytest.raises(ValueError, match="connected by its 3 nearest neighbours, and is not: use more"):
        isomap_embedding(torch.cat([cloud(9), cloud(9) + 50]), 3, 2)
