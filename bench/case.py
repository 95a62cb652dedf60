"""What the benchmark of an operator or a model declares: cases, and peers that do the same work.

`bench/ops/<op>.py` and `bench/models/<system>.py` offer `CASES` (a sequence of `Case`), `bench/peers/<name>.py`
offers `PEERS`. Inputs are a plain dict of tensors; a contestant is a zero-argument callable built from them.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .environment import benchmarks, require_known

if TYPE_CHECKING:
    from .limits import Bound, Chip

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the reference.

    A share of at most `flips` of the elements may exceed `limit`, and none may exceed `ceiling`: a tie in
    rounding moves an integer by one level, and a derivative jumps at a cell edge, where a float32
    coordinate can fall on the other side. `of_peak` makes the error relative to the largest value.
    """

    limit: float
    flips: float = 0.0
    ceiling: float = math.inf
    of_peak: bool = False


SIZES = {(2160, 3840): "4K", (1080, 1920): "1080p", (1, 1): "1 pixel"}


def size_name(shape: tuple[int, int]) -> str:
    """What people call an image of (height, width)."""
    return SIZES.get(shape, "{1}x{0}".format(*shape))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@dataclass(frozen=True)
class Contestant:
    """One way to do a case's work.

    `call` is what the clock sees. `view` turns its result into tensors like the reference's, and
    `before` restores inputs that the call overwrote: both run outside the clock.
    `graph` says whether the call may be captured in a CUDA graph.
    """

    call: Callable[[], Any]
    view: Callable[[Any], Sequence[Tensor]] = as_tensors
    before: Callable[[], Any] | None = None
    graph: bool = True


@dataclass(frozen=True)
class Case:
    """One workload. Subclasses add their parameters and answer the questions below."""

    quick: bool = field(default=False, kw_only=True)  # part of `run --quick`
    headline: bool = field(default=False, kw_only=True)  # shown in the README table

    # A call so small that only its overhead is left: timed by the host's clock, also on a GPU.
    overhead: bool = field(default=False, kw_only=True)
    # What one caller waits for, launches included: by the host's clock until the result is there.
    latency: bool = field(default=False, kw_only=True)
    # Whether autograd records: everything else runs in inference_mode.
    backward: bool = field(default=False, kw_only=True)
    devices: tuple[str, ...] = field(default=("cpu", "cuda"), kw_only=True)
    seconds: float = field(default=12.0, kw_only=True)  # of turns, unless `run --seconds` says otherwise
    goal: str = field(default="", kw_only=True)  # on an NVIDIA H200, in words

    arithmetic: ClassVar[str] = "fma"  # of what kind its FLOPs are: see `limits.Chip.flops`

    @property
    def words(self) -> list[str]:
        """What tells this case from the others, the most important first."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """One line for a reader of the report."""
        return ", ".join([*self.words, *self._timing_words]).replace(" x,", " x")

    @property
    def name(self) -> str:
        """Short and stable: the key that `compare` joins on."""
        text = "-".join([*self.words, *self._timing_words]).lower()
        for old, new in (("forward + backward", "backward"), (",", ""), ("=", ""), (" ", "_")):
            text = text.replace(old, new)
        return text

    @property
    def _timing_words(self) -> list[str]:
        return [
            *(["forward + backward"] if self.backward else []),
            *(["call overhead"] if self.overhead else []),
            *(["one call at a time"] if self.latency else []),
        ]

    @property
    def by_host(self) -> bool:
        """Timed by the host's clock on every device, so that bytes per second would say nothing."""
        return self.overhead or self.latency

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        raise NotImplementedError

    def reference(self, inputs: Inputs) -> list[Tensor]:
        """The right answer, in float64 where that is possible."""
        raise NotImplementedError

    def tolerances(self) -> list[Tolerance]:
        """One for each tensor of `reference`."""
        raise NotImplementedError

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        """Our contestants by name; the first, "pyops", is what a user's call runs."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Compulsory memory traffic: every input read once, every output written once."""
        raise NotImplementedError

    @property
    def flops(self) -> int:
        raise NotImplementedError

    @property
    def least_flops(self) -> int:
        """Of any method: fewer where `flops` counts what a clever one leaves out."""
        return self.flops

    @property
    def launches(self) -> int:
        """Kernels, one after the other, about."""
        return 3 if self.backward else 1

    def bound(self, chip: Chip) -> Bound | None:
        """What holds the work up on a GPU beside compulsory bytes and arithmetic, where that is known."""
        return None


@dataclass(frozen=True)
class Peer:
    name: str
    build: Callable[[Any, Inputs], Contestant | Callable[[], Any]]
    needs: str | None
    devices: Sequence[str]
    when: Callable[[Any], bool]
    slow_start: bool
    cpu_headlines_only: bool
    stock: bool  # what a user of plain PyTorch writes: its ratio is always shown
    part: bool  # does but a part of the work, with which ours is compared: no rival

    def missing(self, quick: bool) -> str | None:
        """Why this peer does not run, or None."""
        if quick and self.slow_start:
            return "left out of a quick run"
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None

    def contestant(self, case: Case, inputs: Inputs) -> Contestant:
        built = self.build(case, inputs)
        return built if isinstance(built, Contestant) else Contestant(built)


class Peers:
    """The peers of one operator, filled by the decorator `@PEERS.peer("name")`."""

    def __init__(self) -> None:
        self._peers: list[Peer] = []

    def peer(
        self,
        name: str,
        *,
        needs: str | None = None,
        devices: Sequence[str] = ("cpu", "cuda"),
        when: Callable[[Any], bool] = lambda case: True,
        slow_start: bool = False,
        cpu_headlines_only: bool = False,
        stock: bool = False,
        part: bool = False,
    ) -> Callable[[Callable], Callable]:
        """Register `build(case, inputs)`; it imports its library inside, so listing costs nothing.

        A peer with `slow_start` is left out of a quick run; with `cpu_headlines_only` it runs on a CPU in headline
        cases alone, since there the start takes longer than all the rest. One that does only `part` of the work inside
        the clock, and the rest in `view`, has a ratio that is no claim.
        """

        def register(build: Callable) -> Callable:
            made = Peer(name, build, needs, devices, when, slow_start, cpu_headlines_only, stock, part)
            self._peers.append(made)
            return build

        return register

    def of(self, case: Case, device: torch.device) -> Iterator[Peer]:
        for p in self._peers:
            wanted = case.headline or device.type != "cpu" or not p.cpu_headlines_only
            if wanted and device.type in p.devices and p.when(case):
                yield p


def forward_backward(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor
) -> Callable[[], list[Tensor]]:
    """One training step's work: the result of `function(*tensors)`, then the gradient to each of `tensors`."""
    wrt = [t.detach().requires_grad_() for t in tensors]

    def call() -> list[Tensor]:
        out = function(*wrt)
        return [out.detach(), *torch.autograd.grad(out, wrt, grad)]

    return call


@dataclass(frozen=True)
class Op:
    """What is measured under one name: an operator, or a model made of operators."""

    name: str
    kind: str  # "op" or "model"
    cases: Sequence[Case]
    peers: Peers


def load_ops(names: Sequence[str] | None = None) -> list[Op]:
    """The operators of `bench/ops`, then the models of `bench/models`: all of them or those named."""
    known = benchmarks()
    require_known("--op", names)
    return [
        Op(
            name,
            known[name],
            importlib.import_module(f"bench.{known[name]}s.{name}").CASES,
            importlib.import_module(f"bench.peers.{name}").PEERS,
        )
        for name in names or known
    ]
