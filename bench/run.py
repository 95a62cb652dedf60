"""Check every contestant against the reference, time them in turns, write one JSON per operator or model."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import environment, limits
from .case import Case, Contestant, Inputs, Peers, Tolerance, load_ops
from .memory import peak_bytes
from .timing import Stats, copies_for, cuda_sampler, host_sampler, interleave, warm_up

OURS = "pyops"
COPY = "copy"
WARM_UP_S = 0.3
GRACE_S = 10.0  # beyond its share of the time, for the case at hand

Entry = dict[str, Any]


def run(
    op_names: Sequence[str] | None,
    device_name: str,
    *,
    quick: bool = False,
    goals: bool = False,
    out: Path | None = None,
    seconds: float | None = None,
    until: float = math.inf,
) -> int:
    """Exit status: 0, or 1 when one of our own results failed or missed the reference, or time was over (`until`, by
    the clock of `time.monotonic`) before all cases were measured."""
    device = torch.device(device_name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no CUDA device")
        torch.backends.cudnn.allow_tf32 = False  # a float32 result has float32 precision, whoever makes it
    ops = load_ops(op_names)
    stamp = environment.describe(device)
    if device.type == "cpu" and stamp["load"] > 0.3 * stamp["cores"]:
        print(
            f"warning: the machine is not quiet (load {stamp['load']}); ratios hold, times do not", flush=True
        )
    failed = False
    for op in ops:
        result: Entry = {"op": op.name, "kind": op.kind, **stamp, "quick": quick, "cases": {}}
        chosen = [c for c in op.cases if device.type in c.devices and (c.quick or not quick)]
        chosen = [c for c in chosen if c.goal or not goals]
        measured: dict[str, Entry] = {}
        # Headlines first: a run that is cut short has what is shown first.
        for place, case in enumerate(sorted(chosen, key=lambda c: not c.headline)):
            if time.monotonic() > until:
                print(f"\n{op.name}: out of time, {len(chosen) - place} cases not measured", flush=True)
                failed = True
                break
            print(f"\n{op.name}: {case.title}", flush=True)
            try:
                entry = run_case(case, op.peers, device, seconds or case.seconds, quick)
            except Exception as error:  # out of memory for the reference, say: the other cases remain
                print(f"  FAILED: {first_line(error)}", flush=True)
                failed = True
                if broken(device):
                    print("  the GPU has lost its context: nothing more in this process", flush=True)
                    return 1
                continue
            failed |= any(c["ours"] and not c.get("match") for c in entry["contestants"].values())
            print_case(entry)
            measured[case.name] = entry
            result["cases"] = {c.name: measured[c.name] for c in chosen if c.name in measured}
            if out is not None:
                save(result, out)  # after every case: an interrupted run keeps what it has
    return int(failed)


def broken(device: torch.device) -> bool:
    """Whether a kernel has left the process without a working GPU, so that all that follows would fail, too."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def run_apart(op_names: Sequence[str] | None, device_name: str, *, minutes: float, **options: Any) -> int:
    """`run` for every operator in a process of its own, forked when all is imported but no GPU is in use: one that
    crashes costs only itself, and none takes more than its share of the time that is left."""
    ops = load_ops(op_names)
    end, failed = time.monotonic() + 60 * minutes, False
    for done, op in enumerate(ops):
        left = (end - time.monotonic()) / (len(ops) - done)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = run([op.name], device_name, until=time.monotonic() + left, **options)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        failed |= _status(child, left + GRACE_S, op.name) != 0
    return int(failed)


