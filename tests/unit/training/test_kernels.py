"""The CPU kernels: the stated probability, the right gradient, a pure function of the seed."""

from __future__ import annotations

import math

import pytest
import torch

from hftransfer.training import kernels

RATES = [0.1, 0.5, 0.003]
SHAPE = (64, 128, 32)


def seeded_mask(shape, dropped, seed):
    torch.manual_seed(seed)
    return kernels.keep_mask(shape, dropped)


# --- the mask ---


@pytest.mark.parametrize("p", [0.0, 0.001, 0.1, 0.3, 0.5, 0.9])
def test_the_probability_is_the_nearest_multiple_of_two_to_the_minus_sixteen(p):
    assert abs(kernels.dropped_values(p) / kernels.RESOLUTION - p) <= 2**-17


@pytest.mark.parametrize("p", RATES)
def test_elements_stay_with_the_stated_probability(p):
    dropped = kernels.dropped_values(p)
    mask = seeded_mask(SHAPE, dropped, seed=1)
    keep = 1 - dropped / kernels.RESOLUTION
    deviation = math.sqrt(mask.numel() * keep * (1 - keep))
    assert set(mask.unique().tolist()) == {0, 1}
    assert abs(int(mask.sum()) - mask.numel() * keep) < 5 * deviation
    # Every position within a 64-bit draw has that probability too.
    for lane in range(4):
        part = mask.view(-1)[lane::4]
        assert abs(int(part.sum()) - part.numel() * keep) < 5 * deviation / 2


def test_neighbours_and_streams_are_independent():
    mask_N = seeded_mask((3 * kernels.STREAM,), kernels.dropped_values(0.5), seed=2).double() - 0.5
    for lag in (1, 2, 3, 4, 64, kernels.STREAM):
        products = mask_N[lag:] * mask_N[:-lag] * 4
        assert abs(float(products.mean())) < 5 / math.sqrt(len(products)), lag


