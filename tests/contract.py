"""The contract that every operator keeps on every backend.

class TestContract(contract.Contract):
    cases = CASES            # OpCases, see pyops.testing
    backend = "native"       # where not native, only the small shapes run
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from memory import LAYOUTS, Guarded, guarded_allocations, relayout
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pyops import testing
from pyops.testing import OpCase, gradients, in_double


def all_cases() -> list[OpCase]:
    """`CASES` of every operator, for the other backends."""
    found = []
    for path in sorted((Path(__file__).parent / "ops").glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"cases_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += getattr(module, "CASES", [])
    return found


def tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def composed(case: OpCase) -> bool:
    """Whether the function consists of PyTorch's operators, so that there is no kernel to replace."""
    return case.function.__name__ not in testing._operators()


PARTS = {"corr1d_pyramid": "pool_pairs"}  # what has kernels of an operator that calls others


def lacks_kernel(case: OpCase, backend: str) -> bool:
    """Whether the backend has nothing of its own to run for the case."""
    if backend == "triton":
        name = PARTS.get(case.function.__name__, case.function.__name__)
        files = (Path(testing.__file__).parent / "triton").glob("*.py")
        return not any(f"\ndef {name}(" in file.read_text() for file in files)
    return backend != "native" and composed(case)


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
            _, plain = gradients(definition, rounded, [name], upstream)
            _, truth = gradients(definition, in_double(rounded), [name], upstream)
            error = (plain[name].double() - truth[name]) * (2 * FINER if double else 1)
            unit *= 4 if double else 1
            shares = (
                error.abs().max() / size.max() / 32,
                error.norm() / size.norm() / 8,
                error.mean().abs() / size.mean() * 4,
            )
            testing.assert_grad_close(
                ours[name], exact[name], rounding=max(unit, *(share.item() for share in shares))
            )


def random_like(result: Tensor) -> Tensor:
    """What comes in as the gradient of a result; integers have none."""
    return torch.randn_like(result) if result.is_floating_point() else torch.zeros_like(result)


OF_GRADIENTS = (
    "test_gradients",
    "test_gradcheck",
    "test_gradient_of_some",
    "test_batched_gradients",
    "test_function_transforms",
)


