"""Fit every candidate alone, on the baseline's activations, for a search.

Candidates of a site that differ only in width have the same rows, which are gathered once.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from updp.blocks.nested import Samples, call
from updp.fit import FitTask, observer
from updp.io import processes
from updp.recipe import FitSettings
from updp.supernet.partial import observed_inputs
from updp.supernet.supernet import Supernet


@torch.no_grad()
def fit_candidates(
    net: Supernet,
    batches: Sequence[Samples],
    settings: FitSettings,
    tick: Callable[[str], None] = lambda site: None,
    sites: Collection[str] | None = None,
) -> None:
    """Fit every candidate of every site alone, on the baseline's activations, for a search.

    The baseline runs once for as many candidates as `settings.rows_mb` allows, and again where a
    form has a further regression. `batches` are calibration images (N, C, H, W), or other inputs.
    `tick` is called for each batch of each site, and once more when its candidates are fitted.
    `sites` are all by default.
    """
    net.eval()
    net.choose({})
    for group in _groups(net, sites, settings, len(batches)):
        for number, images in processes.share(batches):
            with observed_inputs(
                {
                    net.switches[n]: observer(number, fits.targets, fits.gathering)
                    for n, fits in group.items()
                }
            ):
                call(net, images)
            for name, fits in group.items():
                if fits.has_first:
                    tick(name)
        left = {name: fits.of_forms for name, fits in group.items()}
        while left := {
            name: rest for name, of_forms in left.items() if (rest := _finished(of_forms))
        }:
            for number, images in processes.share(batches):
                with observed_inputs(
                    {
                        net.switches[name]: observer(number, [], [tasks[0] for tasks in of_forms])
                        for name, of_forms in left.items()
                    }
                ):
                    call(net, images)
        for name, fits in group.items():
            if fits.has_last:
                tick(name)


class _SiteFits:
    """Regressions of a site's candidates, form by form, which the baseline's rows are for."""

    def __init__(self, *, has_first: bool) -> None:
        self.has_first, self.has_last = has_first, False  # of the candidates of the site
        self.of_forms: list[list[FitTask]] = []
        # The first of each form that gather rows; the others use the sums of one of these.
        self.gathering: list[FitTask] = []

    def try_to_share(self, tasks: list[FitTask]) -> bool:
        """Let the first regression of a form use the sums of one that is here."""
        return any(tasks[0].try_to_share(other) for other in self.gathering)

    @property
    def targets(self) -> list[FitTask]:
        """Regressions that need targets now; later ones of a form get their inputs later."""
        return [*self.gathering, *(task for _, *later in self.of_forms for task in later)]


def _groups(
    net: Supernet, sites: Collection[str] | None, settings: FitSettings, batches: int
) -> Iterator[dict[str, _SiteFits]]:
    """Groups of regressions that fit into memory together, by site.

    The candidates of one site may be in several groups, which follow one another.
    """
    group: dict[str, _SiteFits] = {}
    room = settings.rows_mb * 2**20
    for name, switch in net.switches.items():
        if sites is not None and name not in sites:
            continue
        fits = _SiteFits(has_first=True)
        for label in switch.labels:
            if not (tasks := switch.form(label).fit_tasks(settings, batches)):
                continue
            shares = fits.try_to_share(tasks)
            needed = _bytes(tasks[1:] if shares else tasks)
            if not shares and needed > room and any(f.gathering for f in (*group.values(), fits)):
                if fits.gathering:
                    group[name], fits = fits, _SiteFits(has_first=False)
                yield group
                group, room = {}, settings.rows_mb * 2**20
            room -= needed
            fits.of_forms.append(tasks)
            fits.gathering += [] if shares else tasks[:1]
        fits.has_last = True
        group[name] = fits
    if group:
        yield group


def _bytes(tasks: list[FitTask]) -> int:
    """Memory for rows or their sums, and for the targets that wait for a later pass."""
    waiting = sum(task.regression.most_target_bytes for task in tasks[1:])
    return waiting + sum(task.regression.bytes for task in tasks)


def _finished(of_forms: list[list[FitTask]]) -> list[list[FitTask]]:
    """Solve the first regression of each form; return the remaining ones."""
    for tasks in of_forms:
        tasks[0].finish()
    return [tasks[1:] for tasks in of_forms if tasks[1:]]
