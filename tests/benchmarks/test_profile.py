"""Where a step's time goes: kinds of operations, sums against a hand computation, and a profile of a real step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.profile import kind_of, summary
from diffvit.cli.main import run
from tools import pages, speed


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::baddbmm", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("aten::mkldnn_convolution", "products"),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_NTN", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64", "products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("_CoreBackward", "attention"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer, elementwise"),
        ("aten::_fused_adamw_", "optimizer, elementwise"),
        ("triton_per_fused_add_native_layer_norm_3", "fused by the compiler"),
        ("triton_poi_fused__scaled_dot_product_flash_attention_copy_7", "fused by the compiler"),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "norms, activations, sums"),
        ("aten::native_layer_norm_backward", "norms, activations, sums"),
        ("_AddNorm", "norms, activations, sums"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("aten::copy_", "copies"),
        ("void at::native::index_elementwise_kernel", "norms, activations, sums"),
        ("aten::__rshift__", "other"),
    ],
)
def test_names_of_operations_tell_their_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_summary_against_a_hand_computation() -> None:
    worked = [("aten::mm", 3000.0), ("aten::mm", 1000.0), ("aten::copy_", 500.0), ("unheard of", 100.0)]
    found = summary(worked, wall=5.0, steps=2)
    kinds = {row["kind"]: (row["milliseconds"], row["calls"]) for row in found["kinds"]}
    assert kinds["products"] == (2.0, 1.0)
    assert kinds["copies"] == (0.25, 0.5)
    assert kinds["other"] == (0.05, 0.5)
    assert sum(milliseconds for milliseconds, _ in kinds.values()) == pytest.approx(2.3)
    assert found["kinds"][0]["kind"] == "products"
    assert found["idle"] == pytest.approx(2.7)
    assert [row["operation"] for row in found["operations"]] == ["aten::mm", "aten::copy_", "unheard of"]
    assert summary(worked, wall=1.0, steps=2)["idle"] == 0.0


RECIPE = """
data: shapes
batch_size: 16
validation_size: 0
shapes: {train: 100, test: 16}
augment: {flip: true, cutmix: 1.0}
optimizer: {name: muon}
model: {image_size: 16, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, attention: ATTENTION}
"""


def test_the_steps_of_two_recipes_are_profiled_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(throughput.LARGE, "cpu", 64)
    monkeypatch.setattr("benchmarks.profile.PROFILED", 2)
    for attention in ("softmax", "differential"):
        Path(f"{attention}.yaml").write_text(RECIPE.replace("ATTENTION", attention))
    # More steps than an epoch has, so that one ends on the way.
    where = ["--device", "cpu", "--threads", "1", "--steps", "9", "--out", "reports/speed"]
    assert run(["bench", "profile", "softmax.yaml", "differential.yaml", *where, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[:2] == ["1 of 2", "2 of 2"]
    found = json.loads(out.splitlines()[-1])
    assert [(arm["recipe"], arm["model"]) for arm in found["arms"]] == [
        ("softmax.yaml", "ViT"),
        ("differential.yaml", "Diff-ViT"),
    ]
    for arm in found["arms"]:
        assert [phase["phase"] for phase in arm["phases"]] == ["next batch", "forward and backward", "update"]
        # The phases are the step, but for what stands between them.
        assert 0.5 * arm["milliseconds"] < sum(phase["median"] for phase in arm["phases"]) < 1.5 * arm["milliseconds"]
        assert arm["images_per_second"] == pytest.approx(16 / (arm["milliseconds"] / 1e3))
        products = next(row for row in arm["kinds"] if row["kind"] == "products")
        assert products["calls"] > 10
        busy = sum(row["milliseconds"] for row in arm["kinds"])
        assert busy + arm["idle"] == pytest.approx(max(busy, arm["profiled_milliseconds"]))
        assert 0 < arm["mfu"] < 1
    text = Path(found["report"]).read_text()
    assert "### Diff-ViT, `differential.yaml`" in text
    assert pages.update(speed.documents(Path()), "speed", Path(), check=True) == []
