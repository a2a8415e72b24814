"""`patch` a LLaVA, hear through the handle, `unpatch` it again."""

import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from llava_soundclip.alignment import build_alignment
from llava_soundclip.clips import FrameTime
from llava_soundclip.clips.given import as_list, as_waveforms, pictures_for
from llava_soundclip.controls import Control, RandomSubstituter, check_control, fill
from llava_soundclip.encoders import AudioEncoder, load_encoder
from llava_soundclip.hosts import find_host, inner_model
from llava_soundclip.hosts.base import Hearing, Host, Undo
from llava_soundclip.presets import PRESETS
from llava_soundclip.prompts import as_seen, chat_prompt
from llava_soundclip.substitution import AudioTokenSubstituter, Norm, check_k

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_soundclip.alignment.projector import Projector

Tokens = Literal["zero", "drop"]

_MAX_NEW_TOKENS = 128

# Handle -> the sounds open in this context. At module level, as contextvars want it.
_OPEN: ContextVar[Mapping["SoundCLIP", Hearing]] = ContextVar(
    "llava_soundclip.open", default=MappingProxyType({})
)
_HANDLES: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[SoundCLIP]]" = weakref.WeakKeyDictionary()


def patch(
    model: nn.Module,
    encoder: str | AudioEncoder | None = None,
    *,
    alignment: str | float | None = None,
    k: int | None = None,
    projector: "Projector | str | Path | None" = None,
    tokens: Tokens = "zero",
    norm: Norm = "keep",
    preset: str | None = None,
    processor: Any = None,
    **encoder_options: Any,
) -> "SoundCLIP":
    """Let a LLaVA hear (SoundCLIP, Algorithm 1). Nothing of it is trained or copied.

    Without a sound the patched model is bit for bit the stock one. Patching a model again replaces the
    earlier patch.

    Args:
        model: a loaded LLaVA; `supported_models()` lists the classes, subclasses and PEFT's wrapper also work.
        encoder: a name of `available_encoders()`, or an `AudioEncoder`. Default: "whisperclip".
        alignment: "raw" (F.2, pad or cut), "projected" (the trained MLP), or alpha in [0, 1] for a mix,
            1 being raw (B.1). Default: "raw".
        k: patches that keep their value, 0 to N. The paper's budgets are 150 and 15. Default: 150.
        projector: a `Projector`, a folder, a `.safetensors` file or a Hub id; needed unless raw.
        tokens: "zero" keeps zeros in the place of the other patches (the paper); "drop" takes them out of
            the prompt and the KV cache, so that the LLM reads k+1 tokens per image.
        norm: "keep" (the paper), or "match" to scale a sound to the norm of the CLS token it replaces.
        preset: an application of the paper's (4.5), such as "dense_captioning": `presets.PRESETS` has the encoder,
            the alignment and k that it recommends. None of those three can be given with it.
        processor: the model's processor; only `caption` and `trace` need it, and load it themselves from
            where the model came from if it isn't given.
        **encoder_options: for the encoder: `checkpoint=`, `fusion=`, `backend=`, `device=`, `dtype=` ...

    Returns:
        The handle through which the model hears.

    Raises:
        TypeError: for a model of another family, a `k` that isn't an int, or a module that isn't a `Projector`.
        ValueError: for an unknown value, a `k` above N, or a projector that fits neither encoder nor tower.

    Warns:
        UserWarning: if no projector is given. Raw vectors are heard only by a LLaVA that was prepared for them.
    """
    host = find_host(model)
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, not {preset!r}")
        if (encoder, alignment, k) != (None, None, None):
            raise ValueError(f"preset={preset!r} says encoder, alignment and k: give either it or these")
        encoder, alignment, k = PRESETS[preset].encoder, PRESETS[preset].alignment, PRESETS[preset].k
    encoder = "whisperclip" if encoder is None else encoder
    alignment = "raw" if alignment is None else alignment
    k = check_k(150 if k is None else k, host.patches)
    if isinstance(encoder, AudioEncoder):
        if encoder_options:
            raise ValueError(
                f"{', '.join(encoder_options)}: options go with an encoder's name, this one is loaded"
            )
    else:
        encoder_options.setdefault("device", getattr(model, "device", None))
        encoder = load_encoder(encoder, **encoder_options)
    if projector is not None:
        from llava_soundclip.alignment.projector import Projector

        if isinstance(projector, str | Path):
            projector = Projector.from_pretrained(projector).to(getattr(model, "device", None))
        elif not isinstance(projector, Projector):
            raise TypeError(
                f"projector must be a SoundCLIP Projector, a folder, a .safetensors file or a Hub id, not a "
                f"{type(projector).__name__}; LLaVA's own mm_projector stays where it is"
            )
    soundclip = SoundCLIP(host, encoder, projector, alignment=alignment, k=k, tokens=tokens, norm=norm)
    soundclip.processor = processor
    if projector is None:
        warnings.warn(
            "raw vectors aren't heard by a LLaVA that wasn't prepared for them: give projector= and "
            'alignment="projected", see docs/training.md',
            stacklevel=2,
        )
    unpatch(host.model, missing_ok=True)
    soundclip._install()
    _HANDLES[host.model] = weakref.ref(soundclip)
    return soundclip


