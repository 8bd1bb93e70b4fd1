"""What slots remember between steps, one row for each slot."""

import math

import numpy as np
import onnxruntime


class Ring:
    """Keys and values of the last steps, of all layers of a transformer.

    A place of the ring is written once its step has run; nothing else is ever moved.
    """

    def __init__(self, session: onnxruntime.InferenceSession, slots: int):
        """Initialize for the inputs ``keys.LAYER`` and ``values.LAYER`` of a graph."""
        shapes = {info.name: info.shape for info in session.get_inputs()}
        layers = sum(name.startswith("keys.") for name in shapes)
        _, heads, self.context, width = shapes["keys.0"]
        self._data = np.zeros((layers, 2, slots, heads, self.context, width), np.float32)

    @property
    def bytes_per_slot(self) -> int:
        """Size of one slot's part."""
        return self._data[:, :, 0].nbytes

    def copy_from(self, other: "Ring", slot: int) -> None:
        """Let a slot remember what the only slot of another ring of the same graph does."""
        self._data[:, :, slot] = other._data[:, :, 0]

    @property
    def layers(self) -> int:
        """Layers of the transformer."""
        return len(self._data)

    def inputs(self) -> dict[str, np.ndarray]:
        """The graph's inputs, over all slots."""
        layers = range(len(self._data))
        return {
            **{f"keys.{layer}": self._data[layer, 0] for layer in layers},
            **{f"values.{layer}": self._data[layer, 1] for layer in layers},
        }

    def write(self, slots: np.ndarray, positions: np.ndarray, new: np.ndarray) -> None:
        """Keep what a step gave.

        Args:
            slots: Where, shape ``(m,)``.
            positions: Of the first new key, counted from the start, shape ``(m,)``.
            new: The graph's ``new_keys_values``, shape ``(m, T, layers * 2 * width)``.
        """
        layers, both, _, heads, context, width = self._data.shape
        steps = new.shape[1]
        places = (positions[:, None] + np.arange(steps)) % context
        self._data[:, :, slots[:, None], :, places] = new.reshape(
            len(slots), steps, layers, both, heads, width
        )


CONVOLUTION_STEPS = 4
"""Steps that a codec's convolutions look back on, and more."""


class CodecMemory:
    """What one half of the codec remembers: its convolutions and its transformer."""

    def __init__(self, session: onnxruntime.InferenceSession, slots: int):
        """Initialize for a graph, every slot at its start."""
        shapes = {info.name: info.shape for info in session.get_inputs()}
        outputs = {info.name: info.shape for info in session.get_outputs()}
        self.ring = Ring(session, slots)
        self.positions = np.zeros(slots, np.int64)
        self._state = np.zeros((slots, shapes["state"][1]), np.float32)
        self._frames = outputs["new_keys_values"][1]

    @property
    def lookback_steps(self) -> int:
        """Steps from which all that is remembered can be made anew: each layer looks back once."""
        frames = self.ring.layers * self.ring.context
        return CONVOLUTION_STEPS + math.ceil(frames / self._frames)

    def inputs(self) -> dict[str, np.ndarray]:
        """The graph's inputs, over all slots."""
        return {"state": self._state, **self.ring.inputs()}

    def reset(self, slots: np.ndarray) -> None:
        """Put slots back to their start."""
        self._state[slots] = 0
        self.positions[slots] = 0

    def write(self, slots: np.ndarray, state: np.ndarray, new: np.ndarray) -> None:
        """Keep what a step gave.

        Args:
            slots: Where, shape ``(m,)``.
            state: The graph's ``new_state``, shape ``(m, size)``.
            new: The graph's ``new_keys_values``, shape ``(m, frames, layers * 2 * width)``.
        """
        self._state[slots] = state
        self.ring.write(slots, self.positions[slots] * self._frames, new)
        self.positions[slots] += 1


class TokenRing:
    """The tokens of the last few steps, as moshi's ``LMGen`` keeps them, with the streams' delays.

    Stream 0 is the monologue, then come the agent's codebooks and the user's.
    """

    def __init__(self, slots: int, delays: list[int], initial: np.ndarray):
        """Initialize.

        Args:
            slots: Number of slots.
            delays: Of each stream, in steps.
            initial: What each stream gives before its first token, int64.
        """
        self.max_delay = max(delays)
        self.offsets = np.zeros(slots, np.int64)
        self.delays = np.array(delays)
        self.initial = initial
        self._streams = np.arange(len(delays))
        self._length = self.max_delay + 2
        self._tokens = np.zeros((slots, len(delays), self._length), np.int64)

    def hear(self, slots: np.ndarray, codes: np.ndarray) -> None:
        """Take the user's codes of a step, shape ``(m, codebooks)``."""
        streams = self._streams[-codes.shape[1] :]
        self._put(slots, streams, self.delays[streams], codes)

    def say(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        """Take the agent's tokens of a step, shape ``(m, 1 + codebooks)``; time goes on by one."""
        self.offsets[slots] += 1
        streams = self._streams[: tokens.shape[1]]
        self._put(slots, streams, np.zeros_like(streams), tokens)

    def replace(self, slot: int, frame: np.ndarray, *, late: bool) -> None:
        """Put a known frame in the place of the one that is given out in this step.

        Args:
            slot: The slot.
            frame: Monologue and agent, shape ``(1 + codebooks,)``.
            late: Whether this is after the step's ``say``, and about the streams that it gave;
                else before it, and about those that were given in the step before.
        """
        streams = self._streams[: len(frame)]
        chosen = streams[(self.delays[streams] > 0) == late]
        self._tokens[slot, chosen, self.offsets[slot] % self._length] = frame[chosen]

    def skip(self, slot: int, steps: int) -> None:
        """Let time go on by steps whose tokens are known, and not asked for again."""
        self.offsets[slot] += steps

    def move(self, slot: int, offset: int) -> None:
        """Let a slot's time be another, with the same tokens before and after it."""
        shift = int(offset - self.offsets[slot]) % self._length
        self._tokens[slot] = np.roll(self._tokens[slot], shift, axis=-1)
        self.offsets[slot] = offset

    def next_input(self, slots: np.ndarray) -> np.ndarray:
        """What the language model is given in this step, shape ``(m, streams)``."""
        offsets = self.offsets[slots][:, None]
        tokens = self._tokens[slots[:, None], self._streams, offsets % self._length]
        return np.where(offsets <= self.delays, self.initial, tokens)

    def spoken(self, slots: np.ndarray, streams: int) -> np.ndarray:
        """The agent's last whole step, shape ``(m, streams)``: its streams brought together."""
        chosen = self._streams[:streams]
        places = self.offsets[slots][:, None] - self.max_delay + self.delays[chosen]
        return self._tokens[slots[:, None], chosen, places % self._length]

    def _put(
        self, slots: np.ndarray, streams: np.ndarray, delays: np.ndarray, tokens: np.ndarray
    ) -> None:
        places = (self.offsets[slots][:, None] + delays) % self._length
        self._tokens[slots[:, None], streams, places] = tokens
