"""Personas: a role and a voice that a conversation begins with, and PersonaPlex's checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from moshi.models import loaders
from safetensors.torch import save_file

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.checkpoint import find_checkpoint
from pipecat_duplex.engine.model import Parts
from pipecat_duplex.engine.persona import (
    SILENT_FRAMES,
    Casting,
    Persona,
    Voices,
    find_voices,
    read_persona,
    read_voice,
    wrap_role,
)
from pipecat_duplex.engine.torch.checkpoint import Checkpoint, load_checkpoint, open_with_moshi
from pipecat_duplex.session import (
    STEP_SAMPLES,
    TEXT_PADDING,
    AtCapacity,
    DuplexError,
    InvalidPrompt,
    SessionConfig,
)
from tests.engine.scripted import noise


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    soundfile.write(folder / "NATF0.wav", noise(12, seed=1).reshape(-1) * 0.2, 24_000)
    soundfile.write(folder / "quiet.wav", np.zeros(24_000), 24_000)
    (folder / "broken.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "secret.wav", np.ones(1000) * 0.1, 24_000)
    return folder


def encode(audio: np.ndarray) -> Parts[np.ndarray]:
    level = np.abs(audio).max(axis=1)
    yield
    return np.tile((level * 100).astype(int), (8, 1)) + np.arange(8)[:, None]


def frames_of(casting: Casting, persona: Persona) -> tuple[np.ndarray, int]:
    """Return the frames, and in how many parts they came."""
    parts, count = casting.frames(persona, encode), 0
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value, count
        count += 1


def test_the_frames_of_a_persona_are_personaplexs(checkpoint: Checkpoint, voices: Path) -> None:
    casting = Casting()
    config = SessionConfig(text_prompt="hello", voice_prompt="NATF0.pt")
    persona = read_persona(config, checkpoint.vocabulary, Voices(voices))
    frames, parts = frames_of(casting, persona)
    role = checkpoint.vocabulary.tokens("<system> hello <system>")
    # Without the first frame of the clip, which is in the model's past.
    assert frames.shape == (17, 12 - 1 + SILENT_FRAMES + len(role) + SILENT_FRAMES)
    assert persona.frames == frames.shape[1]
    text = frames[0].tolist()
    assert text[17 : 17 + len(role)] == role
    assert set(text[:17] + text[17 + len(role) :]) == {TEXT_PADDING}
    assert (frames[1, 11:] == 0).all() and (frames[1, :11] > 0).any()
    assert len(set(frames[9])) == 1 and frames[9, 0] > 40
    # What was encoded once is kept: silence, the tone, and the voice.
    again, parts_again = frames_of(casting, persona)
    np.testing.assert_array_equal(again, frames)
    assert (parts, parts_again) == (3, 0)


def test_a_role_is_marked_once() -> None:
    assert wrap_role(" You are Jane. ") == "<system> You are Jane. <system>"
    assert wrap_role("<system> You are Jane. <system>") == "<system> You are Jane. <system>"


def test_voices_are_named_by_key_and_never_by_path(voices: Path) -> None:
    found = find_voices(voices)
    assert set(found) == {"NATF0", "quiet", "broken"}
    for key in ("quiet", "broken"):
        with pytest.raises(InvalidPrompt, match=key):
            read_voice(found[key])
    voice = read_voice(found["NATF0"])
    assert voice.shape == (12, STEP_SAMPLES) and voice.dtype == np.float32
    assert find_voices(None) == {}
    with pytest.raises(DuplexError, match="no folder"):
        find_voices(voices / "nowhere")


async def test_a_session_with_a_persona(checkpoint_folder: Path, voices: Path) -> None:
    engine = await Engine.load(checkpoint_folder, slots=2, device="cpu", voices=voices)
    try:
        config = SessionConfig.greedy(text_prompt="hello i can help", voice_prompt="NATF0")
        with pytest.raises(InvalidPrompt, match=r"no voice '\.\./secret'; there are"):
            await engine.open(config.model_copy(update={"voice_prompt": "../secret"}))
        with pytest.raises(InvalidPrompt, match="silent"):
            await engine.open(config.model_copy(update={"voice_prompt": "quiet"}))
        assert engine.free_slots == 2
        spoken = []
        for changed in ({}, {"text_prompt": None, "voice_prompt": None}):
            session = await engine.open(config.model_copy(update=changed))
            for frame in noise(8, seed=2):
                session.send(frame)
            steps = []
            async for step in session.steps():
                steps.append(step)
                if len(steps) == 8:
                    break
            spoken.append(steps)
            await session.close()
        cast, plain = spoken
        # The agent is there from the first step, since its past is.
        assert cast[0].tokens is not None and plain[0].tokens is None
        assert [step.text_token for step in cast] != [step.text_token for step in plain]
        sessions = [await engine.open(config) for _ in range(2)]
        with pytest.raises(AtCapacity):
            await engine.open(config)
        for session in sessions:
            await session.close()
    finally:
        await engine.close()


def test_a_checkpoint_that_predicts_the_user_is_loaded_for_the_agent(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "personaplex"
    shutil.copytree(checkpoint_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {"dep_q": 16}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        arguments = open_with_moshi(find_checkpoint(folder)).lm_config
        whole = loaders.get_moshi_lm(None, arguments, dtype=torch.float32).eval()
    save_file(whole.state_dict(), folder / "model.safetensors")
    ours = load_checkpoint(folder, "cpu").lm
    assert ours.dep_q == 8
    with torch.no_grad():
        sequence = torch.randint(0, 60, (1, 17, 1))
        hidden, text = whole.forward_text(sequence)
        our_hidden, our_text = ours.forward_text(sequence)
        torch.testing.assert_close(our_text, text)
        token = torch.tensor([[[5]]])
        assert whole.depformer is not None and ours.depformer is not None
        with whole.depformer.streaming(1), ours.depformer.streaming(1):
            for codebook in range(8):
                theirs = whole.forward_depformer(codebook, token, hidden)
                mine = ours.forward_depformer(codebook, token, our_hidden)
                torch.testing.assert_close(mine, theirs)
                token = theirs[:, :, :, :60].argmax(-1)
