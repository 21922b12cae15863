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

NO_PATTERN = 255
DIRECTIONS = 13
_LINE = 16
"""Room for the directions of a pair of levels: a power of two."""
# scikit-image puts the diagonal neighbours at .70711: bilinear weights in units of 1e-10, so that a tie is
# a tie.
_DIAGONAL = 70711 * 70711
_SIDE = 70711 * 29289


@numba.extending.intrinsic
def fma(context, a, b, c):
    """a * b + c, rounded once (IEEE 754 fusedMultiplyAdd), for three floats of one type."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


@jit
def fma4(a, x, b, y, c, z, d, w):
    """a x + b y + c z + d w."""
    return fma(a, x, fma(b, y, fma(c, z, d * w)))


@jit
def copy_row(values, out):
    """out[:] = values, without the checks of shapes, whose messages take numba seconds to compile."""
    for i in range(out.size):
        out[i] = values[i]


@jit
def count_hu(hu, lungs, low, counts):
    """Count the lung's HU: hu (z, y, x) int16 clipped to low.., one count a HU."""
    counts[:] = 0
    depth, height, width = hu.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if lungs[z, y, x]:
                    counts[hu[z, y, x] - low] += 1


@jit
def write_codes(hu, lungs, low, code_of, codes):
    """The code of each lung voxel, framed by one voxel of 0, which is what lies outside: (z+2, y+2, x+2) uint16."""
    codes[:] = 0
    depth, height, width = hu.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if lungs[z, y, x]:
                    codes[z + 1, y + 1, x + 1] = code_of[hu[z, y, x] - low]


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
def haralick(pairs, levels, out):
    """Six features of the symmetric matrix of levels 1..levels-1, averaged over directions with pairs.

    pairs as `co_occurrences` leaves them.
    """
    out[:] = 0
    used = 0
    inverse = 1.0 / (1.0 + np.arange(float(levels)) ** 2)
    table = pairs.reshape((-1, levels, _LINE))
    for d in range(DIRECTIONS):
        total = 0
        sum_level = 0
        sum_square = 0
        contrast = 0
        dissimilarity = 0
        homogeneity = 0.0
        squares = 0
        for i in range(1, levels):
            for j in range(i, levels):
                both = np.int64(table[i, j, d])
                if j > i:
                    both += table[j, i, d]
                if both == 0:
                    continue
                gap = j - i
                total += both
                sum_level += both * (i + j)
                sum_square += both * (i * i + j * j)
                contrast += both * gap * gap
                dissimilarity += both * gap
                homogeneity += both * inverse[gap]
                squares += both * both * (1 if gap else 2)
        if total == 0:
            continue
        used += 1
        variance = sum_square / (2 * total) - (sum_level / (2 * total)) ** 2
        asm = squares / (2.0 * total * total)
        out[0] += contrast / total
        out[1] += dissimilarity / total
        out[2] += homogeneity / total
        out[4] += 1 - contrast / total / (2 * variance) if contrast or variance > 1e-9 else 1.0
        out[5] += asm
    for i in range(6):
        out[i] /= used  # NaN where no two lung voxels touch
    out[3] = np.sqrt(out[5])


@jit
def uniform_pattern(hu, lungs, at, row, column):
    """The rotation-invariant uniform pattern 0..9 around one voxel, or 255 unless all nine are lung.

    row and column are the plane's strides in voxels. Diagonal neighbours lie on the circle, bilinearly
    interpolated.
    """
    for dr in range(-1, 2):
        for dc in range(-1, 2):
            if not lungs[at + dr * row + dc * column]:
                return NO_PATTERN
    centre = np.int64(hu[at])
    east, north = hu[at + column] - centre, hu[at - row] - centre
    west, south = hu[at - column] - centre, hu[at + row] - centre
    bits = (
        int(east >= 0),
        int(_DIAGONAL * (hu[at - row + column] - centre) + _SIDE * (east + north) >= 0),
        int(north >= 0),
        int(_DIAGONAL * (hu[at - row - column] - centre) + _SIDE * (north + west) >= 0),
        int(west >= 0),
        int(_DIAGONAL * (hu[at + row - column] - centre) + _SIDE * (west + south) >= 0),
        int(south >= 0),
        int(_DIAGONAL * (hu[at + row + column] - centre) + _SIDE * (south + east) >= 0),
    )
    ones = bits[7]
    changes = abs(bits[7] - bits[0])
    for i in range(7):
        ones += bits[i]
        changes += abs(bits[i] - bits[i + 1])
    return ones if changes <= 2 else 9


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
            for x in range(start[2], stop[2]):
                at = (z * height + y) * width + x
                if flat_lungs[at]:
                    flat_out[at] = uniform_pattern(flat_hu, flat_lungs, at, row, column)


