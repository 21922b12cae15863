"""All compiled code of the teacher: histograms, co-occurrence, patterns, Gabor filters, patches and windows.

Each function works on plain arrays, writes into those that it is given, frees the interpreter lock, and is
cached on disk, so that a worker process starts without compiling. It is one file, with its own constants,
because numba's cache sees changes only in the file of the function that was compiled. HU are counted as
integers, never summed as floats: those results do not depend on the order of the voxels. Nor does the
compiler choose where a product and a sum become one step (`fma`): it chooses otherwise in the process that
compiles than in those that read its cache, and the same patch would differ in its last bit.
"""

import math

import numba
import numpy as np

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
inlined = numba.njit(inline="always", nogil=True, error_model="numpy")

GABOR_FREQUENCIES = (0.10, 0.25, 0.40)
"""Cycles per voxel."""
GABOR_DEGREES = (0, 45, 90, 135)
"""Angle of the wave in the axial plane: 0 varies along x, 90 along y."""
SIGMA_VOX = 3.0
REACH = 7
"""Gabor kernels are 15 x 15."""
WAVES = len(GABOR_FREQUENCIES) * len(GABOR_DEGREES)

HU, GLCM, LBP, GABOR, COLUMNS = 0, 5, 11, 21, 34
"""First column of each family, and how many there are."""

NO_PATTERN = np.uint8(255)
DIRECTIONS = 13
_LINE = 16
"""Room for the directions of a pair of levels: a power of two."""
# scikit-image puts the diagonal neighbours at .70711: bilinear weights as whole numbers, so that a tie is a
# tie, over .70711, which all three share: so they fit in 32 bits.
_DIAGONAL = np.int32(70711)
_SIDE = np.int32(29289)
WIDEST_HU = 2**31 // (70711 + 2 * 29289) - 1
"""Widest range of HU whose patterns are exact in 32 bits."""


