"""Unrolls a swiss roll by shortest paths that many processes search together, on one machine or on several.

    torchrun --nproc-per-node 2 examples/isomap_torchrun.py --points 100000
    torchrun --nnodes 4 --rdzv-backend c10d --rdzv-endpoint first:29500 --nproc-per-node 8 examples/isomap_torchrun.py

The second line is for each of four machines with eight GPUs. Every rank makes the same points, finds the neighbours of
its share of them, and searches paths from its share of the landmarks. Rank 0 scales the landmarks, places all points
among them, prints how well places agree with those on the sheet before it was rolled, and draws them. Needs the extra
"examples".
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from pyops.models.geodesic_map import GeodesicMap
from sklearn.datasets import make_swiss_roll
from torch import Tensor

import pyops


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--neighbors", type=int, default=10)
    parser.add_argument("--landmarks", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("roll.png"))
    return parser.parse_args()


def roll(points: int) -> tuple[Tensor, Tensor]:
    """Points of a roll, and where they lie on the sheet: along the spiral, and across it."""
    x, angle = make_swiss_roll(points, random_state=0)
    along = (angle * np.sqrt(1 + angle**2) + np.arcsinh(angle)) / 2
    return torch.from_numpy(x).float(), torch.from_numpy(np.stack([along, x[:, 1]], 1)).float()


def draw(embedding: Tensor, sheet: Tensor, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4))
    axes.scatter(*embedding.T, c=sheet[:, 0], s=1)
    axes.set_aspect("equal")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    options = parse()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    x, sheet = roll(options.points)
    chosen = torch.randperm(options.points, generator=torch.Generator().manual_seed(0))
    landmarks = chosen[: options.landmarks].sort().values.to(device)

    begin = time.perf_counter()
    graph = pyops.distributed.knn_graph(x.to(device), options.neighbors)
    distances = pyops.distributed.geodesic_distances(graph, landmarks, gather=True)
    if dist.get_rank() == 0:
        embedding = GeodesicMap.of(distances[:, landmarks], 2).place(distances.mT).cpu()
        seconds = time.perf_counter() - begin
        agreement = torch.corrcoef(torch.cat([embedding, sheet], 1).T)[:2, 2:].abs().amax(1)
        print(f"{options.points:,} points, {dist.get_world_size()} processes: {seconds:.1f} s")
        print(f"correlation with the sheet: {agreement[0]:.4f} along, {agreement[1]:.4f} across")
        draw(embedding, sheet, options.out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
