"""Qwen2.5: a pre-norm transformer with rotary positions, grouped-query attention and SwiGLU; tokenizer, chat template.

Cheers (arXiv 2603.12793, section 2.1) starts from Qwen2.5-1.5B-Instruct and runs text and visual tokens through it
together: this file takes embeddings and a mask and knows nothing of pictures. Compare with `Qwen2Model` of Hugging
Face; parameter names are the same.

Shape letters: B batch, L new tokens, K keys (cached and new), C width, N heads, M key/value heads, D = C/N.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class QwenConfig:
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    vocab_size: int = 151936
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 32768


# ---- the transformer -------------------------------------------------------------------------------------------

class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # x / sqrt(mean(x²) + eps) * weight, in float32 whatever x is
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rotary_angles(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """positions (B, L) -> cosines and sines (B, 1, L, D), float32. Feature pairs are (i, i + D/2): "half-split"."""
    frequencies = base ** -(torch.arange(0, head_width, 2, device=positions.device).float() / head_width)  # (D/2,)
    angles = (positions[:, None, :, None].float() * frequencies).repeat(1, 1, 1, 2)  # (B, 1, L, D/2) -> (B, 1, L, D)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each feature pair of x (B, heads, L, D) by its position's angle: q·k depends on the distance only."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention: N query heads share M key/value heads. Without biases also in cfm_head.py."""

    def __init__(self, width: int, heads: int, key_value_heads: int, bias: bool):
        super().__init__()
        self.head_width = width // heads
        self.q_proj = nn.Linear(width, heads * self.head_width, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(width, key_value_heads * self.head_width, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(heads * self.head_width, width, bias=False)

    def forward(self, x, rotary, mask=None, memory=None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.head_width)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))                        # (B, N or M, L, D)
        q, k = rotate(q, rotary), rotate(k, rotary)
        if memory is not None:  # (2, B, M, K, D), the last L places are for the new keys and values
            memory[:, :, :, -k.shape[2] :] = torch.stack([k, v])
            k, v = memory                                                             # (B, M, K, D)
        if q.is_cuda and mask is not None:  # the fast kernels there take a mask or grouped heads, not both
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        # softmax(q kᵀ / √D + log mask) v, every group of N/M query heads with its own key/value head
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)  # (B, N, L, D)
        return self.o_proj(x.transpose(1, 2).flatten(2))                              # (B, L, C)


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: QwenConfig):
        super().__init__()
        width = config.hidden_size
        self.input_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.self_attn = Attention(width, config.num_attention_heads, config.num_key_value_heads, bias=True)
        self.post_attention_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.mlp = SwiGLU(width, config.intermediate_size)

    def forward(self, x, rotary, mask, memory) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, memory)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen(nn.Module):
    def __init__(self, config: QwenConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """Embeddings x (B, L, C) at positions (B, L) -> hidden states (B, L, C).

        mask: bool (B, 1, L, K), True where a query may look; None lets every query see every key.
        memory: (layers, 2, B, M, K, D), rotated keys and values of K - L earlier tokens; those of x are written into its
        last L places. Pass a view of a larger tensor to go on behind it, or the same places again to forget x."""
        head_width = self.config.hidden_size // self.config.num_attention_heads
        rotary = rotary_angles(positions, head_width, self.config.rope_theta)
        for i, layer in enumerate(self.layers):
            x = layer(x, rotary, mask, None if memory is None else memory[i])      # (B, L, C)
        return self.norm(x)

    def empty_memory(self, rows: int) -> Tensor:
        """(layers, 2, B, M, 0, D)."""
        c, width = self.config, self.config.hidden_size // self.config.num_attention_heads
        return self.norm.weight.new_empty(c.num_hidden_layers, 2, rows, c.num_key_value_heads, 0, width)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) -> (…, vocabulary): the language model head is the embedding table itself (tied)."""
        return F.linear(hidden, self.embed_tokens.weight)

    def initialise(self) -> None:
        """Every Linear keeps the variance of its normalised input: normal(1/√C). GPT-2's 0.02 is about the same at its
        widths, but at the tiny model's it drowns the prompt in the optimizer's noise. Only to train from nothing."""
        nn.init.normal_(self.embed_tokens.weight, std=0.2)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


# ---- the tokenizer ---------------------------------------------------------------------------------------------

# Cheers adds these to Qwen's vocabulary, in this order. `<im_start>` opens a picture, `<|im_start|>` a chat turn.
CHEERS_TOKENS = ("<image>", "<image_gen>", "<im_start>", "<im_end>", "<no_mean>")
SYSTEM = "You are a helpful assistant."
# contractions | words with one leading sign | single digits | punctuation | line breaks | spaces
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def qwen_bpe(model: models.BPE) -> tokenizers.Tokenizer:
    """Qwen's pipeline around a byte-level BPE model: NFC, the splitting pattern, bytes."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"), to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


class Tokenizer:
    """Text <-> ids (lists of int). `backend` is a `tokenizers.Tokenizer`; Cheers' tokens are added if it lacks them."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        backend.add_special_tokens([AddedToken(token, special=True) for token in CHEERS_TOKENS])

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer | None":
        """Reads tokenizer.json, or vocab.json + merges.txt with tokenizer_config.json's added tokens; else None.
        Raises ValueError when the files are damaged."""
        folder = Path(folder)
        try:
            if (folder / "tokenizer.json").exists():
                return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
            if not (folder / "vocab.json").exists():
                return None
            config = folder / "tokenizer_config.json"
            added = json.loads(config.read_text())["added_tokens_decoder"] if config.exists() else {}
            vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            # With the added tokens inside the vocabulary they keep their ids, whatever its size.
            vocabulary |= {token["content"]: int(i) for i, token in added.items()}
            after = max(vocabulary.values()) + 1
            vocabulary |= {token: after + i for i, token in enumerate(t for t in CHEERS_TOKENS if t not in vocabulary)}
            backend = qwen_bpe(models.BPE(vocabulary, merges))
            for token in added.values():
                entry = AddedToken(token["content"], special=token["special"], normalized=False)
                (backend.add_special_tokens if token["special"] else backend.add_tokens)([entry])
            return cls(backend)
        except Exception as error:  # tokenizers raises plain Exception for damaged files
            raise ValueError(f"the tokenizer in {folder} cannot be read ({error}); fetch its files again") from error

    def encode(self, text: str) -> list[int]:
        if re.search("[\ud800-\udfff]", text):  # what Python makes of bytes that are no text
            raise ValueError("the prompt is not valid UTF-8")
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Special tokens are left out."""
        return self.backend.decode(ids, skip_special_tokens=True)


def chat(messages: list[dict[str, str]]) -> str:
    """Messages [{"role": "system"|"user"|"assistant", "content": str}, …] -> the prompt that the assistant answers."""
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"
