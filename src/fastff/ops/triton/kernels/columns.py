"""What the Triton kernels share: tiles of slots, blocks of rows, products, activations.

A *slot* is one token in one tree, t * K + k (or a token and one of its experts). Slots that stand at the same node some
levels down a tree are a *group*: they go on through the same subtree, the group's *block*, so a tile of them multiplies
all rows of the block at once on the matrix units, and each slot keeps what lies on its own path. A block's *columns*
(rows of the weight) are of three kinds:

- NODES: the inner nodes of the subtree, breadth first, times the output rows of a node;
- LEAVES: the hidden neurons of the leaves under it, times the output rows of a neuron;
- ANCESTORS: the nodes above it, which all slots of the group passed, root first.

A column belongs to a slot if the slot's path goes through it. What is kept is compact: (slots, entries), an entry being
a level of the tree or a hidden neuron of the leaf.
"""

import os

import triton
import triton.language as tl

NODES, LEAVES, ANCESTORS = 0, 1, 2
BY_TREE, SORTED = 0, 1  # which slots a tile holds: the next tokens of a tree, or a part of a group
AS_IT_IS = -1  # in place of an activation
SMALLEST = 16  # side of a matrix that the matrix units take
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

_NODES, _LEAVES, _ANCESTORS = tl.constexpr(NODES), tl.constexpr(LEAVES), tl.constexpr(ANCESTORS)
_AS_IT_IS, _BY_TREE = tl.constexpr(AS_IT_IS), tl.constexpr(BY_TREE)
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def read_tile(pid, tiles, order, count, trees, BT: tl.constexpr, ORDER: tl.constexpr):
    """The slots of a tile (BT,), which of them there are, and their group, tree * 2^level + node of that level."""
    i = tl.arange(0, BT)
    if ORDER == _BY_TREE:
        per_tree = tl.cdiv(count, BT)
        token = pid % per_tree * BT + i
        slot = token.to(tl.int64) * trees + pid // per_tree
        here = token < count
        group = pid // per_tree
    else:
        group = tl.load(tiles + 3 * pid)
        first = tl.load(tiles + 3 * pid + 1)
        here = first + i < tl.load(tiles + 3 * pid + 2)
        slot = tl.load(order + first + i, mask=here, other=0).to(tl.int64)
    return slot, here, group


@triton.jit
def read_way(leaf, slot, here, BELOW: tl.constexpr, LEVELS: tl.constexpr):
    """The way (BT,) of slots through a block of LEVELS, of which BELOW levels lie under it: the number of the exit."""
    return (tl.load(leaf + slot, mask=here, other=0) >> BELOW).to(tl.int32) & ((1 << LEVELS) - 1)


@triton.jit
def _read_columns(
    column, group,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr,
):
    """Of each column: its row of the weight (int64), its entry, its side, whether there is such a column, and the
    position and shift by which it is on a slot's path: if (way through the block >> shift) is the position.
    """
    tree = group >> FIRST
    prefix = group & ((1 << FIRST) - 1)
    if KIND == _ANCESTORS:
        exists = column < FIRST
        level = tl.minimum(column, FIRST)
        side = (prefix >> tl.maximum(FIRST - 1 - level, 0)) & 1
        node = (1 << level) - 1 + (prefix >> (FIRST - level))
        row = (tree.to(tl.int64) * ((1 << DEPTH) - 1) + node) * SIDES + (side if SIDES == 2 else 0)
        entry = level
        position = column * 0
        shift = column * 0 + 30
    else:
        side = column % SIDES
        neuron = column // SIDES
        if KIND == _NODES:
            exists = neuron < (1 << LEVELS) - 1
            level = column * 0
            for l in tl.static_range(1, LEVELS):
                level += (neuron + 1 >= (1 << l)).to(tl.int32)
            position = neuron + 1 - (1 << level)
            node = (((1 << FIRST) + prefix) << level) + position - 1
            row = (tree.to(tl.int64) * ((1 << DEPTH) - 1) + node) * SIDES + side
            entry = FIRST + level
            shift = LEVELS - level
        else:
            exists = neuron < (1 << LEVELS) * WIDTH
            position = neuron // WIDTH if LEVELS > 0 else neuron * 0
            row = (group.to(tl.int64) * ((1 << LEVELS) * WIDTH) + neuron) * SIDES + side
            entry = neuron % WIDTH if LEVELS > 0 else neuron
            shift = column * 0
    return row, entry, side, exists, position, shift


@triton.jit
def rows_of(
    column, group,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr,
):
    """Of each column its row of the weight (int64), and whether there is such a column."""
    row, _, _, exists, _, _ = _read_columns(column, group, KIND, FIRST, LEVELS, DEPTH, WIDTH, SIDES)
    return row, exists


@triton.jit
def place_factors(
    factor, gate, sign, slot, here, way, group, column, entries,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, P: tl.constexpr,
):
    """(BT, C) float32: what each slot's way (BT,) through the block multiplies the rows of columns (C,) by, 0 off it.

    That is the amplitude of factor (slots, entries), times gate if GATED; of a two-sided neuron it belongs to the row
    of the side of its `sign`, of the shape of `factor`. P: a power of two, at least the block's entries of a slot if
    these are few: they are read once, and each column takes its own from shared memory.
    """
    _, entry, side, exists, position, shift = _read_columns(column, group, KIND, FIRST, LEVELS, DEPTH, WIDTH, SIDES)
    there = here[:, None] & exists[None, :]
    if KIND == _NODES or (KIND == _LEAVES and LEVELS > 0):
        there &= (way[:, None] >> shift[None, :]) == position[None, :]
    if KIND == _ANCESTORS or P == 0:
        at = slot[:, None] * entries + entry[None, :]
        a = _read_factors(factor, gate, sign, at, there, SIDES, ACTIVATION, GATED)
    else:
        first: tl.constexpr = FIRST if KIND == _NODES else 0
        number: tl.constexpr = LEVELS if KIND == _NODES else WIDTH
        e = tl.arange(0, P)
        at = slot[:, None] * entries + (first + e)[None, :]
        a = _read_factors(factor, gate, sign, at, here[:, None] & (e < number)[None, :], SIDES, ACTIVATION, GATED)
        own = tl.minimum(entry - first, P - 1)[None, :] + tl.zeros([slot.shape[0], column.shape[0]], tl.int32)
        a = tl.gather(a, own, 1)
    if SIDES == 2:
        a = tl.where((a >= 0) == (side[None, :] == 1), tl.abs(a), 0.0)
    return tl.where(there, a, 0.0)


