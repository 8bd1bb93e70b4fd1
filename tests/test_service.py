"""The service in real pipelines, with a scripted agent behind the session contract."""

import asyncio
import dataclasses
import itertools
import math
import time

import numpy as np
import pytest
from pipecat.clocks.system_clock import SystemClock
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    MetricsFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import (
    FrameDirection,
    FrameProcessor,
    FrameProcessorSetup,
)
from pipecat.utils.asyncio.task_manager import TaskManager, TaskManagerParams

from pipecat_duplex import (
    AgentYieldedFrame,
    AtCapacity,
    BackchannelFrame,
    DuplexLLMService,
    DuplexMetricsData,
    MonologueTextFrame,
    SessionConfig,
    UnheardTextFrame,
)
from pipecat_duplex.scripted import FINGERPRINT, WORD_STEPS, Script, ScriptedBackend
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS
from pipecat_duplex.session.history import STREAMS, History
from tests.pipeline import Conversation, converse, is_sound, noter, silence, speech
from tests.stalls import by_the_clock

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def fast(**script) -> ScriptedBackend:
    return ScriptedBackend(Script(step_secs=0, **script))


def joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


def assert_brackets(conversation: Conversation) -> None:
    """Every bracket opens once, closes once, and holds all of the audio."""
    open_llm = open_tts = False
    for seen in conversation.near.seen:
        if seen.direction is not FrameDirection.DOWNSTREAM:
            continue
        frame = seen.frame
        if isinstance(frame, LLMFullResponseStartFrame):
            assert not open_llm and not open_tts
            open_llm = True
        elif isinstance(frame, TTSStartedFrame):
            assert open_llm and not open_tts
            open_tts = True
        elif isinstance(frame, TTSStoppedFrame):
            assert open_llm and open_tts
            open_tts = False
        elif isinstance(frame, LLMFullResponseEndFrame):
            assert open_llm and not open_tts
            open_llm = False
        elif isinstance(frame, TTSAudioRawFrame | TTSTextFrame | LLMTextFrame):
            assert open_tts, f"{frame} outside the brackets"
    assert not open_llm and not open_tts


def assert_unheard_words_are_marked(conversation: Conversation, words: list[str]) -> None:
    """Captions and context hold every word once, and tell which of them were not heard."""
    (context,) = conversation.assistant_words()
    assert context == "".join(frame.text for frame in conversation.near.of(LLMTextFrame))
    assert (
        context.replace("[not heard: ", "").replace("]", "").split()
        == words[: len(context.split()) - 2 * context.count("[not heard:")]
    )
    marks = [frame.text for frame in conversation.near.of(UnheardTextFrame)]
    assert marks and all(mark in context for mark in marks)
    assert context.count("[not heard:") == len(marks)


async def test_question_and_answer():
    conversation = await converse(
        fast(replies=["the answer is five"]), joined(speech("question"), silence(3))
    )
    names = [n for n in conversation.event_names() if n.startswith(("on_user", "on_agent"))]
    # "Hello." and the question are two stretches of voice; the scripted agent replies to each.
    assert names[:4] == ["on_user_started", "on_user_stopped", "on_agent_started", *names[3:4]]
    assert names.count("on_agent_started") == names.count("on_agent_stopped")
    assert conversation.assistant_words()[-1] == "the answer is five"
    assert not conversation.near.of(InterruptionFrame) or conversation.near.of(AgentYieldedFrame)
    assert_brackets(conversation)


async def test_opening_needs_no_user():
    conversation = await converse(fast(opening="hello there"), silence(3))
    assert conversation.assistant_words() == ["hello there"]
    assert not conversation.near.of(VADUserStartedSpeakingFrame, UserStartedSpeakingFrame)
    assert_brackets(conversation)


