"""One buffer for the gradient of many lookups in the same tensors, instead of a tensor of their size for each.

Autograd adds what comes from several uses of a tensor, so each use has to make a whole gradient. Here the tensors pass
through one node first, which all their lookups share. A lookup adds what it has to the buffers of that node; the node,
which runs after all of them, hands the sum on.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .. import _op


def accumulates(costs: Sequence[Tensor], position: Tensor) -> bool:
    """Whether there is a gradient to share: in eager mode, outside of function transforms."""
    return (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in costs)
        and all(_op.is_plain(t) for t in (*costs, position))
    )


class SharedGradients:
    """The buffers for the gradients of some tensors, alive during one pass of autograd at a time."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] | None = None
        self._task = -1

    def current(self) -> list[Tensor] | None:
        """Buffers to add to, once this pass has some; what an interrupted pass has left is dropped."""
        if self._task != torch._C._current_graph_task_id():
            self._buffers = None
        return self._buffers

    def begin(self, buffers: list[Tensor]) -> None:
        """The first gradients of this pass are the buffers of all."""
        self._buffers, self._task = buffers, torch._C._current_graph_task_id()

    def take(self) -> list[Tensor] | None:
        """What this pass has added up; nothing refers to it any more."""
        buffers, self._buffers = self.current(), None
        return buffers


class _Gather(torch.autograd.Function):
    """The tensors themselves. In the backward: what lookups have added to the buffers, and what came as usual."""

    @staticmethod
    def forward(ctx, shared, *costs):
        ctx.shared = shared
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in costs)

    @staticmethod
    def backward(ctx, *grads):
        buffers = ctx.shared.take()
        if buffers is None:
            return None, *grads
        return None, *(b if g is None else b + g for b, g in zip(buffers, grads, strict=True))


class Gathered:
    """Tensors that have passed through the node, and what tells that they are still the ones they were."""

    def __init__(self, costs: Sequence[Tensor]) -> None:
        self.sources = tuple(costs)
        self.state = _state(costs)
        self.gradients = SharedGradients()
        self.costs: tuple[Tensor, ...] = _Gather.apply(self.gradients, *costs)


def _state(costs: Sequence[Tensor]) -> list[tuple[int, bool]]:
    return [(t._version, t.requires_grad) for t in costs]


# Alive as long as a graph refers to it; it holds its sources, so their identities cannot pass to other tensors.
_known: WeakValueDictionary[tuple[int, ...], Gathered] = WeakValueDictionary()


def gathered(costs: Sequence[Tensor]) -> Gathered:
    """The node of these tensors: that of earlier lookups in them whose graph is still there, or a new one."""
    key = tuple(map(id, costs))
    found = _known.get(key)
    if found is None or found.state != _state(costs):
        found = _known[key] = Gathered(costs)
    return found
