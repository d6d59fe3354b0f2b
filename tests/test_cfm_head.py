"""Chapter 4: hidden states -> velocity."""

import torch
from torch.nn import functional as F

from cfm_head import CascadedHead, modulate, pixel_shuffle, pixel_unshuffle, time_features
from conftest import close
from qwen import QwenConfig
from siglip import SigLIPConfig


def test_every_step_of_the_head_matches_the_release(golden, golden_model):
    g, head = golden.tensors, golden_model.head
    with torch.no_grad():
        features = time_features(g["t"])
        close(head.time_1(features), g["time.stage1"])
        close(head.time_2(features), g["time.stage2"])
        stage_1 = head.stage_1(g["head.input"], head.time_1(features), torch.arange(4))
        close(stage_1, g["head.stage1"])
        low = pixel_shuffle(stage_1, (2, 2))
        close(low, g["head.shuffled"])
        injected, gate = head.gate(low, g["siglip.embeddings"])
        close(gate, g["head.gate"])
        close(injected, g["head.injected"])
        close(golden_model.velocity(g["head.input"], g["t"], g["siglip.embeddings"]), g["head.velocity"])


def test_pixel_shuffle_puts_a_token_into_its_two_by_two_block():
    x = torch.arange(2 * 3 * 4.0).reshape(1, 6, 4)  # grid (2, 3), one channel: features are (row, column)
    picture = pixel_shuffle(x, (2, 3)).reshape(4, 6)
    assert picture[2:4, 4:6].flatten().tolist() == x[0, 5].tolist()  # token (1, 2)
    assert torch.equal(pixel_unshuffle(pixel_shuffle(x, (2, 3)), (2, 3)), x)


def test_a_fresh_block_is_the_identity_and_a_fresh_gate_is_closed():
    qwen = QwenConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    siglip = SigLIPConfig(hidden_size=16, num_attention_heads=4)
    head = CascadedHead(qwen, siglip, latent_channels=8, depths=(1, 1))
    head.initialise()
    x, time = torch.randn(2, 4, 32), torch.randn(2, 32)
    assert torch.equal(head.stage_1.blocks[0](x, time, (torch.ones(1), torch.zeros(1))), x)
    _, gate = head.gate(torch.randn(2, 16, 16), torch.randn(2, 16, 16))
    assert gate.abs().max() == 0


def test_time_is_not_multiplied_by_a_thousand():
    features = time_features(torch.tensor([0.0, 1.0]))
    assert torch.equal(features[0], torch.cat([torch.ones(128), torch.zeros(128)]))  # cosines first
    close(features[1, 0], torch.tensor(1.0).cos(), 1e-6)


def test_the_gate_scales_the_details(golden_model):
    gate = golden_model.head.gate
    low, details = torch.randn(1, 16, 48), torch.randn(1, 16, 48)
    injected, scale = gate(low, details)
    close(injected, F.layer_norm(low + scale * details, (48,), gate.layer_norm.weight, gate.layer_norm.bias), 1e-6)


def test_modulation_is_computed_in_float32():
    x = torch.randn(4, 8).bfloat16()
    shift, scale = torch.randn(2, 8)
    assert torch.equal(modulate(x, shift, scale), (x.float() * (1 + scale) + shift).bfloat16())
