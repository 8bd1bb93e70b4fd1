"""The checkpoint that ships in the package: it loads everywhere, and it converses."""

from importlib.resources import files

import pytest

from pipecat_duplex.commands.converse import ConverseOptions, converse
from tests.pipeline import AUDIO

pytestmark = pytest.mark.engine

FOLDER = files("pipecat_duplex") / "checkpoints" / "embedded"


def test_it_is_small_and_says_what_it_is():
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert sum(sizes) <= 40e6
    assert "trained" in (FOLDER / "MODEL_CARD.md").read_text().lower()


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


async def test_it_answers_a_question_and_speaks_first_when_nobody_does(tmp_path):
    """Turn-taking, not knowledge: what it answers is measured by the evaluation."""
    report = await converse(ConverseOptions(audio=AUDIO / "question.wav", greedy=True))
    recording = report.recording
    assert report.trained
    question_end_secs = max(event.time_secs for event in recording.select("user_stopped"))
    answers = [e for e in recording.select("agent_started") if e.time_secs > 1.0]
    assert answers, "the agent never took the turn"
    assert answers[-1].time_secs < question_end_secs + 3.0
    said = " ".join(event.fields["text"] for event in recording.select("agent_stopped"))
    assert len(said.split()) >= 3
