"""All compiled code of the teacher: histograms, co-occurrence, patterns, Gabor filters, patches and windows.

Each function works on plain arrays, writes into those that it is given, frees the interpreter lock, and is
cached on disk, so that a worker process starts without compiling. It is one file, with its own constants,
because numba's cache sees changes only in the file of the function that was compiled. HU are counted as
integers, never summed as floats: those results do not depend on the order of the voxels.
"""

import math

import numba
import numpy as np

jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})

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
# scikit-image puts the diagonal neighbours at .70711: bilinear weights in units of 1e-10, so that a tie is
# a tie.
_DIAGONAL = 70711 * 70711
_SIDE = 70711 * 29289


@jit
def read_region(hu, lungs, low, grey_of, counts, codes):
    """Count the region's HU and write its grey levels, framed by one voxel of 0; 0 is outside the lung.

    hu (z, y, x) int16 clipped to low..; grey_of and counts have one entry a HU; codes (z+2, y+2, x+2) uint8.
    """
    counts[:] = 0
    codes[:] = 0
    depth, height, width = hu.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if lungs[z, y, x]:
                    step = hu[z, y, x] - low
                    counts[step] += 1
                    codes[z + 1, y + 1, x + 1] = grey_of[step]


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


@jit
def co_occurrences(codes, flat, pairs):
    """Count neighbouring grey levels by direction: codes framed by zeros, pairs (13, levels, levels).

    `flat` counts the middle slice alone, in the first four directions, which lie in it.
    """
    pairs[:] = 0
    depth, height, width = codes.shape
    levels_at, table = codes.ravel(), pairs.ravel()
    directions = 4 if flat else DIRECTIONS
    middle = (depth - 2) // 2 + 1
    first, last = (middle, middle + 1) if flat else (1, depth - 1)
    # Unsigned indices need no check for counting from the end: twice as fast.
    levels = np.uint64(pairs.shape[1])
    steps = np.empty(DIRECTIONS, np.uint64)
    tables = np.empty(DIRECTIONS, np.uint64)
    d = 0
    for dz in range(2):
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if dz > 0 or dy > 0 or (dy == 0 and dx > 0):
                    steps[d] = np.uint64((dz * height + dy) * width + dx)
                    tables[d] = np.uint64(d) * levels * levels
                    d += 1
    for z in range(first, last):
        for y in range(1, height - 1):
            row = (z * height + y) * width
            for x in range(1, width - 1):
                at = np.uint64(row + x)
                if levels_at[at]:
                    line = np.uint64(levels_at[at]) * levels
                    # Directions inside, so that equal neighbours do not wait for each other's count.
                    for d in range(directions):
                        table[tables[d] + line + np.uint64(levels_at[at + steps[d]])] += np.uint32(1)


@jit
def haralick(pairs, first, last, out):
    """Six features of the symmetric matrix of levels first..last, averaged over directions with pairs."""
    out[:] = 0
    used = 0
    inverse = 1.0 / (1.0 + np.arange(last - first + 1.0) ** 2)
    for d in range(pairs.shape[0]):
        total = 0
        sum_level = 0
        sum_square = 0
        contrast = 0
        dissimilarity = 0
        homogeneity = 0.0
        squares = 0
        for i in range(first, last + 1):
            for j in range(i, last + 1):
                both = np.int64(pairs[d, i, j])
                if j > i:
                    both += pairs[d, j, i]
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
# each of those is even or odd: 37 short passes replace 24 two-dimensional convolutions. What is not lung is
# first filled with the Gaussian mean of the lung around it (normalised convolution, Knutsson and Westin
# 1993), so that neither the chest wall nor the edge of a patch is heard.

# Columns are filtered in strips of constant width: strides that the compiler knows make it use vector
# instructions.
_STRIP = 32
_FRAMED = _STRIP + 2 * REACH + 2


def _taps(cycles: float, wave) -> tuple[np.float32, ...]:
    """Half of a kernel: taps 0..7 of the Gaussian times cos or sin of the wave."""
    norm = SIGMA_VOX * math.sqrt(2 * math.pi)
    gauss = [math.exp(-0.5 * (k / SIGMA_VOX) ** 2) / norm for k in range(REACH + 1)]
    return tuple(np.float32(g * wave(2 * math.pi * cycles * k)) for k, g in enumerate(gauss))


