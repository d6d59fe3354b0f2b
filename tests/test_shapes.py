"""The toy world must be true: scenes, words and scores agree, and nothing held out leaks."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from shapes import (BACKGROUNDS, COLORS, HELD_OUT, NUMBERS, SHAPES, TASKS, TEXT_QUESTIONS, Group, Object, Scene,
                    Specification, caption, compose, describe, draw, edit, find_objects, outline_error,
                    parse_prompt, question, random_scene, score, sentence_and_picture, task_prompts,
                    text_question)


def rng_and_scenes(seed, count, **options):
    rng = np.random.default_rng(seed)
    return rng, [random_scene(rng, **options) for _ in range(count)]


def one(shape, color, x=0.5, y=0.5, radius=0.2):
    return Object(shape, color, x, y, radius)


def names_held_out(text):
    return any(re.search(rf"\b{color} {shape}s?\b", text) for color, shape in HELD_OUT)


# ---- the scorer ----------------------------------------------------------------------------------

@pytest.mark.parametrize("side", (32, 64))
def test_the_scorer_is_right_on_its_own_scenes(side):
    rng, scenes = rng_and_scenes(side, 500)
    scenes += [random_scene(rng, held_out=True) for _ in range(100)]
    # All counts alike, and scenes that fill each relation and background.
    scenes += [compose(Specification((Group(n, None, s),), None, b), rng)
               for n in (1, 2, 3, 4) for s in SHAPES for b in BACKGROUNDS for _ in range(5)]
    scenes += [compose(parse_prompt(p), rng) for p in task_prompts("position", 160, rng)]
    assert len(scenes) == 1000
    results = [score(draw(s, side), describe(s)) for s in scenes]
    assert np.mean([r.correct for r in results]) >= 0.995
    assert np.mean([r.outline_error for r in results]) < 0.01


def test_the_scorer_denies_any_other_description():
    rng, scenes = rng_and_scenes(1, 150)
    wrong = 0
    for scene, other in zip(scenes, scenes[1:]):
        if describe(scene) != describe(other):
            wrong += score(draw(scene), describe(other)).correct
    assert wrong == 0


def test_pictures_may_come_as_pil_bytes_or_floats():
    picture = draw(Scene((one("star", "blue"),), "white"))
    array = np.asarray(picture)
    floats = (array / 255).transpose(2, 0, 1).astype(np.float32)
    assert all(score(p, "a blue star on a white background").correct for p in (picture, array, floats))


def test_slight_blur_noise_and_tint_are_forgiven_but_seen_in_the_outline():
    rng, scenes = rng_and_scenes(2, 150)
    clean, soft = [], []
    for scene in scenes:
        picture = draw(scene)
        array = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.5))) / 255
        array = array + rng.normal(0, 0.02, array.shape) + rng.normal(0, 0.03, 3)
        clean.append(score(picture, describe(scene)))
        soft.append(score(array.clip(0, 1).transpose(2, 0, 1), describe(scene)))
    assert np.mean([s.correct for s in soft]) > 0.97
    assert np.mean([s.outline_error for s in soft]) > 3 * np.mean([s.outline_error for s in clean])


def test_heavy_blur_is_no_star():
    star = draw(Scene((one("star", "red"),), "white"))
    assert not score(star.filter(ImageFilter.GaussianBlur(4)), "a red star").correct


def test_wrong_missing_and_extra_objects_are_noticed():
    rng, scenes = rng_and_scenes(3, 80)
    for scene in scenes:
        first, rest = scene.objects[0], scene.objects[1:]
        for color in COLORS.keys() - {first.color}:
            damaged = replace(scene, objects=(replace(first, color=color), *rest))
            assert not score(draw(damaged), describe(scene)).correct
        for shape in set(SHAPES) - {first.shape}:
            damaged = replace(scene, objects=(replace(first, shape=shape), *rest))
            assert not score(draw(damaged), describe(scene)).correct
        missing = draw(replace(scene, objects=rest))
        assert not score(missing, describe(scene)).correct
        if rest:  # seen the other way round, the whole scene has one object too many
            fewer = describe(replace(scene, objects=rest))
            assert not score(draw(scene), fewer).correct
    nothing = score(Image.new("RGB", (32, 32), BACKGROUNDS["white"]), "a circle")
    assert not nothing.correct and np.isnan(nothing.outline_error)


def test_a_stray_speck_is_nothing_but_a_small_blob_is_too_much():
    for side in (32, 64):
        picture = np.array(draw(Scene((one("circle", "red"),), "white"), side))
        picture[1, 1] = COLORS["blue"]
        assert score(picture, "a red circle").correct
        picture[1:5 * side // 32, 1:5 * side // 32] = COLORS["blue"]
        assert not score(picture, "a red circle").correct


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_objects_are_not_one_right_object(shape):
    for color in ("red", "blue"):
        merged = Scene((one(shape, "red", 0.38), one(shape, color, 0.62)), "white")
        for count, c in ((1, "red"), (1, None), (2, None), (2, "red")):
            assert not score(draw(merged), Specification((Group(count, c, shape),))).correct
    # Half and half, in the right outline: neither colour is the object's.
    left, right = (np.asarray(draw(Scene((one(shape, c),), "black"))) for c in ("red", "blue"))
    halves = np.concatenate([left[:, :16], right[:, 16:]], axis=1)
    assert not any(score(halves, f"a {c} {shape}").correct for c in ("red", "blue"))


def test_noise_and_patchwork_score_wrong_without_an_error():
    rng = np.random.default_rng(13)
    for i in range(100):
        patches = Image.fromarray(rng.integers(0, 256, (rng.integers(2, 33),) * 2 + (3,), dtype=np.uint8))
        assert not score(patches.resize((32, 32), Image.Resampling(i % 2)), "a red circle").correct


def test_background_and_off_palette_colours():
    brown = np.array(draw(Scene((one("square", "red"),), "white")))
    brown[(brown == COLORS["red"]).all(-1)] = (90, 60, 20)
    found, background = find_objects(brown)
    assert (found[0].shape, found[0].color, background) == ("square", "unknown", "white")
    assert not score(brown, "a red square on a black background").correct
    assert find_objects(Image.new("RGB", (32, 32), (0, 255, 0)))[1] == "unknown"


def test_relations_follow_geneval():
    scene = Scene((one("circle", "red", 0.2, 0.3, 0.15), one("square", "blue", 0.8, 0.5, 0.15)), "gray")
    right = {"a circle left of a square", "a square right of a circle", "a red circle left of a blue square"}
    wrong = {"a circle right of a square", "a square left of a circle", "a circle above a square"}
    assert all(score(draw(scene), p).correct for p in right)
    assert not any(score(draw(scene), p).correct for p in wrong)


def test_found_objects_lie_where_they_were_drawn():
    _, scenes = rng_and_scenes(4, 100)
    for scene in scenes:
        found, background = find_objects(draw(scene))
        assert background == scene.background
        for o in scene.objects:
            f = min(found, key=lambda f: np.hypot(f.x - o.x, f.y - o.y))
            assert np.allclose((f.x, f.y, f.radius), (o.x, o.y, o.radius), atol=0.02)
        assert outline_error(draw(scene), found) < 0.02


# ---- scenes and words ----------------------------------------------------------------------------

def test_objects_are_whole_and_apart():
    _, scenes = rng_and_scenes(5, 500)
    for scene in scenes:
        array = np.asarray(draw(scene)).astype(int)
        border = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
        assert np.abs(border - BACKGROUNDS[scene.background]).max() <= 1
        assert 1 <= len(scene.objects) <= 4 and len(scene.groups) <= 2
        for i, a in enumerate(scene.objects):
            for b in scene.objects[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= 1.2 * (a.radius + b.radius) + 2 / 32 - 1e-9


def test_one_seed_gives_the_same_scene():
    def everything(seed):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        return (scene, caption(scene, rng), question(scene, rng), edit(scene, rng), sentence_and_picture(scene, rng),
                text_question(rng), task_prompts("color_attr", 5, rng), compose(parse_prompt("two stars"), rng))
    assert everything(7) == everything(7) != everything(8)


def test_held_out_pairs_stay_out_of_training():
    rng, scenes = rng_and_scenes(6, 2000)
    for scene in scenes:
        instruction, edited = edit(scene, rng)
        order, sentence, drawn = sentence_and_picture(scene, rng)
        for s in (scene, edited, drawn):
            assert not any((o.color, o.shape) in HELD_OUT for o in s.objects)
        texts = [caption(scene, rng), describe(scene), instruction, order, sentence, *question(scene, rng)]
        assert not any(names_held_out(text.lower()) for text in texts)
    assert not any(names_held_out(f"{q} {a}") for q, a in TEXT_QUESTIONS)
    for task in TASKS:
        assert not any(names_held_out(p) for p in task_prompts(task, 500, rng))


def test_held_out_scenes_and_prompts_have_them():
    rng, scenes = rng_and_scenes(7, 300, held_out=True)
    for scene in scenes:
        assert any((o.color, o.shape) in HELD_OUT for o in scene.objects)
        assert not any((o.color, o.shape) in HELD_OUT for o in edit(scene, rng)[1].objects)
        assert not any((o.color, o.shape) in HELD_OUT for o in sentence_and_picture(scene, rng)[2].objects)
        question(scene, rng)
    for task in ("colors", "color_attr"):
        prompts = task_prompts(task, 100, rng, held_out=True)
        assert len(prompts) == 100 and all(names_held_out(p) for p in prompts)
    with pytest.raises(ValueError):
        task_prompts("counting", 1, rng, held_out=True)


def test_captions_are_true_and_prompts_round_trip():
    rng, scenes = rng_and_scenes(8, 200)
    for scene in scenes:
        for text in (caption(scene, rng), describe(scene)):
            assert parse_prompt(text).text == text
            assert score(draw(scene), text).correct
    for task in TASKS:
        for text in task_prompts(task, 60, rng):
            assert parse_prompt(text).text == text
            assert score(draw(compose(parse_prompt(text), rng)), text).correct
    assert parse_prompt("two red circles above a blue square on a black background") == Specification(
        (Group(2, "red", "circle"), Group(1, "blue", "square")), "above", "black")


@pytest.mark.parametrize("text", ("", "a cat", "circle", "a circles", "two circle", "a orange star", "five stars",
                                  "a red circle and a square", "a circle and a circle", "a circle under a square",
                                  "three stars and two circles", "a circle on a red background", "A circle"))
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError):
        parse_prompt(text)


def test_prompts_of_a_task_are_spread_evenly():
    rng = np.random.default_rng(9)
    distinct = {"single_object": 4, "two_object": 12, "counting": 12, "colors": 20, "position": 48}
    for task, number in distinct.items():
        prompts = task_prompts(task, 2 * number, rng)
        assert len(set(prompts)) == number and all(prompts.count(p) == 2 for p in prompts)


# ---- questions and edits -------------------------------------------------------------------------

def lies(o, relation, others):
    """Judged on the objects alone, without the module's own notion of a relation."""
    axis, sign = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[relation]
    return all(sign * (getattr(o, axis) - getattr(other, axis)) > 0 for other in others)