@triton.jit
def _read_factors(
    factor, gate, sign, at, there, SIDES: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr
):
    """Amplitudes, of two-sided neurons with their sign."""
    a = tl.load(factor + at, mask=there, other=0.0)
    if SIDES == 2:
        a = tl.abs(a)
    elif ACTIVATION != _AS_IT_IS:
        a = activate(a, ACTIVATION)
    if GATED:
        a *= tl.load(gate + at, mask=there, other=0.0).to(tl.float32)
    if SIDES == 2:
        a = tl.where(tl.load(sign + at, mask=there, other=0.0) >= 0, a, -a)
    return a


@triton.jit
def multiply(a, b, total):
    """total + a @ b, summed in float32."""
    if _INTERPRETED:  # whose products know no bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def read_features(x, token, here, i, features):
    """(BT, BI): the features i (BI,) of tokens (BT,) of x (T, features)."""
    return tl.load(x + token[:, None] * features + i[None, :], mask=here[:, None] & (i < features)[None, :], other=0.0)


@triton.jit
def read_rows(weight, row, exists, i, features):
    """(BI, C): the features i (BI,) of rows (C,) of weight (rows, features)."""
    there = exists[None, :] & (i < features)[:, None]
    return tl.load(weight + row[None, :] * features + i[:, None], mask=there, other=0.0)


@triton.jit
def tokens_times_rows(
    x, token, here, weight, row, exists, features, BT: tl.constexpr, C: tl.constexpr, BI: tl.constexpr
):
    """Products of tokens (BT,) of x (T, features) with rows (C,) of weight (rows, features): (BT, C) float32."""
    total = tl.zeros([BT, C], tl.float32)
    for start in range(0, features, BI):
        i = start + tl.arange(0, BI)
        total = multiply(
            read_features(x, token, here, i, features), read_rows(weight, row, exists, i, features), total
        )
    return total


@triton.jit
def store_own(
    out, product, sign, slot, here, way, group, begin, entries,
    KIND: tl.constexpr, FIRST: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    SIDES: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
):
    """Of products (BT, C) with the columns from `begin` on those on each slot's way, to out (slots, entries); of two
    rows of a neuron that of the side of its `sign`, of the shape of `out`. P: as in `place_factors`.
    """
    if KIND == _ANCESTORS or P == 0:
        _, entry, side, exists, position, shift = _read_columns(
            begin + tl.arange(0, C), group, KIND, FIRST, LEVELS, DEPTH, WIDTH, SIDES
        )
        own = here[:, None] & exists[None, :] & ((way[:, None] >> shift[None, :]) == position[None, :])
        place = slot[:, None] * entries + entry[None, :]
        if SIDES == 2:
            own &= (tl.load(sign + place, mask=own, other=0.0) >= 0) == (side[None, :] == 1)
        tl.store(out + place, product, mask=own)
    else:
        e = tl.arange(0, P)[None, :]
        if KIND == _NODES:
            place = slot[:, None] * entries + FIRST + e
            own = here[:, None] & (e < LEVELS)
            column = (1 << e) - 1 + (way[:, None] >> tl.maximum(LEVELS - e, 0))
        else:
            place = slot[:, None] * entries + e
            own = here[:, None] & (e < WIDTH)
            column = way[:, None] * WIDTH + e
        if SIDES == 2:
            column = 2 * column + (tl.load(sign + place, mask=own, other=0.0) >= 0).to(tl.int32)
        column -= begin
        own &= (column >= 0) & (column < C)
        tl.store(out + place, tl.gather(product, tl.minimum(tl.maximum(column, 0), C - 1), 1), mask=own)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """By the numbers of `fastff.ops.activation`: relu, gelu, silu, tanh, identity."""
    if ACTIVATION == 0:
        a = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == 1:
        a = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == 2:
        a = z * tl.sigmoid(z)
    elif ACTIVATION == 3:
        a = 2.0 * tl.sigmoid(2.0 * z) - 1.0
    else:
        a = z
    return a


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The derivative of `activate`."""
    if ACTIVATION == 0:
        d = tl.where(z > 0, 1.0, 0.0)
    elif ACTIVATION == 1:
        d = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == 2:
        s = tl.sigmoid(z)
        d = s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == 3:
        t = 2.0 * tl.sigmoid(2.0 * z) - 1.0
        d = 1.0 - t * t
    else:
        d = z * 0.0 + 1.0
    return d


@triton.jit
def respond(z, SIDES: tl.constexpr, ACTIVATION: tl.constexpr):
    """Of the row that a logit chooses: what it is multiplied by, and the derivative of that."""
    if SIDES == 2:
        a, d = tl.abs(z), tl.where(z >= 0, 1.0, -1.0)
    else:
        a, d = activate(z, ACTIVATION), slope(z, ACTIVATION)
    return a, d
