"""`updp merge`: stage 4."""

from updp.cli.options import FreshOption, PickOption, RunOptions, RunRecipeOptions


def merge(
    run: RunOptions,
    recipe: RunRecipeOptions,
    pick: PickOption = None,
    fresh: FreshOption = False,
) -> None:
    """Stage 4: merge, prove it exact, write the plain model and the final table."""
    from updp.cli.progress import Bars
    from updp.cli.stage_command import open_run
    from updp.cli.tables import print_result, standard_console

    console = standard_console()
    with Bars(console) as bars:
        again = "merge" if fresh else ""
        opened = open_run(run, recipe, bars, last="merge", fresh=again, pick=pick)
        opened.only("merge")
    print_result(console, opened.directory)