def select(scene, words):
    """The objects that `[color] shape[s]` names."""
    *color, shape = words.split()
    return [o for o in scene.objects if o.shape == shape.removesuffix("s") and color in ([], [o.color])]


def right_answer(scene, asked):
    """The answer worked out from the objects, in ways of its own; None for an unknown question."""
    relation = "(left of|right of|above|below)"
    if m := re.fullmatch(r"How many (.+)s are there\?", asked):
        return NUMBERS[len(scene.objects if m[1] == "shape" else select(scene, m[1])) - 1]
    if m := re.fullmatch(r"Is there an? (.+)\?", asked):
        return "yes" if select(scene, m[1]) else "no"
    if m := re.fullmatch(r"What color (is|are) the (\w+)\?", asked):
        if m[2] == "background":
            return scene.background
        assert (m[1] == "is") == (len(select(scene, m[2])) == 1) == (m[2] in SHAPES)
        color, = {o.color for o in select(scene, m[2])}
        return color
    if m := re.fullmatch(r"What shape is (.+)\?", asked):
        shape, = {o.shape for o in scene.objects if m[1] in ("in the image", o.color)}
        return shape
    if m := re.fullmatch(rf"What (is|are) {relation} the (.+)\?", asked):
        others = select(scene, m[3])
        there = [o for o in scene.objects if o not in others]
        assert all(lies(o, m[2], others) for o in there)
        return describe(Scene(tuple(there), "white")).removesuffix(" on a white background")
    if m := re.fullmatch(rf"(Is|Are) the (.+?) {relation} the (.+)\?", asked):
        return "yes" if all(lies(o, m[3], select(scene, m[4])) for o in select(scene, m[2])) else "no"
    if asked == "Describe the image.":
        return describe(scene)


