"""Swin Transformer backbones with the parameter names of the original release, for images of any size.

timm's Swin shifts the windows before it pads the map to whole windows, the original after: on maps that are
no multiple of the window their outputs differ. Detection checkpoints were trained with the original's order.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class SwinSize:
    """``width``: channels of the first stage, doubled by each next one. ``depths``, ``heads``: of each stage.
    ``window``: tokens per side. ``drop_path``: share of residuals dropped in the last block."""

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int
    drop_path: float


SWIN_SIZES = {
    "T": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
    "S": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.2),
    "B": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3),
    "B-22k": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3),
    "B-22k-384": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.3),
    "L-22k": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 7, 0.3),
    "L-22k-384": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, 0.3),
}


class WindowAttention(nn.Module):
    """Self-attention within windows of ``window`` x ``window`` tokens, with a learned bias per relative
    position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        span = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(span * span, heads))
        position = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        relative = position[:, None] - position[None] + window - 1
        self.register_buffer("relative_position_index", relative[..., 0] * span + relative[..., 1])
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, tokens: Tensor, region: Tensor | None) -> Tensor:
        """Tokens (B, H, W, C), H and W multiples of the window, to the same shape.

        Tokens see those of their window with the same number in ``region`` (H, W); None: all of the window.
        """
        batch, height, width, channels = tokens.shape
        windows = self._split(tokens)  # (B, windows, tokens, C)
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, channels // self.heads))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if region is not None:
            number = self._split(region[None, :, :, None])[0, :, :, 0]
            apart = number[:, None, :] != number[:, :, None]
            bias = bias + apart[:, None] * -100.0  # (windows, heads, tokens, tokens)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        merged = self.proj(attended.transpose(2, 3).flatten(3))
        size = self.window
        tiles = merged.unflatten(2, (size, size)).unflatten(1, (height // size, width // size))
        return tiles.transpose(2, 3).reshape(batch, height, width, channels)

    def _split(self, tokens: Tensor) -> Tensor:
        size = self.window
        tiles = tokens.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # (B, rows, size, columns, size, C)
        return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class SwinBlock(nn.Module):
    """Attention and MLP, both residual; ``shift`` moves the windows by so many tokens."""

    def __init__(self, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        tokens = tokens + self.drop_path(self._attend(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))

    def _attend(self, tokens: Tensor) -> Tensor:
        height, width = tokens.shape[1:3]
        padded = F.pad(tokens, (0, 0, 0, -width % self.window, 0, -height % self.window))
        if self.shift:
            padded = padded.roll((-self.shift, -self.shift), dims=(1, 2))
            attended = self.attn(padded, self._regions(*padded.shape[1:3], tokens.device))
            attended = attended.roll((self.shift, self.shift), dims=(1, 2))
        else:
            attended = self.attn(padded, None)
        return attended[:, :height, :width]

    def _regions(self, height: int, width: int, device: torch.device) -> Tensor:
        """Number of the region (H, W) of each token of the shifted map: tokens of one window that were neighbours
        before the shift have the same."""
        below, beside = (
            (torch.arange(extent, device=device) >= extent - self.shift).long() for extent in (height, width)
        )
        return below[:, None] * 2 + beside


class PatchMerging(nn.Module):
    """Halves the map: 2 x 2 tokens become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C), H and W even, to (B, H / 2, W / 2, 2 C)."""
        columns = torch.cat([tokens[:, 0::2], tokens[:, 1::2]], dim=-1)
        return self.reduction(self.norm(torch.cat([columns[:, :, 0::2], columns[:, :, 1::2]], dim=-1)))


class SwinStage(nn.Module):
    """Blocks, every second one with shifted windows, and the merging that leads to the next stage."""

    def __init__(
        self, width: int, heads: int, window: int, drop_paths: list[float], merge: bool, recompute: bool
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, window // 2 if index % 2 else 0, drop_path)
            for index, drop_path in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(width) if merge else None

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            if self.recompute and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens


class PatchEmbedding(nn.Module):
    """One token for 4 x 4 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H / 4, W / 4, width)."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class SwinTransformer(nn.Module):
    """Swin Transformer (Liu et al., 2021) with the features ``swin1`` (stride 8), ``swin2`` (16), ``swin3``
    (32).

    Args:
        size: one of :data:`SWIN_SIZES`.
        recompute: compute the blocks' activations again in the backward pass instead of keeping them.

    ``channels`` says how many each feature has.
    """

    def __init__(self, size: SwinSize, recompute: bool = False) -> None:
        super().__init__()
        widths = [size.width * 2**stage for stage in range(4)]
        num_blocks = sum(size.depths)
        drop_paths = [size.drop_path * block / (num_blocks - 1) for block in range(num_blocks)]
        ends = list(accumulate(size.depths))
        self.patch_embed = PatchEmbedding(size.width)
        self.layers = nn.ModuleList(
            SwinStage(
                widths[stage],
                size.heads[stage],
                size.window,
                drop_paths[ends[stage] - size.depths[stage] : ends[stage]],
                merge=stage < 3,
                recompute=recompute,
            )
            for stage in range(4)
        )
        self.channels = {f"swin{stage}": widths[stage] for stage in (1, 2, 3)}
        for stage in (1, 2, 3):
            self.add_module(f"norm{stage}", nn.LayerNorm(widths[stage]))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), H and W multiples of 32, to (B, C_l, H / stride, W / stride) by name."""
        tokens = self.patch_embed(images)
        features = {}
        for stage, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if stage > 0:
                normalized = self.get_submodule(f"norm{stage}")(tokens)
                features[f"swin{stage}"] = normalized.permute(0, 3, 1, 2).contiguous()
            if layer.downsample is not None:
                tokens = layer.downsample(tokens)
        return features
