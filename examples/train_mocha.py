"""Trains MoCha-Stereo on rendered pairs, and writes weights for `MoChaStereo.from_checkpoint`.

    python examples/train_mocha.py --minutes 60 --out trained

The pairs are rendered from a handful of photographs inside installed packages (see stereo_scenes.py), small ones first.
Writes mocha_stereo.pt (the averaged weights), state.pt (to resume from) and curve.jsonl to --out. What it prints is
measured on scenes of other photographs, and on a real pair that comes with scikit-image. Needs the extra "examples".
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pyops.models import MoChaStereo, StereoLoss
from pyops.models.mocha_pair import Pair
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from stereo_scenes import TEXTURES, Scene, Scenes, held_out, photographs
from torch import Tensor


class Stage(NamedTuple):
    """A part of the training: small scenes first, where a step takes little."""

    until: float
    """Share of the training."""
    size: tuple[int, int]
    """Of scenes."""
    most: tuple[float, float]
    """Between which the largest disparity of a scene lies."""
    iters: int
    """Updates; at 0 the initial disparity alone is learnt, without the layers behind it."""


STAGES = (
    Stage(0.72, (64, 192), (16, 52), 0),
    Stage(0.85, (96, 256), (16, 52), 0),
    Stage(1.0, (96, 256), (16, 52), 2),
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end by then, whatever --steps says")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("trained"))
    parser.add_argument("--resume", action="store_true", help="go on from state.pt in --out")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=8e-4, help="learning rate of AdamW at its highest")
    parser.add_argument("--average", type=float, default=0.998, help="of the weights, decay in a step")
    parser.add_argument("--max-disparity", type=int, default=64, help="of the model")
    parser.add_argument("--evaluate", type=float, default=5.0, metavar="MINUTES", help="between evaluations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def rate(progress: float, step: int) -> float:
    """A short rise, then half a cosine."""
    return min(1, (step + 1) / 300) * (1 + math.cos(math.pi * min(progress, 1))) / 2


def errors(found: Tensor, disparity: Tensor, occluded: Tensor) -> dict[str, float]:
    """Mean error in pixels (EPE), of what both views show too, and the share that is wrong by more than 1 and 3."""
    error = (found - disparity).abs()
    valid = disparity.isfinite()
    seen = error[valid & ~occluded]
    error = error[valid]
    found = {"epe": error, "epe_seen": seen, "bad1": (error > 1).float(), "bad3": (error > 3).float()}
    return {name: round(value.mean().item(), 4) for name, value in found.items()}


def volume_loss(costs: Tensor, disparity: Tensor) -> Tensor:
    """Cross entropy of the costs ``[B, 1, D, H / 4, W / 4]`` and the steps next to the true disparity.

    It teaches features sooner than the error of the mean disparity does.
    """
    truth = disparity[:, None, None, 1::4, 1::4] / 4
    return _cross_entropy(costs.movedim(2, -1), truth.movedim(2, -1)).mean()


def match_loss(left: Tensor, right: Tensor, disparity: Tensor, occluded: Tensor) -> Tensor:
    """The same of correlations of descriptors ``[B, C, H / 4, W / 4]``: a pixel on the left with its line."""
    left, right = (F.group_norm(x, x.shape[1]) for x in (left, right))
    correlation = torch.einsum("bchx,bchy->bhxy", left, right) * (2 / left.shape[1] ** 0.5)
    truth = torch.arange(left.shape[3], device=left.device) - disparity[:, 1::4, 1::4] / 4
    seen = ~occluded[:, 1::4, 1::4] & (truth >= 0)
    return (_cross_entropy(correlation, truth[..., None]) * seen).sum() / seen.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Of logits along the last axis and the two places next to the true one, of which each has its share."""
    shares = (1 - (truth - torch.arange(logits.shape[-1], device=logits.device)).abs()).clamp(min=0)
    return -(shares * logits.log_softmax(-1)).sum(-1)


def real_pair(width: int = 256) -> Scene:
    """The pair of scikit-image, of a motorcycle, with its measured disparities, made smaller; unknown ones are inf."""
    spec = find_spec("skimage")
    assert spec is not None and spec.origin is not None
    folder, views = Path(spec.origin).parent / "data", []
    measured = np.load(folder / "motorcycle_disp.npz")["arr_0"]
    height = round(measured.shape[0] * width / measured.shape[1] / 16) * 16
    for side in ("left", "right"):
        with Image.open(folder / f"motorcycle_{side}.png") as image:
            pixels = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BOX))
        views.append(torch.from_numpy(pixels).permute(2, 0, 1))
    disparity = F.interpolate(torch.from_numpy(measured)[None, None], (height, width), mode="nearest")[0, 0]
    disparity = torch.where(disparity > 0, disparity, torch.inf) * (width / measured.shape[1])
    return Scene(*views, disparity, torch.zeros_like(disparity, dtype=torch.bool))


def unseen_scenes(count: int = 16) -> Scene:
    """Of photographs that are not trained on, always the same ones."""
    scenes, rng = Scenes(held_out(), seed=1_000_000), random.Random(0)
    found = [scenes.scene(128, 256, rng.uniform(12, 48)) for _ in range(count)]
    return Scene(*(torch.stack(parts) for parts in zip(*found, strict=True)))


