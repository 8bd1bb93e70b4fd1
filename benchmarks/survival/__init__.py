"""What becomes of running calls when their servers die, shut down, hang or are cut off.

``docs/survival.md`` defines what is measured, so that any server can be.
"""
