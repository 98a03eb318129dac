"""Programs that measure, and what they have measured: see README.rst. Run as `python -m benchmarks.cpu.step`."""
