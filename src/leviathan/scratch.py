"""Owns making a model from nothing: its shape before it exists, its tokenizer, its first weights.

What a recipe may ask for is ``blueprint``'s, learning a tokenizer ``vocabulary``'s. Making runs in
a process of its own (``python -m leviathan.scratch``); neither needs torch.

The weights are ours, not those of Axolotl's reinit_weights, which follow no seed: that the base
is what the run was begun with, resuming, and the merge's proof then hold as for any base. They
follow transformers' rules for Llama (normal, norms one), but for the matrices that end a layer's
two branches: these are divided by the square root of twice the layers, so that the sum over
all layers begins no larger than one of them (GPT-2; Radford et al. 2019, section 2.3).
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leviathan import (
    child,
    corpus,
    files,
    formats,
    layers,
    machine,
    models,
    samples,
    shapes,
    shards,
    staging,
    vocabulary,
)
from leviathan.blueprint import NewModel
from leviathan.decoder import Shape
from leviathan.errors import BadInput, Refused
from leviathan.layers import Config
from leviathan.shards import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORD = "leviathan-base.json"
"""Beside the weights: what they were made from. Nothing in it depends on time or place."""
TOKENIZER_RECORD = "leviathan-tokenizer.json"
SHARD_BYTES = 4 << 30
_FORMATS = "--format alpaca, chat, sharegpt or completion"
_DTYPES = {"bfloat16": "BF16", "float32": "F32"}
_CHUNK = 1 << 22  # numbers drawn from one generator: another size makes other weights
_THREADS = min(8, os.cpu_count() or 1)
_ENDS_A_BRANCH = ("o_proj", "down_proj")
_TOKENIZER_BYTES = 128 << 20  # of the largest vocabularies; and everything small
_TELL_S = 10.0


# --- before it exists --------------------------------------------------------------------


def planned(config: Config) -> NewModel | None:
    """The model that is still to be made for this training; None where the base is there."""
    model, directory = config.recipe.model, Path(config.tree["base_model"])
    if model is None or config.lacks_base:
        return model
    as_made = config.before or _config_made(directory) == model.config_json()
    return None if as_made or not config.makes_base else model


def _config_made(directory: Path) -> Any:
    try:
        return json.loads((directory / RECORD).read_bytes())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shape(model: NewModel, name: str) -> Shape:
    """What ``model`` will be made of."""
    return shapes.from_config(model.config_json(), name)


def shape_of(config: Config) -> Shape:
    """The shape of a training's base model, made already or not.

    Raises:
        BadInput: see ``shapes.load``.
    """
    base, model = str(config.tree["base_model"]), planned(config)
    if model:
        return shape(model, base)
    # A stage that is not begun yet trains what the first one does.
    return shapes.load(str(config.recipe.base_model) if config.lacks_base else base)


def path_or_hub(config: Config) -> str:
    """``models.local_or_hub`` of a training's base model, which may still have to be made.

    Raises:
        BadInput: it can only be meant as a directory, and there is none; or it is to be made
            where another model lies.
    """
    base = str(config.tree["base_model"])
    if planned(config) is None and not config.lacks_base:
        return models.local_or_hub(base)
    directory = Path(base)
    if config.before:
        return str(directory.resolve())
    difference = _record_difference(directory, request(config).record)
    _demand_name(directory, difference, replace=False)
    return str(directory.resolve())


def weight_bytes(model: NewModel) -> int:
    """Size of the first weights on disk."""
    return sum(tensor.bytes for tensor in _tensors(model))


# --- asking for it -----------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """All that the model's files follow from."""

    model: NewModel
    corpus: Path
    rows: formats.Shape
    """How the corpus' rows are read."""
    seed: int
    special: tuple[str, ...] = ()
    """Tokens that the recipe names, beside ``vocabulary.SPECIAL_TOKENS``."""

    @property
    def wish(self) -> vocabulary.Wish:
        """The tokenizer's part."""
        model = self.model
        return vocabulary.Wish(
            self.corpus, self.rows, model.tokenizer, model.vocabulary_size, self.special,
            model.tokenizer_chars,
        )  # fmt: skip

    @property
    def record(self) -> dict[str, Any]:
        """What must be the same for a model to be the one that is asked for."""
        rows = asdict(self.rows)
        return {
            "model": self.model.model_dump(exclude_defaults=True),
            "config": self.model.config_json(),
            "seed": self.seed,
            "special": list(self.special),
            "rows": rows,
        }


def request(config: Config) -> Request:
    """What a training's recipe asks for.

    Raises:
        BadInput: it names a base model instead.
    """
    recipe, tree = config.recipe, config.tree
    if recipe.model is None:
        raise BadInput(f"recipe {config.recipe_name} has no model to make", "see base_model")
    wish = samples.Wish(Path(recipe.corpus), config.sample, recipe.seed, samples.DIRECTORY)
    named = [*(tree.get("special_tokens") or {}).values(), *(tree.get("tokens") or [])]
    special = tuple(token for token in named if isinstance(token, str))
    return Request(recipe.model, samples.readable(wish), formats.of(tree), recipe.seed, special)


