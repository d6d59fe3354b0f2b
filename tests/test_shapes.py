"""The toy world must be true: scenes, words and scores agree, and nothing held out leaks."""

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from shapes import (BACKGROUNDS, COLORS, HELD_OUT, NUMBERS, SHAPES, TASKS, TEXT_QUESTIONS, Group, Object, Scene,
                    Specification, caption, compose, describe, draw, edit, parse_prompt, question, random_scene, score,
                    sentence_and_picture, task_prompts, text_question)


def rng_and_scenes(seed, count, **options):
    rng = np.random.default_rng(seed)
    return rng, [random_scene(rng, **options) for _ in range(count)]


def names_held_out(text):
    return any(re.search(rf"\b{color} {shape}s?\b", text.lower()) for color, shape in HELD_OUT)


def shows_held_out(scene):
    return any((o.color, o.shape) in HELD_OUT for o in scene.objects)


@pytest.mark.parametrize("side", (32, 64))
def test_the_scorer_is_right_on_its_own_scenes(side):
    rng, scenes = rng_and_scenes(side, 500)
    scenes += [random_scene(rng, held_out=True) for _ in range(100)]
    scenes += [compose(parse_prompt(p), rng) for task in ("counting", "position") for p in task_prompts(task, 200, rng)]
    results = [score(draw(s, side), describe(s)) for s in scenes]
    assert len(scenes) == 1000 and np.mean([r.correct for r in results]) >= 0.995
    assert np.mean([r.outline_error for r in results]) < 0.01


def test_slight_blur_noise_and_tint_are_forgiven_but_seen_in_the_outline():
    rng, scenes = rng_and_scenes(2, 80)
    clean, soft = [], []
    for scene in scenes:
        array = np.asarray(draw(scene).filter(ImageFilter.GaussianBlur(0.5))) / 255
        array = array + rng.normal(0, 0.02, array.shape) + rng.normal(0, 0.03, 3)
        clean.append(score(np.asarray(draw(scene)), describe(scene)))
        soft.append(score(array.transpose(2, 0, 1), describe(scene)))
    assert np.mean([s.correct for s in soft]) > 0.97
    assert np.mean([s.outline_error for s in soft]) > 3 * np.mean([s.outline_error for s in clean])


def test_wrong_missing_and_extra_objects_and_backgrounds_are_noticed():
    _, scenes = rng_and_scenes(3, 30)
    for scene in scenes:
        first, rest = scene.objects[0], scene.objects[1:]
        damaged = [replace(scene, objects=(replace(first, color=c), *rest)) for c in COLORS if c != first.color]
        damaged += [replace(scene, objects=(replace(first, shape=s), *rest)) for s in SHAPES if s != first.shape]
        damaged += [replace(scene, background=b) for b in BACKGROUNDS if b != scene.background]
        damaged.append(replace(scene, objects=rest))
        assert not any(score(draw(d), describe(scene)).correct for d in damaged)
        if rest:  # seen the other way round, the whole scene has one object too many
            assert not score(draw(scene), describe(damaged[-1])).correct
    nothing = score(Image.new("RGB", (32, 32), BACKGROUNDS["white"]), "a circle")
    assert not nothing.correct and np.isnan(nothing.outline_error)


@pytest.mark.parametrize("shape", SHAPES)
def test_blurred_merged_and_two_coloured_objects_are_not_right(shape):
    red, yellow = (Object(shape, color, 0.38, 0.5, 0.2) for color in ("red", "yellow"))
    for other in (red, yellow):
        merged = draw(Scene((red, replace(other, x=0.62)), "white"))
        assert not any(score(merged, p).correct for p in (f"a red {shape}", f"a {shape}", f"two red {shape}s"))
    left, right = (np.asarray(draw(Scene((replace(o, x=0.5),), "black"))) for o in (red, yellow))
    mixed = np.concatenate([left[:, :15], right[:, 15:]], axis=1)  # neither colour is the object's
    assert not any(score(mixed, f"a {color} {shape}").correct for color in ("red", "yellow"))
    blurred = draw(Scene((red,), "white")).filter(ImageFilter.GaussianBlur(8))
    assert not score(blurred, f"a red {shape}").correct


def test_one_seed_gives_the_same_scene_whole_and_apart():
    def everything(seed):
        rng, (scene,) = rng_and_scenes(seed, 1)
        return (scene, caption(scene, rng), question(scene, rng), edit(scene, rng), sentence_and_picture(scene, rng),
                text_question(rng), task_prompts("color_attr", 5, rng), compose(parse_prompt("two stars"), rng))
    assert everything(7) == everything(7) != everything(8)
    for scene in rng_and_scenes(5, 300)[1]:
        array = np.asarray(draw(scene)).astype(int)
        border = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]])
        assert np.abs(border - BACKGROUNDS[scene.background]).max() <= 1
        assert all(max(abs(a.x - b.x), abs(a.y - b.y)) >= 1.2 * (a.radius + b.radius) + 2 / 32 - 1e-9
                   for a, b in combinations(scene.objects, 2))


def test_held_out_pairs_stay_out_of_training():
    rng, scenes = rng_and_scenes(6, 1000)
    for scene in scenes:
        instruction, edited = edit(scene, rng)
        order, sentence, drawn = sentence_and_picture(scene, rng)
        assert not any(shows_held_out(s) for s in (scene, edited, drawn))
        assert not any(map(names_held_out, [caption(scene, rng), describe(scene), instruction, order, sentence,
                                            *question(scene, rng)]))
    assert not any(names_held_out(f"{q} {a}") for q, a in TEXT_QUESTIONS)
    assert not any(names_held_out(p) for task in TASKS for p in task_prompts(task, 500, rng))
    for scene in rng_and_scenes(7, 100, held_out=True)[1]:
        assert shows_held_out(scene) and not shows_held_out(edit(scene, rng)[1])
        assert not shows_held_out(sentence_and_picture(scene, rng)[2])
    assert all(names_held_out(p) for task in ("colors", "color_attr") for p in task_prompts(task, 100, rng, True))
    with pytest.raises(ValueError):
        task_prompts("counting", 1, rng, held_out=True)


