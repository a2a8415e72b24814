"""The one loop that captions many clips in batches. Commands and evaluations share it."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_soundclip._text import as_unicode
from llava_soundclip.captioning.rows import ROW_OPTIONS, CaptionFile
from llava_soundclip.captioning.settings import CaptionOptions, Setting, describe
from llava_soundclip.clips import Clip, Names, as_clips
from llava_soundclip.clips.find import file_name
from llava_soundclip.controls import ANOTHER
from llava_soundclip.features.decode import DecodingPool, Parts, PartsDecoder, Wanted
from llava_soundclip.files import write_picture
from llava_soundclip.media import load_frame
from llava_soundclip.running import work_through

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_soundclip.patching import SoundCLIP

Row = dict[str, Any]

FRAMES = "frames"  # folder next to the rows, for pictures of clips that are parts of files


@dataclass
class Captioned:
    """The result of `caption_clips`.

    Attributes:
        rows: one row per clip and setting that this run captioned.
        there: number of clips and settings whose rows were in the file already.
        bad: for each clip that could not be captioned, the reason, by id.
    """

    rows: list[Row] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    there: int = 0


def caption_clips(
    soundclip: "SoundCLIP",
    clips: Sequence[Clip] | Names,
    out: str | os.PathLike[str] | None = None,
    *,
    options: CaptionOptions | None = None,
    settings: Sequence[Setting] | None = None,
    model: str | None = None,
    picture: str | os.PathLike[str] | None = None,
    heard: Callable[[Sequence[Clip]], Mapping[str, str]] | None = None,
    maps: str | os.PathLike[str] | None = None,
    mapped: Collection[str] | None = None,
    fingerprint: str | None = None,
    workers: int = 0,
    on_rows: Callable[[list[Row]], None] = lambda rows: None,
    on_clips: Callable[[int], None] = lambda count: None,
) -> Captioned:
    """Caption clips. One bad clip doesn't stop the rest.

        captioned = caption_clips(soundclip, read_clips(["clips/"]), "captions.jsonl")

    A row has "clip" and "caption", and says how the caption was made: "encoder", "alignment", "k", "tokens" and
    "options", a fingerprint of prompt, lengths, frame, norm and weights. If they apply, it also has "model", "setting",
    "control", "heard" (the clip whose sound was played instead), "image" and "map".

    Args:
        soundclip: the handle. Its alignment, k and control are restored afterwards.
        clips: clips with unique ids, see `read_clips`; or names of files and folders.
        out: JSON Lines file to which rows are added. Clips in it are done already, so an interrupted run resumes.
            Several runs may share it.
        options: prompt, frame, lengths and batch size.
        settings: settings with unique names; by default one without a name, with the handle's own values.
        model: the model's name in rows.
        picture: picture file for sounds that have no picture.
        heard: for the control "another", a function of the clips that could be decoded. It maps each clip's id to the
            id of the clip whose sound is played. By default `next_clips`.
        maps: folder for a picture of each clip's kept patches, in the first setting.
        mapped: ids of the clips that get such a picture; by default all.
        fingerprint: value of "options" in the rows; by default it is computed.
        workers: number of processes that decode: a file that takes all memory then fails alone. 0 decodes in this one.
        on_rows: called with the rows of each batch, after they are written.
        on_clips: called with the number of captions that were done or failed since the last call.

    Returns:
        The new rows, and the bad clips.

    Raises:
        ValueError: for an invalid option, two clips with the same id, or a file that doesn't hold captions, or holds
            those of this setting made with other options.
        MediaError: if `picture` can't be decoded.
        OSError: if a file can't be read or written.
    """
    clips = as_clips(clips)
    settings = (
        [Setting(soundclip.alignment, soundclip.k, soundclip.control)] if settings is None else settings
    )
    options = options or CaptionOptions()
    plays_others = any(setting.control == ANOTHER for setting in settings)
    if plays_others and len(clips) < 2:
        raise ValueError("the control another needs two clips or more")
    if picture is not None:
        load_frame(picture)  # one error now instead of one per clip
    decoder = PartsDecoder(
        soundclip.encoder.decoding_rate, options.frame, None if picture is None else os.fspath(picture)
    )
    captioned = Captioned()
    with DecodingPool(decoder, workers, ahead=options.batch_size) as pool:
        run = _CaptionRun(soundclip, clips, options, pool, out, decoder.picture, maps, mapped)
        if plays_others or len(settings) > 1:
            # Decode all clips first: every setting gets the same clips, and only clips that decode are played for others.
            captioned.bad |= run.undecodable()
            on_clips(len(captioned.bad) * len(settings))
        good = [clip for clip in clips if clip.id not in captioned.bad]
        if plays_others:
            run.heard = dict((heard or next_clips)(good))
        for setting in settings:
            with setting.applied_to(soundclip):
                about = {**_about(soundclip, setting, model), ROW_OPTIONS: fingerprint or run.fingerprint()}
                file = None if out is None else CaptionFile(Path(out), setting.name, about)
                todo = [clip.id for clip in good if file is None or clip.id not in file]
                captioned.there += len(good) - len(todo)
                on_clips(len(good) - len(todo))
                caption = partial(run.caption, setting=setting, draws=setting is settings[0])
                for at in range(0, len(todo), options.batch_size):
                    batch = todo[at : at + options.batch_size]
                    if file is not None:
                        file.refresh()
                        batch = [id for id in batch if id not in file]
                    for texts, failed in work_through(batch, caption, options.batch_size):
                        captioned.bad |= failed
                        rows = [{"clip": id, **row, **about} for id, row in texts.items()]
                        if file is not None:
                            file.add(rows)
                        captioned.rows += rows
                        on_rows(rows)
                        on_clips(len(texts) + len(failed))
    return captioned


def next_clips(clips: Sequence[Clip]) -> dict[str, str]:
    """For each clip's id, the id of the next clip from another source. The first clip follows the last."""
    found = {}
    for row, clip in enumerate(clips):
        others = [*clips[row + 1 :], *clips[:row]] or [clip]
        found[clip.id] = next((other for other in others if other.source != clip.source), others[0]).id
    return found


