"""A function that takes three seconds: a filler meanwhile, a barge-in, and nothing said twice."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pipecat.processors.aggregators.llm_context import LLMContext

from benchmarks.cascade.agents import GIVEN, Agent, Shared, make_duplex
from benchmarks.cascade.contexts import faults
from benchmarks.cascade.librarian import answer_to, plain
from benchmarks.cascade.scenes import PATIENCE_SECS, QUIET_SECS
from benchmarks.cascade.stage import ASKED, DECIDED, WROTE, Call, Note
from benchmarks.duplex.dialogue import Moment
from benchmarks.duplex.figures import Utterance, utterances
from benchmarks.duplex.speech import SEEN, Speaker, voices
from benchmarks.duplex.users import Frames, Plan, Turn, User
from training import world

TOOL_SECS = 3.0
FILLER = "thank you"
"""The embedded model has few words. This one is no answer to a question of the scene."""

FILLER_AFTER_MS = 500
CALM, MEANWHILE, OVER_ANSWER = "calm", "during the call", "over the answer"
SCENES = (CALM, MEANWHILE, OVER_ANSWER)

_GROUP = "tool"
_OWN_SEED = 33_000
_BACKGROUND_SECS = 30.0
_GAP_SECS = 0.5
_LEAD_SECS = 0.4
_INTO_CALL_SECS = 1.8
_INTO_ANSWER_SECS = 1.0
_NAME = "look_up"


def draw_calls(rounds: int, seed: int, cache: Path | None) -> list[Plan]:
    """Draw a short dialogue for each scene.

    Args:
        rounds: How often each scene.
        seed: The same again gives the same.
        cache: Folder that keeps what was synthesised.
    """
    plans, names = [], voices(SEEN, kokoro=False)
    story = world.Exchange("story", "tell me a story", world.STORY)
    sums = [item for item in world.exchanges() if item.kind == "sum"]
    for index in range(rounds * len(SCENES)):
        rng = np.random.default_rng([seed, _OWN_SEED, index])
        speaker = Speaker(names[index % len(names)], rng, cache)
        over = speaker.say(sums[rng.integers(len(sums))])
        scene = SCENES[index % len(SCENES)]
        line = replace(speaker.say(story), kind=scene)
        plans.append(
            Plan(
                speaker.voice,
                _GROUP,
                speaker.background(_BACKGROUND_SECS),
                True,
                (Turn(_GROUP, line, over, 0.5, _INTO_ANSWER_SECS),),
                patience_secs=PATIENCE_SECS + TOOL_SECS,
                quiet_secs=QUIET_SECS,
            )
        )
    return plans


class Caller(User):
    """Asks for what takes a while; in two scenes of three, for something else meanwhile."""

    def _tool(self, turn: Turn) -> Frames:
        moment = yield from self._speak("tool", turn.line)
        if turn.line.kind == MEANWHILE:
            yield from self._silent(_INTO_CALL_SECS)
        else:
            # What is heard before is the filler.
            yield from self._silent(TOOL_SECS)
            yield from self._wait_for_answer(self.now_secs)
        if turn.line.kind == OVER_ANSWER:
            yield from self._silent(turn.into_secs)
        if turn.line.kind != CALM:
            moment.until_secs = self.now_secs
            moment = yield from self._speak("barge_in", turn.over)
            yield from self._wait_for_answer(moment.end_secs)
        for _ in range(2):  # A filler may come first.
            yield from self._silent(2.5)
            yield from self._silent_until_quiet()
        moment.until_secs = self.now_secs


class ToolLibrarian:
    """Answers as the librarian does, but looks stories up, and tells each result once."""

    def __init__(self):
        """Initialize without results."""
        self._told: set[str] = set()

    def __call__(self, messages: list[dict]) -> str | dict:
        """Answer the last message, or a result that is new.

        Args:
            messages: Of the request, as OpenAI's protocol has them.
        """
        at = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=0)
        asked = plain(str(messages[at].get("content")))
        for message in messages:
            # A result may come after the user has asked something else.
            number = message.get("tool_call_id")
            if number and "story" in str(message.get("content")) and number not in self._told:
                self._told.add(number)
                return answer_to([{"role": "user", "content": "tell me a story"}])
        if "story" in asked and "plus" not in asked and "add" not in asked:
            return {"call": _NAME, "arguments": {"what": "story"}}
        return answer_to(messages[at:])


def make_tool_agent(shared: Shared, seed: int) -> Agent:
    """Return the duplex service with a function that takes three seconds.

    Args:
        shared: What all agents have in common.
        seed: Of the model's sampling.
    """

    async def look_up(params, what: str):
        """Look something up.

        Args:
            params: The call.
            what: What to look up.
        """
        await asyncio.sleep(TOOL_SECS)
        await params.result_callback({"found": what})

    context = LLMContext(tools=[look_up])
    settings = {"filler": FILLER, "filler_after_ms": FILLER_AFTER_MS}
    return make_duplex(shared, seed, words=GIVEN, context=context, **settings)


@dataclass
class ToolFigures:
    """All calls with a function.

    Attributes:
        filler_secs: From the end of the turn, as the model decided, to the filler's first sound.
        filler_word_secs: The same from the user's last word.
        without_filler: Calls without one.
        yield_secs: From the first sound of a barge-in to the agent's last.
        faults: What was lost, said twice, or is wrong in a context.
        calls: How many.
    """

    filler_secs: list[float] = field(default_factory=list)
    filler_word_secs: list[float] = field(default_factory=list)
    without_filler: int = 0
    yield_secs: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    calls: int = 0


def measure_tools(calls: Sequence[Call]) -> ToolFigures:
    """Measure all calls with a function.

    Args:
        calls: That are over.
    """
    figures = ToolFigures(calls=len(calls))
    for call in calls:
        spoken = utterances(call.dialogue.agent_pcm, gap_secs=_GAP_SECS)
        (asked, *over) = call.dialogue.moments
        _measure_filler(call, asked, spoken, figures)
        for moment in over:
            talking = [i for i in spoken if i.start_secs < moment.start_secs < i.end_secs]
            figures.yield_secs += [i.end_secs - moment.start_secs for i in talking]
        scene = asked.text_kind
        figures.faults += [f"{scene}: {text}" for text in [*faults(call), *lost_or_twice(call)]]
    return figures


def _measure_filler(
    call: Call, asked: Moment, spoken: Sequence[Utterance], figures: ToolFigures
) -> None:
    first = FILLER.split()[0]
    words = [at for at, word in call.dialogue.words if at > asked.end_secs and plain(word) == first]
    sounds = [i.start_secs for i in spoken if words and abs(i.start_secs - words[0]) < _LEAD_SECS]
    decided = [
        note.at_secs
        for note in call.notes
        if note.what == DECIDED and note.at_secs > asked.end_secs - _LEAD_SECS
    ]
    if not sounds or not decided or words[0] > asked.until_secs:
        figures.without_filler += 1
        return
    figures.filler_secs.append(sounds[0] - decided[0])
    figures.filler_word_secs.append(sounds[0] - asked.end_secs)


def lost_or_twice(call: Call) -> list[str]:
    """Return what the LLM wrote and was not said, and what was said twice.

    Args:
        call: With one question that needs the function, and at most one over it.
    """
    heard = plain(" ".join(word for _, word in call.dialogue.words))
    written = [plain(text) for text in _responses(call.notes)]
    found = []
    if written and written[-1] not in heard:
        found.append(f'"{written[-1]}" was not said')
    for text in dict.fromkeys(written):
        # An answer may be cut, so its beginning counts.
        begin = " ".join(text.split()[:4])
        if heard.count(begin) > max(1, written.count(text)):
            found.append(f'"{begin}" was said {heard.count(begin)} times')
    fillers = heard.count(FILLER)
    if fillers > len(call.dialogue.moments):
        found.append(f"the filler was said {fillers} times")
    return found


def _responses(notes: Sequence[Note]) -> list[str]:
    """Return what the LLM wrote each time it was asked."""
    texts: list[str] = []
    for note in notes:
        if note.what == ASKED:
            texts.append("")
        elif note.what == WROTE and texts:
            texts[-1] += note.text
    return [text for text in texts if text.strip()]
