import pytest

from frostline.memory.caching_allocator import CachingAllocator, simulate_allocator
from frostline.tracing import Allocation, AllocationLog

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("asked", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of 1 MiB is not worth a block
        (12 * MIB + 1, 12 * MIB + 512, 14 * MIB),
    ],
)
def test_one_block(asked, allocated, reserved):
    allocator = CachingAllocator()
    allocator.allocate(asked)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_blocks_share_a_segment_until_it_is_full():
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(512 * KIB)
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(1)
    assert allocator.reserved_bytes == 4 * MIB


def test_small_and_large_blocks_do_not_share():
    allocator = CachingAllocator()
    allocator.allocate(2 * MIB)
    allocator.allocate(KIB)
    assert allocator.reserved_bytes == 22 * MIB


def test_free_neighbours_join_and_are_used_again():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    assert allocator.reserved_bytes == 20 * MIB
    allocator.free(blocks[1])
    allocator.free(blocks[3])
    allocator.allocate(9 * MIB)  # two holes of 5 MiB are not one of 9
    assert allocator.reserved_bytes == 40 * MIB
    allocator.free(blocks[2])
    allocator.allocate(15 * MIB)  # three that touch are
    assert allocator.reserved_bytes == 40 * MIB
    assert allocator.allocated_bytes == (5 + 9 + 15) * MIB


def test_the_smallest_hole_that_fits_is_taken():
    allocator = CachingAllocator()
    sizes = (4, 2, 3, 2, 9)
    blocks = [allocator.allocate(size * MIB) for size in sizes]
    for i in (0, 2):
        allocator.free(blocks[i])
    third = allocator.allocate(3 * MIB)
    assert third.address == blocks[2].address
    assert allocator.allocate(3 * MIB + 512 * KIB).num_bytes == 4 * MIB  # half a MiB is left in it
    assert allocator.reserved_bytes == 20 * MIB


def test_what_is_freed_stays_reserved_and_peaks_can_be_reset():
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(30 * MIB))
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 30 * MIB)
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (30 * MIB, 30 * MIB)
    allocator.reset_peaks()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (0, 30 * MIB)


def allocation(num_bytes, device="cuda"):
    return Allocation(num_bytes, device, "aten.empty", (num_bytes,), "forward", "", "")


def test_a_log_is_played_from_its_start_and_counted_from_the_step():
    log = AllocationLog(
        allocations=[allocation(100), allocation(40 * MIB), allocation(700), allocation(MIB, "cpu")],
        resident={0: 100},
        events=[(1, 40 * MIB), (1, -40 * MIB), (2, 700), (3, MIB), (2, 700), (2, -1400)],
        step_start=2,
    )
    counters = simulate_allocator(log, "cuda")
    assert counters.peak_allocated_bytes == 512 + 1536  # a storage that grows from 700 to 1400 bytes
    assert counters.peak_reserved_bytes == 42 * MIB  # the warm-up's segment is kept
