"""How close a result and its gradients have to come to the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from pyops import testing
from pyops.testing import gradients, in_double


def tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def in_single(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def has_double(inputs: dict[str, Any]) -> bool:
    """Whether the definition computes in float64 anyway, so that nothing is more exact."""
    return any(t.dtype == torch.float64 for t in tensors(inputs).values())


DOUBLE = torch.finfo(torch.float64).eps
FINER = DOUBLE / torch.finfo(torch.float32).eps


def assert_values_close(
    function: Callable[..., Tensor], definition: Callable[..., Tensor], inputs: dict[str, Any]
) -> None:
    """Asserts a floating result as exact as that of the definition in the same dtype, in float64 nearly so."""
    actual, exact = function(**inputs), definition(**in_double(inputs))
    if actual.dtype != torch.float64:
        testing.assert_forward_close(actual, exact, definition(**inputs))
        return
    # Both sides round, and sums of the definition too; what conditions add shows in float32.
    single = in_single(inputs)
    error = (definition(**single).double() - definition(**in_double(single))).abs().nan_to_num(0)
    size = exact.abs().nan_to_num(0)
    atol = float(64 * DOUBLE * size.max() + 4 * FINER * error.max()) if exact.numel() else 0
    assert_close(actual, exact, rtol=0, atol=atol, equal_nan=True)


def assert_gradients_close(
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    inputs: dict[str, Any],
    names: Sequence[str],
    upstream: Tensor,
    rounding: float = 0.0,
) -> None:
    """Asserts gradients as exact as their dtype (or `rounding`) allows, or half as exact as those of the definition.

    Where inputs are badly conditioned, or a gradient vanishes in exact arithmetic, rounding alone shows.
    """
    _, ours = gradients(function, inputs, names, upstream)
    _, exact = gradients(definition, in_double(inputs), names, upstream)
    double = has_double(inputs)
    largest = max((g.abs().max().item() for g in exact.values() if g.numel()), default=0.0)
    nothing = 64 * largest * (DOUBLE if double else DOUBLE / FINER)
    for name in names:
        assert ours[name].dtype == inputs[name].dtype
        unit = max(torch.finfo(ours[name].dtype).eps, rounding)
        try:
            testing.assert_grad_close(ours[name], exact[name], rounding=unit)
        except AssertionError:
            size = exact[name].abs()
            if size.max() <= nothing and ours[name].abs().max() <= nothing:
                continue
            # In float64 the definition rounds too: by how much shows in float32.
            rounded = in_single(inputs) if double else inputs
            unit *= 4 if double else 1
            shares: list[Tensor] = []
            # In some draws: of a single one the mean may vanish by chance.
            for draw in (upstream, *(random_like(upstream) for _ in range(3))):
                _, plain = gradients(definition, rounded, [name], draw)
                _, truth = gradients(definition, in_double(rounded), [name], draw)
                error = (plain[name].double() - truth[name]) * (2 * FINER if double else 1)
                size = truth[name].abs()
                shares += [
                    error.abs().max() / size.max() / 32,
                    error.norm() / size.norm() / 8,
                    error.mean().abs() / size.mean() * 4,
                ]
            testing.assert_grad_close(
                ours[name], exact[name], rounding=max(unit, *(share.item() for share in shares))
            )


def random_like(result: Tensor) -> Tensor:
    """What comes in as the gradient of a result; integers have none."""
    return torch.randn_like(result) if result.is_floating_point() else torch.zeros_like(result)
