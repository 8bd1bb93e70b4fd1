"""Words put in the agent's mouth, token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex.conversation.barge_in import OVER_STEPS, Overlap
from pipecat_duplex.conversation.user_said import PATIENCE_STEPS, SAID_STEPS
from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.speech import (
    CLOSING_STEPS,
    FIRST_STEPS,
    MAX_CLOSING_STEPS,
    MAX_PAUSE_STEPS,
    MAX_WAITING,
    OWN_STOP_STEPS,
    SILENT_STEPS,
    YIELDED_STEPS,
    Speaker,
    SpelledWord,
    Utterance,
)
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import (
    STEP_SAMPLES,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    CannotSay,
    Said,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
)
from tests.engine.scripted import noise
from training.tokenizer import build_tokenizer

PAD, END = TEXT_PADDING, TEXT_END_OF_PADDING
QUIET_DB, LOUD_DB = -100.0, -20.0
OWN = 500


def utterance(*tokens: int | tuple[int, ...], number: int = 1) -> Utterance:
    spelled = [token if isinstance(token, tuple) else (token,) for token in tokens]
    return Utterance(number, tuple(SpelledWord(f"w{word[0]}", word) for word in spelled))


class Run:
    """A speaker with a model that samples what it is told to, in a session that has begun."""

    def __init__(self):
        self.speaker = Speaker()
        for _ in range(FIRST_STEPS):
            self.speaker.observe(PAD, QUIET_DB, QUIET_DB)
        self.tokens: list[int] = []
        self.spoken: list = []

    def step(self, sampled: int, user_db: float = QUIET_DB, agent_db: float = QUIET_DB) -> int:
        self.spoken.append(self.speaker.take_spoken())
        token = self.speaker.choose(sampled)
        self.speaker.observe(self.tokens[-1] if self.tokens else PAD, agent_db, user_db)
        self.tokens.append(token)
        return token

    def steps(self, sampled: list[int], **levels: float) -> list[int]:
        return [self.step(token, **levels) for token in sampled]

    @property
    def said(self) -> list[Said]:
        return [said for spoken in self.spoken for said in spoken.said]


def test_nothing_to_say_changes_nothing() -> None:
    run = Run()
    assert not run.speaker.is_active
    assert run.steps([PAD, END, 7, 8]) == [PAD, END, 7, 8]


def test_a_session_does_not_begin_with_given_words() -> None:
    run = Run()
    run.speaker = Speaker()
    run.speaker.say(utterance(10, 11))
    assert run.steps([PAD] * (FIRST_STEPS + 2)) == [PAD] * FIRST_STEPS + [END, 10]


def test_the_first_steps_pass_while_nobody_has_words() -> None:
    """A speaker is only asked while somebody in the batch has words: that must not matter."""
    speaker = Speaker()
    for _ in range(FIRST_STEPS):
        speaker.observe(PAD, QUIET_DB, QUIET_DB)
    speaker.say(utterance(10))
    assert [speaker.choose(PAD), speaker.choose(PAD)] == [END, 10]


def test_from_silence_the_word_comes_at_once_behind_its_mark() -> None:
    run = Run()
    run.speaker.say(utterance(10, 11))
    assert run.steps([PAD, PAD]) == [END, 10]
    assert run.speaker.take_spoken().utterance_id == 1


def test_the_model_keeps_the_pace_and_its_words_become_ours() -> None:
    run = Run()
    run.speaker.say(utterance(10, (11, 12, 13), 14))
    sampled = [OWN, PAD, PAD, END, PAD, OWN, OWN, PAD, OWN]
    assert run.steps(sampled) == [10, PAD, PAD, END, 11, 12, 13, PAD, 14]


def test_a_model_that_would_stop_goes_on_after_a_pause() -> None:
    run = Run()
    run.speaker.say(utterance(10, 11))
    tokens = run.steps([PAD] * (4 + MAX_PAUSE_STEPS))
    assert tokens == [END, 10, *[PAD] * MAX_PAUSE_STEPS, END, 11]


def test_the_model_is_free_again_once_the_last_word_has_sounded() -> None:
    run = Run()
    run.speaker.say(utterance(10))
    run.steps([PAD, PAD])
    assert run.steps([OWN] * 3 + [PAD] * CLOSING_STEPS) == [PAD] * (3 + CLOSING_STEPS)
    assert run.step(OWN) == OWN
    assert run.said == [Said(1, "w10", "")]
    assert not run.speaker.is_active


def test_a_model_that_insists_is_not_kept_silent_for_ever() -> None:
    run = Run()
    run.speaker.say(utterance(10))
    run.steps([OWN] * (1 + MAX_CLOSING_STEPS))
    assert run.step(OWN) == OWN


def test_it_waits_for_the_end_of_the_models_own_utterance() -> None:
    run = Run()
    run.steps([OWN, PAD], agent_db=LOUD_DB)
    run.speaker.say(utterance(10))
    assert run.steps([PAD, OWN, PAD], agent_db=LOUD_DB) == [PAD, OWN, PAD]
    tokens = run.steps([PAD] * (OWN_STOP_STEPS + 2))
    assert tokens.index(END) in (OWN_STOP_STEPS, OWN_STOP_STEPS - 1) and tokens[-1] == 10


def test_cutting_in_takes_the_place_of_the_next_word() -> None:
    run = Run()
    run.speaker.say(utterance(10, 11, 12, number=1))
    run.speaker.say(utterance(20, number=2))
    run.steps([OWN, PAD], agent_db=LOUD_DB)
    run.speaker.say(utterance(30, number=3), cut_in=True)
    assert run.steps([PAD, OWN, PAD, PAD], agent_db=LOUD_DB)[:2] == [PAD, 30]
    assert run.said == [Said(1, "w10", "w11 w12"), Said(2, "", "w20")]


@pytest.mark.parametrize("own", [1, 4])
@pytest.mark.parametrize("ring", [0, 1, 3, 6])
@pytest.mark.parametrize("ends_with", [PAD, END])
def test_cutting_in_is_never_slower_than_queueing(own: int, ring: int, ends_with: int) -> None:
    """The model ends its words, which ring on for a while; ours are given at any step."""
    end = own + ring + OWN_STOP_STEPS + MAX_PAUSE_STEPS + 4
    sampled = [OWN] * own + [PAD] * 3 + [ends_with] + [PAD] * (end - 4 - own)
    levels_db = [LOUD_DB if i < own + ring else QUIET_DB for i in range(end)]

    def first_word(given_at: int, cut_in: bool) -> int:
        run = Run()
        for i, (token, level_db) in enumerate(zip(sampled, levels_db, strict=True)):
            if i == given_at:
                run.speaker.say(utterance(10), cut_in=cut_in)
            run.step(token, agent_db=level_db)
        return run.tokens.index(10) if 10 in run.tokens else end

    for given_at in range(end):
        assert first_word(given_at, cut_in=True) <= first_word(given_at, cut_in=False), given_at


@pytest.mark.parametrize("passed", range(1 + MAX_PAUSE_STEPS))
def test_padding_that_has_passed_counts_when_cutting_in(passed: int) -> None:
    run = Run()
    run.steps([OWN] + [PAD] * (passed + 1), agent_db=LOUD_DB)
    run.speaker.say(utterance(10), cut_in=True)
    tokens = run.steps([PAD] * (MAX_PAUSE_STEPS + 2), agent_db=LOUD_DB)
    assert tokens.index(END) == MAX_PAUSE_STEPS - passed


@pytest.mark.parametrize("given_at", range(25))
def test_cutting_in_on_given_words_is_never_slower_than_queueing(given_at: int) -> None:
    def first_word(cut_in: bool) -> int:
        run = Run()
        run.speaker.say(utterance(10, 11, number=1))
        for i in range(60):
            if i == given_at:
                run.speaker.say(utterance(20, number=2), cut_in=cut_in)
            token = run.step(PAD, agent_db=LOUD_DB if run.tokens[-1:] == [11] else QUIET_DB)
            if token == 20:
                return i
        return 60

    assert first_word(True) <= first_word(False)


def test_utterances_follow_one_another() -> None:
    run = Run()
    run.speaker.say(utterance(10, number=1))
    run.speaker.say(utterance(20, number=2))
    run.steps([PAD] * 40)
    words = [token for token in run.tokens if token not in (PAD, END)]
    assert words == [10, 20]
    assert [said.utterance_id for said in run.said] == [1, 2]
    ids = [spoken.utterance_id for spoken in run.spoken]
    assert [ids[run.tokens.index(word) + 1] for word in words] == [1, 2]


def test_a_pause_while_the_user_speaks_over_it_is_a_yield() -> None:
    run = Run()
    run.speaker.say(utterance(10, 11, 12))
    run.steps([PAD, PAD, OWN])
    tokens = run.steps([PAD] * (MAX_PAUSE_STEPS + 3), user_db=LOUD_DB)
    assert tokens == [PAD] * (MAX_PAUSE_STEPS + 3)
    assert run.said == [Said(1, "w10 w11", "w12")]
    assert not run.speaker.is_active


def test_a_user_who_spoke_before_it_began_does_not_stop_it() -> None:
    run = Run()
    run.steps([PAD] * 3)
    run.steps([PAD] * 3, user_db=LOUD_DB)
    run.speaker.say(utterance(10, 11))
    run.steps([PAD] * (4 + MAX_PAUSE_STEPS), user_db=LOUD_DB)
    assert [token for token in run.tokens if token not in (PAD, END)] == [10, 11]


def test_steady_noise_is_no_user() -> None:
    run = Run()
    run.steps([PAD] * 10, user_db=-35)
    run.speaker.say(utterance(10, 11))
    run.steps([PAD] * (4 + MAX_PAUSE_STEPS), user_db=-33)
    assert [token for token in run.tokens if token not in (PAD, END)] == [10, 11]


def test_hush_drops_everything() -> None:
    run = Run()
    run.speaker.say(utterance(10, 11, number=1))
    run.speaker.say(utterance(20, number=2))
    run.steps([OWN])
    run.speaker.hush()
    assert run.steps([PAD, OWN]) == [PAD, OWN]
    assert run.said == [Said(1, "w10", "w11"), Said(2, "", "w20")]


@given(
    lengths=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1, max_size=3),
    sampled=st.lists(st.sampled_from([PAD, END, OWN, OWN + 1]), max_size=60),
)
def test_whatever_the_model_wants_the_words_come_whole_and_in_order(lengths, sampled) -> None:
    run, wanted, token = Run(), [], 10
    for number, words in enumerate(lengths, start=1):
        spelled = []
        for length in words:
            spelled.append(tuple(range(token, token + length)))
            token += length
        wanted += [piece for word in spelled for piece in word]
        run.speaker.say(utterance(*spelled, number=number))
    run.steps(sampled)
    steps = 0
    while run.speaker.is_active and steps < 2000:
        run.step(PAD)
        steps += 1
    ours = [token for token in run.tokens if 10 <= token < OWN]
    assert ours == wanted
    ended = run.said + list(run.speaker.take_spoken().said)
    assert [said.utterance_id for said in ended] == list(range(1, len(lengths) + 1))
    assert not any(said.unspoken for said in ended)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


def test_a_model_of_words_takes_its_words_in_any_dress(tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer, words_only=True)
    words = vocabulary.spell("Hello, how can I help you - you?")
    assert [vocabulary.piece(word.tokens[0]) for word in words] == [
        "▁hello",
        "▁how",
        "▁can",
        "▁i",
        "▁help",
        "▁you",
        "▁you",
    ]
    assert [word.text for word in words][:2] == ["Hello,", "how"]


def test_words_that_a_model_does_not_have_are_named(tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer, words_only=True)
    with pytest.raises(CannotSay, match="'kubernetes', 'pods'"):
        vocabulary.spell("hello kubernetes pods kubernetes")
    for text in ("", "  ", "...", "- !"):
        with pytest.raises(CannotSay, match="no words"):
            vocabulary.spell(text)


def test_other_tokenizers_spell_what_they_do_not_know(tokenizer) -> None:
    words = Vocabulary(tokenizer, words_only=False).spell("hello Zoë")
    assert len(words) == 2 and len(words[1].tokens) > 2


async def converse(engine: Engine, audio: np.ndarray, say: str | None) -> list[list[Step]]:
    """Two conversations at once, in the first of which words are said."""
    sessions = [await engine.open(SessionConfig.greedy()) for _ in range(2)]
    if say is not None:
        await sessions[0].say(say)
    for frame in audio:
        for session in sessions:
            session.send(frame)
    taken: list[list[Step]] = []
    for session in sessions:
        steps = []
        async for step in session.steps():
            steps.append(step)
            if len(steps) == len(audio):
                break
        taken.append(steps)
        await session.close()
    return taken


@pytest.mark.slow
async def test_a_session_says_words_and_neighbours_do_not_notice(checkpoint_folder) -> None:
    audio = noise(60, seed=1)
    engine = await Engine.load(checkpoint_folder, slots=2, device="cpu")
    try:
        _, calm = await converse(engine, audio, None)
        spoken, neighbour = await converse(engine, audio, "hello how can i help")
        session = await engine.open(SessionConfig())
        with pytest.raises(CannotSay, match="'kubernetes'"):
            await session.say("hello kubernetes")
        await session.hush()
        await session.close()
        with pytest.raises(SessionEnded):
            await session.say("hello")
        with pytest.raises(SessionEnded):
            await session.hush()
    finally:
        await engine.close()
    said = [step for step in spoken if step.utterance_id == 1]
    assert "".join(step.text_piece or "" for step in said) == "▁hello▁how▁can▁i▁help"
    assert said[0].index <= FIRST_STEPS + 2  # behind the mark, where the model would pad
    assert [step.text_token for step in neighbour] == [step.text_token for step in calm]
    for one, other in zip(neighbour, calm, strict=True):
        np.testing.assert_array_equal(one.pcm, other.pcm)


async def test_only_so_many_utterances_wait(checkpoint_folder) -> None:
    engine = await Engine.load(checkpoint_folder, device="cpu")
    try:
        session = await engine.open(SessionConfig())
        for _ in range(MAX_WAITING):
            await session.say("hello")
        with pytest.raises(CannotSay, match="waiting"):
            await session.say("hello")
        await session.say("hello", cut_in=True)
    finally:
        await engine.close()


def talk_over(speaker: Speaker) -> None:
    speaker.hear(Overlap(1.0, 0.0, 0.0))
    for _ in range(OVER_STEPS):
        speaker.hear(Overlap(0.0, 0.0, 1.0))


def heard_step() -> Step:
    return Step(0, np.full(STEP_SAMPLES, 0.1, np.float32), OWN, "x", StepTiming(0.0, 0.0))


class TalkedOver(Run):
    """An agent in the middle of words of its own, which the user talks over from then on."""

    def __init__(self):
        super().__init__()
        self.steps([OWN, PAD], agent_db=LOUD_DB)
        talk_over(self.speaker)

    def sound(self) -> np.ndarray:
        step = heard_step()
        return self.speaker.sound(step).pcm


def test_who_is_talked_over_falls_silent_with_a_short_fade() -> None:
    run = TalkedOver()
    assert run.step(OWN, agent_db=LOUD_DB) == PAD
    first, second = run.sound(), run.sound()
    assert first[0] == pytest.approx(0.1) and not first[-1] and not second.any()
    assert np.abs(np.diff(first)).max() < 0.01


def test_no_word_is_told_that_is_not_heard() -> None:
    run = TalkedOver()
    told = run.speaker.sound(heard_step())
    assert (told.text_token, told.text_piece) == (PAD, None)


def test_it_keeps_silent_until_the_model_wants_to() -> None:
    run = TalkedOver()
    assert run.steps([OWN] * 20, agent_db=LOUD_DB) == [PAD] * 20
    assert run.steps([PAD] * YIELDED_STEPS) == [PAD] * YIELDED_STEPS
    assert run.step(OWN) == OWN
    assert run.sound().all()


def test_an_answer_that_begins_after_a_short_pause_is_not_kept_back() -> None:
    """The model had yielded by itself, and answers at once: "stop", "okay"."""
    run = TalkedOver()
    begins = [PAD, PAD, *[END] * 3]
    assert run.steps(begins) == [PAD] * SILENT_STEPS
    assert run.steps([END, OWN]) == [END, OWN]
    assert run.sound().all()


def test_a_word_that_is_kept_back_does_not_come_later() -> None:
    run = TalkedOver()
    assert run.steps([PAD, OWN, PAD, OWN, PAD, OWN]) == [PAD] * 6
    assert run.steps([PAD, PAD]) == [PAD, PAD]
    assert run.step(OWN) == OWN


def test_given_words_that_are_talked_over_are_dropped() -> None:
    run = Run()
    run.speaker.say(utterance(10, 11, 12))
    run.steps([PAD, PAD, END], agent_db=LOUD_DB)
    talk_over(run.speaker)
    run.steps([PAD] * 2)
    (said,) = run.said
    assert said.unspoken and "w12" in said.unspoken


def test_a_silent_agent_is_not_talked_over() -> None:
    run = Run()
    run.steps([PAD] * OWN_STOP_STEPS)
    talk_over(run.speaker)
    assert not run.speaker.is_active and run.step(OWN) == OWN


def wait(run: Run, steps: int) -> None:
    for _ in range(steps):
        run.speaker.hear(Overlap(1.0, 0.0, 0.0))
        run.step(PAD)


def say_something(run: Run) -> None:
    for _ in range(2 * SAID_STEPS):
        run.speaker.hear(Overlap(0.0, 0.0, 1.0))
        run.step(PAD, user_db=LOUD_DB)


def test_a_model_that_waits_on_is_asked_to_answer_once() -> None:
    run = Run()
    say_something(run)
    wait(run, 3 * PATIENCE_STEPS)
    at = 2 * SAID_STEPS + PATIENCE_STEPS - 1
    assert run.tokens == [PAD] * at + [END] + [PAD] * (2 * PATIENCE_STEPS)


def test_a_model_that_answers_by_itself_is_left_alone() -> None:
    run = Run()
    say_something(run)
    wait(run, PATIENCE_STEPS - 1)
    run.speaker.hear(Overlap(1.0, 0.0, 0.0))
    assert run.speaker.is_active and run.step(OWN) == OWN


def test_nobody_is_answered_by_a_model_whose_own_words_are_held() -> None:
    run = Run()
    run.speaker.hold(True)
    say_something(run)
    wait(run, 2 * PATIENCE_STEPS)
    assert set(run.tokens) == {PAD}
    assert not any(spoken.wish for spoken in run.spoken)


def test_an_agent_that_speaks_hears_who_wants_the_floor_and_a_silent_one_everybody() -> None:
    hum, claim = Overlap(0.0, 0.9, 0.1), Overlap(0.0, 0.1, 0.9)
    run = Run()
    assert run.speaker.hear(hum)
    run.steps([OWN, PAD], agent_db=LOUD_DB)
    assert (run.speaker.hear(hum), run.speaker.hear(claim)) == (False, True)
