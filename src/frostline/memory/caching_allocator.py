"""The rules of CUDA's caching allocator, played over an allocation log: what it would hand out and what it would keep.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` with default settings and one stream; memory is unlimited,
so that nothing is ever given back to the driver.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from frostline.records import AllocatorCounters
from frostline.tracing import AllocationLog

_MIB = 2**20
ROUNDING_BYTES = 512
"""Every block is a multiple of it."""
_LARGEST_SMALL = _MIB  # what is no bigger is cut from small segments
_SMALL_SEGMENT, _LARGE_SEGMENT = 2 * _MIB, 20 * _MIB
_LEAST_OWN_SEGMENT, _OWN_SEGMENT_ROUNDING = 10 * _MIB, 2 * _MIB  # from here on a block has a segment of its own


@dataclass(slots=True, eq=False)
class Block:
    """A stretch of a segment, and its neighbours there."""

    address: int
    num_bytes: int
    small: bool
    free: bool = False
    before: Block | None = None
    after: Block | None = None


class CachingAllocator:
    """Hand out blocks as CUDA's allocator does, and count.

    Attributes:
        allocated_bytes: In the blocks that are handed out, as `torch.cuda.memory_allocated` counts.
        reserved_bytes: In all segments, as `torch.cuda.memory_reserved` counts.
        peak_allocated_bytes: The most since the peaks were last reset.
        peak_reserved_bytes: The same of the segments.
    """

    def __init__(self) -> None:
        self.allocated_bytes = self.reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self._pools: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # size and address of free blocks
        self._blocks: dict[int, Block] = {}  # the free ones, by address

    def allocate(self, num_bytes: int) -> Block:
        """The smallest free block that is big enough, or one from a new segment; the rest of it is split off."""
        size = _round_up(max(num_bytes, 1), ROUNDING_BYTES)
        small = size <= _LARGEST_SMALL
        pool = self._pools[small]
        i = bisect.bisect_left(pool, (size, 0))
        block = self._take(self._blocks[pool[i][1]]) if i < len(pool) else self._new_segment(size, small)
        rest = block.num_bytes - size
        if rest >= ROUNDING_BYTES if small else rest > _LARGEST_SMALL:
            tail = Block(block.address + size, rest, small, before=block, after=block.after)
            if tail.after is not None:
                tail.after.before = tail
            block.after, block.num_bytes = tail, size
            self._give(tail)
        self.allocated_bytes += block.num_bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block) -> None:
        """Take a block back and join it with its free neighbours."""
        self.allocated_bytes -= block.num_bytes
        if block.before is not None and block.before.free:
            block = _joined(self._take(block.before), block)
        if block.after is not None and block.after.free:
            block = _joined(block, self._take(block.after))
        self._give(block)

    def reset_peaks(self) -> None:
        """Let the peaks be what is there now."""
        self.peak_allocated_bytes, self.peak_reserved_bytes = self.allocated_bytes, self.reserved_bytes

    def _new_segment(self, size: int, small: bool) -> Block:
        if small:
            num_bytes = _SMALL_SEGMENT
        elif size < _LEAST_OWN_SEGMENT:
            num_bytes = _LARGE_SEGMENT
        else:
            num_bytes = _round_up(size, _OWN_SEGMENT_ROUNDING)
        block = Block(self.reserved_bytes, num_bytes, small)
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block

    def _give(self, block: Block) -> None:
        block.free = True
        self._blocks[block.address] = block
        bisect.insort(self._pools[block.small], (block.num_bytes, block.address))

    def _take(self, block: Block) -> Block:
        block.free = False
        del self._blocks[block.address]
        pool = self._pools[block.small]
        pool.pop(bisect.bisect_left(pool, (block.num_bytes, block.address)))
        return block


def simulate_allocator(log: AllocationLog, device: str) -> AllocatorCounters:
    """What CUDA's allocator would count in the step of a log, warmed up by all that lies before it.

    Args:
        log: Of the trace.
        device: The device type whose storages count.
    """
    allocator, blocks = CachingAllocator(), dict[int, Block]()
    sizes = {number: size for number, size in log.resident.items() if log.allocations[number].device == device}
    for number, num_bytes in sizes.items():
        if num_bytes:
            blocks[number] = allocator.allocate(num_bytes)
    for event, (number, delta) in enumerate(log.events):
        if event == log.step_start:
            allocator.reset_peaks()
        if log.allocations[number].device != device:
            continue
        if number in blocks:
            allocator.free(blocks.pop(number))
        sizes[number] = sizes.get(number, 0) + delta
        if sizes[number]:
            blocks[number] = allocator.allocate(sizes[number])
    return AllocatorCounters(
        peak_allocated_bytes=allocator.peak_allocated_bytes, peak_reserved_bytes=allocator.peak_reserved_bytes
    )


def _joined(first: Block, second: Block) -> Block:
    first.num_bytes += second.num_bytes
    first.after = second.after
    if first.after is not None:
        first.after.before = first
    return first


def _round_up(num_bytes: int, multiple: int) -> int:
    return -(-num_bytes // multiple) * multiple
