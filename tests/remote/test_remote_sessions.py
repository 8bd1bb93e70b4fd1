"""Remote sessions on our own server: the contract, and what goes wrong."""

import asyncio
import signal
import time

import numpy as np
import pytest
from aiohttp import WSMsgType, web

from pipecat_duplex import protocol
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.remote.session import RemoteLimits
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import (
    STEP_SAMPLES,
    TEXT_PADDING,
    AtCapacity,
    CannotSay,
    DuplexError,
    InvalidAudio,
    InvalidPrompt,
    Said,
    SessionConfig,
    SessionEnded,
)
from tests.server.callers import (
    FAST,
    SILENCE,
    calling,
    chat_url,
    converse,
    read_until,
    serving,
    take,
    text_of,
    wait_until,
)
from tests.server.processes import scripted_server

CONFIG = SessionConfig()


def formats():
    try:
        import sphn  # noqa: F401
    except ModuleNotFoundError:
        return ["auto"]
    return ["auto", "opus"]


@pytest.fixture(params=formats())
def audio_format(request):
    return request.param


async def test_the_end_is_known_before_it_comes(audio_format):
    async with serving(max_session_secs=8, slots=2) as server:
        backend = RemoteBackend(chat_url(server), audio_format=audio_format)
        session = await backend.open(CONFIG)
        await converse(session, [SILENCE] * 25)
        assert session.secs_left == pytest.approx(8 - 2)
        # The server shuts down sooner than the limit comes.
        draining = asyncio.create_task(server.drain(3))
        await wait_until(lambda: session.secs_left is not None and session.secs_left <= 3)
        await session.close()
        await draining


async def test_no_limit_no_end():
    async with serving() as server:
        session = await RemoteBackend(chat_url(server)).open(CONFIG)
        assert session.secs_left is None
        await session.close()


async def test_one_step_for_each_send_in_order(audio_format):
    async with serving() as server:
        backend = RemoteBackend(chat_url(server), audio_format=audio_format)
        session = await backend.open(CONFIG)
        assert [session.send(SILENCE) for _ in range(20)] == list(range(20))
        steps = await take(session, 20)
        assert [step.index for step in steps] == list(range(20))
        assert text_of(steps) == "one two three"
        words = {step.index: step.text_piece for step in steps if step.text_piece}
        assert words == {2: "▁one", 5: "▁two", 8: "▁three"}
        for step in steps:
            assert step.pcm.shape == (STEP_SAMPLES,) and step.pcm.dtype == np.float32
            assert (step.text_piece is None) == (step.text_token == TEXT_PADDING)
            # Sound where the script has it, and only there: no shift.
            assert (np.abs(step.pcm[400:]).max() > 0.1) == (2 <= step.index <= 10)
        assert not steps[0].pcm.any()
        await session.close()
        with pytest.raises(SessionEnded, match="closed"):
            session.send(SILENCE)
        assert await take(session, 1) == []
        await session.close()
        await backend.close()
        with pytest.raises(DuplexError, match="closed"):
            await backend.open(CONFIG)
        await wait_until(lambda: server.sessions_open == 0)


async def test_raw_audio_arrives_as_it_was():
    class Echo(ScriptedBackend):
        async def open(self, config):
            session = await super().open(config)
            heard.append(session)
            send = session.send
            session.frames = []
            session.send = lambda pcm: (session.frames.append(pcm.copy()), send(pcm))[1]
            return session

    heard: list = []
    noise = np.random.default_rng(0).uniform(-1, 1, (5, STEP_SAMPLES)).astype(np.float32)
    async with serving(Echo(slots=1)) as server:
        session = await RemoteBackend(chat_url(server)).open(CONFIG)
        buffer = np.empty(STEP_SAMPLES, np.float32)
        for frame in noise:
            buffer[:] = frame
            session.send(buffer)
            buffer[:] = 0
        await take(session, 5)
        assert np.array_equal(np.stack(heard[0].frames), noise)
        await session.close()


@pytest.mark.parametrize(
    "bad", [np.zeros(STEP_SAMPLES), SILENCE[:-1], np.full_like(SILENCE, np.inf), [0.0], None]
)
async def test_bad_audio_touches_nothing(bad):
    async with serving() as server:
        session = await RemoteBackend(chat_url(server)).open(CONFIG)
        with pytest.raises(InvalidAudio):
            session.send(bad)
        assert session.send(SILENCE) == 0
        await take(session, 1)
        await session.close()


