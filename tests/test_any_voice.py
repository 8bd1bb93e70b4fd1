"""A TTS speaks for the agent, and the model keeps the floor."""

import numpy as np
import pytest
from loguru import logger
from pipecat.frames.frames import TTSAudioRawFrame, TTSSpeakFrame

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.engine import Engine
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.service.foreign_voice import MIMED
from pipecat_duplex.service.frames import MonologueTextFrame, UserBackchannelFrame
from pipecat_duplex.service.voice_detector import VoiceDetector
from tests.llm_pipeline import Reply, interruptions, talk, user_audio
from tests.pipeline import silence, speech
from tests.server.callers import chat_url, serving
from tests.voices import ToneTTS

ANSWER = "Zephyrs quietly vex bold Jack. My sphinx of quartz judges the xylophone."


def backend(**script) -> ScriptedBackend:
    script.setdefault("replies", ["my own words"])
    script.setdefault("unsayable", ["zephyrs", "sphinx"])
    return ScriptedBackend(Script(step_secs=0, **script))


async def test_the_tts_speaks_words_that_the_model_does_not_have() -> None:
    tts = ToneTTS()
    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (6.0, False)),
        transcripts=[("say something", 3)],
        replies=[Reply([(1, ANSWER[:20]), (2, ANSWER[20:])])],
        tts=tts,
    )
    assert " ".join(tts.asked) == ANSWER
    assert result.messages() == [("user", "say something"), ("assistant", ANSWER)]
    assert len(result.of("on_agent_stopped")) == 1
    assert not result.near.of(TTSAudioRawFrame, MonologueTextFrame)
    assert interruptions(result.far) == 0
    assert result.of("on_said") == []  # What it mimes is nobody's business.
    assert MIMED[:9] not in str(result.context.get_messages())


async def test_the_model_yields_and_the_tts_stops() -> None:
    tts = ToneTTS()
    sentences = [f"This is sentence number {number}. " for number in range(12)]
    result = await talk(
        backend(yield_steps=3),
        user_audio((1.0, False), (1.0, True), (2.5, False), (1.2, True), (5.0, False)),
        transcripts=[("tell me a story", 1), ("stop now", 3)],
        replies=[Reply([(1, each) for each in sentences]), Reply([(1, "Okay.")])],
        tts=tts,
    )
    ((event, _),) = result.of("on_yield")
    # The script falls silent in the third step of the user's voice.
    assert event.time_secs == pytest.approx(4.5 + 3 * 0.08, abs=0.09)
    assert event.delay_secs == pytest.approx(3 * 0.08, abs=0.09)
    assert interruptions(result.far) == 1
    roles = [role for role, _ in result.messages()]
    assert roles == ["user", "assistant", "user", "assistant"]
    told, stop, okay = (text for _, text in result.messages()[1:])
    assert "".join(sentences).startswith(told) and 0 < len(told.split()) < 40
    assert (stop, okay) == ("stop now", "Okay.")
    silent = [at for at, _ in result.speaker.played if event.time_secs + 0.1 < at < 5.7]
    assert not silent


async def test_a_model_on_a_server_keeps_the_floor_too() -> None:
    async with serving(backend(yield_steps=3)) as server:
        result = await talk(
            RemoteBackend(chat_url(server)),
            user_audio((1.0, False), (1.0, True), (2.5, False), (1.2, True), (2.0, False)),
            transcripts=[("tell me a story", 1), ("stop now", 3)],
            replies=[Reply([(1, f"{ANSWER} {ANSWER}")]), Reply([(1, "Okay.")])],
            tts=ToneTTS(),
            settings=DuplexLLMService.Settings(voice="tts"),
        )
    assert len(result.of("on_yield")) == 1
    assert interruptions(result.far) == 1
    assert [text for role, text in result.messages()][-1] == "Okay."


async def test_a_backchannel_leaves_the_tts_alone() -> None:
    tts = ToneTTS()
    result = await talk(
        backend(yield_steps=None),
        user_audio((1.0, False), (1.0, True), (2.5, False), (0.5, True), (6.0, False)),
        transcripts=[("say something", 1), ("uh huh", 8)],
        replies=[Reply([(1, ANSWER + " " + ANSWER)])],
        tts=tts,
    )
    assert result.messages() == [("user", "say something"), ("assistant", f"{ANSWER} {ANSWER}")]
    assert [frame.text for frame in result.near.of(UserBackchannelFrame)] == ["uh huh"]
    assert interruptions(result.far) == 0
    assert len(result.of("on_backchannel")) == 1


