"""The command line of the data sets: check, list, preview, prepare; and what load_dataset says."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from trees import crema_d_clips, replace, truncate, write_wav

from igm_fast.data import DataOptions, dataset_names, load_dataset
from igm_fast.data.command import COMMANDS, main
from igm_fast.data.problems import BrokenData, Problem
from igm_fast.data.readers.audio import decode_sound

FIRST = "1001_DFA_NEU_XX"


def test_a_whole_set(crema_d: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "crema-d", "--root", str(crema_d)]) == 0
    said = capsys.readouterr().out
    assert "no problems" in said
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert rows[0] == ["NEU", "2", "1", "2", "973", "114"]
    assert rows[-1] == ["all", "12", "6", "12", "6698", "744"]


def test_problems_are_listed_with_their_line(crema_d: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (crema_d / "AudioWAV" / f"{FIRST}.wav").unlink()
    image = crema_d / "Image-01-FPS" / "1050_DFA_HAP_XX" / "00030.jpg"
    truncate(image, 0.5)
    for flags, code in ((["--quick"], 1), ([], 1), (["--skip_bad"], 0), (["--skip-bad"], 0)):
        assert main(["check", "crema-d", "--root", str(crema_d), *flags]) == code
        said = capsys.readouterr().out
        assert f"annotations/train.csv:1: AudioWAV/{FIRST}.wav: no such sound file" in said
        assert "annotations/test.csv:2: Image-01-FPS/1050_DFA_HAP_XX/00030.jpg: " in said
        assert "2 problems:" in said
        assert ("--skip_bad trains without these" in said) == (code == 0)


def test_decoding_finds_what_headers_hide(crema_d: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(crema_d / "AudioWAV" / f"{FIRST}.wav", subtype="FLOAT")
    sound = crema_d / "AudioWAV" / f"{FIRST}.wav"
    content = bytearray(sound.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    replace(sound, bytes(content))
    assert main(["check", "crema-d", "--root", str(crema_d), "--quick"]) == 0
    capsys.readouterr()
    assert main(["check", "crema-d", "--root", str(crema_d)]) == 1
    assert f"annotations/train.csv:1: AudioWAV/{FIRST}.wav: holds NaN or infinite samples" in capsys.readouterr().out


def test_nothing_left_is_a_problem_even_with_skip_bad(crema_d: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for clip, _ in crema_d_clips("test", 2):
        (crema_d / "AudioWAV" / f"{clip}.wav").unlink()
    for flags in ([], ["--quick"]):
        assert main(["check", "crema-d", "--root", str(crema_d), "--skip_bad", *flags]) == 1
    assert "the test part has no usable sample" in capsys.readouterr().out


def test_remarks_are_listed(crema_d: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "crema-d", "--root", str(crema_d), "--protocol", "official", "--quick"]) == 0
    assert "1 remark:\n  annotations/train.csv: protocol=official trains on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ""),
        (["chek"], "unknown command 'chek'. Did you mean 'check'?"),
        (["prepare", "crema"], "Did you mean 'prepare crema-d'"),
        (["prepare"], "unknown command 'prepare'"),
        (["check"], "the following arguments are required"),
        (["check", "cremad", "--root", "."], "unknown data set 'cremad'. Did you mean 'crema-d'?"),
        (["check", "watch", "--root", "."], "comes with the package"),
        (["check", "crema-d", "--root", "/nowhere"], "data_root /nowhere is no folder"),
        (["check", "crema-d", "--root", ".", "--fast"], "unrecognized arguments: --fast"),
        (["preview", "crema-d"], "expected --data_root DIR"),
        (["preview", "watch", "--samples", "0"], "samples is 0, expected at least 1"),
        (["prepare", "crema-d", "/nowhere", "/out"], "/nowhere/VideoFlash is no folder"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert main(["check", "--help"]) == 0
    assert "--skip_bad" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m igm_fast.data {command}")


def test_list_names_every_set_and_its_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for name in dataset_names():
        assert f"\n{name}: " in f"\n{said}"
    assert "AudioWAV/<clip>.wav" in said


@pytest.mark.parametrize("name", ["crema-d", "ksounds"])
def test_preview(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue(name.replace("-", "_"))
    out = tmp_path / "new" / "sheet.png"
    assert main(["preview", name, "--root", str(root), "--out", str(out), "--samples", "2"]) == 0
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == 960  # two modalities in two forms
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # something was drawn
    assert main(["preview", name, "--root", str(root), "--out", str(tmp_path / "again.png"), "--samples", "2"]) == 0
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("name", ["watch", "emoji", "digits3"])
def test_preview_of_other_kinds(name: str, tmp_path: Path) -> None:
    assert main(["preview", name, "--out", str(tmp_path / "sheet.png"), "--samples", "2"]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000


# --- prepare crema-d --------------------------------------------------------------------------------------------------


def write_flv(path: Path, frames: int, rate: int = 30) -> None:
    """A video whose frame n is grey of brightness 2 n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="flv") as container:
        stream = container.add_stream("flv1", rate=rate, width=64, height=48)
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), 2 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_prepare_crema_d(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download, out = tmp_path / "download", tmp_path / "out"
    write_flv(download / "VideoFlash" / f"{FIRST}.flv", frames=75)
    write_wav(download / "AudioWAV" / f"{FIRST}.wav")
    assert main(["prepare", "crema-d", str(download), str(out)]) == 0
    assert "annotations/train.csv is still missing" in capsys.readouterr().out
    frames = sorted((out / "Image-01-FPS" / FIRST).iterdir())
    assert [frame.name for frame in frames] == ["00000.jpg", "00030.jpg", "00060.jpg"]
    for frame in frames:
        with Image.open(frame) as picture:
            assert picture.size == (64, 48)
            # Two lossy codings, and YUV's narrower range: a few steps of brightness.
            assert np.asarray(picture, np.int64).mean() == pytest.approx(2 * int(frame.stem), abs=8)
    assert (out / "AudioWAV" / f"{FIRST}.wav").read_bytes() == (download / "AudioWAV" / f"{FIRST}.wav").read_bytes()
    made = frames[0].stat().st_mtime_ns
    assert main(["prepare", "crema-d", str(download), str(out)]) == 0
    assert frames[0].stat().st_mtime_ns == made  # not made again


def test_prepare_says_what_is_broken_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download = tmp_path / "download"
    (download / "VideoFlash").mkdir(parents=True)
    (download / "VideoFlash" / "a.flv").write_bytes(b"no video")
    (download / "VideoFlash" / "b.flv").write_bytes(b"")
    write_flv(download / "VideoFlash" / "c.flv", frames=3)
    write_wav(download / "AudioWAV" / "a.wav")
    truncate(download / "AudioWAV" / "a.wav", 0.5)
    assert main(["prepare", "crema-d", str(download), str(download)]) == 1
    said = capsys.readouterr().out
    assert "a.flv: " in said
    assert "b.flv: " in said
    assert "a.wav: cut short" in said
    assert sorted(path.name for path in (download / "Image-01-FPS").iterdir()) == ["c"]


# --- load_dataset -----------------------------------------------------------------------------------------------------


def test_embedded_sets_refuse_a_root() -> None:
    with pytest.raises(ValueError, match="'watch' comes with the package; expected no data_root"):
        load_dataset("watch", options=DataOptions(root=Path()))


def test_encoders_are_taken_over() -> None:
    data = load_dataset("digits3", options=DataOptions(encoders={"zernike": "other"}))
    assert [spec.encoder for spec in data.modalities] == ["small", "other", "small"]
    for options in (DataOptions(encoders={"zernik": "small"}), DataOptions(pretrained={"zernik": Path()})):
        with pytest.raises(ValueError, match=r"unknown modality of digits3 'zernik'\. Did you mean 'zernike'"):
            load_dataset("digits3", options=options)


def test_a_seed_out_of_range(crema_d: Path) -> None:
    with pytest.raises(ValueError, match="seed is -1, expected 0 to"):
        load_dataset("crema-d", -1, DataOptions(root=crema_d))


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_decoder_that_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sets can be listed without it, and what needs it names the way out."""
    write_wav(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["list"]) == 0
    with pytest.raises(ImportError, match=rf"sounds are read by {package}.*pip install 'igm_fast\[media\]'"):
        decode_sound(tmp_path / "a.wav", 22_050)


def test_broken_data_shows_ten_problems_and_the_ways_out() -> None:
    error = BrokenData("crema-d", "/data", [Problem("list.csv", n, f"what {n}", "Mend it") for n in range(12)])
    lines = str(error).splitlines()
    assert lines[0] == "data set 'crema-d' in /data has 12 problems:"
    assert lines[1] == "  list.csv:0: what 0. Mend it."
    assert lines[11] == "  … and 2 more"
    assert lines[12] == (
        "`python -m igm_fast.data check crema-d --root /data` lists all; --skip_bad trains without them"
    )
    assert len(error.problems) == 12
