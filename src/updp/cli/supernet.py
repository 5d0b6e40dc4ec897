"""`updp supernet`: stage 1."""

from updp.cli.options import FreshOption, RunOptions, RunRecipeOptions


def supernet(run: RunOptions, recipe: RunRecipeOptions, fresh: FreshOption = False) -> None:
    """Stage 1: fit each candidate of each site, or train them all together, as the recipe says.

    The sites are found and timed first.
    """
    from updp.cli.progress import Bars
    from updp.cli.stage_command import open_run, say_done
    from updp.cli.tables import standard_console

    console = standard_console()
    with Bars(console) as bars:
        opened = open_run(run, recipe, bars, last="supernet", fresh="sites" if fresh else "")
        opened.only("supernet")
    say_done(console, opened, "supernet")
