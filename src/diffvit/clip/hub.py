"""The one door to open_clip and timm: their models, their tokenizers, and where weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffvit.errors import EnvironmentFault, InputError
from diffvit.hub.libraries import (
    INSTALL,
    cache_where_offline,
    forbidden,
    import_torchvision,
    quietly,
    reason,
    timm_library,
)

_TOKENS_AT_ONCE = 2_048  # of a batch of texts; more gains nothing on a CPU


def open_clip_library() -> ModuleType:
    """The module open_clip.

    Raises:
        EnvironmentFault: it is missing, or does not work here.
    """
    try:
        with quietly():
            import_torchvision()
            import open_clip
    except (ImportError, RuntimeError) as error:
        raise EnvironmentFault("open_clip", f"cannot be imported ({reason(error)})", INSTALL) from None
    return open_clip


def imagenet_wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k (``n01440764``) in the order of its classes.

    Raises:
        EnvironmentFault: timm is missing, or does not work here.
    """
    timm_library()
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


def clip_skeleton(name: str, *, quick_gelu: bool) -> nn.Module:
    """open_clip's model of that name with throw-away weights; the caller's random numbers stay as they were.

    It has QuickGELU where its own settings say so, or ``quick_gelu``.

    Raises:
        EnvironmentFault: it needs settings from a hub that cannot be reached.
    """
    library = open_clip_library()
    config = library.get_model_config(name)
    config["quick_gelu"] = quick_gelu or bool(config.get("quick_gelu"))
    # Built from its class: create_model would warn through the root logger, and so set it up, for having no weights.
    text, custom = config["text_cfg"], config.pop("custom_text", False)
    foreign = "hf_model_name" in text
    text |= {"hf_model_pretrained": False} if foreign else {}
    kind = library.CoCa if "multimodal_cfg" in config else library.CustomTextCLIP
    kind = kind if custom or foreign else library.CLIP
    try:
        with quietly(), cache_where_offline(), torch.random.fork_rng(devices=[]):
            return kind(**config).eval()
    except OSError as error:  # transformers' word for no network
        raise EnvironmentFault(name, f"its text tower's settings could not be fetched ({reason(error)})") from None
    except (ImportError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise EnvironmentFault(name, f"cannot be built by open_clip {library.__version__} ({reason(error)})") from None


def tokenizer_of(name: str) -> Any:
    """open_clip's tokenizer for a model: ``tokenizer(texts) -> int64 (texts, context)``.

    Longer texts are cut to the context, the end-of-text token last.

    Raises:
        EnvironmentFault: it lies on a hub that cannot be reached.
    """
    library = open_clip_library()
    try:
        with quietly(), cache_where_offline():
            return library.get_tokenizer(name)
    except Exception as error:  # each way of fetching has errors of its own
        raise EnvironmentFault(name, f"its tokenizer could not be fetched ({reason(error)})") from None


def _unfetched(name: str, why: str, hub: str, url: str, give: str) -> EnvironmentFault:
    """Says what could not be fetched, from where it can be had, and where to put it."""
    published = " or ".join(place for place in (hub and f"https://huggingface.co/{hub}", url) if place)
    return EnvironmentFault(name, why, f"Fetch them elsewhere from {published} and give them {give}.")


def fetch_clip(name: str, tag: str) -> tuple[Path, str]:
    """The weights file of a tag, from the caches of open_clip or the public hubs, and words for where it came from.

    Raises:
        EnvironmentFault: it is in no cache and cannot be fetched; the line says what to put where.
    """
    library = open_clip_library()
    config = library.get_pretrained_cfg(name, tag)
    hub, url = config.get("hf_hub", "").rstrip("/"), config.get("url", "")
    known = Path.home() / ".cache" / "clip" / url.rpartition("/")[2]
    said = "nobody published them"
    for place in (hub, url):
        if not place or (place == url and forbidden() and not known.is_file()):
            continue
        try:
            with quietly(), cache_where_offline():
                path = library.download_pretrained(config, prefer_hf_hub=place == hub)
            return Path(path), f"open_clip {library.__version__}, {place}"
        except Exception as error:  # each way of fetching has errors of its own
            said = reason(error)
    raise _unfetched(name, f"its weights {tag!r} could not be fetched ({said})", hub, url, "with --weights FILE")


def arranged(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names of open_clip's model, where they are of an older or another layout."""
    library = open_clip_library()
    from open_clip.convert import convert_state_dict

    try:
        state = convert_state_dict(model, dict(tensors))
    except (KeyError, RuntimeError, AttributeError, ValueError) as error:
        raise InputError("weights", f"cannot be brought into open_clip's layout ({reason(error)})") from None
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = library.model.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if isinstance(own, Tensor) and name in state and state[name].numel() == own.numel():
            state[name] = state[name].reshape(own.shape)
    wanted = model.state_dict().keys()
    return {name: tensor for name, tensor in state.items() if name in wanted or not name.endswith(".position_ids")}


def timm_model(name: str, *, pretrained: bool) -> tuple[nn.Module, str]:
    """A model of timm's in evaluation mode, and words for its weights' source; random numbers stay as they were.

    Raises:
        EnvironmentFault: the weights are in no cache and cannot be fetched; the line says what to put where.
    """
    library = timm_library()
    config = library.get_pretrained_cfg(name)
    hub, url = config.hf_hub_id or "", config.url or ""
    try:
        with quietly(), cache_where_offline(), torch.random.fork_rng(devices=[]):
            model: nn.Module = library.create_model(name, pretrained=pretrained).eval()
    except Exception as error:  # each way of fetching has errors of its own
        raise _unfetched(name, f"its weights could not be fetched ({reason(error)})", hub, url, "as a file") from None
    return model, f"timm {library.__version__}, {hub or url}"


# Text features without the padding: the tower is causal, so what follows a text's end changes nothing before it


def text_features(model: nn.Module, tokens: Int64[Tensor, "n context"]) -> Float[Tensor, "n dim"]:
    """``model.encode_text(tokens)``, not normalised, on the CPU, in a fraction of the time.

    Texts are sorted by length, and each batch is cut after the end of its longest text. Towers that are not causal, or
    that pool over all positions, get all of them.
    """
    device = next(model.parameters()).device
    tower = causal_tower(model)
    lengths = torch.full((len(tokens),), tokens.shape[1]) if tower is None else ends(tower, tokens) + 1
    order = lengths.argsort(stable=True)
    found: list[Tensor] = []
    rest = order
    with torch.no_grad():
        while len(rest):
            # As many texts as fit when all are as long as the last of them.
            fit = lengths[rest] * torch.arange(1, len(rest) + 1) <= _TOKENS_AT_ONCE
            batch, rest = rest.tensor_split([max(1, int(fit.sum()))])
            if tower is None:
                features = model.encode_text(tokens[batch].to(device))  # pyright: ignore[reportCallIssue]
            else:
                features = encode_text(tower, tokens[batch, : int(lengths[batch[-1]])].to(device))
            found.append(features.cpu())
    return torch.cat(found)[order.argsort()]


def encode_text(tower: Any, tokens: Int64[Tensor, "n cut"]) -> Float[Tensor, "n dim"]:
    """As open_clip's ``encode_text``, on as many positions as there are tokens, which it does not take itself.

    ``tower`` is of :func:`causal_tower`; tokens may be cut after the end of the longest text.
    """
    cut, dtype = tokens.shape[1], tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:cut].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:cut, :cut]))
    x = x[torch.arange(len(x), device=x.device), ends(tower, tokens)]
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Module) else x @ projection


def ends(tower: Any, tokens: Int64[Tensor, "n cut"]) -> Int64[Tensor, " n"]:
    """The place of each text whose feature stands for it: of its largest token, or of the tower's own end token."""
    pool, end = _pooling(tower)
    return (tokens if pool == "argmax" else (tokens == end).int()).argmax(dim=-1)


def causal_tower(model: nn.Module) -> Any:
    """The module that holds the text tower (``model`` itself or its ``text``), or None where it cannot be cut."""
    tower: Any = getattr(model, "text", model)
    mask = getattr(tower, "attn_mask", None)
    if _pooling(tower)[0] not in ("argmax", "eos") or mask is None or getattr(tower, "cls_emb", None) is not None:
        return None
    causal = bool((mask[:1, 1:] == float("-inf")).all()) and not getattr(tower, "use_pad_mask", False)
    return tower if causal else None


def _pooling(tower: Any) -> tuple[str | None, int | None]:
    """How a text is pooled, and its end token; a CLIP that holds its own text tower has text_ before both names."""
    prefix = "text_" if hasattr(tower, "text_pool_type") else ""
    return getattr(tower, f"{prefix}pool_type", None), getattr(tower, f"{prefix}eos_id", None)
