"""Chapter 9: what the README claims."""

import ast
import re
import sys

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text()
ROOMS = ("vae", "siglip", "qwen", "cfm_head", "cheers", "shapes", "data", "sample", "plan", "parallel", "tiny", "train", "miniature",
         "benchmarks", "questions", "evaluate")
ALLOWED = {"torch", "numpy", "PIL", "safetensors", "tokenizers", "huggingface_hub", "tqdm"}


def imports(room: str) -> set[str]:
    tree = ast.parse((ROOT / f"{room}.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_the_table_of_files_tells_their_lines():
    for room in ROOMS:
        claimed = int(re.search(rf"\| `{room}.py` \| (\d+) \|", README)[1])
        assert claimed == len((ROOT / f"{room}.py").read_text().splitlines()), f"{room}.py"


def test_the_card_keeps_its_budget():
    lines = {room: len((ROOT / f"{room}.py").read_text().splitlines()) for room in ROOMS}
    assert sum(lines[room] for room in ("cheers", "vae", "siglip", "qwen", "cfm_head", "train", "sample")) < 2000
    assert sum(lines.values()) < 4750


def test_imports_point_up_the_table_and_to_nothing_else():
    for i, room in enumerate(ROOMS):
        foreign = imports(room) - set(sys.stdlib_module_names) - ALLOWED - set(ROOMS[:i])
        assert not foreign, f"{room}.py imports {foreign}"


@pytest.mark.parametrize("place", sorted(set(re.findall(r"`(\w+\.py):([\w.]+)`", README))))
def test_every_place_in_the_table_of_equations_exists(place):
    file, name = place
    nodes = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        found = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == part]
        assert found, f"{file} has no {name}"
        nodes = found[0].body


def test_every_option_in_a_command_exists():
    for script, line in re.findall(r"python (\w+\.py)(.*)", README):
        source = (ROOT / script).read_text()
        for option in re.findall(r"(--[\w-]+)", line.partition("`")[0]):
            assert f'"{option}"' in source, f"{script} has no {option}"


def test_every_linked_file_exists():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
