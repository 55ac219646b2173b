"""Sound: what librosa would read, and the spectrogram against its definition in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from trees import truncate, write_wav

from igm_fast.data.problems import BadFile
from igm_fast.data.readers.audio import FLOOR, SoundReader, check_sound, decode_sound, log_spectrogram


def stft_magnitudes(samples: np.ndarray, window: int, hop: int) -> np.ndarray:
    """|STFT| in float64: periodic Hann windows centred on multiples of hop, zeros outside the signal."""
    padded = np.pad(samples.astype(np.float64), window // 2)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    count = 1 + len(samples) // hop
    frames = np.stack([padded[hop * t : hop * t + window] * hann for t in range(count)])
    return np.abs(np.fft.rfft(frames, axis=1)).T


@pytest.mark.parametrize(("window", "hop", "length"), [(512, 353, 66150), (512, 353, 700), (64, 20, 65), (8, 3, 5)])
def test_spectrogram_is_its_definition(window: int, hop: int, length: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, length).astype(np.float32)
    expected = stft_magnitudes(samples, window, hop)
    found = log_spectrogram(torch.from_numpy(samples), window, hop)
    assert found.dtype == torch.float32
    assert found.shape == (window // 2 + 1, 1 + length // hop) == expected.shape
    # Each magnitude is off by less than ε log2(n) Σ|window·x| (a radix-2 transform) and the rounded window's ε Σ|x|.
    error = np.finfo(np.float32).eps * (np.log2(window) + 2) * window
    magnitudes = found.double().exp().numpy() - FLOOR
    rounding = (
        np.finfo(np.float32).eps * (1 + np.abs(found.numpy())) * (magnitudes + FLOOR)
    )  # of log, and of storing it
    assert (np.abs(magnitudes - expected) <= error + rounding).all()


def test_silence_is_the_logarithm_of_the_floor() -> None:
    assert torch.equal(log_spectrogram(torch.zeros(1000), 512, 353), torch.full((257, 3), FLOOR).log())


def test_channels_are_averaged_and_the_rate_is_kept(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, (800, 2)).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", samples, 8000, subtype="FLOAT")
    found = decode_sound(tmp_path / "stereo.wav", 8000)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, samples.mean(axis=1))


@pytest.mark.parametrize(("own", "rate"), [(16000, 22050), (44100, 35400), (48000, 16000), (11025, 35400)])
def test_resampling_is_soxrs_high_quality_to_the_rounded_up_length(tmp_path: Path, own: int, rate: int) -> None:
    samples = np.random.default_rng(2).uniform(-1, 1, 3001).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", samples, own, subtype="FLOAT")
    found = decode_sound(tmp_path / "sound.wav", rate)
    assert len(found) == int(np.ceil(3001 * rate / own))
    expected = soxr.resample(samples, own, rate, quality="HQ")
    both = min(len(found), len(expected))
    np.testing.assert_array_equal(found[:both], expected[:both])
    assert (found[both:] == 0).all()


def test_a_tone_keeps_its_frequency_when_resampled(tmp_path: Path) -> None:
    times = np.arange(16000) / 16000
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 1000 * times), 16000)
    found = decode_sound(tmp_path / "tone.wav", 22050)
    assert np.abs(np.fft.rfft(found)).argmax() * 22050 / len(found) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize(
    ("subtype", "step"), [("PCM_U8", 2 / 256), ("PCM_16", 2 / 2**16), ("PCM_24", 2 / 2**24), ("FLOAT", 0.0)]
)
def test_any_sample_format_is_scaled_to_one(tmp_path: Path, subtype: str, step: float) -> None:
    samples = np.linspace(-0.9, 0.9, 500)
    soundfile.write(tmp_path / "sound.wav", samples, 8000, subtype=subtype)
    # One step of the format, and float32's rounding.
    assert np.abs(decode_sound(tmp_path / "sound.wav", 8000) - samples).max() <= step + 2**-24


@pytest.mark.parametrize("name", ["sound.flac", "sound.ogg"])
def test_other_formats_are_read(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, np.zeros(4000), 8000)
    assert len(decode_sound(tmp_path / name, 8000)) == 4000


def test_short_sounds_are_repeated_and_long_ones_cut(tmp_path: Path) -> None:
    reader = SoundReader(tmp_path, rate=8000, seconds=1.0)
    assert reader.shape == (1, 257, 1 + 8000 // 353)
    for seconds in (0.1, 0.7, 1.0, 1.9):
        write_wav(tmp_path / "sound.wav", seconds, rate=8000)
        samples = decode_sound(tmp_path / "sound.wav", 8000)
        whole = np.concatenate([samples] * 10)[:8000]
        expected = log_spectrogram(torch.from_numpy(whole), 512, 353)
        assert torch.equal(reader.load("sound.wav")[0], expected)
        assert reader.load("sound.wav").shape == reader.shape


def test_loud_floats_are_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.full(8000, 3.0), 8000, subtype="FLOAT")
    reader = SoundReader(tmp_path, rate=8000, seconds=1.0)
    assert torch.equal(reader.load("loud.wav")[0], log_spectrogram(torch.ones(8000), 512, 353))


def test_parameters_tell_readers_apart_and_roots_do_not(tmp_path: Path) -> None:
    made = [
        SoundReader(tmp_path, 8000, 1.0),
        SoundReader(tmp_path, 8001, 1.0),
        SoundReader(tmp_path, 8000, 1.5),
        SoundReader(tmp_path, 8000, 1.0, window=256),
        SoundReader(tmp_path, 8000, 1.0, hop=100),
        SoundReader(tmp_path, 8000, 1.0, empty_is_silence=True),
    ]
    assert len({reader.parameters for reader in made}) == len(made)
    assert SoundReader(tmp_path / "other", 8000, 1.0).parameters == made[0].parameters


def test_silence_is_remarked(tmp_path: Path) -> None:
    reader = SoundReader(tmp_path, rate=8000, seconds=1.0)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    assert reader.remark(reader.load("silent.wav")) == "all samples are 0 (silence)"
    write_wav(tmp_path / "sound.wav", rate=8000)
    assert reader.remark(reader.load("sound.wav")) is None


def test_no_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    assert check_sound(tmp_path / "none.wav") == 0
    with pytest.raises(BadFile, match=r"none\.wav: holds no samples"):
        SoundReader(tmp_path, 8000, 1.0).load("none.wav")
    silent = SoundReader(tmp_path, 8000, 1.0, empty_is_silence=True).load("none.wav")
    assert torch.equal(silent, torch.full_like(silent, FLOOR).log())


def test_not_a_number(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.1]), 8000, subtype="FLOAT")
    with pytest.raises(BadFile, match="NaN or infinite samples"):
        decode_sound(tmp_path / "nan.wav", 8000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"no sound at all", "not readable as sound"),
        (b"RIFF\xff\xff\xff\xffWAVE" + b"\0" * 60, "not readable as sound"),
    ],
)
def test_what_is_no_sound(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    for look in (check_sound, lambda path: decode_sound(path, 8000)):
        with pytest.raises(BadFile, match=words):
            look(tmp_path / "bad.wav")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such sound file"):
        check_sound(tmp_path / "missing.wav")


def test_cut_short(tmp_path: Path) -> None:
    write_wav(tmp_path / "sound.wav", seconds=1.0, rate=8000)
    truncate(tmp_path / "sound.wav", 0.5)
    with pytest.raises(BadFile, match="cut short: its header states 16000 bytes of sound, 79"):
        decode_sound(tmp_path / "sound.wav", 8000)


def test_a_length_that_was_unknown_when_it_was_written(tmp_path: Path) -> None:
    write_wav(tmp_path / "pipe.wav", seconds=0.5, rate=8000)
    content = bytearray((tmp_path / "pipe.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "pipe.wav").write_bytes(content)
    assert len(decode_sound(tmp_path / "pipe.wav", 8000)) == 4000
