"""What happened in a conversation, on the time line of the user's audio."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pipecat.frames.frames import Frame, TTSAudioRawFrame

from pipecat_duplex.conversation.monologue import Monologue, Word
from pipecat_duplex.conversation.pcm import level_db, pcm16_to_float
from pipecat_duplex.conversation.turns import (
    AgentStarted,
    AgentStopped,
    Backchannel,
    UserStarted,
    UserStopped,
    Yielded,
)
from pipecat_duplex.service.frames import MonologueTextFrame
from pipecat_duplex.service.service import DuplexLLMService
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SECS

# Events of one moment, in the order in which they are told.
_ORDER = (
    "session_started",
    "user_stopped",
    "user_started",
    "agent_started",
    "monologue",
    "word",
    "backchannel",
    "yield",
    "agent_stopped",
    "error",
    "summary",
)

_SOUND_DB = -45.0
_SOUND_SAMPLES = 240


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Parameters:
        time_secs: When, in seconds of the user's audio.
        name: What, e.g. ``user_started``.
        fields: What else there is to say.
    """

    time_secs: float
    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the object of one line of the events file."""
        return {"time_secs": _rounded(self.time_secs), "event": self.name} | {
            key: _rounded(value) for key, value in self.fields.items()
        }


class Recording:
    """Both voices and all events of one conversation.

    Parameters:
        user_pcm: Float32 mono, 24 kHz, with the silence after it.
        agent_pcm: Likewise, of the same length; what the agent says at second 5 stands there.
    """

    def __init__(self, user_pcm: np.ndarray):
        """Initialize a recording in which the agent is silent.

        Args:
            user_pcm: Float32 mono, 24 kHz.
        """
        self.user_pcm = user_pcm
        self.agent_pcm = np.zeros(len(user_pcm), np.float32)
        self._events: list[Event] = []
        self._monologue = Monologue()
        self._monologue_step = -1

    @property
    def secs(self) -> float:
        """Length in seconds."""
        return len(self.user_pcm) / SAMPLE_RATE_HZ

    @property
    def events(self) -> list[Event]:
        """All events, sorted by time."""
        return sorted(self._events, key=lambda e: (e.time_secs, _ORDER.index(e.name)))

    @property
    def last_words(self) -> str:
        """What the agent says, or said last."""
        return self._monologue.utterance

    def add(self, name: str, time_secs: float, **fields) -> None:
        """Add an event.

        Args:
            name: What happened.
            time_secs: When, in seconds of the user's audio.
            **fields: What else there is to say.
        """
        # A sound that is still going on ends with the recording.
        self._events.append(Event(min(time_secs, self.secs), name, fields))

    def select(self, name: str) -> list[Event]:
        """Return the events of one name, sorted by time.

        Args:
            name: The name.
        """
        return [event for event in self.events if event.name == name]

    def watch(self, service: DuplexLLMService) -> None:
        """Record the turn events of a service.

        Args:
            service: The service, before it runs.
        """

        async def on_session_started(_, session_id: str):
            self.add("session_started", 0.0)

        async def on_user_started(_, event: UserStarted):
            self.add("user_started", event.time_secs, over_agent=event.over_agent)

        async def on_user_stopped(_, event: UserStopped):
            self.add("user_stopped", event.time_secs)

        async def on_agent_started(_, event: AgentStarted):
            self.add("agent_started", event.time_secs, over_user=event.over_user)

        async def on_agent_stopped(_, event: AgentStopped, text: str):
            self.add("agent_stopped", event.time_secs, yielded=event.yielded, text=text)

        async def on_yield(_, event: Yielded, text: str):
            self.add("yield", event.time_secs, delay_secs=event.delay_secs, text=text)

        async def on_backchannel(_, event: Backchannel):
            self.add("backchannel", event.time_secs, duration_secs=event.duration_secs)

        for handler in (
            on_session_started,
            on_user_started,
            on_user_stopped,
            on_agent_started,
            on_agent_stopped,
            on_yield,
            on_backchannel,
        ):
            service.add_event_handler(handler.__name__, handler)

    def take_frame(self, frame: Frame) -> None:
        """Record what a frame carries: the agent's audio, or a piece of its monologue.

        Args:
            frame: Any frame that reached the output transport.
        """
        if isinstance(frame, TTSAudioRawFrame) and frame.pts is not None:
            self._take_audio(frame)
        elif isinstance(frame, MonologueTextFrame):
            self._take_piece(frame)

    def finish(self) -> None:
        """Complete the last word."""
        self._add_word(self._monologue.end_utterance())

    def _take_audio(self, frame: TTSAudioRawFrame) -> None:
        assert frame.pts is not None and frame.sample_rate == SAMPLE_RATE_HZ
        start = round(frame.pts * SAMPLE_RATE_HZ / 1e9)
        place = self.agent_pcm[start : start + frame.num_frames]
        # What the agent says in the last step would be heard after the end.
        place[:] = pcm16_to_float(frame.audio, frame.num_channels)[: len(place)]

    def _take_piece(self, frame: MonologueTextFrame) -> None:
        self.add(
            "monologue", frame.time_secs, text=frame.text, token=frame.token, step=frame.step_index
        )
        if frame.step_index > self._monologue_step + 1:
            self._add_word(self._monologue.feed(frame.step_index - 1, None))
        self._monologue_step = frame.step_index
        self._add_word(self._monologue.feed(frame.step_index, frame.text))

    def _add_word(self, word: Word | None) -> None:
        if word is not None and word.text.strip():
            # Step i is heard from second (i + 1) * STEP_SECS on.
            self.add("word", (word.first_step + 1) * STEP_SECS, text=word.text.strip())


@dataclass(frozen=True)
class Figures:
    """A conversation in numbers. None of them depends on the machine.

    Parameters:
        duration_secs: Length of both voices.
        user_turns: Times the user began to speak.
        agent_turns: Utterances of the agent.
        agent_words: Words it said.
        yields: Times the user spoke over the agent, and it gave up the floor.
        backchannels: Times the user spoke over the agent, and it went on.
        answer_delays_secs: From the user's end to the agent's first sound, of each answer.
    """

    duration_secs: float
    user_turns: int
    agent_turns: int
    agent_words: int
    yields: int
    backchannels: int
    answer_delays_secs: list[float]


def count(recording: Recording) -> Figures:
    """Return the figures of a conversation.

    Args:
        recording: The conversation.
    """
    return Figures(
        duration_secs=recording.secs,
        user_turns=len(recording.select("user_started")),
        agent_turns=len(recording.select("agent_started")),
        agent_words=len(recording.select("word")),
        yields=len(recording.select("yield")),
        backchannels=len(recording.select("backchannel")),
        answer_delays_secs=[stop - start for start, stop in answers(recording)],
    )


def answers(recording: Recording) -> list[tuple[float, float]]:
    """Return each silence between a user's turn and the agent's answer.

    Args:
        recording: The conversation.

    Returns:
        The user's end and the agent's first sound, in seconds.
    """
    found = []
    agent_speaking = False
    user_end_secs: float | None = None
    for event in recording.events:
        if event.name == "user_stopped":
            # Who speaks already does not answer.
            user_end_secs = None if agent_speaking else event.time_secs
        elif event.name == "user_started":
            user_end_secs = None
        elif event.name == "agent_started":
            agent_speaking = True
            sound_secs = _first_sound_secs(recording.agent_pcm, event.time_secs)
            if user_end_secs is not None and sound_secs is not None:
                found.append((user_end_secs, max(user_end_secs, sound_secs)))
            user_end_secs = None
        elif event.name == "agent_stopped":
            agent_speaking = False
    return found


def floor_spans(events: Iterable[Event], who: str, end_secs: float) -> list[tuple[float, float]]:
    """Return when a voice held the floor.

    Args:
        events: Sorted by time.
        who: ``user`` or ``agent``.
        end_secs: End of a span that is still open.
    """
    found: list[tuple[float, float]] = []
    start_secs: float | None = None
    for event in events:
        if event.name == f"{who}_started":
            start_secs = event.time_secs
        elif event.name == f"{who}_stopped" and start_secs is not None:
            found.append((start_secs, min(event.time_secs, end_secs)))
            start_secs = None
    if start_secs is not None:
        found.append((start_secs, end_secs))
    return found


def write_events(path: Path, events: Iterable[Event]) -> None:
    """Write one JSON object a line.

    Args:
        path: The file.
        events: Sorted by time.
    """
    lines = [json.dumps(event.as_json(), ensure_ascii=False) + "\n" for event in events]
    path.write_text("".join(lines), encoding="utf-8")


def _first_sound_secs(pcm: np.ndarray, from_secs: float) -> float | None:
    for start in range(round(from_secs * SAMPLE_RATE_HZ), len(pcm), _SOUND_SAMPLES):
        if level_db(pcm[start : start + _SOUND_SAMPLES]) >= _SOUND_DB:
            return start / SAMPLE_RATE_HZ
    return None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
