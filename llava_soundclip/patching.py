"""`patch` a LLaVA, let it hear through the handle, and `unpatch` it again."""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from llava_soundclip.alignment.build import build_alignment, check_alignment
from llava_soundclip.clips import FrameTime
from llava_soundclip.clips.given import as_list, as_waveforms, pictures_for
from llava_soundclip.controls import Control, RandomSubstituter, check_control, fill
from llava_soundclip.encoders import AudioEncoder, load_encoder
from llava_soundclip.hearing import Hearing, OpenSounds
from llava_soundclip.hosts import find_host, inner_model
from llava_soundclip.hosts.base import Host, Undo
from llava_soundclip.presets import PRESETS
from llava_soundclip.pretrained import load_pretrained
from llava_soundclip.prompts import as_seen, chat_prompt, tokenizer_options
from llava_soundclip.substitution import AudioTokenSubstituter, Norm, check_k

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_soundclip.alignment.projector import Projector

Tokens = Literal["zero", "drop"]

_MAX_NEW_TOKENS = 128

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
    """Let a LLaVA hear (SoundCLIP, Algorithm 1). The model is neither trained nor copied.

    Without a sound the patched model gives bit for bit the output of the stock model. Patching a model again replaces
    the earlier patch.

    Args:
        model: a loaded LLaVA. `supported_models()` lists the classes; subclasses and PEFT's wrapper also work.
        encoder: a name of `available_encoders()`, or an `AudioEncoder`. Default: "whisperclip".
        alignment: "raw" (pad or truncate, F.2), "projected" (the trained MLP), or alpha in [0, 1] for a mix
            (B.1; 1 is raw). Default: "raw".
        k: number of patches that keep their value, 0 to N. The paper's budgets are 150 and 15. Default: 150.
        projector: a `Projector`, a folder, a `.safetensors` file or a Hub id; needed unless raw.
        tokens: "zero" puts zeros in place of the other patches, as in the paper. "drop" removes them from the prompt
            and the KV cache, so that the LLM reads k+1 tokens per image.
        norm: "keep" as in the paper, or "match" to scale a sound to the norm of the CLS token that it replaces.
        preset: one of the paper's applications (4.5), such as "dense_captioning". It sets encoder, alignment and k,
            so none of those can be given with it; see `presets.PRESETS`.
        processor: the model's processor, needed only by `caption` and `trace`. By default they load it from the
            model's own Hub id or folder.
        **encoder_options: options of the encoder: `checkpoint=`, `fusion=`, `backend=`, `device=`, `dtype=` ...

    Returns:
        The handle through which the model hears.

    Raises:
        TypeError: for an unsupported model, a `k` that isn't an int, or a module that isn't a `Projector`.
        ValueError: for an unknown value, a `k` above N, or a projector that doesn't fit the encoder or the tower.

    Warns:
        UserWarning: if no projector is given. Only a LLaVA that was prepared for raw vectors hears them.
    """
    host = find_host(model)
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, not {preset!r}")
        if (encoder, alignment, k) != (None, None, None):
            raise ValueError(
                f"preset={preset!r} sets encoder, alignment and k: give either the preset or these"
            )
        encoder, alignment, k = PRESETS[preset].encoder, PRESETS[preset].alignment, PRESETS[preset].k
    encoder = "whisperclip" if encoder is None else encoder
    alignment = "raw" if alignment is None else alignment
    k = check_k(150 if k is None else k, host.patches)
    check_alignment(alignment)
    _check_tokens(tokens)
    AudioTokenSubstituter(k, norm=norm)  # checks norm
    if projector is not None:
        from llava_soundclip.alignment.projector import Projector

        if isinstance(projector, str | Path):
            projector = Projector.from_pretrained(projector).to(getattr(model, "device", None))
        elif not isinstance(projector, Projector):
            raise TypeError(
                f"projector must be a SoundCLIP Projector, a folder, a .safetensors file or a Hub id, not a "
                f"{type(projector).__name__}; LLaVA's own mm_projector stays where it is"
            )
    if isinstance(encoder, AudioEncoder):
        if encoder_options:
            raise ValueError(
                f"{', '.join(encoder_options)}: options need an encoder's name, but this encoder is loaded already"
            )
    else:
        encoder_options.setdefault("device", getattr(model, "device", None))
        encoder = load_encoder(encoder, **encoder_options)
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
    """Restore a patched model; the same as `unpatch` of its handle.

    Args:
        model: the model that was patched.
        missing_ok: whether to ignore a model that isn't patched.

    Raises:
        ValueError: if the model isn't patched, unless `missing_ok`.
        RuntimeError: if the class was replaced after the patch; then nothing is undone.
    """
    handle = _HANDLES.get(inner_model(model))
    soundclip = handle() if handle is not None else None
    if soundclip is not None and soundclip.is_installed:
        soundclip.unpatch()
    elif not missing_ok:
        raise ValueError(f"this {type(model).__name__} isn't patched")


