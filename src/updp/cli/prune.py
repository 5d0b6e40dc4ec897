"""`updp prune`: all four stages."""

from updp.cli.options import (
    FreshOption,
    PickOption,
    RunOptions,
    RunRecipeOptions,
    StorageOption,
    TeacherOptions,
)


def prune(
    run: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    pick: PickOption = None,
    storage: StorageOption = None,
    fresh: FreshOption = False,
) -> None:
    """Run all four stages: a trained model in, a faster plain model out.

    The same command continues a run that was killed.
    """
    from updp.cli.progress import Bars
    from updp.cli.stage_command import open_run
    from updp.cli.tables import print_result, standard_console

    console = standard_console()
    with Bars(console) as bars:
        opened = open_run(
            run,
            recipe,
            bars,
            last="merge",
            fresh="sites" if fresh else "",
            pick=pick,
            storage=storage,
            teacher=teacher,
        )
        opened.until("merge")
    print_result(console, opened.directory)
