"""The model on ONNX Runtime: one step for every conversation whose frame is there."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipecat_duplex.engine.checkpoint import CODEBOOKS, count_parameters, find_checkpoint
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
from pipecat_duplex.engine.onnx.checkpoint import open_graphs
from pipecat_duplex.engine.onnx.graph import Graph
from pipecat_duplex.engine.onnx.memory import CodecMemory, Ring, TokenRing
from pipecat_duplex.engine.onnx.sampling import Sampler, SlotSampling
from pipecat_duplex.engine.pace import Pace
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import SessionConfig

PASS_SECS = 0.008
"""How long a pass over known columns should take; neighbours wait so long."""

LEAST_COLUMNS = 16
MOST_COLUMNS = 64
"""Known columns that the language model takes in one pass: as many while there are no neighbours,
with half the time in all, but 13 ms a pass."""

REBUILD_COLUMNS = 24
"""Known columns that are read in one pass for a conversation that goes on: 6 ms."""

MIN_ROWS_PER_THREAD = 4
"""Fewer conversations than this are not worth another thread's wake-up."""

Sessions = Mapping[str, onnxruntime.InferenceSession]


class SlotMemory:
    """All that slots remember of their conversations."""

    def __init__(self, sessions: Sessions, config: dict[str, Any], slots: int):
        """Initialize with every slot at its start."""
        self.encoder = CodecMemory(sessions["encoder"], slots)
        self.decoder = CodecMemory(sessions["decoder"], slots)
        self.ring = Ring(sessions["temporal"], slots)
        initial = [config["text_card"], *[config["card"]] * (2 * CODEBOOKS)]
        self.token_ring = TokenRing(slots, config["delays"], np.array(initial))

    @property
    def kv_bytes_per_slot(self) -> int:
        """Attention memory of one conversation."""
        rings = (self.encoder.ring, self.ring, self.decoder.ring)
        return sum(ring.bytes_per_slot for ring in rings)

    def reset(self, slots: np.ndarray) -> None:
        """Put slots back to their start. Rings need no care: what is old is never looked at."""
        self.encoder.reset(slots)
        self.decoder.reset(slots)
        self.token_ring.offsets[slots] = 0


