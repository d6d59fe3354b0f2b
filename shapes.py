"""The toy world: draws, describes, asks about, edits and scores simple scenes.

A scene holds one to four flat shapes on a plain background, in one or two groups; the objects of
a group share shape and colour ("two red circles above a blue square on a black background").
Because the world is this small, everything a multimodal model needs can be made on the fly and
without end: pictures, prompts, questions with answers, editing pairs - and a scorer that looks at
a generated picture and says whether it shows what the prompt asked for, in the spirit of the
GenEval benchmark. Only numpy and Pillow are needed.

Lengths and positions are fractions of the side of the (square) picture; x runs right, y down.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
COLORS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220),
          "yellow": (240, 200, 40), "purple": (150, 60, 190), "orange": (240, 130, 30)}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (130, 130, 130), "black": (20, 20, 20)}
# "A left of B": the direction in which A lies, seen from B.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NUMBERS = ("one", "two", "three", "four")
# Pairs never shown in training: a model that draws them has learnt colour and shape separately.
HELD_OUT = {("purple", "triangle"), ("orange", "star"), ("green", "circle"), ("yellow", "square")}
ALLOWED = [pair for pair in product(COLORS, SHAPES) if pair not in HELD_OUT]
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


# ---- scenes, and the prompts that ask for them ---------------------------------------------------

@dataclass(frozen=True)
class Object:
    """One shape. (x, y) is the centre of its bounding box; all are fractions of the side."""
    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Group:
    """`count` objects of one shape and colour; color None means "not named"."""
    count: int
    color: str | None
    shape: str

    @property
    def noun(self):
        name = f"{self.color} {self.shape}" if self.color else self.shape
        return name if self.count == 1 else name + "s"

    @property
    def text(self):
        if self.count > 1:
            return f"{NUMBERS[self.count - 1]} {self.noun}"
        return f"an {self.noun}" if self.color == "orange" else f"a {self.noun}"


@dataclass(frozen=True)
class Specification:
    """What a prompt asks for: one or two groups, and maybe a relation (the first group is
    `relation` the second) and a background. `text` is the prompt."""
    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self):
        if not (1 <= len(self.groups) <= 2 and 1 <= sum(g.count for g in self.groups) <= 4):
            raise ValueError("a specification has one or two groups and at most four objects")
        if len({(g.color, g.shape) for g in self.groups}) < len(self.groups):
            raise ValueError("two groups must differ in shape or colour")
        if len({g.color is None for g in self.groups}) > 1:
            raise ValueError("name the colour of both groups or of none")
        if self.relation and len(self.groups) < 2:
            raise ValueError("a relation needs two groups")

    @property
    def text(self):
        text = f" {self.relation or 'and'} ".join(group.text for group in self.groups)
        return text + (f" on a {self.background} background" if self.background else "")


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]
    background: str

    @property
    def groups(self):
        """The one or two groups, in the order in which they first appear among the objects."""
        counts = Counter((o.color, o.shape) for o in self.objects)
        return tuple(Group(count, *pair) for pair, count in counts.items())

    @property
    def relation(self):
        """How the first group clearly lies to the second, or None."""
        if len(self.groups) < 2:
            return None
        first, second = (centres(self.objects, group) for group in self.groups)
        return next((r for r in RELATIONS if clearly_related(first, second, r)), None)


GROUP_PATTERN = rf"(an?|two|three|four) (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})s?"
PROMPT_PATTERN = re.compile(rf"{GROUP_PATTERN}(?: (and|{'|'.join(RELATIONS)}) {GROUP_PATTERN})?"
                            rf"(?: on a ({'|'.join(BACKGROUNDS)}) background)?")


def parse_prompt(text):
    """The Specification a prompt stands for; ValueError for text outside the grammar."""
    match = PROMPT_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"not a prompt of this world: {text!r}")
    number, color, shape, link, *second, background = match.groups()
    groups = [(number, color, shape)] + ([tuple(second)] if link else [])
    specification = Specification(
        tuple(Group(NUMBERS.index(n) + 1 if n in NUMBERS else 1, c, s) for n, c, s in groups),
        None if link == "and" else link, background)
    if specification.text != text:  # the pattern lets "an circles" pass
        raise ValueError(f"not a prompt of this world: {text!r}; did you mean {specification.text!r}?")
    return specification


def pick(rng, options):
    """One of the options, all equally likely (rng.choice would turn them into numpy values)."""
    options = list(options)
    return options[rng.integers(len(options))]


# ---- making scenes -------------------------------------------------------------------------------

# Radii (smallest, largest) for one to four objects. An object keeps to a cell, a square of half
# side CELL * radius, into which every shape fits: an edit can then swap shapes in place.
RADII = ((0.20, 0.30), (0.16, 0.22), (0.14, 0.17), (0.13, 0.155))
CELL = 1.2
MARGIN = 1 / 32  # between a cell and the border of the picture: 1 pixel at 32 x 32
GAP = 2 / 32     # between two cells


def centres(objects, group):
    return np.array([(o.x, o.y) for o in objects if (o.color, o.shape) == (group.color, group.shape)])


def clearly_related(first, second, relation):
    """Whether all of `first` lies on that side of all of `second`, mostly along that axis.

    first (..., n, 2) and second (..., m, 2) are centres; returns (...) booleans.
    """
    direction = np.array(RELATIONS[relation])
    apart = (first @ direction).min(-1) - (second @ direction).max(-1) >= 0.1
    offset = first.mean(-2) - second.mean(-2)
    return apart & (offset @ direction >= 0.8 * np.hypot(offset[..., 0], offset[..., 1]))


def place(counts, relation, rng):
    """Centres (n, 2) and radii (n,) for n = sum(counts) objects: apart, inside, as related."""
    total = sum(counts)
    radii = rng.uniform(*RADII[total - 1], total)
    first, second = np.triu_indices(total, 1)
    while True:
        # Rejection sampling: many layouts at once, the first one that holds all conditions wins.
        layouts = rng.random((64, total, 2))
        if relation:  # sorted along the axis, the first group comes to lie on its side
            direction = np.array(RELATIONS[relation])
            order = np.argsort(-(layouts @ direction), axis=1)
            layouts = np.take_along_axis(layouts, order[..., None], axis=1)
        border = (MARGIN + CELL * radii)[:, None]
        layouts = border + layouts * (1 - 2 * border)
        distance = np.abs(layouts[:, first] - layouts[:, second]).max(-1)
        good = (distance >= CELL * (radii[first] + radii[second]) + GAP).all(-1)
        if relation:
            good &= clearly_related(layouts[:, :counts[0]], layouts[:, counts[0]:], relation)
        if good.any():
            return layouts[good.argmax()], radii
        radii = np.maximum(0.95 * radii, 0.12)  # crowded: a little smaller next time


def compose(specification, rng):
    """A random Scene that satisfies the specification.

    What it leaves open (colours, background, places, sizes) is drawn at random; a held-out pair
    appears only where the specification names it.
    """
    groups = [replace(g, color=g.color or pick(rng, [c for c, s in ALLOWED if s == g.shape]))
              for g in specification.groups]
    positions, radii = place([g.count for g in groups], specification.relation, rng)
    kinds = [g for g in groups for _ in range(g.count)]
    return Scene(tuple(Object(g.shape, g.color, float(x), float(y), float(radius))
                       for g, (x, y), radius in zip(kinds, positions, radii)),
                 specification.background or pick(rng, BACKGROUNDS))


def random_scene(rng, max_objects=4, held_out=False):
    """A random Scene of 1 to max_objects (at most 4) objects.

    With held_out at least one group is a held-out pair; without it none is.
    """
    weights = np.array([0.25, 0.35, 0.2, 0.2])[:max_objects]
    total = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    pairs = [pick(rng, sorted(HELD_OUT) if held_out else ALLOWED)]
    counts = [total]
    if total > 1 and rng.random() < 0.6:
        pairs.append(pick(rng, [pair for pair in ALLOWED if pair not in pairs]))
        counts = [int(rng.integers(1, total))]
        counts.append(total - counts[0])
        if rng.random() < 0.5:
            pairs.reverse()
    relation = pick(rng, RELATIONS) if len(pairs) == 2 and rng.random() < 0.6 else None
    return compose(Specification(tuple(Group(n, *pair) for n, pair in zip(counts, pairs)), relation), rng)


# ---- drawing -------------------------------------------------------------------------------------

def unit_outline(shape):
    """The shape's corners (n, 2) at radius 1, its bounding box centred on the origin.

    The sizes give the four shapes areas that look alike (a star is thin, a square is full).
    """
    corners, size = {"circle": (64, 0.98), "square": (4, 1.18), "triangle": (3, 1.3), "star": (10, 1.25)}[shape]
    angles = 2 * np.pi * (np.arange(corners) + (0.5 if shape == "square" else 0)) / corners
    sizes = np.where(np.arange(corners) % 2, 0.45 * size, size) if shape == "star" else size
    points = np.stack([sizes * np.sin(angles), -sizes * np.cos(angles)], axis=-1)
    return points - (points.min(0) + points.max(0)) / 2


OUTLINES = {shape: unit_outline(shape) for shape in SHAPES}
OVERSAMPLING = 8


def paint(objects, background, side):
    """A picture from (shape, x, y, radius, ink) and a background ink, anti-aliased.

    Drawn large and averaged down, so an edge pixel mixes by the area covered. An ink is a grey
    level or an RGB triple, 0 to 255.
    """
    scale = side * OVERSAMPLING
    picture = Image.new("RGB" if isinstance(background, tuple) else "L", (scale, scale), background)
    pen = ImageDraw.Draw(picture)
    for shape, x, y, radius, ink in objects:
        points = (OUTLINES[shape] * radius + (x, y)) * scale - 0.5  # Pillow counts pixel centres
        pen.polygon(points.ravel().tolist(), fill=ink)
    return picture.reduce(OVERSAMPLING)


def draw(scene, side=32):
    """The scene as a PIL picture, RGB, side x side pixels."""
    return paint([(o.shape, o.x, o.y, o.radius, COLORS[o.color]) for o in scene.objects],
                 BACKGROUNDS[scene.background], side)


# ---- describing, asking, editing -----------------------------------------------------------------

def swapped(relation):
    """The relation of the second group to the first."""
    x, y = RELATIONS[relation]
    return next(name for name, direction in RELATIONS.items() if direction == (-x, -y))


def describe(scene):
    """The one full caption: counts, colours, the relation where it is clear, and the background.

    It depends only on what the picture shows: of two groups the left or upper one comes first,
    and where neither is clear, the order is that of SHAPES, then of COLORS.
    """
    groups, relation = scene.groups, scene.relation
    if relation in ("right of", "below"):
        groups, relation = groups[::-1], swapped(relation)
    elif relation is None:
        groups = tuple(sorted(groups, key=lambda g: (SHAPES.index(g.shape), list(COLORS).index(g.color))))
    return Specification(groups, relation, scene.background).text


def caption(scene, rng):
    """A true caption in the prompts' grammar that names a random part of what there is to see."""
    groups, relation = scene.groups, scene.relation
    if len(groups) == 2 and rng.random() < 0.5:
        groups, relation = groups[::-1], relation and swapped(relation)
    if rng.random() < 0.4 and len({g.shape for g in groups}) == len(groups):
        groups = tuple(replace(g, color=None) for g in groups)
    return Specification(groups, relation if rng.random() < 0.6 else None,
                         scene.background if rng.random() < 0.3 else None).text


