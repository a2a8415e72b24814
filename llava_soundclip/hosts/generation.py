"""`generate` with room in the prompt. Lengths, streamers and callbacks still refer to the caller's prompt."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from llava_soundclip.hosts.room import Room


def adapt_generate(kwargs: dict[str, Any], room: Room, default_config: Any) -> dict[str, Any]:
    """Arguments of `generate` for the stretched prompt that behave as with the caller's own.

    `max_length` and `min_length` count the prompt, so they change with it. Streamers, logits processors,
    stopping criteria and `prefix_allowed_tokens_fn` see the caller's prompt.

    Args:
        kwargs: arguments of `generate` by name.
        room: the plan that stretched the prompt.
        default_config: the model's generation config, used if `kwargs` has none.
    """
    kwargs = dict(kwargs)
    _move_lengths(kwargs, room.growth, default_config)
    if kwargs.get("streamer") is not None:
        kwargs["streamer"] = _Streamer(kwargs["streamer"], room)
    for name in ("logits_processor", "stopping_criteria"):
        if kwargs.get(name):
            kwargs[name] = type(kwargs[name])(_shown(callback, room) for callback in kwargs[name])
    if kwargs.get("prefix_allowed_tokens_fn") is not None:
        kwargs["prefix_allowed_tokens_fn"] = _allowed_tokens(kwargs["prefix_allowed_tokens_fn"], room)
    return kwargs


def _move_lengths(kwargs: dict[str, Any], growth: int, default_config: Any) -> None:
    config = kwargs.get("generation_config")
    if config is not None:
        config = kwargs["generation_config"] = copy.deepcopy(config)
    unset = type(default_config)()
    for name in ("max_length", "min_length"):
        if kwargs.get(name) is not None:
            kwargs[name] += growth
        elif (value := getattr(config or default_config, name)) not in (None, getattr(unset, name)):
            if config is not None:
                setattr(config, name, value + growth)
            else:
                kwargs[name] = value + growth


class _Streamer:
    """Passes on the caller's prompt, then all generated tokens."""

    def __init__(self, streamer: Any, room: Room) -> None:
        self._streamer = streamer
        self._room: Room | None = room

    def put(self, value: Tensor) -> None:
        if self._room is not None:
            value, self._room = self._room.restore(value), None
        self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()


def _shown(callback: Callable[..., Any], room: Room) -> Callable[..., Any]:
    """A logits processor or stopping criterion that sees the caller's prompt."""

    def call(input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return callback(room.restore(input_ids), scores, **kwargs)

    return call


def _allowed_tokens(function: Callable[[int, Tensor], Any], room: Room) -> Callable[[int, Tensor], Any]:
    def allowed(batch: int, ids: Tensor) -> Any:
        prompt = room.ids[batch].to(ids.device)
        return function(batch, ids.new_tensor([*prompt.tolist(), *ids[room.source.shape[1] :].tolist()]))

    return allowed
