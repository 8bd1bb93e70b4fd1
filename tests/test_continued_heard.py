"""The user's words of a conversation that moves: each is told once, with its step, on any road."""

import asyncio

import numpy as np
import pytest

from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.server import DuplexServer
from pipecat_duplex.session import STEP_SAMPLES, DuplexSession, HeardWord, SessionConfig, Step
from pipecat_duplex.session.heard import HeardWords, Shift
from pipecat_duplex.session.outlook import Outlook
from tests.test_continued import Relay, continued

DELAY_STEPS = 6
EVERY_STEPS = 4
NAMES = [f"word{number}" for number in range(20)]


def hears(pcm: np.ndarray) -> str | None:
    """A word begins where the level says which one."""
    number = round(float(pcm[0]) * 100) - 20
    return NAMES[number] if 0 <= number < len(NAMES) else None


def voice(index: int, silent: range = range(0)) -> np.ndarray:
    """A voice that begins another word every few steps."""
    number, rest = divmod(index, EVERY_STEPS)
    level = (20 + number) / 100 if not rest and number < len(NAMES) else 0.1
    return np.full(STEP_SAMPLES, 0 if index in silent else level, np.float32)


SCRIPT = Script(step_secs=0, remembers=True, hears=hears, yield_steps=None)


async def converse(session: DuplexSession, count: int, silent: range = range(0)) -> list[Step]:
    steps: list[Step] = []

    async def feed():
        for index in range(count):
            session.send(voice(index, silent))
            await asyncio.sleep(0.003)

    feeding = asyncio.create_task(feed())
    async with asyncio.timeout(20):
        async for step in session.steps():
            steps.append(step)
            if len(steps) == count:
                break
    await feeding
    return steps


def words_of(steps: list[Step]) -> list[HeardWord]:
    return [word for step in steps for word in step.heard]


def expected(count: int) -> list[tuple[str, int]]:
    numbers = range(min(len(NAMES), (count - DELAY_STEPS - 2) // EVERY_STEPS + 1))
    return [(NAMES[number], EVERY_STEPS * number) for number in numbers]


@pytest.mark.parametrize("fail_step", [9, 30, 31, 33])
async def test_words_on_their_way_come_from_the_next_session(fail_step: int):
    relay = Relay(Script(**vars(SCRIPT) | {"fail_step": fail_step}), SCRIPT)
    session = await continued(relay)
    assert session.hearing_delay_steps == DELAY_STEPS
    words = words_of(await converse(session, 110))
    await session.close()
    assert session.moves == 1
    assert [word.text for word in words] == NAMES
    assert [word.start_step for word in words] == [step for _, step in expected(110)]


@pytest.mark.parametrize("silent", [range(26, 60), range(35, 60), range(26, 42)])
async def test_a_gap_with_silence_in_it_moves_no_word(silent: range):
    relay = Relay(Script(**vars(SCRIPT) | {"fail_step": 30}), SCRIPT, refusals=1)
    session = await continued(relay)
    words = words_of(await converse(session, 110, silent))
    await session.close()
    assert session.moves == 1
    told = [(word.text, word.start_step) for word in words]
    assert told == [(text, step) for text, step in expected(110) if step not in silent]


async def test_a_smooth_move_tells_each_word_once(monkeypatch: pytest.MonkeyPatch):
    relay = Relay(SCRIPT, SCRIPT)
    session = await continued(relay)
    first = relay._first.sessions[0]
    steps = asyncio.create_task(converse(session, 110))
    await asyncio.sleep(0.1)
    first.outlook = lambda: Outlook("it shuts down", 0.0)
    words = words_of(await steps)
    await session.close()
    assert session.moves == 1
    assert [(word.text, word.start_step) for word in words] == expected(110)


def test_a_word_that_is_said_twice_is_told_twice():
    heard = HeardWords()
    heard.hear([HeardWord("no", 10, 11)])
    heard.move(20, [Shift(0, 0)])
    again = [
        HeardWord("well", 2, 3),
        HeardWord("know", 10, 11),
        HeardWord("no", 11, 12),
        HeardWord("no", 13, 14),
    ]
    heard.hear(again)
    assert [(word.text, word.start_step) for word in heard.take()] == [("no", 10), ("no", 13)]


async def test_words_travel_over_the_wire():
    server = DuplexServer(ScriptedBackend(SCRIPT), slots=1)
    await server.start("127.0.0.1", 0)
    backend = RemoteBackend(f"ws://127.0.0.1:{server.port}")
    try:
        session = await backend.open(SessionConfig())
        assert session.hearing_delay_steps == DELAY_STEPS
        words = words_of(await converse(session, 40))
        assert [(word.text, word.start_step) for word in words] == expected(40)
        await session.close()
    finally:
        await backend.close()
        await server.stop()
