"""The one contract between the conversation and the model, wherever the model runs.

A *session* is one conversation. It takes the user's audio one step (80 ms) at a time and gives one
:class:`Step` of the agent's audio and monologue back for each. In process, over a socket or on a
cluster, the service sees the same object.
"""

from pipecat_duplex.session.contract import (
    MOSHI_SAMPLING,
    DuplexBackend,
    DuplexSession,
    Sampling,
    SessionConfig,
)
from pipecat_duplex.session.errors import (
    AtCapacity,
    CannotSay,
    CheckpointError,
    DuplexError,
    InvalidAudio,
    InvalidHistory,
    InvalidPrompt,
    MissingExtra,
    SessionEnded,
    one_line,
)
from pipecat_duplex.session.health import BackendHealth, ReportsHealth
from pipecat_duplex.session.step import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    STEP_SECS,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    TEXT_VOICED,
    WORD_START,
    CanSay,
    HeardWord,
    Said,
    Step,
    StepTiming,
    check_step_audio,
)

__all__ = [
    "MOSHI_SAMPLING",
    "SAMPLE_RATE_HZ",
    "STEP_SAMPLES",
    "STEP_SECS",
    "TEXT_END_OF_PADDING",
    "TEXT_PADDING",
    "TEXT_VOICED",
    "WORD_START",
    "AtCapacity",
    "BackendHealth",
    "CanSay",
    "CannotSay",
    "CheckpointError",
    "DuplexBackend",
    "DuplexError",
    "DuplexSession",
    "HeardWord",
    "InvalidAudio",
    "InvalidHistory",
    "InvalidPrompt",
    "MissingExtra",
    "ReportsHealth",
    "Said",
    "Sampling",
    "SessionConfig",
    "SessionEnded",
    "Step",
    "StepTiming",
    "check_step_audio",
    "one_line",
]
