"""Owns how a report looks: one HTML file that needs nothing else, and the same as Markdown.

Pure: a ``Report`` in, text out. Gathers nothing (``report``) and draws no curve (``charts``).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from leviathan import charts, course, trends
from leviathan.charts import Chart, Line, Mark
from leviathan.checkpoints import Checkpoint
from leviathan.report import Comparison, Report, Sitting
from leviathan.series import Curve
from leviathan.spelled import count, counted, duration, figure, moment, size, usd
from leviathan.status import RunSummary

_WIDE, _NARROW, _SMALL = (960, 360), (400, 300), (470, 190)
_MOST_ROWS = 200
"""Of a table: a run that crashes all night must not make a page of megabytes."""
_SPARKS = "▁▂▃▄▅▆▇█"
_TROUBLE = {"oom": "OOM", "crash": "crash", "kill": "killed", "power": "power", "stop": "stop",
            "pause": "pause"}  # fmt: skip
_INCIDENTS = {
    "oom": "out of memory", "crash": "crash", "kill": "killed", "power": "power loss",
    "stop": "stopped", "pause": "pause", "quarantine": "quarantine", "warning": "warning",
}  # fmt: skip


@dataclass(frozen=True)
class _Figure:
    """A chart as the page shows it."""

    chart: Chart
    svg: Markup
    narrow: Markup
    """The same for a narrow window; empty where one serves both."""


def html(report: Report) -> str:
    """The report as one HTML file: no script, no network, light, dark and printed."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("report.html").read_text())
    marks, steps = _marks(report), _steps(report)
    return template.render(
        r=report,
        s=report.summary,
        facts=_facts(report),
        loss=_loss_figure(report, steps, marks),
        figures=[_Figure(chart, _drawn(chart, steps, marks, _SMALL), Markup())
                 for chart in _charts(report)],
        mark_kinds={mark.kind for mark in marks},
        stages=[one.row for one in _stages(report)],
        stage_heads=course.HEADS,
        comparisons=[_compared(c) for c in report.comparisons],
        sittings=_rows(report.sittings, _sitting),
        incidents=_incidents(report),
        lost=_lost(report),
        saved=_checkpoints(report),
        settings=[(s.key, _value(s.value), s.layer, s.where) for s in report.settings],
        written=moment(report.made_s),
        made_of=_made_of(report),
        good_kinds=_good_kinds(report),
    )  # fmt: skip


def _stages(report: Report) -> tuple[course.Standing, ...]:
    return report.course.stages if report.course else ()


# --- charts --------------------------------------------------------------------------


def _main(report: Report) -> Chart | None:
    """What a run is watched by: its loss or, trained by rewards, those."""
    reward = report.curves["reward"]
    if not len(reward):
        return _loss(report)
    lines = [*_raw_and_smooth("reward", reward),
             Line("in evaluation", report.curves["eval_reward"], "s2", "dots")]  # fmt: skip
    return _chart("Reward", "mean of all answers", lines)


def _loss(report: Report) -> Chart | None:
    loss, evals = report.curves["loss"], report.curves["eval_loss"]
    lines = [
        Line("each log line", loss, "s1", "faint"),
        Line("training loss", charts.smoothed(loss), "s1"),
        Line("evaluation loss", evals, "s2", "dots"),
    ]
    limit = report.success.final_loss
    return _chart(
        "Loss", "nats per token", lines, limit=(limit, f"goal {limit:g}") if limit else None
    )