def _about(soundclip: "SoundCLIP", setting: Setting, model: str | None) -> Row:
    """The fields that all rows of a setting share."""
    about = {
        "encoder": soundclip.encoder.name,
        "alignment": soundclip.alignment,
        "k": soundclip.k,
        "tokens": soundclip.tokens,
        "model": model,
        "setting": setting.name,
        "control": setting.control,
    }
    return {name: value for name, value in about.items() if value is not None}


class _CaptionRun:
    """One call of `caption_clips`."""

    def __init__(
        self,
        soundclip: "SoundCLIP",
        clips: Sequence[Clip],
        options: CaptionOptions,
        pool: DecodingPool[Wanted, Parts],
        out: str | os.PathLike[str] | None,
        picture: str | None,
        maps: str | os.PathLike[str] | None,
        mapped: Collection[str] | None,
    ) -> None:
        self.soundclip = soundclip
        self.clips = {clip.id: clip for clip in clips}
        if len(self.clips) < len(clips):
            raise ValueError("two clips have the same id: each clip needs its own")
        self.options = options
        self.folder = None if out is None else Path(out).parent
        self.picture = picture
        self.maps = None if maps is None else Path(maps)
        self.mapped = self.clips.keys() if mapped is None else mapped
        self.heard: dict[str, str] = {}
        self._pool = pool

    def fingerprint(self) -> str:
        """8 hex digits that identify the options of a caption that its row doesn't list."""
        described = describe(self.soundclip)
        options = {
            **asdict(self.options),
            "batch_size": None,
            "prompt": self.options.prompt or described["prompt"],
        }
        picture = (
            None if self.picture is None else hashlib.sha256(Path(self.picture).read_bytes()).hexdigest()
        )
        content = json.dumps([described, options, picture], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    def undecodable(self) -> dict[str, str]:
        """Clips whose sound or picture can't be decoded, with the reasons."""
        wanted = (Wanted(clip, picture=True) for clip in self.clips.values())
        return {part.clip.id: found for part, found in self._pool.decode(wanted) if isinstance(found, str)}

    def _decoded(self, wanted: Sequence[Wanted]) -> list[Parts]:
        """Decoded parts.

        Raises:
            ValueError: if a clip can't be decoded; the message has the reason.
        """
        found = []
        for _, parts in self._pool.decode(wanted):
            if isinstance(parts, str):
                raise ValueError(parts)  # noqa: TRY004 (a text is the reason)
            found.append(parts)
        return found

    def caption(self, ids: Sequence[str], *, setting: Setting, draws: bool) -> list[Row]:
        """The rows of a batch, without the fields that all rows share."""
        clips = [self.clips[id] for id in ids]
        plays_other = setting.control == ANOTHER
        played = [self.clips[self.heard[id]] for id in ids] if plays_other else clips
        seen = self._decoded([Wanted(clip, sound=not plays_other, picture=True) for clip in clips])
        heard = self._decoded([Wanted(clip) for clip in played]) if plays_other else seen
        pictures = [parts.picture for parts in seen if parts.picture is not None]
        sounds = [parts.sound for parts in heard if parts.sound is not None]
        sampling = {} if self.options.do_sample is None else {"do_sample": self.options.do_sample}
        texts = self.soundclip.caption(
            [wave for wave, _ in sounds],
            prompt=self.options.prompt,
            picture=pictures,
            sampling_rate=[rate for _, rate in sounds],
            max_new_tokens=self.options.max_new_tokens,
            **sampling,
        )
        rows = []
        for clip, other, (wave, rate), parts, picture, text in zip(
            clips, played, sounds, seen, pictures, texts, strict=True
        ):
            row: Row = {"caption": text}
            if other.id != clip.id:
                row["heard"] = other.id
            if self.folder is not None:
                shown = replace(clip, picture=self.picture) if parts.is_substitute else clip
                row["image"] = self._image(shown, picture)
            if draws and self.maps is not None and clip.id in self.mapped:
                row["map"] = self._map(clip, wave, rate, picture, text)
            rows.append(row)
        return rows

    def _image(self, clip: Clip, picture: "Image") -> str:
        """The path of a row's picture: the clip's own file, or a copy of the picture.

        It is a copy if the clip is a part of a file, or if the file's name can't be written as Unicode.
        """
        assert self.folder is not None
        file = clip.sound if clip.picture is None else clip.picture
        if isinstance(file, str) and clip.start is None and clip.end is None and file == as_unicode(file):
            return os.path.relpath(file, self.folder)
        path = self.folder / FRAMES / f"{_file_for(clip)}.png"
        if not path.exists():
            write_picture(path, picture)
        return os.path.relpath(path, self.folder)

    def _map(self, clip: Clip, wave: Any, rate: int, picture: "Image", text: str) -> str:
        from llava_soundclip.maps import save_map

        assert self.maps is not None
        path = self.maps / f"{_file_for(clip)}.png"
        save_map(self.soundclip.trace(wave, picture, sampling_rate=rate), path, text)
        return os.path.relpath(path, self.maps.parent if self.folder is None else self.folder)


def _file_for(clip: Clip) -> str:
    """The file name of a clip's pictures. It is the same for any path to one file."""
    return file_name(os.path.abspath(clip.sound) if clip.sound == clip.id else clip.id)
