"""A small recurrent network that hears users beside a model, whatever runs the model.

It takes the log mel spectrum, a step at a time. It knows no checkpoint, no codec and no language
model. ``training/onnx_graphs/recurrent.py`` writes it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from pipecat_duplex.engine.checkpoint import find_folder
from pipecat_duplex.engine.onnx.checkpoint import session_options
from pipecat_duplex.session import CheckpointError, one_line


class RecurrentNetwork:
    """The network, for all slots of an engine at a time. Belongs to the engine's thread."""

    def __init__(self, session: onnxruntime.InferenceSession, slots: int):
        """Initialize with every slot at its start.

        Args:
            session: The graph.
            slots: Conversations at a time.
        """
        self._session = session
        shapes = {given.name: given.shape for given in session.get_inputs()}
        layers, _, hidden = shapes["states"]
        self._states = np.zeros((layers, slots, hidden), np.float32)
        self.mel_shape = tuple(shapes["mels"][1:])

    def join(self, slot: int) -> None:
        """Begin a conversation in a slot."""
        self._states[:, slot] = 0.0

    def scores(self, mels: Mapping[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Hear a step.

        Args:
            mels: The user's log mel spectrum by slot, float32, shape ``(FRAMES, BANDS)``.

        Returns:
            Each slot, and the last layer's output at the end of the step, float32.
        """
        slots = list(mels)
        given = {"mels": np.stack(list(mels.values())), "states": self._states[:, slots]}
        scores, states = map(np.asarray, self._session.run(["scores", "new_states"], given))
        self._states[:, slots] = states
        return zip(slots, scores, strict=True)


def load_network(checkpoint: str | Path, file: str, slots: int) -> RecurrentNetwork | None:
    """Load a network that a checkpoint brings. Blocks.

    Args:
        checkpoint: As in ``Engine.load``. Those on the hub bring none.
        file: The name of the file.
        slots: Conversations at a time.

    Returns:
        The network, or None if the checkpoint has no such file.

    Raises:
        CheckpointError: The file is broken, or holds another network.
    """
    folder = find_folder(checkpoint)
    if folder is None or not (folder / file).is_file():
        return None
    try:
        session = onnxruntime.InferenceSession(
            folder / file, session_options(), providers=["CPUExecutionProvider"]
        )
        network = RecurrentNetwork(session, slots)
        network.scores({0: np.zeros(network.mel_shape, np.float32)})
    except Exception as error:  # ONNX Runtime has a dozen kinds: all mean bad files
        raise CheckpointError(f"{folder / file} cannot be loaded: {one_line(error)}") from error
    network.join(0)
    return network
