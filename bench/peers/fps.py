"""Other ways to sample the farthest points."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.fps import Fps

PEERS = Peers()


def loop(points: Tensor, samples: int) -> Tensor:
    """As in the PyTorch code of PointNet++: the nearest sample of all points, and its maximum, again and again."""
    batch = torch.arange(points.shape[0], device=points.device)
    nearest = points.new_full(points.shape[:2], torch.inf, dtype=torch.float32)
    last = torch.zeros_like(batch)
    chosen = []
    wide = points.float()
    for _ in range(samples):
        chosen.append(last)
        squares = (wide - wide[batch, last][:, None]).square().sum(-1)
        nearest = torch.minimum(nearest, squares)
        last = nearest.argmax(1)
    return torch.stack(chosen, 1)


@PEERS.peer("torch loop", stock=True)
def stock(case: Fps, x: Inputs):
    return lambda: loop(x["points"], case.samples)


@PEERS.peer("torch-quickfps", needs="torch_quickfps", when=lambda case: case.dtype == torch.float32)
def quickfps(case: Fps, x: Inputs):
    import torch_quickfps

    return lambda: torch_quickfps.sample_idx(x["points"], case.samples, start_idx=0)


@PEERS.peer("torch-quickfps, h=3", needs="torch_quickfps", when=lambda case: case.dtype == torch.float32)
def quickfps_shallow(case: Fps, x: Inputs):
    import torch_quickfps

    height = min(3, case.points.bit_length() - 1) or None
    return lambda: torch_quickfps.sample_idx(x["points"], case.samples, height, 0)


@PEERS.peer(
    "torch-quickfps, no buckets",
    needs="torch_quickfps",
    when=lambda case: case.dtype == torch.float32 and not case.overhead,
)
def quickfps_plain(case: Fps, x: Inputs):
    import torch_quickfps

    return lambda: torch_quickfps.sample_idx_baseline(x["points"], case.samples, start_idx=0)


@PEERS.peer("torch-fps", needs="torch_fps", when=lambda case: case.dtype == torch.float32)
def torch_fps(case: Fps, x: Inputs):
    import torch_fps

    points = x["points"]
    mask = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    start = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)

    def sample() -> Tensor:
        return torch_fps.farthest_point_sampling(
            points, mask, case.samples, start_idx=start, random_start=False, validate=False
        )

    return sample
