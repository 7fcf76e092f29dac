"""`hftransfer predict MODEL --input FILE --output FILE`."""

from __future__ import annotations

from pathlib import Path


def predict(
    model: str,
    /,
    *,
    input: Path,
    output: Path,
    text: str = "text",
    text_pair: str | None = None,
    batch_size: int = 256,
    base: str | None = None,
) -> None:
    """Predict for every row of a file, in length-sorted batches; the model says for which task it was trained.

    Args:
        model: A run's folder or its model folder.
        input: File to read (csv, tsv, json, jsonl, parquet).
        output: File to write (csv, jsonl or parquet, by its ending).
        text: Column with the text.
        text_pair: Column with the second text of a pair.
        batch_size: Most rows per batch.
        base: The checkpoint of an adapter that is alone, a folder or a Hub id with @revision.
    """
    from hftransfer import inference

    count = inference.predict_file(
        model, str(input), output, text=text, text_pair=text_pair, batch_size=batch_size, base=base
    )
    print(f"{count:,} predictions: {output}")
