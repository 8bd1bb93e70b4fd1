"""One engine for all conversations of a process that ask alike."""

import asyncio

import pytest

from pipecat_duplex import CheckpointError, Engine, SessionConfig


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Engine, "_shared", {})


async def test_the_first_loads_and_the_others_wait():
    first, second, later = await asyncio.gather(*(Engine.shared(slots=2) for _ in range(3)))
    assert first is second is later
    session = await first.open(SessionConfig())
    assert (await Engine.shared(slots=2)).free_slots == 1
    await session.close()

    await first.close()
    fresh = await Engine.shared(slots=2)
    assert fresh is not first and fresh.free_slots == 2
    await fresh.close()


async def test_a_caller_who_gives_up_does_not_stop_the_loading():
    impatient = asyncio.create_task(Engine.shared())
    patient = asyncio.create_task(Engine.shared())
    await asyncio.sleep(0)
    impatient.cancel()
    engine = await patient
    assert engine.free_slots == 1
    await engine.close()


async def test_what_could_not_be_loaded_is_tried_again():
    for _ in range(2):
        with pytest.raises(CheckpointError):
            await Engine.shared("./nowhere")


async def test_other_arguments_are_another_engine():
    one, two = await asyncio.gather(Engine.shared(), Engine.shared(cpu_threads=1))
    assert one is not two
    await asyncio.gather(one.close(), two.close())
