"""From an encoder's vector to CLIP's token space: raw, projected, or a mix of both (Appendix F.2, B.1).

Shapes: B sounds, d_a the encoder's width (`audio_dim`), D the tower's width (`width`). The encoder gives z_a (B, d_a);
f_a (B, D) takes the CLS slot. The projector needs the Hub's package, so it is imported from `alignment.projector`.
"""

from llava_soundclip.alignment.build import build_alignment
from llava_soundclip.alignment.raw import Mix, RawPad

__all__ = ["Mix", "RawPad", "build_alignment"]
