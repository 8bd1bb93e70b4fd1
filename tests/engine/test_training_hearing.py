"""The network that hears phones: its training, and the graph that the engine runs."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pipecat_duplex.conversation.loudness import BANDS, FRAMES, Spectra, log_mel  # noqa: E402
from pipecat_duplex.engine.phones import FILE, PhoneHearing  # noqa: E402
from pipecat_duplex.session import STEP_SAMPLES  # noqa: E402
from training.bank import hear  # noqa: E402
from training.codec import HALF_STEPS  # noqa: E402
from training.corpus import Utterance  # noqa: E402
from training.hearing import (  # noqa: E402
    CODES,
    SCENE_STEPS,
    UNKNOWN,
    Network,
    Pool,
    count_phones,
    export,
    lay_scene,
    loss_of,
    share_told,
    surprise,
)
from training.sizes import SAMPLE_RATE  # noqa: E402
from training.speech import PHONES, Span, Speech  # noqa: E402

pytestmark = pytest.mark.engine


def noise(steps: int, conversations: int = 1) -> np.ndarray:
    shape = (conversations, steps * STEP_SAMPLES)
    return 0.1 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def trained(tmp_path) -> Network:
    """A network, with its graph in ``tmp_path``."""
    network = Network()
    torch.save(network.state_dict(), tmp_path / "last.pt")
    export(tmp_path, tmp_path / FILE)
    return network


def wanted(network: Network, sound: np.ndarray) -> np.ndarray:
    steps = sound.reshape(-1, STEP_SAMPLES)
    before = np.concatenate([np.zeros_like(steps[:1]), steps[:-1]])
    mels = torch.from_numpy(log_mel(before, steps).reshape(1, -1, BANDS))
    with torch.no_grad():
        return network(mels)[0][0].argmax(-1).numpy()


def test_the_engine_computes_what_was_trained(trained, tmp_path):
    engine, spectra = PhoneHearing.load(tmp_path, 1), Spectra(1)
    assert engine is not None
    sound = noise(12)[0]
    heard = [engine.hear(spectra.of({0: step}))[0] for step in sound.reshape(-1, STEP_SAMPLES)]
    assert heard == wanted(trained, sound).tolist()


def test_sessions_of_the_training_are_heard_as_by_the_engine(trained, tmp_path):
    engine = PhoneHearing.load(tmp_path, 3)
    assert engine is not None
    sounds = noise(9, 3)
    for _ in range(2):  # each from its beginning
        codes = hear(engine, sounds)
        np.testing.assert_array_equal(codes, [wanted(trained, sound) for sound in sounds])


class OneUtterance:
    """Draws the same again and again."""

    def __init__(self) -> None:
        tone = 0.1 * np.sin(np.arange(SAMPLE_RATE) / 10).astype(np.float32)
        phones = (Span("aa", 0.0, 0.5), Span("s", 0.5, 1.0))
        self.utterance = Utterance("a", "outside", "x:y", Speech(tone, phones, ()))

    def draw(self):
        return self.utterance, 0.0


def test_a_scene_says_which_phones_are_heard():
    sound, phones = lay_scene(OneUtterance(), np.random.default_rng(3))
    assert sound.shape == (SCENE_STEPS * STEP_SAMPLES,)
    assert phones.shape == (SCENE_STEPS * HALF_STEPS,)
    names = [PHONES[phone] for phone in phones]
    assert set(names) == {"pau", "aa", "s"}
    changes = set(itertools.pairwise(names))
    assert ("aa", "s") in changes and ("s", "aa") not in changes


def pool(codes: np.ndarray, phones: np.ndarray) -> Pool:
    mels = np.zeros((len(codes), codes.shape[1] * FRAMES, BANDS), np.float32)
    return Pool(mels, phones.astype(np.int8), codes.astype(np.int16))


@pytest.fixture
def table() -> torch.Tensor:
    """Code 1 stands for aa aa, code 2 for s pau."""
    pairs = np.array([[PHONES.index("aa")] * 2, [PHONES.index("s"), 0]])
    codes = np.tile([1, 2], (1, 400))
    return count_phones(pool(codes, np.tile(pairs, (400, 1))[None]))


def test_a_code_is_no_surprise_where_its_phones_are_heard(table):
    scores = torch.full((2, CODES), -20.0)
    scores[0, 1] = scores[1, 2] = 20.0
    phones = torch.tensor([[PHONES.index("aa")] * 2, [PHONES.index("s"), 0]])
    right = surprise(scores, phones, table)
    wrong = surprise(scores.flip(0), phones, table)
    assert (right < 0.2).all() and (wrong > 5).all()
    assert share_told(torch.tensor([1, 2]), phones.numpy(), table) == 1.0


def test_scenes_that_the_codec_never_heard_teach_phones_alone(table):
    network, rng = Network(), np.random.default_rng(0)
    phones = rng.integers(0, len(PHONES), (2, 5, HALF_STEPS))
    unknown = pool(np.full((2, 5), UNKNOWN), phones)
    known = pool(np.ones((2, 5)), phones)
    mixed = Pool(
        *(np.concatenate(each) for each in zip(_parts(unknown), _parts(known), strict=True))
    )
    losses = [loss_of(network, each, table).item() for each in (known, mixed)]
    assert losses[0] == pytest.approx(losses[1])


def _parts(own: Pool) -> tuple[np.ndarray, ...]:
    return own.mels, own.phones, own.codes
