"""The service with its model elsewhere."""

import asyncio
import contextlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from pipecat.frames.frames import ErrorFrame, TTSAudioRawFrame, TTSSpeakFrame

from pipecat_duplex import DuplexError, DuplexLLMService, MonologueTextFrame, SessionConfig
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import STEP_SAMPLES
from pipecat_duplex.session.continued import ContinuedSession
from tests.pipeline import converse, silence, speech
from tests.server.callers import chat_url, serving, wait_until
from tests.server.processes import scripted_server
from tests.stalls import by_the_clock

USER = np.concatenate([speech("question"), silence(3)])


@pytest.mark.slow
async def test_a_conversation():
    script = Script(replies=["Sure, with pleasure."], step_secs=0.001)
    async with serving(ScriptedBackend(script, slots=1)) as server:
        backend = RemoteBackend(chat_url(server))
        for _ in range(2):  # the backend outlives the bot
            conversation = await converse(backend, USER)
            assert not conversation.near_user.of(ErrorFrame)
            said = [frame.text for frame in conversation.near.of(MonologueTextFrame)]
            assert said == ["▁Sure,", "▁with", "▁pleasure."]
            assert conversation.near.of(TTSAudioRawFrame)
            await wait_until(lambda: server.sessions_open == 0)
        await backend.close()


@pytest.mark.slow
async def test_the_bot_is_told_that_its_server_failed():
    async with serving(ScriptedBackend(Script(fail_step=10), slots=1)) as server:
        conversation = await converse(RemoteBackend(chat_url(server)), silence(2))
        errors = [frame.error for frame in conversation.near_user.of(ErrorFrame)]
        assert len(errors) == 1 and "the script says so" in errors[0]


@pytest.mark.slow
async def test_a_bot_outlives_its_server():
    """Killed in mid-sentence: the bot is told, and goes on with whoever answers there next."""

    async def replace_server(stack: contextlib.AsyncExitStack, process, url: str) -> None:
        await asyncio.sleep(1.5)
        process.signal(signal.SIGKILL)
        await process.wait()
        port = url.split(":")[2].split("/")[0]
        await stack.enter_async_context(scripted_server("here again", f"port={port}"))

    async with contextlib.AsyncExitStack() as stack:
        words = " ".join(f"word{n}" for n in range(100))
        process, url = await stack.enter_async_context(scripted_server(words))
        backend = RemoteBackend(url)
        replacing = asyncio.create_task(replace_server(stack, process, url))
        conversation = await converse(backend, silence(15), realtime=True, reopen_secs=60)
        await replacing
        await backend.close()
    (error,) = (frame.error for frame in conversation.near_user.of(ErrorFrame))
    assert "was lost" in error
    assert conversation.service.is_usable
    said = conversation.assistant_words()
    assert said[0].startswith("word0 word1") and said[-1] == "here again"


@pytest.mark.slow
@by_the_clock
async def test_the_greeting_waits_for_the_caller_however_long_nobody_comes():
    """The server ends sessions in which nobody is heard; another one is opened for the caller."""
    settings = DuplexLLMService.Settings(greeting="hello there")
    async with serving(ScriptedBackend(Script(step_secs=0.001)), idle_secs=1) as server:
        backend = RemoteBackend(chat_url(server))
        conversation = await converse(
            backend,
            silence(2.5),
            realtime=True,
            lobby_secs=2.0,
            settings=settings,
            inject={0.1: lambda: TTSSpeakFrame("one moment")},
        )
        await backend.close()
    assert not conversation.near_user.of(ErrorFrame)
    assert " ".join(conversation.assistant_words()) == "hello there one moment"
    assert all(not event[1].unspoken for event in conversation.events if event[0] == "on_said")
    names = conversation.event_names()
    assert names[:3] == ["on_session_started", "on_session_ended", "on_session_started"]


@pytest.mark.slow
async def test_a_session_lost_with_nobody_there_is_no_error_until_somebody_comes():
    async with serving(ScriptedBackend(Script()), idle_secs=0.2) as server:

        async def stop_server():
            await wait_until(lambda: server.sessions_open == 1)
            await wait_until(lambda: server.sessions_open == 0)
            await server.stop()

        stopping = asyncio.create_task(stop_server())
        backend = RemoteBackend(chat_url(server), attempts=1)
        conversation = await converse(
            backend, silence(1), realtime=True, lobby_secs=1.2, reopen_secs=0.1
        )
        await stopping
        await backend.close()
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "Cannot open a fresh session" in error.error
    assert not conversation.service.is_usable


@pytest.mark.parametrize("url", [False, True])
async def test_whether_the_model_has_the_words_is_told_without_saying_them(url):
    script = Script(step_secs=0.001, unsayable=frozenset({"kubernetes", "pods"}), remembers=True)
    async with serving(ScriptedBackend(script)) as server:
        backend = RemoteBackend(chat_url(server)) if url else ScriptedBackend(script)
        service = DuplexLLMService(backend=backend)
        with pytest.raises(DuplexError, match="no session"):
            await service.can_say("hello")
        for continues in (True, False):
            session = await backend.open(SessionConfig())
            if continues:
                session = ContinuedSession(
                    backend, SessionConfig(), session, session.memory, give_up_secs=1
                )
            service._session = session
            assert await service.can_say("hello there")
            can = await service.can_say("hello kubernetes, and pods")
            assert not can and can.lacks == ("kubernetes,", "pods")
            assert "kubernetes" in can.reason
            nothing = await service.can_say("  ")
            assert not nothing and nothing.lacks == () and "no words" in nothing.reason
            session.send(np.zeros(STEP_SAMPLES, np.float32))
            async for step in session.steps():
                assert not step.said and step.utterance_id is None
                break
            service._session = None
            await session.close()
        await backend.close()


async def test_the_bot_is_told_that_there_is_no_server():
    conversation = await converse(RemoteBackend("ws://127.0.0.1:9", attempts=1), silence(0.3))
    errors = [frame.error for frame in conversation.near_user.of(ErrorFrame)]
    assert len(errors) == 1 and "cannot reach 127.0.0.1:9" in errors[0]


def test_neither_torch_nor_a_codec_is_imported():
    code = "import sys, pipecat_duplex.remote; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert not loaded & {"torch", "moshi", "sphn", "pipecat", "pipecat_duplex.engine"}
