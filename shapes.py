"""The toy world: draws, describes, asks about, edits and scores simple scenes.

A scene holds one to four flat shapes on a plain background, in one or two groups; the objects of a
group share shape and colour ("two red circles above a blue square on a black background"). Because
the world is so small, all that a multimodal model learns from can be made on the fly: pictures,
prompts, questions with answers, editing pairs - and a scorer that looks at a generated picture and
says, without any network, whether it shows what was asked for (in the spirit of GenEval).

Lengths and positions are fractions of the side of the square picture; x runs right, y down.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAPES = ("circle", "square", "triangle", "star")
COLORS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 90, 220),
          "yellow": (240, 200, 40), "purple": (150, 60, 190), "orange": (240, 130, 30)}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (130, 130, 130), "black": (20, 20, 20)}
# "A left of B": the direction in which A lies, seen from B.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = ("one", "two", "three", "four")
# Never shown in training: a model that can draw these pairs has learnt colour and shape separately.
HELD_OUT = {("purple", "triangle"), ("orange", "star"), ("green", "circle"), ("yellow", "square")}
ALLOWED = [pair for pair in product(COLORS, SHAPES) if pair not in HELD_OUT]
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


# ---- scenes, and the prompts that ask for them ---------------------------------------------------

@dataclass(frozen=True)
class Object:
    shape: str
    color: str
    x: float  # the centre of the bounding box
    y: float
    radius: float


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
    """What a prompt asks for: one or two groups, and maybe a relation (the first group lies
    `relation` the second) and a background. `text` is the prompt."""
    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self):
        if not (len(self.groups) in (1, 2) and 1 <= sum(group.count for group in self.groups) <= 4):
            raise ValueError("a specification has one or two groups and at most four objects")
        if len({(group.color, group.shape) for group in self.groups}) < len(self.groups):
            raise ValueError("two groups must differ in shape or colour")
        if len({group.color is None for group in self.groups}) == 2:
            raise ValueError("name the colours of both groups or of none")
        if self.relation and len(self.groups) == 1:
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
        centres = [np.array([(o.x, o.y) for o in self.objects if g.fits(o)]) for g in self.groups]
        return next((r for r in RELATIONS if len(centres) == 2 and clearly_related(*centres, r)), None)


GROUP_PATTERN = rf"(an?|two|three|four) (?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})s?"
PROMPT_PATTERN = re.compile(rf"{GROUP_PATTERN}(?: (and|{'|'.join(RELATIONS)}) {GROUP_PATTERN})?"
                            rf"(?: on a ({'|'.join(BACKGROUNDS)}) background)?")


def parse_prompt(text):
    """The Specification that a prompt stands for; ValueError for text outside the grammar."""
    match = PROMPT_PATTERN.fullmatch(text)
    if match:
        *first, link, number, color, shape, background = match.groups()
        groups = tuple(Group(NUMBERS.index(n) + 1 if n in NUMBERS else 1, c, s)
                       for n, c, s in (first, (number, color, shape)) if n)
        specification = Specification(groups, link if link in RELATIONS else None, background)
        if specification.text == text:  # the pattern alone lets "an circles" pass
            return specification
    raise ValueError(f"not a prompt of this world: {text!r}")


def pick(rng, options):
    """One of the options, each as likely (rng.choice would turn them into numpy values)."""
    options = list(options)
    return options[rng.integers(len(options))]


# ---- making scenes -------------------------------------------------------------------------------

# Radii (smallest, largest) for one to four objects. Each object keeps to its cell, a square of half
# side CELL * radius into which every shape fits, so that an edit can swap shapes in place.
RADII = ((0.20, 0.30), (0.16, 0.22), (0.14, 0.17), (0.12, 0.15))
CELL = 1.2
MARGIN = 1 / 32  # between a cell and the border of the picture: one pixel at 32 x 32
GAP = 2 / 32     # between two cells


def clearly_related(first, second, relation):
    """Whether all of `first` lies on that side of all of `second`, and mostly along that axis.

    first (..., n, 2) and second (..., m, 2) are centres; returns (...) booleans.
    """
    direction = np.array(RELATIONS[relation])
    apart = (first @ direction).min(-1) - (second @ direction).max(-1) >= 0.1
    offset = first.mean(-2) - second.mean(-2)
    return apart & (offset @ direction >= 0.8 * np.hypot(offset[..., 0], offset[..., 1]))


def place(counts, relation, rng):
    """Centres (n, 2) and radii (n,) for n = sum(counts) objects: apart, inside, and as related."""
    radii = rng.uniform(*RADII[sum(counts) - 1], sum(counts))
    one, other = np.triu_indices(len(radii), 1)
    while True:
        # Rejection sampling: of many random layouts, the first that meets all conditions is taken.
        layouts = rng.random((64, len(radii), 2))
        if relation:  # sorted along the axis, so that the first group is on its side to begin with
            order = np.argsort(-(layouts @ np.array(RELATIONS[relation])), axis=1)
            layouts = np.take_along_axis(layouts, order[..., None], axis=1)
        border = (MARGIN + CELL * radii)[:, None]
        layouts = border + layouts * (1 - 2 * border)
        distances = np.abs(layouts[:, one] - layouts[:, other]).max(-1)
        good = (distances >= CELL * (radii[one] + radii[other]) + GAP).all(-1)
        if relation:
            good &= clearly_related(layouts[:, :counts[0]], layouts[:, counts[0]:], relation)
        if good.any():
            return layouts[good.argmax()].tolist(), radii.tolist()
        radii = np.maximum(0.95 * radii, 0.12)  # crowded: a little smaller next time


def compose(specification, rng):
    """A random Scene that satisfies the specification.

    What it leaves open (colours, background, places, sizes) is drawn at random; a held-out pair
    appears only where the specification names it.
    """
    groups = [replace(g, color=g.color or pick(rng, [c for c, s in ALLOWED if s == g.shape]))
              for g in specification.groups]
    kinds = [group for group in groups for _ in range(group.count)]
    positions, radii = place([group.count for group in groups], specification.relation, rng)
    return Scene(tuple(Object(kind.shape, kind.color, *position, radius)
                       for kind, position, radius in zip(kinds, positions, radii)),
                 specification.background or pick(rng, BACKGROUNDS))


def random_scene(rng, max_objects=4, held_out=False):
    """A random Scene of one to max_objects (at most 4) objects.

    With held_out one group is a held-out pair; without it none is.
    """
    weights = np.array([0.25, 0.35, 0.2, 0.2])[:max_objects]
    total = int(rng.choice(len(weights), p=weights / weights.sum())) + 1
    pairs, counts, relation = [pick(rng, sorted(HELD_OUT) if held_out else ALLOWED)], [total], None
    if total > 1 and rng.random() < 0.6:
        pairs.insert(rng.integers(2), pick(rng, [pair for pair in ALLOWED if pair not in pairs]))
        counts = [int(rng.integers(1, total))]
        counts.append(total - counts[0])
        relation = pick(rng, RELATIONS) if rng.random() < 0.5 else None
    return compose(Specification(tuple(Group(n, *pair) for n, pair in zip(counts, pairs)), relation), rng)


# ---- drawing -------------------------------------------------------------------------------------

def unit_outline(shape):
    """The shape's corners (n, 2) at radius 1, its bounding box centred on the origin."""
    # Sizes that make the four look equally large: a star is thin, a square is full.
    corners, size = {"circle": (64, 0.98), "square": (4, 1.18), "triangle": (3, 1.3), "star": (10, 1.25)}[shape]
    angles = 2 * np.pi * (np.arange(corners) + (0.5 if shape == "square" else 0)) / corners
    sizes = np.where(np.arange(corners) % 2, 0.45 * size, size) if shape == "star" else size
    points = np.stack([sizes * np.sin(angles), -sizes * np.cos(angles)], axis=-1)
    return points - (points.min(0) + points.max(0)) / 2


