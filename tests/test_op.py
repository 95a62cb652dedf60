"""The tools of `pyops.testing` see what they are there to see, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from memory import Guarded, guarded_allocations

import pyops
from pyops import testing

LUT = pyops.identity_lut(5)
IMAGE = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def sevens():
    def lut3d(image, lut, vertices, tetrahedral):
        return torch.full_like(image, 7)

    testing.register_backend("sevens", lambda: {"lut3d": lut3d})
    yield "sevens"
    del testing._providers["sevens"]


def test_backend_replaces_only_kernels_and_only_inside(sevens):
    assert sevens in testing.backends()
    leaf = IMAGE.clone().requires_grad_()
    with testing.backend(sevens):
        out = pyops.lut3d(leaf, LUT)
        assert bool((out == 7).all())
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert bool((torch.vmap(lambda image: pyops.lut3d(image, LUT))(IMAGE[None]) == 7).all())
        assert pyops.lut3d(IMAGE.to("meta"), LUT.to("meta")).shape == IMAGE.shape
    torch.testing.assert_close(grad, torch.ones_like(grad), rtol=0, atol=1e-5)
    torch.testing.assert_close(pyops.lut3d(IMAGE, LUT), IMAGE)


def test_backend_ends_with_an_error_inside(sevens):
    with pytest.raises(KeyError), testing.backend(sevens):
        raise KeyError
    torch.testing.assert_close(pyops.lut3d(IMAGE, LUT), IMAGE)


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match=r"backend must be one of .*'native'.*got 'cuda'"),
        testing.backend("cuda"),
    ):
        pass


def test_self_check_passes_and_sees_a_wrong_kernel(sevens):
    checks = testing.self_check()
    assert all(check.ok for check in checks) and {check.op for check in checks} >= {"lut3d"}
    with testing.backend(sevens):
        failed = [check for check in testing.self_check() if not check.ok and check.device == "cpu"]
    assert [check.op for check in failed] == ["lut3d", "relation_aware_modulation"]  # whose layers call it
    assert failed[0].max_error > 5


def test_forward_close():
    exact = torch.rand(1000, dtype=torch.float64)
    plain = exact.float()
    testing.assert_forward_close(plain, exact, plain)
    for wrong in (plain + 1e-6, plain.half().float(), plain.double(), plain.where(plain < 0.9, torch.nan)):
        with pytest.raises(AssertionError):
            testing.assert_forward_close(wrong, exact, plain)


def test_grad_close():
    exact = torch.randn(1000, dtype=torch.float64)
    good = exact.float()
    testing.assert_grad_close(good, exact)
    one_off, biased, nan = good.clone(), good + 1e-6, good.clone()
    one_off[5] += 1e-3
    nan[5] = torch.nan
    for wrong in (one_off, biased, nan, good * 1.00001, -good, good.roll(1)):
        with pytest.raises(AssertionError):
            testing.assert_grad_close(wrong, exact)


def test_boundary_band():
    exact, band = torch.zeros(1000), torch.zeros(1000, dtype=torch.bool)
    band[:300] = True
    few, outside, many, one_sided = (exact.clone() for _ in range(4))
    few[:8] = torch.tensor([1.0, -1] * 4)
    outside[500] = 1
    many[:200] = torch.tensor([1.0, -1] * 100)
    one_sided[:100] = 1
    testing.assert_close_with_boundary_band(few, exact, band, atol=1e-6)
    for wrong, words in ((outside, "away from any"), (many, "flips at"), (one_sided, "same way")):
        with pytest.raises(AssertionError, match=words):
            testing.assert_close_with_boundary_band(wrong, exact, band, atol=1e-6, max_share=0.15)


def test_guards_see_a_write_outside_and_memory_never_written():
    guarded = Guarded(0x3C)
    with guarded_allocations(guarded, "cpu"):
        out = pyops.lut3d(IMAGE, LUT)
        fresh = torch.empty(4, dtype=torch.uint8)
    guarded.check()
    torch.testing.assert_close(out, IMAGE)
    assert len(guarded.buffers) >= 2 and set(fresh.tolist()) == {0x3C}
    out.as_strided((1,), (1,), out.storage_offset() + out.numel()).zero_()
    with pytest.raises(AssertionError, match="outside"):
        guarded.check()
    assert torch.empty(4).untyped_storage().nbytes() == 16
