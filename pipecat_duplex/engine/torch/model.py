"""The model with its slots: one step for every conversation whose frame is there."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from moshi.models.compression import MimiModel
from moshi.modules.streaming import StreamingModule

from pipecat_duplex.engine.checkpoint import CODEBOOKS, find_recognizer
from pipecat_duplex.engine.model import (
    NONE_HEARD,
    NONE_KNOWN,
    ChooseWord,
    KnownTokens,
    ModelSummary,
    Parts,
    PhoneCodes,
    SlotOutput,
    StepModel,
)
from pipecat_duplex.engine.pace import Pace
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.engine.torch.checkpoint import Checkpoint, load_checkpoint
from pipecat_duplex.engine.torch.masks import MaskedModules
from pipecat_duplex.engine.torch.prefill import SoloStates
from pipecat_duplex.engine.torch.quantization import Quantization, keep_rings_in
from pipecat_duplex.engine.torch.recognizer import BatchedRecognizer, load_recognizer
from pipecat_duplex.engine.torch.sampling import SlotLMGen
from pipecat_duplex.engine.torch.undo import StateCopy
from pipecat_duplex.session import STEP_SAMPLES, SessionConfig

PASS_SECS = 0.008
"""How long a pass over known steps should take on a CPU; neighbours wait so long."""

LANGUAGE_PASS_STEPS = 128
"""Known steps that the language model reads at once at most, and on a GPU."""

LEAST_LANGUAGE_PASS_STEPS = 16

CODEC_PASS_STEPS = 25
"""The same of the codec."""

LEAST_CODEC_PASS_STEPS = 4

CODEC_LAST_STEPS = 2
"""Known steps that the encoder takes one by one: in a stream of single steps, every other query of
moshi's attention has lost its oldest key already, which a longer pass would not do."""

REBUILD_PASS_STEPS = 16
"""Known steps that the language model reads at once for a conversation that goes on, on a CPU:
14 ms with the embedded model, most of them calls."""


