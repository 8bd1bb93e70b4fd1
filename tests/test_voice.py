"""Given words in the voice of a TTS, while the embedded model keeps the floor."""

import asyncio
from concurrent.futures import Future

import numpy as np
import pytest
import soundfile
import soxr

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.engine import CannotSay
from pipecat_duplex.engine.speech import MAX_STALL_STEPS, SpelledWord, Utterance
from pipecat_duplex.engine.voice import Sound
from pipecat_duplex.engine.voice.narration import Narration, phrase_length
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, SessionConfig, Step
from pipecat_duplex.session.continued import ContinuedSession
from tests.llm_pipeline import RATE_HZ, Reply, talk

WORD_STEPS = 4
TEXT = "Your order of 12 croissants leaves on Thursday. Please call us back."
SPOKEN = "Your order of twelve croissants leaves on Thursday. Please call us back."


class Hum:
    """A TTS whose words are hums of the same length."""

    def __init__(self):
        self.phrases: list[str] = []

    def lacks(self, word: str) -> bool:
        return word == "unspeakable"

    def speak(self, words) -> Sound:
        self.phrases.append(" ".join(words))
        if "broken." in words:
            raise RuntimeError("it broke")
        samples = np.arange(len(words) * WORD_STEPS * STEP_SAMPLES)
        pcm = 0.1 * np.sin(2 * np.pi * 200 * samples / SAMPLE_RATE_HZ)
        word_secs = WORD_STEPS * STEP_SAMPLES / SAMPLE_RATE_HZ
        return Sound(pcm.astype(np.float32), tuple(i * word_secs for i in range(len(words))))


class AtOnce:
    """Speaks where it is asked, without a thread."""

    def __init__(self, tts):
        self.tts = tts

    def speak(self, words) -> "Future[Sound]":
        future: Future[Sound] = Future()
        try:
            future.set_result(self.tts.speak(words))
        except Exception as error:
            future.set_exception(error)
        return future


def spelled(text: str) -> tuple[SpelledWord, ...]:
    return tuple(SpelledWord(word, ()) for word in text.split())


def narrate(narration: Narration, most_steps: int = 500) -> list[str | None]:
    """Let it sound to its end; each step's word, ``-`` where it sounds, None where it does not."""
    heard: list[str | None] = []
    while not narration.is_over and len(heard) < most_steps:
        narration.advance()  # lets it be spoken,
        narration.advance()  # and takes it
        step = narration.step()
        heard.append(None if step is None else step.word or "-")
    return heard


@pytest.mark.parametrize(
    ("text", "is_whole", "hurries", "count"),
    [
        ("It is late. Go", False, False, 3),
        ("It is late", True, False, 3),
        ("It is late", False, False, 0),
        ("It is late", False, True, 3),
        ("Well, it is", False, True, 1),
        ("Dr. J. Smith said so.", False, False, 5),
        ('He said "no." Then', False, False, 3),
        ("word " * 40, False, False, 30),
    ],
)
def test_where_a_phrase_ends(text: str, is_whole: bool, hurries: bool, count: int):
    assert phrase_length(text.split(), is_whole=is_whole, hurries=hurries) == count


def test_words_come_where_they_sound():
    narration = Narration(Utterance(1, spelled("one two three")), AtOnce(Hum()), "s")
    between = ["-"] * (WORD_STEPS - 1)
    assert narrate(narration) == ["one", *between, "two", *between, "three", *between]
    assert narration.begun == 3


def test_a_stream_begins_with_its_first_words_and_goes_on_after_a_stall():
    hum = Hum()
    utterance = Utterance(1, (), more=True)
    narration = Narration(utterance, AtOnce(hum), "s")
    heard = narrate(narration, most_steps=5)
    assert heard == [None] * 5
    utterance.words += spelled("the train to")
    heard = narrate(narration, most_steps=4)
    assert "the" in heard and hum.phrases == ["the train to"]
    assert narrate(narration, most_steps=30)[-1] is None
    utterance.words += spelled("rome leaves.")
    utterance.more = False
    assert [word for word in narrate(narration) if word not in ("-", None)] == ["rome", "leaves."]


