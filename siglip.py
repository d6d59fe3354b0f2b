"""SigLIP2's vision transformer: pixels -> one semantic feature per patch, and the patch embeddings themselves.

In Cheers (arXiv 2603.12793, section 2.1) it reads D(z_t), pixels decoded from a noisy latent. Its last hidden state
becomes the visual tokens; S(.), the patch plus position embeddings before the transformer, is the high-frequency
detail that the flow matching head injects. Compare with `SiglipVisionTransformer` of Hugging Face; parameter names
are the same. The pooling head is left out: Cheers never uses it.

Shape letters: B batch, (H, W) pixels, p patch side, n = H/p * W/p patches in raster order, C width.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class SigLIPConfig:
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 512
    patch_size: int = 16
    layer_norm_eps: float = 1e-6


class Embeddings(nn.Module):
    """S(.): a p x p convolution with stride p, plus a learned embedding of each position."""

    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(self.side**2, config.hidden_size)

    def positions(self, height: int, width: int) -> Tensor:
        """(1, C, height, width). Another grid than the trained one sees the table as a picture, resized bicubically."""
        table = self.position_embedding.weight.unflatten(0, (self.side, self.side)).permute(2, 0, 1)[None]
        if (height, width) == (self.side, self.side):
            return table
        return F.interpolate(table.float(), (height, width), mode="bicubic", align_corners=False).to(table.dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels)                 # (B, C, H/p, W/p)
        patches = patches + self.positions(*patches.shape[2:])
        return patches.flatten(2).transpose(1, 2)              # (B, n, C)


class Attention(nn.Module):
    def __init__(self, config: SigLIPConfig):
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v)) # (B, heads, n, C/heads)
        x = F.scaled_dot_product_attention(q, k, v)            # softmax(q k^T / sqrt(C/heads)) v
        return self.out_proj(x.transpose(1, 2).flatten(2))     # (B, n, C)


class Layer(nn.Module):
    def __init__(self, config: SigLIPConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        parts = OrderedDict(fc1=nn.Linear(width, inner), gelu=nn.GELU(approximate="tanh"), fc2=nn.Linear(inner, width))
        self.mlp = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SigLIP(nn.Module):
    def __init__(self, config: SigLIPConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential(*(Layer(config) for _ in range(config.num_hidden_layers)))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W), sides multiples of p -> semantic features (B, n, C), patch embeddings S (B, n, C)."""
        embeddings = self.embeddings(pixels)                   # (B, n, C)
        return self.post_layernorm(self.encoder.layers(embeddings)), embeddings

    def initialise(self) -> None:
        """Small normal weights as in ViT; needed only for training from nothing, official runs start from SigLIP2."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=0.02)