@jit
def count_patterns(patterns, counts):
    """Add a region's patterns to counts (10,)."""
    for plane in patterns:
        for line in plane:
            for pattern in line:
                if pattern != NO_PATTERN:
                    counts[pattern] += 1


@jit
def neighbour_differences(hu, lungs, first, last, difference, pairs):
    """Sum of |HU difference| to the 13 forward lung neighbours, and their number, in planes first..last-1."""
    depth, height, width = hu.shape
    for z in range(first, last):
        for y in range(height):
            for x in range(width):
                if not lungs[z, y, x]:
                    continue
                here = np.int32(hu[z, y, x])
                total = 0
                count = 0
                for dz in range(2):
                    for dy in range(-1, 2):
                        for dx in range(-1, 2):
                            forward = dz > 0 or dy > 0 or (dy == 0 and dx > 0)
                            inside = z + dz < depth and 0 <= y + dy < height and 0 <= x + dx < width
                            if forward and inside and lungs[z + dz, y + dy, x + dx]:
                                total += abs(here - hu[z + dz, y + dy, x + dx])
                                count += 1
                difference[z, y, x] = total
                pairs[z, y, x] = count


# ---- Gabor filters
#
# Twelve complex kernels of 15 x 15 voxels whose Gaussian is round are products of one-dimensional ones, and
# each of those is even or odd. What is not lung is first filled with the Gaussian mean of the lung around it
# (normalised convolution, Knutsson and Westin 1993), so that neither the chest wall nor the edge of a patch is
# heard.
#
# A slice is filtered in strips of constant width, and what belongs to one row lies in one array at constant
# distances: strides that the compiler knows, and few arrays, make it use vector instructions.
_STRIP = 32
_FRAMED = _STRIP + 2 * REACH + 2
_BLOCK = 16


def _taps(cycles: float, wave) -> tuple[np.float32, ...]:
    """Half of a kernel: taps 0..7 of the Gaussian times cos or sin of the wave."""
    norm = SIGMA_VOX * math.sqrt(2 * math.pi)
    gauss = [math.exp(-0.5 * (k / SIGMA_VOX) ** 2) / norm for k in range(REACH + 1)]
    return tuple(np.float32(g * wave(2 * math.pi * cycles * k)) for k, g in enumerate(gauss))


def _sum(even: tuple[np.float32, ...]) -> float:
    return float(even[0]) + 2 * sum(float(tap) for tap in even[1:])


GAUSS = _taps(0.0, math.cos)
_COS, _SIN = _taps(GABOR_FREQUENCIES[0], math.cos), _taps(GABOR_FREQUENCIES[0], math.sin)
# How much of a constant the real part of each straight wave passes; it is taken off again.
_THROUGH = tuple(np.float32(_sum(_taps(f, math.cos)) / _sum(GAUSS)) for f in GABOR_FREQUENCIES)


def _oblique(cycles: float):
    """Even and odd taps of a wave at 45 degrees along either axis, and how much of a constant it passes."""
    even, odd = (_taps(cycles * math.sqrt(0.5), part) for part in (math.cos, math.sin))
    return even, odd, np.float32((_sum(even) / _sum(GAUSS)) ** 2)


OBLIQUE = tuple(_oblique(f) for f in GABOR_FREQUENCIES)
_PARTS = 2 * len(OBLIQUE)


def _gauss_along(step: int, pitch: int, width: int, out_pitch: int):
    """A pass of the Gaussian over taps `step` apart, from rows of `pitch` to rows of `out_pitch`."""
    s1, s2, s3, s4, s5, s6, s7 = (step * k for k in range(1, 8))

    @jit
    def smooth(a, rows, out):
        t = GAUSS
        for y in range(rows):
            for x in range(width):
                p = y * pitch + x + s7
                e1, e2, e3 = a[p - s1] + a[p + s1], a[p - s2] + a[p + s2], a[p - s3] + a[p + s3]
                e4, e5, e6 = a[p - s4] + a[p + s4], a[p - s5] + a[p + s5], a[p - s6] + a[p + s6]
                near = fma4(t[0], a[p], t[1], e1, t[2], e2, t[3], e3)
                far = fma4(t[4], e4, t[5], e5, t[6], e6, t[7], a[p - s7] + a[p + s7])
                out[y * out_pitch + x] = near + far

    return smooth


