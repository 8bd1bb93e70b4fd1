"""Stage 2, the second half: what users say, as codes of the first codebook.

    python -m training.hearing DATA CODEC_CHECKPOINT RUN [--minutes 26]    train, or go on
    python -m training.hearing DATA CODEC_CHECKPOINT RUN --export FILE     write for the engine

The codec's encoder takes raw sound. It needs more voices than a small corpus has, and what it
learned of phones from synthetic ones does not carry over to people. A recurrent network on the log
mel spectrum learns the same from three hours of people. It tells the codec's own codes, so the
language model need learn no second alphabet: the codec's code of each step on synthetic voices, and
on all voices one that stands for the phones of the step. Which phones a code stands for is counted
on synthetic voices.

``pipecat_duplex/engine/phones.py`` runs it. Speakers that were kept out of the training
(``training.people``) are not in DATA.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moshi.models import MimiModel
from torch import nn
from torch.nn import functional

from pipecat_duplex.conversation.loudness import BANDS, FRAMES, log_mel
from training import acoustics
from training.alignment import KEPT_OUT, PART
from training.bank import encode, faster, load_codec
from training.barge_in import coloured
from training.codec import HALF_STEPS, phone_labels
from training.corpus import Utterance, read_corpus
from training.onnx_graphs.recurrent import write_network
from training.progress import set_up_torch
from training.sizes import SAMPLE_RATE, STEP_SAMPLES, mimi_config
from training.speech import PHONES

CODES = mimi_config()["quantizer"]["bins"]
HIDDEN = 256
JOINED = 2  # frames of 20 ms that it takes at a time
SCENE_STEPS = 75  # 6 s
SYNTHETIC = {"users": 1.0, "speakers": 0.8, "flite": 0.8, "joe": 1.0, "hibari": 1.4, "open": 1.2}
"""Parts of the corpus, by weight."""

PEOPLE = {"people": PART, "kept_out": KEPT_OUT}
"""Parts of the corpus, by the pools that are made of them."""

SOURCES = {"picovoice-coffee": 0.35, "picovoice-wake": 0.2, "mycroft-community": 0.06}
"""Collections of recordings, by weight; others have 1. Two of them say few words, often."""

SOUND_SHARE = 0.12
UNKNOWN = -1  # in place of the codec's code, where it was not asked
AT_ONCE = 8  # scenes that the codec encodes together
QUIET_WEIGHT = 0.4  # of a step without a phone
PRIOR_COUNT = 5.0
JUDGED = "kept_out"  # a pool that serves measuring, where the corpus has such people
JUDGED_SCENES = 200
BATCH = {"people": 16, "synthetic": 8, "coded": 8}  # scenes of each pool
CODE_WEIGHT, TELL_WEIGHT = 0.3, 0.5


class Talk:
    """Draws what is heard: people or synthetic voices, and sounds that are no speech."""

    def __init__(self, folder: Path, rng: np.random.Generator, pool: str) -> None:
        self._rng = rng
        self._voices: dict[str, list[Utterance]] = {}
        for part in (PEOPLE[pool],) if pool in PEOPLE else SYNTHETIC:
            for utterance in read_corpus(folder, part):
                source = utterance.voice.split(":")[1].split("/")[0]
                self._voices.setdefault(source if pool in PEOPLE else part, []).append(utterance)
        shares = SOURCES if pool in PEOPLE else SYNTHETIC
        weights = np.array([shares.get(name, 1.0) for name in self._voices])
        self._shares = weights / weights.sum()
        self._sounds = list(read_corpus(folder, "sounds"))

    def draw(self) -> tuple[Utterance, float]:
        """An utterance at another speed, which makes another throat of it, and its level in dB."""
        rng = self._rng
        if rng.random() < SOUND_SHARE:
            return self._sounds[rng.integers(len(self._sounds))], rng.uniform(-20, 4)
        own = self._voices[str(rng.choice(list(self._voices), p=self._shares))]
        return faster(own[rng.integers(len(own))], rng.uniform(0.85, 1.18)), rng.uniform(-4, 4)


def lay_scene(talk: Talk, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A microphone for six seconds; it may be turned on in the middle of a sentence.

    Returns:
        Its sound, float32, and the phone of each half step.
    """
    length = SCENE_STEPS * STEP_SAMPLES
    sound = np.zeros(length, np.float32)
    phones = np.zeros(SCENE_STEPS * HALF_STEPS, np.int64)
    microphone = acoustics.draw_microphone(rng)
    at = int(rng.uniform(-2.0, 1.0) * SAMPLE_RATE)
    while at < length - SAMPLE_RATE // 4:
        utterance, level_db = talk.draw()
        samples = utterance.speech.samples
        level = max(acoustics.speech_level(samples), 1e-4)
        begin, end = max(at, 0), min(at + len(samples), length)
        if end > begin:
            gain = 0.1 / level * 10 ** (level_db / 20)
            sound[begin:end] += gain * samples[begin - at : end - at]
            own = phone_labels(utterance.speech, at / SAMPLE_RATE, length)
            phones = np.where(own > 0, own, phones)
        at += len(samples) + SAMPLE_RATE // 8 + int(rng.exponential(0.6) * SAMPLE_RATE)
    return acoustics.record(sound, microphone, 0.1), phones


