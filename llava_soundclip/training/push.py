"""Upload of a trained projector to the Hub."""

import os


def push_projector(folder: str | os.PathLike[str], repo_id: str, *, private: bool = False) -> str:
    """Upload a projector's folder to the Hub: weights, config, card, metrics and recipe.

    Args:
        folder: a folder that `train` made.
        repo_id: "user/name"; created if it doesn't exist.
        private: whether a new repository is private.

    Returns:
        The URL of the commit.

    Raises:
        OSError: if the Hub can't be reached or refuses.
    """
    from huggingface_hub import HfApi

    from llava_soundclip.alignment.files import CONFIG, WEIGHTS
    from llava_soundclip.features.splits import RECIPE
    from llava_soundclip.training.fit import METRICS

    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    files = [WEIGHTS, CONFIG, "README.md", METRICS, RECIPE]
    return api.upload_folder(repo_id=repo_id, folder_path=os.fspath(folder), allow_patterns=files).commit_url
