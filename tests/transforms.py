"""What the contract demands of operators under PyTorch's transforms: compiled, exported, mapped, autocast."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from closeness import random_like, tensors
from memory import relayout
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pyops import testing
from pyops.testing import OpCase, gradients


def composed(case: OpCase) -> bool:
    """Whether the function consists of PyTorch's operators, so that there is no kernel to replace."""
    return case.function.__name__ not in testing._operators()


class Recorder(TorchDispatchMode):
    """Notes the calls of pyops operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pyops":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


class Transforms:
    """The part of `contract.Contract` that looks at the operator rather than at its kernels."""

    def test_opcheck(self, case, layout, device, request):
        if composed(case):
            pytest.skip("no operator of ours")
        dtype = torch.float32
        inputs = {k: relayout(v, layout) for k, v in case.inputs(case.tiny, dtype, device).items()}
        leaves = {name: inputs[name].detach().requires_grad_() for name in case.differentiable}
        with Recorder() as recorder:
            result = case.function(**{**inputs, **leaves})
            if leaves:
                result.sum().backward()
        assert len(recorder.calls) >= 1 + bool(leaves), "forward and backward"
        kind = (case.function, case.differentiable)
        for op, args in recorder.calls:
            floats = [
                a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor) else a for a in args
            ]
            utils = ["test_schema", "test_faketensor"]
            if layout == "contiguous" and self.backend == "native":  # slow, and not of the kernel
                utils.append("test_autograd_registration")
                # Of a backward operator this traces the second derivative, which takes longest of all.
                first = next(c for c in self.cases if (c.function, c.differentiable) == kind) is case
                if first or op is recorder.calls[0][0] or request.config.getoption("--slow"):
                    utils.append("test_aot_dispatch_dynamic")
            torch.library.opcheck(op, floats, test_utils=utils)

    def test_compile(self, case, device):
        """One graph, without breaks, for sizes that differ."""
        torch._dynamo.reset()
        compiled = torch.compile(case.function, fullgraph=True, dynamic=True, backend=case.compiler)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed, shape in enumerate(case.small):
                inputs = case.inputs(shape, torch.float32, device, seed)
                upstream = random_like(case.function(**inputs))
                expected, expected_grads = gradients(case.function, inputs, case.differentiable, upstream)
                result, grads = gradients(compiled, inputs, case.differentiable, upstream)
                assert_close(result, expected, rtol=0, atol=1e-6)
                for name in grads:
                    assert_close(grads[name], expected_grads[name], rtol=1e-5, atol=1e-5)

    def test_export(self, case, device):
        """Exported, saved, loaded and run on another size."""

        class Module(torch.nn.Module):
            def forward(self, given):
                return case.function(**given, **others)

        inputs, second = (case.inputs(shape, torch.float32, device, i) for i, shape in enumerate(case.small))
        others = {name: value for name, value in inputs.items() if not isinstance(value, Tensor)}
        sizes = {
            name: {i: torch.export.Dim.AUTO for i in range(t.dim())} for name, t in tensors(inputs).items()
        }
        exported = torch.export.export(Module(), (tensors(inputs),), dynamic_shapes=(sizes,))
        buffer = io.BytesIO()
        torch.export.save(exported, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        for given in (inputs, second):
            assert_close(loaded(tensors(given)), case.function(**given), rtol=0, atol=0)

    def test_vmap(self, case, device):
        """vmap, gradients through it included, against a loop; with every choice of what is mapped."""
        given = [case.inputs(case.tiny, torch.float32, device, seed) for seed in range(3)]
        names = list(tensors(given[0]))
        for mapped in [set(names), *({name} for name in names)]:
            # Where nothing is mapped the first draw serves all; every second mapped axis is the last one.
            dims = [(-1 if i % 2 else 0) if name in mapped else None for i, name in enumerate(names)]
            rows = [{n: (g if n in mapped else given[0])[n] for n in given[0]} for g in given]
            stacked = dict(given[0])
            for name, dim in zip(names, dims, strict=True):
                if dim is not None:
                    stacked[name] = torch.stack([row[name] for row in rows], dim)

            def together(stacked=stacked, dims=dims, **leaves):
                values = {**stacked, **leaves}

                def function(*mapped_values):
                    return case.function(**{**values, **dict(zip(names, mapped_values, strict=True))})

                return torch.vmap(function, tuple(dims))(*(values[name] for name in names))

            upstream = random_like(torch.stack([case.function(**row) for row in rows]))
            wanted = case.differentiable
            leaves = {name: stacked[name] for name in wanted}
            result, grads = gradients(together, leaves, wanted, upstream)
            loop = [gradients(case.function, row, wanted, up) for row, up in zip(rows, upstream, strict=True)]
            assert_close(result, torch.stack([value for value, _ in loop]), rtol=1e-5, atol=1e-5)
            for name in wanted:
                parts = [grad[name] for _, grad in loop]
                dim = dims[names.index(name)]
                expected = sum(parts) if dim is None else torch.stack(parts, dim)
                assert_close(grads[name], expected, rtol=1e-4, atol=1e-4)

    def test_batched_gradients(self, case, device):
        """The whole Jacobian in one vmapped call of the backward operator, for each choice of gradients."""
        inputs = case.inputs(case.tiny, torch.float32, device)
        for names in [case.differentiable, *([name] for name in case.differentiable)]:
            leaves = {name: inputs[name].detach().requires_grad_() for name in names}
            result = case.function(**{**inputs, **leaves})
            upstream = torch.randn(4, *result.shape, device=device)
            batched = torch.autograd.grad(
                result, list(leaves.values()), upstream, is_grads_batched=True, retain_graph=True
            )
            rows = [
                torch.autograd.grad(result, list(leaves.values()), u, retain_graph=True) for u in upstream
            ]
            for together, one_by_one in zip(batched, zip(*rows, strict=True), strict=True):
                assert_close(together, torch.stack(one_by_one), rtol=1e-5, atol=1e-5)

    def test_function_transforms(self, case, device, request):
        """torch.func: jacrev, and vmap over grad."""
        inputs = self.interior(case, torch.float32, device)
        with Recorder() as recorder:
            case.function(**inputs)
        if recorder.calls:
            reason = "torch.library.register_autograd does not serve torch.func.grad"
            request.applymarker(pytest.mark.xfail(raises=RuntimeError, strict=True, reason=reason))
        for name in case.differentiable:
            ours, theirs = (
                torch.func.jacrev(lambda value, f=f, name=name: f(**{**inputs, name: value}))(inputs[name])
                for f in (case.function, case.reference)
            )
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

            def loss(value, name=name):
                return case.function(**{**inputs, name: value}).square().sum()

            twice = torch.stack([inputs[name], inputs[name]])
            per_sample, alone = torch.vmap(torch.func.grad(loss))(twice), torch.func.grad(loss)(inputs[name])
            assert_close(per_sample, torch.stack([alone, alone]), rtol=1e-5, atol=1e-5)

    def test_autocast(self, case, device):
        """Autocast changes neither the dtype nor the values."""
        inputs = case.inputs(case.small[0], torch.float32, device)
        expected = case.function(**inputs)
        with torch.autocast(device, torch.bfloat16):
            result = case.function(**inputs)
        assert_close(result, expected, rtol=0, atol=0)
