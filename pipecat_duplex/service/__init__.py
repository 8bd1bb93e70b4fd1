"""The full-duplex service: Pipecat's frames on one side, a session on the other.

Pipecat is imported when a name is asked for, so that the command line starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipecat_duplex.service.frames import (
        AgentYieldedFrame,
        BackchannelFrame,
        DuplexMetricsData,
        MonologueTextFrame,
        UnheardTextFrame,
    )
    from pipecat_duplex.service.rtvi import DuplexRTVIFeed
    from pipecat_duplex.service.service import DuplexLLMService
    from pipecat_duplex.service.settings import DuplexLLMSettings
    from pipecat_duplex.service.user_turns import DuplexUserTurnStrategies

_MODULES = {
    "AgentYieldedFrame": "frames",
    "BackchannelFrame": "frames",
    "DuplexLLMService": "service",
    "DuplexLLMSettings": "settings",
    "DuplexMetricsData": "frames",
    "DuplexRTVIFeed": "rtvi",
    "DuplexUserTurnStrategies": "user_turns",
    "MonologueTextFrame": "frames",
    "UnheardTextFrame": "frames",
}

__all__ = [
    "AgentYieldedFrame",
    "BackchannelFrame",
    "DuplexLLMService",
    "DuplexLLMSettings",
    "DuplexMetricsData",
    "DuplexRTVIFeed",
    "DuplexUserTurnStrategies",
    "MonologueTextFrame",
    "UnheardTextFrame",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
