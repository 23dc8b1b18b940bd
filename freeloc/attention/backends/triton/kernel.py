"""The two Triton kernels: attention over segments, and the copy of the keys that is rotated back.

Both work on video and text tokens in place, whatever the strides. Channels of a head must be contiguous.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)  # exp2 is one instruction, exp is two
NO_BAND = tl.constexpr(1 << 30)  # no two tokens of a segment are so far from each other
BOOL, ADDITIVE = tl.constexpr(1), tl.constexpr(2)
SIZES = ["head_count", "tokens_per_frame", "text_first", "text_last", "frame_count", "first_tile", "tile_count"]
"""Not to compile the kernels again for numbers that are 1 or multiples of 16: text has another length in each call."""


@triton.jit
def rotate_back(x, angles, row, pair_of, partners, PAIRS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rotate tokens (..., BLOCK_D) by the inverse of a row of angles, in float32.

    The product with `partners`, (BLOCK_D, BLOCK_D) of 0, 1 and -1, puts the signed partner in the place of each
    channel, without rounding. It costs as much as a block of keys; loads in another order would not be coalesced.
    """
    channel = tl.arange(0, BLOCK_D)
    pair = tl.load(pair_of + channel)
    at = angles + 2 * (row.to(tl.int64) * PAIRS + pair)
    cosine = tl.load(at, mask=pair >= 0, other=1.0)
    sine = tl.load(at + 1, mask=pair >= 0, other=0.0)
    swap = tl.load(partners + channel[:, None] * BLOCK_D + channel[None, :]).to(x.dtype)
    swapped = tl.dot(x, swap, input_precision="ieee")
    return (x.to(tl.float32) * cosine[None, :] + swapped * sine[None, :]).to(x.dtype)


