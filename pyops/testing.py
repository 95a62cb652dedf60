"""Tools to test operators: cases, assertions, other backends, a quick self-check.

An `OpCase` says what an operator's inputs look like and where its definition jumps; one battery of tests
then serves every operator, on every backend. `backend` runs the same public functions on other kernels,
still with CPU tensors.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ._samples import SAMPLES, Inputs

Shape = tuple[int, ...]  # whatever numbers `make_inputs` of a case wants

# ---- cases --------------------------------------------------------------------------------------------


class Invalid(NamedTuple):
    """A wrong call: what differs from a right one, what it raises, and the words the message must hold."""

    label: str
    change: Inputs
    error: type[Exception]
    words: tuple[str, ...]
    by_value: bool = False  # no size tells: a GPU, for which the host would have to wait, need not be asked


@dataclass(frozen=True)
class OpCase:
    """All that the contract battery has to know about one way to call an operator."""

    name: str
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    make_inputs: Callable[[Shape, torch.dtype, torch.device, torch.Generator], Inputs]
    differentiable: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[Shape, ...]  # odd sizes, size one, empty, and one that keeps several threads busy
    small: tuple[Shape, ...]  # two of differing sizes above one, soon done where kernels are interpreted
    tiny: Shape  # one so small that a Jacobian of it is nothing
    near_discontinuity: Callable[[Inputs, str | None], Tensor | None] = lambda inputs, name: None
    """Mask of where the result (name None) or the gradient to `name` may jump by rounding, or None."""
    poison: Callable[[Inputs, float], tuple[Inputs, Tensor]] | None = None
    """Puts a value into one place; returns the inputs and the mask of the result that depends on it."""
    invalid: Callable[[Inputs], Iterable[Invalid]] = field(default=lambda inputs: ())
    capturable: bool = True  # by a CUDA graph: no size depends on values, and the host reads none
    compiler: str = "inductor"  # another backend of torch.compile where this one fails on stock operators

    def inputs(self, shape: Shape, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Inputs:
        return self.make_inputs(shape, dtype, torch.device(device), torch.Generator().manual_seed(seed))

    def __str__(self) -> str:
        return self.name


def in_double(inputs: Inputs) -> Inputs:
    """The same numbers in float64; integers, which have levels of their own, and other arguments stay."""
    floats = {k: v.double() for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return {**inputs, **floats}


def gradients(
    function: Callable[..., Tensor], inputs: Inputs, names: Sequence[str], upstream: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Result of `function` and gradients of `(result * upstream).sum()` to the inputs called `names`."""
    if not names:
        return function(**inputs), {}
    leaves = {name: inputs[name].detach().requires_grad_() for name in names}
    result = function(**{**inputs, **leaves})
    found = torch.autograd.grad(result, list(leaves.values()), upstream.to(result))
    return result.detach(), dict(zip(leaves, found, strict=True))


# ---- assertions ---------------------------------------------------------------------------------------


def assert_forward_close(actual: Tensor, exact: Tensor, plain: Tensor, *, factor: float = 2.0) -> None:
    """Asserts that a result is as good as the plain definition in the same dtype.

    Args:
        actual: the result under test.
        exact: the definition in float64.
        plain: the definition in the dtype of `actual`. The greatest and the mean error of `actual` may be
            `factor` times its errors, plus one unit of rounding of the largest value.
    """
    assert actual.shape == exact.shape, f"shape {list(actual.shape)}, expected {list(exact.shape)}"
    assert actual.dtype == plain.dtype, f"dtype {actual.dtype}, expected {plain.dtype}"
    if actual.numel() == 0:
        return
    value, truth, other = (t.double().nan_to_num(nan=0.0) for t in (actual, exact, plain))
    assert torch.equal(actual.isnan(), exact.isnan()), "NaN elsewhere than in the definition"
    floor = torch.finfo(actual.dtype).eps * max(truth.abs().max().item(), torch.finfo(actual.dtype).tiny)
    error, allowed = (value - truth).abs(), (other - truth).abs()
    for name, reduce, share in (("greatest", torch.max, 1.0), ("mean", torch.mean, 0.25)):
        ours, limit = reduce(error).item(), factor * reduce(allowed).item() + share * floor
        assert ours <= limit, f"{name} error {ours:.3g} is above {limit:.3g}"