def _sum(even: tuple[np.float32, ...]) -> float:
    return float(even[0]) + 2 * sum(float(tap) for tap in even[1:])


GAUSS = _taps(0.0, math.cos)


def _wave(cycles: float):
    """Even and odd taps of a straight and an oblique wave, and how much of a constant the even ones pass."""
    oblique = cycles * math.sqrt(0.5)
    taps = [_taps(c, part) for c in (cycles, oblique) for part in (math.cos, math.sin)]
    through = [_sum(taps[0]) / _sum(GAUSS), (_sum(taps[2]) / _sum(GAUSS)) ** 2]
    return (*taps, *map(np.float32, through))


TAPS = tuple(_wave(f) for f in GABOR_FREQUENCIES)


@jit
def _even_x(a, t, rows, out):
    for y in range(rows):
        for x in range(_STRIP):
            p = y * _FRAMED + x
            near = t[1] * (a[p + 6] + a[p + 8]) + t[2] * (a[p + 5] + a[p + 9]) + t[3] * (a[p + 4] + a[p + 10])
            far = (
                t[4] * (a[p + 3] + a[p + 11]) + t[5] * (a[p + 2] + a[p + 12]) + t[6] * (a[p + 1] + a[p + 13])
            )
            out[y * _STRIP + x] = t[0] * a[p + 7] + near + far + t[7] * (a[p] + a[p + 14])


@jit
def _pair_x(a, t, u, rows, even, odd):
    for y in range(rows):
        for x in range(_STRIP):
            p = y * _FRAMED + x
            b1, b2, b3, b4, b5, b6, b7 = a[p + 6], a[p + 5], a[p + 4], a[p + 3], a[p + 2], a[p + 1], a[p]
            c1, c2, c3, c4, c5, c6, c7 = (
                a[p + 8],
                a[p + 9],
                a[p + 10],
                a[p + 11],
                a[p + 12],
                a[p + 13],
                a[p + 14],
            )
            near = t[0] * a[p + 7] + t[1] * (b1 + c1) + t[2] * (b2 + c2) + t[3] * (b3 + c3)
            even[y * _STRIP + x] = (
                near + t[4] * (b4 + c4) + t[5] * (b5 + c5) + t[6] * (b6 + c6) + t[7] * (b7 + c7)
            )
            near = u[1] * (c1 - b1) + u[2] * (c2 - b2) + u[3] * (c3 - b3)
            odd[y * _STRIP + x] = (
                near + u[4] * (c4 - b4) + u[5] * (c5 - b5) + u[6] * (c6 - b6) + u[7] * (c7 - b7)
            )


@jit
def _even_y(a, t, rows, out):
    w = _STRIP
    for p in range(rows * w):
        near = t[1] * (a[p + 6 * w] + a[p + 8 * w]) + t[2] * (a[p + 5 * w] + a[p + 9 * w])
        near += t[3] * (a[p + 4 * w] + a[p + 10 * w]) + t[4] * (a[p + 3 * w] + a[p + 11 * w])
        far = t[5] * (a[p + 2 * w] + a[p + 12 * w]) + t[6] * (a[p + w] + a[p + 13 * w])
        out[p] = t[0] * a[p + 7 * w] + near + far + t[7] * (a[p] + a[p + 14 * w])


@jit
def _pair_y(a, t, u, rows, even, odd):
    w = _STRIP
    for p in range(rows * w):
        b1, b2, b3, b4 = a[p + 6 * w], a[p + 5 * w], a[p + 4 * w], a[p + 3 * w]
        c1, c2, c3, c4 = a[p + 8 * w], a[p + 9 * w], a[p + 10 * w], a[p + 11 * w]
        b5, b6, b7, c5, c6, c7 = a[p + 2 * w], a[p + w], a[p], a[p + 12 * w], a[p + 13 * w], a[p + 14 * w]
        near = t[0] * a[p + 7 * w] + t[1] * (b1 + c1) + t[2] * (b2 + c2) + t[3] * (b3 + c3)
        even[p] = near + t[4] * (b4 + c4) + t[5] * (b5 + c5) + t[6] * (b6 + c6) + t[7] * (b7 + c7)
        near = u[1] * (c1 - b1) + u[2] * (c2 - b2) + u[3] * (c3 - b3)
        odd[p] = near + u[4] * (c4 - b4) + u[5] * (c5 - b5) + u[6] * (c6 - b6) + u[7] * (c7 - b7)


