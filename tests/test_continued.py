"""Conversations that outlive their session, with scripted agents that remember."""

import asyncio

import numpy as np
import pytest

from pipecat_duplex.scripted import FINGERPRINT, Script, ScriptedBackend
from pipecat_duplex.session import (
    STEP_SAMPLES,
    AtCapacity,
    CannotSay,
    InvalidHistory,
    Said,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
)
from pipecat_duplex.session.continued import ContinuedSession
from pipecat_duplex.session.history import STREAMS, History, HistoryKeeper, ResumeKey
from pipecat_duplex.session.inbox import MAX_PENDING_STEPS
from pipecat_duplex.session.saying import Saying, Sayings
from pipecat_duplex.session.unheard import UnheardAudio
from tests.server.callers import wait_until

COUNT = "one two three four five six seven eight nine ten"
SILENCE = np.zeros(STEP_SAMPLES, np.float32)
CONFIG = SessionConfig()


class Relay:
    """A backend whose first sessions come from one script, and later ones from another."""

    def __init__(self, first: Script, then: Script | None, refusals: int = 0):
        self._first = ScriptedBackend(first)
        self._then = ScriptedBackend(then) if then else None
        self._refusals = refusals
        self.opened = 0
        self.moving = asyncio.Event()

    async def open(self, config):
        self.opened += 1
        if self.opened > 1:
            self.moving.set()
        if self.opened == 1:
            return await self._first.open(config)
        if self._then is None or self.opened <= 1 + self._refusals:
            raise AtCapacity("all slots are taken")
        return await self._then.open(config)

    async def close(self):
        await self._first.close()


async def continued(relay: Relay, give_up_secs: float = 5.0) -> ContinuedSession:
    session = await relay.open(CONFIG)
    assert session.memory is not None
    return ContinuedSession(relay, CONFIG, session, session.memory, give_up_secs=give_up_secs)


async def converse(session: ContinuedSession, count: int) -> list[Step]:
    steps: list[Step] = []

    async def feed():
        for _ in range(count):
            session.send(SILENCE)
            await asyncio.sleep(0.005)

    feeding = asyncio.create_task(feed())
    try:
        async with asyncio.timeout(20):
            async for step in session.steps():
                steps.append(step)
                if len(steps) == count:
                    return steps
        return steps
    finally:
        feeding.cancel()


def text_of(steps: list[Step]) -> str:
    return "".join(step.text_piece or "" for step in steps).replace("▁", " ").strip()


def said_in(steps: list[Step]) -> list[Said]:
    return [said for step in steps for said in step.said]


def script(**changes) -> Script:
    return Script(opening=COUNT, step_secs=0, remembers=True, **changes)


@pytest.mark.parametrize("fail_step", [6, 15, 25])
async def test_the_agent_goes_on_where_it_stopped(fail_step):
    relay = Relay(script(fail_step=fail_step), script())
    session = await continued(relay)
    steps = await converse(session, 80)
    assert text_of(steps) == COUNT
    assert [step.index for step in steps] == list(range(80))
    assert session.moves == 1 and relay.opened == 2
    await session.close()


async def test_given_words_go_on_too():
    relay = Relay(Script(step_secs=0, remembers=True, fail_step=10), script(opening_step=1000))
    session = await continued(relay)
    first, second = await session.say(COUNT), await session.say("goodbye")
    steps = await converse(session, 90)
    assert text_of(steps) == f"{COUNT} goodbye"
    assert said_in(steps) == [
        Said(first, COUNT, ""),
        Said(second, "goodbye", ""),
    ]
    await session.close()


async def test_given_words_are_told_though_only_their_last_sound_was_lost():
    relay = Relay(Script(step_secs=0, remembers=True, fail_step=2), script(opening_step=1000))
    session = await continued(relay)
    number = await session.say("goodbye")
    steps = await converse(session, 30)
    assert session.moves == 1
    assert said_in(steps) == [Said(number, "goodbye", "")]
    await session.close()