class BatchedModel(StepModel):
    """Codec and language model over ``B`` slots; conversations join and leave between steps.

    Every row of the batch is computed by itself, so neighbours cannot reach each other. What is
    left is rounding: kernels for another ``B`` may differ in the last bit, which turns a near tie
    between tokens once in a very long while (float32), or soon (bfloat16).

    """

    # CUDA graphs are captured at the second run of each part; the first step decodes nothing.
    warm_up_steps = 4

    def __init__(
        self,
        checkpoint: Checkpoint,
        slots: int,
        cpu_threads: int | None = None,
        memory_dtype: torch.dtype | None = None,
        recognizer: BatchedRecognizer | None = None,
    ):
        """Initialize with every slot free.

        Args:
            checkpoint: What to run.
            slots: Number of conversations at a time, ``B``.
            cpu_threads: Threads that share the work of a step, on a CPU. None is torch's setting.
            memory_dtype: Number format of the language model's keys and values; None is the
                model's own.
            recognizer: What hears the user's words beside it, on the same codec.
        """
        self.recognizer = recognizer
        hearing = None if recognizer is None else recognizer.hearing
        self._sound_codebooks = 0 if hearing is None else hearing.codebooks
        self.slots = slots
        self._memory_dtype = memory_dtype or checkpoint.lm.dtype
        self._cpu_threads = cpu_threads
        self.summary: ModelSummary = replace(checkpoint.summary, hearing=hearing)
        self.vocabulary = checkpoint.vocabulary
        self._mimi = checkpoint.mimi
        plain_memory = self._memory_dtype == checkpoint.lm.dtype
        self._lm_gen = SlotLMGen(checkpoint.lm, slots, plain_memory=plain_memory)
        self._device = checkpoint.lm.device
        self._on_gpu = self._device.type == "cuda"
        self._delay_steps = self._lm_gen.max_delay
        self._codec_hops = round(checkpoint.mimi.encoder_frame_rate / checkpoint.mimi.frame_rate)
        self._steps_done = [0] * slots
        self._language_pace = self._make_pace(LEAST_LANGUAGE_PASS_STEPS, LANGUAGE_PASS_STEPS)
        self._encoder_pace = self._make_pace(LEAST_CODEC_PASS_STEPS, CODEC_PASS_STEPS)
        self._decoder_pace = self._make_pace(LEAST_CODEC_PASS_STEPS, CODEC_PASS_STEPS)
        self._allocate_buffers(1 + CODEBOOKS + self._mimi.num_codebooks)
        self._streaming = ExitStack()
        with torch.inference_mode():
            self._start_streaming()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set torch's modes, which belong to a thread. The model is of no use afterwards."""
        if self._cpu_threads is not None:
            torch.set_num_threads(self._cpu_threads)
        # Denormals, which silence is full of, are very slow.
        torch.set_flush_denormal(True)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._free()

    def warm_up(self) -> None:
        """Run a few steps of silence, so that the first conversation does not pay for them."""
        super().warm_up()
        if self.recognizer is not None:
            self.recognizer.warm_up(self.warm_up_steps)

    def join(self, slot: int, config: SessionConfig) -> None:
        """Begin a conversation in a slot. An earlier conversation there is forgotten."""
        self._steps_done[slot] = 0  # the first step resets the state, together with others'
        self._lm_gen.sampler.set_slot(slot, config)

    def encode_parts(self, audio: np.ndarray) -> Parts[np.ndarray]:
        """Encode audio by itself, in no slot, a part at each ``next``."""
        solo = SoloStates(self._mimi, CODEC_PASS_STEPS * self._codec_hops)
        codes: list[np.ndarray] = []
        for pcm in _passes(torch.from_numpy(audio), self._encoder_pace):
            codes.append(self._encode_solo(solo, pcm))
            yield
        return np.concatenate(codes, axis=1)[:CODEBOOKS]

    def prefill(
        self, slot: int, prefix: Prefix, is_alone: Callable[[], bool] = lambda: False
    ) -> Parts[np.ndarray | None]:
        """Let a conversation that has just joined go on from what is known of it."""
        self.keep()
        lm = self._lm_gen.lm_model
        initial = lm._get_initial_token()[0, :, 0].tolist()
        columns = torch.from_numpy(prefix.columns(lm.delays, initial)).to(self._device)
        solo = SoloStates(lm, LANGUAGE_PASS_STEPS)
        for part in _passes(columns[:, :-1].T, self._language_pace):
            with solo.swapped_in(), self._language_pace.part(len(part)):
                lm.forward_text(part.T[None])
            yield
        codec = SoloStates(self._mimi, CODEC_PASS_STEPS * self._codec_hops)
        early, late = np.split(prefix.audio, [max(0, len(prefix.audio) - CODEC_LAST_STEPS)])
        sounds: list[np.ndarray] = []
        for pcm in _passes(torch.from_numpy(early), self._encoder_pace):
            sounds.append(self._encode_solo(codec, pcm))
            yield
        for part in _passes(torch.from_numpy(prefix.heard.T.copy()), self._decoder_pace):
            with codec.swapped_in(), self._decoder_pace.part(len(part)):
                self._mimi.decode(part.T[None].to(self._device))
            yield
        self.keep()
        solo.copy_into(slot)
        codec.copy_into(slot)
        for pcm in late:
            codes = self._encode({slot: pcm}, [other == slot for other in range(self.slots)])
            sounds.append(codes[slot].cpu().numpy())
        self._sample_after(slot, prefix, columns[:, -1])
        if not self._sound_codebooks or not sounds:
            return None
        return np.concatenate(sounds, axis=1)[: self._sound_codebooks]

    def _sample_after(self, slot: int, prefix: Prefix, column: torch.Tensor) -> None:
        """Run the last column of a prefix as a step of its slot, which samples what comes next.

        Args:
            slot: The slot.
            prefix: What is known.
            column: Shape ``(17,)``.
        """
        state = self._lm_gen.get_streaming_state()[""]
        ring = state.cache.shape[2]
        last = torch.from_numpy(prefix.codes[:, -1].astype(np.int64)).to(self._device)
        state.offsets[slot] = prefix.frames
        state.cache[slot, :, prefix.frames % ring] = column
        codes = torch.zeros(self.slots, CODEBOOKS, 1, dtype=torch.long, device=self._device)
        codes[slot, :, 0] = last[1 + CODEBOOKS :]
        self._lm_gen.sampler.draw([slot])
        self._language.run_only([other == slot for other in range(self.slots)])
        self._lm_gen.choose_words_for((), None)
        self._lm_gen.step(codes)
        # The agent's late codebooks of the last frame are known as well.
        delayed = torch.tensor(self._lm_gen.lm_model.delays, device=self._device) > 0
        delayed[1 + CODEBOOKS :] = False
        state.cache[slot, delayed, (prefix.frames + 1) % ring] = last[delayed]
        self._steps_done[slot] = prefix.frames + 1

    def _make_pace(self, least: int, most: int) -> Pace:
        # On a GPU, what the host can measure is not the work, and a long pass is as quick.
        return Pace(most if self._on_gpu else least, most, PASS_SECS)

    def _encode_solo(self, codec: SoloStates, pcm: torch.Tensor) -> np.ndarray:
        """Encode steps, shape ``(steps, STEP_SAMPLES)``, to codes, ``(codebooks, steps)``."""
        with codec.swapped_in(), self._encoder_pace.part(len(pcm)):
            return self._mimi.encode(pcm.reshape(1, 1, -1).to(self._device))[0].cpu().numpy()

    def rebuild(self, slot: int, known: Callable[[], Prefix]) -> Iterator[None]:
        """Let a conversation's language model forget all but what is given, while it goes on."""
        lm = self._lm_gen.lm_model
        initial = lm._get_initial_token()[0, :, 0].tolist()
        at_once = LANGUAGE_PASS_STEPS if self._on_gpu else REBUILD_PASS_STEPS
        solo, done = SoloStates(lm, at_once), 0
        while True:
            columns = known().columns(lm.delays, initial)
            part = torch.from_numpy(columns[:, done : done + at_once]).to(self._device)
            with solo.swapped_in():
                lm.forward_text(part[None])
            if self._on_gpu:
                torch.cuda.synchronize()  # or the next step would wait for it
            done += part.shape[1]
            if done == columns.shape[1]:
                break
            yield
        self.keep()
        solo.copy_into(slot)
        self._move(slot, done)

    def _move(self, slot: int, offset: int) -> None:
        """Let a slot's time be another, with the same tokens before and after it."""
        state = self._lm_gen.get_streaming_state()[""]
        shift = (offset - int(state.offsets[slot])) % state.cache.shape[2]
        state.cache[slot] = state.cache[slot].roll(shift, dims=-1)
        state.offsets[slot] = offset
        self._steps_done[slot] = offset

    def leave(self, slot: int) -> None:
        """End the conversation in a slot."""
        self._lm_gen.sampler.clear_slot(slot)

    def step(
        self,
        frames: Mapping[int, np.ndarray],
        choose_word: ChooseWord | None = None,
        known: KnownTokens = NONE_KNOWN,
        phone_codes: PhoneCodes = NONE_HEARD,
    ) -> dict[int, SlotOutput]:
        """Run one step for the slots that have a frame; the others do not notice."""
        self._save()
        newcomers = [slot for slot in frames if self._steps_done[slot] == 0]
        if newcomers:
            for modules in self._masked_modules():
                modules.reset(newcomers)
        running = [slot in frames for slot in range(self.slots)]
        speaking = [
            runs and done >= self._delay_steps
            for runs, done in zip(running, self._steps_done, strict=True)
        ]
        codes = self._encode(frames, running)
        for slot, code in phone_codes.items():
            codes[slot, 0] = code
        if newcomers:
            # The first frame is in the model's past. As in moshi.server, the codec starts afresh
            # after it, so that the padding at its left is applied to the second one again.
            self._encoder.reset(newcomers)
        self._lm_gen.sampler.draw(frames)
        self._language.run_only(running)
        self._lm_gen.choose_words_for(frames, choose_word)
        given = {slot: torch.from_numpy(each).to(self._device) for slot, each in known.items()}
        for slot, frame in given.items():
            self._put_known(slot, frame, self._steps_done[slot], late=False)
        tokens = self._lm_gen.step(codes)
        assert tokens is not None  # out-of-sync generation always answers
        for slot, frame in given.items():
            self._put_known(slot, frame, self._steps_done[slot] + 1, late=True)
            tokens[slot, :, 0] = frame
        self._bring_to_host(tokens, codes, speaking)
        outputs = {slot: self._output(slot, speaking[slot]) for slot in frames}
        for slot in frames:
            self._steps_done[slot] += 1
        return outputs

    def _put_known(self, slot: int, frame: torch.Tensor, place: int, *, late: bool) -> None:
        """Put the late streams of a known frame, or the others, into a slot's last tokens."""
        cache = self._lm_gen.get_streaming_state()[""].cache
        delays = torch.tensor(self._lm_gen.lm_model.delays[: len(frame)], device=self._device)
        streams = torch.nonzero((delays > 0) == late)[:, 0]
        cache[slot, streams, place % cache.shape[2]] = frame[streams]

    def keep(self) -> None:
        """Make the last step final."""
        self._saved_steps = None

    def undo(self) -> None:
        """Bring every slot back to where it was before the last step, failed or not."""
        if self._saved_steps is None:
            return
        self._state_copy.bring_back()
        self._steps_done, masks = self._saved_steps
        for modules, running in zip(self._masked_modules(), masks, strict=True):
            modules.running = running
        self._lm_gen.sampler.put_back()
        self._saved_steps = None

    def _save(self) -> None:
        """Remember what is before a step."""
        self._state_copy.save()
        masks = [modules.running for modules in self._masked_modules()]
        self._saved_steps = (list(self._steps_done), masks)
        self._lm_gen.sampler.begin_step()

    def _masked_modules(self) -> tuple[MaskedModules, ...]:
        return self._encoder, self._language, self._decoder

    def restart(self) -> None:
        """Build the streaming state anew; every conversation is lost."""
        self._streaming.close()
        self._start_streaming()
        for slot in range(self.slots):
            self.leave(slot)

    def _free(self) -> None:
        self._streaming.close()
        if self.recognizer is not None:
            self.recognizer.close()
        self.recognizer = None
        del self._mimi, self._lm_gen, self._encoder, self._language, self._decoder, self._state_copy
        gc.collect()  # modules and their streaming states refer to each other
        if self._on_gpu:
            torch.cuda.empty_cache()

    def _start_streaming(self) -> None:
        self._streaming = ExitStack()
        self._streaming.enter_context(self._mimi.streaming(self.slots))
        self._streaming.enter_context(self._lm_gen.streaming(self.slots))
        lm = self._lm_gen.lm_model
        keep_rings_in(lm.transformer, self._memory_dtype, lm.dtype)
        # The codec's two halves run for different slots: a newcomer is encoded, not decoded.
        encoder, decoder = _codec_halves(self._mimi)
        self._encoder = MaskedModules(encoder, self.slots)
        self._decoder = MaskedModules(decoder, self.slots)
        self._language = MaskedModules([self._lm_gen], self.slots)
        self._state_copy = StateCopy([self._mimi, self._lm_gen, self._lm_gen.lm_model])
        self._saved_steps: tuple[list[int], list[list[bool]]] | None = None
        self._steps_done = [0] * self.slots

    def _allocate_buffers(self, streams: int) -> None:
        """Allocate what goes in and out: PCM and tokens leave in one copy, tokens as bits."""
        packed_width = STEP_SAMPLES + streams
        self._frames_in = torch.zeros(self.slots, 1, STEP_SAMPLES, pin_memory=self._on_gpu)
        self._frames_array = self._frames_in.numpy()
        self._packed = torch.zeros(self.slots, packed_width, device=self._device)
        self._packed_host = (
            torch.zeros(self.slots, packed_width, pin_memory=True) if self._on_gpu else self._packed
        )
        self._pcm_out = self._packed[:, None, :STEP_SAMPLES]
        self._tokens_out = self._packed[:, STEP_SAMPLES:].view(torch.int32)
        self._pcm_array = self._packed_host[:, :STEP_SAMPLES].numpy()
        self._tokens_array = self._packed_host[:, STEP_SAMPLES:].view(torch.int32).numpy()
        # A blocking event lets the thread sleep until the copy is there.
        self._copied = torch.cuda.Event(blocking=True) if self._on_gpu else None

    def _encode(self, frames: Mapping[int, np.ndarray], running: list[bool]) -> torch.Tensor:
        """Encode the frames to user codes, shape ``(B, codebooks, 1)``."""
        for slot, pcm in frames.items():
            self._frames_array[slot, 0] = pcm
        self._encoder.run_only(running)
        return self._mimi.encode(self._frames_in.to(self._device, non_blocking=True))

    def _bring_to_host(
        self, tokens: torch.Tensor, user_codes: torch.Tensor, speaking: list[bool]
    ) -> None:
        """Decode the tokens of the slots that speak, and bring all to the host.

        Args:
            tokens: Monologue and agent, shape ``(B, 1 + codebooks, 1)``.
            user_codes: Shape ``(B, codebooks, 1)``, with those that only a recogniser hears.
            speaking: Slots that the acoustic delay has passed in.
        """
        if any(speaking):
            self._decoder.run_only(speaking)
            # Slots that do not speak hold no valid tokens; their rows are computed and dropped.
            pcm = self._mimi.decode(tokens[:, 1:].clamp(min=0))
            torch.clamp(pcm, -1, 1, out=self._pcm_out)
        self._tokens_out.copy_(torch.cat([tokens, user_codes], dim=1)[:, :, 0])
        if self._copied is not None:
            self._packed_host.copy_(self._packed, non_blocking=True)
            self._copied.record()
            self._copied.synchronize()

    def _output(self, slot: int, speaks: bool) -> SlotOutput:
        everything = self._tokens_array[slot].copy()
        tokens = everything[: 1 + 2 * CODEBOOKS]
        sound = None
        if self._sound_codebooks and self._steps_done[slot]:
            sound = everything[1 + CODEBOOKS :][: self._sound_codebooks]
        if not speaks:
            silence = SlotOutput.silence(tokens[-CODEBOOKS:])
            return silence if sound is None else replace(silence, sound=sound)
        return SlotOutput(tokens, self._pcm_array[slot].copy(), sound)


