"""LLaVA families by class name. The table holds strings, so a look-up imports none of their packages."""

from importlib import import_module
from typing import Any, cast

from torch import nn

from llava_soundclip.hosts.base import Host

__all__ = ["Host", "find_host", "inner_model", "register_host", "supported_models"]

_HOSTS: dict[str, str | type[Host]] = {
    "LlavaForConditionalGeneration": "llava_soundclip.hosts.llava:LlavaHost",
    "LlavaLlamaForCausalLM": "llava_soundclip.hosts.original:OriginalLlavaHost",
    "LlavaMistralForCausalLM": "llava_soundclip.hosts.original:OriginalLlavaHost",
    "LlavaMptForCausalLM": "llava_soundclip.hosts.original:OriginalLlavaHost",
    "LlavaNextForConditionalGeneration": "llava_soundclip.hosts.llava_next:LlavaNextHost",
    "VipLlavaForConditionalGeneration": "llava_soundclip.hosts.vip_llava:VipLlavaHost",
}


def supported_models() -> list[str]:
    """Class names of the models that `patch` supports. Subclasses also work."""
    return sorted(_HOSTS)


def register_host(name: str, target: str | type[Host]) -> None:
    """Register a LLaVA family of your own, by the name of its class.

    Args:
        name: class name of the model; classes in a model's MRO are looked up.
        target: a `Host` subclass, or "package.module:Class", imported when such a model is patched.

    Raises:
        ValueError: if the name is taken.
    """
    if name in _HOSTS:
        raise ValueError(f"a host for {name} is registered already")
    _HOSTS[name] = target


def inner_model(model: nn.Module) -> nn.Module:
    """The LLaVA inside PEFT's wrapper, or the model itself."""
    if any(cls.__name__ == "PeftModel" for cls in type(model).__mro__):
        return cast(Any, model).get_base_model()
    return model


def find_host(model: nn.Module) -> Host:
    """The host of a model, found by the first registered class name in its MRO.

    A model in PEFT's wrapper is patched inside the wrapper.

    Raises:
        TypeError: for an unsupported model; the message lists the supported ones.
    """
    model = inner_model(model)
    for cls in type(model).__mro__:
        target = _HOSTS.get(cls.__name__)
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(import_module(module), attribute)
        if target is not None:
            return target(model)
    raise TypeError(
        f"can't patch a {type(model).__name__}; supported are {', '.join(supported_models())} "
        "and their subclasses"
    )
