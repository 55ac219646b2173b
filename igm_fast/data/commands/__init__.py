"""What ``python -m igm_fast.data`` can do, one module per command: see :mod:`igm_fast.data.command`."""
