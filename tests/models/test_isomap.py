"""Isomap and its landmark form: against scikit-learn, as its estimators, with tensors, and with gradients."""

from __future__ import annotations

import copy
import pickle
import sys

import numpy as np
import pytest
import sklearn.manifold
import torch
from memory import peak_allocated
from pyops.models import Isomap, LandmarkIsomap, isomap_embedding
from sklearn.datasets import load_digits, make_swiss_roll
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.testing import assert_close

import pyops
from pyops import reference


@parametrize_with_checks([Isomap(), LandmarkIsomap(n_landmarks=30)])
def test_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


def roll(n: int, seed: int = 0) -> np.ndarray:
    return make_swiss_roll(n, random_state=seed)[0]


def twins(points: np.ndarray, n_neighbors: int, n_components: int = 2):
    """Ours and scikit-learn's."""
    ours = Isomap(n_neighbors, n_components=n_components)
    theirs = sklearn.manifold.Isomap(n_neighbors=n_neighbors, n_components=n_components)
    return ours.fit(points), theirs.fit(points)


def assert_same_but_for_signs(found: np.ndarray, expected: np.ndarray, share: float = 1e-6) -> None:
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=share * np.abs(expected).max())


def digits(n: int, noise: float) -> np.ndarray:
    points = load_digits().data[:n]
    return points + noise * np.random.default_rng(0).standard_normal(points.shape)


@pytest.mark.parametrize("points", (roll(600), digits(500, 1e-4)), ids=("roll", "digits without ties"))
def test_is_what_scikit_learn_finds(points):
    ours, theirs = twins(points, 10)
    np.testing.assert_allclose(ours.dist_matrix_, theirs.dist_matrix_, rtol=1e-12)
    assert_same_but_for_signs(ours.embedding_, theirs.embedding_)
    new = points[::7] + 0.1
    assert_same_but_for_signs(ours.transform(new), theirs.transform(new))
    assert ours.reconstruction_error() == pytest.approx(theirs.reconstruction_error(), rel=1e-9)


def test_equally_distant_neighbours_are_another_choice_and_change_little():
    ours, theirs = twins(digits(1797, 0), 10)
    for axis in range(2):
        assert abs(np.corrcoef(ours.embedding_[:, axis], theirs.embedding_[:, axis])[0, 1]) > 0.9995


def test_single_precision_is_kept_and_suffices():
    points = roll(500)
    ours, theirs = twins(points.astype(np.float32), 10)
    assert ours.embedding_.dtype == ours.dist_matrix_.dtype == np.float32
    assert_same_but_for_signs(ours.embedding_, theirs.embedding_, 1e-4)
    assert_same_but_for_signs(ours.transform(points[:50]), theirs.embedding_[:50], 1e-4)


def test_parts_are_joined_as_scikit_learn_joins_them():
    points = np.concatenate([roll(50), roll(60, 1) + 1000, roll(40, 2) - 1000])
    with pytest.warns(UserWarning, match="3 connected components"):
        ours, theirs = twins(points, 10)
    np.testing.assert_allclose(ours.dist_matrix_, theirs.dist_matrix_, rtol=1e-10)
    assert_same_but_for_signs(ours.embedding_, theirs.embedding_)
    with pytest.raises(
        ValueError, match=r'falls into 3 .* components: use more neighbors, or disconnected="join"'
    ):
        Isomap(10, disconnected="raise").fit(points)


def test_duplicated_points_are_one_place():
    points = np.repeat(roll(80), 2, axis=0)
    embedding = Isomap(12).fit_transform(points)
    np.testing.assert_allclose(embedding[::2], embedding[1::2], atol=1e-6 * np.abs(embedding).max())


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.int32))
@pytest.mark.parametrize("kind", (Isomap, LandmarkIsomap))
def test_tensors_in_tensors_out(kind, dtype):
    points = torch.from_numpy(roll(120) * 4).to(dtype)
    model = kind(12).fit(points)
    same = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    for result in (model.embedding_, model.dist_matrix_, model.transform(points)):
        assert isinstance(result, torch.Tensor) and result.dtype == same and not result.requires_grad
    arrays = kind(12).fit(points.to(same).numpy())
    np.testing.assert_array_equal(arrays.embedding_, model.embedding_.numpy())
    assert isinstance(arrays.transform(points.to(same).numpy()), np.ndarray)