def test_questions_have_the_right_answer_and_yes_is_no_better_a_guess_than_no():
    rng, scenes = rng_and_scenes(10, 3000)
    answers = []
    for scene in scenes:
        asked, answer = question(scene, rng)
        assert answer == right_answer(scene, asked), (asked, answer, describe(scene))
        answers.append(answer)
    yes, no = answers.count("yes"), answers.count("no")
    assert 0.45 < yes / (yes + no) < 0.55


def test_edits_do_what_they_say_and_touch_nothing_else():
    rng, scenes = rng_and_scenes(11, 600)
    kinds = set()
    for scene in scenes:
        text, result = edit(scene, rng)
        verb, named, new = re.fullmatch(
            r"(Make|Replace|Remove|Change) the (.+?)(?: (?:with a |with |to )?(\w+))?\.", text).groups() \
            if not text.startswith("Remove") else ("Remove", text[len("Remove the "):-1], None)
        kinds.add(verb)
        if verb == "Change":
            assert result == replace(scene, background=new) != scene
            continue
        touched = select(scene, named)
        assert touched and len({(o.color, o.shape) for o in touched}) == 1
        expected = tuple(
            o if o not in touched else replace(o, color=new) if verb == "Make" else replace(o, shape=new.removesuffix("s"))
            for o in scene.objects if o not in touched or verb != "Remove")
        assert result == Scene(expected, scene.background) != scene and result.objects
        assert score(draw(result), describe(result)).correct
    assert kinds == {"Make", "Replace", "Remove", "Change"}


