"""Sound: decoding by soundfile, resampling by soxr, and the log-spectrogram of the audio-visual data sets."""

from __future__ import annotations

import importlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from igm_fast.data.problems import BadFile

MAX_SAMPLES = 2**27  # of all channels: 512 MiB when decoded
LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000
FLOOR = 1e-7  # added to magnitudes before the logarithm: silence becomes log(1e-7) ≈ −16.1

_REPLACE = "Replace the file by a complete copy, or take its line out of the list"
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # of a RIFF chunk that was written to a pipe


def check_sound(path: Path) -> int:
    """Look at a sound file's header without decoding it; return its number of samples per channel.

    Raises:
        BadFile: not there, empty, no sound, cut short, of an absurd sampling rate, or too large to decode.
    """
    if not path.is_file():
        raise BadFile(path, "no such sound file", "Put the file there, or take its line out of the list")
    if path.stat().st_size == 0:
        raise BadFile(path, "the file is empty, expected sound", _REPLACE)
    soundfile = _package("soundfile")
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadFile(path, f"not readable as sound ({_reason(error)})", _REPLACE) from error
    if not LOWEST_RATE <= info.samplerate <= HIGHEST_RATE:
        expected = f"expected {LOWEST_RATE} to {HIGHEST_RATE} samples per second"
        raise BadFile(path, f"has a sampling rate of {info.samplerate} Hz, {expected}", _REPLACE)
    if info.frames * info.channels > MAX_SAMPLES:
        what = f"states {info.frames} samples in {info.channels} channels, expected at most {MAX_SAMPLES} in all"
        raise BadFile(path, what, "Cut it if it is genuine: small files can state sizes that fill the memory")
    stated, there = _data_bytes(path)
    if there < stated:
        raise BadFile(path, f"cut short: its header states {stated} bytes of sound, {there} are there", _REPLACE)
    return int(info.frames)


def decode_sound(path: Path, rate: int) -> NDArray[np.float32]:
    """Return the mean of a file's channels at a sampling rate: float32 ``[samples]``, full scale ±1.

    The numbers of ``librosa.load(path, sr=rate)``: resampling by soxr's high-quality recipe to
    ``ceil(samples · rate / file's rate)`` samples, none where the rates are equal. A file may hold no samples.

    Args:
        path: WAV, FLAC, OGG or MP3.
        rate: samples per second of the result.

    Raises:
        BadFile: not there, empty, no sound, cut short, or with NaN or infinite samples.
    """
    check_sound(path)
    soundfile = _package("soundfile")
    try:
        samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadFile(path, f"the sound cannot be decoded ({_reason(error)})", _REPLACE) from error
    if not np.isfinite(samples).all():
        raise BadFile(path, "holds NaN or infinite samples", _REPLACE)
    mono: NDArray[np.float32] = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if own_rate == rate or len(mono) == 0:
        return mono
    wanted = int(np.ceil(len(mono) * (rate / own_rate)))
    resampled = _package("soxr").resample(mono, own_rate, rate, quality="HQ")[:wanted]
    return np.pad(resampled, (0, wanted - len(resampled)))


def log_spectrogram(samples: Tensor, window: int, hop: int) -> Tensor:
    """Return log(|STFT| + 1e-7), float32 ``[window / 2 + 1, 1 + samples // hop]``.

    Hann windows centred on multiples of ``hop``, with zeros before and after the signal.

    Args:
        samples: float32 ``[samples]``.
        window: samples of a window, as many as the Fourier transform has.
        hop: samples between windows.
    """
    spectrum = torch.stft(
        samples, window, hop, window=torch.hann_window(window), center=True, pad_mode="constant", return_complex=True
    )
    return (spectrum.abs() + FLOOR).log()


@dataclass(frozen=True)
class SoundReader:
    """Log-spectrogram of the first seconds of a sound, which is repeated if it is shorter; source: its path.

    Args:
        root: folder of the data set.
        rate: samples per second.
        seconds: length.
        window: of the STFT, samples.
        hop: of the STFT, samples.
        empty_is_silence: take a file without samples for silence instead of refusing it.
    """

    root: Path
    rate: int
    seconds: float
    window: int = 512
    hop: int = 353
    empty_is_silence: bool = False

    @property
    def parameters(self) -> str:
        """What decides the spectrogram."""
        silence = " empty is silence" if self.empty_is_silence else ""
        return f"log-spectrogram {self.rate} Hz, {self.seconds} s, window {self.window}, hop {self.hop}{silence}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(1, frequencies, times)`` of the spectrogram."""
        return 1, self.window // 2 + 1, 1 + round(self.rate * self.seconds) // self.hop

    def load(self, source: Any) -> Tensor:
        """Return float32 ``[1, frequencies, times]``."""
        path = self.root / source
        samples = decode_sound(path, self.rate)
        if len(samples) == 0:
            if not self.empty_is_silence:
                raise BadFile(path, "holds no samples", _REPLACE)
            samples = np.zeros(1, np.float32)
        repeated = np.resize(samples, round(self.rate * self.seconds)).clip(-1, 1)
        return log_spectrogram(torch.from_numpy(repeated), self.window, self.hop)[None]

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Return the spectrogram as it is, in training too."""
        return decoded

    def remark(self, decoded: Tensor) -> str | None:
        """Say that a sound is silent throughout."""
        return "all samples are 0 (silence)" if float(decoded.max()) <= np.log(np.float32(FLOOR)) else None


def _package(name: str) -> Any:
    """Import a decoder when it is first needed: the known data sets can be listed without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"sounds are read by {name}, which is missing; pip install 'igm_fast[media]'") from error


def _data_bytes(path: Path) -> tuple[int, int]:
    """Return how many bytes of sound a WAV file states and holds; (0, 0) for other formats and unknown lengths.

    libsndfile reads what is there without a word.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0, 0
        size = path.stat().st_size
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            begin = file.tell()
            if name == b"data":
                return (0, 0) if length in _UNKNOWN_SIZES else (length, min(length, size - begin))
            file.seek(begin + length + length % 2)
    return 0, 0


def _reason(error: Exception) -> str:
    """Return a library's message without the path, which is said already."""
    return str(error).rpartition(": ")[2].strip().rstrip(".")