def _charts(report: Report) -> list[Chart]:
    """The small ones; what the run did not tell is left out."""
    curves, machine, plan = report.curves, report.machine, report.plan
    card = plan.card_gib if plan else None
    used = machine.get("used_gib", curves["used_gib"])
    found = [
        _chart("Spread of a question's rewards", "",
               _raw_and_smooth("spread", curves["reward_std"]), zero=True),
        _chart("Length of answers", "tokens",
               _raw_and_smooth("length", curves["answer_tokens"]), zero=True),
        _chart("Learning rate", "", [Line("learning rate", curves["learning_rate"], "s1")],
               zero=True),
        _chart("Gradient norm", "", _raw_and_smooth("gradient norm", curves["grad_norm"]),
               zero=True),
        _chart("Throughput", "tokens a second", _raw_and_smooth("tokens/s", curves["tok_s"]),
               zero=True, band=_range(plan.tok_s if plan else None)),
        _chart("GPU memory", "GiB", [Line("in use on the card", used, "s2"),
               Line("torch's peak", curves["memory_gib"], "s1")], zero=True,
               limit=(card, f"card {card:g}") if card and report.machine else None,
               band=_range(plan.memory_gib if plan else None)),
        _chart("Memory of the processes", "GiB",
               [Line("resident", machine.get("resident_gib", curves["none"]), "s3")], zero=True),
        _chart("GPU temperature", "°C",
               [Line("hottest GPU", machine.get("temperature_c", curves["none"]), "s2")],
               limit=(report.hot_c, f"limit {report.hot_c:g}")),
        _chart("GPU power", "W", [Line("all GPUs", machine.get("power_w", curves["none"]), "s3")],
               zero=True),
    ]  # fmt: skip
    return [chart for chart in found if chart]


def _raw_and_smooth(name: str, curve: Curve) -> list[Line]:
    return [
        Line("each log line", curve, "s1", "faint"),
        Line(name, charts.smoothed(curve), "s1"),
    ]


def _chart(title: str, unit: str, lines: Sequence[Line], **more: Any) -> Chart | None:
    told = tuple(line for line in lines if len(line.curve))
    return Chart(title, unit, told, **more) if told else None


def _range(told: tuple[float, float, float] | None) -> tuple[float, float] | None:
    return (told[0], told[2]) if told else None


def _loss_figure(report: Report, steps: tuple[int, int], marks: Sequence[Mark]) -> _Figure | None:
    chart = _main(report)
    if chart is None:
        return None
    clock = _clock(report)
    wide, narrow = (
        _drawn(chart, steps, marks, size, clock if size == _WIDE else None)
        for size in (_WIDE, _NARROW)
    )
    return _Figure(chart, wide, narrow)


def _drawn(
    chart: Chart, steps: tuple[int, int], marks: Sequence[Mark], size: tuple[int, int],
    clock: Callable[[float], str] | None = None,
) -> Markup:  # fmt: skip
    if size == _SMALL:  # no room for what is seen in the large one
        marks = [m for m in marks if m.kind not in {"checkpoint", "best"}]
    # charts escapes all that it is given.
    return Markup(charts.draw(chart, steps, marks, size=size, clock=clock))  # noqa: S704


def _steps(report: Report) -> tuple[int, int]:
    ends = [int(c.step[-1]) for c in report.curves.curves.values() if len(c)]
    begins = [int(c.step[0]) for c in report.curves.curves.values() if len(c)]
    return min([0, *begins]), max([1, *ends])


def _clock(report: Report) -> Callable[[float], str]:
    """How long after its beginning a run came to a step, by the wall clock."""
    loss = report.curves["loss"]
    times = np.maximum.accumulate(np.nan_to_num(loss.time_s)) if len(loss) else loss.time_s
    began = report.sittings[0].began_s if report.sittings else 0.0

    def told(step: float) -> str:
        if not len(loss) or step < loss.step[0]:
            return ""
        return duration(max(float(np.interp(step, loss.step, times)) - began, 0.0))

    return told


def _marks(report: Report) -> list[Mark]:
    best = report.summary.best_checkpoint
    found = [
        Mark(s.begin, "session", f"#{s.number}", f"session {s.number} resumed from step {s.begin}")
        for s in report.sittings[1:]
    ]
    for incident in report.incidents:
        if incident.step is not None and incident.kind in _TROUBLE:
            kind = "oom" if incident.kind == "oom" else "trouble"
            text = f"step {incident.step}: {incident.text}"
            found.append(Mark(incident.step, kind, _TROUBLE[incident.kind], text))
    for checkpoint in report.saved:
        name = checkpoint.path.name
        kind = "best" if name == best else "checkpoint"
        found.append(Mark(checkpoint.step, kind, "", f"{name}{', the best' * (kind == 'best')}"))
    return found


def _made_of(report: Report) -> str:
    parts = (report.recipe, report.sample, report.profile, report.base_model)
    return " · ".join(part for part in parts if part)