def unpatch(model: nn.Module, *, missing_ok: bool = False) -> None:
    """Give a patched model back as it was; the same as `unpatch` of its handle.

    Raises:
        ValueError: if the model isn't patched, unless `missing_ok`.
        RuntimeError: if somebody wrapped a method again after the patch; nothing is undone then.
    """
    handle = _HANDLES.get(inner_model(model))
    soundclip = handle() if handle is not None else None
    if soundclip is not None and soundclip.is_installed:
        soundclip.unpatch()
    elif not missing_ok:
        raise ValueError(f"this {type(model).__name__} isn't patched")


@dataclass(frozen=True)
class Trace:
    """Which patches a sound kept.

    Attributes:
        frame: the picture as the tower saw it, resized and cropped.
        similarity: (rows, columns) float32 cosines of the sound with the patches.
        kept: (rows, columns) bool, true where a patch keeps its value.
        k: how many are kept.
        encoder: name of the audio encoder.
    """

    frame: "Image"
    similarity: np.ndarray
    kept: np.ndarray
    k: int
    encoder: str

    def __repr__(self) -> str:
        rows, columns = self.kept.shape
        low, high = self.similarity.min(), self.similarity.max()
        return (
            f"Trace(encoder={self.encoder!r}, k={self.k} of {rows}x{columns} patches, "
            f"similarity {low:.3f} to {high:.3f})"
        )