async def test_one_consumer_at_a_time_and_a_cancelled_one_goes_on():
    async with serving() as server:
        session = await RemoteBackend(chat_url(server)).open(CONFIG)
        waiting = asyncio.create_task(take(session, 1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="consumer"):
            await take(session, 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        session.send(SILENCE)
        assert len(await take(session, 1)) == 1
        await session.close()


async def test_the_limit_of_a_session_is_told_after_its_last_step(audio_format):
    class Limited(ScriptedBackend):
        async def open(self, config):
            session = await super().open(config)
            steps = session.steps

            async def limited():
                async for step in steps():
                    yield step
                    if step.index + 1 == round(config.max_secs / 0.08):
                        raise SessionEnded(session.id, f"it reached its limit: {config.max_secs}")

            session.steps = limited
            return session

    async with serving(Limited(slots=1)) as server:
        backend = RemoteBackend(chat_url(server), audio_format=audio_format)
        session = await backend.open(SessionConfig(max_secs=0.4))
        for _ in range(8):
            session.send(SILENCE)
        assert [step.index for step in await take(session, 5)] == list(range(5))
        with pytest.raises(SessionEnded, match="reached its limit"):
            await take(session, 1)
        assert server.metrics.ended["limit"] == 1


async def test_a_failure_leaves_the_backend_able_to_go_on(audio_format):
    async with serving(ScriptedBackend(Script(fail_step=3), slots=1)) as server:
        backend = RemoteBackend(chat_url(server), audio_format=audio_format)
        for _ in range(2):
            session = await backend.open(CONFIG)
            for _ in range(5):
                session.send(SILENCE)
            with pytest.raises(SessionEnded, match="the script says so"):
                await take(session, 5)
            with pytest.raises(SessionEnded, match="the script says so"):
                session.send(SILENCE)
            await wait_until(lambda: server.sessions_open == 0)


@pytest.mark.slow
async def test_a_server_killed_in_mid_sentence(audio_format):
    words = " ".join(f"word{n}" for n in range(100))
    async with scripted_server(words) as (process, url):
        backend = RemoteBackend(url, audio_format=audio_format)
        session = await backend.open(CONFIG)
        feeding = asyncio.create_task(feed(session))
        await take(session, 10)
        process.signal(signal.SIGKILL)
        killed_secs = time.monotonic()
        with pytest.raises(SessionEnded, match="lost"):
            await take(session, 1000)
        # By the connection's end, before the pings tell: the reason says which.
        assert time.monotonic() - killed_secs < 4
        await feeding
        await process.wait()
        port = url.split(":")[2].split("/")[0]
        with pytest.raises(DuplexError, match="cannot reach"):
            await backend.open(CONFIG)
        async with scripted_server("one two three", f"port={port}"):
            fresh = await backend.open(CONFIG)
            assert text_of(await converse(fresh, [SILENCE] * 12)) == "one two three"
            await fresh.close()


@pytest.mark.slow
async def test_a_server_that_freezes_is_noticed():
    async with scripted_server("one two three") as (process, url):
        session = await RemoteBackend(url).open(CONFIG)
        feeding = asyncio.create_task(feed(session))
        await take(session, 5)
        process.signal(signal.SIGSTOP)
        stopped_secs = time.monotonic()
        with pytest.raises(SessionEnded, match="no sign of life"):
            await take(session, 1000)
        assert time.monotonic() - stopped_secs < 4  # 2 s, and what a busy machine adds
        await feeding
        closing_secs = time.monotonic()
        await session.close()
        assert time.monotonic() - closing_secs < 5


async def feed(session) -> None:
    """Send audio by the clock until the session ends."""
    try:
        while True:
            session.send(SILENCE)
            await asyncio.sleep(0.08)
    except SessionEnded:
        pass


async def test_a_server_that_answers_pings_only_is_noticed():
    async with serving(ScriptedBackend(Script(stalls={3: 60}), slots=1)) as server:
        limits = RemoteLimits(stall_secs=0.5)
        session = await RemoteBackend(chat_url(server), limits=limits).open(CONFIG)
        for _ in range(6):
            session.send(SILENCE)
        with pytest.raises(SessionEnded, match="answered no audio"):
            await take(session, 6)


async def test_a_caller_who_says_nothing_is_not_stalled():
    async with serving() as server:
        limits = RemoteLimits(ping_secs=0.05, stall_secs=0.2)
        session = await RemoteBackend(chat_url(server), limits=limits).open(CONFIG)
        await asyncio.sleep(0.8)
        session.send(SILENCE)
        assert len(await take(session, 1)) == 1
        await session.close()


@pytest.mark.slow
async def test_no_server_is_blamed_for_a_stall_of_ours():
    async with serving() as server:
        limits = RemoteLimits(dead_secs=1.0, stall_secs=1.0)
        session = await RemoteBackend(chat_url(server), limits=limits).open(CONFIG)
        for _ in range(2):
            await asyncio.sleep(0.3)
            session.send(SILENCE)
            await asyncio.sleep(0)
            session._connection.transport.pause_reading()  # What comes meanwhile waits.
            time.sleep(1.5)  # noqa: ASYNC251 (that is the point)
            assert session.outlook().silent_secs < 0.6
            session._connection.transport.resume_reading()
        assert len(await take(session, 2)) == 2
        await session.close()


class BadServer:
    """Sends what it is told to, right after the upgrade."""

    def __init__(self, *messages: bytes | str, close_code: int | None = None, status: int = 101):
        self._messages = messages
        self._close_code = close_code
        self._status = status
        self.calls = 0

    async def __aenter__(self):
        app = web.Application()
        app.router.add_get("/api/chat", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"ws://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error):
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        if self._status != 101:
            return web.Response(status=self._status, text="a proxy's page")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for message in self._messages:
            if isinstance(message, str):
                await socket.send_str(message)
            else:
                await socket.send_bytes(message)
        if self._close_code:
            await socket.close(code=self._close_code, message=b"go away")
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        return socket


PCM_READY = (protocol.encode(protocol.Metadata({"pipecat_duplex": {"format": "pcm"}})), b"\x00")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((b"\x04{",), "does not speak Moshi's protocol.*JSON"),
        (("hello",), "does not speak Moshi's protocol"),
        ((b"\x05no such voice",), "refused the call: no such voice"),
    ],
)
async def test_a_handshake_that_goes_wrong(messages, reason):
    async with BadServer(*messages) as server:
        with pytest.raises(DuplexError, match=reason):
            await RemoteBackend(server.url).open(CONFIG)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((b"\x11half a step",), "something wrong.*a step has"),
        ((protocol.encode(protocol.Audio(b"OggS")),), "something wrong.*raw audio"),
        (("hello",), "something wrong"),
        ((b"\x05out of memory",), "reports: out of memory"),
        ((bytes(2 << 20),), "1009|too big|lost"),
    ],
)
async def test_a_session_that_goes_wrong(messages, reason):
    async with BadServer(*PCM_READY, *messages) as server:
        session = await RemoteBackend(server.url).open(CONFIG)
        with pytest.raises(SessionEnded, match=reason):
            await take(session, 1)


