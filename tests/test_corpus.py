"""The speech corpus of the training."""

import sys
from pathlib import Path

import numpy as np
import pytest

from training import corpus, revoice, speech


def test_a_part_whose_synthesiser_is_missing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "rhvoice_wrapper_bin", None)
    monkeypatch.setattr(sys, "argv", ["corpus", str(tmp_path), "--kinds", "arctic"])
    speech._rhvoice_library.cache_clear()

    corpus.main()

    assert "arctic left out: RHVoice is not installed" in capsys.readouterr().out
    assert not list((tmp_path / "speech").iterdir())


def test_a_voice_that_rhvoice_lacks_is_told():
    pytest.importorskip("rhvoice_wrapper_bin")

    with pytest.raises(speech.NoVoice, match="nobody"):
        speech.synthesise("hello", "rhvoice:nobody")


def test_rhvoices_last_word_ends_with_its_sound():
    pytest.importorskip("rhvoice_wrapper_bin")

    said = speech.synthesise("please count to five", "rhvoice:bdl*1.1", rate=1.1, pitch=0.9)

    assert [word.label for word in said.words] == ["please", "count", "to", "five"]
    assert said.words[0].start == pytest.approx(0.02, abs=0.01)
    assert said.words[-1].end == pytest.approx(len(said.samples) / 24_000 - 0.02, abs=0.01)
    assert all(a.end == b.start for a, b in zip(said.words, said.words[1:], strict=False))


@pytest.mark.needs("hibari")
def test_hibaris_words_lie_in_their_sound():
    said = speech.synthesise("please count to five", "hibari:heart", rate=1.1, pitch=0.8)

    assert [word.label for word in said.words] == ["please", "count", "to", "five"]
    assert said.words[0].start == pytest.approx(0.02, abs=0.01)
    assert said.words[-1].end == pytest.approx(len(said.samples) / 24_000 - 0.02, abs=0.01)
    for word in said.words:
        inside = said.samples[round(word.start * 24_000) : round(word.end * 24_000)]
        assert np.sqrt((inside**2).mean()) > 0.01


@pytest.mark.needs("hibari", "flite")
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("answer", "two plus three is five"),
        ("answer", "we close at six in the evening"),
        ("answer", "my name is nora"),
        ("word", "five"),
    ],
)
def test_another_voice_says_the_same_at_the_same_times(kind: str, text: str):
    old = speech.synthesise(text, speech.AGENT_VOICE)

    new = revoice.revoiced(corpus.Utterance(text, kind, speech.AGENT_VOICE, old))

    assert new.text == text and new.speech.words == old.words
    assert len(new.speech.samples) == len(old.samples)
    for word in old.words:
        inside = new.speech.samples[round(word.start * 24_000) : round(word.end * 24_000)]
        assert np.sqrt((inside**2).mean()) > 0.01