def the(group, scene, rng):
    """`the red circle`, or `the circle` where that leaves no doubt."""
    alone = sum(g.shape == group.shape for g in scene.groups) == 1
    return "the " + (replace(group, color=None) if alone and rng.random() < 0.5 else group).noun


def question(scene, rng):
    """(question, answer) about the scene: a random form that has just one right answer here.

    Half of the yes/no questions have the answer yes. Held-out pairs are named only if present.
    """
    groups, relation = scene.groups, scene.relation
    group = pick(rng, groups)
    present = {(g.color, g.shape) for g in groups}
    shapes, colors = {g.shape for g in groups}, {g.color for g in groups}
    is_are = "is" if group.count == 1 else "are"
    forms = ["count", "exists", "exists", "background", "describe"]
    if len({g.color for g in groups if g.shape == group.shape}) == 1:
        forms.append("color")
    if len({g.shape for g in groups if g.color == group.color}) == 1:
        forms.append("shape of color")
    if len(shapes) == 1:
        forms.append("shape")
    if relation:
        forms += ["what is there", "what is there", "is it there"]
        other = groups[1 - groups.index(group)]
        to_other = relation if group is groups[0] else swapped(relation)
    form = pick(rng, forms)

    if form == "count":
        asked, number = pick(rng, [
            (group.shape, sum(g.count for g in groups if g.shape == group.shape)),
            (f"{group.color} {group.shape}", group.count), ("shape", len(scene.objects))])
        return f"How many {asked}s are there?", NUMBERS[number - 1]
    if form == "exists":
        with_color = rng.random() < 0.5
        if rng.random() < 0.5:
            return f"Is there {replace(group, count=1, color=group.color if with_color else None).text}?", "yes"
        if not with_color:
            return f"Is there a {pick(rng, [s for s in SHAPES if s not in shapes])}?", "no"
        absent = [pair for pair in ALLOWED if pair not in present]
        if rng.random() < 0.5:  # the harder half: something in the picture has this colour or shape
            absent = [(c, s) for c, s in absent if c in colors or s in shapes]
        return f"Is there {Group(1, *pick(rng, absent)).text}?", "no"
    if form == "background":
        return "What color is the background?", scene.background
    if form == "describe":
        return "Describe the image.", describe(scene)
    if form == "color":
        return f"What color {is_are} the {replace(group, color=None).noun}?", group.color
    if form == "shape of color":
        return f"What shape is {group.color}?", group.shape
    if form == "shape":
        return "What shape is in the image?", group.shape
    if form == "what is there":
        is_are = "is" if group.count == 1 else "are"
        return f"What {is_are} {to_other} the {other.noun}?", group.text
    true = rng.random() < 0.5
    asked = to_other if true else swapped(to_other)
    return f"{is_are.capitalize()} the {group.noun} {asked} the {other.noun}?", "yes" if true else "no"


