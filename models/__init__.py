"""Thin models that show the operators at work."""

from .cotf import CoTF
from .cotf_loss import CoTFLoss
from .mocha_loss import StereoLoss
from .mocha_stereo import MoChaStereo

__all__ = ["CoTF", "CoTFLoss", "MoChaStereo", "StereoLoss"]