def assert_grad_close(actual: Tensor, exact: Tensor, *, rounding: float | None = None) -> None:
    """Asserts that a gradient follows the float64 one: by element, as a whole, in direction, without bias.

    The bounds count units of `rounding`, by default that of the dtype of `actual`; give that of the inputs
    where it is coarser.
    """
    assert actual.shape == exact.shape, f"shape {list(actual.shape)}, expected {list(exact.shape)}"
    if actual.numel() == 0:
        return
    a, e, eps = actual.double().flatten(), exact.double().flatten(), rounding or torch.finfo(actual.dtype).eps
    assert bool(a.isfinite().all()), "a gradient is not finite"
    scale, length, difference = e.abs().max().item(), e.norm().item(), a - e
    if scale == 0:
        assert a.abs().max().item() == 0, "a gradient that is exactly zero is not"
        return
    cosine = (a @ e / (a.norm() * e.norm() + 1e-300)).item()
    checks = {
        "greatest error": (difference.abs().max().item(), 64 * eps * scale),
        "relative L2 error": (difference.norm().item() / length, 16 * eps),
        "1 - cosine": (1 - cosine, 256 * eps * eps + 1e-14),
        "bias": (abs(difference.mean().item()), (64 / math.sqrt(len(e)) + 0.5) * eps * e.abs().mean().item()),
    }
    for name, (found, limit) in checks.items():
        assert found <= limit, f"{name} {found:.3g} is above {limit:.3g}"


def assert_close_with_boundary_band(
    actual: Tensor, exact: Tensor, band: Tensor | None, *, atol: float, max_share: float = 0.01
) -> None:
    """Asserts `actual` within `atol` of `exact`, but for a few elements of `band`.

    Args:
        band: mask of the elements that lie on a discontinuity but for rounding. At most `max_share` of all
            elements may differ there, and not mostly to one side. None: there is no discontinuity.
    """
    assert actual.shape == exact.shape, f"shape {list(actual.shape)}, expected {list(exact.shape)}"
    difference = actual.double() - exact.double()
    off = ~(difference.abs() <= atol)
    if band is not None:
        flips = difference[off & band]
        share = len(flips) / max(actual.numel(), 1)
        assert len(flips) <= max(3, max_share * actual.numel()), f"{share:.2%} flips at discontinuities"
        excess = abs((flips > 0).sum().item() - (flips < 0).sum().item())
        assert excess <= 3 + 4 * math.sqrt(len(flips)), f"{excess} of {len(flips)} flips go the same way"
        off &= ~band
    if bool(off.any()):
        at = off.nonzero()[0].tolist()
        raise AssertionError(
            f"{int(off.sum())} elements differ by more than {atol:.3g} away from any discontinuity, "
            f"first {at}: {actual[tuple(at)].item()!r}, expected {exact[tuple(at)].item()!r}"
        )


# ---- backends -----------------------------------------------------------------------------------------

Kernels = Mapping[str, Callable[..., Any]]  # by operator: {"lut3d": ..., "lut3d_backward": ...}


def _operators() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("pyops::") for name in names if name.startswith("pyops::"))


def _triton_kernels() -> Kernels:
    """The functions of `pyops.triton`, by Triton's interpreter, which must be on when Triton is imported."""
    return {op: _interpreted(kernel) for op, kernel in _triton_functions(interpret=True).items()}


def _triton_functions(interpret: bool) -> Kernels:
    with mock.patch.dict("os.environ", TRITON_INTERPRET="1" if interpret else "0"):
        triton = importlib.import_module("triton")
        if isinstance(triton.language.zeros, triton.JITFunction) == interpret:
            raise ImportError(
                "triton is imported without its interpreter; call pyops.testing.backends() first"
                if interpret
                else "triton is imported with its interpreter, which runs on no GPU"
            )
        package = importlib.import_module("pyops.triton")
        stems = [module.name for module in pkgutil.iter_modules(package.__path__)]
        modules = [importlib.import_module(f"pyops.triton.{stem}") for stem in stems]
    kernels = {op: getattr(m, op) for op in _operators() for m in modules if hasattr(m, op)}
    if not kernels:
        raise ImportError("there are no Triton kernels")
    return kernels