def _status(child: int, limit_s: float, name: str) -> int:
    """Exit status of a process, which is ended after `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                print(f"\n{name}: ended by signal {-code}", flush=True)
            return code
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(f"\n{name}: out of time in the middle of a case", flush=True)
    return 1


def save(result: Entry, out: Path) -> Path:
    path = out / result["slug"] / f"{result['op']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1) + "\n")
    new.replace(path)  # at once: a run may be killed while it writes
    return path


def run_case(case: Case, peers: Peers, device: torch.device, seconds: float, quick: bool = False) -> Entry:
    """Everything measured on one case. An entry of a contestant has numbers, or `skipped`, or `error`."""
    inputs = case.inputs(device)
    expected = case.reference(inputs)
    copies = [inputs]
    if not case.by_host:
        copies += [_clone(inputs) for _ in range(copies_for(case.bytes, device) - 1)]

    entries: dict[str, Entry] = {}
    samplers: dict[str, Callable[[], float]] = {}

    def enter(name: str, build: Callable[[Inputs], Contestant], entry: Entry) -> None:
        entries[name] = entry
        try:
            rivals = [build(x) for x in copies]
            entry |= check(rivals[0].view(rivals[0].call()), expected, case.tolerances())
            if not case.latency:  # a graph's memory was taken when it was captured
                entry["peak_bytes"] = peak_bytes(rivals[0].call, device)
            estimate = warm_up(rivals[0], device, WARM_UP_S)
            if device.type == "cuda" and not case.by_host:
                samplers[name], entry["method"] = checked(*cuda_sampler(rivals))
            else:
                samplers[name] = host_sampler(rivals[0], device, estimate, wait=case.latency)
                entry["method"] = "host clock"
        except Exception as error:  # one broken contestant must not cost the others their run
            entry["error"] = first_line(error)

    with torch.inference_mode(not case.backward):
        for name, build in case.ours(device).items():
            enter(name, build, {"ours": True})
        for peer in peers.of(case, device):
            entry: Entry = {"ours": False, "stock": peer.stock, "part": peer.part}
            if reason := peer.missing(quick):
                entries[peer.name] = entry | {"skipped": reason}
            else:
                enter(peer.name, partial(peer.contestant, case), entry)
        if not case.by_host:
            samplers[COPY] = _copy_sampler(case.bytes, len(copies), device)
        stats = interleave(samplers, seconds) if samplers else {}
    torch.compiler.reset()  # else the shapes of many cases add up to dynamo's recompile limit
    samplers.clear()  # they hold the graphs, and with them the memory of every contestant
    if device.type == "cuda":
        torch.cuda.empty_cache()

    for name, entry in entries.items():
        if name in stats:
            entry |= numbers(stats[name], stats.get(OURS), stats.get(COPY), 0 if case.by_host else case.bytes)
            if entry["ours"] or not (entry["match"] and entries[OURS].get("match")):
                entry["speedup"] = None
    return {
        "title": case.title,
        "bytes": case.bytes,
        "flops": case.flops,
        "headline": case.headline,
        "overhead": case.overhead,
        "by_host": case.by_host,
        "copy_ms": stats[COPY].median * 1e3 if COPY in stats else None,
        "limits": limits.entry(case, environment.slug(device)),
        "contestants": entries,
    }


def check(outputs: Sequence[Tensor], expected: Sequence[Tensor], tolerances: Sequence[Tolerance]) -> Entry:
    """Whether all outputs agree with the reference. Of the one nearest to its limit: the largest error, and
    the share of elements beyond the limit (allowed flips, which do not count as error, or a mismatch)."""
    if len(outputs) != len(expected):
        return {"match": False, "detail": f"{len(outputs)} outputs, not {len(expected)}"}
    worst: Entry = {"match": True, "max_error": 0.0, "beyond": 0.0}
    nearest = -1.0
    for out, true, tolerance in zip(outputs, expected, tolerances, strict=True):
        if out.shape != true.shape:
            return {"match": False, "detail": f"shape {list(out.shape)}, not {list(true.shape)}"}
        wide = true.double()
        error = (out.to(true.device).double() - wide).abs_()
        if not error.isfinite().all():
            return {"match": False, "detail": "not finite"}
        if tolerance.of_peak:
            error /= wide.abs().max()
        beyond = error > tolerance.limit
        share = beyond.double().mean().item()
        match = share <= tolerance.flips and error.max().item() <= tolerance.ceiling
        largest = (error.masked_fill_(beyond, 0) if match else error).max().item()
        if (not match, largest / tolerance.limit) > (not worst["match"], nearest):
            worst, nearest = (
                {"match": match, "max_error": largest, "beyond": share},
                largest / tolerance.limit,
            )
    return worst


def verdict(entry: Mapping[str, Any]) -> str:
    """The Match column: "yes (1.2e-07)", "yes (0, 0.003 flips)", "NO (0.5)"."""
    error = entry.get("detail") or f"{entry['max_error']:.2g}"
    flips = f", {entry['beyond']:.2g} flips" if entry["match"] and entry["beyond"] else ""
    return f"{'yes' if entry['match'] else 'NO'} ({error}{flips})"


def numbers(stats: Stats, ours: Stats | None, copy: Stats | None, case_bytes: int) -> Entry:
    """Times in milliseconds. `speedup`: how many times our median fits into this contestant's."""
    return {
        "median_ms": stats.median * 1e3,
        "p20_ms": stats.p20 * 1e3,
        "p80_ms": stats.p80 * 1e3,
        "min_ms": stats.min * 1e3,
        "samples": stats.samples,
        "gb_s": case_bytes / stats.median * 1e-9 if case_bytes else None,
        "of_copy": copy.median / stats.median if copy else None,
        "speedup": stats.median / ours.median if ours else None,
    }


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def print_case(entry: Mapping[str, Any]) -> None:
    unit, factor = ("us", 1e3) if entry["overhead"] else ("ms", 1.0)
    heads = "".join(f"{head:>10}" for head in ("median", "p20", "p80", "min"))
    print(f"  {unit + ' per call':38}{heads}{'GB/s':>8}{'of copy':>9}{'peak':>9}{'ratio':>9}  match")
    for name, c in entry["contestants"].items():
        if "median_ms" not in c:
            print(f"  {name:38}  {c.get('error') or c.get('skipped')}")
            continue
        times = "".join(f"{c[key] * factor:10.3f}" for key in ("median_ms", "p20_ms", "p80_ms", "min_ms"))
        rate = f"{c['gb_s']:8.2f}{c['of_copy']:9.0%}" if c["gb_s"] else " " * 17
        peak = f"{c['peak_bytes'] * 1e-6:6.0f} MB" if c.get("peak_bytes") is not None else " " * 9
        speedup = f"{c['speedup']:8.2f}x" if c["speedup"] else " " * 9
        print(f"  {name:38}{times}{rate}{peak}{speedup}  {verdict(c)}")
    sys.stdout.flush()


def checked(sampler: Callable[[], float], method: str) -> tuple[Callable[[], float], str]:
    sampler()  # what fails here would end the turns of all
    return sampler, method


def _clone(inputs: Inputs) -> Inputs:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _copy_sampler(case_bytes: int, copies: int, device: torch.device) -> Callable[[], float]:
    """A copy that moves the case's bytes: half of them read, half written."""
    pairs = [torch.zeros(2, max(1, case_bytes // 2), dtype=torch.uint8, device=device) for _ in range(copies)]
    rivals = [Contestant(partial(target.copy_, source)) for source, target in pairs]
    estimate = warm_up(rivals[0], device, WARM_UP_S)
    return cuda_sampler(rivals)[0] if device.type == "cuda" else host_sampler(rivals[0], device, estimate)
