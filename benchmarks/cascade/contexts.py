"""Whether a context is what was said and heard, in the right order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cascade.librarian import plain
from benchmarks.cascade.stage import INTERRUPTED, Call
from benchmarks.duplex.dialogue import SOUND_LEVEL
from benchmarks.duplex.figures import utterances
from pipecat_duplex.session import SAMPLE_RATE_HZ

WORD_LEAD_SECS = 0.25
"""A word of the monologue may come this much before its sound."""

_UNHEARD = re.compile(r"\[not heard: ([^\]]*)\]")
_SOUND_SECS = 0.8
_CUT_SECS = 0.8


@dataclass(frozen=True)
class _Heard:
    """A word of the agent's.

    Attributes:
        text: Plain.
        at_secs: When it began.
        since_secs: When its utterance began.
    """

    text: str
    at_secs: float
    since_secs: float


def faults(call: Call) -> list[str]:
    """Return what is wrong with a context, in words; empty if it is right.

    - The agent's messages are the words that were heard, each once and in their order; what is
      marked as not heard is no fault, nor is a missing word at which the agent was cut off.
    - Each message of the user's is made of transcripts, each transcript of a turn is in one.
    - It stands after what the agent had begun to say before the voice, and before the rest.

    Args:
        call: A conversation with the duplex service in front of an LLM.
    """
    heard, fault = _in_context(call)
    return [fault] if fault else _faults_of_order(call, heard)


def messages_of(call: Call, *kinds: str) -> int:
    """Count what became a message, or a part of one, and should not have.

    Args:
        call: A conversation with the duplex service in front of an LLM.
        *kinds: Of moments, such as ``backchannel`` or ``sound``.
    """
    turns = [(start, end) for _, start, end, kind in call.transcripts if kind == "turn"]
    return sum(
        any(start < moment.end_secs and moment.start_secs < end for start, end in turns)
        for moment in call.dialogue.moments
        if moment.kind in kinds
    )


def _in_context(call: Call) -> tuple[list[_Heard], str]:
    """Return the words of the agent's that the context holds, and what is wrong with them."""
    told = " ".join(text for role, text in _messages(call) if role == "assistant")
    context = plain(_UNHEARD.sub(r"\1", told)).split()
    unheard = set(plain(" ".join(_UNHEARD.findall(told))).split())
    found: list[_Heard] = []
    heard = _heard(call)
    for index, word in enumerate(heard):
        left = context[len(found) :]
        if left and word.text == left[0]:
            found.append(word)
            if word.text not in unheard and not _sounds(call, word.at_secs):
                return found, f'"{word.text}" at {word.at_secs:.1f} s has no sound'
        elif not _is_cut(call, word):
            out_loud = " ".join(each.text for each in heard[index : index + 6])
            where = f'at {word.at_secs:.1f} s the context goes on with "{" ".join(left[:6])}"'
            return found, f'{where}, what was heard with "{out_loud}"'
    left = context[len(found) :]
    return found, f'nobody heard "{" ".join(left[:6])}"' if left else ""


def _is_cut(call: Call, word: _Heard) -> bool:
    """Whether the agent gave up before the word was out: then it may be missing."""
    gaps = (n.at_secs - word.at_secs for n in call.notes if n.what == INTERRUPTED)
    return any(-_CUT_SECS <= gap <= _CUT_SECS for gap in gaps)


def _faults_of_order(call: Call, heard: Sequence[_Heard]) -> list[str]:
    found = []
    left = [item for item in call.transcripts if item[3] == "turn"]
    before = 0
    for role, text in _messages(call):
        if role == "assistant":
            before += len(plain(_UNHEARD.sub(r"\1", text)).split())
            continue
        own, left = _parts(text, left)
        if not own:
            found.append(f'nobody said "{text}"')
            continue
        start_secs, end_secs = _voice(call, own[-1])
        late = [w for w in heard[:before] if w.since_secs >= max(start_secs, end_secs - 0.3)]
        soon = [w for w in heard[before:] if w.at_secs < start_secs - WORD_LEAD_SECS]
        if late:
            found.append(f'"{text}" stands after "{late[0].text}", which came later')
        if soon:
            found.append(f'"{text}" stands before "{soon[0].text}", which came earlier')
    found += [f'"{text}" is in no message' for text, *_ in left]
    return found


def _parts(text: str, left: list) -> tuple[list, list]:
    """Return the transcripts that make a message, and those that are left."""
    rest, own, others = plain(text), [], []
    for item in left:
        words = plain(item[0])
        if words and rest.startswith(words):
            rest = rest[len(words) :].strip()
            own.append(item)
        else:
            others.append(item)
    return ([] if rest else own), ([*own, *others] if rest else others)


def _voice(call: Call, transcript: tuple[str, float, float, str]) -> tuple[float, float]:
    """Return when the user really spoke, by the script, and not by the service's own account."""
    _, start_secs, end_secs, _ = transcript
    moments = [m for m in call.dialogue.moments if m.text]
    overlaps = [min(end_secs, m.end_secs) - max(start_secs, m.start_secs) for m in moments]
    if not overlaps or max(overlaps) <= 0:
        return start_secs, end_secs
    moment = moments[int(np.argmax(overlaps))]
    return moment.start_secs, moment.end_secs


def _messages(call: Call) -> list[tuple[str, str]]:
    return [
        (message["role"], message["content"])
        for message in call.messages
        if message.get("role") in ("user", "assistant")
        and isinstance(message.get("content"), str)
        and message["content"].strip()
    ]


def _heard(call: Call) -> list[_Heard]:
    spoken = utterances(call.dialogue.agent_pcm)
    found = []
    for at_secs, text in call.dialogue.words:
        begins = [i.start_secs for i in spoken if i.start_secs <= at_secs + WORD_LEAD_SECS]
        since_secs = begins[-1] if begins else at_secs
        found += [_Heard(word, at_secs, since_secs) for word in plain(text).split()]
    return found


def _sounds(call: Call, at_secs: float) -> bool:
    first, last = (round(secs * SAMPLE_RATE_HZ) for secs in (at_secs, at_secs + _SOUND_SECS))
    pcm = call.dialogue.agent_pcm
    # What comes after the user has gone is not recorded.
    return last > len(pcm) or float(np.abs(pcm[first:last]).max()) > SOUND_LEVEL
