"""Stage 2: the codec, a small Mimi.

    python -m training.codec DATA RUN [--steps 3000]            start, or go on from RUN/last.pt
    python -m training.codec DATA RUN --cooldown 600            go on, learning rate down to zero

Only the agent's voice is ever decoded, and only the users' words must survive in the codes. So a
batch has two parts that share the encoder: stretches of the agent, which are coded and decoded,
and stretches of users, which are coded by the first codebook only. A linear head on the first
codebook's vector predicts the phones, two a step; Mimi distils a speech model there for the same
end. The head serves training and is not exported.

RUN/last.pt holds weights, optimiser, step and configuration; RUN/log.txt a line every 20 steps.
"""

import argparse
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moshi.models import MimiModel
from torch import nn
from torch.nn import functional

from training import acoustics, checkpoint
from training.corpus import Utterance, read_corpus
from training.progress import SAVE_EVERY, Progress, add_options, prepare, save_state
from training.sizes import SAMPLE_RATE, STEP_SAMPLES, mimi_config
from training.speech import PHONES, Speech

STRETCH_STEPS = 20
STRETCH = STRETCH_STEPS * STEP_SAMPLES  # 1.6 s
HALF_STEPS = 2  # phone labels a step
USER_SHARES = {
    "users": 0.3,
    "speakers": 0.25,
    "flite": 0.15,
    "kokoro": 0.3,
}  # of the questions in a batch
SILENCE = np.zeros(STRETCH, np.float32)


@dataclass
class CodecOptions:
    """What a run can change. Saved with it."""

    agent_batch: int = 3
    user_batch: int = 14
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    quantizer_from: int = 420  # steps before: no quantizer, so that k-means meets useful vectors
    commitment_weight: float = 0.25
    phone_weight: float = 3.0
    waveform_weight: float = 0.2
    seed: int = 0


class CodecData:
    """Random stretches of agent and user sound with their phones."""

    def __init__(self, folder: Path, options: CodecOptions, step: int) -> None:
        self.options = options
        self.rng = np.random.default_rng([options.seed, step])
        answers = list(read_corpus(folder, "agent"))
        self.agent = [agent_timeline(u) for u in answers]
        # Sums are most of the answers and share their words: the others come more often.
        weights = np.array(
            [len(u.text.split()) * (1 if " plus " in u.text else 4) for u in answers]
        )
        self.agent_weights = weights / weights.sum()
        parts = {part: list(read_corpus(folder, part)) for part in USER_SHARES}
        self.users = [utterance for part in parts.values() for utterance in part]
        weights = [USER_SHARES[name] / len(part) for name, part in parts.items() for _ in part]
        self.user_weights = np.array(weights) / sum(weights)
        sizes = ", ".join(f"{len(part)} of {name}" for name, part in parts.items())
        print(f"{len(self.agent)} answers, questions: {sizes}", flush=True)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sound ``(agent + user batch, STRETCH)`` and phone ids ``(..., 2 * STRETCH_STEPS)``."""
        agent = [self._agent_stretch() for _ in range(self.options.agent_batch)]
        chosen = self.rng.choice(len(self.users), self.options.user_batch, p=self.user_weights)
        users = [user_stretch(self.users[index], self.rng) for index in chosen]
        sound, phones = zip(*agent, *users, strict=True)
        return torch.from_numpy(np.stack(sound)), torch.from_numpy(np.stack(phones))

    def _agent_stretch(self) -> tuple[np.ndarray, np.ndarray]:
        """A stretch that begins on a step; one in eight breaks off, as after a yield."""
        samples, phones = self.agent[self.rng.choice(len(self.agent), p=self.agent_weights)]
        start = int(self.rng.integers(len(samples) // STEP_SAMPLES - STRETCH_STEPS + 1))
        sound = samples[start * STEP_SAMPLES :][:STRETCH].copy()
        phones = phones[start * HALF_STEPS :][: STRETCH_STEPS * HALF_STEPS].copy()
        if self.rng.random() < 0.125:
            stop = int(self.rng.integers(4, STRETCH_STEPS - 3))
            sound = fade_out(sound, stop)
            phones[(stop + 1) * HALF_STEPS :] = PHONES.index("pau")
        return sound, phones


def agent_timeline(utterance: Utterance) -> tuple[np.ndarray, np.ndarray]:
    """An answer as it stands in every dialogue: on a step, with silence around it."""
    samples = utterance.speech.samples
    after = -len(samples) % STEP_SAMPLES
    sound = np.concatenate([SILENCE, samples, SILENCE[: after + 12 * STEP_SAMPLES]])
    return sound, phone_labels(utterance.speech, STRETCH / SAMPLE_RATE, len(sound))


def fade_out(sound: np.ndarray, stop: int) -> np.ndarray:
    """Sound that fades within one step from step ``stop`` on, then silence."""
    sound = sound.copy()
    start = stop * STEP_SAMPLES
    sound[start : start + STEP_SAMPLES] *= np.linspace(1, 0, STEP_SAMPLES, dtype=np.float32) ** 2
    sound[start + STEP_SAMPLES :] = 0
    return sound


def user_stretch(utterance: Utterance, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random stretch of one user's question, through a random microphone.

    The question is played faster or slower, which makes another speaker of each voice.
    """
    factor = rng.uniform(0.85, 1.18)
    speech = utterance.speech.samples
    speech = np.interp(np.arange(0, len(speech) - 1, factor), np.arange(len(speech)), speech)
    start = int(rng.uniform(-0.7 * STRETCH, max(len(speech) - 0.4 * STRETCH, 0)))
    sound = np.zeros(STRETCH, np.float32)
    part = speech[max(start, 0) : start + STRETCH]
    sound[max(-start, 0) :][: len(part)] = part
    microphone = acoustics.draw_microphone(rng)
    heard = acoustics.record(sound, microphone, acoustics.speech_level(speech))
    return heard, phone_labels(utterance.speech, -start / SAMPLE_RATE, STRETCH, factor)


