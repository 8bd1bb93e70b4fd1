"""Full-duplex speech for Pipecat: the whole speech loop in one processor.

Importing the package imports neither torch nor Pipecat. Torch is imported when an engine is loaded,
and Pipecat with the first name that needs it, so that the command line starts at once.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# From 1.25 on, ONNX Runtime sends telemetry from Linux and macOS too, and writes a device id into
# the home folder. It asks for these before its first session and never again.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")

from pipecat_duplex import moved
from pipecat_duplex.session import (
    AtCapacity,
    CannotSay,
    CheckpointError,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    InvalidAudio,
    InvalidHistory,
    InvalidPrompt,
    MissingExtra,
    Said,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
)
from pipecat_duplex.version import __version__

if TYPE_CHECKING:
    from pipecat_duplex.conversation.clock import ClockSettings
    from pipecat_duplex.conversation.turns import TurnSettings
    from pipecat_duplex.engine import Engine
    from pipecat_duplex.service import (
        AgentYieldedFrame,
        BackchannelFrame,
        DuplexLLMService,
        DuplexLLMSettings,
        DuplexMetricsData,
        DuplexRTVIFeed,
        DuplexUserTurnStrategies,
        MonologueTextFrame,
        UnheardTextFrame,
    )
    from pipecat_duplex.session.continued import ContinuedSession
    from pipecat_duplex.session.history import History

moved.install()

_LAZY = {
    "AgentYieldedFrame": "service",
    "BackchannelFrame": "service",
    "ClockSettings": "conversation.clock",
    "ContinuedSession": "session.continued",
    "DuplexLLMService": "service",
    "DuplexLLMSettings": "service",
    "DuplexMetricsData": "service",
    "DuplexRTVIFeed": "service",
    "DuplexUserTurnStrategies": "service",
    "Engine": "engine",
    "History": "session.history",
    "MonologueTextFrame": "service",
    "TurnSettings": "conversation.turns",
    "UnheardTextFrame": "service",
}
"""Names that cost an import of Pipecat or of the engine, and where they live."""

__all__ = [
    "AgentYieldedFrame",
    "AtCapacity",
    "BackchannelFrame",
    "CannotSay",
    "CheckpointError",
    "ClockSettings",
    "ContinuedSession",
    "DuplexBackend",
    "DuplexError",
    "DuplexLLMService",
    "DuplexLLMSettings",
    "DuplexMetricsData",
    "DuplexRTVIFeed",
    "DuplexSession",
    "DuplexUserTurnStrategies",
    "Engine",
    "History",
    "InvalidAudio",
    "InvalidHistory",
    "InvalidPrompt",
    "MissingExtra",
    "MonologueTextFrame",
    "Said",
    "SessionConfig",
    "SessionEnded",
    "Step",
    "StepTiming",
    "TurnSettings",
    "UnheardTextFrame",
    "__version__",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
