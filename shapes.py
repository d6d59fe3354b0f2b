"""The toy world: draws, describes, asks about, edits and scores simple scenes.

A scene holds one to four flat shapes on a plain background, in one or two groups of one shape and colour each ("two red
circles above a blue square on a black background"). A generated picture is scored without any network: does it show
what was asked for (as in GenEval)? Lengths and positions are fractions of the picture's side; x runs right, y down.
"""

import re
from collections import Counter, namedtuple
from dataclasses import dataclass, make_dataclass, replace
from itertools import permutations, product

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

SHAPES = ("circle", "square", "triangle", "star")
COLORS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220),
          "yellow": (240, 200, 40), "purple": (150, 60, 190), "orange": (240, 130, 30)}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (130, 130, 130), "black": (20, 20, 20)}
# "A left of B": the direction in which A lies, seen from B.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}
NUMBERS = ("one", "two", "three", "four")
# Never shown in training: a model that can draw these pairs has learnt colour and shape separately.
HELD_OUT = {("purple", "triangle"), ("orange", "star"), ("green", "circle"), ("yellow", "square")}
ALLOWED = [pair for pair in product(COLORS, SHAPES) if pair not in HELD_OUT]
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


# ---- scenes, and the prompts that ask for them -----------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """`count` objects of one shape and colour; color None means that it is not named."""
    count: int
    color: str | None
    shape: str

    @property
    def noun(self):
        return (f"{self.color} " if self.color else "") + self.shape + ("s" if self.count > 1 else "")

    @property
    def text(self):
        number = NUMBERS[self.count - 1] if self.count > 1 else "an" if self.color == "orange" else "a"
        return f"{number} {self.noun}"

    def fits(self, thing):
        return thing.shape == self.shape and self.color in (None, thing.color)


@dataclass(frozen=True)
class Specification:
    """What the prompt `text` asks for; with a relation, the first group lies `relation` the second."""
    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def text(self):
        text = f" {self.relation or 'and'} ".join(group.text for group in self.groups)
        return text + (f" on a {self.background} background" if self.background else "")


# (x, y) is the centre of the bounding box.
Object = make_dataclass("Object", ["shape", "color", "x", "y", "radius"], frozen=True)


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]
    background: str

    @property
    def groups(self):
        """The one or two groups, in the order in which they first appear among the objects."""
        return tuple(Group(n, *pair) for pair, n in Counter((o.color, o.shape) for o in self.objects).items())

    @property
    def views(self):
        """All that is true of the scene, as one Specification for each group, in which that group comes first."""
        groups = self.groups
        centres = [np.array([(o.x, o.y) for o in self.objects if g.fits(o)]) for g in groups]
        relation = next((r for r in RELATIONS if len(groups) == 2 and clearly_related(*centres, r)), None)
        view = Specification(groups, relation, self.background)
        return [view, replace(view, groups=groups[::-1], relation=OPPOSITE[relation])][:len(groups)]


GROUPS = {group.text: group for group in (Group(*kind) for kind in product((1, 2, 3, 4), (None, *COLORS), SHAPES))}
PROMPT_PATTERN = re.compile("({0})(?: (and|{1}) ({0}))?(?: on a ({2}) background)?".format(
    *("|".join(options) for options in (GROUPS, RELATIONS, BACKGROUNDS))))


def parse_prompt(text: str) -> Specification:
    """The Specification that a prompt stands for; ValueError for text outside the grammar."""
    if match := PROMPT_PATTERN.fullmatch(text):
        first, link, second, background = match.groups()
        groups = tuple(GROUPS[name] for name in (first, second) if name)
        kinds = {(group.color, group.shape) for group in groups}
        colors_agree = len({color is None for color, shape in kinds}) == 1  # all named or none
        if len(kinds) == len(groups) and colors_agree and sum(group.count for group in groups) <= 4:
            return Specification(groups, link if link in RELATIONS else None, background)
    raise ValueError(f"not a prompt of this world: {text!r}")


# ---- making and drawing scenes ---------------------------------------------------------------------------------------

# Radii (smallest, largest) for one object and for several. Each object keeps to its cell, a square of half side CELL * radius
# into which every shape fits, so that an edit can swap shapes in place.
RADII, CELL = ((0.26, 0.34), (0.15, 0.178)), 1.2
MARGIN, GAP = 0.035, 2 / 32  # between a cell and the border of the picture, and between two cells


