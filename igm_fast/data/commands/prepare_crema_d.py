"""Make the folders that the official code expects out of CREMA-D as it is downloaded.

DOWNLOAD holds VideoFlash/*.flv and AudioWAV/*.wav (github.com/CheyneyComputerScience/CREMA-D). OUT gets
Image-01-FPS/CLIP/NNNNN.jpg, the first frame of each second, NNNNN being its number in the video, and AudioWAV. Finished
clips are not made again. The lists (annotations/train.csv and test.csv) are not part of the download.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import track

from igm_fast.data.command import CLEAN, PROBLEMS
from igm_fast.data.problems import BadFile
from igm_fast.data.readers.audio import check_sound
from igm_fast.data.readers.video import frame_of_each_second

JPEG_QUALITY = 95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("download", type=Path, help="folder with VideoFlash and AudioWAV")
    parser.add_argument("out", type=Path, help="folder for training; may be the same")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Cut the frames of every video, check and copy every sound; say what could not be used."""
    download, out = arguments.download, arguments.out
    for folder in ("VideoFlash", "AudioWAV"):
        if not (download / folder).is_dir():
            raise FileNotFoundError(f"{download / folder} is no folder; expected it in CREMA-D's download")
    bad: list[BadFile] = []
    videos = sorted((download / "VideoFlash").glob("*.flv"))
    for video in track(videos, "videos", console=console):
        _attempt(bad, write_frames, video, out / "Image-01-FPS" / video.stem)
    sounds = sorted((download / "AudioWAV").glob("*.wav"))
    for sound in track(sounds, "sounds", console=console):
        _attempt(bad, copy_sound, sound, out / "AudioWAV" / sound.name)
    for error in bad:
        console.print(str(error))
    console.print(f"{len(videos)} videos and {len(sounds)} sounds, {len(bad)} of them broken: {out}")
    for part in ("train", "test"):
        if not (out / "annotations" / f"{part}.csv").is_file():
            console.print(
                f"{out}/annotations/{part}.csv is still missing: put the list there that you want to compare with "
                "(the official code uses OGM-GE's, lines such as 1088_IOM_NEU_XX,NEU)"
            )
    return PROBLEMS if bad else CLEAN


def write_frames(video: Path, folder: Path) -> None:
    """Write the first frame of each second as ``folder/NNNNN.jpg``, all of them or none.

    Raises:
        BadFile: the video cannot be decoded.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        for number, picture in frame_of_each_second(video):
            picture.save(made / f"{number:05d}.jpg", quality=JPEG_QUALITY)
        made.rename(folder)


def copy_sound(sound: Path, target: Path) -> None:
    """Copy a sound that is whole, unless it lies there already.

    Raises:
        BadFile: it is empty, no sound, cut short, or without samples.
    """
    if check_sound(sound) == 0:
        raise BadFile(sound, "holds no samples", "Download it again")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(sound, target)


def _attempt(bad: list[BadFile], make: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    try:
        make(source, target)
    except BadFile as error:
        bad.append(error)
