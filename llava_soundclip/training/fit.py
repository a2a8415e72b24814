"""Training of a projector on a features folder: a loop that fits one screen, on accelerate.

The recipe, the features and the number of processes determine a run. Interrupted at any step and resumed, it ends as
if it had never been interrupted, bit for bit on a CPU.
"""

import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llava_soundclip._extras import require
from llava_soundclip.alignment.projector import Projector
from llava_soundclip.encoders.base import check_choice
from llava_soundclip.encoders.checkpoints import first_line, unpickle_tensors
from llava_soundclip.encoders.whisper.fusion import Fusion, FusionName
from llava_soundclip.evaluation.retrieval.measure import FIGURES, ITEMS, POOL, TOPS, retrieval
from llava_soundclip.features.splits import RECIPE, split_by_source
from llava_soundclip.features.store import FeatureFolder, FeatureHeader
from llava_soundclip.files import check_folder, locked_folder, read_json, write_file
from llava_soundclip.running import interrupts_held
from llava_soundclip.training.losses import LOSSES, TEMPERATURE, make_loss

Precision = Literal["no", "fp16", "bf16"]

METRICS = "metrics.jsonl"
STATE = "training_state.pt"
LAST = "last"

FEW_UPDATES = 200  # a run with fewer updates gets a note
ENOUGH_UPDATES = 500  # number of updates that the note proposes
QUICK_RATE = 1e-3  # learning rate that the note proposes, unless the recipe's is higher
FEW_HELD_OUT = 10  # a run with fewer validation clips gets a note


class DivergedError(RuntimeError):
    """Training diverged: a loss or a weight became NaN or infinite."""


class FinishedRunError(ValueError):
    """The folder holds a finished run of the same recipe on the same features."""


@dataclass(frozen=True)
class Recipe:
    """Options of a projector's training. The defaults are the paper's (Appendix E, F.4), except where noted.

    Attributes:
        loss: name of a loss in `LOSSES`.
        temperature: temperature of InfoNCE; the other losses have none.
        fusion: fusion of Whisper's blocks, if the features hold all blocks; None for average_all.
        n: number of blocks for the fusion "last_n".
        hidden: width of the projector's hidden layers.
        dropout: dropout probability after each activation of the projector.
        learning_rate: learning rate of Adam.
        epochs: number of passes over the training clips.
        batch_size: pairs per step, over all processes (not in the paper).
        accumulate: steps per update of Adam, whose gradients are summed; each has its own negatives.
        factor: factor of ReduceLROnPlateau, on the validation loss.
        patience: epochs without improvement before the rate is lowered (not in the paper; torch's default).
        early_stopping: epochs without improvement before training stops; None for no early stopping.
        validation: held-out share of the rows, in whole sources (not in the paper).
        seed: random seed for the weights, the split, the order and the dropout.
        precision: precision of the forward pass: "no" is float32.
    """

    loss: str = "infonce+distribution"
    temperature: float = TEMPERATURE
    fusion: FusionName | None = None
    n: int | None = None
    hidden: int = 1024
    dropout: float = 0.1
    learning_rate: float = 5e-5
    epochs: int = 10
    batch_size: int = 256
    accumulate: int = 1
    factor: float = 0.1
    patience: int = 10
    early_stopping: int | None = None
    validation: float = 0.1
    seed: int = 0
    precision: Precision = "no"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown; known: {', '.join(LOSSES)}")
        check_choice("precision", self.precision, Precision)
        if self.fusion is not None or self.n is not None:
            Fusion(self.fusion or Fusion.name, self.n)
        for name in ("hidden", "epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a number above 0, not {self.temperature}")
        if self.batch_size == 1 and self.loss not in ("cosine", "mse"):
            raise ValueError(
                f"a batch of one pair has no other pair to be compared with: loss={self.loss!r} needs batches of 2 or more"
            )
        if self.loss_options() and "infonce" not in self.loss:
            raise ValueError(f"loss={self.loss!r} has no temperature: it belongs to InfoNCE")

    def loss_options(self) -> dict[str, float]:
        """The loss's options where they differ from its defaults."""
        return {} if self.temperature == TEMPERATURE else {"tau": self.temperature}