def pick(rng, options):
    """One of the options, each as likely (rng.choice would turn them into numpy values)."""
    return list(options)[rng.integers(len(options))]


def clearly_related(first, second, relation):
    """(...) booleans: do centres `first` (..., n, 2) all lie on that side of `second` (..., m, 2), mostly along it?"""
    direction = np.array(RELATIONS[relation])
    apart = (first @ direction).min(-1) - (second @ direction).max(-1) >= 0.1
    offset = first.mean(-2) - second.mean(-2)
    return apart & (offset @ direction >= 0.8 * np.hypot(offset[..., 0], offset[..., 1]))


def slots(groups: tuple[Group, ...], relation: str | None) -> np.ndarray:
    """About where the objects go, (n, 2): with a relation each group fills its side of the picture, evenly."""
    if relation:
        axis, across = np.array(RELATIONS[relation]), np.array(RELATIONS[relation])[::-1]
        sides = zip((0.25, -0.25), (np.arange(g.count) / g.count + 0.5 / g.count - 0.5 for g in groups))
        return np.concatenate([0.5 + side * axis + along[:, None] * np.abs(across) for side, along in sides])
    corners = {1: [(2, 2)], 2: [(1, 1), (3, 3)], 3: [(2, 1), (1, 3), (3, 3)], 4: [(1, 1), (3, 1), (1, 3), (3, 3)]}
    return np.array(corners[sum(group.count for group in groups)]) / 4


def compose(specification: Specification, rng: Generator) -> Scene:
    """A random Scene that satisfies the specification; a held-out pair appears only where that names it."""
    first, relation = specification.groups[0].count, specification.relation
    kinds = [(g.shape, color) for g in specification.groups
             for color in g.count * [g.color or pick(rng, [c for c, s in ALLOWED if s == g.shape])]]
    radii, spread = rng.uniform(*RADII[len(kinds) > 1], len(kinds)), 0.06
    one, other = np.triu_indices(len(kinds), 1)
    while True:  # of 64 layouts near the slots take the first that meets all conditions
        border = (MARGIN + CELL * radii)[:, None]
        layouts = slots(specification.groups, relation) + rng.uniform(-spread, spread, (64, len(kinds), 2))
        layouts = layouts.clip(border, 1 - border)
        distances = np.abs(layouts[:, one] - layouts[:, other]).max(-1)
        good = (distances >= CELL * (radii[one] + radii[other]) + GAP).all(-1)
        if relation:
            good &= clearly_related(layouts[:, :first], layouts[:, first:], relation)
        if good.any():
            places = zip(kinds, layouts[good.argmax()].tolist(), radii.tolist())
            objects = tuple(Object(*kind, *centre, radius) for kind, centre, radius in places)
            return Scene(objects, specification.background or pick(rng, BACKGROUNDS))
        radii, spread = np.maximum(0.95 * radii, 0.12), min(1.1 * spread, 0.5)  # crowded: smaller, and further from the slots


def random_scene(rng: Generator, max_objects: int = 4, held_out: bool = False) -> Scene:
    """A random Scene of 1 to max_objects (at most 4) objects; with held_out one group is a held-out pair, else none."""
    weights = np.array([0.25, 0.35, 0.2, 0.2])[:max_objects]
    total = int(rng.choice(len(weights), p=weights / weights.sum())) + 1
    pairs, first, relation = [pick(rng, sorted(HELD_OUT) if held_out else ALLOWED)], total, None
    if total > 1 and rng.random() < 0.6:
        pairs.insert(rng.integers(2), pick(rng, [pair for pair in ALLOWED if pair not in pairs]))
        relation = pick(rng, RELATIONS) if rng.random() < 0.5 else None
        first = 2 if relation and total == 4 else int(rng.integers(1, total))  # three in a row would have to be small
    groups = tuple(Group(count, *pair) for count, pair in zip((first, total - first), pairs))
    return compose(Specification(groups, relation), rng)


def outline(corners, size, turn=0, inner=1):
    """Corners (n, 2) of a regular polygon, every other one nearer (`inner`), its bounding box centred on the origin."""
    angles = 2 * np.pi * (np.arange(corners) + turn) / corners
    sizes = np.resize([size, inner * size], corners)
    points = np.stack([sizes * np.sin(angles), -sizes * np.cos(angles)], axis=-1)
    return points - (points.min(0) + points.max(0)) / 2


