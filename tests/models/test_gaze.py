"""Gaze by geodesic projection: the sphere and its alignment, the regressor, the losses, and the example."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyops.models import (
    GeodesicProjection,
    IsometricPropagator,
    SphereAlignment,
    SphereOrientedLoss,
    angles,
    angular_error,
    directions,
    fit_sphere,
    isomap_embedding,
    sphere_error,
)
from pyops.models.gaze_loss import laid_over
from sklearn.base import clone
from torch.testing import assert_close

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def one_thread():
    """What is small here waits for a second thread, on busy cores, longer than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gazes(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    widest = torch.tensor([[60.0], [40.0]], dtype=dtype).deg2rad()
    return directions(*((torch.rand(2, count, generator=generator, dtype=dtype) * 2 - 1) * widest))


def rotation(seed: int) -> torch.Tensor:
    q = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).Q
    return q * torch.det(q)


# ---- angles and spheres ----------------------------------------------------------------------------------------------


def test_angles_and_directions_are_inverse():
    yaw, pitch = torch.tensor([0.0, 1.2, -0.7, 3.0]), torch.tensor([0.0, -0.4, 1.5, 0.1])
    unit = directions(yaw, pitch)
    assert_close(unit.norm(dim=1), torch.ones(4))
    assert_close(angles(7 * unit), (yaw, pitch))
    assert_close(directions(torch.tensor(0.0), torch.tensor(0.0)), torch.tensor([0.0, 0, 1]))


def test_angular_error_is_exact_where_vectors_agree_and_has_gradients_elsewhere():
    z = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    turned = directions(
        *torch.tensor([[0.0, 1e-9, math.pi / 2, math.pi], [0.0, 0, 0, 0]], dtype=torch.float64)
    )
    expected = torch.tensor([0.0, 1e-9, math.pi / 2, math.pi], dtype=torch.float64)
    assert_close(angular_error(turned, z.expand(4, 3)), expected, rtol=1e-12, atol=1e-15)
    one, other = gazes(5).requires_grad_(), gazes(5, 1).requires_grad_()
    assert torch.autograd.gradcheck(angular_error, (one, other))


