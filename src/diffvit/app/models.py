"""The models that the explorer offers: a fixed list made when it starts; the browser refers to them by name alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffvit import weights
from diffvit.app.limits import Cache
from diffvit.attention.capture import depth_of
from diffvit.attention.inputs import LoadedModel, load_model
from diffvit.errors import DiffvitError, InputError
from diffvit.hub.files import OWN_HINT, read_header
from diffvit.registry import label_of
from diffvit.reporting.tables import percent
from diffvit.training.load import locate, metadata_of
from diffvit.training.run_dir import RunDir

if TYPE_CHECKING:
    from diffvit.clip.load import Clip
    from diffvit.clip.zero_shot import Classifier

RUNS = Path("runs")
TEMPLATES = ("openai-80", "openai-7", "single")
OPENAI = "OpenAI's RN50"
_MAX_RUNS = 100  # run folders that are offered without being named
_INPUT_SIZE = 224  # pixels of a pretrained model's square input: what most were trained on, and 11 MB of maps
_WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")  # a reference that ends so is a file, even a missing one


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be chosen; :class:`Models` tells equal names apart.

    ``reference`` is what :func:`diffvit.load` takes, never from the browser; ``folder`` the run folder, None for a
    packaged model; ``clip`` is for small CLIPs of our own; ``pretrained`` is the loaded model if others trained it.
    """

    name: str
    reference: str
    folder: Path | None
    data: str
    description: str
    depth: int
    clip: bool = False
    pretrained: LoadedModel | None = None


def list_models(runs: Sequence[str], folder: Path = RUNS) -> list[ModelInfo]:
    """The named runs (folders or weights files), else the finished runs under ``folder``; then the packaged models."""
    found = [_read_info(run) for run in runs]
    if not runs:
        results = [*folder.glob("*/result.json"), *folder.glob("*/*/result.json")]
        for path in sorted(results, key=lambda path: -path.stat().st_mtime)[:_MAX_RUNS]:
            try:
                found.append(_read_info(str(path.parent)))
            except DiffvitError:
                continue  # incomplete, or not ours; the user did not name it
    return [*found, *(_read_info(name) for name in weights.names())]


def _read_info(reference: str) -> ModelInfo:
    path = locate(reference)
    meta = metadata_of(path, read_header(path))
    folder = Path(reference) if Path(reference).is_dir() else None
    settings, data = meta["model"], str(meta["data"])
    clip = settings.get("kind") == "clip"
    try:
        encoder: Mapping[str, Any] = settings["visual"] if clip else settings
        name = label_of(encoder["attention"])
        kind = f"{name}, patch {encoder['patch_size']}, {encoder['depth']} blocks, {encoder['num_heads']} heads"
    except (KeyError, TypeError) as error:
        raise InputError(str(path), f"does not describe its model (it lacks {error})", OWN_HINT) from None
    parts = [f"CLIP ({kind})" if clip else kind, f"trained on {data}"]
    run = RunDir(folder) if folder else None
    figures = run.result if run and run.finished else weights.registry().get(reference, {})
    if (accuracy := figures.get("test_accuracy")) is not None:
        parts.append(f"{percent(accuracy, 1)} test accuracy")
    name = folder.resolve().name if folder else Path(reference).stem
    return ModelInfo(name, reference, folder, data, ", ".join(parts), encoder["depth"], clip)


