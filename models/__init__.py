"""Thin models that show the operators at work."""

from .cotf import CoTF
from .cotf_loss import CoTFLoss

__all__ = ["CoTF", "CoTFLoss"]
