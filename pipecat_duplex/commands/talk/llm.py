"""The LLM that gives the words in ``pipecat-duplex talk --llm``, and who reads the user's."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pipecat.processors.frame_processor import FrameProcessor

from pipecat_duplex.session import MissingExtra

INSTRUCTION = (
    "You talk with somebody. Answer in one or two short sentences, in plain words without lists "
    "or markup."
)


@dataclass(frozen=True)
class TalkLlm:
    """An LLM on an OpenAI-compatible server, and a Whisper model in this process.

    Parameters:
        url: The server, such as ``http://localhost:11434/v1``.
        model: The model's name there.
        stt: A Whisper model's name or folder.
        api_key: The server's key, if it wants one.
    """

    url: str
    model: str
    stt: str = "base"
    api_key: str | None = None

    def check(self) -> None:
        """Check that what it needs is installed.

        Raises:
            MissingExtra: It is not.
        """
        if find_spec("faster_whisper") is None:
            raise MissingExtra(
                "`talk --llm` reads your words with Whisper: pip install faster-whisper"
            )

    def make_llm(self) -> FrameProcessor:
        """Return the LLM of one conversation."""
        from pipecat.services.openai.llm import OpenAILLMService

        settings = OpenAILLMService.Settings(model=self.model, system_instruction=INSTRUCTION)
        return OpenAILLMService(
            base_url=self.url, api_key=self.api_key or "none", settings=settings
        )

    def make_stt(self) -> FrameProcessor:
        """Return the recogniser of one conversation."""
        from pipecat.services.whisper.stt import WhisperSTTService

        settings = WhisperSTTService.Settings(model=self.stt, no_speech_prob=0.6)
        return off_the_loop(WhisperSTTService(compute_type="int8", settings=settings))


class _EagerModel:
    """A Whisper model whose transcript is complete when it is returned."""

    def __init__(self, model: Any):
        self._model = model

    def transcribe(self, *args, **options):
        segments, info = self._model.transcribe(*args, **options)
        return list(segments), info

    def __getattr__(self, name: str):
        return getattr(self._model, name)


def off_the_loop(stt: FrameProcessor) -> FrameProcessor:
    """Let Pipecat's Whisper decode in its thread, and return it.

    Whisper decodes while its segments are read. Pipecat 1.12 reads them on the event loop, which
    stands still meanwhile: the agent's sound comes too late.

    Args:
        stt: Pipecat's ``WhisperSTTService``.
    """
    stt._model = _EagerModel(stt._model)  # pyright: ignore[reportAttributeAccessIssue]
    return stt
