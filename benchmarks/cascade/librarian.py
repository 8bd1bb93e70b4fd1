"""What the LLM answers: it knows the embedded model's world, and looks for the nearest question.

Both sides of the benchmark ask it, and neither can gain by it: it knows the same, takes the same
time, and reads what Whisper wrote.
"""

import difflib
import re
from functools import cache

from training import world

FIRST_SECS = 0.3
TOKENS_PER_SEC = 30.0
STORY = (
    "Once there was a small cat who wanted to see the sea. She walked for three days, "
    "and at last she saw the water. Then she went home and slept."
)
_LEAST_RATIO = 0.8
_SPOKEN = {"+": "plus", "&": "and"}


def answer_to(messages: list[dict]) -> str:
    """Answer what the user has said since the last answer.

    Args:
        messages: Of the request, as OpenAI's protocol has them.
    """
    asked: list[str] = []
    for message in reversed(messages):
        if message.get("role") == "assistant":
            break
        if message.get("role") == "user":
            asked.insert(0, _text(message.get("content")))
    return written(_answer(plain(" ".join(asked))))


def written(answer: str) -> str:
    """Return an answer as an LLM writes it, with its punctuation."""
    if answer == world.STORY:
        return STORY
    return f"{answer[:1].upper()}{answer[1:]}."


def plain(text: str) -> str:
    """Return the words alone: lower case, numbers as words, no punctuation."""
    for mark, word in _SPOKEN.items():
        text = text.replace(mark, f" {word} ")
    text = re.sub(r"\d+", _number, text.lower())
    return " ".join(re.findall(r"[a-z]+", text.replace("'", "").replace("’", "")))


def _number(found: re.Match) -> str:
    value = int(found[0])
    return f" {world.NUMBERS[value]} " if value < len(world.NUMBERS) else f" {value} "


def _text(content: str | list | None) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)
    return content or ""


@cache
def _answer(asked: str) -> str:
    """Return the answer to the nearest question; what was asked last may be enough."""
    words = asked.split()
    best_ratio, best = 0.0, world.UNKNOWN
    for question, answer in _questions().items():
        size = len(question.split())
        for heard in {asked, " ".join(words[-size:])}:
            matcher = difflib.SequenceMatcher(None, heard, question, autojunk=False)
            if matcher.quick_ratio() > best_ratio and (ratio := matcher.ratio()) > best_ratio:
                best_ratio, best = ratio, answer
    return best if best_ratio >= _LEAST_RATIO else world.UNKNOWN


@cache
def _questions() -> dict[str, str]:
    return {exchange.words: exchange.answer for exchange in world.exchanges()}
