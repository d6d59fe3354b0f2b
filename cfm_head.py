"""The cascaded flow matching head: hidden states of the language model -> velocity of the latents.

Cheers (arXiv 2603.12793), section 2.1, "Cascaded Flow Matching Head". Stage 1 paints semantics at the resolution of
the visual tokens; PixelShuffle doubles the resolution; a gate injects high-frequency detail; stage 2 paints the
velocity of each latent position. Blocks are AdaLN-Zero as in DiT's `models.py`, with Qwen's attention and SwiGLU.

Shape letters: B batch, n latent positions (n/4 visual tokens), C width of the language model, V width of the vision
transformer, z' latent channels. Tokens are in raster order.
"""

import math

import torch
from torch import Tensor, nn

from qwen import Attention, QwenConfig, RMSNorm, SwiGLU, rotary_angles
from siglip import SigLIPConfig

ROPE_BASE = 10_000.0
TIME_FEATURES = 256


def pixel_shuffle(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, n/4, 4V) -> (B, n, V): token (i, j) becomes the 2x2 block at (2i, 2j).

    Channels last: a token's features are (2 rows, 2 columns, V), which is not the order of `torch.pixel_shuffle`."""
    x = x.unflatten(2, (2, 2, -1)).unflatten(1, grid)             # (B, rows, columns, 2, 2, V)
    return x.transpose(2, 3).flatten(1, 4)                        # (B, rows, 2, columns, 2, V) -> (B, n, V)


def pixel_unshuffle(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, n, V) -> (B, n/4, 4V), the inverse of `pixel_shuffle`; grid counts the tokens that come out."""
    x = x.unflatten(1, (grid[0], 2, grid[1], 2))                  # (B, rows, 2, columns, 2, V)
    return x.transpose(2, 3).flatten(3).flatten(1, 2)             # (B, n/4, 4V)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


def time_features(t: Tensor) -> Tensor:
    """t (B,) in [0, 1], not multiplied by 1000 -> (B, 256): cosines, then sines, of t·exp(-ln(10000)·k/128)."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device).float() / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (x.float() * (1 + scale) + shift).to(x.dtype)


class Block(nn.Module):
    """AdaLN-Zero: the time decides how much each half of the block is shifted, scaled and let through."""

    def __init__(self, width: int, heads: int, key_value_heads: int):
        super().__init__()
        self.norm_attention = RMSNorm(width)
        self.attention = Attention(width, heads, key_value_heads, bias=False)
        self.norm_mlp = RMSNorm(width)
        self.mlp = SwiGLU(width, 4 * width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, time: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        chunks = self.modulation(time).float()[:, None].chunk(6, dim=-1)           # 6 × (B, 1, C)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = chunks
        h = self.attention(modulate(self.norm_attention(x), shift_attention, scale_attention), rotary)
        x = (x.float() + gate_attention * h).to(x.dtype)                           # (B, n, C)
        h = self.mlp(modulate(self.norm_mlp(x), shift_mlp, scale_mlp))
        return (x.float() + gate_mlp * h).to(x.dtype)                              # (B, n, C)


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm = RMSNorm(width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.modulation(time).float()[:, None].chunk(2, dim=-1)     # (B, 1, C) each
        return self.linear(modulate(self.norm(x), shift, scale))


class Stage(nn.Module):
    """DiT blocks over all positions of one resolution (full attention, 1-D rotary positions), and a final layer."""

    def __init__(self, width: int, heads: int, key_value_heads: int, depth: int, outputs: int):
        super().__init__()
        self.head_width = width // heads
        self.blocks = nn.ModuleList(Block(width, heads, key_value_heads) for _ in range(depth))
        self.final = FinalLayer(width, outputs)

    def forward(self, x: Tensor, time: Tensor, positions: Tensor) -> Tensor:
        rotary = rotary_angles(positions[None], self.head_width, ROPE_BASE)
        for block in self.blocks:
            x = block(x, time, rotary)
        return self.final(x, time)


class Gate(nn.Module):
    """Z' ← LayerNorm(Z' + G(Z') ⊙ S(D(z_t))): how much detail each position takes. G has no sigmoid."""

    def __init__(self, width: int):
        super().__init__()
        self.gate = mlp(width, width, 1)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, low: Tensor, details: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.gate(low)                                                      # (B, n, 1)
        return self.layer_norm(low + gate * details), gate                         # (B, n, V), (B, n, 1)


class CascadedHead(nn.Module):
    """Widths and heads are those of the language model (stage 1) and of SigLIP2 (stage 2); the number of key/value
    heads is the language model's in both."""

    def __init__(self, qwen: QwenConfig, siglip: SigLIPConfig, latent_channels: int, depths: tuple[int, int]):
        super().__init__()
        wide, narrow, key_value_heads = qwen.hidden_size, siglip.hidden_size, qwen.num_key_value_heads
        self.time_1 = mlp(TIME_FEATURES, wide, wide)
        self.time_2 = mlp(TIME_FEATURES, narrow, narrow)
        self.stage_1 = Stage(wide, qwen.num_attention_heads, key_value_heads, depths[0], 4 * narrow)
        self.gate = Gate(narrow)
        self.stage_2 = Stage(narrow, siglip.num_attention_heads, key_value_heads, depths[1], latent_channels)

    def forward(self, hidden: Tensor, t: Tensor, details: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """hidden (B, n/4, C) at the visual tokens, t (B,), details S(D(z_t)) (B, n, V), grid (rows, columns) of tokens
        -> velocity V_t (B, z', 2·rows, 2·columns) and the gate's map (B, n, 1)."""
        features = time_features(t).to(hidden.dtype)                               # (B, 256)
        tokens, patches = (torch.arange(count, device=hidden.device) for count in (hidden.shape[1], details.shape[1]))
        semantics = self.stage_1(hidden, self.time_1(features), tokens)            # (B, n/4, 4V)
        low = pixel_shuffle(semantics, grid)                                       # (B, n, V)   Z'_s
        injected, gate = self.gate(low, details)                                   # (B, n, V)   Z'_s ← G(Z'_s)⊙S + Z'_s
        # A quirk of the release that its weights need: patch k and patch k + n/2 share a rotary position.
        positions = patches % (details.shape[1] // 2)
        velocity = self.stage_2(injected, self.time_2(features), positions)        # (B, n, z')
        return velocity.transpose(1, 2).unflatten(2, (2 * grid[0], 2 * grid[1])), gate

    def initialise(self) -> None:
        """Xavier for all Linears but these: modulations of the blocks at zero make every block the identity at first
        (AdaLN-Zero), and the gate's last Linear at zero lets training begin without detail."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in (*self.stage_1.blocks, *self.stage_2.blocks):
            nn.init.zeros_(block.modulation[-1].weight)
        nn.init.zeros_(self.gate.gate[-1].weight)
