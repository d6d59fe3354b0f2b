"""Cheers: one transformer that answers questions about pictures and paints them (arXiv 2603.12793).

    pixels --VAE encoder--> latents z_1 --noise--> z_t --D--> pixels --SigLIP2--> semantics --2x2 compression--> visual tokens
    text and visual tokens --Qwen2.5--> hidden states --tied embedding--> next token         (answers, autoregressive)
                                                      --cascaded head---> velocity of z_t    (pictures, flow matching)

Compare with the release at https://github.com/AI9Stars/Cheers. Conventions, said once:
- time runs from noise (t = 0) to data (t = 1), so z_t = t·z_1 + (1-t)·z_0 and the velocity is z_1 - z_0 (section 2.1);
- pixels are in [0, 1], latents are normalised, token order is raster order;
- a picture of (H, W) pixels has n = H/f · W/f latent positions and n/4 visual tokens; f = 16 officially.

Shape letters: B rows, N pictures, L tokens, C width of the language model, V width of SigLIP2, z' latent channels.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cfm_head import CascadedHead, pixel_unshuffle
from qwen import Qwen, QwenConfig, Tokenizer
from siglip import SigLIP, SigLIPConfig
from vae import VAE, LatentDecoder, VAEConfig

IGNORE = -100  # a label that is not supervised
LOGITS = 1024  # so many rows of the vocabulary are held at a time in training

torch.backends.cudnn.allow_tf32 = False  # float32 is float32, also in convolutions
torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each length, and gives NaN gradients (pytorch issue 196678)


# ---- configuration ---------------------------------------------------------------------------------------------

@dataclass
class SpecialTokens:
    end_of_turn: int = 151645  # <|im_end|>
    image: int = 151665        # <image>, placeholder of a picture to look at
    image_gen: int = 151666    # <image_gen>, placeholder of a picture to paint
    image_start: int = 151667  # <im_start>
    image_end: int = 151668    # <im_end>
    no_mean: int = 151669      # <no_mean>, what every word becomes in the unconditional prompt


# What the released code wants to find in its config.json besides the sizes.
RELEASE_KEYS = {"architectures": ["Cheers"], "model_type": "umm", "auto_map": {
    "AutoConfig": "configuration_umm.UMMConfig", "AutoModel": "modeling_umm.UMMModel",
    "AutoModelForCausalLM": "modeling_umm.Cheers"}}


@dataclass
class CheersConfig:
    """Sizes of all parts; every value left out is the official one. Three keys are ours: `norm_groups` (of the VAE),
    `head_depths` and `special_token_ids`."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    siglip: SigLIPConfig = field(default_factory=SigLIPConfig)
    qwen: QwenConfig = field(default_factory=QwenConfig)
    head_depths: tuple[int, int] = (7, 3)
    special: SpecialTokens = field(default_factory=SpecialTokens)

    @classmethod
    def from_json(cls, config: dict) -> "CheersConfig":
        """From the official config.json's schema. Raises ValueError for sizes that cannot be one model."""

        def read(kind, section):
            if not isinstance(section, dict):
                raise ValueError(f"config.json: {section!r} stands where a section of sizes should")
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items() if k in kind.__annotations__}
            for name, value in values.items():
                default = getattr(kind(), name)
                if isinstance(value, bool) or not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
                    raise ValueError(f"config.json: {name} is {value!r}, which is not like {default!r}")
            return kind(**values)

        vae = read(VAEConfig, encoder := config.get("vae_encoder_config", {}))
        siglip = read(SigLIPConfig, config.get("vision_representation_config", {}))
        if vae != read(VAEConfig, config.get("vae_decoder_config", encoder)):
            raise ValueError("config.json: vae_encoder_config and vae_decoder_config differ; Cheers has one VAE")
        if siglip.patch_size != vae.factor:
            raise ValueError(f"config.json: SigLIP's patch {siglip.patch_size} is not the VAE's factor {vae.factor}")
        qwen, special = read(QwenConfig, config.get("text_config", {})), read(SpecialTokens, config.get("special_token_ids", {}))
        for part, width, heads in (("text", qwen.hidden_size, qwen.num_attention_heads),
                                   ("vision", siglip.hidden_size, siglip.num_attention_heads)):
            groups = qwen.num_key_value_heads  # of both: the cascaded head has them in either width
            if heads < 1 or width % heads or groups < 1 or heads % groups:
                raise ValueError(f"config.json: {part} width {width}, {heads} heads and {groups} key/value heads do not divide")
        depths = config.get("head_depths", [7, 3])
        if not isinstance(depths, list) or [type(depth) for depth in depths] != [int, int]:
            raise ValueError(f"config.json: head_depths is {depths!r} instead of two numbers")
        return cls(vae, siglip, qwen, tuple(depths), special)

    def to_json(self) -> dict:
        vision = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "model_type": "umm"}
        vision["num_patches"] = (self.siglip.image_size // self.siglip.patch_size) ** 2
        return RELEASE_KEYS | {
            "vae_encoder_config": asdict(self.vae), "vae_decoder_config": asdict(self.vae),
            "vision_representation_config": asdict(self.siglip) | vision,
            "text_config": asdict(self.qwen) | {"tie_word_embeddings": True},
            "head_depths": list(self.head_depths), "special_token_ids": asdict(self.special)}

    @property
    def multiple(self) -> int:
        """Sides of pictures are multiples of this: a visual token covers 2f x 2f pixels."""
        return 2 * self.vae.factor


# ---- the model -------------------------------------------------------------------------------------------------

class Projector(nn.Module):
    """2x2 compression (section 2.1, "Pixel-Unshuffle"): four patches' semantics -> one visual token of the LLM."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, outputs))

    def forward(self, semantics: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.mlp(pixel_unshuffle(self.norm(semantics), grid))  # (B, n, V) -> (B, n/4, 4V) -> (B, n/4, C)

    def initialise(self) -> None:
        """Visual tokens start about as large as text embeddings, so that neither drowns the other in the language model."""
        for linear, gain in ((self.mlp[0], 1.0), (self.mlp[2], 0.3)):
            nn.init.xavier_uniform_(linear.weight, gain)
            nn.init.zeros_(linear.bias)


@dataclass
class Batch:
    """Rows of text and pictures, padded on the right. A picture's placeholder id (image or image_gen) stands once for each
    of its n/4 visual tokens; pictures are in the order of their placeholders, row by row, all of one size. A row may hold
    several samples, one after the other, that do not see each other."""

    ids: Tensor               # (B, L) int64
    labels: Tensor            # (B, L) int64: ids that are to be predicted, IGNORE elsewhere and where a sample begins
    pixels: Tensor            # (N, 3, H, W) in [0, 1]
    noise: Tensor             # (N, z', h, w), z_0
    t: Tensor                 # (N,): in (0, 1) for pictures to paint, 1 for pictures to look at
    segments: Tensor | None = None  # (B, L) int64, ascending: which sample a token belongs to; one per row when left out

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(x if x is None else x.to(device) for x in vars(self).values()))


@dataclass
class Loss:
    total: Tensor
    text: Tensor         # mean over the supervised tokens
    image: Tensor        # mean over the elements of all velocities
    errors: Tensor       # (N',) the same for each painted picture, without gradient


def attention_mask(is_image: Tensor, segments: Tensor | None = None) -> Tensor:
    """(B, L) bool, True at visual tokens -> (B, 1, L, L) bool, True where row i may look at column j: causal everywhere,
    plus full attention inside each contiguous run of visual tokens (section 2.1), and never from one segment to another."""
    starts = is_image & ~F.pad(is_image, (1, 0))[:, :-1]
    block = torch.where(is_image, starts.cumsum(1), 0)                             # (B, L), 0 for text
    causal = torch.ones(is_image.shape[1], is_image.shape[1], dtype=torch.bool, device=is_image.device).tril()
    mask = causal | (block[:, :, None] == block[:, None, :]) & is_image[:, None, :]
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    return mask[:, None]


class Cheers(nn.Module):
    def __init__(self, config: CheersConfig):
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.generation: dict = {}  # the checkpoint's sampling defaults: steps, guidance, shift
        self.vae = VAE(config.vae)                        # frozen: pictures -> z_1, and the final z_1 -> picture
        self.pixel_decoder = LatentDecoder(config.vae)    # D, starts as a copy of the VAE's decoder
        self.siglip = SigLIP(config.siglip)
        self.qwen = Qwen(config.qwen)
        self.add_new_parts()

    def add_new_parts(self) -> None:
        """The parts that no pretrained model has."""
        c = self.config
        self.projector = Projector(c.siglip.hidden_size, c.qwen.hidden_size)
        self.head = CascadedHead(c.qwen, c.siglip, c.vae.latent_channels, c.head_depths)

    @property
    def device(self) -> torch.device:
        return self.qwen.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.qwen.norm.weight.dtype

    # -- pictures

    def encode_image(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in [0, 1], sides multiples of 2f -> latents z_1 (B, z', h, w). Frozen, without gradient."""
        with torch.no_grad():
            stored = self.vae.bn.running_mean  # frozen, so in training its type may differ from the rest
            return self.vae.encode(pixels.to(stored.device, stored.dtype))

    def decode_image(self, latents: Tensor) -> Tensor:
        """latents (B, z', h, w) -> pixels (B, 3, H, W), not clamped."""
        return self.vae.decode(latents.to(self.device, self.dtype))

    def tokenize_image(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The unified vision tokenizer, once for both its outputs: latents z_t (B, z', h, w) -> visual tokens (B, n/4, C)
        for the language model and details S(D(z_t)) (B, n, V) for the head."""
        grid = latents.shape[2] // 2, latents.shape[3] // 2
        pixels = self.pixel_decoder.decode(latents.to(self.device, self.dtype))    # (B, 3, H, W)   D(z_t)
        semantics, details = self.siglip(pixels)                                   # (B, n, V)      z_s, S(D(z_t))
        return self.projector(semantics, grid), details                            # (B, n/4, C)    Z_s

    # -- sequences

    def is_image(self, ids: Tensor) -> Tensor:
        """True at placeholders: the two tokens, or a negative id (the released code's -200 and -300)."""
        return (ids == self.config.special.image) | (ids == self.config.special.image_gen) | (ids < 0)

    def embed(self, ids: Tensor, visual_tokens: Tensor | None) -> Tensor:
        """ids (…, L) -> embeddings (…, L, C), with visual tokens (any shape, in order) at the placeholders."""
        embeddings = self.qwen.embed_tokens(ids.clamp(min=0))  # placeholders need no row in the table
        if visual_tokens is not None:
            where = self.is_image(ids)[..., None]
            embeddings = embeddings.masked_scatter(where, visual_tokens.to(embeddings.dtype))
        return embeddings

    def velocity(self, hidden: Tensor, t: Tensor, details: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """hidden (B, n/4, C) at the visual tokens of z_t, t (B,), details (B, n, V) -> velocity V_t (B, z', h, w).

        grid: (rows, columns) of the visual tokens; a square when left out."""
        side = round(hidden.shape[1] ** 0.5)
        hidden, details = hidden.to(self.device, self.dtype), details.to(self.device, self.dtype)
        return self.head(hidden, t.to(self.device), details, grid or (side, side))[0]

    # -- training

    def surprise(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log P of tokens (k,) from the hidden states before them (k, C), float32."""
        return F.cross_entropy(self.qwen.logits(hidden).float(), targets, reduction="none")

    def loss(self, batch: Batch) -> Loss:
        """L_total = L_AR + λ·L_FM (section 2.2), λ = 1."""
        batch = batch.to(self.device)
        visual_tokens = details = None
        if len(batch.pixels):
            z_1 = self.encode_image(batch.pixels)                                  # (N, z', h, w)
            t = batch.t[:, None, None, None]
            z_t = t * z_1 + (1 - t) * batch.noise                                  # (N, z', h, w)
            visual_tokens, details = self.tokenize_image(z_t)                      # (N, n/4, C), (N, n, V)
        is_image, index = self.is_image(batch.ids), torch.arange(batch.ids.shape[1], device=batch.ids.device)
        positions = index.expand_as(batch.ids)
        if batch.segments is not None:  # counted from where the sample begins
            begins = F.pad(batch.segments.diff(dim=1) != 0, (1, 0)) * index
            positions = positions - begins.cummax(1).values
        x = self.embed(batch.ids, visual_tokens)                                   # (B, L, C)
        # Padding needs no mask: it is on the right, where causal attention never looks.
        hidden = self.qwen(x, positions, attention_mask(is_image, batch.segments)) # (B, L, C)

        # L_AR = -log P(y_l | y_<l, C): the hidden state before a token predicts it
        text = image = 0 * hidden.float().sum()  # in case there is nothing to learn, also without gradient to give
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE
        if supervised.any():
            # In parts, computed again in the backward pass: the logits of long texts would be larger than all else.
            h, y = hidden[:, :-1][supervised], targets[supervised]                 # (supervised, C), (supervised,)
            parts = zip(h.split(LOGITS), y.split(LOGITS))
            text = torch.cat([checkpoint(self.surprise, *part, use_reentrant=False) for part in parts]).mean()

        # L_FM = ‖v_θ(Z'_s) - (z_1 - z_0)‖², pictures to paint only
        errors, to_paint = image.new_zeros(0), batch.ids == self.config.special.image_gen
        if to_paint.any():
            tokens = visual_tokens.shape[1]
            painted = to_paint[is_image].view(-1, tokens)[:, 0]                    # (N,) bool
            h = hidden[to_paint].unflatten(0, (-1, tokens))                        # (N', n/4, C)
            grid = z_1.shape[2] // 2, z_1.shape[3] // 2
            velocity = self.velocity(h, batch.t[painted], details[painted], grid)  # (N', z', h, w)
            errors = (velocity.float() - (z_1 - batch.noise)[painted].float()).square().mean((1, 2, 3))  # (N',)
            image = errors.mean()
        return Loss(text + image, text, image, errors.detach())

    def initialise(self) -> None:
        """Random weights where no pretrained part gives them; the VAE keeps torch's own initialisation for convolutions."""
        for part in (self.siglip, self.projector, self.qwen, self.head):
            part.initialise()

    # -- checkpoints

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, device: torch.device | str | None = None,
                        dtype: torch.dtype | None = None, revision: str | None = None) -> "Cheers":
        """Opens a checkpoint of the official layout: a folder, or a name on the Hugging Face hub (`ai9stars/Cheers`).

        device: the best there is when left out. dtype: as stored when left out. Memory stays near the size of the weights.
        Raises FileNotFoundError when there is nothing to open, ValueError when what is there is damaged or does not fit."""
        folder = find_folder(name_or_folder, revision)
        model = cls.from_configuration(folder)
        names = {ours: official_name(ours) for ours in model.state_dict()}
        load_tensors(model, names, weight_files(folder), IGNORED, device or best_device(), dtype)
        return model.eval()

    @classmethod
    def from_configuration(cls, folder: Path) -> "Cheers":
        """The model of a folder on the meta device, without weights; with its tokenizer and sampling defaults."""
        config = CheersConfig.from_json(read_json(folder / "config.json"))
        try:
            with torch.device("meta"):
                model = cls(config)
        except (TypeError, ArithmeticError, IndexError, RuntimeError) as error:
            raise ValueError(f"{folder / 'config.json'} holds sizes that no model can have ({error})") from None
        model.tokenizer = Tokenizer.from_folder(folder)
        if (folder / "generation_config.json").exists():
            stored = read_json(folder / "generation_config.json")
            model.generation = {key: stored[key] for key in ("steps", "guidance", "shift") if key in stored}
        return model

    def save_configuration(self, folder: Path, dtype: torch.dtype) -> None:
        """Everything of the official layout but the weights."""
        write_json(folder / "config.json", self.config.to_json() | {"torch_dtype": str(dtype).removeprefix("torch.")})
        if self.generation:
            write_json(folder / "generation_config.json", self.generation)
        if self.tokenizer:
            self.tokenizer.backend.save(str(folder / "tokenizer.json"))

    @classmethod
    def from_components(cls, qwen: str | Path, siglip: str | Path, vae: str | Path, config: CheersConfig | None = None,
                        device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> "Cheers":
        """A fresh start from Qwen2.5 and SigLIP2 (folders or hub names, Hugging Face's files) and FLUX.2's `ae.safetensors`,
        whose decoder serves twice. Projector and head are initialised at random. Errors are those of `from_pretrained`."""
        device = device or best_device()
        with torch.device("meta"):
            model = cls(config or CheersConfig())
        qwen_folder = find_folder(qwen)
        parts = (
            ({"qwen.": "model."}, weight_files(qwen_folder), r"lm_head\.weight"),
            ({"siglip.": "vision_model."}, weight_files(find_folder(siglip)), r"vision_model\.head\..*|text_model\..*|logit_.*"),
            ({"vae.": "", "pixel_decoder.": ""}, [Path(vae)], r"bn\.num_batches_tracked"),
        )
        for prefixes, files, ignored in parts:
            pairs = ((ours, here, there) for here, there in prefixes.items() for ours in model.state_dict())
            names = {ours: there + ours.removeprefix(here) for ours, here, there in pairs if ours.startswith(here)}
            load_tensors(model, names, files, ignored, device, dtype)
        model.add_new_parts()
        for part in (model.projector, model.head):
            part.initialise()
            part.to(device, dtype)
        model.tokenizer = Tokenizer.from_folder(qwen_folder)
        return model.eval()

    def save_pretrained(self, folder: str | Path, shard_bytes: int = 2_000_000_000, weights: dict | None = None) -> None:
        """Writes the official layout. Files get their names only once all of them are complete.

        weights: instead of the model's own, by our names; for a model whose tensors are spread over processes."""
        folder, weights = Path(folder), weights or self.state_dict()
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".partial-*"):  # what a kill left
            shutil.rmtree(unfinished)
        tensors = {official_name(name): tensor.detach() for name, tensor in weights.items()}
        tensors["lm_head.weight"] = weights["qwen.embed_tokens.weight"].detach().clone()  # tied, and stored all the same
        with TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            save_torch_state_dict(tensors, partial, max_shard_size=shard_bytes)
            self.save_configuration(Path(partial), tensors["lm_head.weight"].dtype)
            complete = {path.name for path in Path(partial).iterdir()}
            for name in complete:
                (Path(partial) / name).chmod(0o644)  # safetensors writes files that only their owner can read
                os.replace(Path(partial) / name, folder / name)
        for pattern in ("model*.safetensors*", "generation_config.json", "tokenizer.json"):
            for path in folder.glob(pattern):
                if path.name not in complete:  # of an earlier save, and would be read
                    path.unlink()


# ---- checkpoints in the official layout ------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"

# ours -> official, replaced in this order
RENAMES = (
    ("pixel_decoder.", "model.vae_decoder_projector."), ("vae.", "model.vae_model."),
    ("siglip.", "model.vision_representation."), ("qwen.", "model.language_model."),
    ("projector.norm.", "model.und_projector.layernorm."), ("projector.mlp.", "model.und_projector.mlp."),
    ("head.time_", "model.time_embed.mlp_"), ("head.gate.", "model.hi_gate."),
    ("head.stage_1.", "model.gen_projector."), ("head.stage_2.", "model.hi_projector."),
    ("_projector.blocks.", "_projector.diffusion_head_a."), ("_projector.final.norm.", "_projector.diffusion_head_b.norm_final."),
    ("_projector.final.", "_projector.diffusion_head_b."), (".modulation.", ".adaLN_modulation."), (".attention.", ".attn."),
    (".norm_attention.", ".input_layernorm."), (".norm_mlp.", ".post_attention_layernorm."),
)
# In official checkpoints and not used: SigLIP's pooling head, BatchNorm's counters, the second copy of the tied embedding.
IGNORED = (
    r"model\.vision_representation\.head\.(probe|attention\.in_proj_(weight|bias))"
    r"|model\.vision_representation\.head\.(attention\.out_proj|layernorm|mlp\.fc[12])\.(weight|bias)"
    r"|model\.vae_(model|decoder_projector)\.bn\.num_batches_tracked|lm_head\.weight"
)


def official_name(ours: str) -> str:
    for here, there in RENAMES:
        ours = ours.replace(here, there)
    return ours


def best_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a checkpoint of the official layout") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def write_json(path: Path, content: dict) -> None:
    (partial := path.with_name(f".{path.name}.partial")).write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def find_folder(name_or_folder: str | Path, revision: str | None = None) -> Path:
    """A local folder, or a hub model's folder in the local cache, downloaded if need be."""
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name_or_folder)):
        raise FileNotFoundError(f"there is no folder {name_or_folder}, and a hub model is named like ai9stars/Cheers")
    wanted = ["*.json", "*.safetensors", "merges.txt"]
    try:
        return Path(snapshot_download(str(name_or_folder), revision=revision, allow_patterns=wanted))
    except (OSError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"{name_or_folder} is no folder here and could not be fetched from the hub: {reason}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: those its index names, or model.safetensors."""
    if (folder / INDEX).exists():
        if not isinstance(names := read_json(folder / INDEX).get("weight_map"), dict):
            raise ValueError(f"{folder / INDEX} holds no weight_map; fetch the checkpoint again")
        files = [folder / name for name in sorted({str(name) for name in names.values()})]
    else:
        files = [folder / "model.safetensors"]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        pickles = " (.bin and .pt files are pickles, which are never opened)" if list(folder.glob("*.[bp][it]*")) else ""
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing) or 'weights'}{pickles}; fetch the checkpoint again")
    return files


def load_tensors(model: nn.Module, names: dict[str, str], files: list[Path], ignored: str,
                 device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Fills a model on the meta device, tensor by tensor, with the tensors that `names` (ours -> in the files) wants.

    All names and shapes are compared before the first tensor is read; whatever is missing, left over (unless it matches
    `ignored`) or misshapen is named in one ValueError."""
    where = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                where |= {name: (file, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()}
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {file}") from None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged or not a safetensors file ({error}); fetch it again") from None
    shapes = {names[ours]: tuple(tensor.shape) for ours, tensor in model.state_dict().items() if ours in names}
    problems = [f"missing {name}" for name in shapes if name not in where]
    problems += [f"unknown {name}" for name in where if name not in shapes and not re.fullmatch(ignored, name)]
    problems += [f"{name} has shape {list(where[name][1])} instead of {list(shape)}"
                 for name, shape in shapes.items() if name in where and where[name][1] != shape]
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"{files[0].parent} does not fit the configuration: {listed}")
    loaded = {}
    for file in files:
        here = [(ours, name) for ours, name in names.items() if where[name][0] == file]
        for start in range(0, len(here), 50):  # copied and opened anew: what is mapped stays in memory till the file is closed
            with safe_open(file, framework="pt") as opened:
                for ours, name in here[start : start + 50]:
                    loaded[ours] = opened.get_tensor(name).to(device, dtype, copy=True)
    model.load_state_dict(loaded, strict=False, assign=True)
