"""Owns the ``plan`` command."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leviathan.cli_config import (
    JsonOption,
    ModeOption,
    ProfileOption,
    RecipeOption,
    SampleOption,
    SetOption,
    StageOption,
    announce_schema,
    chosen,
)
from leviathan.cli_intervals import count, time_text, usd_text

if TYPE_CHECKING:
    from leviathan.advice import Advice
    from leviathan.comparison import Choice, Option
    from leviathan.offers import Limit, Share
    from leviathan.plan import Plan


def register(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("plan", short_help="What it takes: memory, steps, time, money.")(plan)


def plan(
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    sample: SampleOption = None,
    mode: ModeOption = None,
    stage: StageOption = None,
    sets: SetOption = None,
    fit: Annotated[bool, typer.Option("--fit", help="The largest knobs that fit.")] = False,
    fit_hours: Annotated[
        float | None, typer.Option("--fit-hours", help="What can be trained in so many hours.")
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option("--budget-usd", help="What can be trained for that money.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Machines side by side: a4000,a100,h100x8.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Tokenise every row of the sample, not some.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What a training takes in memory, steps, time, disk and money, and how that is known.

    Starts nothing and needs no GPU. Exit code 3 where it does not fit the card (--compare: where
    no machine can be recommended).
    """
    from leviathan import advice, cli_plan_stages, layers, offers, render, schema, survey, ui
    from leviathan import config as profiles
    from leviathan import plan as planning

    limit = offers.Limit(fit_hours, budget_usd)
    names = _names(compare, fit=fit)
    sets = chosen(sets, mode, stage)
    config = layers.build(recipe, names[0] if names else profile, sample, sets)
    announce_schema()
    if config.stages and not any(text.startswith("stage=") for text in sets):
        asked = {"--fit": fit, "--fit-hours": fit_hours, "--budget-usd": budget_usd,
                 "--compare": compare}  # fmt: skip
        cli_plan_stages.show(config, [k for k, v in asked.items() if v], exact=exact,
                             as_json=as_json)  # fmt: skip
        return
    render.check_keys(config, schema.load())
    machines = [offers.on(config, name) for name in names]
    if limit and not names:
        limit.hours_on(config.profile, config.profile_name)
    found = survey.take(config, exact=exact, progress=ui.corpus_progress() if exact else None)
    if names:
        if not _compare([found.plan(machine) for machine in machines], limit, as_json=as_json):
            raise typer.Exit(3)
        return
    made = found.plan()
    found.keep()
    told = advice.give(found, made, limit, profiles.names("profiles"), fitted=fit)
    if as_json:
        ui.document(planning.as_document(made) | advice.as_document(told))
    else:
        _show(made, told)
    if made.verdict == "does_not_fit":
        raise typer.Exit(3)


def _names(compare: str | None, *, fit: bool) -> list[str]:
    from leviathan.errors import BadInput

    names = list(dict.fromkeys(n.strip() for n in (compare or "").split(",") if n.strip()))
    if compare is not None and not names:
        raise BadInput(f"--compare {compare!r} names no profiles", "example: --compare a4000,a100")
    if names and fit:
        raise BadInput("--fit is for one machine", "leave out --compare, or --fit")
    return names


def _show(made: "Plan", told: "Advice") -> None:
    """The plan and the answers beside it, on the screen."""
    from leviathan import ui

    ui.title(f"{made.config.recipe_name} on {made.config.profile_name}", made.verdict,
             f"sample {made.config.sample}, {made.config.tree['base_model']}")  # fmt: skip
    ui.facts([*_plan_rows(made), *_answers(made, told)])
    lines = (f"{what}: {line}" for what, line in made.evidence.items())
    ui.facts(("evidence" if n == 0 else "", line) for n, line in enumerate(lines))


def _answers(made: "Plan", told: "Advice") -> Iterator[tuple[str, str]]:
    if told.misfit:
        yield "makes it fit", _change_text(told.change)
    if told.reach:
        yield "reach", _reach_text(told.reach)
        if told.best:
            yield "best", f"{told.best.text}  ({told.best.costs})"
    if made.expected_hours and made.hours:
        yield "expected", _expected_text(made, made.expected_hours)
    if told.hours:
        yield from _share_rows(told.shares, told.hours)
    if told.elsewhere is not None:
        for other in told.elsewhere:
            yield "or all of it", f"--profile {other.config.profile_name}: {_cost_text(other)}"
        if not told.elsewhere:
            yield "or all of it", "on none of the other profiles within that"


def _plan_rows(made: "Plan") -> Iterator[tuple[str, str]]:
    memory, knobs, steps = made.memory, made.knobs, made.steps
    card = f" of {made.card_gib:.4g}" if made.card_gib else ""
    yield (
        "memory",
        f"{memory.total_gib:,.1f} GiB ({memory.low_gib:,.1f} to {memory.high_gib:,.1f}){card}",
    )
    parts = [f"{name} {gib:,.2f}" for name, gib in memory.components_gib.items() if gib >= 0.005]
    yield "", ", ".join(parts)
    cards = f" x {knobs.processes} processes" if knobs.processes > 1 else ""
    yield (
        "batch",
        (
            f"{knobs.micro_batch_size} x {knobs.gradient_accumulation_steps} accumulated{cards} = "
            f"{knobs.rows_per_step:,} rows of {knobs.sequence_len} = "
            f"{knobs.tokens_per_step:,} tokens"
        ),
    )
    about = "" if steps.exact else "about "
    yield (
        "data",
        (
            f"{about}{steps.train_rows:,} rows, {steps.eval_rows:,} held out, "
            f"{steps.dropped_rows:,} dropped"
        ),
    )
    passes = f"{steps.steps:,} steps" if knobs.max_steps else f"{knobs.epochs:g} epochs"
    yield (
        "tokens",
        (
            f"{count(steps.train_tokens)} in {passes}, "
            f"{100 * steps.packing_efficiency:.0f} % of what is computed"
        ),
    )
    about = "" if knobs.max_steps else about
    yield "steps", f"{about}{steps.steps:,}, {steps.steps_per_epoch:,} an epoch"
    if made.hours is None or made.speed is None:
        answers = "answers" in made.evidence
        yield "time", "not planned: answers are written" if answers else (
            "unknown: run leviathan bench, which measures this machine"
        )  # fmt: skip
    else:
        yield "time", f"{time_text(made.hours)} at {_speed_text(made)}"
        yield from _money_rows(made)
    yield "disk", _disk_text(made)