@numba.extending.intrinsic
def fma(context, a, b, c):
    """a * b + c, rounded once (IEEE 754 fusedMultiplyAdd), for three floats of one type."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


@jit
def copy_row(values, out):
    """out[:] = values, without the checks of shapes, whose messages take numba seconds to compile."""
    for i in range(out.size):
        out[i] = values[i]


@jit
def count_and_code(hu, lungs, low, code_of, counts, codes):
    """One reading of a region: counts of the lung's HU, one a HU from `low`, and the code of each lung voxel.

    hu (z, y, x) int16 clipped to low..; codes (z+2, y+2, x+2) uint16, framed by one voxel of 0: outside the lung.
    """
    counts[:] = 0
    codes[:] = 0
    depth, height, width = hu.shape
    for z in range(depth):
        for y in range(height):
            values, inside, out = hu[z, y], lungs[z, y], codes[z + 1, y + 1, 1:]
            for x in range(width):
                if inside[x]:
                    step = np.uint64(np.int64(values[x]) - low)
                    counts[step] += 1
                    out[x] = code_of[step]


@jit
def first_order(counts, low, bins, out):
    """Mean, sd, skewness, kurtosis and entropy of a histogram with one count a HU from `low`."""
    total = 0
    weighted = 0
    for step in range(counts.size):
        total += counts[step]
        weighted += counts[step] * step
    mean = weighted / total
    m2 = m3 = m4 = 0.0
    for step in range(counts.size):
        if counts[step]:
            off = step - mean
            m2 += counts[step] * off**2
            m3 += counts[step] * off**3
            m4 += counts[step] * off**4
    m2, m3, m4 = m2 / total, m3 / total, m4 / total
    entropy = 0.0
    span = counts.size - 1
    step = 0
    for b in range(bins):
        inside = 0
        # The last bin holds the upper end too, as numpy.histogram has it.
        while step < counts.size and (step * bins < (b + 1) * span or b == bins - 1):
            inside += counts[step]
            step += 1
        if inside:
            entropy -= inside / total * np.log2(inside / total)
    out[0] = mean + low
    out[1] = np.sqrt(m2)
    out[2] = m3 / m2**1.5 if m2 > 0 else 0.0
    out[3] = m4 / m2**2 if m2 > 0 else 0.0
    out[4] = entropy


@jit
def percentiles(counts, low, shares, out):
    """Exact percentiles of a histogram with one count a HU, interpolated as numpy.percentile does."""
    total = counts.sum()
    for i in range(shares.size):
        place = shares[i] * (total - 1)
        rank = int(np.floor(place))
        seen = 0
        step = -1
        while seen <= rank:
            step += 1
            seen += counts[step]
        value = float(step)
        if place > rank and seen == rank + 1:
            after = step + 1
            while counts[after] == 0:
                after += 1
            value += (place - rank) * (after - step)
        out[i] = value + low


# Unsigned indices need no check for counting from the end. They do not mix with plain integers.
_U = tuple(np.uint64(i) for i in range(DIRECTIONS))


@jit
def co_occurrences(codes, levels, pairs):
    """Count neighbouring grey levels by direction: pairs (levels, levels, 16) flat, level 0 is outside the lung.

    codes are 16 times the level, framed by zeros. All directions of a pair of levels lie side by side: one
    line of the cache, one sum for all addresses, and equal neighbours do not wait for each other's count.
    """
    depth, height, width = codes.shape
    at, one = codes.ravel(), np.uint32(1)
    line, row, plane = np.uint64(levels), np.uint64(width), np.uint64(width * height)
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            start = (z * height + y) * width
            for x in range(1, width - 1):
                p = np.uint64(start + x)
                if at[p]:
                    here = np.uint64(at[p]) * line
                    pairs[here + np.uint64(at[p + _U[1]])] += one
                    q = p + row
                    pairs[here + np.uint64(at[q - _U[1]]) + _U[1]] += one
                    pairs[here + np.uint64(at[q]) + _U[2]] += one
                    pairs[here + np.uint64(at[q + _U[1]]) + _U[3]] += one
                    q = p + plane - row
                    pairs[here + np.uint64(at[q - _U[1]]) + _U[4]] += one
                    pairs[here + np.uint64(at[q]) + _U[5]] += one
                    pairs[here + np.uint64(at[q + _U[1]]) + _U[6]] += one
                    q = p + plane
                    pairs[here + np.uint64(at[q - _U[1]]) + _U[7]] += one
                    pairs[here + np.uint64(at[q]) + _U[8]] += one
                    pairs[here + np.uint64(at[q + _U[1]]) + _U[9]] += one
                    q = p + plane + row
                    pairs[here + np.uint64(at[q - _U[1]]) + _U[10]] += one
                    pairs[here + np.uint64(at[q]) + _U[11]] += one
                    pairs[here + np.uint64(at[q + _U[1]]) + _U[12]] += one


@jit
def haralick(pairs, levels, lowest, highest, sums, out):
    """Six features of the symmetric matrix of levels lowest..highest, averaged over directions with pairs.

    pairs as `co_occurrences` leaves them; they are 0 again afterwards. sums (1 + 2 levels, 16): of each
    direction the squares, and the pairs by gap and by level. They are whole numbers, so float64 is exact.
    """
    sums[:] = 0
    lanes = sums.shape[1]
    for i in range(lowest, highest + 1):
        outside, low = pairs[i * levels * _LINE :], sums[1 + levels + i]
        for d in range(lanes):
            outside[d] = 0
        for j in range(i, highest + 1):
            one, other = pairs[(i * levels + j) * _LINE :], pairs[(j * levels + i) * _LINE :]
            found = np.uint32(0)
            for d in range(lanes):
                found |= one[d] | other[d]
            if found == 0:
                continue
            squares, gap, high = sums[0], sums[1 + j - i], sums[1 + levels + j]
            twice = 0.5 if i == j else 1.0  # one and other are then the same
            for d in range(lanes):
                both = np.float64(np.int32(one[d] + other[d]))
                squares[d] += twice * both * both
                gap[d] += twice * both
                low[d] += twice * both
                high[d] += twice * both
            for d in range(lanes):
                one[d] = 0
                other[d] = 0
    out[:] = 0
    used = 0
    for d in range(DIRECTIONS):
        total = contrast = dissimilarity = homogeneity = sum_level = sum_square = 0.0
        for step in range(highest - lowest + 1):
            count = sums[1 + step, d]
            total += count
            contrast += count * step * step
            dissimilarity += count * step
            homogeneity += count / (1.0 + step * step)
            level = lowest + step
            count = sums[1 + levels + level, d]
            sum_level += count * level
            sum_square += count * level * level
        if total == 0:
            continue
        used += 1
        variance = sum_square / (2 * total) - (sum_level / (2 * total)) ** 2
        out[0] += contrast / total
        out[1] += dissimilarity / total
        out[2] += homogeneity / total
        out[4] += 1 - contrast / total / (2 * variance) if contrast or variance > 1e-9 else 1.0
        out[5] += sums[0, d] / (2.0 * total * total)
    for i in range(6):
        out[i] /= used  # NaN where no two lung voxels touch
    out[3] = np.sqrt(out[5])


@jit
def uniform_patterns(hu, lungs, start, count, row, column, out):
    """Rotation-invariant uniform patterns 0..9 of voxels start..start+count-1, or 255 unless all nine are lung.

    hu, lungs and out flat; row and column are the plane's strides in voxels. Diagonal neighbours lie on the
    circle, bilinearly interpolated.
    """
    centres, wholes, found = hu[start:], lungs[start:], out[start:]
    east, west, north, south = (
        hu[start + column :],
        hu[start - column :],
        hu[start - row :],
        hu[start + row :],
    )
    north_east, north_west = hu[start - row + column :], hu[start - row - column :]
    south_east, south_west = hu[start + row + column :], hu[start + row - column :]
    e_lung, w_lung, n_lung = lungs[start + column :], lungs[start - column :], lungs[start - row :]
    s_lung, ne_lung, nw_lung = (
        lungs[start + row :],
        lungs[start - row + column :],
        lungs[start - row - column :],
    )
    se_lung, sw_lung = lungs[start + row + column :], lungs[start + row - column :]
    for x in range(count):
        centre = np.int32(centres[x])
        e, w = np.int32(east[x]) - centre, np.int32(west[x]) - centre
        n, s = np.int32(north[x]) - centre, np.int32(south[x]) - centre
        ne = _DIAGONAL * (np.int32(north_east[x]) - centre) + _SIDE * (n + e)
        nw = _DIAGONAL * (np.int32(north_west[x]) - centre) + _SIDE * (n + w)
        sw = _DIAGONAL * (np.int32(south_west[x]) - centre) + _SIDE * (s + w)
        se = _DIAGONAL * (np.int32(south_east[x]) - centre) + _SIDE * (s + e)
        b0, b1, b2, b3 = np.int32(e >= 0), np.int32(ne >= 0), np.int32(n >= 0), np.int32(nw >= 0)
        b4, b5, b6, b7 = np.int32(w >= 0), np.int32(sw >= 0), np.int32(s >= 0), np.int32(se >= 0)
        ones = b0 + b1 + b2 + b3 + b4 + b5 + b6 + b7
        changes = (
            (b0 ^ b1) + (b1 ^ b2) + (b2 ^ b3) + (b3 ^ b4) + (b4 ^ b5) + (b5 ^ b6) + (b6 ^ b7) + (b7 ^ b0)
        )
        whole = wholes[x] & e_lung[x] & w_lung[x] & n_lung[x] & s_lung[x]
        whole &= ne_lung[x] & nw_lung[x] & se_lung[x] & sw_lung[x]
        pattern = ones if changes <= 2 else np.int32(9)
        found[x] = pattern if whole else NO_PATTERN


@jit
def plane_patterns(hu, lungs, axis, first, last, out):
    """Patterns of every voxel in planes first..last-1 across `axis`, into out (z, y, x) uint8."""
    depth, height, width = hu.shape
    stride = (height * width, width, 1)
    row = stride[0] if axis > 0 else stride[1]
    column = stride[2] if axis < 2 else stride[1]
    start = [1, 1, 1]
    stop = [depth - 1, height - 1, width - 1]
    start[axis], stop[axis] = first, last
    flat_hu, flat_lungs, flat_out = hu.ravel(), lungs.ravel(), out.ravel()
    for z in range(start[0], stop[0]):
        for y in range(start[1], stop[1]):
            at = (z * height + y) * width + start[2]
            uniform_patterns(flat_hu, flat_lungs, at, stop[2] - start[2], row, column, flat_out)


@jit
def count_patterns(patterns, counts):
    """Add a region's patterns to counts (10,)."""
    # Four tables, so that equal neighbours do not wait for each other's count.
    tables = np.zeros((4, 256), np.int64)
    for plane in patterns:
        for line in plane:
            for x in range(line.size):
                tables[x & 3, line[x]] += 1
    for pattern in range(counts.size):
        counts[pattern] += tables[:, pattern].sum()