def test_captions_are_true_and_prompts_round_trip():
    rng, scenes = rng_and_scenes(8, 60)
    pairs = [(scene, text) for scene in scenes for text in (caption(scene, rng), describe(scene))]
    pairs += [(compose(parse_prompt(text), rng), text) for task in TASKS for text in task_prompts(task, 15, rng)]
    for scene, text in pairs:
        assert parse_prompt(text).text == text and score(draw(scene), text).correct
    assert parse_prompt("two red circles above a blue square on a black background") == Specification(
        (Group(2, "red", "circle"), Group(1, "blue", "square")), "above", "black")
    assert sorted(task_prompts("position", 96, rng)) == sorted(2 * task_prompts("position", 48, rng))  # spread evenly


def test_text_outside_the_grammar_is_refused():
    for text in ("", "a circles", "two circle", "a orange star", "five stars", "a star on a red background", "A circle",
                 "a red circle and a square", "a circle and a circle", "three stars and two circles"):
        with pytest.raises(ValueError):
            parse_prompt(text)


def select(scene, words):
    """The objects that `[color] shape[s]` names."""
    *color, shape = words.split()
    return [o for o in scene.objects if o.shape == shape.removesuffix("s") and color in ([], [o.color])]


def lies(objects, relation, others):
    axis, sign = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[relation]
    return all(sign * (getattr(o, axis) - getattr(other, axis)) > 0 for o in objects for other in others)


def right_answer(scene, asked):
    """The answer worked out from the objects, in ways of its own."""
    if m := re.fullmatch(r"How many (.+)s are there\?", asked):
        return NUMBERS[len(scene.objects if m[1] == "shape" else select(scene, m[1])) - 1]
    if m := re.fullmatch(r"Is there an? (.+)\?", asked):
        return "yes" if select(scene, m[1]) else "no"
    if m := re.fullmatch(r"What color (?:is|are) the (\w+)\?", asked):
        color, = {scene.background} if m[1] == "background" else {o.color for o in select(scene, m[1])}
        return color
    if m := re.fullmatch(r"What shape is (.+)\?", asked):
        shape, = {o.shape for o in scene.objects if m[1] in ("in the image", o.color)}
        return shape
    if m := re.fullmatch(r"(?:Is|Are) the (.+?) ((?:left|right) of|above|below) the (.+)\?", asked):
        return "yes" if lies(select(scene, m[1]), m[2], select(scene, m[3])) else "no"
    if m := re.fullmatch(r"What (?:is|are) (.+) the (.+)\?", asked):
        there = tuple(o for o in scene.objects if o not in select(scene, m[2]))
        assert lies(there, m[1], select(scene, m[2]))
        return describe(Scene(there, "white")).removesuffix(" on a white background")
    assert asked == "Describe the image."
    return describe(scene)


def test_questions_have_the_right_answer_and_yes_is_no_better_a_guess_than_no():
    rng, scenes = rng_and_scenes(10, 2000)
    pairs = [(scene, *question(scene, rng)) for scene in scenes]
    assert all(answer == right_answer(scene, asked) for scene, asked, answer in pairs)
    answers = [answer for _, _, answer in pairs]
    assert 0.45 < answers.count("yes") / (answers.count("yes") + answers.count("no")) < 0.55


def test_edits_do_what_they_say_and_touch_nothing_else():
    rng, scenes = rng_and_scenes(11, 600)
    for scene in scenes:
        text, result = edit(scene, rng)
        verb, named = re.match(r"(\w+) the ((?:\w+ )?(?:background|(?:" + "|".join(SHAPES) + r")s?))\b", text).groups()
        new, touched = text.split()[-1].rstrip("s."), [] if verb == "Change" else select(scene, named)
        change = {"Make": {"color": new}, "Replace": {"shape": new}}.get(verb, {})
        expected = tuple(replace(o, **change) if o in touched else o
                         for o in scene.objects if verb != "Remove" or o not in touched)
        assert result == Scene(expected, new if verb == "Change" else scene.background) != scene and result.objects
        assert verb == "Change" or len({(o.color, o.shape) for o in touched}) == 1


def test_sentences_are_true_and_their_pictures_follow():
    rng, scenes = rng_and_scenes(12, 600)
    for scene in scenes:
        order, sentence, result = sentence_and_picture(scene, rng)
        drawn, = result.groups
        count, color, shape = len(scene.objects), scene.objects[0].color, order.split()[-1].rstrip("s.")
        if m := re.fullmatch(r"Draw a (\w+) in the color of the (\w+)\.", order):
            count, color, shape = 1, select(scene, m[2])[0].color, m[1]
            assert sentence.endswith(f"he {m[2]} {'are' if m[2][-1] == 's' else 'is'} {color}.")
        elif m := re.fullmatch(r"Draw as many (\w+) (\w+)s as there are (.+)s\.", order):
            count, color, shape = len(select(scene, m[3])), m[1], m[2]
            assert f" {NUMBERS[count - 1]} {m[3]}" in sentence
        elif m := re.fullmatch(r"Draw only what is ((?:left|right) of|above|below) the (.+)\.", order):
            there = [o for o in scene.objects if o not in select(scene, m[2])]
            count, color, shape = len(there), there[0].color, there[0].shape
            assert lies(there, m[1], select(scene, m[2])) and sentence.lower().startswith(drawn.text)
        assert drawn == Group(count, color, shape) and result.background == scene.background
