"""Pieces to words."""

from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex.conversation.monologue import Monologue


def words(pieces: list[str | None]) -> list[tuple[str, int, int]]:
    monologue = Monologue()
    out = [monologue.feed(index, piece) for index, piece in enumerate(pieces)]
    out.append(monologue.end_utterance())
    return [(word.text, word.first_step, word.last_step) for word in out if word]


def test_padding_completes_a_word():
    monologue = Monologue()
    assert monologue.feed(0, "▁Hel") is None
    assert monologue.feed(1, "lo") is None
    word = monologue.feed(2, None)
    assert word is not None and (word.text, word.first_step, word.last_step) == ("Hello", 0, 1)


def test_the_next_word_completes_a_word():
    assert words(["▁two", "▁plus", None, "▁three"]) == [
        ("two", 0, 0),
        (" plus", 1, 1),
        (" three", 3, 3),
    ]


def test_bytes_are_joined():
    assert words(["▁", "<0xE2>", "<0x82>", "<0xAC>", "5", None]) == [("€5", 0, 4)]


def test_broken_bytes_are_marked():
    assert words(["▁a", "<0xE2>", None]) == [("a�", 0, 1)]


def test_a_lone_word_start_is_no_word():
    assert words(["▁", None, None]) == []


def test_a_new_utterance_has_no_leading_space():
    monologue = Monologue()
    monologue.feed(0, "▁one")
    assert monologue.end_utterance().text == "one"
    assert monologue.utterance == "one"
    monologue.feed(1, "▁two")
    monologue.begin_utterance()
    assert monologue.feed(2, None).text == "two"
    assert monologue.utterance == "two"


def test_an_utterance_without_words_has_no_text():
    monologue = Monologue()
    monologue.feed(0, "▁one")
    monologue.end_utterance()
    monologue.begin_utterance()
    assert monologue.end_utterance() is None
    assert monologue.utterance == ""


text = st.text(st.characters(codec="utf-8", exclude_characters="▁ "), min_size=1, max_size=6)


@given(st.lists(st.tuples(text, st.integers(0, 3), st.booleans()), max_size=20))
def test_any_words_come_out_as_they_went_in(items):
    """Whole words, pieces or bytes, with any padding between them: the same text."""
    pieces: list[str | None] = []
    for word, padding, as_bytes in items:
        if as_bytes:
            pieces += ["▁", *(f"<0x{byte:02X}>" for byte in word.encode())]
        else:
            pieces += [f"▁{word[0]}", *word[1:]]
        pieces += [None] * padding
    monologue = Monologue()
    out = [monologue.feed(index, piece) for index, piece in enumerate(pieces)]
    out.append(monologue.end_utterance())
    assert "".join(word.text for word in out if word) == " ".join(word for word, *_ in items)


def test_a_word_that_began_in_the_next_utterances_first_step_belongs_to_it():
    monologue = Monologue()
    monologue.begin_utterance()
    monologue.feed(0, "▁and")
    word = monologue.feed(3, "▁okay")
    assert word is not None and word.text == "and"
    assert monologue.end_utterance(3) is None and monologue.utterance == "and"
    monologue.begin_utterance()
    word = monologue.feed(4, None)
    assert word is not None and (word.text, word.first_step) == ("okay", 3)
    assert monologue.utterance == "okay"
