"""BERTScore and CLIPScore: captions compared with references and pictures by models."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_soundclip._extras import require
from llava_soundclip._quiet import quiet_loading
from llava_soundclip._version import __version__
from llava_soundclip.demo.clip import clip_folder
from llava_soundclip.demo.parts import DEMO, TEXT_ENCODER, find_part
from llava_soundclip.pretrained import load_pretrained

_CLIPS_AT_ONCE = 1000  # clips whose tokens are held in memory
_NO_LIMIT = 10**6  # tokenizers without a maximum length report a number above this


class BERTScore:
    """BERTScore's F1 by the bert-score package, without idf weights; the best over several references.

    The paper's figures, about 0.2, are rescaled. roberta-large, bert-score's default for English, gives 0.83 to captions
    unrelated to the reference, and rescaling maps that to 0. The package has such baselines for some models. Figures of
    other models, such as MiniLM, stay cosines.

    Args:
        model: Hub id or folder of a text encoder, or "demo" for all-MiniLM-L6-v2 from a pip package or the Hub.
        known_as: Hub id that `model` is a copy of. It decides the layer and the baseline, and is the name beside
            figures. `model` by default.
        layer: layer whose output is compared, 0 for the embeddings. By default bert-score's choice, or the last layer of
            models that it doesn't know.
        rescale: whether to rescale by the package's English baseline for the model and layer, if it has one.
        batch_size: texts per batch.
        device: device that the model runs on; the CPU by default.

    Attributes:
        layer: layer whose output is compared.
        baseline: score that becomes 0; None without rescaling.

    Raises:
        ImportError: if bert-score isn't installed.
        OSError: if the model can't be found or reached.
        ValueError: if it has no such layer.
    """

    def __init__(
        self,
        model: str | PathLike[str] = "roberta-large",
        *,
        known_as: str | None = None,
        layer: int | None = None,
        rescale: bool = True,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
    ) -> None:
        utils = require("bert_score.utils", extra="evaluation")
        import transformers

        if model == DEMO:
            model, known_as = find_part(TEXT_ENCODER).parent, known_as or TEXT_ENCODER.hub_id
        self._known_as = known_as or fspath(model)
        self._batch_size, self._device = batch_size, device
        self._tokenizer = load_pretrained(transformers.AutoTokenizer, model)
        with quiet_loading():
            encoder = load_pretrained(transformers.AutoModel, model, dtype=torch.float32)
        if encoder.config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        depth = encoder.config.num_hidden_layers
        self.layer = utils.model2layers.get(self._known_as, depth) if layer is None else layer
        if not 0 <= self.layer <= depth:
            raise ValueError(f"{self._known_as} has layers 0 to {depth}, not {self.layer}")
        self.baseline = _baseline(utils, self._known_as, self.layer) if rescale else None
        if self._tokenizer.model_max_length > _NO_LIMIT:
            # RoBERTa's first two positions are reserved.
            self._tokenizer.model_max_length = encoder.config.max_position_embeddings - 2
        self._weights = _fingerprint(encoder)
        self._model = _Layer(encoder, self.layer).eval().requires_grad_(False).to(device)

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """The F1 of each caption.

        Args:
            texts: n captions. An empty one has cosines of 0, as in the package.
            references: references of each caption, at least one.

        Returns:
            (n,) floats; 1 is best.
        """
        utils = require("bert_score.utils", extra="evaluation")
        weights: dict[int, float] = defaultdict(lambda: 1.0)
        weights[self._tokenizer.cls_token_id] = weights[self._tokenizer.sep_token_id] = 0
        values = np.zeros(len(texts))
        # With transformers 5 the package fails on empty texts.
        filled = [row for row, text in enumerate(texts) if text.strip()]
        for start in range(0, len(filled), _CLIPS_AT_ONCE):
            rows = filled[start : start + _CLIPS_AT_ONCE]
            found = utils.bert_cos_score_idf(
                self._model,
                [reference for row in rows for reference in references[row]],
                [texts[row] for row in rows for _ in references[row]],
                self._tokenizer,
                weights,
                batch_size=self._batch_size,
                device=self._device,
            )
            each = found[:, 2].split([len(references[row]) for row in rows])
            values[rows] = [float(scores.max()) for scores in each]
        return values if self.baseline is None else (values - self.baseline) / (1 - self.baseline)

    def about(self, texts: Sequence[str]) -> dict[str, Any]:
        """How the figures of these captions were made."""
        return {
            "implementation": f"bert-score {version('bert-score')}, transformers {version('transformers')}",
            "figure": "F1, best of the references, no idf",
            "model": self._known_as,
            "weights": self._weights,
            "layer": self.layer,
            "rescaled_from": self.baseline,
            "captions_cut": _too_long(texts, self._tokenizer, self._tokenizer.model_max_length),
        }


class CLIPScore:
    """CLIPScore by its definition (Hessel et al. 2021): w * max(cos(picture, caption), 0).

    The paper's figures, about 0.7, fit w = 2.5: cosines of CLIP are near 0.3. torchmetrics' CLIPScore is weight=100 with
    prompt="".

    Args:
        model: Hub id or folder of a CLIP with both towers, or "demo" for the miniature's. The miniature's scores compare
            only with each other. It is not an independent judge of the miniature, since it has the same vision tower.
        weight: the factor w.
        prompt: text before each caption, as in the original.
        known_as: name of the model beside figures; `model` by default.
        batch_size: texts or pictures per batch.
        device: device that the model runs on; the CPU by default.

    Raises:
        OSError: if the model can't be found or reached.
        ValueError: if it isn't a CLIP with both towers.
    """

    def __init__(
        self,
        model: str | PathLike[str] = "openai/clip-vit-base-patch32",
        *,
        weight: float = 2.5,
        prompt: str = "A photo depicts ",
        known_as: str | None = None,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
    ) -> None:
        import transformers

        if model == DEMO:
            model, known_as = clip_folder(), known_as or "the miniature's"
        config = load_pretrained(transformers.AutoConfig, model)
        if config.model_type != "clip":
            raise ValueError(
                f"{fspath(model)} is a {config.model_type}: expected a CLIP of text and pictures, "
                "such as openai/clip-vit-base-patch32"
            )
        self._known_as = known_as or fspath(model)
        self._weight, self._prompt = weight, prompt
        self._batch_size, self._device = batch_size, device
        self._words = config.text_config.max_position_embeddings
        self._tokenizer = load_pretrained(transformers.AutoTokenizer, model)
        self._processor = load_pretrained(transformers.AutoImageProcessor, model)
        with quiet_loading():
            clip = load_pretrained(transformers.CLIPModel, model, dtype=torch.float32)
        self._weights = _fingerprint(clip)
        self._model = clip.eval().requires_grad_(False).to(device)

    def score(self, texts: Sequence[str], images: Sequence[str | PathLike[str]]) -> np.ndarray:
        """The score of each caption.

        Args:
            texts: n captions. They are truncated to CLIP's maximum length, 77 tokens.
            images: one file per text: a picture, or a video, of which the middle frame is used.

        Returns:
            (n,) floats, 0 to w.

        Raises:
            MediaError: if a picture can't be read.
        """
        different = list(dict.fromkeys(texts))
        pictures = list(dict.fromkeys(Path(image) for image in images))
        of_texts = torch.cat([self._embed_texts(part) for part in self._batches(different)])
        of_pictures = torch.cat([self._embed_pictures(part) for part in self._batches(pictures)])
        text_rows = {text: row for row, text in enumerate(different)}
        picture_rows = {picture: row for row, picture in enumerate(pictures)}
        cosine = functional.cosine_similarity(
            of_texts[[text_rows[text] for text in texts]],
            of_pictures[[picture_rows[Path(image)] for image in images]],
        )
        return (self._weight * cosine.clamp(0, 1)).double().numpy()

    def about(self, texts: Sequence[str]) -> dict[str, Any]:
        """How the figures of these captions were made."""
        return {
            "implementation": f"llava-soundclip {__version__}, transformers {version('transformers')}",
            "figure": f"{self._weight:g} * max(cos, 0)",
            "model": self._known_as,
            "weights": self._weights,
            "prompt": self._prompt,
            "captions_cut": _too_long([self._prompt + text for text in texts], self._tokenizer, self._words),
        }

    def _batches(self, things: list[Any]) -> list[list[Any]]:
        return [things[start : start + self._batch_size] for start in range(0, len(things), self._batch_size)]

    @torch.no_grad()
    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            [self._prompt + text for text in texts],
            padding=True,
            truncation=True,  # keeps the end token, which CLIP pools
            max_length=self._words,
            return_tensors="pt",
        ).to(self._device)
        # Calls the parts: `get_text_features` returns different types in transformers 4 and 5.
        output = self._model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return self._model.text_projection(output.pooler_output).cpu()

    @torch.no_grad()
    def _embed_pictures(self, files: list[Path]) -> Tensor:
        from llava_soundclip.media import load_frame

        pictures = [load_frame(file) for file in files]
        pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"].to(self._device)
        return self._model.visual_projection(self._model.vision_model(pixels).pooler_output).cpu()


class _Layer(nn.Module):
    """An encoder up to a layer, with the output in the form that bert-score reads."""

    def __init__(self, encoder: nn.Module, layer: int) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, layer
        layers = getattr(getattr(encoder, "encoder", None), "layer", None)
        if isinstance(layers, nn.ModuleList):
            del layers[max(layer, 1) :]  # layers above it aren't read

    def forward(self, tokens: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> tuple[Tensor]:
        output = self.encoder(tokens, attention_mask=attention_mask, output_hidden_states=True)
        return (output.hidden_states[self.layer],)


def _baseline(utils: Any, name: str, layer: int) -> float | None:
    """F1 of unrelated texts, from the package's tables."""
    table = Path(utils.__file__).parent / "rescale_baseline" / "en" / f"{name}.tsv"
    if not table.is_file():
        return None
    with open(table) as lines:
        return next((float(row["F"]) for row in csv.DictReader(lines) if int(row["LAYER"]) == layer), None)


def _fingerprint(model: nn.Module) -> str:
    from llava_soundclip.fingerprints import fingerprint

    return fingerprint(model.state_dict())


def _too_long(texts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """Number of texts with more tokens than a model reads."""
    # A token has at least one byte, so only long texts need tokenizing; two tokens are begin and end.
    return sum(
        len(tokenizer.tokenize(text)) + 2 > limit
        for text in texts
        if len(text.encode(errors="replace")) + 2 > limit
    )
