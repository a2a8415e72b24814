"""The caller's places: a prompt as the caller wrote it, while the language model reads other tokens for its images.

With a sound, an image has one token more than its placeholders, or fewer. The caller doesn't see that: masks,
positions and caches that go in, and states that come out, have one entry per token of the caller's prompt. In the
place of each token stands the state of the last token that was read up to there. An image's tokens fill its places in
order: the first place has the sound's token and the first patch, and places left over repeat the last state.

Shapes: B rows, P places of the caller's, R tokens that were read. A chunk is the part of a prompt in one call, with L
places and L' tokens.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Places:
    """The caller's place of each token that was read.

    Attributes:
        source: (B, R) int64, ascending in a row; -1 for padding that was added because rows grew differently.
        count: P.
        is_padded: whether padding was added.
    """

    source: Tensor
    count: int
    is_padded: bool = False

    def extend(self, chunk: Tensor, length: int, *, is_padded: bool = False) -> "Places":
        """Add a chunk: (B, L') places in the chunk, of L; -1 for padding."""
        chunk = torch.where(chunk < 0, chunk, chunk + self.count).to(self.source.device)
        is_padded |= self.is_padded
        return Places(torch.cat([self.source, chunk], 1), self.count + length, is_padded)

    def rows(self, index: Tensor) -> "Places":
        """Some rows, in another order."""
        return replace(self, source=self.source[index.to(self.source.device)])

    def first_tokens(self, count: int) -> int:
        """The number of tokens that were read for the first `count` places.

        Raises:
            ValueError: if it differs among rows.
        """
        later = self.source >= count
        tokens = torch.where(later.any(1), later.long().argmax(1), self.source.shape[1])
        if (tokens != tokens[0]).any():
            raise ValueError(
                f"the first {count} places of these rows hold different numbers of tokens, since their images "
                "stand in different places: crop after the last image, or crop the rows one by one"
            )
        return int(tokens[0])


def no_places(batch: int, count: int, device: torch.device) -> Places:
    """The places of a cache that was filled without a sound."""
    return Places(torch.arange(count, device=device).expand(batch, -1), count)


def masks(places: Places, chunk: Tensor, mask: Any, capacity: int | None = None) -> Any:
    """An attention mask for the tokens that are read.

    Args:
        places: all tokens, with those of the chunk.
        chunk: (B, L') places of the last tokens in the chunk.
        mask: the caller's: None, (B, P), (B or 1, heads or 1, L, P), or a dict of these. With 4 dimensions it is bool,
            or added to the scores.
        capacity: size of a static cache; None for another.

    Raises:
        ValueError: if the mask is shorter than the prompt.
    """
    source = places.source
    if isinstance(mask, dict):
        return {name: masks(places, chunk, value, capacity) for name, value in mask.items()}
    if mask is None:
        return (source >= 0).long() if places.is_padded else None
    if mask.shape[-1] < places.count:
        raise ValueError(
            f"attention_mask has {mask.shape[-1]} columns, but the prompt has {places.count} tokens, with those in "
            "the cache"
        )
    source, chunk = source.to(mask.device), chunk.to(mask.device)
    if mask.ndim == 2:
        return mask.gather(1, source.clamp_min(0)).masked_fill(source < 0, 0)
    rows, heads, columns = len(source), mask.shape[1], mask.shape[3]
    mask = mask.expand(rows, -1, -1, -1)
    queries = chunk.clamp_min(0)[:, None, :, None].expand(-1, heads, -1, columns)
    keys = source.clamp_min(0)[:, None, None, :].expand(-1, heads, chunk.shape[1], -1)
    result = mask.gather(2, queries).gather(3, keys)
    # Tokens that share a place would see one another: causal, like the language model.
    number = torch.arange(source.shape[1], device=mask.device)
    own = number[-chunk.shape[1] :]
    same_place = source[:, None, :] == source[:, -chunk.shape[1] :, None]
    is_hidden = (source < 0)[:, None, :] | (same_place & (number > own[:, None]))
    is_hidden &= number != own[:, None]
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    result = result.masked_fill(is_hidden[:, None], hidden)
    if capacity is not None:
        result = nn.functional.pad(result, (0, capacity - result.shape[-1]), value=hidden)
    return result


def positions(places: Places, chunk: Tensor, given: Tensor | None, mask: Any) -> Tensor | None:
    """Position ids for the tokens that are read: (B, L'), or None where the language model's own are right.

    Args:
        places: all tokens, with those of the chunk.
        chunk: (B, L') places of the last tokens in the chunk.
        given: the caller's (B or 1, L), or None. Each token gets its place's position, moved by the tokens that were
            added or dropped before it.
        mask: the caller's attention mask.
    """
    source, length = places.source, chunk.shape[1]
    if given is None:
        if not places.is_padded:
            return None
        return ((source >= 0).cumsum(1) - 1)[:, -length:].clamp_min(0)
    is_real = torch.ones(len(source), places.count, dtype=torch.bool, device=source.device)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        is_real = mask[:, : places.count].to(source.device) != 0
    place = source.clamp_min(0)
    rank = (is_real.gather(1, place) & (source >= 0)).cumsum(1)
    moved = rank - is_real.cumsum(1).gather(1, place)
    given = given.to(source.device).expand(len(source), -1)
    return (given.gather(1, chunk.clamp_min(0)) + moved[:, -length:]).clamp_min(0)


def last_read(chunk: Tensor, length: int) -> Tensor | None:
    """For each place of a chunk, the last token that was read up to there: (B, L) indices below L'. None if the same.

    Args:
        chunk: (B, L') places of the tokens in the chunk.
        length: L.
    """
    tokens = torch.arange(chunk.shape[1], device=chunk.device)
    if chunk.shape[1] == length and bool((chunk == tokens).all()):
        return None
    is_real = chunk >= 0
    last = torch.full((len(chunk), length), -1, device=chunk.device)
    last.scatter_reduce_(1, chunk.clamp_min(0), tokens.expand_as(chunk).masked_fill(~is_real, -1), "amax")
    first = is_real.long().argmax(1, keepdim=True)
    return torch.maximum(last.cummax(1).values, first)


def states_in_places(states: Tensor, last: Tensor) -> Tensor:
    """(B, L', width) of tokens to (B, L, width) of places; `last` is from `last_read`."""
    last = last.to(states.device)
    return states.gather(1, last[:, :, None].expand(-1, -1, states.shape[2]))


def attentions_in_places(attentions: Tensor, last: Tensor, places: Places) -> Tensor:
    """(B, heads, L', R) of tokens to (B, heads, L, P) of places; tokens that share a place add up."""
    last, source = last.to(attentions.device), places.source.to(attentions.device)
    heads = attentions.shape[1]
    rows = attentions[..., : source.shape[1]]
    rows = rows.gather(2, last[:, None, :, None].expand(-1, heads, -1, rows.shape[3]))
    result = rows.new_zeros(*rows.shape[:3], places.count + 1)
    keys = source.masked_fill(source < 0, places.count)[:, None, None, :].expand_as(rows)
    return result.scatter_add(3, keys, rows)[..., :-1]


def put_in_places(output: Any, last: Tensor | None, length: int, places: Places) -> None:
    """Put the states, logits and attentions of a model's output into the caller's places.

    Args:
        output: with `last_hidden_state` or `logits`, (B, L', width).
        last: from `last_read`.
        length: L.
        places: all tokens, with those of the chunk.
    """
    if last is not None:
        for name in ("last_hidden_state", "logits"):
            if name in output:
                output[name] = states_in_places(output[name], last)
        if output.hidden_states is not None:
            output.hidden_states = tuple(states_in_places(states, last) for states in output.hidden_states)
    if output.attentions is not None:
        last = torch.arange(length).expand(len(places.source), -1) if last is None else last
        output.attentions = tuple(
            attentions_in_places(weights, last, places) for weights in output.attentions
        )


class _InCallersPlaces:
    """Mixed into the class of a cache that holds a sound. Its length is the caller's, except for the language model."""

    soundclip_places: Places
    soundclip_is_read: bool

    def get_seq_length(self, *args: Any, **kwargs: Any) -> Any:
        base: Any = super()
        return base.get_seq_length(*args, **kwargs) if self.soundclip_is_read else self.soundclip_places.count

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if not self.soundclip_is_read:
            raise RuntimeError(
                "this cache holds a sound, but the model that reads it isn't patched: patch it again, or start a "
                "new cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def crop(self, length: int) -> None:
        """Keep so many places if above 0; else remove so many."""
        places = self.soundclip_places
        count = length if length > 0 else places.count + length
        tokens = places.first_tokens(count)
        super().crop(tokens if length > 0 else tokens - places.source.shape[1])  # type: ignore[misc]
        self.soundclip_places = replace(
            places, source=places.source[:, :tokens], count=min(count, places.count)
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.soundclip_places = self.soundclip_places.rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        rows = torch.arange(len(self.soundclip_places.source)).repeat_interleave(repeats)
        self.soundclip_places = self.soundclip_places.rows(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.soundclip_places = self.soundclip_places.rows(indices)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        del self.soundclip_places, self.soundclip_is_read
        self.__class__ = type(self).__mro__[2]

    def __reduce__(self) -> Any:
        return _rebuild, (type(self).__mro__[2],), vars(self)


@functools.cache
def _sounding(cls: Any) -> Any:
    return type(cls.__name__, (_InCallersPlaces, cls), {"__module__": cls.__module__})


def _rebuild(cls: Any) -> Any:
    sounding: Any = _sounding(cls)
    return sounding.__new__(sounding)


def places_of(cache: Any) -> Places | None:
    """The places of a cache that holds a sound; None for any other."""
    return cache.soundclip_places if isinstance(cache, _InCallersPlaces) else None


def remember(cache: Any, places: Places) -> None:
    """Let a cache know the caller's places of the tokens that it holds."""
    if not isinstance(cache, _InCallersPlaces):
        cls: Any = type(cache)
        cache.__class__ = _sounding(cls)
        cache.soundclip_is_read = False
    cache.soundclip_places = places


@contextmanager
def reading(cache: Any) -> Iterator[None]:
    """The time in which the language model reads a cache, and sees its real length."""
    if not isinstance(cache, _InCallersPlaces):
        yield
        return
    cache.soundclip_is_read = True
    try:
        yield
    finally:
        cache.soundclip_is_read = False


def capacity_of(cache: Any) -> int | None:
    """Size of a static cache in tokens; None for any other."""
    sizes = [layer.max_cache_len for layer in getattr(cache, "layers", ()) if hasattr(layer, "max_cache_len")]
    return max(sizes, default=None)


def enlarge(cache: Any, tokens: int, window: int | None) -> None:
    """Make room in a static cache, whose size counts the caller's places, for tokens that were added.

    Args:
        cache: any cache.
        tokens: number of tokens that were added.
        window: the language model's sliding window, above which no layer grows.
    """
    for layer in getattr(cache, "layers", ()):
        if not hasattr(layer, "max_cache_len"):
            continue
        size = layer.max_cache_len + tokens
        more = (min(size, window) if layer.is_sliding and window else size) - layer.max_cache_len
        layer.max_cache_len += more
        if layer.is_initialized:
            layer.keys = nn.functional.pad(layer.keys, (0, 0, 0, more))
            layer.values = nn.functional.pad(layer.values, (0, 0, 0, more))
