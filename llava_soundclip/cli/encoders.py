"""The command `llava-soundclip encoders`."""

import inspect

import typer


def encoders() -> None:
    """List the audio encoders: their input and output, licences, and the source of their weights."""
    from llava_soundclip.encoders import available_encoders, encoder_class

    for name in available_encoders():
        try:
            cls = encoder_class(name)
        except ImportError as error:
            typer.echo(f"{name:<13}{error}")
            continue
        rate, card = getattr(cls, "sampling_rate", "?"), cls.card
        if card is None:
            typer.echo(f"{name:<13}{rate} Hz; {(inspect.getdoc(cls) or '').partition(chr(10))[0]}")
            continue
        typer.echo(f"{name:<13}{card.dim} numbers, {rate} Hz, hears {card.window}")
        typer.echo(f"{'':<13}weights: {card.source}; licence {card.weights}; code: {card.code}")
