"""Trains CoTF on photographs with synthetic exposures, and writes weights for `CoTF.from_checkpoint`.

    python examples/train_cotf.py --minutes 70 --photos my/photographs --out trained

Without --photos, a handful of photographs inside installed packages (see exposure.py). Writes cotf.pt (the averaged
weights), state.pt (to resume from), log.csv and loss.png to --out. Needs the extra "examples".
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from exposure import HELD_OUT, TRAINING, Camera, Scenes, expose, photographs
from matplotlib.figure import Figure
from pyops.models import CoTF, CoTFLoss
from pyops.models.cotf_loss import ssim
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor

import pyops

COARSE = 0.92  # the share of the training that is done at a small size
SIZES = {True: (128, 160), False: (192, 256, 320)}  # of the parts of photographs, coarse or not
LOG_EVERY, SAVE_EVERY, EVALUATE_EVERY = 50, 250, 1000
EVS = (-2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end by then, whatever --steps says")
    parser.add_argument(
        "--photos", type=Path, nargs="*", default=[], help="more photographs: files or folders"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("trained"))
    parser.add_argument("--resume", action="store_true", help="go on from state.pt in --out")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Adam at its highest")
    parser.add_argument("--average", type=float, default=0.999, help="of the weights, decay in a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def rate(progress: float, step: int) -> float:
    """A short rise, then half a cosine."""
    return min(1, (step + 1) / 100) * (1 + math.cos(math.pi * min(progress, 1))) / 2


class ProgressiveCoTF(CoTF):
    """While coarse, the small copies are half as wide and high: less than half the work of a step."""

    coarse = True

    def _small_copy(self, image: Tensor) -> Tensor:
        return (
            F.interpolate(image, (128, 128), mode="bilinear") if self.coarse else super()._small_copy(image)
        )


def loss_of(model: CoTF, exposures: Tensor, photos: Tensor, criterion: CoTFLoss) -> tuple[Tensor, Tensor]:
    """The loss, and the output.

    To the loss of the paper come: the error as PSNR counts it, so that good exposures, whose errors are small, count
    like bad ones; and that the table alone comes close already and treats unseen colours like seen ones.
    """
    weights = model.lut_weights(exposures)
    lut = pyops.fuse_luts(weights, model.luts.basis)
    output = model(exposures, lut_weights=weights)
    error = (output - photos).square().mean((1, 2, 3)).log().mean()
    table = F.l1_loss(pyops.lut3d(exposures, lut), photos)
    regular = 0.05 * pyops.lut_smoothness(lut) + pyops.lut_monotonicity(lut)
    return criterion(output, photos) + 0.04 * error + 0.3 * table + regular, output


def psnr(x: Tensor, y: Tensor) -> float:
    return -10 * math.log10(max((x - y).square().mean().item(), 1e-10))


@torch.inference_mode()
def evaluate(
    model: CoTF, photos: dict[str, Tensor], evs: tuple[float, ...] = EVS, cameras: int = 3
) -> list[dict]:
    """PSNR and SSIM of whole photographs before and after, means over cameras; "same" is the photograph itself."""
    device = next(model.parameters()).device
    rows = []
    for name, photo in photos.items():
        rng = random.Random(0)
        cases = {"same": [photo]}
        for ev in evs:
            cases[f"{ev:+.1f}"] = [expose(photo, ev, Camera.drawn(rng)) for _ in range(cameras)]
        for ev, exposures in cases.items():
            scores = []
            for exposure in exposures:
                output = model(exposure[None].to(device)).clamp(0, 1).cpu()
                before, after = exposure[None], photo[None]
                scores.append([psnr(before, after), psnr(output, after)])
                scores[-1] += [ssim(before, after).item(), ssim(output, after).item()]
            means = torch.tensor(scores).mean(0).tolist()
            rows.append(
                dict(
                    zip(("photo", "ev", "in", "out", "ssim_in", "ssim_out"), (name, ev, *means), strict=True)
                )
            )
    return rows


def table_of(rows: list[dict]) -> Table:
    table = Table("EV", "photo", "PSNR before", "after", "SSIM before", "after")
    for row in sorted(rows, key=lambda row: float(row["ev"].replace("same", "0"))):
        scores = f"{row['in']:.2f}", f"{row['out']:.2f}", f"{row['ssim_in']:.3f}", f"{row['ssim_out']:.3f}"
        table.add_row(row["ev"], row["photo"], *scores)
    return table


def plot(log: Path) -> None:
    with log.open() as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    if not rows:
        return
    steps, losses, psnrs, _ = zip(*rows, strict=True)
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axis, values, name in zip(
        figure.subplots(1, 2), (losses, psnrs), ("loss", "PSNR in training, dB"), strict=True
    ):
        axis.plot(steps, values, linewidth=0.8)
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
    figure.savefig(log.with_name("loss.png"), dpi=120)


def summary(rows: list[dict]) -> str:
    """PSNR before and after for each exposure, means over the photographs."""
    parts = []
    for ev in dict.fromkeys(row["ev"] for row in rows):
        scores = torch.tensor([(row["in"], row["out"]) for row in rows if row["ev"] == ev])
        parts.append("EV {}: {:.2f} -> {:.2f}".format(ev, *scores.mean(0).tolist()))
    return ", ".join(parts)


class Training:
    """Model, running average of its weights, optimizer and clock: all that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = ProgressiveCoTF().to(args.device).train()
        self.averaged = CoTF().to(args.device).eval()
        self.averaged.load_state_dict(self.model.state_dict())
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("sampler.")]
        self.optimizer = torch.optim.Adam(
            [{"params": rest}, {"params": list(self.model.sampler.parameters())}]
        )
        self.criterion = CoTFLoss()
        self.step, self.seconds, self.before = 0, 0.0, 0.0
        self.begun = time.monotonic()

    @property
    def progress(self) -> float:
        return max(self.step / self.args.steps, self.seconds / 60 / self.args.minutes)

    def advance(self, exposures: Tensor, photos: Tensor) -> tuple[float, float]:
        """One step; the loss and the PSNR."""
        highest = self.args.rate * rate(self.progress, self.step)
        for group, factor in zip(self.optimizer.param_groups, (1, 0.1), strict=True):
            group["lr"] = highest * factor
        exposures, photos = exposures.to(self.args.device), photos.to(self.args.device)
        loss, output = loss_of(self.model, exposures, photos, self.criterion)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            share = 1 - min(self.args.average, (1 + self.step) / (10 + self.step))
            for average, weight in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                average.lerp_(weight, share)
        self.seconds = self.before + time.monotonic() - self.begun
        return loss.item(), psnr(output.detach(), photos)

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "optimizer")}
        _write({**state, "step": self.step, "seconds": self.seconds}, self.args.out / "state.pt")
        _write(self.averaged.state_dict(), self.args.out / "cotf.pt")

    def resume(self) -> None:
        state = torch.load(self.args.out / "state.pt", map_location=self.args.device)
        for name in ("model", "averaged", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds, self.before = state["step"], state["seconds"], state["seconds"]


def _write(content: dict, path: Path) -> None:
    """All or nothing, so that an interruption leaves the last checkpoint."""
    torch.save(content, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    training, console, log = Training(args), Console(), args.out / "log.csv"
    if args.resume:
        training.resume()
    else:
        log.write_text("step,loss,psnr,minutes\n")
    scenes = Scenes(photographs(TRAINING, args.photos), args.seed + training.step)
    held_out = photographs(HELD_OUT)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("training", total=args.steps, completed=training.step)
        recent: list[tuple[float, float]] = []
        while training.progress < 1:
            training.model.coarse = training.progress < COARSE
            size = scenes.rng.choice(SIZES[training.model.coarse])
            recent.append(training.advance(*scenes.batch(args.batch, size)))
            step = training.step
            expected = min(args.steps, math.ceil(step / training.progress))
            bar.update(task, completed=step, total=expected)
            if step % LOG_EVERY == 0:
                loss, quality = torch.tensor(recent).mean(0).tolist()
                recent.clear()
                bar.update(task, description=f"loss {loss:.4f}, {quality:.2f} dB")
                with log.open("a") as file:
                    file.write(f"{step},{loss:.5f},{quality:.3f},{training.seconds / 60:.2f}\n")
            if step % SAVE_EVERY == 0:
                training.save()
                plot(log)
            if step % EVALUATE_EVERY == 0:
                console.print(f"step {step}", summary(evaluate(training.averaged, held_out)))
    training.save()
    plot(log)
    console.print(table_of(evaluate(training.averaged, held_out)))


if __name__ == "__main__":
    main()