OUTLINES = {shape: unit_outline(shape) for shape in SHAPES}
OVERSAMPLING = 8


def paint(objects, background, side):
    """A PIL picture of (shape, x, y, radius, ink) objects; inks are RGB triples or grey levels,
    0 to 255. Drawn large and averaged down, so that an edge pixel mixes by the area covered."""
    scale = side * OVERSAMPLING
    picture = Image.new("RGB" if isinstance(background, tuple) else "L", (scale, scale), background)
    pen = ImageDraw.Draw(picture)
    for shape, x, y, radius, ink in objects:
        points = (OUTLINES[shape] * radius + (x, y)) * scale - 0.5  # Pillow counts from pixel centres
        pen.polygon(points.ravel().tolist(), fill=ink)
    return picture.reduce(OVERSAMPLING)


def draw(scene, side=32):
    """The scene as a PIL picture, RGB, side x side pixels."""
    return paint([(o.shape, o.x, o.y, o.radius, COLORS[o.color]) for o in scene.objects],
                 BACKGROUNDS[scene.background], side)


# ---- describing, asking, editing -----------------------------------------------------------------

def describe(scene):
    """The one full caption: counts, colours, the relation where it is clear, and the background.

    It depends on nothing that the picture does not show: of two groups the left or upper one comes
    first, or where neither is clear, the one earlier in SHAPES, then in COLORS.
    """
    groups, relation = scene.groups, scene.relation
    if relation in ("right of", "below"):
        groups, relation = groups[::-1], OPPOSITE[relation]
    elif relation is None:
        groups = tuple(sorted(groups, key=lambda g: (SHAPES.index(g.shape), list(COLORS).index(g.color))))
    return Specification(groups, relation, scene.background).text