class Recorder(TorchDispatchMode):
    """Notes the calls of pyops operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pyops":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


class Contract:
    cases: ClassVar[list[OpCase]]
    backend = "native"

    @pytest.fixture(autouse=True)
    def _backend(self):
        with testing.backend(self.backend):
            yield

    def pytest_generate_tests(self, metafunc):
        names = [name for name in ("case", "dtype", "layout") if name in metafunc.fixturenames]
        emulated = self.backend != "native" or metafunc.config.getoption("--device") != "cpu"
        rows = []
        for case in self.cases:
            if lacks_kernel(case, self.backend):
                continue
            if not case.differentiable and metafunc.function.__name__ in OF_GRADIENTS:
                continue
            dtypes = [d for d in case.dtypes if not (emulated and d == torch.float64)]
            for dtype in dtypes if "dtype" in names else (None,):
                for layout in LAYOUTS if "layout" in names else (None,):
                    row = dict(case=case, dtype=dtype, layout=layout)
                    words = (case.name, str(dtype).removeprefix("torch."), layout)
                    rows.append(
                        pytest.param(
                            *(row[n] for n in names), id="-".join(w for w in words if w and w != "None")
                        )
                    )
        if names:
            metafunc.parametrize(names, rows)

    def shapes(self, case: OpCase):
        return case.shapes if self.backend == "native" else case.small

    def interior(self, case: OpCase, dtype: torch.dtype, device: str) -> dict[str, Any]:
        """Small inputs none of which lies on a discontinuity."""
        for seed in range(1000):
            inputs = case.inputs(case.tiny, dtype, device, seed)
            bands = [case.near_discontinuity(inputs, name) for name in case.differentiable]
            if not any(bool(band.any()) for band in bands if band is not None):
                return inputs
        raise AssertionError("no draw of inputs avoids the discontinuities")

    def double_kernels(self, device: str) -> None:
        if self.backend != "native" or device != "cpu":
            pytest.skip("float64 is for CPUs")

    # ---- values --------------------------------------------------------------------------------------

    def test_forward(self, case, dtype, device):
        for seed, shape in enumerate(self.shapes(case)):
            inputs = case.inputs(shape, dtype, device, seed)
            actual = case.function(**inputs)
            if actual.is_floating_point():
                assert_values_close(case.function, case.reference, inputs)
            elif actual.dtype == torch.int64:  # indices, the same as in the same arithmetic
                assert torch.equal(actual, case.reference(**inputs))
            else:
                exact, band = case.reference(**in_double(inputs)), case.near_discontinuity(inputs, None)
                assert actual.dtype == dtype
                testing.assert_close_with_boundary_band(actual, exact, band, atol=0, max_share=0.1)
                assert (actual.double() - exact.double()).abs().amax() <= 1 if actual.numel() else True

    def test_gradients(self, case, dtype, device):
        for seed, shape in enumerate(self.shapes(case)):
            inputs = case.inputs(shape, dtype, device, seed)
            names = [name for name in case.differentiable if inputs[name].is_floating_point()]
            generator = torch.Generator().manual_seed(seed)
            result = case.function(**inputs)
            if not result.is_floating_point():
                pytest.skip("integers have no gradients")
            upstream = torch.randn(result.shape, generator=generator).to(result)
            bands = {name: case.near_discontinuity(inputs, name) for name in names}
            # Each element by itself, with the few that rounding pushes over an edge.
            _, ours = gradients(case.function, inputs, names, upstream)
            _, exact = gradients(case.reference, in_double(inputs), names, upstream)
            for name in names:
                band = bands[name]
                if band is not None and band.shape == exact[name].shape and exact[name].numel():
                    eps = torch.finfo(inputs[name].dtype).eps
                    atol = 64 * eps * exact[name].abs().max().item()
                    testing.assert_close_with_boundary_band(ours[name], exact[name], band, atol=atol)
            # Sums hide such elements, so these get no upstream gradient.
            for band in bands.values():
                if band is not None and band.shape == upstream.shape:
                    upstream = upstream.masked_fill(band, 0)
            assert_gradients_close(case.function, case.reference, inputs, names, upstream)

    @pytest.mark.parametrize("order", (1, 2))
    def test_gradcheck(self, case, order, device):
        self.double_kernels(device)
        inputs = self.interior(case, torch.float64, device)
        leaves = [inputs[name].requires_grad_() for name in case.differentiable]

        def function(*values):
            return case.function(**{**inputs, **dict(zip(case.differentiable, values, strict=True))})

        check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
        many = sum(leaf.numel() for leaf in leaves) > 500  # then one direction stands for all
        assert check(function, leaves, eps=1e-6, atol=1e-6, fast_mode=order == 2 or many)

    def test_gradient_of_some(self, case, device):
        """Each gradient alone is the one that comes with all others, and is asked for alone."""
        inputs = case.inputs(case.small[0], torch.float32, device)
        upstream = random_like(case.function(**inputs))
        _, together = gradients(case.function, inputs, case.differentiable, upstream)
        for name in case.differentiable:
            _, alone = gradients(case.function, inputs, [name], upstream)
            assert_close(alone[name], together[name], rtol=0, atol=0)

    # ---- layouts and memory --------------------------------------------------------------------------

    def test_layouts(self, case, layout, device):
        """Strides change nothing: forward and gradients, inputs and upstream gradient."""
        inputs = case.inputs(case.small[0], torch.float32, device)
        changed = {name: relayout(value, layout) for name, value in inputs.items()}
        upstream = random_like(case.function(**inputs))
        expected, expected_grads = gradients(case.function, inputs, case.differentiable, upstream)
        result, grads = gradients(case.function, changed, case.differentiable, relayout(upstream, layout))
        assert_close(result, expected, rtol=0, atol=1e-6)
        for name in grads:
            assert_close(grads[name], expected_grads[name], rtol=1e-5, atol=1e-5)

    def test_guard_bands(self, case, layout, device):
        """Nothing is written around tensors or into inputs; no result comes from memory never written."""
        inputs = {
            k: relayout(v, layout) for k, v in case.inputs(case.small[0], torch.float32, device).items()
        }
        upstream = random_like(case.function(**inputs))
        runs = []
        for fill in (0xFF, 0x3C):  # a NaN in every dtype, and a small number
            guarded = Guarded(fill)
            copies = {k: guarded.copy(v) for k, v in inputs.items()}
            with guarded_allocations(guarded, device):
                result, grads = gradients(case.function, copies, case.differentiable, guarded.copy(upstream))
            guarded.check()
            for name, tensor in tensors(inputs).items():
                assert torch.equal(copies[name], tensor), f"{name} was written to"
            runs.append([result, *grads.values()])
        for first, second in zip(*runs, strict=True):
            assert torch.equal(first, second), "a result depends on memory that was never written"

    def test_repeatable(self, case, device):
        """Bit by bit the same, run after run; forward also for any number of threads."""
        shape = max(self.shapes(case), key=lambda shape: torch.Size(shape).numel())
        inputs = case.inputs(shape, torch.float32, device)
        upstream = random_like(case.function(**inputs))
        result, grads = gradients(case.function, inputs, case.differentiable, upstream)
        for _ in range(3):
            again, grads_again = gradients(case.function, inputs, case.differentiable, upstream)
            assert torch.equal(result, again)
            assert all(torch.equal(grads[name], grads_again[name]) for name in grads)
        threads, result = torch.get_num_threads(), case.function(**inputs)
        try:
            torch.set_num_threads(3 - min(threads, 2))
            assert torch.equal(result, case.function(**inputs))
        finally:
            torch.set_num_threads(threads)

    @pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
    def test_not_finite(self, case, value, device):
        """A value that is not finite changes only what depends on it, and gives what the definition gives."""
        if case.poison is None:
            pytest.skip("every element depends on every other")
        clean = case.inputs(case.small[0], torch.float32, device)
        inputs, touched = case.poison(clean, value)
        expected, result = case.function(**clean), case.function(**inputs)
        assert torch.equal(result[~touched], expected[~touched])
        plain, exact = case.reference(**inputs), case.reference(**in_double(inputs))
        finite = plain.isfinite()
        assert_close(result[~finite], plain[~finite], rtol=0, atol=0, equal_nan=True)
        testing.assert_forward_close(result[finite], exact[finite], plain[finite])
        upstream = random_like(expected)
        names = case.differentiable
        (_, ours), (_, theirs), (_, before) = (
            gradients(f, given, names, upstream)
            for f, given in ((case.function, inputs), (case.reference, inputs), (case.function, clean))
        )
        for name in names:
            if ours[name].shape == touched.shape:
                assert torch.equal(ours[name][~touched], before[name][~touched])
            if value == value:  # whether infinities add up to one or to NaN is a matter of their order
                finite = theirs[name].isfinite()
                assert torch.equal(ours[name].isfinite(), finite)
                assert_close(ours[name][finite], theirs[name][finite], rtol=1e-4, atol=1e-4)

    # ---- what surrounds a call -----------------------------------------------------------------------

    def test_invalid(self, case, device):
        inputs = case.inputs(case.small[0], torch.float32, device)
        wrong = list(case.invalid(inputs))
        assert wrong, "no wrong calls are known"
        for label, change, error, words in wrong:
            with pytest.raises(error) as caught:
                case.function(**{**inputs, **change})
            missing = [word for word in words if word not in str(caught.value)]
            assert not missing, f"{label}: {missing} not in {str(caught.value)!r}"

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
        if not composed(case):
            reason = "torch.library.register_autograd does not serve torch.func.grad"
            request.applymarker(pytest.mark.xfail(raises=RuntimeError, strict=True, reason=reason))
        inputs = self.interior(case, torch.float32, device)
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
