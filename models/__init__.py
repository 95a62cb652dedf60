"""Thin models that wire public operators, one file a system."""