def phone_labels(speech: Speech, onset: float, length: int, factor: float = 1.0) -> np.ndarray:
    """Phone id of each half step: that of its middle, less 15 ms as the codec is causal.

    Args:
        speech: its phones are used.
        onset: when it begins, in seconds.
        length: of the sound, in samples.
        factor: how much faster it is played.
    """
    half = STEP_SAMPLES / HALF_STEPS / SAMPLE_RATE
    times = (np.arange(length // STEP_SAMPLES * HALF_STEPS) + 0.5) * half - 0.015 - onset
    times = times * factor
    labels = np.zeros(len(times), np.int64)
    for span in speech.phones:
        labels[(times >= span.start) & (times < span.end)] = PHONES.index(span.label)
    return labels


class SpectralLoss(nn.Module):
    """Distance of two sounds: magnitudes and their logarithms at four window lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = (256, 512, 1024, 2048)
        for size in self.windows:
            self.register_buffer(f"window_{size}", torch.hann_window(size))
            self.register_buffer(f"mel_{size}", mel_filters(size, min(size // 8, 80)))

    def forward(self, heard: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Distance of two batches of sound, ``(batch, samples)`` each."""
        total = heard.new_zeros(())
        for size in self.windows:
            a, b = self._magnitude(heard, size), self._magnitude(wanted, size)
            mel = getattr(self, f"mel_{size}")
            log_distance = (torch.log(mel @ a + 3e-3) - torch.log(mel @ b + 3e-3)).abs().mean()
            total = total + log_distance + (a - b).norm() / (b.norm() + 1.0)
        return total / len(self.windows)

    def _magnitude(self, sound: torch.Tensor, size: int) -> torch.Tensor:
        window = getattr(self, f"window_{size}")
        spectrum = torch.stft(sound, size, size // 4, window=window, return_complex=True)
        return (spectrum.real**2 + spectrum.imag**2 + 1e-8).sqrt() * (4 / size) * 8


def mel_filters(size: int, bands: int) -> torch.Tensor:
    """Triangular filters on the mel scale, ``(bands, size // 2 + 1)``."""
    mels = torch.linspace(0, 2595 * np.log10(1 + 10_000 / 700), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.arange(size // 2 + 1) * SAMPLE_RATE / size
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(up, down).clamp(min=0)
    # At short windows a low band may fall between two bins: it takes the nearest one.
    empty = filters.sum(1) == 0
    nearest = (bins[None] - edges[1:-1, None]).abs().argmin(1)
    filters[empty, nearest[empty]] = 1
    return filters / filters.sum(1, keepdim=True)


class CodecTrainer:
    """The codec in training: forward pass, loss, optimiser, saved state."""

    def __init__(self, options: CodecOptions) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.mimi: MimiModel = checkpoint.build_mimi(mimi_config())
        latent = self.mimi.quantizer.rvq_first.dimension
        self.phone_head = nn.Linear(latent, HALF_STEPS * len(PHONES))
        self.loss = SpectralLoss()
        parameters = itertools.chain(self.mimi.parameters(), self.phone_head.parameters())
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            options.learning_rate,
            betas=(0.8, 0.99),
            weight_decay=1e-3,
            fused=True,
        )
        self.step = 0

    def encode(self, sound: torch.Tensor) -> torch.Tensor:
        """Latent vectors before quantization, ``(batch, dimension, steps)``."""
        mimi = self.mimi
        with torch.autocast("cpu", torch.bfloat16):
            latent = mimi.encoder(sound[:, None])
            (latent,) = mimi.encoder_transformer(latent)
            latent = mimi.downsample(latent)
        return latent.float()

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Sound from quantized latent vectors, ``(batch, samples)``."""
        mimi = self.mimi
        with torch.autocast("cpu", torch.bfloat16):
            latent = mimi.upsample(latent)
            (latent,) = mimi.decoder_transformer(latent)
            sound = mimi.decoder(latent)
        return sound[:, 0].float()

    def forward(self, sound: torch.Tensor, phones: torch.Tensor) -> dict[str, torch.Tensor]:
        """All losses of a batch, and the share of half steps whose phone is told."""
        agents = self.options.agent_batch
        first, rest = self.mimi.quantizer.rvq_first, self.mimi.quantizer.rvq_rest
        latent = self.encode(sound)
        before = vectors = first.input_proj(latent)
        if self.step < self.options.quantizer_from:
            decoded = first.output_proj(vectors) + rest.output_proj(rest.input_proj(latent))
            decoded, commitment = decoded[:agents], latent.new_zeros(())
        else:
            vectors, _, first_loss, _ = first.vq(before)
            fine, _, rest_loss, _ = rest.vq(rest.input_proj(latent[:agents]))
            decoded = first.output_proj(vectors[:agents]) + rest.output_proj(fine)
            commitment = (first_loss.mean() + 7 * rest_loss.mean()) / 8
        logits = self._phone_logits(vectors)
        # The vector before quantization is asked too: its gradient does not pass through a codebook
        # that is still moving.
        phone = self._phone_loss(logits, phones) + self._phone_loss(
            self._phone_logits(before), phones
        )
        made, wanted = self.decode(decoded), sound[:agents]
        right = (logits.argmax(-1) == phones).float()
        return {
            "spectral": self.loss(made, wanted),
            "waveform": (made - wanted).abs().mean() / (wanted.abs().mean() + 1e-2),
            "commitment": commitment,
            "phone": phone / 2,
            "agent_phones": right[:agents].mean().detach(),
            "user_phones": right[agents:].mean().detach(),
        }

    def _phone_logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """``(batch, 2 * steps, phones)`` from ``(batch, latent, steps)``."""
        logits = self.phone_head(vectors.transpose(1, 2)).unflatten(-1, (HALF_STEPS, -1))
        return logits.flatten(1, 2)

    @staticmethod
    def _phone_loss(logits: torch.Tensor, phones: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), phones.flatten())

    def train_step(self, sound: torch.Tensor, phones: torch.Tensor, rate: float) -> dict:
        """One update; ``rate`` scales the learning rate."""
        options = self.options
        self.mimi.train()
        terms = self.forward(sound, phones)
        total = (
            terms["spectral"]
            + options.waveform_weight * terms["waveform"]
            + options.commitment_weight * terms["commitment"]
            + options.phone_weight * terms["phone"]
        )
        self.optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        warmup = min(1.0, (self.step + 1) / options.warmup_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = options.learning_rate * warmup * rate
        self.optimiser.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in terms.items()}

    def save(self, path: Path) -> None:
        """Write all that is needed to go on."""
        state = {
            "mimi": self.mimi.state_dict(),
            "phone_head": self.phone_head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "options": dataclasses.asdict(self.options),
        }
        save_state(state, path)

    @classmethod
    def load(cls, path: Path, **changes) -> "CodecTrainer":
        """Go on from a saved state; ``changes`` replace options."""
        state = torch.load(path, weights_only=True)
        trainer = cls(CodecOptions(**(state["options"] | changes)))
        trainer.mimi.load_state_dict(state["mimi"])
        trainer.phone_head.load_state_dict(state["phone_head"])
        trainer.optimiser.load_state_dict(state["optimiser"])
        trainer.step = state["step"]
        return trainer


def train(data: Path, run: Path, steps: int, cooldown: int, changes: dict) -> None:
    """Train for ``steps`` steps, or ``cooldown`` steps with the learning rate falling to zero."""
    run.mkdir(parents=True, exist_ok=True)
    last = run / "last.pt"
    trainer = (
        CodecTrainer.load(last, **changes)
        if last.exists()
        else CodecTrainer(CodecOptions(**changes))
    )
    source = CodecData(data, trainer.options, trainer.step)
    progress = Progress(trainer.step)
    for index in range(cooldown or steps):
        rate = 1 - index / cooldown if cooldown else 1.0
        terms = trainer.train_step(*source.batch(), rate)
        progress.add(trainer.step, terms)
        if trainer.step % SAVE_EVERY == 0:
            trainer.save(last)
    trainer.save(last)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--cooldown", type=int, default=0)
    add_options(parser)
    options = parser.parse_args()
    changes = prepare(options)
    train(options.data, options.run, options.steps, options.cooldown, changes)


if __name__ == "__main__":
    main()
