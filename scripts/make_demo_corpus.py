"""Write the corpus of `leviathan demo` from the sources of Python's standard library.

Not here: the base model built from the corpus (leviathan/demo.py), the suite
that examines the result (configs/suites/demo.yaml).

    python scripts/make_demo_corpus.py --out configs/demo/stdlib.jsonl

Each output line is one question and its answer, {"messages": [user, assistant]}.
Lines that also carry "text" add one entry of plain documentation: the reading
matter of the base model, which never sees a question. Every object that the
suite asks about is left out, so the suite cannot be passed by memory.

The text is taken from the Python standard library, Copyright (c) 2001 Python
Software Foundation, All Rights Reserved, and is used and redistributed under
the PSF License Version 2 (https://docs.python.org/3/license.html).
"""

import argparse
import ast
import json
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_PARTS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip"}
EXCEPTION_BASE = re.compile(r"(Error|Exception|Warning)$")
CONSTANT_NAME = re.compile(r"^[A-Z][A-Z0-9_]+$")
TRUTH_VALUE = re.compile(r"^Returns? (True|true|whether)\b")
TRUTH_WORDS = re.compile(r"true|false|whether|bool|flag| if ", re.IGNORECASE)
PACKAGES = frozenset(
    {
        "asyncio",
        "concurrent",
        "ctypes",
        "curses",
        "distutils",
        "email",
        "encodings",
        "http",
        "importlib",
        "logging",
        "multiprocessing",
        "tkinter",
        "unittest",
        "urllib",
        "wsgiref",
        "xml",
    }
)
"""Packages of many modules: small enough a set that the demo's model can learn to name them."""


@dataclass(frozen=True)
class Entry:
    """One documented object of the standard library, as its source declares it."""

    module: str
    qualname: str
    kind: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None = None

    @property
    def name(self) -> str:
        """The dotted name by which questions call the object."""
        return f"{self.module}.{self.qualname}"

    @property
    def function(self) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """The definition, where the object can be called with declared parameters."""
        return None if isinstance(self.node, ast.ClassDef) else self.node

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring on one line, "" where there is none."""
        doc = ast.get_docstring(self.node) if self.node is not None else None
        return " ".join((doc or "").split("\n\n")[0].split())


@dataclass(frozen=True)
class Family:
    """One kind of question: how many rows to draw, and how to make one."""

    name: str
    rows: int
    make: Callable[[Entry], tuple[str, str] | None]
    """Question and answer, or None where the question does not apply."""
    balanced: bool
    """Draw from each answer alike, where there are few different answers."""


def module_sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Each public module's dotted name and file, sorted: disk order must not show."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and not any(p.startswith("_") or "-" in p or p in SKIPPED_PARTS for p in parts):
            yield ".".join(parts), path


def parse(path: Path) -> ast.Module | None:
    """The syntax tree; importing would run code: `this` prints, `antigravity` browses."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return None


def class_kind(node: ast.ClassDef) -> str:
    """Exceptions are told by what they inherit from, not by their own name."""
    bases = [
        b.id if isinstance(b, ast.Name) else b.attr if isinstance(b, ast.Attribute) else ""
        for b in node.bases
    ]
    return "exception" if any(EXCEPTION_BASE.search(b) for b in bases) else "class"


def class_entries(module: str, node: ast.ClassDef) -> Iterator[Entry]:
    """The class itself, then its methods; nested classes are rare and left out."""
    yield Entry(module, node.name, class_kind(node), node)
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Entry(module, f"{node.name}.{child.name}", "method", child)


def module_entries(module: str, tree: ast.Module) -> Iterator[Entry]:
    """Everything that the module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from class_entries(module, node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Entry(module, node.name, "function", node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and CONSTANT_NAME.match(target.id):
                    yield Entry(module, target.id, "constant")


def collect(root: Path, excluded: frozenset[str]) -> list[Entry]:
    """All entries by name; of a name defined twice (property setters) the first counts."""
    entries: dict[str, Entry] = {}
    for module, path in module_sources(root):
        tree = parse(path)
        for entry in module_entries(module, tree) if tree else ():
            if entry.name.isascii() and entry.name not in excluded:
                entries.setdefault(entry.name, entry)
    return [entries[name] for name in sorted(entries)]


def declaration(entry: Entry) -> str | None:
    """`def name(parameters)`, or None where it is no function, is annotated or would be long."""
    node = entry.function
    if node is None or has_annotations(node):
        return None
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    text = f"{keyword} {node.name}({ast.unparse(node.args)})"
    return text if len(text) <= 90 and text.isascii() else None


def has_annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Annotated signatures are few in the library and would need rules of their own."""
    return any(isinstance(a, ast.arg) and a.annotation for a in ast.walk(node.args))


