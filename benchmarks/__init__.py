"""What the package costs, measured. Each module runs with `python -m benchmarks.<name>`."""
