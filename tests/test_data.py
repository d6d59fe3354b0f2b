"""Chapter 7: pictures and conversations become batches."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import shapes
from cheers import IGNORE
from conftest import GOLDEN, close
from data import (
    PAINT, TEXT_DROPOUT, TOY_MIX, Mixture, ToySource, collate, drop_text, encode_conversation, fill_square, fit_inside, generation, gpt, human, make_sample, open_picture,
    to_picture, to_pixels,
)

PICTURES = load_file(GOLDEN / "images.safetensors")


@pytest.mark.parametrize("name", sorted({key.partition(".")[0] for key in PICTURES}))
def test_both_transforms_match_the_release(name):
    source = Image.fromarray(PICTURES[f"{name}.source"].numpy())
    close(to_pixels(fit_inside(source, 64)), PICTURES[f"{name}.understand"])
    close(to_pixels(fill_square(source, 64)), PICTURES[f"{name}.generate"])


def test_pixels_survive_the_way_to_a_picture_and_back():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(to_picture(to_pixels(Image.fromarray(array)))), array)


# ---- picture files


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture_is_converted(mode, tmp_path):
    gray = np.full((12, 10), 200, dtype=np.uint8)
    picture = Image.fromarray(gray)
    if mode.startswith("I"):
        picture = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "F":
        picture = picture.convert("F")
    else:
        picture = picture.convert(mode)
    path = tmp_path / ("p.tiff" if mode in ("CMYK", "I", "F", "I;16") else "p.png")
    picture.save(path)
    opened = open_picture(path)
    assert opened.mode == "RGB" and opened.size == (10, 12)
    if mode != "1":
        assert abs(int(np.asarray(opened)[0, 0, 0]) - 200) <= 2


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "p.png")
    assert np.asarray(open_picture(tmp_path / "p.png")).min() == 255


def test_bad_pictures_get_a_sentence(tmp_path, monkeypatch):
    good = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="cut.png is damaged"):
        open_picture(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="text.png is damaged or not a picture"):
        open_picture(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        open_picture(tmp_path / "none.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="too many pixels"):
        open_picture(good)


def test_extreme_pictures_are_refused_and_tiny_ones_are_not():
    with pytest.raises(ValueError, match="too narrow"):
        fit_inside(Image.new("RGB", (1000, 1)), 32)
    assert fit_inside(Image.new("RGB", (1, 1)), 32).size == (32, 32)
    assert fill_square(Image.new("RGB", (1, 2)), 32).size == (32, 32)


# ---- conversations


def test_supervised_are_content_im_start_and_the_end_of_the_turn(tiny):
    special, tokenizer = tiny.config.special, tiny.tokenizer
    ids, labels = encode_conversation([human(" Draw it. "), gpt(f" Here:\n{PAINT}\n")], tokenizer, tiny.config)
    supervised = [i for i, label in zip(ids, labels) if label != IGNORE]
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels))
    assert supervised == tokenizer.encode("Here:\n") + [special.image_start, special.end_of_turn]
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    text = f"{system}<|im_start|>user\nDraw it.<|im_end|>\n<|im_start|>assistant\nHere:\n{PAINT}<|im_end|>\n"
    assert ids == tokenizer.encode(text)


def test_text_dropout_keeps_structure_and_has_no_text_loss(tiny):
    special = tiny.config.special
    turns, picture = [human("a circle"), gpt(PAINT)], Image.new("RGB", (32, 32))
    samples = [make_sample(turns, [picture], tiny.tokenizer, tiny.config, np.random.default_rng(k)) for k in range(400)]
    dropped = [sample for sample in samples if special.no_mean in sample.ids]
    assert abs(len(dropped) / 400 - TEXT_DROPOUT) < 0.08
    kept = {special.no_mean, special.image_start, special.image_end, special.image_gen}
    assert all(set(sample.ids) == kept and set(sample.labels) == {IGNORE} for sample in dropped)
    assert all(len(sample.ids) == len(samples[0].ids) for sample in samples)
    assert drop_text([-200, 5, special.image], tiny.config) == [-200, special.no_mean, special.image]


def test_times_can_lean_towards_the_beginning(tiny):
    turns, picture = [human("a circle"), gpt(PAINT)], Image.new("RGB", (32, 32))
    uniform, early = (np.array([make_sample(turns, [picture], tiny.tokenizer, tiny.config, np.random.default_rng(k), shift).t[0]
                                for k in range(200)]) for shift in (1.0, 0.25))
    assert abs(uniform.mean() - 0.5) < 0.06
    assert np.allclose(early, 0.25 * uniform / (1 - 0.75 * uniform)) and (early < 0.2).mean() > 0.4


def toy_sample(line: int, tiny):
    rng = np.random.default_rng([line, 3])
    make = list(TOY_MIX)[rng.choice(len(TOY_MIX), p=list(TOY_MIX.values()))]
    return make_sample(*make(rng, 4, 32), tiny.tokenizer, tiny.config, rng)


def test_understanding_has_t_one_and_painting_any_t(tiny):
    times = {True: [], False: []}
    for line in range(300):
        sample = toy_sample(line, tiny)
        order = [i for k, i in enumerate(sample.ids) if i in (tiny.config.special.image, tiny.config.special.image_gen)][::16]
        for placeholder, t in zip(order, sample.t):
            times[placeholder == tiny.config.special.image_gen].append(t)
    assert set(times[False]) == {1.0}
    assert 0 < min(times[True]) < 0.1 and 0.9 < max(times[True]) < 1


def test_a_sample_depends_on_seed_and_line_only(tiny):
    """Not on the batch around it, the step, or the process."""
    def samples(seed: int, batch: int, step: int):
        mix = Mixture([ToySource(generation, 32)], [1.0], batch, 1, seed, tiny.tokenizer, tiny.config, 10**9)
        return mix[step].batches

    ones, fours = [samples(0, 1, step)[0] for step in range(4)], samples(0, 4, 0)
    for one, four in zip(ones, fours):
        assert all(torch.equal(getattr(one, name), getattr(four, name)) for name in ("ids", "pixels", "noise", "t"))
    assert not torch.equal(ones[0].noise, ones[1].noise) and not torch.equal(ones[0].noise, samples(1, 1, 0)[0].noise)


def test_collated_samples_are_read_back(tiny):
    samples = [toy_sample(line, tiny) for line in range(12)]
    batch, seen = collate(samples, tiny.config), []
    for ids, labels, segments in zip(batch.ids, batch.labels, batch.segments):
        for segment in segments.unique():
            seen.append((ids[segments == segment].tolist(), labels[segments == segment].tolist()))
    for sample in samples:
        assert (sample.ids, sample.labels) in seen
    rest = [pair for pair in seen if pair not in [(sample.ids, sample.labels) for sample in samples]]
    assert all(set(ids) == {0} and set(labels) == {IGNORE} for ids, labels in rest)  # padding
    assert len(batch.pixels) == len(batch.noise) == len(batch.t) == sum(len(sample.pixels) for sample in samples)


def test_training_material_never_holds_a_held_out_pair(tiny):
    for line in range(1500):
        sample = toy_sample(line, tiny)
        text = tiny.tokenizer.decode(sample.ids)
        assert not any(f"{color} {shape}" in text for color, shape in shapes.HELD_OUT), text
