"""Float64 numpy oracles, written from the equations with loops where loops are clearest. They share no code with igm_fast."""

from __future__ import annotations

import numpy as np
