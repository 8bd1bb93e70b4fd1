"""Stage 4: the language model.

    python -m training.lm DATA RUN [--minutes 40]               start, or go on from RUN/last.pt
    python -m training.lm DATA RUN --minutes 20 --anneal        go on, learning rate down to zero

The loss is Moshi's: the next text piece and the agent's next eight codes at each step, computed
as ``LMModel.forward`` does. Three linear heads on the transformer's output serve training only and
are not exported: they tell the user's latest word, which answer is owed, and whether the user asks
or just agrees. They make the model listen from the first minutes on; without them it first learns
that it was asked, then what kind of question, and only late which one.

Of words that the agent is told to say only the time is learned, not which: they are given. At their
own steps padding is wanted, so that who is given none falls silent.

The depth transformer is trained on a part of the steps: all where the agent speaks, few where it is
silent.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from moshi.models import LMModel
from moshi.models.lm_utils import _delay_sequence
from torch import nn
from torch.nn import functional

from training import checkpoint, world
from training.dialogues import NO_LABEL, Composer, Dialogue
from training.progress import SAVE_EVERY, Progress, add_options, line, prepare, save_state
from training.scenes import read_scenes
from training.sizes import CODEBOOKS, PADDING_ID, lm_config
from training.tokenizer import build_tokenizer

NOTHING = -1  # moshi's "no input" code: its embedding is zero


@dataclass
class LMOptions:
    """What a run can change. Saved with it."""

    batch: int = 4
    steps: int = 512  # of a dialogue
    learning_rate: float = 1e-3
    warmup: int = 100
    fresh_from: int = 0  # the step of the checkpoint that it goes on from: no heads, no optimiser
    weight_decay: float = 0.02
    padding_weight: float = 0.3
    first_codebook_weight: float = 4.0
    audio_weight: float = 0.5
    heard_weight: float = 0.5
    answer_weight: float = 0.5
    aim_weight: float = 0.5
    decisive_weight: float = 12.0  # of the steps where to yield or to go on: few, and all at once
    silent_share: float = 0.06  # of silent steps, for the depth transformer
    speaking_share: float = 0.5  # of speaking steps, for the depth transformer
    fine_dropout: float = 0.5  # share of dialogues without the user's codebooks 2 to 8
    code_dropout: float = 0.05  # share of steps without the user's first codebook
    scene_share: float = 0.3  # of the dialogues, where there are scenes
    code_noise: float = 0.04  # share of steps with a wrong one
    seed: int = 0


class LMTrainer:
    """The language model in training: loss, optimiser, saved state."""

    def __init__(self, options: LMOptions, text_card: int) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.text_card = text_card
        config = lm_config(text_card)
        self.lm: LMModel = checkpoint.build_lm(config)
        self.heard_head = nn.Linear(config["dim"], len(world.user_words()) + 1)
        self.answer_head = nn.Linear(config["dim"], len(world.answers()))
        self.aim_head = nn.Linear(config["dim"], 3)
        self.heads = (self.heard_head, self.answer_head, self.aim_head)
        self.parameters = [p for part in (self.lm, *self.heads) for p in part.parameters()]
        decayed = [p for p in self.parameters if p.ndim > 1]
        others = [p for p in self.parameters if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, options.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self.step = 0
        self.rng = np.random.default_rng([options.seed, 1])

    def forward(self, dialogues: list[Dialogue]) -> dict[str, torch.Tensor]:
        """All losses of a batch and some shares of right guesses."""
        lm = self.lm
        codes = torch.from_numpy(np.stack([dialogue.codes for dialogue in dialogues]))
        inputs = self._with_dropout(codes) if lm.training else codes
        initial = lm._get_initial_token().expand(len(codes), -1, -1)
        # Position s holds what step s - 1 gave; the model predicts position s + 1 there.
        seen = torch.cat([initial, _delay_sequence(lm.delays, inputs, initial)], 2)[:, :, :-1]
        wanted = _delay_sequence(lm.delays, codes, initial)
        with torch.autocast("cpu", torch.bfloat16):
            hidden, text_logits = lm.forward_text(seen)
            text_logits = text_logits[:, 0].float()
            decisive = torch.from_numpy(np.stack([d.decisive for d in dialogues]))
            chosen = self._steps_for_depth(wanted, decisive)
            depth_codes = wanted.transpose(1, 2)[chosen].T[None]  # (1, 17, chosen steps)
            audio_logits = lm.forward_depformer_training(depth_codes, hidden[chosen][None])[0]
        text, audio = wanted[:, 0], depth_codes[0, 1 : 1 + CODEBOOKS]
        given = torch.from_numpy(np.stack([dialogue.given for dialogue in dialogues]))
        terms = self._text_terms(text_logits, text, given, decisive)
        terms |= self._audio_terms(audio_logits, audio, decisive[chosen])
        heard = torch.from_numpy(np.stack([dialogue.heard_word for dialogue in dialogues]))
        owed = torch.from_numpy(np.stack([dialogue.answer for dialogue in dialogues]))
        # The label of step s is told from position s + 1, the first that has heard step s.
        hidden = hidden[:, 1:].float()
        if self.options.fresh_from and self._warmth() < 1:
            hidden = hidden.detach()  # fresh heads would only disturb a model that knows
        terms |= self._label_terms("heard", self.heard_head(hidden), heard[:, :-1])
        terms |= self._label_terms("answer", self.answer_head(hidden), owed[:, :-1])
        aim = torch.from_numpy(np.stack([dialogue.aim for dialogue in dialogues]))
        terms |= self._label_terms("aim", self.aim_head(hidden), aim[:, :-1])
        return terms

    def _with_dropout(self, codes: torch.Tensor) -> torch.Tensor:
        """Hide parts of the user's codes, so that no voice is learned by heart."""
        codes = codes.clone()
        user = codes[:, 1 + CODEBOOKS :]
        hidden = torch.from_numpy(self.rng.random(len(codes)) < self.options.fine_dropout)
        user[hidden, 1:] = NOTHING
        chance = torch.from_numpy(self.rng.random(user[:, 0].shape))
        user[:, 0][chance < self.options.code_dropout] = NOTHING
        wrong = chance > 1 - self.options.code_noise
        user[:, 0][wrong] = torch.from_numpy(self.rng.integers(self.lm.card, size=int(wrong.sum())))
        return codes

    def _steps_for_depth(self, wanted: torch.Tensor, decisive: torch.Tensor) -> torch.Tensor:
        """Mask ``(batch, steps)`` of the steps on which the depth transformer is trained."""
        silence = wanted[:, 1 : 1 + CODEBOOKS] == wanted.new_tensor(self.silence)[:, None]
        share = torch.where(silence[:, 0], self.options.silent_share, self.options.speaking_share)
        chosen = (torch.from_numpy(self.rng.random(share.shape)) < share) | decisive
        chosen[:, 0] = False  # there the delayed codebooks are not yet codes
        return chosen

    silence: np.ndarray  # the agent's codes of silence, ``(8,)``; set from the bank

    def _text_terms(
        self,
        logits: torch.Tensor,
        wanted: torch.Tensor,
        given: torch.Tensor,
        decisive: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        # That it speaks is given with the first word, so there two steps in a row are.
        first = given & functional.pad(given, (1, -1))
        logits, wanted, given = logits.flatten(0, 1), wanted.flatten(), given.flatten()
        words = wanted > PADDING_ID
        # Which word comes is given, and who is given none has to fall silent.
        meant = torch.where(given & words, PADDING_ID, wanted)
        losses = functional.cross_entropy(logits, meant, reduction="none")
        weights = torch.where(wanted == PADDING_ID, self.options.padding_weight, 1.0)
        weights = torch.where(decisive.flatten(), self.options.decisive_weight * weights, weights)
        weights = weights * ~(given & (~words | first.flatten()))
        right = (logits.argmax(-1) == wanted).float()
        return {
            "text": (losses * weights).sum() / weights.sum(),
            "words_right": right[words & ~given].mean().detach(),
        }

    def _audio_terms(
        self, logits: torch.Tensor, wanted: torch.Tensor, decisive: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses = functional.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none")
        weights = torch.where(decisive, self.options.decisive_weight, 1.0)
        losses = (losses * weights).sum(1) / weights.sum()
        first = self.options.first_codebook_weight
        right = (logits.argmax(-1) == wanted).float()
        return {
            "audio": (first * losses[0] + losses[1:].sum()) / (first + CODEBOOKS - 1),
            "first_right": right[0].mean().detach(),
            "decisive_right": right[0][decisive].sum() / decisive.sum().clamp(min=1),
            "fine_right": right[1:].mean().detach(),
        }

    def _label_terms(
        self, name: str, logits: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        labels, logits = labels.flatten(), logits.flatten(0, 1)
        weights = torch.where(labels == 0, 0.1, 1.0) * (labels != NO_LABEL)
        losses = functional.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL)
        right = (logits.argmax(-1) == labels).float()
        told = (labels != NO_LABEL) & ((labels != 0) | (name == "answer"))
        return {
            name: (losses * weights).sum() / weights.sum().clamp(min=1),
            f"{name}_right": right[told].mean().detach(),
        }

    def train_step(self, dialogues: list[Dialogue], rate: float) -> dict[str, float]:
        """One update; ``rate`` scales the learning rate."""
        options = self.options
        self.lm.train()
        terms = self.forward(dialogues)
        total = (
            terms["text"]
            + options.audio_weight * terms["audio"]
            + options.heard_weight * terms["heard"]
            + options.answer_weight * terms["answer"]
            + options.aim_weight * terms["aim"]
        )
        self.optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = options.learning_rate * self._warmth() * rate
        self.optimiser.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in terms.items()}

    def _warmth(self) -> float:
        """Factor of the learning rate, which rises to 1 over the first steps."""
        return min(1.0, (self.step - self.options.fresh_from + 1) / self.options.warmup)

    def save(self, path: Path) -> None:
        """Write all that is needed to go on."""
        state = {
            "lm": self.lm.state_dict(),
            "heads": [head.state_dict() for head in self.heads],
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "text_card": self.text_card,
            "options": dataclasses.asdict(self.options),
        }
        save_state(state, path)

    @classmethod
    def load(cls, path: Path, **changes) -> "LMTrainer":
        """Go on from a saved state; ``changes`` replace options."""
        state = torch.load(path, weights_only=True)
        trainer = cls(LMOptions(**(state["options"] | changes)), state["text_card"])
        trainer.lm.load_state_dict(state["lm"])
        for head, own in zip(trainer.heads, state["heads"], strict=True):
            head.load_state_dict(own)
        trainer.optimiser.load_state_dict(state["optimiser"])
        trainer.step = state["step"]
        trainer.rng = np.random.default_rng([trainer.options.seed, trainer.step])
        return trainer


@torch.no_grad()
def validate(trainer: LMTrainer, dialogues: list[Dialogue]) -> dict[str, float]:
    """Losses on fixed dialogues, in batches."""
    trainer.lm.eval()
    batch = trainer.options.batch
    parts = [
        trainer.forward(dialogues[start : start + batch])
        for start in range(0, len(dialogues), batch)
    ]
    return {name: float(np.mean([float(part[name]) for part in parts])) for name in parts[0]}


class Scenes:
    """The scenes that have been made so far."""

    def __init__(self, bank: Path) -> None:
        self.bank = bank
        self.known: set[Path] = set()
        self.dialogues: list[Dialogue] = []
        self.look_again()

    def look_again(self) -> None:
        """Read what has come since."""
        for path in sorted(self.bank.glob("scenes-[0-9][0-9][0-9].npz")):
            if path not in self.known:
                self.known.add(path)
                self.dialogues += read_scenes(path)


def draw(composer: Composer, scenes: Scenes, trainer: LMTrainer) -> Dialogue:
    """A dialogue to train on: new, or one of the scenes."""
    rng = trainer.rng
    if scenes.dialogues and rng.random() < trainer.options.scene_share:
        return scenes.dialogues[rng.integers(len(scenes.dialogues))]
    return composer.dialogue(trainer.options.steps, rng)


def train(data: Path, run: Path, minutes: float, anneal: bool, changes: dict) -> None:
    """Train for ``minutes``; with ``anneal`` the learning rate falls to zero over them."""
    run.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(run / checkpoint.TOKENIZER)
    last = run / "last.pt"
    if last.exists():
        trainer = LMTrainer.load(last, **changes)
    else:
        trainer = LMTrainer(LMOptions(**changes), tokenizer.vocab_size())
    composer = Composer(data / "bank", tokenizer)
    trainer.silence = composer.silence.astype(np.int64)
    steps = trainer.options.steps
    held_out = Composer(data / "bank", tokenizer, users="held_out")
    fixed_rng = np.random.default_rng(1)
    fixed = [held_out.dialogue(steps, fixed_rng) for _ in range(16)]
    scenes = Scenes(data / "bank")
    progress = Progress(trainer.step)
    while progress.minutes < minutes:
        rate = progress.rate(minutes, anneal=anneal)
        if trainer.step % SAVE_EVERY == 0:
            composer.look_again()
            scenes.look_again()
        batch = [draw(composer, scenes, trainer) for _ in range(trainer.options.batch)]
        terms = trainer.train_step(batch, rate)
        progress.add(trainer.step, terms)
        if trainer.step % SAVE_EVERY == 0:
            trainer.save(last)
            print(f"{trainer.step} held out {line(validate(trainer, fixed))}", flush=True)
    trainer.save(last)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--anneal", action="store_true")
    add_options(parser)
    options = parser.parse_args()
    changes = prepare(options)
    train(options.data, options.run, options.minutes, options.anneal, changes)


if __name__ == "__main__":
    main()