def pairs_held_out(scene):
    return {(o.color, o.shape) for o in scene.objects} & HELD_OUT


def changed(scene, group, **changes):
    """The scene with these fields changed in all objects of the group, all else in its place."""
    return replace(scene, objects=tuple(
        replace(o, **changes) if (o.color, o.shape) == (group.color, group.shape) else o
        for o in scene.objects))


def edit(scene, rng):
    """(instruction, edited Scene): recolour, replace or remove one group, or a new background.

    Untouched objects stay exactly as they are; the result holds no held-out pair.
    """
    edits = {"background": [(f"Change the background to {name}.", replace(scene, background=name))
                            for name in BACKGROUNDS if name != scene.background]}
    group = pick(rng, [g for g in scene.groups if (g.color, g.shape) in HELD_OUT] or scene.groups)
    name = the(group, scene, rng)
    edits["recolor"] = [(f"Make {name} {color}.", changed(scene, group, color=color))
                        for color in COLORS if color != group.color]
    edits["replace"] = [(f"Replace {name} with {'a ' + shape if group.count == 1 else shape + 's'}.",
                         changed(scene, group, shape=shape)) for shape in SHAPES if shape != group.shape]
    if len(scene.groups) == 2:
        rest = tuple(o for o in scene.objects if (o.color, o.shape) != (group.color, group.shape))
        edits["remove"] = [(f"Remove {name}.", replace(scene, objects=rest))]
    allowed = [[e for e in kind if not pairs_held_out(e[1])] for kind in edits.values()]
    return pick(rng, pick(rng, [kind for kind in allowed if kind]))


