"""What imports are charged to."""

from __future__ import annotations

import pytest

from benchmarks.profile_start import charged

LOG = """\
import time: self [us] | cumulative | imported package
import time:    100000 |     100000 |       sympy.core
import time:    200000 |     300000 |     torch._dynamo
import time:    400000 |     700000 |   transformers.modeling_utils
import time:     10000 |      10000 |     hftransfer.errors
import time:     50000 |      50000 |     torch
import time:     20000 |      80000 |   hftransfer.models
import time:      5000 |       5000 |   json
import time:     30000 |     815000 | hftransfer.finetuning
import time:     70000 |      70000 | datasets
a line of another kind | with | bars
"""


def test_a_library_is_charged_with_what_is_not_listed_and_it_imports():
    assert charged(LOG) == pytest.approx(
        {"transformers": 0.4, "torch": 0.35, "datasets": 0.07, "own modules": 0.06, "the rest": 0.005}
    )
