"""Updates that nobody waits for: the weights of ordinary steps, and none behind one that is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from hftransfer.training.updates import MOST_WAITING, Update
from tests.recording import Never, Repeats


def model_and_optimizer():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    groups = [
        {"params": list(layer.parameters()), "weight_decay": decay}
        for layer, decay in ((model[0], 0.1), (model[2], 0.0))
    ]
    return model, torch.optim.AdamW(groups, lr=1e-2, fused=True)


def backward(model, step, factor=1.0):
    batch = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
    loss = (model(batch) - 1.0).square().sum() * factor
    (loss * 0.2).backward()
    return loss.detach()


def rates_of(step):
    return [1e-2 / (step + 1), 2e-2 / (step + 1)]


def run_plainly(count, max_norm):
    """Losses and weights of steps one by one."""
    model, optimizer = model_and_optimizer()
    losses = []
    for step in range(count):
        for group, rate in zip(optimizer.param_groups, rates_of(step), strict=True):
            group["lr"] = rate
        losses.append(float(backward(model, step) * 0.2))
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
    return losses, list(model.parameters())


def run_ahead(count, max_norm, recorder, *, bad=(), told=None):
    """What is read, the weights, and the `Update`."""
    model, optimizer = model_and_optimizer()
    update = Update(model, optimizer, max_norm, recorder, print if told is None else told.append)
    for step in range(count):
        update.set_rates(rates_of(step))
        update.add(backward(model, step, math.inf if step in bad else 1.0), 0.2)
        update.run(step)
    return update.read(), list(model.parameters()), update


@pytest.mark.parametrize("max_norm", [0.5, math.inf])
@pytest.mark.parametrize("recorder", [Repeats, Never])
def test_they_give_the_weights_and_losses_of_steps_one_by_one(max_norm, recorder):
    told = []
    found, weights, update = run_ahead(7, max_norm, recorder(), told=told)
    losses, expected = run_plainly(7, max_norm)
    assert [step for step, _, _ in found] == list(range(7))
    assert [loss for _, loss, _ in found] == pytest.approx(losses, rel=1e-6)
    assert all(finite for _, _, finite in found)
    torch.testing.assert_close(weights, expected)
    assert update.replayed == (6 if recorder is Repeats else 0)
    assert told == ([] if recorder is Repeats else ["Updates run kernel by kernel: this cannot be recorded"])
    assert all(not weight.grad.any() for weight in weights)


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_a_step_that_is_not_finite_and_those_behind_it_change_nothing(bad):
    found, weights, update = run_ahead(6, 1.0, Repeats(), bad=[bad])
    _, expected, before = run_ahead(bad, 1.0, Repeats())
    assert [finite for _, _, finite in found[: bad + 1]] == [*(True for _ in range(bad)), False]
    torch.testing.assert_close(weights, expected, atol=0, rtol=0)
    for weight, other in zip(weights, expected, strict=True):
        state, earlier = update.optimizer.state[weight], before.optimizer.state.get(other, {})
        assert float(state["step"]) == bad
        for name, moment in earlier.items():
            torch.testing.assert_close(state[name], moment, atol=0, rtol=0)


def test_a_gradient_alone_may_be_the_trouble():
    model, optimizer = model_and_optimizer()
    update = Update(model, optimizer, 1.0, Repeats(), print)
    before = model[0].weight.detach().clone()
    update.add(backward(model, 0), 0.2)
    model[2].bias.grad.fill_(math.nan)
    update.run(0)
    ((_, loss, finite),) = update.read()
    assert math.isfinite(loss)
    assert not finite
    assert torch.equal(model[0].weight, before)


def test_what_is_read_is_read_once_and_there_is_room_for_so_many_steps():
    model, optimizer = model_and_optimizer()
    update = Update(model, optimizer, 1.0, Repeats(), print)
    assert update.read() == []
    for step in range(MOST_WAITING):
        assert not update.is_full
        update.add(backward(model, step), 0.2)
        update.run(step)
    assert update.is_full
    with pytest.raises(RuntimeError, match="read what came of the steps"):
        update.run(MOST_WAITING)
    assert len(update.read()) == MOST_WAITING
    update.add(backward(model, 99), 0.2)
    update.run(99)
    assert [step for step, _, _ in update.read()] == [99]


def test_micro_batches_add_up_and_a_step_that_is_not_made_is_forgotten():
    model, optimizer = model_and_optimizer()
    update = Update(model, optimizer, 1.0, Repeats(), print)
    update.add(torch.tensor(5.0), 1.0)
    update.drop()
    update.add(torch.tensor(3.0), 0.5)
    update.add(torch.tensor(1.0), 0.25)
    backward(model, 0)
    update.run(0)
    assert update.read()[0][:2] == (0, 1.75)


def test_a_parameter_whose_first_gradient_comes_late_is_updated_from_then_on():
    model, optimizer = model_and_optimizer()
    recorder = Repeats()
    update = Update(model, optimizer, 1.0, recorder, print)
    for step in range(3):
        loss = model[0](torch.ones(1, 4)).square().sum()
        loss.backward()
        update.add(loss.detach(), 1.0)
        update.run(step)
    still = model[2].weight.detach().clone()
    for step in range(3, 6):
        update.add(backward(model, step), 0.2)
        update.run(step)
    assert not torch.equal(model[2].weight, still)
    assert recorder.recorded == 2
