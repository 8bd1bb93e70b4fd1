"""The service with the real engine, on a tiny checkpoint."""

import numpy as np
import pytest
from pipecat.frames.frames import ErrorFrame, TTSAudioRawFrame

from pipecat_duplex import DuplexLLMService, DuplexMetricsData, MonologueTextFrame
from tests.pipeline import converse, silence, speech

pytestmark = pytest.mark.engine

USER = np.concatenate([speech("question"), silence(2)])


def monologue(conversation):
    return [(f.step_index, f.token, f.text) for f in conversation.near.of(MonologueTextFrame)]


def settings(**changes):
    return DuplexLLMService.Settings(seed=7, **changes)


@pytest.mark.slow
async def test_a_conversation_with_its_own_engine(tiny_checkpoint):
    first, second = [
        await converse(None, USER, checkpoint=str(tiny_checkpoint), settings=settings())
        for _ in range(2)
    ]
    assert first.service.step_count == int(len(USER) / 16_000 / 0.08)
    assert not first.near_user.of(ErrorFrame)
    assert monologue(first)
    assert first.near.of(TTSAudioRawFrame)
    assert monologue(first) == monologue(second)


@pytest.mark.slow
async def test_two_bots_share_an_engine(tiny_checkpoint):
    import asyncio

    from pipecat_duplex.engine import Engine

    engine = await Engine.load(str(tiny_checkpoint), slots=2)
    try:
        alone = await converse(engine, USER, settings=settings())
        both = await asyncio.gather(
            converse(engine, USER, settings=settings()),
            converse(engine, USER[::-1].copy(), settings=settings()),
        )
        assert monologue(both[0]) == monologue(alone)
        assert engine.free_slots == 2
    finally:
        await engine.close()


async def test_no_slot_is_an_error_frame(tiny_checkpoint):
    from pipecat_duplex import SessionConfig
    from pipecat_duplex.engine import Engine

    engine = await Engine.load(str(tiny_checkpoint))
    try:
        await engine.open(SessionConfig())
        conversation = await converse(engine, silence(0.3))
        (error,) = conversation.near_user.of(ErrorFrame)
        assert "slot" in error.error
    finally:
        await engine.close()


async def test_an_unknown_checkpoint_is_an_error_frame(tmp_path):
    conversation = await converse(None, silence(0.3), checkpoint=str(tmp_path / "nothing"))
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "Cannot load the model" in error.error and "nothing" in error.error
    assert not conversation.service.is_usable


@pytest.mark.slow
async def test_the_limit_of_a_session_is_a_reason(tiny_checkpoint):
    conversation = await converse(
        None, silence(2), checkpoint=str(tiny_checkpoint), settings=settings(max_session_secs=1)
    )
    (error,) = conversation.near_user.of(ErrorFrame)
    assert "limit of 1 s" in error.error
    assert conversation.service.step_count == 13


def test_metrics_are_plain_data():
    fields = DuplexMetricsData.model_fields
    assert {"compute_secs", "lag_secs", "filled_steps", "dropped_output_steps"} <= set(fields)
