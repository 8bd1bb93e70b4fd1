"""The engine: a model in this process that serves many conversations at once."""

import asyncio
from pathlib import Path
from typing import Any, ClassVar, Literal

from loguru import logger

from pipecat_duplex.engine.barge_in import BargeInNetwork
from pipecat_duplex.engine.checkpoint import find_folder, has_graphs, split_hub_name
from pipecat_duplex.engine.long_calls import LONG_CALLS, Limits, LongCalls
from pipecat_duplex.engine.loop import StepLoop
from pipecat_duplex.engine.machine import count_cores
from pipecat_duplex.engine.model import Loaded, ModelSummary, StepModel
from pipecat_duplex.engine.persona import Persona, Voices, read_persona
from pipecat_duplex.engine.phones import PhoneHearing
from pipecat_duplex.engine.session import EngineSession
from pipecat_duplex.engine.share import LoopShare
from pipecat_duplex.engine.stats import WINDOW_STEPS, EngineStats
from pipecat_duplex.engine.voice import AUTO, TTS, Voice, load_tts
from pipecat_duplex.session import (
    STEP_SECS,
    AtCapacity,
    BackendHealth,
    CannotSay,
    DuplexBackend,
    DuplexError,
    InvalidPrompt,
    SessionConfig,
)

GATHER_MS = 5.0
"""Default wait for neighbours to share a step, if there are any."""


Runtime = Literal["onnx", "torch"]
"""What runs the model."""

Quantization = Literal["int8", "int4"]
"""How weights are kept on torch: in one byte each, or in half a byte."""

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "int4")

EXPERIMENTAL: tuple[Quantization, ...] = ("int4",)
"""Ways with which the embedded model conversed worse than in full precision, by two points or more
in a share of ``benchmarks.duplex``; ``docs/gpu.md`` has the figures."""