def test_the_mask_is_a_pure_function_of_the_seed():
    first, again, other = (seeded_mask((1000,), 30000, seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    assert torch.equal(kernels.keep_mask((1000,), 30000), first)
    assert not torch.equal(kernels.keep_mask((1000,), 30000), first)  # the next draw of the same step


def test_the_mask_does_not_depend_on_the_threads_that_draw_it(monkeypatch):
    shape = (2 * kernels.STREAM + 5,)
    alone = seeded_mask(shape, 6554, seed=3)
    monkeypatch.setattr(kernels, "DRAWING_THREADS", 1)
    with kernels.drawing_threads():
        assert kernels._threads is not None
        assert torch.equal(seeded_mask(shape, 6554, seed=3), alone)
    assert kernels._threads is None


# --- dropout ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_mask_times_scale(dtype):
    hidden = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    upstream = torch.randn(SHAPE, dtype=dtype)
    torch.manual_seed(4)
    out = kernels.dropout(hidden, 0.1)
    out.backward(upstream)
    mask = seeded_mask(SHAPE, 6554, seed=4).to(dtype)
    scale = 65536 / (65536 - 6554)
    assert out.dtype == dtype
    torch.testing.assert_close(out, (hidden.detach() * mask) * scale, rtol=0, atol=0)
    torch.testing.assert_close(hidden.grad, (upstream * mask) * scale, rtol=0, atol=0)


def test_dropout_passes_gradcheck():
    hidden = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def run(hidden):
        torch.manual_seed(1)
        return kernels.dropout(hidden, 0.3)

    assert torch.autograd.gradcheck(run, hidden)


@pytest.mark.parametrize("p", RATES)
def test_the_expectation_is_kept(p):
    torch.manual_seed(6)
    out = kernels.dropout(torch.ones(1 << 20), p)
    assert abs(float(out.double().mean()) - 1) < 5 * math.sqrt(p / (1 - p) / out.numel())


def test_the_ends_of_the_scale_and_evaluation():
    hidden = torch.randn(8, 8)
    assert torch.equal(kernels.dropout(hidden, 0.0), hidden)
    assert torch.equal(kernels.dropout(hidden, 1.0), torch.zeros(8, 8))
    assert torch.equal(kernels.dropout(hidden, 0.5, training=False), hidden)


# --- attention ---


def attention_inputs(length, dtype=torch.float32, heads=3, width=8, batch=4):
    generator = torch.Generator().manual_seed(length)
    tensors = [torch.randn(batch, heads, length, width, generator=generator, dtype=torch.float64) for _ in range(3)]
    keep = torch.ones(batch, 1, 1, length, dtype=torch.bool)
    keep[0, ..., length // 2 :] = False
    bias = torch.randn(1, heads, length, length, generator=generator, dtype=torch.float64)
    return [tensor.to(dtype).requires_grad_() for tensor in (*tensors, bias)], keep


def plain_attention(query, key, value, bias, keep, scaling, dropped_mask, scale):
    scores = query @ key.transpose(2, 3) * scaling + bias
    probs = torch.softmax(scores.masked_fill(~keep, torch.finfo(scores.dtype).min), -1)
    return (probs * dropped_mask * scale) @ value


@pytest.mark.parametrize("length", [7, 23, 32, 48])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_attention_is_the_plain_formula_with_the_same_mask(length, dtype, tolerance, p):
    inputs, keep = attention_inputs(length, dtype)
    torch.manual_seed(9)
    query, key, value, bias = inputs
    out = kernels.attention(query, key, value, mask_BHTS=keep, bias_BHTS=bias, scaling=0.3, dropout=p)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(upstream)
    dropped = kernels.dropped_values(p)
    mask = seeded_mask((12, length, length), dropped, seed=9).view(4, 3, length, length) if p else torch.ones(1)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = plain_attention(*exact, keep, 0.3, mask.double(), 65536 / (65536 - dropped))
    expected.backward(upstream.double())
    for found, wanted in [(out, expected), *((a.grad, b.grad) for a, b in zip(inputs, exact, strict=True))]:
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error < tolerance


def test_attention_passes_gradcheck():
    inputs, keep = attention_inputs(5, torch.float64, heads=2, width=3, batch=2)

    def run(query, key, value, bias):
        torch.manual_seed(2)
        return kernels.attention(query, key, value, mask_BHTS=keep, bias_BHTS=bias, scaling=0.5, dropout=0.2)

    assert torch.autograd.gradcheck(run, inputs)


def test_the_expectation_of_attention_is_the_one_without_dropout():
    (query, key, value, _), keep = attention_inputs(6)
    with torch.no_grad():
        exact = kernels.attention(query, key, value, mask_BHTS=keep, scaling=0.3)
        torch.manual_seed(0)
        draws = torch.stack(
            [kernels.attention(query, key, value, mask_BHTS=keep, scaling=0.3, dropout=0.2) for _ in range(600)]
        )
    z = (draws.mean(0) - exact) / (draws.std(0) / math.sqrt(len(draws)))
    assert float(z.abs().max()) < 5.5
    assert 0.7 < float(z.std()) < 1.3


def test_a_row_that_sees_nothing_stays_finite():
    (query, key, value, _), keep = attention_inputs(6, torch.bfloat16)
    keep[1] = False
    added = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
    for mask in (keep, added):
        out = kernels.attention(query, key, value, mask_BHTS=mask, scaling=1.0, dropout=0.1)
        out.sum().backward()
        assert out.isfinite().all()
        assert query.grad.isfinite().all()


def test_autocast_decides_what_attention_computes_in():
    (query, key, value, _), _ = attention_inputs(8)
    with torch.autocast("cpu", torch.bfloat16):
        out = kernels.attention(query, key, value, scaling=1.0)
    out.float().sum().backward()
    assert (out.dtype, query.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        (("cpu", torch.float32, 16), "fused"),
        (("cpu", torch.float32, 64), "sdpa"),
        (("cpu", torch.float32, 256, 0.1), "fused"),
        (("cpu", torch.bfloat16, 256), "fused"),
        (("cpu", torch.bfloat16, 1024), "sdpa"),
        (("cpu", torch.float16, 16, 0.1), "sdpa"),
        (("cuda", torch.bfloat16, 16, 0.1), "sdpa"),
    ],
)
def test_the_choice_follows_the_measurements(arguments, choice):
    assert kernels.fastest_attention(*arguments) == choice


@pytest.mark.parametrize(
    ("dtype", "length", "choice"),
    [
        (torch.bfloat16, 32, "fused"),
        (torch.bfloat16, 64, "sdpa"),
        (torch.float32, 8, "sdpa"),
    ],
)
def test_without_a_gradient_only_short_bf16_inputs_gain(dtype, length, choice):
    assert kernels.fastest_attention("cpu", dtype, length, learns=False) == choice
