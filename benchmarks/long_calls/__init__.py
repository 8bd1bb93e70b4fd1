"""Calls of ten windows: ``python -m benchmarks.long_calls``.

Scripted users talk to a checkpoint in lock step for many times as long as it looks back, once for
each way with long calls; the figures of ``benchmarks.duplex`` are counted window by window.

    ways.py     the ways, among them one that the package does not have
    persona.py  how much of a persona is left
"""
