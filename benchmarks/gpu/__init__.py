"""Benchmarks on a GPU: ``python -m benchmarks.gpu``, or ``benchmarks/gpu.sh`` on a machine with nothing installed."""