@torch.inference_mode()
def evaluate(model: MoChaStereo, scenes: Scene, iters: int = 8) -> dict[str, float]:
    """What `errors` finds, over all pixels of scenes ``[B, ...]``, one pair at a time."""
    device = next(model.parameters()).device
    found = []
    for left, right in zip(scenes.left, scenes.right, strict=True):
        pair = (view[None].float().to(device) for view in (left, right))
        found.append(model(*pair, iters=iters)[:, 0].cpu())
    return errors(torch.cat(found), scenes.disparity, scenes.occluded)


class Batches:
    """Endless batches. Each is seen a few times, upside down too: to render it takes a good part of a step."""

    def __init__(self, scenes: Scenes, count: int, seed: int, times: int = 3, kept: int = 60) -> None:
        self.scenes, self.count, self.times, self.kept = scenes, count, times, kept
        self.rng = random.Random(seed)
        self.known: list[Scene] = []

    def next(self, stage: Stage) -> Scene:
        rng = self.rng
        if self.known and self.known[0].left.shape[2:] != stage.size:
            self.known.clear()
        if len(self.known) < 4 or rng.random() < 1 / self.times:
            batch = self.scenes.batch(self.count, *stage.size, rng.uniform(*stage.most))
            self.known = [*self.known[-self.kept :], batch]
            return batch
        batch = rng.choice(self.known)
        return Scene(*(part.flip(-2) for part in batch)) if rng.random() < 0.5 else batch


class Training:
    """Model, running average of its weights, optimizer and clock: all that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = MoChaStereo("small", max_disparity=args.max_disparity).to(args.device).train()
        # Updates that are too large at first do harm, which units that never fire again cannot undo.
        self.model.update.head[-1].weight.data.mul_(0.1)
        self.averaged = MoChaStereo("small", max_disparity=args.max_disparity).to(args.device).eval()
        self.averaged.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-4, foreach=True)
        self.criterion = StereoLoss(max_disparity=args.max_disparity)
        self.inside: dict[str, Tensor] = {}  # of the model: what `predictions` does not return
        for name in ("match", "classifier"):
            self.model.get_submodule(name).register_forward_hook(
                lambda module, given, found, name=name: self.inside.update({name: found})
            )
        self.step, self.seconds, self.before = 0, 0.0, 0.0
        self.begun = time.monotonic()

    @property
    def progress(self) -> float:
        return max(self.step / self.args.steps, self.seconds / 60 / self.args.minutes)

    @property
    def stage(self) -> Stage:
        return next((stage for stage in STAGES if self.progress < stage.until), STAGES[-1])

    def advance(self, scenes: Scene) -> dict[str, float]:
        """One step; the loss and its parts."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate * rate(self.progress, self.step)
        left, right, disparity, occluded = (part.to(self.args.device) for part in scenes)
        initial, predictions = self.predictions(left.float(), right.float())
        volume = volume_loss(self.inside["classifier"], disparity)
        match = match_loss(*self.inside["match"].chunk(2), disparity, occluded)
        loss = self.criterion(initial, predictions, disparity[:, None]) + 3 * volume + 2 * match
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            share = 1 - min(self.args.average, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), share)
        self.seconds = self.before + time.monotonic() - self.begun
        found = {"loss": loss, "volume": volume, "match": match}
        for index, prediction in enumerate((initial, *predictions)):
            found[f"epe_{index}"] = (prediction[:, 0] - disparity).abs().mean()
        return {name: value.item() for name, value in found.items()}

    def predictions(self, left: Tensor, right: Tensor) -> tuple[Tensor, list[Tensor]]:
        model = self.model
        if self.stage.iters:
            return model.predictions(left, right, iters=self.stage.iters)
        pair = Pair(model, left, right)
        weights = model.first_weights(model.first_features(pair.features[0]), pair.stem)
        return pair.cropped(model.ops.context_upsample(4 * pair.first, weights)), []

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "optimizer")}
        _write({**state, "step": self.step, "seconds": self.seconds}, self.args.out / "state.pt")
        _write(self.averaged.state_dict(), self.args.out / "mocha_stereo.pt")

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
    training, console, curve = Training(args), Console(), args.out / "curve.jsonl"
    if args.resume:
        training.resume()
    else:
        curve.write_text("")
    seed, unseen = args.seed + training.step, unseen_scenes()
    batches = Batches(Scenes(photographs(TEXTURES), seed), args.batch, seed)
    real = Scene(*(part[None] for part in real_pair()))

    def report() -> None:
        training.save()
        row = {"step": training.step, "minutes": round(training.seconds / 60, 2)}
        if recent:
            row["trained"] = {
                name: round(mean(step[name] for step in recent if name in step), 3) for name in recent[-1]
            }
        row |= evaluate(training.averaged, unseen)
        measured = evaluate(training.averaged, real)
        row |= {f"real_{name}": measured[name] for name in ("epe", "bad1", "bad3")}
        recent.clear()
        console.print(json.dumps(row), soft_wrap=True, highlight=False)
        with curve.open("a") as file:
            file.write(json.dumps(row) + "\n")

    recent: list[dict[str, float]] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=args.steps, completed=training.step)
        last = training.seconds
        while training.progress < 1:
            recent.append(training.advance(batches.next(training.stage)))
            expected = min(args.steps, math.ceil(training.step / max(training.progress, 1e-6)))
            loss = mean(step["loss"] for step in recent[-50:])
            bar.update(task, completed=training.step, total=expected, description=f"loss {loss:.3f}")
            if training.seconds - last > 60 * args.evaluate:
                report()
                last = training.seconds
    if recent:
        report()


if __name__ == "__main__":
    main()
