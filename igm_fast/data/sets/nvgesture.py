"""nvgesture: 25 hand gestures from depth, RGB and optical flow (Molchanov et al., CVPR 2016).

NVIDIA's lists and ``Video_data`` as they are; optical flow lies beside each clip (``python -m igm_fast.data
nvgesture-flow`` computes it) or in ``Video_data/flow_data``, numbered as the lists' lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch
from torch import Tensor

from igm_fast.data.audio_visual import official_remarks
from igm_fast.data.dataset import ModalitySpec, MultimodalData
from igm_fast.data.disk import from_scan
from igm_fast.data.lazy import Reader
from igm_fast.data.lists import unsafe_name
from igm_fast.data.options import DataOptions
from igm_fast.data.problems import BadFile, Problem
from igm_fast.data.readers.arrays import open_array
from igm_fast.data.readers.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from igm_fast.data.readers.video import decode_clip, stated_frames
from igm_fast.data.scan import Entry, Scan
from igm_fast.data.splits import hash_split

MODALITIES = ("depth", "rgb", "flow")
# The lists' own numbers: NVIDIA's folders carry them, too, but 23 lines correct the folder's.
CLASSES = tuple(f"class_{number:02}" for number in range(1, 26))
_TRAIN = (40, 50, 43, 41, 42, 44, 39, 44, 41, 43, 43, 42, 39, 43, 42, 44, 42, 40, 36, 47, 41, 43, 43, 40, 38)
_TEST = (18, 22, 20, 21, 20, 20, 20, 19, 22, 19, 20, 19, 18, 20, 16, 19, 20, 19, 19, 21, 15, 18, 20, 19, 18)
PUBLISHED = {"train": dict(zip(CLASSES, _TRAIN, strict=True)), "test": dict(zip(CLASSES, _TEST, strict=True))}
LAYOUT = """\
nvgesture_train_correct_v2.lst, nvgesture_test_correct_v2.lst    (or ..._correct_cvpr2016_v2.lst)
Video_data/class_01/subject1_r0/sk_color.avi, sk_depth.avi       as the lists name them
Video_data/class_01/subject1_r0/sk_color_flow.npy                optical flow, by `nvgesture-flow`; or
Video_data/flow_data/{train,test}/<line of the list, from 0>.npy"""

FRAMES, KEPT = 80, 64  # of a clip; of these in a training sample (a range of other length occurs in neither list)
STORED, CROP = 256, 224  # pixels

_COMPUTE = "Compute it with `python -m igm_fast.data nvgesture-flow --root DIR`"


@dataclass(frozen=True)
class ClipReader:
    """Frames of an AVI; source: ``{"path", "start", "end"}``, relative to the root.

    Args:
        root: folder of the data set.
        depth: one channel, the first of the decoded three, scaled to 0…1; otherwise RGB under ImageNet's mean and
            standard deviation.
        official: as the official code, which puts black frames for those missing at the end of a range and decodes to
            BGR, but normalises as RGB.
    """

    root: Path
    depth: bool
    official: bool

    @property
    def parameters(self) -> str:
        """What decides the decoded frames."""
        return f"nvgesture clip {STORED} depth={self.depth} official={self.official}"

    def load(self, source: Any) -> Tensor:
        """Return uint8 ``[T, C, 256, 256]``."""
        path = self.root / source["path"]
        clip = decode_clip(path, source["start"], source["end"], (STORED, STORED), pad=self.official)
        if self.official:
            clip = torch.cat([clip, clip.new_zeros(FRAMES - len(clip), *clip.shape[1:])]).flip(1)
        return clip[:, :1].contiguous() if self.depth else clip.contiguous()

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return float32 ``[64 or 80, C, 224, 224]``: a random window in time and space, or the whole centre."""
        frames = crop(decoded, generator, kept=KEPT)
        return normalize(frames, (0.0,), (1.0,)) if self.depth else normalize(frames, IMAGENET_MEAN, IMAGENET_STD)


