"""Benchmarks of igm_fast beside the libraries that people use today; ``python -m benchmarks --help``."""
