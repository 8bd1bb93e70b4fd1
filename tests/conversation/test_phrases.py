"""Words of any script, as they are compared."""

import unicodedata

import pytest

from pipecat_duplex.conversation.phrases import has_spaces, words_of


@pytest.mark.parametrize(
    "text, words",
    [
        ("Secret  CODE!", ["secret", "code"]),
        ("don't", ["don", "t"]),
        ("Straße", ["strasse"]),
        ("ＡＢＣ 12", ["abc", "12"]),
        ("我的密码是", list("我的密码是")),
        ("暗証番号は、", list("暗証番号は")),
        ("ｱﾝｼｮｳ", list("アンショウ")),
        ("我的code是", ["我", "的", "code", "是"]),
        ("गुप्त कोड", ["गुप्त", "कोड"]),
        ("비밀 코드", ["비밀", "코드"]),
        ("секретный код", ["секретный", "код"]),
        ("", []),
        ("…!", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == [unicodedata.normalize("NFKC", word) for word in words]


def test_thai_and_khmer_have_no_spaces():
    for text in ("รหัสลับ", "លេខសម្ងាត់", "ရန်ကုန်"):
        assert "".join(words_of(text)) == text
        assert not any(map(has_spaces, words_of(text)))
    assert has_spaces("code") and has_spaces("код")
