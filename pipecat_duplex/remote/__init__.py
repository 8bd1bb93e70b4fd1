"""Sessions on servers elsewhere that speak Moshi's protocol.

Needs neither torch nor moshi.
"""

from pipecat_duplex.remote.backend import RemoteBackend
from pipecat_duplex.remote.discovery import is_one_server
from pipecat_duplex.remote.fleet import RemoteFleet

__all__ = ["RemoteBackend", "RemoteFleet", "is_one_server"]
