"""Whether contestants of the benchmarks do the same work, for tests. Makes `bench` importable."""

from __future__ import annotations

import sys
from functools import cache, partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # bench is not installed; last, so that an installed pyops stays first

from bench import case as cases  # noqa: E402
from bench import run  # noqa: E402

CPU = torch.device("cpu")


def matches(case, result, expected) -> bool:
    return run.check(cases.as_tensors(result), expected, case.tolerances())["match"]


def contestants(case, peers, x):
    """Ours and every installed peer that starts at once, by name."""
    yield from ((name, build(x)) for name, build in case.ours(CPU).items())
    for peer in peers.of(case, CPU):
        if peer.missing(quick=True) is None:
            yield peer.name, peer.contestant(case, x)


def disagreeing(case, peers) -> list[str]:
    x = case.inputs(CPU)
    expected = case.reference(x)
    with torch.inference_mode(not case.backward):
        rivals = list(contestants(case, peers, x))
        assert len(rivals) >= 2
        return [name for name, r in rivals if not matches(case, r.view(r.call()), expected)]


def assert_compiled_once(case, build, monkeypatch) -> None:
    """On a GPU a sweep goes over many copies: each compiling anew would end in the limit of recompilations."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    peers = sys.modules[build.__module__]
    if hasattr(getattr(peers, "_compiled", None), "__wrapped__"):  # what is kept is of another backend
        monkeypatch.setattr(peers, "_compiled", cache(peers._compiled.__wrapped__))
    torch.compiler.reset()
    first = case.inputs(CPU)
    copies, results = [first, run._clone(first)], []
    with torch.inference_mode():
        for x in copies:
            with torch._dynamo.config.patch(error_on_recompile=bool(results)):
                results.append(build(case, x)())
    assert torch.equal(*results)
