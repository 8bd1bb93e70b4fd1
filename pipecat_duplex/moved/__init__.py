"""Modules that have moved: imports of their former names go on, with a warning."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

PACKAGE = "pipecat_duplex"

MOVED = {
    "activity": "service.activity",
    "continued": "session.continued",
    "frames": "service.frames",
    "history": "session.history",
    "inbox": "session.inbox",
    "opus": "protocol.opus",
    "rtvi": "service.rtvi",
    "saying": "session.saying",
    "settings": "service.settings",
    "voice_detector": "service.voice_detector",
    "wire": "moved.wire",
}
"""Names in 0.3 and where they are now."""


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a former name and gives the module that took its place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != PACKAGE or name not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        name = spec.name.rpartition(".")[2]
        target = f"{PACKAGE}.{MOVED[name]}"
        warnings.warn(f"{spec.name} is now {target}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(target)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back its own spec: it was run where it is now."""
        alias = module.__spec__
        assert alias is not None
        module.__spec__ = alias.loader_state


def install() -> None:
    """Let imports of former names find their modules."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.append(_Alias())
