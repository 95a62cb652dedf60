"""Other ways to coordinates from distances."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.mds import Mds

PEERS = Peers()


def centered(distances: Tensor) -> Tensor:
    """The whole matrix."""
    square = distances.square()
    rows = square - square.mean(1, keepdim=True)
    return -0.5 * (rows - rows.mean(0, keepdim=True))


def all_eigenpairs(distances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(centered(distances))
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    return vectors * values.clamp(min=0).sqrt(), values


def _plain(case: Mds) -> bool:
    return not case.product and not case.backward


@PEERS.peer("torch", stock=True)
def stock(case: Mds, x: Inputs):
    if case.product:
        return case.task(lambda distances, vectors: centered(distances) @ vectors, x)
    return case.task(all_eigenpairs, x)


@PEERS.peer("scipy eigh of a few", needs="scipy", devices=("cpu",), when=_plain)
def scipy_eigh(case: Mds, x: Inputs):
    from scipy.linalg import eigh

    def some(distances: Tensor, count: int) -> tuple[Tensor, Tensor]:
        points = distances.shape[0]
        values, vectors = eigh(centered(distances).numpy(), subset_by_index=(points - count, points - 1))
        values, vectors = torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)
        return vectors * values.clamp(min=0).sqrt(), values

    return case.task(some, x)


@PEERS.peer("scikit-learn KernelPCA", needs="sklearn", devices=("cpu",), when=_plain)
def kernel_pca(case: Mds, x: Inputs):
    """As its Isomap ends, with the solver that it chooses."""
    from sklearn.decomposition import KernelPCA

    def fit(distances: Tensor, count: int) -> tuple[Tensor]:
        pca = KernelPCA(n_components=count, kernel="precomputed", eigen_solver="auto")
        return (torch.from_numpy(pca.fit_transform((-0.5 * distances.square()).numpy())).to(distances),)

    return case.task(fit, x)
