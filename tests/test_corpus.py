"""The speech corpus of the training."""

import sys
from pathlib import Path

import pytest

from training import corpus, speech


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
