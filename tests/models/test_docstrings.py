"""The examples in the docstrings of the models."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pyops.models
import pytest

pytest.importorskip("sklearn")
MODULES = sorted(module.name for module in pkgutil.iter_modules(pyops.models.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    assert doctest.testmod(importlib.import_module(f"pyops.models.{name}")).failed == 0


def test_examples_were_found():
    found = [len(doctest.DocTestFinder().find(importlib.import_module(f"pyops.models.{n}"))) for n in MODULES]
    assert sum(found) > len(MODULES)
