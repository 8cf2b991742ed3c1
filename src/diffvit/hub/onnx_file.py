"""The DINOv2 inside an ONNX file that was exported from transformers 4: the one door to the library onnx."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffvit.errors import InputError
from diffvit.hub.libraries import library

_INSTALL = "Install it with pip install onnx."
_HINT = "Give a DINOv2 that transformers 4 exported, or its weights as .safetensors."
# Names in transformers 4, and ours: those of timm.
_NAMES = (
    (r".*embeddings\.cls_token", "cls_token"),
    (r".*embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r".*layer\.(\d+)\.(norm\d|mlp\.fc\d)\.(\w+)", r"blocks.\1.\2.\3"),
    (r".*layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r".*layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r".*layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)", r"blocks.\1.attn.\2.\3"),
    (r"(?:.*\.)?layernorm\.(\w+)", r"norm.\1"),
)


def read_onnx(path: Path) -> dict[str, Tensor]:
    """The weights of DINOv2 (arXiv 2304.07193) in an ONNX file, by timm's names; the rest of its graph is left out.

    The exporter keeps the names of biases and norms. It turns a linear layer's weight into a nameless constant of a
    product, whose node has the layer's name, and splits the position table at [CLS].

    Raises:
        EnvironmentFault: onnx is missing.
        InputError: the file is damaged, or holds no such model.
    """
    onnx = library("onnx", _INSTALL)
    try:
        graph = onnx.load(path).graph
        constants = {each.name: np.array(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", _HINT) from None
    except Exception as error:  # protobuf's and onnx's own
        raise InputError(str(path), f"is damaged ({' '.join(str(error).split())[:120]})", _HINT) from None
    named = dict(constants)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            named[f"{layer}.weight"] = constants[node.input[1]].T
    found: dict[str, Tensor] = {}
    for name, array in named.items():
        for pattern, ours in _NAMES:
            if match := re.fullmatch(pattern, name):
                found[match.expand(ours)] = torch.from_numpy(np.ascontiguousarray(array))
                break
    widths = (1, len(found.get("norm.weight", ())))
    tables = [each for name, each in constants.items() if each.ndim == 3 and not name.endswith("cls_token")]
    tables = sorted((each for each in tables if each.shape[::2] == widths), key=lambda each: each.shape[1])
    if len(tables) not in (1, 2) or "cls_token" not in found:
        raise InputError(
            str(path), f"holds no ViT that is known (found {len(tables)} position tables vs 1 or 2)", _HINT
        )
    found["pos_embed"] = torch.from_numpy(np.concatenate(tables, axis=1))
    for name in [name for name in found if ".attn.query." in name]:
        parts = [found.pop(name.replace("query", part), torch.empty(0)) for part in ("query", "key", "value")]
        found[name.replace("query", "qkv")] = torch.cat(parts)
    return found
