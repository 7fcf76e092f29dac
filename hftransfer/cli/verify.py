"""`hftransfer verify REPO_OR_FOLDER`."""

from __future__ import annotations

from hftransfer.errors import HubError


def verify(model: str, /) -> None:
    """Check in a fresh process, with plain transformers and PEFT, that a model gives what it gave when it was trained.

    Args:
        model: A run's folder, its model folder, or a repository on the Hub (with an optional @revision).
    """
    from hftransfer import hub

    found = hub.verify(model)
    for note in found.notes:
        print(f"note: {note}")
    if found.problems:
        more = f" ({'; '.join(found.problems[1:])})" if len(found.problems) > 1 else ""
        raise HubError(f"not the model that was trained: {found.problems[0]}{more}", where=model)
    print(f"{model}: {found.compared:,} outputs, label names and tokens as trained (within {found.difference:.1e})")
