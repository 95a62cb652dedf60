"""Declares to PyTorch what the native libraries cannot say for themselves: fake, autograd, vmap and Triton kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _native

_library = torch.library.Library("pyops", "FRAGMENT")


def declare(
    op: str,
    *,
    stem: str,
    fake: Callable[..., Any],
    vmap: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    composed: tuple[str, Callable[..., Any]] | None = None,
    batched: bool = False,
    plain: Callable[..., Any] | None = None,
) -> None:
    """Completes the native operator ``pyops::<op>``, which lives in the files called ``stem`` of every layer.

    ``batched`` says that the first axis of every tensor is the batch, so that vmap can map its axis into it.
    Without the CUDA library, CUDA tensors go to the function ``op`` of ``pyops.triton.<stem>``. An operator that calls
    other operators on every device has no native code: ``composed`` is the rest of its schema, and that function.
    ``plain`` is what runs on CUDA where PyTorch's operators serve, and there is neither a CUDA nor a Triton kernel.
    """
    name = f"pyops::{op}"
    if composed is not None:
        signature, kernel = composed
        _library.define(op + signature)
        for device in ("CPU", "CUDA"):
            _library.impl(op, kernel, device)
    torch.library.register_fake(name, fake)
    if batched:
        vmap = partial(_vmap_in_batch, op)
    if vmap is not None:
        torch.library.register_vmap(name, vmap)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context)
    if plain is not None:
        _library.impl(op, plain, "CUDA")
    elif composed is None and not _native.cuda_loaded:
        _library.impl(op, _triton_kernel(op, stem), "CUDA")


def declare_pair(
    op: str,
    *,
    stem: str,
    tensors: int,
    fake: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    keeps_layout: bool = True,
    vmap: Callable[..., Any] | None = None,
    vmap_backward: Callable[..., Any] | None = None,
) -> None:
    """Completes ``pyops::<op>``, which takes some tensors and then options, and ``pyops::<op>_backward``.

    The backward operator takes a gradient, all that the forward takes, and whether to compute the gradient of each
    tensor; it returns one for each, of shape ``[0]`` where it is not needed, channels_last where the tensor is unless
    ``keeps_layout`` is False. ``definition`` is the forward in plain PyTorch, for the second derivative. Both map an
    axis into the batch unless given other rules.
    """

    def save(ctx, inputs, output):
        ctx.options = inputs[tensors:]
        ctx.save_for_backward(*inputs[:tensors])

    def backward(ctx, grad):
        need = ctx.needs_input_grad[:tensors]
        grads = getattr(torch.ops.pyops, f"{op}_backward")(grad, *ctx.saved_tensors, *ctx.options, *need)
        return *(g if n else None for g, n in zip(grads, need, strict=True)), *(None for _ in ctx.options)

    def fake_backward(grad, *inputs):
        new = empty_like_image if keeps_layout else lambda t: t.new_empty(t.shape)
        pairs = zip(inputs[:tensors], inputs[-tensors:], strict=True)
        return tuple(new(t) if n else t.new_empty(0) for t, n in pairs)

    def save_backward(ctx, inputs, output):
        ctx.options, ctx.need = inputs[tensors + 1 : -tensors], inputs[-tensors:]
        ctx.save_for_backward(*inputs[: tensors + 1])

    def double_backward(ctx, *upstream):
        needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
        grads = second_derivative(lambda *t: definition(*t, *ctx.options), ctx.saved_tensors, needed)
        return *grads, *(None for _ in (*ctx.options, *ctx.need))

    declare(
        op,
        stem=stem,
        fake=fake,
        vmap=vmap,
        setup_context=save,
        backward=backward,
        batched=vmap is None,
    )
    declare(
        f"{op}_backward",
        stem=stem,
        fake=fake_backward,
        vmap=vmap_backward,
        setup_context=save_backward,
        backward=double_backward,
        batched=vmap_backward is None,
    )


def _triton_kernel(op: str, stem: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            module = importlib.import_module(f"pyops.triton.{stem}")
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise RuntimeError(
                f"pyops.{op} has no kernel for CUDA tensors here: {_native.cuda_problem}, or install triton."
            ) from None
        return getattr(module, op)(*args)

    return call


def second_derivative(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor | None], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradient of a backward operator, through the plain-PyTorch definition of its forward.

    ``inputs`` is the gradient that came in, then the tensors ``reference`` takes; ``upstream`` holds the gradients with
    respect to what the backward operator returned, one for each tensor of ``reference``. Returns one gradient (or None)
    for each of ``inputs``.
    """
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
        grad, *tensors = leaves
        wanted = [(t, g) for t, g in zip(tensors, upstream, strict=True) if t is not None and g is not None]
        first = torch.autograd.grad(
            reference(*tensors), [t for t, _ in wanted], grad, create_graph=True, allow_unused=True
        )
        terms = [(f * g).sum() for f, (_, g) in zip(first, wanted, strict=True) if f is not None]
    known = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    found = iter(torch.autograd.grad(terms, known, allow_unused=True))
    return [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


def first_derivative(
    reference: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the plain-PyTorch definition, for tensors that no operator of ours can take."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(reference(*leaves), leaves, grad, allow_unused=True)


def is_channels_last(t: Tensor) -> bool:
    """The rule by which every kernel decides the memory format of its result."""
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def empty_like_image(image: Tensor) -> Tensor:
    """Uninitialised result for ``image [B, C, H, W]``: channels_last if the image is, else contiguous."""
    if is_channels_last(image):
        return torch.empty_like(image, memory_format=torch.channels_last)
    return image.new_empty(image.shape)


def new_large(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Uninitialised, contiguous, in memory that is cheap to fill for the first time."""
    return like.new_empty(shape) if like.is_cuda else torch.ops.pyops.new_memory(like, shape)


def fold(t: Tensor, dim: int | None, size: int) -> Tensor:
    """A vmapped tensor with its mapped axis of ``size`` in front, expanded where it is not mapped."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def in_batch(info: Any, in_dims: Sequence[Any], args: Sequence[Any]) -> tuple[list[Any], tuple[int, int]]:
    """Arguments with the mapped axis of every tensor, in lists too, as part of the batch, and the sizes of both."""
    sizes = []

    def folded(value, dim):
        if isinstance(value, Tensor):
            value = fold(value, dim, info.batch_size)
            sizes.append(value.shape[:2])
            return value.flatten(0, 1)
        if isinstance(value, (list, tuple)):
            return [folded(v, d) for v, d in zip(value, dim, strict=True)]
        return value

    found = [folded(value, dim) for value, dim in zip(args, in_dims, strict=True)]
    return found, sizes[0]


def out_of_batch(results: Any, sizes: tuple[int, int]) -> tuple[Any, Any]:
    """The mapped axis in front again, as a vmap rule returns it. Gradients that are not needed are of shape ``[0]``."""
    if isinstance(results, Tensor):
        return results.unflatten(0, sizes), 0
    total = sizes[0] * sizes[1]
    found = [r.unflatten(0, sizes) if len(r) == total else r.expand(sizes[0], 0) for r in results]
    return type(results)(found), type(results)(0 for _ in found)


def _vmap_in_batch(op: str, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    folded, sizes = in_batch(info, in_dims, args)
    return out_of_batch(getattr(torch.ops.pyops, op)(*folded), sizes)


def wants_gradient(t: Tensor) -> bool:
    """Whether autograd follows the tensor, also from outside of the function transform that has wrapped it."""
    if not torch.compiler.is_compiling():
        while torch._C._functorch.is_functorch_wrapped_tensor(t) and not t.requires_grad:
            t = torch._C._functorch.get_unwrapped(t)
    return t.requires_grad


def is_batched(t: Tensor) -> bool:
    """Whether the tensor belongs to the vmap with which autograd batches gradients."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(t)


def is_plain(t: Tensor) -> bool:
    """True in eager mode, outside of function transforms, for a tensor that is no subclass."""
    return (
        type(t) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    )


def values_visible(t: Tensor) -> bool:
    """True where reading values costs no synchronisation and breaks no trace: a plain CPU tensor in eager mode."""
    return t.device.type == "cpu" and is_plain(t)
