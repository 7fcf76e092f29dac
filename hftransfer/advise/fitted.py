"""What real trainings have shown, as weights of `rules.py`; written by `python -m benchmarks.regret fit`."""

from __future__ import annotations

from hftransfer.advise.rules import Knowledge, Weights

KNOWLEDGE = Knowledge(
    kinds={
        "feature_extraction": Weights((1.081, 1.16, -0.398, -0.25, 0.017), 0.59, 8),
        "feature_extraction, few steps": Weights((1.019, 1.352, -0.513, -0.275, -0.342), 0.645, 6),
        "full_fine_tuning": Weights((0.805, 1.354, -0.176, -0.229, -0.112), 0.667, 7),
        "full_fine_tuning, few steps": Weights((0.52, 1.363, -0.387, -0.237, -0.315), 0.597, 7),
        "gradual_unfreezing": Weights((1.149, 1.366, -0.193, -0.28, -0.116), 0.709, 7),
        "gradual_unfreezing, few steps": Weights((1.028, 1.516, -0.492, -0.285, -0.345), 1.129, 7),
        "lora": Weights((1.262, 1.325, -0.205, -0.31, -0.157), 1.004, 7),
        "lora, few steps": Weights((1.014, 1.549, -0.408, -0.265, -0.35), 0.993, 7),
        "lp_ft": Weights((1.188, 1.389, -0.252, -0.292, -0.186), 0.878, 7),
        "lp_ft, few steps": Weights((0.968, 1.473, -0.526, -0.28, -0.339), 1.013, 7),
        "top_layers": Weights((1.222, 1.351, -0.191, -0.296, -0.149), 0.705, 7),
        "top_layers, few steps": Weights((0.872, 1.565, -0.305, -0.285, -0.428), 0.729, 8),
    },
    sizes=(45, 450),
    source=("davidson, mrpc, scicite, snips, sst2, trec6; 50, 500 examples; tiny-bert-mlm; 85 trainings"),
)
