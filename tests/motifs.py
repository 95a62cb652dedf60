"""Motifs and features, for tests."""

from __future__ import annotations

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def make_highpass(shape, dtype, device, generator):
    return {"features": torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)}


def make_camp(shape, dtype, device, generator):
    """Shapes are batch, channels, height, width, motifs."""
    batch, channels, height, width, motifs = shape
    shapes = (batch, motifs, height, width), (batch, channels, height, width), (motifs, 3, 3, 3)
    motif, features, kernel = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    inputs = {"motif": motif.softmax(1), "features": features, "kernel": kernel / 4}
    return {name: t.to(device, dtype) for name, t in inputs.items()}
