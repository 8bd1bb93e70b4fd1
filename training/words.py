"""The agent's words one by one, for sentences that it is told to say.

It hears of such a sentence word by word, so it cannot plan how to say it. What it can say well is a
word that always sounds the same and always begins on a step: then the word's codes are always the
same too, there is nothing to learn but them, and any sentence is a row of them.

A word is cut from between two hesitations, where it is as short as inside a sentence, and spoken at
the speed at which it lasts whole steps.
"""

import numpy as np

from training.sizes import SAMPLE_RATE, STEP_SAMPLES, STEP_SECONDS
from training.speech import AGENT_VOICE, Span, Speech, synthesise, within

SHORTEST_STEPS = 2
_CARRIER = "um {} um"
_OTHER_CARRIERS = {"a": "{}", "are": "{}", "door": "one {} two"}  # not understood in that one
_TRIES = 4
_FADE_IN = round(0.006 * SAMPLE_RATE)  # so that words join without a click
_FADE_OUT = round(0.025 * SAMPLE_RATE)  # and nothing of the carrier's next word is heard


def speak_word(word: str) -> Speech:
    """The word in the agent's voice, ``(steps * 1920,)`` samples long."""
    carrier = _OTHER_CARRIERS.get(word, _CARRIER)
    place = carrier.split().index("{}")
    rate, steps, takes = 1.0, 0, []
    for _ in range(_TRIES):
        take = synthesise(carrier.format(word), AGENT_VOICE, rate)
        seconds = take.words[place].end - take.words[place].start
        steps = steps or max(SHORTEST_STEPS, round(seconds / STEP_SECONDS))
        takes.append((abs(seconds - steps * STEP_SECONDS), take))
        rate *= seconds / (steps * STEP_SECONDS)
    _, nearest = min(takes, key=lambda item: item[0])
    return _cut(nearest, nearest.words[place], steps)


def _cut(take: Speech, own: Span, steps: int) -> Speech:
    """The word alone."""
    start, length = round(own.start * SAMPLE_RATE), steps * STEP_SAMPLES
    samples = np.pad(take.samples, (0, length))[start : start + length]
    samples[:_FADE_IN] *= np.linspace(0, 1, _FADE_IN, dtype=np.float32)
    samples[-_FADE_OUT:] *= np.linspace(1, 0, _FADE_OUT, dtype=np.float32)
    phones = within(take.phones, own.start, own.end)
    return Speech(samples, phones, (Span(own.label, 0.0, steps * STEP_SECONDS),))


def join(words: list[Speech]) -> Speech:
    """A sentence of such words."""
    lengths = [len(word.samples) / SAMPLE_RATE for word in words]
    starts = np.cumsum([0.0, *lengths[:-1]]).tolist()

    def moved(spans: tuple[Span, ...], start: float) -> list[Span]:
        return [Span(span.label, span.start + start, span.end + start) for span in spans]

    pairs = list(zip(words, starts, strict=True))
    return Speech(
        np.concatenate([word.samples for word in words]),
        tuple(span for word, start in pairs for span in moved(word.phones, start)),
        tuple(span for word, start in pairs for span in moved(word.words, start)),
    )
