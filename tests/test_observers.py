"""Pipecat's own observers and recorders see the truth, by the wall clock."""

import numpy as np
import pytest
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    InterruptionFrame,
    OutputTransportMessageUrgentFrame,
    TTSAudioRawFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.turn_tracking_observer import TurnTrackingObserver
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregatorParams
from pipecat.processors.audio.audio_buffer_processor import AudioBufferProcessor
from pipecat.processors.frame_processor import FrameDirection

from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import STEP_SECS
from tests.pipeline import Conversation, converse, silence, speech
from tests.stalls import by_the_clock

LONG = " ".join(["word"] * 20)
RATE_HZ = 16_000


def onsets_secs(pcm: np.ndarray, *, gap_secs: float = 0.3, level: float = 0.02) -> list[float]:
    """Return where sound begins after silence, in seconds."""
    loud = np.flatnonzero(np.abs(pcm) > level)
    if not loud.size:
        return []
    starts = np.flatnonzero(np.diff(loud, prepend=-RATE_HZ) > gap_secs * RATE_HZ)
    return [loud[i] / RATE_HZ for i in starts]


@pytest.mark.slow
@by_the_clock
async def test_turn_tracking_counts_a_yield_as_an_interruption_and_a_backchannel_not():
    for yield_steps, interrupted in ((6, True), (None, False)):
        observer = TurnTrackingObserver()
        turns = []

        async def on_turn_ended(_observer, number, _secs, was_interrupted, turns=turns):
            turns.append((number, was_interrupted))

        observer.add_event_handler("on_turn_ended", on_turn_ended)
        await converse(
            ScriptedBackend(Script(opening=" ".join(["word"] * 12), yield_steps=yield_steps)),
            np.concatenate([silence(1.2), speech("yeah_okay"), silence(6)]),
            realtime=True,
            observers=[observer],
        )
        assert turns[0] == (1, interrupted)


@pytest.mark.slow
@by_the_clock
async def test_latency_is_that_of_the_voices():
    """The observer's figure is the time from the user's last sound to the agent's first."""
    observer = UserBotLatencyObserver()
    latencies = []

    async def on_latency_measured(_observer, secs):
        latencies.append(secs)

    observer.add_event_handler("on_latency_measured", on_latency_measured)
    user = np.concatenate([silence(1), speech("barge_in"), silence(3)])
    conversation = await converse(
        ScriptedBackend(Script(replies=["yes indeed"], reply_steps=6)),
        user,
        realtime=True,
        observers=[observer],
    )
    first_pts = conversation.near.of(TTSAudioRawFrame)[0].pts / 1e9
    # The level of a detector, not of a microphone: the last sounds die away.
    user_end = np.flatnonzero(np.abs(user) > 0.02)[-1] / RATE_HZ
    assert latencies and latencies[0] == pytest.approx(first_pts - user_end, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("in_front", [False, True])
@by_the_clock
async def test_one_start_and_one_stop_an_utterance_also_with_a_detector_in_front(in_front):
    """A ``vad_analyzer`` that was left in the user aggregator tells of the voice in our place."""
    observer = UserBotLatencyObserver()
    latencies = []

    async def on_latency_measured(_observer, secs):
        latencies.append(secs)

    observer.add_event_handler("on_latency_measured", on_latency_measured)
    vad = SileroVADAnalyzer() if in_front else None
    conversation = await converse(
        ScriptedBackend(Script(replies=["yes indeed"], reply_steps=6)),
        np.concatenate([silence(1), speech("barge_in"), silence(3)]),
        realtime=True,
        observers=[observer],
        user_params=LLMUserAggregatorParams(vad_analyzer=vad),
    )
    names = conversation.event_names()
    for frame_type, event in (
        (VADUserStartedSpeakingFrame, "on_user_started"),
        (VADUserStoppedSpeakingFrame, "on_user_stopped"),
    ):
        frames = conversation.near.of(frame_type, direction=FrameDirection.DOWNSTREAM)
        assert len(frames) == names.count(event) == 1
    assert len(latencies) == 1
    turns = (UserStartedSpeakingFrame, UserStoppedSpeakingFrame)
    turns = conversation.near.of(*turns, direction=FrameDirection.DOWNSTREAM)
    assert len(turns) == 2
    assert not conversation.near.of(InterruptionFrame)


async def record(script: Script) -> tuple[Conversation, np.ndarray, np.ndarray, np.ndarray]:
    """Hold a conversation with a recorder.

    Returns:
        The conversation, the user's audio, and both tracks of the recording.
    """
    recorder = AudioBufferProcessor(sample_rate=RATE_HZ, num_channels=2, auto_start_recording=True)
    tracks = []

    async def on_track_audio_data(_recorder, user, bot, _rate, _channels):
        tracks.append((user, bot))

    recorder.add_event_handler("on_track_audio_data", on_track_audio_data)
    user = np.concatenate([silence(1), speech("question"), silence(4)])
    conversation = await converse(
        ScriptedBackend(script), user, realtime=True, processors=[recorder]
    )
    recorded_user, recorded_bot = (
        np.frombuffer(track, np.int16) / np.float32(32768) for track in tracks[-1]
    )
    return conversation, user, recorded_user, recorded_bot


@pytest.mark.slow
@by_the_clock
async def test_a_recording_lines_up():
    conversation, user, recorded_user, recorded_bot = await record(
        Script(replies=["the answer is five"])
    )
    spoken = onsets_secs(user)
    assert onsets_secs(recorded_user)[: len(spoken)] == pytest.approx(spoken, abs=0.05)
    assert onsets_secs(recorded_bot) == pytest.approx(utterances_secs(conversation), abs=0.15)


@pytest.mark.slow
@by_the_clock
async def test_a_recording_lines_up_over_a_stall():
    conversation, _, _, recorded_bot = await record(
        Script(opening="hello", replies=["yes"], stalls={20: 1.5})
    )
    # The reply comes after the stall is made up: it stands where it belongs.
    assert onsets_secs(recorded_bot)[-1] == pytest.approx(
        utterances_secs(conversation)[-1], abs=0.15
    )


def utterances_secs(conversation: Conversation) -> list[float]:
    """Return where the utterances that were pushed begin, in seconds of the user's audio."""
    pts = [frame.pts / 1e9 for frame in conversation.near.of(TTSAudioRawFrame)]
    return [b for a, b in zip([-1.0, *pts], pts, strict=False) if b - a > 2 * STEP_SECS]


@pytest.mark.slow
@by_the_clock
async def test_rtvi_clients_see_both_sides():
    conversation = await converse(
        ScriptedBackend(Script(opening=LONG)),
        np.concatenate([silence(1.5), speech("barge_in"), silence(2)]),
        realtime=True,
    )
    messages = [
        frame.message["type"]
        for frame in conversation.near.of(OutputTransportMessageUrgentFrame)
        if isinstance(frame.message, dict)
    ]
    expected = (
        "user-started-speaking",
        "user-stopped-speaking",
        "bot-started-speaking",
        "bot-stopped-speaking",
        "bot-output",
        "bot-tts-text",
    )
    assert [kind for kind in expected if kind not in messages] == []
