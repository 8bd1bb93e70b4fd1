"""vLLM-Omni's duplex endpoint as a source of sessions."""

import asyncio
import dataclasses

import numpy as np
import pytest
from pipecat.frames.frames import BotStoppedSpeakingFrame, ErrorFrame, TTSAudioRawFrame

from pipecat_duplex import DuplexLLMService, MonologueTextFrame
from pipecat_duplex.conversation.clock import OutputClock
from pipecat_duplex.remote import (
    OmniBackend,
    RemoteBackend,
    RemoteFleet,
    omni_message,
    omni_session,
    servers,
)
from pipecat_duplex.remote.chunks import CHUNK_STEPS, ChunkPairing
from pipecat_duplex.remote.session import RemoteLimits
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    AtCapacity,
    CannotSay,
    DuplexError,
    InvalidPrompt,
    SessionConfig,
    SessionEnded,
)
from tests.pipeline import converse as hold_conversation
from tests.pipeline import silence, speech
from tests.remote.omni import Manners, running
from tests.server.callers import SILENCE, converse, take, text_of, wait_until

LEAD_STEPS = 5
"""By how much the answers lie behind, with chunks of five frames."""


def levels(count: int) -> list[np.ndarray]:
    """Frames that tell themselves apart by their level."""
    return [np.full(STEP_SAMPLES, (n % 60 + 1) / 64, np.float32) for n in range(count)]


def numbers_of(steps) -> list[int]:
    """Which frame each answer echoes; -1 is silence."""
    return [round(float(step.pcm[900]) * 64) - 1 for step in steps]


@pytest.mark.parametrize("chunk_steps, lead_steps", [(5, 5), (1, 1), (3, 3), (7, 7)])
async def test_frames_are_answered_one_by_one_whatever_the_chunks(chunk_steps, lead_steps):
    async with running(Manners(chunk_steps=chunk_steps)) as (server, url):
        backend = OmniBackend(url)
        session = await backend.open(SessionConfig())
        steps = await converse(session, levels(43), 0.003)
        assert [step.index for step in steps] == list(range(43))
        heard = numbers_of(steps)
        assert heard[:5] == [-1] * 5  # The chunks are not known yet.
        assert heard[30:] == list(range(30 - lead_steps, 43 - lead_steps))
        await backend.close()
        assert server.refusals == [] and server.closed_by_client == 1 and not server.live
        assert server.acknowledged > 0


async def test_what_the_session_asks_for():
    async with running() as (server, url):
        backend = OmniBackend(f"{url}?model=my%2Fpersonaplex&autostart=1")
        config = SessionConfig(voice_prompt="NATM1.pt", text_prompt="You are Jane.")
        session = await backend.open(config)
        await session.close()
        assert server.queries == [{"duplex": "1", "autostart": "0", "model": "my/personaplex"}]
        (asked,) = server.sessions
        assert asked["model"] == "my/personaplex"
        assert asked["voice"] == "NATM1.pt" and asked["instructions"] == "You are Jane."
        assert asked["input_audio_format"] == "pcm_f32le" and asked["turn_detection"] is None
        # What is not asked for is the server's to choose.
        session = await OmniBackend(url).open(SessionConfig())
        await session.close()
        assert "voice" not in server.sessions[1] and "instructions" not in server.sessions[1]


async def test_words_come_before_their_sound_is_over():
    # Of words and their parts, one is told a step.
    words = {0: "Hello", 7: " how", 9: " are", 10: " y", 11: "ou", 17: " today?"}
    async with running(Manners(words=words)) as (_, url):
        session = await OmniBackend(url).open(SessionConfig())
        steps = await converse(session, levels(40), 0.003)
        assert text_of(steps) == "Hello how are you today?"
        pieces = {step.index: step.text_piece for step in steps if step.text_piece}
        assert list(pieces.values()) == ["▁Hello", "▁how", "▁are", "▁y", "ou", "▁today?"]
        for (frame, _), index in zip(words.items(), pieces, strict=True):
            assert abs(index - (frame + LEAD_STEPS)) <= 5
        await session.close()


async def test_audio_that_is_cut_anywhere():
    async with running(Manners(delta_bytes=1000)) as (_, url):
        session = await OmniBackend(url).open(SessionConfig())
        heard = numbers_of(await converse(session, levels(40), 0.003))
        settled = heard[15:]
        assert settled == list(range(settled[0], settled[0] + len(settled)))
        await session.close()