def test_sentences_are_true_and_their_pictures_follow():
    rng, scenes = rng_and_scenes(12, 1000)
    seen = set()
    for scene in scenes:
        order, sentence, result = sentence_and_picture(scene, rng)
        drawn, = result.groups
        assert result.background == scene.background
        if m := re.fullmatch(r"Draw a (\w+) in the color of the (\w+)\.", order):
            named = select(scene, m[2])
            assert sentence == f"The {m[2]} {'is' if len(named) == 1 else 'are'} {named[0].color}."
            assert drawn == Group(1, named[0].color, m[1])
        elif m := re.fullmatch(r"Draw the same number of (\w+)s\.", order):
            assert drawn == Group(len(scene.objects), scene.objects[0].color, m[1])
            assert f" {NUMBERS[drawn.count - 1]} {scene.objects[0].shape}" in sentence
        elif m := re.fullmatch(r"Draw as many (\w+) (\w+)s as there are (.+)s\.", order):
            assert drawn == Group(len(select(scene, m[3])), m[1], m[2])
            assert f" {NUMBERS[drawn.count - 1]} {m[3]}" in sentence
        else:
            m = re.fullmatch(r"Draw only what is (left of|right of|above|below) the (.+)\.", order)
            others = select(scene, m[2])
            there = [o for o in scene.objects if o not in others]
            assert all(lies(o, m[1], others) for o in there)
            assert drawn == Group(len(there), there[0].color, there[0].shape)
            assert sentence.lower().startswith(drawn.text)
        seen.add(m.re.pattern)
    assert len(seen) == 4
