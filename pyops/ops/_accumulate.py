"""One buffer for the gradient of many lookups in the same tensors, instead of a tensor of their size for each.

Autograd adds what comes from several uses of a tensor, so each use has to make a whole gradient. Here the tensors pass
through one node first, which all their lookups share. A lookup adds what it has to the buffers of that node; the node,
which runs after all of them, hands the sum on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
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


class Lookup(NamedTuple):
    """The operators of a lookup in some tensors of costs, all of them in one list."""

    forward: Callable[..., Tensor]
    """Of costs, position and radius."""
    backward: Callable[..., list[Tensor]]
    """Of gradient, costs, position, radius, and which gradients are needed: of any costs, of the position."""
    accumulate: Callable[..., Tensor]
    """Of gradient, buffers to add to, costs, position, radius, and whether the gradient of the position is needed."""
    definition: Callable[..., Tensor]
    """The forward in plain PyTorch."""

    def __call__(self, costs: Sequence[Tensor], position: Tensor, radius: int) -> Tensor:
        if accumulates(costs, position):
            node = gathered(costs)
            return _SharedLookup.apply(node, self, position, radius, *node.costs)
        return self.forward(costs, position, radius)

    def gradients(
        self,
        grad: Tensor,
        costs: Sequence[Tensor],
        position: Tensor,
        radius: int,
        need_costs: Sequence[bool],
        need_position: bool,
    ) -> tuple[Sequence[Tensor | None], Tensor | None]:
        """Of the costs and of the position."""
        if _op.is_batched(grad):  # by a vmap that cannot map operators of lists
            *grads, slope = _op.first_derivative(self._flat(radius), (*costs, position), grad)
            return grads, slope
        *found, slope = self.backward(grad, costs, position, radius, any(need_costs), need_position)
        grads = [g if n else None for g, n in zip(found, need_costs, strict=True)]
        return grads, slope if need_position else None

    def second_derivative(
        self, saved: Sequence[Tensor], radius: int, upstream: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None], Tensor | None]:
        """Gradients of the backward operator: of its gradient, the costs and the position, which ``saved`` holds."""
        grad, *grads, slope = _op.second_derivative(self._flat(radius), saved, upstream)
        return grad, grads, slope

    def _flat(self, radius: int) -> Callable[..., Tensor]:
        def definition(*tensors: Tensor) -> Tensor:
            *costs, position = tensors
            return self.definition(costs, position, radius)

        return definition


class _SharedLookup(torch.autograd.Function):
    """A lookup in eager mode: gradients to the costs go to the one buffer that all lookups in them share."""

    @staticmethod
    def forward(
        ctx: Any, node: Gathered, lookup: Lookup, position: Tensor, radius: int, *costs: Tensor
    ) -> Tensor:
        ctx.node, ctx.lookup, ctx.radius = node, lookup, radius
        ctx.save_for_backward(position, *costs)
        return lookup.forward(costs, position, radius)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        position, *costs = ctx.saved_tensors
        lookup, need = ctx.lookup, ctx.needs_input_grad[2]
        sources = costs, position, ctx.radius
        if _op.is_batched(grad) or torch.is_grad_enabled():  # a graph of the gradient is wanted
            grads, slope = lookup.gradients(grad, *sources, [True] * len(costs), need)
            return None, None, slope, None, *grads
        shared = ctx.node.gradients
        buffers = shared.current()
        if buffers is None:
            *buffers, slope = lookup.backward(grad, *sources, True, need)
            shared.begin(buffers)
        else:
            slope = lookup.accumulate(grad, buffers, *sources, need)
        return None, None, slope if need else None, None, *(None for _ in costs)
