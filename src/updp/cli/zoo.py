"""`updp zoo`: the networks that come with updp."""


def zoo() -> None:
    """List the small networks that come with updp.

    A trained one is a model like any other, with its weights: `--model zoo/NAME`. A pruned one is
    loaded by `updp.load("zoo/NAME")`.
    """
    from updp import zoo
    from updp.cli.tables import make_table, result_table, standard_console
    from updp.run.records import Result, RunRecord

    console = standard_console()
    runs = {name: zoo.run_directory(name) for name in zoo.PRUNED}
    table = make_table("trained", ("--model", "parameters"), left=())
    for name in zoo.BASELINES:
        count = sum(p.numel() for p in zoo.build(name).parameters())
        table.add_row(f"{zoo.PREFIX}{name}", f"{count:,}")
    console.print(table)
    results = {f"{zoo.PREFIX}{name}": Result.read(run) for name, run in runs.items()}
    console.print(result_table(results, "pruned"))
    for name, run in runs.items():
        record = RunRecord.read(run)
        console.print(f"{zoo.PREFIX}{name}: {record.model} on {record.data}", highlight=False)