@jit
def _magnitude(re, im, sign, re2, im2, through, mean, size, out):
    """out = |(re + sign re2 - through mean) + i (im - sign im2)|."""
    for p in range(size):
        a = re[p] + sign * re2[p] - through * mean[p]
        b = im[p] - sign * im2[p]
        out[p] = np.sqrt(a * a + b * b)


@jit
def _smooth(a, height, width, rows, out):
    """Gaussian sums wherever the kernel touches a slice framed by 14 zeros: out (height + 14, width + 14)."""
    wide = width + 2 * REACH
    for y in range(height):
        for x in range(wide):
            near = GAUSS[0] * a[y, x + 7] + GAUSS[1] * (a[y, x + 6] + a[y, x + 8])
            near += GAUSS[2] * (a[y, x + 5] + a[y, x + 9]) + GAUSS[3] * (a[y, x + 4] + a[y, x + 10])
            far = GAUSS[4] * (a[y, x + 3] + a[y, x + 11]) + GAUSS[5] * (a[y, x + 2] + a[y, x + 12])
            rows[y + 2 * REACH, x] = (
                near + far + GAUSS[6] * (a[y, x + 1] + a[y, x + 13]) + GAUSS[7] * (a[y, x] + a[y, x + 14])
            )
    for y in range(height + 2 * REACH):
        for x in range(wide):
            out[y, x] = GAUSS[0] * rows[y + REACH, x]
        for k in range(1, REACH + 1):
            for x in range(wide):
                out[y, x] += GAUSS[k] * (rows[y + REACH - k, x] + rows[y + REACH + k, x])


@jit
def fill_outside(hu, lungs, centre, out):
    """HU minus `centre` in the lung, the Gaussian mean of the lung nearby elsewhere; framed by 7 voxels."""
    height, width = hu.shape
    inside = np.zeros((height, width + 4 * REACH), np.float32)
    weight = np.zeros((height, width + 4 * REACH), np.float32)
    for y in range(height):
        for x in range(width):
            if lungs[y, x]:
                inside[y, x + 2 * REACH] = hu[y, x] - centre
                weight[y, x + 2 * REACH] = 1
    rows = np.zeros((height + 4 * REACH, width + 2 * REACH), np.float32)
    total = np.empty(out.shape, np.float32)
    _smooth(weight, height, width, rows, total)
    _smooth(inside, height, width, rows, out)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = out[y, x] / total[y, x] if total[y, x] > 0 else np.float32(0)
    for y in range(height):
        for x in range(width):
            if lungs[y, x]:
                out[y + REACH, x + REACH] = inside[y, x + 2 * REACH]


@jit
def _one_frequency(strip, smooth, mean, taps, height, scratch, out):
    """|response| at 0, 45, 90 and 135 degrees of one framed strip: out (4, height * 32)."""
    straight_even, straight_odd, oblique_even, oblique_odd, straight_mean, oblique_mean = taps
    even, odd, ee, oo, eo, oe, none = scratch
    rows, size, one = height + 2 * REACH, height * _STRIP, np.float32(1)
    _pair_x(strip, straight_even, straight_odd, rows, even, odd)
    _even_y(even, GAUSS, height, ee)
    _even_y(odd, GAUSS, height, oe)
    _magnitude(ee, oe, one, none, none, straight_mean, mean, size, out[0])
    _pair_y(smooth, straight_even, straight_odd, height, ee, eo)
    _magnitude(ee, eo, one, none, none, straight_mean, mean, size, out[2])
    _pair_x(strip, oblique_even, oblique_odd, rows, even, odd)
    _pair_y(even, oblique_even, oblique_odd, height, ee, eo)
    _pair_y(odd, oblique_even, oblique_odd, height, oe, oo)
    # cos and sin of a sum: 45 and 135 degrees share their four products.
    _magnitude(ee, oe, -one, oo, eo, oblique_mean, mean, size, out[1])
    _magnitude(ee, oe, one, oo, eo, oblique_mean, mean, size, out[3])


