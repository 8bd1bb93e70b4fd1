"""The engine behind the server: its sessions over a socket, and a stock client."""

import asyncio
import queue
import sys
import types

import aiohttp
import numpy as np
import pytest

pytest.importorskip("moshi")

from pipecat_duplex.engine import Engine
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.session import AtCapacity, SessionConfig, SessionEnded
from tests.server.callers import chat_url, converse, serving, take, wait_until

pytestmark = pytest.mark.engine

NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, (30, 1920)).astype(np.float32)


@pytest.fixture
async def engine(tiny_checkpoint):
    engine = await Engine.load(str(tiny_checkpoint), slots=2, device="cpu")
    yield engine
    await engine.close()


@pytest.mark.slow
async def test_the_same_conversation_over_a_socket(engine):
    config = SessionConfig(seed=3)
    local = await engine.open(config)
    expected = await converse(local, NOISE)
    await local.close()
    async with serving(engine, slots=engine.slots) as server:
        backend = RemoteBackend(chat_url(server))
        sessions = [await backend.open(config) for _ in range(2)]
        with pytest.raises(AtCapacity, match="2 slots"):
            await backend.open(config)
        heard = await asyncio.gather(*(converse(session, NOISE) for session in sessions))
        for steps in heard:
            for step, other in zip(steps, expected, strict=True):
                assert (step.index, step.text_token, step.text_piece) == (
                    other.index,
                    other.text_token,
                    other.text_piece,
                )
                assert np.allclose(step.pcm, other.pcm, atol=1e-5)
        await backend.close()
        await wait_until(lambda: engine.free_slots == 2)


async def test_a_session_reaches_its_limit(engine):
    async with serving(engine, slots=engine.slots, max_session_secs=0.8) as server:
        session = await RemoteBackend(chat_url(server)).open(SessionConfig())
        for frame in NOISE[:15]:
            session.send(frame)
        assert len(await take(session, 10)) == 10
        with pytest.raises(SessionEnded, match=r"reached its limit of 0\.8 s"):
            await take(session, 1)
        assert server.metrics.ended["limit"] == 1


async def test_a_step_that_raises(engine, monkeypatch):
    from pipecat_duplex.engine.torch.model import BatchedModel

    async with serving(engine, slots=engine.slots) as server:
        backend = RemoteBackend(chat_url(server))
        session = await backend.open(SessionConfig())
        session.send(NOISE[0])
        await take(session, 1)
        with monkeypatch.context() as patch:

            def fail(self, frames, choose_word=None):
                raise RuntimeError("out of luck")

            patch.setattr(BatchedModel, "step", fail)
            session.send(NOISE[1])
            with pytest.raises(SessionEnded, match="out of luck"):
                await take(session, 1)
        await wait_until(lambda: engine.free_slots == 2)
        fresh = await backend.open(SessionConfig())
        assert len(await converse(fresh, NOISE)) == 30
        await backend.close()


class _Stream:
    """A sound card that the test turns by hand."""

    def __init__(self, *, callback, **_kwargs):
        self.callback = callback

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture
def moshi_client(monkeypatch):
    """``moshi.client``, without a sound device."""
    sounddevice = types.ModuleType("sounddevice")
    sounddevice.__dict__.update(InputStream=_Stream, OutputStream=_Stream)
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice)
    monkeypatch.delitem(sys.modules, "moshi.client", raising=False)
    import moshi.client

    yield moshi.client
    sys.modules.pop("moshi.client", None)


class _Printer:
    def __init__(self):
        self.text = ""

    def print_token(self, token):
        self.text += token

    def log(self, level, message):
        pass

    def print_pending(self):
        pass

    print_header = print_lag = print_pending


async def test_the_stock_client(engine, moshi_client):
    async with serving(engine, slots=engine.slots) as server:
        async with aiohttp.ClientSession() as http:
            async with http.ws_connect(f"http://127.0.0.1:{server.port}/api/chat") as socket:
                printer = _Printer()
                connection = moshi_client.Connection(
                    printer, socket, event_loop=asyncio.get_running_loop()
                )
                running = asyncio.create_task(connection.run())
                for frame in NOISE:
                    connection._on_audio_input(frame[:, None], 1920, None, None)
                    await asyncio.sleep(0.02)
                heard = connection._output_queue
                await wait_until(lambda: heard.qsize() == len(NOISE) - 1)
                await socket.close()
                await running
        blocks = [heard.get_nowait() for _ in range(heard.qsize())]
        assert np.abs(np.concatenate(blocks)).max() > 0
        assert printer.text.strip()
        with pytest.raises(queue.Empty):
            heard.get_nowait()
        await wait_until(lambda: engine.free_slots == 2)
