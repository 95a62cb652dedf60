"""Thin models that show the operators at work."""

from .cotf import CoTF
from .cotf_loss import CoTFLoss
from .mocha_loss import StereoLoss
from .mocha_stereo import MoChaStereo
from .tpatch_loss import ActionLoss
from .tpatchnet import TPatchNet

__all__ = ["ActionLoss", "CoTF", "CoTFLoss", "MoChaStereo", "StereoLoss", "TPatchNet"]