def test_definition_finds_the_same():
    points = roll(100)
    found = Isomap(8).fit(points)
    plain = Isomap(8, ops=reference).fit(points)
    assert_same_but_for_signs(found.embedding_, plain.embedding_)
    assert copy.deepcopy(plain).ops is reference and pickle.loads(pickle.dumps(plain)).ops is reference


def test_in_a_pipeline_with_names():
    pipeline = make_pipeline(
        StandardScaler(), LandmarkIsomap(8, n_components=3, n_landmarks=40, random_state=1)
    )
    assert pipeline.fit_transform(roll(100)).shape == (100, 3)
    names = list(pipeline.get_feature_names_out())
    assert names == ["landmarkisomap0", "landmarkisomap1", "landmarkisomap2"]


# ---- landmarks -------------------------------------------------------------------------------------------------------


def test_all_points_as_landmarks_are_isomap():
    points = roll(150)
    whole, marked = Isomap(8).fit(points), LandmarkIsomap(8, n_landmarks=999, random_state=0).fit(points)
    np.testing.assert_array_equal(marked.landmarks_, np.arange(150))
    assert_same_but_for_signs(marked.embedding_, whole.embedding_)


def test_landmarks_lie_where_scaling_puts_them_and_the_rest_near_isomap():
    points = roll(2000)
    whole, marked = Isomap(10).fit(points), LandmarkIsomap(10, n_landmarks=200, random_state=3).fit(points)
    assert marked.dist_matrix_.shape == (200, 2000)
    np.testing.assert_allclose(marked.dist_matrix_, whole.dist_matrix_[marked.landmarks_], rtol=1e-12)
    placed = marked._map.place(marked._rows[marked.landmarks_])
    assert_close(placed, marked._map.embedding, rtol=0, atol=1e-6 * float(placed.abs().max()))
    for axis in range(2):
        assert abs(np.corrcoef(marked.embedding_[:, axis], whole.embedding_[:, axis])[0, 1]) > 0.995


def test_landmarks_are_chosen_by_the_random_state():
    points = roll(100)
    one, same, other = (LandmarkIsomap(8, n_landmarks=9, random_state=s).fit(points) for s in (4, 4, 5))
    np.testing.assert_array_equal(one.landmarks_, same.landmarks_)
    assert (one.landmarks_ != other.landmarks_).any()


def test_landmarks_need_no_matrix_of_all_points():
    points = torch.from_numpy(roll(6000)).float()
    used = peak_allocated(lambda: LandmarkIsomap(8, n_landmarks=50, random_state=0).fit(points))
    assert used < 60e6  # the matrix would take 144e6


