"""Chapter 3: the language model, its tokenizer and chat template."""

import json

import pytest
import torch
from torch.nn import functional as F

from cheers import attention_mask
from conftest import GOLDEN, ROOT, close
from qwen import CHEERS_TOKENS, Attention, Tokenizer, chat, rotary_angles, rotate

TOKENS = json.loads((GOLDEN / "tokens.json").read_text())
QWEN = ROOT / "tests" / "qwen_tokens"


def test_attention_is_the_plain_formula():
    torch.manual_seed(0)
    attention = Attention(32, heads=4, key_value_heads=2, bias=True)
    x = torch.randn(2, 6, 32)
    positions = torch.arange(6).expand(2, 6)
    mask = attention_mask(torch.tensor([[False, True, True, False, False, True]]).expand(2, 6))
    rotary = rotary_angles(positions, 8, 1e6)
    q, k, v = (f(x).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (attention.q_proj, attention.k_proj, attention.v_proj))
    q, k = rotate(q, rotary), rotate(k, rotary)
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    scores = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf)
    plain = attention.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    close(attention(x, rotary, mask), plain, 1e-5)


def test_rotary_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8).unbind()
    score = lambda i, j: (
        rotate(q, rotary_angles(torch.tensor([[i]]), 8, 1e4)) * rotate(k, rotary_angles(torch.tensor([[j]]), 8, 1e4))
    ).sum()
    close(score(7, 3), score(104, 100), 1e-4)


def test_cached_equals_uncached(golden_model):
    qwen = golden_model.qwen
    x = torch.randn(1, 9, 64)
    positions = torch.arange(9)[None]
    causal = attention_mask(torch.zeros(1, 9, dtype=torch.bool))
    with torch.no_grad():
        whole = qwen(x, positions, causal)
        memory = F.pad(qwen.empty_memory(1), (0, 0, 0, 12))  # more room than is needed
        parts = [qwen(x[:, :5], positions[:, :5], causal[:, :, :5, :5], memory[..., :5, :])]
        for i in range(5, 9):
            qwen(torch.randn(1, 1, 64), positions[:, i : i + 1], None, memory[..., : i + 1, :])  # overwritten by the next
            parts.append(qwen(x[:, i : i + 1], positions[:, i : i + 1], None, memory[..., : i + 1, :]))
    close(torch.cat(parts, dim=1), whole, 1e-5)


def test_the_chat_template_and_every_id_match_the_official_tokenizer():
    tokenizer = Tokenizer.from_folder(QWEN)
    for case in TOKENS["chat"]:
        assert chat(case["messages"]) == case["text"]
        assert tokenizer.encode(case["text"]) == case["ids"]
    for case in TOKENS["plain"]:
        assert tokenizer.encode(case["text"]) == case["ids"]


def test_the_five_tokens_follow_qwens_vocabulary():
    tokenizer = Tokenizer.from_folder(QWEN)
    assert [tokenizer.backend.token_to_id(token) for token in CHEERS_TOKENS] == [151665, 151666, 151667, 151668, 151669]
    assert tokenizer.backend.token_to_id("<|endoftext|>") == 151643


def test_a_saved_tokenizer_reads_back(tmp_path):
    tokenizer = Tokenizer.from_folder(QWEN)
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_folder(tmp_path)
    for case in TOKENS["chat"]:
        assert again.encode(case["text"]) == case["ids"]


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer in .* cannot be read"):
        Tokenizer.from_folder(tmp_path)