# At radius 1, in sizes that make the four look equally large: a star is thin, a square is full.
OUTLINES = {"circle": outline(64, 0.98), "square": outline(4, 1.18, turn=0.5), "triangle": outline(3, 1.3),
            "star": outline(10, 1.25, inner=0.45)}


def paint(objects, background, side):
    """A PIL picture of (shape, x, y, radius, ink) objects; inks are RGB triples or grey levels, 0 to 255."""
    scale = 8 * side  # drawn large and averaged down, so that an edge pixel mixes by the area covered
    picture = Image.new("RGB" if isinstance(background, tuple) else "L", (scale, scale), background)
    pen = ImageDraw.Draw(picture)
    for shape, x, y, radius, ink in objects:
        points = (OUTLINES[shape] * radius + (x, y)) * scale - 0.5  # Pillow counts from pixel centres
        pen.polygon(points.ravel().tolist(), fill=ink)
    return picture.reduce(8)


def draw(scene: Scene, side: int = 32) -> Image.Image:
    """The scene as a picture, RGB, side x side pixels."""
    return paint([(o.shape, o.x, o.y, o.radius, COLORS[o.color]) for o in scene.objects], BACKGROUNDS[scene.background], side)


# ---- describing, asking, editing -------------------------------------------------------------------------------------

def in_reading_order(scene: Scene) -> list[Specification]:
    """The scene's views: first that whose first group lies left or above, or where neither is clear, holds the object that is
    met first in reading."""
    def place(view):  # rows weigh more than columns
        first = min(o.y + o.x / 2 for o in scene.objects if view.groups[0].fits(o))
        return view.relation in ("right of", "below"), first
    return sorted(scene.views, key=place)


def describe(scene: Scene) -> str:
    """The one full caption, in reading order, so that it depends on nothing but the picture."""
    return in_reading_order(scene)[0].text


def caption(scene: Scene, rng: Generator) -> str:
    """A true caption in the prompts' grammar that names a random part of what there is to see. Groups are named in reading
    order; only a relation can be told from either side."""
    views = in_reading_order(scene)
    related = views[0].relation and rng.random() < 0.6
    view = views[1 if related and rng.random() < 0.5 else 0]
    if rng.random() < 0.5 and len({g.shape for g in view.groups}) == len(views):
        view = replace(view, groups=tuple(replace(g, color=None) for g in view.groups))
    return replace(view, relation=view.relation if related else None,
                   background=view.background if rng.random() < 0.3 else None).text


def is_there(scene, rng):
    """(question, answer) after the presence of a shape, with or without a colour; half are yes."""
    present = [(g.color, g.shape) for g in scene.groups]
    colors, shapes = zip(*present)
    with_color, answer, hard = rng.random(3) < 0.5
    absent = [(c, s) for c, s in ALLOWED if s not in shapes or with_color and (c, s) not in present]
    if with_color and hard:  # the scene has the colour or the shape, but not together
        absent = [(c, s) for c, s in absent if c in colors or s in shapes]
    color, shape = pick(rng, present if answer else absent)
    return f"Is there {Group(1, color if with_color else None, shape).text}?", "yes" if answer else "no"


def question(scene: Scene, rng: Generator) -> tuple[str, str]:
    """(question, answer) about the scene: a random form that has just one right answer here, yes as often as no.
    Held-out pairs are named only if present."""
    view = pick(rng, scene.views)
    group, other, relation = view.groups[0], view.groups[-1], view.relation  # of one group, other is group
    verb, plain = "is" if group.count == 1 else "are", replace(group, color=None).noun
    number, things = pick(rng, [(group.count, f"{group.color} {group.shape}s"), (len(scene.objects), "shapes"),
                                (sum(o.shape == group.shape for o in scene.objects), f"{group.shape}s")])
    forms = [  # whether it has one right answer, question, answer
        (True, f"How many {things} are there?", NUMBERS[number - 1]),
        (True, *is_there(scene, rng)), (True, *is_there(scene, rng)),
        (True, "What color is the background?", scene.background), (True, "Describe the image.", describe(scene)),
        (group is other or group.shape != other.shape, f"What color {verb} the {plain}?", group.color),
        (group is other or group.color != other.color, f"What shape is {group.color}?", group.shape),
        (group.shape == other.shape, "What shape is in the image?", group.shape)]
    if relation:
        asked, answer = pick(rng, [(relation, "yes"), (OPPOSITE[relation], "no")])
        forms += 2 * [(True, f"What {verb} {relation} the {other.noun}?", group.text)]
        forms.append((True, f"{verb.capitalize()} the {group.noun} {asked} the {other.noun}?", answer))
    return pick(rng, [(text, answer) for possible, text, answer in forms if possible])


