"""Owns the ``train`` command."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from leviathan.cli_config import (
    JsonOption,
    ModeOption,
    ProfileOption,
    RecipeOption,
    SampleOption,
    SetOption,
    StageOption,
    TrackOption,
    announce_schema,
    chosen,
)
from leviathan.cli_ending import finish

MaxHoursOption = Annotated[
    float | None, typer.Option(min=0.001, help="Stop, resumable, before this much time.")
]
BudgetOption = Annotated[
    float | None, typer.Option(min=0.01, help="Stop, resumable, before this cost.")
]
PriceOption = Annotated[
    float | None,
    typer.Option(min=0, help="Price of an hour, of all hosts; default: the profile's."),
]
ShrinkOption = Annotated[
    bool,
    typer.Option(
        "--shrink", help="When memory does not suffice, begin a run with less (out_of_memory)."
    ),
]
SmokeOption = Annotated[
    bool | None,
    typer.Option(
        "--smoke/--no-smoke",
        help="Begin a new run with its longest rows, evaluation and save; default: profile's.",
    ),
]

UntilOption = Annotated[str | None, typer.Option("--until", help="All stages up to this one.")]
NodesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Hosts that train together; the same command runs on each."),
]
RdzvOption = Annotated[
    str | None, typer.Option("--rdzv", help="Where they meet, HOST:PORT of the first of them.")
]
NodeRankOption = Annotated[
    int | None,
    typer.Option(help="This host's number, 0 for the head; default: whose address it is."),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("train", short_help="Train, or resume where it stopped.")(train)


def train(
    context: typer.Context,
    profile: ProfileOption = "a4000",
    recipe: RecipeOption = "leviathan",
    sample: SampleOption = None,
    mode: ModeOption = None,
    stage: StageOption = None,
    until: UntilOption = None,
    name: Annotated[
        str | None, typer.Option(help="Run name; default <recipe>_<sample>_<profile>.")
    ] = None,
    sets: SetOption = None,
    resume: Annotated[
        str, typer.Option(help="auto, never, best, latest or checkpoint-N.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would happen and the exact command.")
    ] = False,
    max_hours: MaxHoursOption = None,
    budget_usd: BudgetOption = None,
    usd_hour: PriceOption = None,
    shrink: ShrinkOption = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Train in the background, apart from this terminal.")
    ] = False,
    smoke: SmokeOption = None,
    track: TrackOption = None,
    nodes: NodesOption = None,
    rdzv: RdzvOption = None,
    node_rank: NodeRankOption = None,
    force: Annotated[bool, typer.Option("--force", help="Go on although a check fails.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train, or resume: the same command again goes on from the newest sound checkpoint."""
    from leviathan import layers, rendezvous, stages, trackers

    tracked = trackers.parse(track)
    sets = [*(sets or []), *([] if nodes is None else [f"hardware.nodes={nodes}"])]
    merged = layers.build(recipe, profile, sample, chosen(sets, mode))
    meeting = rendezvous.meeting(merged.profile.hardware.nodes, rdzv, node_rank)
    budget = _budget(merged, max_hours, budget_usd, usd_hour)
    announce_schema()
    repeat = _repeated(max_hours, budget_usd, usd_hour, shrink=shrink)
    repeat += _switch(smoke) + [word for one in track or () for word in ("--track", one)]
    repeat += _meeting_again(rdzv, node_rank)
    wish = _Wish(
        merged, name, resume, tracked, meeting, budget, repeat, arguments(context), smoke,
        shrink=shrink, dry_run=dry_run, detach=detach, force=force, as_json=as_json,
    )  # fmt: skip
    all_legs = stages.legs(merged, name)
    # A stage among the overrides: a bundle for another machine is of one stage.
    stage = stage or (merged.stage if any(s.startswith("stage=") for s in sets) else None)
    for option, asked in (("--stage", stage), ("--until", until)):
        repeat += [option, asked] if asked else []
    _walk(wish, all_legs, stages.select(all_legs, stage, until))


