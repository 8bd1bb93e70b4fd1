"""Stage 3: speech as codes, ready to be composed into dialogues.

    python -m training.bank DATA CODEC_CHECKPOINT [--hearing FOLDER] [--sessions 600] [--seed 0]

The codec is causal and looks back about two seconds, so the codes of a stretch depend on its
last seconds only. Dialogues need not be rendered as sound: they are composed from encoded pieces,
which costs nothing and never gives the same dialogue twice.

    DATA/bank/agent.npz          each answer from its first step on, and its endings when cut
    DATA/bank/words.npz          the same of each of its words
    DATA/bank/users-NNN.npz      sessions: one microphone, a dozen utterances, silence between them;
                                 questions of the world, sentences outside it, backchannels, sounds
    DATA/bank/held_out-000.npz   the same with voices that training never hears

With ``--hearing``, users' first codes are those that the folder's ``hearing.onnx`` tells, as in the
engine. Files that exist are left alone: remove them after the codec or the hearing has changed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from moshi.models import MimiModel, loaders

from pipecat_duplex.conversation.loudness import Spectra
from pipecat_duplex.engine.phones import PhoneHearing
from training import acoustics
from training.codec import fade_out
from training.corpus import Utterance, read_corpus, with_pauses
from training.progress import set_up_torch
from training.sizes import CODEBOOKS, SAMPLE_RATE, STEP_SAMPLES, STEP_SECONDS, mimi_config
from training.speech import Speech, played_faster

A_SESSION = {"backchannel": 3, "sound": 2, "outside": 3, "world": 5}
PARTS = {
    "held_out": ("held_out",),
    "users": (
        *("users", "speakers", "outside", "backchannels", "open", "sounds"),
        *2 * ("flite", "arctic", "joe", "hibari", "people"),
        *6 * ("kokoro", "spliced"),
    ),
}
PART_SESSIONS = 50
SESSION_STEPS = 560  # longer sessions are cut
LEAD_STEPS = 30  # silence before the first utterance
TAIL_STEPS = 3  # after the last sound; then the agent's channel holds the codes of long silence
FIRST_CUT = 2  # the first step of an answer from which it can fade out
FIRST_WORD_CUT = 0  # the same of a word, which may follow others
PAUSE_SHARE = 0.35
OPEN_PAUSE_SHARE = 0.45  # of the sentences outside the world, which pause anywhere
OPEN_PAUSE_SECS = (0.3, 1.4)
SOUND_DB = (-24.0, 4.0)  # level of a sound that is no speech, beside that of the speech
_CLEAN_EDGE_SECS = 0.008
AT_ONCE = 4  # sessions that are encoded together
_WARM_UP_STEPS = 30  # sound before what is encoded, so that its codes are those of a long session


@dataclass(frozen=True)
class Answer:
    """An answer of the agent in codes.

    Attributes:
        text: its words.
        steps: length in steps; ``codes`` go on into silence.
        word_steps: step of each word's first frame.
        codes: ``(8, steps + TAIL_STEPS)``.
        cut_steps: the steps from which it can fade out, rising.
        cuts: ``(cuts, 8, 1 + TAIL_STEPS)``: what follows when it does.
    """

    text: str
    steps: int
    word_steps: list[int]
    cut_steps: list[int]
    codes: np.ndarray
    cuts: np.ndarray

    def faded(self, index: int) -> np.ndarray:
        """Codes ``(8, cut step + 1 + TAIL_STEPS)`` of the answer with one of its endings."""
        return np.concatenate([self.codes[:, : self.cut_steps[index]], self.cuts[index]], 1)


def join(words: list[Answer]) -> Answer:
    """A sentence of words that were encoded one by one."""
    starts = np.cumsum([0, *(word.steps for word in words)]).tolist()
    placed = list(zip(starts, words, strict=False))
    spoken = [word.codes[:, : word.steps] for word in words]
    return Answer(
        text=" ".join(word.text for word in words),
        steps=starts[-1],
        word_steps=starts[:-1],
        cut_steps=[start + cut for start, word in placed for cut in word.cut_steps],
        codes=np.concatenate([*spoken, words[-1].codes[:, words[-1].steps :]], 1),
        cuts=np.concatenate([word.cuts for word in words]),
    )


@dataclass(frozen=True)
class Heard:
    """An utterance inside a session.

    Attributes:
        text: with ``|`` where a pause is possible.
        kind: kind of question, ``backchannel`` or ``sound``.
        onset: first step.
        end: the step in which the last word ends.
        word_ends: the step in which each word ends.
        pause: first and last step of a pause inside the sentence, or None.
    """

    text: str
    kind: str
    onset: int
    end: int
    word_ends: list[int]
    pause: tuple[int, int] | None


@dataclass(frozen=True)
class Session:
    """One user's channel: codes ``(8, steps)`` and what is said in them."""

    codes: np.ndarray
    heard: list[Heard]


