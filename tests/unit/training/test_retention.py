"""L2-SP, EWC and mixout against the formulas of their papers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hftransfer.errors import RecipeError
from hftransfer.recipe import Recipe
from hftransfer.training.defaults import resolve
from hftransfer.training.fisher import diagonal_fisher
from hftransfer.training.retention import Anchor, Retention, draw_kept, mixout, proximal_step


def penalty(weight, pretrained, strength, importance):
    """Strength / 2 * sum of importance * (w - w0)^2."""
    return strength / 2 * (importance * (weight - pretrained) ** 2).sum()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    strength=st.floats(1e-3, 1e5),
    rate=st.floats(1e-6, 1e-1),
    weighted=st.booleans(),
)
def test_the_step_solves_the_implicit_gradient_step_of_the_penalty(seed, strength, rate, weighted):
    generator = torch.Generator().manual_seed(seed)
    updated, pretrained = torch.randn(2, 7, dtype=torch.float64, generator=generator)
    importance = torch.rand(7, dtype=torch.float64, generator=generator) * 10 if weighted else None
    weight = torch.nn.Parameter(updated.clone())
    with torch.no_grad():
        proximal_step(weight, Anchor(weight, pretrained, importance), rate * strength)
    by = torch.ones(7, dtype=torch.float64) if importance is None else importance
    (gradient,) = torch.autograd.grad(penalty(weight, pretrained, strength, by), weight)
    torch.testing.assert_close(weight.detach(), updated - rate * gradient)


def test_a_small_pull_is_a_gradient_step_of_the_penalty():
    updated, pretrained = torch.randn(2, 5, dtype=torch.float64)
    start = updated.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(start, pretrained, 3.0, torch.ones(5)), start)
    weight = torch.nn.Parameter(updated.clone())
    with torch.no_grad():
        proximal_step(weight, Anchor(weight, pretrained), 1e-6 * 3.0)
    torch.testing.assert_close((updated - weight.detach()) / 1e-6, gradient, rtol=1e-4, atol=1e-4)


def test_a_pull_of_any_strength_ends_between_the_two():
    weight, pretrained = torch.nn.Parameter(torch.randn(50)), torch.randn(50)
    before = (weight.detach() - pretrained).abs()
    with torch.no_grad():
        proximal_step(weight, Anchor(weight, pretrained, torch.rand(50) * 1e8), 1e6)
    assert bool(((weight.detach() - pretrained).abs() <= before).all())


def test_an_optimizer_step_is_followed_by_the_pull_with_the_groups_own_rates():
    held, free, pretrained = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3)), torch.zeros(3)
    retention = Retention("l2_sp", 10.0, {id(held): Anchor(held, pretrained)})
    retention.pull(torch.optim.SGD([{"params": [held, free], "lr": 0.1}], lr=1.0))
    torch.testing.assert_close(held.detach(), torch.full((3,), 0.5))
    assert torch.equal(free.detach(), torch.ones(3))


def test_what_is_pulled_does_not_decay_as_well():
    held, free, other = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    groups = [{"params": [held, free], "weight_decay": 0.1, "lr": 1.0}, {"params": [other], "weight_decay": 0.1}]
    anchors = {id(held): Anchor(held, torch.zeros(2, 2))}
    found = {
        id(weight): group["weight_decay"]
        for group in Retention("l2_sp", 1.0, anchors).without_decay(groups)
        for weight in group["params"]
    }
    assert found == {id(held): 0.0, id(free): 0.1, id(other): 0.1}
    # Mixout has no penalty that a decay would fight.
    assert Retention("mixout", 0.5, anchors).without_decay(groups) == groups


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_mixout_is_the_papers_formula_and_its_expectation_is_the_weight(share):
    weight, pretrained = torch.randn(2, 6, dtype=torch.float64)
    generator, draws = torch.Generator().manual_seed(0), 20_000
    # Every row is a draw of its own.
    kept = draw_kept(weight.expand(draws, 6), share, generator)
    found = mixout(weight, pretrained, share, kept)
    formula = ((1 - kept) * pretrained + kept * weight - share * pretrained) / (1 - share)
    torch.testing.assert_close(found, formula)
    # Four standard errors: each weight is off by its distance from w0 with the odds of the draw.
    tolerance = 4 * (weight - pretrained).abs() * (share / (1 - share) / draws) ** 0.5
    assert bool(((found.mean(0) - weight).abs() <= tolerance).all())


def test_the_limits_of_mixout():
    weight, pretrained, generator = torch.randn(200), torch.randn(200), torch.Generator().manual_seed(0)
    torch.testing.assert_close(mixout(weight, pretrained, 0.0, draw_kept(weight, 0.0, generator)), weight)
    nearly_one = 1 - 1e-9
    assert torch.equal(mixout(weight, pretrained, nearly_one, draw_kept(weight, nearly_one, generator)), pretrained)


def test_mixed_weights_have_the_gradient_of_the_mixed_loss_and_come_back():
    weight = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    own, pretrained, inputs = (
        weight.detach().clone(),
        torch.randn(4, 3, dtype=torch.float64),
        torch.randn(5, 3).double(),
    )
    retention = Retention("mixout", 0.7, {id(weight): Anchor(weight, pretrained)})
    with retention.mixed(seed=1, step=2):
        mixed = weight.detach().clone()
        (inputs @ weight.mT).square().sum().backward()
    assert not torch.equal(mixed, own)
    assert torch.equal(weight.detach(), own)
    kept = (mixed != pretrained).double()
    free = own.clone().requires_grad_()
    (inputs @ mixout(free, pretrained, 0.7, kept).mT).square().sum().backward()
    torch.testing.assert_close(weight.grad, free.grad)
    with retention.mixed(seed=1, step=2):
        assert torch.equal(weight.detach(), mixed), "the draw follows from seed and step"
    with retention.mixed(seed=1, step=3):
        assert not torch.equal(weight.detach(), mixed)


def test_mixed_weights_come_back_after_an_error():
    weight = torch.nn.Parameter(torch.randn(4, 3))
    own = weight.detach().clone()
    retention = Retention("mixout", 0.5, {id(weight): Anchor(weight, torch.zeros(4, 3))})
    with pytest.raises(MemoryError), retention.mixed(seed=1, step=0):
        raise MemoryError
    assert torch.equal(weight.detach(), own)


def test_the_fisher_is_the_mean_squared_gradient_of_single_examples():
    model = torch.nn.Linear(3, 2).double()
    inputs, labels = torch.randn(6, 3).double(), torch.tensor([0, 1, 0, 1, 1, 0])
    losses = [
        lambda row=row: torch.nn.functional.cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1])
        for row in range(6)
    ]
    model.bias.requires_grad_(False)
    found = diagonal_fisher(model, {"weight": model.weight}, losses)
    probabilities = model(inputs).softmax(1).detach()
    errors = probabilities - torch.nn.functional.one_hot(labels, 2)
    expected = (errors[:, :, None] * inputs[:, None, :]).square().mean(0)
    torch.testing.assert_close(found["weight"], expected)
    assert model.weight.requires_grad
    assert not model.bias.requires_grad
    assert model.weight.grad is None or not model.weight.grad.any()


@pytest.mark.parametrize("strategy", ["lora", "ia3", "feature_extraction"])
def test_nothing_is_held_where_no_pretrained_weight_learns(strategy):
    with pytest.raises(RecipeError, match="no pretrained weight learns"):
        resolve(Recipe(checkpoint="x", strategy=strategy, optim={"retain": "l2_sp"}))


@pytest.mark.parametrize(
    ("optim", "message"),
    [({"retain": "mixout", "retain_strength": 1.0}, "below 1"), ({"retain_strength": 1.0}, "needs a method")],
)
def test_a_strength_without_meaning_is_refused(optim, message):
    with pytest.raises(ValueError, match=message):
        Recipe(checkpoint="x", optim=optim)
