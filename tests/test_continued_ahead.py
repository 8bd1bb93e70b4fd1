"""Conversations that move before their session is over: servers that leave, or fall silent."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from pipecat_duplex.scripted import Script, ScriptedBackend, ScriptedSession
from pipecat_duplex.session import (
    STEP_SAMPLES,
    AtCapacity,
    DuplexError,
    Said,
    SessionConfig,
    SessionEnded,
    Step,
)
from pipecat_duplex.session.continued import MAX_BARREN, ContinuedSession, MoveNews
from pipecat_duplex.session.doubt import CALM_SECS, SILENT_SECS, STUCK_SECS, Doubt
from pipecat_duplex.session.outlook import Outlook

COUNT = "one two three four five six seven eight nine ten"
LONG = " ".join([COUNT] * 3)
SILENCE = np.zeros(STEP_SAMPLES, np.float32)
CONFIG = SessionConfig()
STEP = 0.01


class Seat(ScriptedSession):
    """A session on a server that can stand still, and that can be asked to be left."""

    def __init__(self, server: "Server", *args):
        super().__init__(*args)
        self.server = server
        self.restored_steps = 0
        self.followed = 0

    def outlook(self) -> Outlook:
        silent_secs = 0.0 if self.server.answers_pings else self.server.silent_secs()
        return Outlook("it shuts down" if self.server.leaving else "", silent_secs)

    async def steps(self):
        async for step in super().steps():
            await self.server.runs.wait()
            if self.server.dead:
                raise SessionEnded(self.id, "its server died")
            yield step

    async def restore(self, history):
        await self.server.runs.wait()
        await asyncio.sleep(self.server.restore_secs)
        if self.server.dead:
            raise SessionEnded(self.id, "its server died")
        await super().restore(history)
        self.restored_steps = history.steps

    def follow(self, pcm, tokens):
        if not self.server.can_follow:
            raise DuplexError("no steps of others")
        self.followed += 1
        return super().follow(pcm, tokens)


class Server:
    """A server, as its sessions know it."""

    def __init__(self, script: Script, *, restore_secs: float = 0.1, can_follow: bool = True):
        self.script = script
        self.restore_secs = restore_secs
        self.can_follow = can_follow
        self.leaving = self.dead = self.full = False
        self.answers_pings = True
        self.runs = asyncio.Event()
        self.runs.set()
        self.seats: list[Seat] = []

    def stop(self, *, answers_pings: bool = False):
        self.stopped_secs = asyncio.get_running_loop().time()
        self.answers_pings = answers_pings
        self.runs.clear()

    def go_on(self):
        self.answers_pings = True
        self.runs.set()

    def silent_secs(self) -> float:
        return asyncio.get_running_loop().time() - self.stopped_secs

    @property
    def open_seats(self) -> list[Seat]:
        return [seat for seat in self.seats if not seat.closed]


class House(ScriptedBackend):
    """Opens sessions on the first server that takes some; those that stand still come last."""

    def __init__(self, *servers: Server):
        super().__init__()
        self.servers = servers

    async def open(self, config):
        for server in sorted(self.servers, key=lambda server: not server.runs.is_set()):
            if not (server.leaving or server.dead or server.full):
                await server.runs.wait()
                seat = Seat(server, f"seat-{len(server.seats)}", server.script, config)
                server.seats.append(seat)
                return seat
        raise AtCapacity("no server takes any")


class Talk:
    """A conversation by the clock."""

    def __init__(self, house: House, session: ContinuedSession):
        self.house = house
        self.session = session
        self.steps: list[Step] = []
        self.at_secs: list[float] = []
        self.news: list[str] = []
        self._tasks = [asyncio.create_task(self._feed()), asyncio.create_task(self._hear())]

    async def _feed(self):
        while True:
            self.session.send(SILENCE)
            await asyncio.sleep(STEP)

    async def _hear(self):
        async for step in self.session.steps():
            self.steps.append(step)
            self.at_secs.append(asyncio.get_running_loop().time())

    async def until(self, condition: Callable[[], bool]):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)
                if self._tasks[1].done():
                    self._tasks[1].result()

    async def until_word(self, count: int):
        await self.until(lambda: len(self.text.split()) >= count)

    @property
    def text(self) -> str:
        pieces = "".join(step.text_piece or "" for step in self.steps)
        return pieces.replace("▁", " ").strip()

    @property
    def said(self) -> list[Said]:
        return [said for step in self.steps for said in step.said]

    def longest_gap_secs(self) -> float:
        return float(np.diff(self.at_secs).max())

    async def end(self):
        for task in self._tasks:
            task.cancel()
        await self.session.close()
        assert [step.index for step in self.steps] == list(range(len(self.steps)))
        assert not any(server.open_seats for server in self.house.servers)


async def talk(*servers: Server) -> Talk:
    house = House(*servers)
    news: list[str] = []

    async def tell(what):
        news.append(str(what))

    seat = await house.open(CONFIG)
    assert seat.memory is not None
    session = ContinuedSession(
        house, CONFIG, seat, seat.memory, give_up_secs=3, news=MoveNews(tell, tell, tell)
    )
    talking = Talk(house, session)
    talking.news = news
    return talking


def script(**changes) -> Script:
    return Script(**{"opening": LONG, "step_secs": 0.0, "remembers": True} | changes)


def told(**changes) -> Script:
    return script(opening=None, **changes)


async def test_it_goes_on_at_the_next_server_without_a_gap():
    first, second = Server(script()), Server(script(), restore_secs=0.3)
    talking = await talk(first, second)
    await talking.until_word(4)
    first.leaving = True
    await talking.until(lambda: talking.session.moves)
    await talking.until_word(30)
    assert talking.text == LONG
    (seat,) = second.seats
    assert seat.followed > 5  # The steps of the time in which it was restored.
    assert talking.news[0] == "it shuts down"
    history = talking.session.history()
    assert history is not None and history.steps >= len(talking.steps) - 2  # None was left out.
    assert all(step.tokens is not None for step in talking.steps[1:])  # None is made of nothing.
    await talking.end()


@pytest.mark.parametrize("more", [False, True])
async def test_given_words_go_on_there_and_are_told_once(more):
    first, second = Server(told()), Server(told(), restore_secs=0.2)
    talking = await talk(first, second)
    number = await talking.session.say(LONG + " ", more=more)
    await talking.until_word(4)
    first.leaving = True
    await asyncio.sleep(0.1)
    after = await talking.session.say("good bye") if not more else None
    if more:
        await talking.session.say_more(number, "eleven", more=False)
    await talking.until(lambda: talking.session.moves and len(talking.said) == (1 if more else 2))
    expected = f"{LONG} eleven" if more else LONG
    assert talking.said[0] == Said(number, expected, "")
    assert talking.text == (expected if more else f"{LONG} good bye")
    assert after is None or talking.said[1] == Said(after, "good bye", "")
    await talking.end()


async def test_what_is_asked_and_held_meanwhile_is_right():
    first, second = Server(told()), Server(script(opening="not mine"), restore_secs=0.2)
    talking = await talk(first, second)
    await talking.session.hold()
    number = await talking.session.say(LONG)
    await talking.until_word(4)
    first.leaving = True
    asked = [asyncio.create_task(talking.session.can_say("one")) for _ in range(3)]
    await talking.until(lambda: talking.session.moves)
    assert all(await asyncio.gather(*asked))
    assert second.seats[0]._agent.held
    await talking.session.hush()
    await talking.until(lambda: talking.said)
    (said,) = talking.said
    assert said.utterance_id == number
    assert f"{said.spoken} {said.unspoken}" == LONG and talking.text == said.spoken
    await talking.end()


@pytest.mark.slow
async def test_a_server_that_dies_while_the_next_is_prepared():
    first, second = Server(script()), Server(script(), restore_secs=0.3)
    talking = await talk(first, second)
    await talking.until_word(4)
    first.leaving = True
    await talking.until(lambda: second.seats)
    await asyncio.sleep(0.1)
    first.dead = True
    await talking.until_word(30)
    assert talking.text == LONG and talking.session.moves == 1
    await talking.end()


async def test_it_stays_while_nobody_else_has_room():
    first, second = Server(script()), Server(script())
    second.full = True
    talking = await talk(first, second)
    await talking.until_word(3)
    first.leaving = True
    await talking.until_word(10)
    assert talking.session.moves == 0 and not talking.news
    second.full = False
    await talking.until(lambda: talking.session.moves)
    await talking.until_word(30)
    assert talking.text == LONG
    await talking.end()


async def test_a_next_server_that_dies_is_left_out():
    first, second, third = Server(script()), Server(script()), Server(script())
    talking = await talk(first, second, third)
    await talking.until_word(4)
    second.dead, second.full = False, False
    first.leaving = True
    await talking.until(lambda: second.seats)
    second.dead = True
    await talking.until_word(30)
    assert talking.text == LONG and talking.session.moves == 1
    assert third.seats
    await talking.end()


async def test_servers_that_are_too_busy_are_given_more_time(monkeypatch):
    """One that is hurried each time would begin again and again, and the conversation be lost."""
    monkeypatch.setattr("pipecat_duplex.session.successor.TRY_SECS", 0.15)
    first, second = Server(script()), Server(script(), restore_secs=0.5)
    talking = await talk(first, second)
    await talking.until_word(4)
    first.dead = True
    await talking.until_word(30)
    assert talking.text == LONG and talking.session.moves == 1
    assert len(second.seats) == 3
    await talking.end()


@pytest.mark.slow
async def test_where_steps_of_others_are_not_taken_it_goes_on_with_a_gap():
    first, second = Server(script()), Server(script(), can_follow=False)
    talking = await talk(first, second)
    await talking.until_word(4)
    first.leaving = True
    await talking.until_word(6)
    first.dead = True
    await talking.until_word(30)
    assert talking.text == LONG and talking.session.moves == 1
    await talking.end()


#
# servers that fall silent
#


@pytest.mark.slow
async def test_a_server_that_falls_silent_is_left():
    first, second = Server(script()), Server(script())
    talking = await talk(first, second)
    await talking.until_word(4)
    first.stop()
    await talking.until(lambda: talking.session.moves)
    assert first.silent_secs() < STUCK_SECS  # Long before it counts as stuck.
    first.go_on()
    await talking.until_word(30)
    assert talking.text == LONG and talking.session.moves == 1
    assert "no sign of life" in talking.news[0]
    await talking.end()


async def test_a_server_that_comes_back_first_keeps_the_conversation():
    first, second = Server(script()), Server(script(), restore_secs=5)
    talking = await talk(first, second)
    await talking.until_word(4)
    first.stop()
    await talking.until(lambda: second.seats)
    first.go_on()
    await talking.until_word(30)
    assert talking.text == LONG and talking.session.moves == 0 and not talking.news
    assert not second.open_seats
    await talking.end()


@pytest.mark.slow
async def test_a_server_that_is_merely_slow_keeps_the_conversation():
    slow = script(stalls={20: 3 * SILENT_SECS})
    first, second = Server(slow), Server(script())
    talking = await talk(first, second)
    await talking.until_word(20)
    assert talking.session.moves == 0 and not second.seats
    await talking.end()


@pytest.mark.slow
async def test_when_all_stand_still_at_once_nobody_is_left_twice():
    first, second = Server(script()), Server(script())
    talking = await talk(first, second)
    await talking.until_word(4)
    for _ in range(2):
        for server in (first, second):
            server.stop()
        await asyncio.sleep(2 * SILENT_SECS)
        for server in (first, second):
            server.go_on()
        await asyncio.sleep(0.2)
    await talking.until_word(30)
    assert talking.text == LONG and talking.session.moves <= 1
    await talking.end()


def test_doubt_grows_slower_each_time_and_is_forgotten():
    doubt = Doubt()
    assert not doubt.why(99.0, 50.0)  # Nothing is due.
    doubt.send(100.0)
    assert not doubt.why(99.0, 100.0)
    just_after = 100.01 + SILENT_SECS
    assert "sign of life" in doubt.why(99.0, just_after)
    assert not doubt.why(0.0, just_after) and not doubt.why(None, just_after)
    assert "no step" in doubt.why(0.0, 100.01 + STUCK_SECS)
    doubt.raise_caution(just_after)
    doubt.hear(101.0, waits=True)
    assert not doubt.why(99.0, 101.01 + SILENT_SECS)
    assert doubt.why(99.0, 101.01 + 2 * SILENT_SECS)
    doubt.hear(just_after + CALM_SECS, waits=True)
    assert doubt.why(99.0, just_after + CALM_SECS + 0.1 + SILENT_SECS)
    doubt.hear(200.0, waits=False)
    assert not doubt.why(99.0, 300.0)


async def test_a_conversation_that_every_session_fails_for_comes_to_an_end():
    first, second = Server(script(fail_step=6)), Server(script(fail_step=0), restore_secs=0)
    talking = await talk(first, second)
    first.full = True
    with pytest.raises(SessionEnded, match="the script says so"):
        await talking.until(lambda: False)
    assert 0 < len(second.seats) < MAX_BARREN
    await talking.end()


async def test_before_anything_was_said_it_begins_anew():
    first, second = Server(script(fail_step=0)), Server(script())
    talking = await talk(first, second)
    first.full = True
    await talking.until_word(10)
    assert talking.session.moves == 1 and second.seats[0].restored_steps == 0
    await talking.end()
