"""An allocator that lives entirely in guest RAM, so that it is still there after a migration.

    0          superblock: magic, version, size, roots, counts, class maps and heads of the free lists
    4096+8     first block ... last block, end mark

Two-level segregated fit (Masmano et al., ECRTS 2004): free blocks are kept in lists by size class, eight
classes to each doubling; two bitmaps find the smallest class that fits in constant time; a freed block is
merged with its free neighbours at once. A block is a header word (size in bytes | FREE | PREVIOUS_FREE) and
its payload; a free block also holds next and previous links, and its size again in its last word so that its
successor finds its start.

Python keeps nothing: every word is read from RAM and written to RAM. That is the whole point.
"""

from __future__ import annotations

MAGIC = 0x6D_65_6D_6F_72_79_30_31
VERSION = 1
SUPERBLOCK_BYTES = 4096
MIN_BLOCK = 32
GRANULE = 16

_FREE, _PREVIOUS_FREE, _FLAGS = 1, 2, 15
_ROWS, _COLUMNS = 40, 8  # row: power of two of the size in granules; column: eighth of that row

# Words of the superblock.
_MAGIC, _VERSION, _SIZE, _ROOTS, _USED, _BLOCKS, _ROW_MAP = range(7)
_COLUMN_MAPS = 8
_HEADS = _COLUMN_MAPS + _ROWS

_FIRST_BLOCK = SUPERBLOCK_BYTES // 8 + 1  # a header at 8 mod 16 puts payloads at 0 mod 16


class HeapError(Exception):
    """RAM does not hold a heap, or a caller gave back what it does not own. The heap is unchanged."""


class OutOfMemory(HeapError):
    """No free block is large enough. Nothing was allocated."""


def _place(size: int) -> tuple[int, int]:
    """The (row, column) of the list that holds free blocks of `size` bytes."""
    granules = size >> 4
    if granules < _COLUMNS:
        return 0, granules
    power = granules.bit_length() - 1
    return power - 2, (granules >> (power - 3)) & 7


