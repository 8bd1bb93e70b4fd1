"""What was heard, in writing: marks stand where words were left out, each word once."""

import pytest

from pipecat_duplex.conversation.captions import Captions
from pipecat_duplex.conversation.monologue import Word

WORDS = "two plus two is five".split()


def write(heard: str) -> Captions:
    """Write the words down; ``+`` was heard, ``-`` was not."""
    captions = Captions()
    captions.begin_utterance()
    written = []
    for i, (text, sign) in enumerate(zip(WORDS, heard, strict=True)):
        word = Word(text if i == 0 else f" {text}", 3 * i, 3 * i)
        written += captions.feed(word, heard=sign == "+")
    written += captions.end_utterance()
    assert captions.text == "".join(caption.text for caption in written)
    assert not captions.end_utterance()
    return captions


@pytest.mark.parametrize(
    "heard, text",
    [
        ("+++++", "two plus two is five"),
        ("++-++", "two plus [not heard: two] is five"),
        ("++--+", "two plus [not heard: two is] five"),
        ("-++++", "[not heard: two] plus two is five"),
        ("+++--", "two plus two [not heard: is five]"),
        ("+-+-+", "two [not heard: plus] two [not heard: is] five"),
        ("-----", "[not heard: two plus two is five]"),
    ],
)
def test_words_that_were_not_heard_are_marked_once(heard, text):
    assert write(heard).text == text


def test_a_mark_knows_its_words_and_where_they_began():
    captions = Captions()
    assert not captions.feed(Word("two", 4, 5), heard=False)
    mark, word = captions.feed(Word(" is", 7, 7), heard=True)
    assert (mark.unheard, mark.first_step) == ("two", 4)
    assert (word.text, word.unheard, word.first_step) == (" is", "", 7)


def test_the_next_utterance_begins_afresh():
    captions = write("+++--")
    captions.begin_utterance()
    assert captions.text == ""
    (word,) = captions.feed(Word("yes", 40, 40), heard=True)
    assert captions.text == word.text == "yes"
