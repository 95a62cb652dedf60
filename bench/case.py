"""What an operator's benchmark declares: cases, and peers that do the same work.

`bench/ops/<op>.py` offers `CASES` (a sequence of `Case`), `bench/peers/<op>.py` offers `PEERS`.
Inputs are a plain dict of tensors; a contestant is a zero-argument callable built from them.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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
    # Whether autograd records: everything else runs in inference_mode.
    backward: bool = field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        """Short and stable: the key that `compare` joins on."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """One line for a reader of the report."""
        raise NotImplementedError

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


@dataclass(frozen=True)
class Peer:
    name: str
    build: Callable[[Any, Inputs], Contestant | Callable[[], Any]]
    needs: str | None
    devices: Sequence[str]
    when: Callable[[Any], bool]
    slow_start: bool
    stock: bool  # what a user of plain PyTorch writes: its ratio is always shown

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
        stock: bool = False,
    ) -> Callable[[Callable], Callable]:
        """Register `build(case, inputs)`; it imports its library inside, so listing costs nothing."""

        def register(build: Callable) -> Callable:
            self._peers.append(Peer(name, build, needs, devices, when, slow_start, stock))
            return build

        return register

    def of(self, case: Case, device: torch.device) -> Iterator[Peer]:
        return (p for p in self._peers if device.type in p.devices and p.when(case))


@dataclass(frozen=True)
class Op:
    name: str
    cases: Sequence[Case]
    peers: Peers


def load_ops(names: Sequence[str] | None = None) -> list[Op]:
    """The operators of `bench/ops`, all of them or those named."""
    known = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module("bench.ops").__path__))
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"--op: expected one of {', '.join(known)}, got {', '.join(unknown)}")
    return [
        Op(
            name,
            importlib.import_module(f"bench.ops.{name}").CASES,
            importlib.import_module(f"bench.peers.{name}").PEERS,
        )
        for name in names or known
    ]
