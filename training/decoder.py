"""Stage 5: the codec's decoder alone, on the agent's codes.

    python -m training.decoder DATA CODEC RUN [--minutes 60]    start, or go on from RUN/last.pt
    python -m training.decoder DATA CODEC RUN --minutes 10 --anneal

Once the codes are fixed (the bank is made from them, and the language model learns them), the
decoder can still become sharper: codes in, the agent's sound out, no encoder in the loop. So a
batch holds many times the agent's speech of the codec's own training. Two more losses join its
spectral one:

- the frozen encoder listens to what was decoded: the features of its layers should be those of the
  original, and its phone head should tell the phones that were said;
- small discriminators look at mel spectrograms, against the blur that averages leave (hinge loss
  and feature matching, as in SEANet and Mimi).

RUN/last.pt holds a whole codec, of which only the decoder's side differs from CODEC.
"""

import argparse
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from training import codec, words, world
from training.bank import TAIL_STEPS, Answer, join, read_answers
from training.codec import HALF_STEPS, CodecTrainer, SpectralLoss, fade_out, phone_labels
from training.corpus import read_corpus
from training.progress import SAVE_EVERY, Progress, add_options, prepare, save_state
from training.sizes import SAMPLE_RATE, STEP_SAMPLES
from training.speech import PHONES, Speech

LEAD_STEPS = 14  # of silence before an answer: what the decoder can look back on
LOSS_FROM_STEP = 4  # of a stretch: before, the decoder lacks its past


@dataclass
class DecoderOptions:
    """What a run can change. Saved with it."""

    batch: int = 8
    steps: int = 24  # of a stretch
    learning_rate: float = 6e-4
    warmup: int = 100  # steps: a fresh optimiser takes long ones
    waveform_weight: float = 0.2
    feature_weight: float = 0.5
    phone_weight: float = 0.15
    adversarial_weight: float = 0.05
    matching_weight: float = 0.3
    adversarial_from: int = 150  # steps
    cut_share: float = 0.15
    told_share: float = 0.5  # of what it is told to say, word by word
    seed: int = 0


@dataclass(frozen=True)
class Timeline:
    """An answer with silence around it: codes ``(8, steps)``, sound, phones ``(2 * steps,)``."""

    codes: np.ndarray
    sound: np.ndarray
    phones: np.ndarray


class DecoderData:
    """Random stretches of the agent: codes, sound and phones."""

    def __init__(self, folder: Path, options: DecoderOptions, step: int) -> None:
        self.options = options
        self.rng = np.random.default_rng([options.seed, step])
        self.answers, self.silence = self._read(folder, "agent")
        self.words, _ = self._read(folder, "words")
        # Sums are most of the answers and share their words: the others come more often.
        texts = list(self.answers)
        weights = np.array([len(t.split()) * (1 if " plus " in t else 3) for t in texts])
        self.weights = weights / weights.sum()

    @staticmethod
    def _read(folder: Path, name: str) -> tuple[dict[str, tuple[Answer, Speech]], np.ndarray]:
        """Codes and sound of a part of the agent's speech by text, and the codes of silence."""
        answers, silence = read_answers(folder / "bank" / f"{name}.npz")
        spoken = {utterance.text: utterance.speech for utterance in read_corpus(folder, name)}
        return {answer.text: (answer, spoken[answer.text]) for answer in answers}, silence

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes ``(batch, 8, steps)``, sound ``(batch, samples)``, phones per half step."""
        stretches = [self._stretch() for _ in range(self.options.batch)]
        codes, sound, phones = zip(*stretches, strict=True)
        return tuple(torch.from_numpy(np.stack(part)) for part in (codes, sound, phones))

    def _stretch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps, rng = self.options.steps, self.rng
        if rng.random() < self.options.told_share:
            said = [self.words[word] for word in world.new_sentence(rng).split()]
            answer = join([codes for codes, _ in said])
            speech = words.join([speech for _, speech in said])
        else:
            answer, speech = self.answers[rng.choice(list(self.answers), p=self.weights)]
        if rng.random() < self.options.cut_share:
            timeline = self._timeline(answer, speech, int(rng.integers(len(answer.cut_steps))))
            start = timeline.codes.shape[1] - steps  # its end is what matters
        else:
            timeline = self._timeline(answer, speech)
            start = int(rng.integers(timeline.codes.shape[1] - steps + 1))
        return (
            timeline.codes[:, start : start + steps],
            timeline.sound[start * STEP_SAMPLES :][: steps * STEP_SAMPLES],
            timeline.phones[start * HALF_STEPS :][: steps * HALF_STEPS],
        )

    def _timeline(self, answer: Answer, speech: Speech, ending: int | None = None) -> Timeline:
        """An answer, whole or with one of its endings, of at least one stretch."""
        codes, lead = answer.codes, LEAD_STEPS * STEP_SAMPLES
        sound = np.zeros(lead + (answer.steps + TAIL_STEPS) * STEP_SAMPLES, np.float32)
        sound[lead : lead + len(speech.samples)] = speech.samples
        phones = phone_labels(speech, lead / SAMPLE_RATE, len(sound))
        if ending is not None:
            codes, stop = answer.faded(ending), LEAD_STEPS + answer.cut_steps[ending]
            sound = fade_out(sound, stop)[: (stop + 1 + TAIL_STEPS) * STEP_SAMPLES]
            phones = phones[: len(sound) // STEP_SAMPLES * HALF_STEPS].copy()
            phones[(stop + 1) * HALF_STEPS :] = PHONES.index("pau")
        missing = max(self.options.steps - LEAD_STEPS - codes.shape[1], 0)
        around = [np.repeat(self.silence[:, None], steps, 1) for steps in (LEAD_STEPS, missing)]
        return Timeline(
            np.concatenate([around[0], codes, around[1]], 1).astype(np.int64),
            np.pad(sound, (0, missing * STEP_SAMPLES)),
            np.pad(phones, (0, missing * HALF_STEPS), constant_values=PHONES.index("pau")),
        )


class MelDiscriminator(nn.Module):
    """Tells originals from decoded sound by their log mel spectrograms at one resolution."""

    def __init__(self, size: int, bands: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size))
        self.register_buffer("mel", codec.mel_filters(size, bands))
        widths = (1, 32, 32, 64, 64)
        strides = ((1, 1), (2, 1), (2, 2), (2, 1))
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(a, b, 3, stride, padding=1))
            for (a, b), stride in zip(itertools.pairwise(widths), strides, strict=True)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, sound: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Scores and the features of each layer for sound ``(batch, samples)``."""
        spectrum = torch.stft(
            sound, self.size, self.size // 4, window=self.window, return_complex=True
        )
        magnitude = (spectrum.real**2 + spectrum.imag**2 + 1e-8).sqrt() * (32 / self.size)
        hidden = torch.log(self.mel @ magnitude + 3e-3)[:, None]
        features = []
        for layer in self.layers:
            hidden = functional.leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        return self.last(hidden), features


