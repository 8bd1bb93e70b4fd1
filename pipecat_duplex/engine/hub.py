"""Files from the hub, or from its cache where it does not answer. Needs ``huggingface_hub``."""

import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import HfApi, constants, errors, hf_hub_download, try_to_load_from_cache
from loguru import logger

from pipecat_duplex.session import CheckpointError, one_line

TIMEOUT_SECS = 4.0

SPARE_BYTES = 64 * 2**20
"""Left on the disk beside a download."""


class Hub:
    """The hub as it is while one checkpoint is being fetched."""

    def __init__(self, name: str):
        """Initialize; asks once whether the hub can be reached.

        Args:
            name: The checkpoint that is being fetched, for errors.
        """
        self._name = name
        # The client's own retries take half a minute a file.
        self.offline = constants.HF_HUB_OFFLINE or not _hub_answers()

    @contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Say in words what goes wrong.

        Raises:
            CheckpointError: The hub gave an error, or the disk is full.
        """
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # the hub's client lets errors of its HTTP library through
            raise CheckpointError(f"checkpoint {self._name}: {_explain(error)}") from error

    def download(self, repo: str, file: str, revision: str | None = None) -> Path:
        """Fetch a file of a repository into the cache, if it is not there yet.

        Raises:
            CheckpointError: The repository has no such file.
        """
        found = self.download_if_any(repo, file, revision)
        if found is None:
            raise CheckpointError(
                f"checkpoint {self._name} is incomplete: the repository {repo} has no {file}"
            )
        return found

    def download_if_any(self, repo: str, file: str, revision: str | None = None) -> Path | None:
        """Fetch a file of a repository; ``None`` if the repository has no such file."""
        try:
            path = hf_hub_download(repo, file, revision=revision, local_files_only=self.offline)
            return Path(path)
        except errors.LocalEntryNotFoundError:
            # Offline, a cache can know that the repository had no such file.
            if self.offline and _is_known_missing(repo, file, revision):
                return None
            raise
        except errors.EntryNotFoundError:
            return None

    def announce(self, repo: str, files: Iterable[str], revision: str | None = None) -> None:
        """Say what is about to be downloaded, how large it is, and under which licence.

        Says nothing if everything is in the cache, or if the hub tells no sizes.

        Args:
            repo: The repository.
            files: The files that are wanted.
            revision: Branch, tag or commit.

        Raises:
            CheckpointError: The disk has no room for them.
        """
        wanted = [file for file in files if not _is_cached(repo, file, revision)]
        if self.offline or not wanted:
            return
        try:
            info = HfApi(constants.ENDPOINT).model_info(
                repo, revision=revision, files_metadata=True
            )
        except (errors.HfHubHTTPError, OSError, ValueError):
            return  # The download itself says what is wrong.
        sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
        size = sum(sizes.get(file, 0) for file in wanted)
        card = info.card_data
        licence = (card.get("license") if card is not None else None) or "not stated"
        cache = Path(constants.HF_HUB_CACHE)
        logger.bind(notice=True).info(
            f"Downloading {repo}: {_gigabytes(size)}, licence: {licence}, into {cache}"
        )
        _check_room(self._name, cache, size)


def _is_cached(repo: str, file: str, revision: str | None) -> bool:
    return isinstance(try_to_load_from_cache(repo, file, revision=revision or "main"), str)


def _is_known_missing(repo: str, file: str, revision: str | None) -> bool:
    found = try_to_load_from_cache(repo, file, revision=revision or "main")
    return found is not None and not isinstance(found, str)


def _check_room(name: str, cache: Path, size: int) -> None:
    folder = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if size + SPARE_BYTES > free:
        raise CheckpointError(
            f"checkpoint {name} takes {_gigabytes(size)}, and the disk of {cache} has "
            f"{_gigabytes(free)} left: free some, or set HF_HOME to a folder on a larger disk"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


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
        case errors.HfHubHTTPError() if _status_of(error) in (401, 403):
            return "the hub refuses access: run 'hf auth login' with an account that has it"
        case OSError() if error.errno == 28:
            return "the disk is full: free some, or set HF_HOME to a folder on a larger disk"
        case _:
            return f"the hub gave an error: {one_line(error)}"


def _status_of(error: errors.HfHubHTTPError) -> int | None:
    return getattr(error.response, "status_code", None)
