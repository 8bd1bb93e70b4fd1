"""A persona over the wire: a caller names a voice by its key, and gets the engine's own session."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.persona import Casting
from pipecat_duplex.remote import RemoteBackend, RemoteFleet
from pipecat_duplex.scripted import ScriptedBackend
from pipecat_duplex.session import (
    AtCapacity,
    DuplexError,
    InvalidHistory,
    InvalidPrompt,
    SessionConfig,
    SessionEnded,
    Step,
)
from pipecat_duplex.session.history import History, HistoryKeeper
from tests.engine.scripted import noise
from tests.server.callers import FAST, chat_url, converse, serving, take, wait_until

ROLE = "hello i can help"
HEARD = noise(8, seed=2)
PERSONA = SessionConfig.greedy(text_prompt=ROLE, voice_prompt="NATF0")


@pytest.fixture
async def engine(checkpoint_folder: Path, tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine with one voice, and a recording beside the folder that nobody may name."""
    folder = tmp_path / "voices"
    folder.mkdir()
    soundfile.write(folder / "NATF0.wav", noise(12, seed=1).reshape(-1) * 0.2, 24_000)
    soundfile.write(tmp_path / "x.wav", noise(12, seed=3).reshape(-1) * 0.2, 24_000)
    engine = await Engine.load(checkpoint_folder, slots=2, device="cpu", voices=folder)
    yield engine
    await engine.close()


def tokens(steps: list[Step]) -> list[list[int] | None]:
    return [None if step.tokens is None else step.tokens.tolist() for step in steps]


async def test_a_persona_over_the_wire_is_the_engines_own(engine: Engine) -> None:
    local = await engine.open(PERSONA)
    expected = await converse(local, HEARD)
    await local.close()
    async with serving(engine, slots=2) as server:
        backend = RemoteBackend(chat_url(server))
        heard = {}
        changes = {"key": {}, "file": {"voice_prompt": "NATF0.pt"}, "role": {"voice_prompt": None}}
        for name, changed in changes.items():
            session = await backend.open(PERSONA.model_copy(update=changed))
            heard[name] = await converse(session, HEARD)
            await session.close()
        await backend.close()
        await wait_until(lambda: engine.free_slots == 2)
    for name in ("key", "file"):
        # Even the first step has tokens: the agent's past is the persona.
        assert tokens(heard[name])[0] is not None
        assert tokens(heard[name]) == tokens(expected)
        for step, other in zip(heard[name], expected, strict=True):
            np.testing.assert_allclose(step.pcm, other.pcm, atol=1e-5)
    assert tokens(heard["role"]) != tokens(expected)


@pytest.mark.parametrize("key", ["nobody", "../x", "../x.wav", "..%2Fx", "voices/NATF0", "/etc/x"])
async def test_a_voice_that_is_not_there_is_refused_to_its_caller_alone(
    engine: Engine, key: str
) -> None:
    async with serving(engine, slots=2) as server:
        backend = RemoteBackend(chat_url(server))
        neighbour = await backend.open(PERSONA)
        first = await converse(neighbour, HEARD[:4])
        asked = PERSONA.model_copy(update={"voice_prompt": key})
        for source in (backend, RemoteFleet([chat_url(server)])):
            with pytest.raises(InvalidPrompt, match=r"there is no voice .*; there are: NATF0"):
                await source.open(asked)
        assert server.metrics.refused["prompt"] == 2
        assert engine.free_slots == 1
        # The neighbour goes on, and so does whoever calls next.
        assert len(first + await converse(neighbour, HEARD[4:])) == 8
        fresh = await backend.open(PERSONA)
        assert len(await converse(fresh, HEARD)) == 8
        await backend.close()