# ---- Gabor filters
#
# Twelve complex kernels of 15 x 15 voxels whose Gaussian is round are products of one-dimensional ones, and
# each of those is even or odd. What is not lung is first filled with the Gaussian mean of the lung around it
# (normalised convolution, Knutsson and Westin 1993), so that neither the chest wall nor the edge of a patch is
# heard.
#
# A slice is filtered in strips of up to 96 columns, and what belongs to one row lies in one array at constant
# distances: strides that the compiler knows, few arrays, and a bound that it can see make it use vector
# instructions. Each loop filters two rows, so that one has steps to do while the other waits for its own; it sums
# the squares of these rows and takes the roots of the two before: the divider then works beside the multipliers,
# not after them. After an odd count of rows comes one that is not lung.
_STRIP = 96
_FRAMED = _STRIP + 2 * REACH + 2
_BLOCK = 16
_ZERO = np.float32(0)


def _taps(cycles: float, wave) -> np.ndarray:
    """Half of a kernel: taps 0..7 of the Gaussian times cos or sin of the wave."""
    norm = SIGMA_VOX * math.sqrt(2 * math.pi)
    gauss = [math.exp(-0.5 * (k / SIGMA_VOX) ** 2) / norm for k in range(REACH + 1)]
    return np.array([g * wave(2 * math.pi * cycles * k) for k, g in enumerate(gauss)], np.float32)


def _sum(even: np.ndarray) -> float:
    return float(even[0]) + 2 * float(even[1:].sum(dtype=np.float64))


GAUSS = _taps(0.0, math.cos)
_COS, _SIN = _taps(GABOR_FREQUENCIES[0], math.cos), _taps(GABOR_FREQUENCIES[0], math.sin)
# How much of a constant the real part of each straight wave passes; it is taken off again.
_THROUGH = tuple(np.float32(_sum(_taps(f, math.cos)) / _sum(GAUSS)) for f in GABOR_FREQUENCIES)
# .25 cycles: every second tap of either part is 0, and of the others every second sign is turned.
_QUARTER = GAUSS * np.array([1, 1, -1, -1, 1, 1, -1, -1], np.float32)
# A wave at 45 degrees is one of so many cycles along either axis.
_SLANT = tuple(f * math.sqrt(0.5) for f in GABOR_FREQUENCIES)
_EVEN = np.stack([_taps(cycles, math.cos) for cycles in _SLANT])
_ODD = np.stack([_taps(cycles, math.sin) for cycles in _SLANT])
_PARTS = 1 + 2 * len(_SLANT)


