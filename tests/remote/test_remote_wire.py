"""The protocol's messages, and what the parser makes of anything else."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex import protocol
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS, SessionConfig, Step, StepTiming

PCM = np.linspace(-1, 1, STEP_SAMPLES, dtype=np.float32)


@given(st.binary(max_size=300) | st.text() | st.none() | st.integers())
def test_nothing_but_wire_errors_comes_out(message):
    try:
        protocol.parse(message)
    except protocol.WireError as e:
        assert str(e)


@given(st.integers(0, 255), st.binary(max_size=200), st.integers(0, 9000))
def test_whatever_follows_a_kind(kind, payload, length):
    message = bytes([kind]) + (payload * (length // (len(payload) or 1) + 1))[:length]
    try:
        parsed = protocol.parse(message)
    except protocol.WireError:
        return
    if kind not in set(protocol.Kind):
        assert parsed is None
    if isinstance(parsed, protocol.Pcm):
        assert parsed.pcm.shape == (STEP_SAMPLES,) and np.abs(parsed.pcm).max() <= 1
    if isinstance(parsed, protocol.AgentStep):
        assert np.isfinite(parsed.step.pcm).all()


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_metadata_is_a_json_object_or_an_error(value):
    message = b"\x04" + json.dumps(value).encode()
    with pytest.raises(protocol.WireError):
        protocol.parse(message)
    assert protocol.parse(protocol.encode_metadata({"x": value})) == protocol.Metadata({"x": value})


@pytest.mark.parametrize(
    "message",
    [
        b"\x04" + b"[" * 50_000,
        b"\x04" + b"1" * 50_000,
        b"\x04\xff\xfe",
        b"\x02" + b"x" * 5000,
        b"\x10" + bytes(7681),
        b"\x11" + bytes(7000),
        b"\x10" + struct.pack("<f", float("inf")) * STEP_SAMPLES,
        bytes(protocol.MAX_MESSAGE_BYTES + 1),
        "\x00",
    ],
)
def test_what_is_refused(message):
    with pytest.raises(protocol.WireError):
        protocol.parse(message)


@pytest.mark.parametrize("message", [b"", b"\x07\x01red", b"\x63", b"\xff" * 100, b"\x03"])
def test_what_is_ignored(message):
    assert protocol.parse(message) is None


def test_messages_there_and_back():
    assert protocol.encode_handshake() == b"\x00"
    assert protocol.parse(b"\x00") == protocol.Handshake()
    assert protocol.parse(bytes(9)) == protocol.Handshake((0, 0))
    assert protocol.parse(protocol.encode_audio(b"OggS")) == protocol.Audio(b"OggS")
    assert protocol.parse(protocol.encode_text(" hé")) == protocol.Text(" hé")
    assert protocol.parse(b"\x03\x02") == protocol.Control(2)
    assert protocol.parse(protocol.encode_error("bad")) == protocol.Error("bad")
    assert protocol.parse(protocol.encode_ping()) == protocol.Ping()
    pcm = protocol.parse(protocol.encode_pcm(PCM))
    assert isinstance(pcm, protocol.Pcm) and np.array_equal(pcm.pcm, PCM)


@given(
    st.integers(0, 2**32 - 1), st.integers(-1, 2**31 - 1), st.none() | st.text("▁ab<é", max_size=9)
)
def test_steps_there_and_back(index, token, piece):
    step = Step(index, PCM, token, piece or None, StepTiming(0.25, 0.5))
    parsed = protocol.parse(protocol.encode_step(step))
    assert isinstance(parsed, protocol.AgentStep)
    back = parsed.step
    assert (back.index, back.text_token, back.text_piece) == (index, token, piece or None)
    assert np.array_equal(back.pcm, PCM) and back.timing == step.timing


@given(
    st.builds(
        SessionConfig,
        text_temperature=st.floats(0, 10, allow_subnormal=False),
        text_top_k=st.integers(1, 10**9),
        audio_temperature=st.floats(0, 10, allow_subnormal=False),
        audio_top_k=st.integers(1, 10**9),
        seed=st.none() | st.integers(0, 2**63 - 1),
        max_secs=st.none() | st.integers(1, 10**6).map(lambda steps: steps * STEP_SECS),
    )
)
def test_settings_there_and_back(config):
    query = protocol.build_query(config, "pcm")
    assert "seed" not in query
    asked = protocol.parse_query(query)
    assert asked.audio_format == "pcm" and asked.ignored == []
    assert asked.config.model_copy(update={"max_secs": None}) == config.model_copy(
        update={"max_secs": None}
    )
    assert (asked.config.max_secs is None) == (config.max_secs is None)
    assert asked.config.max_secs == pytest.approx(config.max_secs)


@given(
    st.dictionaries(
        st.sampled_from(["text_topk", "max_steps", "text_seed", "format", "x"]), st.text()
    )
)
def test_any_query_is_a_request_or_an_error(query):
    try:
        protocol.parse_query(query)
    except protocol.WireError as e:
        assert str(e)


def test_the_page_of_kyutai_sends_two_seeds():
    def seed(**query):
        return protocol.parse_query({name: str(value) for name, value in query.items()}).config.seed

    assert seed() is None
    assert seed(text_seed=5) == seed(audio_seed=5) == seed(text_seed=5, audio_seed=5) == 5
    assert seed(text_seed=5, audio_seed=6) == seed(text_seed=5, audio_seed=6)
    assert len({seed(text_seed=5, audio_seed=6), seed(text_seed=6, audio_seed=5), 5, 6}) == 4
    assert seed(text_seed=2**64 - 1) == 2**63 - 1


@pytest.mark.parametrize("value", [None, True, "3", -1, float("nan"), 1e300, [3], {}])
def test_nonsense_about_the_end_is_no_limit(value):
    metadata = protocol.Metadata({"pipecat_duplex": {"max_secs": value, "secs_left": value}})
    assert metadata.max_secs is None and metadata.secs_left is None
    assert protocol.Metadata({"pipecat_duplex": value}).secs_left is None
