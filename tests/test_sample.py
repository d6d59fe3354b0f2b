"""Chapter 6: the sampler, guidance, editing, answers with pictures, and the command line."""

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import ROOT, close, rows
from data import draw_curves, draw_heatmaps, intensities
from sample import choose, converse, generate_images, generate_text, generate_texts, schedule, seeded_noise


# ---- the flow


def test_the_shift_keeps_zero_and_one_and_bends_the_middle():
    for shift in (0.5, 1.0, 3.0):
        t, delta = schedule(7, shift)
        assert t[0] == 0 and len(t) == 7
        close(t[-1] + delta[-1], torch.tensor(1.0), 1e-6)
    early, straight = schedule(10, 0.5)[0], schedule(10, 1.0)[0]
    assert (early[1:] < straight[1:]).all()  # α < 1 spends more steps near the noise


def test_the_grids_match_the_release(golden):
    g, meta = golden.tensors, golden.meta
    t, delta = schedule(meta["steps"], meta["alpha"])
    close(torch.cat([t, t[-1:] + delta[-1:]]), g["sampler.times_n_plus_1"], 1e-6)
    t, delta = schedule(meta["steps"], meta["alpha"], "released")
    close(t, g["sampler.times_reference"], 1e-6)
    close(delta[-1], torch.tensor(1 / meta["steps"]), 1e-7)  # one more evaluation at t = 1


def paint(golden_model, golden, **changes):
    """The goldens' prompts with the exact grid -> pictures, steps."""
    meta, steps = golden.meta, []
    settings = dict(
        steps=meta["steps"], guidance=meta["cfg_scale"], shift=meta["alpha"], noise=golden.tensors["t2i.noise"], watch=steps.append
    )
    prompts = changes.pop("prompts", rows(golden.tensors["t2i.input_ids"]))
    return generate_images(golden_model, prompts, **settings | changes), steps


def test_text_to_image_matches_the_release(golden, golden_model):
    g = golden.tensors
    picture, steps = paint(golden_model, golden)
    close(steps[0].conditional, g["sampler.first_velocity_cond"])
    close(steps[0].unconditional, g["sampler.first_velocity_uncond"])
    close(steps[-1].result, g["sampler.latent"], 5e-4)
    close(picture, g["sampler.image"].clamp(0, 1), 5e-4)
    close(golden_model.decode_image(steps[-1].result), g["sampler.image"], 5e-4)


@pytest.mark.parametrize("name", ["cfg", "nocfg"])
def test_the_released_grid_and_dummy_match_the_release(golden, golden_model, name):
    g = golden.tensors
    guidance = golden.meta["cfg_scale"] if name == "cfg" else 1.0
    picture, steps = paint(golden_model, golden, guidance=guidance, grid="released", dummy_pixels=g["t2i.dummy_pixels"])
    close(steps[0].conditional, g[f"t2i.{name}.first_velocity"])
    close(picture, g[f"t2i.{name}.image"].clamp(0, 1), 5e-4)


def test_editing_matches_the_release(golden, golden_model):
    g = golden.tensors
    picture, steps = paint(
        golden_model, golden, prompts=rows(g["edit.input_ids"]), steps=2 * golden.meta["steps"], grid="released",
        noise=g["edit.noise"], sources=g["pixels"][:1],
    )
    assert len(steps) == 9
    close(picture, g["edit.image"].clamp(0, 1), 5e-4)


def test_the_unconditional_prompt_keeps_only_structure(golden, golden_model):
    g = golden.tensors
    picture, _ = paint(golden_model, golden)
    explicit = [paint(golden_model, golden, prompts=[p], noise=n[None], negative=u)[0]
                for p, n, u in zip(rows(g["t2i.input_ids"]), g["t2i.noise"], rows(g["t2i.uncond_ids"]))]
    close(picture, torch.cat(explicit))


def test_guidance_one_is_the_conditional_model(golden, golden_model):
    _, steps = paint(golden_model, golden, guidance=1.0)
    assert all(step.unconditional is None and torch.equal(step.velocity, step.conditional) for step in steps)
    _, nearly = paint(golden_model, golden, guidance=1.0000001)
    close(steps[-1].result, nearly[-1].result, 1e-3)