async def test_noise_instead_of_opus():
    pytest.importorskip("sphn")
    async with BadServer(b"\x00", b"\x01" + bytes(range(256))) as server:
        session = await RemoteBackend(server.url).open(CONFIG)
        with pytest.raises(SessionEnded, match="not an Ogg-Opus stream"):
            await take(session, 1)


async def test_a_step_out_of_turn():
    async with serving() as good:
        session = await RemoteBackend(chat_url(good)).open(CONFIG)
        session.send(SILENCE)
        (step,) = await take(session, 1)
        await session.close()
    async with BadServer(*PCM_READY, protocol.encode(protocol.AgentStep(step))) as server:
        session = await RemoteBackend(server.url).open(CONFIG)
        with pytest.raises(SessionEnded, match="answers no frame"):
            await take(session, 1)


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [(1013, AtCapacity, "no room: go away"), (1011, DuplexError, "hung up.*go away.*PersonaPlex")],
)
async def test_hung_up_before_it_was_ready(code, error, reason):
    async with BadServer(close_code=code) as server:
        with pytest.raises(error, match=reason):
            await RemoteBackend(server.url).open(CONFIG)


async def test_no_handshake_is_at_capacity():
    async with BadServer() as server:
        with pytest.raises(AtCapacity, match=r"not ready within 0\.2 s"):
            await RemoteBackend(server.url, handshake_secs=0.2).open(CONFIG)


@pytest.mark.parametrize(
    ("status", "calls", "error"),
    [(404, 1, DuplexError), (503, 1, AtCapacity), (429, 1, AtCapacity), (502, 3, DuplexError)],
)
async def test_refusals_over_http(status, calls, error):
    async with BadServer(status=status) as server:
        with pytest.raises(error, match=f"HTTP {status}: a proxy's page"):
            await RemoteBackend(server.url).open(CONFIG)
        assert server.calls == calls


