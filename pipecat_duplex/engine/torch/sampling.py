"""Sampling per slot: every conversation has its own temperature, top-k and seed.

moshi samples a whole batch with one temperature and one random state, so a neighbour would change
what the others say. Here sampling is an argmax over noisy scores (Gumbel-max): with ``q`` drawn
from an exponential distribution, ``argmax(logits / temperature - log(q))`` is distributed as a draw
from ``softmax(logits / temperature)``. The noise of a slot comes from a generator of its own, drawn
only in steps in which the slot runs. It belongs to the token, not to the token's rank: two nearly
equal logits may change places between batch sizes without changing the outcome.
"""

from collections.abc import Collection, Iterable

import torch
from moshi.models.lm import LMGen, LMModel

from pipecat_duplex.engine.model import MIN_TEMPERATURE, ChooseWord
from pipecat_duplex.engine.torch.transformers import DepthTransformer, TimeTransformer, can_run
from pipecat_duplex.session import SessionConfig


class SlotChoice:
    """How each slot chooses among one vocabulary."""

    def __init__(self, slots: int, vocabulary: int, device: torch.device, fixed_shapes: bool):
        """Initialize every slot greedy.

        Args:
            slots: Number of slots, ``B``.
            vocabulary: Number of tokens to choose from, ``V``.
            device: Where the logits are.
            fixed_shapes: Keep all shapes for ever, as a CUDA graph wants.
        """
        self._vocabulary = vocabulary
        self._fixed_shapes = fixed_shapes
        self._top_k = [1] * slots
        self._widest_top_k = vocabulary if fixed_shapes else 1
        # A greedy slot is one with no noise, temperature 1 and top-1.
        self._inverse_temperature = torch.ones(slots, 1, device=device)
        self._last_rank = torch.zeros(slots, 1, dtype=torch.long, device=device)

    def set_slot(self, slot: int, temperature: float, top_k: int) -> None:
        """Set how a slot chooses; a temperature of 0 is greedy."""
        greedy = temperature < MIN_TEMPERATURE
        self._top_k[slot] = 1 if greedy else min(top_k, self._vocabulary)
        if not self._fixed_shapes:
            self._widest_top_k = max(self._top_k)
        self._inverse_temperature[slot] = 1.0 if greedy else 1 / temperature
        self._last_rank[slot] = self._top_k[slot] - 1

    def choose(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Choose a token for each slot.

        Equal logits at the border of the top-k all stay in.

        Args:
            logits: Shape ``(B, V)``, any float type.
            noise: Gumbel noise, float32, shape ``(B, V)``; zero for greedy slots.

        Returns:
            Tokens, int64, shape ``(B,)``.
        """
        logits = logits.float()
        ranked = logits.topk(self._widest_top_k, dim=-1).values
        lowest = ranked.gather(-1, self._last_rank)
        scores = torch.addcmul(noise, logits, self._inverse_temperature)
        return scores.masked_fill_(logits < lowest, -torch.inf).argmax(-1)


class SlotSampler:
    """Sampling settings and random numbers of all slots."""

    def __init__(
        self,
        slots: int,
        *,
        text_vocabulary: int,
        audio_vocabulary: int,
        codebooks: int,
        device: torch.device,
    ):
        """Initialize every slot greedy.

        Args:
            slots: Number of slots, ``B``.
            text_vocabulary: Text tokens to choose from.
            audio_vocabulary: Entries of each audio codebook.
            codebooks: Audio codebooks that are sampled in a step.
            device: Where the logits are.
        """
        self._device = device
        self._graphed = device.type == "cuda"
        # Text is chosen between moshi's two CUDA graphs, audio within the second.
        self._text = SlotChoice(slots, text_vocabulary, device, fixed_shapes=False)
        self._audio = SlotChoice(slots, audio_vocabulary, device, fixed_shapes=self._graphed)
        # One row of noise a slot, text first: a single draw fills it.
        self._noise = torch.zeros(
            slots, text_vocabulary + codebooks * audio_vocabulary, device=device
        )
        text_noise, audio_noise = self._noise.tensor_split([text_vocabulary], dim=1)
        self._text_noise = text_noise
        self._audio_noise = audio_noise.split(audio_vocabulary, dim=1)
        self._drawn: list[tuple[torch.Generator, torch.Tensor] | None] = [None] * slots
        self._drawn_in_step: set[int] = set()
        self._put_back: set[int] = set()

    @property
    def is_greedy(self) -> bool:
        """Whether plain argmax serves every slot, at any time that shapes may change."""
        return not self._graphed and not any(self._drawn)

    def set_slot(self, slot: int, config: SessionConfig) -> None:
        """Begin a conversation: its settings, and its random numbers from the start.

        Args:
            slot: The slot.
            config: Its sampling settings. A seed of None is 0: who opens a session draws one.
        """
        sampling = config.sampling()
        self._put_back.discard(slot)
        self._text.set_slot(slot, sampling.text_temperature, sampling.text_top_k)
        self._audio.set_slot(slot, sampling.audio_temperature, sampling.audio_top_k)
        self._noise[slot].zero_()
        samples_text = sampling.text_temperature >= MIN_TEMPERATURE
        samples_audio = sampling.audio_temperature >= MIN_TEMPERATURE
        if not samples_text and not samples_audio:
            self._drawn[slot] = None
            return
        if samples_text and samples_audio:
            row = self._noise[slot]
        elif samples_text:
            row = self._text_noise[slot]
        else:
            row = self._noise[slot, self._text_noise.shape[1] :]
        generator = torch.Generator(self._device).manual_seed(config.seed or 0)
        self._drawn[slot] = (generator, row)

    def clear_slot(self, slot: int) -> None:
        """Forget a slot's settings: it costs nothing until the next conversation."""
        self.set_slot(slot, SessionConfig.greedy())

    def begin_step(self) -> None:
        """Begin to note whose noise is drawn, for ``put_back``."""
        self._drawn_in_step.clear()

    def draw(self, slots: Iterable[int]) -> None:
        """Draw the noise of the next step for the slots that run in it."""
        for slot in slots:
            drawn = self._drawn[slot]
            if drawn is not None and slot not in self._put_back:
                generator, row = drawn
                row.exponential_(generator=generator).log_().neg_()
            self._put_back.discard(slot)
            self._drawn_in_step.add(slot)

    def put_back(self) -> None:
        """Let the next step of the slots that have just drawn use the same noise again."""
        self._put_back |= self._drawn_in_step
        self._drawn_in_step.clear()

    def choose_text(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose text tokens, shape ``(B,)``, from logits of shape ``(B, V)``."""
        return self._text.choose(logits, self._text_noise)

    def choose_audio(self, logits: torch.Tensor, codebook: int) -> torch.Tensor:
        """Choose entries of a codebook, shape ``(B,)``, from logits of shape ``(B, V)``."""
        return self._audio.choose(logits, self._audio_noise[codebook])


class SlotLMGen(LMGen):
    """moshi's generation, sampling per slot and with slots that keep their own time."""

    def __init__(self, lm: LMModel, slots: int, *, plain_memory: bool = True):
        """Initialize with every slot greedy.

        Args:
            lm: The language model.
            slots: Number of slots, ``B``.
            plain_memory: Whether keys and values are kept in the model's own number format.
        """
        super().__init__(
            lm,
            use_sampling=False,
            support_out_of_sync=True,
            on_text_logits_hook=self._keep_text_logits,
            on_text_hook=self._replace_text,
        )
        self.sampler = SlotSampler(
            slots,
            text_vocabulary=lm.text_linear.out_features,
            audio_vocabulary=lm.card,
            codebooks=lm.dep_q,
            device=lm.device,
        )
        self._light = plain_memory and can_run(lm)
        self._depth = DepthTransformer(lm, slots) if self._light else None
        self._text_logits: torch.Tensor | None = None
        self._talkers: Collection[int] = ()
        self._choose_word: ChooseWord | None = None

    def choose_words_for(self, slots: Collection[int], choose_word: ChooseWord | None) -> None:
        """Ask ``choose_word``, if there is one, what these slots say in the next step."""
        self._talkers = slots
        self._choose_word = choose_word

    def _keep_text_logits(self, logits: torch.Tensor) -> None:
        """Keep logits of shape ``(B, 1, 1, V)`` until moshi has taken their argmax."""
        self._text_logits = logits

    def _replace_text(self, tokens: torch.Tensor) -> None:
        """Put the chosen tokens in place of the most likely ones, shape ``(B,)``."""
        if not self.sampler.is_greedy:
            assert self._text_logits is not None
            tokens.copy_(self.sampler.choose_text(self._text_logits[:, 0, 0]))
        if self._choose_word is not None:
            chosen = tokens.tolist()
            for slot in self._talkers:
                chosen[slot] = self._choose_word(slot, chosen[slot])
            tokens.copy_(torch.tensor(chosen))

    def depformer_step(
        self, text_token: torch.Tensor, transformer_out: torch.Tensor
    ) -> torch.Tensor:
        """Choose the agent's codebooks one after another, as moshi does.

        Args:
            text_token: Text token of the step, shape ``(B,)``.
            transformer_out: Output of the temporal transformer, shape ``(B, 1, dim)``.

        Returns:
            Tokens, shape ``(B, codebooks)``.
        """
        if self._depth is not None:
            return self._step_depth(self._depth, text_token, transformer_out)
        if self.sampler.is_greedy:
            return super().depformer_step(text_token, transformer_out)
        lm = self.lm_model
        assert lm.depformer is not None
        token = text_token
        tokens: list[torch.Tensor] = []
        with lm.depformer.streaming(len(text_token)):
            for codebook in range(lm.dep_q):
                logits = lm.forward_depformer(codebook, token[:, None, None], transformer_out)
                token = self.sampler.choose_audio(logits[:, 0, 0], codebook)
                tokens.append(token)
        return torch.stack(tokens, dim=1)

    def _init_streaming_state(self, batch_size: int):
        state = super()._init_streaming_state(batch_size)
        if self._light:
            state.graphed_main.func = TimeTransformer(self.lm_model)
        return state

    def _step_depth(
        self, depth: DepthTransformer, token: torch.Tensor, transformer_out: torch.Tensor
    ) -> torch.Tensor:
        tokens: list[torch.Tensor] = []
        for codebook in range(self.lm_model.dep_q):
            logits = depth(codebook, token, transformer_out)
            if self.sampler.is_greedy:
                token = logits.argmax(-1)
            else:
                token = self.sampler.choose_audio(logits, codebook)
            tokens.append(token)
        return torch.stack(tokens, dim=1)
