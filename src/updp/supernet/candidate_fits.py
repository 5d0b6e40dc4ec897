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
                    net.switches[n]: observer(number, own.targets, own.own)
                    for n, own in group.items()
                }
            ):
                call(net, images)
            for name, own in group.items():
                if own.has_first:
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
        for name, own in group.items():
            if own.has_last:
                tick(name)


class _SiteFits:
    """Regressions of a site's candidates, form by form, which the baseline's rows are for."""

    def __init__(self, *, has_first: bool) -> None:
        self.has_first, self.has_last = has_first, False  # of the candidates of the site
        self.forms: list[_FitTasks] = []
        # The first of each form that gather rows; the others use the sums of one of these.
        self.own: _FitTasks = []

    def try_to_share(self, form: _FitTasks) -> bool:
        """Let the first regression of a form use the sums of one that is here."""
        return any(form[0].try_to_share(other) for other in self.own)

    @property
    def targets(self) -> _FitTasks:
        """Regressions that need targets now; later ones of a form get their inputs later."""
        return [*self.own, *(task for _, *later in self.forms for task in later)]


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
        own = _SiteFits(has_first=True)
        for label in switch.labels:
            if not (form := switch.form(label).fit_tasks(settings, batches)):
                continue
            shares = own.try_to_share(form)
            needed = _bytes(form[1:] if shares else form)
            if not shares and needed > room and any(o.own for o in (*group.values(), own)):
                if own.own:
                    group[name], own = own, _SiteFits(has_first=False)
                yield group
                group, room = {}, settings.rows_mb * 2**20
            room -= needed
            own.forms.append(form)
            own.own += [] if shares else form[:1]
        own.has_last = True
        group[name] = own
    if group:
        yield group


def _bytes(form: _FitTasks) -> int:
    """Memory for rows or their sums, and for the targets that wait for a later pass."""
    waiting = sum(task.regression.most_target_bytes for task in form[1:])
    return waiting + sum(task.regression.bytes for task in form)


def _finished(forms: list[_FitTasks]) -> list[_FitTasks]:
    """Solve the first regression of each form; return the remaining ones."""
    for form in forms:
        form[0].finish()
    return [form[1:] for form in forms if form[1:]]
