"""A decoder layer in few operators for CPUs, where work between products costs as much as the products.

    norm 6 · q k v 1 · rotation 3 · cache 2 · attention 1 · o and residual 1 · norm 6 · gate, up, down 3

The numbers count operators. Products are fused with what follows them, rotated keys are written directly into the cache,
and intermediate results go into buffers that all layers of one pass shape share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .products import PrepackedProduct, Product
from .weights import LayerWeights, LinearWeights, NormWeights, Rotation


class Angles(NamedTuple):
    """Cosines and sines of a pass's nodes, in the form that lean layers take."""

    cos: Tensor
    """`[B, N, 1, R]`."""
    sin: Tensor
    """`[B, N, 1, R / 2]`."""
    minus_sin: Tensor
    """`-sin`."""

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, rotation: Rotation) -> Angles:
        """Create angles from cosines and sines `[B, N, R]` whose halves are equal."""
        sin = sin[..., None, : sin.shape[-1] // 2].contiguous()
        cos = cos[..., None, :]
        if rotation == "interleaved":
            cos = cos[..., : cos.shape[-1] // 2].repeat_interleave(2, -1)
        return cls(cos.contiguous(), sin, -sin)


class View:
    """A view of a contiguous tensor, defined on one tensor and applied to others of that shape in one operator."""

    def __init__(self, part: Tensor) -> None:
        """Record shape, strides and offset of a view."""
        self.layout = part.shape, part.stride(), part.storage_offset()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the same view of another tensor."""
        return x.as_strided(*self.layout)


class Views:
    """The views of `[T, (H + 2 G) D]` that a layer's operators take."""

    def __init__(self, qkv: Tensor, buffers: Buffers) -> None:
        """Create views from any tensor `[B, N, H + 2 G, D]` and the buffers of its first H + G heads."""
        heads, rotary = buffers.qk.shape[2], buffers.turned.shape[-1]
        qk, turned = qkv[:, :, :heads], qkv[:, :, :heads, :rotary]
        first, second = halves(turned, buffers.rotation)
        self.of_qk, self.of_v = View(qk), View(qkv[:, :, heads:])
        self.of_turned, self.of_kept = View(turned), View(qk[..., rotary:])
        self.of_first, self.of_second = View(first), View(second)


class Buffers:
    """A layer's temporary buffers, with the views that its operators take."""

    def __init__(self, layer: LayerWeights, like: Tensor, rotary: int) -> None:
        """Allocate buffers for hidden states like `[B, N, E]`; `rotary` (R) dimensions of a head are rotated."""
        batch, nodes, width = like.shape
        heads, kv_heads, size = layer.heads, layer.kv_heads, layer.head_dim
        self.nodes, self.rotation = nodes, layer.rotation
        self.normed = like.new_empty(batch * nodes, width)
        self.wide = None if like.dtype == torch.float32 else self.normed.float()
        qk = like.new_empty(batch, nodes, heads + kv_heads, size)
        self.qk, self.q, self.k = qk, qk[:, :, :heads], qk[:, :, heads:]
        self.turned, self.kept = qk[..., :rotary], qk[..., rotary:] if rotary < size else None
        self.first, self.second = halves(self.turned, layer.rotation)
        self.views = Views(like.new_empty(batch, nodes, heads + 2 * kv_heads, size), self)
        # Query heads of a group are rows of one product: `[B, G, N H / G, D]`.
        grouped = self.q.unflatten(2, (kv_heads, -1))
        if nodes == 1:
            self.rows, self.ungrouped = grouped[:, 0], None
        else:
            rows = like.new_empty(batch, kv_heads, nodes, heads // kv_heads, size)
            self.rows, self.ungrouped = rows.flatten(2, 3), (rows.transpose(1, 2), grouped)


def halves(x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
    """Split `[..., R]` into the two parts that are rotated together."""
    if rotation == "interleaved":
        return x[..., ::2], x[..., 1::2]
    half = x.shape[-1] // 2
    first, second = x.split((half, half), -1)
    return first, second


class LayerPass(Protocol):
    """The pass interface that a layer needs: its KV cache and attention."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values `[B, N, G, D]` of a layer after its cached ones, and return all of them."""
        ...

    def attend_rows(
        self,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Attend with queries `[B, G, N H / G, D]` over the result of `append`; returns the queries' shape."""
        ...


class CpuNorm:
    """An RMSNorm in few operators, with float32 statistics as in transformers."""

    def __init__(self, weights: NormWeights) -> None:
        """Create a norm from a weight `[E]`, or `[H, D]` with one weight per head."""
        weight = weights.weight.detach()
        self.weight = 1 + weight.float() if weights.offset else weight
        self.offset, self.share = weights.offset, 1 / weight.shape[-1]
        self.eps, self.size = torch.tensor(weights.eps), torch.tensor(float(weight.shape[-1]))

    def __call__(self, x: Tensor, out: Tensor, wide: Tensor | None = None) -> Tensor:
        """Normalise the last dimension of `x` into `out`, which may be `x`; `wide` is a float32 buffer like `x`."""
        if x.dtype == torch.float32:
            squares = torch.mul(x, x, out=None if out is x else out)
            factor = self._factor(squares)
            return torch.mul(x, factor, out=out).mul_(self.weight)
        wide = x.float() if wide is None else wide.copy_(x)
        if x.dtype.itemsize == 2:
            # One operator less; its additional rounding does not show in 16 bits.
            root = torch.linalg.vector_norm(wide, 2, -1, True)
            factor = torch.addcmul(self.eps, root, root, value=self.share).rsqrt_()
        else:
            factor = self._factor(wide.square())
        wide.mul_(factor)
        if self.offset:
            return out.copy_(wide.mul_(self.weight))
        return out.copy_(wide).mul_(self.weight)

    def _factor(self, squares: Tensor) -> Tensor:
        return torch.addcdiv(self.eps, squares.sum(-1, True), self.size).rsqrt_()


class CpuDecoderLayer:
    """One decoder layer; it shares the model's weights, except for prepacked products."""

    def __init__(
        self, layer: LayerWeights, new_product: Callable[[LinearWeights], Product]
    ) -> None:
        """Create a layer.

        Args:
            layer: floating-point weights on the CPU.
            new_product: creates each matrix product from its weights.
        """
        self.layer = layer
        self.qkv, self.output = new_product(layer.qkv), new_product(layer.output)
        self.gate, self.up = new_product(layer.gate), new_product(layer.up)
        self.down = new_product(layer.down)
        self.input_norm, self.attention_norm, self.mlp_norm, self.output_norm = (
            None if x is None else CpuNorm(x)
            for x in (layer.input_norm, layer.attention_norm, layer.mlp_norm, layer.output_norm)
        )
        self.q_norm, self.k_norm, self.qk_norm = self._head_norms()
        self.norms_heads = layer.q_norm is not None or layer.k_norm is not None

    @property
    def prepacked(self) -> int:
        """Number of products with prepacked copies of their weights."""
        products = (self.qkv, self.output, self.gate, self.up, self.down)
        return sum(isinstance(product, PrepackedProduct) for product in products)

    def _head_norms(self) -> tuple[CpuNorm | None, CpuNorm | None, CpuNorm | None]:
        """Create the norms of queries and keys; per-head norms are combined into one."""
        layer = self.layer
        q, k = layer.q_norm, layer.k_norm
        if q is None or k is None:
            return q and CpuNorm(q), k and CpuNorm(k), None
        of_heads = len(q.weight) == len(k.weight) == layer.head_dim
        if not of_heads or (q.eps, q.offset) != (k.eps, k.offset):
            return CpuNorm(q), CpuNorm(k), None
        both = [q.weight.expand(layer.heads, -1), k.weight.expand(layer.kv_heads, -1)]
        return None, None, CpuNorm(q._replace(weight=torch.cat(both)))

    def __call__(
        self, hidden: Tensor, at: int, angles: Angles | None, buffers: Buffers, now: LayerPass
    ) -> Tensor:
        """Run the layer.

        Args:
            hidden: `[T, E]`, contiguous, row by row; T = B N.
            at: index of the layer in the model.
            angles: of the pass; None for a layer without rotary embedding.
            buffers: buffers for passes of this shape.
            now: the pass.

        Returns:
            A new tensor `[T, E]`.
        """
        layer = self.layer
        read = (
            hidden
            if self.input_norm is None
            else self.input_norm(hidden, buffers.normed, buffers.wide)
        )
        qkv = self.qkv(read)
        if self.norms_heads:
            self._normalise_heads(buffers.views.of_qk(qkv))
        self._rotate(qkv, angles, buffers)
        v = buffers.views.of_v(qkv)
        keys, values = now.append(at, buffers.k, v)
        if buffers.ungrouped is not None:
            rows, q = buffers.ungrouped
            rows.copy_(q)
        attended = now.attend_rows(
            buffers.rows,
            keys,
            values,
            scale=layer.scale,
            softcap=layer.softcap,
            window=layer.window,
        )
        if buffers.ungrouped is not None:
            attended = attended.unflatten(2, (buffers.nodes, -1)).transpose(1, 2)
        attended = attended.reshape(len(hidden), -1)
        hidden = self._add(hidden, attended, self.output, self.attention_norm)
        read = (
            hidden if self.mlp_norm is None else self.mlp_norm(hidden, buffers.normed, buffers.wide)
        )
        gated = self.up.times(read, self.gate.activated(read, layer.activation))
        return self._add(hidden, gated, self.down, self.output_norm)

    def _normalise_heads(self, qk: Tensor) -> None:
        """Normalise queries and keys `[B, N, H + G, D]` in place."""
        if self.qk_norm is not None:
            self.qk_norm(qk, qk)
            return
        heads = self.layer.heads
        for norm, x in ((self.q_norm, qk[:, :, :heads]), (self.k_norm, qk[:, :, heads:])):
            if norm is not None:
                whole = x if norm.weight.shape[-1] == x.shape[-1] else x.flatten(2)
                x.copy_(norm(whole, torch.empty_like(whole)).view(x.shape))

    def _rotate(self, qkv: Tensor, angles: Angles | None, buffers: Buffers) -> None:
        """Write rotated queries and keys into the buffer."""
        views = buffers.views
        if angles is None:
            buffers.qk.copy_(views.of_qk(qkv))
            return
        if buffers.kept is not None:
            buffers.kept.copy_(views.of_kept(qkv))
        torch.mul(views.of_turned(qkv), angles.cos, out=buffers.turned)
        buffers.first.addcmul_(views.of_second(qkv), angles.minus_sin)
        buffers.second.addcmul_(views.of_first(qkv), angles.sin)

    def _add(self, hidden: Tensor, x: Tensor, product: Product, norm: CpuNorm | None) -> Tensor:
        """Add a product to the residual stream, after the layer's norm and scale."""
        scale = self.layer.residual_scale
        if norm is None and scale is None:
            return product.plus(x, hidden)
        added = product(x)
        if norm is not None:
            added = norm(added, added)
        return torch.add(hidden, added, alpha=1 if scale is None else scale)


def attend_rows(
    rows: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, softcap: float | None
) -> Tensor:
    """Attend with queries `[B, G, R, D]` over keys and values `[B, G, S, D]`, with an optional bias `[B, 1, R, S]`."""
    if softcap is None:
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale)
    scores = softcap * torch.tanh(rows @ k.mT * scale / softcap)
    if mask is not None:
        scores = scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(v.dtype) @ v