def _budget(
    merged: Any, max_hours: float | None, budget_usd: float | None, usd_hour: float | None
) -> Any:
    """The limits asked for, else the recipe's.

    What a recipe may cost is limited even where nobody said what the machine does: by the
    dearest price that its profile knows.
    """
    from leviathan import plan, ui
    from leviathan.budget import Budget

    prices = plan.prices(merged.profile)
    price = prices.get("yours") if usd_hour is None else usd_hour
    usd, hours = merged.recipe.budget_usd, merged.recipe.max_hours
    if budget_usd is None and usd and price is None and prices:
        provider = max(prices, key=prices.__getitem__)
        price = prices[provider]
        ui.notice(f"budget: ${usd:g} at ${price:g} an hour ({provider}); yours? --usd-hour")
    return Budget(hours if max_hours is None else max_hours,
                  usd if budget_usd is None else budget_usd, price)  # fmt: skip


@dataclass(frozen=True)
class _Wish:
    """What was asked for, for one run."""

    config: Any
    name: str | None
    resume: str
    tracked: tuple[str, ...] | None
    meeting: Any
    budget: Any
    repeat: list[str]
    """Options that the command to go on with has to repeat."""
    command: list[str]
    """The command line, for the background."""
    smoke: bool | None
    shrink: bool
    dry_run: bool
    detach: bool
    force: bool
    as_json: bool
    follows: str = ""
    """The stage that is next; "" for the last, and for a run that is the whole."""

    def decide(self) -> Any:
        return _decide(self.config, self.name, self.resume, self.shrink, self.tracked, self.meeting)


def _walk(wish: _Wish, all_legs: Any, legs: Any) -> None:
    """Train stage after stage; one that stops ends the command."""
    from leviathan import handover, stages, ui
    from leviathan.errors import BadInput

    if wish.resume != "auto" and len(legs) > 1:
        raise BadInput(f"--resume {wish.resume} is about one stage", "say which: --stage")
    wishes = [
        replace(
            wish, config=leg.config, follows=legs[number].stage if number < len(legs) else "",
        )
        for number, leg in enumerate(legs, 1)
    ]  # fmt: skip
    if len(legs) > 1:
        stages.check(legs)
        if wish.dry_run and wish.as_json:
            _show_plans(wishes)
            return
    head = wish.meeting is None or wish.meeting.is_head
    for number, (leg, one) in enumerate(zip(legs, wishes, strict=True), 1):
        if len(all_legs) > 1 and not wish.as_json:
            ui.heading(f"stage {number} of {len(legs)}: {leg.stage}")
        if not wish.dry_run:
            _prepare(handover.prepare if head else handover.wait, leg)
        # What the stages before took is known only now.
        if not _train(replace(one, budget=stages.budget_for(leg, all_legs, wish.budget))):
            return


def _prepare(prepare: Any, leg: Any) -> None:
    """See that the base model is there; a Ctrl+C meanwhile leaves all to be gone on with."""
    from leviathan import ui

    try:
        prepare(leg, ui.notice)
    except KeyboardInterrupt:
        what = f"stage {leg.stage}" if leg.stage else leg.paths.directory.name
        ui.notice(f"stopped before {what} began: its base model is not made yet; the same command "
                  "goes on")  # fmt: skip
        raise typer.Exit(4) from None


def _show_plans(wishes: list[_Wish]) -> None:
    from leviathan import train as training
    from leviathan import ui

    ui.document({"stages": [training.plan_of_action(wish.decide()) for wish in wishes]})


