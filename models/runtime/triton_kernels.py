"""The Triton kernels of models/runtime/fused_pass.py. Feature maps are `(n, h, w, c)` in memory; sums are float32.

Import it only on a machine with CUDA. Sizes of channels and groups are powers of two.
"""

# mypy: ignore-errors
import triton
import triton.language as tl

PLACES = ["y_top", "y_left", "y_pixels", "y_width", "rest_top", "rest_left", "rest_pixels", "rest_width"]


# Integers are not specialised, so that another window needs no other kernel. What must be a known multiple of the
# channels, for wide loads, is a number of pixels.
@triton.jit(do_not_specialize=["count", "width", *PLACES])
def combine(
    y,
    rest,
    bias,
    scale,
    shift,
    value,
    activated,
    affine_image,
    count,  # pixels of the result
    width,
    y_top,
    y_left,
    y_pixels,  # of an image
    y_width,
    rest_top,
    rest_left,
    rest_pixels,
    rest_width,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    ACROSS: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHUFFLED: tl.constexpr,
    SILU: tl.constexpr,
    KEEP: tl.constexpr,
    AFFINE: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * ACROSS + tl.arange(0, ACROSS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < count)[:, None]
    row, column = pixel // width, pixel % width
    if SHUFFLED:  # block p holds rows 2p - 1 and 2p
        up, across = row + y_top + 1, column + y_left + 1
        at = ((up // 2) * y_width + across // 2) * 4 + (up % 2) * 2 + across % 2
        y += image * y_pixels * 4 * CHANNELS
    else:
        at = (row + y_top) * y_width + column + y_left
        y += image * y_pixels * CHANNELS
    v = tl.load(y + at[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        v += tl.load(bias + channel).to(tl.float32)[None, :]
    if RESIDUAL:
        at = (row + rest_top) * rest_width + column + rest_left
        rest += image * rest_pixels * CHANNELS
        v += tl.load(rest + at[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    to = image * count * CHANNELS + pixel[:, None] * CHANNELS + channel[None, :]
    if KEEP:
        tl.store(value + to, v.to(value.dtype.element_ty), mask=inside)
    if AFFINE:
        place = image * affine_image + channel
        v = v * tl.load(scale + place)[None, :] + tl.load(shift + place)[None, :]
        if SILU:
            v = v / (1.0 + tl.exp(-v))
        tl.store(activated + to, v.to(activated.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count", "blocks"])
def sums(
    y,
    bias,
    partial,
    count,
    blocks,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    ACROSS: tl.constexpr,
    STEPS: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Of the values and of their squares: `partial` is `(n, blocks, 2, c)`."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * ACROSS + tl.arange(0, ACROSS)
    total = tl.zeros([PIXELS, ACROSS], tl.float32)
    squares = tl.zeros([PIXELS, ACROSS], tl.float32)
    for step in range(STEPS):
        pixel = (tl.program_id(0) * STEPS + step) * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < count)[:, None]
        v = tl.load(y + (image * count + pixel[:, None]) * CHANNELS + channel[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        if BIAS:
            v += tl.where(inside, tl.load(bias + channel).to(tl.float32)[None, :], 0.0)
        total += v
        squares += v * v
    to = partial + ((image * blocks + tl.program_id(0)) * 2) * CHANNELS + channel
    tl.store(to, tl.sum(total, 0))
    tl.store(to + CHANNELS, tl.sum(squares, 0))


@triton.jit(do_not_specialize=["count", "blocks"])
def affine(
    partial,
    weight,
    bias,
    scale,
    shift,
    blocks,
    count,  # values of a group
    eps,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Scale and shift of a group's channels, from the partial sums."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = group * SIZE + tl.arange(0, SIZE)
    total = tl.zeros([ROWS, SIZE], tl.float32)
    squares = tl.zeros([ROWS, SIZE], tl.float32)
    for start in range(0, blocks, ROWS):
        block = start + tl.arange(0, ROWS)
        at = partial + ((image * blocks + block[:, None]) * 2) * CHANNELS + channel[None, :]
        inside = (block < blocks)[:, None]
        total += tl.load(at, mask=inside, other=0.0)
        squares += tl.load(at + CHANNELS, mask=inside, other=0.0)
    mean = tl.sum(tl.sum(total, 1), 0) / count
    variance = tl.sum(tl.sum(squares, 1), 0) / count - mean * mean
    factor = tl.load(weight + channel).to(tl.float32) / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    tl.store(scale + image * CHANNELS + channel, factor)
    tl.store(shift + image * CHANNELS + channel, tl.load(bias + channel).to(tl.float32) - mean * factor)
