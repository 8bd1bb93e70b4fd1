"""Stage 1: the speech corpus.

    python -m training.corpus DATA [--kinds agent users kokoro arctic held_out] [--seed 0]
    python -m training.corpus DATA --people FOLDER

Writes parts ``DATA/speech/KIND-NNN.npz``. A part that exists is left alone, so the command resumes
where it was stopped; any number of parts is a usable corpus.

    agent     each answer once, in the agent's voice
    words     each of its words once, in its voice, as it says what it is told
    users     questions and backchannels by flite and espeak-ng voices, speeds and pitches
    speakers  the same by some sixty speakers of espeak-ng in eight accents
    flite     the same by four of flite's voices, made higher and lower
    outside   more questions that have no answer, by all of these voices
    backchannels  nothing but these, by all of these voices and Kokoro's
    kokoro    the same by blends of Kokoro's styles, the voices nearest to people (slow)
    joe       the same by Piper's voice joe, near to people too, at many sizes of the throat
    hibari    the same by hibari's voice, as near to people and quick, at as many sizes
    open      sentences outside the world, of any words and length, by all of these voices
    sounds    what is no speech
    people    recordings of people, with ``--people`` only (``training.people``)
    spliced   questions of the world in their words, also with ``--people`` (``training.splices``)
    arctic    the same by RHVoice's voices of CMU ARCTIC's speakers; left out without RHVoice
    held_out  the same by voices that no training part contains, for the evaluation
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import people, sounds, world
from training.sentences import draw_sentence
from training.sizes import SAMPLE_RATE
from training.speech import AGENT_VOICE, NoVoice, Span, Speech, synthesise
from training.splices import Splicer
from training.words import speak_word

FLITE_VOICES = ("rms", "kal16")
MORE_FLITE_VOICES = ("rms", "kal16", "kal", "slt")
ESPEAK_ACCENTS = ("en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland")
ESPEAK_VARIANTS = tuple("m1 m2 m3 m4 m5 m7 m8 f1 f2 f4 f5 klatt klatt3 klatt6".split())
MORE_ACCENTS = (*ESPEAK_ACCENTS, "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
SPEAKERS = tuple(
    "Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario "
    "Michael Mike Nguyen adam anika announcer antonio aunty belinda benjamin boris caleb david ed "
    "edward edward2 grandma grandpa gustave iven iven2 iven3 iven4 john kaukovalta linda marcelo "
    "max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph steph2 "
    "steph3 travis victor whisper zac".split()
)
KOKORO_STYLES = ("jm_kumo", "jf_alpha", "jf_gongitsune", "jf_nezumi")
# Not alan, who is the speaker of the held-out flite:awb. slt, whom flite has too, comes least.
RHVOICE_SHARES = {"bdl": 0.5, "clb": 0.3, "slt": 0.2}
HELD_OUT_VOICES = (
    "flite:awb",
    "espeak:en-us+f3",
    "espeak:en-gb+m6",
    "kokoro:jf_tebukuro*0.4+jm_kumo*0.6",
)
SIZES = {
    "agent": 132,
    "words": len(world.agent_words()),
    "users": 7_000,
    "speakers": 5_000,
    "flite": 1_500,
    "outside": 900,
    "backchannels": 1_500,
    "kokoro": 1_200,
    "joe": 2_000,
    "hibari": 4_000,
    "open": 4_000,
    "sounds": 2_000,
    "arctic": 1_200,
    "held_out": 400,
}
PART_SIZES = {
    "agent": 132,
    "words": len(world.agent_words()),
    "users": 500,
    "speakers": 500,
    "flite": 250,
    "outside": 300,
    "backchannels": 300,
    "kokoro": 50,
    "joe": 200,
    "hibari": 500,
    "open": 250,
    "sounds": 250,
    "arctic": 200,
    "held_out": 100,
}
KOKORO_BACKCHANNELS = 0.08  # share of that part: it is slow
PEOPLE_PART = 500  # recordings
OPTIONAL_PARTS = ("arctic", "joe", "hibari")  # made if their synthesiser is installed
# Parts draw from the length of their name. This one would say what kokoro's does.
OTHER_DRAWS = {"arctic": 9, "joe": 31, "hibari": 34, "open": 32, "sounds": 33}
PEOPLE, SPLICED = "people", "spliced"
SPLICED_PART, SPLICED_PARTS = 300, 4
SPLICED_SUMS = 0.1  # weight of sums: few people say "plus"
SOUND_WORD = "sound"
CROWD_SHARE, CROWD_VOICES = 0.12, 12  # of the sounds; of which one is made
LONGEST_SOUND_SECS = 5.0
OPEN_SHARES = {"users": 0.25, "speakers": 0.25, "flite": 0.15, "joe": 0.33, "kokoro": 0.02}
KIND_WEIGHTS = {
    "sum": 0.28, "count": 0.09, "day": 0.08, "place": 0.09, "name": 0.04, "greeting": 0.05,
    "mood": 0.04, "thanks": 0.04, "skills": 0.03, "opens": 0.04, "closes": 0.04, "story": 0.05,
    "goodbye": 0.05, "stop": 0.08, "outside": 0.10, "backchannel": 0.07,
}  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """A spoken text of the corpus.

    Attributes:
        text: as in ``world``, with ``|`` where a pause is possible.
        kind: kind of question, ``backchannel``, ``answer``, ``word`` or ``sound``.
        voice: see ``speech.synthesise``.
        speech: sound and times.
    """

    text: str
    kind: str
    voice: str
    speech: Speech


def questions() -> dict[str, list[str]]:
    """Everything that users say in training, by kind."""
    by_kind: dict[str, list[str]] = {"backchannel": list(world.BACKCHANNELS)}
    for exchange in world.exchanges():
        by_kind.setdefault(exchange.kind, []).append(exchange.question)
    return by_kind


def draw_question(rng: np.random.Generator) -> tuple[str, str]:
    """A kind of question by its weight, then one of its texts."""
    kinds = list(KIND_WEIGHTS)
    weights = np.array(list(KIND_WEIGHTS.values()))
    kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    return kind, str(rng.choice(questions()[kind]))


def make_utterance(part: str, index: int, seed: int) -> Utterance:
    """Utterance ``index`` of a part, the same each time."""
    if part == "agent":
        text = world.answers()[index]
        return Utterance(text, "answer", AGENT_VOICE, synthesise(text, AGENT_VOICE))
    if part == "words":
        text = world.agent_words()[index]
        return Utterance(text, "word", AGENT_VOICE, speak_word(text))
    rng = np.random.default_rng([seed, index, OTHER_DRAWS.get(part, len(part))])
    if part == "sounds":
        return _make_sound(rng)
    while True:
        kind, text = _draw_text(part, rng)
        voice, rate, pitch = _draw_voice(part, rng)
        try:
            speech = synthesise(text.replace("| ", ""), voice, rate, pitch)
        except NoVoice:
            raise
        except ValueError:  # a synthesiser and its phone times disagree: rare, take another text
            continue
        return Utterance(text, kind, voice, speech)


def _make_sound(rng: np.random.Generator) -> Utterance:
    """A sound that is no speech; it has one word, of no name, which lasts as long as it does."""
    if rng.random() < CROWD_SHARE:
        kind, samples = (
            "crowd",
            sounds.crowd(
                [_voice_in_a_crowd(rng) for _ in range(int(rng.integers(3, CROWD_VOICES)))], rng
            ),
        )
    else:
        kind, samples = sounds.draw_sound(rng)
    samples = samples[: round(LONGEST_SOUND_SECS * SAMPLE_RATE)]
    speech = Speech(samples, (), (Span(SOUND_WORD, 0.0, len(samples) / SAMPLE_RATE),))
    return Utterance(SOUND_WORD, "sound", kind, speech)


def _voice_in_a_crowd(rng: np.random.Generator) -> np.ndarray:
    while True:
        try:
            return synthesise(draw_sentence(rng), *_draw_voice("speakers", rng)).samples
        except ValueError:
            continue


def _draw_text(part: str, rng: np.random.Generator) -> tuple[str, str]:
    """Kind and text of an utterance."""
    kind, text = draw_question(rng)
    if part == "open":
        return "outside", draw_sentence(rng)
    if part == "backchannels":
        return "backchannel", str(rng.choice(world.BACKCHANNELS))
    if part == "outside":
        return "outside", str(rng.choice(world.MORE_OUTSIDE))
    if part == "held_out" and kind == "outside":
        return kind, str(rng.choice(world.OUTSIDE_HELD_OUT))
    return kind, text


def _draw_voice(part: str, rng: np.random.Generator) -> tuple[str, float, float]:
    """Voice, rate and pitch of an utterance."""
    if part == "held_out":
        return str(rng.choice(HELD_OUT_VOICES)), 1.0, 1.0
    if part == "kokoro":
        weights = rng.dirichlet((1.2, 0.4, 0.4, 0.4))
        parts = zip(KOKORO_STYLES, weights, strict=True)
        name = "+".join(f"{style}*{weight:.2f}" for style, weight in parts)
        return f"kokoro:{name}", rng.uniform(0.9, 1.2), rng.uniform(0.88, 1.15)
    if part == "open":
        part = str(rng.choice(list(OPEN_SHARES), p=list(OPEN_SHARES.values())))
        return _draw_voice(part, rng)
    if part == "joe":
        return "piper:joe", rng.uniform(0.85, 1.25), rng.uniform(0.8, 1.5)
    if part == "hibari":
        return "hibari:heart", rng.uniform(0.8, 1.25), rng.uniform(0.62, 1.3)
    if part == "backchannels" and rng.random() < KOKORO_BACKCHANNELS:
        return _draw_voice("kokoro", rng)
    if part == "arctic":
        name = rng.choice(list(RHVOICE_SHARES), p=list(RHVOICE_SHARES.values()))
        voice = f"rhvoice:{name}*{rng.uniform(0.85, 1.2):.2f}"
        return voice, rng.uniform(0.85, 1.25), rng.uniform(0.82, 1.3)
    if part in ("outside", "backchannels"):
        part = str(rng.choice(("users", "speakers", "flite")))
    if part == "flite":
        name = rng.choice(MORE_FLITE_VOICES)
        return f"flite:{name}", rng.uniform(0.85, 1.25), rng.uniform(0.78, 1.42)
    if part == "speakers":
        name = f"{rng.choice(MORE_ACCENTS)}+{rng.choice(SPEAKERS)}"
        return f"espeak:{name}", rng.uniform(0.8, 1.2), rng.uniform(0.6, 1.4)
    if rng.random() < 0.35:
        return f"flite:{rng.choice(FLITE_VOICES)}", rng.uniform(0.9, 1.25), rng.uniform(0.85, 1.35)
    name = f"{rng.choice(ESPEAK_ACCENTS)}+{rng.choice(ESPEAK_VARIANTS)}"
    return f"espeak:{name}", rng.uniform(0.8, 1.2), rng.uniform(0.5, 1.5)


def write_part(path: Path, utterances: list[Utterance]) -> None:
    """Save utterances: all samples in one int16 array, all times in one JSON text."""
    samples = [np.clip(u.speech.samples, -1, 1) * 32767 for u in utterances]
    index = [
        {
            "text": utterance.text,
            "kind": utterance.kind,
            "voice": utterance.voice,
            "length": len(utterance.speech.samples),
            "phones": [(s.label, s.start, s.end) for s in utterance.speech.phones],
            "words": [(s.label, s.start, s.end) for s in utterance.speech.words],
        }
        for utterance in utterances
    ]
    unfinished = path.with_suffix(".tmp.npz")
    np.savez(unfinished, samples=np.concatenate(samples).astype(np.int16), index=json.dumps(index))
    unfinished.rename(path)


def read_corpus(folder: Path, part: str) -> Iterator[Utterance]:
    """All utterances of a part that have been made so far."""
    for path in sorted((folder / "speech").glob(f"{part}-[0-9]*.npz")):
        yield from read_part(path)


def read_part(path: Path) -> Iterator[Utterance]:
    """The utterances of one file."""
    with np.load(path) as data:
        samples, start = data["samples"], 0
        for item in json.loads(str(data["index"])):
            own = samples[start : start + item["length"]].astype(np.float32) / 32767
            start += item["length"]
            phones, words = (
                tuple(Span(*span) for span in item[key]) for key in ("phones", "words")
            )
            speech = Speech(own, phones, words)
            yield Utterance(item["text"], item["kind"], item["voice"], speech)


def with_pause(utterance: Utterance, seconds: float) -> tuple[np.ndarray, float]:
    """The utterance with silence at its pause mark, and the time at which the silence begins."""
    before = len(utterance.text.split("|")[0].split())
    speech = with_pauses(utterance.speech, {before: seconds})
    return speech.samples, utterance.speech.words[before].start


def with_pauses(speech: Speech, seconds: dict[int, float]) -> Speech:
    """The speech with silence before some of its words, by their numbers."""
    pieces, position, late, words = [], 0, 0.0, []
    for number, word in enumerate(speech.words):
        if number in seconds:
            at = round(word.start * SAMPLE_RATE)
            silence = np.zeros(round(seconds[number] * SAMPLE_RATE), np.float32)
            pieces += [speech.samples[position:at], silence]
            position, late = at, late + seconds[number]
        words.append(Span(word.label, word.start + late, word.end + late))
    samples = np.concatenate([*pieces, speech.samples[position:]])
    return Speech(samples, speech.phones, tuple(words))


def make_parts(folder: Path, part: str, seed: int) -> None:
    """Make all missing files of one part."""
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    size, step = SIZES[part], PART_SIZES[part]
    for number, start in enumerate(range(0, size, step)):
        path = folder / "speech" / f"{part}-{number:03}.npz"
        if path.exists():
            continue
        indices = range(start, min(start + step, size))
        utterances = [make_utterance(part, index, seed) for index in indices]
        write_part(path, utterances)
        seconds = sum(len(u.speech.samples) for u in utterances) / SAMPLE_RATE
        print(f"{path.name}: {len(utterances)} utterances, {seconds:.0f} s", flush=True)


def make_people(folder: Path, recordings: Path) -> None:
    """Write the recordings of people, those of held-out speakers left out."""
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    own = [item for item in people.read_manifest(recordings) if not item.held_out]
    for number, start in enumerate(range(0, len(own), PEOPLE_PART)):
        path = folder / "speech" / f"{PEOPLE}-{number:03}.npz"
        if path.exists():
            continue
        utterances = [u for item in own[start : start + PEOPLE_PART] for u in _from_person(item)]
        write_part(path, utterances)
        print(f"{path.name}: {len(utterances)} utterances", flush=True)
    make_spliced(folder, own)


def make_spliced(folder: Path, recordings: list[people.Recording]) -> None:
    """Write questions of the world in words of the recordings."""
    words = {word for texts in questions().values() for text in texts for word in text.split()}
    splicer = Splicer(recordings, words)
    sayable = {
        kind: [text for text in texts if splicer.can_say(text.replace("| ", "").split())]
        for kind, texts in questions().items()
        if kind not in ("outside", "backchannel")
    }
    kinds = [kind for kind, texts in sayable.items() if texts]
    weights = np.array([SPLICED_SUMS if kind == "sum" else KIND_WEIGHTS[kind] for kind in kinds])
    for number in range(SPLICED_PARTS):
        path = folder / "speech" / f"{SPLICED}-{number:03}.npz"
        if path.exists():
            continue
        rng, utterances = np.random.default_rng([number, len(SPLICED)]), []
        for _ in range(SPLICED_PART):
            kind = str(rng.choice(kinds, p=weights / weights.sum()))
            text = str(rng.choice(sayable[kind]))
            voice, speech = splicer.say(text.replace("| ", "").split(), rng)
            utterances.append(Utterance(text, kind, f"spliced:{voice}", speech))
        write_part(path, utterances)
        print(f"{path.name}: {len(utterances)} utterances", flush=True)


def _from_person(recording: people.Recording) -> Iterator[Utterance]:
    """The whole recording, and what in it is something of the world."""
    voice = f"person:{recording.source}/{recording.speaker}"
    inside = list(people.inside_world(recording))
    whole = people.speech_of(recording)
    text = " ".join(word.label for word in whole.words) if whole else ""
    if whole and all(text != item.replace("| ", "") for item, _, _ in inside):
        yield Utterance(text, "outside", voice, whole)
    for item, kind, speech in inside:
        yield Utterance(item, kind, voice, speech)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--people", type=Path, metavar="FOLDER", help="recordings of people only")
    parser.add_argument("--kinds", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.people:
        return make_people(options.data, options.people)
    for part in options.kinds:
        try:
            make_parts(options.data, part, options.seed)
        except NoVoice as error:
            if part not in OPTIONAL_PARTS:
                raise
            print(f"{part} left out: {error}", flush=True)


if __name__ == "__main__":
    main()
