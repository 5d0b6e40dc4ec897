"""`updp merge`: stage 4."""

from updp.cli.options import FreshOption, PickOption, RunOptions, RunRecipeOptions


def merge(
    run: RunOptions,
    recipe: RunRecipeOptions,
    pick: PickOption = None,
    fresh: FreshOption = False,
) -> None:
    """Stage 4: merge, prove it exact, write the plain model and the final table."""
    from updp.cli.stage_command import open_run
    from updp.cli.tables import print_result, standard_console

    with open_run(run, recipe, last="merge", fresh="merge" if fresh else "", pick=pick) as opened:
        opened.only("merge")
    print_result(standard_console(), opened.directory)
