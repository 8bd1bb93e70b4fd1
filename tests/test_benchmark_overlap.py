"""The benchmark's overlaps: what counts as a response, and what another voice sounds like."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.duplex.dialogue import Dialogue, Moment
from benchmarks.duplex.overlap import (
    ASIDE,
    BACKGROUND,
    HUM,
    INTERRUPTION,
    NEITHER,
    OVERLAP,
    RESPOND,
    RESUME,
    SCENES,
    draw_overlaps,
    far_away,
    overlap_lines,
    reactions,
    turned_away,
)
from benchmarks.duplex.report import Report, markdown
from benchmarks.duplex.stage import in_lock_step
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import SAMPLE_RATE_HZ
from training import world

STORY = world.STORY.split()
needs_speech = pytest.mark.needs("flite", "espeak-ng", "soxr")


def dialogue(scene: str, *said: tuple[float, float, list[str]]) -> Dialogue:
    """Somebody speaks from second 4 to 5 over a story that was asked for until second 2."""
    pcm, words = np.zeros(20 * SAMPLE_RATE_HZ, np.float32), []
    for start_secs, end_secs, text in said:
        pcm[round(start_secs * SAMPLE_RATE_HZ) : round(end_secs * SAMPLE_RATE_HZ)] = 0.1
        times = np.linspace(start_secs, end_secs, len(text), endpoint=False)
        words += list(zip(times.tolist(), text, strict=True))
    over = (2.0, world.STORY)
    moment = Moment(OVERLAP, "", scene, "", 4.0, 5.0, over=over, until_secs=19.0)
    return Dialogue("", OVERLAP, np.zeros_like(pcm), pcm, words, [moment])


@pytest.mark.parametrize(
    ("said", "what", "stop_secs", "response_secs"),
    [
        ([(2.5, 12.0, STORY)], RESUME, None, None),
        ([(2.5, 4.4, STORY[:5]), (5.6, 12.0, STORY[5:])], RESUME, None, None),
        ([(2.5, 4.4, STORY[:5]), (5.6, 7.0, ["my", "name"])], RESPOND, 0.4, 0.6),
        ([(2.5, 4.4, STORY[:5])], NEITHER, 0.4, None),
    ],
)
def test_a_reaction_is_what_is_said_after_it(said, what, stop_secs, response_secs):
    (found,) = reactions(dialogue(HUM, *said), knows_words=True)
    assert (found.scene, found.what) == (HUM, what)
    assert found.stop_secs == (stop_secs and pytest.approx(stop_secs, abs=0.02))
    assert found.response_secs == (response_secs and pytest.approx(response_secs, abs=0.02))


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ([(2.5, 12.0, [])], RESUME),
        ([(2.5, 4.4, []), (5.6, 12.0, [])], RESPOND),
        ([(2.5, 4.4, [])], NEITHER),
    ],
)
def test_without_words_sound_decides(said, what):
    (found,) = reactions(dialogue(ASIDE, *said), knows_words=False)
    assert found.what == what


def test_only_what_is_said_over_the_story_counts():
    assert reactions(dialogue(HUM), knows_words=True) == []
    other = dialogue(HUM, (2.5, 12.0, ["sorry", "i", "do", "not"]))
    assert reactions(other, knows_words=True) == []


def test_another_voice_is_fainter_duller_and_comes_back():
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[0] = 1.0
    aside, background = turned_away(click), far_away(click)
    at = [round(secs * SAMPLE_RATE_HZ) for secs in (0.045, 0.120)]
    assert aside[at] / aside[0] == pytest.approx([10 ** (-6 / 20), 10 ** (-12 / 20)], abs=0.02)
    time = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for hertz, in_aside, in_background in ((500, -8, -15), (6_000, -13, -39)):
        # The echoes have not come yet.
        tone = np.sin(2 * np.pi * hertz * time).astype(np.float32)
        for heard, level_db in ((turned_away, in_aside), (far_away, in_background)):
            early = slice(200, 1_000)
            level = np.sqrt(np.mean(heard(tone)[early] ** 2) / np.mean(tone[early] ** 2))
            assert 20 * np.log10(level) == pytest.approx(level_db, abs=1.0)
    assert np.abs(background).max() < np.abs(aside).max()


@needs_speech
def test_agents_that_never_and_always_yield_are_told_apart():
    (plan,) = draw_overlaps(1, 3, kokoro=False)
    plans = [replace(plan, background=np.zeros(SAMPLE_RATE_HZ, np.float32))]
    assert sorted(turn.over.kind for turn in plans[0].turns) == sorted(SCENES * 2)
    found = {}
    for name, yield_steps in (("deaf", None), ("shy", 2)):
        # It hears loudness, and answers everything with the story.
        script = Script(replies=[world.STORY], reply_steps=3, yield_steps=yield_steps, step_secs=0)
        backend = ScriptedBackend(script, slots=1)
        (held,) = asyncio.run(in_lock_step(backend, plans, at_once=1, seeds=[None]))
        found[name] = reactions(held, knows_words=True)
    deaf = [each.what for each in found["deaf"]]
    assert deaf and set(deaf) == {RESUME}
    shy = [each for each in found["shy"] if each.scene == INTERRUPTION]
    assert shy and {each.what for each in shy} <= {RESPOND, NEITHER}
    lines = overlap_lines(found)
    assert lines[0].endswith("| deaf | shy |") and len({line.count("|") for line in lines}) == 1
    report = Report("deaf", "in lock step", 1, 3, knows_world=True, overlaps=found["deaf"])
    assert f"| {BACKGROUND} | {RESUME} | 0.00, 1.00, 0.00" in markdown(report)
