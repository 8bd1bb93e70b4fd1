"""The agent's words one by one, and the trainings that they are for."""

import filecmp
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from training import bank, checkpoint, corpus, words
from training.decoder import DecoderData, DecoderOptions
from training.export import export
from training.sizes import SAMPLE_RATE, STEP_SAMPLES
from training.unpack import unpack

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EMBEDDED = Path(str(files("pipecat_duplex"))) / "checkpoints" / "embedded"
SAID = ("welcome", "to", "a", "kitchen")


@pytest.fixture(scope="module")
def spoken() -> dict[str, words.Speech]:
    return {word: words.speak_word(word) for word in SAID}


def test_a_word_lasts_whole_steps_and_is_heard_throughout(spoken: dict[str, words.Speech]):
    for word, speech in spoken.items():
        steps, rest = divmod(len(speech.samples), STEP_SAMPLES)
        assert rest == 0
        assert steps >= words.SHORTEST_STEPS
        assert [span.label for span in speech.words] == [word]
        levels = np.abs(speech.samples).reshape(steps, -1).max(1)
        assert levels.min() > 0.01
        assert speech.samples[0] == speech.samples[-1] == 0
        assert speech.phones[0].start == 0
        assert "pau" not in [phone.label for phone in speech.phones[:-1]]


def test_words_follow_one_another(spoken: dict[str, words.Speech]):
    sentence = words.join(list(spoken.values()))

    assert [span.label for span in sentence.words] == list(SAID)
    assert len(sentence.samples) == sum(len(word.samples) for word in spoken.values())
    for span in sentence.words:
        part = sentence.samples[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)]
        np.testing.assert_array_equal(part, spoken[span.label].samples)
    starts = [phone.start for phone in sentence.phones]
    assert starts == sorted(starts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, spoken: dict[str, words.Speech]) -> Path:
    """A corpus and a bank of one answer and four words, by the shipped codec."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "speech").mkdir()
    (folder / "bank").mkdir()
    mimi = bank.load_codec(EMBEDDED / checkpoint.MIMI_WEIGHTS)
    answer = corpus.make_utterance("agent", 0, 0)
    parts = {
        "agent": ([answer], bank.FIRST_CUT),
        "words": (
            [corpus.Utterance(w, "word", answer.voice, s) for w, s in spoken.items()],
            bank.FIRST_WORD_CUT,
        ),
    }
    for name, (utterances, first_cut) in parts.items():
        corpus.write_part(folder / "speech" / f"{name}-000.npz", utterances)
        answers = [bank.encode_answer(mimi, u, first_cut) for u in utterances]
        path = folder / "bank" / f"{name}.npz"
        bank.write_answers(path, answers, bank.encode_silence(mimi))
    return folder


@pytest.mark.parametrize("told_share", [0.0, 1.0])
def test_the_decoder_hears_what_its_codes_say(
    data: Path, told_share: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.world.new_sentence", lambda rng: " ".join(rng.permutation(SAID)))
    options = DecoderOptions(told_share=told_share, cut_share=0.5)
    source = DecoderData(data, options, 0)

    for _ in range(5):
        codes, sound, phones = source.batch()
        assert codes.shape == (options.batch, 8, options.steps)
        assert sound.shape == (options.batch, options.steps * STEP_SAMPLES)
        assert phones.shape == (options.batch, options.steps * 2)
        # Where the codes are those of silence, there is none but what fades.
        silent = (codes == codes.new_tensor(source.silence.astype(int))[:, None]).all(1)
        loud = sound.unflatten(1, (options.steps, -1)).abs().amax(2) > 0.05
        assert not (silent & loud).any()
        assert loud.any()


def test_a_checkpoint_unpacked_is_the_checkpoint(tmp_path: Path):
    unpack(EMBEDDED, tmp_path / "codec", tmp_path / "lm")
    export(tmp_path / "codec", tmp_path / "lm", tmp_path / "made")

    for path in EMBEDDED.iterdir():
        if path.suffix in (".safetensors", ".json", ".model"):
            assert filecmp.cmp(path, tmp_path / "made" / path.name, shallow=False), path.name