async def test_a_stream_goes_on_where_it_stopped_and_own_words_stay_held():
    then = Script(step_secs=0, remembers=True, opening="not mine", opening_step=30)
    relay = Relay(Script(step_secs=0, remembers=True, fail_step=10), then, refusals=1)
    session = await continued(relay)
    await session.hold()
    conversation = asyncio.create_task(converse(session, 150))
    number = await session.say("one two ", more=True)
    await session.say_more(number, "thr")
    await session.say_more(number, "ee 4 fi")
    await relay.moving.wait()
    await session.say_more(number, "ve ")
    await asyncio.sleep(0)
    await session.say_more(number, "six", more=False)
    steps = await conversation
    assert session.moves == 1
    assert text_of(steps) == "one two three 4 five six"
    (said,) = said_in(steps)
    assert said.utterance_id == number and said.unspoken == ""
    await session.close()


async def test_a_text_as_an_iterator_is_said():
    async def text():
        yield "one tw"
        yield "o three"

    session = await continued(Relay(script(opening_step=1000), None))
    number = await session.say(text())
    steps = await converse(session, 20)
    assert said_in(steps) == [Said(number, "one two three", "")]
    await session.close()


@pytest.mark.parametrize(
    ("text", "begun", "rest"),
    [
        ("the 42 ways", ["the", "forty"], "ways"),
        ("the 42 ways", ["the", "forty", "two"], "ways"),
        ("oh - kubernetes is near", ["oh", "is"], "near"),
        ("hel", [], "hel"),
        ("hello wor", ["hel"], "wor"),
    ],
)
def test_what_is_left_of_a_text_is_found_by_what_was_heard(text, begun, rest):
    saying = Saying(text)
    sayings = Sayings()
    sayings.add(1, saying)
    for piece in begun:
        sayings.hear(1, f"▁{piece}")
    assert saying.continued().text == rest


@pytest.mark.parametrize("cut_in", [False, True])
async def test_what_waits_for_a_move_can_be_dropped(cut_in):
    first = Script(step_secs=0, remembers=True, fail_step=10)
    relay = Relay(first, script(opening_step=1000), refusals=2)
    session = await continued(relay)
    conversation = asyncio.create_task(converse(session, 150))
    begun = await session.say(COUNT)
    await relay.moving.wait()
    waiting = await session.say("thank you")
    last = await session.say("goodbye", cut_in=True) if cut_in else None
    if not cut_in:
        await session.hush()
    steps = await conversation
    assert text_of(steps) == "one two three four" + (" goodbye" if cut_in else "")
    told = [Said(begun, "one two three four", COUNT[19:]), Said(waiting, "", "thank you")]
    assert said_in(steps) == told + ([Said(last, "goodbye", "")] if last else [])
    await session.close()


async def test_words_that_the_next_session_refuses_are_told(monkeypatch):
    relay = Relay(Script(step_secs=0, remembers=True, fail_step=10), script(opening_step=1000))
    session = await continued(relay)
    number = await session.say(COUNT)

    async def refuse(self, text, *, cut_in=False):
        raise CannotSay(f"it cannot say {text!r}")

    monkeypatch.setattr("pipecat_duplex.scripted.ScriptedSession.say", refuse)
    steps = await converse(session, 40)
    assert session.moves == 1
    assert said_in(steps) == [Said(number, "one two three four", COUNT[19:])]
    await session.close()


async def test_a_full_house_is_tried_again():
    relay = Relay(script(fail_step=10), script(), refusals=2)
    session = await continued(relay)
    assert text_of(await converse(session, 150)) == COUNT
    assert relay.opened == 4
    await session.close()


async def test_no_room_anywhere_is_told_and_the_history_is_kept():
    session = await continued(Relay(script(fail_step=10), None), give_up_secs=0.3)
    with pytest.raises(SessionEnded, match="cannot go on elsewhere: all slots are taken"):
        await converse(session, 1000)
    history = session.history()
    assert history is not None and history.steps == 10
    backend = ScriptedBackend(script())
    fresh = await backend.open(CONFIG)
    await fresh.restore(history)
    again = ContinuedSession(backend, CONFIG, fresh, session.memory, give_up_secs=1)
    assert text_of(await converse(again, 60)).endswith("three four five six seven eight nine ten")
    await again.close()


