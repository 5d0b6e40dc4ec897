"""`updp search`: stage 2."""

from typing import Annotated

import typer

from updp.cli.options import (
    FreshOption,
    PickOption,
    RunOptions,
    RunRecipeOptions,
    StorageOption,
)


def search(
    run: RunOptions,
    recipe: RunRecipeOptions,
    pick: PickOption = None,
    storage: StorageOption = None,
    worker: Annotated[
        bool,
        typer.Option("--worker", help="Score plans beside the process that began the search."),
    ] = False,
    fresh: FreshOption = False,
) -> None:
    """Stage 2: find the plan that keeps most accuracy at the budget."""
    from updp.cli.stage_command import open_run, say_done
    from updp.cli.tables import print_front, standard_console

    first = "search" if fresh else ""
    with open_run(run, recipe, last="search", fresh=first, pick=pick, storage=storage) as opened:
        if worker:
            opened.join_search()
        else:
            opened.only("search")
    console = standard_console()
    if worker:
        console.print("search: there are enough plans; `updp search` takes the best of them")
        return
    if opened.inputs.plan is None:
        print_front(console, opened.directory.search_result())
    say_done(opened, "search")
