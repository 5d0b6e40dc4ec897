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

_FitTasks = list[FitTask]


@torch.no_grad()
def fit_candidates(
    net: Supernet,
    batches: Sequence[Samples],
    settings: FitSettings,
    tick: Callable[[str], None] = lambda site: None,
    sites: Collection[str] | None = None,
) -> None:
    """Fit every candidate of every site alone, on the baseline's activations, for a search.

    The baseline runs once per group of sites whose rows fit into `settings.rows_mb`, and again
    where a form has a further regression. `batches` are calibration images (N, C, H, W), or other
    inputs. `tick` is called for each batch of each site, and once more when the site's candidates
    are fitted. `sites` limits the fit to these sites; None means all.
    """
    net.eval()
    net.choose({})
    for group in _groups(net, sites, settings, len(batches)):
        for number, images in processes.share(batches):
            with observed_inputs(
                {
                    net.switches[n]: observer(number, own.targets, own.own)
                    for n, own in group.items()
                }
            ):
                call(net, images)
            for name in group:
                tick(name)
        left = {name: own.forms for name, own in group.items()}
        while left := {name: rest for name, forms in left.items() if (rest := _finished(forms))}:
            for number, images in processes.share(batches):
                with observed_inputs(
                    {
                        net.switches[name]: observer(number, [], [form[0] for form in forms])
                        for name, forms in left.items()
                    }
                ):
                    call(net, images)
        for name in group:
            tick(name)


class _SiteFits:
    """Regressions of a site's candidates, form by form, fitted on the baseline's rows."""

    def __init__(self, forms: list[_FitTasks]) -> None:
        self.forms = [form for form in forms if form]
        # First regressions that gather rows themselves; those of other forms share the sums of one.
        self.own: _FitTasks = []
        for first, *_ in self.forms:
            if not any(first.try_to_share(other) for other in self.own):
                self.own.append(first)

    @property
    def targets(self) -> _FitTasks:
        """Regressions that need targets now; later ones of a form get their inputs later."""
        return [*self.own, *(task for _, *later in self.forms for task in later)]

    @property
    def bytes(self) -> int:
        """Memory for the rows or their sums, in bytes."""
        return sum(task.regression.bytes for task in self.targets)


def _groups(
    net: Supernet, sites: Collection[str] | None, settings: FitSettings, batches: int
) -> Iterator[dict[str, _SiteFits]]:
    """Groups of sites whose regressions fit into memory together, by site."""
    group: dict[str, _SiteFits] = {}
    room = settings.rows_mb * 2**20
    for name, switch in net.switches.items():
        if sites is not None and name not in sites:
            continue
        fits = _SiteFits([switch.form(n).fit_tasks(settings, batches) for n in switch.labels])
        if group and fits.bytes > room:
            yield group
            group, room = {}, settings.rows_mb * 2**20
        group[name] = fits
        room -= fits.bytes
    if group:
        yield group


def _finished(forms: list[_FitTasks]) -> list[_FitTasks]:
    """Solve the first regression of each form; return the remaining ones."""
    for form in forms:
        form[0].finish()
    return [form[1:] for form in forms if form[1:]]
