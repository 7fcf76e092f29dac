"""The stage that fits a head in one step: a logistic regression on frozen features, inside of the stock head.

The output layer becomes the regression on what it reads. Where the head has one square layer before it, that layer
becomes a multiple of the identity, small enough, or shifted far enough, that the activation behind it is all but
linear: the regression is then one on the features themselves.

Shape legend: N rows, B rows of a batch, D width of a feature, H width of what the output layer reads, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hftransfer.caching.boundary import CannotSplitError, Replay, capture, find_tap, reduce_inputs
from hftransfer.caching.states import PlainInputs, Rows, model_inputs
from hftransfer.data.batching import pass_tokens, token_budget_batches
from hftransfer.errors import StrategyError
from hftransfer.strategies.freezing import anatomy_of, transformers_model
from hftransfer.tasks.base import Features, Task
from hftransfer.training.calibration import CannotFoldError, output_layer

STRENGTH = 0.1
"""Root mean square of what the layer before the output is made to put out: tanh bends it by a few thousandths."""
SHIFTS = (0.0, 8.0)
"""What is added to it: tanh is linear around 0, the activations of the ReLU kind far above it."""
INVERSE_L2 = 1.0
"""scikit-learn's C, for features that are scaled to a mean variance of 1."""


def check_support(model: nn.Module, classes: int) -> None:
    """Refuse a head that cannot be fitted.

    Raises:
        StrategyError: If it has no linear output layer, or does not read one vector of the backbone.
    """
    try:
        output_layer(model, classes)
        find_tap(model, anatomy_of(model).head_depth)
    except (CannotFoldError, CannotSplitError) as reason:
        raise _refusal(reason) from None


def _refusal(reason: Exception) -> StrategyError:
    return StrategyError(f"the head cannot be fitted: {reason}", where="strategy.type contrastive", fix="choose lp_ft")


@torch.no_grad()
def fit_head(model: nn.Module, task: Task, features: Features, classes: int) -> float:
    """Fit the head to all rows, in eval mode and full precision.

    Args:
        model: A sequence classifier, on its device.
        task: Collates rows.
        features: Rows with a class each.
        classes: How many classes there are.

    Returns:
        The mean cross-entropy of the rows, in nats.

    Raises:
        StrategyError: If the head alone does not give what the whole model gives.
    """
    training = model.training
    model.eval()
    try:
        labels_N = np.asarray(features.labels)
        reader = HeadReader(model, task, features, output_layer(model, classes))
        with reader.replay:
            hidden_NH = reader.straightened()
        return _write_regression(reader.output, hidden_NH, labels_N[np.concatenate(reader.batches)])
    except CannotSplitError as reason:
        raise _refusal(reason) from None
    finally:
        model.train(training)


