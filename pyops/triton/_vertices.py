"""Vertices of learnable intervals, and their gradients, for `sampling`. `A` is the type of arithmetic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lut3d import divide

HELD = 1024  # vertices that a program can hold


@triton.jit
def softmax_terms(logits, step, length, A: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of rows: the greatest logit, the sum of exponentials, and 0, or NaN if any logit is not finite."""
    i, zeros = tl.arange(0, BLOCK).to(tl.int64)[None, :], tl.zeros((ROWS, BLOCK), A)
    greatest, total, taint = zeros - float("inf"), zeros, zeros
    for start in range(0, length, BLOCK):
        value = tl.load(logits + (start + i) * step, start + i < length, -float("inf")).to(A)
        greatest = tl.where(value > greatest, value, greatest)
    greatest = tl.max(greatest, 1)[:, None]
    for start in range(0, length, BLOCK):
        value = tl.load(logits + (start + i) * step, start + i < length, 0).to(A)
        total += tl.where(start + i < length, tl.exp(value - greatest), 0.0)
        taint += 0 * value
    return greatest, tl.sum(total, 1)[:, None], tl.sum(taint, 1)[:, None]


@triton.jit
def vertices_at(i, logits, step, length, terms, before, A: tl.constexpr):
    """Vertices `i` of rows, and the sums of exponentials up to them, which were `before`."""
    greatest, total, taint = terms
    inside = (i > 0) & (i <= length)
    part = tl.exp(tl.load(logits + (i - 1).to(tl.int64) * step, inside, 0).to(A) - greatest)
    part = tl.where(inside, part, 0.0)
    inner = tl.clamp(divide(before + tl.cumsum(part, 1), total), 0.0, 1.0)
    return taint + tl.where(i == 0, 0.0, tl.where(i == length, 1.0, inner)), before + tl.sum(part, 1)[:, None]


@triton.jit
def vertices_kernel(
    logits, strides, out, length, rows, A: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row, i = (
        (tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None],
        tl.arange(0, BLOCK)[None, :],
    )
    logits, out = logits + tl.minimum(row, rows - 1) * strides[0], out + row * (length + 1)
    terms = softmax_terms(logits, strides[1], length, A, ROWS, BLOCK)
    before = tl.zeros((ROWS, 1), A)
    for start in range(0, length + 1, BLOCK):
        value, before = vertices_at(start + i, logits, strides[1], length, terms, before, A)
        tl.store(out + start + i, value.to(out.dtype.element_ty), (row < rows) & (start + i <= length))


@triton.jit
def vertices_backward_kernel(
    logits, strides, out, length, rows, grad, grad_strides, A: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, i = (
        (tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None],
        tl.arange(0, BLOCK)[None, :],
    )
    inside, out = row < rows, out + row * length
    row = tl.minimum(row, rows - 1)
    logits, grad = logits + row * strides[0], grad + row * grad_strides[0]
    greatest, total, _ = softmax_terms(logits, strides[1], length, A, ROWS, BLOCK)
    mean, blocks = tl.zeros((ROWS, 1), A), tl.cdiv(length, BLOCK)
    for second in tl.static_range(2):
        after, products = tl.zeros((ROWS, 1), A), tl.zeros((ROWS, 1), A)
        for block in range(blocks):
            j = (blocks - 1 - block) * BLOCK + i.to(tl.int64)
            g = tl.load(grad + (j + 1) * grad_strides[1], j + 1 < length, 0).to(
                A
            )  # the ends stay where they are
            p = tl.exp(tl.load(logits + j * strides[1], j < length, 0).to(A) - greatest)
            p, later = divide(p, total), after + tl.cumsum(g, 1, reverse=True)
            after += tl.sum(g, 1)[:, None]
            if second:
                tl.store(out + j, (p * (later - mean)).to(out.dtype.element_ty), inside & (j < length))
            products += tl.sum(tl.where(j < length, p * later, 0.0), 1)[:, None]
        mean += products


def interval_vertices(logits: Tensor) -> Tensor:
    out = logits.new_empty(*logits.shape[:-1], logits.shape[-1] + 1)
    return _by_rows(vertices_kernel, out, logits)


def interval_vertices_backward(grad: Tensor, logits: Tensor) -> Tensor:
    return _by_rows(vertices_backward_kernel, logits.new_empty(logits.shape), logits, grad)


def _by_rows(kernel: triton.JITFunction, out: Tensor, *inputs: Tensor) -> Tensor:
    if out.numel():
        logits, *others = (t.reshape(-1, t.shape[-1]) for t in inputs)
        rows, length = logits.shape
        block = min(HELD, triton.next_power_of_2(length + 1))
        together = max(1, min(HELD // block, triton.next_power_of_2(rows)))
        arguments = [logits, logits.stride(), out, length, rows]
        for t in others:
            arguments += [t, t.stride()]
        constants = {"A": arithmetic(logits)[1], "ROWS": together, "BLOCK": block, "enable_fp_fusion": False}
        with torch.cuda.device_of(logits):
            kernel[(triton.cdiv(rows, together),)](*arguments, **constants)
    return out


def arithmetic(*tensors: Tensor) -> tuple[torch.dtype, tl.dtype]:
    double = any(t.dtype == torch.float64 for t in tensors)
    return (torch.float64, tl.float64) if double else (torch.float32, tl.float32)
