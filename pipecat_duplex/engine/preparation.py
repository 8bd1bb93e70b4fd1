"""What is done in a slot before its conversation's first step."""

import asyncio
from dataclasses import dataclass

from pipecat_duplex.session.history import History


@dataclass
class Preparation:
    """What is to be done in a session's slot before its first step.

    Parameters:
        history: What was said elsewhere, if anything was.
        done: Resolved on the session's asyncio loop.
        error: Why it could not be done.
        finished: Set by the engine's thread.
    """

    history: History | None
    done: asyncio.Future[None]
    error: Exception | None = None
    finished: bool = False