async def test_a_role_of_full_length_in_any_script_reaches_the_session() -> None:
    asked = []

    class Backend(ScriptedBackend):
        async def open(self, config):
            asked.append(config)
            return await super().open(config)

    role = "𝄞" * 8000
    async with serving(Backend(FAST, slots=1), slots=1) as server:
        session = await RemoteBackend(chat_url(server)).open(SessionConfig(text_prompt=role))
        await session.close()
    assert asked[0].text_prompt == role


@pytest.mark.slow
async def test_a_server_may_take_its_time_to_read_a_prompt() -> None:
    class Reader(ScriptedBackend):
        async def open(self, config):
            await asyncio.sleep(1.0)
            return await super().open(config)

    async with serving(Reader(FAST, slots=1), slots=1) as server:
        backend = RemoteBackend(chat_url(server), connect_secs=0.2, attempts=1)
        session = await backend.open(SessionConfig(text_prompt="You are Jane."))
        with pytest.raises(AtCapacity):
            await backend.open(SessionConfig(voice_prompt="NATF0"))
        await session.close()


async def test_a_move_computes_the_persona_once_and_follows_to_the_same_place(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    personas: list[object] = []

    def count(self, persona, encode):
        personas.append(persona)
        return frames(self, persona, encode)

    frames = Casting.frames
    async with serving(engine, slots=2) as server:
        backend = RemoteBackend(chat_url(server))
        first = await backend.open(PERSONA)
        assert first.memory is not None
        keeper = HistoryKeeper(first.memory)
        before = await converse(first, HEARD[:4])
        for pcm, step in zip(HEARD[:4], before, strict=True):
            keeper.send(pcm)
            keeper.take(step)
        history = keeper.history()
        assert history is not None
        between, after = await converse(first, HEARD[4:6]), await converse(first, HEARD[6:])

        monkeypatch.setattr(Casting, "frames", count)
        second = await backend.open(PERSONA.model_copy(update={"restores": True}))
        assert not personas
        await second.restore(history)
        assert len(personas) == 1
        for pcm, step in zip(HEARD[4:6], between, strict=True):
            assert step.tokens is not None
            second.follow(pcm, step.tokens)
        followed, rest = await take(second, 2), await converse(second, HEARD[6:])
        assert tokens(followed + rest) == tokens(between + after)
        for step, other in zip(followed + rest, between + after, strict=True):
            np.testing.assert_allclose(step.pcm, other.pcm, atol=1e-4)
        assert between[0].tokens is not None
        second.follow(HEARD[0], between[0].tokens)  # Too late: it has gone on by itself.
        with pytest.raises(SessionEnded, match="after a history"):
            await take(second, 1)
        await backend.close()


async def test_who_brings_no_history_after_all_has_the_persona(engine: Engine) -> None:
    expected = await converse(await engine.open(PERSONA), HEARD)
    late = await engine.open(PERSONA.model_copy(update={"restores": True}))
    assert tokens(await converse(late, HEARD)) == tokens(expected)
    with pytest.raises(DuplexError, match="once"):
        await late.restore(
            History(late.memory.fingerprint, np.zeros((17, 2), int), True, HEARD[:0])
        )


@pytest.mark.parametrize("wrong", [-1, 60_000])
async def test_steps_of_elsewhere_that_hold_no_tokens_are_refused(
    engine: Engine, wrong: int
) -> None:
    session = await engine.open(SessionConfig())
    some = np.zeros(17, np.int32)
    with pytest.raises(DuplexError, match="after a history"):
        session.follow(HEARD[0], some)
    codes, key = np.zeros((17, 3), np.int32), session.memory.fingerprint
    await session.restore(History(key, codes, True, HEARD[:0]))
    for place in (0, 1, 16):
        bad = some.copy()
        bad[place] = wrong
        with pytest.raises(InvalidHistory):
            session.follow(HEARD[0], bad)
    for shape in (16, 18):
        with pytest.raises(InvalidHistory):
            session.follow(HEARD[0], np.zeros(shape, np.int32))
    session.follow(HEARD[0], some)
    assert (await take(session, 1))[0].tokens is not None
