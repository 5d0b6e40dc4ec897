"""`updp estimate`: minutes and memory of every stage of `updp prune`, before it starts."""

import json

from updp.cli.options import FreshOption, JsonOption, RunOptions, RunRecipeOptions, TeacherOptions


def estimate(
    run: RunOptions,
    recipe: RunRecipeOptions,
    teacher: TeacherOptions,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say how long each stage of `updp prune` will take here, and how much memory.

    The options are those of `updp prune`. A few steps of each stage are run and thrown away; the
    latencies of candidates are timed in full, for the run will find them in the cache. A stage that
    has ended in --out takes no time; nothing is written there.
    """
    from updp.cli.run_context import read_inputs
    from updp.cli.tables import error_console, print_estimate, standard_console
    from updp.io.bars import Bars
    from updp.run.estimates import estimate_run

    with Bars(error_console()) as bars:
        inputs = read_inputs(run, recipe, bars, starts_over=fresh, teacher=teacher)
        found = estimate_run(inputs, None if fresh else run.out, bars)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_estimate(standard_console(), found, str(inputs.feed.device))
