"""What real trainings have shown, as weights of `rules.py`; written by `python -m benchmarks.regret fit`."""

from __future__ import annotations

from hftransfer.advise.rules import Knowledge, Weights

KNOWLEDGE = Knowledge(
    kinds={
        "contrastive": Weights((0.074, 0.163, -0.031, 0.718, 0.292), 0.826, 23),
        "feature_extraction": Weights((-0.021, 0.071, -0.056, 0.601, 0.108), 0.74, 59),
        "full_fine_tuning": Weights((0.099, 0.218, 0.033, 0.604, 0.111), 0.8, 59),
        "gradual_unfreezing": Weights((0.083, 0.154, 0.082, 0.605, 0.166), 0.965, 59),
        "lora": Weights((0.07, 0.22, 0.079, 0.485, -0.043), 0.824, 59),
        "lp_ft": Weights((0.11, 0.184, 0.079, 0.602, 0.157), 0.886, 59),
        "top_layers": Weights((0.069, 0.214, 0.042, 0.549, 0.052), 0.825, 59),
        "top_layers, most blocks": Weights((0.112, 0.163, 0.087, 0.575, 0.14), 0.7, 5),
    },
    sizes=(44, 1800),
    source="davidson, mrpc, scicite, snips, sst2, trec6; 50, 500, 2,000 examples; minilm, tiny-bert-mlm; 382 trainings",
)
