"""A few small calls of every operator, for the self-check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Inputs = dict[str, Any]  # arguments by name


def _lut3d_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 40, 50, generator=generator)
    lut = torch.rand(3, 9, 9, 9, generator=generator)
    return [dict(image=image, lut=lut, interpolation=kind) for kind in ("trilinear", "tetrahedral")]


def _modulation_samples() -> list[Inputs]:
    from pyops import ModulationWeights

    generator = torch.Generator().manual_seed(0)
    shapes = ModulationWeights.shapes().values()
    weights = ModulationWeights(*(torch.rand(shape, generator=generator) / 4 for shape in shapes))
    image, query = (torch.rand(2, c, 40, 50, generator=generator) for c in (3, 8))
    return [dict(image=image, lut=torch.rand(3, 9, 9, 9), query=query, weights=weights)]


def _sampling_samples(logits: int) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 40, 50, generator=generator)
    names = ("x_logits", "y_logits") if logits else ("x", "y")
    x, y = (torch.rand(2, count - logits, generator=generator) * 2.2 - 1.1 for count in (12, 9))
    inputs = {"image": image, names[0]: x, names[1]: y}
    return [inputs, dict(inputs, padding_mode="border", antialias=True)]


def _groupwise_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 2, 12, 9, 40, generator=generator).unbind()
    inputs = dict(left=left, right=right, max_disparity=18, groups=3)
    return [inputs, dict(inputs, normalize=True)]


def _upsample_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 1, 10, 13), (2, 9, 40, 52))
    disparity, weights = (torch.rand(shape, generator=generator) for shape in shapes)
    return [dict(disparity=disparity, weights=weights)]


def _warp_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    image, disparity = (torch.rand(2, c, 40, 50, generator=generator) for c in (3, 1))
    return [dict(image=image, disparity=9 * disparity - 1)]


def _local_correlation_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 12, 9, 40, generator=generator).unbind()
    inputs = dict(first=first, second=second, radius=4)
    return [inputs, dict(inputs, radius=2, dilation=3)]


def _camp_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 20, 25), (2, 10, 20, 25), (4, 3, 3, 3)
    motif, features, kernel = (torch.randn(shape, generator=generator) for shape in shapes)
    return [dict(motif=motif.softmax(1), features=features, kernel=kernel / 4)]


def _corr1d_samples(on_demand: bool) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 2, 12, 9, 40, generator=generator).unbind()
    if not on_demand:
        return [dict(left=left, right=right, levels=3)]
    return [dict(left=left, right=right, x=torch.rand(2, 9, 40, generator=generator) * 44 - 2, radius=4)]


def _lookup_samples(geometry: bool) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(2, 9, 40, generator=generator) * 24 - 2
    pyramid = [torch.randn(2, 9, 40, 40 >> level, generator=generator) for level in range(2)]
    if not geometry:
        return [dict(pyramid=pyramid, x=position, radius=4)]
    volumes = [torch.randn(2, 3, 20 >> level, 9, 40, generator=generator) for level in range(2)]
    return [dict(volumes=volumes, pyramid=pyramid, disparity=position, radius=4)]


def _corr2d_samples(pyramid: bool, lookup: bool) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(2, 2, 9, 13, generator=generator) * 16 - 2
    if not pyramid:
        levels = [torch.randn(2, 9, 13, 9 >> i, 13 >> i, generator=generator) for i in range(2)]
        return [dict(pyramid=levels, coords=coords, radius=4)]
    first, second = torch.randn(2, 2, 12, 9, 13, generator=generator).unbind()
    inputs = dict(first=first, second=second, levels=3)
    return [dict(inputs, coords=coords, radius=4)] if lookup else [inputs]


def _fps_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    inputs = dict(points=torch.rand(2, 1000, 3, generator=generator), m=200)
    return [inputs, dict(inputs, lengths=torch.tensor([900, 100]), start=torch.tensor([5, 7]))]


def _gather_samples(weighted: bool) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(-1, 50, (2, 80, 3), generator=generator)
    inputs = dict(values=torch.randn(2, 50, 9, generator=generator), indices=indices)
    return [dict(inputs, weights=torch.rand(2, 80, 3, generator=generator)) if weighted else inputs]


def _interpolation_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    query, points, values = (torch.rand(2, n, c, generator=generator) for n, c in ((80, 3), (50, 3), (50, 9)))
    return [dict(query=query, points=points, values=values)]


def _point_samples(op: str) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, count, 3, generator=generator) for count in (40, 700))
    if op == "chamfer_distance":
        return [dict(x=x, y=y)]
    inputs = dict(query=x, points=y, k=5)
    return [dict(inputs, radius=0.5)] if op == "ball_query" else [inputs]


def _tpatches_samples(both: bool) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    steps, noise = (torch.randn(2, 5, n, 3, generator=generator) / 9 for n in (100, 20))
    points = torch.randn(2, 1, 100, 3, generator=generator) + steps
    start = torch.randint(100, (2, 20), generator=generator)
    queries = (
        dict(first_indices=start[:, :12], last_indices=start[:, 12:]) if both else dict(query_indices=start)
    )
    inputs = dict(points=points, **queries, k=8, noise=noise / 9)
    return [inputs, dict(inputs, max_radius=0.8)]


def _geodesic_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(60, (400,), generator=generator)
    weights = torch.rand(400, generator=generator)
    degrees = torch.randint(60, (400,), generator=generator).bincount(minlength=60)
    indptr = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
    inputs = dict(graph=[indptr, indices, weights], sources=torch.tensor([0, 7, 7, 30]))
    return [inputs, dict(inputs, sources=None, return_predecessors=True)]


def _minplus_samples(graphs: bool) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(shape, generator=generator) for shape in ((2, 30, 40), (40, 50)))
    return [dict(weights=a[:, :, :30])] if graphs else [dict(a=a, b=b)]


def _reach_samples() -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    lengths, rows = (torch.rand(shape, generator=generator) for shape in ((30, 5), (40, 50)))
    return [dict(lengths=lengths, indices=torch.randint(-1, 40, (30, 5), generator=generator), rows=rows)]


def _mds_samples(product: bool) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(250, 5, generator=generator) * torch.linspace(3, 1, 5)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return [dict(distances=distances, **(dict(vectors=points) if product else dict(n_components=2)))]


SAMPLES: dict[str, Callable[[], list[Inputs]]] = {
    "lut3d": _lut3d_samples,
    "fuse_luts": lambda: [dict(weights=torch.eye(2) + 0.5, basis=torch.rand(2, 3, 5, 5, 5))],
    "identity_lut": lambda: [dict(size=9)],
    "lut_smoothness": lambda: [dict(lut=torch.rand(3, 5, 5, 5))],
    "relation_aware_modulation": _modulation_samples,
    "bidirectional_tpatches": lambda: _tpatches_samples(True),
    "corr1d_pyramid": lambda: _corr1d_samples(False),
    "corr1d_lookup": lambda: _lookup_samples(False),
    "corr1d_lookup_on_demand": lambda: _corr1d_samples(True),
    "corr2d_pyramid": lambda: _corr2d_samples(True, False),
    "corr2d_lookup": lambda: _corr2d_samples(False, True),
    "corr2d_lookup_on_demand": lambda: _corr2d_samples(True, True),
    "extract_tpatches": lambda: _tpatches_samples(False),
    "farthest_point_sample": _fps_samples,
    "gather_points": lambda: _gather_samples(False),
    "blend_points": lambda: _gather_samples(True),
    "geodesic_distances": _geodesic_samples,
    "classical_mds": lambda: _mds_samples(False),
    "double_centered_matmul": lambda: _mds_samples(True),
    "floyd_warshall": lambda: _minplus_samples(True),
    "min_plus_gather": _reach_samples,
    "min_plus_matmul": lambda: _minplus_samples(False),
    "three_interpolate": _interpolation_samples,
    "geometry_lookup": lambda: _lookup_samples(True),
    "groupwise_correlation": _groupwise_samples,
    "local_correlation": _local_correlation_samples,
    "lut_monotonicity": lambda: [dict(lut=torch.rand(3, 5, 5, 5))],
    "interval_vertices": lambda: [dict(logits=torch.linspace(-2, 2, 22).view(2, 11).sin())],
    "context_upsample": _upsample_samples,
    "disparity_warp": _warp_samples,
    "constant_highpass": lambda: [dict(features=torch.linspace(-9, 9, 2400).sin().view(2, 6, 10, 20))],
    "camp_conv": _camp_samples,
    "knn": lambda: _point_samples("knn"),
    "knn_graph": lambda: [dict(x=torch.linspace(0, 99, 600).sin().view(200, 3), k=5)],
    "ball_query": lambda: _point_samples("ball_query"),
    "chamfer_distance": lambda: _point_samples("chamfer_distance"),
    "separable_grid_sample": lambda: _sampling_samples(0),
    "adaptive_grid_sample": lambda: _sampling_samples(1),
    "inverse_vertices": lambda: [dict(vertices=torch.linspace(-1, 1, 9).mul(1.57).sin(), size=30)],
}
