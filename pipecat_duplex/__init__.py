"""Full-duplex speech for Pipecat: the whole speech loop in one processor.

Importing the package does not import torch: that happens when an engine is loaded. Nor does it
import Pipecat until a name that needs it is asked for, so that the command line starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pipecat_duplex.session import (
    AtCapacity,
    CannotSay,
    CheckpointError,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    InvalidAudio,
    MissingExtra,
    Said,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
)
from pipecat_duplex.version import __version__

if TYPE_CHECKING:
    from pipecat_duplex.frames import (
        AgentYieldedFrame,
        BackchannelFrame,
        DuplexMetricsData,
        MonologueTextFrame,
    )
    from pipecat_duplex.service import DuplexLLMService
    from pipecat_duplex.settings import DuplexLLMSettings

_NEEDS_PIPECAT = {
    "AgentYieldedFrame": "frames",
    "BackchannelFrame": "frames",
    "DuplexLLMService": "service",
    "DuplexLLMSettings": "settings",
    "DuplexMetricsData": "frames",
    "MonologueTextFrame": "frames",
}

__all__ = [
    "AgentYieldedFrame",
    "AtCapacity",
    "BackchannelFrame",
    "CannotSay",
    "CheckpointError",
    "DuplexBackend",
    "DuplexError",
    "DuplexLLMService",
    "DuplexLLMSettings",
    "DuplexMetricsData",
    "DuplexSession",
    "InvalidAudio",
    "MissingExtra",
    "MonologueTextFrame",
    "Said",
    "SessionConfig",
    "SessionEnded",
    "Step",
    "StepTiming",
    "__version__",
]


def __getattr__(name: str):
    if name not in _NEEDS_PIPECAT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_NEEDS_PIPECAT[name]}"), name)
    globals()[name] = value
    return value
