"""watch: a smartwatch's accelerometer and gyroscope, seven shoulder exercises, ten people (Burns et al. 2018).

A part of the split is a set of people: windows of one person never lie in two parts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from igm_fast.data.archive import read_embedded
from igm_fast.data.dataset import MultimodalData
from igm_fast.data.splits import split_indices
from igm_fast.data.tensors import from_tensors, take

WINDOW = 128  # samples at 50 Hz: 2.56 s
HOP = 64


def load(seed: int) -> MultimodalData:
    """Cut 3,605 windows ``[3, 128]`` per modality out of 140 recordings and split them by person."""
    arrays = read_embedded("watch")
    signal, offsets = arrays["signal"], arrays["offsets"]
    # A window never crosses from one recording into the next.
    starts = [np.arange(begin, end - WINDOW + 1, HOP) for begin, end in pairwise(offsets)]
    recording = np.repeat(np.arange(len(starts)), [len(start) for start in starts])
    windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW, axis=0)[np.concatenate(starts)]
    inputs = {"accelerometer": windows[:, :3], "gyroscope": windows[:, 3:]}
    labels = arrays["labels"][recording]
    train, validation, test = split_indices(labels, seed, arrays["person"][recording])
    return from_tensors(
        take(inputs, labels, train),
        take(inputs, labels, validation),
        take(inputs, labels, test),
        name="watch",
        classes=tuple(map(str, arrays["classes"])),
        description="Seven shoulder exercises from a smartwatch's accelerometer and gyroscope (50 Hz, windows of "
        "2.56 s); the test people are never seen in training. seglearn 1.2.5, BSD-3-Clause; Burns et al. 2018.",
        seed=seed,
    )