def is_dunder(name: str) -> bool:
    """Special methods are neither public nor private in the naming convention (PEP 8)."""
    return name.startswith("__") and name.endswith("__")


def ask_kind(entry: Entry) -> tuple[str, str]:
    """The library's naming conventions: CapWords, UPPER_CASE, lower_case."""
    article = "an" if entry.kind == "exception" else "a"
    return f"What kind of object is `{entry.name}`?", f"It is {article} {entry.kind}."


def ask_visibility(entry: Entry) -> tuple[str, str] | None:
    """PEP 8's leading underscore; a public method of a private class could be argued either way."""
    *owner, name = entry.qualname.split(".")
    if any(part.startswith("_") for part in owner):
        return None
    if is_dunder(name):
        answer = "It is special: Python itself calls it."
    elif name.startswith("_"):
        answer = "It is private: the name starts with an underscore."
    else:
        answer = "It is public: the name has no leading underscore."
    return f"Is `{entry.name}` public, private or special?", answer


def ask_package(entry: Entry) -> tuple[str, str] | None:
    """Naming a part of the question; copying any of 200 modules is beyond so small a model."""
    package = entry.name.split(".")[0]
    if package not in PACKAGES:
        return None
    return f"Which package does `{entry.name}` belong to?", f"It belongs to `{package}`."


