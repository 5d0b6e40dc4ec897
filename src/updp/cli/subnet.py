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
    from updp.cli.stage_command import open_run, say_done

    first = "subnet" if fresh else ""
    with open_run(run, recipe, last="subnet", fresh=first, pick=pick, teacher=teacher) as opened:
        opened.only("subnet")
    say_done(opened, "subnet")
