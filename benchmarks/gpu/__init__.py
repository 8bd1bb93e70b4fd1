"""What a GPU holds, by one command: ``python -m benchmarks.gpu`` (``benchmarks/gpu.md``)."""