@triton.jit
def load_tokens(base, stride, rows, channel, count, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Tokens (rows, BLOCK_D); 0 from `count` on, and in channels from HEAD_DIM on."""
    kept = (rows < count)[:, None]
    if HEAD_DIM != BLOCK_D:
        kept = kept & (channel < HEAD_DIM)[None, :]
    return tl.load(base + rows[:, None] * stride + channel[None, :], mask=kept, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def copy_kernel(
    key, copy, heads, angles, pair_of, partners,
    key_batch, key_head, key_token, copy_batch, copy_head, copy_token,
    head_count, tokens_per_frame, text_first, frame_count,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAIRS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip  # reason: one line per kind of argument
    """Write the keys of the video, rotated back by the copy's angle of their frame: (batch, heads, video, head_dim).

    Heads whose plan needs no copy are left out.
    """
    tiles = tl.cdiv(tokens_per_frame, BLOCK_N)
    tile = tl.program_id(0) % (tiles * frame_count)
    rest = tl.program_id(0) // (tiles * frame_count)
    head, batch = rest % head_count, rest // head_count
    first, step = tl.load(heads + 6 * head + 4), tl.load(heads + 6 * head + 2)
    if first < 0:
        return
    frame = tile // tiles
    start = (tile - frame * tiles) * BLOCK_N
    token = (frame * tokens_per_frame + start).to(tl.int64)
    rows, channel = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    count = tokens_per_frame - start
    source = key + batch.to(tl.int64) * key_batch + head.to(tl.int64) * key_head + (token + text_first) * key_token
    x = load_tokens(source, key_token, rows, channel, count, HEAD_DIM, BLOCK_D)
    x = rotate_back(x, angles, first + frame * step, pair_of, partners, PAIRS, BLOCK_D)
    target = copy + batch.to(tl.int64) * copy_batch + head.to(tl.int64) * copy_head + token * copy_token
    kept = (rows < count)[:, None] & (channel < HEAD_DIM)[None, :]
    tl.store(target + rows[:, None] * copy_token + channel[None, :], x, mask=kept)


@triton.jit(do_not_specialize=[*SIZES, "mask_batch", "mask_head", "mask_token"])
def attention_kernel(
    query, key, copy, value, out, mask,
    heads, lists, segments, angles, pair_of, partners,
    query_batch, query_head, query_token, key_batch, key_head, key_token,
    copy_batch, copy_head, copy_token, value_batch, value_head, value_token,
    out_batch, out_head, out_token, mask_batch, mask_head, mask_token,
    head_count, tokens_per_frame, text_first, text_last, frame_count, scale, first_tile, tile_count,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAIRS: tl.constexpr, MASK: tl.constexpr,
    ROTATES: tl.constexpr, COPIES: tl.constexpr, DECAYS: tl.constexpr, BIASES: tl.constexpr, NEGATIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip  # reason: one line per kind of argument
    """Attention of BLOCK_M query tokens of one frame, or of text, in one head.

    Args:
        query, key, value, out: (batch, heads, tokens, head_dim), with their strides.
        copy: keys of the video as `copy_kernel` writes them.
        mask: of keys, (batch, heads, tokens): 0 for hidden, or added to the logits.
        heads: (heads, 6) int32: first list, first angle, step between angles, reach of a stripe in tokens, first angle
            of the copy or -1, and the bits of the float32 factor of the logits.
        lists: where in `segments` the list of text queries and of each frame's queries starts, int32; the next one is
            where it ends.
        segments: (segments, 7) int32: kind, first frame, frames, angle or -1, whether the keys are of the copy, and the
            bits of two float32: the factor of positive logits, and what is added to the scaled ones.
        angles: (rows, PAIRS, 2) float32, cosines and sines.
        pair_of: (BLOCK_D,) int32: the pair of each channel, or -1.
        partners: (BLOCK_D, BLOCK_D) int8: see `rotate_back`.
        scale: of the logits, above 0; with NEGATIVE it is that of the negated queries.
        first_tile, tile_count: the query tiles of each head that are computed.
    """
    # Which queries. Text attends to everything, so its tiles take longest and come first.
    text_tiles = tl.cdiv(text_first, BLOCK_M)
    all_text_tiles = text_tiles + tl.cdiv(text_last, BLOCK_M)
    frame_tiles = tl.cdiv(tokens_per_frame, BLOCK_M)
    tile = tl.program_id(0) % tile_count + first_tile
    rest = tl.program_id(0) // tile_count
    head, batch = rest % head_count, (rest // head_count).to(tl.int64)
    video = frame_count * tokens_per_frame
    frame = (tile - all_text_tiles) // frame_tiles
    inside = (tile - all_text_tiles - frame * frame_tiles) * BLOCK_M  # first query within its frame
    of_video = tile >= all_text_tiles
    text_at = tl.where(tile < text_tiles, tile, tile - text_tiles) * BLOCK_M
    text_left = tl.where(tile < text_tiles, text_first, text_last) - text_at
    text_start = tl.where(tile < text_tiles, text_at, text_first + video + text_at)
    start = tl.where(of_video, text_first + frame * tokens_per_frame + inside, text_start)
    left = tl.where(of_video, tokens_per_frame - inside, text_left)
    first_list, first_angle = tl.load(heads + 6 * head), tl.load(heads + 6 * head + 1)
    angle_step, reach = tl.load(heads + 6 * head + 2), tl.load(heads + 6 * head + 3)
    scale = scale * tl.load(heads + 6 * head + 5).to(tl.float32, bitcast=True)
    own_list = first_list + tl.where(of_video, frame + 1, 0)

    head64 = head.to(tl.int64)
    rows, columns, channel = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    query += batch * query_batch + head64 * query_head + start.to(tl.int64) * query_token
    key += batch * key_batch + head64 * key_head
    value += batch * value_batch + head64 * value_head
    if COPIES:
        copy += batch * copy_batch + head64 * copy_head - text_first.to(tl.int64) * copy_token
    if MASK:
        mask += batch * mask_batch + head64 * mask_head
    q = load_tokens(query, query_token, rows, channel, left, HEAD_DIM, BLOCK_D)
    if NEGATIVE:
        q = -q
    rotated = tl.full([], -1, tl.int32)

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    stop = tl.load(lists + own_list + 1)
    for number in range(tl.load(lists + own_list), stop):
        segment = segments + 7 * number
        kind, first_frame, frames = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
        keys, key_stride = key, key_token
        if COPIES:
            copied = tl.load(segment + 4) > 0
            keys, key_stride = tl.where(copied, copy, key), tl.where(copied, copy_token, key_token)
        if DECAYS:
            factor = tl.load(segment + 5).to(tl.float32, bitcast=True)
        if BIASES:
            shift = tl.load(segment + 6).to(tl.float32, bitcast=True) * (1.0 if MASK == ADDITIVE else LOG2E)

        # Which keys: `pieces` times the tokens low..high of `length` tokens; each frame is a piece where it is striped.
        striped = kind == 1
        pieces = tl.where(striped, frames, 1)
        length = tl.where(striped, tokens_per_frame, frames * tokens_per_frame)
        length = tl.where(kind == 2, text_first, tl.where(kind == 3, text_last, length))
        length = tl.where(kind == 4, text_first + video + text_last, length)
        origin = tl.where(kind >= 2, 0, text_first + first_frame * tokens_per_frame)
        origin = tl.where(kind == 3, text_first + video, origin)
        last = tl.minimum(inside + BLOCK_M, tokens_per_frame) - 1
        band = tl.where(striped, reach, NO_BAND)
        low = tl.where(striped, tl.maximum(inside - reach + 1, 0), 0)
        high = tl.where(striped, tl.minimum(last + reach, length), length)
        # Between these, every key is visible to every query of the tile.
        whole_low = tl.where(striped, last - reach + 1, 0)
        whole_high = tl.where(striped, tl.minimum(inside + reach, length), length)
        per_piece = tl.cdiv(high - low, BLOCK_N)
        at = low
        for _ in range(0, pieces * per_piece):
            token = (origin + at).to(tl.int64)
            k = load_tokens(keys + token * key_stride, key_stride, columns, channel, high - at, HEAD_DIM, BLOCK_D)
            logits = tl.dot(q, tl.trans(k), input_precision="ieee")
            if DECAYS:
                logits = tl.where(logits > 0, logits * factor, logits)
            if MASK == ADDITIVE:
                bias = tl.load(mask + (token + columns) * mask_token, mask=at + columns < high, other=0.0)
                logits = logits * scale + bias.to(tl.float32)[None, :]
            if MASK == BOOL:
                kept = tl.load(mask + (token + columns) * mask_token, mask=at + columns < high, other=0)
                logits = tl.where((kept != 0)[None, :], logits, float("-inf"))
            if (at < whole_low) | (at + BLOCK_N > whole_high):
                distance = (inside + rows)[:, None] - (at + columns)[None, :]
                seen = (at + columns < high)[None, :] & (distance < band) & (distance > -band)
                logits = tl.where(seen, logits, float("-inf"))
            # Logits with a mask that is added are in natural units; in these, the smallest float32 must not overflow.
            factor_in = 1.0 if MASK == ADDITIVE else scale * LOG2E
            factor_out = LOG2E if MASK == ADDITIVE else 1.0
            own_largest = tl.max(logits, 1) * factor_in
            if BIASES:
                own_largest += shift
            new_largest = tl.maximum(largest, own_largest)
            finite = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # else -inf minus -inf
            zero = finite
            if BIASES:
                zero = finite - shift  # one sum for each query, instead of one for each pair
            weights = tl.exp2((logits * factor_in - zero[:, None]) * factor_out)
            kept_share = tl.exp2((largest - finite) * factor_out)
            total = total * kept_share + tl.sum(weights, 1)
            v = load_tokens(value + token * value_token, value_token, columns, channel, high - at, HEAD_DIM, BLOCK_D)
            weighted = tl.dot(weights.to(v.dtype), v, weighted * kept_share[:, None], input_precision="ieee")
            largest = new_largest
            at += BLOCK_N
            origin += tl.where(at >= high, length, 0)
            at = tl.where(at >= high, low, at)

        if ROTATES:
            # The queries of the next segment; the first one needs no rotation. Triton keeps what is carried over a loop
            # in shared memory, and what is rotated where it is used in registers, where there is no room for it.
            rotation = tl.load(segment + 10, mask=number + 1 < stop, other=-1)
            if (number + 1 < stop) & (rotation != rotated):
                q = load_tokens(query, query_token, rows, channel, left, HEAD_DIM, BLOCK_D)
                q = rotate_back(q, angles, first_angle + rotation * angle_step, pair_of, partners, PAIRS, BLOCK_D)
                if NEGATIVE:
                    q = -q
                rotated = rotation

    weighted = weighted / tl.where(total == 0, 1.0, total)[:, None]  # 0 for a query that sees nothing
    out += batch * out_batch + head64 * out_head + start.to(tl.int64) * out_token
    written = (rows < left)[:, None] & (channel < HEAD_DIM)[None, :]
    tl.store(out + rows[:, None] * out_token + channel[None, :], weighted.to(out.dtype.element_ty), mask=written)
