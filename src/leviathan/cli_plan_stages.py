"""Owns what ``plan`` shows of a training in stages: each of them, and what they add up to."""

from typing import TYPE_CHECKING, Any

import typer

from leviathan.cli_intervals import count, time_text

if TYPE_CHECKING:
    from leviathan.layers import Config
    from leviathan.plan import Plan


def show(config: "Config", asked: list[str], *, exact: bool, as_json: bool) -> None:
    """The stages side by side; exit code 3 where one of them does not fit.

    Raises:
        BadInput: something was ``asked`` that is answered for one stage only.
    """
    from leviathan import plan as planning
    from leviathan import render, schema, stages, survey, ui
    from leviathan.errors import BadInput

    if asked:
        raise BadInput(f"{asked[0]} is answered for one stage", "say which: --stage")
    legs, keys = stages.select(stages.legs(config), None, None), schema.load()
    for leg in legs:
        render.check_keys(leg.config, keys)
    made = []
    for leg in legs:
        found = survey.take(leg.config, exact=exact)
        made.append((leg.stage, found.plan()))
        found.keep()
    worst = _worst([one for _, one in made])
    if as_json:
        ui.document({
            "verdict": worst,
            "stages": [{"stage": name, **planning.as_document(one)} for name, one in made],
            "total": _total(made),
        })  # fmt: skip
    else:
        _screen(config, made, worst)
    if worst == "does_not_fit":
        raise typer.Exit(3)


def _screen(config: "Config", made: list[tuple[str, "Plan"]], worst: str) -> None:
    from leviathan import ui
    from leviathan.plan import Range

    mode = f", mode {config.mode}" if config.mode else ""
    ui.title(
        f"{config.recipe_name} on {config.profile_name}", worst, f"sample {config.sample}{mode}"
    )
    rows = []
    for name, one in made:
        card = f" of {one.card_gib:.3g}" if one.card_gib else ""
        rows.append([
            name, one.verdict, f"{one.memory.total_gib:,.1f}{card} GiB",
            f"{one.steps.steps:,} x {one.knobs.tokens_per_step:,}",
            count(one.steps.train_tokens),
            time_text(one.hours) if one.hours else "unknown", _cheapest(one),
        ])  # fmt: skip
    ui.table(["stage", "fits", "memory", "steps x tokens", "tokens", "time", "money"], rows)
    total = _total(made)
    hours, left_out = total["hours"], ", ".join(total["without"])
    if hours is None:
        ui.facts([("in all", "unknown: no stage has a speed; run leviathan bench --stage NAME")])
    else:
        money = "".join(f", {name} ${usd:,.0f}" for name, usd in total["usd"].items())
        rest = f"; and {left_out}, whose time is not known" if left_out else ""
        limits = _limits(config, hours["mid"], total["usd"])
        ui.facts([("in all", f"{time_text(Range(**hours))}{money}{rest}"), *limits])
    ui.facts([("more", "--stage NAME shows a stage with its evidence")])


def _limits(config: "Config", hours: float, usd: dict[str, float]) -> list[tuple[str, str]]:
    """The recipe's own limits over all stages, against the plan."""
    recipe, told = config.recipe, []
    if recipe.max_hours:
        told.append(("max_hours", _against(hours, recipe.max_hours, "{:,.1f} h")))
    if recipe.budget_usd and usd:
        told.append(("budget_usd", _against(min(usd.values()), recipe.budget_usd, "${:,.0f}")))
    return told


def _against(needed: float, limit: float, shape: str) -> str:
    if needed <= limit:
        return f"{shape.format(limit)} suffice"
    share = 100 * limit / needed
    return (
        f"{shape.format(limit)} end it, resumable, at about {share:.0f} % of {shape.format(needed)}"
    )


def _cheapest(one: "Plan") -> str:
    if not one.usd:
        return "no price"
    name, cost = min(one.usd.items(), key=lambda item: item[1].mid)
    return f"${cost.mid:,.0f} {name}"


def _worst(made: list["Plan"]) -> str:
    order = ["fits", "tight", "does_not_fit"]
    return max((one.verdict for one in made), key=order.index)


def _total(made: list[tuple[str, "Plan"]]) -> dict[str, Any]:
    """Hours and dollars of the stages, ``without`` those whose speed is not known."""
    known = [one for _, one in made if one.hours]
    without = [name for name, one in made if not one.hours]
    if not known:
        return {"hours": None, "usd": {}, "without": without}
    ends = ("low", "mid", "high")
    hours = {end: sum(getattr(one.hours, end) for one in known) for end in ends}
    names = set.intersection(*(set(one.usd) for one in known))
    usd = {name: sum(one.usd[name].mid for one in known) for name in sorted(names)}
    return {"hours": hours, "usd": usd, "without": without}