def faster(utterance: Utterance, factor: float) -> Utterance:
    """The utterance played faster by ``factor``, which makes another speaker of the voice."""
    return replace(utterance, speech=played_faster(utterance.speech, factor))


def lay_session(
    utterances: list[Utterance], rng: np.random.Generator
) -> tuple[np.ndarray, list[Heard]]:
    """Sound of a session, ``(SESSION_STEPS * 1920,)``, and what is said in it."""
    microphone = acoustics.draw_microphone(rng)
    sound, level, heard = lay_speech(utterances, rng)
    return acoustics.record(sound, microphone, level), heard


def lay_speech(
    utterances: list[Utterance], rng: np.random.Generator
) -> tuple[np.ndarray, float, list[Heard]]:
    """A session before it reaches the microphone, the level of its speech, and what is said."""
    utterances = [faster(utterance, rng.uniform(0.87, 1.15)) for utterance in utterances]
    sound = np.zeros(SESSION_STEPS * STEP_SAMPLES, np.float32)
    spoken = [u.speech.samples for u in utterances if u.kind != "sound"]
    level = float(np.median([acoustics.speech_level(samples) for samples in spoken]))
    position, heard = LEAD_STEPS * STEP_SAMPLES, []
    for utterance in utterances:
        speech, pause = _paused(utterance, rng)
        gain = level / max(acoustics.speech_level(speech.samples), 1e-4)
        if utterance.kind == "sound":
            gain *= 10 ** (rng.uniform(*SOUND_DB) / 20)
        stop = position + len(speech.samples)
        if stop + 20 * STEP_SAMPLES > len(sound):
            break
        sound[position:stop] = gain * speech.samples
        heard.append(_heard(utterance, speech, position / SAMPLE_RATE, pause))
        position = stop + round(rng.uniform(0.8, 1.4) * SAMPLE_RATE)
    return sound, level, heard


def _paused(
    utterance: Utterance, rng: np.random.Generator
) -> tuple[Speech, tuple[float, float] | None]:
    """The utterance as it is said this time, and the pause that it makes at its mark."""
    speech = utterance.speech
    if "|" in utterance.text:
        if rng.random() >= PAUSE_SHARE:
            return speech, None
        before = len(utterance.text.split("|")[0].split())
        seconds, at = rng.uniform(0.4, 1.2), speech.words[before].start
        return with_pauses(speech, {before: seconds}), (at, at + seconds)
    if utterance.kind == "outside" and len(speech.words) > 2 and rng.random() < OPEN_PAUSE_SHARE:
        places = rng.choice(np.arange(1, len(speech.words)), int(rng.integers(1, 3)), replace=False)
        speech = with_pauses(speech, {int(at): rng.uniform(*OPEN_PAUSE_SECS) for at in places})
    return speech, None


def _heard(
    utterance: Utterance, speech: Speech, start: float, pause: tuple[float, float] | None
) -> Heard:
    """The utterance in steps, where its sound begins after ``start`` seconds."""
    word_ends = [_step(start + word.end) for word in speech.words]
    onset = _step(start + max(speech.words[0].start - _CLEAN_EDGE_SECS, 0.0))
    steps = pause and (_step(start + pause[0]), _step(start + pause[1]))
    return Heard(utterance.text, utterance.kind, onset, word_ends[-1], word_ends, steps)


def _step(seconds: float) -> int:
    """The step that holds this time."""
    return int(seconds / STEP_SECONDS)


@torch.no_grad()
def encode(mimi: MimiModel, sounds: np.ndarray) -> np.ndarray:
    """Codes ``(batch, 8, steps)`` of sounds ``(batch, samples)``."""
    codes = mimi.encode(torch.from_numpy(sounds)[:, None])
    return codes.numpy().astype(np.uint16)