class Engine(DuplexBackend):
    """A model with ``B`` slots, stepped by a thread of its own.

    Weights are read once a step for all conversations. A conversation produces the same tokens
    alone or beside others. A conversation may outlast the model's context window; the model then
    forgets its oldest steps one by one, or is rebuilt (``long_calls``), at a moment that depends on
    how busy the machine is.

    Example::

        engine = await Engine.load("embedded", slots=4)
        session = await engine.open(SessionConfig(seed=1))
    """

    _shared: ClassVar[dict[tuple, "asyncio.Future[Engine]"]] = {}

    def __init__(
        self,
        step_loop: StepLoop,
        loaded: Loaded,
        slots: int,
        voices: Voices,
        long_calls: LongCalls = "ring",
        suppress_echo: bool = True,
        voice: Voice | None = None,
    ):
        """Initialize around a running loop; use :meth:`load`."""
        self._voice = voice
        self._long_calls: LongCalls = long_calls
        self._suppress_echo = suppress_echo
        self._step_loop = step_loop
        self._loaded = loaded
        self._voices = voices
        self._summary = loaded.summary
        self._slots = slots
        self._closed = False
        self._share = LoopShare()

    @classmethod
    async def load(
        cls,
        checkpoint: str | Path = "embedded",
        *,
        slots: int = 1,
        runtime: Runtime | None = None,
        device: str | None = None,
        gather_ms: float | None = None,
        cpu_threads: int | None = None,
        voices: str | Path | None = None,
        dtype: str | None = None,
        quantize: Quantization | None = None,
        long_calls: LongCalls = "ring",
        suppress_echo: bool = True,
        hear_barge_ins: bool = True,
        tts: str | TTS = AUTO,
        hears: str | Path | None = None,
    ) -> "Engine":
        """Load a checkpoint, without holding up the asyncio loop.

        Args:
            checkpoint: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.
            slots: Conversations at a time. Each slot costs memory, in use or not.
            runtime: ``onnx`` or ``torch``. None is ONNX Runtime, which is always installed, if the
                checkpoint brings graphs for it and nothing but the CPU is asked for; else torch,
                which needs the extra ``moshi``.
            device: In torch's words. None is the CPU on ONNX Runtime; on torch it is CUDA if there
                is a GPU, else the CPU.
            gather_ms: How long a step may wait for frames of other conversations. None is 0 with
                one slot, else :data:`GATHER_MS`.
            cpu_threads: Threads that share the work of a step, on a CPU. On ONNX Runtime each one
                takes whole conversations; None is one for each core that the process may use, as
                its affinity and its container's quota say. torch shares out every single operation,
                so more than one gains little with a small model on a quiet machine, and on a busy
                one they wait for each other: up to 40 times as long was measured. None is 1. torch
                hands this number on to threads that the process starts later.
            voices: A folder of recordings that :attr:`SessionConfig.voice_prompt` may name, by the
                name of the file without its ending.
            dtype: Number format of the language model on torch, ``float32`` or ``bfloat16``. None
                is bfloat16 on CUDA and float32 on the CPU.
            quantize: Keeps the language model's weights in fewer bits, on torch: ``int8``, or
                ``int4``, which is experimental. ``docs/gpu.md`` says what that saves and costs.
            long_calls: What becomes of conversations longer than the model's context. With
                ``ring`` it forgets its oldest steps one by one, and a persona with them. With
                ``rebuild`` it reads the persona and the last steps anew in time, beside the running
                conversation; a persona may then take 40 % of the context.
                ``docs/long-calls.md`` says what that gains and costs.
            suppress_echo: Whether the agent's own voice, where a loudspeaker or a line gives it
                back, is kept from what the model hears. Audio without an echo is never changed.
            hear_barge_ins: Whether a small network of the checkpoint's own (``barge_in.onnx``;
                ``embedded`` has one) tells the agent to yield when the model itself does not, and
                to answer who has said something and waits for 1.6 s.
            tts: Who speaks given words: ``hibari``, or an object of your own, in the model's place,
                with any words; ``own``, the model itself, with the words that it has; or ``auto``,
                which is ``hibari`` for ``embedded``, and ``own`` for all other checkpoints.
                ``docs/llm.md`` says how the model keeps the floor while a TTS speaks.
            hears: A speech-to-text model of Kyutai's, such as ``kyutai/stt-1b-en_fr``, which hears
                the user's words on the model's own codec and tells them in :attr:`Step.heard`.
                Needs torch, and a model with the same Mimi. ``docs/llm.md`` says more.

        Raises:
            CannotSay: The checkpoint lacks the words that it has to tell while a TTS speaks.
            CheckpointError: A checkpoint cannot be found or loaded, or the two do not fit together.
            DuplexError: There is no such folder of voices.
            MissingExtra: The checkpoint needs torch, which is not there.
            ValueError: ``slots`` or ``cpu_threads`` is not positive, ``gather_ms`` is negative,
                ONNX Runtime is asked for another device than the CPU or for a recogniser, or there
                is no such TTS or way with long calls.
        """
        if slots < 1 or (cpu_threads is not None and cpu_threads < 1):
            raise ValueError("an engine needs at least one slot and one thread")
        if gather_ms is None:
            gather_ms = GATHER_MS if slots > 1 else 0.0
        if gather_ms < 0:
            raise ValueError(f"gather_ms must not be negative, as {gather_ms} is")

        if quantize not in (None, *QUANTIZATIONS):
            raise ValueError(f"quantize={quantize!r}: there are {', '.join(QUANTIZATIONS)}")
        if long_calls not in LONG_CALLS:
            raise ValueError(f"long_calls={long_calls!r}: there are {', '.join(LONG_CALLS)}")
        if hears is not None:
            if runtime == "onnx":
                raise ValueError(
                    f"hears={str(hears)!r} needs torch: ONNX Runtime runs no recogniser here. "
                    "Leave runtime out, or put a speech-to-text service into the pipeline"
                )
            runtime = "torch"
        if dtype is not None or quantize is not None:
            if runtime == "onnx":
                raise ValueError("dtype and quantize are for torch: a graph has one number format")
            runtime = "torch"
        if runtime == "onnx" and device not in (None, "cpu"):
            raise ValueError(f"ONNX Runtime runs on the CPU here, not on {device!r}")
        found = Voices(Path(voices) if voices is not None else None)
        speaks = tts
        if isinstance(speaks, str):
            speaks = await asyncio.to_thread(load_tts, speaks, checkpoint)

        def load_model() -> StepModel:
            if (runtime or _choose_runtime(checkpoint, device)) == "onnx":
                from pipecat_duplex.engine.onnx import load_model

                return load_model(checkpoint, slots, cpu_threads or count_cores())
            from pipecat_duplex.engine.torch import load_model

            return load_model(
                checkpoint,
                slots,
                device,
                cpu_threads or 1,
                dtype=dtype,
                quantization=quantize,
                hears=hears,
            )

        def load_barge_in() -> BargeInNetwork | None:
            return BargeInNetwork.load(checkpoint, slots) if hear_barge_ins else None

        def load_phones() -> PhoneHearing | None:
            return PhoneHearing.load(checkpoint, slots)

        step_loop = StepLoop(
            load_model, slots, gather_ms / 1000, long_calls, load_barge_in, load_phones
        )
        try:
            loaded = await asyncio.wrap_future(step_loop.start())
        except asyncio.CancelledError:
            step_loop.stop("loading was cancelled")  # the thread is still at it
            raise
        summary = loaded.summary
        try:
            voice = Voice(speaks, loaded.vocabulary) if speaks is not None else None
        except CannotSay:
            step_loop.stop("it cannot speak with a TTS")
            raise
        logger.info(
            f"Engine loaded: {summary.name} ({summary.lm_parameters / 1e6:.0f} M parameters"
            f"{'' if summary.trained else ', random weights'}) on {summary.device} in "
            f"{summary.quantization or summary.dtype} by {summary.runtime}, slots: {slots}"
            f"{_describe_hearing(summary)}"
        )
        if summary.quantization in EXPERIMENTAL:
            logger.warning(
                f"Weights in {summary.quantization} are experimental: the embedded model, kept so, "
                "goes on through fewer backchannels (docs/gpu.md). int8 converses as well as full "
                "precision"
            )
        return cls(step_loop, loaded, slots, found, long_calls, suppress_echo, voice)

    @classmethod
    async def shared(
        cls, checkpoint: str | Path = "embedded", *, slots: int = 1, **options: Any
    ) -> "Engine":
        """Return the one engine of this process for these arguments; the first caller loads it.

        Callers that ask while it loads wait for it. An engine that was closed, or could not be
        loaded, is loaded anew.

        Args:
            checkpoint: As in :meth:`load`.
            slots: Conversations at a time, of all callers together.
            **options: As in :meth:`load`.

        Raises:
            DuplexError: As in :meth:`load`.
        """
        key = (str(checkpoint), slots, *sorted(options.items()))
        loading = cls._shared.get(key)
        if loading is not None and loading.done():
            failed = loading.cancelled() or loading.exception() is not None
            loading = None if failed or loading.result()._closed else loading
        if loading is None:
            loading = asyncio.ensure_future(cls.load(checkpoint, slots=slots, **options))
            cls._shared[key] = loading
        # A caller who gives up does not stop the others' loading.
        return await asyncio.shield(loading)

    @property
    def summary(self) -> ModelSummary:
        """What was loaded."""
        return self._summary

    @property
    def slots(self) -> int:
        """Conversations at a time."""
        return self._slots

    @property
    def free_slots(self) -> int:
        """Conversations that could begin now."""
        if self._closed or self._step_loop.failure is not None:
            return 0
        return self._step_loop.count_free()

    def stats(self, last_steps: int = WINDOW_STEPS) -> EngineStats:
        """Return how the last steps went.

        Args:
            last_steps: How many, at most ``WINDOW_STEPS``.
        """
        return self._step_loop.recorder.snapshot(last_steps)

    def health(self) -> BackendHealth:
        """Return whether conversations are served at this moment, or why not.

        A step that hangs shows in ``lag_secs`` at once, and as ``stuck`` after 1.5 s. Never waits,
        and may be called from any thread.
        """
        if self._closed:
            return BackendHealth(False, "the engine was closed")
        return self._step_loop.health()

    async def open(self, config: SessionConfig) -> EngineSession:
        """Begin a conversation.

        Args:
            config: Sampling, limits and persona. The checkpoint decides fields that are ``None``.

        Raises:
            AtCapacity: No slot is free; raised at once.
            InvalidPrompt: There is no such voice, it cannot be read, or role and voice are longer
                than the model's context.
            DuplexError: The engine is closed or has failed.
        """
        self._check_running()
        sampling = config.sampling(self._summary.sampling)
        config = config.model_copy(update=sampling._asdict())
        if config.voice_prompt:
            self._voices.key(config.voice_prompt)
        session = EngineSession(
            config,
            self._loaded,
            share=self._share,
            wake_engine=self._step_loop.wake,
            leave_slot=self._leave_slot,
            suppress_echo=self._suppress_echo,
            keeps_persona=self._long_calls == "rebuild",
            voice=self._voice,
        )
        if not self._step_loop.take_seat(session):
            self._check_running()
            raise AtCapacity(
                f"all {self._slots} slots of the engine are taken"
                if self._slots > 1
                else "the engine's only slot is taken"
            )
        if config.text_prompt or config.voice_prompt:
            try:
                persona = await self._read_persona(config)
                if config.restores:
                    session.be_late(persona)
                else:
                    await session.prepare(persona)
            except BaseException:
                await session.close()
                raise
        logger.debug(f"Session {session.id} opened, seed {session.config.seed}")
        return session

    async def _read_persona(self, config: SessionConfig) -> Persona:
        """Read a role and a voice in a thread: a file and a long text take their time."""
        vocabulary = self._loaded.vocabulary
        persona = await asyncio.to_thread(read_persona, config, vocabulary, self._voices)
        context = self._summary.context_steps
        if persona.frames > context:
            raise InvalidPrompt(
                f"the persona takes {persona.frames} steps, and the model looks back on {context}: "
                "give it a shorter role or voice"
            )
        longest = Limits.of(context).persona
        if self._long_calls == "rebuild" and persona.frames > longest:
            raise InvalidPrompt(
                f"the persona takes {persona.frames} steps; with long_calls='rebuild' it may take "
                f"{longest}: give it a shorter role or voice"
            )
        return persona

    async def close(self) -> None:
        """End every session and free the model. May be called any number of times."""
        first, self._closed = not self._closed, True
        self._step_loop.stop("the engine was closed")
        await asyncio.to_thread(self._step_loop.join)
        if self._voice is not None:
            self._voice.close()
        if first:
            stats = self.stats()
            logger.info(
                f"Engine closed after {stats.steps} steps, median {stats.compute_ms_p50:.1f} ms"
            )

    def _leave_slot(self, session: EngineSession) -> None:
        self._step_loop.leave_seat(session)
        logger.debug(f"Session {session.id} ended after {session.steps_sent} steps")

    def _check_running(self) -> None:
        if self._closed:
            raise DuplexError("the engine is closed")
        if self._step_loop.failure is not None:
            raise DuplexError(f"the engine has failed: {self._step_loop.failure}")


def _describe_hearing(summary: ModelSummary) -> str:
    hearing = summary.hearing
    if hearing is None:
        return ""
    return (
        f"; the user's words by {hearing.name} ({hearing.parameters / 1e6:.0f} M parameters, "
        f"{hearing.delay_steps * STEP_SECS:.2f} s behind)"
    )


def _choose_runtime(checkpoint: str | Path, device: str | None) -> Runtime:
    """ONNX Runtime for a checkpoint that brings graphs, unless a GPU is asked for.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    if device not in (None, "cpu"):
        return "torch"
    folder = find_folder(checkpoint)
    if folder is None:
        split_hub_name(checkpoint)  # a name that means nothing needs no torch
        return "torch"
    return "onnx" if has_graphs(folder) else "torch"