@inlined
def _smooth_at(values, at, step):
    """What is smooth at a place along an axis whose voxels lie `step` apart."""
    mean = GAUSS[0] * values[REACH * step + at]
    for k in range(1, REACH + 1):
        mean = fma(GAUSS[k], values[(REACH + k) * step + at] + values[(REACH - k) * step + at], mean)
    return mean


@jit
def _smooth_y(strip, rows, width, out):
    """A strip smooth along y."""
    for y in range(0, rows, 2):
        a, smooth = strip[y * _FRAMED :], out[y * _FRAMED :]
        for x in range(min(width, _FRAMED)):
            smooth[x], smooth[_FRAMED + x] = _smooth_at(a, x, _FRAMED), _smooth_at(a, _FRAMED + x, _FRAMED)


@inlined
def _straight_at(smooth, at, step):
    """The mean around a voxel along one axis, and the squared responses of three waves along it.

    .40 is half a cycle less .10: cos(.8 pi k) = (-1)^k cos(.2 pi k), so both come from the same two sums.
    """
    here = smooth[REACH * step + at]
    mean, even, quarter = GAUSS[0] * here, _COS[0] * here, GAUSS[0] * here
    first = second = odd = quarter_odd = _ZERO
    for k in range(1, REACH + 1):
        after, before = smooth[(REACH + k) * step + at], smooth[(REACH - k) * step + at]
        mean = fma(GAUSS[k], after + before, mean)
        if k % 2:
            odd = fma(_COS[k], after + before, odd)
            first = fma(_SIN[k], after - before, first)
            quarter_odd = fma(_QUARTER[k], after - before, quarter_odd)
        else:
            even = fma(_COS[k], after + before, even)
            second = fma(_SIN[k], after - before, second)
            quarter = fma(_QUARTER[k], after + before, quarter)
    re, im = fma(-_THROUGH[0], mean, even + odd), first + second
    low = fma(re, re, im * im)
    re, im = fma(-_THROUGH[1], mean, quarter), quarter_odd
    middle = fma(re, re, im * im)
    re, im = fma(-_THROUGH[2], mean, even - odd), first - second
    return mean, low, middle, fma(re, re, im * im)


@inlined
def _add_roots(power, waves, wave, side, at, total):
    """`total` and one wave's responses at a column of two rows, of which `power` has the squares, in the lung."""
    total = fma(np.sqrt(power[wave * _STRIP + at]), side[at], total)
    return fma(np.sqrt(power[(waves + wave) * _STRIP + at]), side[2 * _STRIP + at], total)


def _straight_along(step: int, pitch: int, angle: int):
    """The three waves along one axis, from what is smooth along the other: |response| at 0 or 90 degrees.

    side (y + 2, 2, 96): whether a voxel two rows before is lung, and the mean around the row's own voxel, which is
    written. power (2, 3, 96): squared responses of the two rows before, then of the rows themselves.
    """
    low, middle, high = (f * 4 * _STRIP + angle * _STRIP for f in range(3))

    @jit
    def straight(smooth, side, power, rows, width, out):
        for y in range(0, rows, 2):
            a, s, p = smooth[y * pitch :], side[2 * y * _STRIP :], power
            for x in range(min(width, _STRIP)):
                out[low + x] = _add_roots(p, 3, 0, s, x, out[low + x])
                out[middle + x] = _add_roots(p, 3, 1, s, x, out[middle + x])
                out[high + x] = _add_roots(p, 3, 2, s, x, out[high + x])
                here, below = _straight_at(a, x, step), _straight_at(a, pitch + x, step)
                s[_STRIP + x], p[x], p[_STRIP + x], p[2 * _STRIP + x] = here
                s[3 * _STRIP + x], p[3 * _STRIP + x], p[4 * _STRIP + x], p[5 * _STRIP + x] = below

    return straight


_straight_x = _straight_along(1, _FRAMED, 0)
_straight_y = _straight_along(_PARTS * _STRIP, _PARTS * _STRIP, 2)


@inlined
def _parts_at(strip, at):
    """What is smooth along x at a voxel, and the even and odd part of each slanted wave along x."""
    here = strip[REACH + at]
    mean = GAUSS[0] * here
    even_0, even_1, even_2 = _EVEN[0, 0] * here, _EVEN[1, 0] * here, _EVEN[2, 0] * here
    odd_0 = odd_1 = odd_2 = _ZERO
    for k in range(1, REACH + 1):
        after, before = strip[REACH + k + at], strip[REACH - k + at]
        both, apart = after + before, after - before
        mean = fma(GAUSS[k], both, mean)
        even_0 = fma(_EVEN[0, k], both, even_0)
        even_1 = fma(_EVEN[1, k], both, even_1)
        even_2 = fma(_EVEN[2, k], both, even_2)
        odd_0 = fma(_ODD[0, k], apart, odd_0)
        odd_1 = fma(_ODD[1, k], apart, odd_1)
        odd_2 = fma(_ODD[2, k], apart, odd_2)
    return mean, even_0, odd_0, even_1, odd_1, even_2, odd_2


