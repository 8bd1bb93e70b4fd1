"""Words as they are compared: in one case, without punctuation, in any script."""

import re
import unicodedata

# Thai, Lao, Tibetan, Burmese, Khmer, kana, bopomofo, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u312f"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text.

    Upper and lower case, the width of characters and punctuation make no difference. In scripts
    that put no spaces between words, each character counts as one, since any could begin a word.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall("".join(char if _counts(char) else " " for char in plain))


def has_spaces(word: str) -> bool:
    """Whether a word of :func:`words_of` is written in a script that puts spaces between words."""
    return re.match(f"[{_UNSPACED}]", word) is None


def _counts(char: str) -> bool:
    """Whether a character is a letter, a number, or a mark such as a vowel sign."""
    return unicodedata.category(char)[0] in "LNM"
