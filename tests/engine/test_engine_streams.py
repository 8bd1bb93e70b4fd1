"""Words that come as a stream, own words that are held, and words as they are spoken."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.speech import MAX_PAUSE_STEPS, MAX_STALL_STEPS, SpelledWord, Utterance
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import Said, SessionConfig, Step
from pipecat_duplex.session.spoken_form import spoken_words
from pipecat_duplex.session.streams import WordCutter
from tests.engine.scripted import noise
from tests.engine.test_engine_speech import END, LOUD_DB, OWN, PAD, Run, tokenizer  # noqa: F401


def words(*tokens: int) -> tuple[SpelledWord, ...]:
    return tuple(SpelledWord(f"w{token}", (token,)) for token in tokens)


def spoken(run: Run) -> list[int]:
    return [token for token in run.tokens if token not in (PAD, END)]


def test_it_begins_with_the_first_word_and_pauses_where_there_are_no_more() -> None:
    run = Run()
    run.speaker.say(Utterance(1, words(10), more=True))
    assert run.steps([PAD, PAD]) == [END, 10]
    assert run.steps([OWN] * 30) == [PAD] * 30  # No word of its own fills the pause.
    run.speaker.say_more(1, words(11, 12), more=True)
    assert run.steps([PAD, PAD, OWN]) == [END, 11, 12]
    run.speaker.say_more(1, (), more=False)
    run.steps([PAD] * 20)
    assert run.said == [Said(1, "w10 w11 w12", "")]
    assert not run.speaker.is_active


def test_an_utterance_without_words_yet_lets_others_pass() -> None:
    run = Run()
    run.speaker.say(Utterance(1, (), more=True))
    run.speaker.say(Utterance(2, words(20)))
    run.steps([PAD] * 20)
    run.speaker.say_more(1, words(10), more=False)
    run.steps([PAD] * 20)
    assert spoken(run) == [20, 10]


def test_a_stream_of_which_nothing_can_be_said_ends() -> None:
    run = Run()
    run.speaker.say(Utterance(1, (), more=True))
    run.speaker.say_more(1, (), more=False, unsayable=("kubernetes",))
    run.steps([OWN, OWN])
    assert run.tokens == [OWN, OWN]
    assert run.said == [Said(1, "", "", ("kubernetes",))]


def test_a_stream_that_never_goes_on_frees_the_agent() -> None:
    run = Run()
    run.speaker.say(Utterance(1, words(10), more=True))
    run.steps([PAD] * (MAX_STALL_STEPS + 3))
    assert run.step(OWN) == OWN
    assert run.said == [Said(1, "w10", "")]
    assert not run.speaker.say_more(1, words(11), more=True)


def test_a_user_who_speaks_in_the_pause_has_the_floor() -> None:
    run = Run()
    run.speaker.say(Utterance(1, words(10), more=True))
    run.steps([PAD] * (MAX_PAUSE_STEPS + 4))
    run.steps([PAD] * 3, user_db=LOUD_DB)
    run.speaker.say_more(1, words(11), more=True)
    run.steps([PAD] * 3, user_db=LOUD_DB)
    run.step(PAD)
    assert run.said == [Said(1, "w10", "w11")]


def test_held_words_are_wishes_and_given_ones_are_spoken() -> None:
    run = Run()
    run.speaker.hold(True)
    assert run.steps([PAD, END, OWN]) == [PAD] * 3
    assert run.speaker.take_spoken().wish
    assert [each.wish for each in run.spoken[1:]] == [False, True]
    run.speaker.say(Utterance(1, words(10)))
    run.steps([PAD] * 12)
    assert spoken(run) == [10]
    run.speaker.hold(False)
    assert run.step(OWN) == OWN


@given(
    pieces=st.lists(st.text(alphabet="ab \n", max_size=4), max_size=12),
)
def test_a_cutter_gives_whole_words_whatever_the_pieces(pieces: list[str]) -> None:
    cutter, came = WordCutter(), []
    for piece in pieces:
        whole = cutter.push(piece)
        assert not whole or whole[-1].isspace()
        came.append(whole)
    assert "".join(came) + cutter.end() == "".join(pieces)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("hello", "hello"),
        ("it's", "it's"),
        ("42", "forty two"),
        ("7,", "seven,"),
        ("$12.50.", "twelve dollars and fifty cents."),
        ("£1", "one pound"),
        ("20€", "twenty euros"),
        ("10%", "ten percent"),
        ("3rd", "third"),
        ("10:30", "ten thirty"),
        ("9:05pm", "nine oh five p m"),
        ("2026-11-27", "november twenty seventh twenty twenty six"),
        ("1,234.5", "one thousand two hundred thirty four point five"),
        ("1984", "nineteen eighty four"),
        ("007", "zero zero seven"),
        ("555-1234", "five five five one two three four"),
        ("10-12", "ten to twelve"),
        ("#12", "number twelve"),
        ("&", "and"),
        ("-5", "minus five"),
        ("3kg", "three kg"),
        ("**bold**", "bold"),
        ("##", ""),
        ("hello,how", "hello, how"),
        ("hello—how", "hello— how"),
        ("nine;we", "nine; we"),
        ("hello...how", "hello... how"),
        ("one.two", "one. two"),
        ("wait!?what", "wait!? what"),
        ("and/or", "and/ or"),
        ("hello(there)", "hello( there)"),
        ('"hello",she', '"hello", she'),
        ("你好，世界", "你好， 世界"),
        ("10:30,we", "ten thirty we"),
        ("don't", "don't"),
        ("O’Brien", "O’Brien"),
        ("well-known", "well-known"),
        ("U.S.", "U.S."),
        ("e.g.,this", "e.g., this"),
        ("नमस्ते", "नमस्ते"),
    ],
)
def test_written_words_as_they_are_spoken(written: str, expected: str) -> None:
    assert " ".join(spoken_words(written)) == expected


@given(st.text(max_size=30))
def test_any_text_has_a_spoken_form(text: str) -> None:
    for word in text.split():
        assert all(part.strip() for part in spoken_words(word))


def test_numbers_are_said_where_the_model_has_their_words(tokenizer) -> None:  # noqa: F811
    vocabulary = Vocabulary(tokenizer, words_only=True)
    known, unsayable = vocabulary.spell_known("seven kubernetes 7 plus $5 - 12:00")
    assert [word.text for word in known] == ["seven", "seven", "plus"]
    assert unsayable == ("kubernetes", "$5", "12:00")
    large = Vocabulary(tokenizer, words_only=False)
    assert [word.text for word in large.spell("$5 now")] == ["five", "dollars", "now"]


def test_punctuation_parts_words_with_a_space_or_without(tokenizer) -> None:  # noqa: F811
    vocabulary = Vocabulary(tokenizer, words_only=True)
    for text in ("hello,how", "hello—how", "hello.how", "hello-how", "hello;how!", "hello/how"):
        words = vocabulary.spell(text)
        assert [vocabulary.piece(word.tokens[0]) for word in words] == ["▁hello", "▁how"]


async def stream(*pieces: str):
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def run_session(engine: Engine, frames, prepare) -> list[Step]:
    session = await engine.open(SessionConfig.greedy())
    await prepare(session)
    for frame in frames:
        session.send(frame)
        await asyncio.sleep(0)
    steps = []
    async for step in session.steps():
        steps.append(step)
        if len(steps) == len(frames):
            break
    await session.close()
    return steps


async def test_a_session_says_a_stream_and_tells_what_it_left_out(checkpoint_folder) -> None:
    engine = await Engine.load(checkpoint_folder, slots=2, device="cpu")
    try:

        async def begin(session) -> None:
            await session.hold()
            number = await session.say(stream("hel", "lo how ca", "n kubernetes i he", "lp"))
            assert number == 1
            for _ in range(20):
                await asyncio.sleep(0)

        steps = await run_session(engine, noise(60, seed=1), begin)
    finally:
        await engine.close()
    text = "".join(step.text_piece or "" for step in steps)
    assert text == "▁hello▁how▁can▁i▁help"
    said = [said for step in steps for said in step.said]
    assert said == [Said(1, "hello how can i help", "", ("kubernetes",))]
