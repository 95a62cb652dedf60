"""MoChaStereo with its operators in plain PyTorch, with the same weights."""

from __future__ import annotations

from ..case import Contestant, Inputs, Peers
from ..models.mocha import Mocha, Update

PEERS = Peers()


@PEERS.peer("torch layers", stock=True)
def stock(case: Mocha, x: Inputs):
    """Slices for the group-wise volume, a dense high-pass, products of all motif channels, gathers for the lookup."""
    from pyops import reference

    return case.task(reference, x)


@PEERS.peer("its operators alone (a part)", when=lambda case: isinstance(case, Update), part=True)
def operators(case: Update, x: Inputs):
    """The lookup of an update, which is all that is ours in it; convolutions and units outside the clock."""
    from pyops.models.mocha_pair import RADIUS

    import pyops

    pair = case.pair(pyops, x)
    given = pair.volumes, pair.pyramid, pair.first.squeeze(1)
    return Contestant(lambda: pyops.geometry_lookup(*given, RADIUS), view=lambda _: case.task(pyops, x)())
