"""Gaze from features by geodesic distances instead of a linear layer, on features whose gaze is known exactly.

    python examples/geodesic_gaze.py --out gaze

1. Lifts directions of gaze to 512 features by a smooth map that also bends with four nuisances (person, light ...) and
   adds noise. Fits `GeodesicProjection` and linear layers (ordinary, and ridge with the best of 19 strengths) to one
   domain, and predicts for others, where the nuisances have moved away.
2. Teaches a network that has seen little to place its features on a sphere: through the propagator of the paper, and
   through Isomap itself, by all points of a batch and by 64 landmarks.
3. Embeds scikit-learn's digits next to its own Isomap.

Prints what came out, and writes map.png, angles.png and digits.png to --out. Needs the extra "examples". About two
minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import sklearn.manifold
import torch
import torch.nn.functional as F
from pyops.models import (
    GeodesicProjection,
    Isomap,
    IsometricPropagator,
    SphereAlignment,
    SphereOrientedLoss,
    angles,
    angular_error,
    directions,
    isomap_embedding,
    sphere_error,
)
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, RidgeCV
from torch import Tensor, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FEATURES, NUISANCES = 512, 4
SHIFTS = (0.0, 0.4, 0.8)  # of the nuisances, which are 0.1 wide at first


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000, help="to fit; as many to train with, twice")
    parser.add_argument("--neighbors", type=int, default=300, help="of each of them")
    parser.add_argument("--domains", type=int, default=3, help="drawn for each shift")
    parser.add_argument("--steps", type=int, default=120, help="of training")
    parser.add_argument("--digits", type=int, default=1797)
    parser.add_argument("--out", type=Path, default=Path("gaze"))
    return parser.parse_args()


def gazes(count: int, seed: int) -> Tensor:
    """Directions within 60 degrees of yaw and 40 of pitch."""
    generator = torch.Generator().manual_seed(seed)
    yaw, pitch = (torch.rand(2, count, generator=generator) * 2 - 1) * torch.tensor(
        [[60.0], [40.0]]
    ).deg2rad()
    return directions(yaw, pitch)


def lift(gaze: Tensor, seed: int, shift: float = 0.0) -> Tensor:
    """Features ``[N, 512]`` of directions ``[N, 3]``: waves of random frequency in gaze and nuisances.

    Waves come as cosine and sine, and their frequencies are whitened, so that everywhere and in every direction a step
    in gaze is as long a step among features: distances along the map are angles.
    """
    waves = torch.Generator().manual_seed(1)
    frequencies = torch.randn(FEATURES // 2, 3 + NUISANCES, generator=waves)
    scale = (FEATURES // 2) ** 0.5
    frequencies = torch.linalg.qr(frequencies - frequencies.mean(0)).Q * scale
    generator = torch.Generator().manual_seed(seed)
    nuisance = 0.1 * torch.randn(len(gaze), NUISANCES, generator=generator)
    nuisance = nuisance + shift * F.normalize(torch.randn(NUISANCES, generator=generator), dim=0)
    phase = torch.cat([gaze, nuisance], 1) @ frequencies.mT
    noise = torch.randn(len(gaze), FEATURES, generator=generator) / FEATURES**0.5
    return torch.cat([phase.cos(), phase.sin()], 1) / scale + 0.1 * noise


def degrees(predicted: Tensor, gaze: Tensor) -> float:
    return float(angular_error(F.normalize(predicted, dim=1), gaze).mean().rad2deg())


# ---- one domain and others -------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace, console: Console) -> None:
    gaze, unseen = gazes(options.samples, 0), gazes(500, 1)
    features = lift(gaze, 0)
    projection = GeodesicProjection(options.neighbors).fit(features, gaze)
    layers = LinearRegression(), RidgeCV(np.logspace(-6, 3, 19))
    predictors: dict[str, Callable[[Tensor], Tensor]] = {"geodesic projection": projection.predict}
    for name, layer in zip(("linear layer", "linear layer, ridge"), layers, strict=True):
        layer.fit(features.numpy(), gaze.numpy())
        predictors[name] = lambda x, layer=layer: torch.from_numpy(layer.predict(x.numpy())).float()

    table = Table(
        "degrees", *(f"shift {shift}" for shift in SHIFTS), title="Error for unseen gaze: mean (worst domain)"
    )
    for name, predict in predictors.items():
        errors = (
            [degrees(predict(lift(unseen, 100 + draw, shift)), unseen) for draw in range(options.domains)]
            for shift in SHIFTS
        )
        table.add_row(name, *(f"{np.mean(e):.2f} ({max(e):.2f})" for e in errors))
    console.print(table)

    some = torch.arange(0, options.samples, max(1, options.samples // 300))
    distances = projection.isomap_.dist_matrix_[some][:, some].flatten()
    between = angular_error(gaze[some][:, None], gaze[some][None]).flatten()
    alike = float(torch.corrcoef(torch.stack([distances, between]))[0, 1])
    console.print(f"Geodesic distances and angles between gazes: correlation {alike:.4f}")
    picture_of_map(projection.embedding_, gaze, options.out / "map.png")
    picture_of_angles(between.rad2deg(), distances, alike, options.out / "angles.png")


def picture_of_map(embedding: Tensor, gaze: Tensor, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), subplot_kw={"projection": "3d"}, layout="constrained")
    for axis, name, angle in zip(axes, ("yaw", "pitch"), angles(gaze), strict=True):
        drawn = axis.scatter(*embedding.mT.numpy(), c=angle.rad2deg().numpy(), s=5, cmap="turbo")
        axis.set_title(f"Features by Isomap, colour: {name}")
        axis.set_box_aspect(np.ptp(embedding.numpy(), axis=0), zoom=0.85)
        axis.tick_params(labelsize=7)
        figure.colorbar(drawn, ax=axis, shrink=0.6, label="degrees")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def picture_of_angles(between: Tensor, distances: Tensor, alike: float, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    axis.hexbin(between.numpy(), distances.numpy(), gridsize=70, bins="log", cmap="viridis", linewidths=0)
    axis.set(xlabel="angle between gazes, degrees", ylabel="geodesic distance of features")
    axis.set_title(f"correlation {alike:.4f}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ---- training --------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace, console: Console) -> None:
    gaze, unseen = gazes(2 * options.samples, 2), gazes(500, 3)
    seen, new = lift(gaze, 4), lift(unseen, 5)
    few = slice(options.samples // 2)
    near = max(3, min(options.neighbors // 2, options.samples // 12))
    batch = min(384, options.samples)
    torch.manual_seed(0)
    network, layer = (
        nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 128)),
        nn.Linear(128, 3),
    )
    optimizer = torch.optim.Adam([*network.parameters(), *layer.parameters()], 1e-3)
    descend(optimizer, batches(len(gaze), batch, 40), lambda i: F.l1_loss(layer(network(seen[i])), gaze[i]))

    def judge(name: str, network: nn.Module) -> GeodesicProjection:
        with torch.no_grad():
            model = GeodesicProjection(near).fit(network(seen[few]), gaze[few])
            off = float(sphere_error(model.transform(network(new))))
            table.add_row(name, f"{100 * off:.2f} %", f"{-model.score(network(new), unseen):.2f}")
        return model

    table = Table(
        "trained",
        "off the sphere",
        "error, degrees",
        title=f"Features of unseen gaze, after 40 and {options.steps} steps",
    )
    model = judge("by a linear layer", network)
    near_in_batch = max(3, near * batch // (options.samples // 2))
    with torch.no_grad():
        alignment = SphereAlignment().fit(model.embedding_, gaze[few])
        propagator = IsometricPropagator(128)
        propagator.fit(network(seen[few]), model.embedding_, batch=128, rate=1e-3)

    def through_isomap(landmarks: int | None) -> SphereOrientedLoss:
        chosen = None if landmarks is None else torch.arange(landmarks)  # batches are in random order
        embed = lambda f: isomap_embedding(f, near_in_batch, 3, landmarks=chosen)  # noqa: E731
        return SphereOrientedLoss(alignment, embed, free=True)

    for name, loss in (
        ("then through the propagator", SphereOrientedLoss(alignment, propagator)),
        ("then through Isomap", through_isomap(None)),
        ("then through Isomap of 64 landmarks", through_isomap(min(64, batch))),
    ):
        twin = copy.deepcopy(network)
        optimizer = torch.optim.Adam(twin.parameters(), 2e-4)
        descend(
            optimizer,
            batches(len(gaze), batch, options.steps),
            lambda i, loss=loss, twin=twin: loss(twin(seen[i]), gaze[i]),
        )
        judge(name, twin)
    console.print(table)


def batches(count: int, size: int, steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randperm(count, generator=generator)[:size] for _ in range(steps)]


def descend(
    optimizer: torch.optim.Optimizer, parts: list[Tensor], loss_of: Callable[[Tensor], Tensor]
) -> None:
    for part in parts:
        optimizer.zero_grad()
        loss_of(part).backward()
        optimizer.step()


# ---- digits ----------------------------------------------------------------------------------------------------------


def digits(options: argparse.Namespace, console: Console) -> None:
    points, labels = load_digits(return_X_y=True)
    points, labels = points[: options.digits], labels[: options.digits]
    ours = Isomap(30).fit_transform(points)
    theirs = sklearn.manifold.Isomap(n_neighbors=30).fit_transform(points)
    signs = np.sign((ours * theirs).sum(0))
    alike = min(np.corrcoef(ours[:, i], theirs[:, i])[0, 1] * signs[i] for i in range(2))
    console.print(f"Digits, ours and scikit-learn's: correlation of an axis at least {alike:.6f}")
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharex=True, sharey=True, layout="constrained")
    for axis, places, name in zip(axes, (ours * signs, theirs), ("pyops", "scikit-learn"), strict=True):
        drawn = axis.scatter(*places.T, c=labels, s=6, cmap="tab10", vmin=-0.5, vmax=9.5)
        axis.set(title=f"Isomap of {name}", aspect="equal")
    figure.colorbar(drawn, ax=axes, ticks=range(10), label="digit")
    figure.savefig(options.out / "digits.png", dpi=110)
    plt.close(figure)


def main() -> None:
    options, console = parse(), Console()
    options.out.mkdir(parents=True, exist_ok=True)
    compare(options, console)
    train(options, console)
    digits(options, console)


if __name__ == "__main__":
    main()