def caption(scene, rng):
    """A true caption in the prompts' grammar that names a random part of what there is to see."""
    groups, relation = scene.groups, scene.relation
    if len(groups) == 2 and rng.random() < 0.5:
        groups, relation = groups[::-1], OPPOSITE.get(relation)
    if rng.random() < 0.4 and len({g.shape for g in groups}) == len(groups):
        groups = tuple(replace(g, color=None) for g in groups)
    return Specification(groups, relation if rng.random() < 0.6 else None,
                         scene.background if rng.random() < 0.3 else None).text


def is_there(scene, rng):
    """(question, answer) after the presence of a shape, with or without a colour; half are yes."""
    present = [(g.color, g.shape) for g in scene.groups]
    colors, shapes = zip(*present)
    with_color, answer, hard = rng.random(3) < 0.5
    options = present if answer else [
        (c, s) for c, s in ALLOWED if s not in shapes or with_color and (c, s) not in present]
    if with_color and hard and not answer:  # the scene has the colour or the shape, but not together
        options = [(c, s) for c, s in options if c in colors or s in shapes]
    color, shape = pick(rng, options)
    return f"Is there {Group(1, color if with_color else None, shape).text}?", "yes" if answer else "no"


def question(scene, rng):
    """(question, answer) about the scene: a random form that has just one right answer here.

    Half of the yes/no questions have the answer yes. Held-out pairs are named only if present.
    """
    groups, relation = scene.groups, scene.relation
    group = pick(rng, groups)
    verb = "is" if group.count == 1 else "are"
    same_shape = [g for g in groups if g.shape == group.shape]
    number, things = pick(rng, [(group.count, f"{group.color} {group.shape}s"), (len(scene.objects), "shapes"),
                                (sum(g.count for g in same_shape), group.shape + "s")])
    forms = [(f"How many {things} are there?", NUMBERS[number - 1]), is_there(scene, rng), is_there(scene, rng),
             ("What color is the background?", scene.background), ("Describe the image.", describe(scene))]
    if len(same_shape) == 1:
        forms.append((f"What color {verb} the {replace(group, color=None).noun}?", group.color))
    if sum(g.color == group.color for g in groups) == 1:
        forms.append((f"What shape is {group.color}?", group.shape))
    if len(same_shape) == len(groups):
        forms.append(("What shape is in the image?", group.shape))
    if relation:
        other = groups[group is groups[0]]
        where = relation if group is groups[0] else OPPOSITE[relation]
        asked, answer = pick(rng, [(where, "yes"), (OPPOSITE[where], "no")])
        forms += 2 * [(f"What {verb} {where} the {other.noun}?", group.text)]
        forms.append((f"{verb.capitalize()} the {group.noun} {asked} the {other.noun}?", answer))
    return pick(rng, forms)


