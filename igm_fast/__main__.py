"""``python -m igm_fast`` prints what was built and what this machine uses."""

from __future__ import annotations

from igm_fast.ops.native import show_config

if __name__ == "__main__":
    print(show_config())