async def test_a_server_that_comes_up_late_is_found():
    async with BadServer(*PCM_READY) as server:
        port = server.url.rpartition(":")[2]
    backend = RemoteBackend(f"ws://127.0.0.1:{port}", attempts=6)
    opening = asyncio.create_task(backend.open(CONFIG))
    await asyncio.sleep(0.3)
    assert not opening.done()
    from pipecat_duplex.server import DuplexServer

    server = DuplexServer(ScriptedBackend(), slots=1)
    await server.start("127.0.0.1", int(port))
    try:
        await (await asyncio.wait_for(opening, 30)).close()
    finally:
        await server.stop()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "ftp://here", "ws://", "localhost:8998", "ws://a:99999", "ws://[a"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(DuplexError, match="not the address"):
        RemoteBackend(url)


def test_a_key_in_the_address_is_not_told():
    backend = RemoteBackend("https://user:word@gpu.example:1/?api_key=secret")
    assert backend.host == "gpu.example:1"


async def test_callers_beside_each_other_hear_their_own():
    class Own(ScriptedBackend):
        async def open(self, config):
            self._script = Script(opening=f"caller {config.seed}", opening_step=2, step_secs=0.002)
            return await super().open(config)

    async with serving(Own(slots=8), slots=8) as server:

        async def call(number: int) -> tuple[int, str]:
            form = formats()[number % len(formats())]
            backend = RemoteBackend(chat_url(server), audio_format=form)
            session = await backend.open(SessionConfig(seed=number))
            text = text_of(await converse(session, [SILENCE] * (10 + number), 0.002))
            await backend.close()
            return number, text

        for _ in range(3):
            texts = await asyncio.gather(*(call(number) for number in range(8)))
            assert texts == [(number, f"caller {number}") for number in range(8)]
            await wait_until(lambda: server.sessions_open == 0)


async def test_words_are_said_and_their_end_is_told(audio_format):
    async with serving(ScriptedBackend(Script(step_secs=0))) as server:
        backend = RemoteBackend(chat_url(server), audio_format=audio_format)
        session = await backend.open(CONFIG)
        number = await session.say("four five")
        assert await session.say("six") == number + 1
        with pytest.raises(CannotSay, match="no words"):
            await session.say("  ")
        steps = await converse(session, [SILENCE] * 20)
        assert text_of(steps) == "four five six"
        assert [step.utterance_id for step in steps if step.text_piece] == [1, 1, 2]
        said = [said for step in steps for said in step.said]
        assert said == [Said(1, "four five", ""), Said(2, "six", "")]
        await session.say("seven eight nine")
        await session.hush()
        await asyncio.sleep(0.05)
        (said,) = [said for step in await converse(session, [SILENCE] * 4) for said in step.said]
        assert said == Said(3, "", "seven eight nine")
        await session.close()
        with pytest.raises(SessionEnded):
            await session.say("ten")


async def test_a_server_that_dies_ends_what_waits_for_it():
    async with scripted_server("hello") as (process, url):
        session = await RemoteBackend(url).open(CONFIG)
        process.signal(signal.SIGSTOP)
        asking = asyncio.create_task(session.say("hello"))
        await asyncio.sleep(0.1)
        process.signal(signal.SIGKILL)
        with pytest.raises(SessionEnded):
            await asyncio.wait_for(asking, 5)


@pytest.mark.parametrize("words", [700, 5_000, 17_000, 21_000])
async def test_long_words_are_taken_and_told_of(words):
    text = " ".join(["hello"] * words)
    async with serving() as server:
        session = await RemoteBackend(chat_url(server)).open(CONFIG)
        number = await session.say(text)
        steps = await converse(session, [SILENCE] * 8)
        await session.hush()
        steps += await converse(session, [SILENCE] * 8)
        ended = [said for step in steps for said in step.said]
        assert [said.utterance_id for said in ended] == [number]
        assert f"{ended[0].spoken} {ended[0].unspoken}" == text
        await session.close()


@pytest.mark.parametrize(
    "text", ["hello " * 30_000, "hello \ud800", "\udfff", "語" * 50_000], ids=range(4)
)
async def test_words_that_no_server_takes_are_an_answer(text, audio_format):
    async with serving() as server:
        session = await RemoteBackend(chat_url(server), audio_format=audio_format).open(CONFIG)
        with pytest.raises(CannotSay, match=r"bytes|Unicode"):
            await session.say(text)
        assert len(await converse(session, [SILENCE] * 5)) == 5
        await session.close()


@pytest.mark.parametrize("text", ["hello " * 30_000, "hello \ud800", "", None, "x" * 900_000])
async def test_a_caller_with_words_that_are_not_taken_is_answered(text):
    async with serving() as server, calling(server, format="pcm") as socket:
        await read_until(socket, protocol.Handshake)
        await socket.send_bytes(protocol.encode(protocol.Say(7, text)))
        if text is not None:
            (answer,) = await read_until(socket, protocol.SayAnswer)
            assert answer.request == 7 and answer.utterance_id is None and answer.error
        await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
        assert await read_until(socket, protocol.AgentStep)