def edit(scene: Scene, rng: Generator) -> tuple[str, Scene]:
    """(instruction, edited scene): one group is recoloured, replaced or removed, or the background changed; all else
    stays as it is. The result holds no held-out pair."""
    group = pick(rng, [g for g in scene.groups if (g.color, g.shape) in HELD_OUT] or scene.groups)
    alone = sum(g.shape == group.shape for g in scene.groups) == 1  # then the colour may go unsaid
    name = "the " + replace(group, color=None if alone and rng.random() < 0.5 else group.color).noun

    def changed(**changes):
        return replace(scene, objects=tuple(replace(o, **changes) if group.fits(o) else o for o in scene.objects))

    kinds = [[(f"Change the background to {b}.", replace(scene, background=b)) for b in BACKGROUNDS],
             [(f"Make {name} {color}.", changed(color=color)) for color in COLORS],
             [(f"Replace {name} with {'a ' + s if group.count == 1 else s + 's'}.", changed(shape=s)) for s in SHAPES],
             [(f"Remove {name}.", replace(scene, objects=tuple(o for o in scene.objects if not group.fits(o))))]]
    kinds = [[(text, result) for text, result in kind if result.objects and result != scene
              and not any((o.color, o.shape) in HELD_OUT for o in result.objects)] for kind in kinds]
    return pick(rng, pick(rng, [kind for kind in kinds if kind]))


def sentence_and_picture(scene: Scene, rng: Generator) -> tuple[str, str, Scene]:
    """(instruction, sentence, new scene): look at the scene, say what matters in it, then draw. What the instruction
    leaves open is taken over from the scene; only places and sizes are random."""
    view = pick(rng, scene.views)
    group, other, relation = view.groups[0], view.groups[-1], view.relation
    color, shape = pick(rng, [pair for pair in ALLOWED if pair[1] != group.shape])
    same_color = pick(rng, [s for c, s in ALLOWED if c == group.color and s != group.shape])
    verb, plain = "is" if group.count == 1 else "are", replace(group, color=None).noun
    there_are, where = f"There {verb} {NUMBERS[group.count - 1]}", f"{relation} the {other.noun}"
    forms = [  # whether it makes sense, instruction, sentence, what to draw
        (True, f"Draw as many {color} {shape}s as there are {group.color} {group.shape}s.",
         f"{there_are} {group.noun}.", Group(group.count, color, shape)),
        (group is other or group.shape != other.shape, f"Draw a {same_color} in the color of the {plain}.",
         f"The {plain} {verb} {group.color}.", Group(1, group.color, same_color)),
        (group is other, f"Draw the same number of {same_color}s.",
         f"{there_are} {plain}.", replace(group, shape=same_color)),
        (relation and (group.color, group.shape) in ALLOWED, f"Draw only what is {where}.",
         f"{group.text.capitalize()} {verb} {where}.", group)]
    instruction, sentence, wanted = pick(rng, [form for possible, *form in forms if possible])
    return instruction, sentence, compose(Specification((wanted,), None, scene.background), rng)


WORDS = ("zero", *NUMBERS, "five", "six", "seven", "eight")
TEXT_QUESTIONS = (
    *((f"What is {WORDS[a]} plus {WORDS[b]}?", WORDS[a + b]) for a in range(1, 5) for b in range(1, 5)),
    *((f"What is {WORDS[a]} minus {WORDS[b]}?", WORDS[a - b]) for a in range(1, 5) for b in range(1, a + 1)),
    *((f"What number comes after {WORDS[a]}?", WORDS[a + 1]) for a in range(1, 5)),
    ("How many corners does a triangle have?", "three"), ("How many corners does a square have?", "four"),
    ("Which shape has three sides?", "triangle"), ("Which shape has four sides?", "square"),
    ("How many points does a star have?", "five"), ("Which shape has five points?", "star"),
    ("How many corners does a circle have?", "zero"), ("Which shape is round?", "circle"),
    *((f"What is the opposite of {a}?", b) for pair in (("left", "right"), ("above", "below"), ("black", "white"))
      for a, b in (pair, pair[::-1])),
    ("What color do red and yellow make?", "orange"), ("What color do red and blue make?", "purple"),
    ("What color do blue and yellow make?", "green"), ("What color do black and white make?", "gray"))


