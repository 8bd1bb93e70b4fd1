"""The checkpoint that ships in the package: it loads everywhere, and it converses."""

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib.resources import files

import numpy as np
import pytest
import soundfile

from pipecat_duplex.commands.converse.converse import ConverseOptions, converse
from pipecat_duplex.engine import Engine
from pipecat_duplex.session import STEP_SAMPLES, SessionConfig
from tests.pipeline import AUDIO

FOLDER = files("pipecat_duplex") / "checkpoints" / "embedded"


def test_it_is_small_and_says_what_it_is():
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert sum(sizes) <= 40e6
    assert "trained" in (FOLDER / "MODEL_CARD.md").read_text().lower()


@pytest.mark.engine
def test_moshis_own_loaders_run_it():
    import torch
    from moshi.models import LMGen
    from moshi.models.loaders import CheckpointInfo

    info = CheckpointInfo.from_hf_repo(
        "embedded",
        moshi_weights=FOLDER / "model.safetensors",
        mimi_weights=FOLDER / "mimi.safetensors",
        tokenizer=FOLDER / "tokenizer.model",
        config_path=FOLDER / "config.json",
        mimi_config_path=FOLDER / "mimi_config.json",
    )
    mimi, lm = info.get_mimi("cpu"), info.get_moshi("cpu", dtype=torch.float32)
    with torch.no_grad(), mimi.streaming(1), LMGen(lm).streaming(1):
        assert mimi.encode(torch.zeros(1, 1, 1920)).shape == (1, 8, 1)
    assert info.get_text_tokenizer().vocab_size() > 100


@pytest.mark.slow
@pytest.mark.engine
def test_moshis_own_command_runs_it(tmp_path):
    """``moshi.run_inference`` answers a file, by the stock files alone.

    It looks for the codec's configuration, which it has no option for, in the working directory.
    """
    answer = tmp_path / "answer.wav"
    files_of = {
        "--moshi-weight": "model.safetensors",
        "--mimi-weight": "mimi.safetensors",
        "--tokenizer": "tokenizer.model",
        "--config": "config.json",
    }
    # It stops with the file: leave time for the answer.
    question, rate_hz = soundfile.read(AUDIO / "question.wav", dtype="float32")
    asked = tmp_path / "asked.wav"
    soundfile.write(asked, np.pad(question, (0, 3 * rate_hz)), rate_hz)
    command = [sys.executable, "-m", "moshi.run_inference", "--device", "cpu", "--batch-size", "1"]
    command += [word for pair in files_of.items() for word in pair]
    command += [str(asked), str(answer)]
    environment = os.environ | {"NO_TORCH_COMPILE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, cwd=str(FOLDER), env=environment, capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    pcm, rate_hz = soundfile.read(answer)
    assert rate_hz == 24_000
    assert np.abs(pcm).max() > 0.01  # it said something


async def test_a_conversation():
    """The README's conversation: a question, a story, an "uh huh" and a "stop"."""
    report = await converse(ConverseOptions(audio=AUDIO / "conversation.wav", greedy=True))
    assert report.trained and report.failure is None
    question_end, request_end, *_ = (e.time_secs for e in report.recording.select("user_stopped"))
    answer, story, *_ = (e.time_secs for e in report.recording.select("agent_started"))
    # It takes the turn soon after each of the two, and not before.
    assert question_end - 0.5 < answer < question_end + 1.5
    assert request_end - 0.5 < story < request_end + 1.5
    said = [event.fields["text"] for event in report.recording.select("agent_stopped")]
    assert "plus" in said[0] and "once there was" in said[1]
    # It does not tell the story to its end: the user says "stop" in the middle.
    assert len(said[1].split()) < 40
    assert report.figures.yields >= 1


@pytest.mark.slow
async def test_the_question_of_the_first_minute_is_answered():
    report = await converse(ConverseOptions(audio=AUDIO / "question.wav", greedy=True))
    said = [event.fields["text"] for event in report.recording.select("agent_stopped")]
    assert said[-1] == "two plus three is five"


@pytest.mark.slow
async def test_a_given_word_lasts_as_long_in_any_sentence():
    """What it is told to say is a row of words, each always the same: see ``training/words.py``."""
    words = ("kitchen", "nine", "small", "days", "welcome", "three")
    silence = np.zeros(STEP_SAMPLES, np.float32)
    engine = await Engine.load("embedded", slots=1, tts="own")
    lasts: dict[str, list[int]] = defaultdict(list)
    try:
        for turn in range(len(words)):
            said = words[turn:] + words[:turn]
            session = await engine.open(SessionConfig(seed=turn))
            await session.say(" ".join(said))
            starts: list[int] = []
            steps = session.steps()
            for index in range(100):
                session.send(silence)
                step = await anext(steps)
                if step.text_piece and step.utterance_id is not None:
                    starts.append(index)
                if step.said:
                    break
            await session.close()
            assert len(starts) == len(said)
            for word, steps_of in zip(said, np.diff(starts).tolist(), strict=False):
                lasts[word].append(steps_of)
    finally:
        await engine.close()
    usual = {word: max(set(own), key=own.count) for word, own in lasts.items()}
    equal = [steps_of == usual[word] for word, own in lasts.items() for steps_of in own]
    assert len(equal) == len(words) * (len(words) - 1)
    assert np.mean(equal) >= 0.9
    assert all(2 <= steps_of <= 8 for steps_of in usual.values())


async def test_it_tells_which_words_it_lacks():
    engine = await Engine.load("embedded", tts="own")
    session = await engine.open(SessionConfig())
    assert await session.can_say("hello,how can i help you")
    can = await session.can_say("hello kubernetes")
    assert not can and can.lacks == ("kubernetes",) and "'kubernetes'" in can.reason
    assert not await session.can_say("\ud800")
    await session.close()
    await engine.close()


async def test_with_a_voice_beside_it_it_lacks_none():
    engine = await Engine.load("embedded")
    session = await engine.open(SessionConfig())
    assert await session.can_say("Your order from kubernetes costs $4.50.")
    can = await session.can_say("привет")
    assert not can and can.lacks == ("привет",)
    await session.close()
    await engine.close()


async def test_a_checkpoint_that_is_not_embedded_speaks_itself(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "mine")
    engine = await Engine.load(folder)
    session = await engine.open(SessionConfig())
    assert not await session.can_say("kubernetes")
    await session.close()
    await engine.close()
