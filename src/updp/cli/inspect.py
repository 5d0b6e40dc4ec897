"""`updp inspect MODEL`: the sites with their candidates, and the blocks that cannot be pruned."""

import json
from typing import Annotated

import typer

from updp.cli import completion
from updp.cli.options import MODEL, DeviceOption, JsonOption, RecipeOptions


def inspect(
    model: Annotated[str, typer.Argument(help=MODEL, autocompletion=completion.model)],
    recipe: RecipeOptions,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what can be pruned, what each block may become and what that costs."""
    from updp import api
    from updp.cli.tables import error_console, print_inspection, standard_console
    from updp.io.bars import Bars

    settled = recipe.settle()
    with Bars(error_console()) as bars:
        found = api.inspect(model, None, settled, device=device, progress=bars)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print_inspection(standard_console(), found, settled.measure.batch_size)
