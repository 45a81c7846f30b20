"""Uploading a checkpoint or an adapter to the Hugging Face hub, without what holds facts in clear."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from zerounlearn.errors import ConfigError, OutputError, reason_of
from zerounlearn.files import MARKER
from zerounlearn.model.loading import KEPT_FILES

_PARTS = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    ".gitattributes",
    "NOTICE*",
    MARKER,
    *KEPT_FILES,
)
"""What belongs to a checkpoint or an adapter. A list of what does, since no list of what holds facts is complete."""
_CACHE = ".cache/huggingface/"  # huggingface_hub's own, which it does not upload


def check_publishable(folder: str | Path) -> None:
    """Refuse a folder that is no checkpoint or adapter, or holds anything else: a report, facts, an edit's file.

    Raises:
        ConfigError: naming what does not belong there.
    """
    place = Path(folder)
    if not any((place / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ConfigError(f"{str(place)!r} is no folder of a checkpoint or an adapter: it has no config.json")
    names = sorted(file.relative_to(place).as_posix() for file in place.rglob("*") if not file.is_dir())
    for name in names:
        if not name.startswith(_CACHE) and ("/" in name or not any(fnmatch(name, part) for part in _PARTS)):
            raise ConfigError(
                f"{str(place)!r} holds {name!r}, which is no part of a checkpoint or an adapter and may hold facts in "
                "clear: move it elsewhere"
            )
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"{str(place)!r} holds no weights in safetensors")
    readme = place / "README.md"
    if readme.is_file() and "# Unlearning report" in readme.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{str(readme)!r} is a run's report, with the facts in clear: put a card in its place")


def push(folder: str | Path, repo: str, *, private: bool = False, message: str = "Upload by zerounlearn") -> str:
    """Upload a folder in one commit, with the login that huggingface_hub finds; the repository is made if need be.

    Args:
        folder: a checkpoint or an adapter; see `check_publishable`.
        repo: `owner/name`.
        private: make the repository private; one that is there and public is refused.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: the folder holds what must not be uploaded, or the repository's name is none.
        OutputError: the hub does not take it, or cannot be reached.
    """
    check_publishable(folder)
    api = HfApi(library_name="zerounlearn")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        public = private and not api.repo_info(repo).private
        if not public:
            return str(
                api.upload_folder(
                    repo_id=repo, folder_path=str(folder), commit_message=message, ignore_patterns=[MARKER]
                )
            )
    except HFValidationError as error:
        raise ConfigError(f"repo={repo!r}: expected OWNER/NAME: {reason_of(error)}") from error
    except Exception as error:  # the hub and the network raise too many kinds to list
        raise OutputError(
            f"{str(folder)!r} cannot be uploaded to {repo!r}: {type(error).__name__}: {reason_of(error)}; "
            "log in with `hf auth login`, and try again"
        ) from error
    raise ConfigError(f"repo={repo!r} is there already and is public: name another, or leave out --private")
