"""Thin models that show the operators at work."""

from .cotf import CoTF

__all__ = ["CoTF"]
