"""`updp subnet`: stage 3."""

from updp.cli.options import (
    FreshOption,
    PickOption,
    RunOptions,
    RunRecipeOptions,
    TeacherOptions,
)


def subnet(
    run: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    pick: PickOption = None,
    fresh: FreshOption = False,
) -> None:
    """Stage 3: fit the plan one site after another, repair what stays, and train on."""
    from updp.cli.progress import Bars
    from updp.cli.stage_command import open_run, say_done
    from updp.cli.tables import standard_console

    console = standard_console()
    with Bars(console) as bars:
        again = "subnet" if fresh else ""
        opened = open_run(run, recipe, bars, last="subnet", fresh=again, pick=pick, teacher=teacher)
        opened.only("subnet")
    say_done(console, opened, "subnet")