async def test_what_it_was_restored_from_goes_along():
    before = await continued(Relay(script(fail_step=10), None), give_up_secs=0.3)
    with pytest.raises(SessionEnded):
        await converse(before, 1000)
    history = before.history()
    assert history is not None

    relay = Relay(script(fail_step=3), script())
    session = await relay.open(CONFIG)
    await session.restore(history)
    again = ContinuedSession(relay, CONFIG, session, before.memory, give_up_secs=5, history=history)
    steps = await converse(again, 60)
    assert again.moves == 1
    assert text_of(steps).endswith("eight nine ten")
    kept = again.history()
    assert kept is not None and kept.steps > 60  # Both parts, but for the steps of the move.
    np.testing.assert_array_equal(kept.codes[:, : history.steps], history.codes)
    await again.close()


async def test_a_history_without_audio_is_kept_too():
    codes = np.full((STREAMS, 3), 5, np.int32)
    history = History(FINGERPRINT, codes, True, np.zeros((0, STEP_SAMPLES), np.float32))
    kept = HistoryKeeper(ResumeKey(FINGERPRINT, 100), history).history()
    assert kept is not None and kept.steps == 3 and kept.complete and len(kept.audio) == 0
    shorter = HistoryKeeper(ResumeKey(FINGERPRINT, 2), history).history()
    assert shorter is not None and shorter.steps == 2 and not shorter.complete


async def test_who_takes_no_steps_is_ended():
    session = await continued(Relay(script(), None))
    with pytest.raises(SessionEnded, match="nobody has taken"):
        for _ in range(MAX_PENDING_STEPS + 1):
            session.send(SILENCE)
    await session.close()


async def test_a_limit_is_an_end_and_no_failure():
    config = SessionConfig(max_secs=0.8)
    relay = Relay(script(fail_step=10), script())
    inner = await relay.open(config)
    assert inner.memory is not None
    session = ContinuedSession(relay, config, inner, inner.memory, give_up_secs=1)
    with pytest.raises(SessionEnded):
        await converse(session, 30)
    assert relay.opened == 1


def step_of(index: int, tokens: np.ndarray | None) -> Step:
    return Step(index, SILENCE, 3, None, StepTiming(0, 0), tokens=tokens)


def test_the_keeper_keeps_the_last_window_and_says_so():
    keeper = HistoryKeeper(ResumeKey(FINGERPRINT, 5))
    assert keeper.history() is None
    keeper.send(SILENCE)
    keeper.take(step_of(0, None))
    assert keeper.history() is None
    for index in range(1, 9):
        keeper.send(np.full(STEP_SAMPLES, index / 10, np.float32))
        keeper.take(step_of(index, np.full(STREAMS, index, np.int32)))
        history = keeper.history()
        assert history is not None
        assert history.complete == (index <= 5)
        assert history.codes[0].tolist() == list(range(max(1, index - 4), index + 1))
        assert history.audio[-1, 0] == pytest.approx(index / 10)


def a_history(steps: int = 4) -> History:
    codes = np.arange(STREAMS * steps, dtype=np.int32).reshape(STREAMS, steps)
    return History(FINGERPRINT, codes, True, np.zeros((2, STEP_SAMPLES), np.float32))


def test_bytes_bring_a_history_back():
    history = a_history()
    again = History.from_bytes(history.to_bytes())
    np.testing.assert_array_equal(again.codes, history.codes)
    assert again.fingerprint == FINGERPRINT and again.complete
    assert again.audio.shape == (2, STEP_SAMPLES)


