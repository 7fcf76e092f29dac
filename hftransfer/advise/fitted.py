"""What real trainings have shown, as weights of `rules.py`; written by `python -m benchmarks.regret fit`."""

from __future__ import annotations

from hftransfer.advise.rules import Knowledge, Weights

KNOWLEDGE = Knowledge(
    kinds={
        "feature_extraction": Weights((0.129, 0.059, -0.053, 0.409, 0.185), 0.557, 16),
        "full_fine_tuning": Weights((0.183, 0.117, 0.058, 0.354, 0.25), 0.55, 16),
        "gradual_unfreezing": Weights((0.145, 0.076, 0.127, 0.382, 0.367), 0.629, 16),
        "lora": Weights((0.136, 0.212, 0.072, 0.323, 0.004), 0.524, 16),
        "lp_ft": Weights((0.201, 0.11, 0.086, 0.357, 0.297), 0.571, 16),
        "top_layers": Weights((0.139, 0.151, 0.079, 0.342, 0.125), 0.539, 16),
        "top_layers, most blocks": Weights((0.196, 0.109, 0.074, 0.361, 0.222), 0.452, 4),
    },
    sizes=(45, 450),
    source="davidson, mrpc, scicite, snips, sst2, trec6; 50, 500 examples; minilm, tiny-bert-mlm; 100 trainings",
)
