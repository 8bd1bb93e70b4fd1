"""The network that hears barge-ins: its training, and the graph that the engine runs."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pipecat_duplex.conversation.loudness import BANDS, Spectra, log_mel  # noqa: E402
from pipecat_duplex.engine.barge_in import FILE, BargeInNetwork  # noqa: E402
from pipecat_duplex.session import STEP_SAMPLES  # noqa: E402
from training.average import mean_weights  # noqa: E402
from training.barge_in import (  # noqa: E402
    ASIDE_DB,
    CLASSES,
    FAR_DB,
    SCENE_STEPS,
    Event,
    Network,
    coloured,
    from_afar,
    hums_of,
    lay_scene,
    loss_of,
)
from training.corpus import Utterance  # noqa: E402
from training.onnx_graphs.recurrent import write_network  # noqa: E402
from training.sizes import SAMPLE_RATE  # noqa: E402
from training.speech import Span, Speech  # noqa: E402

pytestmark = pytest.mark.engine


def sound(steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.1 * rng.standard_normal((steps, STEP_SAMPLES)).astype(np.float32)


def test_the_engine_computes_what_was_trained(tmp_path):
    network, steps = Network(), sound(12)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    write_network(weights, tmp_path / FILE)
    engine, spectra = BargeInNetwork.load(tmp_path, 1), Spectra(1)
    assert engine is not None
    heard = [engine.hear(spectra.of({0: step}))[0] for step in steps]
    before = np.concatenate([np.zeros_like(steps[:1]), steps[:-1]])
    mels = torch.from_numpy(log_mel(before, steps).reshape(1, -1, BANDS))
    with torch.no_grad():
        wanted = network(mels).softmax(-1)[0].numpy()
    np.testing.assert_allclose(heard, wanted, atol=1e-5)


class OneEvent:
    """Draws the same again and again."""

    def __init__(self, kind: int):
        tone = 0.1 * np.sin(np.arange(SAMPLE_RATE) / 10).astype(np.float32)
        self.event = Event(CLASSES.index(kind), tone, 0.0, 1.0, 0.0)

    def draw(self) -> Event:
        return self.event


@pytest.mark.parametrize("kind", CLASSES)
def test_a_scene_says_what_is_heard_in_each_step(kind: str):
    mels, classes = lay_scene(OneEvent(kind), np.random.default_rng(3))
    assert classes.shape == (SCENE_STEPS,) and mels.shape == (4 * SCENE_STEPS, BANDS)
    assert set(classes) == {0, CLASSES.index(kind)}
    if kind != "nobody":
        loud = mels.astype(np.float32).max(1).reshape(SCENE_STEPS, -1).max(1)
        assert loud[classes > 0].mean() > loud[classes == 0].mean()


def test_who_is_far_comes_after_who_is_near_and_is_nobody():
    near, far = OneEvent("floor").event, replace(OneEvent("nobody").event, is_far=True)
    events = itertools.chain([far, far, near], itertools.repeat(far))
    _, classes = lay_scene(SimpleNamespace(draw=events.__next__), np.random.default_rng(3))
    assert 12 <= np.count_nonzero(classes == CLASSES.index("floor")) <= 17


def test_a_voice_from_afar_is_duller_and_fainter():
    rng = np.random.default_rng(0)
    bright = 0.1 * rng.standard_normal(SAMPLE_RATE).astype(np.float32)
    for _ in range(8):
        heard, level_db = from_afar(bright, rng)
        spectrum = np.abs(np.fft.rfft(heard[:SAMPLE_RATE]))
        assert spectrum[8_000:].mean() < 0.8 * spectrum[:2_000].mean()
        assert FAR_DB[0] <= level_db <= ASIDE_DB[1]


def test_other_microphones_change_no_time():
    mels = np.zeros((2, 8, BANDS), np.float16)
    changed = coloured(mels, np.random.default_rng(0))
    np.testing.assert_allclose(changed, np.broadcast_to(changed[:, :1], changed.shape))
    assert np.abs(changed[0] - changed[1]).max() > 0.1


def test_the_onset_weighs_most():
    classes = torch.tensor([[0] * 10 + [2] * 20])
    right = torch.nn.functional.one_hot(classes, 3).float() * 8
    late, early = right.clone(), right.clone()
    early[0, 10], late[0, 29] = right[0, 0], right[0, 0]
    assert loss_of(early, classes) > loss_of(late, classes) > loss_of(right, classes)


def test_a_mean_of_two_runs():
    first, second = {"a": torch.ones(3)}, {"a": torch.zeros(3)}
    (weights,) = mean_weights(first, second, 0.7).values()
    np.testing.assert_allclose(weights, 0.7)
    assert weights.numpy().dtype == np.float32


def test_what_people_say_while_they_listen_is_cut_out():
    words = tuple(Span(word, at, at + 0.4) for at, word in enumerate(("well", "right", "now")))
    speech = Speech(np.ones(3 * SAMPLE_RATE, np.float32), (), words)
    (hum,) = hums_of(Utterance("well right now", "outside", "person:a/b", speech))
    assert (hum.text, hum.kind) == ("right", "backchannel")
    assert 0.4 <= len(hum.speech.samples) / SAMPLE_RATE <= 0.5
