"""A fleet of workers on a Ray cluster: an engine each, found by bots through a registry.

Ray places workers, starts them again, and knows which machines there are. Each worker opens a
socket of its own, so audio takes no hop. Needs the extra ``ray``.
"""
