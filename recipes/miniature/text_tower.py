"""Stage 5: train the text tower that makes a CLIP of the vision tower, for CLIPScore.

The vision tower stays frozen. Captions of varied wording say what a scene shows. Others name something else, too little
or too much, or are unrelated. The loss draws the two towers' cosine to the share of things that caption and picture
have in common; CLIP's own contrastive loss is added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import SHRUNK, batch_of_scenes, draw_kinds, parser, pixels, start, train, write_tower_folder
from numpy.random import Generator
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPVisionModel, PreTrainedTokenizerBase
from world import KINDS, World

from llava_soundclip.demo.clip import (
    BEGIN,
    END,
    PAD,
    TOKENIZER,
    WEIGHTS,
    make_clip_config,
    make_clip_tokenizer,
)
from llava_soundclip.demo.kinds import phrase

SCENES = 8000
BATCH = 128  # pictures, each with a right and a wrong caption
UNRELATED = 32  # additional captions that fit no picture
AT_ONCE = 48  # texts in one pass
STEPS = 600
RATE = 2e-3
SHARE = 10.0  # weight of the loss on the cosines
VOCABULARY = 768
PREFIX = "A photo depicts "  # CLIPScore's, before half of the captions
WEIGHT = 2.5  # CLIPScore's

SENTENCES = (
    *("{}", "{}.", "I see {}.", "I see {}.", "I hear {}.", "I can see {} here.", "You hear {}."),
    *("There is {}.", "This is {}.", "Here we have {}.", "It shows {}.", "The picture shows {}."),
    *("The image shows {}.", "A picture of {}.", "A photo of {}.", "A photo depicts {}."),
    *("An image of {} and nothing else.", "The sound of {}.", "We hear {} and see it."),
    *("In the picture there is {}.", "In this scene, {} can be seen.", "What can be heard is {}."),
    *("{} can be seen.", "{} is making a sound.", "The scene features {}."),
)
PAIRS = (
    *("I hear {}. I see {}.", "I hear {}. I see {}.", "{} beside {}", "{} next to {}.", "{} with {}."),
    *("{}, {}", "On the left is {}, on the right {}.", "{} stands near {}."),
    *("I see {}. There is also {}.", "{} in front of {}.", "A picture of {} together with {}."),
    *("The sound of {} while we see {}.", "{} can be heard and {} can be seen."),
    *("The picture shows {}, and beside it {}.", "{} is close to {}."),
)
NOTHING = (
    *("", "I see nothing.", "I hear nothing.", "Nothing.", "There is nothing here."),
    *("A picture.", "I see."),
)
NEVER_TRAINED = ("Somebody drew {} and put {} by it.", "{} keeps {} company.", "Look at {}, then at {}!")
# Words for things that no picture shows.
THINGS = re.findall(
    "[a-z]+",
    """sky canvas river mountain table chair computer city street house person man woman child king painting
orchestra symphony voice wind ocean wave boat plane bicycle phone book window door bread cheese lion elephant fish
cake coin teacher doctor football game law story poem movie letter machine lamp bottle knife shoe shirt road bridge
tower castle garden forest desert island beach star moon sun cloud fire stone glass paper wall roof kitchen bed clown
robot spider monkey tiger rabbit mouse snake whale banana orange grape carrot potato piano flute camera
television engine rocket ship helicopter basket ladder hammer pencil flag map ticket dancer crowd market school
church office field farm lake hill valley storm snow ice dream color shape light shadow line circle number word
question answer idea year winter summer morning evening night""",
)
QUALITIES = re.findall(
    "[a-z]+",
    """small big old young bright dark red green blue yellow white black brown colourful loud quiet happy sad
round tall short heavy soft strange beautiful wooden plain single clear cold warm""",
)
DEEDS = re.findall(
    "[a-z]+",
    """covers follows opens closes holds carries paints moves fills leaves finds meets watches makes takes brings