@dataclass(frozen=True)
class FlowReader:
    """Optical flow; source: path of a ``.npy`` with ``[256, 256, 2, T]``, relative to the root.

    Args:
        root: folder of the data set.
        official: keep all frames in training, as the official code does; otherwise the window of the other modalities.
    """

    root: Path
    official: bool
    cached: ClassVar[bool] = False

    @property
    def parameters(self) -> str:
        """What decides the decoded flow."""
        return "nvgesture flow"

    def load(self, source: Any) -> Tensor:
        """Return ``[T, 2, 256, 256]`` in the file's floating-point type."""
        path = self.root / source
        flow_frames(path)
        flow = torch.from_numpy(open_array(path).transpose(3, 2, 0, 1).copy())
        if not torch.isfinite(flow).all():
            raise BadFile(path, "holds NaN or infinite values", _COMPUTE)
        return flow

    def present(self, decoded: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return float32 ``[T, 2, 224, 224]``."""
        return crop(decoded, generator, kept=len(decoded) if self.official else KEPT).to(torch.float32)


def crop(frames: Tensor, generator: torch.Generator | None, kept: int) -> Tensor:
    """Return a window of ``kept`` frames of 224×224 pixels, or all frames' centre without a generator.

    All modalities draw first frame, top and left in this order, also one that then keeps all frames: with generators
    of equal seed they show the same place.
    """
    if generator is None:
        margin = (STORED - CROP) // 2
        return frames[..., margin : margin + CROP, margin : margin + CROP]
    bounds = (FRAMES - KEPT + 1, STORED - CROP + 1, STORED - CROP + 1)
    first, top, left = (int(torch.randint(bound, (), generator=generator)) for bound in bounds)
    first = min(first, len(frames) - kept)
    return frames[first : first + kept, :, top : top + CROP, left : left + CROP]


def flow_frames(path: Path) -> int:
    """Return the number of frames of a flow file, from its header.

    Raises:
        BadFile: no such file, unreadable, or of another shape or type.
    """
    array = open_array(path)
    if array.ndim != 4 or array.shape[:3] != (STORED, STORED, 2) or array.dtype.kind != "f":
        raise BadFile(
            str(path),
            f"has shape {array.shape} and dtype {array.dtype}, expected floating point [{STORED}, {STORED}, 2, T]",
            _COMPUTE,
        )
    return int(array.shape[3])


def load(seed: int, options: DataOptions) -> MultimodalData:
    """Return clips ``depth [80, 1, 224, 224]``, ``rgb [80, 3, ...]`` and ``flow [T, 2, ...]``; training sees 64 frames.

    Without a validation list, one or more training subjects are kept for validation, chosen by a fixed hash.
    """
    root = options.existing_root("nvgesture")
    found, official = scan(root, options), options.protocol == "official"
    readers: dict[str, Reader] = {
        "depth": ClipReader(root, depth=True, official=official),
        "rgb": ClipReader(root, depth=False, official=official),
        "flow": FlowReader(root, official=official),
    }
    flows = [flow_frames(root / entry.source["flow"]) for entry in found.parts["test"][:1]]
    lengths = {"depth": FRAMES, "rgb": FRAMES, "flow": max(flows, default=FRAMES)}
    channels = {"depth": 1, "rgb": 3, "flow": 2}
    return from_scan(
        "nvgesture",
        found,
        readers,
        tuple(
            ModalitySpec(name, "image", (lengths[name], channels[name], CROP, CROP), encoder="i3d")
            for name in MODALITIES
        ),
        seed=seed,
        options=options,
        description="25 hand gestures of 20 subjects from depth, RGB and optical flow (Molchanov et al., CVPR 2016); "
        "the test subjects are never seen in training.",
    )


def clips(root: Path, part: str, protocol: str) -> Iterator[Entry | Problem]:
    """Yield an entry with depth and RGB, or what is wrong, for each line of a part's list."""
    name = _list_name(root, part)
    if not (root / name).is_file():
        yield Problem(name, None, "the list is missing", f"Put NVIDIA's list there: {root / name}")
        return
    try:
        lines = (root / name).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        yield Problem(name, None, f"byte {error.start} is not UTF-8", "Put NVIDIA's list there again")
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _entry(root, name, number, line, protocol)
            except BadFile as error:
                yield error.problem(root, name, number)


def _list_name(root: Path, part: str) -> str:
    """Return the name of a part's list: NVIDIA's own where it is there, the one of the official code otherwise."""
    name = f"nvgesture_{part}_correct_cvpr2016_v2.lst"
    return name if (root / name).is_file() else name.replace("cvpr2016_", "")


def _entry(root: Path, file: str, number: int, line: str, protocol: str) -> Entry:
    fields: dict[str, str] = {}
    for word in line.split():
        key, _, value = word.partition(":")
        fields[key] = value
    for key in ("path", "label", "depth", "color"):
        if not fields.get(key):
            raise BadFile(key, "is missing in this line", "Expected path:FOLDER depth:NAME:START:END color:… label:N")
    folder = _folder(root, fields["path"])
    if not re.fullmatch(r"[0-9]{1,9}", fields["label"]) or not 1 <= int(fields["label"]) <= len(CLASSES):
        raise BadFile("label", f"is {fields['label']!r}, expected 1 to {len(CLASSES)}", "Correct or delete the line")
    subject = re.match(r"subject[0-9]+", folder.name)
    if subject is None:
        raise BadFile("path", f"ends in {folder.name!r}, expected subjectN_rM", "The split keeps subjects together")
    source = {name: _clip(root, folder, fields[key], protocol) for name, key in (("depth", "depth"), ("rgb", "color"))}
    return Entry(source, int(fields["label"]) - 1, subject.group(), number, file)


def _folder(root: Path, given: str) -> PurePosixPath:
    if wrong := unsafe_name(given):
        raise BadFile("path", wrong, "Expected a path such as ./Video_data/class_01/subject1_r0")
    folder = PurePosixPath(given)
    if not (root / "Video_data").is_dir() and folder.parts[:1] == ("Video_data",):
        folder = folder.relative_to("Video_data")  # the contents of Video_data lie in the root itself
    return folder


def _clip(root: Path, folder: PurePosixPath, given: str, protocol: str) -> dict[str, Any]:
    match = re.fullmatch(r"([\w-]+):([0-9]{1,9}):([0-9]{1,9})", given)
    if match is None:
        raise BadFile(given, "is no clip, expected NAME:START:END with frame numbers", "Correct or delete the line")
    start, end = int(match[2]), int(match[3])
    if end <= start:
        raise BadFile(given, "ends before it starts", "Correct or delete the line")
    if end - start > FRAMES or (end - start < FRAMES and protocol == "paper"):
        raise BadFile(given, f"has {end - start} frames, expected {FRAMES}", "Correct the range, or delete the line")
    path = folder / f"{match[1]}.avi"
    stated = stated_frames(root / path)
    if stated and (stated <= start or (stated < end and protocol == "paper")):
        what = f"has {stated} frames, expected at least {end}"
        raise BadFile(root / path, what, "Copy the file again, or delete the line")
    return {"path": str(path), "start": start, "end": end}


def scan(root: Path, options: DataOptions) -> Scan:
    """Read both lists, look at the headers of all clips, and find each clip's flow."""
    problems: list[Problem] = []
    parts: dict[str, list[Entry]] = {}
    seen: dict[str, str] = {}
    for part in ("train", "test"):
        entries: list[Entry] = []
        for found in clips(root, part, options.protocol):
            if isinstance(found, Problem):
                problems.append(found)
                continue
            folder = str(PurePosixPath(found.source["rgb"]["path"]).parent)
            if folder in seen:
                problems.append(
                    Problem(found.file, found.line, f"{folder} is listed in {seen[folder]}", "Delete one of the lines")
                )
                continue
            seen[folder] = f"{found.file}:{found.line}"
            entries.append(found)
        parts[part] = _with_flow(root, part, entries, options.protocol, problems)
    remarks = official_remarks(options, _list_name(root, "train"))
    return Scan(_with_validation(root, parts, options.protocol), problems, CLASSES, remarks)


def _with_validation(root: Path, parts: Mapping[str, list[Entry]], protocol: str) -> dict[str, list[Entry]]:
    """Hold out training subjects; the official protocol, which has no validation, trains on them all the same.

    They are chosen among all lines, also broken ones: what is validation never depends on what is on the disk.
    """
    train, path = parts["train"], root / _list_name(root, "train")
    text = path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""
    subjects = re.findall(r"subject[0-9]+(?=_)", text)
    _, rows = hash_split(subjects, [0] * len(subjects), groups=subjects)
    held = {subjects[row] for row in rows}
    return {
        "train": [entry for entry in train if protocol == "official" or entry.group not in held],
        "validation": [entry for entry in train if entry.group in held],
        "test": parts["test"],
    }


def flow_beside(clip: str) -> str:
    """Return where the flow of a clip is kept, both relative to the root: ``….avi`` → ``…_flow.npy``."""
    return f"{clip.removesuffix('.avi')}_flow.npy"


def _with_flow(root: Path, part: str, entries: list[Entry], protocol: str, problems: list[Problem]) -> list[Entry]:
    """Return the entries whose flow is there and as long as it has to be."""
    sources = {entry.line: _flow_source(root, part, entry) for entry in entries}
    _check_numbering(root, part, sources, problems)
    lengths: dict[int, int] = {}
    for entry in entries:
        try:
            lengths[entry.line] = flow_frames(root / sources[entry.line])
        except BadFile as error:  # noqa: PERF203 - each file has its own problem
            problems.append(Problem(entry.file, entry.line, f"{sources[entry.line]}: {error.what}", _COMPUTE))
    # In the official protocol flow has a length of its own, but one for all: batches are stacked.
    expected = FRAMES if protocol == "paper" or not lengths else Counter(lengths.values()).most_common(1)[0][0]
    complete = []
    for entry in entries:
        length = lengths.get(entry.line)
        if length == expected:
            complete.append(replace(entry, source={**entry.source, "flow": sources[entry.line]}))
        elif length is not None:
            what = f"{sources[entry.line]} has {length} frames, expected {expected} as the other modalities"
            problems.append(Problem(entry.file, entry.line, what, _COMPUTE))
    return complete


def _flow_source(root: Path, part: str, entry: Entry) -> str:
    beside = flow_beside(entry.source["rgb"]["path"])
    numbered = f"{_flow_folder(root, part)}/{entry.line - 1}.npy"
    return numbered if not (root / beside).exists() and (root / numbered).exists() else beside


def _flow_folder(root: Path, part: str) -> str:
    return f"{'Video_data/' if (root / 'Video_data').is_dir() else ''}flow_data/{part}"


def _check_numbering(root: Path, part: str, sources: Mapping[int, str], problems: list[Problem]) -> None:
    """Files numbered as lines belong to other clips once a line was taken out: their count gives that away."""
    folder = _flow_folder(root, part)
    if any(source.startswith(f"{folder}/") for source in sources.values()):
        name = _list_name(root, part)
        files = sum(1 for _ in (root / folder).glob("*.npy"))
        lines = sum(1 for line in (root / name).read_bytes().split(b"\n") if line.strip())
        if files != lines:
            what = f"holds {files} flow files, expected {lines}: they are numbered as the lines of {name}"
            problems.append(Problem(folder, None, what, f"Restore the list that they were made with. {_COMPUTE}"))