async def test_frames_of_an_utterance_in_their_order():
    conversation = await converse(fast(opening="hello there"), silence(3))
    kinds = (
        LLMFullResponseStartFrame,
        TTSStartedFrame,
        MonologueTextFrame,
        TTSAudioRawFrame,
        LLMTextFrame,
        TTSTextFrame,
        TTSStoppedFrame,
        LLMFullResponseEndFrame,
    )
    frames = conversation.near.of(*kinds)
    assert [type(frame) for frame in frames[:6]] == [*kinds[:4], LLMTextFrame, TTSTextFrame]
    assert [type(frame) for frame in frames[-2:]] == [TTSStoppedFrame, LLMFullResponseEndFrame]
    words = conversation.near.of(TTSTextFrame)
    assert [word.text for word in words] == ["hello", " there"]
    assert all(word.includes_inter_frame_spaces and word.append_to_context for word in words)
    assert not any(frame.append_to_context for frame in conversation.near.of(LLMTextFrame))
    pieces = conversation.near.of(MonologueTextFrame)
    assert [(p.text, p.step_index) for p in pieces] == [("▁hello", 5), ("▁there", 5 + WORD_STEPS)]
    assert pieces[0].time_secs == pytest.approx(6 * STEP_SECS)


async def test_the_text_of_a_step_comes_before_its_sound():
    conversation = await converse(fast(opening="hello there"), silence(2))
    frames = conversation.near.of(MonologueTextFrame, TTSAudioRawFrame)
    for piece, audio in itertools.pairwise(frames):
        if isinstance(piece, MonologueTextFrame):
            assert isinstance(audio, TTSAudioRawFrame)
            assert audio.pts / 1e9 == pytest.approx(piece.time_secs)


async def test_a_piece_tells_which_given_words_it_belongs_to():
    conversation = await converse(
        fast(opening="hello"), silence(4), inject={1.5: lambda: TTSSpeakFrame("one moment")}
    )
    pieces = conversation.near.of(MonologueTextFrame)
    assert [piece.utterance_id for piece in pieces] == [None, 1, 1]


async def test_a_context_passes_upstream_and_goes_no_further_downstream():
    """A tool's result, say, comes from behind and is for an LLM in front of the service."""

    class Returns(FrameProcessor):
        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            await self.push_frame(frame, direction)
            if isinstance(frame, TTSStartedFrame):
                await self.push_frame(LLMContextFrame(LLMContext()), FrameDirection.UPSTREAM)

    conversation = await converse(
        fast(opening="hello"),
        silence(2),
        inject={0.2: lambda: LLMContextFrame(LLMContext())},
        processors=[Returns()],
    )
    assert not conversation.near.of(LLMContextFrame, direction=FrameDirection.DOWNSTREAM)
    assert len(conversation.near_user.of(LLMContextFrame, direction=FrameDirection.UPSTREAM)) == 1
    assert conversation.assistant_words() == ["hello"]


async def test_a_silent_agent_pushes_no_audio():
    conversation = await converse(fast(opening="hello"), silence(6))
    frames = conversation.near.of(TTSAudioRawFrame)
    # One more may hold the ringing of the resampler.
    assert sum(is_sound(frame) for frame in frames) in (WORD_STEPS, WORD_STEPS + 1)
    # The rest is the silence in which it is not sure yet that the agent is done.
    assert len(frames) <= WORD_STEPS + 6


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 48_000])
async def test_every_rate_in_and_out(rate_hz):
    conversation = await converse(
        fast(opening="hello there"),
        joined(silence(3, rate_hz), speech("yeah_okay", rate_hz), silence(1, rate_hz)),
        rate_hz=rate_hz,
    )
    frames = conversation.near.of(TTSAudioRawFrame)
    assert frames and {frame.sample_rate for frame in frames} == {rate_hz}
    assert {frame.num_frames for frame in frames} == {round(rate_hz * STEP_SECS)}
    assert conversation.near.of(VADUserStartedSpeakingFrame)
    pts = conversation.near.audio_pts_secs()
    assert pts == pytest.approx([pts[0] + i * STEP_SECS for i in range(len(pts))])


async def test_a_yield_is_the_only_interruption():
    conversation = await converse(
        fast(opening=LONG), joined(silence(2), speech("barge_in"), silence(3))
    )
    near = conversation.near
    order = near.of(
        AgentYieldedFrame,
        InterruptionFrame,
        UserStartedSpeakingFrame,
        TTSStoppedFrame,
        direction=FrameDirection.DOWNSTREAM,
    )
    assert [type(frame) for frame in order[:4]] == [
        UserStartedSpeakingFrame,
        AgentYieldedFrame,
        InterruptionFrame,
        TTSStoppedFrame,
    ]
    assert len(near.of(InterruptionFrame, direction=FrameDirection.DOWNSTREAM)) == 1
    # Upstream processors hear of it too.
    assert len(conversation.near_user.of(InterruptionFrame)) >= 1
    assert len(conversation.near_user.of(AgentYieldedFrame)) == 1
    assert_brackets(conversation)


