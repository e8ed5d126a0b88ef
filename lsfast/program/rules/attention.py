r"""Scaled dot-product attention, in tiles: memory grows with the length of the sequences, not with its square.

For one head, with queries q [L, E], keys k [S, E], values v [S, V], scores s and probabilities p [L, S]:

    s = a q k^T + mask,   p = softmax(s) by rows,   y = p v

Let a dot stand for a tangent, g for the adjoint of y, and D(p) t = p (t - p.t) for the derivative of softmax, which is
symmetric. The tangent of y, and the adjoints:

    s. = a (q. k^T + q k.^T)         p. = D(p) s.              y. = p. v + p v.
    v' = p^T g                       p' = g v^T                s' = D(p) p'
    q' = a s' k                      k' = a s'^T q

(' for an adjoint). The tangents of the adjoints, where g has the tangent g.:

    v'. = p.^T g + p^T g.            p'. = g. v^T + g v.^T
    s'. = p (u - p.u),  u = c (s. - p.s.) + p'.,   c = p' - p.p'          (one fused kernel makes p. and s'.)
    q'. = a (s'. k + s' k.)          k'. = a (s'.^T q + s'^T q.)          s' = p c

What an inactive argument would bring is left out; with only v active all is linear. The scale a costs nothing: it is a
factor of the matrix products. A tile is a range of heads and of query rows with all keys they see; s., p. and s'. exist
for one tile at a time. p and c are formed again for each tile of each product, but kept where they are smaller than q,
k and v together.

Grouped heads and leading axes that broadcast are expanded, and their adjoints summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from lsfast._native import ops
from lsfast.program.rules.generic import Generic
from lsfast.program.rules.rule import Activity, Rule, register_rule
from lsfast.program.rules.softmax import LOG_SOFTMAX, SOFTMAX, arithmetic

aten = torch.ops.aten

# Scores of one tile: on a CPU what a core's cache holds together with their tangents, on a GPU what keeps it busy.
TILE_SCORES = {"cpu": 1 << 17, "cuda": 1 << 24}
_FEWEST_ROWS, _MOST_ROWS = 64, 128  # of queries in a tile: fewer make slow products, more see keys that causality hides


class _Tile(NamedTuple):
    """Heads [n0, n1) and query rows [i0, i1), which see the keys below `cols`; `vectors` of K at a time."""

    n0: int
    n1: int
    i0: int
    i1: int
    cols: int
    vectors: int

    def queries(self, x: Tensor) -> Tensor:
        """[k, N, L, E] -> [k * heads, rows, E], a view of a contiguous x."""
        return x[:, self.n0 : self.n1, self.i0 : self.i1].flatten(0, 1)

    def keys(self, x: Tensor) -> Tensor:
        """[k, N, S, E] -> [k * heads, cols, E], a view of a contiguous x."""
        return x[:, self.n0 : self.n1, : self.cols].flatten(0, 1)

    def scores(self, k: int, room: Tensor) -> Tensor:
        """Return a view [k * heads, rows, cols] of the beginning of `room`."""
        shape = (k * (self.n1 - self.n0), self.i1 - self.i0, self.cols)
        return room[: math.prod(shape)].view(shape)


class Attention(Rule):
    """Attention with an inactive mask, or none."""

    def __init__(self, active: Activity) -> None:
        super().__init__(active)
        self.curved = bool(active[0] or active[1])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        _check_dropout(dropout_p)
        self.dtype, self.causal = query.dtype, is_causal
        self.scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        self.rows, self.cols = query.shape[-2], key.shape[-2]
        self.shapes = (query.shape, key.shape, value.shape)
        heads = key.shape[-3] if enable_gqa else None
        self.grouped = tuple(_grouped(shape, heads) for shape in self.shapes)
        leads = [shape[:-2] for shape in self.grouped]
        if attn_mask is not None:
            attn_mask = attn_mask.reshape(_grouped(attn_mask.shape, heads))
            leads.append(attn_mask.shape[:-2])
        self.lead = torch.broadcast_shapes(*leads)
        self.mask, self.mask_of_head = _flat_mask(attn_mask, self.lead)
        self.query, self.key, self.value = (self._flat(i, x[None]) for i, x in enumerate((query, key, value)))
        self.heads = math.prod(self.lead)
        self.tiles = self._tiles(TILE_SCORES[query.device.type])
        # What a tile's adjoints of keys and values do to those there: take their place (0) or add (1).
        self.beta = 0 if len(self.tiles) == 1 and self.tiles[0].cols == self.cols else 1
        inputs = self.query.numel() + self.key.numel() + self.value.numel()
        self.kept = self.heads * self.rows * self.cols <= inputs
        self.probabilities: dict[_Tile, Tensor] = {}
        self.centered: dict[_Tile, Tensor] = {}
        out = self.query.new_empty(1, self.heads, self.rows, value.shape[-1])
        for tile in self.tiles:
            torch.bmm(self._probability(tile), tile.keys(self.value), out=tile.queries(out))
        lead = self.lead if heads is None else (*self.lead[:-2], self.lead[-2] * self.lead[-1])
        return out.reshape(*lead, self.rows, value.shape[-1]).to(self.dtype)

    def _tiles(self, scores: int) -> list[_Tile]:
        """Cut heads and query rows so that a tile has about `scores` scores."""
        if self.heads * self.rows * self.cols <= scores:  # all in one, for as many vectors as there is room
            vectors = scores // max(1, self.heads * self.rows * self.cols)
            return [_Tile(0, self.heads, 0, self.rows, self.cols, vectors)]
        rows = min(self.rows, max(_FEWEST_ROWS, min(_MOST_ROWS, scores // self.cols)))
        heads = max(1, scores // (rows * self.cols))
        found = []
        for n0 in range(0, self.heads, heads):
            for i0 in range(0, self.rows, rows):
                i1 = min(i0 + rows, self.rows)
                cols = min(self.cols, i1) if self.causal else self.cols
                found.append(_Tile(n0, min(n0 + heads, self.heads), i0, i1, cols, 1))
        return found

    def _flat(self, place: int, values: Tensor) -> Tensor:
        """Tangents of an argument [k, *shape] -> [k, N, length, width], in the type of the arithmetic."""
        grouped = self.grouped[place]
        full = values.to(arithmetic(self.dtype)).reshape(len(values), *grouped)
        missing = (1,) * (len(self.lead) + 2 - len(grouped))
        full = full.reshape(len(values), *missing, *grouped).expand(len(values), *self.lead, *grouped[-2:])
        return full.reshape(len(values), math.prod(self.lead), *grouped[-2:])

    def _unflat(self, place: int, values: Tensor | None) -> Tensor | None:
        """Adjoints of an argument [k, N, length, width] -> [k, *shape], summed where the argument was expanded."""
        if values is None:
            return None
        grouped = self.grouped[place]
        full = values.reshape(len(values), *self.lead, *grouped[-2:])
        missing = len(self.lead) + 2 - len(grouped)
        expanded = [d for d, size in enumerate(self.lead) if d < missing or grouped[d - missing] != size]
        if expanded:
            full = full.sum([d + 1 for d in expanded], keepdim=True)
        return full.reshape(len(values), *self.shapes[place]).to(self.dtype)

    def _results(self, adjoints: Tensor) -> Tensor:
        """Adjoints of the result -> [k, N, L, V], in the type of the arithmetic."""
        return adjoints.to(arithmetic(self.dtype)).reshape(len(adjoints), self.heads, self.rows, self.shapes[2][-1])

    def _probability(self, tile: _Tile) -> Tensor:
        """Return p [heads, rows, cols] of a tile."""
        if tile in self.probabilities:
            return self.probabilities[tile]
        shape = (tile.n1 - tile.n0, tile.i1 - tile.i0, tile.cols)
        scores = self.query.new_empty(shape)
        scores.baddbmm_(tile.queries(self.query), tile.keys(self.key).mT, beta=0, alpha=self.scale)
        if self.mask is not None:
            rows = slice(None) if self.mask.shape[1] == 1 else slice(tile.i0, tile.i1)
            cols = slice(None) if self.mask.shape[2] == 1 else slice(0, tile.cols)
            mask = self.mask[:, rows, cols]
            if self.mask_of_head is not None:
                mask = mask.index_select(0, self.mask_of_head[tile.n0 : tile.n1])
            if mask.dtype == torch.bool:
                mask = scores.new_zeros(mask.shape).masked_fill_(mask.logical_not(), -math.inf)
            scores.add_(mask)
        ops.attention_probabilities_(scores, tile.i0 if self.causal else -1)
        if self.kept:
            self.probabilities[tile] = scores
        return scores

    def _center(self, tile: _Tile, probability: Tensor) -> Tensor:
        """Return c = p' - p.p' [heads, rows, cols] of a tile, p' = g v^T."""
        if tile in self.centered:
            return self.centered[tile]
        adjoint = torch.bmm(tile.queries(self.adjoint), tile.keys(self.value).mT)
        _softmax_tangent_(probability, adjoint, LOG_SOFTMAX)
        if self.kept:
            self.centered[tile] = adjoint
        return adjoint

    def _room(self, k: int) -> Tensor:
        """Return room for the scores of the largest tile."""
        most = max(
            ((t.n1 - t.n0) * (t.i1 - t.i0) * t.cols * min(k, t.vectors) for t in self.tiles), default=0
        )  # fmt: skip
        return self.query.new_empty(most)

    def _parts(self, k: int) -> Iterator[tuple[_Tile, Tensor, slice, int]]:
        """Go through tiles, their probabilities, and the rows of K that are worked on together (and how many)."""
        for tile in self.tiles:
            probability = self._probability(tile)
            for first in range(0, k, tile.vectors):
                last = min(first + tile.vectors, k)
                yield tile, probability, slice(first, last), last - first

    def _score_tangent(self, tile: _Tile, scores: Tensor, k: int, query: Tensor | None, key: Tensor | None) -> None:
        """Write a (q. k^T + q k.^T) of a tile into `scores`."""
        if query is not None:
            keys = _repeated(tile.keys(self.key), k)
            scores.baddbmm_(tile.queries(query), keys.mT, beta=0, alpha=self.scale)
        if key is not None:
            queries = _repeated(tile.queries(self.query), k)
            scores.baddbmm_(queries, tile.keys(key).mT, beta=0 if query is None else 1, alpha=self.scale)

    def jvp(self, *tangents: Any) -> Tensor:
        query, key, value = (None if t is None else self._flat(i, t) for i, t in enumerate(tangents[:3]))
        k = next(len(t) for t in (query, key, value) if t is not None)
        out = self.query.new_empty(k, self.heads, self.rows, self.shapes[2][-1])
        room = self._room(k)
        for tile, probability, rows, count in self._parts(k):
            result = tile.queries(out[rows])
            if query is not None or key is not None:
                scores = tile.scores(count, room)
                self._score_tangent(tile, scores, count, _at(query, rows), _at(key, rows))
                _softmax_tangent_(probability, scores, SOFTMAX)
                torch.bmm(scores, _repeated(tile.keys(self.value), count), out=result)
            if value is not None:
                beta = 0 if query is None and key is None else 1
                result.baddbmm_(_repeated(probability, count), tile.keys(value[rows]), beta=beta)
        return self._result(out)

    def _result(self, out: Tensor) -> Tensor:
        """[k, N, L, V] -> [k, *result shape]."""
        grouped = len(self.grouped[0]) > len(self.shapes[0])
        lead = (*self.lead[:-2], self.lead[-2] * self.lead[-1]) if grouped else self.lead
        return out.reshape(len(out), *lead, *out.shape[-2:]).to(self.dtype)

    def _adjoint_room(self, k: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return room for the adjoints [k, N, length, width] of q, k and v, None where not active.

        Each query lies in one tile; keys and values are summed over tiles, starting from zeros unless there is one.
        """
        query, key, value = (
            x.new_empty(k, *x.shape[1:]) if active else None
            for x, active in zip((self.query, self.key, self.value), self.active, strict=False)
        )
        if self.beta == 1:
            for summed in (key, value):
                if summed is not None:
                    summed.zero_()
        return query, key, value

    def vjp(self, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        given = self._results(adjoints)
        k = len(given)
        query, key, value = found = self._adjoint_room(k)
        room = self._room(k)
        for tile, probability, rows, count in self._parts(k):
            adjoint = tile.queries(given[rows])
            if value is not None:
                tile.keys(value[rows]).baddbmm_(_repeated(probability, count).mT, adjoint, beta=self.beta)
            if self.curved:
                scores = tile.scores(count, room)
                torch.bmm(adjoint, _repeated(tile.keys(self.value), count).mT, out=scores)
                _softmax_tangent_(probability, scores, SOFTMAX)
                self._add_adjoints(tile, scores, rows, count, query, key)
        return tuple(self._unflat(i, x) for i, x in enumerate(found))

    def _add_adjoints(
        self, tile: _Tile, scores: Tensor, rows: slice, k: int, query: Tensor | None, key: Tensor | None
    ) -> None:
        """Add what the adjoint `scores` of a tile's scores brings to those of q and k."""
        if query is not None:
            keys = _repeated(tile.keys(self.key), k)
            tile.queries(query[rows]).baddbmm_(scores, keys, beta=0, alpha=self.scale)
        if key is not None:
            queries = _repeated(tile.queries(self.query), k)
            tile.keys(key[rows]).baddbmm_(scores.mT, queries, beta=self.beta, alpha=self.scale)

    def hold(self, adjoint: Tensor) -> None:
        if self.curved:
            self.adjoint = self._results(adjoint[None])
            self.centered.clear()

    def vjp_jvp(self, adjoints: Tensor, *tangents: Any) -> tuple[Tensor | None, ...]:
        if not self.curved:
            return self.vjp(adjoints)
        given = self._results(adjoints)
        k = len(given)
        dot_query, dot_key, dot_value = (None if t is None else self._flat(i, t) for i, t in enumerate(tangents[:3]))
        query, key, value = found = self._adjoint_room(k)
        room, more_room = self._room(k), self._room(k)
        last_tile = None
        for tile, probability, rows, count in self._parts(k):
            if tile is not last_tile:
                last_tile = tile
                centered = self._center(tile, probability)
                fixed = probability * centered  # s' of the primal adjoint
            adjoint = tile.queries(given[rows])
            scores, score_adjoints = tile.scores(count, room), tile.scores(count, more_room)
            self._score_tangent(tile, scores, count, _at(dot_query, rows), _at(dot_key, rows))
            torch.bmm(adjoint, _repeated(tile.keys(self.value), count).mT, out=score_adjoints)
            if dot_value is not None:
                primal = _repeated(tile.queries(self.adjoint), count)
                score_adjoints.baddbmm_(primal, tile.keys(dot_value[rows]).mT)
            _softmax_adjoint_tangent_(probability, centered, scores, score_adjoints)
            if value is not None:  # `scores` are the tangents of the probabilities now
                into = tile.keys(value[rows])
                into.baddbmm_(scores.mT, _repeated(tile.queries(self.adjoint), count), beta=self.beta)
                into.baddbmm_(_repeated(probability, count).mT, adjoint)
            self._add_adjoints(tile, score_adjoints, rows, count, query, key)
            if query is not None and dot_key is not None:
                into = tile.queries(query[rows])
                into.baddbmm_(_repeated(fixed, count), tile.keys(dot_key[rows]), alpha=self.scale)
            if key is not None and dot_query is not None:
                into = tile.keys(key[rows])
                into.baddbmm_(_repeated(fixed, count).mT, tile.queries(dot_query[rows]), alpha=self.scale)
        return tuple(self._unflat(i, x) for i, x in enumerate(found))


class _WithActiveMask(Generic):
    """Attention whose additive mask depends on the parameters: the generic rule."""

    def forward(self, *args: Any) -> Any:
        _check_dropout(args[4])
        return super().forward(*args)


def _attention(active: Activity) -> Rule:
    operation = aten.scaled_dot_product_attention.default
    return _WithActiveMask(operation, active) if active[3] else Attention(active)


register_rule(aten.scaled_dot_product_attention.default, _attention)


def _check_dropout(dropout_p: float) -> None:
    if dropout_p != 0.0:
        raise ValueError(
            f"scaled_dot_product_attention: dropout_p must be 0, got {dropout_p}: "
            "random dropout makes the loss no function of the parameters; use model.eval() or a rate of 0"
        )


def _grouped(shape: Size, heads: int | None) -> Size:
    """Split the axis of heads into (key heads, queries of each), so that grouped heads broadcast."""
    if heads is None or len(shape) < 3:
        return shape
    own = min(heads, shape[-3])  # 1 for a mask that all heads share
    return Size((*shape[:-3], own, shape[-3] // own if own else 1, *shape[-2:]))


def _flat_mask(mask: Tensor | None, lead: Size) -> tuple[Tensor | None, Tensor | None]:
    """Return a mask as [M, L or 1, S or 1] and which of the M each head uses (None: M is 1)."""
    if mask is None:
        return None, None
    if mask.dim() < 2:
        mask = mask.expand(1, *mask.shape[-1:]) if mask.dim() else mask.expand(1, 1)
    for axis in range(mask.dim()):  # an expanded axis holds one thing many times
        if mask.stride(axis) == 0 and mask.shape[axis] > 1:
            mask = mask.narrow(axis, 0, 1)
    own = mask.shape[:-2]
    count = math.prod(own)
    flat = mask.reshape(count, *mask.shape[-2:])
    if count == 1:
        return flat, None
    return flat, torch.arange(count, device=mask.device).reshape(own).expand(lead).reshape(-1)


def _repeated(x: Tensor, k: int) -> Tensor:
    """[n, a, b] -> [k * n, a, b]; x itself for k = 1."""
    return x if k == 1 else x.expand(k, *x.shape).flatten(0, 1)


def _at(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _over_rows(probability: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """[n, a, b] and [k * n, a, b] -> [n * a, b] and [k, n * a, b]."""
    flat = probability.flatten(0, 1)
    return flat, scores.view(len(scores) // len(probability), *flat.shape)


def _softmax_tangent_(probability: Tensor, scores: Tensor, output: int) -> None:
    if scores.numel() > 0:
        ops.softmax_tangent_(*_over_rows(probability, scores), output)


def _softmax_adjoint_tangent_(probability: Tensor, centered: Tensor, scores: Tensor, adjoints: Tensor) -> None:
    if scores.numel() > 0:
        flat, tangents = _over_rows(probability, scores)
        ops.softmax_adjoint_tangent_(flat, centered.flatten(0, 1), tangents, adjoints.view(tangents.shape))