@dataclass(frozen=True)
class Trace:
    """The patches that a sound kept in a picture.

    Attributes:
        frame: the picture as the tower saw it, resized and cropped.
        similarity: (rows, columns) float32 cosines of the sound with each patch.
        kept: (rows, columns) bool, true where a patch keeps its value.
        k: number of kept patches.
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


def _check_tokens(tokens: Tokens) -> Tokens:
    if tokens not in get_args(Tokens):
        raise ValueError(f"tokens must be one of {', '.join(map(repr, get_args(Tokens)))}, not {tokens!r}")
    return tokens


class SoundCLIP:
    """The handle that `patch` returns, through which the model hears.

    `k`, `alignment`, `norm`, `tokens` and `control` can be changed between calls.

    Attributes:
        model: the patched model.
        host: the model's vision side, with `grid`, `patches`, `width`, `vision_tower` and `tower_tokens`.
        encoder: the audio encoder.
        projector: the trained projector, or None.
        processor: the model's processor, loaded on first use.
        prompt: the default question of `caption`.
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
        self._sounds = OpenSounds()
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
        self._tokens = _check_tokens(tokens)

    @property
    def control(self) -> Control | None:
        """None by default. "noise" or "zero" fill the CLS slot instead of the sound; "random" keeps random patches.

        See `llava_soundclip.controls`.
        """
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
        self,
        sounds: Any,
        *,
        sampling_rate: int | Sequence[int] | None = None,
        raw_logits: bool = False,
    ) -> Iterator["SoundCLIP"]:
        """Let every call inside the block hear: one sound per image, in the order of the images.

        Calls hear it that are made in the block's own thread and context, in tasks that were started inside, and in
        a `threading.Thread` that was started inside. Any other call stays stock. For a pool of threads, start the
        work with `contextvars.copy_context().run`. Blocks may end in any order, thread or context.

        Args:
            sounds: a sound or a list of sounds. A sound is a path, bytes, a binary file, an array or a tensor. Arrays
                and tensors are (samples,) or (channels, samples), float in [-1, 1].
            sampling_rate: sampling rate of arrays and tensors in Hz, or a list with one per sound; files know theirs.
            raw_logits: whether `forward` returns states and logits for each token that the language model reads. By
                default they are in the places of the prompt: the last token that was read up to each place.

        Raises:
            MediaError: if a file can't be decoded.
            TypeError, ValueError: for an array that has no rate, is empty, or holds NaN or integers.
            RuntimeError: if the model was unpatched.
        """
        hearing = Hearing(self.embed(sounds, sampling_rate=sampling_rate), has_raw_logits=raw_logits)
        with self._sounds.block(hearing):
            yield self

    @contextmanager
    def silence(self) -> Iterator["SoundCLIP"]:
        """Let every call inside the block be stock, also inside a block with a sound."""
        with self._sounds.block(None):
            yield self

    def embed(self, sounds: Any, *, sampling_rate: int | Sequence[int] | None = None) -> Tensor:
        """Encode sounds to z_a of Algorithm 1: (n, d_a) float32. Arguments and errors are those of `audio`."""
        if not self._is_installed:
            raise RuntimeError("the model was unpatched, or patched again: this handle hears no more")
        return self.encoder.embed(*as_waveforms(sounds, sampling_rate, self.encoder.decoding_rate))

    def align(self, embeddings: Tensor) -> Tensor:
        """Align z_a (n, d_a) to f_a (n, D) of Algorithm 1: raw, projected or mixed, depending on `alignment`."""
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
        """The output of the mm_projector that the language model would read, for use in other engines.

        Args:
            pixel_values: (n, 3, H, W) from the stock image processor; (n, tiles, 3, H, W) for LLaVA-NeXT.
            sounds: one sound per image; see `audio`.
            image_sizes: (n, 2) sizes of the images from the processor, for LLaVA-NeXT only.
            sampling_rate: see `audio`.

        Returns:
            (n, N+1, hidden) with tokens="zero", (n, k+1, hidden) with "drop"; the sound's token is first. With
            `image_sizes`, a list of (tokens, hidden), one per image, since their lengths differ.

        Raises:
            MediaError, TypeError, ValueError, RuntimeError: as in `audio`.
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
    ) -> Any:
        """Caption a video, or a sound with a picture: decode, choose a frame, hear, generate.

        Args:
            source: a video or a sound (see `audio`), or a list of them.
            prompt: the question; by default `self.prompt`.
            picture: a picture in place of the video's own frame: a path, a PIL image, an array, or a list of them.
            frame: the frame of a video to use: "middle", "first" or its time in seconds.
            sampling_rate: see `audio`.
            **generate_kwargs: for `model.generate`; `max_new_tokens` is 128 unless given.

        Returns:
            The caption, or a list of captions for a list of sources. With `num_return_sequences` above 1, a list of
            captions takes the place of each.

        Raises:
            MediaError: if a file can't be decoded.
            TypeError, ValueError: as in `audio`, or for a sound without a picture.
            RuntimeError: if the model was unpatched.
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
            **tokenizer_options(processor, question),
        ).to(self.model.device, self.model.dtype)
        with self.audio(sources, sampling_rate=sampling_rate):
            output = self.model.generate(**inputs, **{"max_new_tokens": _MAX_NEW_TOKENS, **generate_kwargs})
        sequences = output if isinstance(output, Tensor) else output.sequences
        new = sequences[:, inputs["input_ids"].shape[1] :]
        captions: list[Any] = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        several = len(captions) // len(pictures)
        if several > 1:
            captions = [captions[start : start + several] for start in range(0, len(captions), several)]
        return captions if isinstance(source, list | tuple) else captions[0]

    def trace(
        self,
        source: Any,
        picture: Any = None,
        frame: FrameTime = "middle",
        *,
        sampling_rate: int | Sequence[int] | None = None,
    ) -> Trace:
        """The patches that a sound keeps: similarities and choice on the tower's grid, with the frame.

        Arguments and errors are those of `caption`, for a single source.
        """
        processor = self.load_processor()
        seen = pictures_for([source], picture, frame)[0]
        pixel_values = processor.image_processor(seen, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.flatten(0, -4)[:1]  # the first tile shows the whole picture
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
        """The model's processor, loaded from the model's Hub id or folder if the handle has none yet.

        Raises:
            ValueError: if the model has no Hub id or folder, since it was built from a config.
        """
        if self.processor is None:
            from transformers import AutoProcessor

            origin = self.model.config._name_or_path
            if not origin:
                raise ValueError(
                    "the model has no Hub id or folder to load a processor from: pass processor= to patch()"
                )
            self.processor = load_pretrained(AutoProcessor, origin)
        return self.processor

    def unpatch(self) -> None:
        """Restore the model. A second call does nothing.

        Raises:
            RuntimeError: if the class was replaced after the patch; then nothing is undone.
        """
        self._undo.close()
        self._is_installed = False

    def hearing(self) -> Hearing | None:
        """The sounds that a call from this context hears; None for a stock call.

        Raises:
            RuntimeError: if it can't be told; see `audio`.
        """
        return self._sounds.hearing() if self._is_installed else None

    def listening(self, hearing: Hearing | None) -> AbstractContextManager[None]:
        """Pin the sounds of a call, or None for a stock call, until the call ends."""
        return self._sounds.block(hearing)

    def edit(self, layers: Sequence[Tensor], hearing: Hearing) -> list[Tensor]:
        """Algorithm 1 on the tower's selected layers, each (n, N+1, D). The last one decides which patches stay."""
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
            layers: the tower's selected layers, each (n, N+1, D), where n is the number of tiles.
            hearing: one sound per tile.
            candidates: (n, N) bool, patches that have a place in the layout; only these are chosen.

        Returns:
            The edited layers, with zeros for the other patches; and (n, N) bool, the patches that the language model
            reads: the candidates with tokens="zero", the chosen ones with "drop".
        """
        audio = fill(self.align(hearing.embeddings), self.control)
        substituter = self.substituter()
        candidates = candidates.to(layers[-1].device)
        selection = substituter.select(layers[-1], audio, candidates)
        is_read = candidates if self.tokens == "zero" else candidates & selection.mask
        return [substituter.zero(tokens, audio, selection) for tokens in layers], is_read

    def visual_tokens_per_image(self) -> int:
        """N+1 with tokens="zero", k+1 with "drop"."""
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