crosses becomes is shows reflects tells breaks remembers hides""",
)
SURROUNDINGS = (
    *("before a {} background", "on a {} day", "in a {} place", "near a {} {}", "under the {} {}"),
    *("of a {} kind", "with {} colours", "for a {} while", "beside the {} {}"),
)


def invented(rng: Generator) -> str:
    """An invented word."""
    syllables = [
        str(rng.choice(list("bcdfghjklmnprstvwz"))) + str(rng.choice(["a", "e", "i", "o", "u", "ee", "ou"]))
        for _ in range(rng.integers(1, 5))
    ]
    return "".join(syllables) + str(rng.choice(["", "n", "r", "s", "t", "ck", "ll"]))


def foreign(rng: Generator) -> str:
    """A thing that no picture shows."""
    return invented(rng) if rng.random() < 0.3 else str(rng.choice(THINGS))


def noun(name: str, rng: Generator) -> str:
    """Name a thing the way a caption may: "a dog", "the small dog", "rain"."""
    quality = f"{rng.choice(QUALITIES)} " if rng.random() < 0.15 else ""
    if rng.random() < 0.75 and not quality:
        return phrase(name)
    article = str(rng.choice(["the", "some", "a", "one"] if name != "rain" else ["the", "some", ""]))
    return f"{article} {quality}{name}".strip()


def text_of(names: list[str], rng: Generator) -> str:
    """Name things in any order, sometimes with more words around them; without names, an unrelated text."""
    if not names:
        return unrelated(rng)
    names = [noun(names[index], rng) for index in rng.permutation(len(names))]
    if len(names) > 1 and rng.random() < 0.5:
        first, last = (names[:1], names[1:]) if rng.random() < 0.5 else (names[:-1], names[-1:])
        text = str(rng.choice(PAIRS)).format(listed(first), listed(last))
    else:
        text = str(rng.choice(SENTENCES)).format(listed(names))
    if rng.random() < 0.2:
        more = str(rng.choice(SURROUNDINGS)).format(rng.choice(QUALITIES), rng.choice(THINGS))
        text = f"{text.rstrip('.')} {more}."
    if rng.random() < 0.1:
        text = f"{text} {unrelated(rng, 1)}"
    return text


def listed(names: list[str]) -> str:
    """Join names with commas and "and"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def unrelated(rng: Generator, most: int = 5) -> str:
    """Write up to `most` sentences about no scene, or an empty caption."""
    if most > 1 and rng.random() < 0.15:
        return str(rng.choice(NOTHING))
    sentences = []
    for _ in range(rng.integers(1, most + 1)):
        first, last = foreign(rng), foreign(rng)
        form = rng.random()
        if form < 0.5:
            sentences.append(f"The {rng.choice(QUALITIES)} {first} {rng.choice(DEEDS)} a {last}.")
        elif form < 0.75:
            sentences.append(f"The {first} {rng.choice(DEEDS)} a {last} of {foreign(rng)}s.")
        else:
            sentences.append(" ".join(invented(rng) for _ in range(rng.integers(1, 7))) + ".")
    return " ".join(sentences)


@dataclass
class Caption:
    """A text, and the things that it names."""

    text: str
    names: frozenset[str]

    @classmethod
    def of(cls, names: list[str], rng: Generator) -> Caption:
        """Write a caption, half of the time with CLIPScore's prefix."""
        text = text_of(names, rng)
        return cls(PREFIX + text if rng.random() < 0.5 else text, frozenset(names))


def other(kinds: list[str], rng: Generator) -> str:
    """A kind that isn't among `kinds`, sometimes a thing that no picture shows."""
    if rng.random() < 0.2:
        return foreign(rng)
    return str(rng.choice([kind for kind in KINDS if kind not in kinds]))


def changed(kinds: list[str], rng: Generator) -> list[str]:
    """Names that are wrong for a scene of `kinds`: one is replaced, missing or added."""
    how = rng.random()
    if how < 0.25:
        return [*kinds, other(kinds, rng)]
    one = int(rng.integers(len(kinds)))
    rest = [kind for index, kind in enumerate(kinds) if index != one]
    return rest if how < 0.4 and rest else [*rest, other(kinds, rng)]


def shares(captions: list[frozenset[str]], scenes: list[frozenset[str]]) -> Tensor:
    """Overlap of captions and scenes, as the cosine of two sets: float32 (captions, scenes)."""
    return torch.tensor(
        [
            [len(names & kinds) / max(1, len(names) * len(kinds)) ** 0.5 for kinds in scenes]
            for names in captions
        ]
    )


def make_tokenizer(file: Path, captions: int = 20_000) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer on captions, and write it."""
    rng = np.random.default_rng(6)
    texts = [Caption.of(draw_kinds(rng) if rng.random() < 0.7 else [], rng).text for _ in range(captions)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 0), (END, 1)]
    )
    tokenizer.save(str(file), pretty=False)
    return make_clip_tokenizer(file)


def pooled(tower: CLIPVisionModel, world: World, scenes: list[list[str]], seed: int, shrunk: float) -> Tensor:
    """The tower's pooled output of scenes, as CLIP reads it: float32 (scenes, WIDTH)."""
    rows = []
    for first in range(0, len(scenes), 100):
        rng = np.random.default_rng((seed, first))
        pictures, _ = batch_of_scenes(world, rng, scenes[first : first + 100], shrunk)
        with torch.no_grad():
            rows.append(tower(pixels(pictures)).pooler_output)
    return torch.cat(rows)