def is_made(directory: Path, wanted: Request) -> bool:
    """Whether the model in ``directory`` is this one.

    The corpus is read again only where it has changed since, or was copied.

    Raises:
        BadInput: the corpus cannot be read.
    """
    return _difference(directory, wanted) == ""


def make(
    directory: Path, wanted: Request, tell: Callable[[str], None], *, replace: bool = False
) -> Path:
    """Make the model unless it is there; the directory appears whole or not at all.

    Args:
        directory: where.
        wanted: what it is made from.
        tell: told what takes long.
        replace: put it in the place of another one made from nothing.

    Raises:
        BadInput: the directory holds something else, or the corpus cannot be learned from.
        Refused: the disk has no room, or another process makes it.
    """
    difference = _difference(directory, wanted)
    if not difference:
        return directory
    _demand_name(directory, difference, replace=replace)
    corpus.check_head(wanted.corpus, ())
    _demand_room(directory, wanted.model)
    with staging.aside(directory, tell, "making") as partial:
        specification = {**wanted.record, "corpus": str(wanted.corpus), "directory": str(partial)}
        done = child.run("leviathan.scratch", specification, tell, f"making {directory}")
        if "bad" in done:
            raise BadInput(done["bad"], done["hint"])
        staging.put_in_place(partial, directory, "equal")
    return directory


def _difference(directory: Path, wanted: Request) -> str:
    """Why the model in ``directory`` is not the wanted one; empty where it is."""
    difference = _record_difference(directory, wanted.record)
    if difference or not wanted.corpus.exists():
        return difference
    known = json.loads((directory / RECORD).read_bytes())
    learned, size = known["learned"], known["corpus_bytes"]
    now, changed_ns = corpus.state(wanted.corpus)
    if now == size and changed_ns <= (directory / RECORD).stat().st_mtime_ns:
        return ""
    same = vocabulary.digest(wanted.wish) == learned["digest"]
    return "" if same else f"{wanted.corpus} is not what its tokenizer was learned from"


