"""Teaches TPatchNet the motions of stick figures, and compares it with patches that do not follow the body.

    python examples/train_tpatchnet.py --out actions

Trains the network on t-patches, then the same one on patches of single frames, with motions of bodies of many sizes
(see action_sequences.py); prints for each how many frames of motions it has not seen it gets right, and which actions
it takes for which. Writes tpatchnet.pt and pictures of t-patches, coloured over time, to --out. Needs the extra
"examples".

On one core of a two-core CPU, shared with other programs: 99.9 % after 8 minutes (4 of the core), 60.4 % without
t-patches after 6 (3 of the core). What is behind these numbers: models/tpatchnet.md.
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
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.metrics import confusion_matrix
from torch import Tensor

import pyops

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS = (Level(32, 8, (16, 32)), Level(16, 6, (64,)), Level(None, 4, (96,)))
NAMES = ACTIONS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1200, help="of training, for each of the two")
    parser.add_argument("--motions", type=int, default=100, help="of each action to train with")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--rate", type=float, default=3e-3, help="the largest learning rate")
    parser.add_argument("--places", action="store_true", help="give the place of every point as its features")
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
    angle, size = 0.3 * torch.randn(len(points)), 1 + 0.1 * torch.randn(len(points))
    c, s, zero = angle.cos(), angle.sin(), torch.zeros(len(points))
    rows = torch.stack([c, -s, zero, s, c, zero, zero, zero, torch.ones(len(points))], -1)
    return points @ (rows.view(-1, 1, 3, 3) * size.view(-1, 1, 1, 1)).mT


def run(model: TPatchNet, points: Tensor) -> Tensor:
    return model(points, points if model.features else None)


def train(
    options: argparse.Namespace, patches: str, console: Console, data: tuple[Tensor, Tensor]
) -> TPatchNet:
    torch.manual_seed(options.seed)
    features = 3 if options.places else 0
    model = TPatchNet(
        len(NAMES), features, levels=LEVELS, smoothing=options.frames, patches=patches, dropout=0.1
    )
    loss, optimizer = ActionLoss(), torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    points, truth = data
    order, mean = torch.randperm(len(points)), math.nan
    wall, cpu = time.monotonic(), time.process_time()
    for step in range(options.steps):
        rate = options.rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / options.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < options.batch:
            order = torch.randperm(len(points))
        chosen, order = order[: options.batch], order[options.batch :]
        optimizer.zero_grad()
        value = loss(run(model, turned(points[chosen])), truth[chosen])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        mean = value.item() if step == 0 else 0.95 * mean + 0.05 * value.item()
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            minutes = (time.monotonic() - wall) / 60, (time.process_time() - cpu) / 60
            console.print(
                f"{patches}: step {step + 1}, loss {mean:.3f}, "
                f"{minutes[0]:.1f} minutes, {minutes[1]:.1f} of one core"
            )
    return model.eval()


@torch.inference_mode()
def test(options: argparse.Namespace, model: TPatchNet) -> np.ndarray:
    """How often each action (row) was taken for each (column), in frames."""
    total = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
    for i in range(options.held_out):
        points, truth = clips(options, i, list(range(len(NAMES))))
        found = run(model, points).argmax(-1)
        total += confusion_matrix(truth.flatten(), found.flatten(), labels=range(len(NAMES)))
    return total


def table(confusion: np.ndarray, title: str) -> Table:
    shares = 100 * confusion / confusion.sum(1, keepdims=True)
    result = Table(
        title=f"{title}: {100 * confusion.trace() / confusion.sum():.1f} % of the frames are right",
        caption="rows: what it is; columns: what it was taken for, % of its frames",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    result.add_column("action")
    for i in range(len(NAMES)):
        result.add_column(str(i + 1), justify="right")
    for i, (name, row) in enumerate(zip(NAMES, shares, strict=True)):
        cells = [f"[bold]{v:.0f}[/]" if j == i else f"{v:.0f}" if v >= 0.5 else "" for j, v in enumerate(row)]
        result.add_row(f"{i + 1} {name}", *cells)
    return result


def picture(options: argparse.Namespace, path: Path) -> None:
    """Some actions seen from the side: patches in some frames, and their ways in all."""
    actions = ["wave", "squat", "circle arms", "walk"]
    figure, axes = plt.subplots(
        len(actions), 2, figsize=(15, 3.3 * len(actions)), width_ratios=(4, 1), layout="constrained"
    )
    colours = plt.cm.viridis(np.linspace(0, 0.95, options.frames))
    shown = np.linspace(0, options.frames - 1, 6).round().astype(int)
    for (left, right), action in zip(axes, actions, strict=True):
        cloud = torch.from_numpy(sequence(np.random.default_rng(4), action, options.frames, options.points))
        start = pyops.farthest_point_sample(cloud[:1], 24)
        found = pyops.extract_tpatches(cloud[None], start, 8)
        reach = found.centers[0].amax(0) - found.centers[0].amin(0)
        chains = reach.norm(dim=-1).topk(5).indices  # which get farthest
        moves = found.centers[0][:, chains, :2] - found.centers[0][:, chains, :2].mean(0)
        side = torch.linalg.svd(moves.flatten(0, 1)).Vh[0]  # seen from where they move most
        side = side if side.sum() > 0 else -side
        flat = torch.stack([cloud[..., :2] @ side, cloud[..., 2]], -1)
        patches = pyops.gather_points(flat, found.indices[0][:, chains].flatten(1))
        ways = torch.stack([found.centers[0][:, chains, :2] @ side, found.centers[0][:, chains, 2]], -1)
        for place, t in enumerate(shown):
            offset = torch.tensor([1.7 * place, 0])
            left.scatter(*(flat[t] + offset).T, s=3, color="0.8", linewidths=0)
            left.scatter(*(patches[t] + offset).T, s=9, color=colours[t], linewidths=0)
            left.text(1.7 * place, -1.15, f"frame {t + 1}", ha="center", va="top", fontsize=9)
        right.scatter(*flat[0].T, s=3, color="0.85", linewidths=0)
        for t in range(options.frames):
            right.scatter(*patches[t].T, s=5, color=colours[t], alpha=0.6, linewidths=0)
        for chain in range(len(chains)):
            right.plot(*ways[:, chain].T, color="black", linewidth=0.7)
        left.set_title(f"{action}: the five t-patches that get farthest", fontsize=11, loc="left")
        right.set_title("their ways", fontsize=11)
        left.set_xlim(-0.95, 1.7 * (len(shown) - 1) + 0.95)
        for axis in (left, right):
            axis.set_ylim(-1.35, 1.6)
            axis.set_aspect("equal")
            axis.axis("off")
        right.set_xlim(-0.95, 0.95)
    bar = plt.cm.ScalarMappable(plt.Normalize(1, options.frames), "viridis")
    figure.colorbar(bar, ax=axes, label="frame", shrink=0.3, aspect=25)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    options, console = parse(), Console()
    options.out.mkdir(parents=True, exist_ok=True)
    picture(options, options.out / "tpatches.png")
    labels = [i for _ in range(options.motions) for i in range(len(NAMES))]
    data = clips(options, 1_000_000 + options.seed, labels)
    for patches, title in (("temporal", "t-patches"), ("frame", "patches of single frames")):
        model = train(options, patches, console, data)
        if patches == "temporal":
            torch.save(model.state_dict(), options.out / "tpatchnet.pt")
        console.print(table(test(options, model), title))


if __name__ == "__main__":
    main()