def _passes(steps: torch.Tensor, pace: Pace) -> Iterator[torch.Tensor]:
    """Split along the first dimension, as far as the pace allows at each moment."""
    done = 0
    while done < len(steps):
        part = steps[done : done + pace.steps]
        done += len(part)
        yield part


def load_model(
    name: str | Path,
    slots: int,
    device: str | None = None,
    cpu_threads: int = 1,
    *,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    hears: str | Path | None = None,
) -> BatchedModel:
    """Load a checkpoint and give it slots.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.
        slots: Number of conversations at a time.
        device: In torch's words. None is CUDA if there is a GPU, else the CPU.
        cpu_threads: Threads that share the work of a step, on a CPU.
        dtype: Number format of the language model, ``float32`` or ``bfloat16``.
        quantization: How to keep the weights of its linear layers, if not in full.
        hears: A recogniser to load beside it: a local folder, or a name on the hub.

    Raises:
        CheckpointError: A checkpoint cannot be found or loaded, or the two do not fit together.
    """
    # Before the model, which may take a minute.
    ears = None if hears is None else find_recognizer(hears)
    with torch.inference_mode():
        loaded = load_checkpoint(name, device, dtype=dtype, quantization=quantization)
        recognizer = None
        if ears is not None:
            number_format = getattr(torch, loaded.summary.dtype)
            recognizer = load_recognizer(ears, loaded.mimi, slots, number_format)
        return BatchedModel(loaded, slots, cpu_threads, recognizer=recognizer)


def _codec_halves(mimi: MimiModel) -> tuple[list[StreamingModule], list[StreamingModule]]:
    """Split the codec's outermost streaming modules into those that encode and that decode."""
    halves: tuple[list[StreamingModule], list[StreamingModule]] = ([], [])
    names = (
        ("encoder", "encoder_transformer", "downsample"),
        ("decoder", "decoder_transformer", "upsample"),
    )
    for half, children in zip(halves, names, strict=True):
        for child in children:
            half.extend(_outermost_streaming(getattr(mimi, child, None)))
    return halves


def _outermost_streaming(module: torch.nn.Module | None) -> list[StreamingModule]:
    if module is None:
        return []
    if isinstance(module, StreamingModule):
        return [module]
    return [found for child in module.children() for found in _outermost_streaming(child)]