class Lane:
    """A thread that runs a share of a step's conversations, in two halves.

    Every conversation is computed by itself, by kernels that add up in the same order however many
    there are, so neighbours change nothing.
    """

    def __init__(self, sessions: Sessions, memory: SlotMemory, sampler: Sampler, slots: int):
        """Initialize with room for every slot.

        Args:
            sessions: The graphs.
            memory: What slots remember, shared by all lanes.
            sampler: How slots choose, shared by all lanes.
            slots: Number of slots.
        """
        self._sessions = sessions
        self._memory = memory
        self._sampler = sampler
        self._encoder = Graph(sessions["encoder"], slots, memory.encoder.inputs())
        self._temporal = Graph(sessions["temporal"], slots, memory.ring.inputs())
        self._depformer = Graph(sessions["depformer"], slots)
        self._decoder = Graph(sessions["decoder"], slots, memory.decoder.inputs())
        self._decoded = np.zeros(0, np.int64)
        self._begin(np.zeros(0, np.int64))

    def listen(self, frames: Mapping[int, np.ndarray], phone_codes: PhoneCodes) -> dict[int, int]:
        """Take the user's frames in.

        Args:
            frames: By slot, float32, shape ``(STEP_SAMPLES,)``.
            phone_codes: By slot, what the first code is where that is known.

        Returns:
            The text token that was sampled in each slot.
        """
        self._begin(np.array(sorted(frames)))
        slots, positions, recent = self._slots, self._positions, self._memory.token_ring
        self._user_codes = self._encode(frames)
        for row, slot in enumerate(slots.tolist()):
            if slot in phone_codes:
                self._user_codes[row, 0] = phone_codes[slot]
        recent.hear(slots, self._user_codes)

        count = len(slots)
        self._temporal.inputs["tokens"][:count, :, 0] = recent.next_input(slots)
        self._prepare(self._sampler.text, self._temporal)
        self._run(self._temporal, slots, positions)
        tokens = self._temporal.outputs["text_token"][:count]
        return dict(zip(slots.tolist(), tokens.tolist(), strict=True))

    def keep(self) -> None:
        """Let the slots remember the step; until then it can be undone."""
        slots, memory, count = self._slots, self._memory, len(self._slots)
        if not count:
            return
        self._keep_encoded()
        newcomers = slots[self._positions == 0]
        if len(newcomers):
            # The first frame is in the model's past. As in moshi.server, the codec starts afresh
            # after it, so that the padding at its left is applied to the second one again.
            memory.encoder.reset(newcomers)
        memory.ring.write(slots, self._positions, self._temporal.outputs["new_keys_values"][:count])
        self._keep_decoded()
        self._begin(np.zeros(0, np.int64))

    def undo(self) -> None:
        """Forget the step. Taken again, it draws the same random numbers."""
        self._memory.token_ring.offsets[self._slots] = self._positions
        for sampling, graph in self._drawn:
            sampling.put_back(graph, self._slots)
        self._begin(np.zeros(0, np.int64))

    def _begin(self, slots: np.ndarray) -> None:
        self._slots = slots
        self._positions = self._memory.token_ring.offsets[slots]
        self._drawn: list[tuple[SlotSampling, Graph]] = []

    def _prepare(self, sampling: SlotSampling, graph: Graph) -> None:
        sampling.prepare(graph, self._slots)
        self._drawn.append((sampling, graph))

    def read(self, slot: int, columns: np.ndarray) -> None:
        """Let a slot's language model read known columns in one pass; what it chooses is dropped.

        Args:
            slot: The slot.
            columns: What it reads, int64, shape ``(17, T)``; at most as many as its context.
        """
        recent = self._memory.token_ring
        self.read_into(self._memory.ring, slot, int(recent.offsets[slot]), columns)
        recent.skip(slot, columns.shape[1])

    def read_into(self, ring: Ring, slot: int, position: int, columns: np.ndarray) -> None:
        """Let the language model read known columns in one pass, into any ring of its keys.

        Args:
            ring: The ring.
            slot: Its slot.
            position: How many columns were read before.
            columns: As in ``read``.
        """
        slots, positions = np.array([slot]), np.array([position])
        # Arrays of this length are needed once; the keys and values of all slots are shared.
        graph = Graph(self._sessions["temporal"], 1, ring.inputs(), columns.shape[1])
        graph.inputs["tokens"][0] = columns
        SlotSampling(1).prepare(graph, np.zeros(1, np.int64))  # greedy: draws nothing
        self._run(graph, slots, positions)
        ring.write(slots, positions, graph.outputs["new_keys_values"])

    def sample_after(self, slot: int, column: np.ndarray, frame: np.ndarray) -> None:
        """Let a slot's model read the last known column and choose what comes next.

        Args:
            slot: The slot.
            column: What it reads, shape ``(17,)``.
            frame: The last known frame, whose late codebooks are not chosen, shape ``(17,)``.
        """
        self._begin(np.array([slot]))
        slots, positions, recent = self._slots, self._positions, self._memory.token_ring
        self._temporal.inputs["tokens"][:1, :, 0] = column
        self._sampler.text.prepare(self._temporal, slots)
        self._run(self._temporal, slots, positions)
        self._memory.ring.write(slots, positions, self._temporal.outputs["new_keys_values"][:1])
        text = self._depformer.inputs["text_token"]
        text[:1] = self._temporal.outputs["text_token"][:1]
        self._depformer.inputs["hidden"][:1] = self._temporal.outputs["hidden"][:1]
        self._sampler.audio.prepare(self._depformer, slots)
        self._depformer.run(1)
        chosen = np.concatenate([text[:1, None], self._depformer.outputs["codes"][:1]], axis=1)
        delayed = recent.delays[: 1 + CODEBOOKS] > 0
        chosen[0, delayed] = frame[: 1 + CODEBOOKS][delayed]
        recent.hear(slots, frame[None, 1 + CODEBOOKS :])
        recent.say(slots, chosen)
        self._begin(np.zeros(0, np.int64))

    def encode_alone(self, slot: int, pcm: np.ndarray) -> np.ndarray:
        """Encode a step in a slot whose conversation has not begun; shape ``(codebooks,)``."""
        self._begin(np.array([slot]))
        codes = self._encode({slot: pcm})[0].copy()
        self._keep_encoded()
        self._begin(np.zeros(0, np.int64))
        return codes

    def decode_alone(self, slot: int, codes: np.ndarray) -> None:
        """Let a slot's decoder read codes of shape ``(codebooks,)``; the sound is thrown away."""
        self._decode(np.array([slot]), codes[None])
        self._keep_decoded()

    def speak(self, words: Mapping[int, int], known: KnownTokens) -> dict[int, SlotOutput]:
        """Give the agent's answer to the frames of ``listen``.

        Args:
            words: What each slot says, as text tokens.
            known: By slot, the frame that is given out, where it was given out elsewhere.
        """
        slots, recent, count = self._slots, self._memory.token_ring, len(self._slots)
        text = self._depformer.inputs["text_token"]
        text[:count] = [words[slot] for slot in slots.tolist()]
        self._depformer.inputs["hidden"][:count] = self._temporal.outputs["hidden"][:count]
        self._prepare(self._sampler.audio, self._depformer)
        self._depformer.run(count)
        codes = self._depformer.outputs["codes"][:count]
        recent.say(slots, np.concatenate([text[:count, None], codes], axis=1))
        for slot in slots.tolist():
            if slot in known:
                recent.replace(slot, known[slot], late=True)

        spoken = recent.spoken(slots, 1 + CODEBOOKS)
        speaks = recent.offsets[slots] > recent.max_delay
        pcm = self._decode(slots[speaks], spoken[speaks, 1:])
        tokens = np.concatenate([spoken, self._user_codes], axis=1).astype(np.int32)
        outputs: dict[int, SlotOutput] = {}
        heard = iter(pcm)
        for row, slot in enumerate(slots.tolist()):
            outputs[slot] = (
                SlotOutput(tokens[row], next(heard).copy())
                if speaks[row]
                else SlotOutput.silence(self._user_codes[row])
            )
        return outputs

    def _encode(self, frames: Mapping[int, np.ndarray]) -> np.ndarray:
        """Encode the frames to codes, shape ``(m, codebooks)``; nothing is remembered yet."""
        slots, memory, count = self._slots, self._memory.encoder, len(self._slots)
        for row, slot in enumerate(slots.tolist()):
            self._encoder.inputs["audio"][row] = frames[slot]
        self._run(self._encoder, slots, memory.positions[slots])
        return self._encoder.outputs["codes"][:count]

    def _decode(self, slots: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Decode codes of shape ``(m, codebooks)`` to audio of shape ``(m, STEP_SAMPLES)``.

        Nothing is remembered yet.
        """
        memory, count = self._memory.decoder, len(slots)
        self._decoded = slots
        if count:
            self._decoder.inputs["codes"][:count] = codes
            self._run(self._decoder, slots, memory.positions[slots])
        return self._decoder.outputs["audio"][:count]

    def _keep_encoded(self) -> None:
        _write(self._memory.encoder, self._slots, self._encoder)

    def _keep_decoded(self) -> None:
        _write(self._memory.decoder, self._decoded, self._decoder)

    @staticmethod
    def _run(graph: Graph, slots: np.ndarray, positions: np.ndarray) -> None:
        """Run a graph over the stretch of slots that holds the running ones."""
        count, begin, end = len(slots), int(slots[0]), int(slots[-1]) + 1
        graph.inputs["positions"][:count] = positions
        graph.inputs["rows"][:count] = slots - begin
        # Slots in between that do not run are given any conversation, and nothing is kept.
        places = np.searchsorted(slots, np.arange(begin, end))
        graph.inputs["places"][: end - begin] = np.minimum(places, count - 1)
        graph.run(count, begin, end)


def _write(memory: CodecMemory, slots: np.ndarray, graph: Graph) -> None:
    """Let slots remember what a half of the codec gave."""
    count = len(slots)
    if count:
        outputs = graph.outputs
        memory.write(slots, outputs["new_state"][:count], outputs["new_keys_values"][:count])


class OnnxModel(StepModel):
    """Codec and language model over a number of slots, on the CPU.

    What a step costs grows with the conversations that run in it, not with the slots. With several
    threads, each one runs whole conversations.
    """

    warm_up_steps = 3

    def __init__(
        self,
        sessions: Sessions,
        config: dict[str, Any],
        summary: ModelSummary,
        vocabulary: Vocabulary,
        slots: int,
        cpu_threads: int = 1,
    ):
        """Initialize with every slot free; :func:`load_model` does.

        Args:
            sessions: The graphs.
            config: The checkpoint's ``config.json``.
            summary: What was loaded.
            vocabulary: What the monologue is made of.
            slots: Number of conversations at a time.
            cpu_threads: Threads that share the conversations of a step.
        """
        self.slots = slots
        self.summary = summary
        self.vocabulary = vocabulary
        self._sessions = sessions
        self._config = config
        self._cpu_threads = cpu_threads
        self._pace = Pace(LEAST_COLUMNS, MOST_COLUMNS, PASS_SECS)
        self._pool: ThreadPoolExecutor | None = None
        self.restart()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the other threads."""
        others = self._cpu_threads - 1
        if others:
            self._pool = ThreadPoolExecutor(others, "duplex-engine-share")
        try:
            yield
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def join(self, slot: int, config: SessionConfig) -> None:
        """Begin a conversation in a slot. An earlier conversation there is forgotten."""
        self.keep()
        self._memory.reset(np.array([slot]))
        self._sampler.set_slot(slot, config)

    def encode_parts(self, audio: np.ndarray) -> Parts[np.ndarray]:
        """Encode audio by itself, in no slot, a part at each ``next``."""
        alone = SlotMemory(self._sessions, self._config, 1)
        lane = Lane(self._sessions, alone, self._sampler, 1)
        codes: list[np.ndarray] = []
        for pcm in audio:
            codes.append(lane.encode_alone(0, pcm))
            yield  # Whoever asks knows how many of these parts fit into a turn.
        return np.stack(codes, axis=1)

    def prefill(
        self, slot: int, prefix: Prefix, is_alone: Callable[[], bool] = lambda: False
    ) -> Parts[None]:
        """Let a conversation that has just joined go on from what is known of it."""
        parts = self._prefill(slot, prefix, is_alone)
        while True:
            self.keep()  # neighbours may have taken a step meanwhile, in the same arrays
            try:
                next(parts)
            except StopIteration:
                return
            yield

    def _prefill(self, slot: int, prefix: Prefix, is_alone: Callable[[], bool]) -> Iterator[None]:
        lane, memory = self._lanes[0], self._memory
        for pcm in prefix.audio:
            lane.encode_alone(slot, pcm)
            yield
        for codes in prefix.heard.T[-memory.decoder.lookback_steps :]:
            lane.decode_alone(slot, codes)
            yield
        columns = prefix.columns(self._config["delays"], memory.token_ring.initial.tolist())
        known, begin = columns[:, :-1], 0
        while begin < known.shape[1]:
            at_once = MOST_COLUMNS if is_alone() else self._pace.steps
            part = known[:, begin : begin + min(at_once, memory.ring.context)]
            with self._pace.part(part.shape[1]):
                lane.read(slot, part)
            begin += part.shape[1]
            yield
        lane.sample_after(slot, columns[:, -1], prefix.codes[:, -1])

    def rebuild(self, slot: int, known: Callable[[], Prefix]) -> Iterator[None]:
        """Let a conversation's language model forget all but what is given, while it goes on."""
        lane, memory = self._lanes[0], self._memory
        ring, done = Ring(self._sessions["temporal"], 1), 0
        while True:
            columns = known().columns(self._config["delays"], memory.token_ring.initial.tolist())
            part = columns[:, done : done + min(REBUILD_COLUMNS, ring.context)]
            lane.read_into(ring, 0, done, part)
            done += part.shape[1]
            if done == columns.shape[1]:
                break
            yield
        self.keep()
        memory.ring.copy_from(ring, slot)
        memory.token_ring.move(slot, done)

    def leave(self, slot: int) -> None:
        """End the conversation in a slot."""
        self._sampler.set_slot(slot, SessionConfig.greedy())

    def step(
        self,
        frames: Mapping[int, np.ndarray],
        choose_word: ChooseWord | None = None,
        known: KnownTokens = NONE_KNOWN,
        phone_codes: PhoneCodes = NONE_HEARD,
    ) -> dict[int, SlotOutput]:
        """Run one step for the slots that have a frame; the others do not notice."""
        self.keep()
        if not frames:
            return {}
        for slot, tokens in known.items():
            self._memory.token_ring.replace(slot, tokens, late=False)
        shares = [
            {slot: frames[slot] for slot in slots.tolist()}
            for slots in np.array_split(sorted(frames), self._count_shares(len(frames)))
        ]
        self._stepped = lanes = self._lanes[: len(shares)]
        heard = [(share, phone_codes) for share in shares]
        words = self._each(lanes, lambda lane, given: lane.listen(*given), heard)
        if choose_word is not None:
            words = [{slot: choose_word(slot, w) for slot, w in share.items()} for share in words]
        outputs: dict[int, SlotOutput] = {}
        speaking = [(share, known) for share in words]
        for share in self._each(lanes, lambda lane, given: lane.speak(*given), speaking):
            outputs.update(share)
        return outputs

    def keep(self) -> None:
        """Let the slots remember the last step; it cannot be undone any more."""
        lanes, self._stepped = self._stepped, []
        if lanes:
            self._each(lanes, lambda lane, _: lane.keep(), lanes)

    def undo(self) -> None:
        """Bring every slot back to where it was before the last step, failed or not."""
        for lane in self._stepped:
            lane.undo()
        self._stepped = []

    def restart(self) -> None:
        """Build all state anew after a failed step."""
        self._memory = SlotMemory(self._sessions, self._config, self.slots)
        self._sampler = Sampler(self.slots)
        self._stepped: list[Lane] = []
        self._lanes = [
            Lane(self._sessions, self._memory, self._sampler, self.slots)
            for _ in range(self._cpu_threads)
        ]

    def _count_shares(self, rows: int) -> int:
        threads = 1 if self._pool is None else self._cpu_threads
        return max(1, min(threads, rows // MIN_ROWS_PER_THREAD))

    def _each(self, lanes: list[Lane], half: Callable, shares: list) -> list:
        """Run one half of a step in every lane, the first one in this thread."""
        if self._pool is None or len(lanes) == 1:
            return [half(lane, share) for lane, share in zip(lanes, shares, strict=True)]
        others = [
            self._pool.submit(half, lane, share)
            for lane, share in zip(lanes[1:], shares[1:], strict=True)
        ]
        try:
            first = half(lanes[0], shares[0])
        finally:
            waited = [other.exception() for other in others]
        for error in waited:
            if error is not None:
                raise error
        return [first, *(other.result() for other in others)]


def load_model(name: str | Path, slots: int, cpu_threads: int = 1) -> OnnxModel:
    """Load a checkpoint and give it slots.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.
        slots: Number of conversations at a time.
        cpu_threads: Threads that share the conversations of a step.

    Raises:
        CheckpointError: The checkpoint cannot be found or loaded, or brings no graphs.
    """
    files = find_checkpoint(name)
    vocabulary = files.vocabulary()
    sessions = open_graphs(files)
    one_slot = SlotMemory(sessions, files.config, 1)
    summary = ModelSummary(
        name=files.name,
        trained=files.trained,
        lm_parameters=count_parameters(files.lm_weights),
        mimi_parameters=count_parameters(files.mimi_weights),
        context_steps=one_slot.ring.context,
        runtime="onnx",
        device="cpu",
        dtype="float32",
        kv_bytes_per_slot=one_slot.kv_bytes_per_slot,
        sampling=files.sampling,
        fingerprint=files.fingerprint(),
        text_tokens=files.text_tokens,
        audio_tokens=files.audio_tokens,
    )
    return OnnxModel(sessions, files.config, summary, vocabulary, slots, cpu_threads)
