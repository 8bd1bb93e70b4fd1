"""How a server of this package greets: what it says of itself and of the session, in metadata."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from pipecat_duplex.protocol.messages import Metadata
from pipecat_duplex.protocol.query import AudioFormat
from pipecat_duplex.session import MOSHI_SAMPLING, Sampling
from pipecat_duplex.session.history import MAX_STEPS, ResumeKey
from pipecat_duplex.version import __version__

SAY = "say"
"""Feature of a server that lets its agent speak words that it is given."""

STREAM = "stream"
"""Feature of a server that takes words as they come, and keeps the model's own ones back."""

CAN_SAY = "can-say"
"""Feature of a server that tells whether its model has the words of a text."""

RESTORE = "restore"
"""Feature of a server that gives out tokens, and goes on with conversations held elsewhere."""

FOLLOW = "follow"
"""Feature of a server that takes steps which were taken elsewhere, after a history."""

HEAR = "hear"
"""Feature of a server that recognises what the user says."""

FORMER_SAY_BYTES = 4096
"""Longest words that servers before 0.4 took."""

_OURS = "pipecat_duplex"

_MAX_NAME_CHARS = 200

# The page of Kyutai shows its box only where each of these is a string.
_BUILD_INFO = dict.fromkeys(
    (
        "build_timestamp",
        "build_date",
        "git_branch",
        "git_timestamp",
        "git_date",
        "git_hash",
        "git_describe",
        "rustc_host_triple",
        "rustc_version",
        "cargo_target_triple",
    ),
    "",
)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server of this package says of itself and of a session.

    Parameters:
        session: Name that the server gave the session.
        audio_format: How audio travels.
        features: What the server can do beyond Moshi's protocol: :data:`SAY`,
            :data:`STREAM`, :data:`RESTORE`.
        memory: Which sessions can go on with a history of this one; ``None`` if steps come without
            tokens.
        max_secs: The session ends after this much audio.
        secs_left: The session ends so many seconds from now.
        max_say_bytes: Longest words that the server takes for the agent, in UTF-8.
        ignored: Parameters of the caller that made no difference.
        sampling: How tokens are chosen.
        version: Version of the server's package.
        hearing_delay_steps: Steps by which the user's words are behind the voice; ``None`` if the
            server does not recognise them.
    """

    session: str = ""
    audio_format: AudioFormat = "opus"
    features: frozenset[str] = frozenset()
    memory: ResumeKey | None = None
    max_secs: float | None = None
    secs_left: float | None = None
    max_say_bytes: int = FORMER_SAY_BYTES
    ignored: tuple[str, ...] = ()
    sampling: Sampling = MOSHI_SAMPLING
    version: str = __version__
    hearing_delay_steps: int | None = None

    def to_metadata(self) -> Metadata:
        """Return the metadata: the fields of the Rust backend, and ours."""
        return Metadata(
            {
                "text_temperature": self.sampling.text_temperature,
                "text_topk": self.sampling.text_top_k,
                "audio_temperature": self.sampling.audio_temperature,
                "audio_topk": self.sampling.audio_top_k,
                "pad_mult": 0.0,
                "repetition_penalty_context": 32,
                "repetition_penalty": 1.0,
                "lm_model_file": "",
                "mimi_model_file": "",
                "instance_name": "pipecat-duplex",
                "build_info": _BUILD_INFO,
                _OURS: self._ours(),
            }
        )

    def _ours(self) -> dict[str, Any]:
        fields = {
            "version": self.version,
            "session": self.session,
            "format": self.audio_format,
            "max_secs": self.max_secs,
            "max_say_bytes": self.max_say_bytes,
            "ignored": list(self.ignored),
            "features": sorted(self.features),
            "memory": None if self.memory is None else asdict(self.memory),
        }
        if self.hearing_delay_steps is not None:
            fields["hearing_delay_steps"] = self.hearing_delay_steps
        return fields if self.secs_left is None else fields | {"secs_left": self.secs_left}

    @classmethod
    def read(cls, metadata: Metadata) -> "Greeting | None":
        """Read metadata; ``None`` if the server is not one of ours.

        Wrong fields are left out.
        """
        fields = metadata.fields
        ours = fields.get(_OURS)
        if not isinstance(ours, dict):
            return None
        say_bytes, delay_steps = ours.get("max_say_bytes"), ours.get("hearing_delay_steps")
        return cls(
            session=_name(ours.get("session")),
            audio_format="pcm" if ours.get("format") == "pcm" else "opus",
            features=frozenset(_names(ours.get("features"))),
            memory=_read_memory(ours.get("memory")),
            max_secs=_secs_or_none(ours.get("max_secs")),
            secs_left=_secs_or_none(ours.get("secs_left")),
            max_say_bytes=say_bytes if _is_count(say_bytes) else FORMER_SAY_BYTES,
            ignored=tuple(_names(ours.get("ignored"))),
            sampling=_read_sampling(fields),
            version=_name(ours.get("version")),
            hearing_delay_steps=delay_steps if _is_count(delay_steps) else None,
        )


def _read_memory(memory: object) -> ResumeKey | None:
    if not isinstance(memory, dict):
        return None
    fingerprint, steps = memory.get("fingerprint"), memory.get("context_steps")
    if not isinstance(fingerprint, str) or not _is_count(steps):
        return None
    return ResumeKey(fingerprint, steps) if 0 < steps <= MAX_STEPS else None


def _read_sampling(fields: Mapping[str, Any]) -> Sampling:
    told = {
        "text_temperature": _secs_or_none(fields.get("text_temperature")),
        "audio_temperature": _secs_or_none(fields.get("audio_temperature")),
        "text_top_k": fields.get("text_topk"),
        "audio_top_k": fields.get("audio_topk"),
    }
    known = {n: v for n, v in told.items() if (_is_count(v) if n.endswith("k") else v is not None)}
    return MOSHI_SAMPLING._replace(**known)


def _names(value: object) -> list[str]:
    named = value if isinstance(value, list) else []
    return [_name(each) for each in named if isinstance(each, str)]


def _name(value: object) -> str:
    """A name from another machine, as it may go into a log."""
    text = value if isinstance(value, str) else ""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", text)[:_MAX_NAME_CHARS]


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _secs_or_none(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e9 else None