def edit(scene, rng):
    """(instruction, edited Scene): recolour, replace or remove one group, or change the background.

    Untouched objects stay exactly as they are; the result holds no held-out pair.
    """
    groups = scene.groups
    group = pick(rng, [g for g in groups if (g.color, g.shape) in HELD_OUT] or groups)
    # The colour may go unsaid where the shape alone leaves no doubt.
    short = sum(g.shape == group.shape for g in groups) == 1 and rng.random() < 0.5
    name = "the " + (replace(group, color=None) if short else group).noun

    def changed(**changes):
        return replace(scene, objects=tuple(replace(o, **changes) if group.fits(o) else o for o in scene.objects))

    kinds = [[(f"Change the background to {background}.", replace(scene, background=background))
              for background in BACKGROUNDS if background != scene.background],
             [(f"Make {name} {color}.", changed(color=color)) for color in COLORS if color != group.color],
             [(f"Replace {name} with {'a ' + shape if group.count == 1 else shape + 's'}.", changed(shape=shape))
              for shape in SHAPES if shape != group.shape],
             [(f"Remove {name}.", replace(scene, objects=tuple(o for o in scene.objects if not group.fits(o))))
              for _ in groups[1:]]]  # only if there is another group to stay
    kinds = [[(text, result) for text, result in kind
              if not any((g.color, g.shape) in HELD_OUT for g in result.groups)] for kind in kinds]
    return pick(rng, pick(rng, [kind for kind in kinds if kind]))


def sentence_and_picture(scene, rng):
    """(instruction, sentence, new Scene): look at the scene, say what matters in it, then draw.

    What the instruction leaves open is taken over from the scene (the background, and the colour
    where only the number is asked for), so shape, colour, count and background are determined.
    """
    groups, relation = scene.groups, scene.relation
    group = pick(rng, groups)
    verb, plain = "is" if group.count == 1 else "are", replace(group, color=None)
    there_are = f"There {verb} {NUMBERS[group.count - 1]}"
    color, shape = pick(rng, [pair for pair in ALLOWED if pair[1] != group.shape])
    same_color = pick(rng, [s for s in SHAPES if s != group.shape and (group.color, s) in ALLOWED])
    forms = [(f"Draw as many {color} {shape}s as there are {group.color} {group.shape}s.",
              f"{there_are} {group.noun}.", Group(group.count, color, shape))]
    if sum(g.shape == group.shape for g in groups) == 1:
        forms.append((f"Draw a {same_color} in the color of the {plain.noun}.",
                      f"The {plain.noun} {verb} {group.color}.", Group(1, group.color, same_color)))
    if len(groups) == 1:
        forms.append((f"Draw the same number of {same_color}s.",
                      f"{there_are} {plain.noun}.", Group(group.count, group.color, same_color)))
    if relation and (group.color, group.shape) in ALLOWED:
        first = group is groups[0]
        where = f"{relation if first else OPPOSITE[relation]} the {groups[first].noun}"
        forms.append((f"Draw only what is {where}.", f"{group.text.capitalize()} {verb} {where}.", group))
    instruction, sentence, wanted = pick(rng, forms)
    return instruction, sentence, compose(Specification((wanted,), None, scene.background), rng)


WORDS = ("zero",) + NUMBERS + ("five", "six", "seven", "eight")
TEXT_QUESTIONS = (
    *((f"What is {WORDS[a]} plus {WORDS[b]}?", WORDS[a + b]) for a in range(1, 5) for b in range(1, 5)),
    *((f"What is {WORDS[a]} minus {WORDS[b]}?", WORDS[a - b]) for a in range(1, 5) for b in range(1, a + 1)),
    *((f"What number comes after {WORDS[a]}?", WORDS[a + 1]) for a in range(1, 5)),
    *((f"How many corners does a {shape} have?", WORDS[n]) for n, shape in ((3, "triangle"), (4, "square"))),
    *((f"Which shape has {WORDS[n]} sides?", shape) for n, shape in ((3, "triangle"), (4, "square"))),
    ("How many points does a star have?", "five"), ("Which shape has five points?", "star"),
    ("How many corners does a circle have?", "zero"), ("Which shape is round?", "circle"),
    *((f"What is the opposite of {a}?", b) for a, b in (("left", "right"), ("right", "left"),
      ("above", "below"), ("below", "above"), ("black", "white"), ("white", "black"))),
    *((f"What color do {a} make?", b) for a, b in (("red and yellow", "orange"), ("red and blue", "purple"),
      ("blue and yellow", "green"), ("black and white", "gray"))))


