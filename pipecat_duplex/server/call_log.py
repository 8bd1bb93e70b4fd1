"""What is known of a call, and the one line that it leaves in the log."""

from dataclasses import asdict, dataclass

from loguru import logger

from pipecat_duplex.session import STEP_SECS


@dataclass
class CallRecord:
    """What is known of a call, for the log.

    Parameters:
        session: Name of the session.
        peer: Address of the caller.
        audio_format: How audio travelled.
        secs: How long the call took.
        steps: Steps that were answered.
        late_steps: Those among them that took longer than a step.
        mean_delay_ms: From frame to answer, on average.
        max_delay_ms: From frame to answer, at worst.
        ending: One word.
        reason: In words.
    """

    session: str
    peer: str
    audio_format: str
    secs: float = 0.0
    steps: int = 0
    late_steps: int = 0
    mean_delay_ms: float = 0.0
    max_delay_ms: float = 0.0
    ending: str = ""
    reason: str = ""


@dataclass
class CallDelays:
    """Delays of the steps of one call.

    Parameters:
        steps: How many steps.
        late_steps: How many took longer than a step.
        total_secs: Sum.
        max_secs: Longest.
        last_secs: Last.
    """

    steps: int = 0
    late_steps: int = 0
    total_secs: float = 0.0
    max_secs: float = 0.0
    last_secs: float = 0.0

    def add(self, secs: float) -> None:
        """Count a step."""
        self.steps += 1
        self.late_steps += secs > STEP_SECS
        self.total_secs += secs
        self.max_secs = max(self.max_secs, secs)
        self.last_secs = secs


def log_call(record: CallRecord) -> None:
    """Write the one line that a call leaves in the log: in words, and as data in ``line``."""
    fields = {"event": "session", **asdict(record)}
    logger.bind(line=fields).info(
        "session {session} of {peer}: {ending} ({reason}) after {secs} s, {steps} steps in "
        "{audio_format}, {late_steps} late, delay {mean_delay_ms} ms, at most {max_delay_ms} ms",
        **fields,
    )