@jit
def _parts_x(strip, rows, width, parts):
    """The smooth, even and odd parts along x of a strip: parts (y, 7, 96)."""
    pitch = _PARTS * _STRIP
    for y in range(0, rows, 2):
        a, out = strip[y * _FRAMED :], parts[y * pitch :]
        for x in range(min(width, _STRIP)):
            here, below = _parts_at(a, x), _parts_at(a, _FRAMED + x)
            for part in range(_PARTS):
                out[part * _STRIP + x], out[pitch + part * _STRIP + x] = here[part], below[part]


@inlined
def _slanted_at(parts, at, mean, even, odd, through):
    """Squared responses of both slanted waves of one frequency at a voxel, from their parts along x.

    The cos and sin of a sum: 45 and 135 degrees share their four products.
    """
    pitch = _PARTS * _STRIP
    even_even = fma(-through, mean, even[0] * parts[REACH * pitch + at])
    odd_even = even[0] * parts[REACH * pitch + _STRIP + at]
    even_odd = odd_odd = _ZERO
    for k in range(1, REACH + 1):
        after, before = parts[(REACH + k) * pitch + at], parts[(REACH - k) * pitch + at]
        even_even = fma(even[k], after + before, even_even)
        even_odd = fma(odd[k], after - before, even_odd)
        after, before = parts[(REACH + k) * pitch + _STRIP + at], parts[(REACH - k) * pitch + _STRIP + at]
        odd_even = fma(even[k], after + before, odd_even)
        odd_odd = fma(odd[k], after - before, odd_odd)
    re, im = even_even - odd_odd, odd_even + even_odd
    up = fma(re, re, im * im)
    re, im = even_even + odd_odd, odd_even - even_odd
    return up, fma(re, re, im * im)


def _slanted_along_y(f: int):
    """Both slanted waves of one frequency; side as in `_straight_along`, power (2, 2, 96)."""
    even, odd = _EVEN[f], _ODD[f]
    through = np.float32((_sum(even) / _sum(GAUSS)) ** 2)
    pitch, begin = _PARTS * _STRIP, (1 + 2 * f) * _STRIP
    up, down = (4 * f + 1) * _STRIP, (4 * f + 3) * _STRIP

    @jit
    def slanted(parts, side, power, rows, width, out):
        for y in range(0, rows, 2):
            a, s, p = parts[y * pitch + begin :], side[2 * y * _STRIP :], power
            for x in range(min(width, _STRIP)):
                out[up + x] = _add_roots(p, 2, 0, s, x, out[up + x])
                out[down + x] = _add_roots(p, 2, 1, s, x, out[down + x])
                here = _slanted_at(a, x, s[_STRIP + x], even, odd, through)
                below = _slanted_at(a, pitch + x, s[3 * _STRIP + x], even, odd, through)
                p[x], p[_STRIP + x] = here
                p[2 * _STRIP + x], p[3 * _STRIP + x] = below

    return slanted


_slanted_low, _slanted_middle, _slanted_high = (_slanted_along_y(f) for f in range(3))


@jit
def _last_roots(power, side, rows, width, waves, first, step, out):
    """Add the responses in the last two rows: nobody came after them who took their roots."""
    s = side[2 * (rows + rows % 2) * _STRIP :]
    for wave in range(waves):
        total = out[(first + wave * step) * _STRIP :]
        for x in range(min(width, _STRIP)):
            total[x] = _add_roots(power, waves, wave, s, x, total[x])


@jit
def fill_outside(hu, lungs, centre, scratch, out):
    """HU minus `centre` in the lung, the Gaussian mean of the lung nearby elsewhere; framed by 7 voxels.

    hu and lungs (y, x); out (y + 14, blocks of 16 that hold x + 14). Blocks of a row without a voxel to fill
    are passed over. scratch is `fill_scratch`.
    """
    known, rows, sums, missing, todo = scratch
    _spread_known(hu, lungs, centre, known, out)
    for left in range(0, out.shape[1], _BLOCK):
        _count_missing(lungs, left - REACH, missing)
        _smooth_rows(known, left, _rows_near(missing, 2 * REACH, todo), rows)
        _fill_rows(rows, known, left, _rows_near(missing, 0, todo), sums, out)


@jit
def _spread_known(hu, lungs, centre, known, out):
    """Write what the lung says: known (y + 28, weights and weighted HU side by side), and out within its frame."""
    height, width = hu.shape
    frame, half = 2 * REACH, known.shape[1] // 2
    for y in range(height):
        lung, value = lungs[y], hu[y]
        weight, inside = known[y + frame, frame:], known[y + frame, half + frame :]
        shown = out[y + REACH, REACH:]
        # A loop that writes two arrays is not vectorised.
        for x in range(width):
            weight[x] = lung[x]
        for x in range(width):
            inside[x] = (np.float32(value[x]) - centre) * np.float32(lung[x])
        for x in range(width):
            shown[x] = inside[x]


