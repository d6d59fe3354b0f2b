"""What several chapters need: the golden values of the released code, and the small model that made them."""

import json
import os
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cheers import Cheers, CheersConfig, official_name

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tolerances and numbers of processes are those of a CPU, also in what tests start


def recipe(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A weight as a function of its official name: how the released code was filled when the goldens were made."""
    if name == "lm_head.weight":
        name = "model.language_model.embed_tokens.weight"
    a = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("running_var"):
        a = 0.5 + np.abs(a)
    elif name.endswith("running_mean"):
        a = 0.1 * a
    elif name.endswith("bias"):
        a = 0.02 * a
    elif len(shape) == 1:
        a = 1 + 0.1 * a
    else:
        a = a / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(a.astype(np.float32))


@pytest.fixture(scope="session")
def golden():
    """Tensors by name, and `meta`: configuration, ids, steps, cfg_scale, alpha."""
    with safe_open(GOLDEN / "tiny.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}
        meta = json.loads(file.metadata()["meta"])
    return SimpleNamespace(meta=meta, **{"tensors": values})


@pytest.fixture(scope="session")
def golden_folder(golden, tmp_path_factory):
    """The small model as an official-layout folder, weights by the recipe."""
    folder = tmp_path_factory.mktemp("golden")
    ids = golden.meta["special_ids"]
    config = golden.meta["config"] | {
        "special_token_ids": {
            "end_of_turn": ids["EOS_TOKEN_ID"],
            "image_start": ids["IM_START_ID"],
            "image_end": ids["IM_END_ID"],
            "no_mean": ids["NO_MEAN_ID"],
            "image": -200,
            "image_gen": -300,
        }
    }
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Cheers(CheersConfig.from_json(config))
    shapes = {official_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes["lm_head.weight"] = shapes["model.language_model.embed_tokens.weight"]
    seed = golden.meta["weight_seed"]
    save_file({name: recipe(name, shape, seed) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def golden_model(golden_folder):
    return Cheers.from_pretrained(golden_folder, device="cpu")


@pytest.fixture(scope="session")
def tiny():
    """The shipped checkpoint in float32."""
    return Cheers.from_pretrained(ROOT / "weights" / "tiny", device="cpu", dtype=torch.float32)


def close(value: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert value.shape == expected.shape
    assert (value - expected).abs().max().item() <= tolerance


def rows(tensor: torch.Tensor) -> list[list[int]]:
    return tensor.tolist()


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=1, help="how often the kill test kills")
