"""A real pipeline around the service: see :mod:`harness.pipeline`."""

from harness.pipeline import *  # noqa: F403
