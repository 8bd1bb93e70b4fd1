"""What a checkpoint's monologue is made of: from tokens to pieces, and from text to tokens."""

import re
from collections.abc import Callable, Iterator
from typing import Protocol

import sentencepiece

from pipecat_duplex.engine.speech import SpelledWord
from pipecat_duplex.session import TEXT_END_OF_PADDING, TEXT_PADDING, CannotSay
from pipecat_duplex.session.spoken_form import spoken_words

MAX_NAMED = 8
"""Words that a refusal names."""

KEPT_WORDS = 4096
"""Words whose spelling is kept, since most words come again."""

KEPT_CHARS = 32
"""Length of the words that are kept."""

LONGEST_WORD = 2048
"""Longer words, such as paragraphs in scripts without spaces, are spelled in parts."""

LONGEST_NUMBER = 256
"""The same of words that hold digits or symbols, which take ten times as long."""

_COSTLY = re.compile(r"[\x00-@\[-`{-\x7f\d£€×÷°]")


class Vocabulary:
    """The text tokens of a checkpoint.

    A large model's tokenizer spells any text, and the model has learned to speak what it spells. A
    small one may know whole words only: its tokenizer can spell others with letters and bytes, but
    nothing would be understood. Such a checkpoint says so, and what it does not know is refused.
    """

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor, *, words_only: bool):
        """Initialize.

        Args:
            tokenizer: The checkpoint's.
            words_only: Whether the model speaks only words that are one piece, in lower case and
                without punctuation.
        """
        self._tokenizer = tokenizer
        self._words_only = words_only
        self._spelled: dict[str, list[SpelledWord] | None] = {}
        silent = {TEXT_PADDING, TEXT_END_OF_PADDING}
        self._pieces: list[str | None] = [
            None if token in silent or tokenizer.is_control(token) else tokenizer.id_to_piece(token)
            for token in range(tokenizer.vocab_size())
        ]

    def piece(self, token: int) -> str | None:
        """Return the SentencePiece piece of a token; None for padding and control tokens."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else None

    def text(self, tokens: list[int]) -> str:
        """Return the text that tokens spell, without padding and control tokens."""
        return self._tokenizer.decode([each for each in tokens if self.piece(each) is not None])

    def spell(self, text: str) -> tuple[SpelledWord, ...]:
        """Split a text into words and spell each; numbers and symbols are spelled as spoken.

        Raises:
            CannotSay: It holds no words, or some that the model cannot say.
        """
        spelling = Spelling(self, text)
        for _ in spelling.parts():
            pass
        return spelling.all_words()

    def spell_known(self, text: str) -> tuple[tuple[SpelledWord, ...], tuple[str, ...]]:
        """Split a text into words and spell those that the model can say.

        Returns:
            The words, and those of the text that were left out. A number of which the model lacks
            a word is left out whole.
        """
        spelling = Spelling(self, text)
        for _ in spelling.parts():
            pass
        return tuple(spelling.words), tuple(spelling.unsayable)

    def spell_word(self, written: str) -> list[SpelledWord] | None:
        """Spell a word of a text, which may be several; ``None`` if the model cannot say it."""
        if written in self._spelled:
            return self._spelled[written]
        spelled = self._spell(written)
        known = None if any(self._is_unknown(word) for word in spelled) else spelled
        if len(written) <= KEPT_CHARS:
            if len(self._spelled) >= KEPT_WORDS:
                self._spelled.clear()
            self._spelled[written] = known
        return known

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that is not to be said, such as a text prompt."""
        return self._tokenizer.encode(text)  # pyright: ignore[reportReturnType]

    def _spell(self, written: str) -> list[SpelledWord]:
        return [
            SpelledWord(word, tokens)
            for spoken in spoken_words(written)
            for word in self._part_hyphens(spoken)
            if (tokens := self._spell_word(word))
        ]

    def _part_hyphens(self, word: str) -> list[str]:
        """Part a hyphened word that a model of whole words does not know as one."""
        if not self._words_only or not re.search(r"\w[-‐‑]\w", word):
            return [word]
        if len(self._spell_word(word)) == 1:
            return [word]
        return re.split(r"(?<=[-‐‑])(?=\w)", word)

    def _spell_word(self, word: str) -> tuple[int, ...]:
        if self._words_only:
            word = re.sub(r"[^\w]|_", "", word.lower())
        return tuple(self.tokens(word)) if word else ()

    def _is_unknown(self, word: SpelledWord) -> bool:
        if any(self._tokenizer.is_unknown(token) for token in word.tokens):
            return True
        return self._words_only and len(word.tokens) > 1


class SpellsWords(Protocol):
    """Tells how words are said, one by one."""

    def spell_word(self, written: str) -> list[SpelledWord] | None:
        """Spell a word of a text, which may be several; ``None`` if it cannot be said."""
        ...


class VoicedVocabulary:
    """Words for a TTS, which needs no tokens and says nearly all."""

    def __init__(self, lacks: Callable[[str], bool]):
        """Initialize.

        Args:
            lacks: Whether the TTS has no sound for a word.
        """
        self._lacks = lacks

    def spell_word(self, written: str) -> list[SpelledWord] | None:
        """Spell a word of a text, which may be several; ``None`` if it cannot be said."""
        words = [word for word in spoken_words(written) if any(map(str.isalnum, word))]
        if any(map(self._lacks, words)):
            return None
        return [SpelledWord(word, ()) for word in words]


class Spelling:
    """A text that is being spelled, word by word, since a long one takes its time."""

    def __init__(self, vocabulary: SpellsWords, text: str):
        """Initialize with nothing spelled.

        Args:
            vocabulary: Knows how words are said.
            text: Any text.
        """
        self._vocabulary = vocabulary
        self._text = text
        self.words: list[SpelledWord] = []
        self.unsayable: list[str] = []

    def parts(self) -> Iterator[None]:
        """Spell one word after another."""
        for written in _split(self._text):
            spelled = self._vocabulary.spell_word(written)
            if spelled is None:
                self.unsayable.append(written)
            else:
                self.words += spelled
            yield

    def all_words(self) -> tuple[SpelledWord, ...]:
        """Return the words.

        Raises:
            CannotSay: There are no words, or the model cannot say some of them.
        """
        unsayable = list(dict.fromkeys(self.unsayable))
        if unsayable:
            names = ", ".join(repr(word) for word in unsayable[:MAX_NAMED])
            others = len(unsayable) - MAX_NAMED
            more = f" and {others} more" if others > 0 else ""
            text = f"the model does not have the words to say {names}{more}"
            raise CannotSay(text, tuple(unsayable))
        if not self.words:
            raise CannotSay(f"there are no words in {self._text[:200]!r}")
        return tuple(self.words)


def _split(text: str) -> Iterator[str]:
    for word in text.split():
        if len(word) <= LONGEST_NUMBER:
            yield word
            continue
        longest = LONGEST_NUMBER if _COSTLY.search(word) else LONGEST_WORD
        for begin in range(0, len(word), longest):
            yield word[begin : begin + longest]