@pytest.mark.slow
async def test_a_conversation():
    script = Script(replies=["Sure, with pleasure."], step_secs=0.001)
    async with running(backend=ScriptedBackend(script, slots=1)) as (server, url):
        user = np.concatenate([speech("question"), silence(2.5)])
        conversation = await hold_conversation(None, user, url=url)
        assert not conversation.near_user.of(ErrorFrame)
        said = [frame.text for frame in conversation.near.of(MonologueTextFrame)]
        assert said == ["▁Sure,", "▁with", "▁pleasure."]
        assert conversation.near.of(TTSAudioRawFrame)
        assert conversation.assistant_words() == ["Sure, with pleasure."]
        assert server.refusals == []


async def test_a_server_that_tells_no_text():
    """The agent is heard, and has its turns; there are no words of it."""
    backend = ScriptedBackend(Script(opening="one two three", step_secs=0.001), slots=1)
    async with running(Manners(tells_text=False), backend) as (_, url):
        conversation = await hold_conversation(None, silence(3), url=url)
        assert not conversation.near_user.of(ErrorFrame)
        assert conversation.near.of(BotStoppedSpeakingFrame)
        assert conversation.assistant_words() == []


@pytest.mark.slow
async def test_the_service_tells_the_end_before_it_comes():
    async with running(Manners(prefill_steps=74, context_steps=170)) as (_, url):
        server = OmniBackend(url, context_steps=170, text_prompt="Hi.")
        conversation = await hold_conversation(
            server, silence(9), ending_notice_secs=3, reopen_secs=0
        )
        names = [event[0] for event in conversation.events]
        assert names == ["on_session_started", "on_session_ending", "on_session_ended"]
        assert 2.7 < conversation.events[1][1] <= 3
        assert "its context is full" in conversation.events[2][2]


@pytest.mark.parametrize("flat_errors", [False, True])
async def test_a_full_server(flat_errors):
    async with running(Manners(max_sessions=1, flat_errors=flat_errors)) as (server, url):
        backend = OmniBackend(url)
        first = await backend.open(SessionConfig())
        with pytest.raises(AtCapacity, match=r"has no room: .*limit=1"):
            await backend.open(SessionConfig())
        await first.close()
        second = await backend.open(SessionConfig())
        await second.close()
        await wait_until(lambda: not server.live)


@pytest.mark.parametrize(
    "voice, problem",
    [
        ("NATF9.pt", "voice prompt 'NATF9.pt' was not found"),
        ("../NATF2.pt", "must be a bundled .pt basename"),
    ],
)
async def test_a_voice_that_the_server_has_not(voice, problem):
    async with running() as (_, url):
        with pytest.raises(InvalidPrompt, match=problem):
            await OmniBackend(url).open(SessionConfig(voice_prompt=voice))


async def test_the_key():
    async with running(Manners(api_key="secret")) as (_, url):
        with pytest.raises(DuplexError, match=r"HTTP 401.*Unauthorized"):
            await OmniBackend(url, api_key="wrong").open(SessionConfig())
        session = await OmniBackend(url, api_key="secret").open(SessionConfig())
        await session.close()


async def test_servers_that_are_something_else():
    async with running(Manners(chunk_period_ms=1000)) as (_, url):
        with pytest.raises(DuplexError, match="takes 1000 ms of audio at a time"):
            await OmniBackend(url).open(SessionConfig())
        with pytest.raises(DuplexError, match=r"HTTP 404.*session_mode: duplex"):
            await OmniBackend(f"{url}/v1/other").open(SessionConfig())
    async with running(Manners(created_secs=0.3)) as (_, url):
        with pytest.raises(AtCapacity, match=r"not ready within 0\.1 s"):
            await OmniBackend(url, handshake_secs=0.1).open(SessionConfig())