def encode_users(mimi: MimiModel, hearing: PhoneHearing | None, sounds: np.ndarray) -> np.ndarray:
    """The codes of users, ``(batch, 8, steps)``: the first ones as the network hears them."""
    codes = encode(mimi, sounds)
    if hearing is not None:
        codes[:, 0] = hear(hearing, sounds)
    return codes


def hear(hearing: PhoneHearing, sounds: np.ndarray) -> np.ndarray:
    """First codes ``(batch, steps)`` of sounds ``(batch, samples)``, each from its beginning."""
    steps = sounds.reshape(len(sounds), -1, STEP_SAMPLES)
    spectra = Spectra(len(sounds))
    for slot in range(len(sounds)):
        hearing.join(slot)
    told = (
        hearing.hear(spectra.of(dict(enumerate(steps[:, step])))) for step in range(steps.shape[1])
    )
    return np.array([list(codes.values()) for codes in told], np.uint16).T


def encode_answer(mimi: MimiModel, utterance: Utterance, first_cut: int = FIRST_CUT) -> Answer:
    """The codes of an answer, and of its endings from step ``first_cut`` on."""
    samples = utterance.speech.samples
    steps = -(-len(samples) // STEP_SAMPLES)
    lead = _WARM_UP_STEPS * STEP_SAMPLES
    sound = np.zeros((_WARM_UP_STEPS + steps + TAIL_STEPS) * STEP_SAMPLES, np.float32)
    sound[lead : lead + len(samples)] = samples
    codes = encode(mimi, sound[None])[0][:, _WARM_UP_STEPS:]
    stops = list(range(first_cut, steps))
    cuts = np.zeros((len(stops), CODEBOOKS, 1 + TAIL_STEPS), np.uint16)
    for start in range(0, len(stops), 16):
        part = stops[start : start + 16]
        endings = np.stack([_ending(sound, _WARM_UP_STEPS + stop) for stop in part])
        cuts[start : start + 16] = encode(mimi, endings)[:, :, -1 - TAIL_STEPS :]
    word_steps = [_step(word.start) for word in utterance.speech.words]
    return Answer(utterance.text, steps, word_steps, stops, codes, cuts)


def _ending(sound: np.ndarray, stop: int) -> np.ndarray:
    """The last seconds before step ``stop``, the fade, and silence."""
    first = stop - _WARM_UP_STEPS
    stretch = sound[first * STEP_SAMPLES : (stop + 1 + TAIL_STEPS) * STEP_SAMPLES]
    return fade_out(stretch, _WARM_UP_STEPS)


def _shuffled(utterances: list[Utterance], rng: np.random.Generator) -> Iterator[Utterance]:
    """The utterances in random order, again and again, each about equally often."""
    while True:
        for index in rng.permutation(len(utterances)):
            yield utterances[index]


def draw_sessions(
    utterances: list[Utterance], rng: np.random.Generator
) -> Iterator[list[Utterance]]:
    """What is said in sessions without end: each kind as often as in ``A_SESSION``, shuffled."""
    by_stream: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        stream = utterance.kind if utterance.kind in A_SESSION else "world"
        by_stream.setdefault(stream, []).append(utterance)
    streams = {name: _shuffled(own, rng) for name, own in by_stream.items()}
    while True:
        drawn = [
            next(streams[name])
            for name, own in A_SESSION.items()
            if name in streams
            for _ in range(own)
        ]
        yield [drawn[i] for i in rng.permutation(len(drawn))]


def encode_sessions(
    mimi: MimiModel,
    hearing: PhoneHearing | None,
    utterances: list[Utterance],
    count: int,
    rng: np.random.Generator,
) -> Iterator[Session]:
    """``count`` sessions of all kinds of utterances, in random order."""
    batch, drawn = AT_ONCE, draw_sessions(utterances, rng)
    for _ in range(0, count, batch):
        laid = [lay_session(next(drawn), rng) for _ in range(batch)]
        steps = max(heard[-1].end for _, heard in laid) + 12
        sounds = np.stack([sound[: steps * STEP_SAMPLES] for sound, _ in laid])
        codes = encode_users(mimi, hearing, sounds)
        for own, (_, heard) in zip(codes, laid, strict=True):
            end = heard[-1].end + 12
            yield Session(own[:, :end], heard)


def read_utterances(data: Path, name: str) -> list[Utterance]:
    """The corpus' utterances of a name in ``PARTS``, some of them more than once."""
    return [utterance for part in PARTS[name] for utterance in read_corpus(data, part)]


def write_sessions(path: Path, sessions: list[Session]) -> None:
    """Save sessions in one file."""
    index = [
        {"steps": s.codes.shape[1], "heard": [asdict(heard) for heard in s.heard]} for s in sessions
    ]
    codes = np.concatenate([session.codes for session in sessions], 1)
    unfinished = path.with_suffix(".tmp.npz")
    np.savez(unfinished, codes=codes, index=json.dumps(index))
    unfinished.rename(path)


def session_paths(bank: Path, name: str) -> list[Path]:
    """The files of a name that have been made so far."""
    return sorted(bank.glob(f"{name}-[0-9][0-9][0-9].npz"))


def read_session_file(path: Path) -> list[Session]:
    """The sessions of one file."""
    with np.load(path) as data:
        codes, index = data["codes"], json.loads(str(data["index"]))
    sessions, start = [], 0
    for item in index:
        own = codes[:, start : start + item["steps"]]
        start += item["steps"]
        sessions.append(Session(own, [Heard(**heard) for heard in item["heard"]]))
    return sessions


def encode_silence(mimi: MimiModel) -> np.ndarray:
    """The codes ``(8,)`` to which a long silence settles."""
    return encode(mimi, np.zeros((1, 80 * STEP_SAMPLES), np.float32))[0, :, -1]


def write_answers(path: Path, answers: list[Answer], silence: np.ndarray) -> None:
    """Save the agent's answers and its silence in one file."""
    arrays = {f"codes_{i}": answer.codes for i, answer in enumerate(answers)}
    arrays |= {f"cuts_{i}": answer.cuts for i, answer in enumerate(answers)}
    keys = ("text", "steps", "word_steps", "cut_steps")
    index = [{key: getattr(answer, key) for key in keys} for answer in answers]
    np.savez(path, index=json.dumps(index), silence=silence, **arrays)


def read_answers(path: Path) -> tuple[list[Answer], np.ndarray]:
    """Load the agent's answers and the codes of its silence."""
    with np.load(path) as data:
        index = json.loads(str(data["index"]))
        answers = [
            Answer(codes=data[f"codes_{i}"], cuts=data[f"cuts_{i}"], **item)
            for i, item in enumerate(index)
        ]
        return answers, data["silence"]


def load_codec(path: Path) -> MimiModel:
    """The codec from exported weights or from a training run's ``last.pt``."""
    if path.suffix == ".safetensors":
        return loaders.get_mimi(path, mimi_config(), num_codebooks=CODEBOOKS)
    mimi = loaders.get_mimi(None, mimi_config(), num_codebooks=CODEBOOKS)
    mimi.load_state_dict(torch.load(path, weights_only=True)["mimi"])
    return mimi


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("--hearing", type=Path, metavar="FOLDER", help="with hearing.onnx")
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--held-out-sessions", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_up_torch(options.threads)
    mimi = load_codec(options.codec)
    hearing = options.hearing and PhoneHearing.load(options.hearing, AT_ONCE)
    bank = options.data / "bank"
    bank.mkdir(parents=True, exist_ok=True)
    if not (bank / "agent.npz").exists():
        answers = [encode_answer(mimi, u) for u in read_corpus(options.data, "agent")]
        write_answers(bank / "agent.npz", answers, encode_silence(mimi))
        print(f"{len(answers)} answers", flush=True)
    if not (bank / "words.npz").exists():
        words = [encode_answer(mimi, u, FIRST_WORD_CUT) for u in read_corpus(options.data, "words")]
        write_answers(bank / "words.npz", words, encode_silence(mimi))
        print(f"{len(words)} words", flush=True)
    counts = {"held_out": options.held_out_sessions, "users": options.sessions}
    for name in PARTS:
        utterances = read_utterances(options.data, name)
        for number, start in enumerate(range(0, counts[name], PART_SESSIONS)):
            path = bank / f"{name}-{number:03}.npz"
            if path.exists():
                continue
            count = min(PART_SESSIONS, counts[name] - start)
            rng = np.random.default_rng([options.seed, number])
            sessions = encode_sessions(mimi, hearing, utterances, count, rng)
            write_sessions(path, list(sessions))
            print(f"{path.name}: {count} sessions", flush=True)


if __name__ == "__main__":
    main()
