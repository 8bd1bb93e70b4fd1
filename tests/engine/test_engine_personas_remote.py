"""A persona over the wire: a caller names a voice by its key, and gets the engine's own session."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipecat_duplex.engine import Engine
from pipecat_duplex.remote import RemoteBackend, RemoteFleet
from pipecat_duplex.scripted import ScriptedBackend
from pipecat_duplex.session import AtCapacity, InvalidPrompt, SessionConfig, Step
from tests.engine.scripted import noise
from tests.server.callers import FAST, chat_url, converse, serving, wait_until

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
