"""How few examples make enough steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hftransfer.training_settings import ENOUGH_STEPS, SMALLEST_BATCH, enough_steps


def steps_of(examples, epochs, batch, batches_per_step):
    return -(-examples // (batch * batches_per_step)) * epochs


@given(st.integers(1, 5000), st.integers(1, 20), st.integers(1, 8), st.booleans())
def test_steps_are_enough_and_changed_only_where_needed(examples, epochs, batches_per_step, keep_batch):
    found = enough_steps(examples, epochs, batches_per_step=batches_per_step, keep_batch=keep_batch)
    usual = steps_of(examples, epochs, 32, batches_per_step)
    if not found:
        assert usual >= ENOUGH_STEPS
        return
    more, batch = found["num_train_epochs"], found["per_device_train_batch_size"]
    assert usual < ENOUGH_STEPS <= steps_of(examples, more, batch, batches_per_step)
    assert more >= epochs
    assert batch == 32 if keep_batch else SMALLEST_BATCH <= batch <= 32
    # No epoch more than needed, and none as long as batches can shrink.
    assert more == epochs or steps_of(examples, more - 1, batch, batches_per_step) < ENOUGH_STEPS
    assert more == epochs or keep_batch or batch == SMALLEST_BATCH
