"""Calls on Twilio's Media Streams, without a resampler between the line and the service.

Needs the extra ``telephony``. ``examples/twilio_bot.py`` is a whole bot.
"""

from pipecat_duplex.telephony.line import LineReport
from pipecat_duplex.telephony.media_stream import MediaStream, StreamRefused
from pipecat_duplex.telephony.serializer import MediaStreamSerializer
from pipecat_duplex.telephony.signature import is_signed
from pipecat_duplex.telephony.stream_token import StreamTokens

__all__ = [
    "LineReport",
    "MediaStream",
    "MediaStreamSerializer",
    "StreamRefused",
    "StreamTokens",
    "is_signed",
]
