"""The contract that every operator keeps on every backend.

class TestContract(contract.Contract):
    cases = CASES            # OpCases, see pyops.testing
    backend = "native"       # where not native, only the small shapes run
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from closeness import assert_gradients_close, assert_values_close, random_like, tensors
from memory import LAYOUTS, Guarded, far_apart, guarded_allocations, relayout
from streams import ON_A_GPU, Streams
from torch import Tensor
from torch.testing import assert_close
from transforms import Transforms, composed

from pyops import testing
from pyops.testing import Invalid, OpCase, gradients, in_double


def all_cases() -> list[OpCase]:
    """`CASES` of every operator, for the other backends."""
    found = []
    for path in sorted((Path(__file__).parent / "ops").glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"cases_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += getattr(module, "CASES", [])
    return found


def case_name(case: OpCase) -> str:
    """With the name of its operators' file in front, where the tests are in another and nothing else tells it."""
    stem = case.make_inputs.__module__.partition("cases_test_")[2]
    return case.name if stem in case.name else f"{stem}-{case.name}"


def by_value(inputs: dict[str, Any], wrong: Invalid) -> bool:
    """Whether all that is wrong with a call are numbers within tensors."""

    def described(value: Any) -> Any:
        return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None

    return wrong.by_value or all(
        described(value) and described(value) == described(inputs.get(name))
        for name, value in wrong.change.items()
    )


PARTS = {"corr1d_pyramid": "pool_pairs"}  # what has kernels of an operator that calls others


def lacks_kernel(case: OpCase, backend: str) -> bool:
    """Whether the backend has nothing of its own to run for the case."""
    if backend == "triton":
        name = PARTS.get(case.function.__name__, case.function.__name__)
        files = (Path(testing.__file__).parent / "triton").glob("*.py")
        return not any(f"\ndef {name}(" in file.read_text() for file in files)
    return backend != "native" and composed(case)


OF_GRADIENTS = (
    "test_gradients",
    "test_gradcheck",
    "test_gradient_of_some",
    "test_batched_gradients",
    "test_function_transforms",
)


class Contract(Transforms, Streams):
    cases: ClassVar[list[OpCase]]
    backend = "native"

    @pytest.fixture(autouse=True)
    def _backend(self, device):
        with testing.backend(self.backend, device):
            yield

    def pytest_generate_tests(self, metafunc):
        names = [name for name in ("case", "dtype", "layout") if name in metafunc.fixturenames]
        emulated = self.backend != "native" or metafunc.config.getoption("--device") != "cpu"
        test, cuda = metafunc.function.__name__, metafunc.config.getoption("--device") == "cuda"
        rows = []
        for case in self.cases:
            if lacks_kernel(case, self.backend):
                continue
            if not case.differentiable and test in OF_GRADIENTS:
                continue
            if test in ON_A_GPU and not (cuda and (case.capturable or test != "test_cuda_graph")):
                continue
            dtypes = [d for d in case.dtypes if not (emulated and d == torch.float64)]
            for dtype in dtypes if "dtype" in names else (None,):
                for layout in LAYOUTS if "layout" in names else (None,):
                    row = dict(case=case, dtype=dtype, layout=layout)
                    words = (case_name(case), str(dtype).removeprefix("torch."), layout)
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

    def test_invalid(self, case, device):
        inputs = case.inputs(case.small[0], torch.float32, device)
        wrong = list(case.invalid(inputs))
        assert wrong, "no wrong calls are known"
        for call in wrong:
            label, change, error, words, _ = call
            if device != "cpu" and by_value(inputs, call):
                # To read them the host would have to wait: only nothing may break.
                with suppress(error):
                    case.function(**{**inputs, **change})
                continue
            with pytest.raises(error) as caught:
                case.function(**{**inputs, **change})
            missing = [word for word in words if word not in str(caught.value)]
            assert not missing, f"{label}: {missing} not in {str(caught.value)!r}"

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

    def test_far_apart(self, case, device):
        """More than 2^31 elements from one row of an input to the next."""
        if self.backend != "native":
            pytest.skip("once is enough")
        inputs = case.inputs(case.small[0], torch.float32, device)
        upstream = random_like(case.function(**inputs))
        expected, expected_grads = gradients(case.function, inputs, case.differentiable, upstream)
        for name in tensors(inputs):
            apart = {**inputs, name: far_apart(inputs[name])}
            result, grads = gradients(case.function, apart, case.differentiable, upstream)
            assert_close(result, expected, rtol=0, atol=1e-6)
            for wanted in grads:
                assert_close(grads[wanted], expected_grads[wanted], rtol=1e-5, atol=1e-5)
        result, grads = gradients(case.function, inputs, case.differentiable, far_apart(upstream))
        for wanted in grads:
            assert_close(grads[wanted], expected_grads[wanted], rtol=1e-5, atol=1e-5)
        del apart  # gigabytes, for which others may be waiting
        torch.cuda.empty_cache()

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
