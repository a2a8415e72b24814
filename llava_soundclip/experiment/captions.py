"""Clips captioned in every setting, in one file that a stopped run goes on with."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_soundclip.clips import CaptionFile, file_name
from llava_soundclip.experiment.settings import Setting
from llava_soundclip.features.decode import load_pictures, load_sound
from llava_soundclip.features.sources import Clip, open_media
from llava_soundclip.running import work_through

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_soundclip.encoders.base import Waveform
    from llava_soundclip.evaluation.captions.files import Things
    from llava_soundclip.patching import SoundCLIP

CAPTIONS = "captions.jsonl"
FRAMES, MAPS = "frames", "maps"  # folders beside it


def caption_settings(
    soundclip: "SoundCLIP",
    clips: Sequence[Clip],
    settings: Sequence[Setting],
    out: Path,
    *,
    things: Mapping[str, "Things"],
    model: str,
    mapped: Sequence[str] = (),
    max_new_tokens: int = 128,
    batch_size: int = 8,
    on_clips: Callable[[int], None] = lambda count: None,
) -> dict[str, str]:
    """Caption clips in every setting, greedily; what is in the file already stays.

    Args:
        soundclip: the model; its alignment, k and control are as before afterwards.
        clips: what is captioned, each with the picture in its middle.
        settings: with names of their own.
        out: folder for `captions.jsonl`, pictures of clips that are parts of files, and maps.
        things: what the clips hold, by id, if that is known: another clip's sound is then of something else.
        model: what rows call it.
        mapped: ids of clips whose map is drawn, in the first setting.
        max_new_tokens: length of a caption at most.
        batch_size: clips at once.
        on_clips: told how many more captions are done, or failed.

    Returns:
        Reasons of clips that could not be captioned, by id.

    Raises:
        ValueError: if the file holds something else than captions.
        OSError: if it can't be read or written.
    """
    # First, so that no clip is heard in the place of another that can't be, and all settings have the same clips.
    bad = _undecodable(soundclip, clips)
    by_id = {clip.id: clip for clip in clips if clip.id not in bad}
    heard = partners(list(by_id.values()), things)
    on_clips(len(bad) * len(settings))
    for setting in settings:
        file = CaptionFile(out / CAPTIONS, setting.name)
        todo = [id for id in by_id if id not in file and id not in bad]
        on_clips(len(by_id) - len(todo))
        about = {
            "encoder": soundclip.encoder.name,
            "alignment": setting.alignment,
            "k": setting.k,
            "tokens": soundclip.tokens,
            "model": model,
            "setting": setting.name,
            **({} if setting.control is None else {"control": setting.control}),
        }

        def ask(ids: Sequence[str], setting: Setting = setting) -> list[dict[str, Any]]:
            own = [by_id[id] for id in ids]
            played = [by_id[heard[id]] if setting.control == "another" else by_id[id] for id in ids]
            pictures = [_picture(clip) for clip in own]
            texts = _captions(soundclip, played, pictures, max_new_tokens)
            rows = []
            for clip, other, picture, text in zip(own, played, pictures, texts, strict=True):
                row: dict[str, Any] = {"caption": text, "image": _image(clip, picture, out)}
                if other is not clip:
                    row["heard"] = other.id
                if setting is settings[0] and clip.id in mapped:
                    row["map"] = _map(soundclip, clip, picture, text, out)
                rows.append(row)
            return rows

        with in_setting(soundclip, setting):
            for rows, failed in work_through(todo, ask, batch_size):
                bad |= failed
                file.add({"clip": id, **row, **about} for id, row in rows.items())
                on_clips(len(rows) + len(failed))
    return bad


@contextmanager
def in_setting(soundclip: "SoundCLIP", setting: Setting) -> Iterator[None]:
    """Let a handle hear as a setting says; afterwards it is as it was."""
    before = soundclip.alignment, soundclip.k, soundclip.control
    try:
        soundclip.alignment, soundclip.k = setting.alignment, setting.k
        soundclip.control = None if setting.control == "another" else setting.control
        yield
    finally:
        soundclip.alignment, soundclip.k, soundclip.control = before


def partners(clips: Sequence[Clip], things: Mapping[str, "Things"]) -> dict[str, str]:
    """The clip whose sound the control "another" plays with each clip's picture, by id.

    It is the next one, the first after the last, whose sound is of nothing that this clip holds; where that isn't
    known, or there is none, the next one of another film; else the next.
    """
    found = {}
    for row, clip in enumerate(clips):
        others = [*clips[row + 1 :], *clips[:row]] or [clip]
        own = things.get(clip.id)
        held = {*own.sounding, *own.silent} if own else set()
        foreign = (
            other for other in others if other.id in things and not held & set(things[other.id].sounding)
        )
        elsewhere = (other for other in others if other.source != clip.source)
        chosen = (next(foreign, None) if own else None) or next(elsewhere, others[0])
        found[clip.id] = chosen.id
    return found


def _undecodable(soundclip: "SoundCLIP", clips: Sequence[Clip]) -> dict[str, str]:
    """Reasons of clips that have no sound or no picture, by id."""

    def decode(ids: Sequence[str]) -> list[None]:
        for id in ids:
            _sound(soundclip, by_id[id])
            _picture(by_id[id])
        return [None] * len(ids)

    by_id = {clip.id: clip for clip in clips}
    return {id: reason for _, failed in work_through(list(by_id), decode, 1) for id, reason in failed.items()}


def _captions(
    soundclip: "SoundCLIP", clips: Sequence[Clip], pictures: "Sequence[Image]", max_new_tokens: int
) -> list[str]:
    sounds = [_sound(soundclip, clip) for clip in clips]
    rates = {rate for _, rate in sounds}
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if len(rates) == 1:
        waves = [wave for wave, _ in sounds]
        texts = soundclip.caption(waves, picture=list(pictures), sampling_rate=rates.pop(), **options)
        assert isinstance(texts, list)
        return texts
    # Encoders that resample get each sound at its own rate, and `caption` takes one rate a call.
    return [
        str(soundclip.caption(wave, picture=picture, sampling_rate=rate, **options))
        for (wave, rate), picture in zip(sounds, pictures, strict=True)
    ]


def _sound(soundclip: "SoundCLIP", clip: Clip) -> "tuple[Waveform, int]":
    rate = None if soundclip.encoder.resamples else soundclip.encoder.sampling_rate
    return load_sound(open_media(clip.sound), rate, clip.start, clip.end)


def _picture(clip: Clip) -> "Image":
    """What features are made of, too."""
    pictured = open_media(clip.sound if clip.picture is None else clip.picture)
    return load_pictures(pictured, 1, clip.start, clip.end)[0]


def _image(clip: Clip, picture: "Image", out: Path) -> str:
    """Where the row's picture is: the clip's own file, or a copy of the picture if the clip is a part of one."""
    file = clip.sound if clip.picture is None else clip.picture
    if isinstance(file, str) and clip.start is None and clip.end is None:
        return os.path.relpath(file, out)
    path = out / FRAMES / f"{file_name(clip.id)}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return os.path.relpath(path, out)


def _map(soundclip: "SoundCLIP", clip: Clip, picture: "Image", text: str, out: Path) -> str:
    from llava_soundclip.maps import save_map

    wave, rate = _sound(soundclip, clip)
    path = out / MAPS / f"{file_name(clip.id)}.png"
    path.parent.mkdir(exist_ok=True)
    save_map(soundclip.trace(wave, picture, sampling_rate=rate), path, text)
    return os.path.relpath(path, out)
