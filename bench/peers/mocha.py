"""MoChaStereo with its operators in plain PyTorch, with the same weights."""

from __future__ import annotations

from ..case import Inputs, Peers
from ..models.mocha import Mocha

PEERS = Peers()


@PEERS.peer("torch layers", stock=True)
def stock(case: Mocha, x: Inputs):
    """Slices for the group-wise volume, a dense high-pass, products of all motif channels, gathers for the lookup."""
    from pyops import reference

    return case.task(reference, x)
