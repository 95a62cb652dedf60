"""Motions of stick figures as sequences of point clouds: bodies of many sizes, points in another order each time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# Joints, each with the one it hangs on and where it is in its frame at rest: x to the right, y ahead, z up; metres.
JOINTS: dict[str, tuple[str | None, tuple[float, float, float]]] = {
    "hips": (None, (0, 0, 0.95)),
    "chest": ("hips", (0, 0, 0.45)),
    "head": ("chest", (0, 0, 0.3)),
    "right shoulder": ("chest", (0.2, 0, 0)),
    "right elbow": ("right shoulder", (0, 0, -0.3)),
    "right hand": ("right elbow", (0, 0, -0.3)),
    "left shoulder": ("chest", (-0.2, 0, 0)),
    "left elbow": ("left shoulder", (0, 0, -0.3)),
    "left hand": ("left elbow", (0, 0, -0.3)),
    "right hip": ("hips", (0.1, 0, 0)),
    "right knee": ("right hip", (0, 0, -0.47)),
    "right foot": ("right knee", (0, 0, -0.47)),
    "left hip": ("hips", (-0.1, 0, 0)),
    "left knee": ("left hip", (0, 0, -0.47)),
    "left foot": ("left knee", (0, 0, -0.47)),
}
NAMES = list(JOINTS)

Pose = dict[
    str, tuple[float, float]
]  # joint -> how far what hangs on it is swung ahead and to the right, radians


def idle(phase: float, size: float) -> tuple[Pose, float, float]:
    return {"chest": (0, 0.08 * size * math.sin(phase))}, 0, 0


def wave(phase: float, size: float) -> tuple[Pose, float, float]:
    return {"right shoulder": (0, 1.9), "right elbow": (0, 0.7 + 0.7 * size * math.sin(phase))}, 0, 0


def squat(phase: float, size: float) -> tuple[Pose, float, float]:
    bend = size * (1 - math.cos(phase)) / 2
    legs = {f"{s} hip": (1.1 * bend, 0) for s in ("right", "left")}
    legs |= {f"{s} knee": (-2.1 * bend, 0) for s in ("right", "left")}
    arms = {f"{s} shoulder": (1.2 * bend, 0) for s in ("right", "left")}
    return {**legs, **arms}, 0.47 * (math.cos(1.1 * bend) + math.cos(bend) - 2), 0


def jump(phase: float, size: float) -> tuple[Pose, float, float]:
    up = max(0.0, math.sin(phase))
    bend = 0.5 * size * max(0.0, -math.sin(phase))
    legs = {f"{s} hip": (bend, 0) for s in ("right", "left")} | {
        f"{s} knee": (-2 * bend, 0) for s in ("right", "left")
    }
    arms = {"right shoulder": (0, 1.8 * up), "left shoulder": (0, -1.8 * up)}
    return {**legs, **arms}, 0.4 * size * up - 0.94 * (1 - math.cos(bend)), 0


def turn(sign: int) -> Callable[[float, float], tuple[Pose, float, float]]:
    return lambda phase, size: ({}, 0, sign * size * phase / 2)


def circle(sign: int) -> Callable[[float, float], tuple[Pose, float, float]]:
    def pose(phase: float, size: float) -> tuple[Pose, float, float]:
        swing, away = sign * phase, 0.5 * size
        arms = {f"{s} shoulder": (swing, 0) for s in ("right", "left")}
        return {**arms, "right elbow": (away - 0.5, 0), "left elbow": (away - 0.5, 0)}, 0, 0

    return pose


def walk(sign: int) -> Callable[[float, float], tuple[Pose, float, float]]:
    def pose(phase: float, size: float) -> tuple[Pose, float, float]:
        legs: Pose = {}
        for side, shift in (("right", 0.0), ("left", math.pi)):
            at = sign * phase + shift
            legs[f"{side} hip"] = 0.5 * size * math.sin(at), 0
            legs[f"{side} knee"] = -0.7 * size * max(0.0, math.cos(at)), 0  # bent on its way ahead
            legs[f"{side} shoulder"] = -0.4 * size * math.sin(at), 0
        return legs, 0, 0

    return pose


def bow(phase: float, size: float) -> tuple[Pose, float, float]:
    return {"hips": (0.6 * size * (1 - math.cos(phase)), 0)}, 0, 0


ACTIONS = {
    "idle": idle,
    "wave": wave,
    "squat": squat,
    "jump": jump,
    "turn left": turn(1),
    "turn right": turn(-1),
    "circle ahead": circle(1),
    "circle back": circle(-1),
    "walk": walk(1),
    "walk backwards": walk(-1),
    "bow": bow,
}


def _swing(ahead: float, right: float) -> np.ndarray:
    a, b, c, d = math.cos(ahead), math.sin(ahead), math.cos(right), math.sin(right)
    about_x = np.array([[1, 0, 0], [0, a, -b], [0, b, a]])  # what hangs down goes ahead
    about_y = np.array([[c, 0, -d], [0, 1, 0], [d, 0, c]])  # ... to the right
    return about_y @ about_x


def _skeleton(scales: dict[str, float], pose: Pose, height: float, heading: float) -> np.ndarray:
    c, s = math.cos(heading), math.sin(heading)
    upright = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    turned: dict[str, np.ndarray] = {}
    places: dict[str, np.ndarray] = {}
    for name, (parent, offset) in JOINTS.items():
        # What swings at the hips is the body above them: it is upright, so ahead is the other way round.
        ahead, right = pose.get(name, (0.0, 0.0))
        swing = _swing(-ahead if name in ("hips", "chest") else ahead, right)
        if parent is None:
            turned[name] = upright @ swing
            places[name] = np.array(offset) * scales[name] + (0, 0, height)
            continue
        base = upright if name.endswith(" hip") else turned[parent]  # legs stay on the ground
        places[name] = places[parent] + base @ (np.array(offset) * scales[name])
        turned[name] = base @ swing
    return np.stack(list(places.values()))


def sequence(
    rng: np.random.Generator, action: str, frames: int = 16, points: int = 256, noise: float = 0.01
) -> np.ndarray:
    """``[frames, points, 3]`` of a body of its own, somewhere in a motion of its own speed, amplitude and heading."""
    size = rng.uniform(0.85, 1.15)
    scales = {name: size * rng.uniform(0.9, 1.1) for name in NAMES}
    for name in NAMES:  # both sides alike
        if name.startswith("left"):
            scales[name] = scales[name.replace("left", "right")]
    phase, speed, amplitude = rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.45), rng.uniform(0.75, 1.15)
    heading, lean = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.05, (len(NAMES), 2))
    bones = [(NAMES.index(parent), i) for i, (parent, _) in enumerate(JOINTS.values()) if parent is not None]
    lengths = np.array([np.linalg.norm(JOINTS[NAMES[i]][1]) for _, i in bones])
    bone = rng.choice(len(bones), points, p=lengths / lengths.sum())
    along, around = rng.uniform(0, 1, (points, 1)), rng.normal(0, 0.035, (points, 3))
    ends = np.array(bones)[bone]
    clouds = np.empty((frames, points, 3), np.float32)
    for t in range(frames):
        pose, height, turned = ACTIONS[action](phase + speed * t, amplitude)
        pose = {n: tuple(np.add(pose.get(n, (0, 0)), lean[i])) for i, n in enumerate(NAMES)}
        joints = _skeleton(scales, pose, height, heading + turned)
        cloud = joints[ends[:, 0]] * (1 - along) + joints[ends[:, 1]] * along + around
        cloud += rng.normal(0, noise, cloud.shape)
        clouds[t] = rng.permutation(cloud)
    return clouds - np.array([*clouds[0].mean(0)[:2], 0.95], np.float32)