def _train(wish: _Wish) -> bool:
    """One run, begun or gone on with; False where that is left to the background."""
    from leviathan import train as training
    from leviathan import ui

    decision = wish.decide()
    if wish.dry_run or decision.action != "nothing":
        show_checks(decision, force=wish.force or wish.dry_run, detach=wish.detach)
    if wish.dry_run or decision.action == "nothing":
        _show_instead(decision, wish)
        return True
    if wish.detach:
        _detach(decision, wish.command, as_json=wish.as_json)
        return False
    if wish.meeting and not wish.meeting.is_head:
        _finish(wish, _join(decision, wish.decide, wish.meeting))
        return True
    if training.wait_for_orphan(decision, ui.notice):
        decision = wish.decide()
    if decision.action == "start" and _smoke_is_wanted(wish.config, wish.smoke):
        decision = _smoked(decision, wish.shrink, wish.repeat, as_json=wish.as_json)
    _finish(wish, _carry_out(decision, wish.budget, wish.repeat, shrink=wish.shrink))
    return True


def _finish(wish: _Wish, ending: Any) -> None:
    finish(ending, wish.budget.usd_hour, wish.repeat, as_json=wish.as_json, follows=wish.follows)


def _carry_out(decision: Any, budget: Any, repeat: list[str], *, shrink: bool) -> Any:
    from leviathan import news, ui, ui_live

    with ui_live.TrainView(decision.paths.directory.name) as view:
        return news.run(
            decision, _announcing(view), ui.corpus_progress(), budget=budget, shrink=shrink,
            repeat=repeat,
        )  # fmt: skip


def _join(decision: Any, decide: Any, meeting: Any) -> Any:
    """Train along with the head, when it has made what it trains on."""
    import time

    from leviathan import joining, scratch, ui, ui_live

    if scratch.planned(decision.config):
        ui.notice(f"waiting until the head has made {decision.config.tree['base_model']}")
    while scratch.planned(decision.config):
        time.sleep(1)

    name = decision.paths.directory.name
    with ui_live.TrainView(name, foot="Ctrl+C has all hosts save and stop") as view:
        return joining.run(decision, decide, meeting, _announcing(view), ui.corpus_progress())


def _meeting_again(rdzv: str | None, node_rank: int | None) -> list[str]:
    ranked = [] if node_rank is None else ["--node-rank", str(node_rank)]
    return ([] if rdzv is None else ["--rdzv", rdzv]) + ranked


def _switch(smoke: bool | None) -> list[str]:
    return [] if smoke is None else ["--smoke" if smoke else "--no-smoke"]


def _smoke_is_wanted(config: Any, asked: bool | None) -> bool:
    """As asked; else as the profile has it, for trainings that can be tested."""
    from leviathan import probe, ui

    several = config.profile.hardware.nodes > 1
    if asked is not None and not several:
        return asked
    why = probe.unmeasurable(config.tree) if config.profile.smoke_test else ""
    if several and (asked or (asked is None and config.profile.smoke_test)):
        why = "a step of several hosts is not tried by one"
    if why:
        ui.notice(f"no smoke test: {why}")
    return bool(config.profile.smoke_test and not why and not several)


def _smoked(decision: Any, shrink: bool, repeat: list[str], *, as_json: bool) -> Any:
    """The decision on the rung of memory that the smoke test passed; it may end the command."""
    from leviathan import smoke, ui, ui_live

    name = decision.paths.directory.name
    ui.notice(f"smoke test: two steps of the longest rows, an evaluation and a save of {name}")
    with ui_live.TrainView(f"smoke test of {name}", foot="Ctrl+C ends it") as view:
        tested = smoke.tested(decision, view, ui.corpus_progress(), shrink=shrink)
    if tested.stopped:
        finish(tested.stopped, None, repeat, as_json=as_json)
    for rung in smoke.rungs(tested):
        ui.warn(f"smoke test: memory was short; the run begins with {rung}")
    if tested.calibration:
        ui.notice(tested.calibration.text)
    return tested.decision


def _repeated(
    max_hours: float | None, budget_usd: float | None, usd_hour: float | None, *, shrink: bool
) -> list[str]:
    """The options that the command to go on with has to repeat."""
    values = {"--max-hours": max_hours, "--budget-usd": budget_usd, "--usd-hour": usd_hour}
    words = [word for name, v in values.items() if v is not None for word in (name, f"{v:.15g}")]
    return words + ["--shrink"] * shrink


