"""Weights files that others wrote, read without running code and without allocating what a damaged file claims.

``read_weights`` gives plain tensors or refuses the file in one line; ``check_weights`` compares their names, shapes and
values with a model's.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffvit.errors import InputError

Shapes = Mapping[str, Sequence[int]]  # by the weights' names
_HEADER_LIMIT = 4 * 1024 * 1024  # bytes; a header of ours has about 20 kB
OWN_HINT = "Give a run folder, a model.safetensors that diffvit wrote, or a packaged name."
_HINT = "Give a .safetensors file or one that torch.save wrote, with a state dict in it."
_NESTS = ("teacher", "student", "state_dict", "model")  # keys under which training programs store weights; first wins
_WRAPPERS = ("module.", "_orig_mod.", "backbone.")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTERS = (torch.int64, torch.int32)


class WeightsFile(NamedTuple):
    """The weights in a file, by their plain names, in its dtype; they may share memory with it.

    ``nest`` is the key they were stored under (``teacher``, ``student``, ``state_dict``, ``model``), or empty. The
    first two are from self-distillation, whose ``head`` is a projection, not a classifier.
    """

    tensors: dict[str, Tensor]
    nest: str


def read_weights(path: Path, *, counters: bool = False) -> WeightsFile:
    """Read a safetensors or torch file: a plain state dict, or one nested and prefixed as training programs save it.

    Of a full DINO checkpoint (arXiv 2104.14294) this gives the teacher's backbone without its projection head. Torch
    files are mapped into memory (older ones than torch 1.6's are read) with ``weights_only=True``: no code runs, and
    no claimed size is filled.
    ``counters`` allows integer tensors, as BatchNorm's count of batches. InputError for no such file, not such a file,
    or one that is damaged, hostile, or without named float weights.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", _HINT) from None
    if start.startswith(b"PK"):
        found = _from_torch(path)
    elif path.suffix == ".safetensors" or start[8:] == b"{":
        found = read_safetensors(path, _HINT)
    elif start.startswith(b"\x80\x02"):  # of torch before 1.6, whose reader refuses other objects too
        found = _from_torch(path, zipped=False)
    else:
        raise InputError(str(path), "is not a weights file", _HINT)
    nest, inner = _nest(found)
    if not isinstance(inner, Mapping) or not inner:
        raise InputError(str(path), f"holds no named weights (found a {type(inner).__name__})", _HINT)
    tensors = dict(_plain(path, inner, nest))
    _check_tensors(path, tensors, (*_DTYPES, *_COUNTERS) if counters else _DTYPES)
    return WeightsFile(tensors, nest)


def read_header(path: Path, hint: str = OWN_HINT) -> dict[str, Any]:
    """The JSON header of a safetensors file, its sizes checked against the file's; no tensor is read.

    InputError for what is not a safetensors file, cut short, or claims other sizes than it has.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > min(size - 8, _HEADER_LIMIT):
                raise InputError(str(path), "is not a safetensors file", hint)
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes_are_lists = all(isinstance(entry["shape"], list) for entry in tensors.values())
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise InputError(str(path), "is not a safetensors file", hint) from None
    if not shapes_are_lists or end != size - 8 - length:
        why = f"is cut short or damaged ({size - 8 - length} bytes of weights vs {end} announced)"
        raise InputError(str(path), why)
    return header


def read_safetensors(path: Path, hint: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as they are; InputError where it is none, or damaged."""
    read_header(path, hint)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(str(path), f"is damaged ({' '.join(str(error).split())[:120]})", hint) from None


def _from_torch(path: Path, *, zipped: bool = True) -> Any:
    if zipped:
        _check_zip(path)
    try:
        # DINO's own checkpoints hold the arguments of their run, a plain object of names and values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects other than weights ({named[1]})" if named else "something other than weights"
        raise InputError(str(path), f"holds {what}: refused", _HINT) from None
    except Exception as error:  # whatever a damaged pickle makes the reader do
        raise InputError(str(path), f"is damaged ({' '.join(str(error).split())[:120]})", _HINT) from None


def _check_zip(path: Path) -> None:
    """Torch stores without compression; an archive that would grow is refused before anything of it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(str(path), f"is cut short or damaged ({error})", _HINT) from None
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise InputError(str(path), "is a TorchScript archive, which is a program: refused", _HINT)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    size = sum(entry.file_size for entry in entries)
    if packed or size > path.stat().st_size:
        why = f"is packed, as torch.save does not do ({size:,} bytes inside vs {path.stat().st_size:,}): refused"
        raise InputError(str(path), why, _HINT)


def _nest(found: Any) -> tuple[str, Any]:
    if isinstance(found, Mapping):
        for nest in _NESTS:
            if isinstance(found.get(nest), Mapping):
                return nest, found[nest]
    return "", found


def _plain(path: Path, state: Mapping[Any, Any], nest: str) -> Iterator[tuple[str, Any]]:
    """Names without their wrappers; a projection head beside a backbone is left out."""
    has_backbone = any("backbone." in str(key) for key in state)
    seen: set[str] = set()
    for key, value in state.items():
        name, inside = str(key), False
        while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), ""):
            name, inside = name.removeprefix(wrapper), inside or wrapper == "backbone."
        classifier = name in ("head.weight", "head.bias") and not has_backbone
        if nest in ("teacher", "student") and name.startswith("head.") and not inside and not classifier:
            continue
        if name in seen:
            raise InputError(str(path), f"holds {name} twice, with and without a prefix", _HINT)
        seen.add(name)
        yield name, value


def _check_tensors(path: Path, tensors: Mapping[str, Any], dtypes: tuple[torch.dtype, ...]) -> None:
    """Each is a dense float tensor, and together they claim no more than the file has."""
    claimed, size = 0, path.stat().st_size
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(str(path), f"{name} is not a tensor (found a {type(tensor).__name__})", _HINT)
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.dtype not in dtypes:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(str(path), f"{name} does not hold dense floats (found {kind})", _HINT)
        claimed += tensor.numel() * tensor.element_size()
        if not tensor.numel() or claimed > size:
            shape = "x".join(map(str, tensor.shape))
            raise InputError(str(path), f"{name} claims another size than the file has ({shape})", _HINT)


def check_weights(
    source: str, found: Shapes, expected: Shapes, *, why: str = "does not fit the model: ", hint: str = ""
) -> None:
    """Raise an InputError that names a missing, unexpected or misshapen weight; each is known by its name and shape.

    ``source``, ``why`` and ``hint`` are for the message.
    """
    problems = {"it lacks": expected.keys() - found.keys(), "it has the unexpected": found.keys() - expected.keys()}
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(source, f"{why}{problem} {min(names)}{more}", hint)
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            sizes = " vs ".join("x".join(map(str, each)) or "scalar" for each in (found[name], shape))
            raise InputError(source, f"{why}{name} has the wrong size ({sizes})", hint)


class NoInit(TorchFunctionMode):
    """Context in which torch.nn.init does nothing, for building a model whose weights come from a file.

    Drawing first weights takes most of the time of building RN50; on the meta device it imports torch.compile.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs.get("tensor") if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **kwargs)


def check_finite(source: str, tensors: Mapping[str, Tensor], hint: str = "") -> None:
    """Raise an InputError that names the first tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        quick = tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64) and tensor.numel()
        # The extremes of a tensor with NaN are NaN; they are found 20 times as fast as isfinite() of each element.
        if not bool((torch.stack(tensor.aminmax()) if quick else tensor).isfinite().all()):
            raise InputError(source, f"{name} holds NaN or infinite values", hint)