class DecoderTrainer:
    """The decoder in training: losses, optimisers, saved state."""

    def __init__(self, codec_path: Path, options: DecoderOptions) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        trained = CodecTrainer.load(codec_path)
        self.mimi, self.phone_head = trained.mimi.eval(), trained.phone_head
        self.spectral = SpectralLoss()
        self.mimi.requires_grad_(False)
        self.phone_head.requires_grad_(False)
        quantizer = self.mimi.quantizer
        modules = (
            quantizer.rvq_first.output_proj,
            quantizer.rvq_rest.output_proj,
            self.mimi.upsample,
            self.mimi.decoder_transformer,
            self.mimi.decoder,
        )
        self.parameters = [p for m in modules for p in m.requires_grad_(True).parameters()]
        self.optimiser = torch.optim.AdamW(
            self.parameters, options.learning_rate, betas=(0.8, 0.99), weight_decay=1e-3, fused=True
        )
        self.judges = nn.ModuleList([MelDiscriminator(1024, 80), MelDiscriminator(400, 48)])
        self.judge_optimiser = torch.optim.AdamW(
            self.judges.parameters(), 4e-4, betas=(0.5, 0.9), fused=True
        )
        self.codec_step = trained.step
        self.step = 0

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Sound ``(batch, samples)`` from codes ``(batch, 8, steps)``."""
        first, rest = self.mimi.quantizer.rvq_first, self.mimi.quantizer.rvq_rest
        latent = first.decode(codes[:, :1]) + rest.decode(codes[:, 1:])
        with torch.autocast("cpu", torch.bfloat16):
            latent = self.mimi.upsample(latent)
            (latent,) = self.mimi.decoder_transformer(latent)
            sound = self.mimi.decoder(latent)
        return sound[:, 0].float()

    def listen(self, sound: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The frozen encoder's features, and its logits of the phones, for ``(batch, samples)``."""
        features, hidden = [], sound[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.mimi.encoder.model:
                hidden = layer(hidden)
                features.append(hidden)
            (latent,) = self.mimi.encoder_transformer(hidden)
            latent = self.mimi.downsample(latent).float()
        vectors = self.mimi.quantizer.rvq_first.input_proj(latent)
        logits = self.phone_head(vectors.transpose(1, 2)).unflatten(-1, (HALF_STEPS, -1))
        return [*features[3::3], latent], logits.flatten(1, 2)

    def train_step(
        self, codes: torch.Tensor, wanted: torch.Tensor, phones: torch.Tensor, rate: float
    ) -> dict[str, float]:
        """One update of the decoder and its judges; ``rate`` scales the learning rates."""
        made = self.decode(codes)
        terms = self._likeness(made, wanted, phones)
        options = self.options
        total = (
            terms["spectral"]
            + options.waveform_weight * terms["waveform"]
            + options.feature_weight * terms.get("features", 0.0)
            + options.phone_weight * terms.get("phone", 0.0)
        )
        if self.step >= options.adversarial_from // 3:
            start = LOSS_FROM_STEP * STEP_SAMPLES
            terms["judges"] = self._train_judges(made[:, start:].detach(), wanted[:, start:], rate)
        if self.step >= options.adversarial_from:
            fooled, matching = self._persuade(made[:, start:], wanted[:, start:])
            terms |= {"fooled": fooled, "matching": matching}
            total = total + options.adversarial_weight * fooled
            total = total + options.matching_weight * matching
        self.optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        warmth = min(1.0, (self.step + 1) / options.warmup)
        self.optimiser.param_groups[0]["lr"] = options.learning_rate * warmth * rate
        self.optimiser.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in terms.items()}

    def _likeness(
        self, made: torch.Tensor, wanted: torch.Tensor, phones: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        start = LOSS_FROM_STEP * STEP_SAMPLES
        ends, goals = made[:, start:], wanted[:, start:]
        terms = {
            "spectral": self.spectral(ends, goals),
            "waveform": (ends - goals).abs().mean() / (goals.abs().mean() + 1e-2),
        }
        if self.options.feature_weight or self.options.phone_weight:
            terms |= self._as_heard(made, wanted, phones)
        return terms

    def _as_heard(
        self, made: torch.Tensor, wanted: torch.Tensor, phones: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        heard, logits = self.listen(made)
        with torch.no_grad():
            meant, _ = self.listen(wanted)
        logits = logits[:, LOSS_FROM_STEP * HALF_STEPS :].flatten(0, 1)
        phones = phones[:, LOSS_FROM_STEP * HALF_STEPS :].flatten()
        return {
            "features": _distance(heard, meant),
            "phone": functional.cross_entropy(logits, phones),
            "phones_right": (logits.argmax(-1) == phones).float().mean(),
        }

    def _train_judges(self, made: torch.Tensor, wanted: torch.Tensor, rate: float) -> torch.Tensor:
        loss = made.new_zeros(())
        for judge in self.judges:
            loss = loss + functional.relu(1 - judge(wanted)[0]).mean()
            loss = loss + functional.relu(1 + judge(made)[0]).mean()
        self.judge_optimiser.zero_grad()
        loss.backward()
        self.judge_optimiser.param_groups[0]["lr"] = 4e-4 * rate
        self.judge_optimiser.step()
        return loss.detach() / len(self.judges)

    def _persuade(
        self, made: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hinge loss of the decoder, and the distance of the judges' features."""
        fooled, matching = made.new_zeros(()), made.new_zeros(())
        for judge in self.judges:
            score, seen = judge(made)
            with torch.no_grad():
                _, real = judge(wanted)
            fooled = fooled - score.mean()
            matching = matching + _distance(seen, real)
        return fooled / len(self.judges), matching / len(self.judges)

    def save(self, path: Path) -> None:
        """Write all that is needed to go on."""
        state = {
            "mimi": self.mimi.state_dict(),
            "judges": self.judges.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "judge_optimiser": self.judge_optimiser.state_dict(),
            "step": self.codec_step + self.step,
            "decoder_step": self.step,
            "options": dataclasses.asdict(self.options),
        }
        save_state(state, path)

    def resume(self, path: Path) -> None:
        """Go on from a saved state."""
        state = torch.load(path, weights_only=True)
        self.mimi.load_state_dict(state["mimi"])
        self.judges.load_state_dict(state["judges"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.judge_optimiser.load_state_dict(state["judge_optimiser"])
        self.step = state["decoder_step"]


def _distance(made: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
    """Mean distance of two lists of features, relative to the size of those that are wanted."""
    pairs = zip(made, wanted, strict=True)
    return torch.stack([(a - b).abs().float().mean() / b.abs().mean() for a, b in pairs]).mean()


def train(
    data: Path, codec_path: Path, run: Path, minutes: float, anneal: bool, changes: dict
) -> None:
    """Train for ``minutes``; with ``anneal`` the learning rate falls to zero over them."""
    run.mkdir(parents=True, exist_ok=True)
    last = run / "last.pt"
    trainer = DecoderTrainer(codec_path, DecoderOptions(**changes))
    if last.exists():
        trainer.resume(last)
    source = DecoderData(data, trainer.options, trainer.step)
    progress = Progress(trainer.step)
    while progress.minutes < minutes:
        rate = progress.rate(minutes, anneal=anneal)
        terms = trainer.train_step(*source.batch(), rate)
        progress.add(trainer.step, terms)
        if trainer.step % SAVE_EVERY == 0:
            trainer.save(last)
    trainer.save(last)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--anneal", action="store_true")
    add_options(parser)
    options = parser.parse_args()
    changes = prepare(options)
    train(options.data, options.codec, options.run, options.minutes, options.anneal, changes)


if __name__ == "__main__":
    main()
