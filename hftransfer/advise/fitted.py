"""What real trainings have shown, as weights of `rules.py`; written by `python -m benchmarks.regret fit`."""

from __future__ import annotations

from hftransfer.advise.rules import Knowledge, Weights

KNOWLEDGE = Knowledge(
    kinds={
        "feature_extraction": Weights((0.719, 0.871, -0.307, -0.218, -0.023), 0.757, 9),
        "feature_extraction, few steps": Weights((0.929, 1.246, -0.505, -0.262, -0.35), 0.657, 6),
        "full_fine_tuning": Weights((0.726, 1.238, -0.259, -0.218, -0.048), 0.694, 8),
        "full_fine_tuning, few steps": Weights((0.455, 1.29, -0.316, -0.225, -0.365), 0.518, 8),
        "gradual_unfreezing": Weights((1.07, 1.251, -0.276, -0.269, -0.052), 0.753, 8),
        "gradual_unfreezing, few steps": Weights((0.963, 1.446, -0.409, -0.274, -0.405), 0.959, 8),
        "lora": Weights((1.186, 1.217, -0.259, -0.299, -0.115), 1.001, 8),
        "lora, few steps": Weights((0.948, 1.473, -0.345, -0.253, -0.396), 0.82, 8),
        "lp_ft": Weights((1.112, 1.285, -0.292, -0.281, -0.154), 0.856, 8),
        "lp_ft, few steps": Weights((0.908, 1.416, -0.393, -0.268, -0.436), 0.836, 8),
        "top_layers": Weights((1.145, 1.243, -0.247, -0.285, -0.105), 0.719, 8),
        "top_layers, few steps": Weights((0.803, 1.478, -0.284, -0.274, -0.442), 0.753, 8),
    },
    sizes=(45, 450),
    source="davidson, mrpc, scicite, snips, sst2, trec6; 50, 500 examples; tiny-bert-mlm; 95 trainings",
)
