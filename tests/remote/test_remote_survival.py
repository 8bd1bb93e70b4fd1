"""Calls that go on when their server is killed or shuts down: two real server processes."""

import asyncio
import signal
import time

import numpy as np
import pytest
import websockets.asyncio.server

from pipecat_duplex import protocol
from pipecat_duplex.remote import RemoteBackend, RemoteFleet
from pipecat_duplex.remote.discovery import ServerAddress
from pipecat_duplex.remote.load import ask_loads
from pipecat_duplex.remote.session import RemoteLimits
from pipecat_duplex.scripted import FINGERPRINT, Script, ScriptedBackend
from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    AtCapacity,
    CannotSay,
    DuplexError,
    InvalidHistory,
    SessionConfig,
    SessionEnded,
    Step,
)
from pipecat_duplex.session.continued import ContinuedSession
from pipecat_duplex.session.history import History, ResumeKey
from tests.server.callers import chat_url, serving, take
from tests.server.processes import scripted_server

COUNT = "one two three four five six seven eight nine ten"
SILENCE = np.zeros(STEP_SAMPLES, np.float32)
CONFIG = SessionConfig()


def text_of(steps: list[Step]) -> str:
    return "".join(step.text_piece or "" for step in steps).replace("▁", " ").strip()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_a_call_goes_on_at_another_server(number: signal.Signals) -> None:
    async with (
        scripted_server(COUNT, "remembers=yes") as (first, first_url),
        scripted_server(COUNT, "remembers=yes") as (second, second_url),
    ):
        fleet = RemoteFleet([first_url, second_url])
        inner = await fleet.open(CONFIG)
        used = await ask_loads({first: ServerAddress(first_url)}, None)
        server = first if used[first].used else second
        assert inner.memory is not None
        session = ContinuedSession(fleet, CONFIG, inner, inner.memory, give_up_secs=5)
        steps: list[Step] = []
        times_secs: dict[str, float] = {}

        async def feed() -> None:
            while True:
                session.send(SILENCE)
                await asyncio.sleep(STEP_SECS)

        feeding = asyncio.create_task(feed())
        async with asyncio.timeout(40):
            async for step in session.steps():
                steps.append(step)
                if step.text_piece:
                    times_secs[step.text_piece] = time.monotonic()
                if step.text_piece == "▁nine":
                    server.signal(number)
                if step.text_piece == "▁ten":
                    break
        feeding.cancel()
        if number == signal.SIGSTOP:
            server.signal(signal.SIGCONT)
        assert text_of(steps) == COUNT
        assert [step.index for step in steps] == list(range(len(steps)))
        assert session.moves == 1
        # The word takes 0.24 s; a killed server is noticed at once.
        assert times_secs["▁ten"] - times_secs["▁nine"] < 2
        await session.close()
        await fleet.close()


async def test_a_foreign_history_is_refused_and_the_call_goes_on() -> None:
    async with scripted_server(COUNT, "remembers=yes") as (_, url):
        backend = RemoteBackend(url)
        session = await backend.open(CONFIG)
        for _ in range(6):
            session.send(SILENCE)
        steps = await take(session, 6)
        assert all(step.tokens is not None for step in steps)
        codes = np.stack([step.tokens for step in steps if step.tokens is not None], axis=1)
        history = History("another", codes, True, np.zeros((1, STEP_SAMPLES), np.float32))
        fresh = await backend.open(CONFIG)
        with pytest.raises(InvalidHistory, match="another checkpoint"):
            await fresh.restore(history)
        fresh.send(SILENCE)
        assert len(await take(fresh, 1)) == 1
        with pytest.raises(DuplexError, match="before the first step"):
            await fresh.restore(History("scripted", codes, True, history.audio))
        await backend.close()


async def test_a_server_without_memory_says_so() -> None:
    async with serving() as server:
        session = await RemoteBackend(chat_url(server)).open(CONFIG)
        assert session.memory is None
        history = History(
            "x", np.zeros((17, 1), int), True, np.zeros((0, STEP_SAMPLES), np.float32)
        )
        with pytest.raises(DuplexError, match="cannot go on"):
            await session.restore(history)
        await session.close()


async def test_a_fleet_takes_one_that_has_room() -> None:
    async with serving(slots=1) as full, serving(slots=1) as free:
        taken = await RemoteBackend(chat_url(full)).open(CONFIG)
        fleet = RemoteFleet(["ws://127.0.0.1:9", chat_url(full), chat_url(free)])
        session = await fleet.open(CONFIG)
        assert free.sessions_open == 1
        with pytest.raises(AtCapacity, match="slots"):
            await fleet.open(CONFIG)
        await taken.close()
        await session.close()
        with pytest.raises(SessionEnded):
            session.send(SILENCE)
        await fleet.close()
    with pytest.raises(DuplexError, match="no server"):
        RemoteFleet([])


