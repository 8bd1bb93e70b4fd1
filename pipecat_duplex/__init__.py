"""Full-duplex speech for Pipecat: the whole speech loop in one processor.

Importing the package does not import torch: that happens when an engine is loaded.
"""

from pipecat_duplex.frames import (
    AgentYieldedFrame,
    BackchannelFrame,
    DuplexMetricsData,
    MonologueTextFrame,
)
from pipecat_duplex.service import DuplexLLMService, DuplexLLMSettings
from pipecat_duplex.session import (
    AtCapacity,
    CheckpointError,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    InvalidAudio,
    MissingExtra,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
)
from pipecat_duplex.version import __version__

__all__ = [
    "AgentYieldedFrame",
    "AtCapacity",
    "BackchannelFrame",
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
    "SessionConfig",
    "SessionEnded",
    "Step",
    "StepTiming",
    "__version__",
]
