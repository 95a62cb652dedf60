"""What a GPU allows: the floors of a case by bytes and by arithmetic, and what it is expected to take.

Rates are those of data sheets or follow from them, but for the copy and the pauses, which are leads until they are
measured. Nothing here is a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from .case import Case

LANES, BANKS, COMPARED = 128, 32, 64  # a clock and multiprocessor: float32 operations, words, minima


@dataclass(frozen=True)
class Chip:
    name: str
    copied: float  # bytes a second read and written by a large copy, about nine tenths of the data sheet's
    multiprocessors: int = 132
    clock: float = 1.98e9  # at most; under load it may be lower, and all rates with it
    tensor: float = 989e12  # FLOP/s of dense half-precision products
    l2_bytes: int = 50 << 20
    launch_s: float = 2e-6  # from one kernel of a CUDA graph to the next
    step_s: float = 0.35e-6  # a barrier, and what a block has to agree on before its next step
    far_s: float = 0.6e-6  # until a word comes from device memory

    @property
    def lanes(self) -> float:
        """float32 operations a second, an addition, a product or both at once."""
        return self.multiprocessors * LANES * self.clock

    @property
    def words(self) -> float:
        """Of 4 bytes a second from shared memory or the first-level cache, where no two lanes want the same bank."""
        return self.multiprocessors * BANKS * self.clock

    @property
    def l2(self) -> float:
        """Bytes a second from the second-level cache: 64 a clock would be its port, about 2/5 of it is seen."""
        return 0.4 * 64 * self.multiprocessors * self.clock

    @property
    def port(self) -> float:
        """Of these what one multiprocessor may have, as long as the others ask for little."""
        return 64 * self.clock

    def flops(self, kind: str) -> float:
        """FLOP/s: of products that are added ("fma"); of sums and minima in pairs ("add, min"); of matrices of half
        precision ("tensor"); of operations that stand alone ("single")."""
        return {
            "fma": 2 * self.lanes,
            "single": self.lanes,
            "add, min": 2 * self.multiprocessors * COMPARED * self.clock,
            "tensor": self.tensor,
        }[kind]


CHIPS = {
    "nvidia-h200": Chip("NVIDIA H200", copied=4.2e12),
    "nvidia-h100-80gb-hbm3": Chip("NVIDIA H100 SXM", copied=3.0e12),
}


class Bound(NamedTuple):
    """What holds a case up beside bytes and arithmetic."""

    seconds: float
    why: str


class Limits(NamedTuple):
    by_bytes: float  # seconds
    by_arithmetic: float
    bound: Bound | None
    launches: float  # seconds

    @property
    def floor(self) -> float:
        """No version is faster."""
        return max(self.by_bytes, self.by_arithmetic)

    @property
    def binds(self) -> str:
        if self.launches > max(self.floor, self.bound.seconds if self.bound else 0):
            return "launches"
        if self.bound and self.bound.seconds > self.floor:
            return self.bound.why
        return "bytes" if self.by_bytes >= self.by_arithmetic else "arithmetic"

    @property
    def predicted(self) -> float:
        return max(self.floor, self.bound.seconds if self.bound else 0) + self.launches


def limits(case: Case, chip: Chip) -> Limits:
    return Limits(
        case.bytes / chip.copied,
        case.least_flops / chip.flops(case.arithmetic),
        case.bound(chip),
        case.launches * chip.launch_s,
    )


class _Calls(TorchDispatchMode):
    """Counts calls of operators that write a tensor of their own or change one."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        view = bool(returned) and all(r.alias_info and not r.alias_info.is_write for r in returned)
        self.count += not view and func._schema.name not in (
            "aten::empty",
            "aten::detach",
            "aten::_unsafe_view",
        )
        return func(*args, **(kwargs or {}))


def launches_of(call: Callable[[], Any]) -> int:
    """About how many kernels a model launches: one for each operator that is no view."""
    with _Calls() as calls:
        call()
    return calls.count


def chip_of(slug: str) -> Chip:
    if slug not in CHIPS:
        raise ValueError(f"--device: expected one of {', '.join(CHIPS)}, got {slug}")
    return CHIPS[slug]


def entry(case: Case, slug: str) -> dict[str, object] | None:
    """For the results of a device whose rates are known; None where they are not, or only calls are timed."""
    if slug not in CHIPS or case.overhead:
        return None
    found = limits(case, CHIPS[slug])
    return {
        "floor_ms": found.floor * 1e3,
        "predicted_ms": found.predicted * 1e3,
        "binds": found.binds,
        "goal": case.goal,
    }


def show(op_names: Sequence[str] | None, slug: str, goals: bool = False) -> int:
    from .case import load_ops

    chip = chip_of(slug)
    print(
        f"{chip.name}: {chip.copied * 1e-12:.2g} TB/s copied, {chip.flops('fma') * 1e-12:.3g} TFLOP/s float32,"
        f" {chip.flops('add, min') * 1e-12:.3g} T sums and minima/s. Nothing below was measured."
    )
    heads = ("MB", "GFLOP", "by bytes", "by arithm.", "predicted")
    for op in load_ops(op_names):
        chosen = [c for c in op.cases if "cuda" in c.devices and not c.overhead and (c.goal or not goals)]
        if chosen:
            print(f"\n{op.name}" + " " * (58 - len(op.name)) + "".join(f"{h:>11}" for h in heads) + "  binds")
        for case in chosen:
            found = limits(case, chip)
            times = (found.by_bytes, found.by_arithmetic, found.predicted)
            cells = "".join(f"{duration(t):>11}" for t in times)
            work = f"{case.bytes * 1e-6:11.4g}{case.least_flops * 1e-9:11.3g}"
            goal = f" (goal: {case.goal})" if case.goal else ""
            print(f"  {case.title[:56]:56}{work}{cells}  {found.binds}{goal}")
    return 0


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
