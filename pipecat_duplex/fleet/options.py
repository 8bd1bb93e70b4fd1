"""What a worker of a fleet is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker of a fleet is.

    Parameters:
        checkpoint: ``embedded``, a hub name, or a folder that every machine has.
        slots: Calls at a time.
        cpus: Processor cores that a worker has to itself.
        gpus: GPUs likewise: 0 or 1.
        host: The address that it listens on.
        drain_secs: How long calls may stay that cannot move.
        api_keys: Callers must show one of these. Without any, everybody may call.
        backend: Where sessions come from instead of an engine: ``module:function``, called with
            these options.
    """

    checkpoint: str = "embedded"
    slots: int = 8
    cpus: int = 2
    gpus: int = 0
    host: str = "0.0.0.0"
    drain_secs: float = 30.0
    api_keys: tuple[str, ...] = ()
    backend: str | None = None
