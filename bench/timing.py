"""Clocks for contestants that take turns in one process.

A sampler is a function that runs its contestant a little and returns seconds per call. Samplers take
turns, so that a drifting clock frequency or a noisy neighbour meets all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .case import Contestant

Sampler = Callable[[], float]

SHORTEST_SAMPLE_S = (
    0.2  # of the host clock: calls follow one another for as long, as the frames of a video do
)
PATIENCE_S = 20.0
L2_MULTIPLE = 3
PAUSE_CYCLES = 10_000_000  # about 5 ms, enough for the host to queue a sweep


@dataclass(frozen=True)
class Stats:
    """Seconds per call."""

    median: float
    p20: float
    p80: float
    min: float
    samples: int


def summarize(samples: Sequence[float]) -> Stats:
    t = torch.tensor(samples, dtype=torch.float64)
    p20, median, p80 = torch.quantile(t, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return Stats(median, p20, p80, t.min().item(), len(samples))


def interleave(samplers: Mapping[str, Sampler], seconds: float, min_rounds: int = 5) -> dict[str, Stats]:
    """Let every sampler run once a round until `seconds` have passed, at least `min_rounds` rounds; where these take
    `PATIENCE_S` longer than asked for, three do."""
    taken: dict[str, list[float]] = {name: [] for name in samplers}
    names = list(samplers)
    start = time.perf_counter()
    rounds = 0
    while True:
        spent = time.perf_counter() - start
        if spent >= seconds and (rounds >= min_rounds or (rounds >= 3 and spent >= seconds + PATIENCE_S)):
            break
        # A new first each round: nobody always follows the contestant that empties the caches.
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(samplers[name]())
        rounds += 1
    return {name: summarize(samples) for name, samples in taken.items()}


def warm_up(contestant: Contestant, device: torch.device, seconds: float) -> float:
    """Call for `seconds` (clocks rise and caches fill by time, not by count); return seconds per call."""
    spent = 0.0
    while spent < seconds:
        if contestant.before:
            contestant.before()
        _synchronize(device)
        start = time.perf_counter()
        contestant.call()
        _synchronize(device)
        last = time.perf_counter() - start
        spent += last
    return last


def host_sampler(
    contestant: Contestant, device: torch.device, estimate: float, wait: bool = False
) -> Sampler:
    """Wall time on the host. On a GPU this is the cost of the call itself, not of its kernels, unless each call
    is to `wait` for them."""
    repeat = max(1, round(SHORTEST_SAMPLE_S / max(estimate, 1e-9)))
    call, before = contestant.call, contestant.before
    if wait:

        def call() -> None:
            contestant.call()
            _synchronize(device)

    def sample() -> float:
        _synchronize(device)
        if not before:
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            return (time.perf_counter() - start) / repeat
        spent = 0.0
        for _ in range(repeat):
            before()
            start = time.perf_counter()
            call()
            spent += time.perf_counter() - start
        return spent / repeat

    return sample


def cuda_sampler(contestants: Sequence[Contestant]) -> tuple[Sampler, str]:
    """Event time of one sweep over `contestants`, the same work on rotated inputs, and how it was run.

    One CUDA graph of the whole sweep leaves no launch gaps to measure; what cannot be captured is
    queued behind a pause of the GPU, so that the host is ahead when the first event fires.
    """
    sweep: Callable[[], Any] = lambda: [c.call() for c in contestants]  # noqa: E731
    method = "events"
    if all(c.graph for c in contestants):
        try:
            sweep, method = captured(sweep), "graph"
        except RuntimeError:  # not capturable: time it as it is
            torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> float:
        for c in contestants:
            if c.before:
                c.before()
        torch.cuda.synchronize()
        if method == "events":
            torch.cuda._sleep(PAUSE_CYCLES)
        start.record()
        kept = sweep()
        end.record()
        torch.cuda.synchronize()
        del kept
        return start.elapsed_time(end) * 1e-3 / len(contestants)

    return sample, method


def captured(sweep: Callable[[], Any]) -> Callable[[], Any]:
    """`sweep` as one CUDA graph. A replay returns the tensors of the capture, written anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sweep()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Kept alive together, so that every call writes to cold memory of its own.
        kept = sweep()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def copies_for(case_bytes: int, device: torch.device) -> int:
    """How many copies of the inputs to rotate, so that none is still in the L2 cache when its turn comes."""
    if device.type != "cuda":
        return 1
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return min(64, 1 + L2_MULTIPLE * l2 // max(case_bytes, 1))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
