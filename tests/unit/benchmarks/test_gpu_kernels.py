"""Kernels by kind, by names that torch's profiler has for them."""

from __future__ import annotations

import pytest

from benchmarks.gpu_kernels import KINDS
from benchmarks.profile_step import grouped


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_bias_TNT", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x64", "attention"),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, 64>(void const*)", "attention"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(",
            "optimizer, clipping and clearing",
        ),
        ("triton_per_fused__to_copy_add_native_dropout_native_layer_norm_view_8", "fused by torch.compile"),
        ("void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float>", "layer norm"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::GeluCUDAKernelImpl(", "activation function"),
        ("void at::native::(anonymous namespace)::fused_dropout_kernel_vec<c10::BFloat16>", "dropout"),
        (
            "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16>>",
            "gradients of biases and other sums",
        ),
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::bfloat16_copy_kernel_cuda(",
            "casts and copies",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("something of which nobody has heard", "the rest"),
    ],
)
def test_a_kernel_counts_as_its_kind(name, kind):
    assert grouped([(name, 1.5)], KINDS) == [(kind, 1.5)]


def test_kinds_are_summed_and_sorted():
    assert grouped([("gemm_a", 1.0), ("copy", 2.5), ("gemm_b", 2.0)], KINDS) == [
        ("matrix products", 3.0),
        ("casts and copies", 2.5),
    ]
