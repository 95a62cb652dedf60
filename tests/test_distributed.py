"""Graphs and shortest paths over processes, against one process: three on the loopback device, started by torchrun, and
a group of two of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
import torch.distributed as dist

import pyops
from pyops.distributed import geodesic_distances, knn_graph, shard

RANKS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """Of every rank."""
    folder = tmp_path_factory.mktemp("ranks")
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": loopback,  # machines whose name leads nowhere
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    command = [*torchrun, *rendezvous, worker.__file__, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def same(found, expected) -> bool:
    return len(found) == len(expected) and all(
        f.dtype == e.dtype and torch.equal(f, e) for f, e in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("case", worker.CLOUDS)
def test_graph_is_that_of_one_process(results, case):
    x = worker.points(case).requires_grad_()
    graph = pyops.knn_graph(x, worker.CLOUDS[case][2])
    (grad,) = torch.autograd.grad((graph.weights * graph.weights.detach().sin()).sum(), x)
    for result in results:
        assert same(result["graphs"][case], (*graph, grad))


@pytest.mark.parametrize("case", worker.SOURCES)
def test_distances_are_those_of_one_process(results, case):
    graph, sources = worker.cloud()[1], worker.SOURCES[case]
    alone = pyops.geodesic_distances(graph, sources)
    limited = pyops.geodesic_distances(graph, sources, cutoff=worker.CUTOFF, return_predecessors=True)
    assert limited[0].isinf().any() or not limited[0].numel()
    found = [result["distances"][case] for result in results]
    assert torch.equal(torch.cat([rank["alone"] for rank in found]), alone)
    for part in (0, 1):
        assert torch.equal(torch.cat([rank["share"][part] for rank in found]), limited[part])
    for rank in found:
        assert same(rank["whole"], limited)


def test_a_group_of_two(results):
    expected = pyops.geodesic_distances(worker.cloud()[1], worker.SOURCES["some"])
    for result in results[:2]:
        assert torch.equal(result["distances"]["pair"], expected)
    shards = [result["distances"]["shard of pair"] for result in results[:2]]
    assert shards == [slice(0, 3), slice(3, 5)]


def test_shards_cover_all_rows_in_order(results):
    for count in (0, 1, 2, 3, 4, 7):
        slices = [result["distances"]["shards"][count] for result in results]
        assert [row for part in slices for row in range(count)[part]] == list(range(count))
        assert max(part.stop - part.start for part in slices) == -(-count // RANKS)


@pytest.mark.parametrize("gather", (False, True))
@pytest.mark.parametrize("case", worker.SOURCES)
def test_every_rank_has_the_whole_gradient_of_weights(results, case, gather):
    graph, sources = worker.cloud()[1], worker.SOURCES[case]
    rows = pyops.geodesic_distances(graph, sources)
    expected = worker.gradients(graph, worker.loss_of(rows, worker.upstream(len(rows))))
    assert case == "none" or all(grad.any() for grad in expected.values())
    name = f"{case}, gather={gather}"
    for order, grad in expected.items():
        first, *others = (result["weight gradients"][name][order] for result in results)
        torch.testing.assert_close(first, grad, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(first, other) for other in others)
        again = [result["weight gradients"][f"{name} again"][order] for result in results]
        assert all(torch.equal(first, other) for other in again)


def test_every_rank_has_the_whole_gradient_of_points(results):
    x = worker.points("uneven").double().requires_grad_()
    worker.loss_of(pyops.geodesic_distances(pyops.knn_graph(x, 4)), worker.upstream(50)).backward()
    layer = worker.leaf(torch.eye(3, dtype=torch.float64))
    graph = pyops.knn_graph(worker.points("uneven").double()[:48] @ layer, 4)
    worker.loss_of(pyops.geodesic_distances(graph), worker.upstream(48)[:, :48]).backward()
    for result in results:
        torch.testing.assert_close(result["point gradients"]["points"], x.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result["point gradients"]["layer"], layer.grad, rtol=1e-12, atol=1e-12)


SAME = "ValueError: {} must be the same on every rank, got {} on rank 0 and {} on rank 1: give"
NOT_FINITE = "ValueError: x must be finite, got NaN or infinity in row 0"


@pytest.mark.parametrize(
    "name, messages",
    (
        ("sizes", SAME.format("the shape of x", "[50, 3]", "[49, 3]")),
        ("order", "ValueError: the checksum of x must be the same on every rank, got "),
        ("dtype", SAME.format("the dtype of x", "torch.float64", "torch.float32")),
        ("k", SAME.format("k", 4, 5)),
        (
            "refused",
            (
                f"RuntimeError: knn_graph has arguments on rank 1 that it refuses there: {NOT_FINITE}",
                NOT_FINITE,
            ),
        ),
        ("refused by all", NOT_FINITE),
        (
            "other call",
            "RuntimeError: ranks must make the same call, got knn_graph on rank 0 and geodesic_distances on 1",
        ),
        ("weights", "ValueError: the checksum of graph.weights must be the same on every rank, got "),
        ("no gradient", SAME.format("whether graph.weights need a gradient", True, False)),
        ("sources", "ValueError: the checksum of sources must be the same on every rank, got "),
        ("no sources", SAME.format("the shape of sources", [50], None)),
        ("cutoff", SAME.format("cutoff", None, 2.0)),
        ("bad cutoff", "ValueError: cutoff must be at least 0, got -1.0"),
        ("gather", SAME.format("gather", False, True)),
        ("predecessors", SAME.format("return_predecessors", False, True)),
        (
            "losses",
            "RuntimeError: with gather=True every rank must compute the same loss of the distances, and ",
        ),
        ("no group", "TypeError: group must be a torch.distributed.ProcessGroup or None, got str"),
        ("count", "ValueError: count must be at least 0, got -1"),
        ("count type", "TypeError: count must be an int, got float"),
    ),
)
def test_every_rank_is_told_what_is_wrong(results, name, messages):
    common, other = messages if isinstance(messages, tuple) else (messages, messages)
    for rank, result in enumerate(results):
        assert result["errors"][name].startswith(other if rank == 1 else common)


def test_a_rank_outside_of_the_group_is_told(results):
    outside = "ValueError: group must hold this process, rank 2 of all, and does not"
    assert [result["errors"]["outside"] for result in results] == ["no error", "no error", outside]


@pytest.mark.parametrize(
    "call",
    (
        lambda: shard(3),
        lambda: knn_graph(torch.rand(5, 2), 2),
        lambda: geodesic_distances(pyops.knn_graph(torch.rand(5, 2), 2)),
    ),
)
def test_without_a_process_group(call):
    with pytest.raises(RuntimeError, match=r"torchrun, and call torch.distributed.init_process_group\(\)"):
        call()


def test_without_torch_distributed(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"needs a PyTorch with torch\.distributed, and this one has none"):
        shard(3)


@pytest.mark.parametrize("backend", ("cuda:nccl", "cuda:gloo"))
def test_a_backend_of_another_device(monkeypatch, backend):
    monkeypatch.setattr(dist, "get_backend_config", lambda group: backend)
    message = rf'x is on cpu, which .*\({backend}\) does not serve: .*backend="cpu:gloo,cuda:nccl"'
    with pytest.raises(ValueError, match=message):
        pyops.distributed._require_backend("x", torch.rand(3), None)
