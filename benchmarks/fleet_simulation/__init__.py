"""A fleet of any size, simulated: refusals, moves and drains, beside what theory says."""
