"""``pipecat-duplex fleet``: workers on a Ray cluster."""

from rich.console import Console
from rich.table import Table

from pipecat_duplex.fleet.cluster import FleetCluster, FleetStatus
from pipecat_duplex.fleet.options import WorkerOptions

__all__ = ["WorkerOptions", "run_down", "run_drain", "run_scale", "run_status", "run_up"]


def run_up(cluster: str, options: WorkerOptions, *, workers: int, registry_port: int) -> None:
    """Start a fleet, or replace the one that runs.

    Args:
        cluster: The Ray cluster.
        options: What a worker is.
        workers: How many.
        registry_port: Where bots find the list of workers.
    """
    fleet = FleetCluster.connect(cluster)
    fleet.up(options, workers=workers, registry_port=registry_port)
    _show(fleet.status())


def run_status(cluster: str) -> None:
    """Print the workers and their calls."""
    _show(FleetCluster.connect(cluster).status())


def run_scale(cluster: str, workers: int) -> None:
    """Have so many workers."""
    fleet = FleetCluster.connect(cluster)
    fleet.scale(workers)
    _show(fleet.status())


def run_drain(cluster: str, node: str) -> None:
    """Take a machine's workers away."""
    fleet = FleetCluster.connect(cluster)
    gone = fleet.drain(node)
    Console().print(f"{len(gone)} workers were taken away: {', '.join(gone) or 'none was there'}")
    _show(fleet.status())


def run_down(cluster: str) -> None:
    """End the fleet."""
    FleetCluster.connect(cluster).down()
    Console().print("the fleet has ended")


def _show(status: FleetStatus) -> None:
    table = Table("worker", "machine", "address", "calls", "slots", "state")
    for worker in status.workers:
        address = status.nodes.get(worker.node, "gone")
        state = "drains" if worker.draining else "takes calls"
        used, slots = str(worker.slots_used), str(worker.slots)
        table.add_row(worker.name, f"{address} ({worker.node[:8]})", worker.url, used, slots, state)
    for name in status.silent:
        table.add_row(name, "", "", "", "", "does not report")
    console = Console()
    console.print(table)
    # One line, whatever the width: it is copied.
    console.print(f"for bots: DuplexLLMService(url={status.registry!r})", soft_wrap=True)
