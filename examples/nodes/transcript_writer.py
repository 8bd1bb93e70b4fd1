"""Who said what when, as JSONL and as WebVTT subtitles.

Place it right behind the service, where the agent's audio still carries its place in the call::

    duplex = DuplexLLMService(checkpoint="embedded")
    Pipeline([
        transport.input(),
        user_aggregator,
        duplex,
        TranscriptWriter(duplex, "call"),  # writes call.jsonl and call.vtt
        transport.output(),
        assistant_aggregator,
    ])

The model does not transcribe the user: their turns have times and no words. An STT service in front
of the user aggregator, or between the two nodes, gives them words.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    StartFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from pipecat_duplex import (
    AgentYieldedFrame,
    BackchannelFrame,
    DuplexLLMService,
    MonologueTextFrame,
)
from pipecat_duplex.conversation.turns import UserStarted, UserStopped
from pipecat_duplex.session import WORD_START

AUDIBLE_PCM16 = 100
"""Samples up to this (-50 dBFS) are silence."""

CUE_WORDS = 10
"""Words of the agent in one subtitle."""


@dataclass
class Word:
    """A word of the agent, and when its sound begins, in seconds of the user's audio."""

    time_secs: float
    text: str


@dataclass
class Speech:
    """One turn of the user, or one utterance of the agent. Times are in seconds of user audio.

    Parameters:
        who: ``user`` or ``agent``.
        start_secs: When its sound began.
        end_secs: When it ended, as far as is known.
        words: The agent's words that were sent out, with their times.
        text: The user's words, if an STT service gave any.
        backchannel: The user spoke over the agent, and the agent went on.
        yielded: The agent gave up the floor to the user.
    """

    who: str
    start_secs: float
    end_secs: float
    words: list[Word] = field(default_factory=list)
    text: str = ""
    backchannel: bool = False
    yielded: bool = False


