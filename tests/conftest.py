"""Fixtures that several folders share, and the rule of what is skipped: see :mod:`tests.needs`."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.needs import missing, needs_of, needs_of_file, reason_to_skip

with suppress(ModuleNotFoundError):
    import hypothesis

    # A busy machine is no reason to fail: properties have no deadline.
    hypothesis.settings.register_profile("suite", deadline=None)
    hypothesis.settings.load_profile("suite")


class _Module(pytest.Module):
    """A test file that is skipped if it imports something optional that is not installed."""

    def collect(self):
        if lacking := missing(needs_of_file(self.path)):
            pytest.skip(f"needs {', '.join(lacking)}", allow_module_level=True)
        try:
            return list(super().collect())
        except self.CollectError as error:
            if reason := reason_to_skip(error.__cause__, collecting=True):
                pytest.skip(reason, allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return _Module.from_parent(parent, path=module_path)


# Not before `yield` in the wrapper: other plugins prepare in theirs what their teardown expects.
@pytest.hookimpl(specname="pytest_runtest_setup", tryfirst=True)
def pytest_skip_without_needs(item: pytest.Item) -> None:
    if lacking := missing(needs_of(item)):
        pytest.skip(f"needs {', '.join(lacking)}")


@pytest.hookimpl(specname="pytest_runtest_setup", wrapper=True, tryfirst=True)
def pytest_skip_without_imports_of_fixtures(item: pytest.Item) -> Iterator[None]:
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from _skipping())


def _skipping() -> Iterator[None]:
    try:
        return (yield)
    except Exception as error:
        if reason := reason_to_skip(error):
            pytest.skip(reason)
        raise


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of random weights: steps of a few ms, a context of 100 steps."""
    from training.random_checkpoint import write_random_checkpoint

    return write_random_checkpoint(tmp_path_factory.mktemp("tiny"), size="tiny")