_smooth_x = _gauss_along(1, _FRAMED, _STRIP, _STRIP)
_smooth_y = _gauss_along(_FRAMED, _FRAMED, _FRAMED, _FRAMED)
_mean_y = _gauss_along(_STRIP, _STRIP, _STRIP, 2 * _STRIP)
_row_x = _gauss_along(1, _BLOCK, _BLOCK, _BLOCK)
_row_y = _gauss_along(2 * _BLOCK, 2 * _BLOCK, 2 * _BLOCK, 2 * _BLOCK)


def _straight_along(step: int, pitch: int, angle: int):
    """The three waves along one axis, from what is smooth along the other: |response| at 0 or 90 degrees.

    .40 is half a cycle less .10: cos(.8 pi k) = (-1)^k cos(.2 pi k), so both come from the same two sums. Of
    .25 every second tap is zero.
    """
    s1, s2, s3, s4, s5, s6, s7 = (step * k for k in range(1, 8))
    low, middle, high = (f * 4 * _STRIP + angle * _STRIP for f in range(3))

    @jit
    def straight(a, side, rows, out):
        t, u, g = _COS, _SIN, GAUSS
        for y in range(rows):
            for x in range(_STRIP):
                p = y * pitch + x + s7
                e1, e2, e3 = a[p - s1] + a[p + s1], a[p - s2] + a[p + s2], a[p - s3] + a[p + s3]
                e4, e5, e6 = a[p - s4] + a[p + s4], a[p - s5] + a[p + s5], a[p - s6] + a[p + s6]
                e7 = a[p - s7] + a[p + s7]
                o1, o2, o3 = a[p + s1] - a[p - s1], a[p + s2] - a[p - s2], a[p + s3] - a[p - s3]
                o4, o5, o6 = a[p + s4] - a[p - s4], a[p + s5] - a[p - s5], a[p + s6] - a[p - s6]
                o7 = a[p + s7] - a[p - s7]
                mean, inside = side[y * 2 * _STRIP + x], side[y * 2 * _STRIP + _STRIP + x]
                even = fma4(t[0], a[p], t[2], e2, t[4], e4, t[6], e6)
                odd = fma4(t[1], e1, t[3], e3, t[5], e5, t[7], e7)
                first = fma4(u[1], o1, u[3], o3, u[5], o5, u[7], o7)
                second = fma(u[2], o2, fma(u[4], o4, u[6] * o6))
                q = y * WAVES * _STRIP + x
                re, im = fma(-_THROUGH[0], mean, even + odd), first + second
                out[q + low] = np.sqrt(fma(re, re, im * im)) * inside
                re = fma(-_THROUGH[1], mean, fma4(g[0], a[p], -g[2], e2, g[4], e4, -g[6], e6))
                im = fma4(g[1], o1, -g[3], o3, g[5], o5, -g[7], o7)
                out[q + middle] = np.sqrt(fma(re, re, im * im)) * inside
                re, im = fma(-_THROUGH[2], mean, even - odd), first - second
                out[q + high] = np.sqrt(fma(re, re, im * im)) * inside

    return straight


_straight_x = _straight_along(1, _FRAMED, 0)
_straight_y = _straight_along(_STRIP, _STRIP, 2)


@jit
def _even(t, a, e1, e2, e3, e4, e5, e6, e7):
    return fma4(t[0], a, t[1], e1, t[2], e2, t[3], e3) + fma4(t[4], e4, t[5], e5, t[6], e6, t[7], e7)


@jit
def _odd(u, o1, o2, o3, o4, o5, o6, o7):
    return fma(u[1], o1, fma(u[2], o2, u[3] * o3)) + fma4(u[4], o4, u[5], o5, u[6], o6, u[7], o7)