class Heap:
    """The heap in `view`, a writable view of guest RAM.

    RAM whose superblock is all zero is formatted; RAM that holds a heap is taken as it is; anything else is
    HeapError. Offsets are bytes from the start of RAM. Not for use by two processes at once.
    """

    def __init__(self, view: memoryview) -> None:
        if view.nbytes % 4096 or view.nbytes < 4 * 4096:
            raise HeapError(f"{view.nbytes} bytes of RAM: pages of 4096 bytes, at least four, are needed")
        self.view = view
        self._words = words = view.cast("B").cast("Q")
        if not any(words[: SUPERBLOCK_BYTES // 8]):
            self._format()
        elif words[_MAGIC] != MAGIC or words[_VERSION] != VERSION or words[_SIZE] != view.nbytes:
            raise HeapError(
                f"no heap in RAM: magic {words[_MAGIC]:#x} version {words[_VERSION]} size {words[_SIZE]}, "
                f"not {MAGIC:#x} {VERSION} {view.nbytes}"
            )

    def _format(self) -> None:
        words = self._words
        end = len(words) - 1  # its header sits in the last word: 8 mod 16 as every other
        self._add_free(_FIRST_BLOCK, (end - _FIRST_BLOCK) * 8)
        words[end] = _PREVIOUS_FREE
        words[_SIZE] = self.view.nbytes
        words[_VERSION] = VERSION
        words[_MAGIC] = MAGIC

    # -- what callers use --------------------------------------------------------------------------------
    # ------------------------------------------------------------------------------------------

    def alloc(self, size: int, align: int = GRANULE) -> int:
        """The offset of `size` bytes of whatever RAM holds there, at a multiple of `align` (a power of two,
        at least 16).

        Raises OutOfMemory; ValueError for a size under 1 or a bad alignment.
        """
        if size < 1 or align < GRANULE or align & (align - 1):
            raise ValueError(f"cannot allocate {size} bytes at multiples of {align}")
        need = max(MIN_BLOCK, (size + 8 + 15) & ~15)
        words = self._words
        block = self._take(need if align == GRANULE else need + align + MIN_BLOCK)
        if not block:
            raise OutOfMemory(f"no room for {size} bytes: {self.free_bytes} of {self.view.nbytes} are free")
        whole = words[block] & ~_FLAGS
        if align != GRANULE:
            payload = (block + 1) * 8
            lead = -payload % align
            if lead and lead < MIN_BLOCK:
                lead += align
            if lead:
                self._add_free(block, lead)
                block += lead >> 3
                whole -= lead
                words[block] = whole | _PREVIOUS_FREE
        flags = words[block] & _PREVIOUS_FREE
        if whole - need >= MIN_BLOCK:
            self._add_free(block + (need >> 3), whole - need)
            whole = need
        else:
            words[block + (whole >> 3)] &= ~_PREVIOUS_FREE
        words[block] = whole | flags
        words[_USED] += whole
        words[_BLOCKS] += 1
        return (block + 1) * 8

    def free(self, offset: int) -> None:
        """Give back what alloc() returned. Raises HeapError when there is no allocated block at `offset`."""
        words = self._words
        block, size = self._block(offset)
        words[_USED] -= size
        words[_BLOCKS] -= 1
        following = block + (size >> 3)
        header = words[following]
        if header & _FREE:
            self._remove_free(following, header & ~_FLAGS)
            size += header & ~_FLAGS
        if words[block] & _PREVIOUS_FREE:
            before = words[block - 1]
            block -= before >> 3
            self._remove_free(block, before)
            size += before
        self._add_free(block, size)
        words[block + (size >> 3)] |= _PREVIOUS_FREE

    def usable(self, offset: int) -> int:
        """How many bytes may be used at `offset`: at least what was asked for."""
        return self._block(offset)[1] - 8

    @property
    def used_bytes(self) -> int:
        """Bytes in allocated blocks, their headers included."""
        return self._words[_USED]

    @property
    def free_bytes(self) -> int:
        """Bytes in free blocks. One block may be smaller than that: memory fragments."""
        return self.view.nbytes - SUPERBLOCK_BYTES - 16 - self._words[_USED]

    def find(self, name: str) -> tuple[int, int] | None:
        """(offset, size) of the root called `name`, or None."""
        words, wanted = self._words, name.encode()
        entry = words[_ROOTS]
        while entry:
            at = entry >> 3
            length = words[at + 3]
            if length == len(wanted) and self.view[entry + 32 : entry + 32 + length] == wanted:
                return words[at + 1], words[at + 2]
            entry = words[at]
        return None

    def root(self, name: str, size: int, *, align: int = GRANULE, zero: bool = True) -> int:
        """The offset of the `size` bytes called `name`: made (and zeroed, unless told not to) the first time,
        found after.

        Raises HeapError when the root exists with another size, OutOfMemory when there is no room.
        """
        found = self.find(name)
        if found is not None:
            if found[1] != size:
                raise HeapError(f"root {name!r} is {found[1]} bytes in this RAM, not {size}")
            return found[0]
        encoded = name.encode()
        offset = self.alloc(size, align)
        try:
            entry = self.alloc(32 + len(encoded))
        except OutOfMemory:
            self.free(offset)
            raise
        if zero:
            self.view[offset : offset + size] = bytes(size)
        self.view[entry + 32 : entry + 32 + len(encoded)] = encoded
        words, at = self._words, entry >> 3
        words[at], words[at + 1], words[at + 2], words[at + 3] = words[_ROOTS], offset, size, len(encoded)
        words[_ROOTS] = entry
        return offset

    def largest_free(self) -> tuple[int, int]:
        """(offset, bytes) of the inside of the largest free block of the highest class: its links and last
        word left out."""
        words = self._words
        if not words[_ROW_MAP]:
            return 0, 0
        row = words[_ROW_MAP].bit_length() - 1
        column = words[_COLUMN_MAPS + row].bit_length() - 1
        block = words[_HEADS + row * _COLUMNS + column]
        return (block + 3) * 8, (words[block] & ~_FLAGS) - 32

    def check(self) -> None:
        """Walk every block and list; raise HeapError at the first thing that is not as the module says."""
        words, end = self._words, len(self._words) - 1
        block, used, blocks, free, previous_free = _FIRST_BLOCK, 0, 0, set(), False
        while block < end:
            size, is_free = words[block] & ~_FLAGS, bool(words[block] & _FREE)
            if size < MIN_BLOCK or block + (size >> 3) > end:
                raise HeapError(f"block at {block * 8} has size {size}")
            if bool(words[block] & _PREVIOUS_FREE) != previous_free:
                raise HeapError(f"block at {block * 8} is wrong about its neighbour")
            if is_free:
                if previous_free or words[block + (size >> 3) - 1] != size:
                    raise HeapError(f"free block at {block * 8} is not merged or has no footer")
                free.add(block)
            else:
                used, blocks = used + size, blocks + 1
            previous_free, block = is_free, block + (size >> 3)
        listed = set()
        for row in range(_ROWS):
            for column in range(_COLUMNS):
                item = words[_HEADS + row * _COLUMNS + column]
                if bool(item) != bool(words[_COLUMN_MAPS + row] >> column & 1):
                    raise HeapError(f"class {row},{column}: map and list differ")
                while item:
                    if item in listed or _place(words[item] & ~_FLAGS) != (row, column):
                        raise HeapError(f"free block at {item * 8} is in a wrong list")
                    listed.add(item)
                    item = words[item + 1]
        if listed != free or (used, blocks) != (words[_USED], words[_BLOCKS]):
            raise HeapError("lists or counts do not agree with the blocks")

    # -- blocks and lists; a block is the index of its header word ---------------------------------------
    # ---------------------------------------------------

    def _block(self, offset: int) -> tuple[int, int]:
        words = self._words
        block = (offset >> 3) - 1
        if offset % GRANULE or not _FIRST_BLOCK <= block < len(words) - 1:
            raise HeapError(f"{offset} is not the offset of a block")
        header = words[block]
        size = header & ~_FLAGS
        if header & _FREE or size < MIN_BLOCK or block + (size >> 3) >= len(words):
            raise HeapError(f"the block at {offset} is not allocated")
        return block, size

    def _take(self, need: int) -> int:
        """Unlink and return a free block of at least `need` bytes, or 0."""
        words = self._words
        granules = need >> 4
        rounded = need
        if granules >= _COLUMNS:  # every block of the next class up is surely large enough
            rounded += ((1 << (granules.bit_length() - 4)) - 1) << 4
        row, column = _place(rounded)
        found = words[_COLUMN_MAPS + row] >> column << column
        if not found:
            rows = words[_ROW_MAP] >> (row + 1) << (row + 1)
            if rows:
                row = (rows & -rows).bit_length() - 1
                found = words[_COLUMN_MAPS + row]
            else:  # nothing is surely large enough; something of the same class may be
                row, column = _place(need)
                block = words[_HEADS + row * _COLUMNS + column]
                while block and words[block] & ~_FLAGS < need:
                    block = words[block + 1]
                if block:
                    self._remove_free(block, words[block] & ~_FLAGS)
                return block
        column = (found & -found).bit_length() - 1
        block = words[_HEADS + row * _COLUMNS + column]
        self._remove_free(block, words[block] & ~_FLAGS)
        return block

    def _add_free(self, block: int, size: int) -> None:
        words = self._words
        row, column = _place(size)
        head = _HEADS + row * _COLUMNS + column
        following = words[head]
        # A block before a free one is never free (they are merged), so PREVIOUS_FREE is always clear here.
        words[block], words[block + 1], words[block + 2] = size | _FREE, following, 0
        words[block + (size >> 3) - 1] = size
        if following:
            words[following + 2] = block
        words[head] = block
        words[_COLUMN_MAPS + row] |= 1 << column
        words[_ROW_MAP] |= 1 << row

    def _remove_free(self, block: int, size: int) -> None:
        words = self._words
        following, before = words[block + 1], words[block + 2]
        if following:
            words[following + 2] = before
        if before:
            words[before + 1] = following
        else:
            row, column = _place(size)
            words[_HEADS + row * _COLUMNS + column] = following
            if not following:
                words[_COLUMN_MAPS + row] &= ~(1 << column)
                if not words[_COLUMN_MAPS + row]:
                    words[_ROW_MAP] &= ~(1 << row)
        words[block] &= ~_FREE
