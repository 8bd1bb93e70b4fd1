"""The user's words from a recogniser beside the model take the place of an STT in the pipeline."""

from collections.abc import Callable

import numpy as np
import pytest

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.conversation.heard_speech import HeardSpeech
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.conversation.user_words import UserWords
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.service.frames import UserBackchannelFrame
from pipecat_duplex.session import HeardWord
from tests import llm_pipeline
from tests.llm_pipeline import Reply, talk, user_audio
from tests.pipeline import Tap


def listener(*texts: str) -> Callable[[np.ndarray], str | None]:
    """Hear one of these texts in each stretch of voice, a word every other step."""
    stretches = iter(texts)
    words: list[str] = []
    quiet_steps = loud_steps = 99

    def hears(pcm: np.ndarray) -> str | None:
        nonlocal words, quiet_steps, loud_steps
        if level_db(pcm) < -40:
            quiet_steps += 1
            return None
        if quiet_steps >= 3:
            words, loud_steps = next(stretches, "").split(), 0
        quiet_steps, loud_steps = 0, loud_steps + 1
        return words.pop(0) if words and loud_steps % 2 else None

    return hears


def backend(*texts: str, **script) -> ScriptedBackend:
    script.setdefault("replies", ["my own words"])
    return ScriptedBackend(Script(step_secs=0, hears=listener(*texts), **script))


async def test_the_llm_answers_what_was_heard() -> None:
    result = await talk(
        backend("what is two plus two"),
        user_audio((0.6, False), (1.0, True), (3.0, False)),
        transcripts=None,
        replies=[Reply([(2, "two plus two is"), (2, " four.")])],
        settings=DuplexLLMService.Settings(words="given"),
    )
    assert result.messages() == [
        ("user", "what is two plus two"),
        ("assistant", "two plus two is four."),
    ]
    ((text, start_secs, end_secs, kind),) = result.of("on_user_transcript")
    assert (text, kind) == ("what is two plus two", "turn")
    assert (start_secs, end_secs) == (pytest.approx(0.6, abs=0.2), pytest.approx(1.6, abs=0.3))
    assert len(result.llm.contexts) == 1


async def test_a_backchannel_is_no_message_and_the_answer_goes_on() -> None:
    words = " ".join(f"w{number}" for number in range(12))
    result = await talk(
        backend("tell me a story", "uh huh", yield_steps=None),
        user_audio((0.6, False), (1.0, True), (2.5, False), (0.5, True), (2.5, False)),
        transcripts=None,
        replies=[Reply([(1, words)])],
        settings=DuplexLLMService.Settings(words="given"),
    )
    assert result.messages() == [("user", "tell me a story"), ("assistant", words)]
    kinds = [(text, kind) for text, _, _, kind in result.of("on_user_transcript")]
    assert kinds == [("tell me a story", "turn"), ("uh huh", "backchannel")]
    assert [frame.text for frame in result.near.of(UserBackchannelFrame)] == ["uh huh"]
    assert len(result.llm.contexts) == 1


async def test_own_answers_stand_behind_the_question() -> None:
    result = await talk(
        backend("what is two plus three", "thank you", replies=["it is five", "you are welcome"]),
        user_audio((0.6, False), (1.0, True), (2.5, False), (0.6, True), (2.5, False)),
        transcripts=None,
        replies=[],
        own=True,
    )
    assert result.messages() == [
        ("user", "what is two plus three"),
        ("assistant", "it is five"),
        ("user", "thank you"),
        ("assistant", "you are welcome"),
    ]


async def test_an_stt_in_the_pipeline_is_believed_instead() -> None:
    result = await talk(
        backend("wrong words", replies=["fine"]),
        user_audio((0.6, False), (1.0, True), (2.0, False)),
        transcripts=[("the right words", 2)],
        replies=[],
        own=True,
    )
    assert [text for text, *_ in result.of("on_user_transcript")] == ["the right words"]


async def test_without_an_aggregator_the_bot_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_pipeline, "LLMContextAggregatorPair", lambda _: (Tap(), Tap()))
    result = await talk(
        backend("hello there", replies=["fine"]),
        user_audio((1.0, False), (0.6, True), (2.0, False)),
        transcripts=None,
        replies=[],
        own=True,
    )
    ((text, _, _, kind),) = result.of("on_user_transcript")
    assert (text, kind) == ("hello there", "turn")


def test_words_wait_for_the_end_of_their_voice_and_not_for_another() -> None:
    voice, speech = UserWords(), HeardSpeech(delay_secs=0.48)
    voice.user_started(1.0, over_agent=False)
    said: list[tuple[int, str]] = []
    arrivals = {
        20: HeardWord("hello", 13, 14),
        28: HeardWord("there", 20, 22),
        45: HeardWord("now", 37, 38),
        90: HeardWord("unheard", 82, 83),
    }
    for step in range(120):
        voice.advance((step + 1) * 0.08)
        if step == 25:
            voice.user_stopped(1.8)
        if step == 38:
            voice.user_started(2.9, over_agent=True)
        if step == 47:
            voice.user_stopped(3.25)
        words = [arrivals[step]] if step in arrivals else []
        said += [(step, each.text) for each in speech.step(words, voice)]
    texts = [text for _, text in said]
    assert texts == ["hello there", "now", "unheard"]
    assert [step for step, _ in said] == [31, 49, 103]
