"""Teaches TPatchNet the motions of stick figures, and compares it with patches that do not follow the body.

    python examples/train_tpatchnet.py --minutes 8 --out actions

Trains the network on t-patches, then the same one on patches of single frames, with motions of bodies of many sizes
(see action_sequences.py); prints for each how many frames of motions it has not seen it gets right, and which actions
it takes for which. Writes tpatchnet.pt and pictures of t-patches, coloured over time, to --out. Needs the extra
"examples".
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from action_sequences import ACTIONS, sequence
from pyops.models import ActionLoss, TPatchNet
from pyops.models.tpatchnet import Level
from rich.console import Console
from rich.table import Table
from sklearn.metrics import confusion_matrix
from torch import Tensor

import pyops

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS = (Level(32, 8, (16, 32)), Level(16, 6, (64,)), Level(None, 4, (96,)))
NAMES = list(ACTIONS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="of training, for each of the two")
    parser.add_argument("--steps", type=int, default=800, help="at most")
    parser.add_argument("--motions", type=int, default=100, help="of each action to train with")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--rate", type=float, default=4e-3, help="the largest learning rate")
    parser.add_argument("--held-out", type=int, default=20, help="motions of each action to test with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("actions"))
    return parser.parse_args()


def clips(options: argparse.Namespace, seed: int, labels: list[int]) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    clouds = [sequence(rng, NAMES[i], options.frames, options.points) for i in labels]
    return torch.from_numpy(np.stack(clouds)), torch.tensor(labels)[:, None].expand(-1, options.frames)


def turned(points: Tensor) -> Tensor:
    """Bodies that look another way, somewhat larger or smaller."""
    angle, size = 2 * math.pi * torch.rand(len(points)), 1 + 0.1 * torch.randn(len(points))
    c, s, zero = angle.cos(), angle.sin(), torch.zeros(len(points))
    rows = torch.stack([c, -s, zero, s, c, zero, zero, zero, torch.ones(len(points))], -1)
    return points @ (rows.view(-1, 1, 3, 3) * size.view(-1, 1, 1, 1)).mT


def train(options: argparse.Namespace, patches: str, console: Console) -> TPatchNet:
    torch.manual_seed(options.seed)
    model = TPatchNet(len(NAMES), levels=LEVELS, smoothing=options.frames, patches=patches, dropout=0.2)
    loss, optimizer = ActionLoss(), torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    labels = [i for _ in range(options.motions) for i in range(len(NAMES))]
    points, truth = clips(options, 1_000_000 + options.seed, labels)
    order = torch.randperm(len(labels))
    begin, step, mean = time.monotonic(), 0, math.nan
    while step < options.steps:
        done = max(step / options.steps, (time.monotonic() - begin) / (60 * options.minutes))
        if done >= 1:
            break
        rate = options.rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < options.batch:
            order = torch.randperm(len(labels))
        chosen, order = order[: options.batch], order[options.batch :]
        optimizer.zero_grad()
        value = loss(model(turned(points[chosen])), truth[chosen])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        mean = value.item() if step == 0 else 0.95 * mean + 0.05 * value.item()
        step += 1
        if step % 25 == 0:
            console.print(f"{patches}: step {step}, {time.monotonic() - begin:.0f} s, loss {mean:.3f}")
    return model.eval()


@torch.inference_mode()
def test(options: argparse.Namespace, model: TPatchNet) -> np.ndarray:
    """How often each action (row) was taken for each (column), in frames."""
    total = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
    for i in range(options.held_out):
        points, truth = clips(options, i, list(range(len(NAMES))))
        found = model(points).argmax(-1)
        total += confusion_matrix(truth.flatten(), found.flatten(), labels=range(len(NAMES)))
    return total


def table(confusion: np.ndarray, title: str) -> Table:
    shares = 100 * confusion / confusion.sum(1, keepdims=True)
    result = Table(
        title=f"{title}: {100 * confusion.trace() / confusion.sum():.1f} % of the frames are right"
    )
    result.add_column("is \\ was taken for, %")
    for i in range(len(NAMES)):
        result.add_column(str(i + 1), justify="right")
    for i, (name, row) in enumerate(zip(NAMES, shares, strict=True)):
        cells = [f"[bold]{v:.0f}[/]" if j == i else f"{v:.0f}" if v >= 0.5 else "" for j, v in enumerate(row)]
        result.add_row(f"{i + 1} {name}", *cells)
    return result


def picture(options: argparse.Namespace, path: Path) -> None:
    """Some actions seen from the side, and the centres and patches of a few chains, from blue to yellow over time."""
    actions = ["wave", "squat", "circle ahead", "walk"]
    figure, axes = plt.subplots(len(actions), 2, figsize=(9, 4.2 * len(actions)))
    for (left, right), action in zip(axes, actions, strict=True):
        cloud = torch.from_numpy(sequence(np.random.default_rng(3), action, options.frames, options.points))
        start = pyops.farthest_point_sample(cloud[:1], 14)
        found = pyops.extract_tpatches(cloud[None], start, 8)
        wide = torch.linalg.svd(cloud[0, :, :2] - cloud[0, :, :2].mean(0)).Vh[0]  # where the body is widest
        rows = pyops.gather_points(cloud, found.indices[0].flatten(1)).unflatten(1, (14, 8))
        spread = torch.linspace(0, 4, options.frames)
        for t in range(options.frames):
            colour = plt.cm.viridis(t / (options.frames - 1))
            left.scatter(cloud[t, :, :2] @ wide + 3 * spread[t], cloud[t, :, 2], s=0.6, color="0.75")
            for axis, shift in ((left, 3 * spread[t]), (right, 0)):
                patch = rows[t].flatten(0, 1)
                axis.scatter(patch[:, :2] @ wide + shift, patch[:, 2], s=2, color=colour)
        right.scatter(cloud[0, :, :2] @ wide, cloud[0, :, 2], s=0.6, color="0.75")
        way = found.centers[0]
        for chain in range(14):
            right.plot(way[:, chain, :2] @ wide, way[:, chain, 2], color="black", linewidth=0.6)
        left.set_title(f"{action}: patches of 14 chains in every frame")
        right.set_title("the same in one place")
        for axis in (left, right):
            axis.set_aspect("equal")
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    options, console = parse(), Console()
    options.out.mkdir(parents=True, exist_ok=True)
    picture(options, options.out / "tpatches.png")
    for patches, title in (("temporal", "t-patches"), ("frame", "patches of single frames")):
        model = train(options, patches, console)
        if patches == "temporal":
            torch.save(model.state_dict(), options.out / "tpatchnet.pt")
        console.print(table(test(options, model), title))


if __name__ == "__main__":
    main()
