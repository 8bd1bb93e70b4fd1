"""The server as a process: signals, draining, logs."""

import asyncio
import json
import signal

import aiohttp
import pytest

from pipecat_duplex.commands.serve import ServeOptions, run_serve
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import ScriptedBackend
from pipecat_duplex.session import AtCapacity, DuplexError, SessionConfig, SessionEnded
from tests.server.callers import SILENCE, converse, serving, take, text_of
from tests.server.processes import scripted_server


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
