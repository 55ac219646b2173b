"""``python -m igm_fast.data``."""

import sys

from igm_fast.data.command import main

if __name__ == "__main__":
    sys.exit(main())
