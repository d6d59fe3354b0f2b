"""Chapter 2: pixels -> semantics and details."""

import torch

from conftest import close


def test_features_and_details_match_the_release(golden, golden_model):
    g = golden.tensors
    with torch.no_grad():
        pixels = golden_model.pixel_decoder.decode(g["latent"])
        close(pixels, g["tokenizer.decode"])
        features, details = golden_model.siglip(pixels)
        close(details, g["siglip.embeddings"])
        close(features, g["siglip.features"])
        tokens, details = golden_model.tokenize_image(g["latent"])
        close(tokens, g["projector"])
        close(details, g["siglip.embeddings"])


def test_details_are_patches_plus_positions(golden_model):
    embeddings = golden_model.siglip.embeddings
    pixels = torch.rand(1, 3, 64, 64)
    patches = torch.nn.functional.unfold(pixels, 16, stride=16)                   # (1, 3·16·16, 16)
    plain = embeddings.patch_embedding.weight.flatten(1) @ patches[0] + embeddings.patch_embedding.bias[:, None]
    close(embeddings(pixels)[0], plain.T + embeddings.position_embedding.weight, 1e-5)


def test_other_grids_see_the_positions_resized(golden_model):
    embeddings = golden_model.siglip.embeddings
    table = embeddings.position_embedding.weight
    assert torch.equal(embeddings.positions(4, 4).flatten(2)[0].T, table)
    assert embeddings.positions(8, 2).shape == (1, 48, 8, 2)
    constant = torch.full_like(table, 3.0)
    with torch.no_grad():
        saved = table.clone()
        table.copy_(constant)
        close(embeddings.positions(6, 10), torch.full((1, 48, 6, 10), 3.0), 1e-5)
        table.copy_(saved)