def binding(entry: Entry, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """How the function is bound; None where decorators or metaclasses make the answer arguable."""
    decorators = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
    first = node.args.args[0].arg if node.args.args else ""
    if entry.kind == "function":
        return None if first in {"self", "cls"} else "function"
    if first == "cls" and "classmethod" in decorators:
        return "cls"
    return "self" if first == "self" and not node.decorator_list else None


def ask_binding(entry: Entry) -> tuple[str, str] | None:
    """What the first parameter's name says."""
    text, node = declaration(entry), entry.function
    bound = binding(entry, node) if node is not None else None
    if text is None or bound is None:
        return None
    answer = {
        "self": "It is an instance method: the first parameter is `self`.",
        "cls": "It is a class method: the first parameter is `cls`.",
        "function": "It is a plain function: it has neither `self` nor `cls`.",
    }[bound]
    return f"`{entry.name}` is declared as `{text}`. Is it a method or a plain function?", answer


def ask_defaults(entry: Entry) -> tuple[str, str] | None:
    """Whether a parameter may be left out; star parameters would make both answers arguable."""
    text, node = declaration(entry), entry.function
    if text is None or node is None or node.args.vararg or node.args.kwarg or not node.args.args:
        return None
    optional = "=" in text
    answer = "Yes, there is a default value." if optional else "No, every parameter is required."
    return f"`{entry.name}` is declared as `{text}`. Does it have optional parameters?", answer


def ask_coroutine(entry: Entry) -> tuple[str, str] | None:
    """Coroutine functions; async generators share the keyword and are left out."""
    text, node = declaration(entry), entry.function
    if (
        text is None
        or node is None
        or any(isinstance(n, ast.Yield | ast.YieldFrom) for n in ast.walk(node))
    ):
        return None
    coroutine = isinstance(node, ast.AsyncFunctionDef)
    answer = (
        "Yes, `async def` makes it one."
        if coroutine
        else "No, a plain `def` is an ordinary function."
    )
    return f"`{entry.name}` is declared as `{text}`. Is it a coroutine function?", answer


def ask_truth(entry: Entry) -> tuple[str, str] | None:
    """What the documentation promises; summaries that speak of truth in other ways are left out."""
    text = entry.summary
    if entry.function is None or not usable(text) or not text.startswith("Return"):
        return None
    promised = TRUTH_VALUE.match(text)
    if promised is None and TRUTH_WORDS.search(text):
        return None
    answer = "Yes, it returns True or False." if promised else "No, it returns something else."
    return f"`{entry.name}` is documented as: {text} Does it return a truth value?", answer


def ask_summary(entry: Entry) -> tuple[str, str] | None:
    """The documentation's own words: not to be generalised, and so an honest share of the loss."""
    if not usable(entry.summary):
        return None
    return f"What does `{entry.name}` do?", entry.summary


def usable(summary: str) -> bool:
    """A sentence of a length that fits the short context, not a heading or a table."""
    return 20 <= len(summary) <= 120 and summary.isascii() and summary.endswith(".")


FAMILIES = (
    Family("kind", 1000, ask_kind, balanced=True),
    Family("visibility", 450, ask_visibility, balanced=True),
    Family("package", 600, ask_package, balanced=True),
    Family("binding", 450, ask_binding, balanced=True),
    Family("defaults", 450, ask_defaults, balanced=True),
    Family("coroutine", 300, ask_coroutine, balanced=True),
    Family("truth", 300, ask_truth, balanced=True),
    Family("summary", 150, ask_summary, balanced=False),
)


def draw(family: Family, entries: list[Entry], rng: random.Random) -> list[tuple[Entry, str, str]]:
    """The family's rows, taken in turn from each answer so that no answer wins by being common."""
    groups: dict[str, list[tuple[Entry, str, str]]] = defaultdict(list)
    for entry in entries:
        made = family.make(entry)
        if made is not None and len(made[0]) <= 220:
            groups[made[1] if family.balanced else ""].append((entry, *made))
    for label in sorted(groups):
        rng.shuffle(groups[label])
    chosen: list[tuple[Entry, str, str]] = []
    while len(chosen) < family.rows and any(groups.values()):
        for label in sorted(groups):
            if groups[label] and len(chosen) < family.rows:
                chosen.append(groups[label].pop())
    return chosen


def documentation(entry: Entry) -> str | None:
    """One entry as help() heads it: name, kind and place, declaration, summary."""
    *owner, name = entry.qualname.split(".")
    of = f" of {owner[0]}" if owner else ""
    lines = [entry.name, f"Help on {entry.kind} {name}{of} in module {entry.module}:"]
    if (text := declaration(entry)) is not None:
        lines.append(text)
    if usable(entry.summary):
        lines.append(f"    {entry.summary}")
    return (
        "\n".join(lines) + "\n"
        if len(lines) > 2 or entry.kind in {"constant", "exception"}
        else None
    )


def rows(entries: list[Entry], seed: int, text_bytes: int) -> list[dict[str, object]]:
    """All families' rows in one shuffled order, the first of them carrying the reading matter."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible draw, no secret
    drawn = [row for family in FAMILIES for row in draw(family, entries, rng)]
    rng.shuffle(drawn)
    texts = [text for text in map(documentation, entries) if text]
    rng.shuffle(texts)
    result: list[dict[str, object]] = []
    for index, (_entry, question, answer) in enumerate(drawn):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        row: dict[str, object] = {"messages": messages}
        if index < len(texts) and text_bytes > 0:
            row["text"] = texts[index]
            text_bytes -= len(texts[index])
        result.append(row)
    return result


def names_in(suite: Path) -> frozenset[str]:
    """Every dotted name that the suite puts between backticks."""
    return frozenset(re.findall(r"`([A-Za-z_][\w.]*)`", suite.read_text(encoding="utf-8")))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write the demo corpus from the standard library's sources."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("configs/demo/stdlib.jsonl"), help="file to write"
    )
    parser.add_argument(
        "--suite", type=Path, default=Path("configs/suites/demo.yaml"), help="names to hold out"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw and of the order")
    parser.add_argument(
        "--text-bytes", type=int, default=250_000, help="documentation for the base, in bytes"
    )
    return parser.parse_args()


def main() -> None:
    """Collect, draw, write."""
    args = arguments()
    entries = collect(Path(sysconfig.get_path("stdlib")), names_in(args.suite))
    made = rows(entries, args.seed, args.text_bytes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="ascii", newline="\n") as out:
        for row in made:
            out.write(json.dumps(row, separators=(",", ":")) + "\n")
    print(f"{len(made)} rows, {args.out.stat().st_size} bytes, from {len(entries)} objects")


if __name__ == "__main__":
    main()