def _record_difference(directory: Path, wanted: dict[str, Any]) -> str:
    """The same without looking at the corpus."""
    try:
        known = json.loads((directory / RECORD).read_bytes())
        known["learned"]["digest"], known["corpus_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it was not made from nothing" if directory.exists() else "nothing is there"
    for key, value in json.loads(json.dumps(wanted)).items():
        if known.get(key) != value:
            if isinstance(value, dict):
                return f"it was made with {_told(known.get(key), value)}"
            return f"it was made with {key} {known.get(key)} instead of {value}"
    return ""


def _told(known: Any, wanted: dict[str, Any]) -> str:
    had = known if isinstance(known, dict) else {}
    return ", ".join(
        f"{key} {had.get(key, 'unset')} instead of {wanted.get(key, 'unset')}"
        for key in dict.fromkeys([*wanted, *had])
        if had.get(key) != wanted.get(key)
    )


def _demand_name(directory: Path, difference: str, *, replace: bool) -> None:
    taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if not taken or (replace and (directory / RECORD).is_file()):
        return
    raise BadInput(
        f"{directory} holds another model: {difference}",
        "move it away, or change the recipe back; a run trained on it needs it",
    )


def _demand_room(directory: Path, model: NewModel) -> None:
    needed, free = weight_bytes(model) + _TOKENIZER_BYTES, machine.free_bytes(directory)
    if free < needed:
        raise Refused(
            f"the model's first weights take {needed / 2**30:.3g} GiB and {directory.parent} has "
            f"{free / 2**30:.3g} free", "free some space, or ask for a smaller model",
        )  # fmt: skip


# --- a tokenizer alone -------------------------------------------------------------------


def rows_of(path: Path, row_format: str | None) -> formats.Shape:
    """How the rows of a corpus are read: as ``row_format`` says, else as the first ones look.

    Raises:
        BadInput: the corpus cannot be read, or its rows are of no known shape.
    """
    first = corpus.first_rows(path)
    if row_format:
        corpus.check_head(path, corpus.REQUIRED_FIELDS[row_format])
        return formats.of({"datasets": layers.dataset_entries(row_format)})
    found = formats.detect(first)
    if found.kind == "unknown":
        corpus.check_head(path, ())
        raise BadInput(f"the rows of {path} are of no known format", f"say which: {_FORMATS}")
    return found


def make_tokenizer(
    directory: Path, wish: vocabulary.Wish, tell: Callable[[str], None],
    progress: corpus.Progress | None = None,
) -> vocabulary.Learned:  # fmt: skip
    """Learn a tokenizer into a directory of its own, which appears whole or not at all.

    Raises:
        BadInput: see ``vocabulary.learn``; or the directory holds something else.
    """
    taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if taken and not (directory / TOKENIZER_RECORD).is_file():
        raise BadInput(
            f"{directory} is there already, and not written by this command",
            "give another name, or remove it",
        )
    with staging.aside(directory, tell, "making") as partial:
        learned = vocabulary.learn(wish, progress)
        vocabulary.write(learned, partial)
        files.write_json(partial / TOKENIZER_RECORD, learned.facts)
        staging.put_in_place(partial, directory, "equal")
    return learned


# --- making it, in the child -------------------------------------------------------------


def _work(specification: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    model = NewModel.model_validate(specification["model"])
    rows = formats.Shape(**specification["rows"])
    wanted = Request(
        model, Path(specification["corpus"]), rows, specification["seed"],
        tuple(specification["special"]),
    )  # fmt: skip
    try:
        return _write(Path(specification["directory"]), wanted, tell)
    except BadInput as error:  # stays one for the parent, whose child would refuse
        return {"bad": error.message, "hint": error.hint}


def _write(directory: Path, wanted: Request, tell: Callable[[str], None]) -> dict[str, Any]:
    model = wanted.model
    size = corpus.state(wanted.corpus)[0]
    tell(f"learning a tokenizer of {model.vocabulary_size:,} tokens from {wanted.corpus}")
    learned = vocabulary.learn(wanted.wish, _progress(tell))
    tell(vocabulary.describe(learned))
    vocabulary.write(learned, directory)
    files.write_json(directory / "config.json", model.config_json())
    ids = vocabulary.SPECIAL_TOKENS.index
    ends, pad = [ids(vocabulary.END_OF_TEXT), ids(vocabulary.TURN_END)], ids(vocabulary.PAD)
    files.write_json(
        directory / "generation_config.json",
        {"do_sample": False, "eos_token_id": ends, "pad_token_id": pad},
    )
    _write_weights(directory, wanted, tell)
    record = {**wanted.record, "corpus_bytes": size, "learned": learned.facts}
    files.write_json(directory / RECORD, record)
    return {"facts": learned.facts}


def _progress(tell: Callable[[str], None]) -> corpus.Progress:
    told = [time.monotonic()]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - told[0] >= _TELL_S:
            tell(f"{what}: {done / max(total, 1):.0%} of the corpus read")
            told[0] = time.monotonic()

    return progress


def _tensors(model: NewModel) -> Iterator[Tensor]:
    """All weights, a tied matrix once, in the order of the model."""
    dtype = _DTYPES[model.dtype]
    for part in shape(model, "model").parts():
        if model.tie_embeddings and part.path == "lm_head":
            continue
        yield Tensor(f"{part.path}.weight", dtype, part.sides or (part.parameters,))


def _write_weights(directory: Path, wanted: Request, tell: Callable[[str], None]) -> None:
    layout = shards.layout(_tensors(wanted.model), SHARD_BYTES)
    total, done = sum(shard.bytes for shard in layout), 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for shard in layout:
            shards.write(directory / shard.name, shard, lambda t: _content(t, wanted, pool))
            done += shard.bytes
            tell(f"weights: {done / 2**30:.3g} of {total / 2**30:.3g} GiB written")
    shards.write_index(directory, layout)


def _content(tensor: Tensor, wanted: Request, pool: ThreadPoolExecutor) -> Iterator[memoryview]:
    """A tensor's bytes, some MB at a time; each piece follows from seed, name and place alone."""
    std = standard_deviation(tensor, wanted.model)
    numbers = iter(range(0, math.prod(tensor.shape), _CHUNK))
    while places := list(islice(numbers, _THREADS)):
        yield from pool.map(lambda place: _piece(tensor, place, std, wanted.seed), places)


def standard_deviation(tensor: Tensor, model: NewModel) -> float | None:
    """Of a tensor's first values; None for one that begins as ones."""
    if len(tensor.shape) < 2:
        return None
    ends = any(f".{name}." in tensor.name for name in _ENDS_A_BRANCH)
    count = model.config_json()["num_hidden_layers"]
    return model.initial_std / math.sqrt(2 * count) if ends else model.initial_std


def _piece(tensor: Tensor, place: int, std: float | None, seed: int) -> memoryview:
    import numpy as np  # costs more than most commands take

    count = min(_CHUNK, math.prod(tensor.shape) - place)
    if std is None:
        return _stored(np.ones(count, np.float32), tensor.dtype)
    key = hashlib.sha256(f"{seed}/{tensor.name}/{place}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64DXSM(int.from_bytes(key)))
    values = generator.standard_normal(count, dtype=np.float32)
    values *= np.float32(std)
    return _stored(values, tensor.dtype)


def _stored(values: "NDArray[np.float32]", dtype: str) -> memoryview:
    """As the file has them: bf16 by rounding to nearest, ties to even, as torch does."""
    import numpy as np

    if dtype == "F32":
        return values.astype("<f4", copy=False).view(np.uint8).data
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    return rounded.astype("<u2").view(np.uint8).data


if __name__ == "__main__":
    child.serve(_work)