def test_euler_is_exact_on_straight_paths(golden_model, monkeypatch):
    target = torch.randn(1, 32, 4, 4)
    noise = torch.randn(1, 32, 4, 4)
    gate = torch.zeros(2, 16, 1)
    monkeypatch.setattr(golden_model.head, "forward", lambda h, t, d, grid: ((target - noise).repeat(len(h), 1, 1, 1), gate))
    steps = []
    generate_images(golden_model, [[17, 302]], steps=3, guidance=4.0, shift=0.3, noise=noise, watch=steps.append)
    close(steps[-1].result, target, 1e-5)


def test_the_second_order_solver_gains_an_order(golden_model, monkeypatch):
    def bent(h, t, d, grid):  # z_t = t³
        return 3 * t[:, None, None, None].expand(-1, 32, 4, 4) ** 2, torch.zeros(len(h), 16, 1)

    def error(solver, count):
        steps = []
        settings = dict(steps=count, guidance=1.0, shift=0.5, noise=torch.zeros(1, 32, 4, 4))
        generate_images(golden_model, [[17, 302]], **settings, solver=solver, watch=steps.append)
        return (steps[-1].result - 1).abs().max().item()

    monkeypatch.setattr(golden_model.head, "forward", bent)
    assert 1.9 < error("euler", 20) / error("euler", 40) < 2.1
    assert 3.5 < error("adams", 20) / error("adams", 40) < 4.5
    assert error("adams", 40) < error("euler", 40) / 10


def test_outside_its_interval_guidance_changes_and_costs_nothing(golden, golden_model):
    assert torch.equal(paint(golden_model, golden)[0], paint(golden_model, golden, interval=(0, 1))[0])
    close(paint(golden_model, golden, interval=(2, 3))[0], paint(golden_model, golden, guidance=1.0)[0], 1e-5)
    steps = paint(golden_model, golden, steps=4, shift=1.0, interval=(0.25, 0.75))[1]
    assert [step.unconditional is None for step in steps] == [True, False, False, True]


def test_the_vision_tokenizer_runs_once_per_step_and_the_prompt_once(golden, golden_model, monkeypatch):
    calls = {"tokenizer": 0, "qwen": []}
    tokenize, qwen = golden_model.tokenize_image, golden_model.qwen.forward
    monkeypatch.setattr(golden_model, "tokenize_image", lambda z: (calls.update(tokenizer=calls["tokenizer"] + 1), tokenize(z))[1])
    monkeypatch.setattr(golden_model.qwen, "forward", lambda x, *a: (calls["qwen"].append(tuple(x.shape[:2])), qwen(x, *a))[1])
    paint(golden_model, golden)
    assert calls == {"tokenizer": 5, "qwen": [(4, 8)] + [(4, 4)] * 5}  # 2 prompts, 2 branches; 8 tokens, then 4 visual ones


def test_no_step_asks_for_a_value_which_on_a_gpu_means_to_wait(golden, golden_model):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, inputs=(), options=None):
            self.count += function.overloadpacket.__name__ in ("item", "is_nonzero", "nonzero")
            return function(*inputs, **options or {})

    def reads(steps):
        with Reads() as mode:
            paint(golden_model, golden, steps=steps)
        return mode.count

    assert reads(2) == reads(5) > 0  # of lengths and padding, once per picture


# ---- batches and seeds


def test_a_picture_does_not_depend_on_its_batch(tiny):
    prompts = ["a circle", "two red circles above a blue square on a black background", "a red star"]
    together = generate_images(tiny, prompts, steps=6, seed=3)
    for k, prompt in enumerate(prompts):
        close(generate_images(tiny, [prompt], steps=6, seed=3, first=k)[0], together[k])
    assert not torch.equal(together[0], together[2])


def test_noise_is_fixed_by_seed_and_index():
    assert torch.equal(seeded_noise(1, 2, (3, 4, 4)), seeded_noise(1, 2, (3, 4, 4)))
    assert not torch.equal(seeded_noise(1, 2, (3, 4, 4)), seeded_noise(1, 3, (3, 4, 4)))
    assert not torch.equal(seeded_noise(1, 2, (3, 4, 4)), seeded_noise(2, 2, (3, 4, 4)))


def test_other_sizes_work_and_impossible_ones_are_refused(tiny):
    assert generate_images(tiny, ["a circle"], steps=2, size=(48, 24), seed=0).shape == (1, 3, 24, 48)
    with pytest.raises(ValueError, match="multiples of 8"):
        generate_images(tiny, ["a circle"], steps=2, size=36)