async def test_a_server_of_before_says_what_it_takes():
    greeting = protocol.Metadata({"pipecat_duplex": {"format": "pcm", "features": ["say"]}})
    async with BadServer(protocol.encode(greeting), b"\x00") as server:
        session = await RemoteBackend(server.url).open(CONFIG)
        with pytest.raises(CannotSay, match="at most 4096 bytes"):
            await session.say("hello " * 700)
        await session.close()


async def test_words_come_as_a_stream_and_own_words_are_held(audio_format):
    script = Script(step_secs=0, opening="not mine", opening_step=2, unsayable={"kubernetes"})
    async with serving(ScriptedBackend(script)) as server:
        backend = RemoteBackend(chat_url(server), audio_format=audio_format)
        session = await backend.open(CONFIG)
        await session.hold()
        steps = await converse(session, [SILENCE] * 4)
        assert [step.wish for step in steps] == [False, False, True, False]
        number = await session.say("four fi", more=True)
        await session.say_more(number, "ve kubernetes si")
        steps = await converse(session, [SILENCE] * 12)
        assert text_of(steps) == "four five"
        await session.say_more(number, "x", more=False)
        steps = await converse(session, [SILENCE] * 12)
        assert text_of(steps) == "six"
        assert [said for step in steps for said in step.said] == [
            Said(number, "four five six", "", ("kubernetes",))
        ]
        await session.say_more(number, "too late")  # No error: the user may have barged in.
        await session.close()


async def test_a_server_that_takes_whole_texts_only_is_told(monkeypatch):
    monkeypatch.setattr(protocol, "STREAM", "not yet")
    async with serving(ScriptedBackend(Script(step_secs=0))) as server:
        backend = RemoteBackend(chat_url(server))
        session = await backend.open(CONFIG)
        monkeypatch.undo()
        with pytest.raises(CannotSay, match="newer"):
            await session.hold()
        with pytest.raises(CannotSay, match="newer"):
            await session.say("one", more=True)
        assert await session.say("one") == 1
        await session.close()


@pytest.mark.parametrize(
    "url",
    [
        "ws://user:SECRET@127.0.0.1:1/api/chat?api_key=SECRET",
        "ws://127.0.0.1:1/?api_key=SECRET&x=1",
        "ws://user:SECRET@127.0.0.1:x/",
        "ftp://user:SECRET@host/?api_key=SECRET",
    ],
)
async def test_no_secret_in_an_error(url):
    with pytest.raises(DuplexError) as caught:
        await RemoteBackend(url, attempts=1).open(CONFIG)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["nonsense://user:SECRET@host:1", "socks5://u:SECRET@127.0.0.1:1"]
)
async def test_a_proxy_that_cannot_be_used_is_an_error_in_words(proxy, monkeypatch):
    for name in ("http_proxy", "https_proxy", "socks_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SOCKS_PROXY", proxy)
    with pytest.raises(DuplexError) as caught:
        await RemoteBackend("ws://server.example:1", attempts=1, connect_secs=2).open(CONFIG)
    assert "SECRET" not in str(caught.value)


async def test_prompts_and_names_that_are_no_text_are_errors_in_words():
    with pytest.raises(DuplexError, match="Unicode"):
        await RemoteBackend("ws://127.0.0.1:1", voice_prompt="", text_prompt="\ud800").open(CONFIG)
    for host in ("a" * 70, "\u2024".join("ab")):
        with pytest.raises(DuplexError):
            await RemoteBackend(f"ws://{host}:1", attempts=1).open(CONFIG)
    with pytest.raises(DuplexError, match="control character"):
        RemoteBackend("ws://host:1", api_key="key\r\nX: y")


async def test_a_voice_that_is_not_there_can_be_another():
    class Choosy(ScriptedBackend):
        async def open(self, config):
            if config.voice_prompt not in (None, "house"):
                raise InvalidPrompt(f"there is no voice {config.voice_prompt!r}")
            return await super().open(config)

    for default in ("", "house"):
        async with serving(Choosy(FAST, slots=2), default_voice=default) as server:
            backend = RemoteBackend(chat_url(server), voice_prompt="NATF0.pt", text_prompt="")
            session = await backend.open(CONFIG)
            await session.close()
    async with serving(Choosy(FAST, slots=2)) as server:
        backend = RemoteBackend(chat_url(server), voice_prompt="NATF0.pt", text_prompt="")
        with pytest.raises(InvalidPrompt):
            await backend.open(CONFIG)