def test_a_stream_that_never_goes_on_is_over():
    utterance = Utterance(1, spelled("hello"), more=True)
    narration = Narration(utterance, AtOnce(Hum()), "s")
    assert len(narrate(narration, most_steps=2 * MAX_STALL_STEPS)) < MAX_STALL_STEPS + 20


def test_long_words_are_made_little_ahead():
    hum = Hum()
    narration = Narration(
        Utterance(1, spelled("one two three four five. " * 100)), AtOnce(hum), "s"
    )
    for _ in range(50):
        narration.advance()
        narration.step()
    assert len(hum.phrases) <= 5


def test_what_the_tts_fails_at_is_left_out_and_named():
    utterance = Utterance(1, spelled("It is broken. All is well."))
    narration = Narration(utterance, AtOnce(Hum()), "s")
    heard = [word for word in narrate(narration) if word not in ("-", None)]
    assert heard == ["All", "is", "well."]
    assert utterance.unsayable == ("It", "is", "broken.")


#
# with the model
#


def question() -> np.ndarray:
    """A question and a little silence before it, shape ``(steps, STEP_SAMPLES)``."""
    pcm, _ = soundfile.read("examples/audio/question.wav", dtype="float32")
    return pcm[: len(pcm) // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)


QUIET = np.zeros(STEP_SAMPLES, np.float32)


async def converse(session, user, act=None) -> list[Step]:
    """Send steps one by one, act before some, and take the answers."""
    steps, answers = [], session.steps()
    for number, pcm in enumerate(user):
        if act and number in act:
            await act[number](session)
        session.send(pcm)
        steps.append(await anext(answers))
        await asyncio.sleep(0.005)  # for the TTS's thread
    return steps


def told(text: str, **options):
    async def say(session):
        await session.say(text, **options)

    return say


def words_of(steps: list[Step]) -> str:
    return " ".join(step.text_piece[1:] for step in steps if step.text_piece)


async def with_engine(tts, user, act, *, held: bool = True) -> list[Step]:
    engine = await Engine.load("embedded", tts=tts)
    try:
        session = await engine.open(SessionConfig(seed=1))
        await session.hold(held)
        return await converse(session, user, act)
    finally:
        await engine.close()


async def test_any_words_are_said_and_the_story_is_not_heard():
    steps = await with_engine(Hum(), [QUIET] * 100, {4: told(TEXT)})
    assert words_of(steps) == SPOKEN
    (said,) = [said for step in steps for said in step.said]
    assert (said.utterance_id, said.spoken, said.unspoken) == (1, SPOKEN, "")
    numbers = {step.utterance_id for step in steps if step.text_piece}
    assert numbers == {1}
    heard = [level_db(step.pcm) for step in steps]
    first = next(i for i, step in enumerate(steps) if step.text_piece)
    last = first + len(SPOKEN.split()) * WORD_STEPS + 6
    assert 4 <= first <= 8
    assert max(heard[:first] + heard[last:]) < -60


async def test_an_interruption_stops_the_voice_at_a_word():
    user = [QUIET] * 40 + list(question()) + [QUIET] * 20
    steps = await with_engine(Hum(), user, {2: told(TEXT + " And so on and on and on.")})
    (said,) = [said for step in steps for said in step.said]
    assert said.spoken == words_of(steps) and said.spoken.startswith("Your order of")
    assert "on and on." in said.unspoken
    last = max(i for i, step in enumerate(steps) if level_db(step.pcm) > -50)
    assert 40 + 3 <= last <= 40 + 12


@pytest.mark.slow
async def test_words_that_cut_in_begin_at_once():
    steps = await with_engine(
        Hum(), [QUIET] * 60, {2: told(TEXT), 20: told("wait please", cut_in=True)}
    )
    first, second = [said for step in steps for said in step.said]
    assert first.unspoken and second.spoken == "wait please"
    begins = next(i for i, step in enumerate(steps) if step.utterance_id == 2)
    assert begins <= 23


@pytest.mark.slow
async def test_its_own_words_are_heard_in_its_own_voice():
    user = [QUIET] * 15 + list(question()) + [QUIET] * 50
    with_tts = await with_engine(Hum(), user, None, held=False)
    without = await with_engine(None, user, None, held=False)
    assert words_of(with_tts) == words_of(without) != ""
    for one, other in zip(with_tts, without, strict=True):
        np.testing.assert_array_equal(one.pcm, other.pcm)
        np.testing.assert_array_equal(one.tokens, other.tokens)


async def test_what_a_tts_lacks_is_refused_or_left_out():
    engine = await Engine.load("embedded", tts=Hum())
    session = await engine.open(SessionConfig(seed=1))
    can = await session.can_say("an unspeakable word")
    assert can.lacks == ("unspeakable",) and await session.can_say("croissants")
    with pytest.raises(CannotSay, match="unspeakable"):
        await session.say("an unspeakable word")
    number = await session.say("an unspeakable ", more=True)
    await session.say_more(number, "word", more=False)
    steps = await converse(session, [QUIET] * 30)
    (said,) = [said for step in steps for said in step.said]
    assert (said.spoken, said.unsayable) == ("an word", ("unspeakable",))
    await engine.close()


async def test_there_is_no_such_voice():
    with pytest.raises(ValueError, match="tts='nobody': there is 'hibari'"):
        await Engine.load("embedded", tts="nobody")


@pytest.mark.slow
async def test_hibari_says_when_its_words_begin():
    from pipecat_duplex.engine.voice import load_tts

    voice = load_tts("hibari", "any")
    words = "Zürich is lovely, isn't it? A wi-fi router!".split()
    pcm, starts_secs = voice.speak(words)
    assert pcm.dtype == np.float32 and len(starts_secs) == len(words)
    assert list(starts_secs) == sorted(set(starts_secs))
    assert 1.5 < len(pcm) / SAMPLE_RATE_HZ < 6
    for start_secs in starts_secs:  # each in sound, or just before it
        begin = round(start_secs * SAMPLE_RATE_HZ)
        assert level_db(pcm[begin : begin + SAMPLE_RATE_HZ // 5]) > -45
    assert voice.lacks("привет") and not voice.lacks("Zürich")


@pytest.mark.slow
async def test_a_conversation_that_moves_goes_on_with_the_next_word():
    words = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike"
    engine = await Engine.load("embedded", slots=2, tts=Hum())
    config = SessionConfig(seed=1)
    first = await engine.open(config)
    session = ContinuedSession(engine, config, first, first.memory, give_up_secs=10.0)
    await session.hold()

    async def break_off(_):
        first.end("it broke")

    steps = []
    for act in ({2: told(words)}, {10: break_off}, {}, {}, {}, {}):
        steps += await converse(session, [QUIET] * 30, act)
        await asyncio.sleep(0.1)
    assert words_of(steps) == words
    (said,) = [said for step in steps for said in step.said]
    assert (said.spoken, said.unspoken) == (words, "")
    await session.close()
    await engine.close()


#
# in a pipeline
#


@pytest.mark.slow
async def test_an_llm_says_any_words_and_the_context_ends_where_the_voice_did():
    """The embedded model hears a question, wishes to speak, and is talked over."""
    steps = question()
    asked = soxr.resample(steps.ravel(), SAMPLE_RATE_HZ, RATE_HZ)
    # Without a pause, and for longer than anybody is talked over, wherever the model hears it.
    insists = np.concatenate([steps[:20], steps[4:]]).ravel()
    insists = soxr.resample(insists, SAMPLE_RATE_HZ, RATE_HZ)
    quiet = np.zeros(RATE_HZ, np.float32)
    audio = np.concatenate([quiet, asked, *[quiet] * 5, insists, *[quiet] * 6])
    words = "Certainly: croissants, brioche and 12 éclairs await. " * 4
    engine = await Engine.load("embedded", tts=Hum())
    result = await talk(
        engine,
        audio,
        transcripts=[("what have you got", 2), ("anything else", 2)],
        replies=[
            Reply([(1, piece) for piece in words.split(" ") for piece in (piece, " ")]),
            Reply([(1, "Nothing.")]),
        ],
        settings=DuplexLLMService.Settings(words="given", seed=1),
    )
    await engine.close()
    roles, texts = zip(*result.messages(), strict=True)
    assert roles == ("user", "assistant", "user", "assistant")
    assert texts[1].startswith("Certainly: croissants, brioche and twelve éclairs")
    assert len(texts[1].split()) < 28
    assert (texts[0], texts[2], texts[3]) == ("what have you got", "anything else", "Nothing.")
    assert len(result.of("on_yield")) == 1
