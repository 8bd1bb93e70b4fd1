"""A caller on Twilio's Media Streams: see :mod:`harness.twilio`."""

from harness.twilio import *  # noqa: F403