def test_sphere_through_points():
    unit = gazes(50)
    sphere = fit_sphere(2.5 * unit + torch.tensor([4.0, -7, 100]))
    assert_close(sphere.center, torch.tensor([4.0, -7, 100], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert_close(sphere.radius, torch.tensor(2.5, dtype=torch.float64))
    assert float(sphere_error(unit)) < 1e-9
    sticking_out = unit * torch.where(torch.arange(50) % 2 == 0, 1.1, 0.9)[:, None]
    origin = type(sphere)(torch.zeros(3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    assert_close(sphere_error(sticking_out, origin), torch.tensor(0.1, dtype=torch.float64))


# ---- alignment -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", (1.0, -1.0), ids=("outside", "inside"))
@pytest.mark.parametrize("seed", range(3))
def test_alignment_recovers_what_was_moved(seed, side):
    gaze = gazes(300)
    mirror = torch.tensor([side, 1, 1], dtype=torch.float64)
    embedded = 1.7 * (gaze * mirror) @ rotation(seed) + torch.tensor([5.0, 1, -3], dtype=torch.float64)
    alignment = SphereAlignment().double().fit(embedded, gaze)
    assert float(angular_error(alignment(embedded), gaze).max().rad2deg()) < 0.05
    assert_close(alignment.inverse(gaze), embedded, rtol=0, atol=3e-3)
    assert sum(p.numel() for p in alignment.parameters()) == 10
    assert_close(alignment.rotation @ alignment.rotation.mT, torch.eye(3, dtype=torch.float64))


def test_alignment_scales_angles():
    yaw, pitch = angles(gazes(300))
    embedded = directions(yaw / 1.4 + 0.2, pitch / 0.8 - 0.1)
    alignment = SphereAlignment().double().fit(embedded, directions(yaw, pitch))
    assert float(angular_error(alignment(embedded), directions(yaw, pitch)).max().rad2deg()) < 0.2


@pytest.mark.parametrize("places, gaze", (((5, 3), (4, 3)), ((5, 2), (5, 2)), ((3, 3), (3, 3)), ((3,), (3,))))
def test_alignment_refuses_other_shapes(places, gaze):
    with pytest.raises(ValueError, match=r"must be \[N, 3\] of one shape, N at least 4"):
        SphereAlignment().fit(torch.rand(places), torch.rand(gaze))


@pytest.mark.parametrize(
    "row, message",
    (
        ([0.0, 0, 0], r"gaze must be directions, got \[0.0, 0.0, 0.0\] in row 4"),
        ([0.0, math.nan, 1], "gaze must be directions, .* in row 4"),
    ),
    ids=("none", "nan"),
)
def test_alignment_refuses_what_is_no_direction(row, message):
    gaze = gazes(9)
    gaze[4] = torch.tensor(row)
    with pytest.raises(ValueError, match=message):
        SphereAlignment().fit(gazes(9), gaze)
    with pytest.raises(ValueError, match=message.replace("gaze", "y")):
        GeodesicProjection(3).fit(gazes(9), gaze)


def test_alignment_refuses_places_without_a_sphere():
    gaze = gazes(9)
    with pytest.raises(ValueError, match="embedding must have different places"):
        SphereAlignment().fit(gaze[:1].expand(9, 3), gaze)
    with pytest.raises(ValueError, match="embedding must be finite"):
        SphereAlignment().fit(gaze / 0, gaze)


def test_noisy_features_are_aligned_with_a_sphere_and_no_plane():
    """A center far off would make the error a little less, and scales of any size."""
    torch.manual_seed(1)
    gaze = gazes(160, 1)
    embedded = isomap_embedding(torch.cat([gaze, 0.2 * torch.randn(160, 5, dtype=gaze.dtype)], 1), 16, 3)
    alignment = SphereAlignment().double().fit(embedded, gaze)
    with torch.no_grad():
        assert 0.2 < float(alignment.scale.abs().min()) and float(alignment.scale.abs().max()) < 5


def test_alignment_stops_where_no_small_change_is_better():
    """Nuisances leave an error; that of the fit is the least nearby."""
    gaze = gazes(80)
    embedded = 2 * gaze + 0.05 * torch.randn(
        80, 3, generator=torch.Generator().manual_seed(0), dtype=gaze.dtype
    )
    alignment = SphereAlignment().double().fit(embedded, gaze)
    with torch.no_grad():
        least = angular_error(alignment(embedded), gaze).mean()
        for parameter in alignment.parameters():
            for i in range(len(parameter)):
                for step in (-0.01, 0.01):
                    parameter[i] += step
                    assert angular_error(alignment(embedded), gaze).mean() > least - 1e-5
                    parameter[i] -= step


# ---- projection ------------------------------------------------------------------------------------------------------


def lifted(gaze: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A smooth lift to 128 features that keeps angles as lengths, with two nuisances."""
    waves = torch.linalg.qr(
        torch.randn(64, 5, generator=torch.Generator().manual_seed(9), dtype=gaze.dtype)
    ).Q
    nuisance = torch.randn(len(gaze), 2, generator=torch.Generator().manual_seed(seed), dtype=gaze.dtype) / 30
    phase = 8 * torch.cat([gaze, nuisance], 1) @ waves.mT
    return torch.cat([phase.cos(), phase.sin()], 1) / 8


@pytest.mark.parametrize("joint", (False, True), ids=("placed", "together"))
def test_gaze_of_unseen_features(joint):
    gaze, unseen = gazes(600), gazes(100, 1)
    model = GeodesicProjection(60, joint=joint).fit(lifted(gaze), gaze)
    distances, between = model.isomap_.dist_matrix_, angular_error(gaze[:, None], gaze[None])
    assert float(torch.corrcoef(torch.stack([distances.flatten(), between.flatten()]))[0, 1]) > 0.99
    assert -model.score(lifted(unseen, 2), unseen) < 1  # degree
    predicted = model.predict(lifted(unseen, 2))
    assert_close(predicted.norm(dim=1), torch.ones(100, dtype=torch.float64))
    heavy = (torch.arange(100) == 7).double()
    expected = angular_error(predicted, unseen)[7].rad2deg()
    assert -model.score(lifted(unseen, 2), unseen, heavy) == pytest.approx(float(expected))


def test_projection_takes_arrays_and_is_copied():
    gaze = gazes(200, dtype=torch.float32)
    model = GeodesicProjection(20).fit(lifted(gaze).numpy(), gaze.numpy())
    predicted = model.predict(lifted(gaze).numpy())
    assert isinstance(predicted, np.ndarray) and predicted.dtype == np.float32
    tensors = GeodesicProjection(20).fit(lifted(gaze), gaze).predict(lifted(gaze))
    np.testing.assert_allclose(predicted, tensors.numpy(), atol=1e-6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.predict(lifted(gaze).numpy()), predicted)
    assert clone(model).get_params() == model.get_params()


@pytest.mark.parametrize(
    "y, message", ((None, "y must be .* None"), (gazes(8), r"as many rows as X, 9, got shape \[8, 3\]"))
)
def test_projection_refuses_other_gaze(y, message):
    with pytest.raises(ValueError, match=message):
        GeodesicProjection(3).fit(gazes(9), y)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_motion_that_lays_points_over_others():
    points, target = gazes(40), gazes(40) @ rotation(1) * torch.tensor([-1.0, 1, 1], dtype=torch.float64) + 4
    assert_close(laid_over(points, target), target)
    assert_close(laid_over(points, target[:10], points[:10]), target)


def test_propagator_learns_an_embedding_and_is_frozen():
    gaze = gazes(400, dtype=torch.float32)
    propagator = IsometricPropagator(128, 32)
    before = float((propagator(lifted(gaze)) - gaze).abs().mean())
    propagator.fit(lifted(gaze), gaze, epochs=30, batch=64, rate=3e-3)
    assert float((propagator(lifted(gaze)) - gaze).abs().mean()) < before / 8
    assert not any(p.requires_grad for p in propagator.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_training_through_isomap_makes_a_sphere_and_no_worse_one_than_the_propagator(seed):
    torch.manual_seed(seed)
    gaze = gazes(160, seed, torch.float32)
    # A sphere made thick by what is not gaze.
    features = torch.cat([gaze, 0.2 * torch.randn(160, 5)], 1) @ torch.linalg.qr(torch.randn(32, 32)).Q[:8]
    places = isomap_embedding(features, 16, 3)
    alignment = SphereAlignment().fit(places, gaze)
    through = {
        "propagator": (IsometricPropagator(32, 64).fit(features, places, batch=32, rate=3e-3), False),
        "isomap": (lambda f: isomap_embedding(f, 16, 3), True),
        "landmarks": (lambda f: isomap_embedding(f, 16, 3, landmarks=torch.arange(0, 160, 4)), True),
    }
    errors = {"before": float(sphere_error(places))}
    for name, (embed, free) in through.items():
        loss, lift = SphereOrientedLoss(alignment, embed, free=free), torch.eye(32).requires_grad_()
        optimizer = torch.optim.Adam([lift], 3e-3)
        for _ in range(50):
            optimizer.zero_grad()
            loss(features @ lift, gaze).backward()
            optimizer.step()
        with torch.no_grad():
            errors[name] = float(sphere_error(isomap_embedding(features @ lift, 16, 3)))
    assert max(errors["isomap"], errors["landmarks"]) < errors["before"] / 1.5, errors
    assert max(errors["isomap"], errors["landmarks"]) <= errors["propagator"], errors


def test_example_runs_from_end_to_end(monkeypatch, tmp_path, capsys):
    for package in ("matplotlib", "rich"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = pytest.importorskip("geodesic_gaze")
    sizes = "--samples 200 --neighbors 40 --domains 1 --steps 3 --digits 300"
    monkeypatch.setattr(sys, "argv", ["geodesic_gaze.py", *sizes.split(), "--out", str(tmp_path)])
    example.main()
    for name in ("map", "angles", "digits"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    for words in ("geodesic", "ridge", "correlation 0.9", "propagator", "64 landmarks", "scikit-learn's"):
        assert words in printed