def _good_kinds(report: Report) -> str:
    """What was looked at and is well: overfitting, resume (3)."""
    kinds = Counter(v.kind for v in report.verdicts if v.grade == "good")
    return ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in kinds.items())


# --- figures and tables -------------------------------------------------------------------


def _facts(report: Report) -> list[tuple[str, str, str]]:
    """The figures at the top: name, figure, remark."""
    s = report.summary
    best = next((c for c in report.saved if c.best), None)
    found = [
        *(_rewards(s) if s.reward is not None else _losses(s)),
        ("best checkpoint", best.path.name.removeprefix("checkpoint-") if best else "-",
         _evaluated(best) if best else ""),
        ("trained for", duration(s.hours * 3600), counted(s.sessions, "session")),
        ("tokens", _or_none(report.tokens, count), "padding included"),
        ("tokens a second", _or_none(report.tok_s, figure), "median"),
        ("MFU", _or_none(report.mfu_pct, lambda v: f"{v:.1f} %"), "of the peak"),
        ("cost", _or_none(s.usd, usd),
         f"at {usd(report.usd_hour)} an hour" if report.usd_hour else ""),
    ]  # fmt: skip
    return [fact for fact in found if fact[1] != "-"]


def _evaluated(c: Checkpoint) -> str:
    if c.eval_reward is not None:
        return f"eval reward {figure(c.eval_reward)}"
    return f"eval loss {figure(c.eval_loss)}" if c.eval_loss is not None else ""


def _losses(s: RunSummary) -> list[tuple[str, str, str]]:
    lowest = (
        f"lowest {figure(s.lowest_eval_loss)} at step {count(s.lowest_eval_step or 0)}"
        if s.lowest_eval_loss is not None
        else ""
    )
    trend = s.loss_trend.direction if s.loss_trend else ""
    return [
        ("training loss", _or_none(s.loss, figure), trend),
        ("evaluation loss", _or_none(s.eval_loss, figure), lowest),
    ]


def _rewards(s: RunSummary) -> list[tuple[str, str, str]]:
    trend = s.reward_trend.direction if s.reward_trend else ""
    return [
        ("reward", _or_none(s.reward, figure), trend),
        ("reward in evaluation", _or_none(s.eval_reward, figure), ""),
        ("tokens of an answer", _or_none(s.answer_tokens, figure), "the newest, on average"),
    ]


def _or_none(value: float | None, spell: Callable[[float], str]) -> str:
    return "-" if value is None else spell(value)


_MARKS = {"as planned": "pass", "above": "off", "below": "off", "": ""}


def _compared(c: Comparison) -> tuple[str, str, str, str, str, str]:
    def spelled(value: float) -> str:
        if c.unit == "B":
            return size(value)
        if c.unit == "h":
            return duration(value * 3600)
        return f"{figure(value)} {c.unit}".strip()

    planned = "-"
    if c.expected:
        low, mid, high = c.expected
        between = f" ({spelled(low)} to {spelled(high)})" if low < high else ""
        planned = f"{spelled(mid)}{between}"
    return c.name, planned, _or_none(c.actual, spelled), c.verdict, _MARKS[c.verdict], c.note


def _rows(things: Sequence[Any], row: Callable[[Any], tuple[str, ...]]) -> list[tuple[str, ...]]:
    shown = [row(thing) for thing in things[-_MOST_ROWS:]]
    if len(things) > _MOST_ROWS:
        blank = ("",) * (len(shown[0]) - 1)
        shown.insert(0, (f"{count(len(things) - _MOST_ROWS)} before", *blank))
    return shown


def _sitting(s: Sitting) -> tuple[str, ...]:
    steps = f"{count(s.begin)} → {count(s.end)}" if s.end is not None else "no step"
    return (
        f"#{s.number}", moment(s.began_s), _or_none(s.seconds, duration), steps,
        count(s.undone) if s.undone else "", s.outcome, s.reason,
    )  # fmt: skip