#
# targets that are no good
#


class Stranger:
    """A server that greets as ours does, and does something else with a history."""

    def __init__(self, fingerprint: str = FINGERPRINT, *, answer: bytes | None = None, dies=False):
        self._fingerprint = fingerprint
        self._answer = answer
        self._dies = dies
        self.calls = 0

    async def __aenter__(self):
        self._server = await websockets.asyncio.server.serve(
            self._talk, "127.0.0.1", 0, process_request=self._tell_health
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *error):
        self._server.close()
        await self._server.wait_closed()

    def _tell_health(self, connection, request):
        """It seems to be the emptiest of all."""
        if request.path == "/health":
            return connection.respond(200, '{"status": "ok", "slots": 1000, "slots_used": 0}')
        return None

    async def _talk(self, socket) -> None:
        self.calls += 1
        greeting = protocol.Greeting(
            session="stranger",
            audio_format="pcm",
            features=frozenset({protocol.SAY, protocol.RESTORE}),
            memory=ResumeKey(self._fingerprint, 100),
        )
        await socket.send(protocol.encode(greeting.to_metadata()))
        await socket.send(protocol.encode(protocol.Handshake()))
        async for message in socket:
            if message != b"\x15":
                continue
            if self._dies:
                socket.transport.abort()
                return
            if self._answer is not None:
                await socket.send(b"\x15" + self._answer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stranger",
    [
        Stranger(),
        Stranger("other", answer=b"the history was made with another checkpoint"),
        Stranger(dies=True),
    ],
    ids=["never answers", "another checkpoint", "dies"],
)
async def test_a_target_that_is_no_good_is_left_out(stranger: Stranger):
    script = Script(opening=COUNT, opening_step=2, step_secs=0.001, remembers=True)
    async with serving(ScriptedBackend(script, slots=4)) as first, stranger:
        fleet = RemoteFleet([chat_url(first)], limits=RemoteLimits(restore_secs=0.4))
        inner = await fleet.open(CONFIG)
        async with serving(ScriptedBackend(script, slots=4)) as third:
            # The stranger seems to have more room.
            others = [await RemoteBackend(chat_url(third)).open(CONFIG) for _ in range(3)]
            everywhere = RemoteFleet(
                [stranger.url, chat_url(third)], limits=RemoteLimits(restore_secs=0.4)
            )
            assert inner.memory is not None
            session = ContinuedSession(everywhere, CONFIG, inner, inner.memory, give_up_secs=5)
            steps: list[Step] = []

            async def feed() -> None:
                while True:
                    session.send(SILENCE)
                    await asyncio.sleep(0.02)

            feeding = asyncio.create_task(feed())
            stopping = None
            async with asyncio.timeout(30):
                async for step in session.steps():
                    steps.append(step)
                    if len(steps) == 12:
                        stopping = asyncio.create_task(first.stop())
                    if text_of(steps).endswith("ten"):
                        break
            feeding.cancel()
            assert text_of(steps) == COUNT
            assert session.moves == 1 and stranger.calls == 1
            for each in (session, *others):
                await each.close()
            assert stopping is not None
            await stopping


async def test_targets_that_are_all_no_good_end_the_conversation_with_a_reason():
    stranger = Stranger("other", answer=b"the history was made with another checkpoint")
    script = Script(opening=COUNT, step_secs=0.001, remembers=True, fail_step=10)
    async with serving(ScriptedBackend(script, slots=4)) as first, stranger:
        inner = await RemoteBackend(chat_url(first)).open(CONFIG)
        fleet = RemoteFleet([stranger.url])
        assert inner.memory is not None
        session = ContinuedSession(fleet, CONFIG, inner, inner.memory, give_up_secs=0.2)
        with pytest.raises(SessionEnded, match="another checkpoint"):
            for _ in range(12):
                session.send(SILENCE)
            async with asyncio.timeout(20):
                async for _ in session.steps():
                    pass
        await session.close()


async def test_a_say_that_nobody_answers_has_a_deadline():
    async with Stranger() as stranger:
        backend = RemoteBackend(stranger.url, limits=RemoteLimits(answer_secs=0.2))
        session = await backend.open(CONFIG)
        with pytest.raises(CannotSay, match="has not answered"):
            await session.say("hello")
        await session.close()