class SoundCLIP:
    """A LLaVA's hearing, the handle that `patch` returns.

    `k`, `alignment`, `norm`, `tokens` and `control` can be changed between calls.

    Attributes:
        model: the patched model.
        host: the model's vision side: `grid`, `patches` and `width`, its `vision_tower`, and `tower_tokens` of pictures.
        encoder: the audio encoder.
        projector: the trained projector, or None.
        processor: the model's processor, loaded when it is first needed.
        prompt: the question of `caption` by default.
    """

    prompt = "What is the main object that is sounding in this image? Describe it and its sound."

    def __init__(
        self,
        host: Host,
        encoder: Any,
        projector: "Projector | None",
        *,
        alignment: str | float,
        k: int,
        tokens: Tokens,
        norm: Norm,
    ) -> None:
        if projector is not None:
            projector.check(
                encoder.signature(),
                audio_dim=encoder.dim,
                width=host.width,
                tower=host.tower,
                tower_layer=host.tower_layer,
            )
            projector.eval()
            if projector.layers is not None:
                encoder.set_layer_weights(projector.layer_weights)
        self.model = host.model
        self.encoder = encoder
        self.projector = projector
        self.processor: Any = None
        self.host = host
        self._undo = Undo()
        self._opened: list[Hearing] = []  # in any context, for threads that have none of their own
        self._lock = threading.Lock()
        self._is_installed = False
        self.k = k
        self.alignment = alignment
        self.tokens = tokens
        self.norm = norm
        self.control = None

    def __repr__(self) -> str:
        has_projector = "none" if self.projector is None else f"for {self.projector.encoder or 'any encoder'}"
        state = "" if self._is_installed else ", unpatched"
        return (
            f"SoundCLIP({type(self.model).__name__}, encoder={self.encoder.name!r}, alignment={self.alignment!r}, "
            f"k={self.k}, tokens={self.tokens!r}, projector: {has_projector}{state})"
        )

    @property
    def k(self) -> int:
        """Patches that keep their value, 0 to N."""
        return self._k

    @k.setter
    def k(self, k: int) -> None:
        self._k = check_k(k, self.host.patches)

    @property
    def alignment(self) -> str | float:
        """ "raw", "projected" or alpha."""
        return self._alignment

    @alignment.setter
    def alignment(self, alignment: str | float) -> None:
        self._align = build_alignment(
            alignment, audio_dim=self.encoder.dim, width=self.host.width, projector=self.projector
        )
        self._alignment = alignment

    @property
    def norm(self) -> Norm:
        """ "keep" or "match"."""
        return self._norm

    @norm.setter
    def norm(self, norm: Norm) -> None:
        self._norm = AudioTokenSubstituter(self.k, norm=norm).norm

    @property
    def tokens(self) -> Tokens:
        """ "zero" or "drop"."""
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: Tokens) -> None:
        if tokens not in get_args(Tokens):
            raise ValueError(
                f"tokens must be one of {', '.join(map(repr, get_args(Tokens)))}, not {tokens!r}"
            )
        self._tokens = tokens

    @property
    def control(self) -> Control | None:
        """The control in place of the sound's own effect: "noise" or "zero" in the CLS slot,
        "random" patches, or None, the usual. See `llava_soundclip.controls`."""
        return self._control

    @control.setter
    def control(self, control: Control | None) -> None:
        self._control = check_control(control)

    @property
    def is_installed(self) -> bool:
        """Whether the model still hears through this handle."""
        return self._is_installed

    @contextmanager
    def audio(
        self, sounds: Any, *, sampling_rate: int | Sequence[int] | None = None
    ) -> Iterator["SoundCLIP"]:
        """Let every call inside the block hear: one sound per image, in the order of the images.

        A call in another thread hears its own context's sound; a thread started without a context hears the
        only sound that is open on this handle.

        Args:
            sounds: one sound or a list of them. A sound is a path, bytes, a binary file, or an array or
                tensor, (samples,) or (channels, samples), float in [-1, 1].
            sampling_rate: Hz of arrays and tensors, or of each; files know their own.

        Raises:
            MediaError: if a file can't be decoded.
            TypeError, ValueError: for an array without a rate, or one that is empty, holds NaN or integers.
            RuntimeError: if the model was unpatched.
        """
        hearing = Hearing(self.embed(sounds, sampling_rate=sampling_rate))
        with self._lock:
            self._opened.append(hearing)
        try:
            with self.listening(hearing):
                yield self
        finally:
            with self._lock:
                self._opened = [other for other in self._opened if other is not hearing]

    def embed(self, sounds: Any, *, sampling_rate: int | Sequence[int] | None = None) -> Tensor:
        """Encode sounds: (n, d_a) float32, z_a of Algorithm 1. Arguments and errors are those of `audio`."""
        if not self._is_installed:
            raise RuntimeError("the model was unpatched, or patched again: this handle hears no more")
        return self.encoder.embed(*as_waveforms(sounds, sampling_rate, self.encoder.decoding_rate))

    def align(self, embeddings: Tensor) -> Tensor:
        """f_a of Algorithm 1: (n, d_a) to (n, D), raw, projected or mixed as `alignment` says."""
        if embeddings.is_inference() and not torch.is_inference_mode_enabled():
            embeddings = embeddings.clone()  # so that a gradient may flow into the projector
        device = next(self._align.parameters(), embeddings).device  # where the user has the projector
        return self._align(embeddings.to(device))

    def visual_tokens(
        self,
        pixel_values: Tensor,
        sounds: Any,
        *,
        image_sizes: Any = None,
        sampling_rate: int | Sequence[int] | None = None,
    ) -> Tensor | list[Tensor]:
        """The tokens behind the mm_projector that the language model would read, for other engines.

        Args:
            pixel_values: (n, 3, H, W) from the stock image processor; (n, tiles, 3, H, W) for LLaVA-NeXT.
            sounds: one sound per image; see `audio`.
            image_sizes: sizes of images in tiles, from their processor: (n, 2) for LLaVA-NeXT.
            sampling_rate: Hz of arrays and tensors, or of each.

        Returns:
            (n, N+1, hidden) with tokens="zero", (n, k+1, hidden) with "drop"; the sound's token first. With
            `image_sizes` a list of (tokens, hidden), one per image: they differ in length.
        """
        with self.audio(sounds, sampling_rate=sampling_rate):
            visual = self.host.visual_tokens(pixel_values, image_sizes)
        return torch.stack(visual) if image_sizes is None else visual

    def caption(
        self,
        source: Any,
        prompt: str | None = None,
        picture: Any = None,
        frame: FrameTime = "middle",
        *,
        sampling_rate: int | Sequence[int] | None = None,
        **generate_kwargs: Any,
    ) -> str | list[str]:
        """Caption a video, or a sound with a picture: decode, choose a frame, hear, generate.

        Args:
            source: a video or a sound (see `audio`), or a list of them.
            prompt: the question; by default `self.prompt`.
            picture: the picture in place of the video's own frame: a path, a PIL image, an array; or a list.
            frame: which frame of a video: "middle", "first" or seconds.
            sampling_rate: Hz of arrays and tensors, or of each.
            **generate_kwargs: for `model.generate`; `max_new_tokens` is 128 unless given.

        Returns:
            The caption; a list of them for a list.
        """
        sources = as_list(source)
        pictures = pictures_for(sources, picture, frame)
        processor = self.load_processor()
        question = chat_prompt(processor, self.prompt if prompt is None else prompt)
        inputs = processor(
            images=pictures,
            text=[question] * len(pictures),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        with self.audio(sources, sampling_rate=sampling_rate):
            output = self.model.generate(**inputs, **{"max_new_tokens": _MAX_NEW_TOKENS, **generate_kwargs})
        sequences = output if isinstance(output, Tensor) else output.sequences
        new = sequences[:, inputs["input_ids"].shape[1] :]
        captions = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        return captions if isinstance(source, list | tuple) else captions[0]

    def trace(
        self,
        source: Any,
        picture: Any = None,
        frame: FrameTime = "middle",
        *,
        sampling_rate: int | Sequence[int] | None = None,
    ) -> Trace:
        """Which patches a sound keeps: similarities and choice on the tower's grid, with the frame it saw.

        Arguments are those of `caption`, for one source.
        """
        processor = self.load_processor()
        seen = pictures_for([source], picture, frame)[0]
        pixel_values = processor.image_processor(seen, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.flatten(0, -4)[:1]  # the first tile, which shows all of the picture
        with torch.no_grad():
            audio = fill(self.align(self.embed(source, sampling_rate=sampling_rate)), self.control)
            selection = self.substituter().select(self.host.tower_tokens(pixel_values), audio)
        return Trace(
            frame=as_seen(pixel_values[0], processor.image_processor),
            similarity=selection.similarity[0].reshape(self.host.grid).cpu().numpy(),
            kept=selection.mask[0].reshape(self.host.grid).cpu().numpy(),
            k=self.k,
            encoder=self.encoder.name,
        )

    def load_processor(self) -> Any:
        """The model's processor, loaded from where the model came from if the handle has none yet.

        Raises:
            ValueError: if the model came from nowhere (built from a config).
        """
        if self.processor is None:
            from transformers import AutoProcessor

            origin = self.model.config._name_or_path
            if not origin:
                raise ValueError("the model doesn't say where it came from: give patch its processor=")
            self.processor = AutoProcessor.from_pretrained(origin)
        return self.processor

    def unpatch(self) -> None:
        """Take everything away again. Twice is fine.

        Raises:
            RuntimeError: if somebody wrapped a method again after the patch; nothing is undone then.
        """
        self._undo.close()
        self._is_installed = False

    def hearing(self) -> Hearing | None:
        """The sounds that a call from here hears; None if it is to be stock.

        Raises:
            RuntimeError: in a thread without a sound of its own, if several are open on this handle.
        """
        if not self._is_installed:
            return None
        own = _OPEN.get().get(self)
        if own is not None:
            return own
        opened = self._opened
        if len(opened) > 1:
            raise RuntimeError(
                f"{len(opened)} sounds are open and this thread has none of its own: start it with "
                "contextvars.copy_context().run as its target, inside the block of the sound that it should hear"
            )
        return opened[0] if opened else None

    @contextmanager
    def listening(self, hearing: Hearing) -> Iterator[None]:
        """Pin sounds to the current context."""
        token = _OPEN.set({**_OPEN.get(), self: hearing})
        try:
            yield
        finally:
            _OPEN.reset(token)

    def edit(self, layers: Sequence[Tensor], hearing: Hearing) -> list[Tensor]:
        """Algorithm 1 on the tower's selected layers, each (n, N+1, D): chosen at the last of them."""
        audio = fill(self.align(hearing.embeddings), self.control)
        substituter = self.substituter()
        selection = substituter.select(layers[-1], audio)
        change = substituter.zero if self.tokens == "zero" else substituter.drop
        return [change(tokens, audio, selection) for tokens in layers]

    def edit_tiles(
        self, layers: Sequence[Tensor], hearing: Hearing, candidates: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Algorithm 1 on the tiles of images, for a host that lays out their patches itself.

        Args:
            layers: the tower's selected layers, each (n, N+1, D), n being the number of tiles.
            hearing: one sound a tile.
            candidates: (n, N) bool, patches that the layout has a place for; no other is chosen.

        Returns:
            The layers edited, with zeros for the other patches, and (n, N) bool, patches that the language
            model reads: the candidates with tokens="zero", the chosen ones with "drop".
        """
        audio = fill(self.align(hearing.embeddings), self.control)
        substituter = self.substituter()
        candidates = candidates.to(layers[-1].device)
        selection = substituter.select(layers[-1], audio, candidates)
        is_read = candidates if self.tokens == "zero" else candidates & selection.mask
        return [substituter.zero(tokens, audio, selection) for tokens in layers], is_read

    def visual_tokens_per_image(self) -> int:
        """N+1 or k+1, as `tokens` says."""
        return 1 + (self.host.patches if self.tokens == "zero" else self.k)

    def substituter(self) -> AudioTokenSubstituter:
        """The substituter that chooses the patches and edits the tokens, set by `k`, `norm` and `control`."""
        kind = RandomSubstituter if self.control == "random" else AudioTokenSubstituter
        return kind(self.k, norm=self.norm)

    def _install(self) -> None:
        try:
            self.host.install(self, self._undo)
        except BaseException:
            self._undo.close()
            raise
        self._is_installed = True
