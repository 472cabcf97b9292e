"""The Triton kernels of models/restore/align_device.py: what surrounds the network, in one pass before and one after.

Import it only on a machine with CUDA. Bicubic weights are those of torch (Keys 1981, a = -0.75).
"""

# mypy: ignore-errors
import triton
import triton.language as tl

NEAREST = tl.constexpr(12582912.0)  # 1.5 · 2²³: a float32 plus this has no fraction, and was rounded half to even


@triton.jit
def _level(v):
    """Rounded to whole grey levels, as every step on a CPU does."""
    return (tl.minimum(tl.maximum(v, 0.0), 255.0) + NEAREST) - NEAREST


@triton.jit
def _cubic(t, TAP: tl.constexpr):
    """Weight of pixel TAP - 1, where 0 is the one before the place, and t the way from that to the next."""
    if TAP == 1 or TAP == 2:
        d = t if TAP == 1 else 1 - t
        return (1.25 * d - 2.25) * d * d + 1.0
    else:
        d = t + 1 if TAP == 0 else 2 - t
        return ((-0.75 * d + 3.75) * d - 6.0) * d + 3.0


@triton.jit
def _bicubic(source, x, y, side, pixel_step, colour_step, NETWORK: tl.constexpr):
    """Red, green and blue levels at x, y of a picture of `side`, whose border continues.

    NETWORK: the picture is the network's, in [-1, 1]; its levels are rounded first.
    """
    left, top = tl.floor(x), tl.floor(y)
    red, green, blue = x * 0, x * 0, x * 0
    for j in tl.static_range(4):
        row = tl.minimum(tl.maximum(top.to(tl.int32) + (j - 1), 0), side - 1)
        for i in tl.static_range(4):
            column = tl.minimum(tl.maximum(left.to(tl.int32) + (i - 1), 0), side - 1)
            at = source + (row * side + column) * pixel_step
            one, two, three = tl.load(at), tl.load(at + colour_step), tl.load(at + 2 * colour_step)
            one, two, three = one.to(tl.float32), two.to(tl.float32), three.to(tl.float32)
            if NETWORK:
                one, two, three = _level((one + 1) * 127.5), _level((two + 1) * 127.5), _level((three + 1) * 127.5)
            weight = _cubic(y - top, j) * _cubic(x - left, i)
            red, green, blue = red + weight * one, green + weight * two, blue + weight * three
    return _level(red), _level(green), _level(blue)


@triton.jit
def _bilinear(source, x, y, side, soft):
    """1 - soft · (1 - source) at x, y of a map of `side`, with zeros around it."""
    left, top = tl.floor(x), tl.floor(y)
    total = x * 0
    for j in tl.static_range(2):
        row = top.to(tl.int32) + j
        share = (y - top) if j == 1 else 1 - (y - top)
        for i in tl.static_range(2):
            column = left.to(tl.int32) + i
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            value = 1 - soft * (1 - tl.load(source + row * side + column, mask=inside, other=0.0))
            total += tl.where(inside, value, 0.0) * share * ((x - left) if i == 1 else 1 - (x - left))
    return total


@triton.jit
def _moved(matrix, row, column):
    """x and y, by a matrix `(2, 3)`."""
    x = tl.load(matrix) * column + tl.load(matrix + 1) * row + tl.load(matrix + 2)
    y = tl.load(matrix + 3) * column + tl.load(matrix + 4) * row + tl.load(matrix + 5)
    return x, y


@triton.jit(do_not_specialize=["side"])
def lay(faces, placements, around, square, out, side, SIZE: tl.constexpr, PIXELS: tl.constexpr):
    """Faces onto the template: `(n, 3, SIZE, SIZE)` in [-1, 1]."""
    face = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    placement = placements + face * 15
    x, y = _moved(placement, pixel // SIZE, pixel % SIZE)
    placed, soft = tl.load(placement + 12), tl.load(placement + 13)
    red, green, blue = _bicubic(faces + face * side * side * 3, x, y, side, 3, 1, False)
    inside = 1 - placed * (1 - _bilinear(square, x, y, side, soft))
    beyond = around + (face * SIZE * SIZE + pixel) * 3
    to = out + face * 3 * SIZE * SIZE + pixel
    for colour in tl.static_range(3):
        laid = red if colour == 0 else (green if colour == 1 else blue)
        level = _level(inside * laid + (1 - inside) * tl.load(beyond + colour).to(tl.float32))
        tl.store(to + colour * SIZE * SIZE, level / 127.5 - 1)


@triton.jit(do_not_specialize=["side"])
def paste(restored, faces, placements, frame, out, side, SIZE: tl.constexpr, PIXELS: tl.constexpr):
    """The network's pictures over the enlarged faces: uint8 `(n, SIZE, SIZE, 3)`."""
    face = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, column = pixel // SIZE, pixel % SIZE
    placement = placements + face * 15
    factor = side / SIZE
    large_x, large_y = (column + 0.5) * factor - 0.5, (row + 0.5) * factor - 0.5
    red, green, blue = _bicubic(faces + face * side * side * 3, large_x, large_y, side, 3, 1, False)
    x, y = _moved(placement + 6, row, column)
    one, two, three = _bicubic(restored + face * 3 * SIZE * SIZE, x, y, SIZE, 1, SIZE * SIZE, True)
    placed, strength = tl.load(placement + 12), tl.load(placement + 14)
    seen = _bilinear(frame, x, y, SIZE, 1.0)
    share = strength * (1 - placed * (1 - seen * tl.load(frame + pixel)))
    to = out + (face * SIZE * SIZE + pixel) * 3
    for colour in tl.static_range(3):
        over = one if colour == 0 else (two if colour == 1 else three)
        under = red if colour == 0 else (green if colour == 1 else blue)
        tl.store(to + colour, _level(share * over + (1 - share) * under).to(tl.uint8))
