"""The reception behind the talking page, without a browser."""

import socket

import pytest

from pipecat_duplex.commands.talk import talk
from pipecat_duplex.scripted import ScriptedBackend
from pipecat_duplex.session import AtCapacity, DuplexError, MissingExtra, SessionConfig

pytest.importorskip("aiortc", reason="needs the webrtc extra")
pytest.importorskip("fastapi", reason="needs the webrtc extra")

NONSENSE = {"sdp": "v=nonsense", "type": "offer"}


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


async def test_an_offer_that_makes_no_sense_takes_no_slot():
    from pipecat_duplex.commands.talk.app import Offer, Reception

    backend = ScriptedBackend(slots=1)
    reception = Reception(backend, checkpoint="scripted")
    for _ in range(2):
        with pytest.raises(ValueError, match="the offer cannot be answered"):
            await reception.answer(Offer(**NONSENSE))
    assert reception.visitors == 0
    assert all(session.closed for session in backend.sessions)


async def test_a_full_house_refuses_before_anything_is_set_up():
    from pipecat_duplex.commands.talk.app import Offer, Reception

    backend = ScriptedBackend(slots=1)
    await backend.open(SessionConfig())
    with pytest.raises(AtCapacity):
        await Reception(backend, checkpoint="scripted").answer(Offer(**NONSENSE))


async def test_a_visitor_who_never_connects_leaves(monkeypatch: pytest.MonkeyPatch):
    """An offer is taken, and then nobody comes."""
    from aiortc import RTCPeerConnection

    from pipecat_duplex.commands.talk import app

    monkeypatch.setattr(app, "CONNECT_SECS", 0.5)
    peer = RTCPeerConnection()
    peer.addTransceiver("audio")
    peer.createDataChannel("rtvi")
    await peer.setLocalDescription(await peer.createOffer())
    offer = app.Offer(sdp=peer.localDescription.sdp, type="offer")

    backend = ScriptedBackend(slots=1)
    reception = app.Reception(backend, checkpoint="scripted")
    answer = await reception.answer(offer)
    assert answer["type"] == "answer" and answer["sdp"] and answer["pc_id"]
    [conversation] = reception._conversations
    await conversation
    assert backend.sessions[0].closed
    await peer.close()


def test_the_page_comes_with_the_package():
    from pipecat_duplex.commands.talk.app import PAGE

    assert {path.name for path in PAGE.iterdir()} >= {"index.html", "page.js", "style.css"}
