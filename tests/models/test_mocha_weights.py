"""Weights, copies, options and backbones of MoChaStereo."""

from __future__ import annotations

import copy
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from pyops.models import MoChaStereo
from torch.testing import assert_close

import pyops
from pyops import reference

READY = all(hasattr(pyops, name) for name in ("camp_conv", "context_upsample", "geometry_lookup"))
OPS = pyops if READY else reference


def small(**options) -> MoChaStereo:
    torch.manual_seed(1)
    return MoChaStereo(**{"max_disparity": 32, "ops": OPS, **options})


def views(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, *shape[:-2], 3, *shape[-2:]).mul(255).unbind()


def test_small_is_small():
    assert 1e6 < sum(p.numel() for p in small().parameters()) < 2e6


@pytest.mark.parametrize("key", (None, "state_dict"))
def test_state_dict_round_trip(tmp_path, key):
    model, pair = small().eval(), views(1, 25, 50)
    state = model.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "weights.pt")
    loaded = MoChaStereo.from_checkpoint(tmp_path / "weights.pt", max_disparity=32, ops=OPS)
    assert not loaded.training
    assert_close(loaded.state_dict(), state, rtol=0, atol=0)
    with torch.inference_mode():
        assert_close(loaded(*pair, iters=1), model(*pair, iters=1), rtol=0, atol=1e-4)


def test_checkpoints_that_are_none(tmp_path):
    state, path = small().state_dict(), tmp_path / "weights.pt"
    for content in (
        {"a": 1},
        {**state, "more": torch.rand(1)},
        {"classifier.weight": state["classifier.weight"]},
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"weights\.pt"):
            MoChaStereo.from_checkpoint(path)
    with pytest.raises(OSError):
        MoChaStereo.from_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("ops", (pyops, reference))
def test_copies_keep_their_operators(ops):
    model = small(ops=ops)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.ops is ops and copied.paper and copied.max_disparity == 32
        assert_close(copied.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_wrong_options():
    for options, error, words in (
        ({"max_disparity": 40}, ValueError, "multiple of 32, got 40"),
        ({"max_disparity": 0}, ValueError, "at least 1"),
        ({"max_disparity": 64.0}, TypeError, "max_disparity must be an int"),
        ({"backbone": 3}, TypeError, "backbone must be a str"),
        ({"pretrained": True}, ValueError, "'small' has none"),
    ):
        with pytest.raises(error, match=words):
            MoChaStereo(**options)


class Backbone(torch.nn.Module):
    """What timm makes of a name, or some of it."""

    def __init__(self, reductions=(2, 4, 8, 16, 32)):
        super().__init__()
        self.feature_info = SimpleNamespace(
            reduction=lambda: list(reductions), channels=lambda: [8] * len(reductions)
        )
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(3 if r == reductions[0] else 8, 8, 2, 2) for r in reductions
        )

    def forward(self, x):
        return [x := layer(x) for layer in self.layers]


def test_backbone_of_timm(monkeypatch):
    made = []

    def create_model(name, **options):
        made.append((name, options))
        return Backbone((2, 4, 8) if name == "flat" else (2, 4, 8, 16, 32))

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    model = MoChaStereo("some_net", max_disparity=32, pretrained=True, ops=OPS)
    assert made == [("some_net", {"features_only": True, "pretrained": True})]
    assert not any(p.requires_grad for p in model.features.encoder.parameters())
    assert not model.train().features.encoder.network.training and model.update.training
    with torch.inference_mode():
        assert model(*views(1, 32, 50), iters=1).shape == (1, 1, 32, 50)
    assert MoChaStereo("some_net").features.encoder.train().network.training
    with pytest.raises(ValueError, match=r"'flat': \[2, 4, 8\]"):
        MoChaStereo("flat")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        MoChaStereo("some_net")
