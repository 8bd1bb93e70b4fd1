"""What is known of a call, and the lines that a server leaves in the log."""

import logging
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from loguru import logger

from pipecat_duplex.server.limit import LineLimit
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


class ServerLog:
    """The lines that a server leaves in the log, no more than a disk and a reader can bear.

    Each line is in words, and as data in ``line``.
    """

    def __init__(self):
        """Initialize without lines."""
        self._calls = LineLimit(per_sec=50, burst=500)
        self._refusals = LineLimit(per_sec=5, burst=50)
        self._faults = LineLimit(per_sec=1, burst=20)

    def call(self, record: CallRecord) -> None:
        """Tell how a call went."""
        fields = {"event": "session", **asdict(record)}
        self._write(
            self._calls,
            "session {session} of {peer}: {ending} ({reason}) after {secs} s, {steps} steps in "
            "{audio_format}, {late_steps} late, delay {mean_delay_ms} ms, at most {max_delay_ms} "
            "ms",
            fields,
        )

    def refusal(self, peer: str, kind: str, status: int, reason: str) -> None:
        """Tell that a caller was not let in."""
        fields = {"event": "refused", "peer": peer, "kind": kind, "status": status}
        text = "refused {peer} with HTTP {status}, {kind}: {reason}"
        self._write(self._refusals, text, {**fields, "reason": " ".join(reason.split())})

    def fault(self, text: str, **fields: object) -> None:
        """Tell of something about connections that is wrong."""
        self._write(self._faults, text, {"event": "fault", **fields})

    def _write(self, limit: LineLimit, text: str, fields: dict[str, object]) -> None:
        left_out = limit.take(time.monotonic())
        if left_out is None:
            return
        if left_out:
            fields["left_out"] = left_out
            text += " ({left_out} lines like this were left out before)"
        logger.bind(line=fields).info(text, **fields)


class HttpLogger(logging.Logger):
    """Takes what aiohttp has to say of requests that it cannot read.

    Its own words would hold the request, and with it a key, and a traceback for each.
    """

    def __init__(self, server_log: ServerLog):
        """Initialize.

        Args:
            server_log: Where it is told instead.
        """
        super().__init__("pipecat_duplex.server.http", logging.WARNING)
        self._server_log = server_log

    def handle(self, record: logging.LogRecord) -> None:
        """Tell that something was wrong, and of what kind."""
        error = record.exc_info[1] if record.exc_info else None
        kind = "an error" if error is None else type(error).__name__
        place = "" if error is None else _place_of(error)
        self._server_log.fault(
            "a request could not be answered: {kind}{place}", kind=kind, place=place
        )


def _place_of(error: BaseException) -> str:
    """Where in this package an error came from; nowhere if it is about the request."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "pipecat_duplex" in frame.filename]
    return f" in {Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else ""
