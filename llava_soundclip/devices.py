"""Where things run by default."""


def default_device() -> str:
    """The accelerator if there is one, else "cpu"."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
