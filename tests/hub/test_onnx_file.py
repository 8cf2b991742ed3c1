"""The weights of a DINOv2 of transformers, read back from an ONNX file laid out as the exporter does."""

from __future__ import annotations

import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from timm_maps import random_everywhere

from diffvit.attention import capture
from diffvit.errors import InputError
from diffvit.hub.pretrained import load_pretrained

LINEAR = ("query", "key", "value", "dense", "fc1", "fc2")
SETTINGS = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}


def theirs():
    config = transformers.Dinov2Config(**SETTINGS, image_size=56, patch_size=14, attn_implementation="eager")
    torch.manual_seed(0)
    return random_everywhere(transformers.Dinov2Model(config), spread=0.2)


def old_name(name):
    """Names as in the transformers of the exported file: version 4."""
    for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
        name = name.replace(f"attention.{new}", f"attention.{old}")
    return "backbone." + name.replace("attention.o_proj", "attention.output.dense")


def exported(model, path, leave_out=""):
    """Weights as initializers: those of linear layers transposed and nameless, positions split at [CLS]."""
    constants, nodes = [], []
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        name, array = old_name(name), tensor.numpy()
        if leave_out and leave_out in name:
            continue
        if name.endswith("position_embeddings"):
            constants += [numpy_helper.from_array(array[:, :1].copy(), f"onnx::Concat_{number}")]
            array, name = array[:, 1:].copy(), f"onnx::Reshape_{number}"
        elif name.endswith(tuple(f"{each}.weight" for each in LINEAR)):
            node = "/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            array, name = array.T.copy(), f"onnx::MatMul_{number}"
            nodes.append(helper.make_node("MatMul", ["x", name], [f"y{number}"], name=node))
        constants.append(numpy_helper.from_array(array, name))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "vit", inputs, [], initializer=constants)), path)
    return path


def test_the_models_maps_are_those_of_transformers(tmp_path):
    model = theirs()
    found = load_pretrained(weights=exported(model, tmp_path / "focus.onnx"))
    assert found.model.settings["num_heads"] == 2
    for side in (56, 70):
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        record = capture(found.model, images)
        with torch.no_grad():
            expected = model(images, output_attentions=True).attentions
        assert record.grid == (side // 14, side // 14)
        for layer in range(2):
            # At another size transformers resamples positions without antialiasing.
            torch.testing.assert_close(record.maps(layer), expected[layer], rtol=0, atol=1e-5 if side == 56 else 0.1)


@pytest.mark.parametrize(
    ("leave_out", "why"),
    [
        ("position_embeddings", "holds no ViT that is known"),
        ("cls_token", "holds no ViT that is known"),
        ("layer.1.attention.attention.key.weight", "qkv.weight has the wrong size"),
        ("layer.1.norm1.bias", "it lacks blocks.1.norm1.bias"),
    ],
)
def test_a_file_without_a_part_is_refused(leave_out, why, tmp_path):
    path = exported(theirs(), tmp_path / "part.onnx", leave_out)
    with pytest.raises(InputError, match=why) as caught:
        load_pretrained(weights=path)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path):
    path = exported(theirs(), tmp_path / "whole.onnx")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"whole\.onnx: is damaged"):
        load_pretrained(weights=path)
    with pytest.raises(InputError, match=r"none\.onnx: cannot be read .No such file"):
        load_pretrained(weights=tmp_path / "none.onnx")