class Model(nn.Module):
    """The projector, with the fusion of Whisper's blocks in front of it if the features hold all blocks."""

    def __init__(self, projector: Projector, fusion: Fusion | None) -> None:
        super().__init__()
        self.projector, self.fusion = projector, fusion

    def forward(self, audio: Tensor) -> Tensor:
        """Project (B, d_a), or Whisper's blocks (B, L, d_a), to (B, D)."""
        if self.fusion is not None:
            audio = self.fusion(audio, getattr(self.projector, "layer_weights", None))
        return self.projector(audio)


def train(
    features: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    save_every: float = 60.0,
    tensorboard: bool = False,
    command: str | None = None,
    on_note: Callable[[str], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Projector:
    """Train a projector and write it to a folder that `Projector.from_pretrained` opens.

    With `accelerate launch` it runs in several processes, and every process calls this function.

    Args:
        features: a folder made by `llava-soundclip features`.
        out: the projector's folder. It gets the best weights by validation loss, the last epoch's weights in `last/`,
            `metrics.jsonl`, and `recipe.json`, which tells evaluations the held-out clips. During the run it also holds
            the state. An interrupted run saves it after the next update, and resumes.
        recipe: options of the training; the paper's by default.
        save_every: seconds between two saved states.
        tensorboard: whether to also log to `runs/` beside the weights (needs the package).
        command: the command line, for the projector's card.
        on_note: called in the main process before the first step with the notes of `advice` and `few_held_out`, if any.
        on_step: called in the main process after every step with the number of steps done and in all.
        on_epoch: called in the main process after every epoch with its row of metrics.

    Returns:
        The best projector, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: if there is no features folder.
        ValueError: if the features are broken or too few to be split, the recipe doesn't fit them, or the folder holds
            a run of another recipe or a finished run: a FinishedRunError if it was of this recipe.
        DivergedError: if a loss or a weight becomes NaN or infinite. The folder keeps the last saved state, and the
            weights of the best epoch, if one was finished.
        BlockingIOError: if another run trains in the folder.
        OSError: if the folder can't be written.
        ImportError: if `tensorboard` is set without the package.
    """
    from accelerate import Accelerator

    if tensorboard:
        require("tensorboard", extra="tensorboard")
    recipe = recipe or Recipe()
    data = FeatureFolder(features)
    fusion = _fusion(recipe, data.header)
    training, validation = split_by_source(data.sources, recipe.validation, recipe.seed)
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        log_with="tensorboard" if tensorboard else None,
        project_dir=out,
    )
    folder, quiet = Path(out), not accelerator.is_main_process
    if accelerator.is_main_process:
        check_folder(folder)
    accelerator.wait_for_everyone()

    torch.manual_seed(recipe.seed)
    projector = Projector(
        data.header.audio_dim,
        data.header.width,
        recipe.hidden,
        dropout=recipe.dropout,
        tower=data.header.tower,
        tower_layer=data.header.tower_layer,
        loss=recipe.loss,
        layers=data.header.layers if fusion and fusion.name == "weighted_sum" else None,
        **Projector.labels(_signature(data.header, fusion)),
    )
    optimiser = torch.optim.Adam(projector.parameters(), lr=recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=recipe.factor, patience=recipe.patience
    )
    loss_of = make_loss(recipe.loss, **recipe.loss_options())
    model, optimiser = accelerator.prepare(Model(projector, fusion), optimiser)
    steps = len(_batches(training, recipe.batch_size))
    run = _TrainingRun(folder, recipe, data, projector, optimiser, schedule, accelerator, steps)
    if tensorboard:
        accelerator.init_trackers("runs", _as_text(recipe))
    torch.manual_seed(recipe.seed + 1 + accelerator.process_index)  # dropout differs between processes
    run.resume()
    if on_note and not quiet:
        for note in filter(None, (advice(len(training), recipe), few_held_out(len(validation)))):
            on_note(note)

    alone = locked_folder(folder, wait=False) if accelerator.is_main_process else nullcontext()
    with alone, interrupts_held() as is_held:
        while run.epoch < recipe.epochs and not run.is_stopped_early():
            order = training[torch.randperm(len(training), generator=_generator(recipe.seed, run.epoch))]
            batches = _batches(order, recipe.batch_size)
            model.train()
            while run.step < steps:
                rows = batches[run.step]
                audio, cls = data.rows(rows[accelerator.process_index :: accelerator.num_processes])
                is_added_up = (run.step + 1) % recipe.accumulate == 0 or run.step + 1 == steps
                with nullcontext() if is_added_up else accelerator.no_sync(model), accelerator.autocast():
                    loss = loss_of(model(audio.to(accelerator.device)), cls.to(accelerator.device))["loss"]
                    accelerator.backward(loss / recipe.accumulate)
                run.after_step(loss.detach(), len(rows))
                if is_added_up:
                    optimiser.step()
                    optimiser.zero_grad()
                if is_added_up and run.is_due(save_every, is_held()):
                    run.check_state()
                    run.save()
                    if run.is_stopping:
                        raise KeyboardInterrupt
                if on_step and not quiet:
                    on_step(run.epoch * steps + run.step, recipe.epochs * steps)
            run.check_state()
            figures = validate(projector, fusion, recipe, data, validation, accelerator.device)
            run.check("validation loss", figures["validation_loss"])
            run.check("length of the projected validation sounds", figures["norm"])
            schedule.step(figures["validation_loss"])
            row = run.after_epoch(figures)
            if on_epoch and not quiet:
                on_epoch(row)
    if tensorboard:
        accelerator.end_training()
    run.finish(command, len(training), len(validation))
    return Projector.from_pretrained(folder)


@torch.no_grad()
def validate(
    projector: Projector,
    fusion: Fusion | None,
    recipe: Recipe,
    data: FeatureFolder,
    rows: Tensor,
    device: torch.device,
) -> dict[str, float]:
    """Loss and retrieval (Appendix E) on held-out rows; every process computes the same.

    If the loss or the vectors aren't finite, there is no retrieval.
    """
    model = Model(projector, fusion).eval()
    loss_of = make_loss(recipe.loss, gather=False, **recipe.loss_options())

    def pairs(batch: Tensor) -> tuple[Tensor, Tensor]:
        audio, cls = (tensor.to(device) for tensor in data.rows(batch))
        return model(audio).float(), cls

    losses, norms, counts = [], [], []
    for batch in _batches(rows, recipe.batch_size):  # as many negatives as in training
        f_a, c = pairs(batch)
        losses.append(loss_of(f_a, c)["loss"].item())
        norms.append([f_a.norm(dim=1).sum().item(), c.norm(dim=1).sum().item()])
        counts.append(len(batch))
    heard, seen = map(sum, zip(*norms, strict=True))
    figures = {
        "validation_loss": sum(map(math.prod, zip(losses, counts, strict=True))) / sum(counts),
        "norm": heard / seen,
    }
    if not all(map(math.isfinite, figures.values())):
        return figures
    pool = torch.randperm(len(rows), generator=_generator(recipe.seed, 0))[:POOL]
    found = retrieval(*(tensor.cpu() for tensor in pairs(rows[pool.sort().values])), seed=recipe.seed)
    for side, each in found.items():
        named = each.as_dict()
        figures |= {f"{side}_{name}": named[name] for name in FIGURES}
        figures["items"] = each.items
    return figures


class _TrainingRun:
    """The state of a run, saved to disk and restored.

    Attributes:
        epoch: the current epoch, from 0.
        step: the next step of the epoch.
        steps: number of steps per epoch.
        is_stopping: whether a process was interrupted, so that all end after the next save.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        data: FeatureFolder,
        projector: Projector,
        optimiser: Any,
        schedule: torch.optim.lr_scheduler.ReduceLROnPlateau,
        accelerator: Any,
        steps: int,
    ) -> None:
        self.steps = steps
        self.folder, self.recipe, self.data, self.projector = folder, recipe, data, projector
        self.optimiser, self.schedule, self.accelerator = optimiser, schedule, accelerator
        self.epoch = self.step = 0
        self.is_stopping = False
        self.losses = [0.0, 0.0]  # this epoch's sum over rows, and number of rows
        self.best: dict[str, Any] = {"epoch": -1, "validation_loss": math.inf}
        self.rows: list[dict[str, Any]] = []
        self._saved = time.monotonic()
        self._identity = {
            **_as_text(recipe),
            "features": data.digest(),
            "processes": str(accelerator.num_processes),
        }

    def resume(self) -> None:
        """Restore the saved state, if there is one.

        Raises:
            ValueError: if the folder holds another run, or a finished one.
        """
        path = self.folder / STATE
        if not path.is_file():
            if (self.folder / METRICS).exists():
                self._refuse_finished()
            return
        state = unpickle_tensors(path)
        try:
            # Fields that an earlier version lacked had their defaults.
            self._compare("another run", {**_as_text(Recipe()), **state["identity"]})
            self.projector.load_state_dict(state["projector"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
            self.best, self.rows = state["best"], state["rows"]
            torch.set_rng_state(state["random"][self.accelerator.process_index])
        except (AttributeError, LookupError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{path} isn't the state of a run of train: remove it to begin again ({first_line(error)})"
            ) from error

    def _refuse_finished(self) -> None:
        """Raise the error for a folder with a finished run."""
        path = self.folder / RECIPE
        made = read_json(path) if path.is_file() else {}
        recipe = made.get("recipe")
        if isinstance(recipe, dict):
            before = {**_as_text(Recipe()), **{name: str(value) for name, value in recipe.items()}}
            self._compare(
                "a finished run", {**before, "features": made.get("features")}, left_out="processes"
            )
            raise FinishedRunError(
                f"{self.folder} holds a finished run of this recipe: there is nothing to do"
            )
        raise ValueError(f"{self.folder} holds a finished run: give another folder, or remove it")

    def _compare(self, what: str, before: Mapping[str, Any], left_out: str | None = None) -> None:
        """Refuse a run that differs from this one."""
        differ = [
            f"{key} was {before.get(key)} and is {value}"
            for key, value in self._identity.items()
            if before.get(key) != value and key != left_out
        ]
        if differ:
            raise ValueError(
                f"{self.folder} holds {what}: {'; '.join(differ)}. Give another folder, or remove it"
            )

    def save(self) -> None:
        """Write the state atomically; every process calls this."""
        random = [torch.get_rng_state()]
        if self.accelerator.num_processes > 1:
            random = [None] * self.accelerator.num_processes  # type: ignore[list-item]
            torch.distributed.all_gather_object(random, torch.get_rng_state())
        if self.accelerator.is_main_process:
            state = {
                "identity": self._identity,
                "projector": self.projector.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "losses": self.losses,
                "best": self.best,
                "rows": self.rows,
                "random": random,
            }
            buffer = io.BytesIO()
            torch.save(state, buffer)
            write_file(self.folder / STATE, buffer.getvalue())
        self._saved = time.monotonic()

    def after_step(self, loss: Tensor, rows: int) -> None:
        """Count a step, whose loss must be finite in every process."""
        mean = self.accelerator.reduce(loss, reduction="mean").item()
        self.check("loss", mean, self.step + 1)
        self.losses = [self.losses[0] + mean * rows, self.losses[1] + rows]
        self.step += 1

    def check(self, what: str, value: float, step: int | None = None) -> None:
        """Raise a DivergedError if a value isn't finite; it names the step and the remedies.

        The metrics of the finished epochs are written before.

        Args:
            what: name of the value.
            value: the value.
            step: number of the step in the epoch, from 1; by default the last counted one.
        """
        if math.isfinite(value):
            return
        step = self.epoch * self.steps + (self.step if step is None else step)
        is_saved = (self.folder / STATE).is_file()
        saved = f"{self.folder} keeps the last saved state" if is_saved else "no state was saved"
        if self.best["epoch"] >= 0:
            saved += f", and the weights of epoch {self.best['epoch'] + 1}, the best one"
        if self.rows and self.accelerator.is_main_process:
            self._write_metrics()
        raise DivergedError(
            f"training diverged: the {what} is {value} at step {step} (epoch {self.epoch + 1}). "
            f"{self._remedies()}, {'in another folder' if is_saved else 'in the same folder'}: {saved}"
        )

    def check_state(self) -> None:
        """Raise a DivergedError if the weights, or Adam's means of their gradients, aren't finite."""
        for tensor in self.projector.parameters():
            self.check("sum of a weight tensor", tensor.detach().sum().item())
            for name, mean in self.optimiser.state.get(tensor, {}).items():
                self.check(f"sum of Adam's {name}", mean.sum().item())

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows)
        write_file(self.folder / METRICS, lines.encode())

    def _remedies(self) -> str:
        """What to try after the run diverged."""
        recipe, found = self.recipe, []
        if self.epoch or self.step >= min(recipe.accumulate, self.steps):  # else no weight was changed yet
            found.append(f"a learning rate below {recipe.learning_rate:g}")
        if recipe.precision == "fp16":
            found.append("precision bf16 or no")
        if "infonce" in recipe.loss and recipe.temperature < TEMPERATURE:
            found.append(f"a temperature above {recipe.temperature:g}")
        return f"Try {' or '.join(found or ['features of smaller numbers, since these overflow'])}"

    def is_due(self, seconds: float, is_interrupted: bool) -> bool:
        """Whether the last save was at least this many seconds ago, or a process is interrupted; all agree."""
        late = time.monotonic() - self._saved >= seconds
        signs = torch.tensor([float(late), float(is_interrupted)], device=self.accelerator.device)
        late, self.is_stopping = map(bool, self.accelerator.reduce(signs, reduction="sum").tolist())
        return late or self.is_stopping

    def after_epoch(self, figures: dict[str, float]) -> dict[str, Any]:
        """Record the metrics, write the weights (as the best ones, if they are), and save the state."""
        row = {
            "epoch": self.epoch + 1,
            "loss": self.losses[0] / self.losses[1],
            **figures,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
        }
        self.rows.append(row)
        made = {"recipe": asdict(self.recipe), "features": self.data.digest()}  # so that the split is known
        is_best = figures["validation_loss"] < self.best["validation_loss"]
        if is_best:
            self.best = {"epoch": self.epoch, "validation_loss": figures["validation_loss"]}
        self.epoch, self.step, self.losses = self.epoch + 1, 0, [0.0, 0.0]
        self.accelerator.log({key: value for key, value in row.items() if key != "epoch"}, step=row["epoch"])
        if self.accelerator.is_main_process:
            write_file(self.folder / RECIPE, (json.dumps(made, indent=2, allow_nan=False) + "\n").encode())
            for folder in [self.folder / LAST, *([self.folder] if is_best else [])]:
                folder.mkdir(exist_ok=True)
                self.projector.save_pretrained(folder)
        self.save()
        return row

    def is_stopped_early(self) -> bool:
        """Whether the number of epochs without improvement has reached `early_stopping`."""
        patience = self.recipe.early_stopping
        return patience is not None and self.epoch - 1 - self.best["epoch"] >= patience and self.epoch > 0

    def finish(self, command: str | None, trained: int, validated: int) -> None:
        """Write the metrics and the card, and remove the state."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._write_metrics()
            best = self.rows[self.best["epoch"]]
            card = Projector.from_pretrained(self.folder).generate_model_card()
            text = f"{card}\n{training_card(self.recipe, self.data, trained, validated, best, command)}"
            write_file(self.folder / "README.md", text.encode())
            (self.folder / STATE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()


def training_card(
    recipe: Recipe,
    data: FeatureFolder,
    trained: int,
    validated: int,
    best: Mapping[str, Any],
    command: str | None,
) -> str:
    """The part of a projector's card about its training and its retrieval."""
    items = min(ITEMS, validated)
    lines = [
        "## Training\n",
        (
            f"{trained} clips for training and {validated} for validation, from other sources ({len(set(data.sources))} in "
            f"all). The saved weights are those of epoch {best['epoch']}, the best by validation loss.\n"
        ),
        "| on validation clips | sounds find pictures | pictures find sounds |",
        "|---|---|---|",
        f"| mean rank (chance: {(items + 1) / 2:g}) | {best['A2V_mean_rank']:.1f} | {best['V2A_mean_rank']:.1f} |",
        *(
            f"| R@{top} (chance: {min(1, top / items):.2f}) "
            f"| {best[f'A2V_R@{top}']:.2f} | {best[f'V2A_R@{top}']:.2f} |"
            for top in TOPS
        ),
        "\nRetrieval as in Appendix E: 100 random pairs from up to 500, by cosine, five times.\n",
        "| recipe | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in asdict(recipe).items()),
    ]
    if command:
        lines += ["", "```sh", command, "```"]
    return "\n".join(lines) + "\n"


def advice(clips: int, recipe: Recipe) -> str | None:
    """A note for runs that are too short to learn, with a learning rate and a number of epochs to try.

    Adam moves a weight by about the learning rate in each update. The paper's 5e-5 assumes thousands of updates.

    Args:
        clips: number of training clips.
        recipe: the run's recipe.

    Returns:
        The note, or None for a run of 200 updates or more.
    """
    steps = len(_batches(torch.arange(clips), recipe.batch_size))
    per_epoch = math.ceil(steps / recipe.accumulate)
    updates = per_epoch * recipe.epochs
    if updates >= FEW_UPDATES:
        return None
    rate = max(recipe.learning_rate, QUICK_RATE)
    return (
        f"{clips} training clips give {updates} updates in {recipe.epochs} epochs, too few to learn much: "
        f"try learning rate {rate:g} and {math.ceil(ENOUGH_UPDATES / per_epoch)} epochs"
    )


def few_held_out(clips: int) -> str | None:
    """A note for runs with fewer than 10 validation clips, given their number; None for others."""
    if clips >= FEW_HELD_OUT:
        return None
    return (
        f"only {clips} clips are held out for validation: their figures, and the best epoch chosen by them, say little "
        f"(by chance the mean rank is {(clips + 1) / 2:g}). More clips, or a larger share, help"
    )


def _as_text(recipe: Recipe) -> dict[str, str]:
    return {key: str(value) for key, value in asdict(recipe).items()}


def _fusion(recipe: Recipe, header: FeatureHeader) -> Fusion | None:
    """The fusion of the blocks; None if the features hold one vector per clip."""
    if header.layers is None:
        if recipe.fusion is not None:
            raise ValueError(
                f"fusion={recipe.fusion!r} needs the blocks of whisperclip, but these features hold one vector "
                f"per clip, from {header.encoder.get('encoder')}"
            )
        return None
    fusion = Fusion(recipe.fusion, recipe.n) if recipe.fusion else Fusion()
    fusion.check_blocks(header.layers, "these features")
    return fusion


def _signature(header: FeatureHeader, fusion: Fusion | None) -> dict[str, str]:
    """The encoder's signature with the chosen fusion, as `WhisperCLIPEncoder` writes it."""
    if fusion is None:
        return dict(header.encoder)
    return {**header.encoder, "fusion": str(fusion)}


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    """Split rows into steps. A single last row joins the step before: alone it has no negative and no deviation."""
    batches = list(rows.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1 < size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