def _incidents(report: Report) -> list[tuple[str, ...]]:
    def row(incident: Any) -> tuple[str, ...]:
        lost = [counted(incident.steps_lost, "step")] if incident.steps_lost else []
        lost += [duration(incident.lost_s)] if incident.lost_s >= 0.05 else []
        if lost and report.usd_hour:
            lost.append(usd(incident.lost_s / 3600 * report.usd_hour))
        return (
            _INCIDENTS[incident.kind],
            _or_none(incident.time_s, moment),
            _or_none(incident.step, count),
            incident.text, incident.after, ", ".join(lost),
        )  # fmt: skip

    return _rows(report.incidents, row)


def _lost(report: Report) -> str:
    """What all of it cost together; empty where nothing was lost."""
    seconds = sum(incident.lost_s for incident in report.incidents)
    steps = sum(incident.steps_lost for incident in report.incidents)
    if seconds < 0.05 and not steps:
        return ""
    money = f", {usd(seconds / 3600 * report.usd_hour)}" if report.usd_hour else ""
    return f"{counted(steps, 'step')} trained twice or still to be, {duration(seconds)}{money}"


def _checkpoints(report: Report) -> list[tuple[str, ...]]:
    def row(c: Any) -> tuple[str, ...]:
        words = [word for word, is_so in (("best", c.best), ("pinned", c.pinned)) if is_so]
        return (
            count(c.step), _or_none(c.epoch, figure), _or_none(c.loss, figure),
            _or_none(c.eval_loss, figure), size(c.bytes), moment(c.modified),
            c.problem or (c.where if c.where != "run" else "sound"), ", ".join(words),
        )  # fmt: skip

    return _rows((*report.aside, *report.saved), row)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return str(value)


# --- Markdown --------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The same for a terminal, an issue or a wiki; curves are lines of blocks."""
    s = report.summary
    parts = [
        f"# {_plain(s.name)}: {s.state}",
        _plain(report.headline),
        f"{_plain(_made_of(report))} · written {moment(report.made_s)} UTC",
        _table("Stages", course.HEADS, [one.row for one in _stages(report)]),
        _table("Success criteria", ["criterion", "wanted", "actual", "verdict", "evidence"],
               [(c.name, c.wanted, c.actual, c.verdict, c.evidence) for c in report.criteria]),
        _table("Figures", ["", "", ""], _facts(report)),
        _table("What the figures mean", ["", "verdict", "evidence"],
               [(v.grade, v.text, "; ".join(v.evidence)) for v in report.verdicts]),
        _table("Curves", ["", "begins", "", "ends"], _sparks(report)),
        _table("Expected and actual", ["", "expected", "actual", "", "the plan rests on"],
               [(*row[:4], row[5]) for row in map(_compared, report.comparisons)]),
        _table("What went wrong", ["", "when (UTC)", "step", "what", "then", "cost"],
               _incidents(report)),
        f"Together: {_lost(report)}." if _lost(report) else "",
        _table("Sessions", ["", "began (UTC)", "lasted", "steps", "undone", "ended", "why"],
               _rows(report.sittings, _sitting)),
        _table("Checkpoints",
               ["step", "epoch", "loss", "eval loss", "size", "saved (UTC)", "state", ""],
               _checkpoints(report)),
        _table("Configuration", ["key", "value", "layer", "from"],
               [(x.key, _value(x.value), x.layer, x.where) for x in report.settings]),
        _table("Environment", ["", ""], report.environment),
        f"Next: `{s.next.replace('`', '')}`",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _sparks(report: Report) -> Iterable[tuple[str, ...]]:
    charts_ = [_main(report), *_charts(report)]
    for chart in filter(None, charts_):
        for line in chart.lines:
            if line.style != "faint":
                values = trends.points(line.curve, 40)
                begin, end = float(line.curve.value[0]), float(line.curve.value[-1])
                yield line.name, figure(begin), _spark(values), f"{figure(end)} {chart.unit}"


def _spark(values: Sequence[float]) -> str:
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join(_SPARKS[round(7 * (value - low) / span)] for value in values)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[_plain(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in (list(heads), ["-"] * len(heads), *cells)]
    return f"## {title}\n\n" + "\n".join(lines)


_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|"} | {"\n": " ", "\r": " "})


def _plain(text: str) -> str:
    """``text`` as Markdown that shows it as it is."""
    return text.translate(_SPECIAL)
