"""ONNX: the weights of a DINOv2 that transformers 4 exported, and networks in int8 for onnxruntime."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffvit.errors import InputError
from diffvit.hub.libraries import library, quietly

_INSTALL = "Install it with pip install 'diffvit[onnx]'."
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


class Int8(nn.Module):
    """A network whose products with weights are computed in int8 by onnxruntime on the CPU (dynamic quantisation).

    Weights are rounded to int8 per output channel, once; the other factor to uint8 by its range in each pass. Products
    of activations, as in attention, stay float32. Torch exports the graph, onnxruntime quantises and runs it, with as
    many threads as torch has.

    Attributes:
        products: number of convolutions and matrix products with weights in the graph, by ``int8`` and ``float32``.
        weight_bytes: of the constants in the graph.

    Raises:
        EnvironmentFault: onnxruntime, onnxscript or onnx is missing.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        """``network`` takes float32 ``images`` (two or more, to export it), in batches of any size."""
        super().__init__()
        onnx, runtime = library("onnx", _INSTALL), library("onnxruntime", _INSTALL)
        library("onnxscript", _INSTALL)
        quantization: Any = library("onnxruntime.quantization", _INSTALL)
        with tempfile.TemporaryDirectory() as folder, quietly():
            exported, prepared, rounded = (Path(folder) / f"{name}.onnx" for name in ("float32", "prepared", "int8"))
            sizes = ({0: torch.export.Dim("n")},)
            torch.onnx.export(
                network,
                (images[:2],),
                exported,
                dynamo=True,
                dynamic_shapes=sizes,
                external_data=False,
                verbose=False,
                optimize=False,
            )
            quantization.shape_inference.quant_pre_process(exported, prepared, skip_symbolic_shape=True)
            quantization.quantize_dynamic(prepared, rounded, weight_type=quantization.QuantType.QInt8, per_channel=True)
            graph, content = onnx.load(rounded).graph, rounded.read_bytes()
        weights = {each.name: onnx.numpy_helper.to_array(each).nbytes for each in graph.initializer}
        kinds = dict.fromkeys(("Conv", "MatMul", "Gemm"), "float32")
        kinds |= {"ConvInteger": "int8", "MatMulInteger": "int8"}
        self.products = Counter(
            kinds[node.op_type] for node in graph.node if node.op_type in kinds and weights.keys() & {*node.input}
        )
        self.weight_bytes = sum(weights.values())
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """The network's output for float32 images (n, channels, height, width)."""
        (name,) = (each.name for each in self._session.get_inputs())
        return torch.from_numpy(self._session.run(None, {name: images.contiguous().numpy()})[0])
