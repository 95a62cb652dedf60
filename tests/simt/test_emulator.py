"""The emulator against kernels whose results, or faults, are known."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from . import build

SOURCE = Path(__file__).with_name("selftest.cu")
INVALID_VALUE, INVALID_CONFIGURATION = 1, 9


@pytest.fixture(scope="module", params=["assembly", "ucontext"])
def kernels(request):
    """The compiled selftest.cu, with each of the two ways to switch stacks."""
    flags = ["-DSIMT_UCONTEXT"] if request.param == "ucontext" else []
    library = ctypes.CDLL(str(build.build_library([SOURCE], flags)))
    library.last_message.restype = ctypes.c_char_p
    return library


@pytest.fixture(params=range(5))
def seeded(kernels, request):
    """The kernels under several orders of threads."""
    kernels.pyops_simt_set_seed(request.param)
    return kernels


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def fault(kernels, status: int) -> str:
    assert status == -1, f"expected an exception, got status {status}"
    return kernels.last_message().decode()


def test_sum(seeded):
    x = np.random.default_rng(0).random(1001, dtype=np.float32)
    total = np.zeros(1, np.float32)
    assert seeded.run_sum(pointer(x), x.size, pointer(total)) == 0
    np.testing.assert_allclose(total[0], x.sum(dtype=np.float64), rtol=1e-5)


def test_softmax(seeded):
    x = np.random.default_rng(0).standard_normal((5, 301)).astype(np.float32)
    y = np.zeros_like(x)
    assert seeded.run_softmax(pointer(x), pointer(y), *x.shape) == 0
    expected = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, expected / expected.sum(1, keepdims=True), rtol=1e-5)


def test_ballot_compaction(seeded):
    x = np.random.default_rng(0).permutation(np.arange(-150, 150, dtype=np.int32))
    out, count = np.zeros_like(x), np.zeros(1, np.int32)
    assert seeded.run_compact(pointer(x), x.size, pointer(out), pointer(count)) == 0
    assert count[0] == 149
    assert sorted(out[:149]) == list(range(1, 150))


def test_match_any_histogram(seeded):
    keys = np.random.default_rng(0).integers(0, 7, 203, dtype=np.int32)
    bins = np.zeros(7, np.int32)
    assert seeded.run_histogram(pointer(keys), keys.size, pointer(bins)) == 0
    np.testing.assert_array_equal(bins, np.bincount(keys, minlength=7))


def test_carry_between_atomics(seeded):
    x = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint32)
    low_high = np.zeros(2, np.uint32)
    assert seeded.run_carry_sum(pointer(x), x.size, pointer(low_high)) == 0
    assert int(low_high[0]) + (int(low_high[1]) << 32) == int(x.sum(dtype=np.uint64))


def test_warp_functions(seeded):
    out = np.zeros((16, 32), np.int32)
    assert seeded.run_warp_functions(pointer(out)) == 0
    lanes = range(32)
    expected = [
        [i // 8 * 8 + (i + 3) % 8 for i in lanes],
        [i - 3 if i % 16 >= 3 else i for i in lanes],
        [i + 3 if i % 16 < 13 else i for i in lanes],
        [i ^ 5 for i in lanes],
        [i ^ 8 if i & 8 else i for i in lanes],
        [-1 if i < 20 else -2 for i in lanes],
        *([value] * 32 for value in (496, -31, 0, -1, 1, 0)),
        [sum(1 << j for j in range(32) if j % 3) - 2**32 if i % 3 else 0 for i in lanes],
        *([value] * 32 for value in (9, 1, 0)),
    ]
    np.testing.assert_array_equal(out, expected)


def test_three_dimensions(seeded):
    out = np.zeros((24, 30), np.int32)
    assert seeded.run_number_3d(pointer(out)) == 0
    np.testing.assert_array_equal(out, np.arange(24)[:, None] * 1000 + np.arange(30))


def test_nobody_waits_for_returned_threads(seeded):
    out = np.zeros(64, np.int32)
    assert seeded.run_early_exit(pointer(out)) == 0
    np.testing.assert_array_equal(out[::2], np.arange(62, -1, -2) ^ 2)


def test_blocks_come_in_random_order_and_threads_interleave_at_atomics(kernels):
    first_blocks = set()
    for seed in range(5):
        kernels.pyops_simt_set_seed(seed)
        counter, out = np.zeros(1, np.int32), np.zeros((4, 32, 2), np.int32)
        assert kernels.run_tickets(pointer(counter), pointer(out)) == 0
        np.testing.assert_array_equal(np.sort(out, axis=None), np.arange(256))
        first_blocks.add(int(out[:, 0, 0].argmin()))
        waited = out[..., 1] - out[..., 0]
        assert (waited == 1).any()
        assert (waited > 1).any()
    assert len(first_blocks) > 1


def test_many_blocks(kernels):
    x = np.arange(100_001, dtype=np.float32)
    y = np.zeros_like(x)
    assert kernels.run_scale(pointer(x), pointer(y), x.size) == 0
    np.testing.assert_array_equal(y, 2 * x)


def test_functions_of_one_thread(kernels):
    for function, result in (("round_to_int", ctypes.c_int), ("round_to_long", ctypes.c_longlong)):
        getattr(kernels, function).argtypes, getattr(kernels, function).restype = [ctypes.c_float], result
    kernels.saturate.argtypes, kernels.saturate.restype = [ctypes.c_float], ctypes.c_float
    values = [2.5, 3.5, -2.5, 0.6, 1e30, -1e30, float("nan")]
    assert [kernels.round_to_int(v) for v in values] == [2, 4, -2, 1, 2**31 - 1, -(2**31), 0]
    assert [kernels.round_to_long(v) for v in values] == [2, 4, -2, 1, 2**63 - 1, -(2**63), -(2**63)]
    assert [kernels.saturate(v) for v in (-1, 0.25, 3, float("nan"))] == [0, 0.25, 1, 0]
    kernels.funnel.restype = ctypes.c_uint
    assert kernels.funnel(True, 0x80000001, 0x12345678, 36) == 0x23456788
    assert kernels.funnel(False, 0x80000001, 0x12345678, 36) == 0x88000000


def test_order_of_threads_reveals_a_missing_barrier(kernels):
    x = np.arange(64, dtype=np.int32)

    def results(barrier):
        for seed in range(5):
            kernels.pyops_simt_set_seed(seed)
            y = np.zeros_like(x)
            assert kernels.run_reverse(pointer(x), pointer(y), barrier) == 0
            yield y.tobytes()

    right = x[::-1].tobytes()
    assert set(results(True)) == {right}
    wrong = list(results(False))
    assert right not in wrong
    assert len(set(wrong)) == 5, "each seed has its own order"
    assert wrong == list(results(False)), "the same seed repeats its order"


def test_unwritten_shared_memory_is_nan_in_every_block(kernels):
    fixed, dynamic = np.zeros(4, np.float32), np.zeros(4, np.float32)
    assert kernels.run_read_unwritten(pointer(fixed), pointer(dynamic)) == 0
    assert np.isnan(fixed).all()
    assert np.isnan(dynamic).all()


@pytest.mark.parametrize("index", [-1, 10, 200])
def test_write_outside_dynamic_shared_memory(kernels, index):
    assert "outside its 40 bytes of dynamic shared memory" in fault(kernels, kernels.run_write_dynamic(index))
    assert kernels.run_write_dynamic(9) == 0


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (0, ["divergent barrier", "selftest.cu:"]),
        (1, ["deadlock", "16 threads wait for __syncthreads at", "16 threads wait for the lanes of"]),
        (2, ["deadlock"]),
        (3, ["a lane that is not in the mask", "selftest.cu:"]),
        (4, ["thrown in a kernel"]),
    ],
    ids=["two barriers", "barrier and warp", "two warp functions", "outside mask", "exception"],
)
def test_fault_in_a_kernel_is_reported_and_the_next_launch_runs(kernels, kind, texts):
    message = fault(kernels, kernels.run_diverge(kind))
    for text in texts:
        assert text in message
    test_many_blocks(kernels)


def test_launches_that_cuda_refuses(kernels):
    assert kernels.run_empty(1, 49152, 0) == 0
    assert kernels.run_empty(1, 49153, 0) == INVALID_VALUE, "more than 48 KB needs an opt-in"
    assert kernels.run_empty(1, 60000, 232449) == INVALID_VALUE, "nobody may have more than the limit"
    assert kernels.run_empty(1, 60000, 60000) == 0
    kernels.pyops_simt_set_shared_limit(50000)
    assert kernels.run_empty(1, 60000, 0) == INVALID_VALUE
    kernels.pyops_simt_set_shared_limit(232448)
    assert kernels.run_empty(1, 60000, 0) == 0
    assert kernels.run_empty(1025, 64, 0) == INVALID_CONFIGURATION
    assert kernels.run_empty(0, 64, 0) == INVALID_CONFIGURATION


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("run_write_static(9)", None),
        ("run_write_dynamic(9)", None),
        ("run_diverge(1)", None),
        ("run_write_static(10)", "selftest.cu"),
        ("run_write_dynamic(10)", "use-after-poison"),
    ],
)
def test_under_address_sanitizer(call, report):
    preload = build.sanitizer_preload()
    if not preload:
        pytest.skip("the compiler has no AddressSanitizer")
    library = build.build_library([SOURCE], sanitize=True)
    # Twice, because a fault must leave nothing behind that looks like an error in the next launch.
    script = f"import ctypes; k = ctypes.CDLL({str(library)!r}); print(k.{call}, k.{call})"
    environment = {**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if report is None:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode != 0
        assert report in result.stderr