@pytest.mark.parametrize(
    "config, problem",
    [
        (SessionConfig(text_temperature=0.7), "text_temperature=0.7"),
        (SessionConfig(audio_top_k=250), "audio_top_k=250"),
        (SessionConfig(seed=1), "seed=1"),
        (SessionConfig(restores=True), "held elsewhere"),
    ],
)
async def test_what_it_cannot_do_is_refused_before_the_call(config, problem):
    async with running() as (server, url):
        with pytest.raises(DuplexError, match=problem):
            await OmniBackend(url).open(config)
        assert server.queries == []
        # Greedy is what it is; no seed makes a difference then.
        session = await OmniBackend(url).open(SessionConfig.greedy(seed=1))
        with pytest.raises(CannotSay, match="cannot let its agent say given words"):
            await session.say("hello")
        with pytest.raises(CannotSay):
            await session.hold()
        assert not await session.can_say("hello")
        assert session.memory is None
        await session.close()


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"text_temperature": 0.9}, "text_temperature=0.9"),
        ({"words": "given"}, "cannot let its agent say given words"),
        ({"greeting": "hello"}, "Cannot say 'hello'"),
    ],
)
async def test_the_service_tells_which_settings_cannot_be(settings, problem):
    async with running() as (_, url):
        asked = DuplexLLMService.Settings(**settings)
        conversation = await hold_conversation(None, silence(0.5), url=url, settings=asked)
        (error,) = [frame.error for frame in conversation.near_user.of(ErrorFrame)]
        assert problem in error


async def test_the_end_of_the_context_is_known_before():
    async with running(Manners(prefill_steps=74, context_steps=120)) as (server, url):
        session = await OmniBackend(url, context_steps=120).open(SessionConfig(text_prompt="Hi."))
        left_secs = session.secs_left
        assert left_secs is not None
        # Less than the server takes: it does not tell what its prompts took.
        count = round(left_secs / STEP_SECS)
        assert 0 < count <= 120 - 74
        with pytest.raises(SessionEnded, match="its context is full"):
            await converse(session, [SILENCE] * (count + 1), 0.001)
        assert session.secs_left == 0 and session.failed
        assert server.refusals == []
        await session.close()


async def test_a_limit_of_the_config():
    async with running() as (_, url):
        session = await OmniBackend(url).open(SessionConfig(max_secs=0.4))
        assert session.secs_left == pytest.approx(0.4)
        with pytest.raises(SessionEnded, match=r"limit of 0\.4 s"):
            await converse(session, [SILENCE] * 6, 0.001)
        await session.close()


async def test_a_server_whose_context_is_shorter_says_so():
    async with running(Manners(context_steps=100)) as (_, url):
        session = await OmniBackend(url).open(SessionConfig())
        for _ in range(20):
            session.send(SILENCE)
        with pytest.raises(SessionEnded, match="the session is full"):
            await take(session, 20)
        await session.close()


@pytest.mark.parametrize(
    "fault, problem",
    [
        ("no json", "no JSON"),
        ("[1]", "no object"),
        (b"\x01\x02", "bytes"),
        ({"delta": "AAA"}, "no base64"),
        ({"delta": "AAAA"}, "half a sample"),
        ({"delta": 3}, "no audio"),
        ({"sample_rate_hz": 16_000}, "16000"),
        ({"format": "wav"}, "wav"),
        ('{"type": "error", "error": {"code": "engine_error", "message": "boom"}}', "boom"),
        ('{"type": "session.closed", "reason": "shutdown"}', "ended the session: shutdown"),
        ('{"type": "session.expired", "reason": "idle_ttl_expired"}', "idle_ttl_expired"),
        ('{"type": "session.replaced"}', "another connection"),
        ('{"type": "error", "error": {"code": [], "message": {"a": 1}}}', "no reason given"),
        ('{"type": "error", "error": null}', "no reason given"),
    ],
)
async def test_what_ends_a_session(fault, problem):
    async with running(Manners(faults={1: fault})) as (_, url):
        session = await OmniBackend(url).open(SessionConfig())
        for frame in levels(8):
            session.send(frame)
        with pytest.raises(SessionEnded, match=problem):
            await take(session, 9)
        assert session.failed
        await session.close()


@pytest.mark.parametrize(
    "event",
    [
        '{"type": "session.resync_required", "reason": "journal_overflow"}',
        '{"type": "error", "error": {"code": "invalid_event_ack", "message": "…"}}',
        '{"type": "session.heartbeat_ack"}',
        '{"type": "of tomorrow"}',
    ],
)
async def test_what_does_not(event):
    async with running(Manners(before={1: event})) as (_, url):
        session = await OmniBackend(url).open(SessionConfig())
        assert len(await converse(session, levels(12), 0.003)) == 12
        await session.close()