def test_what_is_no_history_is_refused():
    whole = a_history().to_bytes()
    for data in (b"", b"abc", whole[:-1], whole + b"x", b"\xff" * 40, whole[:3]):
        with pytest.raises(InvalidHistory):
            History.from_bytes(data)
    history = a_history()
    history.check(FINGERPRINT, 100, 100)
    for arguments in (("other", 100, 100), (FINGERPRINT, 2, 100), (FINGERPRINT, 100, 20)):
        with pytest.raises(InvalidHistory):
            history.check(*arguments)
    negative = History(FINGERPRINT, history.codes - 1, True, history.audio)
    with pytest.raises(InvalidHistory):
        negative.check(FINGERPRINT, 100, 100)
    for codes in (history.codes[:5], history.codes[:, :0], history.codes.astype(float)):
        with pytest.raises(InvalidHistory):
            History(FINGERPRINT, codes, True, history.audio)


#
# what nobody heard
#

VOICE = np.full(STEP_SAMPLES, 0.3, np.float32)
NOISE = np.random.default_rng(1).normal(0, 0.004, STEP_SAMPLES).astype(np.float32)


async def talk_into_the_gap(audio: list[np.ndarray]) -> tuple[list[Step], ContinuedSession]:
    """Send audio while no session is there, and silence before and after."""
    then = Script(replies=("four",), opening_step=1000, step_secs=0, remembers=True)
    relay = Relay(Script(step_secs=0, remembers=True, fail_step=10), then, refusals=3)
    session = await continued(relay)
    steps: list[Step] = []

    async def feed():
        for _ in range(12):
            session.send(SILENCE)
        await relay.moving.wait()
        for pcm in audio:
            session.send(pcm)
        await wait_until(lambda: session.moves)
        while True:
            session.send(SILENCE)
            await asyncio.sleep(0.005)

    feeding = asyncio.create_task(feed())
    async with asyncio.timeout(20):
        async for step in session.steps():
            steps.append(step)
            if len(steps) == 12 + len(audio) + 30:
                break
    feeding.cancel()
    return steps, session


@pytest.mark.parametrize("before", [0, 3, 20])
@pytest.mark.parametrize("after", [0, 2])
async def test_what_the_user_says_into_the_gap_is_heard(before, after):
    audio = [SILENCE] * before + [VOICE] * 6 + [SILENCE] * after
    steps, session = await talk_into_the_gap(audio)
    assert text_of(steps) == "four"
    assert [step.index for step in steps] == list(range(len(steps)))
    history = session.history()
    assert history is not None and any(np.abs(each).max() > 0.2 for each in history.audio)
    await session.close()


async def test_silence_of_the_gap_is_left_out():
    steps, session = await talk_into_the_gap([NOISE] * 20)
    assert text_of(steps) == ""
    history = session.history()
    # Those of before and after; the agent's next ones may have come already.
    assert history is not None and 10 + 30 <= history.steps < 10 + 2 + 20 + 30
    await session.close()


@pytest.mark.parametrize(
    ("steps", "taken"),
    [
        ([], 0),
        ([SILENCE] * 9, 0),
        ([NOISE] * 9, 0),
        ([SILENCE] * 5 + [VOICE] * 3 + [SILENCE] * 5, 2 + 3),
        ([NOISE] * 5 + [VOICE] * 3 + [NOISE] * 5, 2 + 3),
        ([VOICE, SILENCE, SILENCE, VOICE], 4),
        ([SILENCE] * 60 + [VOICE], 3),
        ([VOICE] + [SILENCE] * 60, 0),
    ],
)
def test_from_the_first_word_to_the_last(steps, taken):
    unheard = UnheardAudio()
    unheard.add(*steps)
    assert len(unheard) <= 50
    assert len(unheard.take_speech(before=[NOISE] * 20)) == taken
    assert len(unheard) == 0


async def test_words_wait_until_the_gap_was_heard():
    then = script(opening_step=1000)
    relay = Relay(Script(step_secs=0, remembers=True, fail_step=10), then, refusals=2)
    session = await continued(relay)
    conversation = asyncio.create_task(converse(session, 150))
    begun = await session.say(COUNT)
    await relay.moving.wait()
    for _ in range(6):
        session.send(VOICE)
    steps = await conversation
    assert text_of(steps) == COUNT
    assert said_in(steps) == [Said(begun, COUNT, "")]
    await session.close()
