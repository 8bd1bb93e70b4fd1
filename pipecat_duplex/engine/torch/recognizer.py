"""A recogniser of Kyutai's (delayed streams) over the slots of a dialogue model, on its codec."""

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np
import torch
from moshi.models.compression import MimiModel
from moshi.models.lm import LMGen, LMModel
from safetensors import safe_open

from pipecat_duplex.engine.checkpoint import CODEBOOKS, CheckpointFiles
from pipecat_duplex.engine.ears import Recognizer
from pipecat_duplex.engine.model import Hearing
from pipecat_duplex.engine.torch.checkpoint import (
    count_parameters,
    kv_bytes,
    load_language,
    open_with_moshi,
)
from pipecat_duplex.engine.torch.masks import MaskedModules
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS, CheckpointError, one_line

ENCODING = ("encoder.", "encoder_transformer.", "downsample.", "quantizer.")
"""Parts of the codec that decide what codes a voice has."""


class BatchedRecognizer(Recognizer):
    """The recogniser with its slots. It takes the most likely token, as it was published to do."""

    def __init__(
        self,
        lm: LMModel,
        vocabulary: Vocabulary,
        slots: int,
        *,
        voice_delay_steps: int,
        lead_in: np.ndarray,
    ):
        """Initialize with every slot at its beginning.

        Args:
            lm: The language model, without a depth transformer.
            vocabulary: What its text is made of.
            slots: Number of conversations at a time, ``B``.
            voice_delay_steps: Steps by which it was trained to write behind the voice.
            lead_in: Codes of silence to begin with, shape ``(codebooks, steps)``.
        """
        self.delay_steps = voice_delay_steps + max(lm.delays) - lm.delays[0]
        self.lead_in = lead_in
        self.hearing: Hearing | None = None
        self._slots = slots
        self._vocabulary = vocabulary
        # No conditions: a model may have a place for them and take none.
        self._lm_gen = LMGen(lm, use_sampling=False, support_out_of_sync=True, condition_tensors={})
        on_gpu = lm.device.type == "cuda"
        self._codes_in = torch.zeros(slots, lm.n_q, 1, dtype=torch.long, pin_memory=on_gpu)
        self._codes_array = self._codes_in.numpy()
        self._device = lm.device
        self._streaming = ExitStack()
        self.restart()

    def begin(self, slot: int) -> None:
        """Let the next step in a slot be the first."""
        self._newcomers.add(slot)

    def step(self, codes: Mapping[int, np.ndarray]) -> dict[int, int]:
        """Run one step for the slots that have codes; the others do not notice."""
        for slot, each in codes.items():
            self._codes_array[slot, :, 0] = each
        newcomers = [slot for slot in codes if slot in self._newcomers]
        if newcomers:
            self._masked.reset(newcomers)
            self._newcomers.difference_update(newcomers)
        self._masked.run_only([slot in codes for slot in range(self._slots)])
        tokens = self._lm_gen.step(self._codes_in.to(self._device, non_blocking=True))
        assert tokens is not None  # out-of-sync generation always answers
        texts = tokens[:, 0, 0].tolist()
        return {slot: texts[slot] for slot in codes}

    def piece(self, token: int) -> str | None:
        """Return the SentencePiece piece of a token; None for padding and control tokens."""
        return self._vocabulary.piece(token)

    def text(self, tokens: list[int]) -> str:
        """Return the text that tokens spell."""
        return self._vocabulary.text(tokens)

    def warm_up(self, steps: int) -> None:
        """Run a few steps of silence, so that the first conversation does not pay for them."""
        for _ in range(steps):
            self.step({0: np.zeros(len(self._codes_array[0]), np.int64)})
        self.begin(0)

    def restart(self) -> None:
        """Build the streaming state anew."""
        self.close()
        self._streaming = ExitStack()
        self._streaming.enter_context(self._lm_gen.streaming(self._slots))
        self._masked = MaskedModules([self._lm_gen], self._slots)
        self._newcomers = set(range(self._slots))

    def close(self) -> None:
        """Let go of the streaming state."""
        self._streaming.close()


def load_recognizer(
    files: CheckpointFiles, mimi: MimiModel, slots: int, dtype: torch.dtype
) -> BatchedRecognizer:
    """Load a recogniser beside a dialogue model, and let the codec give it its codebooks.

    Args:
        files: Its files, checked to be a recogniser's.
        mimi: The dialogue model's codec, which both hear with.
        slots: Number of conversations at a time.
        dtype: Number format of its language model.

    Raises:
        CheckpointError: It was trained on another codec, is incomplete, or does not fit into
            memory.
    """
    codebooks: int = files.config["n_q"]
    _check_codec(files, mimi, codebooks)
    device = next(mimi.parameters()).device
    vocabulary = files.vocabulary()
    try:
        lm = load_language(files, open_with_moshi(files), device, dtype)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"the recogniser {files.name} does not fit into the memory of {device} beside the model"
        ) from error
    except Exception as error:  # torch, safetensors and moshi's asserts: all mean bad files
        raise CheckpointError(
            f"checkpoint {files.name} cannot be loaded: {one_line(error)}"
        ) from error
    mimi.set_num_codebooks(max(CODEBOOKS, codebooks))
    times = files.config["stt_config"]
    recognizer = BatchedRecognizer(
        lm,
        vocabulary,
        slots,
        voice_delay_steps=round(times.get("audio_delay_seconds", 0.0) / STEP_SECS),
        lead_in=_encode_silence(mimi, times.get("audio_silence_prefix_seconds", 0.0), codebooks),
    )
    recognizer.hearing = Hearing(
        files.name,
        count_parameters(lm),
        codebooks,
        recognizer.delay_steps,
        kv_bytes(lm.transformer, dtype),
    )
    return recognizer


def _check_codec(files: CheckpointFiles, mimi: MimiModel, codebooks: int) -> None:
    """Raise unless a recogniser was trained on what this codec hears."""
    if codebooks > mimi.total_codebooks:
        raise CheckpointError(
            f"the recogniser {files.name} hears {codebooks} codebooks, and the model's codec has "
            f"{mimi.total_codebooks}: take a model with Kyutai's Mimi, such as kyutai/moshiko-*"
        )
    if files.audio_tokens != mimi.cardinality or not _is_same_encoder(files, mimi):
        raise CheckpointError(
            f"the recogniser {files.name} was trained on another codec than the model's: what it "
            "would hear means nothing to it. Both have to come with the same Mimi"
        )


def _is_same_encoder(files: CheckpointFiles, mimi: MimiModel) -> bool:
    try:
        with safe_open(files.mimi_weights, framework="pt") as file:
            names = set(file.keys())
            return all(
                name in names and torch.equal(file.get_tensor(name).to(ours.dtype), ours.cpu())
                for name, ours in mimi.state_dict().items()
                if name.startswith(ENCODING)
            )
    except Exception as error:  # safetensors has errors of its own
        raise CheckpointError(
            f"checkpoint {files.name} cannot be loaded: {one_line(error)}"
        ) from error


def _encode_silence(mimi: MimiModel, secs: float, codebooks: int) -> np.ndarray:
    steps = round(secs / STEP_SECS)
    if not steps:
        return np.zeros((codebooks, 0), np.int64)
    device = next(mimi.parameters()).device
    silence = torch.zeros(1, 1, steps * STEP_SAMPLES, device=device)
    return mimi.encode(silence)[0, :codebooks].cpu().numpy()
