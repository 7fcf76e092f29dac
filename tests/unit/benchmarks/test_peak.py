"""The operations of a model, by formula."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.peak import encoder_operations


def test_operations_are_those_of_the_matrices():
    config = SimpleNamespace(hidden_size=4, intermediate_size=16, num_hidden_layers=2)
    weights = 4 * 4 * 4 + 2 * 4 * 16
    # Per token two operations per weight; scores and mixing cost two operations per pair of tokens and dimension each.
    blocks = 2 * (2 * 3 * weights + 2 * (2 * 3 * 3 * 4))
    # What comes behind the last attention is computed for one token of three.
    assert encoder_operations(config, [3]) == blocks - 2 * (2 * (4 * 4 + 2 * 4 * 16))
    assert encoder_operations(config, [3, 5]) == encoder_operations(config, [3]) + encoder_operations(config, [5])


def test_bert_base_costs_what_is_known_of_it():
    config = SimpleNamespace(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    # 85 million weights in the blocks, twice, on 128 tokens, and the attention: about 22 GFLOP, less most of a block.
    assert 20e9 < encoder_operations(config, [128]) < 22e9
