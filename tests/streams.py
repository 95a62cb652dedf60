"""What the contract demands on a GPU alone: other streams, CUDA graphs."""

from __future__ import annotations

from typing import Any

import torch
from closeness import random_like
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map_only

from pyops.testing import gradients

ON_A_GPU = ("test_other_stream", "test_cuda_graph")
PAUSE_CYCLES = 20_000_000  # about 10 ms


def tensor_leaves(inputs: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def write(inputs: dict[str, Any], values: dict[str, Any]) -> None:
    for to, value in zip(tensor_leaves(inputs), tensor_leaves(values), strict=True):
        to.copy_(value)


def other_values(case, first: dict[str, Any], shape) -> dict[str, Any]:
    """Inputs of the same sizes: another draw, or the same with smaller numbers where sizes depend on the draw."""
    second = case.inputs(shape, torch.float32, "cuda", 1)
    pairs = list(zip(tree_leaves(first), tree_leaves(second), strict=False))
    alike = all(a.shape == b.shape if isinstance(a, Tensor) else a == b for a, b in pairs)
    if alike and len(tree_leaves(first)) == len(tree_leaves(second)):
        return second
    return tree_map_only(Tensor, lambda t: t * 0.75 if t.is_floating_point() else t.clone(), first)


class Streams:
    """The part of `contract.Contract` that needs a GPU."""

    def test_other_stream(self, case, device):
        """Everything waits for what is before it on the current stream, and runs there."""
        inputs = case.inputs(case.small[0], torch.float32, device)
        upstream = random_like(case.function(**inputs))
        expected, expected_grads = gradients(case.function, inputs, case.differentiable, upstream)
        late = tree_map_only(Tensor, torch.zeros_like, inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(PAUSE_CYCLES)
            write(late, inputs)  # whoever does not wait sees zeros
            result, grads = gradients(case.function, late, case.differentiable, upstream)
        side.synchronize()
        assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        for name in grads:
            assert_close(grads[name], expected_grads[name], rtol=0, atol=0, equal_nan=True)

    def test_cuda_graph(self, case, device):
        """Captured with gradients, and replayed with other numbers: the same bits as call by call."""
        shape, names = case.small[0], case.differentiable
        first = case.inputs(shape, torch.float32, device)
        draws = [first, other_values(case, first, shape)]
        upstream = random_like(case.function(**first))
        expected = [gradients(case.function, draw, names, upstream) for draw in draws]
        held = tree_map_only(Tensor, torch.clone, first)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what must not run within a capture has then run
            gradients(case.function, held, names, upstream)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result, grads = gradients(case.function, held, names, upstream)
        for i in (1, 0, 1):
            write(held, draws[i])
            graph.replay()
            assert_close(result, expected[i][0], rtol=0, atol=0, equal_nan=True)
            for name in names:
                assert_close(grads[name], expected[i][1][name], rtol=0, atol=0, equal_nan=True)
