"""Real pipelines, callers and recordings that tests and benchmarks share."""
