"""Chapter 1: pixels <-> latents."""

import pytest
import torch

from conftest import close
from vae import VAE, PATCH, VAEConfig
from torch.nn import functional as F


def test_encode_and_decode_match_the_release(golden, golden_model):
    g = golden.tensors
    with torch.no_grad():
        close(golden_model.encode_image(g["pixels"]), g["vae.encode"])
        close(golden_model.decode_image(g["latent"]), g["vae.decode"])


def test_normalising_and_patchifying_are_undone_exactly(golden_model):
    moments = torch.randn(2, golden_model.config.vae.z_channels, 8, 12)
    statistics = golden_model.vae.bn
    latents = statistics.normalise(F.pixel_unshuffle(moments, PATCH))
    close(F.pixel_shuffle(statistics.denormalise(latents), PATCH), moments, 1e-6)


def test_a_patch_is_ordered_channel_row_column():
    z = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4).float()  # c (i pi) (j pj) -> (c pi pj) i j
    patches = z.reshape(1, 2, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 8, 2, 2)
    assert torch.equal(F.pixel_unshuffle(z, PATCH), patches)


def test_encoding_never_moves_the_statistics(golden_model):
    before = golden_model.vae.bn.running_mean.clone()
    golden_model.vae.train()
    golden_model.encode_image(torch.rand(1, 3, 64, 64))
    golden_model.vae.eval()
    assert torch.equal(golden_model.vae.bn.running_mean, before)


def test_non_square_pictures_work_and_other_sizes_are_refused(golden_model):
    assert golden_model.encode_image(torch.rand(1, 3, 32, 96)).shape == (1, 32, 2, 6)
    with pytest.raises(ValueError, match="multiples of 32"):
        golden_model.encode_image(torch.rand(1, 3, 48, 64))


def test_the_factor_follows_the_levels():
    assert VAEConfig().factor == 16 and VAEConfig(ch_mult=(1, 2)).factor == 4
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    assert sum(p.numel() for p in vae.parameters()) == 84_046_115