@jit
def _count_missing(lungs, left, missing):
    """How many of the first y framed rows have a voxel outside the lung in the block at `left`: (y + 15,)."""
    height, width = lungs.shape
    missing[0] = 0
    for y in range(height + 2 * REACH):
        whole = REACH <= y < height + REACH and left >= 0 and left + _BLOCK <= width
        if whole:
            row, here = lungs[y - REACH, left:], np.int32(0)
            for x in range(_BLOCK):
                here += np.int32(row[x])
            whole = here == _BLOCK
        missing[y + 1] = missing[y] + (not whole)


@jit
def _rows_near(missing, before, todo):
    """Framed rows y with a voxel to fill in rows y - before to y.

    A list, since a view of an array that is made under a condition costs two locked instructions each time.
    """
    count = 0
    for y in range(before, missing.size - 1):
        if missing[y + 1] > missing[y - before]:
            todo[count] = y
            count += 1
    return todo[:count]


@jit
def _smooth_rows(known, left, todo, rows):
    """Blocks of 16 at `left` smooth along x: rows (y, 2, 16), the weights and the weighted HU."""
    half = known.shape[1] // 2
    for y in todo:
        weight, inside, out = known[y, left:], known[y, half + left :], rows[y * 2 * _BLOCK :]
        for x in range(_BLOCK):
            out[x], out[_BLOCK + x] = _smooth_at(weight, x, 1), _smooth_at(inside, x, 1)


@jit
def _fill_rows(rows, known, left, todo, sums, out):
    """Smooth blocks along y too, and put the mean where the lung is near but not there."""
    pitch, half = 2 * _BLOCK, known.shape[1] // 2
    for y in todo:
        a, filled = rows[y * pitch :], out[y, left:]
        weight, inside = known[y + REACH, left + REACH :], known[y + REACH, half + left + REACH :]
        for x in range(_BLOCK):
            sums[x], sums[_BLOCK + x] = _smooth_at(a, x, pitch), _smooth_at(a, _BLOCK + x, pitch)
        for x in range(min(out.shape[1] - left, _BLOCK)):
            filled[x] = sums[_BLOCK + x] / sums[x] if (weight[x] == 0) & (sums[x] > 0) else inside[x]


