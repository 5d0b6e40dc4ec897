"""`updp supernet`: stage 1."""

from updp.cli.options import FreshOption, RunOptions, RunRecipeOptions


def supernet(run: RunOptions, recipe: RunRecipeOptions, fresh: FreshOption = False) -> None:
    """Stage 1: fit each candidate of each site, or train them all together, as the recipe says.

    The sites are found and timed first.
    """
    from updp.cli.stage_command import open_run, say_done

    with open_run(run, recipe, last="supernet", fresh="sites" if fresh else "") as opened:
        opened.only("supernet")
    say_done(opened, "supernet")
