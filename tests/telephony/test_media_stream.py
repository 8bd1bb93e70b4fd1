"""What comes from a carrier is understood, or refused with a code and a reason."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipecat.frames.frames import InputAudioRawFrame, InputDTMFFrame
from starlette.websockets import WebSocketState

from pipecat_duplex.telephony import MediaStream, MediaStreamSerializer, StreamRefused, StreamTokens
from pipecat_duplex.telephony.flow import Allowance
from pipecat_duplex.telephony.media_stream import _check_start
from tests.telephony.caller import (
    ACCOUNT_SID,
    CALL_SID,
    STREAM_SID,
    connected_message,
    media_object,
    start_object,
)

CODES = (1003, 1008, 1009)


class Socket:
    """A WebSocket whose peer has sent some messages already, and waits."""

    client = None
    client_state = WebSocketState.CONNECTED
    application_state = WebSocketState.CONNECTED

    def __init__(self, *messages: Any):
        self._messages = list(messages)
        self.closed: tuple[int, str] | None = None

    async def accept(self):
        pass

    async def receive(self) -> dict[str, Any]:
        if not self._messages:
            return {"type": "websocket.disconnect"}
        data = self._messages.pop(0)
        kind = "bytes" if isinstance(data, bytes) else "text"
        return {"type": "websocket.receive", kind: data}

    async def close(self, code: int = 1000, reason: str = ""):
        assert len(reason.encode()) <= 123  # what a close frame holds
        self.application_state = WebSocketState.DISCONNECTED
        self.closed = (code, reason)


def stream(now_secs=lambda: 0.0) -> MediaStream:
    return MediaStream(Socket(), _check_start(start_object()), now_secs=now_secs)  # type: ignore


def message(event: str, **fields) -> str:
    return json.dumps({"event": event, "streamSid": STREAM_SID} | fields)


def dtmf(digit: Any) -> str:
    return message("dtmf", dtmf={"track": "inbound_track", "digit": digit})


def media(timestamp: Any = "20", **changes) -> str:
    return message(
        "media", media=media_object(1, b"\xff" * 160) | {"timestamp": timestamp} | changes
    )


GOOD = {
    "media": media(),
    "a number as its time": media(20),
    "no time": media(None),
    "key": dtmf("5"),
    "a key that telephones lack": dtmf("A"),
    "mark": message("mark", mark={"name": "x"}),
    "an event of tomorrow": message("tomorrow", anything=[None]),
    "no stream named": '{"event": "mark"}',
}


@pytest.mark.parametrize("name", GOOD)
def test_messages_that_are_understood(name: str):
    assert stream().parse(GOOD[name]) is not None


RAW_TIMES = ("1e999", "-1e999", "Infinity", "NaN", "9" * 5000, "1e30", "-20", "true", "[1]", "{}")
BAD = {
    **{f"time {raw[:20]}": media().replace('"20"', raw) for raw in RAW_TIMES},
    **{
        f"time {text[:20]!r}": media(text)
        for text in ("soon", "", "-1", "9" * 4000, "1e3", "٣", " 20", "2_0", "0x20", "9" * 16)
    },
    **{
        f"payload {payload!r}": media(payload=payload)
        for payload in (None, 1, [], "%%%", "/", "é", "\ud800", "////\n")
    },
    **{f"dtmf {value!r}": message("dtmf", dtmf=value) for value in (None, [1], "5", 5, {}, True)},
    **{f"digit {value!r}": dtmf(value) for value in (None, 5, [], {"a": 1}, True)},
    **{f"media {value!r}": message("media", media=value) for value in (None, [], "x", 1)},
    **{
        f"streamSid {sid!r}": json.dumps({"event": "mark", "streamSid": sid})
        for sid in (None, 1, [], "MZ0", "\ud800")
    },
    **{f"event {event!r}": json.dumps({"event": event}) for event in (None, 1, [], {})},
    "JSON of constants": '{"event": "mark", "x": NaN}',
    "deep JSON": "[" * 50_000,
    "nothing": "",
    "binary": b"{}",
    "giant": " " * 70_000,
}


@pytest.mark.parametrize("name", BAD)
def test_messages_that_are_refused(name: str):
    with pytest.raises(StreamRefused) as refused:
        stream().parse(BAD[name])
    assert refused.value.code in CODES and refused.value.reason


def accept(*messages: Any) -> MediaStream | tuple[int, str]:
    """Return the stream, or how it was refused."""
    socket = Socket(*messages)
    with suppress(StreamRefused):
        return asyncio.run(MediaStream.accept(socket))  # type: ignore
    assert socket.closed is not None
    return socket.closed


def start(**changes) -> str:
    return json.dumps({"event": "start", "streamSid": STREAM_SID, "start": start_object(**changes)})


def test_a_start_gives_what_twilio_says():
    found = accept(json.dumps(connected_message()), start())
    assert isinstance(found, MediaStream)
    assert (found.stream_sid, found.call_sid) == (STREAM_SID, CALL_SID)
    assert found.parameters == {"from": "+15550100"}


ODD_SIDS = (
    "../Accounts",
    "CA 1",
    "CA1/..",
    "CA\n1",
    "CA?x=1",
    "CA%2f",
    "é",
    "\ud800",
    "x" * 65,
    "",
)
BAD_STARTS = {
    **{f"callSid {sid!r}": start(callSid=sid) for sid in (*ODD_SIDS, 1, [], {}, True)},
    **{f"accountSid {sid!r}": start(accountSid=sid) for sid in (*ODD_SIDS, 1, [])},
    **{f"streamSid {sid!r}": start(streamSid=sid) for sid in (*ODD_SIDS, 1, None)},
    **{f"parameters {value!r}"[:60]: start(customParameters=value)
       for value in ([], "x", 1, {"a": 1}, {"a": None}, {"a": ["x"]}, {"a": "x" * 5000},
                     {str(i): "x" for i in range(100)})},
    **{f"mediaFormat {value!r}": start(mediaFormat=value)
       for value in ("x", [1], None, 1, {}, True)},
    **{f"start {value!r}": json.dumps({"event": "start", "start": value})
       for value in (None, [], "x", 1)},
    "binary": b"\x00",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STARTS)
def test_starts_that_are_refused(name: str):
    closed = accept(BAD_STARTS[name])
    assert isinstance(closed, tuple) and closed[0] in CODES and closed[1], closed


def test_a_peer_that_hangs_up_at_once():
    assert accept() == (1008, "the peer hung up before its start message")


def test_names_reach_the_rest_address_as_they_are():
    """What comes from the peer stands in the path of the request that hangs up."""
    for sid in ODD_SIDS:
        assert not isinstance(accept(start(callSid=sid)), MediaStream)
        assert not isinstance(accept(start(accountSid=sid)), MediaStream)


class Clock:
    secs = 0.0

    def __call__(self) -> float:
        return self.secs


def test_a_line_may_stall_and_catch_up():
    clock = Clock()
    call = stream(clock)
    for second in range(120):
        if not 30 <= second < 50:  # then twenty seconds at once
            for _ in range(50 * (21 if second == 50 else 1)):
                assert call.parse(media())
        clock.secs += 1


@pytest.mark.parametrize(
    ("flood", "reason"),
    [
        (dtmf("1"), "keys"),
        (media(payload="/" * 4000), "faster than it is spoken"),
        (message("mark"), "messages"),
        (message("tomorrow"), "messages"),
    ],
)
def test_a_flood_is_refused(flood: str, reason: str):
    clock = Clock()
    call = stream(clock)
    with pytest.raises(StreamRefused, match=reason) as refused:
        for _ in range(10_000):
            call.parse(flood)
            clock.secs += 0.001
    assert refused.value.code == 1008


def test_a_person_may_press_many_keys():
    clock = Clock()
    call = stream(clock)
    for _ in range(300):
        assert call.parse(dtmf("1"))
        clock.secs += 0.25


def test_an_allowance_grows_again():
    allowance = Allowance(per_sec=2, at_once=3)
    assert [allowance.take(1, 0.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.take(1, 0.5) for _ in range(2)] == [True, False]
    assert [allowance.take(1, 100.0) for _ in range(4)] == [True, True, True, False]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
PARTS = {
    "event": st.sampled_from(["media", "dtmf", "mark", "stop", "start", "connected"]) | JSON,
    "streamSid": st.just(STREAM_SID) | JSON,
    "sequenceNumber": JSON,
    "media": st.fixed_dictionaries(
        {},
        optional={
            "track": st.sampled_from(["inbound", "outbound"]) | JSON,
            "chunk": JSON,
            "timestamp": st.integers(0, 10**13).map(str) | st.floats() | JSON,
            "payload": st.binary(max_size=400).map(lambda b: json.dumps(b.hex()))
            | JSON
            | st.sampled_from(["/w==", "////", "/" * 400]),
        },
    )
    | JSON,
    "dtmf": st.fixed_dictionaries({}, optional={"digit": st.sampled_from("0123456789*#A") | JSON})
    | JSON,
    "mark": JSON,
    "stop": JSON,
}
MESSAGES = (
    st.fixed_dictionaries({}, optional=PARTS).map(json.dumps) | st.text(max_size=50) | st.binary()
)


async def feed(messages: list[str | bytes]) -> tuple[int, str] | None:
    """Give messages to the serializer; return how the call was refused, if it was."""
    socket = Socket()
    call = MediaStream(socket, _check_start(start_object()))  # type: ignore
    serializer = MediaStreamSerializer(call)
    serializer._sample_rate = 8000
    for data in messages:
        frame = await serializer.deserialize(data)
        assert frame is None or isinstance(frame, (InputAudioRawFrame, InputDTMFFrame))
    return socket.closed


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(MESSAGES, max_size=6))
def test_nothing_that_a_peer_sends_raises(messages: list[str | bytes]):
    closed = asyncio.run(feed(messages))
    assert closed is None or closed[0] in (1000, *CODES)


STARTS = st.fixed_dictionaries(
    {},
    optional={
        "event": st.sampled_from(["start", "connected", "media"]) | JSON,
        "start": st.fixed_dictionaries(
            {},
            optional={
                "streamSid": st.just(STREAM_SID) | JSON,
                "callSid": st.just(CALL_SID) | JSON,
                "accountSid": st.just(ACCOUNT_SID) | JSON,
                "customParameters": st.dictionaries(st.text(max_size=8), st.text()) | JSON,
                "mediaFormat": st.just(start_object()["mediaFormat"]) | JSON,
            },
        )
        | JSON,
    },
).map(json.dumps)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(STARTS | st.text(max_size=50) | st.binary(), max_size=6))
def test_no_beginning_raises(messages: list[str | bytes]):
    found = accept(*messages)
    if isinstance(found, MediaStream):
        MediaStreamSerializer(found, auth_token="x")
    else:
        assert found[0] in CODES and found[1]


def test_a_token_is_good_for_one_call_for_a_minute():
    clock = Clock()
    tokens = StreamTokens(now_secs=clock)
    token = tokens.issue(CALL_SID, ACCOUNT_SID)
    assert not tokens.take(token, CALL_SID, "AC2")
    assert not tokens.take(token, "CA2", ACCOUNT_SID)
    assert not tokens.take(token, None, None)
    assert not tokens.take(None, CALL_SID, ACCOUNT_SID)
    assert not StreamTokens(now_secs=clock).take(token, CALL_SID, ACCOUNT_SID)
    assert tokens.take(token, CALL_SID, ACCOUNT_SID)
    assert not tokens.take(token, CALL_SID, ACCOUNT_SID)
    late = tokens.issue(CALL_SID, ACCOUNT_SID)
    clock.secs += 61
    assert not tokens.take(late, CALL_SID, ACCOUNT_SID)
    assert tokens.take(tokens.issue(CALL_SID, ACCOUNT_SID), CALL_SID, ACCOUNT_SID)
    assert len(tokens._taken) == 1  # what is too old is forgotten


@pytest.mark.parametrize("moved", [("1", "2CA"), ("12", "CA"), ("", "12CA")])
def test_a_token_is_not_divided_elsewhere(moved: tuple[str, str]):
    tokens = StreamTokens(b"secret")
    token = tokens.issue("1", "2CA")
    assert tokens.take(token, *moved) is (moved == ("1", "2CA"))


@given(st.text(), st.text())
def test_no_text_is_a_token(token: str, sid: str):
    assert not StreamTokens(b"secret").take(token, sid, sid)
