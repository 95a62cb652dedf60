"""Other ways to fit Isomap."""

from __future__ import annotations

from ..case import Inputs, Peers
from ..models.isomap import Isomap, Step

PEERS = Peers()


@PEERS.peer("scikit-learn", needs="sklearn", devices=("cpu",), when=lambda case: isinstance(case, Isomap))
def scikit_learn(case: Isomap, x: Inputs):
    """With both cores, where it takes them."""
    from sklearn.manifold import Isomap

    model = Isomap(n_neighbors=case.k, n_components=case.components, n_jobs=-1)
    return case.task(model, x["points"].numpy(), x["new"].numpy())


@PEERS.peer("plain PyTorch definition", stock=True, when=lambda case: isinstance(case, Step))
def step(case: Step, x: Inputs):
    from pyops import reference

    return case.task(reference, x)


@PEERS.peer(
    "plain PyTorch definition",
    stock=True,
    when=lambda case: isinstance(case, Isomap) and case.points <= 300,
)
def definition(case: Isomap, x: Inputs):
    from pyops import models, reference

    model = models.Isomap(case.k, n_components=case.components, ops=reference)
    return case.task(model, x["points"], x["new"])
