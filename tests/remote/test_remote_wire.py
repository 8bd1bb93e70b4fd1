"""The protocol's messages, and what the parser makes of anything else."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex import protocol
from pipecat_duplex.remote.extensions import Extensions
from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    CannotSay,
    HeardWord,
    Said,
    Sampling,
    SessionConfig,
    Step,
    StepTiming,
)
from pipecat_duplex.session.history import ResumeKey
from pipecat_duplex.session.saying import MAX_SAY_BYTES, check_words

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
    assert protocol.parse(protocol.encode(protocol.Metadata({"x": value}))) == protocol.Metadata(
        {"x": value}
    )


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
        b"\x17" + b'{"step": 1, "words": [["no", 1.5, 2]]}',
        b"\x17" + b'{"step": 1, "words": [["no", 1]]}',
        b"\x17" + b'{"step": 1, "words": "no"}',
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
    assert protocol.encode(protocol.Handshake()) == b"\x00"
    assert protocol.parse(bytes(9)) == protocol.Handshake((0, 0))
    assert protocol.parse(b"\x03\x02") == protocol.Control(2)


@given(
    st.integers(0, 2**32 - 1), st.integers(-1, 2**31 - 1), st.none() | st.text("▁ab<é", max_size=9)
)
def test_steps_there_and_back(index, token, piece):
    step = Step(index, PCM, token, piece or None, StepTiming(0.25, 0.5))
    parsed = protocol.parse(protocol.encode(protocol.AgentStep(step)))
    assert isinstance(parsed, protocol.AgentStep)
    back = parsed.step
    assert (back.index, back.text_token, back.text_piece) == (index, token, piece or None)
    assert np.array_equal(back.pcm, PCM) and back.timing == step.timing


@given(
    st.builds(
        SessionConfig,
        text_temperature=st.floats(0, 10, allow_subnormal=False),
        text_top_k=st.integers(1, 10**6),
        audio_temperature=st.floats(0, 10, allow_subnormal=False),
        audio_top_k=st.integers(1, 10**6),
        seed=st.none() | st.integers(0, 2**63 - 1),
        max_secs=st.none() | st.integers(1, 10**6).map(lambda steps: steps * STEP_SECS),
        restores=st.booleans(),
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
    # PersonaPlex's clients send one, and -1 for any.
    assert seed(seed=7) == seed(text_seed=7) and seed(seed=-1) is None
    assert seed(seed=7, text_seed=5, audio_seed=5) == 5


@pytest.mark.parametrize("value", [None, True, "3", -1, float("nan"), 1e300, [3], {}])
def test_nonsense_about_the_end_is_no_limit(value):
    ours = {"max_secs": value, "secs_left": value, "max_say_bytes": value, "memory": value}
    greeting = protocol.Greeting.read(protocol.Metadata({"pipecat_duplex": ours}))
    assert greeting is not None and greeting.max_secs is None and greeting.secs_left is None
    assert greeting.max_say_bytes == 4096 and greeting.memory is None
    other = protocol.Greeting.read(protocol.Metadata({"pipecat_duplex": value}))
    assert other is None or other.secs_left is None


COUNTS = st.integers(0, 2**53 - 1)
WORDS = st.text(max_size=300)
BYTES = st.binary(max_size=300)
MESSAGES = st.one_of(
    st.builds(protocol.Handshake, st.none() | st.tuples(*[st.integers(0, 2**32 - 1)] * 2)),
    st.builds(protocol.Audio, BYTES),
    st.builds(protocol.Text, WORDS),
    st.builds(protocol.Control, st.integers(0, 255)),
    st.builds(protocol.Metadata, st.dictionaries(WORDS, st.none() | WORDS | COUNTS, max_size=3)),
    st.builds(protocol.Error, WORDS),
    st.builds(protocol.Ping),
    st.builds(protocol.Pcm, st.just(PCM)),
    st.builds(protocol.Say, COUNTS, st.none() | WORDS | st.just("\ud800"), st.booleans()),
    st.builds(protocol.Say, COUNTS, WORDS, asks=st.booleans()),
    st.builds(
        protocol.SayAnswer,
        COUNTS,
        st.none() | COUNTS,
        WORDS,
        st.lists(WORDS, max_size=3).map(tuple),
    ),
    st.builds(
        protocol.SpeechNote,
        COUNTS,
        st.none() | COUNTS,
        st.lists(st.builds(Said, COUNTS, WORDS, WORDS), max_size=3).map(tuple),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        protocol.Tokens,
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(0, 2**16 - 1), min_size=17, max_size=17).map(
            lambda tokens: np.array(tokens, np.int32)
        ),
    ),
    st.builds(protocol.HistoryPiece, BYTES),
    st.builds(
        protocol.Heard,
        COUNTS,
        st.lists(
            st.builds(HeardWord, st.text(max_size=60), st.integers(-50, 9999), COUNTS), max_size=3
        ).map(tuple),
    ),
)


def fields_of(message) -> tuple:
    """A message as what can be compared: arrays are no values of their own."""
    values = [getattr(message, each.name) for each in dataclasses.fields(message)]
    return type(message), [v.tolist() if isinstance(v, np.ndarray) else v for v in values]


@given(MESSAGES)
def test_every_message_there_and_back(message):
    back = protocol.parse(protocol.encode(message))
    assert fields_of(back) == fields_of(message)


@given(
    st.builds(
        protocol.Greeting,
        session=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
        audio_format=st.sampled_from(["opus", "pcm"]),
        features=st.frozensets(st.sampled_from(["say", "restore"])),
        memory=st.none() | st.builds(ResumeKey, WORDS, st.integers(1, 45_000)),
        max_secs=st.none() | st.floats(0, 1e8),
        secs_left=st.none() | st.floats(0, 1e8),
        max_say_bytes=COUNTS,
        ignored=st.sampled_from([(), ("x", "y")]),
        hearing_delay_steps=st.none() | COUNTS,
        sampling=st.builds(Sampling, st.floats(0, 9), COUNTS, st.floats(0, 9), COUNTS),
    )
)
def test_a_greeting_there_and_back(greeting):
    metadata = protocol.parse(protocol.encode(greeting.to_metadata()))
    assert isinstance(metadata, protocol.Metadata)
    assert protocol.Greeting.read(metadata) == greeting


def test_the_greeting_is_what_the_page_of_kyutai_takes():
    fields = protocol.Greeting().to_metadata().fields
    assert len(fields["build_info"]) == 10
    assert all(isinstance(value, str) for value in fields["build_info"].values())


@pytest.mark.parametrize("length", [0, 4093, 4094, 4096, 4097, 100_000])
@pytest.mark.parametrize("letter", ["a", "é", "語", "😀"])
def test_long_reasons_are_shortened_in_whole_characters(letter, length):
    reason = letter * length
    error = protocol.parse(protocol.encode(protocol.Error(reason)))
    assert isinstance(error, protocol.Error)
    assert error.reason == reason or (
        error.reason.endswith("…") and reason.startswith(error.reason[:-1]) and length > 1000
    )
    answer = protocol.parse(protocol.encode(protocol.SayAnswer(1, None, reason)))
    assert isinstance(answer, protocol.SayAnswer) and answer.error == error.reason


@pytest.mark.parametrize("letter", ["a", "é", "語", "😀", "\x01", '"'])
def test_the_longest_words_fit_into_a_message(letter):
    words = letter * (MAX_SAY_BYTES // len(letter.encode()))
    check_words(words)
    say = protocol.Say(1, words, True)
    assert protocol.parse(protocol.encode(say)) == say
    note = protocol.SpeechNote(1, 1, (Said(1, words[:1000], words[1000:]),))
    assert protocol.parse(protocol.encode(note)) == note
    for wrong in (words + letter, "\ud800"):
        with pytest.raises(CannotSay):
            check_words(wrong)


def test_utterances_that_end_together_have_notes_of_their_own():
    said = tuple(Said(number, "", "words") for number in range(3))
    step = Step(5, PCM, 3, None, StepTiming(0, 0), 7, said)
    notes = protocol.SpeechNote.of(step)
    assert [note.said for note in notes] == [(each,) for each in said]
    assert {(note.index, note.utterance_id) for note in notes} == {(5, 7)}


def test_what_is_noted_belongs_to_its_step():
    unheeded = Step(5, PCM, 3, None, StepTiming(0, 0), unheeded=True)
    plain = Step(6, PCM, 3, None, StepTiming(0, 0))
    for received, expected in ([5, 6], [True, False]), ([6], [False]):  # Step 5 may be lost.
        extensions = Extensions("a-session")
        for note in (*protocol.SpeechNote.of(unheeded), *protocol.SpeechNote.of(plain)):
            extensions.note(note)
        steps = [extensions.annotate(Step(i, PCM, 3, None, StepTiming(0, 0))) for i in received]
        assert [step.unheeded for step in steps] == expected
