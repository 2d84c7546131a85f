"""Owns asking Axolotl how it reads rows: ``python -m leviathan.preview_probe QUESTION ANSWER``.

Runs in a process of its own because it imports axolotl, and with it torch. ``preview`` writes
QUESTION, ``{"tree": merged configuration, "rows": [...]}``, starts it and reads ANSWER::

    {"rows": [{"tokens": [[text, id, trained, special], ...], "left": [tokens, ...]}
              or {"problem": line}, ...]}   or   {"problem": line}

``tokens`` is what the row becomes, ``left`` the lengths of the rows it trains as, once those too
long are dropped or cut. The way is Axolotl's own: its validation, its tokenizer loader, its
dataset loader and wrapper.
"""

import json
import sys
from pathlib import Path
from typing import Any

from leviathan.tokenizer import pieces

# They choose which rows are read, or where from; not how.
_CHOOSING = ("path", "data_files", "split", "name", "revision", "shards", "shards_idx",
             "preprocess_shards")  # fmt: skip
_ELSEWHERE = ("plugins", "test_datasets", "dataset_prepared_path", "push_dataset_to_hub",
              "skip_prepare_dataset", "deepspeed", "fsdp", "fsdp_config")  # fmt: skip
_MASKED = -100  # axolotl.prompters.IGNORE_TOKEN_ID


class _Unanswered(Exception):  # noqa: N818 - it is an answer, no error of ours
    """Why Axolotl cannot be asked, one line."""


def line(error: BaseException) -> str:
    """An error in one line; pydantic's own have several."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return f"{type(error).__name__}: {'; '.join(lines[:3])}"


def answer(question: dict[str, Any], file: Path) -> dict[str, Any]:
    """The document for one question; ``file`` is where its rows are put for Axolotl to read."""
    from axolotl.loaders.tokenizer import load_tokenizer
    from axolotl.utils.data.shared import load_dataset_with_config

    cfg = _done("the configuration", lambda: _configuration(question["tree"], file))
    tokenizer = _done("the tokenizer", lambda: load_tokenizer(cfg))
    file.write_text("".join(json.dumps(row) + "\n" for row in question["rows"]))
    dataset = _done(
        "the rows", lambda: load_dataset_with_config(cfg.datasets[0], use_auth_token=False)
    )
    if len(dataset) != len(question["rows"]):
        raise _Unanswered(f"axolotl found {len(dataset)} rows, not {len(question['rows'])}")
    return {"rows": [_row(cfg, tokenizer, dataset.select([n])) for n in range(len(dataset))]}


def _done(what: str, step: Any) -> Any:
    try:
        return step()
    except Exception as error:  # whatever axolotl and the libraries below it raise
        raise _Unanswered(f"axolotl refuses {what}: {line(error)}") from error


def _configuration(tree: dict[str, Any], file: Path) -> Any:
    """As axolotl/cli/config.py makes it of a file, but for plugins and hardware."""
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.dict import DictDefault

    entry = {key: value for key, value in tree["datasets"][0].items() if key not in _CHOOSING}
    rest = {key: value for key, value in tree.items() if key not in _ELSEWHERE}
    cfg = DictDefault({**rest, "datasets": [{**entry, "path": str(file), "ds_type": "json"}]})
    cfg.output_dir = str(file.parent)
    cfg = validate_config(cfg)
    normalize_config(cfg)
    cfg.dataset_num_proc = None  # in this process
    return cfg


def _row(cfg: Any, tokenizer: Any, dataset: Any) -> dict[str, Any]:
    from axolotl.utils.data.utils import handle_long_seq_in_dataset
    from axolotl.utils.data.wrappers import get_dataset_wrapper

    (entry,) = cfg.datasets
    kind = entry.type if isinstance(entry.type, str) else ""
    base, _, style = kind.partition(":")
    try:
        made, _ = get_dataset_wrapper(
            dataset_config=entry, tokenizer=tokenizer, cfg=cfg, dataset_base_type=base or None,
            dataset=dataset, dataset_prompt_style=style or None,
        )  # fmt: skip
        if "input_ids" not in made.column_names:
            return {"tokens": [], "left": []}
        found: dict[str, Any] = {"tokens": _tokens(tokenizer, made)}
    except Exception as error:  # prompt strategies and chat templates are programs
        return {"problem": line(error)}
    try:
        left = handle_long_seq_in_dataset(made, cfg.sequence_len, cfg)
        found["left"] = [len(ids) for ids in left["input_ids"]]
    except ValueError as error:  # excess_length_strategy: raise
        found["problem"] = line(error)
    return found


def _tokens(tokenizer: Any, made: Any) -> list[tuple[str, int, bool, bool]]:
    ids = [token for row in made["input_ids"] for token in row]
    labels = [label for row in made["labels"] for label in row]
    texts = pieces(ids, lambda some: str(tokenizer.decode(some, skip_special_tokens=False)))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {number for number, token in added.items() if token.special}
    return [
        (text, token, label != _MASKED, token in special)
        for text, token, label in zip(texts, ids, labels, strict=True)
    ]


def main(arguments: list[str]) -> None:
    """Answer the question in the first file, in the second."""
    question, out = (Path(argument) for argument in arguments)
    asked = json.loads(question.read_text())
    try:
        found = answer(asked, question.with_name("rows.jsonl"))
    except _Unanswered as error:
        found = {"problem": str(error)}
    except Exception as error:  # the imports, most likely
        found = {"problem": f"axolotl cannot be asked: {line(error)}"}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
