"""Sessions on servers elsewhere, that speak Moshi's protocol or vLLM-Omni's.

Needs neither torch nor moshi.
"""

from pipecat_duplex.remote.backend import RemoteBackend
from pipecat_duplex.remote.discovery import is_one_server
from pipecat_duplex.remote.fleet import RemoteFleet
from pipecat_duplex.remote.omni_backend import OmniBackend
from pipecat_duplex.remote.servers import one_server, servers

__all__ = [
    "OmniBackend",
    "RemoteBackend",
    "RemoteFleet",
    "is_one_server",
    "one_server",
    "servers",
]
