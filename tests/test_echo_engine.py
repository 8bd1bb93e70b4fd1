"""The embedded model's story, while the microphone hears the agent as well."""

import numpy as np
import pytest
import soundfile

from harness.pipeline import AUDIO
from pipecat_duplex import Engine, SessionConfig
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES

STEPS, STORY_WORDS = 200, 30


def request() -> np.ndarray:
    """Return "tell me a story", with silence before and after it, in steps."""
    pcm, rate_hz = soundfile.read(
        AUDIO.parent / "evals" / "audio" / "tell_me_a_story.wav", dtype="float32"
    )
    words = Resampler(rate_hz, SAMPLE_RATE_HZ).push(pcm)
    user = np.zeros(STEPS * STEP_SAMPLES, np.float32)
    user[3 * STEP_SAMPLES : 3 * STEP_SAMPLES + len(words)] = words
    return user.reshape(STEPS, STEP_SAMPLES)


async def words_told(engine: Engine, echo_db: float, delay_steps: int) -> int:
    session = await engine.open(SessionConfig(seed=1))
    steps, told, played = session.steps(), "", []
    for index, frame in enumerate(request()):
        if index >= delay_steps:
            frame = frame + 10 ** (echo_db / 20) * played[index - delay_steps]
        session.send(np.clip(frame, -1, 1).astype(np.float32))
        step = await anext(steps)
        played.append(step.pcm)
        told += step.text_piece or ""
    await session.close()
    return len(told.replace("▁", " ").split())


@pytest.mark.slow
@pytest.mark.parametrize("suppress_echo", [True, False])
async def test_the_agent_is_not_stopped_by_its_own_voice(suppress_echo):
    engine = await Engine.load("embedded", suppress_echo=suppress_echo, hear_barge_ins=False)
    try:
        told = [await words_told(engine, echo_db=-3, delay_steps=delay) for delay in (1, 2, 3, 4)]
    finally:
        await engine.close()
    assert [words == STORY_WORDS for words in told] == 4 * [suppress_echo]
