"""Files from the hub, or from its cache where it does not answer. Needs ``huggingface_hub``."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, errors, hf_hub_download
from huggingface_hub.utils import reset_sessions  # pyright: ignore[reportPrivateImportUsage]

from pipecat_duplex.session import CheckpointError, one_line

TIMEOUT_SECS = 4.0


@contextmanager
def talking_to_hub(name: str) -> Iterator[None]:
    """Look into the cache only if the hub does not answer, and say in words what goes wrong.

    Args:
        name: The checkpoint that is being fetched.

    Raises:
        CheckpointError: The hub gave an error.
    """
    before = constants.HF_HUB_OFFLINE
    if not _hub_answers():
        # The client's own retries take half a minute a file.
        constants.HF_HUB_OFFLINE = True
        reset_sessions()
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise CheckpointError(f"checkpoint {name}: {_explain(error)}") from error
    finally:
        if constants.HF_HUB_OFFLINE != before:
            constants.HF_HUB_OFFLINE = before
            reset_sessions()


def download(repo: str, file: str, revision: str | None = None) -> Path:
    """Fetch a file of a repository into the cache, if it is not there yet."""
    return Path(hf_hub_download(repo, file, revision=revision))


def download_if_any(repo: str, file: str, revision: str | None = None) -> Path | None:
    """Fetch a file of a repository; None if the repository has no such file."""
    try:
        return download(repo, file, revision)
    except errors.LocalEntryNotFoundError:
        raise
    except errors.EntryNotFoundError:
        return None


def _hub_answers() -> bool:
    """Whether the hub can be reached; where a proxy is set, only the hub's client can tell."""
    if getproxies():
        return True
    hub = urlsplit(constants.ENDPOINT)
    port = hub.port or {"http": 80}.get(hub.scheme, 443)
    try:
        socket.create_connection((hub.hostname or "", port), TIMEOUT_SECS).close()
    except OSError:
        return False
    return True


def _explain(error: Exception) -> str:
    match error:
        case errors.GatedRepoError():
            return "access is gated: accept its terms on the hub, then run 'hf auth login'"
        case errors.RevisionNotFoundError():
            return "the hub has no such revision"
        case errors.RepositoryNotFoundError():
            return "the hub has no such repository, or it is private: then run 'hf auth login'"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return (
                "the hub cannot be reached and the files are not in the cache: "
                "connect once, or name a local folder or 'embedded'"
            )
        case errors.EntryNotFoundError():
            return f"it is incomplete: {one_line(error)}"
        case _:
            return f"the hub gave an error: {one_line(error)}"