def _decide(
    merged: Any, name: str | None, resume: str, shrink: bool, track: tuple[str, ...] | None,
    meeting: Any,
) -> Any:  # fmt: skip
    """What to do; with the smaller run begun by --shrink, where that is wanted again."""
    from leviathan import train as training
    from leviathan import ui

    decision = training.decide(merged, name=name, resume=resume, track=track, meeting=meeting)
    if not (decision.record and decision.record.successor):
        return decision
    name = decision.record.successor["name"]
    if shrink:
        return training.follow(decision, decision.record)
    ui.notice(f"the smaller run {name} was begun instead of this one; --shrink goes on with it")
    return decision


def arguments(context: typer.Context) -> list[str]:
    """The command line that was given, for the background: its options but how to tell of it.

    Made from the options as they are declared, so that a new one needs nothing here.
    """
    told = ["--verbose"] if context.parent and context.parent.params.get("verbose") else []
    told.append(str(context.command.name))
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if option.name in {"detach", "as_json"} or value is None or value == option.default:
            continue
        if isinstance(value, bool):
            told.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            told += [option.opts[0], str(one)]
    return told


def _detach(decision: Any, command: list[str], *, as_json: bool) -> None:
    from leviathan import background, status, ui

    told = tuple(f"warning: {check.name}: " for check in decision.checks)

    def relay(line: str) -> None:
        if not line.startswith(told):  # the background checks what was checked here
            ui.notice(line)

    started = background.start(command, decision.paths.logs, relay)
    run = decision.paths.directory
    if as_json:
        ui.document({"run": str(run), "pid": started.pid, "log": str(started.log)})
        return
    ui.say(f"{run.name} is running as process {started.pid}; closing this terminal is fine")
    for what in ("status", "watch", "logs -f", "stop"):
        verb, *options = what.split()
        ui.say(" ".join(["  leviathan", verb, status.called(decision.paths), *options]))
    ui.notice(f"what it tells: {started.log}")


def _announcing(listener: Any) -> Any:
    """``listener``, and the word to whoever put us into the background that we train."""
    from leviathan import background

    def tell(kind: str, facts: dict[str, Any]) -> None:
        listener(kind, facts)
        if kind in {"start", "resume"}:  # lock held, session in run.json
            background.announce(kind=kind, **facts)

    return tell


def show_checks(decision: Any, *, force: bool, detach: bool = False) -> None:
    from leviathan import ui
    from leviathan.errors import Refused

    for check in decision.checks:
        # In the background no terminal matters.
        if check.state == "warn" and not (detach and check.name == "terminal"):
            ui.warn(f"{check.name}: {check.evidence}; {check.fix}")
    failed = decision.failed_checks
    for check in failed if force else []:
        ui.warn(f"{check.name}: {check.evidence} (going on: --force)")
    if failed and not force:
        raise Refused("\n".join(f"{c.name}: {c.evidence}; {c.fix}" for c in failed))


def _show_instead(decision: Any, wish: _Wish) -> None:
    """What is shown where nothing is launched."""
    from leviathan import ui

    if wish.as_json and wish.follows and not wish.dry_run:
        return  # one document: the last stage's
    if wish.dry_run or wish.as_json:
        _show_plan(decision, wish.as_json)
        return
    ui.say(f"{decision.paths.directory} is finished; nothing to do")
    if not wish.follows:
        ui.notice(f"next: leviathan merge {decision.paths.directory.name}")


def _show_plan(decision: Any, as_json: bool) -> None:
    import shlex

    from leviathan import train as training
    from leviathan import ui

    plan = training.plan_of_action(decision)
    if as_json:
        ui.document(plan)
        return
    for key, value in plan.items():
        joined = "; ".join(value) if isinstance(value, list) else value
        shown = shlex.join(value) if key == "command" else joined or "none"
        ui.say(f"{key:<12} {shown}")
