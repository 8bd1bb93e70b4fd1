import numpy as np
import pytest
import torch
from moshi.utils.sampling import sample_token

from pipecat_duplex.engine.torch.sampling import SlotChoice, SlotSampler
from pipecat_duplex.session import SessionConfig

CPU = torch.device("cpu")
TEXT, AUDIO, CODEBOOKS = 40, 24, 2


def make_sampler(slots: int) -> SlotSampler:
    return SlotSampler(
        slots, text_vocabulary=TEXT, audio_vocabulary=AUDIO, codebooks=CODEBOOKS, device=CPU
    )


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    return float((((counts - expected) ** 2)[possible] / expected[possible]).sum())


@pytest.mark.parametrize(("temperature", "top_k"), [(0.7, 5), (1.0, 25), (1.5, 1000)])
def test_distribution_is_that_of_moshi(temperature: float, top_k: int) -> None:
    slots, rounds = 2000, 10
    torch.manual_seed(0)
    logits = 2 * torch.randn(TEXT)
    sampler = make_sampler(slots)
    for slot in range(slots):
        sampler.set_slot(
            slot, SessionConfig(text_temperature=temperature, text_top_k=top_k, seed=slot)
        )
    counts = torch.zeros(TEXT)
    for _ in range(rounds):
        sampler.draw(range(slots))
        counts += sampler.choose_text(logits.expand(slots, -1)).bincount(minlength=TEXT)
    theirs = sample_token(
        logits.expand(slots * rounds, -1), use_sampling=True, temp=temperature, top_k=top_k
    ).bincount(minlength=TEXT)

    lowest = logits.topk(min(top_k, TEXT)).values[-1]
    kept = torch.where(logits >= lowest, logits / temperature, -torch.inf)
    expected = kept.softmax(-1).numpy()
    freedom = min(top_k, TEXT) - 1
    bound = freedom + 5 * (2 * freedom) ** 0.5
    assert chi_square(theirs.numpy(), expected) < bound  # the yardstick itself
    assert chi_square(counts.numpy(), expected) < bound


def test_every_slot_has_its_own_settings() -> None:
    settings = [(0.0, 25), (1.0, 1), (1.0, 3), (3.0, 10)]
    sampler = make_sampler(len(settings))
    for slot, (temperature, top_k) in enumerate(settings):
        config = SessionConfig(audio_temperature=temperature, audio_top_k=top_k, seed=slot)
        sampler.set_slot(slot, config)
    logits = torch.randn(1, AUDIO)
    seen: list[set[int]] = [set() for _ in settings]
    for _ in range(300):
        sampler.draw(range(len(settings)))
        for slot, token in enumerate(sampler.choose_audio(logits.expand(4, -1), 1).tolist()):
            seen[slot].add(token)
    ranked = logits[0].argsort(descending=True).tolist()
    assert seen[0] == seen[1] == {ranked[0]}
    assert seen[2] == set(ranked[:3])
    assert seen[3] <= set(ranked[:10]) and len(seen[3]) > 5


def test_greedy_is_argmax_in_mixed_company() -> None:
    sampler = make_sampler(3)
    sampler.set_slot(1, SessionConfig(seed=1))
    sampler.set_slot(2, SessionConfig.greedy(text_top_k=30))
    assert not sampler.is_greedy
    for _ in range(50):
        sampler.draw([0, 1, 2])
        logits = torch.randn(3, TEXT).bfloat16()  # many logits are equal
        assert (sampler.choose_text(logits) == logits.float().argmax(-1))[[0, 2]].all()
    sampler.clear_slot(1)
    assert sampler.is_greedy


@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_fixed_shapes_change_nothing(fixed_shapes: bool) -> None:
    choice = SlotChoice(2, TEXT, CPU, fixed_shapes)
    choice.set_slot(0, 0.8, 5)
    choice.set_slot(1, 0.0, 5)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, TEXT, generator=generator)
    noise = torch.randn(2, TEXT, generator=generator)
    noise[1] = 0
    tokens = choice.choose(logits, noise).tolist()
    best = logits[0].topk(5).indices
    assert tokens[0] == best[(logits[0][best] / 0.8 + noise[0][best]).argmax()]
    assert tokens[1] == logits[1].argmax()


def test_noise_of_a_slot_ignores_its_neighbours() -> None:
    """Same tokens from the same seed: alone, in company, in another slot, joined later."""
    config = SessionConfig(seed=7)
    logits = [torch.randn(1, TEXT) for _ in range(20)]
    alone = make_sampler(1)
    alone.set_slot(0, config)
    company = make_sampler(5)
    for slot in range(5):
        company.set_slot(slot, SessionConfig(seed=slot, text_top_k=slot + 1))
    company.draw(range(5))
    company.set_slot(3, config)
    for number, row in enumerate(logits):
        company.draw([0])  # steps in which slot 3 does not run
        company.draw([3] if number % 2 else [1, 3, 4])
        alone.draw([0])
        assert alone.choose_text(row)[0] == company.choose_text(row.expand(5, -1))[3]


def test_only_text_or_only_audio_is_sampled() -> None:
    sampler = make_sampler(2)
    sampler.set_slot(0, SessionConfig(text_temperature=0, audio_temperature=2, seed=0))
    sampler.set_slot(1, SessionConfig(text_temperature=2, audio_temperature=0, seed=0))
    text, audio = torch.randn(2, TEXT), torch.randn(2, AUDIO)
    texts, audios = [], []
    for _ in range(50):
        sampler.draw([0, 1])
        texts.append(sampler.choose_text(text).tolist())
        audios.append(sampler.choose_audio(audio, 0).tolist())
    for chosen, logits, greedy in ((texts, text, 0), (audios, audio, 1)):
        assert {pair[greedy] for pair in chosen} == {int(logits[greedy].argmax())}
        assert len({pair[1 - greedy] for pair in chosen}) > 3
