"""Remote sessions on servers as others run them."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("sphn")

from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.remote.session import UNKNOWN_TOKEN, RemoteLimits
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    AtCapacity,
    DuplexError,
    SessionConfig,
)
from tests.remote.foreign import moshi_server, personaplex, running, rust_backend
from tests.server.callers import converse, serving, text_of

SERVERS = {
    "moshi": (moshi_server, {}),
    "rust": (rust_backend, {}),
    "personaplex": (personaplex, {"voice_prompt": "NATF2.pt", "text_prompt": "You are Jane."}),
}


@pytest.fixture(params=SERVERS)
def server_kind(request):
    return SERVERS[request.param]


def tones(count: int) -> list[np.ndarray]:
    """Frames whose levels rise and fall from one to the next: no neighbour looks like another."""
    secs = np.arange(count * STEP_SAMPLES) / SAMPLE_RATE_HZ
    level = np.repeat([0.1 + 0.11 * (n * 3 % 8) for n in range(count)], STEP_SAMPLES)
    pcm = (level * np.sin(2 * np.pi * 300 * secs)).astype(np.float32)
    return list(pcm.reshape(count, STEP_SAMPLES))


def shift_of(frames, steps) -> int:
    """How many steps the answers lie behind the frames that they echo."""

    def level(pcm):
        return float(np.sqrt(np.mean(np.square(pcm))))

    sent = np.array([level(frame) for frame in frames])
    heard = np.array([level(step.pcm) for step in steps])
    shifts = range(-3, 4)
    errors = [np.abs(np.roll(sent, n) - heard)[5:-5].mean() for n in shifts]
    best, second = sorted(errors)[:2]
    assert best < 0.1 and second > 1.5 * best
    return shifts[int(np.argmin(errors))]


async def test_frames_and_answers_are_paired(server_kind):
    manners, prompts = server_kind
    words = {4: " hello", 6: " th", 7: "ere"}
    async with running(manners(words=words)) as (server, url):
        backend = RemoteBackend(url, **prompts)
        session = await backend.open(SessionConfig(seed=5))
        frames = tones(40)
        steps = await converse(session, frames, pause_secs=0.005)
        assert [step.index for step in steps] == list(range(40))
        lead = server.manners.lead_steps
        assert all(not step.pcm.any() for step in steps[:lead])
        # The echo of frame n comes as the answer to frame n.
        assert shift_of(frames, steps) == 0
        assert text_of(steps) == "hello there"
        said = {step.index: step.text_token for step in steps if step.text_piece}
        assert set(said.values()) == {UNKNOWN_TOKEN}
        assert [index - 4 for index in said] in ([0, 2, 3], [1, 3, 4])
        assert "seed" not in server.queries[0]
        assert server.queries[0]["text_seed"] == "5"
        await backend.close()


async def test_words_behind_padding_of_the_rust_backend():
    words = {4: "hello", 5: " you", 8: "th", 9: "ere", 12: " again", 15: "bye"}
    async with running(rust_backend(words=words)) as (_, url):
        session = await RemoteBackend(url).open(SessionConfig())
        pieces = [step.text_piece for step in await converse(session, tones(22), 0.005)]
        told = [piece for piece in pieces if piece]
        assert told == ["▁hello", "▁you", "▁th", "ere", "▁again", "▁bye"]
        await session.close()


async def test_the_rust_backend_takes_our_pings():
    async with running(rust_backend()) as (server, url):
        session = await RemoteBackend(url, limits=RemoteLimits(ping_secs=0.01)).open(
            SessionConfig()
        )
        assert len(await converse(session, tones(50), 0.01)) == 50
        assert server.unknown_messages == 0
        await session.close()


@pytest.mark.parametrize("prompts", [{"voice_prompt": "NATF2.pt"}, {"text_prompt": "You are Jane"}])
@pytest.mark.parametrize("manners", [personaplex, moshi_server])
async def test_half_a_pair_of_prompts_is_refused_before_the_call(prompts, manners):
    async with running(manners()) as (server, url):
        for backend, config in (
            (RemoteBackend(url, **prompts), SessionConfig()),
            (RemoteBackend(url), SessionConfig(**prompts)),
        ):
            with pytest.raises(DuplexError, match="needs both prompts: give"):
                await backend.open(config)
        assert server.queries == []


async def test_personaplex_needs_its_prompts():
    async with running(personaplex()) as (server, url):
        with pytest.raises(DuplexError, match="needs voice_prompt and text_prompt"):
            await RemoteBackend(url).open(SessionConfig())
        backend = RemoteBackend(url, voice_prompt="NATF2.pt", text_prompt="")
        session = await backend.open(SessionConfig())
        assert server.queries[1]["text_prompt"] == ""
        assert len(await converse(session, tones(10), 0.005)) == 10
        await session.close()


async def test_our_server_takes_one_prompt():
    async with serving() as server:
        backend = RemoteBackend(f"ws://127.0.0.1:{server.port}", text_prompt="You are Jane")
        session = await backend.open(SessionConfig())
        await session.close()


async def test_a_second_caller_is_told_that_there_is_no_room():
    async with running(moshi_server()) as (_, url):
        backend = RemoteBackend(url, handshake_secs=0.4)
        first = await backend.open(SessionConfig())
        with pytest.raises(AtCapacity, match="serves others"):
            await backend.open(SessionConfig())
        assert len(await converse(first, tones(5), 0.005)) == 5
        await first.close()
        second = await RemoteBackend(url).open(SessionConfig())
        assert len(await converse(second, tones(5), 0.005)) == 5
        await second.close()


@pytest.mark.parametrize("bunch", [2, 5])
async def test_a_server_that_bunches(bunch):
    async with running(moshi_server(bunch=bunch)) as (_, url):
        session = await RemoteBackend(url).open(SessionConfig())
        frames = tones(10 * bunch + 1)
        steps = await converse(session, frames, 0.005)
        assert shift_of(frames, steps) == 0
        await session.close()


@pytest.mark.slow
async def test_a_lost_answer_does_not_hold_up_those_after_it():
    """By the clock, since only then a loss can be told from a server that is slow."""
    async with running(moshi_server(lost=[30])) as (_, url):
        session = await RemoteBackend(url).open(SessionConfig())
        frames = tones(125)
        feeding = asyncio.create_task(converse(session, frames, 0.08))
        steps = await asyncio.wait_for(feeding, 60)
        assert [step.index for step in steps] == list(range(125))
        assert shift_of(frames[:28], steps[:28]) == 0
        assert shift_of(frames[-15:], steps[-15:]) == 0
        await session.close()


async def test_no_sound_of_one_caller_reaches_the_next():
    async with running(moshi_server()) as (_, url):
        backend = RemoteBackend(url)
        loud = await backend.open(SessionConfig())
        await converse(loud, tones(10), 0.005)
        loud.send(tones(1)[0])
        await loud.close()
        quiet = await backend.open(SessionConfig())
        silence = [np.zeros(STEP_SAMPLES, np.float32)] * 10
        for step in await converse(quiet, silence, 0.005):
            assert np.abs(step.pcm).max() < 1e-3
        await quiet.close()