def _speed_text(made: "Plan") -> str:
    pace = made.speed
    assert pace is not None  # noqa: S101 - asked for only where there is one
    text = f"{pace.mid_tok_s:,.0f} tok/s ({pace.low_tok_s:,.0f} to {pace.high_tok_s:,.0f})"
    return f"{text}; limit {made.ceiling_tok_s:,.0f}" if made.ceiling_tok_s else text


def _money_rows(made: "Plan") -> Iterator[tuple[str, str]]:
    if made.usd:
        as_of = f" (prices of {made.profile.prices.as_of})" if made.profile.prices else ""
        costs = sorted(made.usd.items(), key=lambda item: item[1].mid)
        yield "money", ", ".join(f"{name} {usd_text(cost)}" for name, cost in costs) + as_of
    if made.energy_usd and made.kwh:
        digits = 0 if made.kwh.mid >= 10 else 2
        yield "energy", f"{made.kwh.mid:,.{digits}f} kWh, {usd_text(made.energy_usd)}"


def _disk_text(made: "Plan") -> str:
    from leviathan import ui

    one, policy = made.disk.checkpoint, made.profile.checkpoints
    if one is None:
        return "unknown"
    text = f"{ui.size(one)} a checkpoint, {policy.keep + 1} kept"
    if policy.whole is not None and policy.whole <= policy.keep and made.disk.slim:
        text += f", {policy.whole} of them whole, the others slimmed to {ui.size(made.disk.slim)}"
        text += f": {ui.size(made.disk.kept(policy) or 0)}"
    return f"{text}; merged model {ui.size(made.disk.merged)}" if made.disk.merged else text


def _change_text(change: Any) -> str:
    if change is None:
        return "no change of settings does: a smaller base model or a larger card"
    note = "" if change.same_model else "; another training"
    return f"{change.text}  ({change.costs}{note})"


def _reach_text(reach: Any) -> str:
    rank = f", lora_r {reach.lora_r}" if reach.lora_r else ""
    return (
        f"each alone: micro_batch_size {reach.micro_batch_size or 'none'}, "
        f"sequence_len {reach.sequence_len or 'none'}{rank}"
    )


def _expected_text(made: "Plan", expected: float) -> str:
    hours = made.hours
    assert hours is not None  # noqa: S101 - asked for only where there is one
    if hours.low <= expected:
        return f"the recipe's {expected:g} h can be"
    needed = made.needed_tok_s(expected)
    text = f"the recipe's {expected:g} h need {needed:,.0f} tok/s"
    if made.ceiling_tok_s and needed > made.ceiling_tok_s:
        return f"{text}: {needed / made.ceiling_tok_s:.1f} times the card's limit"
    return f"{text}: faster than known software"


def _share_rows(shares: Sequence["Share"], hours: float) -> Iterator[tuple[str, str]]:
    if not shares:
        yield f"in {hours:.3g} h", "nothing worth training"
    for share in shares:
        yield (
            f"in {hours:.3g} h",
            (
                f"--sample {share.sample} --set epochs={share.epochs:g}: "
                f"{share.plan.steps.train_rows:,} rows, {_cost_text(share.plan)}"
            ),
        )


def _cost_text(made: "Plan") -> str:
    from leviathan import comparison

    option = comparison.option(made)
    money = f", ${option.usd:,.0f} ({option.paid_to})" if option.usd is not None else ""
    return f"{time_text(made.hours)}{money}" if made.hours else "time unknown"


# --- side by side -------------------------------------------------------------------


def _compare(plans: list["Plan"], limit: "Limit", *, as_json: bool) -> bool:
    """Plans side by side, and whether one of them can be taken."""
    from leviathan import comparison, ui

    options = [comparison.option(made) for made in plans]
    choice = comparison.choose(options, limit.hours, limit.usd)
    if as_json:
        ui.document(_comparison_document(options, choice))
        return choice.name is not None
    rows = [_option_row(option) for option in options]
    ui.table(["machine", "fits", "memory", "time", "money", "risks"], rows)
    ui.say(f"take {choice.name}: {choice.reason}" if choice.name else choice.reason)
    return choice.name is not None


def _option_row(option: "Option") -> list[str]:
    made = option.plan
    card = f"/{made.card_gib:.3g}" if made.card_gib else ""
    money = f"${option.usd:,.0f} {option.paid_to}" if option.usd is not None else "no price"
    return [
        option.name, made.verdict, f"{made.memory.total_gib:.1f}{card} GiB",
        time_text(made.hours) if made.hours else "unknown", money, "; ".join(option.risks) or "-",
    ]  # fmt: skip


def _comparison_document(options: list["Option"], choice: "Choice") -> dict[str, Any]:
    from leviathan import plan

    return {
        "options": [
            {**plan.as_document(o.plan), "cheapest_usd": o.usd, "paid_to": o.paid_to,
             "owned": o.owned, "risks": list(o.risks)}
            for o in options
        ],
        "choice": choice.name,
        "reason": choice.reason,
    }  # fmt: skip
