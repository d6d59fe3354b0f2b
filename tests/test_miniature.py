"""Chapter 11: the paper in miniature. Variants differ in the one thing that they are named after."""

import json

import numpy as np
import pytest
import torch

import miniature
import shapes
from cheers import Cheers
from miniature import Study, WithoutDetail, WithoutPixels, mean_and_error, question_kind, verdict


def as_kind(kind: type[Cheers], tiny: Cheers) -> Cheers:
    torch.manual_seed(0)
    model = kind(tiny.config).eval()
    model.load_state_dict({k: v for k, v in tiny.state_dict().items() if "patch_embedding" not in k}, strict=False)
    return model


def test_without_detail_only_the_gate_has_nothing_to_let_through(tiny):
    latents = torch.randn(2, 8, 8, 8, generator=torch.manual_seed(1))
    with torch.no_grad():
        model = as_kind(WithoutDetail, tiny)
        model.siglip.embeddings.patch_embedding.load_state_dict(tiny.siglip.embeddings.patch_embedding.state_dict())
        (tokens, details), (same, there) = model.tokenize_image(latents), tiny.tokenize_image(latents)
    assert torch.equal(tokens, same) and not details.any() and there.any() and details.shape == there.shape


def test_without_pixels_the_encoder_never_sees_the_decoder(tiny):
    latents = torch.randn(2, 8, 8, 8, generator=torch.manual_seed(1))
    model = as_kind(WithoutPixels, tiny)
    with torch.no_grad():
        tokens, details = model.tokenize_image(latents)
        for parameter in model.pixel_decoder.parameters():
            parameter.fill_(torch.nan)
        assert torch.equal(model.tokenize_image(latents)[0], tokens) and tokens.isfinite().all()
        assert [part.shape for part in (tokens, details)] == [part.shape for part in tiny.tokenize_image(latents)]


def test_every_question_of_the_world_has_a_kind():
    rng = np.random.default_rng(0)
    kinds = {question_kind(shapes.question(shapes.random_scene(rng), rng)[0]) for _ in range(500)}
    assert kinds == {"number", "background", "color", "shape", "description", "presence", "place"}


def test_a_difference_within_two_errors_is_none():
    ours, theirs = [1.0] * 60 + [0.0] * 40, [1.0] * 55 + [0.0] * 45
    assert mean_and_error(ours) == pytest.approx((0.6, (0.6 * 0.4 / 100) ** 0.5))
    assert "higher (+0.050 ± 0.022)" in verdict("x", {1}, ours, theirs)   # the same items: what differs is one-sided
    assert "no difference" in verdict("x", {0}, ours, theirs[::-1])       # as many right, but other items
    assert "nothing to compare" in verdict("x", {0}, [float("nan")], [1.0])
    assert "**Agrees.**" in verdict("x", {1}, ours, theirs) and "**Does not agree.**" in verdict("x", {-1, 0}, ours, theirs)


def test_the_report_trains_measures_and_goes_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(miniature, "SETTINGS", [{"steps": 1}, {"guidance": 2.0}, {"shift": 2.0}, {"grid": "released", "dummy": True}])
    monkeypatch.setattr(miniature, "EVALUATIONS", (1, 2))
    monkeypatch.setattr(miniature, "REFERENCE", 3)
    monkeypatch.setattr(tiny, "generation", {"steps": 6, "guidance": 2.0, "shift": 1.0})
    log = tmp_path / "log"
    log.write_text("".join(json.dumps({"step": k, "overall": k / 9} | dict.fromkeys(shapes.TASKS, 0.5)) + "\n" for k in (1, 2)))
    study = Study(tiny, tmp_path / "out", limit=1, seed=0, steps=2, dtype="float32", log=log)
    text = miniature.paper(study).read_text()
    for name in ("figure-4", "figure-5a", "figure-5b", "table-7-checkpoint", "table-7-joint", "sampling-steps"):
        assert (study.out / f"{name}.png").exists() and f"({name}.png)" in text
    assert all(f"| {name} |" in text for name in (*miniature.VARIANTS, *shapes.TASKS, "grid released, dummy True"))
    made = {path: path.stat().st_mtime_ns for path in (study.out / "rows").iterdir()}
    next(path for path in made if path.name.startswith("joint-questions")).unlink()  # as if stopped before this one
    assert miniature.paper(study).read_text() == text
    again = {path: path.stat().st_mtime_ns for path in (study.out / "rows").iterdir()}
    assert again.keys() == made.keys() and sum(made[path] != again[path] for path in made) == 1
