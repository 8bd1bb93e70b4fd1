"""Remote sessions on the stock ``moshi.server``, a process of its own."""

import socket
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("moshi")

from pipecat.frames.frames import ErrorFrame, TTSAudioRawFrame

from pipecat_duplex import MonologueTextFrame
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.session import AtCapacity, SessionConfig
from tests.pipeline import converse as converse_in_pipeline
from tests.pipeline import silence, speech
from tests.server.callers import converse
from tests.server.processes import started

pytestmark = pytest.mark.engine

WRAPPER = Path(__file__).parents[2] / "harness" / "run_moshi_server.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
async def test_the_stock_server(tiny_checkpoint):
    from training import checkpoint

    port = free_port()
    arguments = [
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--static", "none"),
        *("--config-path", str(tiny_checkpoint / "config.json")),
        *("--moshi-weight", str(tiny_checkpoint / checkpoint.LM_WEIGHTS)),
        *("--mimi-weight", str(tiny_checkpoint / checkpoint.MIMI_WEIGHTS)),
        *("--tokenizer", str(tiny_checkpoint / checkpoint.TOKENIZER)),
    ]
    async with started(str(WRAPPER), *arguments, cwd=tiny_checkpoint) as process:
        await process.wait_for_line("Running on")
        url = f"ws://127.0.0.1:{port}"
        noise = np.random.default_rng(0).uniform(-0.3, 0.3, (40, 1920)).astype(np.float32)

        backend = RemoteBackend(url)
        session = await backend.open(SessionConfig(seed=3))
        assert session.audio_format == "opus"
        with pytest.raises(AtCapacity, match="serves others"):
            await RemoteBackend(url, handshake_secs=0.5).open(SessionConfig())
        steps = await converse(session, noise, 0.02)
        assert [step.index for step in steps] == list(range(40))
        assert not steps[0].pcm.any() and any(step.pcm.any() for step in steps[1:])
        assert any(step.text_piece for step in steps)
        # What waited is gone: a fresh caller is served.
        await session.close()

        user = np.concatenate([speech("question"), silence(1)])
        conversation = await converse_in_pipeline(backend, user)
        assert not conversation.near_user.of(ErrorFrame)
        assert conversation.near.of(MonologueTextFrame)
        assert conversation.near.of(TTSAudioRawFrame)
        await backend.close()