def text_question(rng: Generator) -> tuple[str, str]:
    """(question, answer) that needs no picture."""
    return pick(rng, TEXT_QUESTIONS)


def task_prompts(task: str, count: int, rng: Generator, held_out: bool = False) -> list[str]:
    """`count` prompts of one of the TASKS, GenEval's six in miniature, in random order, all equally often (± 1).
    With held_out each names a held-out pair (ValueError where the task names no colours), else none does."""
    plain, colored = ([Group(1, *pair) for pair in product(colors, SHAPES)] for colors in ([None], COLORS))
    choices = {
        "single_object": product(plain), "two_object": permutations(plain, 2), "position": permutations(plain, 2),
        "counting": ((replace(group, count=n),) for group in plain for n in (2, 3, 4)), "colors": product(colored),
        "color_attr": ((a, b) for a, b in permutations(colored, 2) if a.color != b.color and a.shape != b.shape)}
    prompts = [Specification(groups, relation).text for groups in choices[task]
               for relation in (RELATIONS if task == "position" else [None])
               if any((g.color, g.shape) in HELD_OUT for g in groups) == held_out]
    if not prompts:
        raise ValueError(f"{task} names no colours, so it has no held-out prompts")
    return [prompts[i] for _ in range(0, count, len(prompts)) for i in rng.permutation(len(prompts))][:count]


# ---- scoring ---------------------------------------------------------------------------------------------------------

# An object seen in a picture. Where nothing fits well, shape and color are "unknown"; nearest_shape is the best of the
# four, misfit the area where that and the object differ (in areas of the object), ink the colour measured, 0 to 1.
Found = namedtuple("Found", "shape color x y radius nearest_shape misfit ink")
Score = namedtuple("Score", "correct reason outline_error")
CONTRAST = 0.2          # RGB distance that tells an object from the background (least, purple on gray: 0.37)
SMALLEST_AREA = 0.005   # as a part of the picture; less is a stray speck (the smallest star has 0.029)
COLOR_TOLERANCE = 0.22  # RGB distance beyond which a colour is not that of the palette
MISFIT_LIMIT = 0.25


def look(picture):
    """(array (side, side, 3) in [0, 1], its background's colour (3,)) for a square picture: PIL, a uint8 array
    (side, side, 3), or a float array or CPU tensor (3, side, side) in [0, 1]."""
    array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    array = array / 255 if array.dtype == np.uint8 else array.astype(float).transpose(1, 2, 0).clip(0, 1)
    # Objects lie inside, so the border shows nothing but the background.
    return array, np.median(np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]]), axis=0)


def nearest_color(ink, palette):
    """The name of the palette's colour nearest to ink (3,), or "unknown"."""
    distance, name = min((np.linalg.norm(np.array(rgb) / 255 - ink), name) for name, rgb in palette.items())
    return name if distance < COLOR_TOLERANCE else "unknown"


def rank_filter(array, kind):
    """A Pillow rank filter, such as ImageFilter.MaxFilter(3), of a boolean or [0, 1] array."""
    return np.asarray(Image.fromarray((array * 255).astype(np.uint8)).filter(kind)) / 255


def components(mask):
    """The connected components (diagonal contact counts) of a boolean mask, each as a mask."""
    todo = set(map(tuple, np.argwhere(mask).tolist()))
    while todo:
        stack, component = [todo.pop()], np.zeros_like(mask)
        while stack:
            row, column = stack.pop()
            component[row, column] = True
            near = [at for at in product((row - 1, row, row + 1), (column - 1, column, column + 1)) if at in todo]
            todo.difference_update(near)
            stack += near
        yield component


def area_and_centroid(coverage):
    """Area, and centre of mass (x, y), of a (side, side) array that holds the part covered of each pixel."""
    at = (np.arange(len(coverage)) + 0.5) / len(coverage)
    return coverage.mean(), np.array([coverage.sum(0) @ at, coverage.sum(1) @ at]) / coverage.sum()


# What these are for each shape at radius 1/4 in the middle of a picture.
UNIT = {shape: area_and_centroid(np.asarray(paint([(shape, 0.5, 0.5, 0.25, 255)], 0, 128)) / 255) for shape in SHAPES}


