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
    "right toes": ("right foot", (0, 0.2, 0)),
    "left hip": ("hips", (-0.1, 0, 0)),
    "left knee": ("left hip", (0, 0, -0.47)),
    "left foot": ("left knee", (0, 0, -0.47)),
    "left toes": ("left foot", (0, 0.2, 0)),
}
NAMES = list(JOINTS)

Pose = dict[
    str, tuple[float, float]
]  # joint -> how far what hangs on it swings ahead and to the right, radians
Body = tuple[Pose, float, float]  # pose, how far up, how far turned to the left
Motion = Callable[[float, float], Body]  # of the phase, radians, and the amplitude, about 1
SIDES = (("right", 1), ("left", -1))


def idle(phase: float, size: float) -> Body:
    return {"chest": (0, 0.08 * size * math.sin(phase))}, 0, 0


def wave(phase: float, size: float) -> Body:
    return {"right shoulder": (0, 1.9), "right elbow": (0, 0.7 + 0.7 * size * math.sin(phase))}, 0, 0


def walk(phase: float, size: float) -> Body:
    pose: Pose = {}
    for side, sign in SIDES:
        pose[f"{side} hip"] = 0.5 * sign * size * math.sin(phase), 0
        pose[f"{side} knee"] = -1.0 * size * max(0.0, sign * math.cos(phase)), 0  # bent on its way ahead
        pose[f"{side} shoulder"] = -0.4 * sign * size * math.sin(phase), 0
    return pose, 0, 0


def jump(phase: float, size: float) -> Body:
    up = max(0.0, math.sin(phase))
    bend = 0.5 * size * max(0.0, -math.sin(phase))
    pose: Pose = {f"{side} shoulder": (0, 1.8 * sign * up) for side, sign in SIDES}
    for side, _ in SIDES:
        pose |= {f"{side} hip": (bend, 0), f"{side} knee": (-2 * bend, 0)}
    return pose, 0.4 * size * up - 0.94 * (1 - math.cos(bend)), 0


def turn(phase: float, size: float) -> Body:
    return {}, 0, 0.8 * size * phase


def circle(phase: float, size: float) -> Body:
    return {f"{side} shoulder": (phase, 0) for side, _ in SIDES}, 0, 0


def arms(phase: float, size: float) -> Body:
    up = size * (1 - math.cos(phase))
    return {f"{side} shoulder": (0, sign * (0.2 + up)) for side, sign in SIDES}, 0, 0


def knees(phase: float, size: float) -> Body:
    bend = 1.1 * size * (1 - math.cos(phase)) / 2
    pose: Pose = {f"{side} shoulder": (bend, 0) for side, _ in SIDES}
    for side, _ in SIDES:
        pose |= {f"{side} hip": (bend, 0), f"{side} knee": (-1.9 * bend, 0)}
    return pose, 0.47 * (math.cos(bend) + math.cos(0.9 * bend) - 2), 0


def back(phase: float, size: float) -> Body:
    return {"hips": (0.6 * size * (1 - math.cos(phase)), 0)}, 0, 0


# What is done again and again, from any phase on; and what has an end, of which the reverse is another action: no frame
# tells these two apart, what comes before and after does.
AGAIN: dict[str, Motion] = {
    "idle": idle,
    "wave": wave,
    "walk": walk,
    "jump": jump,
    "turn": turn,
    "circle arms": circle,
}
THERE: dict[str, Motion] = {"raise arms": arms, "squat": knees, "bow": back}
BACK: dict[str, Motion] = {"lower arms": arms, "stand up": knees, "straighten": back}
ACTIONS = [*AGAIN, *(name for pair in zip(THERE, BACK, strict=True) for name in pair)]


def _phases(rng: np.random.Generator, action: str, frames: int) -> np.ndarray:
    """Of every frame, from a beginning and at a speed of its own."""
    time = np.arange(frames)
    if action in AGAIN:
        sign = rng.choice((-1, 1)) if action == "turn" else 1
        return sign * (rng.uniform(0, 2 * math.pi) + rng.uniform(0.18, 0.3) * time)
    begin, share = rng.uniform(0, 0.3), rng.uniform(0.5, 0.7)
    way = math.pi * (begin + share * time / max(1, frames - 1))
    return way[::-1] if action in BACK else way


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
    motion, amplitude = {**AGAIN, **THERE, **BACK}[action], rng.uniform(0.75, 1.15)
    heading, lean = rng.uniform(-0.8, 0.8), rng.normal(0, 0.05, (len(NAMES), 2))
    bones = [(NAMES.index(parent), i) for i, (parent, _) in enumerate(JOINTS.values()) if parent is not None]
    lengths = np.array([np.linalg.norm(JOINTS[NAMES[i]][1]) for _, i in bones])
    bone = rng.choice(len(bones), points, p=lengths / lengths.sum())
    along, around = rng.uniform(0, 1, (points, 1)), rng.normal(0, 0.035, (points, 3))
    ends = np.array(bones)[bone]
    clouds = np.empty((frames, points, 3), np.float32)
    for t, phase in enumerate(_phases(rng, action, frames)):
        pose, height, turned = motion(phase, amplitude)
        pose = {n: tuple(np.add(pose.get(n, (0, 0)), lean[i])) for i, n in enumerate(NAMES)}
        joints = _skeleton(scales, pose, height, heading + turned)
        cloud = joints[ends[:, 0]] * (1 - along) + joints[ends[:, 1]] * along + around
        cloud += rng.normal(0, noise, cloud.shape)
        clouds[t] = rng.permutation(cloud)
    return clouds - np.array([*clouds[0].mean(0)[:2], 0.95], np.float32)