def text_question(rng):
    """(question, answer) that needs no picture."""
    return pick(rng, TEXT_QUESTIONS)


def task_prompts(task, count, rng, held_out=False):
    """A list of `count` prompts (str) of one of the TASKS: GenEval's six in miniature.

    With held_out (only for colors and color_attr) each prompt names a held-out pair, else none
    does. Each distinct prompt comes as often as any other, give or take one, in random order.
    """
    if held_out and task not in ("colors", "color_attr"):
        raise ValueError(f"{task} names no colours, so it has no held-out prompts")
    plain = [Group(1, None, shape) for shape in SHAPES]
    colored = [Group(1, *pair) for pair in product(COLORS, SHAPES)]
    choices = {
        "single_object": [(group,) for group in plain],
        "two_object": list(permutations(plain, 2)),
        "counting": [(replace(group, count=n),) for group in plain for n in (2, 3, 4)],
        "colors": [(group,) for group in colored],
        "position": list(permutations(plain, 2)),
        "color_attr": [(a, b) for a, b in permutations(colored, 2) if a.color != b.color and a.shape != b.shape],
    }[task]
    prompts = [Specification(groups, relation).text for groups in choices
               for relation in (RELATIONS if task == "position" else [None])
               if any((g.color, g.shape) in HELD_OUT for g in groups) == held_out]
    rounds = -(-count // len(prompts))
    return [prompts[i] for _ in range(rounds) for i in rng.permutation(len(prompts))][:count]


# ---- scoring -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Found:
    """An object found in a picture; shape and color are "unknown" where nothing fits well."""
    shape: str
    color: str
    x: float
    y: float
    radius: float
    nearest_shape: str  # the best of the four, fitting or not
    misfit: float       # the area where object and ideal disagree, in areas of the object
    ink: tuple          # the measured colour, RGB in [0, 1]


@dataclass(frozen=True)
class Score:
    correct: bool
    reason: str
    outline_error: float  # nan where nothing was found


CONTRAST = 0.2         # RGB distance that tells an object from the background (least, purple on gray: 0.37)
SMALLEST_AREA = 0.005  # as a part of the picture; less is a stray speck (the smallest star has 0.029)
COLOR_TOLERANCE = 0.22 # RGB distance beyond which a colour is not that of the palette
MISFIT_LIMIT = 0.25


def to_array(picture):
    """(side, side, 3) floats in [0, 1] from a picture: PIL, a uint8 array (side, side, 3), or a float
    array or CPU tensor (3, side, side) in [0, 1]."""
    array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    array = array / 255 if array.dtype == np.uint8 else array.astype(float).transpose(1, 2, 0).clip(0, 1)
    if array.shape != (len(array), len(array), 3):
        raise ValueError(f"expected a square RGB picture, got {array.shape}")
    return array


def border_ink(array):
    """The background's colour (3,): objects lie inside, so the border shows nothing else."""
    return np.median(np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]]), axis=0)


def nearest_color(ink, palette):
    distances = {name: np.linalg.norm(np.array(rgb) / 255 - ink) for name, rgb in palette.items()}
    name = min(distances, key=distances.get)
    return name if distances[name] < COLOR_TOLERANCE else "unknown"


def rank_filter(array, kind):
    """A Pillow rank filter, such as ImageFilter.MaxFilter(3), of a boolean or [0, 1] array."""
    return np.asarray(Image.fromarray((array * 255).astype(np.uint8)).filter(kind)) / 255


def components(mask):
    """The connected components (diagonal contact counts) of a boolean mask, each as a mask."""
    todo = set(zip(*(index.tolist() for index in np.nonzero(mask))))
    while todo:
        stack, component = [todo.pop()], np.zeros_like(mask)
        while stack:
            row, column = stack.pop()
            component[row, column] = True
            near = [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (row + i, column + j) in todo]
            todo.difference_update(near)
            stack += near
        yield component