async def test_the_context_holds_what_was_heard_before_the_yield():
    conversation = await converse(
        fast(opening=LONG), joined(silence(2), speech("barge_in"), silence(3))
    )
    (said,) = conversation.assistant_words()
    assert LONG.startswith(said) and 3 < len(said.split()) < len(LONG.split())
    (event,) = [event for event in conversation.events if event[0] == "on_yield"]
    assert event[2] == said
    assert 0 < event[1].delay_secs < 2
    (frame,) = conversation.near.of(AgentYieldedFrame)
    assert frame.text == said and frame.delay_secs == event[1].delay_secs


async def test_a_backchannel_is_not_an_interruption():
    conversation = await converse(
        fast(opening=LONG, yield_steps=None), joined(silence(1.5), speech("yeah_okay"), silence(4))
    )
    assert not conversation.near.of(InterruptionFrame, AgentYieldedFrame)
    assert not conversation.near.of(UserStartedSpeakingFrame)
    assert conversation.near.of(VADUserStartedSpeakingFrame, VADUserStoppedSpeakingFrame)
    (frame,) = conversation.near.of(BackchannelFrame)
    assert 0.1 < frame.duration_secs < 1.0
    assert "on_backchannel" in conversation.event_names()
    assert conversation.assistant_words() == [LONG]
    assert len(conversation.near.of(TTSStartedFrame)) == 1