@jit
def _oblique_x(a, rows, parts):
    """Even and odd part of each wave along x, from one reading of the row: parts (y, 6, 32)."""
    (t1, u1, _), (t2, u2, _), (t3, u3, _) = OBLIQUE
    for y in range(rows):
        for x in range(_STRIP):
            p, q = y * _FRAMED + x + REACH, y * _PARTS * _STRIP + x
            e1, e2, e3 = a[p + 1] + a[p - 1], a[p + 2] + a[p - 2], a[p + 3] + a[p - 3]
            e4, e5, e6 = a[p + 4] + a[p - 4], a[p + 5] + a[p - 5], a[p + 6] + a[p - 6]
            e7 = a[p + 7] + a[p - 7]
            parts[q] = _even(t1, a[p], e1, e2, e3, e4, e5, e6, e7)
            parts[q + 2 * _STRIP] = _even(t2, a[p], e1, e2, e3, e4, e5, e6, e7)
            parts[q + 4 * _STRIP] = _even(t3, a[p], e1, e2, e3, e4, e5, e6, e7)
            o1, o2, o3 = a[p + 1] - a[p - 1], a[p + 2] - a[p - 2], a[p + 3] - a[p - 3]
            o4, o5, o6 = a[p + 4] - a[p - 4], a[p + 5] - a[p - 5], a[p + 6] - a[p - 6]
            o7 = a[p + 7] - a[p - 7]
            parts[q + _STRIP] = _odd(u1, o1, o2, o3, o4, o5, o6, o7)
            parts[q + 3 * _STRIP] = _odd(u2, o1, o2, o3, o4, o5, o6, o7)
            parts[q + 5 * _STRIP] = _odd(u3, o1, o2, o3, o4, o5, o6, o7)


@jit
def _oblique_y(a, side, t, u, through, rows, out):
    """Both oblique waves of one frequency, whose even and odd part along x begin at a (y, 6, 32).

    The cos and sin of a sum: 45 and 135 degrees share their four products. out begins at the first of them.
    """
    w = _PARTS * _STRIP
    s2, s3, s4, s5, s6, s7 = 2 * w, 3 * w, 4 * w, 5 * w, 6 * w, 7 * w
    for y in range(rows):
        for x in range(_STRIP):
            p = y * w + x + s7
            e1, e2, e3 = a[p - w] + a[p + w], a[p - s2] + a[p + s2], a[p - s3] + a[p + s3]
            e4, e5, e6 = a[p - s4] + a[p + s4], a[p - s5] + a[p + s5], a[p - s6] + a[p + s6]
            even = _even(t, a[p], e1, e2, e3, e4, e5, e6, a[p - s7] + a[p + s7])
            even = fma(-through, side[y * 2 * _STRIP + x], even)
            e1, e2, e3 = a[p + w] - a[p - w], a[p + s2] - a[p - s2], a[p + s3] - a[p - s3]
            e4, e5, e6 = a[p + s4] - a[p - s4], a[p + s5] - a[p - s5], a[p + s6] - a[p - s6]
            even_odd = _odd(u, e1, e2, e3, e4, e5, e6, a[p + s7] - a[p - s7])
            p += _STRIP
            e1, e2, e3 = a[p - w] + a[p + w], a[p - s2] + a[p + s2], a[p - s3] + a[p + s3]
            e4, e5, e6 = a[p - s4] + a[p + s4], a[p - s5] + a[p + s5], a[p - s6] + a[p + s6]
            odd_even = _even(t, a[p], e1, e2, e3, e4, e5, e6, a[p - s7] + a[p + s7])
            e1, e2, e3 = a[p + w] - a[p - w], a[p + s2] - a[p - s2], a[p + s3] - a[p - s3]
            e4, e5, e6 = a[p + s4] - a[p - s4], a[p + s5] - a[p - s5], a[p + s6] - a[p - s6]
            odd = _odd(u, e1, e2, e3, e4, e5, e6, a[p + s7] - a[p - s7])
            inside, q = side[(2 * y + 1) * _STRIP + x], y * WAVES * _STRIP + x
            re, im = even - odd, odd_even + even_odd
            out[q] = np.sqrt(fma(re, re, im * im)) * inside
            re, im = even + odd, odd_even - even_odd
            out[q + 2 * _STRIP] = np.sqrt(fma(re, re, im * im)) * inside


