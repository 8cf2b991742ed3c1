"""The one door to open_clip and timm: their models, their tokenizers, and where weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffvit.errors import EnvironmentFault, InputError
from diffvit.hub.files import NoInit
from diffvit.hub.libraries import cache_where_offline, forbidden, library, quietly, reason

_TOKENS_AT_ONCE = 2_048  # of a batch of texts; more gains nothing on a CPU


def imagenet_wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k (``n01440764``) in the order of its classes.

    Raises:
        EnvironmentFault: timm is missing, or does not work here.
    """
    library("timm")
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


def clip_skeleton(name: str, *, quick_gelu: bool) -> nn.Module:
    """open_clip's model of that name without its weights, and QuickGELU where it or ``quick_gelu`` says so.

    Random numbers stay as they were.

    Raises:
        EnvironmentFault: it needs settings from a hub that cannot be reached.
    """
    open_clip = library("open_clip")
    config = open_clip.get_model_config(name)
    config["quick_gelu"] = quick_gelu or bool(config.get("quick_gelu"))
    # Built from its class: create_model would warn through the root logger, and so set it up, for having no weights.
    text, custom = config["text_cfg"], config.pop("custom_text", False)
    foreign = "hf_model_name" in text
    text |= {"hf_model_pretrained": False} if foreign else {}
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    kind = kind if custom or foreign else open_clip.CLIP
    try:
        with quietly(), cache_where_offline(), torch.random.fork_rng(devices=[]), NoInit():
            return kind(**config).eval()
    except OSError as error:  # transformers' word for no network
        raise EnvironmentFault(name, f"its text tower's settings could not be fetched ({reason(error)})") from None
    except (ImportError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise EnvironmentFault(
            name, f"cannot be built by open_clip {open_clip.__version__} ({reason(error)})"
        ) from None


@cache  # reading OpenAI's 48,894 merges takes a fifth of a second
def tokenizer_of(name: str = "RN50", context_length: int | None = None) -> Any:
    """open_clip's tokenizer for a model: int64 (texts, context), longer texts cut with the end-of-text token last.

    Raises:
        EnvironmentFault: it lies on a hub that cannot be reached.
    """
    open_clip = library("open_clip")
    try:
        with quietly(), cache_where_offline():
            return open_clip.get_tokenizer(name, context_length)
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
    open_clip = library("open_clip")
    config = open_clip.get_pretrained_cfg(name, tag)
    hub, url = config.get("hf_hub", "").rstrip("/"), config.get("url", "")
    known = Path.home() / ".cache" / "clip" / url.rpartition("/")[2]
    said = "nobody published them"
    for place in (hub, url):
        if not place or (place == url and forbidden() and not known.is_file()):
            continue
        try:
            with quietly(), cache_where_offline():
                path = open_clip.download_pretrained(config, prefer_hf_hub=place == hub)
            return Path(path), f"open_clip {open_clip.__version__}, {place}"
        except Exception as error:  # each way of fetching has errors of its own
            said = reason(error)
    raise _unfetched(name, f"its weights {tag!r} could not be fetched ({said})", hub, url, "with --weights FILE")


def arranged(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names of open_clip's model, where they are of an older or another layout."""
    open_clip = library("open_clip")
    from open_clip.convert import convert_state_dict

    try:
        state = convert_state_dict(model, dict(tensors))
    except (KeyError, RuntimeError, AttributeError, ValueError) as error:
        raise InputError("weights", f"cannot be brought into open_clip's layout ({reason(error)})") from None
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
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
    timm = library("timm")
    config = timm.get_pretrained_cfg(name)
    hub, url = config.hf_hub_id or "", config.url or ""
    try:
        with quietly(), cache_where_offline(), torch.random.fork_rng(devices=[]), NoInit():
            model: nn.Module = timm.create_model(name, pretrained=pretrained).eval()
    except Exception as error:  # each way of fetching has errors of its own
        raise _unfetched(name, f"its weights could not be fetched ({reason(error)})", hub, url, "as a file") from None
    return model, f"timm {timm.__version__}, {hub or url}"


# Text features without the padding: the tower is causal, so what follows a text's end changes nothing before it


def text_features(model: nn.Module, tokens: Int64[Tensor, "n context"]) -> Float[Tensor, "n dim"]:
    """``model.encode_text(tokens)``, not normalised, on the CPU, in a fraction of the time.

    Texts are sorted by length, and each batch is cut after the end of its longest text. Models without a
    :func:`causal_tower` get all positions.
    """
    device = next(model.parameters()).device
    tower = causal_tower(model)
    lengths = torch.full((len(tokens),), tokens.shape[1]) if tower is None else tokens.argmax(dim=1) + 1
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
    """As open_clip's ``encode_text``, also of tokens that are cut after the end of the longest text.

    ``tower`` is of :func:`causal_tower`; a text's end is its largest token.
    """
    cut, dtype = tokens.shape[1], tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:cut].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:cut, :cut]))
    return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)] @ tower.text_projection


def causal_tower(model: nn.Module) -> Any:
    """The module that holds the text tower (``model`` itself or its ``text``), or None where it is not as OpenAI's.

    As OpenAI's: causal, a text's feature is that of its largest token, and its projection a matrix.
    """
    tower: Any = getattr(model, "text", model)
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    mask, special = getattr(tower, "attn_mask", None), getattr(tower, "cls_emb", None)
    if pool != "argmax" or mask is None or special is not None or getattr(tower, "use_pad_mask", False):
        return None
    causal = bool((mask[:1, 1:] == float("-inf")).all())
    return tower if causal and isinstance(tower.text_projection, Tensor) else None