@pytest.mark.slow
async def test_user_frames_come_in_pairs():
    conversation = await converse(
        fast(replies=["yes"]), joined(speech("question"), silence(2), speech("barge_in"))
    )
    frames = conversation.near.of(
        VADUserStartedSpeakingFrame,
        VADUserStoppedSpeakingFrame,
        direction=FrameDirection.DOWNSTREAM,
    )
    kinds = [type(frame) for frame in frames]
    assert kinds == [VADUserStartedSpeakingFrame, VADUserStoppedSpeakingFrame] * (len(kinds) // 2)
    started = conversation.near.of(UserStartedSpeakingFrame)
    stopped = conversation.near.of(UserStoppedSpeakingFrame)
    assert len(started) == len(stopped) > 0


async def test_the_detector_never_gates_the_audio():
    """The session gets every step, loud or silent, whatever the detector says."""
    backend = fast()
    audio = joined(silence(1), speech("question"), silence(1))
    conversation = await converse(backend, audio)
    assert conversation.service.step_count == int(len(audio) / 16_000 / STEP_SECS)


async def test_a_detector_that_fails_costs_only_the_users_turns():
    from pipecat.audio.vad.vad_analyzer import VADAnalyzer

    class Broken(VADAnalyzer):
        def num_frames_required(self):
            return 512

        def voice_confidence(self, buffer):
            raise RuntimeError("broken on purpose")

    conversation = await converse(
        fast(replies=["yes"]), joined(speech("question"), silence(2)), vad_analyzer=Broken()
    )
    assert conversation.assistant_words()
    assert not conversation.near.of(VADUserStartedSpeakingFrame)


async def test_interruption_from_elsewhere_closes_and_reopens():
    conversation = await converse(
        fast(opening=LONG), silence(5), inject={2.0: lambda: InterruptionFrame()}
    )
    assert len(conversation.near.of(TTSStartedFrame)) == 2
    assert_brackets(conversation)
    first, second = conversation.assistant_words()
    assert LONG.startswith(first) and LONG.endswith(second)
    # The word that was cut, and the one that had just been pushed, were not heard.
    assert len(LONG.split()) - len(f"{first} {second}".split()) in (1, 2)


async def test_end_in_mid_sentence_closes_the_brackets():
    conversation = await converse(fast(opening=LONG), silence(1.5))
    assert len(conversation.near.of(TTSStoppedFrame)) == 1
    assert_brackets(conversation)
    assert conversation.events[-1][0] == "on_session_ended"
    assert conversation.events[-1][2] is None


@pytest.mark.parametrize("audio", [b"\x00" * 641, b""])
async def test_bad_audio_loses_nothing_else(audio):
    conversation = await converse(
        fast(opening="hello there"),
        silence(3),
        inject={0.1: lambda: InputAudioRawFrame(audio, 16_000, 1)},
    )
    errors = conversation.near_user.of(ErrorFrame)
    assert len(errors) == (1 if audio else 0)
    assert conversation.service.is_usable
    assert conversation.assistant_words() == ["hello there"]


async def test_audio_at_an_impossible_rate_is_refused_in_words():
    conversation = await converse(
        fast(opening="hello there"),
        silence(3),
        inject={0.1: lambda: InputAudioRawFrame(b"\x00" * 640, 100, 1)},
    )
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "100" in error.error
    assert conversation.assistant_words() == ["hello there"]


async def test_stereo_input_is_heard():
    conversation = await converse(
        fast(replies=["yes"]), joined(speech("question"), silence(1)), channels=2
    )
    assert conversation.near.of(VADUserStartedSpeakingFrame)
    assert conversation.service.step_count == 48


async def test_a_failing_session_ends_with_a_reason_and_closed_brackets():
    conversation = await converse(fast(opening=LONG, fail_step=20), silence(3), reopen_secs=0)
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "the script says so" in error.error
    assert not conversation.service.is_usable
    assert ("on_session_ended", "scripted-0", "the script says so") in conversation.events
    assert_brackets(conversation)


async def test_the_end_of_a_session_is_told_before_it_comes():
    conversation = await converse(
        fast(),
        silence(6),
        settings=DuplexLLMService.Settings(max_session_secs=4),
        ending_notice_secs=1.5,
    )
    names = [event[0] for event in conversation.events]
    assert names == ["on_session_started", "on_session_ending", "on_session_ended"]
    assert 1.2 < conversation.events[1][1] <= 1.5
    assert "limit of 4 s" in conversation.events[2][2]
    assert conversation.service.step_count == 4 / STEP_SECS


async def test_without_a_limit_no_end_is_told():
    conversation = await converse(fast(), silence(1))
    assert "on_session_ending" not in [event[0] for event in conversation.events]


@pytest.mark.slow
@by_the_clock
async def test_a_fresh_session_takes_over_from_a_failed_one():
    """Once a session fails, the bot hears of it and the caller goes on with another."""
    backend = fast(opening="hello there", fail_step=20)
    conversation = await converse(backend, silence(6), realtime=True)
    started = [event[1] for event in conversation.events if event[0] == "on_session_started"]
    ended = [event for event in conversation.events if event[0] == "on_session_ended"]
    assert started[:2] == ["scripted-0", "scripted-1"]
    assert ended[0] == ("on_session_ended", "scripted-0", "the script says so")
    assert len(conversation.near_user.of(ErrorFrame)) == len(started) - 1
    assert conversation.service.is_usable
    assert conversation.assistant_words()[:2] == ["hello there", "hello there"]
    assert_brackets(conversation)


@pytest.mark.slow
@by_the_clock
async def test_a_fresh_session_goes_on_where_the_last_one_was():
    """After a while without room anywhere the next session has the conversation all the same."""
    count = "one two three four five six seven eight nine ten"

    class Backend(ScriptedBackend):
        refuses_until_secs = math.inf

        async def open(self, config):
            if self.sessions and self.refuses_until_secs == math.inf:
                self.refuses_until_secs = time.monotonic() + 1.0
            if self.sessions and time.monotonic() < self.refuses_until_secs:
                raise AtCapacity("no slot anywhere")
            session = await super().open(config)
            self._script = dataclasses.replace(self._script, fail_step=None)
            return session

    script = Script(opening=count, fail_step=20, remembers=True)
    conversation = await converse(Backend(script), silence(8), realtime=True, reopen_secs=1.0)
    assert " ".join(conversation.assistant_words()).split() == count.split()
    assert conversation.service.is_usable


class Moving(ScriptedBackend):
    """A backend whose first session fails, and which then refuses a few times."""

    def __init__(self, refusals: int):
        super().__init__(Script(opening=LONG, fail_step=20, remembers=True, step_secs=0))
        self._refusals = refusals

    async def open(self, config):
        if self.sessions:
            self._script = dataclasses.replace(self._script, fail_step=None)
            self._refusals -= 1
            if self._refusals >= 0:
                raise AtCapacity("no slot anywhere")
        return await super().open(config)


@pytest.mark.slow
@pytest.mark.parametrize("refusals", [0, 2])
async def test_a_move_is_told_and_its_delay_is_an_error(refusals):
    conversation = await converse(Moving(refusals), silence(6), realtime=True)
    names = [name for name in conversation.event_names() if name.startswith("on_session")]
    assert names == ["on_session_started", "on_session_moving", "on_session_moved", names[-1]]
    _, moving, moved, _ = [event for event in conversation.events if event[0] in names]
    assert moving[1:] == ("scripted-0", "the script says so")
    assert moved[1] == "scripted-0" and moved[2] >= 0
    errors = [frame.error for frame in conversation.near_user.of(ErrorFrame)]
    assert len(errors) == min(refusals, 1)
    assert all("no slot anywhere" in error for error in errors)
    assert conversation.service.is_usable


@pytest.mark.slow
async def test_a_move_that_gets_no_answer_is_told_as_delayed(monkeypatch):
    class Hangs(Moving):
        async def open(self, config):
            if self.sessions:
                await asyncio.sleep(60)
            return await super().open(config)

    monkeypatch.setattr("pipecat_duplex.session.continued.DELAY_NOTICE_SECS", 0.2)
    conversation = await converse(Hangs(0), silence(5), realtime=True)
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "no other has answered yet" in error.error
    assert "on_session_moved" not in conversation.event_names()


async def test_a_history_that_is_refused_frees_its_session():
    codes = np.full((STREAMS, 3), -1, np.int32)
    history = History(FINGERPRINT, codes, True, np.zeros((0, STEP_SAMPLES), np.float32))
    backend = fast(opening="hello", remembers=True)
    conversation = await converse(backend, silence(0.5), history=history)
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "numbers below 0" in error.error
    assert all(session.closed for session in backend.sessions)


@pytest.mark.slow
async def test_no_fresh_session_to_be_had_is_an_error_in_the_end():
    class Backend(ScriptedBackend):
        async def open(self, config):
            if self.sessions:
                raise AtCapacity("no slot anywhere")
            return await super().open(config)

    conversation = await converse(
        Backend(Script(opening="hello", fail_step=10)),
        silence(3),
        realtime=True,
        reopen_secs=1.0,
    )
    errors = [frame.error for frame in conversation.near_user.of(ErrorFrame)]
    assert "the script says so" in errors[0] and "no slot anywhere" in errors[1]
    assert not conversation.service.is_usable
    assert_brackets(conversation)


async def test_at_capacity_is_an_error_frame_at_once():
    backend = fast(opening="hello")
    taken = await backend.open(SessionConfig())
    conversation = await converse(backend, silence(0.5))
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "slots are taken" in error.error
    assert "on_session_started" not in conversation.event_names()
    await taken.close()


async def test_bad_settings_are_an_error_frame():
    conversation = await converse(
        fast(),
        silence(0.5),
        settings=DuplexLLMService.Settings(text_temperature=-1),
    )
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "text_temperature" in error.error


async def test_settings_reach_the_session():
    class Backend(ScriptedBackend):
        config: SessionConfig | None = None

        async def open(self, config):
            self.config = config
            return await super().open(config)

    backend = Backend(Script(step_secs=0))
    await converse(
        backend,
        silence(0.2),
        settings=DuplexLLMService.Settings(
            text_temperature=0.1,
            text_top_k=2,
            audio_temperature=0.3,
            audio_top_k=4,
            seed=5,
            max_session_secs=60,
        ),
    )
    assert backend.config == SessionConfig(
        text_temperature=0.1,
        text_top_k=2,
        audio_temperature=0.3,
        audio_top_k=4,
        seed=5,
        max_secs=60,
    )


async def test_cleanup_twice_and_without_a_pipeline():
    service = DuplexLLMService(backend=fast())
    await service.cleanup()
    await service.cleanup()


@pytest.mark.parametrize(
    "calls",
    [
        [],
        ["start"],
        ["start", "stop"],
        ["start", "cancel"],
        ["start", "stop", "cancel"],
        ["stop"],
        ["cancel"],
        ["start", "start", "stop", "stop", "cancel", "cancel"],
    ],
)
async def test_any_part_of_its_life_may_be_skipped(calls, monkeypatch):
    # Nobody sends audio, so that the greeting is never said: its end is not waited for.
    monkeypatch.setattr("pipecat_duplex.service.service.MAX_FINISH_SECS", 0.1)
    backend = fast(opening="hello")
    service = DuplexLLMService(backend=backend, settings=DuplexLLMService.Settings(greeting="hi"))
    ended = []
    service.add_event_handler("on_session_ended", noter(ended, "on_session_ended"))
    task_manager = TaskManager()
    task_manager.setup(TaskManagerParams(loop=asyncio.get_running_loop()))
    setup = FrameProcessorSetup(
        clock=SystemClock(), task_manager=task_manager, pipeline_worker=None, observer=None
    )
    await service.setup(setup)
    frames = {"start": StartFrame(), "stop": EndFrame(), "cancel": CancelFrame()}
    for call in calls:
        await getattr(service, call)(frames[call])
        await asyncio.sleep(0)
    for _ in range(2):
        await service.cleanup()
    await asyncio.sleep(0.01)
    assert len(ended) == calls.count("start") - ("start" in calls and calls.count("start") > 1)
    assert all(session.closed for session in backend.sessions)
    assert not task_manager.current_tasks()


async def test_a_fault_inside_ends_the_conversation_in_words(monkeypatch):
    def broken(self, *_args, **_options):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("pipecat_duplex.service.service.TurnTracker.step", broken)
    backend = fast(opening="hello")
    conversation = await converse(backend, silence(1))
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "broken on purpose" in error.error
    assert not conversation.service.is_usable
    assert all(session.closed for session in backend.sessions)


async def test_a_given_backend_is_not_closed():
    backend = fast(opening="hello")
    await converse(backend, silence(0.5))
    session = await backend.open(SessionConfig())
    assert not session.closed


async def test_metrics():
    conversation = await converse(
        fast(replies=["yes indeed"]), joined(speech("question"), silence(3))
    )
    data = [d for frame in conversation.near.of(MetricsFrame) for d in frame.data]
    steps = [d for d in data if isinstance(d, DuplexMetricsData)]
    assert sum(d.steps for d in steps) in range(
        conversation.service.step_count - 12, conversation.service.step_count + 1
    )
    assert all(0 <= d.compute_secs <= d.max_compute_secs for d in steps)
    ttfb = [d for d in data if isinstance(d, TTFBMetricsData) and "Duplex" in d.processor]
    assert any(d.value > 0 for d in ttfb)


#
# by the wall clock
#


@pytest.mark.slow
@by_the_clock
async def test_a_muted_microphone_does_not_stop_the_agent():
    conversation = await converse(
        ScriptedBackend(Script(opening=LONG)), silence(6), realtime=True, gaps=[(1.0, 4.0)]
    )
    assert conversation.assistant_words() == [LONG]
    pts = conversation.near.audio_pts_secs()
    assert pts == pytest.approx([pts[0] + i * STEP_SECS for i in range(len(pts))])
    assert len(conversation.near.of(TTSStartedFrame)) == 1


@pytest.mark.slow
@by_the_clock
async def test_after_a_stall_the_delay_is_back_within_two_seconds():
    stalled_step = 15
    opening = " ".join(f"word{i}" for i in range(40))
    conversation = await converse(
        ScriptedBackend(Script(opening=opening, stalls={stalled_step: 1.5})),
        silence(8),
        realtime=True,
    )
    assert_unheard_words_are_marked(conversation, opening.split())
    near = conversation.near
    audio = [seen for seen in near.seen if isinstance(seen.frame, TTSAudioRawFrame)]
    delays = {round(s.frame.pts / 1e9 / STEP_SECS): s.time_secs - s.frame.pts / 1e9 for s in audio}
    before = [d for step, d in delays.items() if step <= stalled_step]
    # Step 15 came out 1.5 s late, at second 2.8; two seconds later all is as it was.
    after = [d for step, d in delays.items() if step * STEP_SECS > 4.8]
    assert len(after) > 10
    # What the machine itself adds and takes; the stall is three times the most that passes.
    usual, jitter = np.median(before), min(max(0.08, np.ptp(before)), 0.5)
    assert np.median(after) < usual + jitter
    # Nothing piles up in the transport either: what is pushed is played.
    sounds = [(at, audio) for at, audio in conversation.speaker.played if any(audio)]
    assert sounds[-1][0] - audio[-1].time_secs < 0.12 + jitter
    dropped = conversation.service.dropped_output_steps
    assert dropped >= 12
    assert sum(len(audio) for _, audio in sounds) / 2 / 16_000 <= (95 - dropped) * STEP_SECS


@pytest.mark.slow
@by_the_clock
async def test_bot_speaking_frames_frame_the_speech():
    conversation = await converse(
        ScriptedBackend(Script(opening="hello there my friend")), silence(4), realtime=True
    )
    started = conversation.far.times(BotStartedSpeakingFrame)
    stopped = conversation.far.times(BotStoppedSpeakingFrame)
    assert len(started) == len(stopped) == 1
    spoken_secs = 4 * WORD_STEPS * STEP_SECS
    assert spoken_secs < stopped[0] - started[0] < spoken_secs + 0.8


@pytest.mark.slow
async def test_the_event_loop_goes_on_while_the_model_works():
    gaps = []

    async def watch():
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(loop.time() - last)
            last = loop.time()

    watcher = asyncio.create_task(watch())
    await converse(ScriptedBackend(Script(opening=LONG)), silence(2), realtime=True)
    watcher.cancel()
    assert np.median(gaps) < 0.02


async def test_a_greeting_is_said_first_and_lands_in_the_context():
    settings = DuplexLLMService.Settings(greeting="hello there how are you")
    conversation = await converse(fast(), silence(3), settings=settings)
    assert conversation.assistant_words() == ["hello there how are you"]
    (said,) = [event[1] for event in conversation.events if event[0] == "on_said"]
    assert (said.spoken, said.unspoken) == ("hello there how are you", "")
    assert_brackets(conversation)


async def test_speak_frames_are_said_in_turn_and_nobody_says_them_twice():
    inject = {
        0.5: lambda: TTSSpeakFrame("one moment"),
        0.52: lambda: TTSSpeakFrame("not for the record", append_to_context=False),
    }
    conversation = await converse(fast(), silence(4), inject=inject)
    assert [frame.text for frame in conversation.near.of(TTSTextFrame)] == [
        "one",
        " moment",
        " not",
        " for",
        " the",
        " record",
    ]
    assert conversation.assistant_words() == ["one moment"]
    assert not conversation.near.of(TTSSpeakFrame)


@pytest.mark.slow
@by_the_clock
async def test_the_end_waits_for_what_was_to_be_said():
    inject = {1.9: lambda: TTSSpeakFrame("goodbye my friend")}
    conversation = await converse(fast(), silence(2), inject=inject, realtime=True)
    assert conversation.assistant_words() == ["goodbye my friend"]


async def test_a_barge_in_drops_what_was_not_said():
    settings = DuplexLLMService.Settings(greeting=LONG)
    conversation = await converse(
        fast(), joined(silence(1), speech("question"), silence(2)), settings=settings
    )
    (said,) = [event[1] for event in conversation.events if event[0] == "on_said"]
    assert said.spoken and said.unspoken
    assert f"{said.spoken} {said.unspoken}" == LONG
    assert conversation.assistant_words() == [said.spoken]
    assert "on_yield" in conversation.event_names()


@pytest.mark.slow
@pytest.mark.parametrize("reopen_secs", [0, 5])
async def test_what_a_failed_session_did_not_say_is_told(reopen_secs):
    settings = DuplexLLMService.Settings(greeting=LONG)
    conversation = await converse(
        fast(fail_step=10), silence(2), settings=settings, reopen_secs=reopen_secs
    )
    said = next(event[1] for event in conversation.events if event[0] == "on_said")
    assert said.spoken and said.unspoken
    assert f"{said.spoken} {said.unspoken}" == LONG
    names = conversation.event_names()
    assert names.index("on_said") < names.index("on_session_ended")


@pytest.mark.parametrize("at_secs", [1.5, 1.58, 1.66])
async def test_an_interruption_from_elsewhere_drops_what_was_not_said(at_secs):
    settings = DuplexLLMService.Settings(greeting=LONG)
    inject = {at_secs: InterruptionFrame}
    conversation = await converse(fast(), silence(3), settings=settings, inject=inject)
    (said,) = [event[1] for event in conversation.events if event[0] == "on_said"]
    assert said.spoken and said.unspoken
    assert f"{said.spoken} {said.unspoken}" == LONG
    assert conversation.assistant_words() == [said.spoken]


async def test_what_cannot_be_said_is_told():
    inject = {0.5: lambda: TTSSpeakFrame("  "), 0.8: lambda: TTSSpeakFrame("hello")}
    conversation = await converse(fast(), silence(3), inject=inject)
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "Cannot say '  '" in error.error
    assert conversation.assistant_words() == ["hello"]
