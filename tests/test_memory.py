"""Memory of large results on the CPU: used again, in every layout, never by two at once, freed on request."""

from __future__ import annotations

import threading

import pytest
import torch
from memory import nothing_kept

import pyops

SIZE = (1, 3, 640, 640)  # 4.7 MiB
LUT = pyops.identity_lut(9)


def result(seed: int = 0, **kwargs):
    return pyops.lut3d(torch.rand(SIZE, generator=torch.Generator().manual_seed(seed)).to(**kwargs), LUT)


def test_memory_is_used_again():
    first = result()
    place = first.data_ptr()
    del first
    assert result().data_ptr() == place


def test_a_view_holds_memory():
    view = result()[0, 1, 5:7]
    kept, place = view.clone(), view.untyped_storage().data_ptr()
    other = result(1)
    assert other.data_ptr() != place
    assert torch.equal(view, kept)


def test_results_do_not_share():
    results = [result(seed) for seed in range(8)]
    assert len({r.data_ptr() for r in results}) == 8
    with nothing_kept():
        assert all(torch.equal(r, result(seed)) for seed, r in enumerate(results))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layouts_are_those_of_torch(memory_format):
    kept = result(memory_format=memory_format)
    with nothing_kept():
        fresh = result(memory_format=memory_format)
    assert kept.stride() == fresh.stride()
    assert torch.equal(kept, fresh)


def test_nothing_is_kept_beyond_the_limit():
    with nothing_kept():
        assert result().untyped_storage().resizable()
    kept = result()
    assert not kept.untyped_storage().resizable()
    with nothing_kept():
        del kept  # freed, not kept


def test_threads_may_free_what_others_made():
    expected = [result(seed).clone() for seed in range(4)]
    failures = []

    def work(seed: int) -> None:
        for _ in range(20):
            if not torch.equal(result(seed), expected[seed]):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_wrong_limit(limit, error):
    with pytest.raises(error, match="limit must"):
        pyops.keep_memory(limit)