def load_pretrained(references: Sequence[str], device: str = "cpu") -> list[ModelInfo]:
    """Load Vision Transformers that others trained, each by timm's name or from a weights file."""
    infos = []
    for reference in references:
        path = Path(reference)
        is_file = path.is_file() or path.suffix in _WEIGHTS_SUFFIXES
        name, weights_file = (None, path) if is_file else (reference, None)
        model = load_model(pretrained=name, weights=weights_file, device=device)
        size = model.image_size or max(_INPUT_SIZE // model.patch_size, 1) * model.patch_size
        model = dataclasses.replace(model, image_size=size)
        depth = depth_of(model.model)
        description = f"pretrained, patch {model.patch_size}, {depth} blocks, {model.source}"
        infos.append(ModelInfo(model.name, "", None, "", description, depth, pretrained=model))
    return infos


def _by_unique_name(infos: Sequence[ModelInfo]) -> dict[str, ModelInfo]:
    """Equal names made different by the run folder's parent or by "(pretrained)", then by a number."""
    own = Counter(info.name for info in infos if info.pretrained is None)
    found: dict[str, ModelInfo] = {}
    for info in infos:
        name = info.name
        if info.folder and own[name] > 1:
            name = f"{info.folder.parent.name}/{name}"
        elif info.pretrained and name in own:
            name = f"{name} (pretrained)"
        unique, number = name, 1
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found[unique] = dataclasses.replace(info, name=unique)
    return found


def find_openai_weights(named: Path | None) -> Path | None:
    """OpenAI's RN50 from a named file, or from where OpenAI's own package keeps it; None if it is not there."""
    if named is None:
        default = Path.home() / ".cache" / "clip" / "RN50.pt"
        return default if default.is_file() else None
    if not named.is_file():
        raise InputError(str(named), "no such file", "--clip-weights names OpenAI's RN50.pt.")
    return named


class Models:
    """The offered models, loaded when they are asked for; the most recently used ones stay in memory.

    ``infos`` are from :func:`list_models` and :func:`load_pretrained`; ``openai`` is OpenAI's weights of CLIP RN50.
    """

    def __init__(self, infos: Sequence[ModelInfo], device: str = "cpu", openai: Path | None = None) -> None:
        self._infos = _by_unique_name(infos)
        self._device, self._openai = device, openai
        self._vits: Cache[LoadedModel] = Cache(8)
        self._clips: Cache[Clip] = Cache(2)
        self._classifiers: Cache[Classifier] = Cache(32)

    @property
    def vits(self) -> list[ModelInfo]:
        """Models whose attention can be shown, pretrained ones last."""
        return [info for info in self._infos.values() if not info.clip]

    @property
    def own_vits(self) -> list[ModelInfo]:
        """Those of them that this project trained; they have classes and test images."""
        return [info for info in self.vits if not info.pretrained]

    @property
    def clips(self) -> list[ModelInfo]:
        """CLIP models of our own."""
        return [info for info in self._infos.values() if info.clip]

    @property
    def clip_names(self) -> list[str]:
        """All CLIP models, OpenAI's included."""
        return [*(info.name for info in self.clips), *([OPENAI] if self._openai else [])]

    @property
    def runs(self) -> list[ModelInfo]:
        """Models with a finished run folder, for curves and tables."""
        return [info for info in self._infos.values() if info.folder and (info.folder / "result.json").is_file()]

    def info(self, name: str) -> ModelInfo:
        """The model of this name."""
        if name not in self._infos:
            raise InputError("model", "is not among those that are offered")
        return self._infos[name]

    def load(self, name: str) -> LoadedModel:
        """A Vision Transformer."""
        info = self.info(name)
        if info.clip:
            raise InputError(name, "is a CLIP: use it in the zero-shot tab")

        def load() -> LoadedModel:
            model = info.pretrained or load_model(info.reference, device=self._device)
            model.model.requires_grad_(False)  # once, as several visitors may use it at a time
            return dataclasses.replace(model, name=name)

        return self._vits.get_or_make(name, load)

    def classifier(self, name: str, labels: tuple[str, ...], templates: str) -> tuple[Clip, Classifier]:
        """A CLIP and its zero-shot classifier for these labels."""
        from diffvit.clip.templates import load_templates
        from diffvit.clip.zero_shot import zero_shot_classifier

        if name not in self.clip_names or templates not in TEMPLATES:
            raise InputError("CLIP", "is none of those that are offered")
        clip = self._clips.get_or_make(name, lambda: self._load_clip(name))
        classifier = self._classifiers.get_or_make(
            (name, labels, templates),
            lambda: zero_shot_classifier(clip, labels, load_templates(templates), use_cache=False),
        )
        return clip, classifier

    def _load_clip(self, name: str) -> Clip:
        from diffvit.clip.load import load_clip
        from diffvit.clip.small.load import load_small

        return load_clip("RN50", "openai", self._openai) if name == OPENAI else load_small(self._infos[name].reference)