def test_several_sources_and_a_negative_prompt(tiny):
    pictures = [Image.new("RGB", (40, 20), "red"), Image.new("L", (9, 9), 128)]
    painted = generate_images(tiny, ["Draw both."], sources=[pictures], negative="a circle", steps=4, seed=0)
    assert painted.shape == (1, 3, 32, 32) and painted.isfinite().all()
    with pytest.raises(ValueError, match="one size"):
        generate_images(tiny, ["Go.", "Go."], sources=[torch.zeros(3, 32, 32), torch.zeros(3, 64, 64)], steps=4)
    with pytest.raises(ValueError, match="3 dummy pictures for 2 prompts"):
        generate_images(tiny, ["a", "b"], dummy_pixels=torch.zeros(3, 3, 32, 32), steps=4)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"shift": 0.0}, "shift must be a positive number"),
        ({"prompts": ["word " * 5000]}, "the prompt is too long"),
        ({"noise": torch.zeros(1, 1, 2, 2)}, "noise has shape"),
        ({"grid": "other"}, "grid is"),
    ],
)
def test_impossible_settings_get_a_sentence(tiny, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate_images(tiny, settings.pop("prompts", ["a circle"]), **settings)


# ---- text


def test_answers_match_the_release(golden, golden_model):
    g = golden.tensors
    ids = generate_text(golden_model, rows(g["i2t.input_ids"])[0], g["pixels"][:1], max_new_tokens=9)
    assert ids == rows(g["i2t.output_ids"])[0]


def test_cached_answers_equal_uncached_ones(golden, golden_model):
    g, ids = golden.tensors, rows(golden.tensors["i2t.input_ids"])[0]
    answer = []
    for _ in range(9):
        answer += generate_text(golden_model, ids + answer, g["pixels"][:1], max_new_tokens=1)
    assert answer == generate_text(golden_model, ids, g["pixels"][:1], max_new_tokens=9)


def test_top_p_keeps_the_smallest_set_of_likely_tokens():
    logits, generator = torch.tensor([0.5, 0.3, 0.2]).log(), torch.Generator().manual_seed(0)
    drawn = lambda top_p: {choose(logits, 1.0, top_p, generator) for _ in range(200)}
    assert drawn(0.4) == {0} and drawn(0.6) == {0, 1} and drawn(1.0) == {0, 1, 2}
    assert choose(logits, 0.0, 1.0, generator) == 0


def test_one_seed_one_answer(tiny):
    answers = [generate_text(tiny, "What is two plus three?", temperature=30.0, max_new_tokens=12, seed=s) for s in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_answers_of_a_batch_equal_each_alone(tiny):
    """Prompts of different lengths with none, one and two pictures; their answers end at different steps."""
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (20, 32), "blue")
    prompts = ["What is two plus three?", "What color is the background?", "Write: a red circle left of a blue square", "Hm?"]
    images = [[], [red], [], [red, blue]]
    alone = [generate_text(tiny, *pair, max_new_tokens=24) for pair in zip(prompts, images)]
    assert generate_texts(tiny, prompts, images, max_new_tokens=24) == alone and len(set(map(len, alone))) > 1
    drawn = dict(max_new_tokens=8, temperature=1.0, top_p=0.9)
    alone = [generate_text(tiny, *pair, seed=5 + k, **drawn) for k, pair in enumerate(zip(prompts, images))]
    assert generate_texts(tiny, prompts, images, seed=5, **drawn) == alone
    assert generate_texts(tiny, []) == []
    with pytest.raises(ValueError, match="2 prompts, but pictures for 1"):
        generate_texts(tiny, ["Hm?", "Hm?"], [[]])


def test_an_answer_paints_where_it_opens_a_picture_and_goes_on(tiny, monkeypatch):
    """The answer is forced to be: a word, a picture, a word, the end; its pieces come in this order."""
    special = tiny.config.special
    word = tiny.tokenizer.encode("red")[0]
    forced = iter([word, special.image_start, word, special.end_of_turn])
    monkeypatch.setattr("sample.choose", lambda *arguments: next(forced))
    pieces = list(converse(tiny, [{"role": "user", "content": "Draw."}], steps=3, seed=5, guidance=2.0))
    assert [type(piece).__name__ for piece in pieces] == ["str", "Image", "str"]
    assert pieces[1].size == (32, 32)
    monkeypatch.setattr("sample.choose", lambda *arguments: special.image_start)
    with pytest.raises(ValueError, match="no room is left for the answer's picture"):
        next(converse(tiny, [{"role": "user", "content": "Draw."}], size=256))


# ---- heat maps


def test_heatmaps_have_a_tile_per_step_and_the_curve_is_normalised():
    gates = [torch.full((4, 4), float(k)) for k in (2, 1, 5)]
    assert intensities(gates) == [0.25, 0.0, 1.0]
    assert draw_heatmaps([0.0, 0.5, 0.9], gates).size == (200, 224)
    assert draw_curves({"gate": list(enumerate(intensities(gates)))}, "gate").size == (480, 300)


# ---- command line


def run(*arguments: str, stdin: str = "", cwd=ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True)


def picture_file(tmp_path, name="p.png"):
    Image.new("RGB", (32, 32), (245, 245, 245)).save(tmp_path / name)
    return tmp_path / name


def test_a_prompt_becomes_a_png_that_remembers_how(tmp_path):
    done = run("a red circle left of a blue square", "--seed", 1, "--out", tmp_path / "a.png", "--heatmaps", "--steps", 5)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert picture.size == (32, 32)
    assert picture.text["prompt"] == "a red circle left of a blue square" and picture.text["seed"] == "1"
    assert json.loads(picture.text["settings"])["steps"] == 5
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a-heatmaps.png", "a-intensity.png"}
    assert "step/s" in done.stderr or "steps/s" in done.stderr


def test_several_prompts_and_numbers_go_to_a_folder(tmp_path):
    done = run("a circle", "two red stars", "--num", 2, "--steps", 2, "--out", tmp_path, "--seed", 0, "--released")
    assert done.returncode == 0, done.stderr
    paths = done.stdout.split("\n")[:-1]
    assert len(paths) == len(set(paths)) == 4 and all(os.path.exists(path) for path in paths)


def test_questions_editing_and_talking(tmp_path):
    image = picture_file(tmp_path)
    asked = run("What color is the background?", "--image", image, "--max-tokens", 8)
    assert asked.returncode == 0 and asked.stdout.strip(), asked.stderr
    edited = run("Change the background to black.", "--image", image, "--edit", "--steps", 4, "--out", tmp_path / "e.png")
    assert edited.returncode == 0 and (tmp_path / "e.png").exists(), edited.stderr
    talked = run("--chat", "--max-tokens", 8, "--steps", 2, "--out", tmp_path, stdin="What is two plus three?\nAnd?\n")
    assert talked.returncode == 0 and len(talked.stdout.strip().splitlines()) >= 2, talked.stderr


BAD = {
    "no prompt": ([], "PROMPT is missing"),
    "unknown option": (["a circle", "--colour", "red"], "unrecognized arguments"),
    "no such model": (["a circle", "--model", "nowhere"], "there is no folder nowhere"),
    "no such device": (["a circle", "--device", "nonsense"], "--device nonsense is not available"),
    "not a PNG": (["a circle", "--out", "a.jpg"], "written as PNG"),
    "top-p": (["What?", "--chat", "--top-p", "0"], "top_p in (0, 1]"),
    "edit without a picture": (["a circle", "--edit"], "--edit needs the picture"),
    "not text": (["a \udcff circle"], "not valid UTF-8"),
    "size": (["a circle", "--size", "33"], "multiples of 8"),
    "huge": (["a circle", "--size", "100000x100000"], "1024 visual tokens"),
    "size in words": (["a circle", "--size", "big"], "is not a size"),
    "steps": (["a circle", "--steps", "0"], "steps must be at least 1"),
    "guidance": (["a circle", "--guidance", "nan"], "guidance must be a finite number"),
    "prompt too long": (["circle " * 5000], "the prompt is too long"),
    "unwritable output": (["a circle", "--steps", "1", "--out", "/proc/no/a.png"], "cannot write"),
    "several pictures in one file": (["a", "b", "--out", "x.png"], "several pictures do not fit"),
    "missing picture": (["What?", "--image", "no.png"], "there is no picture no.png"),
    "temperature": (["What?", "--chat", "--temperature", "-1"], "temperature must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_nothing(case, tmp_path, monkeypatch, capsys):
    arguments, sentence = BAD[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
    with pytest.raises(SystemExit) as end:  # the script as it is run, in this process: what a new one costs is saved
        runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
    assert end.value.code not in (None, 0) and sentence in f"{end.value.code} {capsys.readouterr().err}"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
