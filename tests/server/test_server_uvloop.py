"""The server in a program that runs on uvloop, as Ray's actors and many web servers do."""

import asyncio

import pytest

from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.session import SessionConfig
from tests.server.callers import SILENCE, chat_url, converse, serving

uvloop = pytest.importorskip("uvloop")


def test_a_call_on_uvloop() -> None:
    async def call() -> int:
        async with serving() as server:
            session = await RemoteBackend(chat_url(server), attempts=1).open(SessionConfig())
            steps = await converse(session, [SILENCE] * 5)
            await session.close()
            return len(steps)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(call()) == 5