def sentence_and_picture(scene, rng):
    """(instruction, sentence, new Scene): look at the scene, say what matters in it, then draw.

    What the instruction leaves open is taken over from the scene (the background, and the colour
    where only the number is asked for), so shape, colour, count and background are determined.
    """
    groups, relation = scene.groups, scene.relation
    group = pick(rng, groups)
    is_are = "is" if group.count == 1 else "are"
    color, shape = pick(rng, [pair for pair in ALLOWED if pair[1] != group.shape])
    same_color = pick(rng, [s for s in SHAPES if s != group.shape and (group.color, s) in ALLOWED])
    there_are = f"There {is_are} {NUMBERS[group.count - 1]} "
    plain = replace(group, color=None).noun
    forms = [(f"Draw as many {color} {shape}s as there are {replace(group, count=2).noun}.",
              there_are + group.noun + ".", Group(group.count, color, shape))]
    if sum(g.shape == group.shape for g in groups) == 1:
        forms.append((f"Draw a {same_color} in the color of the {plain}.",
                      f"The {plain} {is_are} {group.color}.", Group(1, group.color, same_color)))
    if len(groups) == 1:
        forms.append((f"Draw the same number of {same_color}s.",
                      there_are + plain + ".", Group(group.count, group.color, same_color)))
    if relation and (group.color, group.shape) in ALLOWED:
        first = group is groups[0]
        where = f"{relation if first else swapped(relation)} the {groups[first].noun}"
        forms.append((f"Draw only what is {where}.", f"{group.text.capitalize()} {is_are} {where}.", group))
    instruction, sentence, wanted = pick(rng, forms)
    return instruction, sentence, compose(Specification((wanted,), None, scene.background), rng)