def area_and_centroid(coverage):
    """Area, and centre of mass (x, y), of a (side, side) array that holds the part covered of each pixel."""
    at = (np.arange(len(coverage)) + 0.5) / len(coverage)
    return coverage.mean(), np.array([coverage.sum(0) @ at, coverage.sum(1) @ at]) / coverage.sum()


def steep(coverage):
    """Coverage with its edges made twice as steep: what a slight blur and noise spoil is undone."""
    return (2 * coverage - 0.5).clip(0, 1)


def ideal_coverage(shape, x, y, radius, side):
    return np.asarray(paint([(shape, x, y, radius, 255)], 0, side)) / 255


UNIT = {shape: area_and_centroid(ideal_coverage(shape, 0.5, 0.5, 0.25, 128)) for shape in SHAPES}  # at radius 1/4


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
        difference = np.abs(steep(ideal_coverage(shape, x, y, radius, len(array))) - steep(coverage))
        fits.append((float(difference.sum() / coverage.sum()), shape, x, y, radius))
    misfit, shape, x, y, radius = min(fits)
    return Found(shape if misfit < MISFIT_LIMIT else "unknown",
                 "unknown" if two_colored else nearest_color(ink, COLORS),
                 x, y, radius, shape, misfit, tuple(ink.tolist()))


def find_objects(picture):
    """(list of Found, name of the background or "unknown") for a picture as in to_array."""
    array = to_array(picture)
    background = border_ink(array)
    contrast = np.linalg.norm(array - background, axis=-1)
    # An edge, sharp or blurred, runs where the contrast falls to half of the strongest nearby.
    nearby = 2 * rank_filter(contrast / 2, ImageFilter.MaxFilter(5))
    mask = contrast > np.maximum(CONTRAST, 0.5 * nearby)
    return ([examine(array, background, component) for component in components(mask)
             if component.mean() >= SMALLEST_AREA], nearest_color(background, BACKGROUNDS))


def outline_error(picture, found):
    """Mean absolute difference, in [0, 1], between each found object and its ideal shape redrawn.

    It is redrawn in the measured colours, so that a shade off costs nothing here, and compared over
    its bounding box and a margin of 1/16 of the side. nan where nothing was found.
    """
    array = to_array(picture)
    inks = [tuple(round(255 * value) for value in ink) for ink in [border_ink(array), *(f.ink for f in found)]]
    ideal = paint([(f.nearest_shape, f.x, f.y, f.radius, ink) for f, ink in zip(found, inks[1:])], inks[0], len(array))
    difference = np.abs(array - np.asarray(ideal) / 255)
    errors = []
    for f in found:
        corners = OUTLINES[f.nearest_shape] * f.radius + (f.x, f.y)
        left, top = np.floor((corners.min(0) - 1 / 16) * len(array)).astype(int).clip(0)
        right, bottom = np.ceil((corners.max(0) + 1 / 16) * len(array)).astype(int)
        errors.append(difference[top:bottom, left:right].mean())
    return float(np.mean(errors)) if errors else float("nan")


def score(picture, prompt):
    """Score: does the picture show exactly what the prompt (str or Specification) asks for?

    Strict: the named objects and no others, in number, shape and (where named) colour; the named
    background; for a relation, as in GenEval, the step from the second group's centre to the first's
    goes at least half its length in the named direction.
    """
    specification = parse_prompt(prompt) if isinstance(prompt, str) else prompt
    found, background = find_objects(picture)
    members = [[f for f in found if group.fits(f)] for group in specification.groups]
    reasons = [f"not asked for: {f.color} {f.shape}" for f in found
               if not any(group.fits(f) for group in specification.groups)]
    reasons += [f"{len(there)} found of: {group.text}" for group, there in zip(specification.groups, members)
                if len(there) != group.count]
    if specification.background not in (None, background):
        reasons.append(f"background: {background}")
    if specification.relation and all(members):
        first, second = (np.mean([(f.x, f.y) for f in there], axis=0) for there in members)
        step = first - second
        if step @ RELATIONS[specification.relation] < 0.5 * np.linalg.norm(step):
            reasons.append(f"not {specification.relation}")
    return Score(not reasons, "; ".join(reasons) or "as asked", outline_error(picture, found))