def log_mel_of(sound: np.ndarray) -> np.ndarray:
    """Log mel of a scene, float16 ``(SCENE_STEPS * FRAMES, BANDS)``."""
    steps = np.pad(sound, (STEP_SAMPLES, 0)).reshape(-1, STEP_SAMPLES).astype(np.float32)
    return log_mel(steps[:-1], steps[1:]).reshape(-1, BANDS).astype(np.float16)


@dataclass(frozen=True)
class Pool:
    """Scenes, made once and heard many times.

    Attributes:
        mels: ``(scenes, SCENE_STEPS * FRAMES, BANDS)``, float16.
        phones: ``(scenes, SCENE_STEPS, HALF_STEPS)``.
        codes: the codec's first ones, ``(scenes, SCENE_STEPS)``, or ``UNKNOWN``.
    """

    mels: np.ndarray
    phones: np.ndarray
    codes: np.ndarray

    @classmethod
    def make(
        cls, talk: Talk, mimi: MimiModel | None, scenes: int, rng: np.random.Generator
    ) -> "Pool":
        """Lay scenes, and encode them if there is a codec."""
        mels, phones, codes = [], [], []
        for first in range(0, scenes, AT_ONCE):
            laid = [lay_scene(talk, rng) for _ in range(min(AT_ONCE, scenes - first))]
            sounds = np.stack([sound for sound, _ in laid])
            mels += [log_mel_of(sound) for sound in sounds]
            phones += [own.reshape(SCENE_STEPS, HALF_STEPS) for _, own in laid]
            known = mimi and encode(mimi, sounds)[:, 0].astype(np.int16)
            unknown = np.full((len(laid), SCENE_STEPS), UNKNOWN, np.int16)
            codes.append(unknown if known is None else known)
        return cls(np.stack(mels), np.stack(phones).astype(np.int8), np.concatenate(codes))

    @classmethod
    def load(cls, path: Path) -> "Pool":
        """Read a pool."""
        with np.load(path) as data:
            return cls(**data)

    def save(self, path: Path) -> None:
        """Write the pool in one file, which is whole as soon as it is there."""
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, mels=self.mels, phones=self.phones, codes=self.codes)
        unfinished.rename(path)


def make_pools(folder: Path, codec: Path, run: Path, sizes: dict[str, int], seed: int) -> None:
    """Write the pools that are missing."""
    run.mkdir(parents=True, exist_ok=True)
    if next(read_corpus(folder, PEOPLE[JUDGED]), None) is not None:
        sizes = sizes | {JUDGED: JUDGED_SCENES}
    for number, (name, scenes) in enumerate(sizes.items()):
        path = run / f"{name}.npz"
        if path.is_file():
            continue
        rng, began = np.random.default_rng([seed, number]), time.monotonic()
        mimi = load_codec(codec) if name == "coded" else None
        Pool.make(Talk(folder, rng, name), mimi, scenes, rng).save(path)
        print(f"{path.name}: {scenes} scenes, {time.monotonic() - began:.0f} s", flush=True)