COUNT_WORDS = ("zero",) + NUMBERS + ("five", "six", "seven", "eight")
TEXT_QUESTIONS = (
    *((f"What is {COUNT_WORDS[a]} plus {COUNT_WORDS[b]}?", COUNT_WORDS[a + b])
      for a in range(1, 5) for b in range(1, 5)),
    *((f"What is {COUNT_WORDS[a]} minus {COUNT_WORDS[b]}?", COUNT_WORDS[a - b])
      for a in range(1, 5) for b in range(1, a + 1)),
    *((f"What number comes after {COUNT_WORDS[n]}?", COUNT_WORDS[n + 1]) for n in range(1, 5)),
    ("How many corners does a triangle have?", "three"),
    ("How many corners does a square have?", "four"),
    ("How many corners does a circle have?", "zero"),
    ("How many sides does a triangle have?", "three"),
    ("How many sides does a square have?", "four"),
    ("How many points does a star have?", "five"),
    ("Which shape is round?", "circle"),
    ("Which shape has three corners?", "triangle"),
    ("Which shape has four corners?", "square"),
    ("Which shape has five points?", "star"),
    ("What is the opposite of left?", "right"),
    ("What is the opposite of right?", "left"),
    ("What is the opposite of above?", "below"),
    ("What is the opposite of below?", "above"),
    ("What is the opposite of black?", "white"),
    ("What color do red and yellow make?", "orange"),
    ("What color do red and blue make?", "purple"),
    ("What color do blue and yellow make?", "green"),
    ("What color do black and white make?", "gray"),
)


def text_question(rng):
    """(question, answer) that needs no picture."""
    return pick(rng, TEXT_QUESTIONS)