def test_new_points_are_placed_in_blocks_without_a_matrix(monkeypatch):
    from pyops.models import isomap

    points, new = (torch.from_numpy(roll(n, seed)).float() for n, seed in ((600, 0), (1100, 1)))
    model = Isomap(8).fit(points)
    expected = model.transform(new)
    monkeypatch.setattr(isomap, "_AT_ONCE", 128)
    assert_close(model.transform(new), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert peak_allocated(lambda: model.transform(new)) < 0.5 * len(new) * len(points) * 4
    near = pyops.knn(new[None], points[None], 8)
    through = near.squared_distances[0].sqrt()[..., None] + model.dist_matrix_[near.indices[0]]
    assert_close(expected, model._map.place(through.amin(1)), rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_new_points_may_come_in_any_order():
    points, new = (torch.from_numpy(roll(n, seed)) for n, seed in ((300, 0), (700, 1)))
    for components in (1, 2, 4):
        model = Isomap(8, n_components=components).fit(points)
        found, order = model.transform(new), torch.randperm(700)
        assert_close(model.transform(new[order]), found[order], rtol=0, atol=1e-9 * float(found.abs().max()))


# ---- gradients -------------------------------------------------------------------------------------------------------


def cloud(n: int, seed: int = 0) -> torch.Tensor:
    """A bent sheet in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.rand(2, n, generator=generator, dtype=torch.float64) * torch.tensor([[3.0], [1.0]])
    return torch.stack([u.cos(), u.sin(), v, 0.3 * v * v], 1)


@pytest.mark.parametrize("landmarks", (None, torch.tensor([0, 3, 4, 9, 11, 17])), ids=("all", "landmarks"))
def test_gradients_of_the_whole_chain(landmarks):
    points = cloud(20).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: isomap_embedding(x, 5, 2, landmarks=landmarks), points, eps=1e-7, atol=1e-5
    )


def test_chain_is_the_estimator_and_the_definition():
    points = cloud(60)
    found, plain = (isomap_embedding(points, 9, 2, **options) for options in ({}, {"ops": reference}))
    assert_same_but_for_signs(found.numpy(), Isomap(9).fit_transform(points.numpy()))
    assert_same_but_for_signs(found.numpy(), plain.numpy())


def test_gradients_are_those_of_the_definition_in_single_precision():
    grads = []
    for ops, dtype in ((None, torch.float32), (reference, torch.float64)):
        points = cloud(40).to(dtype).requires_grad_()
        options = {} if ops is None else {"ops": ops}
        embedding = isomap_embedding(points, 9, 2, **options)
        torch.cdist(embedding, embedding[::3]).square().mean().backward()
        grads.append(points.grad.double())
    assert_close(grads[0], grads[1], rtol=0, atol=2e-3 * float(grads[1].abs().max()))


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", (Isomap, LandmarkIsomap))
@pytest.mark.parametrize(
    "options, message",
    (
        ({"n_neighbors": 0}, "n_neighbors must be an integer of at least 1, got 0"),
        ({"n_neighbors": 2.5}, "n_neighbors must be an integer of at least 1, got 2.5"),
        ({"n_neighbors": 30}, "n_neighbors must be less than n_samples = 30, got 30"),
        ({"n_components": 0}, "n_components must be an integer of at least 1, got 0"),
        ({"n_components": 31}, "n_components"),
        ({"disconnected": "ignore"}, 'disconnected must be "join" or "raise"'),
    ),
)
def test_wrong_parameters(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options).fit(roll(30))


def test_wrong_points():
    model = Isomap(3)
    with pytest.raises(NotFittedError):
        model.transform(roll(5))
    points = torch.from_numpy(roll(30))
    for wrong, message in (
        (torch.cat([points, points[:1] * torch.nan]), "X must be finite, row 30 is not"),
        (points[0], r"X must be \[N, D\]"),
        (points[:1], "N >= 2"),
        (points[:0], "N >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(wrong)
    model.fit(points)
    with pytest.raises(ValueError, match="4 features, but Isomap is expecting 3"):
        model.transform(torch.zeros(2, 4))


def test_no_landmarks():
    with pytest.raises(ValueError, match="n_landmarks must be an integer of at least 1, got 0"):
        LandmarkIsomap(3, n_landmarks=0).fit(roll(30))
    with pytest.raises(ValueError, match="n_landmarks must be at least n_components = 2, got 1"):
        LandmarkIsomap(3, n_landmarks=1).fit(roll(30))


@pytest.mark.parametrize("kind", (Isomap, LandmarkIsomap))
def test_more_neighbours_than_are_found(kind):
    with pytest.raises(ValueError, match="n_neighbors must be at most 1023, got 1024"):
        kind(1024).fit(roll(1100))


def test_estimators_say_what_they_need(monkeypatch):
    import pyops.models

    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "pyops.models.isomap")
    with pytest.raises(
        ImportError, match=r"Isomap is an estimator of scikit-learn: pip install pyops\[manifold\]"
    ):
        pyops.models.Isomap  # noqa: B018
    assert "Isomap" in dir(pyops.models)