class HeadReader:
    """What a head's output layer reads of every row, and the layer before it.

    Args:
        model: The model in eval mode.
        task: Collates rows.
        features: The rows.
        output: The output layer.
    """

    def __init__(self, model: nn.Module, task: Task, features: Features, output: nn.Linear) -> None:
        self.model, self.output = model, output
        self.inputs, self.device = PlainInputs(task, features), next(model.parameters()).device
        self.tap = find_tap(model, anatomy_of(model).head_depth)
        self.replay = Replay(model, self.tap)
        self.batches = token_budget_batches(features.lengths_N, pass_tokens(self.device.type), 256)
        self.states = [capture(model, [self.tap], self._batch(rows))[self.tap.boundary] for rows in self.batches]
        anatomy, inner = anatomy_of(model), transformers_model(model)
        self.layers = [
            module
            for path in (*anatomy.pooler, *anatomy.head)
            for module in inner.get_submodule(path).modules()
            if isinstance(module, nn.Linear)
        ]

    def straightened(self) -> Tensor:
        """Make the square layer before the output pass its input through, if there is one; what the output then reads.

        The shift is the one that leaves the activation most nearly linear on these rows.
        """
        self.replay.check(self._batch(self.batches[-1][:4]))
        hidden_NH, called = self.read()
        others = [layer for layer in called if layer is not self.output]
        if len(others) != 1 or others[0].in_features != others[0].out_features:
            return hidden_NH
        (layer,) = others
        states_ND = torch.cat(self.states)[:, 0]
        strength = STRENGTH / max(float(states_ND.square().mean().sqrt()), torch.finfo(torch.float32).tiny)
        layer.weight.copy_(strength * torch.eye(layer.in_features))
        found = {}
        for shift in SHIFTS if layer.bias is not None else SHIFTS[:1]:
            if layer.bias is not None:
                layer.bias.fill_(shift)
            hidden_NH, _ = self.read()
            found[shift] = hidden_NH, _correlation(hidden_NH, states_ND)
        best = max(found, key=lambda shift: found[shift][1])
        if layer.bias is not None:
            layer.bias.fill_(best)
        return found[best][0]

    def read(self) -> tuple[Tensor, list[nn.Linear]]:
        """What the output layer reads, (N, H) in the order of the batches, and the head's layers as called."""
        read: list[Tensor] = []
        called: list[nn.Linear] = []

        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(layer, nn.Linear)
            if layer not in called:
                called.append(layer)
            if layer is self.output:
                read.append(args[0].flatten(0, -2).float())

        hooks = [layer.register_forward_pre_hook(note) for layer in self.layers]
        try:
            for rows, states_B1D in zip(self.batches, self.states, strict=True):
                self.replay.feed(states_B1D)
                inner = transformers_model(self.model)
                # The class's own forward: the one on the instance may run in half precision.
                type(inner).forward(inner, **reduce_inputs(self._batch(rows), self.tap.head_input))
        finally:
            self.replay.feed(None)
            for hook in hooks:
                hook.remove()
        return torch.cat(read), called

    def _batch(self, rows: Rows) -> dict[str, Tensor]:
        batch = model_inputs(self.inputs.collate(rows))
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


def _correlation(hidden_NH: Tensor, states_ND: Tensor) -> float:
    """How nearly one is an affine map of the other, number by number: the correlation; 0 for a constant."""
    pair = torch.stack([hidden_NH.flatten(), states_ND.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1].nan_to_num())


def _write_regression(output: nn.Linear, hidden_NH: Tensor, labels_N: NDArray[np.int64]) -> float:
    """Make a layer the multinomial logistic regression of the classes on what it reads; the mean cross-entropy.

    A class without examples is never predicted.
    """
    from sklearn.linear_model import LogisticRegression

    has_bias = output.bias is not None
    hidden = hidden_NH.double().cpu().numpy()
    centre_H = hidden.mean(0) if has_bias else np.zeros(hidden.shape[1])
    scale = max(float(np.sqrt(hidden.var(0).mean())), float(np.finfo(np.float32).tiny))
    fitted = LogisticRegression(C=INVERSE_L2, fit_intercept=has_bias, max_iter=1000)
    fitted.fit((hidden - centre_H) / scale, labels_N)
    coefficients, intercepts = fitted.coef_ / scale, fitted.intercept_
    if len(fitted.classes_) == 2:
        # Two classes are fitted as one logit.
        coefficients, intercepts = (np.concatenate([-part / 2, part / 2]) for part in (coefficients, intercepts))
    weight_CH = np.zeros(output.weight.shape)
    weight_CH[fitted.classes_] = coefficients
    output.weight.copy_(torch.from_numpy(weight_CH))
    if has_bias:
        bias_C = np.full(output.out_features, intercepts.min() + np.log(np.finfo(np.float32).eps))
        bias_C[fitted.classes_] = intercepts - coefficients @ centre_H
        output.bias.copy_(torch.from_numpy(bias_C))
    logits_NC = output(hidden_NH)
    labels = torch.from_numpy(labels_N).to(logits_NC.device)
    return float(nn.functional.cross_entropy(logits_NC, labels))
