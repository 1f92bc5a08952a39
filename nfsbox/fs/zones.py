"""Which zones of a file a change of its content touches: what is recorded of it, and compared if the peer misses it.

A zone is a stretch of `zone` bytes; a span is its first and its last one.
"""

from __future__ import annotations

Span = tuple[int, int]


def written(offset: int, size: int, zone: int) -> Span:
    """By a write of `size` bytes, at least one."""
    return offset // zone, (offset + size - 1) // zone


def truncated(size: int, length: int, zone: int) -> Span | None:
    """By another size; None when it is the same. What is cut off may come back as a hole: all of it. What is added was
    nowhere before, and the size is compared anyway."""
    if length == size:
        return None
    if length > size:
        return size // zone, size // zone
    return length // zone, (size - 1) // zone


def allocated(offset: int, length: int, size: int, zone: int) -> Span:
    """By an allocation, or a hole, in a file of `size` bytes. Behind the end there was nothing before, and the size is
    compared anyway."""
    end = max(min(offset + length, size), offset + 1)
    return offset // zone, (end - 1) // zone
