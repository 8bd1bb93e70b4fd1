"""The server over real sockets, with a scripted agent behind it."""

import asyncio
import json
import ssl

import aiohttp
import numpy as np
import pytest
from loguru import logger

from pipecat_duplex import protocol
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import AtCapacity, DuplexError, SessionConfig
from tests.server.callers import (
    FAST,
    SILENCE,
    calling,
    chat_url,
    converse,
    read_to_end,
    read_until,
    serving,
    text_of,
    wait_until,
)


async def get(server, path: str) -> tuple[int, str, dict]:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{server.port}{path}") as response:
            return response.status, await response.text(), dict(response.headers)


async def test_raw_audio_is_the_session_itself():
    async with serving() as server:
        async with calling(server, format="pcm") as socket:
            metadata = (await read_until(socket, protocol.Metadata))[0].fields
            await read_until(socket, protocol.Handshake)
            assert metadata["pipecat_duplex"]["format"] == "pcm"
            for _ in range(12):
                await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
            steps = [m.step for m in await read_until(socket, protocol.AgentStep, 12)]
    assert [step.index for step in steps] == list(range(12))
    assert text_of(steps) == "one two three"
    assert steps[0].timing.compute_secs > 0


async def test_opus_for_everybody_else():
    opus = pytest.importorskip("pipecat_duplex.protocol.opus")
    pytest.importorskip("sphn")
    async with serving() as server:
        async with calling(server, text_temperature="0.7", email="a@b") as socket:
            assert (await socket.receive()).data == b"\x00"  # the first message, for simple clients
            metadata = protocol.parse((await socket.receive()).data)
            assert isinstance(metadata, protocol.Metadata)
            assert metadata.fields["pipecat_duplex"]["ignored"] == ["email"]
            encoder, decoder = opus.OpusEncoder(), opus.OpusDecoder()
            stream = b"".join(encoder.encode(SILENCE) for _ in range(12))
            for start in range(0, len(stream), 37):  # cut anywhere
                await socket.send_bytes(protocol.encode(protocol.Audio(stream[start : start + 37])))
            words, pcm = "", np.zeros(0, np.float32)
            while len(pcm) < 11 * len(SILENCE):
                message = protocol.parse((await asyncio.wait_for(socket.receive(), 10)).data)
                if isinstance(message, protocol.Text):
                    words += message.text
                elif isinstance(message, protocol.Audio):
                    pcm = np.concatenate([pcm, decoder.decode(message.data)])
    assert words == " one two three"
    assert len(pcm) == 11 * len(SILENCE)
    assert np.abs(pcm).max() > 0.2


async def test_full_is_said_before_the_upgrade():
    async with serving(slots=1) as server:
        async with calling(server, format="pcm") as socket:
            await read_until(socket, protocol.Handshake)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with calling(server, format="pcm"):
                    pass
            assert refused.value.status == 503
            assert refused.value.headers is not None
            assert int(refused.value.headers["Retry-After"]) >= 1
            with pytest.raises(AtCapacity, match="slots are taken"):
                await RemoteBackend(chat_url(server)).open(SessionConfig())
        await wait_until(lambda: server.sessions_open == 0)
        async with calling(server, format="pcm") as socket:
            await read_until(socket, protocol.Handshake)
    assert server.metrics.refused["full"] == 2


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"text_temperature": "hot"}, "text_temperature"),
        ({"audio_temperature": "-1"}, "audio_temperature"),
        ({"text_topk": "0"}, "text_topk"),
        ({"audio_topk": "2.5"}, "audio_topk"),
        ({"audio_seed": "-4"}, "audio_seed"),
        ({"max_steps": "0"}, "max_steps"),
        ({"format": "mp3"}, "format"),
        ({"text_prompt": "You are Jane. " * 572}, "text_prompt"),  # more than 8000
    ],
)
async def test_parameters_that_cannot_be(query, reason):
    async with serving() as server:
        async with aiohttp.ClientSession() as http:
            async with http.get(chat_url(server, **query)) as response:
                assert response.status == 400
                assert reason in (await response.json())["reason"]
        with pytest.raises(DuplexError, match=reason):
            await RemoteBackend(chat_url(server, **query)).open(SessionConfig())
        assert server.sessions_open == 0


async def test_what_is_asked_for_reaches_the_session():
    asked = []

    class Backend(ScriptedBackend):
        async def open(self, config):
            asked.append(config)
            return await super().open(config)

    config = SessionConfig(
        text_temperature=0.5, text_top_k=7, audio_temperature=0, audio_top_k=1_000_000, seed=2**62
    )
    async with serving(Backend(FAST, slots=3), max_session_secs=8) as server:
        for change in ({}, {"max_secs": 4.0}, {"max_secs": 40.0}):
            backend = RemoteBackend(chat_url(server))
            await backend.open(config.model_copy(update=change))
            await backend.close()
    assert asked == [config.model_copy(update={"max_secs": secs}) for secs in (8, 4.0, 8)]


async def test_keys():
    async with serving(api_keys=("secret",)) as server:
        with pytest.raises(DuplexError, match=r"401.*API key"):
            await RemoteBackend(chat_url(server)).open(SessionConfig())
        with pytest.raises(DuplexError, match="401"):
            await RemoteBackend(chat_url(server), api_key="wrong").open(SessionConfig())
        for backend in (
            RemoteBackend(chat_url(server), api_key="secret"),
            RemoteBackend(chat_url(server, api_key="secret")),
        ):
            await backend.open(SessionConfig())
            await backend.close()
        assert (await get(server, "/health"))[0] == 200


