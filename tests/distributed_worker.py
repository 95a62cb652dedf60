"""What every rank computes for test_distributed.py: started by torchrun, with a folder for the results.

The functions below give a rank its results by name; the same inputs are made in the test, by one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import pyops
from pyops.distributed import geodesic_distances, knn_graph, shard

# Points, dimensions, k, dtype: shares of 17, 17, 16; of 2, 2, 0; of 1, 1, 0; many dimensions; halves.
CLOUDS = {
    "uneven": (50, 3, 4, torch.float32),
    "one rank idle": (4, 2, 2, torch.float64),
    "fewer points than ranks": (2, 3, 1, torch.float32),
    "many dimensions": (40, 70, 6, torch.float32),
    "halves": (31, 3, 5, torch.float16),
    "coinciding": (30, 1, 3, torch.float32),
}
SOURCES = {
    "all": None,
    "some": torch.tensor([7, 3, 3, 49, 0, 12, 7, 20]),
    "one": torch.tensor([5]),
    "none": torch.tensor([], dtype=torch.int64),
}
CUTOFF = 1.0


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def points(case: str) -> Tensor:
    count, dims, _, dtype = CLOUDS[case]
    x = rand(count, dims, seed=count, dtype=torch.float64)
    return (x.mul(4).round() if case == "coinciding" else x).to(dtype)


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def cloud() -> tuple[Tensor, pyops.Graph]:
    """Points, and their graph, of which the weights ask for a gradient."""
    x = points("uneven").double()
    graph = pyops.knn_graph(x, 4)
    return x, graph._replace(weights=leaf(graph.weights))


# ---- losses of one process, of a share, and of all rows on every rank ------------------------------------------------


def upstream(count: int) -> Tensor:
    return rand(count, 50, seed=1, dtype=torch.float64)


def loss_of(rows: Tensor, factors: Tensor) -> Tensor:
    return (rows.where(rows.isfinite(), 0) * factors).sin().sum()


def gradients(graph: pyops.Graph, loss: Tensor) -> dict[str, Tensor]:
    """The first, and the second along a direction."""
    (first,) = torch.autograd.grad(loss, graph.weights, create_graph=True)
    direction = rand(*first.shape, seed=2, dtype=first.dtype)
    (second,) = torch.autograd.grad((first * direction).sum(), graph.weights)
    return {"first": first.detach(), "second": second}


def graphs() -> dict:
    found: dict = {}
    for case in CLOUDS:
        x = points(case).requires_grad_()
        graph = knn_graph(x, CLOUDS[case][2])
        (grad,) = torch.autograd.grad((graph.weights * graph.weights.detach().sin()).sum(), x)
        found[case] = (*(t.detach() for t in graph), grad)
    return found


def distances(pair: dist.ProcessGroup | None) -> dict:
    graph = cloud()[1]
    found: dict = {}
    for name, sources in SOURCES.items():
        options = {"cutoff": CUTOFF, "return_predecessors": True}
        found[name] = {
            "share": [t.detach() for t in geodesic_distances(graph, sources, **options)],
            "whole": [t.detach() for t in geodesic_distances(graph, sources, gather=True, **options)],
            "alone": geodesic_distances(graph, sources).detach(),
        }
    if pair is not None:
        found["pair"] = geodesic_distances(graph, SOURCES["some"], group=pair, gather=True).detach()
        found["shard of pair"] = shard(5, pair)
    found["shards"] = {count: shard(count) for count in (0, 1, 2, 3, 4, 7)}
    return found


def weight_gradients() -> dict:
    found = {}
    for name, sources in SOURCES.items():
        for gather in (False, True):
            for run in ("", " again"):
                graph = cloud()[1]
                rows = geodesic_distances(graph, sources, gather=gather)
                count = 50 if sources is None else len(sources)
                factors = upstream(count) if gather else upstream(count)[shard(count)]
                found[f"{name}, gather={gather}{run}"] = gradients(graph, loss_of(rows, factors))
    return found


def point_gradients() -> dict:
    """Through both; and where ranks have features of their part of a batch, averaged as data-parallel training does."""
    x = points("uneven").double().requires_grad_()
    rows = geodesic_distances(knn_graph(x, 4))
    loss_of(rows, upstream(50)[shard(50)]).backward()

    from torch.distributed.nn.functional import all_gather

    layer = leaf(torch.eye(3, dtype=torch.float64))
    given = points("uneven").double()[:48]
    features = torch.cat(all_gather(given[shard(48)] @ layer))
    rows = geodesic_distances(knn_graph(features, 4))
    loss_of(rows, upstream(48)[shard(48), :48]).backward()
    dist.all_reduce(layer.grad)
    return {"points": x.grad, "layer": layer.grad / dist.get_world_size()}


def errors(pair: dist.ProcessGroup) -> dict[str, str]:
    rank = dist.get_rank()
    x, graph = cloud()
    other = rank == 1

    def mixed_losses():
        rows = geodesic_distances(graph, gather=True)
        rows[shard(50)].sum().backward()

    calls = {
        "sizes": lambda: knn_graph(x[: 49 if other else 50], 4),
        "order": lambda: knn_graph(x.roll(int(other), 0), 4),
        "dtype": lambda: knn_graph(x.float() if other else x, 4),
        "k": lambda: knn_graph(x, 5 if other else 4),
        "refused": lambda: knn_graph(x * torch.nan if other else x, 4),
        "refused by all": lambda: knn_graph(x * torch.nan, 4),
        "other call": lambda: geodesic_distances(graph) if other else knn_graph(x, 4),
        "weights": lambda: geodesic_distances(graph._replace(weights=graph.weights * (1 + other))),
        "no gradient": lambda: geodesic_distances(
            graph._replace(weights=graph.weights.detach()) if other else graph
        ),
        "sources": lambda: geodesic_distances(graph, torch.tensor([0, 2 if other else 1])),
        "no sources": lambda: geodesic_distances(graph, None if other else torch.arange(50)),
        "cutoff": lambda: geodesic_distances(graph, cutoff=2.0 if other else None),
        "bad cutoff": lambda: geodesic_distances(graph, cutoff=-1.0),
        "gather": lambda: geodesic_distances(graph, gather=other),
        "predecessors": lambda: geodesic_distances(graph, return_predecessors=other),
        "losses": mixed_losses,
        "outside": lambda: shard(4, pair),
        "no group": lambda: shard(4, "gloo"),
        "count": lambda: shard(-1),
        "count type": lambda: shard(4.0),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "no error"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    pair = dist.new_group([0, 1])
    results = {
        "graphs": graphs(),
        "distances": distances(pair if rank < 2 else None),
        "weight gradients": weight_gradients(),
        "point gradients": point_gradients(),
        "errors": errors(pair),
    }
    torch.save(results, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