class TranscriptWriter(FrameProcessor):
    """Writes a line of JSON for each thing that happened, and subtitles at the end.

    Each line of the JSONL file has ``who`` (``user`` or ``agent``), ``what`` and ``start_secs``:

    - ``speech``: a turn or utterance that is over, with ``end_secs`` and, for the agent, ``text``,
      ``words`` (each with ``time_secs``) and ``yielded``.
    - ``text``: what an STT service understood of the user's speech that began at ``start_secs``.
    - ``yield``: the agent gave up the floor, ``delay_secs`` after the user's first sound over it.
    - ``backchannel``: the user spoke over the agent until ``end_secs``, and the agent went on.

    Lines are written as the call goes. The subtitles are written when it ends, however it ends:
    WebVTT wants them sorted by their beginning, and speech that overlaps ends in another order.

    A session that takes the place of a failed one begins at second 0. Here the times go on.
    """

    def __init__(self, service: DuplexLLMService, path: str | Path, **kwargs):
        """Initialize the writer.

        Args:
            service: The service whose conversation is written.
            path: The two files, without their endings ``.jsonl`` and ``.vtt``.
            **kwargs: Additional arguments passed to the parent FrameProcessor.
        """
        super().__init__(**kwargs)
        self._path = Path(path)
        self._speeches: list[Speech] = []
        self._user: Speech | None = None
        self._user_speaking = False
        self._agent: Speech | None = None
        self._word_secs: float | None = None
        self._now_secs = 0.0
        self._sessions = 0
        self._session_start_secs = 0.0
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._writer: asyncio.Task | None = None
        self._closed = False
        service.add_event_handler("on_session_started", self._on_session_started)
        service.add_event_handler("on_user_started", self._on_user_started)
        service.add_event_handler("on_user_stopped", self._on_user_stopped)
        service.add_event_handler("on_user_transcript", self._on_user_transcript)

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Note what the frame tells, and pass it on.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            self._writer = self.create_task(self._write())
        elif isinstance(frame, (EndFrame, CancelFrame)):
            await self._close()
        elif direction == FrameDirection.DOWNSTREAM:
            self._note(frame)
        await self.push_frame(frame, direction)

    async def cleanup(self):
        """Close the files, if no frame has told to."""
        await self._close()
        await super().cleanup()

    #
    # who said what
    #

    def _note(self, frame: Frame):
        if isinstance(frame, MonologueTextFrame):
            self._note_piece(frame)
        elif isinstance(frame, TTSTextFrame):
            self._note_word(frame.text)
        elif isinstance(frame, TTSAudioRawFrame):
            self._note_audio(frame)
        elif isinstance(frame, InputAudioRawFrame):
            self._now_secs += frame.num_frames / frame.sample_rate
        elif isinstance(frame, (LLMFullResponseStartFrame, LLMFullResponseEndFrame)):
            self._end_utterance()
        elif isinstance(frame, AgentYieldedFrame):
            self._note_yield(frame)
        elif isinstance(frame, BackchannelFrame):
            self._note_backchannel(frame)
        elif isinstance(frame, TranscriptionFrame):
            self._note_user_text(frame.text.strip())

    def _note_piece(self, frame: MonologueTextFrame):
        # The word itself follows as a TTSTextFrame, when it is complete and was sent out.
        if frame.text.startswith(WORD_START) or self._word_secs is None:
            self._word_secs = self._session_start_secs + frame.time_secs

    def _note_word(self, text: str):
        time_secs = self._now_secs if self._word_secs is None else self._word_secs
        self._word_secs = None
        self._utterance(time_secs).words.append(Word(time_secs, text))

    def _note_audio(self, frame: TTSAudioRawFrame):
        if frame.pts is None:
            return
        start_secs = self._session_start_secs + frame.pts / 1e9
        self._now_secs = max(self._now_secs, start_secs)
        utterance = self._utterance(start_secs)
        pcm16 = np.frombuffer(frame.audio, "<i2")
        audible = np.flatnonzero(np.abs(pcm16.astype(np.int32)) > AUDIBLE_PCM16)
        if audible.size:
            utterance.end_secs = start_secs + (audible[-1] + 1) / frame.sample_rate

    def _utterance(self, start_secs: float) -> Speech:
        if self._agent is None:
            self._agent = Speech("agent", start_secs, start_secs)
            self._speeches.append(self._agent)
        return self._agent

    def _end_utterance(self):
        agent, self._agent = self._agent, None
        self._word_secs = None
        if agent is None:
            return
        self._line(
            "agent",
            "speech",
            agent.start_secs,
            end_secs=agent.end_secs,
            text="".join(word.text for word in agent.words).strip(),
            words=[{"time_secs": w.time_secs, "text": w.text.strip()} for w in agent.words],
            yielded=agent.yielded,
        )

    def _note_yield(self, frame: AgentYieldedFrame):
        if self._agent:
            self._agent.yielded = True
        time_secs = self._session_start_secs + frame.time_secs
        self._line("agent", "yield", time_secs, delay_secs=frame.delay_secs)

    def _note_backchannel(self, frame: BackchannelFrame):
        start_secs = self._session_start_secs + frame.time_secs
        end_secs = start_secs + frame.duration_secs
        if self._user and self._user.start_secs < end_secs:
            self._user.backchannel = True
        self._line("user", "backchannel", start_secs, end_secs=end_secs)

    def _note_user_text(self, text: str):
        if not text:
            return
        if self._user is None:
            self._start_user(self._now_secs)
            self._user_speaking = False
        assert self._user is not None
        self._user.text = f"{self._user.text} {text}".strip()
        self._line("user", "text", self._user.start_secs, text=text)

    async def _on_user_transcript(
        self, _service: DuplexLLMService, text: str, start_secs: float, end_secs: float, _kind: str
    ):
        offset_secs = self._session_start_secs
        speech = self._user_speech(offset_secs + start_secs, offset_secs + end_secs)
        speech.text = f"{speech.text} {text}".strip()
        self._line("user", "text", speech.start_secs, text=text)

    def _user_speech(self, start_secs: float, end_secs: float) -> Speech:
        """Return the user's speech that shares most of a stretch of time, or a new one."""
        best, most_secs = None, 0.0
        for speech in self._speeches:
            ended_secs = self._now_secs if speech.end_secs == speech.start_secs else speech.end_secs
            shared_secs = min(end_secs, ended_secs) - max(start_secs, speech.start_secs)
            if speech.who == "user" and shared_secs > most_secs:
                best, most_secs = speech, shared_secs
        if best is None:
            best = Speech("user", start_secs, end_secs)
            self._speeches.append(best)
        return best

    async def _on_session_started(self, _service: DuplexLLMService, _session_id: str):
        self._sessions += 1
        if self._sessions > 1:
            self._session_start_secs = self._now_secs

    async def _on_user_started(self, _service: DuplexLLMService, event: UserStarted):
        self._start_user(self._session_start_secs + event.time_secs)
        self._user_speaking = True

    async def _on_user_stopped(self, _service: DuplexLLMService, event: UserStopped):
        self._stop_user(self._session_start_secs + event.time_secs)

    def _start_user(self, start_secs: float):
        self._now_secs = max(self._now_secs, start_secs)
        self._user = Speech("user", start_secs, start_secs)
        self._speeches.append(self._user)

    def _stop_user(self, end_secs: float):
        if self._user is None or not self._user_speaking:
            return
        self._user_speaking = False
        self._now_secs = max(self._now_secs, end_secs)
        self._user.end_secs = end_secs
        self._line("user", "speech", self._user.start_secs, end_secs=end_secs)

    def _line(self, who: str, what: str, start_secs: float, **fields):
        if not self._closed:
            values = {"who": who, "what": what, "start_secs": start_secs} | fields
            self._lines.put_nowait(json.dumps(_rounded(values), ensure_ascii=False) + "\n")

    #
    # files
    #

    async def _close(self):
        if self._writer is None:
            return
        if not self._closed:
            self._stop_user(self._now_secs)
            self._end_utterance()
            self._closed = True
            self._lines.put_nowait(None)
        # Unlike an await, this leaves the writer alone when the waiting itself is cancelled.
        await asyncio.wait([self._writer])

    async def _write(self):
        """Write lines as they come, then the subtitles; all of it in threads."""
        try:
            file = await asyncio.to_thread(self._open)
            try:
                while (line := await self._lines.get()) is not None:
                    await asyncio.to_thread(_append, file, line)
            finally:
                file.close()
            subtitles = webvtt(self._speeches)
            await asyncio.to_thread(
                self._path.with_name(f"{self._path.name}.vtt").write_text, subtitles, "utf-8"
            )
        except OSError as e:
            self._closed = True
            await self.push_error(f"The transcript cannot be written: {e}", exception=e)

    def _open(self) -> TextIO:
        return open(self._path.with_name(f"{self._path.name}.jsonl"), "w", encoding="utf-8")


