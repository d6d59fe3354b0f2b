"""The FLUX.2 autoencoder: pixels in [0, 1]  <->  normalised latents.

    encode:  pixels -> encoder -> mean of the moments -> 2x2 patchify   -> normalise
    decode:  pixels <- decoder <-                        2x2 unpatchify <- denormalise

Cheers (arXiv 2603.12793, section 2.1) has the decoder twice: here, frozen, and as D, the first part of the vision
tokenizer. Compare with `autoencoder.py` of black-forest-labs/flux2. Parameters keep the names of FLUX.2's
`ae.safetensors`. FLUX.2 itself uses pixels in [-1, 1]; the Cheers weights were trained with [0, 1].

Shape letters: B batch, C channels, z latent channels before patchify, (H, W) pixels, f = 2^levels downsampling with
the patch, (h, w) = (H/f, W/f). Officially z = 32, f = 16, so latents are (B, 128, H/16, W/16).
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 2  # a latent position holds a 2x2 patch of the encoder's output
conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1)


@dataclass
class VAEConfig:
    resolution: int = 512
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 32
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per latent position: every level but the last halves the picture, and the patch halves it again."""
        return 2 ** (len(self.ch_mult) - 1) * PATCH

    @property
    def latent_channels(self) -> int:
        return self.z_channels * PATCH * PATCH


def named(**parts: nn.Module) -> nn.Sequential:
    """The parts one after the other, under the names that they have in FLUX.2's `ae.safetensors`."""
    return nn.Sequential(OrderedDict(parts))


def group_norm(channels: int, config: VAEConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: VAEConfig):
        super().__init__()
        self.norm1 = group_norm(inputs, config)
        self.conv1 = conv3x3(inputs, outputs)
        self.norm2 = group_norm(outputs, config)
        self.conv2 = conv3x3(outputs, outputs)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head attention over all positions; q, k, v and the output are 1x1 convolutions."""

    def __init__(self, channels: int, config: VAEConfig):
        super().__init__()
        self.norm = group_norm(channels, config)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, kernel_size=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)                                                           # (B, C, h, w)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))  # (B, 1, hw, C)
        q, k, v = (part.contiguous() for part in (q, k, v))  # the fast kernels refuse another order
        h = F.scaled_dot_product_attention(q, k, v)                                # (B, 1, hw, C)
        h = h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])                      # (B, C, h, w)
        return x + self.proj_out(h)


def middle(channels: int, config: VAEConfig) -> nn.Sequential:
    first, attention = ResnetBlock(channels, channels, config), AttnBlock(channels, config)
    return named(block_1=first, attn_1=attention, block_2=ResnetBlock(channels, channels, config))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        channels = config.ch
        self.conv_in = conv3x3(3, channels)
        self.down = nn.Sequential()
        for i, width in enumerate(widths):
            level = named(block=nn.Sequential())
            for _ in range(config.num_res_blocks):
                level.block.append(ResnetBlock(channels, width, config))
                channels = width
            if i < len(widths) - 1:
                pad = nn.ZeroPad2d((0, 1, 0, 1))  # right and bottom only, unlike padding=1
                level.downsample = named(pad=pad, conv=nn.Conv2d(channels, channels, kernel_size=3, stride=2))
            self.down.append(level)
        self.mid = middle(channels, config)
        self.norm_out = group_norm(channels, config)
        self.conv_out = conv3x3(channels, 2 * config.z_channels)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, kernel_size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        h = self.mid(self.down(self.conv_in(pixels)))
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(h))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        channels = widths[-1]
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, kernel_size=1)
        self.conv_in = conv3x3(config.z_channels, channels)
        self.mid = middle(channels, config)
        self.up = nn.ModuleList()  # up[i] works at the resolution of the encoder's down[i]
        for width in reversed(widths):
            self.up.insert(0, level := named(block=nn.Sequential()))
            for _ in range(config.num_res_blocks + 1):
                level.block.append(ResnetBlock(channels, width, config))
                channels = width
            if len(self.up) < len(widths):
                level.upsample = named(up=nn.Upsample(scale_factor=2, mode="nearest"), conv=conv3x3(channels, channels))
        self.norm_out = group_norm(channels, config)
        self.conv_out = conv3x3(channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class LatentStatistics(nn.Module):
    """Mean and variance of each latent channel, stored as a BatchNorm without affine. Buffers, never updated by use."""

    eps = 1e-4

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def normalise(self, z: Tensor) -> Tensor:
        return (z - self.running_mean[:, None, None]) / torch.sqrt(self.running_var[:, None, None] + self.eps)

    def denormalise(self, z: Tensor) -> Tensor:
        return z * torch.sqrt(self.running_var[:, None, None] + self.eps) + self.running_mean[:, None, None]


class LatentDecoder(nn.Module):
    """Latents -> pixels. On its own this is D, the trainable copy inside the vision tokenizer."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.bn = LatentStatistics(config.latent_channels)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, 4z, h, w), normalised -> pixels (B, 3, H, W), about [0, 1] and not clamped."""
        z = self.bn.denormalise(latents)                       # (B, 4z, h, w)
        z = F.pixel_shuffle(z, PATCH)                          # (B, z, 2h, 2w)
        return self.decoder(z)                                 # (B, 3, H, W)


class VAE(LatentDecoder):
    """The whole autoencoder. Sides are multiples of 2f, because the vision tokenizer merges 2x2 latent positions."""

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        self.encoder = Encoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [0, 1] -> latents (B, 4z, h, w), normalised. Deterministic: the mean, no sampling.
        Raises ValueError when a side is not a multiple of 2f."""
        height, width = pixels.shape[-2:]
        multiple = 2 * self.config.factor
        if height % multiple or width % multiple or not height or not width:
            raise ValueError(f"a picture of {width}x{height} does not fit: both sides must be multiples of {multiple}")
        mean, _log_variance = self.encoder(pixels).chunk(2, dim=1)  # (B, z, 2h, 2w)
        z = F.pixel_unshuffle(mean, PATCH)                     # (B, 4z, h, w)
        return self.bn.normalise(z)                            # (B, 4z, h, w)
