"""The Pipecat frames and metrics that only a full-duplex service has."""

from dataclasses import dataclass

from pipecat.frames import frames as pipecat_frames
from pipecat.frames.frames import DataFrame, SystemFrame, TranscriptionFrame, TTSTextFrame
from pipecat.metrics.metrics import MetricsData

if hasattr(pipecat_frames, "UserBackchannelFrame"):  # From Pipecat 1.13 on.
    UserBackchannelFrame = pipecat_frames.UserBackchannelFrame  # pyright: ignore
else:

    @dataclass
    class UserBackchannelFrame(DataFrame):
        """A short acknowledgment the user said while the bot talks, such as "mhm".

        Parameters:
            text: What the user said.
            user_id: Identifier for the user who spoke.
            timestamp: When the user said it.
        """

        text: str
        user_id: str
        timestamp: str


@dataclass
class HeardTranscriptionFrame(TranscriptionFrame):
    """What the user said, recognised beside the model: pushed upstream to the user aggregator.

    Parameters:
        start_secs: When the first word begins, in seconds of the user's audio.
        end_secs: When the last one ends.
    """

    start_secs: float = 0.0
    end_secs: float = 0.0


@dataclass
class MonologueTextFrame(DataFrame):
    """One piece of the model's text, its inner monologue.

    Pushed before the audio of the same step, so a node downstream reads a word before it sounds.

    Parameters:
        text: The SentencePiece piece: ``▁`` starts a word, ``<0xE2>`` is one byte of a character.
        token: Its id.
        step_index: Its step's place in the user's audio, 80 ms each, from the session's start.
        time_secs: When the step's sound can be heard, in seconds of the user's audio.
        utterance_id: The number that ``say`` gave to these words; ``None`` for the model's own.
    """

    text: str
    token: int
    step_index: int
    time_secs: float
    utterance_id: int | None = None


@dataclass
class UnheardTextFrame(TTSTextFrame):
    """A mark, ``[not heard: …]``, for words of the agent's whose sound came too late to be played.

    It stands where the words would stand, in captions and in the context.
    """


@dataclass
class AgentYieldedFrame(SystemFrame):
    """The user spoke over the agent, and the model itself fell silent.

    Broadcast just before the interruption that it causes.

    Parameters:
        text: What the agent had said of its utterance.
        time_secs: When the agent fell silent, in seconds of the user's audio.
        delay_secs: From the user's first sound over the agent to the agent's silence.
    """

    text: str
    time_secs: float
    delay_secs: float


@dataclass
class BackchannelFrame(SystemFrame):
    """The user spoke over the agent, and the agent went on: not an interruption.

    Parameters:
        time_secs: When the user began, in seconds of the user's audio.
        duration_secs: How long they spoke.
    """

    time_secs: float
    duration_secs: float


class DuplexMetricsData(MetricsData):
    """How the step loop kept time, over about one second.

    Parameters:
        steps: Steps in this report.
        compute_secs: Mean computing time of a step.
        max_compute_secs: The longest.
        max_waited_secs: Longest wait of a step for its computation.
        lag_secs: Delay of the agent's audio beyond its smallest delay, at the last step.
        filled_steps: Steps of silence that replaced late user audio, since the session began.
        dropped_input_steps: Steps of user audio that the model did not hear, since then.
        dropped_output_steps: Steps of agent speech that came too late to be heard, since then.
    """

    steps: int
    compute_secs: float
    max_compute_secs: float
    max_waited_secs: float
    lag_secs: float
    filled_steps: int
    dropped_input_steps: int
    dropped_output_steps: int