def webvtt(speeches: Iterable[Speech]) -> str:
    """Return the text of a WebVTT file.

    Args:
        speeches: In any order.

    Returns:
        Subtitles sorted by their beginning, each of one voice (``<v User>``, ``<v Agent>``), the
        agent's with the time of each word.
    """
    cues = [cue for speech in speeches for cue in _cues(speech)]
    return "\n".join(["WEBVTT\n", *(text for _, text in sorted(cues, key=lambda cue: cue[0]))])


def _cues(speech: Speech) -> list[tuple[int, str]]:
    """Return the subtitles of a speech, each with its beginning in milliseconds."""
    end_ms = _ms(speech.end_secs)
    if speech.who == "user":
        voice = "v.backchannel User" if speech.backchannel else "v User"
        text = _escaped(speech.text) or ("(backchannel)" if speech.backchannel else "(speaks)")
        return [_cue(_ms(speech.start_secs), end_ms, f"<{voice}>{text}")]
    if not speech.words:
        return []
    groups = [speech.words[i : i + CUE_WORDS] for i in range(0, len(speech.words), CUE_WORDS)]
    starts_ms = [_ms(group[0].time_secs) for group in groups]
    texts = [_timed_text(group) for group in groups]
    if speech.yielded:
        texts[-1] += " — (yields)"
    ends_ms = [*starts_ms[1:], end_ms]
    return [
        _cue(start, end, f"<v Agent>{text}")
        for start, end, text in zip(starts_ms, ends_ms, texts, strict=True)
    ]


def _cue(start_ms: int, end_ms: int, text: str) -> tuple[int, str]:
    end_ms = max(end_ms, start_ms + 1)
    return start_ms, f"{_timestamp(start_ms)} --> {_timestamp(end_ms)}\n{text}\n"


def _timed_text(words: list[Word]) -> str:
    """Return words with the times of all but the first, which begins with the subtitle."""
    text, last_ms = _escaped(words[0].text), _ms(words[0].time_secs)
    for word in words[1:]:
        word_ms = _ms(word.time_secs)
        text += f" <{_timestamp(word_ms)}>" if word_ms > last_ms else " "
        text += _escaped(word.text)
        last_ms = max(last_ms, word_ms)
    return text


def _escaped(text: str) -> str:
    """Return text on one line in which nothing reads as markup."""
    text = " ".join(text.split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _ms(secs: float) -> int:
    return round(secs * 1000)


def _timestamp(ms: int) -> str:
    secs, ms = divmod(ms, 1000)
    return f"{secs // 3600:02}:{secs // 60 % 60:02}:{secs % 60:02}.{ms:03}"


def _append(file: TextIO, line: str) -> None:
    file.write(line)
    file.flush()


def _rounded(value):
    """Return a JSON value whose numbers have no more digits than they mean."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
