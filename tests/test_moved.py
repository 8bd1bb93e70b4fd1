"""Imports of former names go on."""

import importlib

import pytest

from pipecat_duplex.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_a_former_name_gives_the_module_that_took_its_place(name: str):
    now = importlib.import_module(f"pipecat_duplex.{MOVED[name]}")
    with pytest.warns(DeprecationWarning, match=f"is now pipecat_duplex.{MOVED[name]}"):
        import sys

        sys.modules.pop(f"pipecat_duplex.{name}", None)
        former = importlib.import_module(f"pipecat_duplex.{name}")
    assert former is now
    assert now.__spec__.name == f"pipecat_duplex.{MOVED[name]}"
