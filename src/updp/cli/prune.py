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
    from updp.cli.stage_command import open_run
    from updp.cli.tables import print_result, standard_console

    first = "sites" if fresh else ""
    with open_run(
        run, recipe, last="merge", fresh=first, pick=pick, storage=storage, teacher=teacher
    ) as opened:
        opened.until("merge")
    print_result(standard_console(), opened.directory)