@jit
def responses(hu, lungs, centre, out):
    """|Gabor response| of one axial slice in HU: out (12, y, x) float32, 0 outside the lung."""
    height, width = hu.shape
    filled = np.empty((height + 2 * REACH, width + 2 * REACH), np.float32)
    fill_outside(hu, lungs, centre, filled)
    strip = np.zeros((height + 2 * REACH) * _FRAMED, np.float32)
    long, short = (height + 2 * REACH) * _STRIP, height * _STRIP
    smooth, mean = np.empty(long, np.float32), np.empty(short, np.float32)
    even, odd = np.empty(long, np.float32), np.empty(long, np.float32)
    ee, oo = np.empty(short, np.float32), np.empty(short, np.float32)
    eo, oe = np.empty(short, np.float32), np.empty(short, np.float32)
    scratch = (even, odd, ee, oo, eo, oe, np.zeros(short, np.float32))
    found = np.empty((len(GABOR_DEGREES), short), np.float32)
    for left in range(0, width, _STRIP):
        shown = min(_STRIP, width - left)
        for y in range(height + 2 * REACH):
            for x in range(shown + 2 * REACH):
                strip[y * _FRAMED + x] = filled[y, left + x]
        _even_x(strip, GAUSS, height + 2 * REACH, smooth)
        _even_y(smooth, GAUSS, height, mean)
        for f in range(len(TAPS)):
            _one_frequency(strip, smooth, mean, TAPS[f], height, scratch, found)
            for wave in range(len(found)):
                for y in range(height):
                    for x in range(shown):
                        inside = lungs[y, left + x]
                        out[f * len(found) + wave, y, left + x] = found[wave, y * _STRIP + x] if inside else 0


# ---- Patches and windows

PERCENTILES = np.array([0.10, 0.25, 0.50, 0.75, 0.90])


@jit
def hu_and_glcm(hu, lungs, low, grey_of, bins, flat, counts, pairs, out):
    """The HU and GLCM families of one region with some lung; `flat` pairs voxels of its middle slice only."""
    depth, height, width = hu.shape
    codes = np.empty((depth + 2, height + 2, width + 2), np.uint8)
    read_region(hu, lungs, low, grey_of, counts, codes)
    first_order(counts, low, bins, out[HU:GLCM])
    first, last = 0, counts.size - 1
    while counts[first] == 0:
        first += 1
    while counts[last] == 0:
        last -= 1
    co_occurrences(codes, flat, pairs)
    haralick(pairs, int(grey_of[first]), int(grey_of[last]), out[GLCM:LBP])


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
    return np.empty((DIRECTIONS, levels, levels), np.uint32)


@jit
def middle_patterns(hu, lungs, counts):
    """Counts (10,) of the patterns in the three middle planes of a region."""
    patterns = np.empty(hu.shape, np.uint8)
    counts[:] = 0
    for axis in range(3):
        patterns[:] = NO_PATTERN
        middle = hu.shape[axis] // 2
        plane_patterns(hu, lungs, axis, middle, middle + 1, patterns)
        count_patterns(patterns, counts)


@jit
def _span(cell, size, step, length):
    """First and last-plus-one voxel of a window along one axis, inside the volume."""
    start = cell * step - (size - step) // 2
    return max(0, start), min(length, start + size)


@jit
def gabor_window_sums(hu, lungs, centre, first, last, size, step, out):
    """Sums of |response| over the lung of each window's slices first..last-1: out (z, gy, gx, 12)."""
    _, height, width = hu.shape
    waves = np.empty((WAVES, height, width), np.float32)
    columns = np.empty(width)
    for z in range(first, last):
        if not lungs[z].any():
            continue
        responses(hu[z], lungs[z], centre, waves)
        for wave in range(WAVES):
            for j in range(out.shape[1]):
                y0, y1 = _span(j, size[1], step[1], height)
                columns[:] = 0
                for y in range(y0, y1):
                    for x in range(width):
                        columns[x] += waves[wave, y, x]
                for i in range(out.shape[2]):
                    x0, x1 = _span(i, size[2], step[2], width)
                    out[z, j, i, wave] = columns[x0:x1].sum()


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
                row[LBP:GABOR] = shapes / max(1, shapes.sum())
                row[GABOR:] = 0
                for z in range(z0, z1):
                    for wave in range(WAVES):
                        row[GABOR + wave] += waves[z, j, i, wave] / total
                row[GABOR + WAVES] = row[GABOR : GABOR + WAVES].mean()
                out[k, j, i] = row


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
                out[k, j, i, :5] = found
                if together:
                    out[k, j, i, 5] = np.log(max(1.0, apart / together))