@jit
def fill_scratch(height, width):
    """Room for `fill_outside`; what lies beyond the slice is and stays 0."""
    tall, wide = height + 4 * REACH, -(-(width + 2 * REACH) // _BLOCK) * _BLOCK + 2 * REACH
    return (
        np.zeros((tall, 2 * wide), np.float32),
        np.zeros(tall * 2 * _BLOCK, np.float32),
        np.zeros(2 * _BLOCK, np.float32),
        np.zeros(height + 2 * REACH + 1, np.int32),
        np.zeros(height + 2 * REACH, np.int64),
    )


@jit
def strip_scratch(height):
    """Room for `filter_strip`: the strip, what it is smoothed to, lungs and means, parts, squares of responses.

    One row more than the slice has, should its rows be odd. The lungs of the two rows before the first are and
    stay 0.
    """
    rows = height + 1 + 2 * REACH
    return (
        np.zeros(rows * _FRAMED, np.float32),
        np.zeros((height + 1) * _FRAMED, np.float32),
        np.zeros((height + 3) * 2 * _STRIP, np.float32),
        np.zeros(rows * _PARTS * _STRIP, np.float32),
        np.zeros(2 * 3 * _STRIP, np.float32),
    )


@jit
def filter_strip(filled, lungs, left, top, bottom, y_edges, scratch, sums):
    """Sum |Gabor response| in the lung, in rows top..bottom-1 of up to 96 columns from `left`: sums (bands, 12 x 96).

    Bands begin and end at edges.
    """
    strip, smooth, _, parts, _ = scratch
    rows, framed = bottom - top, min(_FRAMED, filled.shape[1] - left)
    # Whole vectors: columns beyond the slice are filtered too, and are not lung.
    width = -(-min(_STRIP, lungs.shape[1] - left) // 32) * 32
    for y in range(rows + 2 * REACH):
        copy_row(filled[top + y, left : left + framed], strip[y * _FRAMED : y * _FRAMED + framed])
    _parts_x(strip, rows + 2 * REACH, width, parts)
    _smooth_y(strip, rows, width + 2 * REACH, smooth)
    for b in range(y_edges.size - 1):
        first, last = max(y_edges[b], top), min(y_edges[b + 1], bottom)
        if first < last:
            _filter_band(lungs[first:last, left:], first - top, width, scratch, sums[b])


@jit
def _filter_band(lungs, first, width, scratch, out):
    """Sum |Gabor response| in the lung of rows first.. of a strip, as many as `lungs` has: out (12 x 96)."""
    _, smooth, side, parts, power = scratch
    rows, shown = lungs.shape[0], min(_STRIP, lungs.shape[1])
    for y in range(rows):
        inside, lung = lungs[y], side[2 * (y + 2) * _STRIP :]
        lung[:_STRIP] = 0
        for x in range(shown):
            lung[x] = inside[x]
    side[2 * (rows + 2) * _STRIP : (2 * (rows + 2) + 1) * _STRIP] = 0
    parts, smooth = parts[first * _PARTS * _STRIP :], smooth[first * _FRAMED :]
    _straight_y(parts, side, power, rows, width, out)
    _last_roots(power, side, rows, width, 3, 2, 4, out)
    _straight_x(smooth, side, power, rows, width, out)
    _last_roots(power, side, rows, width, 3, 0, 4, out)
    _slanted_low(parts, side, power, rows, width, out)
    _last_roots(power, side, rows, width, 2, 1, 2, out)
    _slanted_middle(parts, side, power, rows, width, out)
    _last_roots(power, side, rows, width, 2, 5, 2, out)
    _slanted_high(parts, side, power, rows, width, out)
    _last_roots(power, side, rows, width, 2, 9, 2, out)


# ---- Patches and windows

PERCENTILES = np.array([0.10, 0.25, 0.50, 0.75, 0.90])


@jit
def hu_and_glcm(hu, lungs, low, grey_of, bins, flat, counts, pairs, sums, out):
    """The HU and GLCM families of one region with some lung; `flat` pairs voxels of its middle slice only.

    counts, pairs and sums as `pair_room` makes them.
    """
    depth, height, width = hu.shape
    codes = np.empty((depth + 2, height + 2, width + 2), np.uint16)
    count_and_code(hu, lungs, low, grey_of, counts, codes)
    first_order(counts, low, bins, out[HU:GLCM])
    if flat:
        middle = depth // 2
        codes = codes[middle : middle + 3]
        codes[0] = 0
        codes[2] = 0
    first, last = 0, counts.size - 1
    while counts[first] == 0:
        first += 1
    while counts[last] == 0:
        last -= 1
    levels = int(grey_of[-1]) // _LINE + 1
    co_occurrences(codes, levels, pairs)
    haralick(pairs, levels, grey_of[first] // _LINE, grey_of[last] // _LINE, sums, out[GLCM:LBP])


@jit
def _lung_count(lungs):
    """How many voxels of a region are lung."""
    count = 0
    for plane in lungs:
        for line in plane:
            for inside in line:
                count += inside
    return count


@jit
def pair_room(grey_of):
    """Room for `hu_and_glcm`: counts of HU, of all pairs of grey levels and the outside, and sums over them."""
    levels = int(grey_of[-1]) // _LINE + 1
    return (
        np.empty(grey_of.size, np.int64),
        np.zeros(levels * levels * _LINE, np.uint32),
        np.empty((1 + 2 * levels, _LINE)),
    )


@jit
def middle_patterns(hu, lungs, counts):
    """Counts (10,) of the patterns in the middle planes of a region across its three axes.

    An even size has two middle planes, and both count: then a flipped region has the same patterns.
    """
    counts[:] = 0
    depth, height, width = hu.shape
    for z in range((depth - 1) // 2, depth // 2 + 1):
        _add_plane(hu[z].copy(), lungs[z].copy(), counts)
    for y in range((height - 1) // 2, height // 2 + 1):
        _add_plane(hu[:, y].copy(), lungs[:, y].copy(), counts)
    for x in range((width - 1) // 2, width // 2 + 1):
        _add_plane(hu[:, :, x].copy(), lungs[:, :, x].copy(), counts)


@jit
def _add_plane(hu, lungs, counts):
    """Add the patterns of a plane to counts."""
    height, width = hu.shape
    if height < 3 or width < 3:
        return
    found = np.full(hu.shape, NO_PATTERN, np.uint8)
    # In one go from its second voxel of the second row on; what went around the sides is no pattern.
    last = (height - 2) * width - 2
    uniform_patterns(hu.ravel(), lungs.ravel(), width + 1, last, width, 1, found.ravel())
    for y in range(height):
        found[y, 0] = found[y, width - 1] = NO_PATTERN
    count_patterns(found.reshape((1, height, width)), counts)


@jit
def _span(cell, size, step, length):
    """First and last-plus-one voxel of a window along one axis, inside the volume."""
    start = cell * step - (size - step) // 2
    return max(0, start), min(length, start + size)


@jit
def gabor_window_sums(hu, lungs, centre, first, last, size, step, y_edges, x_edges, out):
    """Sums of |response| over the lung of each window's slices first..last-1: out (z, gy, gx, 12), zero before.

    Windows begin and end at edges. What lies between two edges of either axis is summed once, as it is filtered.
    """
    _, height, width = hu.shape
    room, filling = strip_scratch(height), fill_scratch(height, width)
    filled = np.empty((height + 2 * REACH, filling[0].shape[1] // 2 - 2 * REACH), np.float32)
    sums = np.zeros((y_edges.size - 1, WAVES * _STRIP), np.float32)
    cells = np.zeros((y_edges.size - 1, x_edges.size - 1, WAVES))
    for z in range(first, last):
        if not lungs[z].any():
            continue
        fill_outside(hu[z], lungs[z], centre, filling, filled)
        cells[:] = 0
        for left in range(0, width, _STRIP):
            top, bottom = _lung_rows(lungs[z], left, min(width, left + _STRIP))
            if top < bottom:
                sums[:] = 0
                filter_strip(filled, lungs[z], left, top, bottom, y_edges, room, sums)
                _add_columns(sums, left, x_edges, cells)
        _add_cells(cells, size, step, y_edges, x_edges, out[z])


@jit
def _add_columns(sums, left, x_edges, cells):
    """Add the columns of a strip to the cells (y, x, 12) between the edges."""
    for c in range(x_edges.size - 1):
        first, last = max(x_edges[c] - left, 0), min(x_edges[c + 1] - left, _STRIP)
        if first < last:
            for b in range(cells.shape[0]):
                for wave in range(WAVES):
                    total = 0.0
                    for x in range(wave * _STRIP + first, wave * _STRIP + last):
                        total += sums[b, x]
                    cells[b, c, wave] += total


@jit
def _add_cells(cells, size, step, y_edges, x_edges, out):
    """Add the cells of a slice to the windows (gy, gx, 12) that hold them."""
    _, columns, _ = cells.shape
    for j in range(out.shape[0]):
        y0, y1 = _span(j, size[1], step[1], y_edges[-1])
        for b in range(cells.shape[0]):
            if y0 <= y_edges[b] < y1:
                for i in range(out.shape[1]):
                    x0, x1 = _span(i, size[2], step[2], x_edges[-1])
                    for c in range(columns):
                        if x0 <= x_edges[c] < x1:
                            for wave in range(WAVES):
                                out[j, i, wave] += cells[b, c, wave]


@jit
def _lung_rows(lungs, left, right):
    """First and last-plus-one row with lung in columns left..right-1; equal where there is none."""
    top, bottom = 0, lungs.shape[0]
    while top < bottom and not lungs[top, left:right].any():
        top += 1
    while bottom > top and not lungs[bottom - 1, left:right].any():
        bottom -= 1
    return top, bottom


@jit
def describe_window_planes(
    hu, lungs, patterns, waves, low, grey_of, bins, flat, needed, size, step, first, last, out
):
    depth, height, width = hu.shape
    counts, pairs, sums = pair_room(grey_of)
    row = np.empty(out.shape[3])
    shapes = np.empty(10, np.int64)
    for k in range(first, last):
        z0, z1 = _span(k, size[0], step[0], depth)
        for j in range(out.shape[1]):
            y0, y1 = _span(j, size[1], step[1], height)
            for i in range(out.shape[2]):
                x0, x1 = _span(i, size[2], step[2], width)
                inside = lungs[z0:z1, y0:y1, x0:x1].copy()
                total = _lung_count(inside)
                if total == 0 or total < needed:
                    continue
                window = hu[z0:z1, y0:y1, x0:x1].copy()
                hu_and_glcm(window, inside, low, grey_of, bins, flat, counts, pairs, sums, row)
                shapes[:] = 0
                for axis in range(3):
                    count_patterns(patterns[axis, z0:z1, y0:y1, x0:x1].copy(), shapes)
                patterned = max(1, shapes.sum())
                for pattern in range(shapes.size):
                    row[LBP + pattern] = shapes[pattern] / patterned
                row[GABOR:] = 0
                for z in range(z0, z1):
                    for wave in range(WAVES):
                        row[GABOR + wave] += waves[z, j, i, wave] / total
                row[GABOR + WAVES] = row[GABOR : GABOR + WAVES].mean()
                copy_row(row, out[k, j, i])


@jit
def evidence_planes(hu, lungs, hollow, low, bins, min_vox, size, step, first, last, out):
    depth, height, width = hu.shape
    counts = np.empty(bins, np.int64)
    found = np.empty(5)
    for k in range(first, last):
        z0, z1 = _span(k, size[0], step[0], depth)
        for j in range(out.shape[1]):
            y0, y1 = _span(j, size[1], step[1], height)
            for i in range(out.shape[2]):
                x0, x1 = _span(i, size[2], step[2], width)
                cell = lungs[
                    k * step[0] : (k + 1) * step[0],
                    j * step[1] : (j + 1) * step[1],
                    i * step[2] : (i + 1) * step[2],
                ]
                out[k, j, i, 6] = _lung_count(cell) / cell.size
                inside = _lung_count(lungs[z0:z1, y0:y1, x0:x1].copy())
                if inside < min_vox:
                    continue
                counts[:] = 0
                depth_hu = 0
                for z in range(z0, z1):
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            if lungs[z, y, x]:
                                counts[hu[z, y, x] - low] += 1
                                depth_hu += hollow[z, y, x]
                percentiles(counts, low, PERCENTILES, found)
                copy_row(found, out[k, j, i, :5])
                out[k, j, i, 5] = np.log(max(1.0, depth_hu / inside))