class Towers:
    """The trained part of the CLIP: its text tower and both projections."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.clip = CLIPModel(make_clip_config(len(tokenizer)))
        del self.clip.vision_model

    def read(self, texts: list[str]) -> Tensor:
        """Embed texts, normalised: (texts, JOINT_WIDTH)."""
        rows = self.tokenizer(texts, truncation=True)["input_ids"]
        # Sorted by length, so that a batch has little padding.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        read = []
        for first in range(0, len(rows), AT_ONCE):
            part = {"input_ids": [rows[row] for row in order[first : first + AT_ONCE]]}
            output = self.clip.text_model(**self.tokenizer.pad(part, return_tensors="pt"))
            read.append(self.clip.text_projection(output.pooler_output))
        back = torch.tensor(order).argsort()
        return functional.normalize(torch.cat(read)[back], dim=-1)

    def look(self, seen: Tensor) -> Tensor:
        """Embed the vision tower's output, normalised: (pictures, JOINT_WIDTH)."""
        return functional.normalize(self.clip.visual_projection(seen), dim=-1)

    def loss(self, seen: Tensor, scenes: list[list[str]], rng: Generator) -> Tensor:
        """CLIP's loss, plus the squared error of the cosines against the overlap of caption and picture.

        Args:
            seen: (B, WIDTH), the vision tower's output.
            scenes: the kinds in each picture.
            rng: source of the captions.
        """
        captions = [Caption.of(kinds, rng) for kinds in scenes]
        captions += [Caption.of(changed(kinds, rng), rng) for kinds in scenes]
        captions += [Caption.of([], rng) for _ in range(UNRELATED)]
        wanted = shares([each.names for each in captions], [frozenset(kinds) for kinds in scenes])
        cosines = self.read([each.text for each in captions]) @ self.look(seen).T
        logits = self.clip.logit_scale.exp().clamp(max=100) * cosines
        right = (wanted > 0.999).float()
        by_picture = functional.cross_entropy(logits.T, (right / right.sum(0)).T)
        matched = right[: len(scenes)]
        by_caption = functional.cross_entropy(logits[: len(scenes)], matched / matched.sum(1, keepdim=True))
        return (by_picture + by_caption) / 2 + SHARE * (cosines - wanted).square().mean()


@torch.no_grad()
def check(towers: Towers, tower: CLIPVisionModel, world: World, count: int = 1000) -> None:
    """Print the CLIPScore of right and wrong captions for fresh scenes of two things."""
    rng = np.random.default_rng((9, 7))
    scenes = [draw_kinds(rng, 2) for _ in range(count)]
    seen = towers.look(pooled(tower, world, scenes, 97, 0.0))

    def score(named: list[list[str]], wordings: tuple[str, ...] = ()) -> Tensor:
        texts = [
            str(rng.choice(wordings)).format(*map(phrase, names)) if wordings else text_of(names, rng)
            for names in named
        ]
        texts = [PREFIX + text for text in texts]
        return WEIGHT * (towers.read(texts) * seen).sum(1).clamp(min=0)

    def others(kinds: list[str], how_many: int) -> list[str]:
        left = [kind for kind in KINDS if kind not in kinds]
        return [str(kind) for kind in rng.choice(left, how_many, replace=False)]

    replaced = [[kinds[0], *others(kinds, 1)] for kinds in scenes]
    right = score(scenes)
    wrong = {
        "one thing replaced": score(replaced),
        "one thing missing": score([kinds[:1] for kinds in scenes]),
        "one thing too much": score([[*kinds, *others(kinds, 1)] for kinds in scenes]),
        "two other things": score([others(kinds, 2) for kinds in scenes]),
        "unrelated": score([[] for _ in scenes]),
    }
    print(f"{count} scenes of two things, right captions: mean CLIPScore {right.mean():.2f}", flush=True)
    for what, scores in wrong.items():
        print(f"{what}: {scores.mean():.2f}, the right one above in {(right > scores).float().mean():.3f}")
    right, half = score(scenes, NEVER_TRAINED), score(replaced, NEVER_TRAINED)
    print(
        f"wordings never trained: right {right.mean():.2f}, one thing replaced {half.mean():.2f}, "
        f"the right one above in {(right > half).float().mean():.3f}"
    )


def main() -> None:
    """Train, or resume from the checkpoint."""
    arguments = parser(__doc__).parse_args()
    work: Path = arguments.work
    world = start(arguments)
    tower = CLIPVisionModel.from_pretrained(write_tower_folder(work)).eval().requires_grad_(False)
    torch.manual_seed(0)
    towers = Towers(make_tokenizer(work / TOKENIZER))
    optimiser = torch.optim.AdamW(towers.clip.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    steps = arguments.steps or STEPS
    rng = np.random.default_rng(5)
    scenes = [draw_kinds(rng) for _ in range(min(SCENES, steps * BATCH))]
    seen = pooled(tower, world, scenes, 5, SHRUNK)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((5, step))
        rows = rng.choice(len(scenes), BATCH, replace=False)
        return towers.loss(seen[rows], [scenes[row] for row in rows], rng)

    train(work / "clip.pt", {"clip": towers.clip}, optimiser, steps, loss, warmup=60)
    towers.clip.half().float()  # as it is saved
    check(towers, tower, world)
    state = {key: value.half() for key, value in towers.clip.state_dict().items()}
    save_file(state, work / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