def task_prompts(task, count, rng, held_out=False):
    """`count` prompts of one of the TASKS of GenEval in miniature, as a list of str.

    With held_out (only for colors and color_attr) each prompt names a held-out pair, else none
    does. The distinct prompts come in random order and each as often as the others, give or take one.
    """
    shape_pairs = list(permutations(SHAPES, 2))
    color_pairs = list(product(COLORS, SHAPES))
    groups = {
        "single_object": [(Group(1, None, s),) for s in SHAPES],
        "two_object": [(Group(1, None, a), Group(1, None, b)) for a, b in shape_pairs],
        "counting": [(Group(n, None, s),) for n in (2, 3, 4) for s in SHAPES],
        "colors": [(Group(1, *pair),) for pair in color_pairs],
        "position": [(Group(1, None, a), Group(1, None, b)) for a, b in shape_pairs],
        "color_attr": [(Group(1, *a), Group(1, *b)) for a, b in permutations(color_pairs, 2)
                       if a[0] != b[0] and a[1] != b[1]],
    }[task]
    if held_out and task not in ("colors", "color_attr"):
        raise ValueError(f"{task} names no colours, so it has no held-out prompts")
    prompts = [Specification(g, relation).text for g in groups
               if any((x.color, x.shape) in HELD_OUT for x in g) == held_out
               for relation in (RELATIONS if task == "position" else (None,))]
    rounds = -(-count // len(prompts))
    return [prompts[i] for _ in range(rounds) for i in rng.permutation(len(prompts))][:count]


# ---- scoring -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Found:
    """An object found in a picture; lengths are fractions of the side.

    shape and color are "unknown" where nothing fits. nearest_shape is the best of the four all the
    same, misfit its area of disagreement with that ideal shape (0 for a perfect one), and ink
    the measured colour, RGB in [0, 1].
    """
    shape: str
    color: str
    x: float
    y: float
    radius: float
    nearest_shape: str
    misfit: float
    ink: tuple[float, float, float]


@dataclass(frozen=True)
class Score:
    correct: bool
    reason: str
    outline_error: float


CONTRAST = 0.16        # an object differs from the background by at least this (RGB distance)
SMALLEST_AREA = 0.005  # of the picture: less is a stray speck (the smallest object has 0.028)
COLOR_TOLERANCE = 0.22 # RGB distance beyond which a colour is none of the palette
MISFIT_LIMIT = 0.25


def to_array(picture):
    """The picture as a float array (side, side, 3) in [0, 1].

    picture: PIL, an array (H, W, 3) of uint8, or a float array or tensor (3, H, W) in [0, 1].
    """
    if isinstance(picture, Image.Image):
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    if array.dtype == np.uint8:
        array = array / 255
    else:
        array = array.astype(np.float64).transpose(1, 2, 0).clip(0, 1)
    if array.ndim != 3 or array.shape[0] != array.shape[1] or array.shape[2] != 3:
        raise ValueError(f"expected a square RGB picture, got {array.shape}")
    return array


def nearest_color(ink, palette):
    """The palette's name for an RGB ink in [0, 1], or "unknown"."""
    distances = {name: np.linalg.norm(np.array(rgb) / 255 - ink) for name, rgb in palette.items()}
    name = min(distances, key=distances.get)
    return name if distances[name] < COLOR_TOLERANCE else "unknown"


def background_ink(array):
    """The median colour of the border: objects lie inside, so the border is background."""
    border = np.concatenate([array[0], array[-1], array[1:-1, 0], array[1:-1, -1]])
    return np.median(border, axis=0)


def neighbourhood(array, reach, reduction):
    """Each pixel's np.max or np.min over the (2 reach + 1)^2 pixels around it."""
    padded = np.pad(array, reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
    return reduction(windows, axis=(2, 3))


def components(mask):
    """The 8-connected components of a boolean (H, W) mask, as a list of masks."""
    todo = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask))}
    found = []
    while todo:
        stack, component = [todo.pop()], np.zeros_like(mask)
        while stack:
            row, column = stack.pop()
            component[row, column] = True
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            stack.extend(near)
        found.append(component)
    return found


def area_and_centroid(points):
    """Area and centroid (2,) of a polygon (n, 2) by the shoelace formula."""
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    return cross.sum() / 2, ((points + following) * cross[:, None]).sum(0) / (3 * cross.sum())


UNIT_SHAPES = {shape: area_and_centroid(OUTLINES[shape]) for shape in SHAPES}


