"""Which parts of a covariance or sketch the kernels for a GPU are given: planned on the host, needs no GPU."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from igm_fast.ops import native
from igm_fast.ops.patches import conv_patches

core = native.module()
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = (
    native.DTYPE_CODES[dtype] for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
)
BUILT = (16 << 20, 16 << 20, 1 << 30)  # as in igm_fast/ops/patches.py


def task(
    shape,
    kernel=(1, 3, 3),
    stride=(1, 1, 1),
    padding=(1, 1, 1, 1, 0, 0),
    dilation=(1, 1, 1),
    groups=1,
    columns=0,
    *,
    dtype=FLOAT32,
    sums=FLOAT32,
    capability=80,
    tf32=False,
    tuning=BUILT,
    address=0,
    channels_last=False,
):
    strides = [math.prod(shape[axis + 1 :]) for axis in range(5)]
    if channels_last:
        place = math.prod(shape[2:])
        strides = [place * shape[1], 1, *(stride * shape[1] for stride in strides[2:])]
    geometry = (kernel, stride, padding, dilation, groups)
    return core.PatchTask(address, dtype, shape, strides, *geometry, sums, columns, capability, tf32, tuning)


def positions_of(shape, kernel, stride, padding, dilation):
    meta = torch.empty(shape, device="meta")
    return conv_patches("plan", 3, meta, kernel, stride, padding, dilation, 1).count


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(1, 3), st.integers(3, 40), st.integers(3, 40)),
    groups=st.sampled_from([1, 2, 5]),
    kernel=st.tuples(st.just(1), st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    columns=st.sampled_from([0, 1, 80, 300]),
    sums=st.sampled_from([FLOAT32, FLOAT64]),
    tuning=st.tuples(st.sampled_from([1, 1 << 18, 16 << 20]), st.sampled_from([1, 1 << 14, 16 << 20]), st.just(999)),
)
def test_every_position_and_tile_is_taken_once(shape, groups, kernel, stride, columns, sums, tuning):
    shape = (shape[0], shape[1] * groups, *shape[2:])
    padding, dilation = (1, 1, 0, 1, 0, 0), (1, 1, 1)
    plan = core.patch_plan(task(shape, kernel, stride, padding, dilation, groups, columns, sums=sums, tuning=tuning))
    count = positions_of(shape, kernel, stride, padding, dilation)
    dim = shape[1] // groups * math.prod(kernel)
    if count * dim == 0:
        assert (plan["runs"], plan["rounds"], plan["partial_elements"]) == ([], [], 0)
        return
    per_sample, position = count // shape[0], 0
    for sample, first, positions in plan["runs"]:
        assert sample * per_sample + first == position
        assert 0 < positions <= 999
        assert first + positions <= per_sample or first == positions % per_sample == 0  # parts, or whole samples
        position += positions
    assert position == count
    channels = plan["rows"] // math.prod(kernel)  # with those that fill 16 bytes
    assert plan["rows"] % plan["together"] == 0
    assert shape[1] // groups <= channels < shape[1] // groups + 4
    rows, across = plan["tile"]
    down, wide = plan["tiles"]
    assert (down - 1) * rows < plan["rows"] <= down * rows
    per_group = down * wide if columns else down * (down + 1) // 2
    assert (wide - 1) * across < (columns or plan["rows"]) <= wide * across
    taken = []
    size = 4 if sums == FLOAT32 else 8
    for group, group_count, first, tiles, splits in plan["rounds"]:
        taken += range(group * per_group + first, group * per_group + first + tiles)
        partials = tiles * splits * rows * across
        assert splits >= 1
        assert partials <= plan["partial_elements"]
        assert partials * size <= tuning[0] or (tiles == 1 or group_count == 1)
        assert (splits - 1) * 128 < plan["runs"][0][2]
    assert taken == list(range(groups * per_group))
    longest = max(positions for _, _, positions in plan["runs"])
    most_groups = max(group_count for _, group_count, *_ in plan["rounds"])
    if not columns:
        assert (plan["image_elements"], plan["image_splits"]) == (0, 0)
        return
    assert columns <= plan["columns"] < columns + 4
    one_image = longest * most_groups * plan["columns"]
    assert plan["image_elements"] == one_image * plan["image_splits"]
    assert plan["image_elements"] * size <= tuning[1] or (plan["image_splits"] == 1 and longest <= 32)


@pytest.mark.parametrize(
    ("unit", "changes"),
    [
        ("igm::UnitTf32x3", {}),
        ("igm::UnitTf32", {"tf32": True}),
        ("igm::UnitTf32x3", {"dtype": FLOAT64}),
        ("igm::UnitHalf<igm::BFloat16>", {"dtype": BFLOAT16, "tf32": True}),
        ("igm::UnitHalf<igm::Float16>", {"dtype": FLOAT16, "capability": 120}),
        ("igm::UnitTf32x2", {"dtype": FLOAT16, "columns": 80}),
        ("igm::UnitTf32", {"dtype": BFLOAT16, "columns": 80, "tf32": True}),
        ("igm::UnitTf32x3", {"columns": 80}),
        ("igm::UnitPlain<float>", {"dtype": BFLOAT16, "capability": 75}),
        ("igm::UnitPlain<double>", {"dtype": BFLOAT16, "sums": FLOAT64}),
    ],
)
def test_arithmetic_follows_dtypes_and_device(unit, changes):
    assert core.patch_plan(task((2, 8, 1, 9, 9), **changes))["unit"] == unit


@pytest.mark.parametrize(
    ("channels", "unit", "rows"), [(3, "igm::UnitTf32", 36), (5, "igm::UnitHalf<igm::BFloat16>", 72)]
)
def test_halves_of_few_channels_are_multiplied_as_tf32(channels, unit, rows):
    plan = core.patch_plan(task((2, channels, 1, 9, 9), dtype=BFLOAT16))
    assert (plan["unit"], plan["rows"]) == (unit, rows)


RESNET = [(64, 56), (128, 28), (256, 14), (512, 7)]


@pytest.mark.parametrize(("channels", "size"), RESNET)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_blocks_fill_a_large_gpu_and_workspaces_stay_small(channels, size, dtype):
    for columns in (0, 80):
        plan = core.patch_plan(task((64, channels, 1, size, size), columns=columns, dtype=dtype))
        assert plan["partial_elements"] * 4 <= 16 << 20
        assert plan["image_elements"] * 4 <= 16 << 20
        assert max(tiles * splits for *_, tiles, splits in plan["rounds"]) >= 132


def launched(made):
    return [(launch.kernel.split("::", 1)[1].split("<")[0], launch.grid) for launch in made]


def test_launches_of_a_sketch():
    """Runs of positions go through image and sums one after the other; then one reduction."""
    one = task((64, 64, 1, 56, 56), columns=80)
    plan = core.patch_plan(one)
    launches = core.patch_sketch_launches(one, 0, 0, 1.0, 0)
    splits = plan["rounds"][0][-1]
    expected = [("stage_omega_kernel", 576 * 80 // 256), ("omega_mask_kernel", 576 // 8 // 8)]
    for _, _, positions in plan["runs"]:
        samples = positions / (56 * 56)  # whole ones: what is staged stays in L2
        assert samples.is_integer()
        assert samples * 64 * 56 * 56 * 4 <= 16 << 20
        expected += [
            ("stage_input_kernel", samples * 2 * math.ceil(56 * 56 / 256)),
            ("patch_product_kernel", math.ceil(positions / 128)),
            ("patch_product_kernel", 3 * splits),
        ]
    assert launched(launches) == [*expected, ("patch_reduction_kernel", 3 * 192 / 16)]
    products = [launch.kernel[-3:] for launch in launches if "product" in launch.kernel]
    assert products == [" 1>", " 2>"] * len(plan["runs"])
    assert all(launch.shared_bytes <= 48 << 10 and launch.block <= 256 for launch in launches)


def test_an_image_of_few_positions_is_summed_in_splits():
    """The last layers of a network have few positions and long patches: their rows are dealt out to more blocks."""
    one = task((16, 512, 1, 7, 7), columns=80)
    plan = core.patch_plan(one)
    assert plan["image_splits"] >= 16
    names = [name for name, _ in launched(core.patch_sketch_launches(one, 0, 0, 1.0, 0))]
    assert names.count("image_sum_kernel") == len(plan["runs"]) == 1
    assert core.patch_plan(task((64, 64, 1, 56, 56), columns=80))["image_splits"] <= 2


@pytest.mark.parametrize(
    ("changes", "channels", "staged"),
    [
        ({}, 64, True),
        ({"channels_last": True}, 64, False),
        ({"channels_last": True}, 6, True),  # 24 bytes
        ({"channels_last": True, "address": 8}, 64, True),
        ({"channels_last": True, "dtype": BFLOAT16}, 64, False),
        ({"channels_last": True, "dtype": BFLOAT16, "columns": 80}, 64, True),  # multiplied as float32
        ({"channels_last": True, "dtype": BFLOAT16}, 4, True),  # as float32
        ({"channels_last": True, "dtype": BFLOAT16}, 12, True),
        ({"capability": 75}, 64, False),  # gathered
        ({"sums": FLOAT64}, 64, False),
    ],
)
def test_inputs_are_staged_unless_16_bytes_are_neighbouring_channels(changes, channels, staged):
    one = task((4, channels, 1, 9, 9), **changes)
    plan = core.patch_plan(one)
    assert plan["staged"] == staged
    assert (plan["staged_bytes"] > 0) == staged
    made = core.patch_sketch_launches(one, 0, 0, 1.0, 0) or core.patch_covariance_launches(one, 0, 1.0, 0)
    assert ("stage_input_kernel" in [name for name, _ in launched(made)]) == staged


def test_what_is_staged_once_serves_all_rounds():
    one = task((8, 512, 1, 7, 7))  # 666 tiles in three rounds, one run
    assert len(core.patch_plan(one)["rounds"]) > 1
    names = [name for name, _ in launched(core.patch_covariance_launches(one, 0, 1.0, 0))]
    assert names.count("stage_input_kernel") == 1


def test_addresses_need_64_bits():
    """Samples beyond 2³² bytes from the first one are reached by pointers, positions beyond 2³⁰ in runs."""
    shape = (3000, 64, 1, 1024, 1024)
    changes = {"channels_last": True, "address": 16}
    plan = core.patch_plan(task(shape, **changes))
    assert [first for first, _, _ in plan["runs"]] == [1024 * i for i in range(3)]
    launches = core.patch_covariance_launches(task(shape, **changes), 0, 1.0, 0)
    addresses = {int.from_bytes(launch.params[:8], "little") for launch in launches if "product" in launch.kernel}
    assert addresses == {16 + 4 * 1024 * i * 64 * 1024**2 for i in range(3)}
    assert max(launch.grid for launch in launches) < 1 << 31


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((1, 1, 1, 1 << 16, 1 << 16), {}, "a sample with more output positions, expected at most 1073741824"),
        ((1, 1, 1, 1, 1 << 31), {}, "an axis of 2147483652 places"),
        ((1, 1 << 20, 1, 40, 40), {"kernel": (1, 33, 33)}, "patches of length 1141899264"),
        ((1, 1, 600, 600, 3000), {"kernel": (256, 512, 1024)}, "1 matrices of 8796095119360 tiles"),
    ],
)
def test_sizes_beyond_32_bits_are_refused(shape, changes, message):
    with pytest.raises(ValueError, match=message):
        core.patch_covariance_launches(task(shape, **changes), 0, 1.0, 0)


def test_samples_too_large_to_be_staged_are_refused_unless_they_lie_in_order():
    changes = {"kernel": (1, 1, 1), "stride": (2, 2, 2), "padding": (0,) * 6}
    shape = (1, 4, 2000, 2000, 2000)
    with pytest.raises(ValueError, match=r"samples of 8000000000 places, expected at most 1073741824 .*channels_last"):
        core.patch_covariance_launches(task(shape, **changes), 0, 1.0, 0)
    assert core.patch_covariance_launches(task(shape, **changes, channels_last=True), 0, 1.0, 0)


def test_kernels_whose_taps_need_more_bits_are_refused():
    big = task((1, 1, 1100, 1100, 200), kernel=(1024, 1024, 128), columns=1)
    with pytest.raises(ValueError, match=r"kernel 1024×1024×128, expected sizes .* whose bits fit into 29"):
        core.patch_sketch_launches(big, 0, 0, 1.0, 0)


@pytest.mark.parametrize(
    ("shape", "pointwise", "parts"),
    [
        ((64, 64, 1, 56, 56), False, [(0, 64, 2)]),
        ((1, 64, 1, 1024, 1024), False, [(i, 1, 1) for i in range(64)]),
        ((1, 512, 1, 1, 8192), True, [(0, 512, 512)]),  # rows of a linear layer are summed first
        ((0, 64, 1, 56, 56), False, []),
    ],
)
def test_moments_stay_in_their_workspace(shape, pointwise, parts):
    geometry = {"kernel": (1, 1, 1), "padding": (0,) * 6} if pointwise else {}
    one = task(shape, **geometry)
    assert core.moments_plan(one) == parts
    taps = 1 if pointwise else 9
    assert core.moments_workspace(one) <= (2 << 20) + shape[1] * taps
    names = [name for name, _ in launched(core.moments_launches(one, 0, 0, 1.0, 0))]
    last = ["trace_moments_kernel"] if parts else []
    assert names == ["location_moments_kernel", "tap_moments_kernel"] * len(parts) + last
