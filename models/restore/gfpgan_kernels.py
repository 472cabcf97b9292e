"""The Triton kernels of models/restore/gfpgan_passes.py. Feature maps are `(n, h, w, c)` in memory; sums are float32.

Import it only on a machine with CUDA. Channels and sides are powers of two, and each program's pixels divide a map's.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def _leaky(v):
    return tl.where(v > 0, v, v * 0.2)


@triton.jit
def _enlarging(place, side):
    """Of rows or columns of a bilinear enlargement by two: the two in the picture of `side`, by ¾ and by ¼."""
    near = place // 2
    return near, tl.minimum(tl.maximum(near + (place % 2) * 2 - 1, 0), side - 1)


@triton.jit(do_not_specialize=["count"])
def first(x, weight, bias, out, count, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """x: float32 `(n, 3, h, w)`. count: pixels of an image."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    v = tl.zeros([PIXELS, CHANNELS], tl.float32) + tl.load(bias + channel).to(tl.float32)[None, :]
    for colour in tl.static_range(3):
        level = tl.load(x + (image * 3 + colour) * count + pixel)
        v += level[:, None] * tl.load(weight + channel * 3 + colour).to(tl.float32)[None, :]
    to = (image * count + pixel[:, None]) * CHANNELS + channel[None, :]
    tl.store(out + to, _leaky(v).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["height", "width"])
def resize(
    y,
    bias,
    out,
    height,
    width,
    channels,
    UP: tl.constexpr,
    BIAS: tl.constexpr,
    PIXELS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """height, width: of the result."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * ACROSS + tl.arange(0, ACROSS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, column = pixel // width, pixel % width
    if UP:
        source_width, source_pixels = width // 2, height * width // 4
        row_0, row_1 = _enlarging(row, height // 2)
        column_0, column_1 = _enlarging(column, source_width)
        near: tl.constexpr = 0.75
    else:
        source_width, source_pixels = width * 2, height * width * 4
        row_0, row_1, column_0, column_1 = row * 2, row * 2 + 1, column * 2, column * 2 + 1
        near: tl.constexpr = 0.5
    y += image * source_pixels * channels
    v = tl.zeros([PIXELS, ACROSS], tl.float32)
    for tap in tl.static_range(4):
        at = (row_0 if tap < 2 else row_1) * source_width + (column_0 if tap % 2 == 0 else column_1)
        one = tl.load(y + at[:, None] * channels + channel[None, :]).to(tl.float32)
        if BIAS:
            one = _leaky(one + tl.load(bias + channel).to(tl.float32)[None, :])
        v += one * ((near if tap < 2 else 1 - near) * (near if tap % 2 == 0 else 1 - near))
    to = (image * height * width + pixel[:, None]) * channels + channel[None, :]
    tl.store(out + to, v.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["height", "width"])
def join(
    deep,
    bias,
    shallow,
    added,
    out,
    total,
    height,
    width,
    channels,
    UP: tl.constexpr,
    ADDED: tl.constexpr,
    PIXELS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * ACROSS + tl.arange(0, ACROSS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    at = (image * height * width + pixel[:, None]) * channels + channel[None, :]
    v = _leaky(tl.load(deep + at).to(tl.float32) + tl.load(bias + channel).to(tl.float32)[None, :])
    if UP:
        row_0, row_1 = _enlarging(pixel // width, height // 2)
        column_0, column_1 = _enlarging(pixel % width, width // 2)
        shallow += image * (height * width // 4) * channels
        for tap in tl.static_range(4):
            source = (row_0 if tap < 2 else row_1) * (width // 2) + (column_0 if tap % 2 == 0 else column_1)
            one = tl.load(shallow + source[:, None] * channels + channel[None, :]).to(tl.float32)
            v += one * ((0.75 if tap < 2 else 0.25) * (0.75 if tap % 2 == 0 else 0.25))
    else:
        v += tl.load(shallow + at).to(tl.float32)
    tl.store(out + at, v.to(out.dtype.element_ty))
    if ADDED:
        tl.store(total + at, (v + tl.load(added + at).to(tl.float32)).to(total.dtype.element_ty))


@triton.jit(do_not_specialize=["count"])
def split(y, bias, one, two, count, half, PIXELS: tl.constexpr, ACROSS: tl.constexpr):
    """count: pixels of an image. half: channels of `one` and of `two`."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * ACROSS + tl.arange(0, ACROSS)
    pixel = image * count + tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    at = pixel * 2 * half + channel[None, :]
    for part in tl.static_range(2):
        v = tl.load(y + at + part * half).to(tl.float32) + tl.load(bias + part * half + channel).to(tl.float32)[None, :]
        to = (one if part == 0 else two) + pixel * half + channel[None, :]
        tl.store(to, _leaky(v).to(one.dtype.element_ty))


@triton.jit(do_not_specialize=["height", "width"])
def style(
    y,
    gain,
    noise,
    bias,
    shape_scale,
    shape_scale_bias,
    shape_shift,
    shape_shift_bias,
    colour_scale,
    colours,
    colour_bias,
    below,
    onto,
    out,
    rgb,
    height,
    width,
    row,  # values between two faces of gain, colour_scale and onto
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    CONDITION: tl.constexpr,
    COLOURS: tl.constexpr,
    BELOW: tl.constexpr,
    KEEP: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    count = height * width
    at = (image * count + pixel[:, None]) * CHANNELS + channel[None, :]
    v = tl.load(y + at).to(tl.float32) * tl.load(gain + image * row + channel)[None, :]
    v = _leaky(v + tl.load(noise + pixel)[:, None] + tl.load(bias + channel).to(tl.float32)[None, :])
    if CONDITION:
        HALF: tl.constexpr = CHANNELS // 2
        guided = channel >= HALF
        source = (image * count + pixel[:, None]) * HALF + (channel - HALF)[None, :]
        factor = tl.load(shape_scale + source, mask=guided[None, :], other=1.0).to(tl.float32)
        factor += tl.load(shape_scale_bias + channel - HALF, mask=guided, other=0.0).to(tl.float32)[None, :]
        offset = tl.load(shape_shift + source, mask=guided[None, :], other=0.0).to(tl.float32)
        offset += tl.load(shape_shift_bias + channel - HALF, mask=guided, other=0.0).to(tl.float32)[None, :]
        v = v * factor + offset
    if COLOURS:
        scales = tl.load(colour_scale + image * row + channel)
        if BELOW:
            row_0, row_1 = _enlarging(pixel // width, height // 2)
            column_0, column_1 = _enlarging(pixel % width, width // 2)
        for colour in tl.static_range(3):
            kernel = scales * tl.load(colours + colour * CHANNELS + channel)
            level = tl.sum(v * kernel[None, :], 1) + tl.load(colour_bias + colour)
            if BELOW:
                plane = below + (image * 3 + colour) * (count // 4)
                for tap in tl.static_range(4):
                    source = (row_0 if tap < 2 else row_1) * (width // 2) + (column_0 if tap % 2 == 0 else column_1)
                    level += tl.load(plane + source) * ((0.75 if tap < 2 else 0.25) * (0.75 if tap % 2 == 0 else 0.25))
            tl.store(rgb + (image * 3 + colour) * count + pixel, level)
    if KEEP:
        v *= tl.load(onto + image * row + channel)[None, :]
        tl.store(out + at, v.to(out.dtype.element_ty))
