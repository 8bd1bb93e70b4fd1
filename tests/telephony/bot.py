"""The Twilio bot behind a real socket: see :mod:`harness.twilio_bot`."""

from harness.twilio_bot import *  # noqa: F403
