"""Fixtures that several rooms share."""

from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

# These make checkpoints and compare with torch: they need the extra `moshi`. What needs none is in
# test_onnx_engine.py and test_embedded.py.
collect_ignore = [] if find_spec("torch") else ["engine"]

# A busy machine is no reason to fail: properties have no deadline.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of random weights: steps of a few ms, a context of 100 steps."""
    from training.random_checkpoint import write_random_checkpoint

    return write_random_checkpoint(tmp_path_factory.mktemp("tiny"), size="tiny")
