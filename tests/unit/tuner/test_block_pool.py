"""A pool's blocks: cut, joined, and found."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from hf_accum.tuner.block_pool import ADDRESSES, LARGE_SEGMENT, SMALL_SEGMENT, Block, BlockPool


def chain(pool: BlockPool, sizes: list[int]) -> list[Block]:
    """A segment that is cut into blocks of these sizes, all handed out."""
    blocks = [Block(pool, 0, sum(sizes))]
    for size in sizes[:-1]:
        blocks.append(blocks[-1].cut(size))
    for block in blocks:
        block.is_free = False
    return blocks


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), order=st.randoms(use_true_random=False))
def test_blocks_that_are_freed_in_any_order_are_the_segment_again(sizes: list[int], order: Random) -> None:
    pool = BlockPool(is_small=True, expandable=False)
    blocks = chain(pool, sizes)
    assert [(block.address, block.size) for block in blocks] == [(sum(sizes[:i]), s) for i, s in enumerate(sizes)]
    order.shuffle(blocks)
    for block in blocks:
        block.is_free = True
        pool.add_joined(block)
    ((size, address, whole),) = pool.free
    assert (size, address, whole.before, whole.after) == (sum(sizes), 0, None, None)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), wanted=st.integers(1, 10))
def test_the_smallest_that_fits_is_taken_out_and_of_equal_ones_the_first(sizes: list[int], wanted: int) -> None:
    pool = BlockPool(is_small=False, expandable=False)
    for i, size in enumerate(sizes):
        pool.add(Block(pool, 10 * i, size))
    fitting = [(size, 10 * i) for i, size in enumerate(sizes) if size >= wanted]
    taken = pool.best_fit(wanted)
    assert (None if taken is None else (taken.size, taken.address)) == min(fitting, default=None)
    assert len(pool.free) == len(sizes) - bool(fitting)


def test_an_expandable_pool_begins_with_addresses_alone() -> None:
    for is_small, page in ((True, SMALL_SEGMENT), (False, LARGE_SEGMENT)):
        pool = BlockPool(is_small, expandable=True)
        ((_, address, block),) = pool.unmapped
        assert (address, block.size, block.is_mapped, pool.free) == (0, ADDRESSES, False, [])
        assert ADDRESSES % page == 0
        assert pool.lowest_room(page) is block


def test_what_can_grow_ranks_by_the_size_that_it_can_grow_to() -> None:
    pool = BlockPool(is_small=False, expandable=True)
    ((_, _, unmapped),) = pool.unmapped
    hole = Block(pool, 0, 5)
    used, end = hole.cut(4), Block(pool, 0, 3)
    used.is_free = False
    end.after, unmapped.before = unmapped, end
    pool.add(hole)
    pool.add(end)
    assert end.room == 3 + ADDRESSES
    assert hole.room == 4
    assert pool.best_fit(2) is hole
    assert pool.best_fit(2) is end
    assert pool.best_fit(2) is None


def test_mapping_begins_in_the_free_block_before_the_addresses() -> None:
    pool = BlockPool(is_small=False, expandable=True)
    ((_, _, unmapped),) = pool.unmapped
    rest = unmapped.cut(LARGE_SEGMENT)
    pool.unmapped.clear()
    pool.add(rest)
    assert pool.lowest_room(LARGE_SEGMENT) is unmapped
    unmapped.is_free = False
    assert pool.lowest_room(LARGE_SEGMENT) is rest