async def test_a_tts_that_pauses_under_a_hum_gives_up_nothing() -> None:
    class HaltingTTS(ToneTTS):
        async def run_tts(self, text, context_id):
            if self.asked:
                await self.clock.wait(25)
            async for frame in super().run_tts(text, context_id):
                yield frame

    async def tell(result):
        tts.clock = result.llm._clock
        await result.worker.queue_frame(TTSSpeakFrame("The sphinx has been here."))
        await result.worker.queue_frame(TTSSpeakFrame("It went home."))

    tts = HaltingTTS()
    result = await talk(
        backend(yield_steps=None),
        user_audio((1.5, False), (0.4, True), (5.0, False)),
        transcripts=[(None, 0)],
        replies=[],
        tts=tts,
        at_secs={1.0: tell},
    )
    assert [stopped.yielded for stopped, _ in result.of("on_agent_stopped")] == [False, False]
    assert result.of("on_yield") == []
    assert interruptions(result.far) == 0
    assert [text for _, text in result.messages()] == tts.asked


async def test_a_greeting_and_words_of_the_bot_are_spoken_by_the_tts() -> None:
    async def tell(result):
        await result.worker.queue_frame(TTSSpeakFrame("The sphinx is here."))

    tts = ToneTTS()
    result = await talk(
        backend(),
        user_audio((7.0, False)),
        transcripts=[],
        replies=[],
        tts=tts,
        at_secs={3.0: tell},
        settings=DuplexLLMService.Settings(greeting="Zephyrs greet you."),
    )
    assert tts.asked == ["Zephyrs greet you.", "The sphinx is here."]
    assert [text for role, text in result.messages()] == tts.asked


async def test_an_answer_that_nobody_heard_yet_is_dropped_by_a_new_message() -> None:
    class SlowTTS(ToneTTS):
        async def run_tts(self, text, context_id):
            await self.clock.wait(40)
            async for frame in super().run_tts(text, context_id):
                yield frame

    tts = SlowTTS()

    def prepare(result):
        tts.clock = result.llm._clock

    result = await talk(
        backend(),
        user_audio((1.0, False), (1.0, True), (1.2, False), (0.8, True), (6.0, False)),
        transcripts=[("what is it", 1), ("no where is it", 1)],
        replies=[Reply([(1, "It is a stale answer.")]), Reply([(1, "It is over there.")])],
        tts=tts,
        prepare=prepare,
    )
    assert [text for role, text in result.messages() if role == "assistant"] == [
        "It is over there."
    ]


def test_a_tts_speaks_given_words_only() -> None:
    with pytest.raises(ValueError, match="contradict"):
        DuplexLLMService(
            backend=backend(), settings=DuplexLLMService.Settings(words="own", voice="tts")
        )
    with pytest.raises(ValueError, match="voice must be one of"):
        DuplexLLMService(backend=backend(), settings=DuplexLLMService.Settings(voice="piper"))


async def test_a_tts_behind_the_models_own_voice_is_warned_of() -> None:
    warnings = []
    sink = logger.add(warnings.append, level="WARNING")
    await talk(
        backend(),
        user_audio((0.5, False)),
        transcripts=[],
        replies=[],
        tts=ToneTTS(),
        settings=DuplexLLMService.Settings(voice="own"),
    )
    logger.remove(sink)
    assert any("speaks the model's words once more" in warning for warning in warnings)


@pytest.mark.slow
async def test_the_embedded_model_has_the_same_manners_in_another_voice() -> None:
    engine = await Engine.load("embedded")
    tale = "".join(f"The xylophone number {number} was polished in Zurich. " for number in range(9))
    result = await talk(
        engine,
        np.concatenate([speech("conversation"), silence(4.0)]),
        transcripts=[
            ("what is two plus three", 3),
            ("tell me a story", 3),
            ("uh huh", 3),
            ("stop", 3),
        ],
        replies=[Reply([(1, "Five.")]), Reply([(1, tale)]), Reply([(1, "Of course.")])],
        tts=ToneTTS(),
        detector=VoiceDetector(),
        settings=DuplexLLMService.Settings(seed=3),
    )
    await engine.close()
    assert result.messages() == [
        ("user", "what is two plus three"),
        ("assistant", "Five."),
        ("user", "tell me a story"),
        ("assistant", result.messages()[3][1]),
        ("user", "stop"),
        ("assistant", "Of course."),
    ]
    assert tale.startswith(result.messages()[3][1])
    assert len(result.of("on_yield")) == len(result.of("on_backchannel")) == 1