def examine(array, background, component):
    """What one component of the foreground (a mask) is, as Found."""
    # Edge pixels mix object and background and may resemble a third colour: judge by the inside.
    inside = rank_filter(component, ImageFilter.MinFilter(3)) == 1
    inks = array[inside if inside.sum() >= 4 else component]
    ink = np.median(inks, axis=0)
    two_colored = (np.linalg.norm(inks - ink, axis=1) > COLOR_TOLERANCE).mean() > 0.15  # merged objects
    # A pixel is covered as far as its colour lies on the way from the background's to the object's.
    way = ink - background
    coverage = ((array - background) @ way / max(way @ way, 1e-9)).clip(0, 1)
    coverage *= rank_filter(component, ImageFilter.MaxFilter(3))
    if coverage.sum() < component.sum() / 4:  # a patchwork, whose median colour is none of its own
        coverage = component.astype(float)
    area, centroid = area_and_centroid(coverage)
    # Each shape is redrawn with the same area and centre of mass; the one that agrees best wins.
    fits = []
    for shape, (unit_area, unit_centroid) in UNIT.items():
        radius = 0.25 * float(np.sqrt(area / unit_area))
        x, y = (centroid - 4 * radius * (unit_centroid - 0.5)).tolist()
        ideal = np.asarray(paint([(shape, x, y, radius, 255)], 0, len(array))) / 255
        # Edges are compared twice as steep: what a slight blur and noise spoil is undone.
        difference = np.abs((2 * ideal - 0.5).clip(0, 1) - (2 * coverage - 0.5).clip(0, 1))
        fits.append((float(difference.sum() / coverage.sum()), shape, x, y, radius))
    misfit, shape, x, y, radius = min(fits)
    color = "unknown" if two_colored else nearest_color(ink, COLORS)
    return Found(shape if misfit < MISFIT_LIMIT else "unknown", color, x, y, radius, shape, misfit, tuple(ink.tolist()))


def find_objects(picture) -> tuple[list[Found], str]:
    """(the objects, name of the background or "unknown") for a picture as in look."""
    array, background = look(picture)
    contrast = np.linalg.norm(array - background, axis=-1)
    # An edge, sharp or blurred, runs where the contrast falls to half of the strongest nearby.
    masks = components(contrast > np.maximum(CONTRAST, rank_filter(contrast / 2, ImageFilter.MaxFilter(5))))
    found = [examine(array, background, mask) for mask in masks if mask.mean() >= SMALLEST_AREA]
    return found, nearest_color(background, BACKGROUNDS)


def outline_error(picture, found: list[Found]) -> float:
    """Mean absolute difference, in [0, 1], between each Found and its ideal shape redrawn in the colours measured (so
    that a shade off costs nothing), over its bounding box and a margin of 1/16; nan where nothing was found."""
    array, background = look(picture)
    paper, *inks = (tuple(round(255 * value) for value in ink) for ink in (background, *(f.ink for f in found)))
    ideal = paint([(f.nearest_shape, f.x, f.y, f.radius, ink) for f, ink in zip(found, inks)], paper, len(array))
    difference = np.abs(array - np.asarray(ideal) / 255)
    errors = []
    for f in found:
        corners = OUTLINES[f.nearest_shape] * f.radius + (f.x, f.y)
        left, top = np.floor((corners.min(0) - 1 / 16) * len(array)).astype(int).clip(0)
        right, bottom = np.ceil((corners.max(0) + 1 / 16) * len(array)).astype(int)
        errors.append(difference[top:bottom, left:right].mean())
    return float(np.mean(errors)) if errors else float("nan")


def score(picture, prompt: str | Specification) -> Score:
    """Does the picture (as in look) show exactly what the prompt asks for? ValueError for text that is no prompt.

    Strict: the named objects and no others, in number, shape and (where named) colour; the named background; for a
    relation, as in GenEval, the step from second to first centre goes at least half its length in that direction."""
    asked = parse_prompt(prompt) if isinstance(prompt, str) else prompt
    found, background = find_objects(picture)
    members = [[f for f in found if group.fits(f)] for group in asked.groups]
    reasons = [f"not asked for: {f.color} {f.shape}" for f in found if not any(f in there for there in members)]
    reasons += [f"{len(there)} found of: {g.text}" for g, there in zip(asked.groups, members) if len(there) != g.count]
    if asked.background not in (None, background):
        reasons.append(f"background: {background}")
    if asked.relation and all(members):
        first, second = (np.mean([(f.x, f.y) for f in there], axis=0) for there in members)
        if (first - second) @ RELATIONS[asked.relation] < 0.5 * np.linalg.norm(first - second):
            reasons.append(f"not {asked.relation}")
    return Score(not reasons, "; ".join(reasons) or "as asked", outline_error(picture, found))
