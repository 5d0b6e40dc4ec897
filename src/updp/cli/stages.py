"""`updp prune` and the commands of its four stages: supernet, search, subnet, merge."""

from updp.cli.options import (
    FreshOption,
    PickOption,
    RunOptions,
    RunRecipeOptions,
    TeacherOptions,
)


def prune(
    options: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    pick: PickOption = None,
    fresh: FreshOption = False,
) -> None:
    """Run all four stages: a trained model in, a faster plain model out.

    A new run needs --model, --data and a budget. The same command continues a run that was killed.
    """
    from updp.cli.run_context import open_run
    from updp.cli.tables import print_result, standard_console

    first = "sites" if fresh else ""
    with open_run(
        options, recipe, last="merge", restart_from=first, pick=pick, teacher=teacher, searches=True
    ) as opened:
        opened.until("merge")
    print_result(standard_console(), opened.directory)


def supernet(
    options: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    fresh: FreshOption = False,
) -> None:
    """Stage 1: fit each candidate of each site, or train them all together, as the recipe says.

    The sites are found and timed first.
    """
    from updp.cli.run_context import open_run, say_done

    first = "sites" if fresh else ""
    with open_run(options, recipe, last="supernet", restart_from=first, teacher=teacher) as opened:
        opened.only("supernet")
    say_done(opened, "supernet")


def search(
    options: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    pick: PickOption = None,
    fresh: FreshOption = False,
) -> None:
    """Stage 2: find the plan that keeps most accuracy at the budget."""
    from updp.cli.run_context import open_run, say_done
    from updp.cli.tables import print_front, standard_console

    first = "search" if fresh else ""
    with open_run(
        options,
        recipe,
        last="search",
        restart_from=first,
        pick=pick,
        teacher=teacher,
        searches=True,
    ) as opened:
        opened.only("search")
    if opened.inputs.plan is None:
        print_front(standard_console(), opened.directory.search_result())
    say_done(opened, "search")


def subnet(
    options: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    pick: PickOption = None,
    fresh: FreshOption = False,
) -> None:
    """Stage 3: fit the plan one site after another, repair what stays, and train on."""
    from updp.cli.run_context import open_run, say_done

    first = "subnet" if fresh else ""
    with open_run(
        options, recipe, last="subnet", restart_from=first, pick=pick, teacher=teacher
    ) as opened:
        opened.only("subnet")
    say_done(opened, "subnet")


def merge(
    options: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    pick: PickOption = None,
    fresh: FreshOption = False,
) -> None:
    """Stage 4: merge, prove it exact, write the plain model and the final table."""
    from updp.cli.run_context import open_run
    from updp.cli.tables import print_result, standard_console

    first = "merge" if fresh else ""
    with open_run(
        options, recipe, last="merge", restart_from=first, pick=pick, teacher=teacher
    ) as opened:
        opened.only("merge")
    print_result(standard_console(), opened.directory)
