"""What a server of this package says of itself and of a session."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipecat_duplex.session.history import MAX_STEPS, ResumeKey


@dataclass(frozen=True, slots=True)
class ServerNotes:
    """The part of the metadata that only this package's servers send.

    Parameters:
        session: Name that the server gave the session.
        audio_format: How audio travels.
        features: What the server can do beyond Moshi's protocol.
        memory: Identifies which sessions can resume this one, if steps carry tokens.
    """

    session: str = ""
    audio_format: str = ""
    features: frozenset[str] = frozenset()
    memory: ResumeKey | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> "ServerNotes | None":
        """Read the notes; ``None`` if the server is none of ours.

        Args:
            metadata: What the server sent. Whatever is wrong in it is left out.
        """
        ours = metadata.get("pipecat_duplex")
        if not isinstance(ours, dict):
            return None
        features = ours.get("features")
        named = features if isinstance(features, list) else []
        return cls(
            session=str(ours.get("session", "")),
            audio_format=str(ours.get("format", "")),
            features=frozenset(name for name in named if isinstance(name, str)),
            memory=_read_memory(ours.get("memory")),
        )


def _read_memory(memory: object) -> ResumeKey | None:
    if not isinstance(memory, dict):
        return None
    fingerprint, steps = memory.get("fingerprint"), memory.get("context_steps")
    if not isinstance(fingerprint, str) or not isinstance(steps, int):
        return None
    return ResumeKey(fingerprint, steps) if 0 < steps <= MAX_STEPS else None
