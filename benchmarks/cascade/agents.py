"""The three agents: Pipecat's usual cascade, the duplex service with an LLM, the model alone."""

from dataclasses import dataclass, field
from pathlib import Path

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.llm import OpenAILLMService

from benchmarks.cascade.parts import VOICE, voice_folder
from pipecat_duplex import DuplexLLMService
from pipecat_duplex.commands.converse.pacing import WatchedBackend
from pipecat_duplex.commands.talk.llm import off_the_loop
from pipecat_duplex.service.user_turns import DuplexUserTurnStrategies
from pipecat_duplex.session import DuplexBackend

CASCADE, GIVEN, OWN = "cascade", "given", "own"
TITLES = {
    CASCADE: "cascade",
    GIVEN: "duplex, words of the LLM",
    OWN: "duplex, its own words",
}
INSTRUCTION = "Answer in one short sentence."


@dataclass(frozen=True)
class Shared:
    """What the agents of a run have in common.

    Parameters:
        llm_url: The LLM.
        whisper: Whisper's folder.
        backend: Where duplex sessions come from.
    """

    llm_url: str
    whisper: Path
    backend: DuplexBackend


@dataclass
class Agent:
    """The processors of one call, without the transport.

    Parameters:
        before: From the microphone to the loudspeaker.
        after: Behind the loudspeaker.
        context: What the LLM reads.
        service: The duplex service, if there is one.
        watched: Its backend, which knows how late each step was.
        transcripts: What ``on_user_transcript`` told: text, start and end in seconds, kind.
        said: What ``on_said`` told: text that was said, text that was not.
    """

    before: list[FrameProcessor]
    after: list[FrameProcessor]
    context: LLMContext
    service: DuplexLLMService | None = None
    watched: WatchedBackend | None = None
    transcripts: list[tuple[str, float, float, str]] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)


def make_agent(kind: str, shared: Shared, seed: int) -> Agent:
    """Load the parts of an agent: this takes seconds, and is done before anybody speaks.

    Args:
        kind: ``cascade``, ``given`` or ``own``.
        shared: What all have in common.
        seed: Of the duplex model's sampling.
    """
    if kind == CASCADE:
        return make_cascade(shared)
    return make_duplex(shared, seed, words=kind)


def make_cascade(shared: Shared) -> Agent:
    """Return Silero, smart-turn, Whisper, the LLM and Piper, all as Pipecat sets them."""
    from pipecat.services.piper.tts import PiperTTSService

    context = LLMContext()
    # Without strategies, the aggregator takes Pipecat's default: the voice detector opens a turn
    # and interrupts, smart-turn v3.2 ends it.
    params = LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    user, assistant = LLMContextAggregatorPair(context, user_params=params)
    tts = PiperTTSService(
        download_dir=voice_folder(), settings=PiperTTSService.Settings(voice=VOICE)
    )
    return Agent([make_stt(shared), user, make_llm(shared), tts], [assistant], context)


def make_duplex(
    shared: Shared, seed: int, words: str, context: LLMContext | None = None, **settings
) -> Agent:
    """Return the duplex service, with the same Whisper and the same LLM if they give the words.

    Args:
        shared: What all have in common.
        seed: Of the model's sampling.
        words: ``given`` or ``own``.
        context: What the LLM reads; an empty one by default.
        **settings: Further ones of the service.
    """
    context = context or LLMContext()
    params = LLMUserAggregatorParams(user_turn_strategies=DuplexUserTurnStrategies())
    user, assistant = LLMContextAggregatorPair(context, user_params=params)
    watched = WatchedBackend(shared.backend)
    service = DuplexLLMService(
        backend=watched,
        reopen_secs=0,
        settings=DuplexLLMService.Settings(seed=seed, words=words, **settings),
    )
    before = [user, service]
    if words == GIVEN:
        before = [make_stt(shared), user, make_llm(shared), service]
    agent = Agent(before, [assistant], context, service, watched)

    @service.event_handler("on_user_transcript")
    async def on_user_transcript(_, text, start_secs, end_secs, kind):
        agent.transcripts.append((text, start_secs, end_secs, kind))

    @service.event_handler("on_said")
    async def on_said(_, said):
        agent.said.append((said.spoken, said.unspoken))

    return agent


def make_stt(shared: Shared) -> FrameProcessor:
    """Return Whisper base in int8."""
    from pipecat.services.whisper.stt import WhisperSTTService

    settings = WhisperSTTService.Settings(model=str(shared.whisper))
    return off_the_loop(WhisperSTTService(device="cpu", compute_type="int8", settings=settings))


def make_llm(shared: Shared) -> OpenAILLMService:
    """Return Pipecat's OpenAI service on the loopback server."""
    settings = OpenAILLMService.Settings(model="loopback", system_instruction=INSTRUCTION)
    return OpenAILLMService(api_key="none", base_url=shared.llm_url, settings=settings)