def examine(array, background, component):
    """What one component of the foreground (a mask) is: Found."""
    side = len(array)
    # Edge pixels mix object and background and may look like a third colour: judge inside only.
    inside = neighbourhood(component, 1, np.min)
    inks = array[inside if inside.sum() >= 4 else component]
    ink = np.median(inks, axis=0)
    color = nearest_color(ink, COLORS)
    foreign = np.linalg.norm(inks - ink, axis=1) > COLOR_TOLERANCE
    if foreign.mean() > 0.15:
        color = "unknown"  # two colours that touch: no one object
    # How much of each pixel the object covers, by where its colour lies between the two inks.
    contrast = ink - background
    coverage = ((array - background) @ contrast / (contrast @ contrast)).clip(0, 1)
    coverage *= neighbourhood(component, 1, np.max)
    area = coverage.sum() / side ** 2
    at = (np.arange(side) + 0.5) / side
    centroid = np.array([coverage.sum(0) @ at, coverage.sum(1) @ at]) / coverage.sum()
    # Each shape is redrawn with the same area and centre of mass; the one that agrees best wins.
    fits = []
    for shape, (unit_area, unit_centroid) in UNIT_SHAPES.items():
        radius = float(np.sqrt(area / unit_area))
        x, y = (centroid - radius * unit_centroid).tolist()
        ideal = np.asarray(paint([(shape, x, y, radius, 255)], 0, side)) / 255
        fits.append((float(np.abs(ideal - coverage).sum() / coverage.sum()), shape, x, y, radius))
    misfit, nearest, x, y, radius = min(fits)
    shape = nearest if misfit < MISFIT_LIMIT else "unknown"
    return Found(shape, color, x, y, radius, nearest, misfit, tuple(ink.tolist()))


def find_objects(picture):
    """(list of Found, background name or "unknown") for a picture as in to_array."""
    array = to_array(picture)
    background = background_ink(array)
    difference = np.linalg.norm(array - background, axis=-1)
    # An edge, sharp or blurred, runs where the contrast falls to half of that nearby.
    nearby = neighbourhood(difference, 2, np.max)
    mask = difference > np.maximum(CONTRAST, 0.5 * nearby)
    found = [examine(array, background, component) for component in components(mask)
             if component.sum() >= SMALLEST_AREA * mask.size]
    return found, nearest_color(background, BACKGROUNDS)


def outline_error(picture, found):
    """Mean absolute difference, in [0, 1], between each found object and its ideal shape.

    The ideals are redrawn in the measured colours, so only the outlines and the evenness of the
    colour count. Compared over each bounding box plus a margin of 1/16 of the side; nan if
    nothing was found.
    """
    array = to_array(picture)
    side = len(array)

    def level(ink):
        return tuple(round(255 * value) for value in ink)

    ideal = np.asarray(paint([(f.nearest_shape, f.x, f.y, f.radius, level(f.ink)) for f in found],
                             level(background_ink(array)), side)) / 255
    errors = []
    for f in found:
        corners = OUTLINES[f.nearest_shape] * f.radius + (f.x, f.y)
        left, top = np.floor((corners.min(0) - 1 / 16) * side).astype(int).clip(0)
        right, bottom = np.ceil((corners.max(0) + 1 / 16) * side).astype(int)
        errors.append(np.abs(array - ideal)[top:bottom, left:right].mean())
    return float(np.mean(errors)) if errors else float("nan")


def score(picture, prompt):
    """Score: does the picture show exactly what the prompt (text or Specification) asks for?

    Strict: the named objects and no others, in number, shape and (where named) colour; the named
    background; and for a relation, as in GenEval, the offset between the groups' centres points at
    least half its length in the named direction.
    """
    specification = parse_prompt(prompt) if isinstance(prompt, str) else prompt
    found, background = find_objects(picture)
    error = outline_error(picture, found)

    def fits(f, group):
        return f.shape == group.shape and group.color in (None, f.color)

    for f in found:
        if not any(fits(f, group) for group in specification.groups):
            return Score(False, f"not asked for: {f.color} {f.shape}", error)
    members = [[f for f in found if fits(f, group)] for group in specification.groups]
    for group, there in zip(specification.groups, members):
        if len(there) != group.count:
            return Score(False, f"{len(there)} instead of {group.text}", error)
    if specification.background not in (None, background):
        return Score(False, f"background is {background}", error)
    if specification.relation:
        first, second = (np.mean([(f.x, f.y) for f in there], axis=0) for there in members)
        offset = first - second
        if offset @ RELATIONS[specification.relation] < 0.5 * np.linalg.norm(offset):
            return Score(False, f"not {specification.relation}", error)
    return Score(True, "as asked", error)
