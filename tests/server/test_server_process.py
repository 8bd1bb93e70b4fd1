"""The server as a process: signals, draining, logs."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading

import aiohttp
import pytest

from pipecat_duplex.commands.queued_output import QueuedStream
from pipecat_duplex.commands.serve import (
    GAVE_UP_CODE,
    KEY_VARIABLE,
    EmptyKey,
    ServeOptions,
    read_api_keys,
    run_serve,
)
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import ScriptedBackend
from pipecat_duplex.session import AtCapacity, DuplexError, SessionConfig, SessionEnded
from tests.server.callers import SILENCE, converse, serving, take, text_of, wait_until
from tests.server.processes import scripted_server, started


async def test_sigterm_lets_sessions_finish_and_refuses_new_ones():
    async with scripted_server("one two three") as (process, url):
        backend = RemoteBackend(url)
        session = await backend.open(SessionConfig())
        process.signal(signal.SIGTERM)
        await process.wait_for_line("draining: sessions may go on for 30 s")
        with pytest.raises(AtCapacity, match="shutting down"):
            await backend.open(SessionConfig())
        async with aiohttp.ClientSession() as http:
            health = url.replace("ws://", "http://").replace("/api/chat", "/health")
            async with http.get(health) as response:
                assert response.status == 503
        assert text_of(await converse(session, [SILENCE] * 12)) == "one two three"
        await session.close()
        assert await process.wait() == 0
        await process.wait_for_line("session scripted-0 .*client .* 12 steps in pcm", 0.1)


@pytest.mark.slow
async def test_a_session_that_goes_on_too_long_is_told_so():
    async with scripted_server("one", "drain_secs=0.1", "log=json") as (process, url):
        session = await RemoteBackend(url).open(SessionConfig())
        process.signal(signal.SIGTERM)
        with pytest.raises(SessionEnded, match="shutting down"):
            await take(session, 1)
        assert await process.wait() == 0
        lines = [json.loads(line) for line in process.lines if line.startswith("{")]
        assert [line["event"] for line in lines] == [
            "listening",
            "draining",
            "session",
            "stopped",
        ]
        assert lines[2]["ending"] == "drained" and lines[2]["time"]


async def test_a_second_signal_stops_at_once():
    async with scripted_server("one") as (process, url):
        session = await RemoteBackend(url).open(SessionConfig())
        process.signal(signal.SIGTERM)
        await process.wait_for_line("draining")
        process.signal(signal.SIGINT)
        with pytest.raises(SessionEnded):
            await take(session, 1)
        assert await process.wait() == 0


async def test_what_cannot_be_served(tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for options, problem in (
        (ServeOptions(tls_cert=bad), "both"),
        (ServeOptions(tls_cert=bad, tls_key=bad), "cannot use the certificate"),
        (ServeOptions(host="no.such.host.invalid"), "cannot listen"),
        (ServeOptions(port=70_000), "cannot listen"),
    ):
        with pytest.raises(DuplexError, match=problem):
            await asyncio.to_thread(run_serve, options, ScriptedBackend())
    async with serving() as server:
        taken = ServeOptions(host="127.0.0.1", port=server.port)
        with pytest.raises(DuplexError, match="cannot listen"):
            await asyncio.to_thread(run_serve, taken, ScriptedBackend())


async def test_sighup_drains():
    async with scripted_server("hello") as (process, url):
        session = await RemoteBackend(url).open(SessionConfig())
        process.signal(signal.SIGHUP)
        await process.wait_for_line("draining")
        await session.close()
        assert await process.wait() == 0


async def test_a_server_whose_backend_gave_up_ends_with_a_code():
    async with scripted_server("hello", "gives_up=1") as (process, _):
        await process.wait_for_line("failed: it gave up")
        assert await process.wait() == GAVE_UP_CODE


async def test_a_log_that_nobody_reads_holds_nobody_up():
    """The pipe is full, and words are waiting for a reader."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    queued = QueuedStream(stream)
    for number in range(20_000):
        queued.write(f"line {number} of a log that nobody reads\n")
    text = ""

    def read() -> None:
        nonlocal text
        with os.fdopen(reader) as lines:
            for line in lines:
                text += line

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    await wait_until(lambda: not queued._queue)
    queued.write("the last line\n")
    queued.drain(5)
    stream.close()
    reading.join(5)
    assert "lines were dropped here" in text and text.startswith("line 0 ")
    assert "the last line" in text


KEYS = [
    ([], {}, ()),
    ([], {KEY_VARIABLE: "open sesame"}, ("open sesame",)),
    (
        [],
        {KEY_VARIABLE: " a key with a newline at its end\n"},
        ("a key with a newline at its end",),
    ),
    (["one", "two words"], {KEY_VARIABLE: "three"}, ("one", "two words")),
    (["one"], {KEY_VARIABLE: ""}, ("one",)),
]


@pytest.mark.parametrize(("given", "environment", "keys"), KEYS)
def test_keys_are_taken_whole(given, environment, keys):
    assert read_api_keys(given, environment) == keys


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_a_key_that_was_not_filled_in_is_no_server_without_one(value):
    with pytest.raises(EmptyKey, match=KEY_VARIABLE):
        read_api_keys([], {KEY_VARIABLE: value})
    with pytest.raises(DuplexError, match="--api-key is empty"):
        read_api_keys([value], {})


@pytest.mark.slow
async def test_a_server_with_an_empty_key_lets_nobody_in_and_ends():
    environment = {"PIPECAT_DUPLEX_API_KEY": ""}
    arguments = ("-m", "pipecat_duplex.cli", "serve", "--host", "127.0.0.1", "--port", "0")
    async with started(*arguments, environment=environment) as process:
        url = await process.wait_for_line(r"error: .*is set and empty.* (ws://127\.0\.0\.1:\d+\S+)")
        with pytest.raises(DuplexError, match="401"):
            await RemoteBackend(url[1], api_key="").open(SessionConfig())
        assert await process.wait() == 2


async def test_the_address_that_is_printed_can_be_called():
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    async with started("-m", "tests.server.serve_scripted", "hello", "host=::1") as process:
        url = await process.wait_for_line(r"ws://\[::1\]:\d+/api/chat")
        session = await RemoteBackend(url[0]).open(SessionConfig())
        await session.close()