@jit
def fill_outside(hu, lungs, centre, scratch, out):
    """HU minus `centre` in the lung, the Gaussian mean of the lung nearby elsewhere; framed by 7 voxels.

    hu and lungs (y, x); out (y + 14, blocks of 16 that hold x + 14). Blocks of a row without a voxel to fill
    are passed over. scratch is `fill_scratch`.
    """
    inside, weight, rows, sums, missing = scratch
    height, width = hu.shape
    frame = 2 * REACH
    for y in range(height):
        for x in range(width):
            weight[y + frame, x + frame] = lungs[y, x]
            inside[y + frame, x + frame] = (np.float32(hu[y, x]) - centre) * np.float32(lungs[y, x])
    for y in range(out.shape[0]):
        copy_row(inside[y + REACH, REACH:], out[y])
    for b in range(out.shape[1] // _BLOCK):
        left = b * _BLOCK
        missing[0] = 0
        for y in range(height + frame):
            here = np.float32(0)
            for x in range(left + REACH, left + REACH + _BLOCK):
                here += weight[y + REACH, x]
            missing[y + 1] = missing[y] + (here < _BLOCK)
        for y in range(frame, height + frame):
            if missing[min(y, height + frame - 1) + 1] > missing[y - frame]:
                _row_x(weight[y, left:], 1, rows[2 * y * _BLOCK :])
                _row_x(inside[y, left:], 1, rows[(2 * y + 1) * _BLOCK :])
        for y in range(height + frame):
            if missing[y + 1] > missing[y]:
                _row_y(rows[2 * y * _BLOCK :], 1, sums)
                for x in range(_BLOCK):
                    if weight[y + REACH, left + x + REACH] == 0 and sums[x] > 0:
                        out[y, left + x] = sums[_BLOCK + x] / sums[x]


@jit
def fill_scratch(height, width):
    """Room for `fill_outside`; what lies beyond the slice is and stays 0."""
    tall, wide = height + 4 * REACH, -(-(width + 2 * REACH) // _BLOCK) * _BLOCK + 2 * REACH
    return (
        np.zeros((tall, wide), np.float32),
        np.zeros((tall, wide), np.float32),
        np.zeros(tall * 2 * _BLOCK, np.float32),
        np.zeros(2 * _BLOCK, np.float32),
        np.zeros(height + 2 * REACH + 1, np.int32),
    )


@jit
def strip_scratch(height):
    """Room for `filter_strip`: the strip itself, what it is smoothed to, and the responses (y, 12, 32)."""
    rows = height + 2 * REACH
    return (
        np.zeros(rows * _FRAMED + 2 * REACH, np.float32),
        np.zeros(rows * _STRIP, np.float32),
        np.zeros(rows * _FRAMED + 2 * REACH, np.float32),
        np.zeros(height * 2 * _STRIP, np.float32),
        np.zeros(rows * _PARTS * _STRIP, np.float32),
        np.zeros(height * WAVES * _STRIP, np.float32),
    )


@jit
def filter_strip(filled, lungs, left, top, bottom, scratch):
    """|Gabor response| in rows top..bottom-1 of the 32 columns from `left`, 0 outside the lung, in scratch[-1]."""
    strip, smooth_x, smooth_y, side, parts, found = scratch
    rows = bottom - top
    shown = min(_STRIP, lungs.shape[1] - left)
    framed = min(_FRAMED, filled.shape[1] - left)
    for y in range(rows + 2 * REACH):
        for x in range(framed):
            strip[y * _FRAMED + x] = filled[top + y, left + x]
    for y in range(rows):
        for x in range(_STRIP):
            side[(2 * y + 1) * _STRIP + x] = x < shown and lungs[top + y, left + x]
    _smooth_x(strip, rows + 2 * REACH, smooth_x)
    _mean_y(smooth_x, rows, side)
    _smooth_y(strip, rows, smooth_y)
    _straight_x(smooth_y, side, rows, found)
    _straight_y(smooth_x, side, rows, found)
    _oblique_x(strip, rows + 2 * REACH, parts)
    for f in range(len(OBLIQUE)):
        even, odd, through = OBLIQUE[f]
        _oblique_y(parts[2 * f * _STRIP :], side, even, odd, through, rows, found[(4 * f + 1) * _STRIP :])


# ---- Patches and windows

PERCENTILES = np.array([0.10, 0.25, 0.50, 0.75, 0.90])


@jit
def hu_and_glcm(hu, lungs, low, grey_of, bins, flat, counts, pairs, out):
    """The HU and GLCM families of one region with some lung; `flat` pairs voxels of its middle slice only."""
    count_hu(hu, lungs, low, counts)
    first_order(counts, low, bins, out[HU:GLCM])
    first, last = 0, counts.size - 1
    while counts[first] == 0:
        first += 1
    while counts[last] == 0:
        last -= 1
    lowest, levels = int(grey_of[first]) - 1, int(grey_of[last]) - int(grey_of[first]) + 2
    code_of = np.zeros(counts.size, np.uint16)
    for step in range(first, last + 1):
        code_of[step] = (grey_of[step] - lowest) * _LINE
    if flat:
        middle = hu.shape[0] // 2
        hu, lungs = hu[middle : middle + 1], lungs[middle : middle + 1]
    depth, height, width = hu.shape
    codes = np.empty((depth + 2, height + 2, width + 2), np.uint16)
    write_codes(hu, lungs, low, code_of, codes)
    used = pairs[: levels * levels * _LINE]
    used[:] = 0
    co_occurrences(codes, levels, used)
    haralick(used, levels, out[GLCM:LBP])


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
def empty_pairs(grey_of):
    """Room for the co-occurrence counts of all grey levels and the outside."""
    levels = int(grey_of[-1]) + 1
    return np.empty(levels * levels * _LINE, np.uint32)


@jit
def middle_patterns(hu, lungs, counts):
    """Counts (10,) of the patterns in the middle planes of a region across its three axes.

    An even size has two middle planes, and both count: then a flipped region has the same patterns.
    """
    counts[:] = 0
    depth, height, width = hu.shape
    flat_hu, flat_lungs = hu.ravel(), lungs.ravel()
    stride = (height * width, width, 1)
    for axis in range(3):
        start, stop = [1, 1, 1], [depth - 1, height - 1, width - 1]
        start[axis] = (hu.shape[axis] - 1) // 2
        stop[axis] = hu.shape[axis] // 2 + 1
        row, column = stride[0] if axis > 0 else stride[1], stride[2] if axis < 2 else stride[1]
        for z in range(start[0], stop[0]):
            for y in range(start[1], stop[1]):
                for x in range(start[2], stop[2]):
                    at = (z * height + y) * width + x
                    if flat_lungs[at]:
                        pattern = uniform_pattern(flat_hu, flat_lungs, at, row, column)
                        if pattern != NO_PATTERN:
                            counts[pattern] += 1


@jit
def _span(cell, size, step, length):
    """First and last-plus-one voxel of a window along one axis, inside the volume."""
    start = cell * step - (size - step) // 2
    return max(0, start), min(length, start + size)


@jit
def gabor_window_sums(hu, lungs, centre, first, last, size, step, out):
    """Sums of |response| over the lung of each window's slices first..last-1: out (z, gy, gx, 12), zero before."""
    _, height, width = hu.shape
    room, filling = strip_scratch(height), fill_scratch(height, width)
    found = room[-1]
    filled = np.empty((height + 2 * REACH, filling[0].shape[1] - 2 * REACH), np.float32)
    columns = np.empty(WAVES * _STRIP, np.float32)
    for z in range(first, last):
        if not lungs[z].any():
            continue
        fill_outside(hu[z], lungs[z], centre, filling, filled)
        for left in range(0, width, _STRIP):
            top, bottom = _lung_rows(lungs[z], left, min(width, left + _STRIP))
            if top >= bottom:
                continue
            filter_strip(filled, lungs[z], left, top, bottom, room)
            for j in range(out.shape[1]):
                y0, y1 = _span(j, size[1], step[1], height)
                if max(y0, top) >= min(y1, bottom):
                    continue
                columns[:] = 0
                for y in range(max(y0, top) - top, min(y1, bottom) - top):
                    for x in range(WAVES * _STRIP):
                        columns[x] += found[y * WAVES * _STRIP + x]
                for i in range(out.shape[2]):
                    x0, x1 = _span(i, size[2], step[2], width)
                    for wave in range(WAVES):
                        for x in range(max(x0, left) - left, min(x1, left + _STRIP) - left):
                            out[z, j, i, wave] += columns[wave * _STRIP + x]


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
    counts = np.empty(grey_of.size, np.int64)
    pairs = empty_pairs(grey_of)
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
                hu_and_glcm(window, inside, low, grey_of, bins, flat, counts, pairs, row)
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
def evidence_planes(hu, lungs, difference, pairs, low, bins, min_vox, size, step, first, last, out):
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
                if _lung_count(lungs[z0:z1, y0:y1, x0:x1].copy()) < min_vox:
                    continue
                counts[:] = 0
                apart = 0
                together = 0
                for z in range(z0, z1):
                    for y in range(y0, y1):
                        for x in range(x0, x1):
                            if lungs[z, y, x]:
                                counts[hu[z, y, x] - low] += 1
                                apart += difference[z, y, x]
                                together += pairs[z, y, x]
                percentiles(counts, low, PERCENTILES, found)
                copy_row(found, out[k, j, i, :5])
                if together:
                    out[k, j, i, 5] = np.log(max(1.0, apart / together))