async def test_pages_of_other_origins_may_not_call():
    async with serving(allowed_origins=("https://bot.example",)) as server:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with calling(server, headers={"Origin": "https://evil.example"}):
                pass
        assert refused.value.status == 403
        async with calling(server, headers={"Origin": "https://bot.example"}, format="pcm") as s:
            await read_until(s, protocol.Handshake)


async def test_a_browser_address_bar_is_told():
    async with serving() as server:
        status, text, _ = await get(server, "/api/chat?format=pcm")
        assert status == 426 and "WebSocket" in text
        assert server.sessions_open == 0


async def test_health_metrics_and_the_log_line():
    lines: list[dict] = []
    sink = logger.add(lambda m: lines.append(m.record["extra"]["line"]), filter=_has_line)
    try:
        async with serving(slots=3) as server:
            backend = RemoteBackend(chat_url(server))
            session = await backend.open(SessionConfig())
            await converse(session, [SILENCE] * 5)
            status, text, _ = await get(server, "/health")
            assert (status, json.loads(text)) == (
                200,
                {"status": "ok", "slots": 3, "slots_used": 1},
            )
            metrics = (await get(server, "/metrics"))[1]
            await backend.close()
            await wait_until(lambda: lines)
            after = (await get(server, "/metrics"))[1]
    finally:
        logger.remove(sink)
    for sample in ("slots 3", "slots_used 1", "sessions_total 1", "steps_total 5"):
        assert f"\npipecat_duplex_{sample}\n" in metrics
    for name in ("late_steps_total", "lag_seconds", "step_seconds_count", "step_delay_seconds_sum"):
        assert f"\npipecat_duplex_{name} " in metrics
    assert "\npipecat_duplex_slots_used 0\n" in after
    assert '\npipecat_duplex_sessions_ended_total{reason="client"} 1\n' in after
    (line,) = lines
    assert line["ending"] == "client" and line["steps"] == 5 and line["audio_format"] == "pcm"


def _has_line(record) -> bool:
    return "line" in record["extra"]


async def test_draining_lets_sessions_finish():
    async with serving(slots=3) as server:
        backend = RemoteBackend(chat_url(server))
        session = await backend.open(SessionConfig())
        draining = asyncio.create_task(server.drain(30))
        await wait_until(lambda: server.draining)
        with pytest.raises(AtCapacity, match="shutting down"):
            await backend.open(SessionConfig())
        assert (await get(server, "/health"))[0] == 503
        assert "pipecat_duplex_draining 1" in (await get(server, "/metrics"))[1]
        assert len(await converse(session, [SILENCE] * 5)) == 5
        assert not draining.done()
        await backend.close()
        await asyncio.wait_for(draining, 10)


async def test_draining_ends_sessions_that_do_not_finish():
    async with serving() as server:
        async with calling(server, format="pcm") as socket:
            await read_until(socket, protocol.Handshake)
            draining = asyncio.create_task(server.drain(0.05))
            messages = await read_to_end(socket)
            await draining
            assert socket.close_code == 1013
            assert isinstance(messages[-1], protocol.Error)
            assert "shutting down" in messages[-1].reason


async def test_a_session_that_fails_says_why():
    script = Script(step_secs=0.001, fail_step=3)
    async with serving(ScriptedBackend(script, slots=2)) as server:
        async with calling(server, format="pcm") as socket:
            for _ in range(5):
                await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
            messages = await read_to_end(socket)
            assert socket.close_code == 1011
        steps = [m.step.index for m in messages if isinstance(m, protocol.AgentStep)]
        assert steps == [0, 1, 2]
        assert messages[-1] == protocol.Error("the script says so")
        await wait_until(lambda: server.sessions_open == 0)


async def test_tls(tmp_path):
    cert, key = write_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    async with serving() as plain:
        server = type(plain)(ScriptedBackend(FAST), slots=1)
        await server.start("127.0.0.1", 0, context)
        try:
            url = f"wss://localhost:{server.port}"
            with pytest.raises(DuplexError, match="certificate"):
                await RemoteBackend(url, attempts=1).open(SessionConfig())
            trusting = ssl.create_default_context(cafile=str(cert))
            backend = RemoteBackend(url, ssl_context=trusting)
            session = await backend.open(SessionConfig())
            assert text_of(await converse(session, [SILENCE] * 12)) == "one two three"
            await backend.close()
        finally:
            await server.stop()


def write_certificate(folder):
    from datetime import UTC, datetime, timedelta

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_path, key_path


async def test_opus_as_the_page_of_kyutai_sends_it():
    """Packets of 20 ms, two on a page, from another encoder than ours."""
    av = pytest.importorskip("av")
    pytest.importorskip("sphn")
    import io

    stream = io.BytesIO()
    with av.open(stream, "w", format="ogg", options={"page_duration": "40000"}) as container:
        track = container.add_stream("libopus", rate=24_000, layout="mono")
        track.codec_context.options = {"frame_duration": "20"}
        for number in range(30):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), "s16", "mono")
            frame.rate, frame.pts = 24_000, number * 1920
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    async with serving() as server:
        async with calling(server) as socket:
            data = stream.getvalue()
            for start in range(0, len(data), 200):
                await socket.send_bytes(protocol.encode(protocol.Audio(data[start : start + 200])))
            words = await read_until(socket, protocol.Text, 3)
    assert [word.text for word in words] == [" one", " two", " three"]
