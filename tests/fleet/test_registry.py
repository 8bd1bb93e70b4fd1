"""The list of workers that bots and operators read."""

from dataclasses import replace

from pipecat_duplex.fleet.registry import WorkerEntry, WorkerList

WORKER = WorkerEntry(name="worker-1", node="a", url="ws://127.0.0.1:1/api/chat", slots=4)


def test_a_last_report_does_not_bring_a_worker_back():
    """It may be on its way while the worker is taken away."""
    workers = WorkerList()
    other = replace(WORKER, name="worker-2")
    for each in (WORKER, other):
        workers.report(each, 0.0)
    workers.leave("worker-1")
    workers.report(replace(WORKER, draining=True), 0.1)
    assert workers.workers(0.2) == [other]
