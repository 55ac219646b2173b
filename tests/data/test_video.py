"""Frames by number: the right ones, resized as OpenCV does, and a sentence for whatever is wrong with a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trees_video import frame, numbers, write_video

from igm_fast.data.problems import BadFile
from igm_fast.data.readers.video import decode_clip, frame_count, sample_frames, stated_frames

FORMATS = [
    ("clip.avi", "mpeg4", "yuv420p"),
    ("clip.avi", "mjpeg", "yuvj420p"),
    ("clip.avi", "rawvideo", "bgr24"),
    ("clip.mp4", "libx264", "yuv420p"),
    ("clip.mkv", "ffv1", "bgr0"),
]


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "clip.avi", [frame(number) for number in range(100)])


@pytest.mark.parametrize(("name", "codec", "pixels"), FORMATS, ids=[codec for _, codec, _ in FORMATS])
def test_clip_holds_the_asked_frames(tmp_path, name, codec, pixels):
    path = write_video(tmp_path / name, [frame(number) for number in range(100)], codec=codec, pixels=pixels)
    clip = decode_clip(path, 37, 62, (32, 48))
    assert clip.dtype == torch.uint8
    assert clip.shape == (25, 3, 32, 48)
    assert numbers(clip) == list(range(37, 62))
    assert clip[:, 0].float().mean() - clip[:, 2].float().mean() > 10  # red first


def test_clip_from_the_first_and_to_the_last_frame(video):
    assert numbers(decode_clip(video, 0, 3, (16, 16))) == [0, 1, 2]
    assert numbers(decode_clip(video, 97, 100, (16, 16))) == [97, 98, 99]


def test_resizing_is_opencvs_bilinear(tmp_path):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    path = write_video(tmp_path / "noise.avi", [picture], codec="rawvideo", pixels="bgr24")
    clip = decode_clip(path, 0, 1, (256, 256))
    expected = cv2.resize(picture, (256, 256), interpolation=cv2.INTER_LINEAR)
    # Both round fixed-point weights of 11 or more bits: they may fall on two sides of a half, no further.
    assert (clip[0].permute(1, 2, 0).int() - torch.from_numpy(expected).int()).abs().max() <= 1


def test_samples_lie_in_the_middle_of_segments(video):
    assert numbers(sample_frames(video, 4, (16, 16))) == [12, 37, 62, 87]
    assert numbers(sample_frames(video, 1, (16, 16))) == [50]


def test_short_videos_repeat_frames(tmp_path):
    path = write_video(tmp_path / "short.avi", [frame(0), frame(1)])
    assert numbers(sample_frames(path, 4, (16, 16))) == [0, 0, 1, 1]


def test_frames_are_counted_by_header_and_by_packets(video):
    assert stated_frames(video) == frame_count(video) == 100


def test_missing_frames_are_an_error_or_zeros_at_the_end(video):
    with pytest.raises(BadFile, match="has no frame 100, expected frames 90 to 109"):
        decode_clip(video, 90, 110, (16, 16))
    clip = decode_clip(video, 90, 110, (16, 16), pad=True)
    assert numbers(clip[:10]) == list(range(90, 100))
    assert clip.shape == (20, 3, 16, 16)
    assert not clip[10:].any()


def test_a_gap_is_named(tmp_path):
    path = write_video(tmp_path / "gap.mp4", [frame(n) for n in range(40)], codec="libx264", missing=(20,))
    with pytest.raises(BadFile, match="has no frame 20, expected frames 10 to 29"):
        decode_clip(path, 10, 30, (16, 16))


def test_nothing_in_the_range_is_an_error_even_where_padding_is_allowed(video):
    with pytest.raises(BadFile, match="has no frame 200"):
        decode_clip(video, 200, 210, (16, 16), pad=True)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (-1, 5)])
def test_ranges_are_checked(video, start, end):
    with pytest.raises(BadFile, match="are no range"):
        decode_clip(video, start, end, (16, 16))


def test_decoding_twice_gives_the_same_bits(video):
    assert torch.equal(decode_clip(video, 10, 30, (64, 64)), decode_clip(video, 10, 30, (64, 64)))


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(BadFile, match=r"none\.avi: no such file"):
        frame_count(tmp_path / "none.avi")
    (tmp_path / "empty.avi").touch()
    with pytest.raises(BadFile, match=r"empty\.avi: is empty"):
        frame_count(tmp_path / "empty.avi")
    (tmp_path / "text.avi").write_text("no video, only words\n" * 50)
    with pytest.raises(BadFile, match="FFmpeg cannot read it"):
        frame_count(tmp_path / "text.avi")


def test_sound_without_pictures_is_refused(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "sound.wav", np.zeros(800, np.float32), 8000)
    with pytest.raises(BadFile, match="has no video stream"):
        frame_count(tmp_path / "sound.wav")


def test_a_playlist_reaches_no_other_protocol(tmp_path):
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    with pytest.raises(BadFile):
        frame_count(tmp_path / "list.m3u8")


def test_a_name_with_a_colon_is_a_file(tmp_path, video):
    assert frame_count(video.rename(tmp_path / "http:clip.avi")) == 100
