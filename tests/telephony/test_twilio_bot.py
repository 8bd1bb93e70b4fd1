"""The Twilio bot, called over a real socket by a client that behaves as Twilio does."""

import asyncio
import json
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from loguru import logger
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pipecat_duplex.scripted import Script, ScriptedBackend
from tests.pipeline import silence, speech
from tests.telephony.bot import HOST, Bot, serving, sign, until
from tests.telephony.caller import (
    ACCOUNT_SID,
    CALL_SID,
    RATE_HZ,
    STREAM_SID,
    Call,
    Caller,
    Line,
    connected_message,
    media_object,
    start_object,
)

# Longer than any of the calls: on a busy machine, too, the caller talks over it.
STORY = " ".join(["once there was a small cat who wanted to see the sea"] * 8)
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def logs():
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message)), level="INFO")
    yield lines
    logger.remove(handler)


def barge_in() -> np.ndarray:
    return np.concatenate([silence(1.5, RATE_HZ), speech("barge_in", RATE_HZ), silence(3, RATE_HZ)])


@pytest.mark.slow
async def test_a_call(logs):
    """The agent speaks, yields, and nothing of it is heard after the clear; keys come through."""
    script = Script(opening=STORY, replies=["all right"], yield_steps=8, step_secs=0)
    backend = ScriptedBackend(script)
    async with serving(backend) as bot:
        caller = Caller(barge_in(), digits={1.0: "5", 1.2: "#"}, waits=True)
        call = await caller.call(bot.media)
        await until(lambda: any("the line:" in line for line in logs))
    [cleared] = call.times("clear")
    media = [message for message in call.received if message.event == "media"]
    after = [message.secs for message in media if message.secs > cleared]
    # What comes next is the reply, once the caller has fallen silent.
    assert after and after[0] - cleared > 0.5
    recording = call.recording()
    assert np.abs(recording[:, 1]).max() > 0.1
    at = round((cleared - call.origin_secs) * RATE_HZ)
    assert not recording[at : at + RATE_HZ // 2, 1].any()
    assert backend.sessions[0].closed
    [summary] = [line for line in logs if "the line:" in line]
    assert CALL_SID in summary and "1 yields" in summary and "digits 5#" in summary


def torn_secs(call: Call) -> float:
    return sum(gap.secs for gap in call.player().gaps)


@pytest.mark.slow
async def test_loss_and_jitter_tear_nothing_and_delay_nothing(logs):
    """5 % loss and 60 ms of jitter, beside an even line: a busy machine tears both alike."""
    words = " ".join(["word"] * 16)
    audio = np.concatenate([silence(2, RATE_HZ), speech("question", RATE_HZ), silence(5, RATE_HZ)])
    backend = ScriptedBackend(Script(opening="hello", replies=[words]), slots=2)
    lines = Line(), Line(loss=0.05, jitter_secs=0.06, seed=1)
    async with serving(backend) as bot:
        even, poor = await asyncio.gather(
            *(Caller(audio, line=line, waits=True).call(bot.media) for line in lines)
        )
        await until(lambda: sum("the line:" in line for line in logs) == 2)
    # Unbridged it would be torn for a second or so; a busy machine tears one more than the other.
    assert torn_secs(poor) < torn_secs(even) + 0.3
    # Both replies take as long: what was lost or late has not become a delay.
    ends = [call.times("media")[-1] - call.origin_secs for call in (even, poor)]
    assert ends[1] - ends[0] < 1.0 + len(poor.audio) / RATE_HZ - len(even.audio) / RATE_HZ
    lost = [
        float(re.search(r"lost_secs=([\d.]+)", line)[1]) for line in logs if "lost_secs" in line
    ]
    assert min(lost) == 0 and 0.1 < max(lost) < 1.2


@pytest.mark.slow
async def test_two_calls_have_their_own_conversations(logs):
    """One caller talks over the agent, the other one listens; each presses keys of their own."""
    backend = ScriptedBackend(Script(opening=STORY, step_secs=0), slots=2)
    quiet_audio = silence(len(barge_in()) / RATE_HZ, RATE_HZ)
    callers = (
        Caller(barge_in(), digits={0.5: "1", 1.0: "1"}, waits=True),
        Caller(quiet_audio, digits={0.5: "2", 1.0: "3"}, waits=True),
    )
    async with serving(backend) as bot:
        _, quiet = await asyncio.gather(*(caller.call(bot.media) for caller in callers))
        await until(lambda: sum("the line:" in line for line in logs) == 2)
    assert not quiet.times("clear")
    # The story goes on for one to the end of the call.
    assert quiet.times("media")[-1] > quiet.origin_secs + len(quiet.audio) / RATE_HZ - 1
    digits = [re.search(r"digits (\w+)", line)[1] for line in logs if "the line:" in line]
    assert sorted(digits) == ["11", "23"]
    assert all(session.closed for session in backend.sessions)


@pytest.mark.slow
async def test_without_a_slot_the_call_ends_and_the_others_go_on(logs):
    backend = ScriptedBackend(Script(opening=STORY))
    async with serving(backend) as bot:
        caller = Caller(silence(2.5, RATE_HZ), waits=True)
        first = asyncio.create_task(caller.call(bot.media))
        await until(lambda: backend.sessions)
        second = await Caller(silence(1, RATE_HZ), stays=True).call(bot.media)
        assert not second.times("media")
        call = await first
    assert len(call.times("media")) > 20
    assert any("slots are taken" in line for line in logs)


@asynccontextmanager
async def rest_api() -> AsyncIterator[tuple[str, list]]:
    """Stand in for the one request of Twilio's REST API that hangs up."""
    requests = []

    async def hang_up(request: web.Request):
        requests.append(
            (request.path, request.headers["Authorization"], dict(await request.post()))
        )
        return web.json_response({"status": "completed"})

    app = web.Application()
    app.router.add_post("/{path:.*}", hang_up)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", requests
    finally:
        await runner.cleanup()


async def announce(bot: Bot, **form: str) -> dict[str, str]:
    """Ask the bot what to do with a call, as Twilio does; return the parameters of the stream."""
    form = {"CallSid": CALL_SID, "AccountSid": ACCOUNT_SID, "From": "+15550100"} | form
    headers = sign(TOKEN, f"https://{HOST}/", form)
    async with aiohttp.ClientSession() as web, web.post(bot.http, data=form, headers=headers) as r:
        twiml = ElementTree.fromstring(await r.text())
    return {p.attrib["name"]: p.attrib["value"] for p in twiml.iter("Parameter")}


@pytest.mark.slow
async def test_the_agent_hangs_up_after_goodbye():
    backend = ScriptedBackend(Script(opening="goodbye and thanks"))
    headers = sign(TOKEN, f"wss://{HOST}/media")
    async with rest_api() as (api_url, requests):
        async with serving(backend, auth_token=TOKEN, api_url=api_url) as bot:
            parameters = await announce(bot)
            caller = Caller(silence(30, RATE_HZ), headers=headers, parameters=parameters)
            call = await asyncio.wait_for(caller.call(bot.media), 30)
    assert call.close_code == 1000
    assert call.times("media")
    [(path, authorization, form)] = requests
    assert path == f"/2010-04-01/Accounts/{ACCOUNT_SID}/Calls/{CALL_SID}.json"
    assert authorization == aiohttp.BasicAuth(ACCOUNT_SID, TOKEN).encode()
    assert form == {"Status": "completed"}


async def test_a_signature_that_is_replayed_opens_no_stream(logs):
    """What Twilio signs is the same for every call: the token is of one call, and for once."""
    headers = sign(TOKEN, f"wss://{HOST}/media")
    backend = ScriptedBackend(Script(opening=STORY), slots=2)
    async with serving(backend, auth_token=TOKEN) as bot:

        async def close_code(parameters: dict[str, str]) -> int | None:
            caller = Caller(silence(0.1, RATE_HZ), headers=headers, parameters=parameters)
            return (await caller.call(bot.media)).close_code

        good = await announce(bot)
        other = await announce(bot, CallSid="CA" + "0" * 32)
        cut = good["token"][:-1]
        for bad in ({}, other, {"token": ""}, {"token": cut}, {"token": "x.y.z"}):
            assert await close_code(bad) == 1008, bad
        assert not backend.sessions
        assert await close_code(good) == 1000
        assert len(backend.sessions) == 1
        assert await close_code(good) == 1008
    assert sum("token is wrong" in line for line in logs) == 6


@pytest.mark.slow
async def test_no_call_loads_a_turn_model(monkeypatch, logs):
    """Pipecat's default would take 11 MB and 50 ms of the event loop for each call."""

    def load(*args, **kwargs):
        raise AssertionError("a model is loaded for a call")

    monkeypatch.setattr(
        "pipecat.turns.user_turn_strategies.default_user_turn_stop_strategies", load
    )
    async with serving(ScriptedBackend(Script(opening="hello there", step_secs=0))) as bot:
        call = await Caller(silence(1, RATE_HZ)).call(bot.media)
    assert call.times("media")
    assert not [line for line in logs if "strateg" in line]  # Pipecat warns of odd ones


async def test_the_answer_connects_the_stream():
    form = {"CallSid": CALL_SID, "From": '+1555"<0100>', "To": "+15550101"}
    url = f"https://{HOST}/"
    async with serving(ScriptedBackend(), auth_token=TOKEN) as bot, aiohttp.ClientSession() as web:
        async with web.post(bot.http, data=form, headers=sign(TOKEN, url, form)) as response:
            assert response.status == 200
            assert response.content_type == "application/xml"
            stream = ElementTree.fromstring(await response.text()).find("Connect/Stream")
        assert stream is not None and stream.get("url") == f"wss://{HOST}/media"
        assert stream.find("Parameter").attrib == {"name": "from", "value": form["From"]}
        assert [p.attrib["name"] for p in stream] == ["from", "token"]
        wrong = sign("another token", url, form)
        for headers in (wrong, {}, sign(TOKEN, url)):
            async with web.post(bot.http, data=form, headers=headers) as response:
                assert response.status == 403
        async with web.post(bot.http, data={"From": "5" * 100_000}) as response:
            assert response.status == 413
        async with web.post(bot.http, data=b"\xff\x00=&&&=") as response:
            assert response.status == 403


async def test_a_stream_without_the_signature_is_refused(logs):
    async with serving(ScriptedBackend(), auth_token=TOKEN) as bot:
        for headers in ({}, sign("another token", f"wss://{HOST}/media")):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(bot.media, additional_headers=headers):
                    pass
            assert refused.value.response.status_code == 403
    assert sum("/media" in line and "signature is wrong" in line for line in logs) == 2


START = {"event": "start", "streamSid": STREAM_SID, "start": start_object()}
MEDIA = {"event": "media", "streamSid": STREAM_SID, "media": media_object(0, b"\xff" * 160)}
CODEC = {"encoding": "audio/opus", "sampleRate": 48000, "channels": 2}

BAD_BEGINNINGS = {
    "media before start": ([connected_message(), MEDIA], 1008, "media before start"),
    "no start": ([connected_message()] * 6, 1008, "no start message"),
    "not JSON": (["hello"], 1008, "not JSON"),
    "deep JSON": (["[" * 60_000], 1008, "not JSON"),
    "a list": ([[1, 2]], 1008, "without event"),
    "start without a name": (
        [{"event": "start", "start": {"callSid": CALL_SID}}],
        1008,
        "without streamSid",
    ),
    "unknown codec": (
        [connected_message(), START | {"start": start_object(mediaFormat=CODEC)}],
        1003,
        "audio/opus",
    ),
    "a name that is a path": (
        [START | {"start": start_object(callSid="../Calls/CA1")}],
        1008,
        "callSid",
    ),
    "a codec that is text": (
        [START | {"start": start_object(mediaFormat="x")}],
        1008,
        "mediaFormat",
    ),
    "binary": ([b"\x00\x01"], 1003, "binary"),
    "giant": (["x" * 200_000], 1009, ""),
}

BAD_MESSAGES = {
    "another stream": (MEDIA | {"streamSid": "MZ0"}, 1008, "not this stream's"),
    "binary": (b"\x00" * 160, 1003, "binary"),
    "giant": ("x" * 200_000, 1009, ""),
    "not base64": (MEDIA | {"media": {"payload": "%%%"}}, 1008, "cannot be read"),
    "no payload": (MEDIA | {"media": {}}, 1008, "without payload"),
    "odd timestamp": (
        MEDIA | {"media": media_object(0, b"\xff") | {"timestamp": "soon"}},
        1008,
        "cannot be read",
    ),
    "seconds of audio": (
        MEDIA | {"media": media_object(0, b"\xff" * 40_000)},
        1009,
        "40000 bytes of audio",
    ),
    "keys that are none": (
        {"event": "dtmf", "streamSid": STREAM_SID, "dtmf": None},
        1008,
        "without digit",
    ),
    "not JSON": ("{", 1008, "not JSON"),
}


async def send_and_listen(url: str, messages: list) -> tuple[int | None, str]:
    """Send messages, and return the close code and the reason that answer them."""
    async with connect(url, compression=None) as socket:
        try:
            for message in messages:
                raw = isinstance(message, (str, bytes))
                await socket.send(message if raw else json.dumps(message))
            async with asyncio.timeout(10):
                async for _ in socket:
                    pass
        except ConnectionClosed:
            pass
    return socket.close_code, socket.close_reason or ""


@pytest.mark.slow
async def test_bad_input_is_refused_and_nothing_else_is_affected(logs):
    """While one caller listens to a story, others send what is not the protocol."""
    story = " ".join(["word"] * 400)
    backend = ScriptedBackend(Script(opening=story, step_secs=0), slots=2)
    async with serving(backend) as bot:
        caller = Caller(silence(100, RATE_HZ))
        good = asyncio.create_task(caller.call(bot.media))
        await until(lambda: backend.sessions)
        await asyncio.sleep(1)
        refusals = []
        cases = [(messages, *rest) for messages, *rest in BAD_BEGINNINGS.values()]
        cases += [([connected_message(), START, m], *rest) for m, *rest in BAD_MESSAGES.values()]
        for messages, code, reason in cases:
            closed = await send_and_listen(bot.media, messages)
            refusals.append(time.monotonic())
            assert closed[0] == code and reason in closed[1], (messages[-1], closed)
            if reason:
                assert any("refused" in line and reason in line for line in logs), reason
            await until(lambda: sum(not s.closed for s in backend.sessions) <= 1)
        assert not good.done()
        await asyncio.sleep(3)
        caller.hang_up()
        call = await good
    # The story went on all the while, before and after each of them.
    media = np.array(call.times("media"))
    assert all((media > refused).any() for refused in refusals)
    assert all((media < refused).any() for refused in refusals)
    assert not any("Traceback" in line for line in logs)


async def test_a_peer_that_says_nothing_is_not_waited_for(monkeypatch):
    from pipecat_duplex.telephony import media_stream

    defaults = media_stream.MediaStream.accept.__func__.__kwdefaults__
    monkeypatch.setitem(defaults, "timeout_secs", 0.2)
    async with serving(ScriptedBackend()) as bot:
        code, reason = await send_and_listen(bot.media, [connected_message()])
    assert (code, reason) == (1008, "no start message in 0.2 s")