def test_text_that_is_no_text():
    message = '{"type": "response.output_audio_transcript.delta", "delta": "a\\ud800"}'
    (event, number) = omni_message.parse(message)
    assert event == omni_message.Spoken("a?") and number is None


@pytest.mark.parametrize("on_the_way_secs", [0.01, 0.07, 0.2])
def test_chunks_make_no_holes(on_the_way_secs):
    """What is heard of two minutes, if a chunk comes so long after its last frame was sent."""
    chunks, clock = ChunkPairing(), OutputClock()
    sent = [(STEP_SECS * (n + 1), 0) for n in range(1500)]
    came = [(secs + on_the_way_secs, 1 if n == 0 else 5) for n, (secs, _) in enumerate(sent[1::5])]
    steps = 0
    for now_secs, blocks in sorted(sent + came):
        pcm = [np.ones(STEP_SAMPLES, np.float32)] * blocks
        answers = chunks.take(pcm, "") if blocks else chunks.send(now_secs)[1]
        for answer in answers:
            clock.observe(now_secs, (answer.frame + 1) * STEP_SECS)
            assert clock.admit(quiet=not answer.pcm.any())
            steps += 1
    assert steps > 1490


def test_a_server_that_sends_more_than_it_was_sent():
    """Nothing piles up: what is oldest is left out, and its words are not."""
    chunks = ChunkPairing()
    block = np.ones(STEP_SAMPLES, np.float32)
    for number in range(20):
        chunks.take([block * n for n in range(5)], f" word{number}")
    answers = [answer for _ in range(40) for answer in chunks.send(0.0)[1]]
    assert len(answers) == CHUNK_STEPS + 2 * CHUNK_STEPS
    assert [answer.frame for answer in answers] == list(range(len(answers)))
    assert next(answer.piece for answer in answers if answer.piece) == "▁word0"


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"breaks_at_frame": 4}, "was lost"),
        ({"dies_at_frame": 4}, "hung up: session_closed"),
        ({"refuses_frame": 4}, "too many pending input bytes"),
    ],
)
async def test_a_server_that_fails(changes, problem):
    async with running(dataclasses.replace(Manners(), **changes)) as (_, url):
        session = await OmniBackend(url).open(SessionConfig())
        for frame in levels(8):
            session.send(frame)
        with pytest.raises(SessionEnded, match=problem):
            await take(session, 9)
        await session.close()


async def test_a_server_that_answers_no_audio():
    async with running(Manners(chunk_steps=10_000)) as (_, url):
        limits = RemoteLimits(stall_secs=0.3)
        session = await OmniBackend(url, limits=limits).open(SessionConfig())
        for frame in levels(8):
            session.send(frame)
        with pytest.raises(SessionEnded, match="answered no audio"):
            await take(session, 9)
        await session.close()


@pytest.mark.parametrize(
    "url",
    ["vllm-omni://", "vllm-omni:host", "vllm-omni://host:0", "vllm-omni://host:no", "ws://host:1"],
)
def test_addresses_that_are_none(url):
    with pytest.raises(DuplexError, match="such as vllm-omni://host:8099"):
        OmniBackend(url)


def test_which_backend_an_address_means():
    assert isinstance(servers("vllm-omni://host"), OmniBackend)
    assert OmniBackend("vllm-omnis://host")._url == "wss://host/v1/realtime"
    assert isinstance(servers("ws://127.0.0.1:8998"), RemoteBackend)
    assert not isinstance(servers("ws://127.0.0.1:8998"), OmniBackend)
    assert isinstance(servers("ws://gpu:8998"), RemoteFleet)
    for several in (["vllm-omni://a", "ws://b"], ["vllm-omni://a"]):
        with pytest.raises(DuplexError, match="called alone"):
            servers(several)


async def test_a_session_in_which_nobody_comes_is_kept(monkeypatch):
    monkeypatch.setattr(omni_session, "HEARTBEAT_SECS", 0.02)
    async with running() as (server, url):
        session = await OmniBackend(url, limits=RemoteLimits(ping_secs=0.01)).open(SessionConfig())
        await wait_until(lambda: server.heartbeats > 2)
        await session.close()
        assert server.refusals == []


async def test_a_session_may_be_closed_while_it_is_opened():
    async with running(Manners(created_secs=0.3)) as (server, url):
        opening = asyncio.create_task(OmniBackend(url).open(SessionConfig()))
        await wait_until(lambda: server.queries)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await wait_until(lambda: not server.live)