def _interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with mock.patch.dict("os.environ", TRITON_INTERPRET="1"):
            return function(*args)

    return call


_providers: dict[str, Callable[[], Kernels]] = {"native": dict, "triton": _triton_kernels}


def register_backend(name: str, provider: Callable[[], Kernels]) -> None:
    """Adds a backend; `provider` returns its kernels, or raises ImportError where it cannot run."""
    _providers[name] = provider


def backends() -> list[str]:
    """Names of the backends that can run here; "triton" only if nothing has imported Triton before."""
    found = []
    for name, provider in _providers.items():
        try:
            provider()
        except ImportError:
            continue
        found.append(name)
    return found


@contextmanager
def backend(name: str, device: str = "cpu") -> Iterator[None]:
    """Runs pyops on CPU tensors by other kernels: "triton" (interpreted), a registered one, or "native". On CUDA
    tensors (device "cuda") there is "triton", compiled, in place of the native library.

    Only the kernels change: validation, autograd, fake tensors and vmap stay. Not for several threads.

    Example:
        >>> with backend("native"):
        ...     pyops.identity_lut(2).shape
        torch.Size([3, 2, 2, 2])
    """
    if name not in _providers:
        raise ValueError(f"backend must be one of {sorted(_providers)}, got {name!r}")
    if device != "cpu" and name not in ("native", "triton"):
        raise ValueError(f"backend {name!r} is for CPU tensors")
    compiled = name == "triton" and device != "cpu"
    kernels = _triton_functions(interpret=False) if compiled else _providers[name]()
    library = torch.library.Library("pyops", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")
            for op, kernel in kernels.items():
                library.impl(op, kernel, device.upper(), allow_override=True)
        yield
    finally:
        library._destroy()


# ---- self-check ---------------------------------------------------------------------------------------


class Check(NamedTuple):
    op: str
    ok: bool
    max_error: float
    device: str
    problem: str = ""  # what was raised, if anything


def self_check() -> list[Check]:
    """Runs every operator once against its definition, with gradients, on every device, in about a second."""
    import pyops

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    pairs = [(device, op) for device in devices for op in SAMPLES]
    return [_check(getattr(pyops, op), op, SAMPLES[op](), device) for device, op in pairs]


def _results(function: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """What `function` returns, one or several, and the gradients to all tensors and lists of tensors."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, list):
            return [leaf(v) for v in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    found = function(**{name: leaf(value) for name, value in inputs.items()})
    found = [found] if isinstance(found, Tensor) else list(found)
    smooth = [t for t in found if t.requires_grad]
    if not leaves or not smooth:
        return found
    upstream = [torch.linspace(-1, 1, t.numel(), device=t.device).view(t.shape) for t in smooth]
    return [*(t.detach() for t in found), *torch.autograd.grad(smooth, leaves, upstream)]


def _check(function: Callable[..., Tensor], op: str, samples: list[Inputs], device: str) -> Check:
    from . import reference

    error = 0.0
    try:
        for sample in samples:
            inputs = tree_map_only(Tensor, lambda t: t.to(device), sample)
            if "device" in inspect.signature(function).parameters:
                inputs["device"] = device
            pairs = [_results(f, inputs) for f in (function, getattr(reference, op))]
            for ours, theirs in zip(*pairs, strict=True):
                scale = theirs.abs().max().clamp(min=1)
                error = max(error, ((ours - theirs).abs().max() / scale).nan_to_num(nan=math.inf).item())
    except Exception as problem:  # whatever goes wrong here is the finding
        return Check(op, False, math.nan, device, f"{type(problem).__name__}: {problem}")
    return Check(op, error <= 1e-4, error, device)
