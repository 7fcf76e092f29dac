"""`hftransfer push RUN --repo me/name`."""

from __future__ import annotations

from pathlib import Path

from hftransfer.errors import HubError


def push(
    folder: Path,
    /,
    *,
    repo: str,
    private: bool = False,
    public: bool = False,
    merge: bool = False,
    license: str | None = None,
    language: str | None = None,
) -> None:
    """Publish a run's model with its card, scores and recipe in one commit, once it has been verified.

    Example: hftransfer push runs/reviews --repo me/reviews --merge

    Args:
        folder: The run's folder.
        repo: The repository, "me/name", or "name" for one of your own.
        private: Into a private repository, which is the default.
        public: Into a public repository.
        merge: Publish a plain model, with the adapter folded into the weights.
        license: License for the card, such as apache-2.0.
        language: Language codes for the card, joined by commas, such as en,de.
    """
    if private and public:
        raise HubError("--private and --public", where=repo, fix="leave one of them out")
    from hftransfer.run import Run

    languages = [code.strip() for code in (language or "").split(",") if code.strip()]
    print(Run(folder).push_to_hub(repo, private=not public, merge=merge, license=license, language=languages))
