"""Keys and values of many rows in one buffer per layer, so that one forward pass reads them all.

A row has a slot; a slot is a line of cells, one per token. Crop is only a shorter length: cells
past a row's length are never seen and are overwritten in time. Shapes: S slots, C cells, B rows of
a pass, T new tokens of its longest row, K key-value heads, D head size, N wanted positions, H
hidden size.

A row beside others differs from the row alone in the last bits, as two chunkings do: a matrix
product adds in another order for another number of columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossroads.models.row_cache import PASS_TOKENS, RowRead, empty_layers
from crossroads.models.slot_masks import Masks, masks

_FIRST_CELLS = 128  # cells of a slot before its buffer first doubles
_ROUND = 32  # cells that a ragged pass looks at come in multiples of this: fewer distinct shapes
_SPARE = -1  # every slot's last cell, which no row owns: where padding writes


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `first` to `first + size` of the new tokens of row `row` of a read."""

    row: int
    first: int
    size: int


def plan(lengths: Sequence[int], free_area: int) -> Iterator[list[Piece]]:
    """Cut ragged rows into passes with little padding; a row's pieces come in order.

    A pass holds at most PASS_TOKENS tokens, padding included. Rows share one if the shortest is at
    least half as long as the longest, so that at most half of it is padding, or if it is no larger
    than `free_area` tokens, where padding costs less than another pass over the weights.
    """
    done = [0] * len(lengths)
    while any(left := [length - first for length, first in zip(lengths, done, strict=True)]):
        sizes = [(min(size, PASS_TOKENS), row) for row, size in enumerate(left) if size]
        group: list[Piece] = []
        for size, row in sorted(sizes, key=lambda item: (-item[0], item[1])):
            widest = group[0].size if group else size
            area = widest * (len(group) + 1)
            if area > PASS_TOKENS or (area > free_area and 2 * size < widest):
                yield group
                group = []
            group.append(Piece(row, done[row], size))
        yield group
        for size, row in sizes:
            done[row] += size


@dataclass(frozen=True, slots=True)
class Pass:
    """Where the layers write and read in the pass under way.

    A uniform pass has rows of one start and one size: the model makes its own masks for it, as it
    would for any batch, and `start` is what it may ask the cache. Otherwise `start` is None.
    """

    slots_B: Tensor
    cells_BT: Tensor
    run: slice | None  # the slots, if they follow each other
    seen: int  # cells that attention looks at
    start: int | None


class SlotLayer:
    """One layer's keys and values [S, K, C + 1, D]; the interface is transformers' CacheLayerMixin.

    Ready for CUDA graphs: buffers that stay in place until they grow, and writes by index. ADR 12
    lists what is missing.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, store: SlotStore) -> None:
        """Take part in the passes of `store`; memory comes with the first one."""
        self._store = store
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = False

    def update(
        self, key_BKTD: Tensor, value_BKTD: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values and return all that its rows hold [B, K, C, D]."""
        self.grow(key_BKTD, value_BKTD)
        assert self.keys is not None
        assert self.values is not None
        where = self._store.current
        slots_B = where.slots_B.to(key_BKTD.device)
        at = (slots_B[:, None], where.cells_BT.to(key_BKTD.device))
        found = []
        for buffer_SKCD, new_BKTD in ((self.keys, key_BKTD), (self.values, value_BKTD)):
            buffer_SKCD.transpose(1, 2).index_put_(at, new_BKTD.transpose(1, 2))
            seen_SKCD = buffer_SKCD[:, :, : where.seen]
            # Rows whose slots follow each other are a view; any others are copied together.
            if where.run is None:
                found.append(seen_SKCD.index_select(0, slots_B))
            else:
                found.append(seen_SKCD[where.run])
        return found[0], found[1]

    def grow(self, like_key: Tensor | None = None, like_value: Tensor | None = None) -> None:
        """Make room for the store's slots and cells; without memory yet, be shaped like these."""
        keys, values = self.keys, self.values
        if keys is None or values is None:
            if like_key is None or like_value is None:
                return
            keys, values = like_key[:0, :, :1], like_value[:0, :, :1]
        self.keys, self.values = self._grown(keys), self._grown(values)
        self.is_initialized = True

    def _grown(self, old_SKCD: Tensor) -> Tensor:
        slots = max(self._store.slots, old_SKCD.shape[0])
        cells = max(self._store.cells + 1, old_SKCD.shape[2])
        if (slots, cells) == (old_SKCD.shape[0], old_SKCD.shape[2]):
            return old_SKCD
        # Zeros, for whatever lies in a masked cell is multiplied by 0, and 0 * nan is nan.
        new_SKCD = old_SKCD.new_zeros(slots, old_SKCD.shape[1], cells, old_SKCD.shape[3])
        kept = old_SKCD.shape[2] - 1  # without the spare cell
        new_SKCD[: old_SKCD.shape[0], :, :kept] = old_SKCD[:, :, :kept]
        return new_SKCD

    def copy_slot(self, source: int, target: int, cells: int) -> None:
        """Copy the first `cells` cells of one slot into another."""
        for buffer_SKCD in (self.keys, self.values):
            if buffer_SKCD is not None:
                buffer_SKCD[target, :, :cells] = buffer_SKCD[source, :, :cells]

    def wipe_slot(self, slot: int, cells: int) -> None:
        """Set the first `cells` cells of a slot to zero."""
        for buffer_SKCD in (self.keys, self.values):
            if buffer_SKCD is not None and slot < buffer_SKCD.shape[0]:
                buffer_SKCD[slot, :, :cells] = 0

    def get_seq_length(self) -> int:
        """Return the one length that all rows of a uniform pass have.

        Raises:
            NotImplementedError: the rows are ragged. A model that asks all the same would use one
                length for all of them; it cannot be batched, and the probe learns it here.
        """
        start = self._store.current.start
        if start is None:
            raise NotImplementedError("it asks for one length of rows that have several")
        return start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many cells a uniform pass sees, and the first one."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: the layer grows."""
        return -1