class Network(nn.Module):
    """Log mel to scores of codes. ``tell`` tells phones, and serves training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(BANDS * JOINED, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN, num_layers=2, batch_first=True)
        self.leave = nn.Linear(HIDDEN, CODES)
        self.tell = nn.Linear(HIDDEN, HALF_STEPS * len(PHONES))

    def forward(self, mels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of codes ``(batch, steps, CODES)`` and of phones ``(batch, steps, 2, PHONES)``.

        Args:
            mels: ``(batch, steps * FRAMES, BANDS)``.
        """
        moments = mels.unflatten(1, (-1, JOINED)).flatten(2)
        hidden, _ = self.gru(functional.relu(self.enter(moments)))
        last = hidden[:, FRAMES // JOINED - 1 :: FRAMES // JOINED]
        return self.leave(last), self.tell(last).unflatten(-1, (HALF_STEPS, -1))


def count_phones(pool: Pool) -> torch.Tensor:
    """How likely each phone is where the codec gives a code, as logarithms.

    Returns:
        ``(HALF_STEPS, CODES, PHONES)``.
    """
    codes = pool.codes.ravel().astype(np.int64)
    counts = np.zeros((HALF_STEPS, CODES, len(PHONES)))
    for half in range(HALF_STEPS):
        np.add.at(counts[half], (codes, pool.phones[..., half].ravel().astype(np.int64)), 1.0)
    prior = counts.sum(1, keepdims=True) / counts.sum((1, 2), keepdims=True)
    counts += PRIOR_COUNT * prior + 1e-6
    return torch.from_numpy(np.log(counts / counts.sum(2, keepdims=True))).float()


def surprise(scores: torch.Tensor, phones: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """How unlikely the phones are, by ``-log sum P(code) P(phones | code)``.

    Args:
        scores: ``(..., CODES)``.
        phones: ``(..., HALF_STEPS)``.
        table: see ``count_phones``.
    """
    told = sum(table[half].T[phones[..., half]] for half in range(HALF_STEPS))
    return -torch.logsumexp(functional.log_softmax(scores, -1) + told, -1)


def with_gaps(mels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scenes without some bands, and without some moments."""
    for own in mels:
        mean, band, moment = own.mean(), rng.integers(BANDS), rng.integers(len(own))
        own[:, band : band + rng.integers(7)] = mean
        own[moment : moment + rng.integers(9)] = mean
    return mels


def loss_of(network: Network, batch: Pool, table: torch.Tensor) -> torch.Tensor:
    """What the network is to lower."""
    phones = torch.from_numpy(batch.phones.astype(np.int64))
    codes = torch.from_numpy(batch.codes.astype(np.int64))
    scores, told = network(torch.from_numpy(batch.mels))
    weights = torch.where((phones > 0).any(-1), 1.0, QUIET_WEIGHT)
    heard = (surprise(scores, phones, table) * weights).sum() / weights.sum()
    kept = functional.cross_entropy(scores.flatten(0, 1), codes.flatten(), ignore_index=UNKNOWN)
    return (
        heard
        + CODE_WEIGHT * kept
        + TELL_WEIGHT * functional.cross_entropy(told.flatten(0, 2), phones.flatten())
    )


def draw(pools: dict[str, Pool], rng: np.random.Generator) -> Pool:
    """A batch, as other microphones hear it."""
    mels, phones, codes = [], [], []
    for name, count in BATCH.items():
        pool = pools[name]
        chosen = rng.choice(len(pool.mels), count, replace=len(pool.mels) < count)
        mels.append(with_gaps(coloured(pool.mels[chosen], rng), rng))
        phones.append(pool.phones[chosen])
        codes.append(pool.codes[chosen])
    return Pool(*(np.concatenate(each) for each in (mels, phones, codes)))


@torch.no_grad()
def told_phones(network: Network, pool: Pool, table: torch.Tensor, scenes: int = 200) -> float:
    """The share of half steps with a phone whose phone is told by the code that is chosen."""
    mels = torch.from_numpy(pool.mels[:scenes].astype(np.float32))
    return share_told(network(mels)[0].argmax(-1), pool.phones[:scenes], table)


def share_told(codes: torch.Tensor, phones: np.ndarray, table: torch.Tensor) -> float:
    """The share of half steps with a phone whose phone is the likeliest of the code."""
    likeliest = table.argmax(-1)
    told = torch.stack([likeliest[half][codes] for half in range(HALF_STEPS)], -1).numpy()
    return float((told == phones)[phones > 0].mean())


def train(run: Path, minutes: float, threads: int, seed: int, rate: float) -> None:
    """Train for so long, with a rate that falls to nothing."""
    set_up_torch(threads)
    torch.manual_seed(seed)
    pools = {name: Pool.load(run / f"{name}.npz") for name in BATCH}
    judged = dict(pools)
    if (run / f"{JUDGED}.npz").is_file():
        judged[JUDGED] = Pool.load(run / f"{JUDGED}.npz")
    table = count_phones(pools["coded"])
    codec = torch.from_numpy(pools["coded"].codes[:200].astype(np.int64))
    told = share_told(codec, pools["coded"].phones[:200], table)
    print(f"the codec tells {told:.2f} of synthetic phones", flush=True)
    network = Network()
    if (run / "last.pt").is_file():
        network.load_state_dict(torch.load(run / "last.pt"))
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-2)
    rng, began, step, losses = np.random.default_rng(seed), time.monotonic(), 0, []
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, step / 100 + 0.02) * max(1 - share, 0.01)
        loss = loss_of(network, draw(pools, rng), table)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        step += 1
        if step % 100 == 0:
            shares = {name: round(told_phones(network, p, table), 3) for name, p in judged.items()}
            print(f"{step} loss {np.mean(losses[-100:]):.3f} {shares}", flush=True)
            torch.save(network.state_dict(), run / "last.pt")
    torch.save(network.state_dict(), run / "last.pt")


def export(run: Path, file: Path) -> None:
    """Write the network without what serves training."""
    state = torch.load(run / "last.pt")
    kept = {name: value for name, value in state.items() if not name.startswith("tell.")}
    write_network({name: value.numpy() for name, value in kept.items()}, file)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=26)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--people", type=int, default=10_500, metavar="SCENES")
    parser.add_argument("--synthetic", type=int, default=4_000, metavar="SCENES")
    parser.add_argument("--coded", type=int, default=2_000, metavar="SCENES")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.export is not None:
        export(options.run, options.export)
        return
    sizes = {name: getattr(options, name) for name in BATCH}
    make_pools(options.data, options.codec, options.run, sizes, options.seed)
    train(options.run, options.minutes, options.threads, options.seed, options.rate)


if __name__ == "__main__":
    main()
