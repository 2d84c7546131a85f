"""Owns what a recipe's file may say: its keys, and those of its stages and modes.

Does not read the file (``config``) nor bring stage and mode together (``composing``).
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leviathan.blueprint import NewModel

STRICT = ConfigDict(extra="forbid", frozen=True)


class _Strict(BaseModel):
    model_config = STRICT


class SampleSettings(_Strict):
    """What differs for one sample of the corpus."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the sample; overrides the recipe's ``epochs``."""
    expected_hours: dict[str, float] = {}
    """Hours you were told or hope for, by profile; ``plan`` says whether that can be."""


class CorpusSize(_Strict):
    """What the corpus is like, for planning where it is not at hand."""

    rows: int = Field(ge=1)
    """Rows of the whole corpus."""
    bytes: int = Field(ge=1)
    """Size of the whole corpus in bytes."""


class Success(_Strict):
    """When the owner calls a run a success."""

    final_loss: float | None = Field(None, gt=0)
    """Training loss (nats per token) the run should end below."""
    prompts_pass_pct: float = Field(75.0, ge=0, le=100)
    """Share of the prompt suite that must pass, in percent."""


class MergeLimits(_Strict):
    """How close a merged model must be to base + adapter (docs/merging.md)."""

    argmax_agreement: float = Field(0.98, ge=0, le=1)
    """Least share of probe positions whose likeliest token is the same."""
    relative_error: float = Field(0.1, gt=0)
    """Largest distance merged to trained, as a share of the distance trained to base: L2
    norms over all probe logits."""


Format = Literal["alpaca", "chat", "sharegpt", "completion", "choices"]


class Overlay(_Strict):
    """Keys of a recipe that one of its stages, or one of its modes, has otherwise.

    What is left out is as it stands beneath; mappings (``samples``, ``success``, ``axolotl``)
    are merged key by key.
    """

    corpus: str | None = None
    """JSONL file, relative to the directory Leviathan is started in."""
    corpus_size: CorpusSize | None = None
    """Rows and bytes of that corpus."""
    format: Format | None = None
    """Shape of its rows."""
    train: Literal["adapter", "full"] | None = None
    """What is trained: an adapter as the profile has it, or every weight."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the sample."""
    total_tokens: int | None = Field(None, ge=1)
    """Tokens to train, in whole steps; takes the place of ``epochs``."""
    global_batch_tokens: int | None = Field(None, ge=1)
    """Tokens of one optimizer step over all processes."""
    warmup_tokens: int | None = Field(None, ge=1)
    """Tokens over which the learning rate rises."""
    samples: dict[str, SampleSettings] = {}
    """Settings per sample name."""
    seed: int | None = Field(None, ge=0)
    """Seeds sampling, initialisation, shuffling and dropout."""
    suite: str | None = None
    """Prompt suite: a name under ``configs/suites`` or a YAML file."""
    success: Success = Success()
    """Criteria shown by reports and used by ``test``."""
    checkpoints: dict[str, Any] = {}
    """Over the profile's ``checkpoints``."""
    axolotl: dict[str, Any] = {}
    """Raw Axolotl keys, over the profile's."""


class Stage(Overlay):
    """One training of several that follow each other, a run of its own."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,19}$")
    """What the stage is called: base, mid, sft, rl. The run is ``<whole>.<name>``."""
    description: str = ""
    """One line on what it is for."""
    start: Literal["best", "latest"] = "best"
    """The checkpoint of the stage before that this one begins with."""


class Mode(Overlay):
    """A time-boxed form of the recipe (``--mode``)."""

    description: str = ""
    """One line: for whom, how long."""
    sample: str | None = None
    """Part of the corpus where ``--sample`` does not say it."""
    model: NewModel | None = None
    """Another model made from nothing: a smaller one."""
    stages: dict[str, Overlay] = {}
    """What a stage has otherwise in this mode, by its name."""


class Recipe(_Strict):
    """What is trained: base model, corpus, epochs, seed, success."""

    description: str = ""
    """One line for ``recipes list``."""
    base_model: str | None = None
    """Hub name or local directory of the model that is trained on; else ``model``."""
    model: NewModel | None = None
    """Instead of ``base_model``: a model made from nothing before the training
    (docs/scratch-models.md)."""
    corpus: str
    """JSONL file, relative to the directory Leviathan is started in."""
    corpus_size: CorpusSize | None = None
    """Rows and bytes of the corpus; ``plan`` uses them where the file is not there."""
    format: Format = "alpaca"
    """Shape of a row: alpaca {instruction, input, output}, chat {messages: [{role,
    content}]}, sharegpt {conversations: [{from, value}]}, completion {text}, choices
    {question, choices: [text], answer: an index from 0 or a letter}, trained by rewards
    (docs/rewards.md). Finer control: ``axolotl.datasets``."""
    sample: str = "10pct"
    """Part of the corpus where ``--sample`` does not say it."""
    train: Literal["adapter", "full"] = "adapter"
    """What is trained: an adapter as the profile has it, or every weight. With full the
    profile's keys of adapters and quantised weights are left out."""
    epochs: float = Field(1, gt=0)
    """Passes over the sample."""
    total_tokens: int | None = Field(None, ge=1)
    """Tokens to train; takes the place of ``epochs``. Rounded up to whole steps
    (docs/configuration.md)."""
    global_batch_tokens: int | None = Field(None, ge=1)
    """Tokens of one optimizer step over all processes: gives gradient_accumulation_steps.
    Refused where micro batch x sequence length x processes does not divide it."""
    warmup_tokens: int | None = Field(None, ge=1)
    """Tokens over which the learning rate rises: gives warmup_steps, rounded to a whole step."""
    max_hours: float | None = Field(None, gt=0)
    """Hours over all stages, where ``--max-hours`` does not say it."""
    budget_usd: float | None = Field(None, gt=0)
    """Dollars over all stages, where ``--budget-usd`` does not say it."""
    samples: dict[str, SampleSettings] = {}
    """Settings per sample name (10pct, full, ...)."""
    seed: int = Field(42, ge=0)
    """Seeds sampling, adapter initialisation, shuffling and dropout."""
    suite: str | None = None
    """Prompt suite: a name under ``configs/suites`` or a YAML file."""
    success: Success = Success()
    """Criteria shown by reports and used by ``test``."""
    merge: MergeLimits = MergeLimits()
    """Limits of the merge proof."""
    checkpoints: dict[str, Any] = {}
    """Keys of a profile's ``checkpoints``, where the profile does not say them."""
    axolotl: dict[str, Any] = {}
    """Raw Axolotl keys."""
    stages: list[Stage] = []
    """Trainings that follow each other, each from the model of the one before
    (docs/stages.md)."""
    modes: dict[str, Mode] = {}
    """Time-boxed forms, chosen by ``--mode``."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Recipe":
        if (self.base_model is None) == (self.model is None):
            if self.model:
                raise ValueError("base_model and model are both given; a recipe has one of them")
            raise ValueError("base_model, or model for one made from nothing, is required")
        return self

    @model_validator(mode="after")
    def _names_that_exist(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two stages are called {twice}")
        for name, mode in self.modes.items():
            unknown = next((stage for stage in mode.stages if stage not in names), None)
            if unknown:
                raise ValueError(f"mode {name} names a stage {unknown}; there is {names or 'none'}")
        return self