class SlotStore:
    """Places are numbers of slots."""

    batched = True

    def __init__(
        self,
        config: Any,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_rows: int,
        context_length: int,
    ) -> None:
        """Make slots for a decoder of this text config; memory comes as rows need it."""
        from transformers import cache_utils  # noqa: PLC0415

        # transformers asks its layers what they are by class; this module loads without it.
        cache_utils.CacheLayerMixin.register(SlotLayer)
        self._config, self._device, self._dtype = config, device, dtype
        self._max_rows, self._max_cells = max_rows, context_length
        # A padded token costs little while a pass is bound by reading the weights: up to some tens
        # of tokens on a CPU (ADR 12), hundreds on a GPU (assumed, not measured).
        self._free_area = 64 if device.type == "cpu" else PASS_TOKENS
        self.slots, self.cells = 0, 0
        self._unused = list(range(max_rows))  # a heap: low numbers first, so that runs are long
        self._written = [0] * max_rows
        layers: list[Any] = []
        for layer in empty_layers(config).layers:
            keeps = isinstance(layer, cache_utils.DynamicLayer)
            layers.append(SlotLayer(self) if keeps else layer)
        self._layers = [layer for layer in layers if isinstance(layer, SlotLayer)]
        self._cache = cache_utils.Cache(layers=layers)
        self.current = Pass(torch.empty(0), torch.empty(0), None, 0, None)

    def new(self) -> int:
        """Return a slot."""
        return heapq.heappop(self._unused)

    def fork(self, place: int, length: int) -> int:
        """Return a slot that holds a copy of the first `length` cells of `place`."""
        slot = self.new()
        try:
            with self._room(slot + 1, length), torch.inference_mode():
                self._written[slot] = length
                for layer in self._layers:
                    layer.grow()
                    layer.copy_slot(place, slot, length)
        except BaseException:
            self.free(slot)
            raise
        return slot

    def cut(self, place: int, length: int) -> None:
        """Do nothing: what is past a row's length is never seen."""

    def free(self, place: int) -> None:
        """Take the slot back, wiped: a nan of its last row would reach the next one.

        A masked cell has weight 0, and 0 * nan is nan.
        """
        with torch.inference_mode():
            for layer in self._layers:
                layer.wipe_slot(place, self._written[place])
        self._written[place] = 0
        heapq.heappush(self._unused, place)

    def clear(self) -> None:
        """Drop every buffer."""
        for layer in self._layers:
            layer.keys = layer.values = None
            layer.is_initialized = False

    def read(self, decoder: Any, reads: Sequence[RowRead]) -> Tensor:
        """Read all rows, in as few passes as little padding allows."""
        ends = torch.tensor([0, *(read.count for read in reads)]).cumsum(0).tolist()
        hidden_NH: Tensor | None = None
        for pieces in plan([len(read.tokens) for read in reads], self._free_area):
            pieces.sort(key=lambda piece: reads[piece.row].place)
            hidden_BTH = self._forward(decoder, reads, pieces)
            if hidden_NH is None:
                hidden_NH = hidden_BTH.new_empty(ends[-1], hidden_BTH.shape[2])
            wanted = _wanted(reads, pieces, ends, hidden_BTH.shape[1])
            if wanted[0]:
                source_M, target_M = torch.tensor(wanted, device=hidden_BTH.device)
                hidden_NH[target_M] = hidden_BTH.flatten(0, 1)[source_M]
        assert hidden_NH is not None
        return hidden_NH

    def _forward(self, decoder: Any, reads: Sequence[RowRead], pieces: Sequence[Piece]) -> Tensor:
        """Read one pass and return its hidden states [B, T, H], padding included."""
        slots = [int(reads[piece.row].place) for piece in pieces]
        ends = [reads[piece.row].start + piece.first + piece.size for piece in pieces]
        for slot, end in zip(slots, ends, strict=True):
            self._written[slot] = max(self._written[slot], end)
        ids_BT, positions_BT, cells_BT = self._columns(reads, pieces)
        uniform = len(set(ends)) == 1 and len({piece.size for piece in pieces}) == 1
        with self._room(max(slots) + 1, max(ends)):
            # A multiple of _ROUND, or just what a uniform pass needs: then it needs no mask either.
            seen = max(ends) if uniform else min(self.cells, _up(max(ends)))
            follow = slots == list(range(slots[0], slots[0] + len(slots)))
            self.current = Pass(
                slots_B=torch.tensor(slots, device=self._device),
                cells_BT=cells_BT,
                run=slice(slots[0], slots[0] + len(slots)) if follow else None,
                seen=seen,
                start=ends[0] - pieces[0].size if uniform else None,
            )
            mask: Masks | None = None
            if not uniform:
                mask = masks(self._config, positions_BT, seen, self._dtype)
            output = decoder(
                input_ids=ids_BT,
                position_ids=positions_BT,
                attention_mask=mask,
                past_key_values=self._cache,
                use_cache=True,
            )
        hidden_BTH: Tensor = output.last_hidden_state
        return hidden_BTH

    def _columns(self, reads: Sequence[RowRead], pieces: Sequence[Piece]) -> tuple[Tensor, ...]:
        """Return ids, positions and cells to write of a pass, each [B, T].

        Padding is the row's last token again: its position is one that the model has, and it sees
        what that token sees, so that no softmax is over nothing.
        """
        width = max(piece.size for piece in pieces)
        rows: list[list[int]] = []
        for piece in pieces:
            read, padding = reads[piece.row], width - piece.size
            ids = [int(token) for token in read.tokens[piece.first : piece.first + piece.size]]
            start = read.start + piece.first
            positions = list(range(start, start + piece.size))
            rows.append(ids + ids[-1:] * padding)
            rows.append(positions + positions[-1:] * padding)
            rows.append(positions + [_SPARE] * padding)
        columns_B3T = torch.tensor(rows, device=self._device).view(len(pieces), 3, width)
        return columns_B3T.unbind(1)

    @contextmanager
    def _room(self, slots: int, cells: int) -> Iterator[None]:
        """Let the layers grow, by doubling, until `slots` slots have `cells` cells.

        When the body fails, for want of memory, say, smaller reads must not ask for it again.
        """
        before = self.slots, self.cells
        if slots > self.slots:
            self.slots = min(self._max_rows, max(slots, 2 * self.slots))
        if cells > self.cells:
            wanted = _up(max(cells, 2 * self.cells, _FIRST_CELLS))
            self.cells = min(self._max_cells, wanted)
        try:
            yield
        except BaseException:
            self.slots, self.cells = before
            raise


def _up(cells: int) -> int:
    return -(-cells // _ROUND) * _ROUND


def _wanted(
    reads: Sequence[RowRead], pieces: Sequence[Piece], ends: Sequence[int], width: int
) -> tuple[list[int], list[int]]:
    """Return where wanted positions are in a pass, and where they go in the output."""
    source: list[int] = []
    target: list[int] = []
    for b, piece in enumerate(pieces):
        read = reads[piece.row]
        unwanted = len(read.tokens) - read.count
        tokens = range(max(unwanted, piece.first), piece.first + piece.size)
        source += [b * width + token - piece.first for token in tokens]
        target += [ends[piece.row] + token - unwanted for token in tokens]
    return source, target
